"""Learning labels: rows, trainer, and heads that learn from features computed once.

A row is a text or a picture.

Shapes: B rows of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from recipes.lib.config.fields import option
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import load_splits
from recipes.lib.data.problems import Problem, named_columns, places_of, refuse_or_drop
from recipes.lib.data.row_checks import brief
from recipes.lib.errors import UserError
from recipes.lib.models.forward import length_batches
from recipes.lib.trainers.resumable import Resumable

if TYPE_CHECKING:
    from datasets import Dataset

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]


ONE, SEVERAL = "label", "labels"


@dataclass
class ClassifyConfig(TrainingArguments):
    """Keys of the method beside transformers' TrainingArguments."""

    freeze_backbone: bool = option(
        False, "Train the new head alone; what it reads is computed once where that can be."
    )
    class_weights: str = option(
        "none",
        "Weights of the classes in the loss: none, or balanced by how often they come.",
        choices=("none", "balanced"),
    )
    pooling: str = option(
        "default",
        "What the head of a classifier of texts reads: what its class reads, or, on BERT, the "
        "mean of all tokens, by which sentence encoders were trained.",
        choices=("default", "mean"),
    )
    max_length: int = option(256, "Longest text in tokens; longer ones are cut at their end.")
    trust_remote_code: bool = option(False, "Whether code beside a model may run.")


class LabelTrainer(Resumable, Trainer):
    """Trainer with the loss of labels.

    Args:
        weights: Of the classes, as `class_weights` makes them; None for equal ones.
        arguments: Of Trainer.
    """

    def __init__(self, *, weights: torch.Tensor | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.weights = weights
        self.model_accepts_loss_kwargs = False  # so that accumulated gradients are a mean

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        """The loss of a batch."""
        labels = inputs.pop("labels")
        if self.args.freeze_backbone and hasattr(model, "base_model"):
            model.base_model.eval()  # nothing moves there, neither dropout nor running means
        outputs = model(**inputs)
        weights = None if self.weights is None else self.weights.to(outputs.logits.device)
        loss = label_loss(outputs.logits.float(), labels, weights)
        return (loss, outputs) if return_outputs else loss


def label_loss(
    logits_BC: torch.Tensor, labels: torch.Tensor, weights_C: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy, weighted by the class of each row; of several labels a row the binary one.

    Args:
        logits_BC: What the head says.
        labels: Classes of shape (B,), or 0 and 1 of shape (B, C) where a row has several.
        weights_C: Of the classes; of several labels those of a class that is there.

    Returns:
        The mean in nats per row; of several labels per row and class.
    """
    if labels.ndim == 2:
        target = labels.float()
        return F.binary_cross_entropy_with_logits(logits_BC, target, pos_weight=weights_C)
    losses_B = F.cross_entropy(logits_BC, labels, reduction="none")
    # Not by the sum of the weights of a batch, which would undo them in small ones.
    return (losses_B if weights_C is None else losses_B * weights_C[labels]).mean()


def class_weights(labels: torch.Tensor, number: int) -> torch.Tensor:
    """Weights by which every class counts as much, shape (C,); 0 of a class that never comes.

    Args:
        labels: As of `label_loss`, of all training rows.
        number: Of classes.
    """
    if labels.ndim == 2:
        there = labels.float().sum(0)
        is_told = (there > 0) & (there < len(labels))
        return torch.where(is_told, (len(labels) - there) / there.clamp(min=1), 1.0)
    counts = torch.bincount(labels, minlength=number).float()
    return torch.where(counts > 0, len(labels) / (number * counts.clamp(min=1)), 0.0)


class HeadOnFeatures(torch.nn.Module):
    """A head that learns from what a frozen backbone said once of each row.

    A linear one reads features of mean 0 and deviation 1 while it learns, or of root mean square 1
    where it has no bias: what sets classes apart may be small beside what all rows share.

    Args:
        head: Of the classifier, which it remains a part of.
        features: Of the training rows, shape (rows, width).
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, head: torch.nn.Module, features: torch.Tensor) -> None:
        super().__init__()
        self.dtype = next(head.parameters()).dtype
        self.head = head.float()
        mean, scale = torch.zeros(1), torch.ones(1)
        if (layer := linear_layer(head)) is not None:
            mean = features.mean(0) * (layer.bias is not None)
            scale = ((features - mean) ** 2).mean(0).sqrt()
            scale = torch.where(scale > 1e-6, scale, 1.0)  # what never varies
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, features: torch.Tensor) -> SequenceClassifierOutput:
        """Logits of stored features."""
        return SequenceClassifierOutput(logits=self.head((features - self.mean) / self.scale))

    @torch.no_grad()
    def finish(self) -> None:
        """Have the head read features as they are."""
        if (layer := linear_layer(self.head)) is not None:
            layer.weight /= self.scale
            if layer.bias is not None:
                layer.bias.sub_(layer.weight @ self.mean)
        self.head.to(self.dtype)


def linear_layer(head: torch.nn.Module) -> Any:
    """The layer that a head consists of; None where it is more than linear."""
    parts = [head] if isinstance(head, torch.nn.Linear) else [*head.children()]
    layer, before = parts[-1] if parts else None, parts[:-1]
    is_plain = all(isinstance(one, torch.nn.Flatten) for one in before)
    return layer if is_plain and isinstance(layer, torch.nn.Linear) else None


