"""How far annotators agree, and what their answers lean to; nobody's answers are left out.

Sources: Cohen, Educational and Psychological Measurement 20, 1960; Krippendorff, Computing
Krippendorff's Alpha-Reliability, 2011; Dawid and Skene, Applied Statistics 28, 1979; Wilson,
Journal of the American Statistical Association 22, 1927.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recipes.lib.data.prompts import prompt_text
from recipes.lib.feedback.rows import Row, current, item_id

Table = NDArray[np.float64]

LEVELS = {"pair": "nominal", "thumb": "nominal", "rating": "interval", "rank": "ordinal"}
TIE = 2.0  # beside the indexes of a pair
LEAST_ALPHA = 0.667  # below it Krippendorff draws no conclusions
LEAST_RIGHT = 0.8  # share of gold or repeated items that nobody need be told about
LEAST_UNITS = 20  # of a hint on agreement
NUM_ITERATIONS, TOLERANCE = 100, 1e-5  # at most, and the change of a probability that ends them
FEW = 1e-2  # answers that the model of an annotator starts from, so that no probability is 0
LEANINGS = {
    "first_shown": "answered 'A' on {} shown pairs",
    "longer": "preferred the longer one in {} pairs",
}
MEMORY = {
    "consistent": "answered {} repeated items as before",
    "right": "answered {} gold items rightly",
}


def krippendorff_alpha(values_AU: Table, level: str) -> float | None:
    """Krippendorff's alpha.

    Args:
        values_AU: Values by annotator and unit, NaN where there is none.
        level: nominal, ordinal or interval.

    Returns:
        1 for agreement, 0 for what chance gives; None where no two values could have differed.
    """
    levels_K, codes = np.unique(values_AU[~np.isnan(values_AU)], return_inverse=True)
    counts_UK = np.zeros((values_AU.shape[1], len(levels_K)))
    np.add.at(counts_UK, (np.nonzero(~np.isnan(values_AU))[1], codes), 1)
    counts_UK = counts_UK[counts_UK.sum(1) >= 2]
    weights_UK = counts_UK / (counts_UK.sum(1, keepdims=True) - 1)
    coincidences_KK = weights_UK.T @ counts_UK - np.diag(weights_UK.sum(0))
    totals_K = coincidences_KK.sum(0)
    places_K = np.cumsum(totals_K) - totals_K / 2 if level == "ordinal" else levels_K
    distances_KK = (places_K[:, None] - places_K) ** 2
    if level == "nominal":
        distances_KK = 1 - np.eye(len(levels_K))
    expected = (np.outer(totals_K, totals_K) * distances_KK).sum() / max(totals_K.sum() - 1, 1)
    return float(1 - (coincidences_KK * distances_KK).sum() / expected) if expected else None


def cohen_kappa(values_AU: Table, level: str) -> tuple[int, float | None]:
    """Cohen's kappa of two annotators, with squared weights where the values have an order.

    Args:
        values_AU: Values of the two, NaN where there is none.
        level: As of `krippendorff_alpha`.

    Returns:
        Number of units that both judged, and kappa; None where it is not defined.
    """
    from sklearn.metrics import cohen_kappa_score

    both_AU = values_AU[:, ~np.isnan(values_AU).any(0)]
    levels, codes_AU = np.unique(both_AU, return_inverse=True)
    if len(levels) < 2:
        return both_AU.shape[1], None
    one_U, other_U = codes_AU.reshape(both_AU.shape)
    weights = None if level == "nominal" else "quadratic"
    return len(one_U), float(cohen_kappa_score(one_U, other_U, weights=weights))


def dawid_skene(
    units: ArrayLike, annotators: ArrayLike, labels: ArrayLike
) -> tuple[Table, Table, Table]:
    """Estimate true labels and each annotator's errors together, by expectation maximisation.

    Args:
        units: What was judged, one index a label, counted from 0.
        annotators: Who judged it.
        labels: The labels.

    Returns:
        Probability of each true label, by unit; by annotator, of saying the last index where the
        other is true; share of each true label. It begins with the shares of a unit's labels.
    """
    places_N, people_N, labels_N = map(np.asarray, (units, annotators, labels))
    num_labels = labels_N.max() + 1
    found_UK = np.zeros((places_N.max() + 1, num_labels))
    np.add.at(found_UK, (places_N, labels_N), 1)
    found_UK /= found_UK.sum(1, keepdims=True)
    for _ in range(NUM_ITERATIONS):
        prior_K = found_UK.mean(0)
        said_AKK = np.zeros((people_N.max() + 1, num_labels, num_labels))  # label, then true one
        np.add.at(said_AKK, (people_N, labels_N), found_UK[places_N])
        confusion_AKK = said_AKK.transpose(0, 2, 1) + FEW
        confusion_AKK /= confusion_AKK.sum(2, keepdims=True)
        logs_UK = np.tile(np.log(prior_K + 1e-300), (len(found_UK), 1))
        np.add.at(logs_UK, places_N, np.log(confusion_AKK.transpose(0, 2, 1)[people_N, labels_N]))
        new_UK = np.exp(logs_UK - logs_UK.max(1, keepdims=True))
        new_UK /= new_UK.sum(1, keepdims=True)
        change, found_UK = np.abs(new_UK - found_UK).max(), new_UK
        if change < TOLERANCE:
            break
    return found_UK, confusion_AKK, prior_K


def share(holds: Iterable[bool]) -> dict[str, float] | None:
    """A share with Wilson's interval of 95 %; None of nothing."""
    from scipy.stats import binomtest

    every = list(holds)
    if not every:
        return None
    interval = binomtest(sum(every), len(every)).proportion_ci(method="wilson")
    low, high = float(interval.low), float(interval.high)
    return {"count": sum(every), "of": len(every), "low": low, "high": high}


