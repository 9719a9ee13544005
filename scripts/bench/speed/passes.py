#!/usr/bin/env python3
"""What each way of saving passes and logits brings: seconds and GiB, on and off; writes a page.

`.venv/bin/python scripts/bench/speed/passes.py` writes docs/benchmarks/passes.md in some minutes on
one core. Models are those of ppo_vs_trl, with random weights.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  the paths above come first
from peft import LoraConfig, get_peft_model  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from recipes.lib.models import forward  # noqa: E402
from recipes.lib.models.adapters import POLICY, REFERENCE, VALUE, Adapters  # noqa: E402
from recipes.lib.models.forward import (  # noqa: E402
    Batch,
    chunked_logps,
    logps_and_entropy,
    policy_outputs,
    trunk_of,
)
from recipes.lib.ppo.config import PPOConfig  # noqa: E402
from recipes.lib.ppo.rollouts import Rollout, RolloutStream  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402
from scripts.bench.speed.speed_task import LORA, VOCABULARY, prompts, write_models  # noqa: E402

PAGE = ROOT / "docs/benchmarks/passes.md"
REPEATS = 5
LARGE_VOCABULARY, TOKENS, WIDTH = 151_936, 1024, 256


def timed(*ways: Callable[[], Any]) -> list[str]:
    """Seconds of several ways, alternating, the first round left out."""
    seconds: list[list[float]] = [[] for _ in ways]
    for round_ in range(REPEATS + 1):
        for way, said in zip(ways, seconds, strict=True):
            start = time.perf_counter()
            way()
            if round_:
                said.append(time.perf_counter() - start)
    return [f"{mean(said):.3f} +- {stdev(said):.3f} s" for said in seconds]


def roles(folder: Path) -> tuple[Adapters, Batch, dict[str, Tensor]]:
    """Three adapters on the policy, and a batch of 32 rows of 64 tokens."""
    policy = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder / "policy"), LoraConfig(**LORA)
    )
    adapters = Adapters(policy)
    for name in (REFERENCE, VALUE):
        adapters.add(name, LoraConfig(**LORA), trainable=False)
    rows = torch.tensor(prompts())
    generator = torch.Generator().manual_seed(2)
    said = torch.randint(2, VOCABULARY, (len(rows), 48), generator=generator)
    ids = torch.cat([rows, said], 1)
    batch = Batch(ids, torch.ones_like(ids), 48)
    policy.eval()
    return (
        adapters,
        batch,
        {key: cast(Tensor, batch.inputs[key]) for key in ("input_ids", "attention_mask")},
    )


@torch.no_grad()
def passes(folder: Path) -> list[str]:
    """Rows on passes through the trunk."""
    adapters, batch, inputs = roles(folder)
    policy = adapters.model

    def in_role(name: str) -> Tensor:
        with adapters.role(name):
            return trunk_of(policy)(**batch.inputs).last_hidden_state

    def one_by_one() -> Tensor:
        return torch.cat([in_role(name) for name in (POLICY, REFERENCE, VALUE)])

    def together() -> Tensor:
        names = [name for name in (POLICY, REFERENCE, VALUE) for _ in range(32)]
        many = {key: torch.cat([value] * 3) for key, value in inputs.items()}
        said = policy(
            **many,
            use_cache=False,
            adapter_names=names,
            logits_to_keep=1,
            output_hidden_states=True,
        )
        return said.hidden_states[-1]

    assert torch.allclose(one_by_one(), together(), atol=1e-4)
    apart, joined = timed(one_by_one, together)

    def twice() -> None:
        policy_outputs(policy, batch, 1.0, False, True)
        trunk_of(policy)(**batch.inputs)

    two, one = timed(twice, lambda: policy_outputs(policy, batch, 1.0, False, True))

    def on_every_token() -> None:
        logits = policy(**inputs, use_cache=False).logits[:, :-1]
        logps_and_entropy(logits, inputs["input_ids"][:, 1:], 1.0)

    every, spoken = timed(on_every_token, lambda: policy_outputs(policy, batch, 1.0, False, True))
    return [
        f"| `critic: head`: log-probabilities and values of one pass | {two} | {one} |",
        f"| policy, reference and value as rows of one pass | {apart} | {joined} |",
        f"| the head on completion tokens alone (48 of 64) | {every} | {spoken} |",
    ]


def logits_once(most: int) -> None:
    """Forward and backward pass of the log-probabilities of many tokens; prints seconds and GiB."""
    forward.MAX_CHUNK_LOGITS = most
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, LARGE_VOCABULARY, bias=False).requires_grad_(False)
    hidden = torch.randn(4, TOKENS // 4, WIDTH, requires_grad=True)
    ids = torch.randint(LARGE_VOCABULARY, (4, TOKENS // 4))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    said, _ = chunked_logps(
        head,
        hidden,
        ids,
        torch.ones_like(ids),
        temperature=1.0,
        with_gradient=False,
        vocab_size=LARGE_VOCABULARY,
    )
    said.sum().backward()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{seconds:.1f} s, {(peak - before) / 2**20:.2f} GiB")


def pieces() -> str:
    """Row on pieces of the logits; memory has a high-water mark, so each is a process."""
    said = [
        subprocess.run(
            [sys.executable, __file__, str(most)], capture_output=True, text=True, check=True
        ).stdout.strip()
        for most in (2**40, 2**26)
    ]
    what = f"logits of {TOKENS:,} tokens, {LARGE_VOCABULARY:,} words, in pieces"
    return f"| {what} | {said[0]} | {said[1]} |"


def padding() -> str:
    """Row on the order within an optimizer step, for lengths such as prompts and chats have."""
    torch.manual_seed(3)
    counts = torch.distributions.Geometric(torch.tensor(1 / 64)).sample((2, 256)).clamp(1, 256)
    places = torch.arange(256)
    completion = (places < counts[0][:, None]).long()
    prompt = (places >= 256 - counts[1][:, None]).long()
    zeros = torch.zeros(256, 256)
    rollout = Rollout(prompt, prompt, completion, completion, *[zeros] * 5)
    said = []
    for is_sorted in (False, True):
        lengths = Rollout.lengths
        if not is_sorted:
            Rollout.lengths = property(lambda self: torch.zeros(256))  # type: ignore[assignment]
        args = PPOConfig(
            "",
            rollout_batch_size=256,
            num_mini_batches=4,
            use_cpu=True,
            per_device_train_batch_size=8,
            total_episodes=256,
        )
        stream = RolloutStream(args, lambda number: rollout)
        steps = 4 * args.num_ppo_epochs * 8
        batches = [batch for _, batch in zip(range(steps), stream, strict=False)]
        computed = sum(b["prompt_ids"].numel() + b["completion_ids"].numel() for b in batches)
        real = sum(int(b["prompt_mask"].sum() + b["completion_mask"].sum()) for b in batches)
        said.append(f"{1 - real / computed:.0%}")
        Rollout.lengths = lengths  # type: ignore[method-assign]
    what = "padding computed, micro-batches of 8, geometric lengths of mean 64 + 64"
    return f"| {what}, like lengths together | {said[0]} | {said[1]} |"


def main() -> int:
    """Measure and write the page."""
    hush()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        rows = [*passes(Path(folder)), pieces(), padding()]
    for row in rows:
        print(row)
    command = ".venv/bin/python scripts/bench/speed/passes.py"
    PAGE.write_text(PAGE_TEXT.format(conditions=conditions(command), rows="\n".join(rows)))
    return 0


PAGE_TEXT = """# Fewer passes, fewer logits

{conditions}

One thread; 32 rows of 16 + 48 tokens, a Qwen3-class policy of 7 million random weights with LoRA of
rank 16 (`scripts/bench/speed/ppo_vs_trl.py`). Mean and standard deviation of {repeats} repeats,
alternating.

| what | without | with |
|---|---|---|
{rows}
""".replace("{repeats}", str(REPEATS))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        logits_once(int(sys.argv[1]))
    else:
        raise SystemExit(main())
