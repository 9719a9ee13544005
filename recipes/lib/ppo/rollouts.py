"""Episodes, rollouts, and the stream of micro-batches that is the training dataloader of PPO.

Every process holds the whole rollout (a few megabytes of ids and numbers), whoever sampled which
part of it. So shuffles, whitening and KL control are global without a reduction, and mini-batches
are the same for any number of processes.

Shapes: B episodes, P prompt tokens (padded left), C completion tokens (padded right).
"""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recipes.lib.errors import UserError
from recipes.lib.generation.numerics import CAUSE, NotFiniteError
from recipes.lib.ppo.config import PPOConfig
from recipes.lib.runs.files import write_json

SHUFFLE_KEY = 0x5_4FF1E  # keeps the shuffles apart from the sampling noise of the same seed
PROMPT_KEY = 0x9_2011


@dataclass
class Rollout:
    """A batch of episodes with all that the objective needs, on the CPU.

    Args:
        prompt_ids: (B, P).
        prompt_mask: (B, P), 1 where a prompt token is.
        completion_ids: (B, C).
        completion_mask: (B, C), 1 up to and including the token that ended the completion.
        old_logps: (B, C), nats, of the policy that sampled.
        ref_logps: (B, C), nats.
        old_values: (B, C), of the critic before the updates.
        advantages: (B, C), whitened.
        returns: (B, C).
        action_mask: (B, C), 1 where a token is the policy's own and not an environment's.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    old_logps: Tensor
    ref_logps: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    action_mask: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens of each episode, prompt and completion together, (B,)."""
        return self.prompt_mask.sum(1) + self.completion_mask.sum(1)

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """Some episodes, without the columns in which none of them has a token."""
        batch = {name: getattr(self, name)[index] for name in NAMES}
        first = int(batch["prompt_mask"].argmax(1).min())
        width = int(batch["completion_mask"].sum(1).max())
        for name, tensor in batch.items():
            batch[name] = tensor[:, first:] if name.startswith("prompt") else tensor[:, :width]
        return batch


NAMES = [one.name for one in fields(Rollout)]


def prompt_index(seed: int, position: int, num_prompts: int) -> int:
    """Which prompt stands at a position of the endless sequence of shuffled passes.

    Args:
        seed: Seed of the run.
        position: 0 for the first prompt of the run.
        num_prompts: Prompts in the data set.

    Returns:
        Index into the data set, a function of the arguments alone.
    """
    epoch, offset = divmod(position, num_prompts)
    return int(permutation(seed, PROMPT_KEY, epoch, num_prompts)[offset])


@functools.lru_cache(maxsize=8)
def permutation(seed: int, key: int, number: int, size: int) -> np.ndarray:
    """A shuffle of range(size) that depends on the arguments alone."""
    return np.random.default_rng([seed % 2**64, key, number]).permutation(size)


