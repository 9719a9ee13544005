"""An own decode loop: a static cache, finished rows that stop costing, and CUDA graphs.

An eager decode step is bound by the launches of its many small kernels. On a GPU the step is
captured once and replayed, with the same weights at the same addresses; on a CPU the same code runs
without capture. Tokens are those of `sampling.sample`, up to rounding. `is_faster` and the checks
below it say which models it can run.

Shapes: B episodes, P prompt tokens (padded left), C completion tokens, S slots (P + C), V
vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from recipes.lib.errors import UserError
from recipes.lib.generation.cache import CacheWindow, Carried, windowed_cache
from recipes.lib.generation.cuda_graphs import Graphs
from recipes.lib.generation.numerics import check_sampled
from recipes.lib.generation.sampling import Decoding, invert_cdf, mask_through_stop
from recipes.lib.models.forward import position_ids

LAYER_TYPES = ("full_attention", "sliding_attention")
# Their frequencies follow the longest sequence in the batch, which changes when rows end.
MOVING_ROPE = ("dynamic", "longrope")


SLOTS_PER_GRAPH = 256  # a graph sees this many slots more than the one before
STEPS_PER_CHECK = 8  # on a GPU; to look whether rows have ended waits for it
MAX_KEPT_SHARE = 0.75  # uncaptured, rows are moved together where no more than this share goes on


@dataclass
class DecodeState:
    """What a step reads and writes, at addresses that stay.

    Args:
        ids: The tokens to go on from, (B, 1).
        positions: Their positions, (B, 1).
        mask: 0 where a prompt is padded, (B, S).
        uniforms: The episodes' noise, (B, C).
        tokens: The completions, (B, C).
        has_ended: Whether a completion has ended, (B,).
        is_faulty: Whether logits of it were NaN or infinite, (B,).
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    uniforms: Tensor
    tokens: Tensor
    has_ended: Tensor
    is_faulty: Tensor

    @classmethod
    def of_size(cls, rows: int, slots: int, num_tokens: int, device: Any) -> DecodeState:
        """State for at most so many rows, slots and tokens."""
        numbers = {"dtype": torch.long, "device": device}
        truths = {"dtype": torch.bool, "device": device}
        return cls(
            ids=torch.zeros(rows, 1, **numbers),
            positions=torch.zeros(rows, 1, **numbers),
            mask=torch.ones(rows, slots, **numbers),
            uniforms=torch.zeros(rows, num_tokens, dtype=torch.float64, device=device),
            tokens=torch.zeros(rows, num_tokens, **numbers),
            has_ended=torch.zeros(rows, **truths),
            is_faulty=torch.zeros(rows, **truths),
        )

    def of_rows(self) -> list[Tensor]:
        """All tensors, rows first."""
        return [getattr(self, field.name) for field in fields(self)]


