#!/usr/bin/env python3
"""PPO of a small language model in the worlds of text, over seeds.

    .venv/bin/python scripts/bench/environments/worlds.py maze-3x3 --seeds 1 2 3 4 5
    .venv/bin/python scripts/bench/environments/worlds.py --page docs/benchmarks/environments.md

Of each seed SFT on play at random and PPO have the keys of configs/environments with the changes
below. Then both models play 200 rows, and 200 held-out ones, outside of the recipes: the whole
conversation is read anew at every turn. A stage that is done is kept in runs/worlds and its result
in rows.jsonl there, so that it goes on after a stop. --page writes a section and a curve for each
case that is there. The tables say how long a seed takes.
"""

import argparse
import functools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import yaml  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from transformers.utils import logging  # noqa: E402

from recipes.lib.environments.worlds import world_seed  # noqa: E402
from recipes.lib.feedback.exchange import write_answers  # noqa: E402
from recipes.lib.feedback.rows import item_id, make_row  # noqa: E402
from recipes.lib.runs.files import read_jsonl, write_jsonl  # noqa: E402
from recipes.lib.tasks.environments.cartpole import CartPole  # noqa: E402
from recipes.lib.tasks.environments.guessing import Guessing  # noqa: E402
from recipes.lib.tasks.environments.maze import MOVES, STEP, Maze, draw  # noqa: E402
from recipes.lib.tasks.environments.sums import Sums  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from scripts.bench.environments.classical import table, with_section  # noqa: E402
from scripts.bench.environments.tabular import optimal_values, q_learning  # noqa: E402
from scripts.bench.kept import kept  # noqa: E402

COMMAND = ".venv/bin/python scripts/bench/environments/worlds.py {} --seeds {}"
RUNS, CONFIGS = ROOT / "runs/worlds", ROOT / "configs/environments"
PICTURES = ROOT / "docs/pictures"
PLAYED, BATCH = 200, 64  # rows of a split, and episodes at a time


@dataclass(frozen=True)
class Case:
    """A world with its settings.

    Args:
        make: Its class.
        world: Its name in scripts/environment_rows and configs/environments.
        rows: Flags of scripts/environment_rows.
        ppo: Keys of PPO beside those of the configuration.
        changed: Columns of the rows that are changed, by a name for such play.
        is_judged: Whether a reward model of conversations that people compared is the reward.
        processes: Of PPO.
        note: What its section says above the table.
    """

    make: Callable[[], Any]
    world: str
    rows: Sequence[str] = ()
    ppo: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    is_judged: bool = False
    processes: int = 1
    note: str = ""


CASES = {
    "maze-3x3": Case(
        Maze,
        "maze",
        rows=("--size", "3", "--num_train", "100"),
        ppo={"max_turns": 12},
        note="A hundred mazes, at most 12 turns; `by the shortest`: turns by those of the shortest "
        "way. Q-learning\nhas a table for each maze. ",
    ),
    "maze-5x5": Case(
        Maze,
        "maze",
        ppo={"per_device_train_batch_size": 32},
        processes=2,
        note="500 mazes, at most 32 turns. ",
    ),
    "guessing": Case(
        Guessing,
        "guessing",
        ("--num_sft", "16000"),
        note="The best play\nof these rows, of 2 to 6 turns, has 0.81 (Tabular). ",
    ),
    "guessing-judged": Case(Guessing, "guessing", ("--num_sft", "16000"), is_judged=True),
    "sums": Case(
        Sums,
        "sums",
        ("--num_sft", "8000"),
        changed={"": {}, "no calculator": {"calculator": False}},
    ),
    "cartpole": Case(
        CartPole,
        "cartpole",
        note="Every step pays 1, so\nsuccess says nothing here; rows differ by their seeds. ",
    ),
}


def command(*words: Any) -> None:
    """Run a command of the project; what it says is kept beside the runs."""
    with (RUNS / "log.txt").open("a", encoding="utf-8") as log:
        told = [sys.executable, *map(str, words)]
        subprocess.run(told, cwd=ROOT, check=True, stdout=log, stderr=log)


