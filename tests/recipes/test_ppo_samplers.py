"""The samplers of PPO: another one changes how long a run takes, and nothing else."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from trl.distributed import DistributedBackend
from trl.generation.vllm_generation import VLLMGeneration
from trl.import_utils import is_vllm_available

from recipes.lib.errors import UserError
from recipes.lib.generation.decoder import Decoder
from recipes.lib.generation.sampling import Decoding
from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.samplers import base_weights, check_vllm, cut_after_stop, restoring_weights
from tests.recipes.test_ppo_trainer import make, state


@pytest.mark.parametrize("lora", [False, True])
def test_the_graph_sampler_gives_the_same_run(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, lora: bool
) -> None:
    ends, said, rows = [], [], []
    own = Decoder.sample

    def counted(self: Decoder, ids: Any, *more: Any) -> Any:
        rows.append(len(ids))
        return own(self, ids, *more)

    patch = pytest.MonkeyPatch()
    patch.setattr(Decoder, "sample", counted)
    for sampler in ("transformers", "graph"):
        trainer = make(
            copy.deepcopy(tiny_model),
            tiny_tokenizer,
            tmp_path / sampler,
            lora,
            sampler=sampler,
            sampling_batch_size=3,  # several batches, the last one smaller
            max_completion_length=12,
        )
        trainer.train()
        prompts = trainer.collector.prompts
        said.append([e.completion_ids for e in trainer.collector.sample(prompts, [0, 1], None)])
        ends.append(state(trainer.model))
    patch.undo()
    assert rows == [3, 3, 2, 3, 3, 2, 2]  # the second one alone did sample in the own loop
    assert said[0] == said[1]
    # The episodes are the same, and what is learned from them does not come from the sampler.
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_without_vllm_its_sampler_is_refused_with_the_way_to_get_it(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    assert not is_vllm_available()
    expected = r"sampler=vllm: vLLM is not installed; pip install 'rlhf-recipes\[vllm\]'"
    with pytest.raises(UserError, match=expected):
        make(tiny_model, tiny_tokenizer, tmp_path, sampler="vllm")


def test_vllm_is_refused_weights_that_it_cannot_merge() -> None:
    quantized: Any = SimpleNamespace(is_quantized=True)
    with pytest.raises(UserError, match="quantized weights do not survive unchanged"):
        check_vllm(quantized)


def test_the_address_of_a_server_is_all_that_has_to_be_said(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    address = {"vllm_server_base_url": "http://node:8000"}
    config = PPOConfig(**keys, **address)
    assert (config.sampler, config.vllm_mode) == ("vllm", "server")
    plain = PPOConfig(**keys)
    assert (plain.sampler, plain.vllm_mode) == (None, "colocate")
    for other in ({"vllm_mode": "colocate"}, {"sampler": "graph"}):
        with pytest.raises(UserError, match="vllm_server_base_url=http://node:8000 wants sampler"):
            PPOConfig(**keys, **address, **other)


def test_weights_come_back_to_the_bit_after_vllm_has_read_them(tiny_model: Any) -> None:
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    policy = get_peft_model(tiny_model, lora)
    before = state(policy)
    # TRL's own walk over the weights, which merges the adapter on its way.
    generation = VLLMGeneration.__new__(VLLMGeneration)
    generation.model = policy
    generation._dist = DistributedBackend(Accelerator(cpu=True))

    def read() -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in generation._iter_named_params()}

    kept = base_weights(policy)
    with restoring_weights(kept):
        sent = read()
    assert all(torch.equal(value, before[name]) for name, value in state(policy).items())
    merged = copy.deepcopy(policy).merge_and_unload().state_dict()
    assert sent.keys() <= merged.keys()
    for name, value in sent.items():
        torch.testing.assert_close(value, merged[name])
    read()  # without putting back
    assert any(not torch.equal(value, before[name]) for name, value in state(policy).items())


def test_a_completion_ends_with_its_first_stop_token() -> None:
    decoding = Decoding(8, 1.0, 1, 0, (4,))
    assert cut_after_stop([5, 6, 4, 7], decoding) == [5, 6, 4]
    assert cut_after_stop([5, 6], decoding) == [5, 6]
    assert cut_after_stop([1], decoding) == [1]
