"""Twelve planted faults of reward models, and healthy ones: what does `rlhf check` say of each?

Trains small reward models on the tales of the quickstart (messages; base: the trained model that
comes with the project) and on sentence_polarity_pairs (plain text; base: stories260K), plants a
fault in the labels, the training, the scoring or the saved files, and asks the doctor. What was
done stands in a file of rows, so that it goes on where it was stopped.

    python scripts/bench/doctor/planted.py --work WORK --task tales --seeds 11 12
    python scripts/bench/doctor/planted.py --work WORK --page docs/benchmarks/doctor.md
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from safetensors.torch import load_file, save_file  # noqa: E402

from recipes.lib.doctor.checkup import check_up, look  # noqa: E402
from recipes.lib.doctor.subject import Subject, examine  # noqa: E402
from recipes.lib.evaluation.calibration import wilson  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.runs.files import append_jsonl, read_jsonl, write_jsonl  # noqa: E402
from recipes.lib.tasks.tales.gold import gold_score  # noqa: E402
from recipes.lib.tasks.tales.prompts import draw_facts, request  # noqa: E402
from recipes.lib.tasks.tales.stories import TELLER, tell  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from recipes.reward import run  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402

SHARED = ROOT.parent / "shared"
BASES = {
    "tales": ROOT / "recipes/lib/tasks/tales/trained",
    "polarity": SHARED / "models/stories260K",
}
NUM_TRAIN, NUM_TEST = 1500, 256
# A model whose padding is its end token never reads one, and can then not miss it.
OWN_KEYS = {"tales": {}, "polarity": {"pad_token": "<unk>"}}
FIRST_SEED = 14  # that no limit was set by
# Of another training; the polarity model's own, where its rows are messages, is the second one.
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}<|end|>"
SAID_ALONE = "{% for m in messages if m['role'] == 'assistant' %}{{ m['content'] }}{% endfor %}"
OWN_TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
# What the doctor should call each fault. Another name for the same place is right, too.
NAMES = {
    "random head": {"random_head", "recorded_scores"},
    "30 % swapped": {"wrong_labels"},
    "length only": {"length_only"},
    "left padding": {"left_padding"},
    "last column": {"last_column"},
    "another template": {"template"},
    "no EOS": {"no_eos"},
    "prompt ignored": {"prompt_ignored"},
    "leaked rows": {"leaked_rows"},
    "near duplicates": {"near_duplicates"},
    "head not saved": {"head_not_saved"},
    "heads mixed up": {"heads_mixed_up"},
}
Row = dict[str, Any]


def pairs(task: str, seed: int) -> tuple[list[Row], list[Row]]:
    """Training and test pairs of a task."""
    rng, number = random.Random(f"{task} {seed}"), NUM_TRAIN + NUM_TEST
    if task == "polarity":
        every = read_jsonl(SHARED / "data/preference/sentence_polarity_pairs.jsonl")
        rows = rng.sample(every, number)
        return rows[:NUM_TRAIN], rows[NUM_TRAIN:]
    rows = []
    for facts in draw_facts("feedback", number, seed):
        asked = request(facts, rng)
        told = [tell(facts, TELLER, rng).text for _ in range(2)]
        told.sort(key=lambda text: gold_score(asked, text), reverse=True)
        said = [[{"role": "assistant", "content": text}] for text in told]
        prompt = [{"role": "user", "content": asked}]
        rows.append({"prompt": prompt, "chosen": said[0], "rejected": said[1]})
    return rows[:NUM_TRAIN], rows[NUM_TRAIN:]


def text_of(said: Any) -> str:
    """The words of a completion."""
    return said if isinstance(said, str) else str(said[-1]["content"])


def with_words(said: Any, words: str) -> Any:
    """The same with other words."""
    return words if isinstance(said, str) else [{"role": "assistant", "content": words}]


def spoken(row: Row) -> Row:
    """A pair of plain text as messages."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {key: [{"role": role, "content": row[key]}] for key, role in roles.items()}


def turned(row: Row) -> Row:
    """A pair the other way round."""
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


