"""Rounds: sample, ask, reward model, check, policy, evaluate, promote or not, and again.

Each step is the ordinary run of an ordinary recipe by a YAML in `configs`: select.yaml (rlhf
feedback select), one for each of `raters` (feedback serve or simulate), reward.yaml, one of the
method, evaluate.yaml. What a step takes from others is filled in: models, items, answers, folders,
and seeds, which grow by one a round. Finished steps are kept, interrupted ones go on, and what
follows from a step that changed runs again. Each round learns from the answers of all.

A policy is promoted where the reward model passed its check, the win rate over the last promoted
one lies above 0.5 with its 95 % interval, and the mean cost is at most 10 % above cost_limit. The
next round goes on from the newest policy, promoted or not: few answers seldom show what a round has
brought. Where that interval lies below 0.5 or the cost is too high, it goes back to the last
promoted one. `gate_answers` lets the raters decide: they compare the two policies, whose names they
do not see. Otherwise the judge of evaluate.yaml does.

Writes <output_dir>/round-<n>/<step>/, and summary.json and report.html there and in output_dir.

    rlhf rounds --config configs/rounds/tales.yaml
    rlhf rounds --config configs/rounds/tales.yaml --status true
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.config.shipped_configs import FOLDER
from recipes.lib.config.strict_yaml import read_yaml
from recipes.lib.data.reading import FEEDBACK_FILES
from recipes.lib.errors import FaultError, UserError
from recipes.lib.feedback.agreement import describe
from recipes.lib.feedback.exchange import ANSWERS
from recipes.lib.recipe.main import launch
from recipes.lib.report.run_files import read_json
from recipes.lib.runs.files import read_jsonl, write_json, write_jsonl
from recipes.quickstart import RUNS_ROOT, Stage, carry_out
from recipes.runs import facts

ONLINE, OFFLINE = ("ppo", "rloo", "grpo"), ("dpo", "kto")
READS_SCORES = ("disagreement", "closest", "widest")  # strategies of select
COST_MARGIN = 0.1  # of the limit: what PPO comes to (docs/benchmarks/cost.md)
SHOWN = ("num_answers", "accuracy", "win_rate", "win_rate_ci95", "kl", "promoted")


@dataclass(kw_only=True)
class RoundsArguments:
    """Keys of the recipe."""

    output_dir: str = option("runs/rounds/default", "Folder of all rounds.")
    configs: str = option(str(FOLDER / "rounds"), "Folder with one YAML for each step.")
    model_name_or_path: str | None = option(None, "Run that the first round begins from.")
    num_rounds: int = option(3, "How many rounds.")
    num_answers: int = option(300, "Answers that a round asks for, all raters together.")
    gate_answers: int = option(0, "How many of these compare the new policy with the last one.")
    raters: dict[str, float] = option(
        lambda: {"simulated": 1.0}, "Share of the answers of each rater: {people: 1, simulated: 3}."
    )
    method: str = option(
        "ppo", "What trains the policy; dpo and kto need no reward model.", ONLINE + OFFLINE
    )
    status: bool = option(False, "Say how far it is and whom it waits for, and end.")


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    return (RoundsArguments,)


def validate(script: RoundsArguments) -> None:
    """Check the keys, and that each step has its YAML.

    Raises:
        UserError: One is missing or wrong.
    """
    if not script.model_name_or_path:
        raise UserError("model_name_or_path is missing: name the run that the rounds begin from.")
    shares = [*script.raters.values()]
    if not shares or min(shares) <= 0:
        raise UserError(f"raters={script.raters}: give each rater a share above 0.")
    gate, rest = script.gate_answers, script.num_answers - script.gate_answers
    if script.num_rounds < 1 or gate < 0 or gate == 1 or rest < 2:
        told = f"num_rounds={script.num_rounds}, num_answers={script.num_answers}, "
        told += f"gate_answers={gate}"
        raise UserError(
            f"{told}: take 1 round or more, no gate or one of 2 answers or more, and leave 2 or "
            "more to learn from."
        )
    learns = ["reward", script.method] if script.method in ONLINE else [script.method]
    for name in ("select", *script.raters, *learns, "evaluate"):
        if not (Path(script.configs) / f"{name}.yaml").is_file():
            raise UserError(f"configs={script.configs}: {name}.yaml is not there.")
    _check_steps(script, {name: keys_of(script, name) for name in ("select", *script.raters)})
    judge = keys_of(script, "evaluate").get("judge")
    if bool(gate) == bool(judge):
        told = f"gate_answers={gate}, judge={judge} in evaluate.yaml"
        raise UserError(f"{told}: who decides? Give one of them, so many answers or a judge.")


def _check_steps(script: RoundsArguments, steps: dict[str, dict[str, Any]]) -> None:
    for name, keys in steps.items():
        wanted = ("select",) if name == "select" else ("serve", "simulate")
        if keys.get("action") not in wanted:
            told = f"{script.configs}/{name}.yaml: action={keys.get('action')}"
            raise UserError(f"{told}: must be {' or '.join(wanted)}.")
    strategy = steps["select"].get("strategy", "random")
    if strategy in READS_SCORES:
        told = f"strategy={strategy} in select.yaml"
        if script.method in OFFLINE:
            raise UserError(f"{told}: method={script.method} trains no reward model to read.")
        if strategy == "disagreement" and keys_of(script, "reward").get("ensemble", 1) < 2:
            raise UserError(f"{told}: set ensemble: 5 or so in reward.yaml, or nothing disagrees.")


def keys_of(script: RoundsArguments, name: str) -> dict[str, Any]:
    """The keys of a step's YAML."""
    return read_yaml(Path(script.configs) / f"{name}.yaml").values