@torch.no_grad()
def logits_of(
    model: Any, rows: Sequence[dict[str, Any]], collate: Collate, size: int, label: str = ""
) -> torch.Tensor:
    """What a classifier says of rows, on the CPU, in their order; of a headless one its features.

    Args:
        model: The classifier, where it is to run.
        rows: Tokenized, with labels.
        collate: Makes a batch.
        size: Rows of a batch.
        label: Word before the progress bar; none without.
    """
    model.eval()
    device = next(model.parameters()).device
    found: list[Any] = [None] * len(rows)
    is_text = len(rows) and "input_ids" in rows[0]
    lengths = [len(row["input_ids"]) for row in rows] if is_text else [1] * len(rows)
    with tqdm(total=len(rows), desc=label, unit="row", leave=False, disable=not label) as bar:
        for chosen in length_batches(lengths, size):
            batch = collate([rows[n] for n in chosen])
            batch = {key: one.to(device) for key, one in batch.items() if key != "labels"}
            said = model(**batch).logits.float().cpu()
            for place, one in zip(chosen, said, strict=True):
                found[place] = one
            bar.update(len(chosen))
    return torch.stack(found)


@dataclass(frozen=True)
class Labelled:
    """Texts or pictures with names of labels.

    Args:
        rows: The column of either, and no other.
        labels: Of each its label, or where a row may have several a list of them.
    """

    rows: Dataset
    labels: list[Any]

    def numbers(self, names: Sequence[str]) -> list[Any]:
        """Labels as a classifier learns them: a number each, or 0 and 1 for each name."""
        places = {name: number for number, name in enumerate(names)}
        return [
            places[one] if isinstance(one, str) else [float(name in one) for name in names]
            for one in self.labels
        ]

    def names(self) -> set[str]:
        """All labels that there are."""
        return {name for one in self.labels for name in ([one] if isinstance(one, str) else one)}


def load_labelled(
    args: DataArguments, seed: int, read: str
) -> tuple[Labelled, Labelled, list[str]]:
    """Load training and test rows.

    Args:
        args: What to load; `columns` names other columns than text and label, or than labels where
            a row has several.
        seed: Of the split that `test_fraction` makes.
        read: The column that the model reads: text, or image.

    Returns:
        Training rows, test rows, and all labels: numbers in their order, names by the alphabet.

    Raises:
        UserError: There are no test rows, no labels, one alone, or in a test row one that no
            training row has.
    """
    train, test = load_splits(args, seed, (read,), (ONE, SEVERAL))
    if test is None:
        raise UserError(
            "test_fraction=0.0: a classifier is worth its accuracy on rows it has not seen; set "
            "test_fraction (0.1 is usual) or test_dataset_name."
        )
    column = SEVERAL if SEVERAL in train.column_names else ONE
    for key, rows in (("train", train), ("test", test)):
        if column not in rows.column_names:
            raise UserError(
                f"{args.label} ({key}): column {column!r} is missing; the columns are "
                f"{', '.join(named_columns(rows))}. Say which it is with columns: "
                f"{{{read}: ..., {column}: ...}}."
            )
    known = _labelled(train, read, column, f"{args.label} (train)", args.on_bad_rows)
    held_out = _labelled(test, read, column, f"{args.label} (test)", args.on_bad_rows)
    names = sorted(known.names(), key=_in_order)
    if len(names) < 2:
        raise UserError(f"{args.label}: the labels are {names}; there is nothing to tell apart.")
    if new := sorted(held_out.names() - {*names}):
        raise UserError(
            f"{args.label}: test rows have the label {brief(new[0])}, which no training row has; "
            "train on such rows too, or leave those out."
        )
    return known, held_out, names


def _in_order(name: str) -> tuple[bool, float, str]:
    is_number = name.removeprefix("-").isdecimal()
    return not is_number, float(name) if is_number else 0.0, name


def _labelled(rows: Dataset, read: str, column: str, source: str, on_bad_rows: str) -> Labelled:
    named, texts = _namer(rows.features[column]), rows["text"][:] if read == "text" else None
    found, bad = [], Problem("")
    for number, value in enumerate(rows[column]):
        values = value if isinstance(value, list) else [value]
        names = [named(one) for one in values]
        if texts is not None and not isinstance(texts[number], str):
            bad.what = bad.what or f"column 'text' has {brief(texts[number])}, which is no text,"
            bad.rows.append(number)
        elif isinstance(value, list) != (column == SEVERAL) or "" in names:
            what = "no list of labels" if column == SEVERAL else "no label"
            bad.what = bad.what or f"column {column!r} has {brief(value)}, which is {what},"
            bad.rows.append(number)
        found.append(names if column == SEVERAL else names[0] if names else "")
    left_out = refuse_or_drop(source, [bad] if bad.rows else [], places_of(rows), on_bad_rows)
    kept = [number for number in range(len(rows)) if number not in left_out]
    return Labelled(rows.select(kept).select_columns([read]), [found[number] for number in kept])


def _namer(feature: Any) -> Callable[[Any], str]:
    """Makes names: those that the dataset has for its numbers, or what stands there; or none."""
    known = getattr(getattr(feature, "feature", feature), "names", None)

    def named(one: Any) -> str:
        if known:  # -1 is a row without a label
            return str(known[one]) if isinstance(one, int) and 0 <= one < len(known) else ""
        if isinstance(one, float) and one.is_integer():  # as tables keep numbers
            one = int(one)
        return str(one).strip() if isinstance(one, (str, int)) else ""

    return named
