#!/usr/bin/env python3
"""Exports to GGUF, read by llama.cpp; prints the section of docs/benchmarks/export.md.

Run it with the environment's Python, where llama-cpp-python and the extra `gguf` are installed:
`.venv/bin/python scripts/bench/export/gguf_in_llama_cpp.py [FOLDER ...]`. Folders
are models to take besides the quickstart's base and random models of each class; it takes some
minutes on two cores.
"""

import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes import export  # noqa: E402
from recipes.lib.publishing.readback import sample_texts  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from tests.helpers.gguf_models import CLASSES, save  # noqa: E402

NUM_PROMPTS = 64
NEW_TOKENS = 48
BASE = ROOT / "recipes/lib/tasks/tales/trained"


def load(model: Path, adapter: Path | None = None) -> Any:
    """A file as llama.cpp loads it."""
    from llama_cpp import Llama

    lora = None if adapter is None else str(adapter)
    return Llama(str(model), lora_path=lora, n_ctx=256, n_batch=256, verbose=False)


def same_tokens(llama: Any, tokenizer: Any, texts: list[str]) -> float:
    """Share of texts that llama.cpp splits as the tokenizer does, special tokens put in front."""
    same = 0
    for text in texts:
        ids = llama.tokenize(text.encode(), add_bos=True, special=True)
        same += ids == tokenizer(text)["input_ids"]
    return same / len(texts)


def greedy(llama: Any, ids: list[int], ends: set[int]) -> list[int]:
    """The greedy completion of llama.cpp."""
    said: list[int] = []
    llama.reset()
    for token in llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
        said.append(token)
        if token in ends or len(said) == NEW_TOKENS:
            break
    return said


def same_greedy(llama: Any, model: Any, prompts: list[list[int]], ends: set[int]) -> float:
    """Share of prompts that both complete alike, token by token."""
    import torch

    same = 0
    for ids in prompts:
        said = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=list(ends)
        )
        same += said[0, len(ids) :].tolist() == greedy(llama, ids, ends)
    return same / len(prompts)


def prompts_of(tokenizer: Any) -> list[list[int]]:
    """Token ids of 64 prompts out of the sample texts."""
    rows = [tokenizer(text)["input_ids"][:24] for text in sample_texts() if text.strip()]
    return [row for row in rows if len(row) > 1][:: len(rows) // NUM_PROMPTS][:NUM_PROMPTS]


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Export a model in each format and compare each file with it.

    Args:
        name: The model's folder.
        folder: Where the exports go.

    Returns:
        By outtype: shares of the same tokens and greedy texts, KL, and the size in bytes.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(name, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(name)
    found = {}
    for outtype in ("f32", "f16", "q8_0"):
        out = folder / outtype
        keys = {"run": name, "outtype": outtype, "output_dir": str(out)}
        summary = export.run(parse("export", [], keys))
        llama = load(out / "model.gguf")
        found[outtype] = {
            "tokens": same_tokens(llama, tokenizer, sample_texts()),
            "greedy": same_greedy(llama, model, prompts_of(tokenizer), {tokenizer.eos_token_id}),
            "kl": summary["kl_per_token"],
            "bytes": (out / "model.gguf").stat().st_size,
        }
    return found


def measure_adapter(folder: Path) -> float:
    """Share of greedy texts that an adapter on its base and its two files say alike."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.helpers import tiny

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32").eval()
    config = LoraConfig(task_type="CAUSAL_LM", r=4, use_rslora=True, target_modules="all-linear")
    adapted = get_peft_model(base, config).eval()
    tiny.shake(adapted, 0.1)
    adapted.save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    for run, to in ((str(BASE), "gguf"), (str(folder / "adapter"), "gguf-adapter")):
        keys = {"run": run, "to": to, "output_dir": str(folder / to)}
        export.run(parse("export", [], keys | ({"outtype": "f32"} if to == "gguf" else {})))
    llama = load(folder / "gguf/model.gguf", folder / "gguf-adapter/adapter.gguf")
    return same_greedy(llama, adapted, prompts_of(tokenizer), {tokenizer.eos_token_id})


def main() -> int:
    """Measure and print."""
    hush()
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        models = {Path(name).name: name for name in sys.argv[1:]}
        models |= {"the quickstart's base": str(BASE)}
        models |= {f"random {name}": save(work / "models" / name, name) for name in CLASSES}
        for name, path in models.items():
            for outtype, one in measure(path, work / name.replace(" ", "-")).items():
                rows.append(
                    f"| {name} | {outtype} | {one['bytes'] / 1e6:,.1f} MB | {one['tokens']:.1%} | "
                    f"{one['greedy']:.1%} | {one['kl']:.1e} |"
                )
        notes.append(f"A LoRA adapter (rsLoRA) as a file of its own: {measure_adapter(work):.1%}.")
    print("\n## GGUF\n")
    version = metadata.version("llama_cpp_python")
    print(conditions(".venv/bin/python scripts/bench/export/gguf_in_llama_cpp.py FOLDER ..."))
    print(f"- llama-cpp-python {version}, gguf {metadata.version('gguf')}\n")
    print("| model | numbers | size | same tokens | same greedy text | KL, nats a token |")
    print("|---|---|---|---|---|---|")
    print("\n".join([*rows, "", *notes]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
