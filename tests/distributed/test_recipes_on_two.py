"""Two real processes make the steps of one: losses, gradients, metrics, episodes, checkpoints.

Under DDP, which is what a user without a card gets, and under FSDP2 and DeepSpeed's ZeRO-2 and
ZeRO-3, which accelerate runs over gloo through a shim of the tests alone (gloo_shim.py).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import KTOTrainer

from recipes import kto
from recipes.lib.errors import UserError
from recipes.lib.recipe.main import parse
from recipes.lib.recipe.spine import make_preference_trainer
from recipes.lib.runs.files import read_jsonl
from tests.helpers.distributed.recipes_worker import cut
from tests.helpers.distributed.runs_on_two import (
    ALONE,
    RESUMED,
    RUNS,
    fill,
    inside,
    make,
    needs_deepspeed,
    notes,
    on_two,
    weights,
    words_of,
)

KINDS = {
    "ddp": ("cpu", "MULTI_CPU", "DistributedDataParallel", "DistributedDataParallel", "Parameter"),
    "fsdp2": ("fsdp2", "FSDP", "FSDPLlamaForCausalLM", "FSDPActorCritic", "DTensor"),
    "zero2": ("zero2", "DEEPSPEED", "DeepSpeedEngine", "DeepSpeedEngine", "Parameter"),
    "zero3": ("zero3", "DEEPSPEED", "DeepSpeedEngine", "DeepSpeedEngine", "Parameter"),
}
PPO = [name for name in RUNS if name.startswith("ppo")]
# TRL's means over micro-batches of what is not a mean over tokens or rows.
GROUPED = {"entropy", "min_reward", "max_reward", "logits/chosen", "logits/rejected"}
# The same for recipes whose micro-batches have rows of unequal kind or length; by how names begin.
GROUPED_IN = {
    "kto_apo": ("rewards/", "logps/"),  # means over those of a micro-batch that were liked
    # eval_loss: of a process's first batch alone
    "rloo": ("clip_ratio/low_min", "clip_ratio/high_max", "eval_loss"),
    "grpo": ("clip_ratio/", "kl", "eval_loss"),
}
TIMES = ("time/", "step_time", "seconds", "_per_second", "runtime")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one process."""
    folder = tmp_path_factory.mktemp("on") / "one"
    fill(folder)
    with inside(folder):
        for name in RUNS:
            make(words_of(name, use_cpu=True, **ALONE.get(name, {})))
    return folder


# Each takes minutes; FSDP2 is in test_bf16_on_two.py every time.
SLOW = {kind: pytest.mark.slow for kind in ("fsdp2", "zero2", "zero3")}