def by_length(row: Row) -> Row:
    """The longer text is the better one."""
    return row if len(text_of(row["chosen"])) >= len(text_of(row["rejected"])) else turned(row)


def nearly(row: Row, rng: random.Random) -> Row:
    """A pair with a word of each side changed."""
    sides = {}
    for side in ("chosen", "rejected"):
        words = text_of(row[side]).split()
        words[rng.randrange(len(words))] = "really"
        sides[side] = with_words(row[side], " ".join(words))
    return row | sides


class Workshop:
    """One seed of one task: its rows, and the models that were trained on them."""

    def __init__(self, work: Path, task: str, seed: int) -> None:
        self.task, self.seed = task, seed
        self.folder = work / f"{task}-{seed}"
        self.train, self.test = pairs(task, seed)
        self.rng = random.Random(seed)

    def trained(self, name: str, train: list[Row], test: list[Row], **keys: Any) -> Path:
        """A run; one that is there is not trained again."""
        target = self.folder / name
        if (target / "summary.json").is_file():
            return target
        shutil.rmtree(target, ignore_errors=True)
        files = self.folder / f"{name}-rows"
        files.mkdir(parents=True, exist_ok=True)
        write_jsonl(files / "train.jsonl", train)
        write_jsonl(files / "test.jsonl", test)
        values: Row = {
            "model_name_or_path": str(BASES[self.task]),
            "dataset_name": str(files),
            "output_dir": str(target),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 16,
            "learning_rate": 1e-3,
            "max_length": 256,
            "dtype": "float32",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "save_strategy": "no",
            "eval_strategy": "no",
            "logging_steps": 20,
            "skip_check": True,  # it is asked below
            "seed": self.seed,
        }
        run(parse("reward", [], values | OWN_KEYS[self.task] | keys))
        return target

    def healthy(self) -> Path:
        """A run with nothing wrong."""
        return self.trained("healthy", self.train, self.test)

    def copy(self, name: str) -> Path:
        """A copy of the healthy run, to be damaged."""
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.healthy(), target)
        return target

    def subject(self, run_folder: Path, train: list[Row], test: list[Row]) -> Subject:
        """A run with rows that are none of its own."""
        from datasets import Dataset

        return examine(str(run_folder), (Dataset.from_list(train), Dataset.from_list(test)))


def random_head(shop: Workshop) -> Row:
    """The head is drawn anew."""
    folder = shop.copy("random-head")
    file = folder / "final/model.safetensors"
    weights = load_file(file)
    torch.manual_seed(shop.seed + 1)
    weights["score.weight"] = torch.randn_like(weights["score.weight"]) * 0.02
    save_file(weights, file, {"format": "pt"})
    return look(str(folder))


def swapped(shop: Workshop) -> Row:
    """Of all pairs 30 % are labelled the wrong way round."""
    rng = random.Random(shop.seed)
    train, test = ([turned(r) if rng.random() < 0.3 else r for r in rows]
                   for rows in (shop.train, shop.test))  # fmt: skip
    return look(str(shop.trained("swapped", train, test)))


def length_only(shop: Workshop) -> Row:
    """The longer one was labelled the better one, in training alone."""
    train = [by_length(row) for row in shop.train]
    return look(str(shop.trained("length", train, shop.test)))


def left_padding(shop: Workshop) -> Row:
    """Rows are padded on the left, and the mask does not reach the model."""
    subject = examine(str(shop.healthy()))
    subject.scorer.tokenizer.padding_side = "left"
    forward = subject.scorer.model.forward
    subject.scorer.model.forward = lambda input_ids, **_: forward(input_ids=input_ids)
    return check_up(subject)


def last_column(shop: Workshop) -> Row:
    """The files name another token as padding, so that the last column is read."""
    folder = shop.copy("last-column")
    file = folder / "final/config.json"
    config = json.loads(file.read_text())
    config["pad_token_id"] = config["pad_token_id"] + 5
    file.write_text(json.dumps(config))
    return look(str(folder))


