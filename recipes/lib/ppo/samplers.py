"""What a policy says to prompts: by transformers' generate, the own decode loop, or vLLM.

Shapes: B episodes, P prompt tokens (padded left), C completion tokens.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from recipes.lib.decodable import is_faster
from recipes.lib.generation.decoder import Decoder
from recipes.lib.generation.sampling import Decoding, pad_left, sample
from recipes.lib.models.forward import base_model
from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.vllm_sampler import VLLMSampler


class Sampler:
    """Samples completions in batches of prompts of like length.

    Args:
        policy: Causal language model, with or without adapters.
        args: The configuration: which sampler, and how many prompts at a time.
        decoding: Length, temperature and the tokens at the end.
        accelerator: Gives the autocast that the policy trains in.
        most_prompt_tokens: Length of the longest prompt that is expected.
    """

    is_collective = False  # each process samples by itself

    def __init__(
        self,
        policy: Any,
        args: PPOConfig,
        decoding: Decoding,
        accelerator: Any,
        most_prompt_tokens: int,
    ) -> None:
        self.model, self.args, self.decoding = base_model(policy), args, decoding
        self.accelerator = accelerator
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
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), self.args.sampling_batch_size):
            batch = order[start : start + self.args.sampling_batch_size]
            noise_BC = uniforms_BC[batch] if uniforms_BC is not None else None
            with self.accelerator.autocast():
                ids_BC, mask_BC = self._sample([prompts[i] for i in batch], noise_BC)
            lengths = mask_BC.sum(1).tolist()
            for i, ids_C, length in zip(batch, ids_BC.tolist(), lengths, strict=True):
                said[i] = ids_C[:length]
        return said

    def _sample(self, prompts: list[list[int]], noise_BC: Tensor | None) -> tuple[Tensor, Tensor]:
        ids_BP, mask_BP = pad_left(prompts, self.decoding.pad_token_id, self.args.device)
        if not self.is_own:
            return sample(self.model, ids_BP, mask_BP, noise_BC, self.decoding)
        return self._decoder(*ids_BP.shape).sample(ids_BP, mask_BP, noise_BC)

    def _decoder(self, rows: int, width: int) -> Decoder:
        if self.model.device.type != "cuda":  # nothing is captured: memory is taken batch by batch
            return Decoder(self.model, self.decoding, rows, width + self.decoding.max_new_tokens)
        if self.decoder is None:
            share = self.args.rollout_batch_size // self.args.world_size
            most_rows = min(self.args.sampling_batch_size, share)
            self.decoder = Decoder(self.model, self.decoding, most_rows, self.most_tokens)
        return self.decoder


def make_sampler(
    trainer: Any, decoding: Decoding, most_prompt_tokens: int
) -> Sampler | VLLMSampler:
    """The sampler that the configuration asks for.

    Args:
        trainer: The trainer: its policy, configuration, tokenizer and accelerator are used.
        decoding: Length, temperature and the tokens at the end.
        most_prompt_tokens: Length of the longest prompt that is expected.

    Returns:
        An object whose `completions` samples one completion for each prompt.
    """
    policy, args = trainer.actor_critic.policy, trainer.args
    if args.sampler == "vllm":
        given = args, decoding, trainer.accelerator, trainer.processing_class
        return VLLMSampler(policy, *given, most_prompt_tokens)
    return Sampler(policy, args, decoding, trainer.accelerator, most_prompt_tokens)