class RolloutStream:
    """Makes rollouts when they are needed and yields their micro-batches, epoch after epoch.

    It is handed to Trainer as it is: accelerate's wrappers would read one batch ahead, and the next
    rollout would be sampled before the last update of this one.

    Args:
        args: The configuration.
        make_rollout: Makes the rollout of a number.
    """

    def __init__(self, args: PPOConfig, make_rollout: Callable[[int], Rollout]) -> None:
        self.args = args
        self.make_rollout = make_rollout
        self.rollout: Rollout | None = None
        self.number = -1  # of that rollout in the run
        self.first_step = 0  # optimizer step of the run at which the iteration begins

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the micro-batches of this process, from `first_step` on."""
        step = self.first_step
        while True:
            number, in_rollout = divmod(step, self.args.steps_per_rollout)
            if self.rollout is None or self.number != number:
                self.rollout = self.make_rollout(number)
                self.number = number
            yield from self._micro_batches(self.rollout, number, in_rollout)
            step += 1

    def _micro_batches(
        self, rollout: Rollout, number: int, in_rollout: int
    ) -> Iterator[dict[str, Any]]:
        args = self.args
        epoch, mini_batch = divmod(in_rollout, args.num_mini_batches)
        order = permutation(
            args.seed, SHUFFLE_KEY, number * args.num_ppo_epochs + epoch, args.rollout_batch_size
        )
        size = args.rollout_batch_size // args.num_mini_batches
        chosen = torch.from_numpy(order[mini_batch * size : (mini_batch + 1) * size])
        num_tokens = float(rollout.action_mask[chosen].sum())
        share = chosen[args.process_index :: args.world_size]
        # Like lengths together, so that less padding is computed; the step sums up to the same.
        share = share[rollout.lengths[share].argsort(stable=True)]
        for index in share.split(args.per_device_train_batch_size):
            yield rollout.rows(index) | {
                "num_tokens": num_tokens,
                "rollout_number": number,
                "is_first_step": in_rollout == 0,
            }

    def save(self, folder: Path, global_step: int) -> None:
        """Write the rollout in hand, if there are steps left to make with it."""
        next_one = global_step // self.args.steps_per_rollout
        in_hand = self.rollout is not None and self.number == next_one
        write_json(folder / "stream.json", {"global_step": global_step, "in_hand": in_hand})
        if in_hand:
            tensors = {n: getattr(self.rollout, n).contiguous() for n in NAMES}
            save_file(tensors, folder / "rollout.safetensors")

    def load(self, folder: Path) -> None:
        """Go on where a checkpoint was written.

        Raises:
            UserError: It is not one of PPO.
        """
        if not (folder / "stream.json").is_file():
            raise UserError(f"{folder} has no stream.json; name a checkpoint of a PPO run.")
        state = json.loads((folder / "stream.json").read_text(encoding="utf-8"))
        self.first_step = state["global_step"]
        self.number = self.first_step // self.args.steps_per_rollout
        tensors = load_file(folder / "rollout.safetensors") if state["in_hand"] else None
        if tensors:  # checkpoints from before there were environments have no action mask
            tensors = {"action_mask": tensors["completion_mask"]} | tensors
        self.rollout = Rollout(**tensors) if tensors else None


def check_finite_scores(
    mask_BC: Tensor, logps_BC: Tensor, ref_logps_BC: Tensor, values_BC: Tensor
) -> None:
    """Refuse episodes with log-probabilities or values that are not finite.

    Args:
        mask_BC: 1 where a token counts.
        logps_BC: Log-probabilities of the policy.
        ref_logps_BC: Log-probabilities of the reference.
        values_BC: Values of the critic.

    Raises:
        NotFiniteError: One that counts is not finite.
    """
    of_models = {
        "log-probabilities of the policy": logps_BC,
        "log-probabilities of the reference": ref_logps_BC,
        "values of the critic": values_BC,
    }
    for what, numbers_BC in of_models.items():
        faulty_B = (~numbers_BC.isfinite() & mask_BC.bool()).any(1)
        if number := int(faulty_B.sum()):
            raise NotFiniteError(
                f"the {what} of {number} of {len(faulty_B)} completions were NaN or infinite while "
                f"they were scored: its {CAUSE}."
            )


@contextmanager
def naming_rollout(number: int) -> Iterator[None]:
    """Say of which rollout the numbers are that are not finite."""
    try:
        yield
    except NotFiniteError as error:
        raise UserError(f"rollout {number}: {error}") from error


@dataclass
class Turn:
    """What the policy wrote in one turn, and what an environment answered.

    Args:
        start: Where its tokens begin in the completion.
        end: Where they end, the stop token included.
        text: What was written.
        reward: What the environment gave for it, and in the last turn what functions did.
        answer: What the environment said.
    """

    start: int
    end: int
    text: str
    reward: float = 0.0
    answer: str = ""


@dataclass
class Episode:
    """One prompt and what was said to it: a row of a rollout.

    Args:
        row: Row of the prompt in its data set.
        prompt_ids: Token ids of the prompt.
        completion_ids: Token ids of the completion, the stop token included; of a conversation with
            the environment's between those of the policy.
        text: The completion as text.
        score: Weighted sum of the rewards, and of an environment's.
        said: What each function said, NaN where it does not apply.
        cost: Sum of the costs.
        logps: Log-probabilities of the policy that sampled, nats per token.
        ref_logps: Those of the reference.
        values: Values of the critic.
        asked: What reward functions get as the prompt, where it is not the row's alone.
        turns: What was said with an environment.
        following_ids: Tokens of the state in which it goes on, where it did not end by itself.
        next_value: Value of that state.
        goes_on: Whether the next row of the rollout is its next turn.
        outcome: Sum of an environment's rewards and number of turns, of the row that ends an
            episode.
    """

    row: int
    prompt_ids: list[int]
    completion_ids: list[int]
    text: str = ""
    score: float = 0.0
    said: tuple[float, ...] = ()
    cost: float = 0.0
    logps: Tensor | None = None
    ref_logps: Tensor | None = None
    values: Tensor | None = None
    asked: Any = None
    turns: list[Turn] = field(default_factory=list)
    following_ids: list[int] = field(default_factory=list)
    next_value: float = 0.0
    goes_on: bool = False
    outcome: tuple[float, int] | None = None

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Begin and end of the policy's own tokens in the completion."""
        return [(t.start, t.end) for t in self.turns] or [(0, len(self.completion_ids))]

    @property
    def rewards(self) -> list[float]:
        """The score, by turn."""
        return [t.reward for t in self.turns] or [self.score]

    @property
    def num_tokens(self) -> int:
        """How many tokens are the policy's own."""
        return sum(end - start for start, end in self.spans)

    @property
    def kl(self) -> float:
        """KL to the reference (k1 estimator), nats over all of them."""
        assert self.logps is not None and self.ref_logps is not None
        kl_C = self.logps - self.ref_logps
        return sum(kl_C[start:end].sum().item() for start, end in self.spans)


def find_stop_token(tokenizer: Any, stop_token: str | None) -> int:
    """Id of the token that ends a completion; a model may have further ones.

    Args:
        tokenizer: The policy's tokenizer.
        stop_token: The token as text; None for the tokenizer's eos token.

    Returns:
        The id.

    Raises:
        UserError: There is no such token.
    """
    if stop_token in (None, "eos"):
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no eos token; set stop_token.")
        return int(tokenizer.eos_token_id)
    token_id = tokenizer.get_vocab().get(stop_token)
    if token_id is None:
        raise UserError(f"stop_token={stop_token!r} is not in the vocabulary of the tokenizer.")
    return int(token_id)


def action_mask(episodes: Sequence[Episode], completion_mask_BC: Tensor) -> Tensor:
    """1 where a token of a completion is the policy's own, (B, C)."""
    mask_BC = torch.zeros_like(completion_mask_BC)
    for row, episode in enumerate(episodes):
        for start, end in episode.spans:
            mask_BC[row, start:end] = 1
    return mask_BC


def turn_places(episodes: Sequence[Episode]) -> tuple[Tensor, Tensor]:
    """Row and column of the last token of each turn."""
    places = [(row, end - 1) for row, e in enumerate(episodes) for _, end in e.spans]
    rows_N, columns_N = torch.tensor(places).T
    return rows_N, columns_N


def stack(rows: list[Any]) -> Tensor:
    """Numbers of episodes of different length in one tensor, 0 behind the end."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
