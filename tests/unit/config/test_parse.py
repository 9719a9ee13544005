"""Command line and YAML become a configuration; a run ends with its numbers or an exit code."""

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from recipes.lib.config.build import choose_precision
from recipes.lib.errors import UserError
from recipes.lib.recipe.main import launch, parse


def test_flags_win_over_the_file_and_overrides_over_both(tmp_path: Path) -> None:
    path = tmp_path / "try.yaml"
    path.write_text("learning_rate: 1e-5\nseed: 1\nmax_steps: 7\n")
    config = parse(
        "sft", ["--config", str(path), "--seed", "2", "--max-steps", "8"], {"max_steps": 9}
    )
    assert config.values == {"learning_rate": 1e-5, "seed": 2, "max_steps": 9}
    assert (config.training.learning_rate, config.training.seed) == (1e-5, 2)
    assert config.training.max_steps == 9
    assert config.path == path


def test_an_int_fills_a_float_as_a_float() -> None:
    config = parse("sft", ["--learning_rate", "1"])
    assert config.values == {"learning_rate": 1.0}
    assert isinstance(config.training.learning_rate, float)


def test_a_file_means_what_yaml_1_2_says(tmp_path: Path) -> None:
    path = tmp_path / "try.yaml"
    path.write_text(
        "learning_rate: 5e-7\neval_strategy: no\nrun_name: 2024-01-01\nmax_steps: 010\n"
        "model_init_kwargs: {attn_implementation: eager}\nmax_length: null\n"
    )
    assert parse("sft", ["--config", str(path)]).values == {
        "learning_rate": 5e-7,
        "eval_strategy": "no",
        "run_name": "2024-01-01",
        "max_steps": 10,
        "model_init_kwargs": {"attn_implementation": "eager"},
        "max_length": None,
    }


def test_flags_take_negative_numbers_lists_json_and_bare_switches() -> None:
    argv = ["--router_aux_loss_coef", "-1e-5", "--lora_target_modules", "a", "b", "--packing"]
    argv += ["--no_logging_nan_inf_filter", "--model_init_kwargs", '{"use_cache": false}']
    argv += ["--max_length", "none"]
    assert parse("sft", argv).values == {
        "router_aux_loss_coef": -1e-5,
        "lora_target_modules": ["a", "b"],
        "packing": True,
        "logging_nan_inf_filter": False,
        "model_init_kwargs": {"use_cache": False},
        "max_length": None,
    }


def test_a_pair_of_numbers_is_a_list(tmp_path: Path) -> None:
    path = tmp_path / "try.yaml"
    path.write_text("reward_funcs: [r.py:f]\nreward_clip_range: [-10, 2.5]\n")
    by_file = parse("rloo", ["--config", str(path)], {"use_cpu": True})
    words = ["--reward_funcs", "r.py:f", "--reward_clip_range", "[-10, 2.5]"]
    by_flag = parse("rloo", words, {"use_cpu": True})
    assert by_file.values == by_flag.values
    assert by_file.training.reward_clip_range == [-10.0, 2.5]
    with pytest.raises(UserError, match="must be a list of 2 numbers or null"):
        parse("rloo", [], {"reward_funcs": ["r.py:f"], "reward_clip_range": [1, 2, 3]})


def test_one_text_fills_a_list_as_it_does_by_flag(tmp_path: Path) -> None:
    path = tmp_path / "try.yaml"
    path.write_text("lora_target_modules: all-linear\n")
    by_file = parse("sft", ["--config", str(path)])
    by_flag = parse("sft", ["--lora_target_modules", "all-linear"])
    assert by_file.values == by_flag.values == {"lora_target_modules": ["all-linear"]}
    assert by_file.model.lora_target_modules == "all-linear"


def test_overrides_are_checked_like_everything_else() -> None:
    with pytest.raises(UserError, match=r"^max_steps=2\.5: must be a whole number\.$"):
        parse("sft", [], {"max_steps": 2.5})
    with pytest.raises(
        UserError, match=r"^max_step: sft has no such key; the nearest is max_steps\.$"
    ):
        parse("sft", [], {"max_step": 2})


def test_the_output_folder_is_named_after_recipe_and_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text("seed: 1\n")
    assert parse("sft", ["--config", str(path)]).training.output_dir == "runs/sft/tiny"
    assert parse("sft", []).training.output_dir == "runs/sft/default"
    config = parse("sft", ["--config", str(path), "--output_dir", "elsewhere"])
    assert config.training.output_dir == "elsewhere"
    assert config.values == {"seed": 1, "output_dir": "elsewhere"}


