"""Tasks small enough to enumerate every completion, so that the best policy is known.

    J(policy) = E[reward] - beta * KL(policy || reference), the KL in nats per completion
    J* = beta * log E_reference[exp(reward / beta)], reached by reference * exp(reward / beta)
    optimality = (J - J_ref) / (J* - J_ref): 0 is no learning, 1 the optimum

Ids: 0 pad, 1 eos, then prompt words p0, p1, ..., then symbols s0, s1, ... A completion may hold any
id, pad and prompt words too; it ends at eos or after T tokens.

Shapes: B prefixes, T tokens, V vocabulary.

Source:
    The optimum: Korbak et al. 2022, "RL with KL penalties is better viewed as Bayesian inference".
"""

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, EOS = 0, 1
Reward = Callable[[tuple[int, ...], tuple[int, ...]], float]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: Its name in tables.
        num_symbols: Symbols beside pad, eos and the prompt words.
        num_words: Prompt words.
        prompts: Prompts as lists of prompt words (0 is p0).
        max_tokens: T, most tokens of a completion.
        beta: Weight of the KL.
        reward: Reward of a completion for a prompt, both as ids.
        sharpness: Factor on the reference's logits; higher is further from uniform.
        first_word: Id of the first prompt word.
        episodes: Completions to sample in a training.
        make: Makes reference and tokenizer instead of `build`.
    """

    name: str
    num_symbols: int
    num_words: int
    prompts: tuple[tuple[int, ...], ...]
    max_tokens: int
    beta: float
    reward: Reward
    sharpness: float = 3.0
    first_word: int = 2
    episodes: int = 10_240
    make: Callable[[], Any] | None = None

    @property
    def size(self) -> int:
        """Size of the vocabulary."""
        return self.first_word + self.num_words + self.num_symbols

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts as text."""
        return tuple(" ".join(f"p{w}" for w in prompt) for prompt in self.prompts)

    def build(self, seed: int = 0) -> tuple[Any, Any]:
        """Make the reference model and its tokenizer."""
        if self.make is not None:
            return self.make()
        names = ["<pad>", "<eos>"]
        names += [f"p{i}" for i in range(self.num_words)]
        names += [f"s{i}" for i in range(self.num_symbols)]
        words = models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>")
        backend = Tokenizer(words)
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left"
        )
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=self.size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            pad_token_id=PAD,
            eos_token_id=EOS,
            bos_token_id=None,
            tie_word_embeddings=False,
        )
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.lm_head.weight.mul_(self.sharpness)
        model.generation_config.eos_token_id = EOS
        model.generation_config.pad_token_id = PAD
        return model, tokenizer

    def prompt_ids(self, prompt: Sequence[int]) -> list[int]:
        """Token ids of a prompt."""
        return [self.first_word + word for word in prompt]

    def rewards(self, prompts: Sequence[str], completion_ids: Sequence[Any]) -> list[float]:
        """Rewards of completions as a trainer asks for them."""
        return [
            self.reward(tuple(self.first_word + int(w[1:]) for w in prompt.split()), tuple(ids))
            for prompt, ids in zip(prompts, completion_ids, strict=True)
        ]


@torch.no_grad()
def log_probs(task: Task, model: Any, prompt: Sequence[int]) -> list[Tensor]:
    """Log-probabilities of every next token after every prefix.

    Args:
        task: The task.
        model: A causal language model.
        prompt: The prompt, as prompt words.

    Returns:
        For each length t below T, float64 of shape (number of prefixes of t tokens, V), the
        prefixes in the order of itertools.product over all ids but eos.
    """
    others = [i for i in range(task.size) if i != EOS]
    levels = []
    for t in range(task.max_tokens):
        ids = torch.tensor(
            [task.prompt_ids(prompt) + list(p) for p in itertools.product(others, repeat=t)]
        )
        logits = [
            # pad may stand within a completion, so the mask is said and not guessed
            model(input_ids=part, attention_mask=torch.ones_like(part), logits_to_keep=1).logits
            for part in ids.split(4096)
        ]
        levels.append(torch.cat(logits)[:, -1].double().log_softmax(-1))
    return levels


def completions(task: Task) -> list[tuple[int, ...]]:
    """Every completion, in the order in which `completion_log_probs` has them."""
    others = [i for i in range(task.size) if i != EOS]
    ended = [
        (*prefix, EOS)
        for t in range(task.max_tokens)
        for prefix in itertools.product(others, repeat=t)
    ]
    return ended + list(itertools.product(others, repeat=task.max_tokens))


def completion_log_probs(task: Task, levels: list[Tensor]) -> Tensor:
    """Log-probability of every completion (nats), from those of every next token."""
    others = [i for i in range(task.size) if i != EOS]
    prefix = torch.zeros(1, dtype=torch.float64)
    ended = []
    for level in levels:
        ended.append(prefix + level[:, EOS])
        prefix = (prefix.unsqueeze(1) + level[:, others]).flatten()
    return torch.cat([*ended, prefix])


@lru_cache(maxsize=32)
def all_rewards(task: Task, asked: tuple[int, ...]) -> Tensor:
    """Reward of every completion, float64."""
    return torch.tensor([task.reward(asked, y) for y in completions(task)], dtype=torch.float64)


