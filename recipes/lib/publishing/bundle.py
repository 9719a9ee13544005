"""What of a run is pushed, what may not leave, and what is taken out before it does."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, get_token
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from recipes.lib.config.build import HIDDEN, SECRET
from recipes.lib.config.strict_yaml import read_yaml
from recipes.lib.errors import UserError
from recipes.lib.models.folders import is_adapter, is_local, resolve_model
from recipes.lib.publishing.card import write_card
from recipes.lib.report.run_files import read_json
from recipes.lib.runs.lineage import TEMPLATE_FILE, sha256

CARD = "README.md"
BESIDE = ("lineage.json", "report.html", "export.json")  # of a run, beside its model
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
TEXTS = {".json", ".jsonl", ".jinja", ".txt", ".md", ".html", ".py", ".yaml", ".yml", ".csv"}
# A token of a vocabulary may look like a path.
VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"}
TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_\w{30,}|AKIA[A-Z0-9]{16})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
)
MIN_SECRET = 8  # characters; shorter values of the environment stand in any text
ROOTS = set("home lustre root Users mnt media tmp opt srv var data scratch work workspace".split())


@dataclass
class Bundle:
    """The files of one commit.

    Args:
        name: What the user called the run.
        final: The folder of its model.
        files: By their names in the repository.
        marks: What was found in a file, in words.
        faults: Why it may not leave, in sentences without their ends.
        licence: That of the card.
    """

    name: str
    final: Path
    files: dict[str, CommitOperationAdd] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    licence: str = ""

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return sum(file.upload_info.size for file in self.files.values())

    def refuse(self) -> None:
        """Refuse what may not leave.

        Raises:
            UserError: There are faults; it tells the first.
        """
        if self.faults:
            raise UserError(f"run={self.name}: {self.faults[0]}.")


def gather(name: str, repo: str | None = None) -> Bundle:
    """Find what is pushed of a run: model, tokenizer, card, report, lineage.

    Args:
        name: A run, a model folder or an adapter folder.
        repo: Its name on the Hub, for the card.

    Returns:
        The bundle, with its faults; local paths are taken out of card, report and lineage.

    Raises:
        UserError: There is no such folder.
    """
    try:
        final = Path(resolve_model(name))
    except UserError as error:
        raise UserError(str(error).replace("model_name_or_path=", "run=", 1)) from error
    if not final.is_dir():
        raise UserError(f"run={name}: there is no such folder; name a run or a model folder.")
    run = final.parent if final.name == "final" else final
    found = {p.relative_to(final).as_posix(): p for p in final.rglob("*") if p.is_file()}
    contents: dict[str, Any] = {one: found[one] for one in found if "/." not in f"/{one}"}
    bundle = Bundle(name, final, faults=list(_faults(run, final, set(contents))))
    beside = [final / CARD, *(run / one for one in BESIDE)]
    texts = {path.name: path.read_text(encoding="utf-8") for path in beside if path.is_file()}
    texts.setdefault(CARD, write_card(run, final, repo))
    local = _local_paths(run)
    for one, text in texts.items():
        contents[one] = local.sub(_without_place, text).encode()
        if contents[one] != text.encode():
            bundle.marks[one] = "local paths taken out"
    bundle.files = {one: CommitOperationAdd(one, contents[one]) for one in sorted(contents)}
    licence = re.search(r"^license: *(\S+)", texts[CARD], re.MULTILINE)
    bundle.licence = licence[1] if licence else "not known"
    _look_through(bundle, local)
    return bundle


def _faults(run: Path, final: Path, names: set[str]) -> Iterator[str]:
    """What is wrong with a folder as a model for others."""
    if not {"config.json", "adapter_config.json"} & names:
        yield "it holds no model; name a run that trained one"
    has_words = names & VOCABULARIES or any(one.endswith(".model") for one in names)
    has_words = has_words and "tokenizer_config.json" in names
    if not (has_words or "preprocessor_config.json" in names):  # of pictures
        yield "it has no tokenizer (tokenizer_config.json); put that of its training beside it"
    if not any(one.endswith(".safetensors") for one in names):
        yield "it has no weights (*.safetensors)"
    for name in sorted(one for one in names if Path(one).suffix in PICKLES):
        yield f"{name} can run code where it is loaded; save it as safetensors, or remove it"
    for index in final.glob("*.index.json"):
        for shard in sorted(set(read_json(index).get("weight_map", {}).values()) - names):
            yield f"{shard} is missing, which {index.name} names; save the model again"
    trained = read_json(run / "lineage.json").get("chat_template")
    if trained and trained != sha256(final / TEMPLATE_FILE):
        yield f"{TEMPLATE_FILE} is not the one it was trained with; put that back"
    if is_adapter(final):
        base = str(read_json(final / "adapter_config.json").get("base_model_name_or_path"))
        if is_local(base) or base == "None" or _was_local(run, base):
            yield f"it is an adapter on {base}, which nobody else has; push what rlhf merge makes"


def _was_local(run: Path, base: str) -> bool:
    """Whether a base that is gone was a folder; the lineage has commits of those of the Hub."""
    model = read_json(run / "lineage.json").get("model") or {}
    return model.get("name") == base and "commit" not in model


def _local_paths(run: Path) -> re.Pattern[str]:
    """What finds places of this machine in a text."""
    config = run / "config.yaml"
    told = [read_json(run / "lineage.json"), read_yaml(config).values if config.is_file() else {}]
    named = {text.split("/")[1] for _, text in _strings(told) if text.startswith("/")}
    roots = "|".join(
        map(re.escape, {*ROOTS, *Path.cwd().parts[1:2], *Path.home().parts[1:2], *named} - {""})
    )
    return re.compile(rf"(?:file://|(?<![\w./<]))(?:~|/(?:{roots}))/[^\s\"'<>`|,;()\[\]{{}}\\&]*")


def _without_place(found: re.Match[str]) -> str:
    path = Path(found[0].removeprefix("file://")).expanduser()
    is_inside = path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd())) if is_inside else f"local file {path.name}"


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Each text in a tree of plain values, with the key that it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else ((key, one) for one in value)
        for name, one in pairs:
            yield from _strings(one, str(name))


def _look_through(bundle: Bundle, local: re.Pattern[str]) -> None:
    """Note secrets, and local paths that stay."""
    own = [value for key, value in os.environ.items() if SECRET.search(key)] + [get_token() or ""]
    values = [value for value in own if len(value) >= MIN_SECRET]
    for name, file in bundle.files.items():
        if Path(name).suffix in TEXTS:
            with file.as_file() as content:
                text = content.read().decode(errors="replace")
            # A word of a vocabulary may be somebody's password.
            if secret := _secret(name, text, [] if name in VOCABULARIES else values):
                bundle.faults.append(f"{name} holds a secret ({secret}); remove it, or the file")
            if name not in VOCABULARIES and local.search(text):
                bundle.marks[name] = "has local paths"


def _secret(name: str, text: str, values: list[str]) -> str | None:
    found = [value for value in values if value in text] or TOKEN.findall(text)
    if found:
        return f"{found[0][:6]}..."
    try:
        tree = json.loads(text) if name.endswith(".json") else None
    except ValueError:
        return None
    keys = (key for key, one in _strings(tree) if SECRET.search(key) and one not in ("", HIDDEN))
    return next(keys, None)


def show_bundle(bundle: Bundle, repo: str, visibility: str) -> None:
    """Print what would be pushed: files and sizes, who sees them, what was found in them.

    Args:
        bundle: The bundle.
        repo: Its name on the Hub.
        visibility: "private" or "public".
    """
    table = Table("file", "size", "found", title=f"{bundle.name} -> {repo}", width=80)
    for name, file in bundle.files.items():
        table.add_row(name, decimal(file.upload_info.size), bundle.marks.get(name, ""))
    console = Console(highlight=False, markup=False, width=80)
    console.print(table)
    console.print(f"{len(bundle.files)} files, {decimal(bundle.num_bytes)}, {visibility}")
    console.print(f"licence: {bundle.licence}")
    told = [f"refused: {fault}" for fault in bundle.faults]
    console.print("\n".join(told or ["nothing missing, no secret, no pickle"]))
