#!/usr/bin/env python3
"""What faster products and the own decode loop bring on a CPU, side by side; writes a page.

`.venv/bin/python scripts/bench/speed/cpu.py [--quickstart RUN]` writes docs/benchmarks/cpu.md in
some minutes. RUN is a finished quickstart, whose tales end at different lengths. --products prints
the first table alone, for the page of another processor.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  the paths above come first
from torch.nn import functional  # noqa: E402

from recipes.lib.data.prompts import prompt_token_ids  # noqa: E402
from recipes.lib.generation.decoder import Decoder  # noqa: E402
from recipes.lib.generation.sampling import Decoding, episode_uniforms, generate, pad_left  # noqa: E402
from recipes.lib.models.cpu_linear import CpuLinear, use_fast_products  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402
from scripts.bench.speed.speed_task import LORA, prompts, write_models  # noqa: E402

PAGE = ROOT / "docs/benchmarks/cpu.md"
REPEATS = 5
SIZES = ((32, 256, 768), (512, 256, 768), (512, 768, 256), (384, 256, 4096), (2048, 512, 1376))
NUM_TALES, TALE_TOKENS = 512, 72


def timed(*ways: Callable[[], Any]) -> list[list[float]]:
    """Seconds of several ways, alternating, the first round left out."""
    seconds: list[list[float]] = [[] for _ in ways]
    for round_ in range(REPEATS + 1):
        for way, said in zip(ways, seconds, strict=True):
            start = time.perf_counter()
            way()
            if round_:
                said.append(time.perf_counter() - start)
    return seconds


def spread(seconds: list[float], unit: float = 1.0, digits: int = 2) -> str:
    """Mean and standard deviation in a unit."""
    values = [s * unit for s in seconds]
    return f"{mean(values):.{digits}f} +- {stdev(values):.{digits}f}"


def product_rows() -> list[str]:
    """Forward and backward pass of one layer, by its sizes."""
    rows = []
    for tokens, inputs, outputs in SIZES:
        x = torch.randn(tokens, inputs, requires_grad=True)
        layer = CpuLinear(inputs, outputs, bias=False)
        gradient = torch.randn(tokens, outputs)

        def plain() -> None:
            for _ in range(10):
                functional.linear(x, layer.weight).backward(gradient)  # noqa: B023

        def fast() -> None:
            for _ in range(10):
                layer(x).backward(gradient)  # noqa: B023

        mkl, onednn = timed(plain, fast)
        size = f"{tokens} x {inputs} x {outputs}"
        ratio = mean(onednn) / mean(mkl)
        rows.append(f"| {size} | {spread(mkl, 100)} | {spread(onednn, 100)} | {ratio:.2f} |")
    return rows


def iteration(folder: str, critic: str, products: str) -> dict[str, Any]:
    """One run of PPO in a process of its own."""
    script = Path(__file__).parent / "speed_ours.py"
    out = subprocess.run(
        [sys.executable, str(script), folder, critic, products],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(out.stdout.strip().splitlines()[-1])
    return found


def iteration_rows(folder: str) -> list[str]:
    """Iterations of PPO with each critic, alternating."""
    rows = []
    for critic in ("head", "adapter"):
        runs: dict[str, list[dict[str, Any]]] = {"mkl": [], "fast": []}
        for _ in range(REPEATS):
            for products, found in runs.items():
                found.append(iteration(folder, critic, products))
        whole = {
            way: [sum(run["seconds"].values()) for run in found] for way, found in runs.items()
        }
        for products, name in (("mkl", "MKL"), ("fast", "oneDNN")):
            ratios = [a / b for a, b in zip(whole[products], whole["mkl"], strict=True)]
            found = [run["memory"] for run in runs[products]]
            memory = [one["peak"] - one["imports"] for one in found]
            rows.append(
                f"| {critic} | {name} | {spread(whole[products])} | {spread(ratios)} "
                f"| {spread(memory)} |"
            )
    return rows


def sampler_row(name: str, model: Any, rows: list[list[int]], decoding: Decoding) -> str:
    """Generate and the own loop on the same prompts with the same noise."""
    ids, mask = pad_left(rows, decoding.pad_token_id, "cpu")
    noise = episode_uniforms(0, range(len(rows)), decoding.max_new_tokens)
    decoder = Decoder(model, decoding, len(rows), ids.shape[1] + decoding.max_new_tokens)
    own_ids, own_mask = decoder.sample(ids, mask, noise)
    if not torch.equal(own_ids, generate(model, ids, mask, noise, decoding)[0]):
        raise RuntimeError(f"{name}: the samplers say different things")
    tokens = int(own_mask.sum())
    reference, own = timed(
        lambda: generate(model, ids, mask, noise, decoding),
        lambda: decoder.sample(ids, mask, noise),
    )
    lengths = f"{tokens / len(rows):.0f} of {own_mask.shape[1]}"
    ratio = mean(own) / mean(reference)
    return (
        f"| {name} | {lengths} | {spread(reference)} | {spread(own)} | {ratio:.2f} "
        f"| {tokens / mean(own):,.0f} |"
    )


def sampler_rows(folder: Path, quickstart: str | None) -> list[str]:
    """Samplers on a model that never ends, and on one that does."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "policy")
    model = get_peft_model(model, LoraConfig(**LORA)).get_base_model()
    use_fast_products(model)
    name = "7M parameters, LoRA 16, 32 rows"
    rows = [sampler_row(name, model, prompts(), Decoding(48, 1.0, 1, 0))]
    if quickstart is not None:
        trained = Path(quickstart) / "sft/final"
        model = AutoModelForCausalLM.from_pretrained(trained).eval()
        use_fast_products(model)
        tokenizer = AutoTokenizer.from_pretrained(trained)
        data = Path(quickstart) / "base/data/feedback_prompts.jsonl"
        lines = data.read_text(encoding="utf-8").splitlines()[:NUM_TALES]
        tales = [prompt_token_ids(tokenizer, json.loads(line)["prompt"]) for line in lines]
        decoding = Decoding(TALE_TOKENS, 1.0, tokenizer.eos_token_id, tokenizer.pad_token_id)
        rows.append(sampler_row(f"tales, {len(tales)} rows", model, tales, decoding))
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quickstart", help="a finished quickstart, such as runs/quickstart")
    parser.add_argument("--products", action="store_true", help="print the first table alone")
    args = parser.parse_args()
    hush()
    if args.products:
        print(
            f"PyTorch's capability: {torch.backends.cpu.get_cpu_capability()}",
            *product_rows(),
            sep="\n",
        )
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder)
        text = "\n".join(
            [
                "# On a CPU",
                "",
                conditions(
                    ".venv/bin/python scripts/bench/speed/cpu.py --quickstart runs/quickstart"
                ),
                "",
                "## Products",
                "",
                "Forward and backward pass of one linear layer in fp32 with both gradients,",
                f"milliseconds, tokens x inputs x outputs; alternating, {REPEATS} repeats of ten.",
                "MKL is what PyTorch takes; oneDNN is what the recipes take on processors of AMD",
                "with AVX-512 (`recipes/lib/models/cpu_linear.py`).",
                "",
                "| size | MKL | oneDNN | ratio |",
                "|---|---|---|---|",
                *product_rows(),
                "",
                "## An iteration of PPO",
                "",
                "The task of [speed.md](speed.md): seconds of an iteration, the ratio to the run",
                f"with MKL beside it, and memory above the imports in GiB; {REPEATS} runs each,",
                "alternating.",
                "",
                "| critic | products | seconds | ratio | GiB |",
                "|---|---|---|---|---|",
                *iteration_rows(temporary),
                "",
                "## Samplers",
                "",
                "`sampler: transformers` and `sampler: graph` (uncaptured on a CPU) on the same",
                "prompts with the same noise, which gave the same tokens. Seconds; tokens are the",
                "mean length of a completion and the greatest.",
                "",
                "| model | tokens | transformers | graph | ratio | tokens/s of graph |",
                "|---|---|---|---|---|---|",
                *sampler_rows(folder, args.quickstart),
            ]
        )
    print(text)
    PAGE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
