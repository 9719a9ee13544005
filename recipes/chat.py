"""Talks to a model in the terminal: a run, a folder, an adapter or a Hub id, as it was trained.

An adapter is not merged, and a base that was rounded to 4 or 8 bits in training is so here. Where
there is no chat template, the model goes on with each text.

    rlhf chat runs/quickstart/ppo
    echo "Tell me a story." | rlhf chat runs/sft/mine --seed 1
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.errors import UserError
from recipes.lib.models.folders import TrustArguments
from recipes.lib.recipe.main import launch

if TYPE_CHECKING:
    from recipes.lib.publishing.conversation import Conversation

POSITIONAL = "run"
DTYPES = ("trained", "auto", "float32", "bfloat16", "float16")
HELP = "/again for another answer, /new to begin anew, /quit"


@dataclass(kw_only=True)
class ChatArguments(TrustArguments):
    """Who is talked to, and how it answers."""

    run: str | None = option(None, "Run, checkpoint, model or adapter folder, or Hub id.")
    revision: str = option("main", "Revision of a model on the Hub.")
    system: str | None = option(None, "System prompt.")
    max_completion_length: int = option(256, "Longest answer, in tokens.")
    temperature: float = option(1.0, "Of the sampling; 0 takes the most probable token.")
    seed: int = option(0, "Of the sampling; the same turns get the same answers.")
    dtype: str = option("trained", "Number format; trained is that of the run.", choices=DTYPES)


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    return (ChatArguments,)


def answer(conversation: Conversation, line: str) -> bool:
    """Do what a line says; False where it ends the conversation.

    Raises:
        UserError: It cannot be done.
    """
    if line == "/quit":
        return False
    if line == "/new":
        conversation.turns.clear()
        return True
    if line.startswith("/") and line != "/again":
        raise UserError(f"{line}: is no command; {HELP}.")
    conversation.say(None if line == "/again" else line)
    print()
    return True


def run(config: Config) -> dict[str, Any]:
    """Read lines and answer them, until there are no more.

    Args:
        config: The parsed configuration.

    Returns:
        The number of answers.

    Raises:
        UserError: The model cannot be used.
    """
    from recipes.lib.publishing.conversation import Conversation
    from recipes.lib.publishing.source import load_as_trained

    script: ChatArguments = config.script
    trusted = {"trust_remote_code": script.trust_remote_code}
    found = load_as_trained(str(script.run), script.dtype, script.revision, **trusted)
    model, tokenizer, kwargs = found
    keys = ("max_completion_length", "temperature", "seed", "system")
    given = {key: getattr(script, key) for key in keys} | {"template_kwargs": kwargs}
    conversation = Conversation(model, tokenizer, **given)
    is_asked = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if is_asked:
        kind = "" if tokenizer.chat_template else " It has no chat template and goes on with texts."
        print(f"{script.run}.{kind} {HELP}")
    while True:
        try:
            line = input("> " if is_asked else "").strip()
            if line and not answer(conversation, line):
                break
        except UserError as error:
            print(f"rlhf chat: {error}", file=sys.stderr)
        except EOFError:
            break
        except KeyboardInterrupt:  # ends an answer; the end of input or /quit ends it all
            if not is_asked:
                raise
            print()
    return {"recipe": "chat", "answers": conversation.num_answers}


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("chat", argv)


if __name__ == "__main__":
    raise SystemExit(main())