def test_a_recipe_may_have_an_output_folder_of_its_own() -> None:
    assert parse("quickstart", []).script.output_dir == "runs/quickstart"


def test_trackers_are_off_unless_asked_for() -> None:
    assert parse("sft", []).training.report_to == []
    assert parse("sft", ["--report_to", "tensorboard"]).training.report_to == ["tensorboard"]


@pytest.mark.parametrize(
    ("values", "cuda", "has_bf16", "expected"),
    [
        ({}, False, False, {"bf16": False}),
        ({}, True, True, {"bf16": True}),
        ({}, True, False, {"bf16": False, "fp16": True}),
        ({"fp16": False}, True, False, {"bf16": False, "fp16": False}),
        ({"use_cpu": True}, True, True, {"bf16": False}),
        ({"bf16": True}, False, False, {}),
        ({"fp16": True}, True, True, {}),
    ],
)
def test_precision_follows_the_hardware_unless_the_user_chose(
    values: dict[str, bool],
    cuda: bool,
    has_bf16: bool,
    expected: dict[str, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    # The one place where hardware is pretended: no machine has all three kinds.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert choose_precision(values) == expected


@dataclass(kw_only=True)
class ToyArguments:
    """Arguments of a recipe that takes a positional word and has no trainer."""

    action: str | None = None
    run: str | None = None
    output_dir: str | None = None
    kl: float = field(default=1.0, metadata={"help": "A number."})


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A recipe in memory; the real ones with a positional word read data."""
    module: Any = ModuleType("recipes.toy")
    module.arguments = lambda: (ToyArguments,)
    module.run = lambda config: {"recipe": "toy", "kl": config.script.kl}
    monkeypatch.setitem(sys.modules, "recipes.toy", module)
    return module


def test_an_action_is_taken_from_the_first_word(toy: Any) -> None:
    toy.ACTIONS = ("simulate",)
    config = parse("toy", ["simulate", "--kl", "2"])
    assert config.script.action == "simulate"
    assert config.values == {"action": "simulate", "kl": 2.0}
    assert config.training is None
    assert config.model is None
    assert config.script.output_dir == "runs/toy/default"


def test_a_missing_or_unknown_action_is_named(toy: Any) -> None:
    toy.ACTIONS = ("simulate", "serve")
    with pytest.raises(UserError, match=r"^action is missing; write rlhf toy simulate\|serve\.$"):
        parse("toy", ["--kl", "2"])
    with pytest.raises(UserError, match=r"^action=sim: must be one of simulate, serve\.$"):
        parse("toy", ["sim"])


def test_a_run_is_taken_from_the_first_word_and_is_required(toy: Any) -> None:
    toy.POSITIONAL = "run"
    assert parse("toy", ["runs/ppo/x"]).script.run == "runs/ppo/x"
    with pytest.raises(UserError, match=r"^run is missing; write rlhf toy RUN\.$"):
        parse("toy", [])


def test_a_run_ends_with_its_numbers(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("toy", ["--kl", "0.12345"]) == 0
    said = capsys.readouterr().out
    assert "0.1235" in said
    assert max(map(len, said.splitlines())) <= 80


def test_an_interrupt_is_exit_code_130(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(config: object) -> None:
        raise KeyboardInterrupt

    toy.run = interrupted
    assert launch("toy", []) == 130
    assert capsys.readouterr().err == "rlhf toy: interrupted\n"


@pytest.mark.parametrize("ends", [{"recipe": "toy"}, UserError("no"), RuntimeError("a fault")])
def test_a_run_leaves_the_processes_it_joined(toy: Any, ends: dict[str, Any] | Exception) -> None:
    def joined(config: object) -> dict[str, Any]:
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        if isinstance(ends, Exception):
            raise ends
        return ends

    toy.run = joined
    with suppress(RuntimeError):
        launch("toy", [])
    assert not dist.is_initialized()


def test_a_fault_of_the_program_keeps_its_traceback(toy: Any) -> None:
    def faulty(config: object) -> None:
        raise RuntimeError("a fault")

    toy.run = faulty
    with pytest.raises(RuntimeError, match="a fault"):
        launch("toy", [])


def test_what_would_move_the_cursor_is_spelled_out_in_every_sentence() -> None:
    assert str(UserError("a=\x1b[31m\n\u2028\ud800: no.")) == "a=\\x1b[31m\\n\\u2028\\ud800: no."
    assert str(UserError("a=\u4f60 \xe9 \U0001f600: no.")) == "a=\u4f60 \xe9 \U0001f600: no."
