"""The run folder: who may write, what a resume accepts, which checkpoint it takes."""

from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from recipes.lib.data.reading import read_splits
from recipes.lib.errors import UserError
from recipes.lib.recipe.guard import one_sentence_errors
from recipes.lib.recipe.main import parse
from recipes.lib.runs.files import read_jsonl, write_jsonl
from recipes.lib.runs.folder import FolderArguments, check_folder, config_text, open_run
from recipes.lib.runs.lock import LOCK_FILE


@dataclass
class Config:
    script: FolderArguments
    values: dict[str, Any]
    training: None = None


def config(path: Path, resume: bool = False, overwrite: bool = False, **values: Any) -> Config:
    script = FolderArguments(output_dir=str(path), resume=resume, overwrite=overwrite)
    return Config(script, values | {"resume": resume, "overwrite": overwrite})


def everything(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_FILE]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_new_folder_is_taken_and_keeps_its_configuration(tmp_path: Path) -> None:
    run = open_run(config(tmp_path / "a/b", lr=1e-5, name="\u72d0"))
    assert run.checkpoint is None
    assert (run.path / "config.yaml").read_text(encoding="utf-8") == "lr: 1.0e-05\nname: \u72d0\n"


def test_a_folder_that_holds_a_run_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    open_run(config(tmp_path / "run", lr=1))
    before = everything(tmp_path)
    for act in (open_run, check_folder):
        with pytest.raises(UserError, match="holds a run; continue it with --resume"):
            act(config(tmp_path / "run", lr=1))
    assert everything(tmp_path) == before


@pytest.mark.parametrize("recipe", "sft reward dpo kto ppo rloo grpo".split())
def test_a_taken_folder_is_refused_before_anything_is_loaded(recipe: str, tmp_path: Path) -> None:
    open_run(config(tmp_path / "run"))
    names = ["output_dir", "dataset_name", "model_name_or_path", "reward_funcs"]
    values = dict(
        zip(names, [str(tmp_path / "run"), "no/data", "no/model", ["no/reward"]], strict=True)
    )
    if recipe not in ("ppo", "rloo", "grpo"):
        values.pop("reward_funcs")
    taken = parse(recipe, [], values | {"use_cpu": True, "bf16": False, "report_to": "none"})
    with pytest.raises(UserError, match="holds a run; continue it with --resume"):
        import_module(f"recipes.{recipe}").run(taken)


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UserError, match="is not empty and holds no run"):
            open_run(config(tmp_path, **flags))
    assert everything(tmp_path) == {"thesis.txt": b"mine"}


