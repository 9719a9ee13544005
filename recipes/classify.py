"""Classifier: puts a head for labels on a pretrained backbone and trains it, or all of it.

Loss: cross-entropy; where rows have several labels, the binary one of each.

Data: text or image and label, or labels (lists); `columns` names other columns. Labels are names or
numbers; pictures are files that rows name, those of a dataset, or a folder with one for each label.
Trains all weights, LoRA adapters with the head (use_peft), which are merged in the end, or the head
alone (freeze_backbone), on features that are computed once.
Writes final/, which transformers' pipelines of text-classification or image-classification load,
metrics.jsonl, samples.jsonl with label, prediction and probability of every test row, and
summary.json with the accuracy beside those of a logistic regression on the frozen backbone's
features and on TF-IDF or pixels.
A label is a reward and a cost of PPO: reward_funcs: RUN:label is its probability.

    python -m recipes.classify --config configs/classify/sentiment.yaml
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.data.arguments import DataArguments
from recipes.lib.distributed.processes import is_main_process
from recipes.lib.errors import UserError
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.runs.energy import EnergyArguments
from recipes.lib.runs.folder import RunArguments

if TYPE_CHECKING:
    from recipes.lib.trainers.labels import Labelled

MOST_SHOWN = 6  # wrong pictures that are kept, as many as the page shows


@dataclass(kw_only=True)
class ClassifyArguments(RunArguments, DataArguments, EnergyArguments):
    """Keys of the recipe beside those of TrainingArguments and ModelConfig."""

    global_batch_size: int | None = option(
        None, "Rows in one optimizer step over all processes; sets accumulation."
    )


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    from trl import ModelConfig

    from recipes.lib.trainers.labels import ClassifyConfig

    return ClassifyArguments, ClassifyConfig, ModelConfig


def prepared(rows: Labelled, names: list[str], reader: Any, most: int) -> Any:
    """Rows as `collator` reads them: texts as tokens, pictures as they are, labels as numbers."""
    numbers = rows.numbers(names)
    if "image" in rows.rows.column_names:
        return rows.rows.add_column("labels", numbers)
    reader.model_max_length = most  # whoever loads it cuts there, too
    ids = reader(rows.rows["text"][:], truncation=True, max_length=most)["input_ids"]
    told = zip(ids, numbers, strict=True)
    return [{"input_ids": one, "attention_mask": [1] * len(one), "labels": n} for one, n in told]


def collator(reader: Any) -> Any:
    """Makes batches of rows, by what the model reads them with."""
    import torch
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

    from recipes.lib.pictures.files import open_picture

    if isinstance(reader, PreTrainedTokenizerBase):
        return DataCollatorWithPadding(reader)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(reader([open_picture(row["image"]) for row in rows], return_tensors="pt"))
        return batch | {"labels": torch.tensor([row["labels"] for row in rows])}

    return collate


def make_trainer(config: Config, model: Any, reader: Any, splits: Any, features: Any) -> Any:
    """The trainer of all weights, of adapters and head, or of a head on its features."""
    import torch
    from transformers import default_data_collator

    from recipes.lib.models.label_models import adapt, heads_of
    from recipes.lib.trainers.labels import HeadOnFeatures, LabelTrainer, class_weights

    training, labels = config.training, [row["labels"] for row in splits[0]]
    weights = None
    if training.class_weights == "balanced":
        weights = class_weights(torch.tensor(labels), model.config.num_labels)
    rows, collate = splits, collator(reader)
    if training.freeze_backbone:
        model.requires_grad_(False)
        for head in heads_of(model).values():
            head.requires_grad_(True)
        if features is not None:
            (head,) = heads_of(model).values()
            model, collate = HeadOnFeatures(head, features[0]), default_data_collator
            rows = [
                [{"features": f, "labels": row["labels"]} for f, row in zip(*both, strict=True)]
                for both in zip(features, splits, strict=True)
            ]
    model = adapt(model, config.model)
    training.remove_unused_columns, training.label_names = False, ["labels"]
    return LabelTrainer(
        model=model,
        args=training,
        train_dataset=rows[0],
        eval_dataset=rows[1],
        data_collator=collate,
        processing_class=reader,
        weights=weights,
    )


def features_of(model: Any, splits: Any, collate: Any, size: int) -> Any:
    """What the backbone says of rows before it learns; None where that is no vector a row."""
    from recipes.lib.models.label_models import headless
    from recipes.lib.models.policies import placed
    from recipes.lib.trainers.labels import logits_of

    with headless(placed(model)) as is_possible:
        if not is_possible or logits_of(model, [splits[0][0]], collate, 1).ndim != 2:
            return None
        return [logits_of(model, rows, collate, size, "features") for rows in splits]


def yardsticks(known: Labelled, held_out: Labelled, names: list[str], features: Any) -> Any:
    """Accuracies of a logistic regression on the features, and on TF-IDF or pixels."""
    import numpy as np

    from recipes.lib.evaluation.labels import regression_accuracy, words_accuracy
    from recipes.lib.pictures.files import pixels

    both = known, held_out
    labels = [np.array(rows.numbers(names)).astype(int) for rows in both]
    found = {}
    if "image" in known.rows.column_names:
        seen = [np.stack([pixels(row["image"]) for row in rows.rows]) for rows in both]
        if all((one == one[..., :1]).all() for one in seen):  # grey
            seen = [one[..., :1] for one in seen]
        seen = [one.reshape(len(one), -1).astype(np.float32) for one in seen]
        found["accuracy_pixels"] = regression_accuracy(seen[0], labels[0], seen[1], labels[1])
    else:
        texts = [rows.rows["text"][:] for rows in both]
        found["accuracy_tfidf"] = words_accuracy(texts[0], labels[0], texts[1], labels[1])
    if features is not None:
        train, test = (one.numpy() for one in features)
        found["accuracy_frozen_features"] = regression_accuracy(train, labels[0], test, labels[1])
    return found


def judged(held_out: Labelled, names: list[str], logits: Any) -> Any:
    """Numbers of the test rows, and a line for each of them."""
    import numpy as np

    from recipes.lib.evaluation.labels import label_numbers, probabilities
    from recipes.lib.pictures.files import data_uri, open_picture

    labels = np.array(held_out.numbers(names)).astype(int)
    is_multi = labels.ndim == 2
    chances = probabilities(logits.numpy(), is_multi)
    lines: list[dict[str, Any]] = []
    for number, (label, chance) in enumerate(zip(labels, chances, strict=True)):
        place = int(chance.argmax())
        said = {"label": names[label] if not is_multi else None, "predicted": names[place]}
        if is_multi:
            said["label"] = [name for name, one in zip(names, label, strict=True) if one]
            said["predicted"] = [n for n, one in zip(names, chance, strict=True) if one > 0.5]
        lines.append({"row": number} | said | {"probability": float(chance[place])})
    if "text" in held_out.rows.column_names:
        told = zip(held_out.rows["text"], lines, strict=True)
        return label_numbers(chances, labels), [{"text": text} | line for text, line in told]
    wrong = [line for line in lines if line["label"] != line["predicted"]]
    for line in sorted(wrong, key=lambda line: -line["probability"])[:MOST_SHOWN]:
        line["image"] = data_uri(open_picture(held_out.rows[line["row"]]["image"]))
    return label_numbers(chances, labels), lines


@guarded
def run(config: Config) -> dict[str, Any]:
    """Train, save, and classify the test rows.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: accuracies in 0..1 and those of the yardsticks, f1_macro, log_loss in nats.

    Raises:
        UserError: The data, the model or the run folder cannot be used.
    """
    from transformers import set_seed

    from recipes.lib.models.label_models import load_label_model, merged, what_it_reads
    from recipes.lib.models.policies import placed
    from recipes.lib.recipe import spine
    from recipes.lib.trainers.labels import load_labelled, logits_of

    script, training = config.script, config.training
    if training.freeze_backbone and config.model.use_peft:
        raise UserError("freeze_backbone=true, use_peft=true: choose one of them.")
    if training.world_size > 1:
        raise UserError(f"{training.world_size} processes: a classifier trains on one; start one.")
    spine.check_start(config)
    trusted = {"trust_remote_code": training.trust_remote_code}
    read = what_it_reads(config.model, **trusted)
    known, held_out, names = load_labelled(script, training.seed, read)
    set_seed(training.seed)  # the new head is drawn while loading
    own = {"is_multi": isinstance(known.labels[0], list), "pooling": training.pooling, **trusted}
    model, reader, names = load_label_model(config.model, names, read=read, **own)
    splits = [prepared(rows, names, reader, training.max_length) for rows in (known, held_out)]
    collate, size = collator(reader), training.per_device_eval_batch_size
    features = features_of(model, splits, collate, size)
    set_seed(training.seed)
    trainer = make_trainer(config, model, reader, splits, features)
    folder = spine.start_run(config, trainer, {"loss": "loss"})
    summary = spine.train(trainer, folder)
    if features is not None and training.freeze_backbone:
        trainer.model.finish()
    trainer.model = model = placed(merged(model if training.freeze_backbone else trainer.model))
    spine.save_final(trainer, folder)
    if is_main_process():
        logits = logits_of(model, splits[1], collate, size, "test")
        numbers, lines = judged(held_out, names, logits)
        folder.write_samples(lines)
        summary |= numbers | yardsticks(known, held_out, names, features)
        summary |= {"num_train": len(splits[0]), "num_test": len(splits[1]), "labels": names}
    return spine.finish(folder, config, summary)


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("classify", argv)


if __name__ == "__main__":
    raise SystemExit(main())
