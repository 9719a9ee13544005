#!/usr/bin/env python3
"""A stochastic game of two turns that is small enough to enumerate, so its best policy is known.

    J(policy) = E[r1 + r2] - beta * KL(policy || reference), the KL in nats over what it writes
    best second turn:  V2 = beta * log E_reference[exp(r2 / beta)]
    best first turn:   J* = beta * log E_reference[exp((r1 + E_answer[V2]) / beta)]
    optimality = (J - J_ref) / (J* - J_ref): 0 is no learning, 1 the optimum

A turn is one token; between the turns the world draws one of three answers, whose chances depend on
the first turn, and what pays in the second turn depends on both. So the first turn has to be chosen
for the answers that it brings.

    .venv/bin/python scripts/bench/environments/exact_game.py --page docs/benchmarks/environments.md

prints a row a seed and writes the section "A game whose best policy is known" of the page. Three
minutes on one core.

Shapes: S sequences, T tokens, V vocabulary, N first turns, A answers, M second turns.
"""

import argparse
import copy
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from datasets import Dataset  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from recipes.lib.ppo.config import PPOConfig  # noqa: E402
from recipes.lib.ppo.trainer import PPOTrainer  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402
from scripts.bench.environments.classical import table, with_section  # noqa: E402

EOS, NUM_SYMBOLS, NUM_ANSWERS, BETA, EPISODES = 1, 4, 3, 0.2, 10_240
NAMES = ["<pad>", "<eos>", "go"]
NAMES += [f"s{i}" for i in range(NUM_SYMBOLS)] + [f"o{i}" for i in range(NUM_ANSWERS)]
IDS = {name: number for number, name in enumerate(NAMES)}
TURNS = [(token,) for token in range(len(NAMES))]
GO = IDS["go"]
COMMAND = ".venv/bin/python scripts/bench/environments/exact_game.py --page FILE"
HEADING, NUMBERS = "## A game whose best policy is known", ("optimality", "J_ref", "J", "J*")
NOTE = f"""Two turns of one token; between them the world draws one of {NUM_ANSWERS} answers,
whose chances depend on the first turn, and the second turn pays by both. {EPISODES:,} episodes,
kl_coef {BETA}, learning rate 2e-3, 8 passes; J is enumerated. Of these settings only seed 101 was
looked at before.
"""


def drawn(*what: Any) -> random.Random:
    """Numbers that belong to something."""
    return random.Random(repr(what))


def chances(first: tuple[int, ...]) -> list[float]:
    """How probable each answer to a first turn is."""
    weights = [2.0 ** (2 * paid(words(first), "answer", a)) for a in range(NUM_ANSWERS)]
    return [weight / sum(weights) for weight in weights]


def words(turn: tuple[int, ...]) -> str:
    """A turn as the world reads it, without its end."""
    return " ".join(NAMES[token] for token in turn if token not in (0, EOS))


def paid(text: str, *what: Any) -> float:
    """What the words of a turn pay, each by its place."""
    words_of = text.split()
    return sum(drawn(*what, place, word).uniform(-1.0, 1.0) for place, word in enumerate(words_of))


def first_reward(text: str) -> float:
    """What the first turn pays by itself."""
    return paid(text, "first")


def second_reward(first: str, answer: int, text: str) -> float:
    """What the second turn pays: by the answer, and the answer by the first turn."""
    return paid(text, "second", answer) + paid(first, "bonus", answer)


class Game:
    """The world."""

    def reset(self, seed: int, **row: Any) -> str:
        """Begin."""
        self.drawn, self.first = random.Random(seed).random(), ""
        self.turn = self.answer = 0
        return "go"

    def step(self, text: str) -> tuple[str, float, bool, bool]:
        """Answer the first turn by chance, and end with the second."""
        text = " ".join(text.split())
        self.turn += 1
        if self.turn == 2:
            return "", second_reward(self.first, self.answer, text), True, False
        self.first = text
        ids = tuple(IDS[word] for word in text.split())
        total = torch.tensor(chances(ids)).cumsum(0)
        self.answer = min(int((total < self.drawn).sum()), NUM_ANSWERS - 1)
        return f"o{self.answer}", first_reward(text), False, False


