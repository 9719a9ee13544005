"""Reward models from answers of every kind: TRL's RewardTrainer on rows of several completions.

A pair is a row of two, and of pairs alone all is as TRL has it. What the answers need beside the
scores (cut points of ratings, offsets of annotators, weights of ties) is trained with the model,
stands in checkpoints, and is not needed to use it.

Shapes: B rows, N completions of a row, S sequences of a batch, A aspects, K heads of an ensemble.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trl import RewardTrainer
from trl.trainer.utils import pad

from recipes.lib.data.file_rows import Row
from recipes.lib.data.problems import PLACE
from recipes.lib.data.tokenization import answer_ids
from recipes.lib.errors import UserError
from recipes.lib.models.reward_heads import name_outputs
from recipes.lib.trainers.answer_losses import (
    centring_loss,
    ordinal_loss,
    ranking_loss,
    regression_loss,
)
from recipes.lib.trainers.answer_survey import Survey
from recipes.lib.trainers.resumable import Resumable

BESIDE_FILE = "beside.safetensors"  # of a checkpoint
# Columns of `Survey.encode`, with what they are of pairs as TRL prepares them.
ABSENT = {"about": 0, "margin": 0.0, "weight": 1.0, "scale": -1, "level": 0.0, "rater": -1}


class Beside(nn.Module):
    """What is learned beside the scores; in no file of a model.

    Args:
        survey: What the answers are about.
    """

    def __init__(self, survey: Survey) -> None:
        super().__init__()
        self.offsets = nn.Parameter(torch.zeros(max(1, len(survey.annotators))))
        known = ((said, survey.is_ordinal(scale)) for scale, said in survey.levels.items())
        rises = [_rises(said) if is_ordinal else [] for said, is_ordinal in known] or [[]]
        most = max(1, *map(len, rises))
        cuts = torch.tensor([[*some, *[math.nan] * (most - len(some))] for some in rises])
        self.cuts = nn.Parameter(cuts.nan_to_num(0.0))
        # Of equal pairs the share w / (2 + w) is tied, which is that of these for pairs alone.
        sizes, alone = range(2, max(survey.tied, default=1) + 1), survey.tied[1] + 1
        ties = [math.log((4 * survey.tied[size] + 1) / alone) for size in sizes]
        self.ties = nn.Parameter(torch.tensor(ties, dtype=torch.float))
        counts = torch.tensor([*survey.annotators.values()] or [1], dtype=torch.float)
        self.is_cut: Tensor
        self.counts: Tensor
        self.register_buffer("is_cut", ~cuts.isnan(), persistent=False)
        self.register_buffer("counts", counts.clamp(min=1), persistent=False)
        self.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_forgive)  # type: ignore[no-untyped-call]

    def values(self) -> dict[str, Tensor]:
        """Offsets of annotators, rising cut points of every scale, and log-weights of ties."""
        rising = torch.cat([self.cuts[:, :1], self.cuts[:, 1:].exp()], 1).cumsum(1)
        cuts = rising.masked_fill(~self.is_cut, torch.inf)
        ties = torch.cat([self.ties.new_zeros(1), self.ties])
        return {"offsets": self.offsets * 1, "cuts": cuts, "ties": ties}


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]


def _forgive(module: nn.Module, found: Any) -> None:
    own = tuple(f"beside.{name}" for name, _ in module.named_parameters())
    found.missing_keys[:] = [key for key in found.missing_keys if not key.endswith(own)]


def _rises(said: Counter[float]) -> list[float]:
    """The first cut point where all scores are 0, and the logs of the steps to the others."""
    counts = np.array([said[value] + 0.5 for value in sorted(said)])  # no level is without answers
    below = counts.cumsum()[:-1]
    cuts = np.log(below / (counts.sum() - below))
    return [*cuts[:1].tolist(), *np.log(np.diff(cuts)).tolist()]


def prepare_answers(
    survey: Survey, tokenizer: Any, rows: Any, columns: Sequence[str], *, is_training: bool
) -> Any:
    """Rows with what `AnswerCollator` reads; TRL tokenizes pairs about one thing, as ever.

    Args:
        survey: What the answers are about.
        tokenizer: The model's, with its chat template.
        rows: The answers.
        columns: What they have.
        is_training: Whether they are bootstrapped.
    """

    def numbers(row: Row) -> Row:
        made = survey.encode(row, is_training)
        if survey.is_plain:
            return made
        # TRL takes rows with two such columns as tokenized, and leaves a row out by their length.
        ids = answer_ids(row, tokenizer)
        order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
        first, second, *others = [*(ids[place] for place in order), []][: max(2, len(ids))]
        made["places"] = [made["places"][place] for place in order if made["places"]]
        return made | {"chosen_ids": first, "rejected_ids": second, "more_ids": others}

    is_as_ever = survey.is_plain and survey.heads.ensemble == 1
    if is_as_ever and "weight" not in columns and not survey.script.answer_weights:
        return rows
    gone = [] if survey.is_plain else [name for name in columns if name != PLACE]
    return rows.map(numbers, remove_columns=gone)


@dataclass
class AnswerCollator:
    """Makes a batch of answers: all first completions, all second ones, and so on, as TRL's does.

    Args:
        pad_token_id: Id that sequences are padded with.
        pad_to_multiple_of: Of their length, or None.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        """The batch: sequences, and for each row where its completions are among them."""
        groups = [
            [row["chosen_ids"], *filter(len, [row["rejected_ids"], *(row.get("more_ids") or ())])]
            for row in rows
        ]
        places_BN = torch.full((len(rows), max(map(len, groups))), -1)
        ranks_BN = torch.zeros_like(places_BN)
        ids: list[Tensor] = []
        for place in range(places_BN.shape[1]):
            for number, (row, group) in enumerate(zip(rows, groups, strict=True)):
                if place < len(group):
                    places_BN[number, place] = len(ids)
                    ids.append(torch.tensor(group[place]))
                    ranks = row.get("places", (1, 2))
                    ranks_BN[number, place] = ranks[place] if ranks else 0
        kept = {"padding_side": "right", "pad_to_multiple_of": self.pad_to_multiple_of}
        batch = {
            "input_ids": pad(ids, padding_value=self.pad_token_id, **kept),
            "attention_mask": pad([torch.ones_like(one) for one in ids], padding_value=0, **kept),
            "places": places_BN,
            "ranks": ranks_BN,
        }
        for name, absent in ABSENT.items():
            batch[name] = torch.tensor([row.get(name, absent) for row in rows])
        batch["copies"] = torch.tensor([row.get("copies", [1.0]) for row in rows])
        return batch