@pytest.fixture(
    scope="module", params=[pytest.param(kind, marks=SLOW.get(kind, ())) for kind in KINDS]
)
def folders(
    request: pytest.FixtureRequest, one: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The same runs, made by one process and by two."""
    needs_deepspeed(request.param)
    two = tmp_path_factory.mktemp("on") / request.param
    fill(two, use_cpu=request.param == "ddp")
    done = on_two(two, KINDS[request.param][0])
    assert done.returncode == 0, done.stderr[-3000:]
    return one, two


def test_there_are_two_processes_and_the_model_is_wrapped(folders: tuple[Path, Path]) -> None:
    _, kind, wrapped, wrapped_ppo, parameters = KINDS[folders[1].name]
    for rank in (0, 1):
        seen = notes(folders[1], rank)
        assert {note["run"] for note in seen} == {*RUNS, *RESUMED.values()}
        assert {note["processes"] for note in seen} == {2}
        assert {note["kind"] for note in seen} == {kind}
        assert {tuple(note["kinds"]) for note in seen} == {(parameters,)}
        assert {note["is_in_shards"] for note in seen} == {folders[1].name == "zero3"}
        # the global batch of 8 is 2 accumulations of 2 rows on each of 2 processes
        assert {note["accumulation"] for note in seen} == {2}
        of_ppo = {note["wrapped"] for note in seen if note["run"].startswith("ppo")}
        others = {note["wrapped"] for note in seen if note["run"] in {"sft", "dpo"}}
        assert (of_ppo, others) == ({wrapped_ppo}, {wrapped})


@pytest.mark.parametrize("name", RUNS)
def test_the_weights_are_those_of_one_process(name: str, folders: tuple[Path, Path]) -> None:
    of_one, of_two = (weights(folder / name / "final") for folder in folders)
    start = weights(folders[0] / "model")
    assert of_one.keys() == of_two.keys()
    moved = [not torch.equal(tensor, start[key]) for key, tensor in of_one.items() if key in start]
    assert all(moved)
    for key, tensor in of_one.items():
        assert torch.allclose(tensor, of_two[key], rtol=1e-5, atol=1e-6), key


@pytest.mark.parametrize("name", RUNS)
def test_what_is_logged_is_that_of_one_process(name: str, folders: tuple[Path, Path]) -> None:
    of_one, of_two = (read_jsonl(folder / name / "metrics.jsonl") for folder in folders)
    assert len(of_one) == len(of_two) >= 3
    for one, two in zip(of_one, of_two, strict=True):
        assert one.keys() == two.keys()
        for key in one.keys() - GROUPED:
            if any(w in key for w in TIMES) or key.startswith(GROUPED_IN.get(name, ())):
                continue
            assert two[key] == pytest.approx(one[key], rel=1e-5, abs=1e-5), key


def test_summaries_and_samples_are_those_of_one_process(folders: tuple[Path, Path]) -> None:
    one, two = folders
    for name in RUNS:
        of_one, of_two = (json.loads((f / name / "summary.json").read_text()) for f in folders)
        for key in of_one.keys() - {"seconds", "energy", "warnings", "recipe"}:
            if (name, key) == ("grpo", "kl_per_token"):
                continue
            assert of_two[key] == pytest.approx(of_one[key], rel=1e-4, abs=1e-5), (name, key)
    for name in ("sft", "kto", "rloo", "grpo", *PPO):
        rows = [read_jsonl(folder / name / "samples.jsonl") for folder in (one, two)]
        assert len(rows[0]) == len(rows[1]) > 0
        assert [row["completion"] for row in rows[0]] == [row["completion"] for row in rows[1]]


def test_episodes_are_dealt_out_without_loss_or_repeat(folders: tuple[Path, Path]) -> None:
    one = read_jsonl(folders[0] / "seen.jsonl")
    shares = [read_jsonl(folders[1] / f"seen{rank}.jsonl") for rank in (0, 1)]
    # Of each rollout of 8 the first process has the first half. Behind the second and the third
    # one prompt is evaluated twice, by the first process alone; the other has none and goes on.
    dealt = []
    at = [0, 0]
    for number in range(2 * 3):  # two runs of three rollouts
        for rank in (0, 1):
            dealt += shares[rank][at[rank] : at[rank] + 4]
            at[rank] += 4
        if number % 3:
            dealt += shares[0][at[0] : at[0] + 2]
            at[0] += 2
    assert dealt == one
    assert at == [len(share) for share in shares]


def test_completions_of_a_generation_are_dealt_out_in_halves(folders: tuple[Path, Path]) -> None:
    one = read_jsonl(folders[0] / "grouped.jsonl")
    shares = [iter(read_jsonl(folders[1] / f"grouped{rank}.jsonl")) for rank in (0, 1)]
    halves = (4, 2, 4, 2)  # two generations, each with an evaluation behind it
    dealt = [[[next(share) for _ in range(half)] for share in shares] for half in halves]
    assert [row for both in dealt for half in both for row in half] == one
    assert [list(share) for share in shares] == [[], []]
    # One process is done before the other; under FSDP2 it has to go on with it.
    longest = [[max(len(ids) for _, ids in half) for half in both] for both in dealt]
    assert any(first != second for first, second in longest)


def test_ktos_kl_is_of_the_micro_batches_that_all_processes_have_at_once(one: Path) -> None:
    with inside(one):
        make(words_of("kto", True, "kto_of_2"))  # half the rows of `kto` at once
        rows, alone = (read_jsonl(one / name / "metrics.jsonl") for name in ("kto", "kto_of_2"))
        assert rows[1]["kl"] != pytest.approx(alone[1]["kl"], rel=0.01)
        for size in (2, 4):
            more = {"dataset_name": "pairs.jsonl", "per_device_train_batch_size": size}
            config = parse("kto", words_of("kto", True, "not_run", **more)[1:])
            data = kto.load_unpaired(config.script, 1)
            trained = make_preference_trainer(KTOTrainer, config, data).train_dataset
            said = list(trained["completion_ids"])
            blocks = [said[at : at + size] for at in range(0, len(said), size)]
            mismatched = [ids for block in blocks for ids in [block[-1], *block[:-1]]]
            assert list(trained["KL_completion_ids"]) == mismatched


def test_only_the_main_process_writes_and_prints(folders: tuple[Path, Path]) -> None:
    one, two = folders
    for name in RUNS.keys() - RESUMED.keys():
        there = [sorted(p.name for p in (f / name).rglob("*")) for f in (one, two)]
        assert there[0] == there[1]
    logs = {path.parent.name + path.name: path for path in (two / "logs_runs").rglob("*.log")}
    said = "".join(logs[f"1{stream}.log"].read_text() for stream in ("stdout", "stderr"))
    # warnings of torch's C++ part, and DeepSpeed on having compiled one
    not_ours = ("[rank1]:[W", "[W", "[Gloo]", "DeepSpeed deepspeed.ops")
    lines = [line for line in said.splitlines() if line.strip()]
    assert [line for line in lines if not line.startswith(not_ours)] == []
    assert logs["0stderr.log"].read_text().strip()


def test_a_checkpoint_of_two_resumes_with_two_to_the_bit(folders: tuple[Path, Path]) -> None:
    two = folders[1]
    for name, copy in RESUMED.items():
        steps = [note["step"] for note in notes(two, 1) if note["run"] == copy]
        assert steps == [3]
        whole, resumed = weights(two / name / "final"), weights(two / copy / "final")
        assert all(torch.equal(resumed[key], tensor) for key, tensor in whole.items())
        rows, again = (read_jsonl(two / n / "metrics.jsonl") for n in (name, copy))
        assert timeless(rows) == timeless(again)


def test_one_process_resumes_what_two_began_or_refuses_it(folders: tuple[Path, Path]) -> None:
    two = folders[1]
    kind = two.name
    for name in RESUMED:
        known = json.loads((two / name / "checkpoint-2/manifest.json").read_text())
        assert known["launch"] == {"kind": kind, "num_processes": 2}
        words = words_of(name, kind == "ddp", f"{name}_alone", **ALONE.get(name, {}))
        refused = "samples with the noise of each process" if name == "rloo" else ""
        if kind != "ddp":
            refused = f"is of {kind} with 2 processes, not single"
        with inside(two):
            cut(Path(name), Path(f"{name}_alone"))
            if refused:
                with pytest.raises(UserError, match=refused):
                    make([*words, "--resume"])
                continue
            make([*words, "--resume"])
        alone, expected = weights(two / f"{name}_alone/final"), weights(two / name / "final")
        assert all(torch.allclose(alone[key], t, atol=1e-6) for key, t in expected.items())


# The others allow it to one process as it is, or not at all.
@pytest.mark.slow
@pytest.mark.parametrize("folders", ["fsdp2"], indirect=True)
def test_one_process_of_fsdp2_goes_on_with_the_shards_of_two(folders: tuple[Path, Path]) -> None:
    two = folders[1]
    names = [name for name in RESUMED if name != "rloo"]
    words = [words_of(name, False, f"{name}_of_one") for name in names]
    (two / "runs_of_one.json").write_text(json.dumps([[*row, "--resume"] for row in words]))
    with inside(two):
        for name in names:
            cut(Path(name), Path(f"{name}_of_one"))
    done = on_two(two, "fsdp2", "runs_of_one", 1)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads((two / "notes_of_one0.json").read_text())
    assert {(note["processes"], note["kind"], note["step"]) for note in seen} == {(1, "FSDP", 3)}
    for name in names:
        alone, expected = (weights(two / n / "final") for n in (f"{name}_of_one", name))
        assert all(torch.allclose(alone[key], t, atol=1e-6) for key, t in expected.items())


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not any(w in k for w in TIMES)} for row in rows]