def build(seed: int = 0) -> tuple[Any, Any]:
    """A random reference and its tokenizer."""
    inner = Tokenizer(models.WordLevel(IDS, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(NAMES),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        pad_token_id=0,
        eos_token_id=EOS,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(3.0)
    return model, tokenizer


@torch.no_grad()
def turn_logps(model: Any) -> tuple[Tensor, Tensor]:
    """Log-probability of each first turn (N), and of each second one behind it (N, A, M)."""
    model.eval()
    firsts = next_logps(model, [GO])
    seconds = [
        torch.stack(
            [next_logps(model, [GO, *heard(turn, answer)]) for answer in range(NUM_ANSWERS)]
        )
        for turn in TURNS
    ]
    return firsts, torch.stack(seconds)


def heard(turn: tuple[int, ...], answer: int) -> list[int]:
    """A first turn, its end and an answer, as tokens."""
    return [*turn, *([] if turn[-1] == EOS else [EOS]), IDS[f"o{answer}"]]


def next_logps(model: Any, before: list[int]) -> Tensor:
    """Log-probability of each token behind others."""
    return model(input_ids=torch.tensor([before])).logits[0, -1].double().log_softmax(-1)


def tables() -> tuple[Tensor, Tensor, Tensor]:
    """Rewards of first turns (N), chances of answers (N, A), rewards of second turns (N, A, M)."""
    texts = [words(turn) for turn in TURNS]
    firsts = torch.tensor([first_reward(text) for text in texts]).double()
    answers = torch.tensor([chances(turn) for turn in TURNS]).double()
    seconds = torch.tensor(
        [[[second_reward(f, a, t) for t in texts] for a in range(NUM_ANSWERS)] for f in texts]
    )
    return firsts, answers, seconds.double()


def objective(policy: Any, reference: Any) -> float:
    """J of a policy."""
    r1_N, chance_NA, r2_NAM = tables()
    (p1_N, p2_NAM), (q1_N, q2_NAM) = turn_logps(policy), turn_logps(reference)
    second_NA = (p2_NAM.exp() * (r2_NAM - BETA * (p2_NAM - q2_NAM))).sum(-1)
    of_first_N = r1_N - BETA * (p1_N - q1_N) + (chance_NA * second_NA).sum(-1)
    return float((p1_N.exp() * of_first_N).sum())


def optimum(reference: Any) -> float:
    """J of the best policy, from the last turn back."""
    r1_N, chance_NA, r2_NAM = tables()
    q1_N, q2_NAM = turn_logps(reference)
    value_NA = BETA * torch.logsumexp(q2_NAM + r2_NAM / BETA, -1)
    of_first_N = r1_N + (chance_NA * value_NA).sum(-1)
    return float(BETA * torch.logsumexp(q1_N + of_first_N / BETA, 0))


def train(seed: int, **changes: Any) -> dict[str, float]:
    """Train a policy.

    Args:
        seed: Of the run; the reference is the same for all.
        changes: To the configuration.

    Returns:
        Its optimality, J of reference, policy and optimum, and seconds.
    """
    model, tokenizer = build()
    reference = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "output_dir": folder,
            "seed": seed,
            "total_episodes": EPISODES,
            "rollout_batch_size": 256,
            "num_mini_batches": 4,
            "num_ppo_epochs": 8,
            "per_device_train_batch_size": 64,
            "sampling_batch_size": 256,
            "scoring_batch_size": 256,
            "max_completion_length": 1,
            "kl_coef": BETA,
            "critic": "head",
            "learning_rate": 2e-3,
            "use_cpu": True,
            "bf16": False,
            "save_strategy": "no",
            "disable_tqdm": True,
            "logging_steps": 10**6,
        }
        trainer = PPOTrainer(
            model,
            [],
            PPOConfig(**(settings | changes)),
            Dataset.from_list([{"game": 0}]),
            processing_class=tokenizer,
            environment=Game,
        )
        began = time.monotonic()
        trainer.train()
    seconds = time.monotonic() - began
    start, best = objective(reference, reference), optimum(reference)
    reached = objective(trainer.actor_critic.policy, reference)
    numbers = {"J_ref": start, "J": reached, "J*": best, "seconds": seconds}
    return {"optimality": (reached - start) / (best - start)} | numbers


def main() -> int:
    """Train with each seed, print a row of it, and write the section where a page is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        row = train(seed)
        rows.append([str(seed), *(f"{row[name]:.4f}" for name in NUMBERS)])
        print(*rows[-1], flush=True)
    if args.page is not None:
        section = (
            f"{HEADING}\n\n{conditions(COMMAND)}\n\n{NOTE}\n{table(['seed', *NUMBERS], rows)}\n"
        )
        args.page.write_text(with_section(args.page.read_text(encoding="utf-8"), section))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
