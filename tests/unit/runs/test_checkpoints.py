"""A checkpoint that is not as it was written is named, and the one before it is taken."""

import json
import os
from pathlib import Path

import pytest

from recipes.lib.errors import UserError
from recipes.lib.runs.checkpoints import (
    MANIFEST,
    checkpoint_fault,
    keep_newest,
    list_checkpoints,
    newest_good,
    publish,
    refuse_broken,
    seal,
)
from recipes.lib.runs.files import read_jsonl


def make(run: Path, step: int) -> Path:
    partial = run / "_partial" / f"checkpoint-{step}"
    (partial / "inner").mkdir(parents=True)
    (partial / "optimizer.bin").write_bytes(b"w" * 1000)
    (partial / "inner/state.json").write_text(f'{{"step": {step}}}')
    seal(partial, step)
    publish(partial, run / f"checkpoint-{step}")
    return run / f"checkpoint-{step}"


def test_all_of_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    fsync, rename = os.fsync, Path.rename

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve())

    def named(self: Path, target: Path) -> Path:
        written = {path for path in self.rglob("*") if path.is_file()}
        assert {*written, self, self / "inner"} <= set(synced)
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", named)
    make(tmp_path, 1)
    assert tmp_path in synced  # and then the name


def truncate(folder: Path) -> str:
    (folder / "optimizer.bin").write_bytes(b"w" * 999)
    return "optimizer.bin has 999 bytes of 1,000"


def flip_a_bit(folder: Path) -> str:
    (folder / "optimizer.bin").write_bytes(b"w" * 999 + b"v")
    return "optimizer.bin was altered"


def lose_a_file(folder: Path) -> str:
    (folder / "inner/state.json").unlink()
    return "inner/state.json is missing"


def lose_the_manifest(folder: Path) -> str:
    (folder / MANIFEST).unlink()
    return "it has no manifest.json, so it was not written to its end"


def break_the_manifest(folder: Path) -> str:
    (folder / MANIFEST).write_text('{"step": 3, "fil')
    return "manifest.json is broken"


def another_manifest(folder: Path) -> str:
    (folder / MANIFEST).write_text("[]")
    return "manifest.json is broken"


@pytest.mark.parametrize(
    "harm",
    [
        truncate,
        flip_a_bit,
        lose_a_file,
        lose_the_manifest,
        break_the_manifest,
        another_manifest,
    ],
)
def test_a_bad_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, harm) -> None:  # type: ignore[no-untyped-def]
    good, bad = make(tmp_path, 9), make(tmp_path, 10)
    assert newest_good(tmp_path) == (bad, [])
    wrong = harm(bad)
    assert checkpoint_fault(bad) == wrong
    assert newest_good(tmp_path) == (good, [f"{bad} is left out: {wrong}."])
    if (bad / MANIFEST).exists():
        with pytest.raises(UserError, match="name an older checkpoint"):
            refuse_broken(bad)
    refuse_broken(good)
    good.rename(tmp_path / "elsewhere")
    assert newest_good(tmp_path)[0] is None


def test_steps_are_numbers_and_no_words(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        make(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert [step for step, _ in list_checkpoints(tmp_path)] == [9, 20, 100]
    assert not (tmp_path / "_partial").exists()


@pytest.mark.parametrize(
    ("limit", "spared", "left"),
    [
        (None, set(), [1, 2, 3, 4]),
        (0, set(), [1, 2, 3, 4]),
        (2, set(), [3, 4]),
        (1, set(), [4]),
        (2, {"checkpoint-1", "checkpoint-4"}, [1, 4]),  # the best, and the one just written
        (1, {"checkpoint-1", "checkpoint-4"}, [1, 4]),
        (1, {"checkpoint-2"}, [2]),  # written after going back to an earlier one
        (9, set(), [1, 2, 3, 4]),
    ],
)
def test_the_oldest_go_and_those_that_are_spared_stay(
    tmp_path: Path, limit: int | None, spared: set[str], left: list[int]
) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    keep_newest(tmp_path, limit, spared)
    assert [step for step, _ in list_checkpoints(tmp_path)] == left
    assert all(checkpoint_fault(folder) is None for _, folder in list_checkpoints(tmp_path))


def test_a_checkpoint_takes_the_place_of_a_bad_one_of_the_same_step(tmp_path: Path) -> None:
    truncate(make(tmp_path, 3))
    assert checkpoint_fault(make(tmp_path, 3)) is None


def test_a_last_line_that_a_kill_cut_short_is_left_out_and_another_is_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"step": 2}')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(json.JSONDecodeError):
        read_jsonl(path)


def test_a_model_alone_is_no_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"w")
    seal(folder, 3)
    with pytest.raises(UserError, match=r"holds a model alone \(save_only_model\), so nothing"):
        refuse_broken(folder)
    (folder / "optimizer.pt").write_bytes(b"o")
    refuse_broken(folder)