class AnswerTrainer(Resumable, RewardTrainer):
    """TRL's trainer of reward models, on answers of every kind.

    Args:
        survey: What the answers are about.
        **arguments: Those of RewardTrainer; the rows are prepared.

    Raises:
        UserError: The launch divides weights, and something is learned beside the model.
    """

    beside: Beside | None = None

    def __init__(self, *, model: Any, args: Any, survey: Survey, **arguments: Any) -> None:
        args.remove_unused_columns = False  # the collator takes what it reads
        model.config.num_labels = 1  # TRL knows no other reward model
        super().__init__(model=model, args=args, **arguments)
        name_outputs(self.model.config, survey.heads)
        self.survey = survey
        pad_token_id = self.processing_class.pad_token_id
        self.data_collator = AnswerCollator(pad_token_id, args.pad_to_multiple_of)
        if survey.needs_more:
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                raise UserError(
                    "accelerate_config: ratings, thumbs and ties have parameters beside the model, "
                    "which FSDP and ZeRO would divide; train them with ddp, or pairs and ranks "
                    "without ties."
                )
            self.beside = self.model.beside = Beside(survey).to(args.device)
            # So that DDP sees them in what the model returns.
            self.hook = self.model.register_forward_hook(_with_beside)

    def take_beside_off(self) -> None:
        """Leave the model as it is used, without what was learned beside it."""
        if self.beside is not None:
            self.hook.remove()
            del self.model.beside

    def create_optimizer(self, model: Any = None) -> Any:
        """Trainer's optimizer, with a learning rate of its own for what is learned beside."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.beside is not None:
            own = {id(weight): weight for weight in self.beside.parameters()}
            for group in optimizer.param_groups:
                group["params"] = [weight for weight in group["params"] if id(weight) not in own]
            rate = self.survey.script.rater_learning_rate
            optimizer.add_param_group({"params": [*own.values()], "lr": rate, "weight_decay": 0.0})
        return optimizer

    def save_state_into(self, folder: Path) -> None:
        """Also what is learned beside the model."""
        super().save_state_into(folder)
        if self.beside is not None and self.args.should_save:
            weights = {name: weight.detach() for name, weight in self.beside.named_parameters()}
            save_file(weights, folder / BESIDE_FILE)

    def load_state_from(self, folder: Path) -> None:
        """Also what is learned beside the model."""
        super().load_state_from(folder)
        for name, weight in self.beside.named_parameters() if self.beside is not None else ():
            weight.data.copy_(load_file(folder / BESIDE_FILE)[name])

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss over rows and heads, each row with its weight; metrics as TRL's."""
        fed = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        outputs = model(**fed, use_cache=False)
        scores_SAK = outputs["logits"].float().unflatten(1, (-1, self.survey.heads.ensemble))
        scores_BNK = scores_SAK[inputs["places"], inputs["about"][:, None]]
        is_ranked_B = inputs["ranks"][:, 0] > 0
        losses, weights = [], []
        for chosen_B, kind in ((is_ranked_B, self._ranked), (~is_ranked_B, self._rated)):
            if chosen_B.any():
                mine = {name: inputs[name][chosen_B] for name in ("ranks", "copies", *ABSENT)}
                losses.append(kind(scores_BNK[chosen_B], mine, outputs))
                weights.append(mine["weight"][:, None] * mine["copies"])
        loss = (torch.cat(losses) * torch.cat(weights)).mean()
        if self.beside is not None:  # a gradient, if only of 0, for each of them in every batch
            for weight in self.beside.parameters():
                loss = loss + 0.0 * weight.sum()
        with torch.no_grad():
            self._note(scores_BNK.mean(-1), inputs)
        return (loss, outputs) if return_outputs else loss

    def _ranked(self, scores_BNK: Tensor, rows: dict[str, Tensor], outputs: Any) -> Tensor:
        num_heads = scores_BNK.shape[2]
        scores_BN = scores_BNK.transpose(1, 2).flatten(0, 1)  # from here on B counts heads, too
        ranks_BN = rows["ranks"].repeat_interleave(num_heads, 0)
        margins_B = rows["margin"].repeat_interleave(num_heads, 0)
        ties_D = outputs["ties"] if max(self.survey.tied, default=1) > 1 else None
        smoothing = self.survey.script.label_smoothing
        losses_B = ranking_loss(scores_BN, ranks_BN, ties_D, margins_B, smoothing)
        if coefficient := self.args.center_rewards_coefficient:
            losses_B = losses_B + coefficient * centring_loss(scores_BN, ranks_BN)
        return losses_B.view(-1, num_heads)

    def _rated(self, scores_BNK: Tensor, rows: dict[str, Tensor], outputs: Any) -> Tensor:
        num_heads, beside = scores_BNK.shape[2], self.beside
        assert beside is not None  # there are scales
        raters_B, known_B = rows["rater"].clamp(min=0), rows["rater"] >= 0
        offsets_B = outputs["offsets"][raters_B] * known_B
        scores_B = (scores_BNK[:, 0] + offsets_B[:, None]).flatten()
        scales_B = rows["scale"].repeat_interleave(num_heads, 0)
        levels_B = rows["level"].repeat_interleave(num_heads, 0)
        is_ordinal = [self.survey.is_ordinal(scale) for scale in self.survey.levels]
        is_ordinal_B = torch.tensor(is_ordinal, device=scores_B.device)[scales_B]
        places_B = (levels_B * is_ordinal_B).long()
        ordinal_B = ordinal_loss(scores_B, places_B, outputs["cuts"][scales_B])
        losses_B = torch.where(is_ordinal_B, ordinal_B, regression_loss(scores_B, levels_B))
        # Offsets are normal with a standard deviation of 1, each row with its part of that.
        prior_B = offsets_B**2 / 2 / beside.counts[raters_B]
        return losses_B.view(-1, num_heads) + prior_B[:, None]

    def _note(self, scores_BN: Tensor, inputs: dict[str, Tensor]) -> None:
        """What TRL logs: tokens, range and mean of scores, ordered pairs and their margins."""
        mode = "train" if self.model.training else "eval"
        ranks_BN, scores = inputs["ranks"], scores_BN[inputs["places"] >= 0]
        is_pair_BNN = (ranks_BN[:, :, None] < ranks_BN[:, None, :]) & (ranks_BN[:, :, None] > 0)
        margins = (scores_BN[:, :, None] - scores_BN[:, None, :])[is_pair_BNN]
        sums = [scores.sum(), margins.sum(), (margins > 0).sum(), inputs["attention_mask"].sum()]
        numbers = [*map(float, sums), len(scores), len(margins)]
        numbers += [float(scores.min()), float(scores.max())]
        # One row for each process.
        all_PX = self.accelerator.gather(torch.tensor([numbers], device=scores.device))
        total, gap, right, tokens, number, pairs, *_ = all_PX.sum(0).tolist()
        if mode == "train":
            self._total_train_tokens += int(tokens)
        metrics = self._metrics[mode]
        metrics["num_tokens"] = [self._total_train_tokens]
        metrics["min_reward"].append(float(all_PX[:, -2].min()))
        metrics["mean_reward"].append(total / number)
        metrics["max_reward"].append(float(all_PX[:, -1].max()))
        if pairs:
            metrics["accuracy"].append(right / pairs)
            metrics["margin"].append(gap / pairs)


def _with_beside(model: nn.Module, _: Any, output: Any) -> dict[str, Any]:
    beside: Any = model.beside
    return {"logits": output["logits"], **beside.values()}
