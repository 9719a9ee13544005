"""Scores of preference pairs, and yardsticks.

The yardsticks are what counting words alone can tell about preferences, and what is read off the
hidden states of a model that learned nothing of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from recipes.lib.data.answers import OVERALL
from recipes.lib.data.prompts import prompt_text
from recipes.lib.distributed.shards import zero_stage
from recipes.lib.evaluation.win_rate import pair_accuracy
from recipes.lib.models.classifiers import load_reward_model
from recipes.lib.models.policies import placed
from recipes.lib.rewards.reward_models import RewardModel

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedModel, Trainer
    from trl import ModelConfig

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse strengths that are tried
HELD_OUT = 5  # every fifth pair decides on the strength
CHUNK = 512  # pairs that are batched by length together, between two steps of the progress bar


def score_shares(
    trainer: Trainer, model: PreTrainedModel, test: Dataset, batch_size: int = 64
) -> list[dict[str, Any]]:
    """Score both sides of every pair with a trainer's model, each process its share.

    Returns:
        Rows of prompt, chosen, rejected as plain text, score_chosen and score_rejected, on every
        process.
    """
    # ZeRO-3's engine has all do the same, in step.
    number = 1 if zero_stage(trainer) == 3 else trainer.args.world_size
    scorer = RewardModel(model, trainer.processing_class, "reward", batch_size)
    mine = test.select(range(trainer.args.process_index if number > 1 else 0, len(test), number))
    scores = [scores_of(scorer, mine) if len(mine) else []]
    scores = gather_object(scores) if number > 1 else scores
    return [
        {
            "prompt": prompt_text(pair["prompt"]) if pair.get("prompt") else "",
            "chosen": prompt_text(pair["chosen"]),
            "rejected": prompt_text(pair["rejected"]),
            "score_chosen": scores[row % number][row // number][0],
            "score_rejected": scores[row % number][row // number][1],
        }
        for row, pair in enumerate(test)
    ]


def scores_of(scorer: RewardModel, test: Dataset) -> list[tuple[float, float]]:
    """Scores of both sides of every pair, each in the aspect that it is about."""
    empty: str | list[Any] = "" if isinstance(test[0]["chosen"], str) else []
    of_aspect: dict[str | None, list[int]] = {}
    aspects = [pair.get("aspect") for pair in test]
    for row, aspect in enumerate(aspects):
        name = None if len(scorer.heads.aspects) == 1 else aspect or OVERALL
        of_aspect.setdefault(name, []).append(row)
    scores: dict[int, tuple[float, float]] = {}
    with tqdm(total=len(test), desc="scores", unit="pair", leave=False) as progress:
        for aspect, rows in of_aspect.items():
            reward = scorer if aspect is None else scorer.of_aspect(aspect)
            for start in range(0, len(rows), CHUNK):
                few = rows[start : start + CHUNK]
                pairs = [test[row] for row in few]
                prompts = [pair.get("prompt", empty) for pair in pairs]
                chosen = reward(prompts, [pair["chosen"] for pair in pairs])
                rejected = reward(prompts, [pair["rejected"] for pair in pairs])
                scores |= zip(few, zip(chosen, rejected, strict=True), strict=True)
                progress.update(len(pairs))
    return [scores[row] for row in range(len(test))]


def bag_of_words_accuracy(train: Dataset, test: Dataset) -> float:
    """Accuracy of a logistic regression on differences of word counts.

    Features of a pair are the word counts of chosen minus those of rejected, words being those of
    the training rows. Each pair is shown both ways round, so no side is favoured and no intercept
    is needed.

    Returns:
        Share of test pairs ordered rightly, in 0..1; ties count half.
    """
    import numpy as np
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    # One-letter words and numbers count too, unlike scikit-learn's own pattern.
    counter = CountVectorizer(token_pattern=r"(?u)\b\w+\b")
    sides = {name: [prompt_text(text) for text in train[name]] for name in ("chosen", "rejected")}
    counter.fit(sides["chosen"] + sides["rejected"])
    pairs = counter.transform(sides["chosen"]) - counter.transform(sides["rejected"])
    labels = np.repeat([1, 0], len(train))
    model = LogisticRegression(fit_intercept=False, max_iter=1000)
    model.fit(vstack([pairs, -pairs]), labels)
    tests = [counter.transform(map(prompt_text, test[name])) for name in ("chosen", "rejected")]
    margins = model.decision_function(tests[0] - tests[1])
    return pair_accuracy(margins.tolist(), [0.0] * len(test))


def frozen_features_accuracy(
    model_args: ModelConfig,
    template: Any,
    train: Dataset,
    test: Dataset,
    folder: Path,
    batch_size: int = 64,
    *,
    trust_remote_code: bool = False,
) -> float:
    """Accuracy of a logistic regression on what the base says of the last token, and save it.

    Features of a pair are the last hidden state of chosen less that of rejected, each divided by
    its root mean square; ridge, without an intercept. What is saved is the base with the weights
    of the regression as its score head, in `folder`: a reward model like any other. The base is the
    model that training started from, the template that of the training.

    Returns:
        Share of test pairs ordered rightly, in 0..1; ties count half.
    """
    name, dtype = str(model_args.model_name_or_path), str(model_args.dtype)
    model, tokenizer = load_reward_model(
        name, dtype, new_head=True, model_args=model_args, trust_remote_code=trust_remote_code
    )
    model, tokenizer.chat_template = placed(model), template
    head, model.score = model.score, torch.nn.Identity()  # its scores are the hidden states

    weights = torch.from_numpy(fit_weights(_differences(model, tokenizer, train, batch_size)))
    with torch.no_grad():
        head.weight.copy_(weights.unsqueeze(0))
    tested_NH = _differences(model, tokenizer, test, batch_size)
    margins = tested_NH @ head.weight[0].detach().double().cpu().numpy()
    model.score = head
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return pair_accuracy(margins.tolist(), [0.0] * len(test))


def _differences(model: Any, tokenizer: Any, rows: Dataset, batch_size: int) -> np.ndarray:
    """What the model says of chosen less what it says of rejected, shape (N, H)."""
    import numpy as np

    scorer = RewardModel(model, tokenizer, "features", batch_size)
    empty: str | list[Any] = "" if isinstance(rows[0]["chosen"], str) else []
    parts = []
    for start in range(0, len(rows), CHUNK):
        pairs = rows.select(range(start, min(start + CHUNK, len(rows)))).to_list()
        prompts = [pair.get("prompt", empty) for pair in pairs]
        sides = [[pair[side] for pair in pairs] for side in ("chosen", "rejected")]
        chosen_NH, rejected_NH = (scorer.scores(prompts, texts).double() for texts in sides)
        parts.append((chosen_NH - rejected_NH).numpy())
    return np.concatenate(parts)


def fit_weights(differences_NH: np.ndarray) -> np.ndarray:
    """Weights of a ridge logistic regression by which every difference is to be above 0.

    The strength is that with the least log loss on every fifth row; then all rows are fitted.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    scale_H = np.sqrt((differences_NH**2).mean(0)) + 1e-12
    scaled_NH = differences_NH / scale_H
    signs_N = np.where(np.arange(len(scaled_NH)) % 2, 1.0, -1.0)  # two classes, the same loss

    def fit(rows: np.ndarray, inverse: float) -> np.ndarray:
        model = LogisticRegression(C=inverse, fit_intercept=False, max_iter=10_000, tol=1e-9)
        model.fit(scaled_NH[rows] * signs_N[rows, None], signs_N[rows])
        return np.asarray(model.coef_[0])

    held_out, best = np.arange(len(scaled_NH)) % HELD_OUT == HELD_OUT - 1, 1.0
    if held_out.any():
        margins = (scaled_NH[held_out] @ fit(~held_out, one) for one in RIDGES)
        best = RIDGES[int(np.argmin([np.logaddexp(0.0, -some).mean() for some in margins]))]
    return fit(np.ones(len(scaled_NH), dtype=bool), best) / scale_H
