#!/usr/bin/env python3
"""SFT and GRPO of a small LLaVA on pictures of coloured shapes, over seeds.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/pictures.py

Of each seed a model of 0.17 million drawn weights learns to say what 3,800 pictures show, such as
"a red square .": by SFT until it knows, and by SFT that is stopped halfway and then GRPO, whose
reward is 0.5 for the colour and 0.5 for the shape. What was run is kept in runs/pictures.jsonl.
"""

import argparse
import functools
import shutil
import sys
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402

from recipes import grpo, sft  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.runs.files import write_jsonl  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from scripts.bench.environments.classical import table  # noqa: E402
from scripts.bench.kept import kept  # noqa: E402
from tests.helpers.shapes import make_llava, write_pictures  # noqa: E402

COMMAND = "OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/pictures.py"
PAGE, KEPT = ROOT / "docs/benchmarks/pictures.md", ROOT / "runs/pictures.jsonl"
RUNS = ROOT / "runs/pictures"
SEEDS, ROWS, HELD_OUT = (1, 2, 3), 4000, 200
REWARD = '''
def score(prompts, completions, answer, **columns):
    """Half for the colour, half for the shape, nothing for what is no such sentence."""
    said = [one[-1]["content"].split() for one in completions]
    right = [text.split() for text in answer]
    shares = [sum(a == b for a, b in zip(s[1:3], r[1:3])) / 2 for s, r in zip(said, right)]
    return [share * (s[:1] + s[3:] == ["a", "."]) for share, s in zip(shares, said)]
'''
QUIET: dict[str, Any] = {
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "overwrite": True,
}
SFT: dict[str, Any] = {
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 32,
    "lr_scheduler_type": "linear",
    "warmup_steps": 10,
    "num_train_epochs": 10,
    "test_fraction": 0,
    "num_samples": 0,
}
HALF: dict[str, Any] = {"num_train_epochs": 1.0}
GRPO: dict[str, Any] = {
    "learning_rate": 3e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 10,
    "per_device_train_batch_size": 128,
    "num_generations": 8,
    "max_completion_length": 6,
    "max_steps": 400,
    "temperature": 1.0,
}
PAGE_TEXT = """# Pictures

{conditions}

A LLaVA of 0.17 million drawn weights on 24 by 24 pixels; {rows} pictures are learned, 200 others
asked by greedy decoding. `right`: colour and shape. GRPO goes on from `SFT, stopped`.

{table}
"""


def right(folder: Path, rows: list[dict[str, Any]], place: Path) -> float:
    """Share of rows that a model answers as they are answered."""
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor.tokenizer.padding_side, found = "left", 0
    for start in range(0, len(rows), 50):
        some = rows[start : start + 50]
        asked = [{"type": "image"}, {"type": "text", "text": "what is this ?"}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": asked}], add_generation_prompt=True
        )
        images = [Image.open(place / row["images"][0]) for row in some]
        batch = processor(images=images, text=[text] * len(some), return_tensors="pt", padding=True)
        with torch.inference_mode():
            said = model.generate(**batch, max_new_tokens=6, do_sample=False)
        told = processor.tokenizer.batch_decode(
            said[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        expected = [row["completion"][0]["content"] for row in some]
        found += sum(a.strip() == b for a, b in zip(told, expected, strict=True))
    return found / len(rows)


def measure(seed: int) -> dict[str, Any]:
    """SFT whole, SFT stopped and GRPO: the share that is right, and seconds."""
    folder = RUNS / f"seed-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = write_pictures(folder, ROWS, seed)
    known, held_out = rows[:-HELD_OUT], rows[-HELD_OUT:]
    write_jsonl(folder / "sft.jsonl", known)
    prompts = [
        {"images": r["images"], "prompt": r["prompt"], "answer": r["completion"][0]["content"]}
        for r in known
    ]
    write_jsonl(folder / "prompts.jsonl", prompts)
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    make_llava(folder / "drawn", seed)
    own = QUIET | {"seed": seed, "dataset_name": str(folder / "sft.jsonl")}
    own["model_name_or_path"] = str(folder / "drawn")
    found: dict[str, Any] = {"drawn": [right(folder / "drawn", held_out, folder), 0.0]}
    for name, keys in (("SFT", SFT), ("SFT, stopped", SFT | HALF)):
        run = folder / name.replace(", ", "-")
        done = sft.run(parse("sft", [], own | keys | {"output_dir": str(run)}))
        found[name] = [right(run / "final", held_out, folder), done["seconds"]]
    own |= {"model_name_or_path": str(folder / "SFT-stopped"), "output_dir": str(folder / "GRPO")}
    own |= {"dataset_name": str(folder / "prompts.jsonl")}
    own["reward_funcs"] = [f"{folder / 'rewards.py'}:score"]
    done = grpo.run(parse("grpo", [], own | GRPO))
    found["GRPO"] = [right(folder / "GRPO/final", held_out, folder), done["seconds"]]
    return found


def main() -> int:
    """Runs all seeds and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+", help="these alone, and no page")
    given = parser.parse_args()
    hush()
    seeds = given.seeds or SEEDS
    found = {seed: kept(KEPT, [seed], functools.partial(measure, seed)) for seed in seeds}
    lines = []
    for name in next(iter(found.values())):
        shares, seconds = zip(*(one[name] for one in found.values()), strict=True)
        lines.append([name, *(f"{one:.3f}" for one in shares), f"{mean(seconds):.0f}"])
    heads = ["model", *(f"right, seed {seed}" for seed in seeds), "seconds"]
    shown = table(heads, lines)
    print(shown)
    if given.seeds is None:
        text = PAGE_TEXT.format(
            conditions=conditions(COMMAND), rows=f"{ROWS - HELD_OUT:,}", table=shown
        )
        PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
