"""A reward model whose every score can be worked out by hand: a weight for each word, added up."""

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from recipes.lib.doctor.subject import Subject
from recipes.lib.rewards.reward_models import RewardModel
from tests.helpers import tiny

WORDS = ["<pad>", "<eos>", "<unk>", ".", *(f"w{number}" for number in range(40)), "good", "bad"]


class SumOfWords(nn.Module):
    """Score: the weights of all words that the mask shows.

    `way` plants a fault: "unmasked" adds padding, too; "last column" adds what stands there alone;
    "turned by eos" changes the sign behind an end token.
    """

    def __init__(self, weights: dict[str, float], way: str = "") -> None:
        super().__init__()
        told = [weights.get(word, weights.get("*", 0.0)) for word in WORDS]
        self.weights = nn.Parameter(torch.tensor(told))
        self.way = way
        self.config = LlamaConfig(vocab_size=len(WORDS), num_labels=1, pad_token_id=0)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        """Scores, (rows, 1)."""
        worth = self.weights[input_ids]
        if self.way == "last column":
            return SequenceClassifierOutput(logits=worth[:, -1:])
        shown = attention_mask if self.way != "unmasked" else torch.ones_like(attention_mask)
        score = (worth * shown).sum(1, keepdim=True)
        if self.way == "turned by eos":
            score = score * (1 - 2 * (input_ids == 1).any(1, keepdim=True))
        return SequenceClassifierOutput(logits=score)


def subject(
    rows: list[dict[str, Any]],
    weights: dict[str, float],
    train: list[dict[str, Any]] | None = None,
    way: str = "",
) -> Subject:
    """A subject that scores so, asked about these rows."""
    tokenizer = tiny.tokenizer(words=WORDS)
    scorer = RewardModel(SumOfWords(weights, way), tokenizer, "known", 16)
    known = None if train is None else Dataset.from_list(train)
    return Subject("nowhere", scorer, known, Dataset.from_list(rows))


def pair(chosen: str, rejected: str, prompt: str = "w0 ") -> dict[str, Any]:
    """A row."""
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
