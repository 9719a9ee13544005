"""Episodes of several turns: what the policy says, what it hears, and a cache that goes on.

A turn reads only what the cache lacks: the last token that was said, which nobody has read yet, and
what was heard. Rows are of unlike lengths. So before each turn the keys and values of every row are
moved to end in one slot, as if its tokens had been read as one prompt, padded left: no hole is left
between them, attention that slides sees as many of them as it should, and no slot is lost. A row
that lacks less than another reads some of its last tokens once more.

Shapes: B episodes, T tokens so far (padded left), K of them carried on, C tokens of a turn.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from recipes.lib.generation.cache import Carried
from recipes.lib.generation.decoder import Decoder, unsupported_reason
from recipes.lib.generation.sampling import Decoding, generate, pad_left


class CachedGenerate:
    """Turns by transformers' generate; a model that the own loop cannot run reads all each time.

    Args:
        model: Causal language model (of a PeftModel its base model, with the adapter in it).
        decoding: Length, temperature and the tokens at the end.
    """

    def __init__(self, model: PreTrainedModel, decoding: Decoding) -> None:
        self.model, self.decoding = model, decoding
        self.goes_on = unsupported_reason(model) is None
        self.cache: DynamicCache | None = None

    def sample_turn(
        self, ids_BT: Tensor, mask_BT: Tensor, uniforms_BC: Tensor | None, carried: Carried
    ) -> tuple[Tensor, Tensor, int]:
        """Completion ids, their mask, and how many slots are filled then."""
        cache, self.cache = self.cache, None  # an error leaves one of no use
        if not self.goes_on:
            return *generate(self.model, ids_BT, mask_BT, uniforms_BC, self.decoding), 0
        if cache is None or not carried.slots.numel():
            cache = DynamicCache()  # in full length also where attention slides
        for layer in cache.layers:
            layer.keys, layer.values = carried.of(layer.keys), carried.of(layer.values)
        said = generate(self.model, ids_BT, mask_BT, uniforms_BC, self.decoding, cache=cache)
        self.cache = cache
        return *said, cache.get_seq_length()


class Place(NamedTuple):
    """Where keys and values of a row stand: its row in the cache, its first slot, and its end."""

    row: int
    start: int
    end: int


class Turns:
    """Episodes of several turns that are sampled together.

    Args:
        way: What samples.
        prompts: Token ids of each prompt.
        decoding: Length of a turn, temperature and the tokens at the end.
        device: Where the model is.
        context: What to sample in, an autocast for instance.
    """

    def __init__(
        self,
        way: Decoder | CachedGenerate,
        prompts: Sequence[list[int]],
        decoding: Decoding,
        device: Any,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.way, self.decoding, self.device, self.context = way, decoding, device, context
        self.tokens = [list(prompt) for prompt in prompts]
        self.places = [Place(row, 0, 0) for row in range(len(prompts))]

    def say(self, uniforms_BC: Tensor | None) -> list[list[int]]:
        """Sample a turn of each row in hand.

        Args:
            uniforms_BC: Noise of each row in this turn; None for the most probable tokens.

        Returns:
            Token ids of each turn, up to and including the stop token.

        Raises:
            NotFiniteError: Logits were NaN or infinite.
        """
        ids_BT, mask_BT = pad_left(self.tokens, self.decoding.pad_token_id, self.device)
        width = ids_BT.shape[1]
        carried = self._carried(width)
        with self.context():
            ids_BC, mask_BC, filled = self.way.sample_turn(ids_BT, mask_BT, uniforms_BC, carried)
        lengths = mask_BC.sum(1).tolist()
        said = [ids[:length] for ids, length in zip(ids_BC.tolist(), lengths, strict=True)]
        for row, (tokens, new) in enumerate(zip(self.tokens, said, strict=True)):
            start, end = width - len(tokens), min(width + len(new), filled)
            self.places[row] = Place(row, start, end)
            self.tokens[row] = tokens + new
        return said

    def hear(self, rows: Sequence[int], ids: Sequence[list[int]]) -> None:
        """Go on with some rows alone, each with further tokens.

        Args:
            rows: Indices into the rows in hand; those that are not named are dropped.
            ids: What each of them hears, one token at least.
        """
        assert all(ids), "a row that hears nothing has nothing to go on from"
        self.tokens = [self.tokens[row] + new for row, new in zip(rows, ids, strict=True)]
        self.places = [self.places[row] for row in rows]

    def _carried(self, width: int) -> Carried:
        """What of the cache is gone on from: as many columns as it has of every row."""
        rows = list(zip(self.tokens, self.places, strict=True))
        lacking = max(len(tokens) - (place.end - place.start) for tokens, place in rows)
        first = [place.start + len(tokens) - width for tokens, place in rows]
        slots_BK = torch.tensor(first).unsqueeze(1) + torch.arange(max(0, width - lacking))
        in_cache = torch.tensor([place.row for place in self.places])
        # Columns of padding stand nowhere; the mask hides what they get.
        return Carried(self, in_cache.to(self.device), slots_BK.clamp(min=0).to(self.device))
