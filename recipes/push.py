"""Pushes a run to the Hub in one commit, and looks whether others can load what was trained.

First it prints what would be pushed: files and sizes, who may see them, secrets and local paths,
licence. Pickles, missing files, secrets and adapters on a base that nobody else has are refused.
Then model, heads, tokenizer, template, card, report and lineage become one commit, or none; and
that commit is downloaded into an empty cache, loaded without this project, and compared.

The token is that of `hf auth login`, or HF_TOKEN.

    rlhf push runs/quickstart/ppo --repo tales-ppo --dry_run
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.errors import UserError
from recipes.lib.models.folders import TrustArguments
from recipes.lib.recipe.main import launch

POSITIONAL = "run"


@dataclass(kw_only=True)
class PushArguments(TrustArguments):
    """What is pushed, and where to."""

    run: str | None = option(None, "Run, model folder or adapter folder to push.")
    repo: str | None = option(None, "Its name on the Hub; without an owner, the token's.")
    private: bool = option(True, "Whether nobody else may see it; a public one is refused then.")
    branch: str | None = option(None, "Branch to push to, made where it is not there.")
    message: str = option("Push with rlhf", "Of the commit.")
    verify: str | None = option(
        None,
        "full loads the commit in a fresh process and compares logits and greedy text; checksums "
        "compares hashes alone. Default: full below 2 GB.",
        choices=("full", "checksums"),
    )
    dry_run: bool = option(False, "Print what would be pushed, and stop.")


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    return (PushArguments,)


def run(config: Config) -> dict[str, Any]:
    """Show, push, verify.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: files, bytes; the commit and how many files it sent; what was compared.

    Raises:
        UserError: The run cannot be pushed, the Hub refuses, or what loads from it differs.
    """
    from recipes.lib.publishing.bundle import gather, show_bundle
    from recipes.lib.publishing.push import Repository, push
    from recipes.lib.publishing.verify import is_small, load_again

    script: PushArguments = config.script
    if not script.repo:
        raise UserError("repo is missing; give --repo NAME.")
    bundle = gather(str(script.run), script.repo)
    show_bundle(bundle, script.repo, "private" if script.private else "public")
    bundle.refuse()
    summary = {"recipe": "push", "num_files": len(bundle.files), "commit": None}
    if script.dry_run:
        return summary
    place = Repository(script.repo, script.private, script.branch)
    push(bundle, place, script.message)
    print(f"{place.name} is whole at commit {place.commit}; {place.sent or 'no'} files were sent")
    verified = script.verify or ("full" if is_small(bundle) else "checksums")
    if verified == "full":
        load_again(bundle, place, trust_remote_code=script.trust_remote_code)
    print(f"verified: {verified}")
    return summary | {"commit": place.commit, "num_sent": place.sent, "verified": verified}


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("push", argv)


if __name__ == "__main__":
    raise SystemExit(main())
