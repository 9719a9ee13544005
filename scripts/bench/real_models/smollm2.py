#!/usr/bin/env python3
"""SFT, a reward model, PPO and DPO of a real chat model with LoRA, on real instructions.

    .venv/bin/python scripts/bench/real_models/smollm2.py --model FOLDER_OR_HUB_ID [--out FOLDER]

Needs the folder of data beside the project. Writes its section of docs/benchmarks/real-models.md;
`--small` tries the way there on a few rows and prints the section. Two stages run at a time, each
on half of the cores. `--out` keeps the runs, and a stage that is done there is not run again.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes.lib.evaluation.win_rate import WinRate, win_rate  # noqa: E402  the path comes first
from recipes.lib.runs.files import read_jsonl, write_jsonl  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402
from scripts.bench.real_models.brief import MOST_WORDS, brief  # noqa: E402

DATA = ROOT.parent / "shared/data"
PAGE = ROOT / "docs/benchmarks/real-models.md"
MARK = "## A chat model"  # the section from here to the page's end is this script's
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
BRIEF = f"{Path(__file__).parent / 'brief.py'}:brief"
HELD_OUT = 64  # the last rows, on whose prompts no stage trains
ROWS = {"sft": 200, "reward": 160, "dpo": 128}  # the first ones, that each stage trains on
ENDS = 4  # rollouts at either end of PPO that its scores are the mean of
TOKENS = 32  # of a completion, at most
SHOWN = 5  # prompts whose answers the page shows
# The model's own, without the system prompt that it puts before every conversation, which would be
# two fifths of the tokens of such short ones.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COMMON: dict[str, Any] = {
    "dtype": "float32", "bf16": False, "use_cpu": True, "save_strategy": "no", "seed": 1,
    "use_peft": True, "lora_r": 16, "lora_alpha": 16, "lora_target_modules": "all-linear",
    "gradient_checkpointing": False, "disable_tqdm": True,
}  # fmt: skip
TUNED = COMMON | {
    "num_train_epochs": 1, "max_length": 128, "warmup_steps": 0.1,
    "per_device_train_batch_size": 8, "per_device_eval_batch_size": 16,
}  # fmt: skip
PPO = COMMON | {
    "total_episodes": 320, "rollout_batch_size": 16, "num_ppo_epochs": 1, "num_mini_batches": 4,
    "per_device_train_batch_size": 4, "scoring_batch_size": 16, "max_completion_length": TOKENS,
    "missing_eos_penalty": 1.0, "critic": "head", "kl_coef": 0.05, "learning_rate": 5e-4,
}  # fmt: skip


def write_data(folder: Path, held_out: int) -> None:
    """Instructions, pairs (polite, rude) and prompts as messages, parted alike."""
    said = read_jsonl(DATA / "sft/rasbt_instruct_messages.jsonl")
    pairs = read_jsonl(DATA / "preference/rasbt_polite.jsonl")
    both: list[dict[str, Any]] = []
    for told, pair in zip(said, pairs, strict=True):
        sides = {k: [{"role": "assistant", "content": pair[k]}] for k in ("chosen", "rejected")}
        both.append({"messages": told["messages"], "prompt": told["messages"][:1]} | sides)
    test = both[-held_out:]
    asked = [row["prompt"] for row in test]
    parts = {"train": [row for row in both if row["prompt"] not in asked], "test": test}
    columns = {
        "sft": ("messages",),
        "pairs": ("prompt", "chosen", "rejected"),
        "prompts": ("prompt",),
    }
    for part, rows in parts.items():
        for kind, names in columns.items():
            kept = [{name: row[name] for name in names} for row in rows]
            write_jsonl(folder / f"{kind}_{part}.jsonl", kept)


class Stages:
    """The stages in their folder, each a command line of its own.

    Args:
        model: Folder or Hub id that all begin from.
        folder: Of data, runs and logs.
        small: Whether each stage does a few rows alone.
    """

    def __init__(self, model: str, folder: Path, *, small: bool) -> None:
        self.model, self.folder, self.small = model, folder, small
        self.sft, self.judge = str(folder / "sft"), str(folder / "reward")

    def run(self, recipe: str, name: str, **values: Any) -> None:
        """One recipe; what is done is not run again."""
        out = self.folder / name
        if (out / "took.json").is_file():
            print(f"{name}: done before", flush=True)
            return
        file, log = self.folder / f"{name}.yaml", self.folder / f"{name}.log"
        file.write_text(json.dumps(values | {"output_dir": str(out), "overwrite": True}))
        command = [sys.executable, "-m", "recipes.cli", recipe, "--config", str(file)]
        threads = str(max(1, (os.cpu_count() or 2) // 2))
        share = {"OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        print(f"{name}: begins, see {log}", flush=True)
        start = time.monotonic()
        with log.open("w", encoding="utf-8") as said:
            subprocess.run(command, env=os.environ | share, stdout=said, stderr=said, check=True)
        seconds = time.monotonic() - start
        (out / "took.json").write_text(json.dumps(seconds))
        print(f"{name}: {seconds:.0f} s", flush=True)

    def found(self, name: str) -> dict[str, Any]:
        """What a stage found, with its seconds and rollouts."""
        out = self.folder / name
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        rows = read_jsonl(out / "metrics.jsonl") if (out / "metrics.jsonl").is_file() else []
        rollouts = [row for row in rows if "objective/kl" in row]
        return summary | {"took": json.loads((out / "took.json").read_text()), "rollouts": rollouts}

    def tune(self, recipe: str, kind: str, model: str, **values: Any) -> None:
        """A stage that trains on rows."""
        data = {"dataset_name": "train", "test_dataset_name": "test"}
        files = {key: str(self.folder / f"{kind}_{part}.jsonl") for key, part in data.items()}
        # Some pairs are equal on both sides.
        rows = {"max_train_rows": 16 if self.small else ROWS[recipe], "on_bad_rows": "drop"}
        given = TUNED | files | rows | values
        self.run(recipe, recipe, model_name_or_path=model, **given)

    def ppo(self, name: str, reward: str, **more: Any) -> None:
        """PPO of the SFT run."""
        prompts = str(self.folder / "prompts_train.jsonl")
        given = PPO | more
        if self.small:
            given |= {"total_episodes": 2 * given["rollout_batch_size"]}
        rest = {"dataset_name": prompts, "reward_funcs": [reward], "skip_check": True}
        self.run("ppo", name, model_name_or_path=self.sft, **given, **rest)

    def first_half(self) -> None:
        """The reward model, and PPO with it."""
        own = {"per_device_train_batch_size": 4, "scoring_batch_size": 16, "skip_check": True}
        self.tune("reward", "pairs", self.sft, learning_rate=1e-3, **own)
        few = {"rollout_batch_size": 12, "per_device_train_batch_size": 3, "total_episodes": 192}
        self.ppo("ppo", self.judge, **few)

    def other_half(self) -> None:
        """PPO with the verifiable reward, and DPO."""
        self.ppo("brief", BRIEF)
        self.tune("dpo", "pairs", self.sft, learning_rate=5e-4, beta=0.1)

    def evaluate(self, name: str) -> None:
        """A run against the SFT run on the prompts held out."""
        self.run(
            "evaluate", f"evaluate-{name}", run=str(self.folder / name), baseline=self.sft,
            judge=self.judge, dataset_name=str(self.folder / "prompts_test.jsonl"),
            dtype="float32", max_completion_length=TOKENS, batch_size=32, seed=1,
        )  # fmt: skip

    def run_all(self) -> None:
        """Everything, two stages at a time once SFT is done."""
        self.tune(
            "sft", "sft", self.model, learning_rate=2e-4, num_samples=0, chat_template=TEMPLATE
        )
        with ThreadPoolExecutor(2) as two:
            halves = [two.submit(half) for half in (self.first_half, self.other_half)]
            for half in halves:
                half.result()
            list(two.map(self.evaluate, NAMES))


NAMES = {"brief": "PPO, verifiable reward", "ppo": "PPO, reward model", "dpo": "DPO"}
"""The policies beside SFT, and what the page calls them."""


def stage_row(name: str, run: dict[str, Any]) -> list[Any]:
    """A stage: what it trains on, its seconds, what it reached."""
    kind, _, of = name.partition("-")
    title = {"sft": "SFT", "reward": "Reward model"} | NAMES
    what, reached = "-", "see below"
    if kind in ROWS:
        what = f"{ROWS[kind]} {'rows' if kind == 'sft' else 'pairs'}"
    elif kind in NAMES:
        what = f"{run['episodes']} episodes"
    if kind == "sft":
        reached = f"perplexity {run['base_perplexity']:.2f} -> {run['perplexity']:.2f}"
    elif kind in ("reward", "dpo"):
        reached = f"accuracy {run['accuracy']:.2f}"
    if kind == "reward":
        reached += f", bag of words {run['accuracy_bag_of_words']:.2f}"
    called = f"evaluation: {NAMES[of]}" if of else title[kind]
    return [called, what, run["took"], reached]


def ppo_row(name: str, run: dict[str, Any]) -> list[Any]:
    """PPO's own numbers: the rollouts at both ends, with the deviation between them."""
    scores = [row["objective/raw_scores"] for row in run["rollouts"]]
    ends = [f"{mean(part):.2f} +- {stdev(part):.2f}" for part in (scores[:ENDS], scores[-ENDS:])]
    last = run["rollouts"][-ENDS:]
    kl, tokens = (
        mean(row[key] for row in last) for key in ("objective/kl", "completions/mean_length")
    )
    return [NAMES[name], len(scores), *ends, f"{kl:.1f}", f"{tokens:.1f}"]