@dataclass
class Loop:
    """What the rounds so far have left.

    Args:
        script: The keys.
        promoted: The policy that was promoted last.
        newest: The policy that the next round begins from.
        reward: The newest reward model that passed its check.
        selections: What was asked.
        answers: Feedback runs with the answers.
        done: Folders of steps that hold.
    """

    script: RoundsArguments
    promoted: str
    newest: str
    number: int = 0
    reward: str | None = None
    selections: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    done: set[Path] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        """The folder of the round."""
        return Path(self.script.output_dir) / f"round-{self.number}"

    def step(self, config: str, label: str = "", **keys: Any) -> Stage:
        """Carry a step out, or keep it where it is finished and holds."""
        label = label or config
        keys["output_dir"] = str(self.folder / label)
        if "seed" in (own := keys_of(self.script, config)):
            keys["seed"] = own["seed"] + self.number - 1
        stage = Stage(label, Path(self.script.configs) / f"{config}.yaml", RUNS_ROOT, keys)
        self.done.add(stage.folder)
        after = [path for path in steps_of(self.script) if path not in self.done]
        carry_out(stage, f"round {self.number}", after)
        return stage

    def ask(self, names: list[str], number: int, prefix: str = "", **keys: Any) -> list[str]:
        """Choose pairs of one or two policies and have the raters compare them.

        A pair belongs to a rater by its hash, so that what comes again is asked of the same one.
        """
        asked = {"names": names, "num_items": number, "asked": self.selections}
        selected = self.step("select", f"{prefix}select", **asked, **keys)
        of_rater: dict[str, list[Any]] = {name: [] for name in self.script.raters}
        for item in read_jsonl(selected.folder / "final/items.jsonl"):
            draw = random.Random(f"rater {item['id']}")
            names, shares = [*of_rater], [*self.script.raters.values()]
            of_rater[draw.choices(names, shares)[0]].append(item)
        answers = []
        for name, items in of_rater.items():
            if items:  # other ones are another file, so that answers to these no longer hold
                word = sha256(json.dumps(items).encode()).hexdigest()[:8]
                path = self.folder / f"{prefix}{name}-{word}.jsonl"
                write_jsonl(path, items)
                own = keys_of(self.script, name).get("action") == "serve"
                counted = {"num_answers": len(items)} if own else {}
                stage = self.step(name, f"{prefix}{name}", items=str(path), **counted)
                answers.append(str(stage.folder))
        self.selections.append(str(selected.folder))
        self.answers += answers
        return answers

    def train(self) -> Stage:
        """Train the reward model, which is checked, and the policy; or the policy alone.

        Raises:
            FaultError: The reward model is at fault.
        """
        method, data = (
            self.script.method,
            [{"path": one} for one in self.answers if is_learned(one)],
        )
        if not data:
            raise UserError(f"{self.folder}: no answer is left to learn from; ask for more.")
        keys: dict[str, Any] = {"model_name_or_path": self.newest}
        if method in OFFLINE:
            return self.step(method, **keys, datasets=data)
        reward = str(self.step("reward", datasets=data).folder)
        given = keys_of(self.script, method)
        others = given.get("reward_funcs", [])
        keys["reward_funcs"] = [reward, *([others] if isinstance(others, str) else others)]
        if given.get("critic") == "model":
            keys["critic_model_name_or_path"] = reward
        policy = self.step(method, **keys)
        self.reward = reward
        return policy

    def evaluate(self, policy: str) -> Stage:
        """Compare the policy with the last promoted one, by the raters or the YAML's judge."""
        keys: dict[str, Any] = {"run": policy, "baseline": self.promoted}
        if number := self.script.gate_answers:
            how = {"strategy": "random", "repeat": 0.0}  # what comes again compares others
            answers = self.ask([policy, self.promoted], number, "gate-", **how)
            path, nobody = self.folder / "gate.jsonl", dict.fromkeys(("reason", "seconds"))
            rows = [row | nobody | {"annotator": "a rater"} for row in rows_of(answers)]
            write_jsonl(path, rows)
            keys |= {
                "judge": [str(path)],
                "dataset_name": f"{self.selections[-1]}/final/items.jsonl",
            }
        return self.step("evaluate", **keys)

    def play(self) -> dict[str, Any]:
        """One round: its numbers, whether the policy is promoted, and the reasons if it is not."""
        self.number, start, before = self.number + 1, self.newest, len(self.answers)
        keys: dict[str, Any] = {}
        own = keys_of(self.script, "select")
        if own.get("strategy") in READS_SCORES and self.reward:
            keys = {"reward_model_name_or_path": self.reward}
        elif own.get("strategy") in READS_SCORES and "reward_model_name_or_path" not in own:
            keys = {"strategy": "random"}  # there are no scores yet
        self.ask([start], self.script.num_answers - self.script.gate_answers, **keys)
        told: dict[str, Any] = {"start": start}
        try:
            policy = self.train()
            told["policy"] = str(policy.folder)
            evaluated = self.evaluate(told["policy"]).summary()
            reasons = reasons_against(evaluated, policy)
            self.newest = self.promoted if is_worse(evaluated, policy) else told["policy"]
        except FaultError as fault:
            evaluated, reasons = {}, [str(fault)]
        if not reasons:
            self.promoted = told["policy"]
        has_reward = self.script.method in ONLINE
        numbers = read_json(self.folder / "reward/summary.json") if has_reward else {}
        numbers |= evaluated
        told |= {key: numbers[key] for key in SHOWN if key in numbers}
        rows, earlier = rows_of(self.answers[before:]), rows_of(self.answers[:before])
        asked = {row["item"] for row in rows}
        again = [row for row in earlier if row["item"] in asked]
        told |= {"num_answers": len(rows), "promoted": not reasons, "reasons": reasons}
        told["hints"] = describe([*again, *rows], {})["hints"]
        write_json(self.folder / "summary.json", told)
        return told


