"""Which texts a page shows, chosen by rule and not by taste."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from recipes.lib.report import tokens
from recipes.lib.report.numbers import is_finite, is_number, plain
from recipes.lib.report.run_files import Row

MAX_CHARACTERS = 1500


@dataclass(frozen=True)
class Cell:
    """A text with the facts about it; `cut` counts the characters that were left out.

    `pieces` are the text token by token, where it is known that way; a `picture` stands above.
    """

    text: str
    facts: str = ""
    is_best: bool = False
    cut: int = 0
    pieces: list[tokens.Piece] = field(default_factory=list)
    picture: str = ""


@dataclass(frozen=True)
class SampleTable:
    """Texts side by side: a row for each prompt, which is its first cell.

    `shades` are the numbers of tokens to choose from, each with the ends of its colours.
    """

    columns: list[str]
    rows: list[list[Cell]]
    rule: str
    shades: list[tuple[tokens.Shade, str, str]] = field(default_factory=list)


def comparison(rows: Sequence[Row], names: tuple[str, str], count: int = 6) -> SampleTable | None:
    """Baseline and completion on the same prompts, from the largest loss to the largest win.

    Args:
        rows: of an evaluation: prompt, baseline, completion, score_baseline, score.
        names: headings of the two columns.
        count: number of prompts.
    """
    texts = {"baseline": "score_baseline", "completion": "score"}
    order = "prompts, evenly spaced from the largest win down to the largest loss."
    return _pairs(rows, texts, ("score", "score_baseline"), names, order, count)


def errors(rows: Sequence[Row], count: int = 6) -> SampleTable | None:
    """Rows whose label a classifier gets wrong, those of which it is surest first."""
    wrong = [row for row in rows if row.get("label") != row.get("predicted")]
    what = "Text" if any("text" in row for row in rows) else "Picture"
    wrong = sorted(wrong, key=lambda row: -row["probability"])[:count]

    def named(label: Any) -> str:
        return ", ".join(label) or "none" if isinstance(label, list) else str(label)

    cells = [
        [
            replace(text_cell(row.get("text", f"Row {row['row']}")), picture=row.get("image", "")),
            text_cell(named(row["label"])),
            text_cell(named(row["predicted"]), f"probability {plain(row['probability'])}"),
        ]
        for row in wrong
    ]
    rule = f"The {len(cells)} errors with the highest probability."
    return SampleTable([what, "Label", "Predicted"], cells, rule) if cells else None


def preferences(rows: Sequence[Row]) -> SampleTable | None:
    """Test pairs of a reward model, from the clearest success to the clearest error."""
    texts = {"chosen": "score_chosen", "rejected": "score_rejected"}
    order = "test pairs, evenly spaced from the largest margin down to the smallest."
    return _pairs(rows, texts, ("score_chosen", "score_rejected"), ("Chosen", "Rejected"), order)


def rated(rows: Sequence[Row]) -> SampleTable | None:
    """Single completions with their label, from the highest implicit reward to the lowest."""
    usable = [row for row in rows if is_finite(row.get("score"))]
    made = []
    for row in _evenly(_ranked(usable, _score)):
        label = "desirable" if row.get("label") else "undesirable"
        facts = f"{label} \u00b7 reward {plain(row['score'])}"
        made.append([text_cell(row.get("prompt")), text_cell(row.get("completion"), facts)])
    rule = f"{len(made)} test rows, evenly spaced from the highest reward down to the lowest."
    return SampleTable(["Prompt", "Completion"], made, rule) if made else None


def references(rows: Sequence[Row]) -> SampleTable | None:
    """What a fine-tuned model writes, beside what the data has."""
    kept = [row for row in _distinct(rows)[:5] if row.get("completion") is not None]
    made = [
        [
            replace(text_cell(row.get("prompt")), picture=row.get("image", "")),
            *(text_cell(row.get(name)) for name in ("reference", "completion")),
        ]
        for row in kept
    ]
    rule = f"The first {len(made)} prompts of the held-out data."
    return SampleTable(["Prompt", "Reference", "Model"], made, rule) if made else None


def progress(rows: Sequence[Row]) -> SampleTable | None:
    """Completions of the first, a middle and the last rollout that kept samples."""
    steps = sorted({row["step"] for row in rows if is_number(row.get("step"))})
    chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []
    kept: list[Row] = []
    for step in chosen:
        kept += _evenly(_ranked([row for row in rows if row.get("step") == step], _score), 3)
    told = [row for row in kept if tokens.has_tokens(row)]
    colours = tokens.scales(told) if told else []
    made = [_rollout(row, colours) for row in kept]
    rule = "Best, middle and worst kept completion of the first, a middle and the last rollout."
    shades = [
        (shade, *tokens.ends(scale)) for shade, scale in zip(tokens.SHADES, colours, strict=False)
    ]
    return SampleTable(["Prompt", "Completion"], made, rule, shades) if made else None


def text_cell(value: object, facts: str = "", is_best: bool = False) -> Cell:
    """A text of at most 1,500 characters."""
    text = "" if value is None else str(value).strip()
    return Cell(text[:MAX_CHARACTERS], facts, is_best, max(0, len(text) - MAX_CHARACTERS))


def _pairs(
    rows: Sequence[Row],
    texts: dict[str, str],
    better_and_worse: tuple[str, str],
    names: tuple[str, str],
    order: str,
    count: int = 6,
) -> SampleTable | None:
    high, low = better_and_worse
    usable = [row for row in rows if is_finite(row.get(high)) and is_finite(row.get(low))]
    made = []
    for row in _evenly(_ranked(usable, lambda row: float(row[high] - row[low])), count):
        worst = min(row[high], row[low])
        made.append([text_cell(row.get("prompt"))])
        for text, score in texts.items():
            said = f"score {plain(row[score])}"
            made[-1].append(text_cell(row.get(text), said, is_best=row[score] > worst))
    return SampleTable(["Prompt", *names], made, f"{len(made)} {order}") if made else None


def _rollout(row: Row, colours: Sequence[tokens.Ramp]) -> list[Cell]:
    phrases = {"score": ("score {}", 2), "kl": ("KL {} nats", 1), "num_tokens": ("{} tokens", 0)}
    facts = [
        phrase.format(plain(row[key], digits))
        for key, (phrase, digits) in phrases.items()
        if is_number(row.get(key))
    ]
    episode = row.get("episode")
    place = f"episode {plain(episode, 0)}" if is_number(episode) else ""
    if turns := row.get("turns"):
        paid = [turn["reward"] for turn in turns]
        to_come = [sum(paid[place:]) for place in range(len(paid))]
        for name, numbers in (("reward by turn", paid), ("return by turn", to_come)):
            facts.append(f"{name} {', '.join(plain(number) for number in numbers)}")
    said = text_cell(row.get("completion"), " \u00b7 ".join(facts))
    if tokens.has_tokens(row):
        said = replace(said, pieces=tokens.text_pieces(row, colours))
    return [text_cell(row.get("prompt"), place), said]


def _ranked(rows: Sequence[Row], key: Callable[[Row], float]) -> list[Row]:
    return sorted(_distinct(rows), key=key, reverse=True)


def _score(row: Row) -> float:
    score = row.get("score")
    return float(score) if is_finite(score) else -math.inf


def _distinct(rows: Sequence[Row]) -> list[Row]:
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(f"{row.get('prompt')} {row.get('image', '')}", row)
    return list(first.values())


def _evenly(rows: Sequence[Row], count: int = 6) -> list[Row]:
    if len(rows) <= count:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]