def judge(task: Task, model: Any, reference: Any) -> dict[str, float]:
    """Where a policy stands between the reference and the optimum.

    Args:
        task: The task.
        model: The policy.
        reference: The reference.

    Returns:
        J, J of the reference, J of the optimum, KL, reward, all means over prompts, and optimality.
    """
    model.eval()
    sums = dict.fromkeys(("J", "J_ref", "J_best", "kl", "reward"), 0.0)
    for prompt in task.prompts:
        asked = tuple(task.prompt_ids(prompt))
        reward = all_rewards(task, asked)
        ours = completion_log_probs(task, log_probs(task, model, prompt))
        theirs = completion_log_probs(task, log_probs(task, reference, prompt))
        total = ours.exp().sum().item()
        assert abs(total - 1.0) < 1e-9, total
        kl = (ours.exp() * (ours - theirs)).sum().item()
        gain = (ours.exp() * reward).sum().item()
        sums["J"] += gain - task.beta * kl
        sums["J_ref"] += (theirs.exp() * reward).sum().item()
        sums["J_best"] += task.beta * torch.logsumexp(theirs + reward / task.beta, 0).item()
        sums["kl"] += kl
        sums["reward"] += gain
    means = {name: value / len(task.prompts) for name, value in sums.items()}
    means["optimality"] = (means["J"] - means["J_ref"]) / (means["J_best"] - means["J_ref"])
    return means


def _hash(*parts: int) -> int:
    state = 17
    for part in parts:
        state = (state * 1_000_003 + part * 7919 + 101) % 2_147_483_647
    return state


def order_reward(prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
    """Each symbol is worth something else at each place and after each prompt; ending pays."""
    body = [token for token in completion if token != EOS]
    score = sum((_hash(*prompt, i, token) % 7 - 3) / 6 for i, token in enumerate(body))
    score += 0.5 * (len(body) >= 2 and body[0] == body[1]) + 0.4 * (completion[-1] == EOS)
    return score - 1.0 * (PAD in body)


def pair_reward(prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
    """Neighbours are worth something together, with the last word of the prompt before them."""
    row = [prompt[-1], *completion]
    pairs = itertools.pairwise(row)
    return sum((_hash(a, b, len(prompt)) % 9 - 4) / 8 for a, b in pairs)


def sparse_reward(prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
    """1 for an ended completion whose ids never fall and are of two kinds or more; else 0."""
    body = [token for token in completion if token != EOS]
    is_sorted = all(a <= b for a, b in itertools.pairwise(body))
    return float(completion[-1] == EOS and is_sorted and len(set(body)) >= 2)


def wide_reward(prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
    """Order's reward on the scale of an uncentred reward model: times 8, minus 20."""
    return 8.0 * order_reward(prompt, completion) - 20.0


def length_reward(prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
    """As many symbols as the prompt has words, then eos; each symbol other than the one before."""
    body = [token for token in completion if token != EOS]
    score = -0.5 * abs(len(body) - len(prompt)) + 0.5 * (completion[-1] == EOS)
    return score + 0.25 * sum(a != b for a, b in itertools.pairwise(body))


def echo_reward(prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
    """1 for four ids or more, then eos, the last one as the first and none between; else 0."""
    body = [token for token in completion if token != EOS]
    is_echo = len(body) >= 4 and body[0] == body[-1] and body[0] not in body[1:-1]
    return float(completion[-1] == EOS and is_echo)


# 64 prompts of one to six words
MIXED = tuple(
    words for length in range(1, 7) for words in itertools.product((0, 1), repeat=length)
)[:64]
RAGGED = ((0,), (1, 0), (0, 1, 1), (1, 1, 0, 0))
TASKS = {
    task.name: task
    for task in (
        Task("order", 6, 2, ((0,), (1,)), 3, 0.1, order_reward),
        Task("wide scale", 6, 2, ((0,), (1,), (1, 1)), 3, 0.8, wide_reward),
        Task("many symbols", 28, 3, ((0,), (1, 2), (2,)), 3, 0.2, order_reward, episodes=20_480),
        Task("pairs", 3, 2, RAGGED, 6, 0.1, pair_reward, episodes=20_480),
        Task("sparse", 4, 2, ((0,), (1, 0)), 6, 0.1, sparse_reward, 4.0, episodes=20_480),
        Task("length", 3, 2, RAGGED, 6, 0.05, length_reward, episodes=20_480),
        Task("mixed", 6, 2, MIXED, 3, 0.1, order_reward),
        Task("delayed", 4, 2, ((0,), (1, 0)), 6, 0.1, echo_reward, 4.0),
    )
}


def load_task(path: Path) -> Task:
    """Turn a file into a task: ../shared/bench/exact_task.py or another of its interface.

    Args:
        path: The file; it has T, SYMS, PROMPTS, build() and reward(prompt_id, completion), beta is
            0.1, and a bos token stands between eos and the prompt words.

    Returns:
        The task.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Task(
        path.stem,
        module.SYMS,
        module.PROMPTS,
        tuple((word,) for word in range(module.PROMPTS)),
        module.T,
        0.1,
        lambda prompt, completion: module.reward(prompt[0], completion),
        first_word=3,
        make=module.build,
    )


def find(name: str) -> Task:
    """A task by its name, or from a file.

    Args:
        name: A key of TASKS, or the path of a file for `load_task`.

    Returns:
        The task.
    """
    return TASKS[name] if name in TASKS else load_task(Path(name))
