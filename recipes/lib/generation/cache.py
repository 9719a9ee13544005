"""Keys and values of sampling in memory that stays where it is.

A captured decode step reads and writes fixed addresses. So keys and values of all rows and slots
are taken once; a step sees the first rows and slots of them, and writes where a tensor says.

Shapes: B rows, S slots (a prompt's and its completion's tokens), H heads, D units of a head.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, get_layer_types_and_kwargs


@dataclass(frozen=True)
class Carried:
    """What of a cache a further reading goes on from.

    Args:
        holder: Whose cache it has to be.
        rows: Row in the cache of each new row, (B,).
        slots: Slot in the cache of each of its first tokens, (B, K).
    """

    holder: object
    rows: Tensor
    slots: Tensor

    def of(self, states: Tensor) -> Tensor:
        """Its part of keys or values, as (B, H, K, D)."""
        return states.transpose(1, 2)[self.rows.unsqueeze(1), self.slots].transpose(1, 2)


class CacheWindow:
    """What of the cache is in use; one for all layers.

    Args:
        num_rows: Rows that there is room for.
        num_slots: Slots that there is room for.
        is_static: Whether the position is read from a tensor alone, as a captured step needs it.
        device: Where the position is kept.
    """

    def __init__(self, num_rows: int, num_slots: int, is_static: bool, device: Any) -> None:
        self.num_rows, self.num_slots, self.is_static = num_rows, num_slots, is_static
        self.rows = self.seen = self.filled = 0
        self.takes = 0  # how often a layer took memory: what knew its address before is void
        self.slot = torch.zeros(1, dtype=torch.long, device=device)

    def show(self, rows: int, seen: int, filled: int) -> None:
        """Let the next pass use the first rows and slots; `filled` slots are written already."""
        self.rows, self.seen, self.filled = rows, seen, filled


class WindowedLayer(CacheLayerMixin):
    """Keys and values of one layer, in full length also where attention slides: its mask slides."""

    def __init__(self, window: CacheWindow, is_sliding: bool) -> None:
        super().__init__()
        self.window, self.is_sliding = window, is_sliding
        # Masks must not be left out in a captured step, whose shapes say nothing of its position.
        self.is_compileable = window.is_static

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the memory; zeros, because what a mask hides must be finite."""
        rows, slots = self.window.num_rows, self.window.num_slots
        self.window.takes += 1
        self.keys, self.values = (
            new.new_zeros(rows, new.shape[1], slots, new.shape[3])
            for new in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values (B, H, tokens, D) behind those that are there.

        Returns:
            Those of all tokens that are seen.
        """
        if not self._fits(key_states, value_states):
            assert self.window.filled == 0, "the number format changed in the middle of a sampling"
            self.lazy_initialization(key_states, value_states)
        window, width = self.window, key_states.shape[2]
        keys, values = self.keys[: window.rows], self.values[: window.rows]
        if window.filled == 0:
            keys[:, :, :width], values[:, :, :width] = key_states, value_states
            return key_states, value_states
        slots = window.slot
        if width > 1:
            slots = slots + torch.arange(width, device=slots.device)
        keys.index_copy_(2, slots, key_states)
        values.index_copy_(2, slots, value_states)
        return keys[:, :, : window.seen], values[:, :, : window.seen]

    def _fits(self, key_states: Tensor, value_states: Tensor) -> bool:
        if not self.is_initialized:
            return False
        # Under an autocast the two may differ, and it may come and go.
        return self.keys.dtype == key_states.dtype and self.values.dtype == value_states.dtype

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask is for."""
        return self.window.seen, 0

    def get_seq_length(self) -> Any:
        """Slots that are written; of a captured step a tensor."""
        window = self.window
        is_read = window.is_static and window.filled > 0
        return window.slot[0] if is_read else window.filled

    def get_max_length(self) -> int:
        """Slots that there is room for."""
        return self.window.num_slots

    def keep(self, rows: Tensor, num_slots: int) -> None:
        """Move rows to the front."""
        for of_rows in (self.keys, self.values):
            kept = of_rows[: self.window.rows, :, :num_slots].index_select(0, rows)
            of_rows[: len(rows), :, :num_slots] = kept

    def carry(self, carried: Carried) -> None:
        """Move to the front what a further reading goes on from."""
        for of_rows in (self.keys, self.values):
            kept = carried.of(of_rows)
            of_rows[: kept.shape[0], :, : kept.shape[2]] = kept


def windowed_cache(config: Any, window: CacheWindow) -> Cache:
    """Cache of a model, all layers of it behind one window."""
    kinds, _ = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
    return Cache(layers=[WindowedLayer(window, kind == "sliding_attention") for kind in kinds])