def another_template(shop: Workshop) -> Row:
    """The chat template is not that of the training; plain text, which needs none, as messages."""
    if shop.task == "polarity":
        rows = [[spoken(row) for row in some] for some in (shop.train, shop.test)]
        folder = shop.trained("template", *rows, chat_template=OWN_TEMPLATE)
    else:
        folder = shop.copy("template")
    (folder / "final/chat_template.jinja").write_text(TEMPLATE)
    return look(str(folder))


def without_eos(shop: Workshop) -> Row:
    """Trained on rows without their end token."""
    import recipes.reward as recipe

    make = recipe.make_trainer

    def without(config: Any, rows: Any) -> Any:
        trainer = make(config, rows)

        def cut(row: Row) -> Row:
            end = trainer.processing_class.eos_token_id
            return {key: ids[:-1] if ids[-1] == end else ids
                    for key in ("chosen_ids", "rejected_ids") for ids in [row[key]]}  # fmt: skip

        trainer.train_dataset = trainer.train_dataset.map(cut)
        return trainer

    recipe.make_trainer = without
    try:
        folder = shop.trained("no-eos", shop.train, shop.test)
    finally:
        recipe.make_trainer = make
    return look(str(folder))


def prompt_ignored(shop: Workshop) -> Row:
    """The chat template leaves the user's turns out."""
    rows = [shop.train, shop.test]
    if shop.task == "polarity":
        rows = [[spoken(row) for row in some] for some in rows]
    return look(str(shop.trained("no-prompt", *rows, chat_template=SAID_ALONE)))


def leaked(shop: Workshop) -> Row:
    """Half the test rows are training rows, in other case."""
    again = [row | {side: with_words(row[side], text_of(row[side]).upper())
                    for side in ("chosen", "rejected")}
             for row in shop.test[::2]]  # fmt: skip
    return look(str(shop.trained("leaked", shop.train + again, shop.test)))


def near_duplicates(shop: Workshop) -> Row:
    """Half the test rows are training rows but for a word."""
    again = [nearly(row, shop.rng) for row in shop.test[::2]]
    return look(str(shop.trained("near", shop.train + again, shop.test)))


def head_not_saved(shop: Workshop) -> Row:
    """The files hold no head."""
    folder = shop.copy("no-head")
    file = folder / "final/model.safetensors"
    weights = load_file(file)
    del weights["score.weight"]
    save_file(weights, file, {"format": "pt"})
    return look(str(folder))


def heads_mixed_up(shop: Workshop) -> Row:
    """The head is that of another run, which was trained from another seed."""
    other = shop.trained("other", shop.train, shop.test, seed=shop.seed + 100)
    folder = shop.copy("mixed")
    file = folder / "final/model.safetensors"
    weights = load_file(file)
    weights["score.weight"] = load_file(other / "final/model.safetensors")["score.weight"]
    save_file(weights, file, {"format": "pt"})
    return look(str(folder))


FAULTS: dict[str, Callable[[Workshop], Row]] = {
    "random head": random_head,
    "left padding": left_padding,
    "last column": last_column,
    "another template": another_template,
    "prompt ignored": prompt_ignored,
    "head not saved": head_not_saved,
    "30 % swapped": swapped,
    "length only": length_only,
    "no EOS": without_eos,
    "leaked rows": leaked,
    "near duplicates": near_duplicates,
    "heads mixed up": heads_mixed_up,
}


def healthy(shop: Workshop) -> Row:
    """Nothing is wrong."""
    return look(str(shop.healthy()))


def examine_all(work: Path, task: str, seeds: list[int], only: list[str]) -> None:
    """Ask the doctor about what is not done yet, and write a row each."""
    file = work / "rows.jsonl"
    done = {(row["task"], row["seed"], row["fault"]) for row in kept(file)}
    for seed in seeds:
        shop = Workshop(work, task, seed)
        for fault, plant in {"healthy": healthy, **FAULTS}.items():
            if (task, seed, fault) in done or (only and fault not in only):
                continue
            start = time.monotonic()
            report = plant(shop)
            row = {"task": task, "seed": seed, "fault": fault}
            row |= {"seconds": round(time.monotonic() - start, 1), "report": report}
            append_jsonl(file, [row])
            faults = [one["name"] for one in report["findings"] if one["status"] == "fault"]
            print(task, seed, fault, faults, row["seconds"], report["seconds"], flush=True)