def stage(recipe: str, config: Path, folder: Path, launch: Sequence[Any] = (), **keys: Any) -> None:
    """Run a recipe by a configuration with changes, unless it has been run."""
    if (folder / "summary.json").is_file():
        return
    flags = [word for key, value in keys.items() for word in (f"--{key}", value)]
    own = ["--config", config, "--output_dir", folder, "--overwrite", "true"]
    command("-m", "recipes.cli", recipe, *own, *launch, *flags)


def train(name: str, seed: int) -> dict[str, Any]:
    """Rows, SFT and PPO of one seed, and what both models then play."""
    case, folder = CASES[name], RUNS / name
    rows = folder / "rows"
    if not rows.is_dir():
        command("scripts/environment_rows", case.world, "--target", rows, *case.rows)
    base = RUNS / "base-drawn"
    stage("base", CONFIGS / "base.yaml", base)
    mine = folder / f"seed-{seed}"
    own: dict[str, Any] = {"model_name_or_path": base, "dataset_name": rows / "sft", "seed": seed}
    stage("sft", CONFIGS / f"{case.world}_sft.yaml", mine / "sft", **own)
    own |= {"model_name_or_path": mine / "sft", "dataset_name": rows / "ppo", **case.ppo}
    if case.is_judged:
        own |= judged(mine, case, read_jsonl(rows / "ppo/train.jsonl"), seed)
    launch = (
        ["--accelerate_config", "ddp", "--num_processes", case.processes]
        if case.processes > 1
        else []
    )
    stage("ppo", CONFIGS / f"{case.world}_ppo.yaml", mine / "ppo", launch, **own)
    return told(name, seed)