def won(rate: WinRate) -> str:
    """A win rate with its interval."""
    return f"{rate.value:.2f} ({rate.low:.2f} to {rate.high:.2f})"


def evaluation_row(name: str, numbers: dict[str, Any], rows: list[dict[str, Any]]) -> list[Any]:
    """A policy against SFT on the prompts held out, under both judges."""
    low, high = numbers["win_rate_ci95"]
    ours, theirs = (brief([row[side] for row in rows]) for side in ("completion", "baseline"))
    return [
        NAMES[name],
        f"{mean(theirs):.2f} -> {mean(ours):.2f}",
        won(win_rate(ours, theirs, seed=1)),
        f"{numbers['score_baseline']:.2f} -> {numbers['score']:.2f}",
        won(WinRate(numbers["win_rate"], low, high)),
        f"{numbers['kl']:.1f} +- {numbers['kl_stderr']:.1f}",
    ]


def lines(rows: list[list[Any]]) -> str:
    """Rows of a table; a number of seconds is rounded."""
    shown = [[f"{c:.0f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in shown)


def answers(samples: dict[str, list[dict[str, Any]]]) -> str:
    """The first prompts held out, with what each policy says to them."""
    lines = []
    for number in range(SHOWN if samples else 0):
        rows = {name: of_run[number] for name, of_run in samples.items()}
        first = next(iter(rows.values()))
        assert all(row["baseline"] == first["baseline"] for row in rows.values())
        lines.append(f"**{plain(first['prompt'])}**\n\n- SFT: {plain(first['baseline'])}")
        lines += [f"- {NAMES[name]}: {plain(row['completion'])}" for name, row in rows.items()]
        lines.append("")
    return "\n".join(lines).strip()


def plain(text: str) -> str:
    """A text on one line that Markdown shows as it is."""
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"([\\`*_<>#|\[\]])", r"\\\1", text)


def section(stages: Stages) -> str:
    """The page's section, of the stages that are done."""
    names = ("sft", "reward", *NAMES, *(f"evaluate-{name}" for name in NAMES))
    done = [name for name in names if (stages.folder / name / "took.json").is_file()]
    found = {name: stages.found(name) for name in done}
    judged = {n: found[f"evaluate-{n}"] for n in NAMES if f"evaluate-{n}" in found}
    samples = {n: read_jsonl(stages.folder / f"evaluate-{n}/samples.jsonl") for n in judged}
    is_hub_id = stages.model == HUB_ID
    command = ".venv/bin/python scripts/bench/real_models/smollm2.py --model "
    return TEXT.format(
        mark=MARK,
        model="SmolLM2-135M-Instruct",
        note="" if is_hub_id else " (from Q4_1)",
        conditions=conditions(command + (HUB_ID if is_hub_id else "FOLDER")),
        minutes=sum(run["took"] for run in found.values()) / 60,
        held_out=HELD_OUT,
        stages=lines([stage_row(name, run) for name, run in found.items()]),
        ppo=lines([ppo_row(name, found[name]) for name in ("brief", "ppo") if name in found]),
        judged=lines([evaluation_row(n, run, samples[n]) for n, run in judged.items()]),
        answers=answers(samples),
        words=MOST_WORDS,
        tokens=TOKENS,
        ends=ENDS,
        shown=SHOWN,
    )


def main() -> int:
    """Run what is not done and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default=HUB_ID, help="folder or Hub id")
    parser.add_argument("--out", type=Path, help="folder that keeps the runs")
    parser.add_argument("--page", action="store_true", help="of what is done in --out; run nothing")
    parser.add_argument("--small", action="store_true", help="try the way there; the page stays")
    asked = parser.parse_args()
    folder = asked.out or Path(tempfile.mkdtemp())
    stages = Stages(asked.model, folder.resolve(), small=asked.small)
    if not asked.page:
        folder.mkdir(parents=True, exist_ok=True)
        write_data(folder, 16 if asked.small else HELD_OUT)
        stages.run_all()
    text = section(stages)
    print(text)
    if not asked.small:
        before = PAGE.read_text(encoding="utf-8").partition(MARK)[0].rstrip()
        PAGE.write_text(f"{before}\n\n{text}", encoding="utf-8")
    return 0


TEXT = """{mark}

{model}{note}: LoRA of rank 16 on every linear layer, fp32; instructions, and pairs of
a polite and a less polite answer, of rasbt/LLMs-from-scratch; without the system prompt that the
model's template puts before every conversation, two fifths of the tokens here.

{conditions}
- two stages at a time, one core each, beside other work on the same cores; all stages together
  {minutes:.0f} minutes

| stage{note} | trains on | seconds | what it reached on {held_out} rows held out |
|---|---|---|---|
{stages}

The verifiable reward (`scripts/bench/real_models/brief.py`) is 1 for one whole sentence of at most
{words} words, else 0. The reward model's score has no unit; only differences count.

### PPO: score at first and at last{note}

Rollouts of 16 (verifiable reward) and 12 completions (reward model) of at most {tokens} tokens,
four updates in each. Mean over the first and the last {ends} rollouts +- the standard deviation
between those; KL in nats per completion over the last.

| reward{note} | rollouts | score at first | score at last | KL | tokens |
|---|---|---|---|---|---|
{ppo}

### On {held_out} prompts that no stage saw{note}

Against SFT on the same prompts, both sampled at temperature 1 (`rlhf evaluate`): mean scores of SFT
-> of the policy, win rates with their 95 % interval, ties half; KL from SFT in nats per completion,
with its standard error.

| policy{note} | verifiable reward | win rate | reward model | win rate | KL |
|---|---|---|---|---|---|
{judged}

### Answers to the first {shown} of them{note}

{answers}
"""


if __name__ == "__main__":
    raise SystemExit(main())
