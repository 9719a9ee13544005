"""`rlhf plan`: what it is asked, what it says, and that a run asks it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Trainer

from recipes import plan as recipe
from recipes.lib.distributed.launch import Launch, read_launch
from recipes.lib.errors import UserError
from recipes.lib.plan import check
from recipes.lib.plan.advice import find_changes
from recipes.lib.plan.breakdown import (
    ADAPTERS,
    BASE,
    GIB,
    GRADIENTS,
    HEADS,
    LOGITS,
    OPTIMIZER,
    OTHER_MODELS,
    WORKSPACE,
    MemoryPhase,
    Plan,
    memory_text,
    read_memory,
)
from recipes.lib.plan.meta_models import num_bytes
from recipes.lib.plan.options import parse_config, read_options
from recipes.lib.plan.planner import plan_of, state_bytes
from recipes.lib.plan.target import Target
from recipes.lib.recipe.main import launch, parse
from tests.helpers.plan_reality import ALIKE, rows_of
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import FAST, LORA, flags, write

ROOT = Path(__file__).parents[3]
OPTIMIZERS = [
    *("adamw_torch", "adamw_torch_fused", "adamw_8bit", "lion_8bit"),
    *("sgd", "adafactor", "adagrad", "rmsprop"),
]


@pytest.fixture
def place(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model", tiny_tokenizer, "llama", **ALIKE)
    write(tmp_path / "rows.jsonl", rows_of("sft"))
    (tmp_path / "sft").mkdir()
    lines = ["model_name_or_path: model", "dataset_name: rows.jsonl", "output_dir: run"]
    (tmp_path / "sft" / "tiny.yaml").write_text("\n".join(lines))
    return tmp_path


def planned(name: str, launch_as: Launch = Launch(), **values: Any) -> Plan:  # noqa: B008
    config = parse(name, flags({"dataset_name": "rows.jsonl"} | values))
    return plan_of(config, Target(launch_as))


def fixed(plan: Plan, *things: str) -> list[int]:
    """Bytes of things at the update."""
    update = next(phase for phase in plan.phases if phase.name == "update")
    return [update.parts[thing] for thing in things]


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("24GB", 24 * GIB),
        ("11.5 GiB", 11.5 * GIB),
        ("8192MB", 8 * GIB),
        ("16", 16 * GIB),
        ("1t", 1024 * GIB),
    ],
)
def test_an_amount_of_memory_is_read(text: str, amount: int) -> None:
    assert read_memory(text) == amount


def test_amounts_are_shown_in_the_unit_that_suits() -> None:
    assert [memory_text(n) for n in (0, 2**20, 3 * GIB // 2)] == ["-", "1.0 MiB", "1.50 GiB"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memory", "24XB"], "memory=24XB: must be a number with GB or MB, such as 24GB."),
        (["--memory", "0"], "memory=0: must be above 0."),
        (["--memory"], "--memory: the value is missing; write --memory VALUE."),
        (["--num_processes", "0"], "num_processes=0: must be a whole number of at least 1."),
        (["--recipe", "pop"], "recipe=pop: must be one of sft, reward, ppo, dpo, kto, rloo, grpo."),
        (["--prompt_length", "x"], "prompt_length=x: must be a whole number of at least 1."),
        (["--accelerate_config", "nowhere"], "accelerate_config=nowhere: there is no such"),
        (["--learning_rates", "1"], "learning_rates"),
        (["--model_name_or_path", "runs/sft/absent"], "there is no such run"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    words: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe.main(["--config", "sft/tiny.yaml", *words]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("rlhf plan: error: ")
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_a_recipe_that_no_name_tells_is_asked_for(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "mine.yaml").write_text("dataset_name: rows.jsonl\n")
    assert recipe.main(["--config", "mine.yaml"]) == 2
    assert "recipe is missing" in capsys.readouterr().err
    assert recipe.main([]) == 2
    assert "config is missing; write rlhf plan --config FILE." in capsys.readouterr().err


def test_the_page_has_80_columns_a_verdict_and_advice_that_holds(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", "sft/tiny.yaml", "--per_device_train_batch_size", "64"]
    told = recipe.run([*words, "--memory", "620MB", "--json", "plan.json"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "does not fit in 0.61 GiB" in out
    assert (told["recipe"], told["model"]) == ("sft", "model")
    assert told["fits"] is False
    assert told["fits_changed"] is True
    assert json.loads((place / "plan.json").read_text()) == told
    pasted = out.partition("all together:\n")[2].split()
    again = recipe.run([*words[:2], *pasted, "--memory", "620MB"])
    assert again["fits"] is True
    assert again["peak"] == told["changes"][-1]["peak"]
    assert not (place / "run").exists()


def test_what_no_key_helps_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = recipe.run(["--config", "sft/tiny.yaml", "--memory", "10MB"])
    assert told["fits_changed"] is False
    assert "and still more than" in capsys.readouterr().out


def test_changes_come_in_the_order_of_their_cost(place: Path) -> None:
    many = {"per_device_train_batch_size": 8, "gradient_checkpointing": False, "test_fraction": 0.5}
    seen: list[dict[str, Any]] = []

    def planner(changes: dict[str, Any]) -> tuple[Any, Plan]:
        seen.append(changes)
        values = {"dataset_name": "rows.jsonl"} | many | LORA | changes
        config = parse("sft", flags(values))
        return config, plan_of(config, Target(has_test=False))

    changes, fits = find_changes(planner, 1)
    keys = [change.key for change in changes]
    assert not fits
    assert seen[0] == {}
    order = ["per_device_train_batch_size", "gradient_checkpointing", "load_in_4bit", "max_length"]
    assert [key for key in keys if key in order] == [key for key in order if key in keys]
    assert keys[0] == "per_device_train_batch_size"
    assert changes[0].value == 1
    assert [change.peak for change in changes] == sorted((c.peak for c in changes), reverse=True)
    assert "roofline" in changes[0].cost


def test_a_change_without_which_it_fits_is_not_named() -> None:
    gib = 2**30

    def planner(changes: dict[str, Any]) -> tuple[Any, Plan]:
        keys: dict[str, Any] = {"per_device_train_batch_size": 2, "max_length": 4096}
        keys |= {"optim": "adamw_8bit"}
        keys |= {"activation_checkpointing": False} | changes
        keys["activation_checkpointing"] |= changes.get("gradient_checkpointing", False)
        model = SimpleNamespace(use_peft=False, load_in_4bit=False)
        config = SimpleNamespace(
            recipe="sft", training=SimpleNamespace(**keys), model=model, script=None
        )
        size = 5 + keys["per_device_train_batch_size"]
        size += 0 if keys["activation_checkpointing"] else 20
        phase = MemoryPhase("training", {BASE: size * gib})
        return config, Plan("sft", "model", (phase,), 1, 1)

    (change,), fits = find_changes(planner, 8 * gib)
    assert fits
    assert change.flag == "--gradient_checkpointing true"  # the batch of 1 alone was 26 GiB
    assert change.peak == planner({"gradient_checkpointing": True})[1].peak
    both, fits = find_changes(planner, 27 * gib // 4)
    assert fits
    assert [one.key for one in both] == ["per_device_train_batch_size", "gradient_checkpointing"]


def test_evaluation_of_long_rows_takes_no_more_logits_than_a_piece() -> None:
    words = ["--config", str(ROOT / "configs/sft/qwen3-0.6b-capybara.yaml")]
    options = read_options([*words, "--max_length", "8192", "--per_device_train_batch_size", "1"])
    config, autocast = parse_config(options, parse)
    plan = plan_of(config, Target(options.launch, autocast))
    (evaluation,) = (phase for phase in plan.phases if phase.name == "evaluation")
    # All logits of its eight rows are 8 * 8,191 * 151,936 of 2 bytes, 18.5 GiB.
    assert evaluation.of(LOGITS) < 1.2 * 2**30
    assert plan.peak < 6 * 2**30


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_states_of_optimizers_are_exact(optim: str, place: Path) -> None:
    config = parse("sft", flags({"dataset_name": "rows.jsonl", "optim": optim}))
    model = torch.nn.Sequential(
        torch.nn.Embedding(70, 64), torch.nn.Linear(64, 128), torch.nn.Linear(128, 2)
    )
    made, kwargs = Trainer.get_optimizer_cls_and_kwargs(config.training)
    if "optim_bits" in kwargs:
        from bitsandbytes.optim import GlobalOptimManager

        manager = GlobalOptimManager.get_instance()
        manager.register_module_override(model[0], "weight", {"optim_bits": 32})
    optimizer = made(model.parameters(), **kwargs)
    model(torch.zeros(1, 2, dtype=torch.long)).sum().backward()
    optimizer.step()
    found = [v for state in optimizer.state.values() for v in state.values()]
    tensors = {t.untyped_storage()._cdata: t for t in found if isinstance(t, torch.Tensor)}
    with_fake = torch._subclasses.FakeTensorMode()
    from recipes.lib.plan.measure import MemoryMeasure

    with with_fake, MemoryMeasure():
        paper = torch.nn.Sequential(
            torch.nn.Embedding(70, 64), torch.nn.Linear(64, 128), torch.nn.Linear(128, 2)
        )
        assert state_bytes(config.training, paper) == num_bytes(list(tensors.values()))


def test_a_paged_optimizer_keeps_large_states_on_the_host(place: Path) -> None:
    config = parse("sft", flags({"dataset_name": "rows.jsonl", "optim": "paged_adamw_32bit"}))
    large, small = torch.nn.Linear(400, 300, bias=False), torch.nn.Linear(40, 30, bias=False)
    assert state_bytes(config.training, large) == 0
    assert state_bytes(config.training, small) == 2 * 4 * 1200


def test_shards_divide_what_they_should(place: Path) -> None:
    one = planned("sft")
    base, optimizer, gradients = fixed(one, BASE, OPTIMIZER, GRADIENTS)
    ddp = fixed(planned("sft", Launch("ddp", 4)), BASE, OPTIMIZER, GRADIENTS)
    assert ddp == [base, optimizer, 2 * gradients]  # and the buckets
    fsdp = fixed(planned("sft", Launch("fsdp2", 4)), BASE, OPTIMIZER, GRADIENTS)
    assert fsdp == [base // 4, optimizer // 4, gradients // 4]
    zero2 = fixed(planned("sft", Launch("zero2", 4)), BASE, OPTIMIZER)
    assert zero2 == [base, optimizer // 4]
    zero3 = fixed(planned("sft", Launch("zero3", 4)), BASE, OPTIMIZER, GRADIENTS)
    assert zero3 == fsdp


def test_roles_of_ppo_are_one_base_under_lora_and_copies_else(place: Path) -> None:
    more = {"reward_funcs": ["model"], "test_fraction": 0.0}
    full = planned("ppo", **more)
    base, others = fixed(full, BASE, OTHER_MODELS)
    # The reference, and a reward model without the language model's head, both in fp32.
    head, score, units = 61 * 64 * 4, 64 * 4, 8
    assert others == (base - units) + (base - units - head + score)
    lora = planned("ppo", **(more | LORA | {"critic": "adapter"}))
    assert fixed(lora, HEADS) == [4 * 65]
    per_layer = 4 * (64 + 64) + 4 * (64 + 32)  # rank 4 on q_proj and v_proj
    assert fixed(lora, ADAPTERS)[0] == 2 * 2 * per_layer * 4


def test_packed_weights_count_as_what_they_were(place: Path) -> None:
    lora = planned("sft", **LORA)
    assert planned("sft", **LORA, load_in_4bit=True).parameters == lora.parameters


def test_a_launch_is_read_from_accelerates_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("distributed_type: FSDP\nnum_processes: 8\nfsdp_config:\n  fsdp_version: 2\n")
    assert read_launch(str(file), None) == Launch("fsdp2", 8)
    assert read_launch(str(file), 2) == Launch("fsdp2", 2)
    file.write_text("distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero_stage: 3\n")
    assert str(read_launch(str(file), 4)) == "ZeRO-3, 4 processes"
    file.write_text('distributed_type: "NO"\nnum_processes: 1\n')
    assert read_launch(str(file), None) == Launch()
    file.write_text("distributed_type: XLA\n")
    with pytest.raises(UserError, match="distributed_type XLA cannot be planned"):
        read_launch(str(file), None)
    assert read_launch(None, 4) == Launch("ddp", 4)


def test_a_run_that_cannot_fit_the_machine_stops_before_it_begins(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = FAST | {"model_name_or_path": "model", "dataset_name": "rows.jsonl", "max_steps": 1}
    words = flags(values)
    monkeypatch.setattr(check, "machine_memory", lambda: 2**20)
    assert launch("sft", words) == 2
    said = capsys.readouterr().err
    assert "weights, gradients and optimizer take" in said
    assert "--skip_plan true" in said
    assert not Path("run").exists()
    assert launch("sft", [*words, "--skip_plan", "true"]) == 0


def test_a_run_that_cannot_fit_the_card_stops_with_flags_to_paste(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {"per_device_train_batch_size": 64, "use_cpu": False, "max_length": 64}
    many["gradient_checkpointing"] = False
    config = parse("sft", flags({"dataset_name": "rows.jsonl"} | many | LORA))
    monkeypatch.setattr(check, "card_memory", lambda: GIB)
    check.check_plan(config, has_test=False)
    monkeypatch.setattr(check, "card_memory", lambda: 40 * 2**20)
    with pytest.raises(UserError) as caught:
        check.check_plan(config, has_test=False)
    said = str(caught.value)
    assert "training takes" in said
    assert "with rows of 64 tokens, and the card has 40.0 MiB" in said
    assert "--per_device_train_batch_size" in said
    assert said.endswith("or begin with --skip_plan true.")
    config.script.skip_plan = True
    check.check_plan(config, has_test=False)


def test_a_plan_that_fails_for_its_own_reasons_stops_no_run(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no shapes\nfor this model")

    monkeypatch.setattr("recipes.lib.plan.planner.make_run_models", fails)
    config = parse("sft", flags({"dataset_name": "rows.jsonl"}))
    check.check_plan(config)
    assert capsys.readouterr().err == "plan: skipped (RuntimeError: no shapes for this model)\n"


def test_the_memory_of_the_machine_is_known_here() -> None:
    memory = check.machine_memory()
    assert memory is not None
    assert memory > GIB


def test_a_step_that_is_not_fused_copies_the_weights_that_it_changes(place: Path) -> None:
    def workspace(optim: str) -> int:
        plan = planned("sft", optim=optim, dtype="float32")
        (update,) = [phase for phase in plan.phases if phase.name == "update"]
        assert plan.trainable > 0
        return update.parts[WORKSPACE] - 4 * plan.trainable * (optim == "adamw_torch")

    assert workspace("adamw_torch") == workspace("adamw_torch_fused") == 0
