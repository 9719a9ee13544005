"""The outputs of a reward model: one for each aspect, or an ensemble of them for each.

A full model has them in its config.json, an adapter in a file beside it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

KEY = "reward_heads"  # of config.json
FILE = "reward_heads.json"  # beside an adapter


@dataclass(frozen=True)
class RewardHeads:
    """What the outputs of a reward model are, in the order aspect by aspect.

    Args:
        aspects: What each output judges.
        ensemble: Outputs of each aspect, trained on different bootstrapped rows.
    """

    aspects: tuple[str, ...] = ("overall",)
    ensemble: int = 1

    def names(self) -> list[str]:
        """Names of the outputs, as in id2label."""
        numbers = [""] if self.ensemble == 1 else [f" {n}" for n in range(1, self.ensemble + 1)]
        return [f"{aspect}{number}" for aspect in self.aspects for number in numbers]


ONE = RewardHeads()  # a single output, without a name


def name_outputs(config: Any, heads: RewardHeads) -> None:
    """Give a configuration the outputs of a reward model; a single one has no name.

    Args:
        config: Of a sequence classifier, changed.
        heads: The outputs.
    """
    if config.num_labels != len(heads.names()):
        config.num_labels = len(heads.names())  # sets id2label, too; a dict would be warned about
    if heads != ONE:
        config.id2label = dict(enumerate(heads.names()))
        config.label2id = {name: number for number, name in config.id2label.items()}
        setattr(config, KEY, asdict(heads) | {"aspects": list(heads.aspects)})


def heads_of(config: Any) -> RewardHeads | None:
    """The outputs of a classifier; None of one that is no reward model."""
    return _read(getattr(config, KEY, None), config.num_labels)


def adapter_heads(path: str | Path) -> RewardHeads:
    """The outputs of a reward adapter, in whose folder nothing else tells them."""
    file = Path(path) / FILE
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return _read(known, None) or ONE


def save_heads(model: Any, folder: str | Path) -> None:
    """Write the outputs of a reward model beside its adapter, if it is one that has several."""
    if hasattr(model, "peft_config") and (known := getattr(model.config, KEY, None)):
        (Path(folder) / FILE).write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def _read(known: Any, number: int | None) -> RewardHeads | None:
    try:
        heads = RewardHeads(tuple(known["aspects"]), known["ensemble"]) if known else ONE
        return heads if number in (None, len(heads.names())) else None
    except (KeyError, TypeError):  # somebody else's
        return None
