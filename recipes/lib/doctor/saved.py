"""Is what lies in the folder what was trained: the head, its scores, the chat template."""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from recipes.lib.data.answers import aspect_of
from recipes.lib.data.prompts import prompt_text
from recipes.lib.doctor.findings import Finding, NotCheckedError, finding, limit_of
from recipes.lib.doctor.statistics import LEAST_PAIRS, Array, interval, mean_interval, outcomes
from recipes.lib.doctor.subject import Subject
from recipes.lib.models.forward import base_model
from recipes.lib.models.reward_heads import RewardHeads
from recipes.lib.report.run_files import read_json
from recipes.lib.runs.files import read_jsonl
from recipes.lib.runs.lineage import TEMPLATE_FILE, sha256
from recipes.lib.runs.settings import trained_dtype

HEAD = ("score.weight", "classifier.weight")
NUM_FOLDS = 4
SURE = 0.998  # confidence that another order of outputs fits, which was chosen among several
IN_16_BITS = 0.1  # standard deviations off in the 16 bits of the training; healthy at most 0.04
COARSE = 0.6  # off in 32 bits, of a model too large to load again; a narrow one was 0.36


def missing_head(path: str) -> Finding | None:
    """A fault where a folder with weights holds no score head; asked before anything is loaded.

    PEFT leaves the head out where modules_to_save names others alone, and LLaMA-Factory writes it
    to a file of its own, which no loader of transformers or PEFT reads.
    """
    keys, names, folder = set(), [], Path(path)
    for file, weights in _weights(folder):
        keys |= set(weights.keys())
        names += [file.name] if "head" in file.name else []
    adapter, config = (read_json(folder / f"{name}config.json") for name in ("adapter_", ""))
    kinds = f"{adapter.get('task_type')} {config.get('architectures')}"
    is_other = "CAUSAL_LM" in kinds or "ForCausalLM" in kinds  # as its loader says
    if not keys or any(key.endswith(HEAD) for key in keys) or (is_other and not names):
        return None
    beside = f"; {names[0]} holds one apart, which nothing loads" if names else ""
    return finding("head_not_saved", 0, True, beside=beside)


def _weights(folder: Path) -> Any:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            yield file, weights


def head_not_saved(subject: Subject) -> Finding:
    """The files hold a head; of what could be loaded from the Hub they do."""
    return missing_head(subject.path) or finding("head_not_saved", 1, False)


def template(subject: Subject) -> Finding:
    """The chat template is the one that the training ended with, by its hash."""
    known = read_json(subject.run / "lineage.json") if subject.run else {}
    if "chat_template" not in known:
        raise NotCheckedError("no lineage.json says which chat template it was trained with")
    same = sha256(Path(subject.path) / TEMPLATE_FILE) == known["chat_template"]
    is_spoken = not isinstance(subject.rows(1)[0][0], str)
    return finding("template", float(same), not same and is_spoken, not same)


def outputs_mixed_up(subject: Subject) -> Finding:
    """In no other order do outputs tell more pairs; one better in one aspect may know more."""
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import binomtest

    each, heads, names = copy(subject.scorer), subject.scorer.heads, subject.scorer.heads.names()
    about = np.array([aspect_of(subject.test[one]) for one in subject.places])  # type: ignore[index]
    if len(heads.aspects) == 1 or not np.isin(about, heads.aspects).any():
        raise NotCheckedError("it has no aspects, or the pairs are about none of them")
    each.heads, each.newest = RewardHeads(tuple(names)), None  # every output by itself
    chosen, rejected = (each.scores(*subject.side(side)).numpy() for side in (1, 2))
    right, own = outcomes(chosen - rejected), np.repeat(heads.aspects, heads.ensemble)
    asked = {one: right[about == one] for one in heads.aspects if one in about}
    better = own.copy()  # what each output is about in the order that tells the most pairs
    accuracy = [asked[one].mean(0) if one in asked else 0 * right[0] for one in own]
    better[linear_sum_assignment(accuracy, maximize=True)[1]] = own
    told, found = (
        np.concatenate([rows[:, order == one].mean(1) for one, rows in asked.items()])
        for order in (own, better)
    )
    wins, number = int((found > told).sum()), int((found != told).sum())
    low = binomtest(wins, number).proportion_ci(SURE, "wilson").low if number else 0.0
    shares = {f"{aspect} by {name}": share for aspect, rows in asked.items()
              for name, share in zip(names, rows.mean(0).tolist(), strict=True)}  # fmt: skip
    known: dict[str, Any] = {"accuracy": told.mean(), "better": found.mean(), "accuracies": shares}
    is_fault, order = low > limit_of("outputs_mixed_up"), ", ".join(better)
    return finding("outputs_mixed_up", low, is_fault, order=order, **known)