def test_overwrite_moves_the_old_run_aside(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        open_run(config(tmp_path / "run", lr=number, overwrite=number > 1))
    assert everything(tmp_path) == {
        "run/config.yaml": b"lr: 3\n",
        "run.old-1/config.yaml": b"lr: 1\n",
        "run.old-2/config.yaml": b"lr: 2\n",
    }


def test_a_resume_refuses_another_configuration_by_name_but_not_how_it_is_carried_out(
    tmp_path: Path,
) -> None:
    open_run(config(tmp_path, lr=1, per_device_train_batch_size=8))
    open_run(config(tmp_path, lr=1, per_device_train_batch_size=2, save_steps=5, resume=True))
    with pytest.raises(UserError, match="lr=2 differs from 1 of the run to resume"):
        open_run(config(tmp_path, lr=2, per_device_train_batch_size=8, resume=True))
    with pytest.raises(UserError, match="seed=3 differs from None"):
        open_run(config(tmp_path, lr=1, seed=3, resume=True))


def test_a_finished_run_has_nothing_to_resume(tmp_path: Path) -> None:
    open_run(config(tmp_path, lr=1)).write_summary({"recipe": "sft"})
    with pytest.raises(UserError, match="nothing is left to resume"):
        open_run(config(tmp_path, lr=1, resume=True))


def test_resume_and_overwrite_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exclude each other"):
        open_run(config(tmp_path / "run", resume=True, overwrite=True))
    assert not (tmp_path / "run").exists()


def test_json_lines_come_back_as_written_and_leave_no_temporary_file(tmp_path: Path) -> None:
    rows = [{"text": "\u72d0\n\u2028x", "value": 0.1}, {}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    with pytest.raises(TypeError):
        write_jsonl(tmp_path / "rows.jsonl", [{"value": object()}])
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


def test_a_resume_of_nothing_says_that_it_starts_at_the_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert open_run(config(tmp_path / "run", resume=True)).checkpoint is None
    assert capsys.readouterr().err == (
        f"note: output_dir={tmp_path}/run holds no checkpoint to resume; the run starts at the "
        "beginning.\n"
    )


def test_secrets_are_not_kept_at_any_depth() -> None:
    values = {
        "hub_token": "hf_1",
        "model_init_kwargs": {"token": "hf_2", "others": [{"api_key": "hf_3"}]},
        "eos_token": "<eos>",
        "stop_token": "eos",
    }
    kept = config_text(values)
    assert "hf_" not in kept
    assert "eos_token: <eos>" in kept
    assert "stop_token: eos" in kept


@pytest.mark.parametrize("given", [["--hub_token", "hf_1", "hf_2"], []])
def test_a_secret_of_a_wrong_type_is_not_echoed(given: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model_name_or_path: model\n" + ("" if given else "hub_token: [hf_1, hf_2]\n"))
    with pytest.raises(UserError) as told:
        parse("sft", ["--config", str(path), *given])
    assert "hf_" not in str(told.value).replace("hf_2' belongs", "")


def test_a_run_with_secrets_is_resumed_with_them(tmp_path: Path) -> None:
    own = {"model_init_kwargs": {"token": "hf_2"}}
    open_run(config(tmp_path / "run", **own))
    open_run(config(tmp_path / "run", resume=True, **own))


def test_aliases_in_the_configuration_of_a_foreign_run_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    bomb = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [
        f"{two}: &{two} [{', '.join(['*' + one] * 10)}]" for one, two in pairwise("abcdefghij")
    ]
    (run / "config.yaml").write_text("\n".join(bomb))
    with pytest.raises(UserError, match=r"is not the configuration of a run .*anchors and"):
        open_run(config(run, resume=True))


def test_a_link_to_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="run is a link to nothing; remove it, or name a folder"):
        open_run(config(tmp_path / "run"))


def test_a_run_that_has_not_ended_is_no_data(tmp_path: Path) -> None:
    run = tmp_path / "feedback"
    (run / "final").mkdir(parents=True)
    (run / "config.yaml").write_text("action: simulate\n")
    write_jsonl(run / "final/train.jsonl", [{"prompt": "a"}])
    with pytest.raises(UserError, match="the run that makes these rows has not ended"):
        read_splits(str(run))
    (run / "summary.json").write_text("{}")
    assert read_splits(str(run))["train"].to_list() == [{"prompt": "a"}]


@pytest.mark.parametrize(
    ("recipe", "values", "remedy"),
    [
        ("evaluate", {"run": "a", "baseline": "b"}, "lower batch_size or max_new_tokens"),
        ("feedback", {"action": "simulate"}, "lower sampling_batch_size or max_new_tokens"),
        ("sft", {"dataset_name": "rows.jsonl", "use_cpu": True}, "lower per_device_train_batch_"),
    ],
)
def test_where_memory_runs_out_the_keys_that_are_named_are_there(
    recipe: str, values: dict[str, Any], remedy: str, tmp_path: Path
) -> None:
    parsed = parse(recipe, [], values)
    with pytest.raises(UserError) as told, one_sentence_errors(tmp_path, parsed):
        raise MemoryError
    assert remedy in str(told.value)
    named = next(word for word in remedy.split() if "batch" in word)
    holder = parsed.training or parsed.script
    assert any(key.startswith(named) for key in vars(holder))
