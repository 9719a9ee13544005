"""`rlhf plan` says what a run would be refused for, and prints the table of all reasons."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from recipes import plan as recipe
from recipes.lib.distributed.launch import Launch, read_launch
from recipes.lib.errors import UserError
from recipes.lib.plan import check
from recipes.lib.plan.refusals import REFUSALS, refuse_launch
from recipes.lib.recipe.main import parse
from tests.helpers.plan_reality import ALIKE, rows_of
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import LORA, flags, write

QLORA = "--use_peft true --load_in_4bit true".split()
PPO = "--recipe ppo --reward_funcs rewards.py:f --sampler graph".split()


@pytest.fixture
def place(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model", tiny_tokenizer, "llama", **ALIKE)
    write(tmp_path / "rows.jsonl", rows_of("sft"))
    lines = ["model_name_or_path: model", "dataset_name: rows.jsonl", "output_dir: run"]
    (tmp_path / "sft.yaml").write_text("\n".join(lines))
    return tmp_path


def on(name: str) -> list[str]:
    return ["--accelerate_config", name, "--num_processes", "2"]


@pytest.mark.parametrize(
    ("words", "wrong", "remedy"),
    [
        (
            [*QLORA, *on("zero3")],
            "load_in_4bit=true with DeepSpeed ZeRO-3",
            "way out: use --accelerate_config ddp",
        ),
        ([*PPO, *on("fsdp2")], "sampler=graph with fsdp2", "way out: use sampler=transformers"),
        (["--use_cpu", "true", *on("fsdp2")], "use_cpu=true with fsdp2", "--accelerate_config cpu"),
        ([*on("old.yaml")], "fsdp_version=1", "set fsdp_version: 2"),
    ],
)
def test_a_run_that_would_be_refused_is_planned_told_and_ends_with_code_2(
    words: list[str], wrong: str, remedy: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "old.yaml").write_text("distributed_type: FSDP\nnum_processes: 2\n")
    assert recipe.main(["--config", "sft.yaml", "--memory", "24GB", *words]) == 2
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    planned, _, refused = out.partition("\nwill be refused before anything loads:\n")
    assert "peak: " in planned
    assert "fits in 24.00 GiB" in planned
    assert refused.splitlines()[0] == f"  {wrong}"
    assert remedy in refused


@pytest.mark.parametrize(
    "words",
    [[*QLORA, *on("zero2")], [*QLORA, *on("ddp")], [*PPO, *on("ddp")], PPO, on("fsdp2"), []],
)
def test_a_run_that_would_start_is_not_called_refused(
    words: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe.main(["--config", "sft.yaml", *words]) == 0
    assert "refused" not in capsys.readouterr().out


def test_the_plan_as_json_has_every_reason(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "sft.yaml", *PPO, *QLORA, *on("fsdp2"), "--json"]
    assert recipe.main(words) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["peak"] > 0
    assert [line["wrong"] for line in told["refused"]] == [
        "load_in_4bit=true with FSDP",
        "sampler=graph with fsdp2",
    ]
    assert all(line["reason"] and line["remedy"] for line in told["refused"])
    assert recipe.main(["--config", "sft.yaml", "--json", "plan.json"]) == 0
    assert json.loads((place / "plan.json").read_text())["refused"] == []


def test_what_is_told_is_what_the_run_says(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = recipe.run(["--config", "sft.yaml", *QLORA, *on("fsdp2"), "--json", "plan.json"])
    for name, value in {
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
    }.items():
        monkeypatch.setenv(name, value)
    values = {"dataset_name": "rows.jsonl", "use_peft": True, "load_in_4bit": True}
    with pytest.raises(UserError) as caught:
        refuse_launch(parse("sft", flags(values | {"use_cpu": False})))
    (line,) = told["refused"]
    assert str(caught.value) == "{wrong}: {reason}; {remedy}.".format(**line)


def test_advice_names_nothing_that_would_be_refused(place: Path) -> None:
    words = ["--config", "sft.yaml", "--use_peft", "true", "--memory", "10MB"]
    keys = [change["key"] for change in recipe.run(words)["changes"]]
    assert "load_in_4bit" in keys
    keys = [change["key"] for change in recipe.run([*words, *on("fsdp2")])["changes"]]
    assert keys
    assert "load_in_4bit" not in keys


@pytest.mark.slow  # the advice is that of the test above
def test_advice_at_the_start_of_a_run_names_nothing_that_would_be_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse("sft", flags({"dataset_name": "rows.jsonl", "use_cpu": False} | LORA))
    monkeypatch.setattr(check, "card_memory", lambda: 2**20)
    with pytest.raises(UserError, match="--load_in_4bit true"):
        check.check_plan(config)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(UserError) as caught:
        check.check_plan(config)
    assert "the card has 1.0 MiB" in str(caught.value)
    assert "load_in_4bit" not in str(caught.value)


def test_the_whole_table_is_printed_without_a_configuration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert recipe.main(["--refusals"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    # A row has its cells side by side: their words are all there, a row's before the next one's.
    rows = [row.split() for row in out.split("\n" + " " * 78 + "\n")]
    blocks = [row for row in rows if row][1:]
    assert len(blocks) == len(REFUSALS)
    for line, words in zip(REFUSALS, blocks, strict=True):
        assert sorted(words) == sorted(f"{line.name} {line.reason} {line.remedy}".split())


def test_the_whole_table_as_json_names_the_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe.main(["--refusals", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(line["name"], line["evidence"]) for line in told] == [
        (line.name, line.evidence) for line in REFUSALS
    ]


def test_the_table_goes_with_no_other_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe.main(["--refusals", "--config", "sft.yaml"]) == 2
    said = capsys.readouterr()
    assert said.err == "rlhf plan: error: --refusals shows the whole table; leave --config out.\n"
    assert said.out == ""


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        (None, None, Launch("single", 1)),
        (None, 4, Launch("ddp", 4)),
        ("fsdp2", 4, Launch("fsdp2", 4)),
        ("zero2", None, Launch("zero2", 8)),
        ("cpu", 2, Launch("ddp", 2, on_cpu=True)),
        ("multi_node", None, Launch("ddp", 16, num_machines=2)),
    ],
)
def test_a_launch_is_read_as_a_run_sees_it(
    name: str | None, number: int | None, expected: Any
) -> None:
    assert read_launch(name, number) == expected