class Decoder:
    """Samples completions of one model.

    Args:
        model: Causal language model (of a PeftModel its base model, with the adapter in it).
        decoding: Length, temperature and the tokens at the end.
        num_rows: Prompts that come at a time; fewer will do, and more cost a new cache.
        num_slots: Tokens of the longest prompt and its completion; likewise.
        is_static: Whether steps have the shapes and tensors that a capture needs; default: on a
            GPU, where they are captured.

    Raises:
        UserError: The loop cannot run the model; see `obstacle`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        decoding: Decoding,
        num_rows: int,
        num_slots: int,
        is_static: bool | None = None,
    ) -> None:
        is_on_card = model.device.type == "cuda"
        self.is_static = is_on_card if is_static is None else is_static
        self.is_captured = is_on_card and self.is_static
        reason = unsupported_reason(model, self.is_static)
        if reason is not None:
            raise UserError(f"sampler=graph: the model {reason}; use sampler=transformers.")
        self.model, self.decoding = model, decoding
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self.stops = torch.tensor(decoding.stops, device=model.device)
        self.step = torch.zeros(1, dtype=torch.long, device=model.device)
        self.graphs = Graphs(model)
        self.holder: object = None  # for whom the cache is kept between turns
        self._take(num_rows, num_slots)

    def _take(self, num_rows: int, num_slots: int) -> None:
        """Take memory for so many rows and slots; graphs of the old addresses are void."""
        self.graphs.forget()
        self.takes = 0
        device = self.model.device
        self.window = CacheWindow(num_rows, num_slots, self.is_static, device)
        self.cache = windowed_cache(self.model.config, self.window)
        length = self.decoding.max_new_tokens
        self.state = DecodeState.of_size(num_rows, num_slots, length, device)

    @torch.no_grad()
    def sample(
        self,
        prompt_ids_BP: Tensor,
        prompt_mask_BP: Tensor,
        uniforms_BC: Tensor | None,
        carried: Carried | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sample one completion for each prompt.

        Args:
            prompt_ids_BP: Prompts, padded left.
            prompt_mask_BP: 1 where a prompt token is.
            uniforms_BC: The episodes' noise; None takes the most probable token.
            carried: Of one turn of several, whose rows all stay in the cache: what to go on from.
                All is read where others have sampled since, or the slots do not suffice.

        Returns:
            Completion ids of shape (B, C) and their mask, 1 up to and including the stop token.

        Raises:
            NotFiniteError: Logits were NaN or infinite.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            self._begin(prompt_ids_BP, prompt_mask_BP, uniforms_BC, carried)
            for step in range(1, self.decoding.max_new_tokens):
                is_time = not self.is_captured or step % STEPS_PER_CHECK == 0
                if is_time and not self._drop_finished(carried is None):
                    break
                self._advance(uniforms_BC is not None)
        finally:
            self.model.train(was_training)
        self._collect()
        if self.faulty.any():  # and so are keys and values, which a mask does not hide
            self._take(self.window.num_rows, self.window.num_slots)
        check_sampled(self.faulty)
        self.holder = None if carried is None else carried.holder
        ids_BC = self.completions[:, : int(self.step)]
        mask_BC = mask_through_stop(ids_BC, *self.decoding.stops)
        return torch.where(mask_BC.bool(), ids_BC, self.decoding.pad_token_id), mask_BC

    def sample_turn(
        self, ids_BT: Tensor, mask_BT: Tensor, uniforms_BC: Tensor | None, carried: Carried
    ) -> tuple[Tensor, Tensor, int]:
        """As `sample`, and how many slots are filled then; rows are filled up to a known size."""
        rows = size = len(ids_BT)
        if self.is_static:  # few sizes, because each is captured
            size = self._rows_to_keep(rows, max(rows, self.window.num_rows))
        up = [min(row, rows - 1) for row in range(size)]
        noise_BC = uniforms_BC[up] if uniforms_BC is not None else None
        carried = Carried(carried.holder, carried.rows[up], carried.slots[up])
        ids_BC, mask_BC = self.sample(ids_BT[up], mask_BT[up], noise_BC, carried)
        return ids_BC[:rows], mask_BC[:rows], self.window.filled

    def _begin(
        self, ids_BP: Tensor, mask_BP: Tensor, uniforms_BC: Tensor | None, carried: Carried | None
    ) -> None:
        """Read the prompts, but for what is carried on, and choose the first tokens."""
        rows, width = ids_BP.shape
        slots, known = width + self.decoding.max_new_tokens, 0
        if carried is not None and carried.holder is not self.holder:
            carried = None
        self.holder = None  # until all is sampled: an error leaves a cache of no use
        if rows > self.window.num_rows or slots > self.window.num_slots:
            wanted = slots if carried is None else 2 * slots  # the next turn needs more
            self._take(max(rows, self.window.num_rows), max(wanted, self.window.num_slots))
        elif carried is not None:
            known = carried.slots.shape[1]
            for layer in self.cache.layers:
                layer.carry(carried)
        if self.is_static:
            self.graphs.forget_if_moved()
        state = self.state
        state.mask.fill_(1)
        state.mask[:rows, :width] = mask_BP
        state.positions[:rows, 0] = mask_BP.sum(1) - 1
        state.has_ended.fill_(False)
        state.is_faulty.fill_(False)
        if uniforms_BC is not None:
            state.uniforms[:rows] = uniforms_BC
        self.owners = torch.arange(rows, device=ids_BP.device)
        self.completions = torch.zeros_like(state.tokens[:rows])
        self.faulty = torch.zeros_like(state.is_faulty[:rows])
        self.step.zero_()
        self.window.slot.fill_(known)
        self.window.show(rows, width, known)
        logits_BV = self.model(
            input_ids=ids_BP[:, known:],
            attention_mask=mask_BP,
            **self._positions(position_ids(mask_BP)[:, known:]),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self.window.slot.fill_(width - 1)
        self._choose(logits_BV, uniforms_BC is not None)
        self.window.filled = width
        if self.window.takes != self.takes:
            self.graphs.forget()
        self.takes = self.window.takes

    def _choose(self, logits_BV: Tensor, is_sampled: bool) -> None:
        """Choose the next token of each row and note what follows from it."""
        state, rows = self.state, len(logits_BV)
        is_wrong_B = ~logits_BV.amax(-1).isfinite()
        state.is_faulty[:rows] |= is_wrong_B & ~state.has_ended[:rows]
        if is_sampled:
            uniforms_B = state.uniforms[:rows].index_select(1, self.step).squeeze(1)
            tokens_B = invert_cdf(logits_BV.float(), uniforms_B, self.decoding.temperature)
        else:
            tokens_B = logits_BV.float().argmax(-1)
        state.ids[:rows, 0] = tokens_B
        state.tokens[:rows].index_copy_(1, self.step, tokens_B.unsqueeze(1))
        # Not isin, which looks at what it reads where there are many stops.
        state.has_ended[:rows] |= (tokens_B.unsqueeze(1) == self.stops).any(1)
        state.positions[:rows] += 1
        self.step += 1
        self.window.slot += 1

    def _step(self, is_sampled: bool) -> None:
        state, window = self.state, self.window
        rows, seen = window.rows, window.seen
        logits_BV = self.model(
            input_ids=state.ids[:rows],
            attention_mask=state.mask[:rows, :seen],
            **self._positions(state.positions[:rows]),
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        self._choose(logits_BV, is_sampled)

    def _advance(self, is_sampled: bool) -> None:
        """One token more for each row."""
        window = self.window
        needed = window.filled + 1
        if self.is_static:
            steps = -(-needed // SLOTS_PER_GRAPH)
            needed = min(window.num_slots, steps * SLOTS_PER_GRAPH)
        window.show(window.rows, needed, window.filled)
        if self.is_captured:
            key = window.rows, window.seen, is_sampled
            moving = [*self.state.of_rows(), self.step, window.slot]
            self.graphs.replay(key, lambda: self._step(is_sampled), moving)
        else:
            self._step(is_sampled)
        window.filled += 1

    def _drop_finished(self, may_drop: bool) -> bool:
        """Leave out rows that have ended, where they may be; whether any goes on."""
        rows = self.window.rows
        has_ended = self.state.has_ended[:rows].tolist()
        going_on = [row for row in range(rows) if not has_ended[row]]
        if not going_on:
            return False
        kept = self._rows_to_keep(len(going_on), rows) if may_drop else rows
        if kept < rows:
            ended = [row for row in range(rows) if has_ended[row]]
            self._keep(going_on + ended[: kept - len(going_on)])
        return True

    def _rows_to_keep(self, num_going_on: int, rows: int) -> int:
        if self.is_static:  # few sizes, because each is captured
            return min(rows, 1 << (num_going_on - 1).bit_length())
        return num_going_on if num_going_on <= MAX_KEPT_SHARE * rows else rows

    def _keep(self, rows: list[int]) -> None:
        """Go on with these rows alone."""
        window, state = self.window, self.state
        kept = torch.tensor(rows, device=self.owners.device)
        self._collect()
        self.owners = self.owners[kept]
        for of_rows in state.of_rows():
            of_rows[: len(rows)] = of_rows[: window.rows].index_select(0, kept)
        for layer in self.cache.layers:
            layer.keep(kept, window.filled)
        window.rows = len(rows)

    def _collect(self) -> None:
        """Note what the rows in hand say, by the prompts that they belong to."""
        state, rows = self.state, self.window.rows
        self.completions[self.owners] = state.tokens[:rows]
        self.faulty[self.owners] = state.is_faulty[:rows]

    def _positions(self, position_ids: Tensor) -> dict[str, Tensor]:
        return {"position_ids": position_ids} if self.takes_positions else {}


def unsupported_reason(model: PreTrainedModel, is_static: bool = False) -> str | None:
    """Why the loop cannot run a model as generate does.

    Args:
        model: Causal language model.
        is_static: Whether steps must have the same shapes, as a capture needs.

    Returns:
        What the model does, for a sentence that begins with "the model"; None for nothing.
    """
    kinds, _ = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    others = sorted(set(kinds) - set(LAYER_TYPES))
    if others:
        return f"has layers of {' and '.join(others)}"
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return "takes no cache of keys and values"
    own = type(model).prepare_inputs_for_generation
    if own is not GenerationMixin.prepare_inputs_for_generation:
        return "prepares its inputs for generation in its own way"
    moving = sorted(set(_rope_types(model.config.to_dict())) & set(MOVING_ROPE))
    if moving:
        return f"has positions of the kind {' and '.join(moving)}"
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        return "lies on several devices"
    if is_static and not getattr(model, "_can_compile_fullgraph", False):
        return "has steps that depend on what they read"
    return None


def is_faster(model: PreTrainedModel) -> bool:
    """Whether the loop is known to be faster than generate (docs/benchmarks/cpu.md).

    Args:
        model: Causal language model.

    Returns:
        Whether it can run the model, on a CPU; on a GPU this is not yet measured.
    """
    return model.device.type == "cpu" and unsupported_reason(model) is None


def _rope_types(value: Any) -> Iterator[str]:
    """All rope types in a configuration, which may have one for each kind of layer."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in ("rope_type", "type") and isinstance(inner, str):
                yield inner
            yield from _rope_types(inner)