def rows_of(answers: list[str]) -> list[dict[str, Any]]:
    """The rows of feedback runs."""
    return [row for name in answers for row in read_jsonl(Path(name) / ANSWERS)]


def is_learned(answers: str) -> bool:
    """Whether a feedback run has rows to train on; a few answers may all be held out, or ties."""
    return any(file.stem in FEEDBACK_FILES for file in (Path(answers) / "final").glob("*.jsonl"))


def steps_of(script: RoundsArguments) -> list[Path]:
    """Folders of all steps that have begun, in their order."""
    found = Path(script.output_dir).glob("round-*/*/config.yaml")
    begun = [file for file in found if ".old-" not in file.parent.name]
    return [file.parent for file in sorted(begun, key=lambda file: file.stat().st_mtime)]


def verdict(told: dict[str, Any]) -> str:
    """What became of a round's policy."""
    return "promoted" if told["promoted"] else f"not promoted: {'; '.join(told['reasons'])}"


def reasons_against(evaluated: dict[str, Any], policy: Stage) -> list[str]:
    """Why a policy is not promoted; none where it is."""
    reasons, (low, high) = [], evaluated["win_rate_ci95"]
    if low <= 0.5:
        reasons.append(
            f"its win rate over the last promoted policy is {evaluated['win_rate']:.3f} (95 %: "
            f"{low:.3f} to {high:.3f}), which does not lie above 0.5"
        )
    if is_too_costly(policy):
        cost, limit = policy.summary()["cost"], policy.values()["cost_limit"]
        reasons.append(f"its mean cost is {cost:.4g}, and cost_limit={limit:g}")
    return reasons