def describe(rows: Iterable[Row], gold: Mapping[str, Any]) -> dict[str, Any]:
    """What the answers of a project say about those who gave them.

    Args:
        rows: All rows, in the order of their creation; implicit ones are passed over.
        gold: Right values by item, of items whose answer is known.

    Returns:
        answers; annotators: by name, number of answers and of "cannot judge", median seconds, and
        shares with intervals (first_shown and longer were preferred, consistent on repeated items,
        right on gold items; estimated_accuracy after Dawid and Skene); agreement: by kind and
        aspect, units that several judged, alpha, and kappa of each two; hints: sentences.
    """
    # Of somebody who was forgotten there are rows without a prompt.
    every = [row for row in rows if row["source"] != "implicit" and row["prompt"] is not None]
    held, by_name = current(every), defaultdict[str, list[Row]](list)
    for row in held:
        by_name[row["annotator"]].append(row)
    gone = {row["supersedes"] for row in every}
    unsure = Counter(
        row["annotator"]
        for row in every
        if row["value"] is None and not row["weight"] and not row["supersedes"]
        if row["id"] not in gone
    )
    told = {
        name: _about(by_name[name], gold) | {"cannot_judge": unsure[name]}
        for name in sorted({*by_name, *unsure})
    }
    topics = sorted({(row["kind"], row["aspect"]) for row in held if row["kind"] in LEVELS})
    agreement = [_agreement(kind, aspect, held, told) for kind, aspect in topics]
    hints = [hint for name, one in told.items() for hint in _hints(name, one)]
    hints += [
        f"alpha is {one['alpha']:.2f} on {one['units']} shared answers of {one['kind']}, "
        f"{one['aspect']}: below {LEAST_ALPHA}; agree on what is to be judged."
        for one in agreement
        if one["units"] >= LEAST_UNITS and (one["alpha"] or 0) < LEAST_ALPHA
    ]
    return {"answers": len(held), "annotators": told, "agreement": agreement, "hints": hints}


