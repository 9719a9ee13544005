"""The models of one run over their KL from its start: which is the best, and how sure that is.

Shapes: B resamples, M models, N prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.lib.config.option_table import read_table
from recipes.lib.errors import UserError
from recipes.lib.evaluation.contest import Pairs, scores_over_last
from recipes.lib.evaluation.judges import Judge, load_judge
from recipes.lib.evaluation.logistic import resample
from recipes.lib.models.folders import RUNS
from recipes.lib.rewards.arguments import EnsembleArguments
from recipes.lib.runs.checkpoints import list_checkpoints
from recipes.lib.runs.folder import is_run
from recipes.lib.runs.resume import stored_values

START, FINAL, PROXY = "start", "final", "reward_funcs"
NUM_RESAMPLES = 1999


def take_run(script: Any, given: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Read the run that `checkpoints` names; sample as it did, and let its held-out rewards judge.

    So the keys of `script` change, but for those that the user has given.

    Returns:
        Folders by name of the run's checkpoints, of final/ and, the last, of its start; and the
        keys that it was begun with. Nothing where no run is named.

    Raises:
        UserError: It is no run, has fewer than two models, or started from another revision.
    """
    if not (run := script.checkpoints):
        return {}, {}
    folder = next((path for path in (Path(run), RUNS / run) if is_run(path)), None)
    if folder is None:
        raise UserError(f"checkpoints={run}: there is no run; name the folder of one.")
    keys = stored_values(folder)
    models = {path.name: path for _, path in list_checkpoints(folder)} | {FINAL: folder / FINAL}
    found = {name: str(path) for name, path in models.items() if path.is_dir()}
    if len(found) < 2:
        raise UserError(
            f"checkpoints={run}: the run has {len(found)} models; keep several with save_steps."
        )
    if (revision := keys.get("model_revision") or "main") != "main":
        raise UserError(f"checkpoints={run}: model_revision={revision} of its start is not read.")
    for key in {"max_completion_length", "temperature"} - {*given}:
        if (value := _as_sampled(folder, keys, key)) is not None:
            setattr(script, key, value)
    script.judge = [*dict.fromkeys([*script.judge, *_listed(keys, "eval_reward_funcs")])]
    if not (start := keys.get("model_name_or_path")):
        raise UserError(f"checkpoints={run}: the run began from no model.")
    return found | {START: str(start)}, keys


def _as_sampled(folder: Path, keys: Mapping[str, Any], key: str) -> Any:
    """What a run sampled with: a key of its own, or the default of its recipe."""
    if keys.get(key) is not None or not (file := folder / "summary.json").is_file():
        return keys.get(key)
    recipe = json.loads(file.read_text(encoding="utf-8")).get("recipe")
    options = read_table()["recipes"].get(recipe, {"options": []})["options"]
    own = {one["name"]: one["default"] for one in options if isinstance(one, dict)}
    return json.loads(own.get(key) or "null")


def _listed(keys: Mapping[str, Any], key: str) -> list[str]:
    return [keys[key]] if isinstance(keys.get(key), str) else keys.get(key) or []


def proxy(
    keys: Mapping[str, Any], batch_size: int, dtype: str, **trusted: bool
) -> dict[str, Judge]:
    """The rewards that a run learned from, by their weights, as one judge; none without any."""
    own = {key: keys[key] for key in ("ensemble_aggregation", "ensemble_sd_weight") if key in keys}
    said = EnsembleArguments(**own)
    named = [said.reward_model(name, dtype) for name in _listed(keys, PROXY)]
    weights = keys.get("reward_weights")
    return {PROXY: load_judge(named, batch_size, weights, **trusted)} if named else {}


def standing(
    scores: Mapping[str, Sequence[float | None]], seed: int = 0
) -> tuple[str, dict[str, dict[str, Any]]]:
    """Which model scores highest, and how far the others are behind it.

    A prompt counts where all have a score. The bootstrap draws the same prompts for all models.

    Returns:
        The best model (the first of equal ones), and by model its mean `score`, how far it is
        `behind_best`, and the 95 % interval of each as ..._ci95.

    Raises:
        UserError: No prompt has a score of every model.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    table_MN = np.array([list(row) for row in scores.values()], dtype=float)  # None becomes NaN
    table_MN = table_MN[:, ~np.isnan(table_MN).any(0)]
    if not table_MN.size:
        raise UserError("judge: no prompt was judged for every model; name another judge.")
    number = table_MN.shape[1]
    means_BM = resample(number, NUM_RESAMPLES, seed) @ table_MN.T / number
    best = int(means_BM[0].argmax())
    found: dict[str, dict[str, Any]] = {name: {} for name in scores}
    behind_BM = means_BM[:, [best]] - means_BM
    for key, values_BM in {"score": means_BM, "behind_best": behind_BM}.items():
        ends_ME = np.quantile(values_BM[1:], (0.025, 0.975), axis=0).T
        for name, value, ends in zip(scores, values_BM[0], ends_ME, strict=True):
            found[name] |= {key: float(value), f"{key}_ci95": ends.tolist()}
    for row in found.values():
        row["num_judged"] = number
    return [*scores][best], found


def course(
    names: Sequence[str], said: Mapping[str, Pairs], kls: Sequence[dict[str, float]], seed: int
) -> dict[str, Any]:
    """What judges say of the models of a run, whose start is the last; the first names the best.

    Returns:
        best_checkpoint, and `checkpoints`: by model, the start first, its KL (nats per completion),
        mean score by judge (of one that compares: share of the win over the start), and the rest of
        `standing`.
    """
    standings = {}
    for judge, pairs in said.items():
        *others, start = scores_over_last(pairs, len(names))
        of_each = zip([START, *names[:-1]], [start, *others], strict=True)
        standings[judge] = standing(dict(of_each), seed)
    best, rows = next(iter(standings.values()))
    table: dict[str, dict[str, Any]] = {}
    for name, kl in zip(rows, [{"kl": 0.0}, *kls], strict=True):
        means = {judge: one[name]["score"] for judge, (_, one) in standings.items()}
        own = {key: one for key, one in rows[name].items() if key != "score"}
        number = own.pop("num_judged")
        table[name] = kl | means | own
    return {"num_judged": number, "best_checkpoint": best, "checkpoints": table}
