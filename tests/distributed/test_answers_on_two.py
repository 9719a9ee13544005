"""Answers of all kinds under DDP: two processes train the model, and what is beside it, of one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recipes.lib.runs.files import read_jsonl
from tests.helpers.distributed import runs_on_two as two
from tests.helpers.distributed.runs_on_two import fill, inside, make, notes, on_two, words_of
from tests.helpers.tiny_runs import LORA, write

PLAIN = two.STEPS | two.BATCHES | {"dataset_name": "answers.jsonl", "ensemble": 2}
PLAIN |= {"test_dataset_name": "one_of_pairs.jsonl", "save_strategy": "steps", "save_steps": 3}
NAMES: dict[str, dict[str, Any]] = {"reward_full": PLAIN, "reward_lora": PLAIN | LORA}


def answers() -> list[dict[str, Any]]:
    """Micro-batches of two rows: of one kind, of several, and of a rank of three beside a thumb."""
    rows: list[dict[str, Any]] = []
    for n, noun in enumerate(two.NOUNS):
        texts = [f" {noun} is {word}" for word in ("happy", "old", "sad")]
        about = {"prompt": f"the {noun}"}
        rows.append(about | {"chosen": texts[0], "rejected": texts[2], "weight": 0.5 + n % 2})
        rows.append(about | {"completions": texts, "ranks": [1, 2, 2] if n % 3 else [1, 2, 3]})
        rating = {"rating": 1 + n % 3, "annotator": "anna" if n % 2 else "bo"}
        rows.append(about | {"completion": texts[1]} | rating)
        rows.append(about | {"completion": texts[n % 3], "label": n % 3 == 0})
    return rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same runs, made by one process and by two."""
    of_one, of_two = (tmp_path_factory.mktemp("on") / name for name in ("one", "two"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two, "RUNS", NAMES)
        patch.setattr(two, "RESUMED", {})
        for folder in (of_one, of_two):
            fill(folder)
            write(folder / "answers.jsonl", answers())
        done = on_two(of_two, "cpu")
        assert done.returncode == 0, done.stderr[-3000:]
        with inside(of_one):
            for name in NAMES:
                make(words_of(name, use_cpu=True))
    return of_one, of_two


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_make_the_steps_of_one(name: str, folders: tuple[Path, Path]) -> None:
    assert {note["processes"] for note in notes(folders[1], 0)} == {2}
    for file in ("final/*.safetensors", "checkpoint-3/beside.safetensors"):
        one, other = (load_file(next((f / name).glob(file))) for f in folders)
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert torch.allclose(tensor, other[key], rtol=1e-5, atol=1e-6), key
    logs = [read_jsonl(folder / name / "metrics.jsonl") for folder in folders]
    for step, again in zip(*logs, strict=True):
        for key in ("loss", "grad_norm", "num_tokens"):
            assert again.get(key) == pytest.approx(step.get(key), rel=1e-5), key
