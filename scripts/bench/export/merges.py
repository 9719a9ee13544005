#!/usr/bin/env python3
"""How far merged models are from the trained ones, and what merging the shape of a 1B model takes.

    .venv/bin/python scripts/bench/export/merges.py table ../shared/models/stories260K PROMPTS.jsonl
    .venv/bin/python scripts/bench/export/merges.py large ../shared/models/stories260K

KL in nats a token from the unmerged model, over the tokens of its own greedy texts of 48 tokens;
`stored` is the KL that rounding the merged fp32 model to the number format costs by itself.
Adapters are random.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from trl import ModelConfig  # noqa: E402

from recipes.lib.models.adapter_folders import save_base_quantization  # noqa: E402
from recipes.lib.models.policies import load_policy  # noqa: E402
from recipes.lib.models.tokenizers import load_tokenizer  # noqa: E402
from recipes.lib.publishing import comparison  # noqa: E402
from recipes.lib.publishing.merge import Merge  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {"target_modules": LINEAR},
    "rsLoRA": {"target_modules": LINEAR, "use_rslora": True},
    "DoRA": {"target_modules": LINEAR, "use_dora": True},
    "LoRA on embeddings": {"target_modules": [*LINEAR, "embed_tokens"]},
    "LoRA, head saved": {"target_modules": LINEAR, "modules_to_save": ["lm_head"]},
}
BASES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "4-bit": {"dtype": "float32", "load_in_4bit": True},
    "8-bit": {"dtype": "float32", "load_in_8bit": True},
}


def make_adapter(model: str, kind: str, base: str, folder: Path, seed: int) -> None:
    """An adapter with random weights on a base."""
    args = ModelConfig(model_name_or_path=model, **BASES[base])
    config = LoraConfig(task_type="CAUSAL_LM", r=8, **KINDS[kind])
    adapted = get_peft_model(load_policy(args), config)
    torch.manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "lora" in name:
            parameter.data += 0.02 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    save_base_quantization(adapted, folder)
    load_tokenizer(model).save_pretrained(folder)


def stored_kl(trained: Merge, dtype: str) -> float:
    """KL of the merged model in fp32 from itself in another number format."""
    model = trained.whole()
    rounded = comparison.rounded(model, getattr(torch, dtype))
    return comparison.kl_between(model, rounded, trained.recording)


def table(model: str, prompts: list[str]) -> None:
    """Print a line for each kind of adapter on each base."""
    print("\n| adapter | base | onto | largest logit difference | KL | stored | greedy texts |")
    print("|---|---|---|---|---|---|---|")
    for kind in KINDS:
        for base in BASES:
            if (kind, base) != ("DoRA", "8-bit"):  # which peft cannot train
                with tempfile.TemporaryDirectory() as folder:
                    make_adapter(model, kind, base, Path(folder) / "adapter", seed=1)
                    lines(kind, base, Path(folder), prompts)


def lines(kind: str, base: str, place: Path, prompts: list[str]) -> None:
    """Merge one adapter, into what it was trained on and into the original weights."""
    dtype = str(BASES[base]["dtype"])
    for onto in ("trained", "original") if "-bit" in base else ("trained",):
        trained = Merge(str(place / "adapter"), prompts, dtype, dtype, onto)
        trained.record()
        trained.save(place / onto)
        told = trained.compare(place / onto)
        alone = ""
        if base == "bfloat16":
            alone = f"{stored_kl(trained, dtype):.1e}"
        print(
            f"| {kind} | {base} | {onto} | {told['logits_max_difference']:.1e} "
            f"| {told['kl_per_token']:.1e} | {alone} | {told['greedy_equal']:.0%} |",
            flush=True,
        )


SHAPE = {  # of Llama-3.2-1B: 1.24 billion weights
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}


def peaks(command: list[str]) -> tuple[float, float]:
    """Largest memory of a process in GiB: its own, and with the files that it has mapped."""
    process, own, whole = subprocess.Popen(command, cwd=ROOT), 0, 0
    while process.poll() is None:
        text = Path(f"/proc/{process.pid}/status").read_text()
        sizes = dict(re.findall(r"^(RssAnon|VmRSS):\s+(\d+)", text, re.MULTILINE))
        own, whole = max(own, int(sizes.get("RssAnon", 0))), max(whole, int(sizes.get("VmRSS", 0)))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(process.returncode)
    return own / 2**20, whole / 2**20


def large(tokenizer: str) -> None:
    """Print time and peak memory of merging an adapter of the shape of a 1B model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    print("\n| base | seconds | own GiB | with mapped files | files GiB |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
        torch.set_default_dtype(torch.float32)
        model.save_pretrained(place / "model")
        load_tokenizer(tokenizer).save_pretrained(place / "model")
        del model
        for base, keys in {"bfloat16": {}, "4-bit": {"load_in_4bit": True}}.items():
            BASES["large"] = {"dtype": "bfloat16"} | keys
            make_adapter(str(place / "model"), "LoRA", "large", place / base, seed=1)
            start = time.monotonic()
            words = ["merge", str(place / base), "--output_dir", str(place / f"{base}-merged")]
            few = ["--num_prompts", "4", "--max_completion_length", "8"]
            # In a process of its own, whose memory is this and nothing else.
            own, whole = peaks([sys.executable, "-m", "recipes.cli", *words, *few])
            seconds = time.monotonic() - start
            size = sum(f.stat().st_size for f in (place / f"{base}-merged/final").iterdir())
            numbers = f"{own:.2f} | {whole:.2f} | {size / 2**30:.2f}"
            print(f"| {base} | {seconds:.0f} | {numbers} |", flush=True)


def main() -> None:
    """Print what is asked for."""
    what, *words = sys.argv[1:]
    print(conditions(" ".join(["scripts/bench/export/merges.py", what, *words])))
    if what == "large":
        large(words[0])
        return
    model, *files = words
    prompts = [json.loads(line)["prompt"] for name in files for line in Path(name).open()]  # noqa: SIM115
    table(model, prompts[:64])


if __name__ == "__main__":
    main()
