"""What judges said of models, as keys of the summary and rows of samples.jsonl."""

from __future__ import annotations

from itertools import chain
from typing import Any

from recipes.lib.data.prompts import prompt_text
from recipes.lib.evaluation.contest import Pairs, rates, shares_of
from recipes.lib.evaluation.judges import agreement
from recipes.lib.evaluation.logistic import bradley_terry
from recipes.lib.evaluation.slices import LENGTH, sliced, slices_of

Said = dict[str, Pairs]  # of each judge, by name


def sample_rows(
    prompts: list[Any], names: list[str], sides: list[Any], said: Said
) -> list[dict[str, Any]]:
    """The rows of samples.jsonl; of two models with what the first judge says."""
    if len(names) > 2:
        return [
            {
                "prompt": prompt_text(prompt),
                "completions": {name: one.text for name, one in zip(names, row, strict=True)},
            }
            for prompt, *row in zip(prompts, *sides, strict=True)
        ]
    ours, theirs = next(iter(said.values()))[0, 1]
    return [
        {
            "prompt": prompt_text(prompt),
            "baseline": theirs.completions[row].text,
            "completion": ours.completions[row].text,
            "score_baseline": theirs.scores[row],
            "score": ours.scores[row],
        }
        | ({"verdicts": list(ours.verdicts[row])} if ours.verdicts else {})
        for row, prompt in enumerate(prompts)
    ]


def compared(
    columns: dict[str, list[Any]], slices: list[str], said: Said, seed: int
) -> dict[str, Any]:
    """What judges say of a run and its baseline, also on slices, as keys of the summary."""
    ours, theirs = next(iter(said.values()))[0, 1]
    shares = {name: shares_of(*pairs[0, 1]) for name, pairs in said.items()}
    both = (ours.completions, theirs.completions, seed)
    rated = {name: rates(one, *both) for name, one in shares.items()}
    summary: dict[str, Any] = ours.facts("") | theirs.facts("_baseline")
    summary |= next(iter(rated.values()))
    if len(said) > 1:
        summary |= {"judges": rated, "agreement": agreement(shares)}
    if slices:
        columns = columns | {LENGTH: [len(one.ids) for one in ours.completions]}
        summary["slices"] = sliced(next(iter(shares.values())), slices_of(slices, columns))
    return summary


def ranked(runs: list[str], said: Said, seed: int) -> dict[str, Any]:
    """The ranking of several runs by each judge, as keys of the summary."""
    shares = {
        name: {places: shares_of(*both) for places, both in pairs.items()}
        for name, pairs in said.items()
    }
    rankings = {name: bradley_terry(runs, one, seed=seed) for name, one in shares.items()}
    summary: dict[str, Any] = {"ranking": next(iter(rankings.values()))}
    if len(said) > 1:
        every = {name: [*chain(*each.values())] for name, each in shares.items()}
        summary |= {"rankings": rankings, "agreement": agreement(every)}
    return summary
