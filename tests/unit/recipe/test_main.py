"""A recipe run from Python is the recipe that its command runs."""

import json
from pathlib import Path

import pytest

from recipes import UserError, run
from recipes.lib.distributed.signals import Stopped
from recipes.lib.recipe import main


def test_a_recipe_runs_with_a_file_and_keys_that_win(tmp_path: Path) -> None:
    rows = [{"text": f"row {number}"} for number in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "data.yaml").write_text(f"dataset_name: {tmp_path}/rows.jsonl\nmax_rows: 2\n")
    assert run("data", tmp_path / "data.yaml")["num_train"] == 2
    assert run("data", tmp_path / "data.yaml", max_rows=3)["num_train"] == 3


def test_a_mistake_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^learning_rte: sft has no such key; the nearest is lea"):
        run("sft", learning_rte=1)
    with pytest.raises(UserError, match=r"^dataset_name=absent.jsonl: there is no such file"):
        run("sft", dataset_name="absent.jsonl")


@pytest.mark.parametrize("flag", ["--hub_token=hf_a", "--hub-token hf_a", "--seed 3"])
def test_the_command_to_go_on_is_shown_unless_it_has_a_secret(
    flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> int:
        raise Stopped("stopped by SIGTERM; run/checkpoint-2 holds where it stands")

    monkeypatch.setattr(main, "_run", stop)
    assert main.launch("sft", flag.split()) == 75
    said = capsys.readouterr().err
    assert "go on with --resume." in said
    assert ("hf_a" in said, "rlhf sft --seed 3 --resume" in said) == (False, "seed" in flag)