def judged(mine: Path, case: Case, rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Keys of PPO for a reward model of conversations, which a simulated person compares in pairs.

    That person likes what the game would have rewarded better, and of ten answers gives one at
    random. The game itself rewards nothing then.
    """
    path, rng = mine / "rows/train.jsonl", random.Random(seed)
    if not path.is_file():
        sides = [play(mine, "sft", case, rows, seed + n * 1000, is_greedy=False) for n in range(4)]
        answers = []
        pairs = [*zip(*sides[:2], strict=True), *zip(*sides[2:], strict=True)]
        for (one, first), (two, second) in pairs:
            contents = [first[1:], second[1:]]
            item = {"id": item_id(first[:1], contents), "prompt": first[:1]}
            item["completions"] = [{"content": content} for content in contents]
            value = None if sum(one) == sum(two) else int(sum(two) > sum(one))
            value = rng.choice([0, 1]) if rng.random() < 0.1 else value
            who = {"annotator": "simulated", "source": "simulated"}
            answers.append(make_row(item, kind="pair", value=value, **who))
        write_answers(answers, mine / "feedback")
        path.parent.mkdir()
        write_jsonl(path, [row | {"scored": False} for row in rows])
    reward: dict[str, Any] = {
        "model_name_or_path": mine / "sft",
        "test_fraction": 0.1,
        "max_length": 256,
    }
    reward |= {"dataset_name": mine / "feedback/final/train.jsonl", "seed": seed}
    stage("reward", ROOT / "configs/quickstart/reward.yaml", mine / "reward", **reward)
    return {"dataset_name": path, "reward_funcs": mine / "reward"}


def told(name: str, seed: int) -> dict[str, Any]:
    """The curve of a seed, its seconds, and a line for each kind of play."""
    case, mine = CASES[name], RUNS / name / f"seed-{seed}"
    summaries = {stage: read(mine / stage / "summary.json") for stage in ("sft", "ppo")}
    logged = read_jsonl(mine / "ppo/metrics.jsonl")
    rollouts = [row for row in logged if "objective/scores" in row]
    a_step = rollouts[-1]["episode"] / rollouts[-1]["step"]  # episodes of an optimizer step
    lines = []
    for stage, split in (("sft", "test"), ("ppo", "train"), ("ppo", "test")):
        rows = read_jsonl(RUNS / name / f"rows/ppo/{split}.jsonl")[:PLAYED]
        for change, columns in case.changed.items():
            asked = [row | columns for row in rows]
            played = [play(mine, stage, case, asked, seed, is_greedy=g) for g in (True, False)]
            where = ("own" if split == "train" else "held out") + (change and f", {change}")
            lines.append(
                [stage, where, *measured(case, asked, *([r for r, _ in p] for p in played))]
            )
    return {
        "curve": [[row["episode"], row["objective/scores"]] for row in rollouts],
        "held_out": [[r["step"] * a_step, r["eval_scores"]] for r in logged if "eval_scores" in r],
        "seconds": [summaries["sft"]["seconds"], summaries["ppo"]["seconds"]],
        "lines": lines,
    }


def read(file: Path) -> dict[str, Any]:
    """A JSON object."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


@torch.inference_mode()
def play(
    mine: Path, stage: str, case: Case, rows: list[dict[str, Any]], seed: int, *, is_greedy: bool
) -> list[tuple[list[float], list[dict[str, str]]]]:
    """The rewards and the messages of an episode of each row."""
    keys = yaml.safe_load((mine / "ppo/config.yaml").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(mine / stage / "final", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(mine / stage / "final").eval()
    torch.manual_seed(seed)
    played: list[tuple[list[float], list[dict[str, str]]]] = [([], []) for _ in rows]
    for start in range(0, len(rows), BATCH):
        games = []
        for number in range(start, min(start + BATCH, len(rows))):
            world = case.make()
            first = world.reset(**rows[number], seed=world_seed(seed, number))
            played[number][1].append({"role": "user", "content": first})
            games.append((world, *played[number]))
        for _ in range(keys["max_turns"]):
            views = [said[-1:] if keys["context"] == "last" else said for *_, said in games]
            asked = tokenizer.apply_chat_template(
                views,
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
                padding=True,
            )
            how = {"do_sample": False} if is_greedy else {"do_sample": True, "top_k": 0}
            answers = model.generate(**asked, max_new_tokens=keys["max_completion_length"], **how)
            written = tokenizer.batch_decode(
                answers[:, asked["input_ids"].shape[1] :], skip_special_tokens=True
            )
            going = []
            for (world, rewards, said), text in zip(games, written, strict=True):
                observation, reward, done, truncated = world.step(text)
                rewards.append(reward)
                said += [
                    {"role": "assistant", "content": text},
                    {"role": "user", "content": observation},
                ]
                if not (done or truncated):
                    going.append((world, rewards, said))
            games = going
            if not games:
                break
    return played


def measured(
    case: Case, rows: list[dict[str, Any]], greedy: list[list[float]], sampled: list[list[float]]
) -> list[float | None]:
    """Returns of greedy and sampled play; of greedy play what ends well, and in how many turns.

    In mazes behind them: those turns by the shortest, and the return by the best.
    """
    solved = [number for number, rewards in enumerate(greedy) if rewards[-1] > 0]
    numbers: list[float | None] = [mean(map(sum, greedy)), mean(map(sum, sampled))]
    numbers += [len(solved) / len(rows), mean(len(greedy[n]) for n in solved) if solved else None]
    if case.make is not Maze:
        return numbers
    best = [optimal_values(layout := draw(r["maze"], r["size"]))[layout.start] for r in rows]
    longer = [len(greedy[n]) / round((1 - best[n]) / STEP) for n in solved]
    return [*numbers, mean(longer) if longer else None, mean(map(sum, greedy)) / mean(best)]


NOTE = """`own` are rows that PPO trained on, `held out` others. Return, success
(a reward at the end) and turns (of what succeeds) are of the most probable words; the other return
is of words as the model samples them. """
HEADS = ["seed", "model", "rows", "return", "as sampled", "success", "turns"]


def section(name: str, results: dict[int, dict[str, Any]]) -> str:
    """The section of a case."""
    case = CASES[name]
    heads = HEADS + (["by the shortest", "of the best"] if case.make is Maze else [])
    rows = [[s, *line] for s, result in results.items() for line in result["lines"]]
    kinds = dict.fromkeys((model, where) for _, model, where, *_ in rows)
    for kind in kinds if len(results) > 1 else ():
        columns = zip(*(row[3:] for row in rows if (row[1], row[2]) == kind), strict=True)
        means = [mean(known) if None not in known else None for known in columns]
        rows.append(["mean", *kind, *means])
    shown = [["-" if cell is None else cell for cell in row] for row in rows]
    sft, ppo = (mean(r["seconds"][i] for r in results.values()) for i in (0, 1))
    spent = f"Seconds of a seed: SFT {sft:.0f}, PPO {ppo:.0f}."
    seeds = " ".join(map(str, results))
    head = f"## {case.world.capitalize()}{name.removeprefix(case.world).replace('-', ' ')}"
    picture = f"![Return over episodes](../pictures/world-{name}.svg)"
    told = conditions(COMMAND.format(name, seeds))
    note = f"{NOTE}{case.note}{spent}"
    return "\n\n".join([head, told, note, table(heads, shown), picture]) + "\n"


def draw_curve(name: str, results: dict[int, dict[str, Any]]) -> None:
    """The curve of a case, a line a seed, and in mazes Q-learning's and the optimum beside them."""
    import matplotlib.pyplot as plt

    case = CASES[name]
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for number, result in enumerate(results.values()):
        label = "PPO, as it samples" if number == 0 else None
        axes.plot(*zip(*result["curve"], strict=True), color="tab:blue", lw=0.9, label=label)
        if result["held_out"]:
            label = "held out" if number == 0 else None
            axes.plot(
                *zip(*result["held_out"], strict=True), "o", ms=3, c="tab:orange", label=label
            )
    if case.make is Maze:
        rows = read_jsonl(RUNS / name / "rows/ppo/train.jsonl")
        layouts = [draw(row["maze"], row["size"]) for row in rows]
        best = mean(optimal_values(layout)[layout.start] for layout in layouts)
        axes.axhline(best, color="black", lw=0.8, ls="--", label="optimum")
        last = max(result["curve"][-1][0] for result in results.values())
        times = range(1, 1 + round(last / len(rows)))
        label = "Q-learning, a table for each maze"
        axes.plot(
            [n * len(rows) for n in times], learned(rows, len(times)), c="tab:green", label=label
        )
        axes.set_ylim(-1, 1)
    if case.make is CartPole:
        from scripts.bench.environments.cartpole import EVERY, KEPT

        for number, row in enumerate(read_jsonl(KEPT) if KEPT.is_file() else ()):
            label = "stable-baselines3, from the numbers" if number == 0 else None
            if row["seen"] == "numbers":
                turns = [EVERY * (n + 1) for n in range(len(row["returns"]))]
                axes.plot(turns, row["returns"], color="tab:green", lw=0.9, label=label)
    axes.set(
        xlabel="turns" if case.world == "cartpole" else "episodes",
        ylabel="score" if case.is_judged else "return",
    )
    axes.legend(frameon=False, fontsize="small")
    plt.rcParams["svg.hashsalt"] = name
    figure.savefig(PICTURES / f"world-{name}.svg", metadata={"Date": None})
    plt.close(figure)


def learned(rows: list[dict[str, Any]], times: int) -> list[float]:
    """Mean return of Q-learning in each maze, by the number of episodes it has had there."""
    total = [0.0] * times
    for row in rows:
        learning = q_learning(
            Maze, row | {"map_again": True}, list(MOVES), random.Random(row["maze"])
        )
        for place, (_, turns) in zip(range(times), learning, strict=False):
            total[place] += (1 - STEP * turns) / len(rows)
    return total


def main() -> int:
    """Train the seeds of a case, or write the page of what is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("case", choices=CASES, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    logging.set_verbosity_error()
    file = RUNS / "rows.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds if given.case else ():
        result = kept(file, [given.case, seed], functools.partial(train, given.case, seed))
        print(*result["lines"], sep="\n", flush=True)
    if given.page is not None:
        page = given.page.read_text(encoding="utf-8")
        found = {tuple(row["key"]): row["result"] for row in read_jsonl(file)}
        for name in CASES:
            results = {seed: found[key, seed] for key, seed in sorted(found) if key == name}
            if results:
                draw_curve(name, results)
                page = with_section(page, section(name, results))
        given.page.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
