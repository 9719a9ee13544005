"""A label of a classifier as a reward or a cost: `RUN:label`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from recipes.lib.data.prompts import prompt_text
from recipes.lib.errors import UserError
from recipes.lib.models.forward import length_batches, pad_right

BATCH_SIZE = 64


class LabelReward:
    """Gives each completion the probability that a classifier gives it a label.

    Args:
        folder: Of the classifier.
        label: One of its labels.

    Raises:
        UserError: It has no such label, or reads pictures.
    """

    def __init__(self, folder: Path, label: str) -> None:
        from transformers import AutoConfig
        from trl import ModelConfig

        from recipes.lib.models.label_models import (
            label_names,
            load_label_model,
            what_it_reads,
        )
        from recipes.lib.models.policies import placed

        config = AutoConfig.from_pretrained(folder)
        args = ModelConfig(model_name_or_path=str(folder), dtype="float32")
        if what_it_reads(args) == "image":
            raise UserError(f"{folder}:{label}: it reads pictures, and completions are texts.")
        names = label_names(config)
        if label not in names:
            raise UserError(f"{folder}:{label}: its labels are {', '.join(names)}; name one.")
        self.is_multi = str(config.problem_type).startswith("multi")
        model, self.tokenizer, _ = load_label_model(args, names, is_multi=self.is_multi)
        self.model, self.place = placed(model), names.index(label)
        run = folder.parent if folder.name == "final" else folder
        self.__name__ = f"{run.name}:{label}"

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        """Probabilities of the completions alone, whatever they answer."""
        texts = [one if isinstance(one, str) else prompt_text(one[-1:]) for one in completions]
        pad = self.model.config.get_text_config().pad_token_id
        # What says nothing is one token all the same.
        ids = [one or [pad] for one in self.tokenizer(texts, truncation=True)["input_ids"]]
        found = [0.0] * len(ids)
        device = next(self.model.parameters()).device
        for chosen in length_batches([*map(len, ids)], BATCH_SIZE):
            rows, mask = pad_right([ids[n] for n in chosen], pad, device)
            logits = self.model(input_ids=rows, attention_mask=mask).logits.float()
            chances = logits.sigmoid() if self.is_multi else logits.softmax(-1)
            for place, chance in zip(chosen, chances[:, self.place].tolist(), strict=True):
                found[place] = chance
        return found