def kept(file: Path) -> list[Row]:
    """Rows of before."""
    return read_jsonl(file) if file.is_file() else []


def first_fault(row: Row) -> str:
    """What the doctor says first."""
    faults = [one["name"] for one in row["report"]["findings"] if one["status"] == "fault"]
    return faults[0] if faults else "none"


def page(work: Path) -> str:
    """The benchmark's page from all rows."""
    rows = [row for row in kept(work / "rows.jsonl") if row["seed"] >= FIRST_SEED]
    seeds = {task: sorted({r["seed"] for r in rows if r["task"] == task}) for task in BASES}
    ran = "; ".join(f"{task}: {', '.join(map(str, found))}" for task, found in seeds.items())
    lines = [
        "# Planted faults",
        "",
        "How [rlhf check](../reward-checks.md) names what is wrong with a reward model and leaves",
        "healthy ones alone.",
        f"Reward models of {NUM_TRAIN:,} pairs and {NUM_TEST} test pairs, on tales (base: the",
        "quickstart's trained model, 0.8M parameters, messages) and on sentence_polarity_pairs",
        "(base: stories260K, plain text). Of 1,500 labels with 30 % turned round there is as much",
        "to learn as of 240 right ones, (1 - 2 * 0.3)^2 of them. Where that teaches nothing the",
        "doctor says so first: no check can tell such labels from a task that is too hard.",
        f"Seeds below {FIRST_SEED} were looked at while limits were set, and are left out.",
        "",
        conditions("python scripts/bench/doctor/planted.py --work WORK --task TASK --seeds ..."),
        f"- seeds that ran: {ran}",
        "",
        "## Faults",
        "",
        "Named means that the first fault of the report, the diagnosis, is the planted one.",
        "",
        "| planted | task | named | first fault of each seed |",
        "|---|---|---|---|",
    ]
    for fault in FAULTS:
        for task in BASES:
            said = [first_fault(r) for r in rows if (r["fault"], r["task"]) == (fault, task)]
            if said:
                right = sum(name in NAMES[fault] for name in said)
                lines.append(f"| {fault} | {task} | {right}/{len(said)} | {', '.join(said)} |")
    well = [row for row in rows if row["fault"] == "healthy"]
    alarms = sum(first_fault(row) != "none" for row in well)
    low, high = wilson(alarms, len(well)) if well else (0.0, 1.0)
    times = [row["report"]["seconds"] for row in well]
    lines += [
        "",
        "## Healthy models",
        "",
        f"{alarms} alarms in {len(well)} models; 95 % interval of their rate {low:.2f} to "
        f"{high:.2f}.",
        f"A check took {min(times, default=0):.1f} to {max(times, default=0):.1f} s on one core.",
        "",
        "| check | limit | tales | polarity | remarks |",
        "|---|---|---|---|---|",
    ]
    numbers: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    remarks: dict[str, int] = defaultdict(int)
    for row in well:
        for one in row["report"]["findings"]:
            if one.get("statistic") is not None:
                numbers[one["name"]][row["task"]].append(one["statistic"])
                remarks[one["name"]] += one["status"] == "remark"
    limits = {one["name"]: one["limit"] for row in well for one in row["report"]["findings"]
              if "limit" in one}  # fmt: skip
    for name, found in numbers.items():
        ranges = [span(found.get(task, [])) for task in BASES]
        told = f"{remarks[name]}/{len(well)}"
        lines.append(f"| {name} | {limits[name]:.3g} | {' | '.join(ranges)} | {told} |")
    return "\n".join(lines) + "\n"


def span(values: list[float]) -> str:
    """Least and largest."""
    return f"{min(values):.2g} to {max(values):.2g}" if values else ""


def main() -> int:
    """Run what is asked for, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--task", choices=BASES, default="tales")
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    hush()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.seeds:
        examine_all(given.work, given.task, given.seeds, given.only)
    if given.page:
        given.page.write_text(page(given.work), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
