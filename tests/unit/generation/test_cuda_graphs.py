"""Captured steps without a card: the operations of one step, recorded and done again.

As in a CUDA graph, a replay does what was recorded at the same addresses and runs no Python, so a
number that Python would change between steps stays as it was; and an operation that reads a tensor
on the host is an error.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recipes.lib.errors import UserError
from recipes.lib.generation.cuda_graphs import Graphs
from recipes.lib.generation.decoder import Decoder
from recipes.lib.generation.sampling import Decoding, episode_uniforms, generate, pad_left
from recipes.lib.generation.turns import Turns
from tests.unit.generation.test_decoder import NUM_PROMPTS, PAD, STOP, decoding, make, prompts

LOOKS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "aten.equal")


class Record(TorchDispatchMode):
    """Keeps the operations that are done inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if any(name in str(function) for name in LOOKS):
            raise RuntimeError(f"{function} looks at what it reads")
        out = function(*args, **(kwargs or {}))
        self.done.append((function, args, kwargs or {}, out))
        return out


class Replay:
    """Does recorded operations again, into the tensors that they gave at first."""

    def __init__(self, done: list[tuple[Any, Any, Any, Any]]) -> None:
        self.done = done

    def replay(self) -> None:
        for function, args, kwargs, out in self.done:
            given = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
            for old, new in zip(tensors(out), tensors(function(*args, **kwargs)), strict=True):
                is_own = old.numel() and old.untyped_storage().data_ptr() not in given
                if is_own and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let graphs be recorded instead of captured."""

    def record(
        self: Graphs, step: Callable[[], None], moving: Sequence[Tensor], dtype: Any
    ) -> Replay:
        before = [tensor.clone() for tensor in moving]
        with Record() as record:
            step()
        for tensor, value in zip(moving, before, strict=True):
            tensor.copy_(value)
        return Replay(record.done)

    monkeypatch.setattr(Graphs, "_capture", record)
    monkeypatch.setattr("torch.cuda.device", torch.device)
    monkeypatch.setattr("recipes.lib.generation.decoder.SLOTS_PER_GRAPH", 16)


def as_on_a_card(model: Any) -> Decoder:
    decoder = Decoder(model, decoding(), 9, 27, is_static=True)
    decoder.is_captured = True
    return decoder


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2", "mistral", "gpt_neox"])
def test_a_replayed_step_depends_on_no_number_of_python(name: str, recorded: None) -> None:
    model = make(name)
    decoder = as_on_a_card(model)
    for seed in (0, 1):  # the second time from graphs that are there
        expect_generate(model, decoder, seed)
    sizes = {key[:2] for key in decoder.graphs.captured}
    assert {seen for _, seen in sizes} == {16, 27}
    assert {rows for rows, _ in sizes} <= {9, 8, 4, 2, 1}


def test_replayed_steps_see_an_adapter_that_learns(recorded: None) -> None:
    lora = LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False)
    adapted = get_peft_model(make("qwen3"), lora)
    model = adapted.get_base_model()
    decoder = as_on_a_card(model)
    expect_generate(model, decoder, 0)
    graphs = dict(decoder.graphs.captured)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    expect_generate(model, decoder, 0)
    assert graphs.items() <= decoder.graphs.captured.items()  # the very same graphs
    with adapted.disable_adapter():
        expect_generate(model, decoder, 0)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_turns_go_on_by_replayed_steps(name: str, recorded: None) -> None:
    model, several = make(name), Decoding(10, 1.0, STOP, PAD, (4, 9))
    decoder = Decoder(model, several, 5, 70, is_static=True)
    decoder.is_captured = True
    turns = Turns(decoder, [[5, 6, 7], [8], [9, 3], [2, 2, 2, 2], [7]], several, "cpu")
    graphs: dict[Any, Any] = {}
    for turn, in_hand in enumerate([5, 3, 3, 1]):
        full = [list(tokens) for tokens in turns.tokens]
        noise = episode_uniforms(3, range(in_hand), 10, turn)
        ids, mask = generate(model, *pad_left(full, PAD, "cpu"), noise, several)
        lengths = mask.sum(1).tolist()
        assert turns.say(noise) == [row[:n] for row, n in zip(ids.tolist(), lengths, strict=True)]
        assert graphs.items() <= decoder.graphs.captured.items()  # none was made anew
        graphs = dict(decoder.graphs.captured)
        rows = range(in_hand)[: 3 if turn < 2 else 1]
        turns.hear(rows, [[3] * (1 + row + turn) for row in rows])
    assert {key[0] for key in graphs} == {5, 4, 1}
    assert decoder.window.num_slots == 70


def test_what_looks_at_what_it_reads_is_refused_with_the_way_out(recorded: None) -> None:
    model = make("llama")

    def look(module: Any, given: Any, out: Tensor) -> None:
        assert not out.isnan().any()

    model.model.norm.register_forward_hook(look)
    with pytest.raises(UserError, match=r"step of this model cannot be captured .*looks at what"):
        as_on_a_card(model).sample(*prompts(), None)


def expect_generate(model: Any, decoder: Decoder, seed: int) -> None:
    """Completions are those of generate; a card looks later whether all have ended."""
    noise = episode_uniforms(seed, range(NUM_PROMPTS), decoder.decoding.max_new_tokens)
    for uniforms in (None, noise):
        expected, expected_mask = generate(model, *prompts(), uniforms, decoder.decoding)
        got, mask = decoder.sample(*prompts(), uniforms)
        width = expected.shape[1]
        assert torch.equal(got[:, :width], expected)
        assert torch.equal(mask[:, :width], expected_mask)
        assert not mask[:, width:].any()
