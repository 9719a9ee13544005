"""What a policy says to prompts: by transformers' generate, the own decode loop, or vLLM.

vLLM, in the training's processes or on a server, draws its own noise. So the same seed gives other
completions than the other samplers, and a run that is resumed in the middle of a rollout makes that
rollout anew.

Shapes: B episodes, P prompt tokens (padded left), C completion tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor

from recipes.lib.errors import UserError
from recipes.lib.generation.decoder import Decoder, is_faster
from recipes.lib.generation.sampling import Decoding, generate, mask_through_stop, pad_left
from recipes.lib.generation.turns import CachedGenerate, Turns
from recipes.lib.models.forward import base_model, length_batches


class Sampler:
    """Samples completions in batches of prompts of like length.

    Args:
        trainer: The PPOTrainer: its policy, its configuration, and the autocast that it trains in.
        decoding: Length, temperature and the tokens at the end.
        most_prompt_tokens: Length of the longest prompt that is expected.
    """

    is_collective = False  # each process samples by itself

    def __init__(self, trainer: Any, decoding: Decoding, most_prompt_tokens: int) -> None:
        self.model, self.args = base_model(trainer.actor_critic.policy), trainer.args
        self.decoding, self.accelerator = decoding, trainer.accelerator
        self.most_tokens = most_prompt_tokens + decoding.max_new_tokens
        self.decoder: Decoder | None = None  # on a GPU, made when the model is where it trains

    @property
    def is_own(self) -> bool:
        """Whether the own loop is used: where it was asked for, or is known to be faster."""
        if self.args.sampler is None:
            return is_faster(self.model)
        return self.args.sampler == "graph"

    def completions(
        self, prompts: Sequence[list[int]], uniforms_BC: Tensor | None
    ) -> list[list[int]]:
        """Sample one completion for each prompt.

        Args:
            prompts: Token ids of each prompt.
            uniforms_BC: Noise of each episode; None for the most probable tokens.

        Returns:
            Token ids of each completion, in the order of the prompts.
        """
        said: list[list[int]] = [[] for _ in prompts]
        for batch in length_batches(list(map(len, prompts)), self.args.sampling_batch_size):
            noise_BC = uniforms_BC[batch] if uniforms_BC is not None else None
            with self.accelerator.autocast():
                ids_BC, mask_BC = self._sample([prompts[i] for i in batch], noise_BC)
            lengths = mask_BC.sum(1).tolist()
            for i, ids_C, length in zip(batch, ids_BC.tolist(), lengths, strict=True):
                said[i] = ids_C[:length]
        return said

    def begin(self, prompts: Sequence[list[int]]) -> Turns:
        """Begin episodes of several turns, all of which are sampled together.

        Args:
            prompts: Token ids of each prompt, at most `sampling_batch_size` of them.

        Returns:
            The episodes, of which nothing is read yet. Their noise is given turn by turn.
        """
        way: Decoder | CachedGenerate = CachedGenerate(self.model, self.decoding)
        if self.is_own:  # with slots for some turns; it takes more as they come
            most_before = self.most_tokens - self.decoding.max_new_tokens
            way = self._decoder(len(prompts), max(most_before, *map(len, prompts)))
        return Turns(way, prompts, self.decoding, self.args.device, self.accelerator.autocast)

    def _sample(self, prompts: list[list[int]], noise_BC: Tensor | None) -> tuple[Tensor, Tensor]:
        ids_BP, mask_BP = pad_left(prompts, self.decoding.pad_token_id, self.args.device)
        if not self.is_own:
            return generate(self.model, ids_BP, mask_BP, noise_BC, self.decoding)
        return self._decoder(*ids_BP.shape).sample(ids_BP, mask_BP, noise_BC)

    def _decoder(self, rows: int, width: int) -> Decoder:
        if self.model.device.type != "cuda":  # nothing is captured: memory is taken batch by batch
            return Decoder(self.model, self.decoding, rows, width + self.decoding.max_new_tokens)
        if self.decoder is None:
            share = self.args.rollout_batch_size // self.args.world_size
            most_rows = min(self.args.sampling_batch_size, share)
            self.decoder = Decoder(self.model, self.decoding, most_rows, self.most_tokens)
        return self.decoder


class VLLMSampler:
    """Samples completions with vLLM; its weights follow the policy's.

    Args:
        trainer: The PPOTrainer: its policy, configuration, tokenizer and accelerator are used.
        decoding: Length, temperature and the tokens at the end.
        most_prompt_tokens: Length of the longest prompt that is expected.

    Raises:
        UserError: vLLM is not installed, or the policy's base is quantized.
    """

    is_collective = True  # all processes sample together

    def __init__(self, trainer: Any, decoding: Decoding, most_prompt_tokens: int) -> None:
        policy, args = trainer.actor_critic.policy, trainer.args
        check_vllm(policy)
        from trl.generation.vllm_generation import VLLMGeneration

        self.policy, self.decoding = policy, decoding
        self.base = base_weights(policy)
        self.generation = VLLMGeneration(
            policy,
            trainer.accelerator,
            trainer.processing_class,
            mode=args.vllm_mode,
            server_base_url=args.vllm_server_base_url,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            max_model_length=most_prompt_tokens + decoding.max_new_tokens,
            trust_remote_code=args.trust_remote_code,
            temperature=decoding.temperature,
            max_completion_length=decoding.max_new_tokens,
            logprobs=None,
            # Exactly the tokens that end a completion elsewhere; not those of the model's folder.
            generation_kwargs={"ignore_eos": True, "stop_token_ids": decoding.stops},
        )

    def completions(
        self, prompts: Sequence[list[int]], uniforms_BC: Tensor | None
    ) -> list[list[int]]:
        """Sample one completion for each prompt; called by all processes together.

        Args:
            prompts: Token ids of each prompt; processes may have different numbers of them.
            uniforms_BC: None for the most probable tokens; otherwise without effect.

        Returns:
            Token ids of each completion, in the order of the prompts.
        """
        with restoring_weights(self.base):
            self.generation.sync_weights()
        self.generation.temperature = 0.0 if uniforms_BC is None else self.decoding.temperature
        most = max(gather_object([len(prompts)]))
        # A server deals its answers out in equal shares.
        filled = [*prompts, *([[self.decoding.pad_token_id]] * (most - len(prompts)))]
        said = self.generation.generate(filled, None, 1)[1] if most else []
        return [cut_after_stop(list(ids), self.decoding) for ids in said[: len(prompts)]]


def check_vllm(policy: Any) -> None:
    """Refuse what cannot work, before anything is started.

    Args:
        policy: The policy.

    Raises:
        UserError: vLLM is not installed, or the policy's base is quantized.
    """
    if getattr(policy, "is_quantized", False):
        raise UserError(
            "sampler=vllm: vLLM gets the adapter merged into its base, which quantized weights do "
            "not survive unchanged; use sampler=graph, or leave load_in_4bit and load_in_8bit out."
        )
    from trl.import_utils import is_vllm_available

    if not is_vllm_available():
        raise UserError(
            "sampler=vllm: vLLM is not installed; pip install 'rlhf-recipes[vllm]', or use "
            "sampler=graph."
        )


def base_weights(policy: Any) -> dict[Any, Tensor]:
    """Copies of the weights that lie under a LoRA adapter, on the CPU; none without an adapter."""
    if not isinstance(policy, PeftModel):
        return {}
    below = [p for name, p in policy.named_parameters() if ".base_layer." in name]
    return {parameter: parameter.detach().to("cpu", copy=True) for parameter in below}


@contextmanager
def restoring_weights(base: dict[Any, Tensor]) -> Iterator[None]:
    """Put weights back to the bit afterwards: to merge an adapter and take it off rounds them."""
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, kept in base.items():
                parameter.copy_(kept)


def cut_after_stop(ids: list[int], decoding: Decoding) -> list[int]:
    """A completion up to and including its first stop token."""
    mask = mask_through_stop(torch.tensor([ids]), *decoding.stops)
    return ids[: int(mask.sum())]
