"""Completions that are kept for people to read, token by token.

Shapes: B episodes, C completion tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from recipes.lib.ppo.rollouts import Episode
from recipes.lib.runs.files import append_jsonl
from recipes.lib.trainers.sampled_rewards import NUM_KEPT

NUM_CONTEXT = 8  # tokens before a piece that decide about its leading space
MAX_PARTS = 4  # bytes of the longest UTF-8 character: more tokens than that cannot share one
DIGITS = 4  # significant ones, of each number of a token
BROKEN = "\ufffd"  # what decoding gives for a part of a character


def sample_rows(
    tokenizer: Any, first: int, episodes: Sequence[Episode], numbers: dict[str, Tensor]
) -> list[dict[str, Any]]:
    """The first episodes of a rollout, as rows of samples.jsonl.

    Args:
        tokenizer: The policy's tokenizer.
        first: Number of the first episode in the run.
        episodes: The episodes of the rollout.
        numbers: Numbers of each token by name, of shape (B, C).

    Returns:
        Rows with the texts, the score, the KL (nats per completion), the tokens as text, and under
        `token_<name>` the numbers of each token.
    """
    return [
        {
            "episode": first + i,
            "prompt": tokenizer.decode(e.prompt_ids, skip_special_tokens=True),
            "completion": e.text,
            "score": e.score,
            "kl": e.kl,
            "num_tokens": e.num_tokens,
            "tokens": token_texts(tokenizer, e.prompt_ids, e.completion_ids),
        }
        | {
            f"token_{name}": [
                float(f"{x:.{DIGITS}g}") for x in tensor_BC[i, : len(e.completion_ids)].tolist()
            ]
            for name, tensor_BC in numbers.items()
        }
        | ({"turns": [vars(turn) for turn in e.turns]} if e.turns else {})
        for i, e in enumerate(episodes[:NUM_KEPT])
    ]


def token_texts(
    tokenizer: Any, prompt_ids: Sequence[int], completion_ids: Sequence[int]
) -> list[str]:
    """What each token of a completion adds to the text, special tokens included.

    A token alone may be part of a character, or have lost its leading space. So each is decoded
    behind the ones before it, and a character that several tokens share is with the last of them.

    Args:
        tokenizer: The policy's tokenizer.
        prompt_ids: Tokens before the completion.
        completion_ids: Tokens of the completion.

    Returns:
        One text for each token, empty for the first parts of a character.
    """
    ids = [*prompt_ids, *completion_ids]
    told = len(prompt_ids)  # tokens before this one have been given their text
    starts = [0, told]  # where a whole character begins: context from elsewhere may be garbage
    pieces: list[str] = []
    for end in range(told + 1, len(ids) + 1):
        start = max((s for s in starts if s <= told - NUM_CONTEXT), default=starts[0])
        before, text = tokenizer.decode(ids[start:told]), tokenizer.decode(ids[start:end])
        if text.endswith(BROKEN) and end - told < MAX_PARTS and end < len(ids):
            pieces.append("")
            continue
        # Where new tokens rewrite what stood before them, they are decoded by themselves.
        is_added = text.startswith(before)
        pieces.append(text[len(before) :] if is_added else tokenizer.decode(ids[told:end]))
        told = end
        # Some decoders give up a whole run of bytes for one that is wrong: go on without it.
        starts = [end] if BROKEN in pieces[-1] else [*starts[-NUM_CONTEXT:], end]
    return pieces


def append_samples(folder: Path, step: int, samples: Sequence[dict[str, Any]]) -> None:
    """Append rows to samples.jsonl.

    Args:
        folder: The run folder.
        step: Optimizer step that they are logged at.
        samples: The rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    append_jsonl(folder / "samples.jsonl", ({"step": step} | sample for sample in samples))
