#!/usr/bin/env python3
"""Exports to GGUF, read by llama.cpp; prints the section of docs/benchmarks/export.md.

Run it with the environment's Python, where the extra `gguf` and xllamacpp, a build of llama.cpp,
are installed: `.venv/bin/python scripts/bench/export/gguf_in_llama_cpp.py [FOLDER ...]`. Folders
are chat models to take besides stories260K, the quickstart's base and random ones of each class.
"""

import json
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from recipes import export  # noqa: E402
from recipes.lib.publishing.readback import sample_texts  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.runs.files import read_jsonl  # noqa: E402
from recipes.lib.tasks.tales.rows import base_texts  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from tests.helpers.gguf_models import CLASSES, save  # noqa: E402

NUM_PROMPTS, NEW_TOKENS = 64, 48
BASE = ROOT / "recipes/lib/tasks/tales/trained"
SHARED = ROOT.parent / "shared"
STORIES = SHARED / "models/stories260K"
# What llama.cpp takes for an end by its name, whatever the file says.
NAMED_ENDS = ("<|endoftext|>", "<|end|>", "<|im_end|>")
OUTTYPES = ("f32", "f16", "q8_0")


class LlamaCpp:
    """A file in llama.cpp, whose cache is in float32 here and by default in float16."""

    def __init__(self, model: Path, adapter: Path | None = None) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_ctx = params.n_batch = 512
        params.n_parallel = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if adapter is not None:
            lora = xllamacpp.CommonAdapterLoraInfo()
            lora.path, lora.scale = str(adapter), 1.0
            params.lora_adapters = [lora]
        self.server = xllamacpp.Server(params)
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, what: str, **body: Any) -> Any:
        """One answer of its server, which listens on this machine alone."""
        address, data = f"{self.server.listening_address}/{what}", json.dumps(body).encode()
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        with self.opener.open(request, timeout=600) as answer:
            return json.loads(answer.read())

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, with what the file says to put in front."""
        said = self.ask("tokenize", content=text, add_special=True, parse_special=True)
        return list(said["tokens"])

    def greedy(self, ids: Sequence[int]) -> list[int]:
        """The greedy completion."""
        said = self.ask(
            "completion",
            prompt=list(ids),
            n_predict=NEW_TOKENS,
            temperature=0.0,
            return_tokens=True,
            cache_prompt=False,
        )
        return list(said["tokens"])


class Greedy:
    """What a model completes its prompts with."""

    def __init__(self, model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
        known, self.model = tokenizer.get_vocab(), model
        self.ends = {tokenizer.eos_token_id}
        self.ends |= {known[name] for name in NAMED_ENDS if name in known}
        self.prompts, self.said = prompts, []
        for ids in prompts:
            given = torch.tensor([ids])
            keys = {"attention_mask": torch.ones_like(given), "eos_token_id": sorted(self.ends)}
            said = model.generate(given, do_sample=False, max_new_tokens=NEW_TOKENS, **keys)
            self.said.append(self.cut(said[0, len(ids) :].tolist()))

    def cut(self, ids: list[int]) -> list[int]:
        """The tokens before the first end."""
        ends = (place for place, token in enumerate(ids) if token in self.ends)
        return ids[: next(ends, len(ids))]

    def gaps(self, llama: LlamaCpp) -> list[float]:
        """How much the model prefers its own token where llama.cpp says another, in nats, or 0."""
        return [
            self.gap(ids, said, llama.greedy(ids))
            for ids, said in zip(self.prompts, self.said, strict=True)
        ]

    def gap(self, ids: list[int], said: list[int], other: list[int]) -> float:
        """The gap of one prompt; where one completion has ended, of the best two tokens."""
        if self.cut(other) == said:
            return 0.0
        pairs = enumerate(zip(said, self.cut(other), strict=False))
        place = next((at for at, (a, b) in pairs if a != b), min(len(said), len(self.cut(other))))
        given = torch.tensor([ids + said[:place]])
        with torch.no_grad():
            best = self.model(given).logits[0, -1].log_softmax(-1)
        tokens = [row[place] for row in (said, other) if place < len(row)]
        low = best[tokens[1]] if len(tokens) == 2 and tokens[1] != tokens[0] else best.topk(2)[0][1]
        return float(best.max() - low)


def prompts_of(tokenizer: Any, texts: Sequence[str] = ()) -> list[list[int]]:
    """Token ids of 64 prompts: of texts, in a chat where the model has ChatML, or of samples."""
    if not texts:
        rows = [tokenizer(text)["input_ids"][:24] for text in sample_texts() if text.strip()]
        return rows[:: len(rows) // NUM_PROMPTS][:NUM_PROMPTS]
    if not tokenizer.chat_template or tokenizer.eos_token != "<|im_end|>":
        return [tokenizer(text)["input_ids"] for text in texts]
    chats = [[{"role": "user", "content": f"Go on: {text}"}] for text in texts]
    told = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in told]


def measure(name: str, folder: Path, texts: Sequence[str] = ()) -> dict[str, Any]:
    """Export a model in each format and compare each file with it.

    Args:
        name: The model's folder.
        folder: Where the exports go.
        texts: Prompts.

    Returns:
        By outtype: shares of the same tokens and greedy texts, KL, and the size in bytes.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(name, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(name)
    found, greedy = {}, Greedy(model, tokenizer, prompts_of(tokenizer, texts))
    for outtype in OUTTYPES:
        out = folder / outtype
        keys = {"run": name, "outtype": outtype, "output_dir": str(out)}
        summary = export.run(parse("export", [], keys))
        llama = LlamaCpp(out / "model.gguf")
        gaps = greedy.gaps(llama)
        known = [text for text in sample_texts() if text]
        alike = [llama.tokens(text) == tokenizer(text)["input_ids"] for text in known]
        found[outtype] = {
            "tokens": sum(alike) / len(alike),
            "greedy": gaps.count(0.0) / len(gaps),
            "near": share_near([gap for gap in gaps if gap], summary["logits_max_difference"]),
            "kl": summary["kl_per_token"],
            "bytes": (out / "model.gguf").stat().st_size,
        }
    return found


def share_near(gaps: list[float], rounding: float) -> float:
    """Share of the first differences where the two tokens are closer than twice the rounding."""
    return sum(gap <= 2 * rounding for gap in gaps) / max(len(gaps), 1)


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
    for run, keys in (
        (BASE, {"to": "gguf", "outtype": "f32"}),
        (folder / "adapter", {"to": "gguf-adapter"}),
    ):
        out = {"run": str(run), "output_dir": str(folder / keys["to"])}
        export.run(parse("export", [], keys | out))
    llama = LlamaCpp(folder / "gguf/model.gguf", folder / "gguf-adapter/adapter.gguf")
    gaps = Greedy(adapted, tokenizer, prompts_of(tokenizer, tales())).gaps(llama)
    return gaps.count(0.0) / len(gaps)


def tales() -> list[str]:
    """The first words of tales as the quickstart's base read them."""
    return [" ".join(text.split()[:8]) for text in base_texts(NUM_PROMPTS, 1)]


def stories() -> list[str]:
    """The first sentences of TinyStories."""
    rows = read_jsonl(SHARED / "data/prompt/tinystories.jsonl")
    return [row["prompt"] for row in rows[:NUM_PROMPTS]]


def main() -> int:
    """Measure and print."""
    hush()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        models = {"stories260K": (str(STORIES), stories())}
        models["the quickstart's base"] = (str(BASE), tales())
        for kind in CLASSES:
            models[f"random, {kind}"] = (save(work / "models" / kind, kind), [])
        models |= {Path(name).name: (name, stories()) for name in sys.argv[1:]}
        for number, (name, (path, texts)) in enumerate(models.items()):
            for outtype, one in measure(path, work / str(number), texts).items():
                near = f"{one['near']:.0%}" if one["greedy"] < 1 else ""
                rows.append(
                    f"| {name} | {outtype} | {one['bytes'] / 1e6:,.1f} MB | {one['tokens']:.1%} | "
                    f"{one['greedy']:.1%} | {near} | {one['kl']:.1e} |"
                )
                print(rows[-1], file=sys.stderr)
        alone = measure_adapter(work)
    print("\n## GGUF\n")
    print(conditions(".venv/bin/python scripts/bench/export/gguf_in_llama_cpp.py FOLDER ..."))
    print(f"- xllamacpp {metadata.version('xllamacpp')}, gguf {metadata.version('gguf')}\n")
    print("| model | numbers | size | same tokens | same greedy text | near | KL, nats a token |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    print(f"\nAn adapter (rsLoRA) as a file of its own, on its base in f32: {alone:.1%}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