def _about(rows: Sequence[Row], gold: Mapping[str, Any]) -> dict[str, Any]:
    pairs = [row for row in rows if row["kind"] == "pair" and row["value"] is not None]
    lengths = [[len(prompt_text(one["content"])) for one in row["completions"]] for row in pairs]
    answers = defaultdict[Any, list[Any]](list)
    for row in rows:
        if row["kind"] in LEVELS:
            answers[_unit(row)].append(row["value"])
    seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
    known = [row for row in rows if row["item"] in gold and row["kind"] in LEVELS]
    return {
        "answers": len(rows),
        "kinds": dict(Counter(row["kind"] for row in rows)),
        "seconds": median(seconds) if seconds else None,
        "first_shown": share(
            row["value"] == row["shown_order"][0] for row in pairs if row["shown_order"]
        ),
        "longer": share(
            row["value"] == (two[1] > two[0])
            for row, two in zip(pairs, lengths, strict=True)
            if two[0] != two[1]
        ),
        "consistent": share(
            value == first for first, *others in answers.values() for value in others
        ),
        "right": share(row["value"] == gold[row["item"]] for row in known),
        "estimated_accuracy": {},
    }


def _unit(row: Row) -> tuple[str, str, str]:
    """What an answer is about; a rating of one of several completions is about that one."""
    contents = [one["content"] for one in row["completions"]]
    return row["kind"], row["aspect"], item_id(row["prompt"], contents)


def _agreement(
    kind: str, aspect: str, rows: Sequence[Row], told: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Agreement on one aspect; what the model of errors says goes to the annotators."""
    first: dict[tuple[Any, str], float] = {}  # of repeated items the first answer
    for row in rows:
        if (row["kind"], row["aspect"]) == (kind, aspect):
            values = row["value"] if kind == "rank" else [row["value"]]
            for place, value in enumerate(values):
                number = TIE if value is None else float(value)
                first.setdefault(((place, *_unit(row)), row["annotator"]), number)
    judges = Counter(unit for unit, _ in first)
    units = {unit: place for place, unit in enumerate(u for u, n in judges.items() if n > 1)}
    shared = {key: value for key, value in first.items() if key[0] in units}
    names = sorted({name for _, name in shared})
    values_AU = np.full((len(names), len(units)), np.nan)
    for (unit, name), value in shared.items():
        values_AU[names.index(name), units[unit]] = value
    level = LEVELS[kind]
    if level == "nominal" and len(names) > 2:  # of two, nothing tells who is right
        people, places = np.nonzero(~np.isnan(values_AU))
        said = values_AU[people, places].astype(int)
        _, confusion_AKK, prior_K = dawid_skene(places, people, said)
        for name, confusion_KK in zip(names, confusion_AKK, strict=True):
            accuracy = float(prior_K @ np.diag(confusion_KK))
            told[name]["estimated_accuracy"][f"{kind}, {aspect}"] = accuracy
    pairs = []
    for one, other in combinations(range(len(names)), 2):
        number, kappa = cohen_kappa(values_AU[[one, other]], level)
        if number:
            both = [names[one], names[other]]
            pairs.append({"annotators": both, "units": number, "kappa": kappa})
    alpha = krippendorff_alpha(values_AU, level) if names else None
    found = {"kind": kind, "aspect": aspect, "units": len(units), "level": level, "alpha": alpha}
    return found | {"pairs": pairs}


def _hints(name: str, about: dict[str, Any]) -> Iterable[str]:
    for key, words in (LEANINGS | MEMORY).items():
        if (one := about[key]) is None:
            continue
        low, high = one["low"], one["high"]
        if high < LEAST_RIGHT if key in MEMORY else not low <= 0.5 <= high:
            said = words.format(f"{one['count']} of {one['of']}")
            yield f"{name} {said} (95 %: {low:.2f} to {high:.2f})."
