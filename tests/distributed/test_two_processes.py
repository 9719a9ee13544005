"""Two real processes under DDP follow the same episodes and updates as one."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import tiny
from tests.helpers.distributed.ppo_worker import train

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests/helpers/distributed/ppo_worker.py"
CRITICS = ("model", "adapter")


@dataclass
class Result:
    """What a run wrote: facts and weights of its first process, and what each process saw."""

    facts: dict[str, Any]
    weights: dict[str, torch.Tensor]
    ranks: list[dict[str, Any]]


def read(out: Path, num_processes: int) -> Result:
    ranks = [json.loads((out / f"rank{i}.json").read_text()) for i in range(num_processes)]
    return Result(json.loads((out / "facts.json").read_text()), torch.load(out / "w.pt"), ranks)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, and the runs of two processes."""
    folder = tmp_path_factory.mktemp("runs")
    tiny.llama().save_pretrained(folder / "start")
    tiny.tokenizer().save_pretrained(folder / "start")
    for critic in CRITICS:
        (folder / critic).mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *start, str(WORKER), str(folder / "start"), str(folder), *CRITICS],
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module", params=CRITICS)
def runs(
    request: pytest.FixtureRequest, of_two: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Result, Result]:
    """The same run on one process, which is this one, and on two."""
    folder = tmp_path_factory.mktemp("one")
    train(str(of_two / "start"), folder, request.param)
    return read(folder, 1), read(of_two / request.param, 2)


def test_item_34_two_processes_make_the_updates_of_one(runs: tuple[Result, Result]) -> None:
    one, two = runs
    assert (one.facts["world_size"], two.facts["world_size"]) == (1, 2)
    assert two.facts["wrapped"] == "DistributedDataParallel"
    for name, weight in one.weights.items():
        # sums over tokens in another order: fp32 rounding, carried through twelve Adam steps
        assert torch.allclose(weight, two.weights[name], atol=1e-4), name


def test_item_41_two_processes_log_the_numbers_of_one(runs: tuple[Result, Result]) -> None:
    one, two = runs
    assert len(one.facts["logs"]) == len(two.facts["logs"]) == 3
    for of_one, of_two in zip(one.facts["logs"], two.facts["logs"], strict=True):
        timeless = {key for key in of_one if not key.startswith("time/")}
        for key in timeless:
            assert of_two[key] == pytest.approx(of_one[key], rel=1e-3, abs=1e-4), key
    # the score that is logged is the mean over both processes, which saw different ones
    means = [
        sum(sum(token % 5 == 0 for token in ids) / 3 for _, ids in rank["seen"][:8]) / 8
        for rank in two.ranks
    ]
    assert means[0] != means[1]
    assert two.facts["logs"][0]["objective/scores"] == pytest.approx(sum(means) / 2)


def test_item_04_two_processes_keep_one_kl_coefficient(runs: tuple[Result, Result]) -> None:
    one, two = runs
    assert two.ranks[0]["kl_coef"] == two.ranks[1]["kl_coef"] != 0.05
    assert two.ranks[0]["kl_coef"] == pytest.approx(one.ranks[0]["kl_coef"], rel=1e-6)


def test_item_51_two_processes_keep_one_multiplier(runs: tuple[Result, Result]) -> None:
    one, two = runs
    own = [rank["cost"] for rank in (*one.ranks, *two.ranks)]
    assert own[1] == own[2]
    if "objective/cost" not in one.facts["logs"][0]:  # the run without a limit
        assert own[0] == own[1]
        return
    assert own[1] == pytest.approx(own[0], rel=1e-5)
    assert own[1]["value"] > 0.0


def test_item_30_two_processes_whiten_over_the_episodes_of_both(
    runs: tuple[Result, Result],
) -> None:
    one, two = runs
    assert two.ranks[0]["advantages"] == two.ranks[1]["advantages"]
    ours, mask = (torch.tensor(two.ranks[0][name]) for name in ("advantages", "mask"))
    assert ours.shape[0] == 16
    # the third rollout, behind eight updates that differ by rounding
    assert torch.allclose(ours, torch.tensor(one.ranks[0]["advantages"]), atol=1e-3)
    kept = ours[mask.bool()].double()
    assert kept.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert kept.var(correction=0).item() == pytest.approx(1.0, abs=1e-5)


def test_item_40_two_processes_sample_different_episodes(runs: tuple[Result, Result]) -> None:
    one, two = runs
    for first in (0, 16, 32):  # each rollout: the first half is of one process, the second of two
        half = first // 2
        seen = [rank["seen"][half : half + 8] for rank in two.ranks]
        assert seen[0] + seen[1] == one.ranks[0]["seen"][first : first + 16]
        assert [ids for _, ids in seen[0]] != [ids for _, ids in seen[1]]
    prompts = {prompt for prompt, _ in two.ranks[0]["seen"]}
    assert prompts & {prompt for prompt, _ in two.ranks[1]["seen"]}  # the same prompts too


def test_item_50_two_processes_put_the_brake_on_together(runs: tuple[Result, Result]) -> None:
    one, two = runs
    shares = [[log.get("policy/braked") for log in run.facts["logs"]] for run in runs]
    if one.facts["logs"][0].get("policy/braked") is None:  # the run without a bound
        assert shares[0] == shares[1] == [None] * 3
        return
    assert shares[0] == pytest.approx(shares[1])
    assert shares[0][0] == pytest.approx(0.75)  # all but the first of four updates
    assert two.ranks[0]["braked"] == two.ranks[1]["braked"] == one.ranks[0]["braked"]