def recorded_scores(subject: Subject) -> Finding:
    """The scores are those that the training wrote to samples.jsonl when it ended."""
    file = subject.run and subject.run / "samples.jsonl"
    if not file or not file.is_file():
        raise NotCheckedError("there is no samples.jsonl with the scores of its training")
    kept, tests = read_jsonl(file), subject.test
    told = [kept[place] for place in subject.places if place < len(kept)]
    said = [prompt_text(tests[place]["chosen"]) for place in subject.places]  # type: ignore[index]
    if [row.get("chosen") for row in told] != said:
        raise NotCheckedError("samples.jsonl holds scores of other pairs")
    before = np.array([[row["score_chosen"], row["score_rejected"]] for row in told]).T
    scores, limit, dtype = subject.scores, limit_of("recorded_scores"), trained_dtype(subject.run)
    # FSDP and ZeRO may compute in 16 bits what is kept in 32: no score then has a longer mantissa.
    bits = before.astype(np.float32).view(np.uint32)
    is_rounded = not (bits % 2**13).any()
    if is_rounded and dtype not in ("bfloat16", "float16"):
        dtype = "float16" if (bits % 2**16).any() else "bfloat16"
    if dtype != "float32":
        limit = COARSE
        with suppress(NotCheckedError):
            scores, limit = subject.in_format(dtype, is_whole=is_rounded).scores, IN_16_BITS
    off = float(np.abs(before - np.array(scores)).max()) / (float(before.std()) or 1.0)
    twin = _twin(subject) if off > limit else None
    name = "heads_mixed_up" if twin else "recorded_scores"
    return finding(name, off, off > limit, limit=limit, twin=twin)


def _twin(subject: Subject) -> str | None:
    """Another run beside this one that has the very same head."""
    own = _head(Path(subject.path))
    others = sorted(subject.run.parent.glob("*/final")) if subject.run else []
    same = (one for one in others if not one.samefile(subject.path))
    return next((str(one.parent) for one in same if np.array_equal(own, _head(one))), None)


def _head(folder: Path) -> Array:
    found = (
        weights.get_tensor(key).float().numpy()
        for _, weights in _weights(folder)
        for key in weights.keys()  # noqa: SIM118 - it is no dictionary
        if key.endswith(HEAD)
    )
    return next(found, np.array(np.nan))  # which equals nothing


def random_head(subject: Subject) -> Finding:
    """A head that is fitted anew to the same pairs is hardly better."""
    if len(subject.pairs) < LEAST_PAIRS:
        raise NotCheckedError(f"{len(subject.pairs)} pairs are too few to fit a head to")
    own, anew = outcomes(subject.margins), outcomes(refit_margins(head_inputs(subject)))
    low, limit = mean_interval(anew - own)[0], limit_of("random_head")
    is_fault = low > limit and interval(anew)[0] > 0.5
    return finding("random_head", low, is_fault, accuracy=own.mean(), refitted=anew.mean())


def head_inputs(subject: Subject) -> Array:
    """What the head reads of chosen less what it reads of rejected, (pairs, hidden units)."""
    import torch

    model, size = base_model(subject.scorer.model), subject.scorer.batch_size
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Module):
        raise NotCheckedError("its class has no head called score")
    ids = [row for side in (1, 2) for row in subject.token_ids(*subject.side(side))]
    model.score = torch.nn.Identity()  # so that its scores are what the head reads
    try:
        with torch.no_grad():
            starts = range(0, len(ids), size)
            read = [subject.scorer.outputs(ids[start : start + size]).numpy() for start in starts]
    finally:
        model.score = head
    chosen, rejected = np.split(np.concatenate(read), 2)
    return np.asarray(chosen - rejected)


def refit_margins(features: Array) -> Array:
    """Margins of heads fitted anew by logistic regression, each pair's by one fitted to others.

    Args:
        features: Of chosen less those of rejected, (pairs, units).

    Returns:
        One margin a pair.
    """
    from sklearn.linear_model import LogisticRegression

    scaled = features / (features.std(0) + 1e-12)
    margins, fold = np.zeros(len(features)), np.arange(len(features)) % NUM_FOLDS
    for number in range(NUM_FOLDS):
        others = scaled[fold != number]
        labels = np.repeat([1, 0], len(others))
        model = LogisticRegression(C=0.01, fit_intercept=False, max_iter=500)
        model.fit(np.concatenate([others, -others]), labels)
        margins[fold == number] = model.decision_function(scaled[fold == number])
    return margins
