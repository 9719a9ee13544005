"""PPO of an 8B model on 1, 8 and 64 cards by arithmetic: bytes, operations, seconds by phase.

`.venv/bin/python scripts/bench/distributed/scaling_terms.py` prints the tables of docs/scaling.md.
Terms of the card are its maker's; what was measured says so.
"""

from dataclasses import dataclass

# An H100 SXM: dense bf16, HBM3, NVLink one way; then one 400 Gb/s network port a card.
FLOPS, MEMORY, NVLINK, NETWORK = 989e12, 3.35e12, 450e9, 50e9
CARDS_OF_A_NODE = 8
USED = 0.4  # of the peak, in large matrix products: usual, not measured here
EAGER_STEP = 0.026  # s for one token of a batch with generate, bf16: measured on an H100
# Llama 3.1 8B.
WEIGHTS, LAYERS, KV_HEADS, HEAD = 8.03e9, 32, 8, 128
LORA = 41.9e6  # weights of one adapter of rank 16 on all linear layers
EPISODES, PROMPT, COMPLETION, EPOCHS, MINI_BATCHES = 512, 512, 512, 2, 4
SAMPLING_BATCH, MICRO_BATCH = 64, 8


@dataclass(frozen=True)
class Cost:
    """Of one rollout and its updates, for each card."""

    sampling: float
    sampling_bound: float
    scoring: float
    training: float
    gradients: float
    gathering: float
    sent: float = 0.0  # to a server of rollouts, before each of them


def bandwidth(cards: int) -> float:
    """Bytes a second that a card sends to the others in a ring."""
    return NVLINK if cards <= CARDS_OF_A_NODE else NETWORK


def ring(size: float, cards: int) -> float:
    """Bytes that a card sends when `size` is gathered or scattered over all."""
    return size * (cards - 1) / cards


def sampling(cards: int) -> tuple[float, float]:
    """Seconds with generate, and the least that reading weights and cache takes."""
    share = EPISODES / cards
    batch = min(share, SAMPLING_BATCH)
    rounds = share / batch
    cache = 2 * 2 * LAYERS * KV_HEADS * HEAD * (PROMPT + COMPLETION / 2) * batch
    return (
        rounds * COMPLETION * EAGER_STEP,
        rounds * COMPLETION * (2 * WEIGHTS + cache) / MEMORY,
    )


def passes(number: float, cards: int) -> float:
    """Seconds of so many forward passes over all episodes."""
    tokens = EPISODES * (PROMPT + COMPLETION)
    return number * 2 * WEIGHTS * tokens / cards / (FLOPS * USED)


def lora(cards: int) -> Cost:
    """Two adapters trained on one base (critic: adapter), DDP."""
    steps = EPOCHS * MINI_BATCHES
    gradients = 2 * ring(2 * LORA * 4, cards) * steps if cards > 1 else 0.0
    # Forward, gradients of what flows through, and the forward again under checkpointing.
    training = passes(3 * 2 * EPOCHS, cards)
    return Cost(*sampling(cards), passes(4, cards), training, gradients, 0.0)


def full(cards: int) -> Cost:
    """The whole policy with a value head, FSDP2: shards gathered in each micro-batch."""
    # A step has one micro-batch at least.
    micro_batches = EPOCHS * max(EPISODES / cards / MICRO_BATCH, MINI_BATCHES)
    # Gathered twice in bf16, for the forward and the backward pass; gradients scattered in fp32.
    moved = ring(2 * WEIGHTS, cards) * 2 + ring(4 * WEIGHTS, cards)
    gathering = moved * micro_batches + ring(2 * WEIGHTS, cards) if cards > 1 else 0.0
    training = passes(4 * EPOCHS, cards)
    return Cost(*sampling(cards), passes(3, cards), training, 0.0, gathering)


def served(cards: int, servers: int) -> Cost:
    """LoRA as above; another machine samples with vLLM, at the bound, while the others wait."""
    plain, (_, bound) = lora(cards), sampling(servers)
    merged = 2 * WEIGHTS  # base and adapter in one, bf16, from the first process to each server
    return Cost(bound, bound, plain.scoring, plain.training, plain.gradients, 0.0, merged)


def row(name: str, cards: int | str, cost: Cost, training: int = 0) -> str:
    """A row of the table; `training` says how many of the cards train where a text names them."""
    number = training or int(cards)
    moved = cost.gradients + cost.gathering
    wait = moved / bandwidth(number) + cost.sent / NETWORK
    seconds = [cost.sampling, cost.sampling_bound, cost.scoring, cost.training, wait]
    a_step = moved / (EPOCHS * MINI_BATCHES)
    total = cost.sampling + cost.scoring + cost.training + wait
    cells = [name, str(cards), *(f"{value:.1f}" for value in seconds)]
    cells += [f"{a_step / 1e9:,.2f}", f"{(moved + cost.sent) / 1e9:,.1f}"]
    cells += [f"{total:.0f}", f"{EPISODES * 3600 / total:,.0f}"]
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    """The table of docs/scaling.md."""
    head = (
        "| way | cards | sampling, s | (its bound) | scoring, s | training, s | moving, s | "
        "GB a card and step | GB a card and rollout | together, s | episodes an hour |"
    )
    lines = [head, "|---" * 11 + "|"]
    lines += [row("LoRA, DDP", cards, lora(cards)) for cards in (1, 8, 64)]
    lines += [row("full, FSDP2", cards, full(cards)) for cards in (8, 64)]
    lines += [row("LoRA, DDP, vLLM", f"{n} + 8", served(n, 8), n) for n in (8, 64)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