def is_worse(evaluated: dict[str, Any], policy: Stage) -> bool:
    """Whether the next round goes back to the last promoted policy."""
    return evaluated["win_rate_ci95"][1] < 0.5 or is_too_costly(policy)


def is_too_costly(policy: Stage) -> bool:
    """Whether a policy's mean cost is above its limit and the margin."""
    limit = policy.values().get("cost_limit")
    return limit is not None and policy.summary()["cost"] > limit + COST_MARGIN * abs(limit)


def run(config: Config) -> dict[str, Any]:
    """Play what is left of the rounds.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: by round its answers, accuracy of the reward model in 0..1, win rate in 0..1
        with its interval, KL in nats per completion, and whether it was promoted; and the policy
        that was promoted last.

    Raises:
        UserError: A key or a YAML is wrong, or a step cannot run.
    """
    script: RoundsArguments = config.script
    validate(script)
    root = Path(script.output_dir)
    if script.status:
        print_status(script)
        return read_json(root / "summary.json")
    from recipes.lib.report.page import write_rounds_report

    first = str(script.model_name_or_path)
    loop, rounds = Loop(script, promoted=first, newest=first), {}
    for number in range(1, script.num_rounds + 1):
        rounds[f"round {number}"] = told = loop.play()
        print("\n".join([f"[round {number}] {verdict(told)}", *told["hints"]]), flush=True)
        shown = {name: {key: row.get(key) for key in SHOWN} for name, row in rounds.items()}
        summary = {"promoted": loop.promoted, "num_rounds": number, "rounds": shown}
        write_json(root / "summary.json", summary)
        write_rounds_report(root, rounds)
    return summary


def print_status(script: RoundsArguments) -> None:
    """Print what each step has done so far, and for whose answers the rounds wait."""
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "state", "result", "time", box=None, pad_edge=False)
    waiting = []
    for path in steps_of(script):
        _, result, _, time, state = facts(path)
        keys = read_yaml(path / "config.yaml").values
        if state != "done" and keys.get("action") == "serve":
            from recipes.lib.feedback.project import open_project

            counts = open_project(path, {}, may_begin=False).store.counts()
            state = f"{counts['answers']} of {keys['num_answers']} answers"
            waiting.append(f"Waits for people: {path} has {state}.")
        table.add_row(f"{path.parent.name}/{path.name}", state, result, time)
    console = Console(highlight=False, markup=False)
    console.print(table)
    for path in sorted(Path(script.output_dir).glob("round-*/summary.json")):
        console.print(f"{path.parent.name}: {verdict(read_json(path))}", soft_wrap=True)
    for line in waiting:
        console.print(line, soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("rounds", argv)


if __name__ == "__main__":
    raise SystemExit(main())
