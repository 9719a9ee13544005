from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from trl import RLOOConfig

from recipes.evaluate import EvaluateArguments
from recipes.lib.errors import UserError
from recipes.lib.evaluation.checkpoints import course, standing, take_run
from recipes.lib.evaluation.contest import Side
from recipes.lib.runs.files import write_text


def test_the_best_of_hand_made_scores_has_the_interval_of_a_mean() -> None:
    rng = np.random.default_rng(0)
    hard = 3 * rng.standard_normal(400)  # how hard a prompt is, the same for all models
    means = {"start": 0.0, "checkpoint-1": 1.0, "checkpoint-2": 1.0, "final": 0.2}
    scores = {name: hard + mean + rng.standard_normal(400) for name, mean in means.items()}
    best, found = standing({name: row.tolist() for name, row in scores.items()})
    assert best == max(scores, key=lambda name: scores[name].mean())
    assert best.startswith("checkpoint")
    assert found[best]["behind_best_ci95"] == [0.0, 0.0]
    for name, row in scores.items():
        # Paired by prompt, so its hardness is in the interval of a score and in no difference.
        for key, values in (("score", row), ("behind_best", scores[best] - row)):
            assert found[name][key] == pytest.approx(values.mean())
            half = 1.96 * values.std() / 20
            ends = [values.mean() - half, values.mean() + half]
            assert found[name][f"{key}_ci95"] == pytest.approx(ends, abs=0.1 * half + 1e-9)
    (other,) = {"checkpoint-1", "checkpoint-2"} - {best}
    assert found[other]["behind_best_ci95"][0] < 0 < found["final"]["behind_best_ci95"][0]


def test_a_prompt_counts_where_every_model_was_judged_and_the_first_of_equals_is_the_best() -> None:
    best, found = standing({"start": [1.0, None, 3.0], "final": [1.0, 9.0, 3.0]})
    assert found["final"]["num_judged"] == 2
    assert (best, found["final"]["score"], found["final"]["behind_best"]) == ("start", 2.0, 0.0)
    with pytest.raises(UserError, match="no prompt was judged for every model"):
        standing({"start": [1.0, None], "final": [None, 9.0]})


def test_a_judge_that_compares_is_read_as_shares_of_the_win_over_the_start() -> None:
    ours = [[1.0, 0.5, 1.0, 0.0], [0.0, 0.5, 0.5, 0.0]]
    pairs = {
        (place, 2): (Side([], [*said], []), Side([], [1 - one for one in said], []))
        for place, said in enumerate(ours)
    }
    kls = [{"kl": 2.0, "kl_stderr": 0.1}, {"kl": 5.0, "kl_stderr": 0.2}]
    told = course(["checkpoint-1", "final", "start"], {"judge": pairs}, kls, 0)
    assert told["best_checkpoint"] == "checkpoint-1"
    table = told["checkpoints"]
    assert table["final"]["behind_best"] == 0.625 - 0.25
    assert {name: (row["kl"], row["judge"]) for name, row in table.items()} == {
        "start": (0.0, 0.5),
        "checkpoint-1": (2.0, 0.625),
        "final": (5.0, 0.25),
    }


def test_the_models_of_a_run_are_in_order_and_its_keys_are_taken_where_none_are_given(
    tmp_path: Path,
) -> None:
    text = "model_name_or_path: base\neval_reward_funcs: other\ntemperature: 0.9\n"
    write_text(tmp_path / "config.yaml", text + "max_completion_length: 9\n")
    for name in ("checkpoint-10", "checkpoint-9", "final"):
        (tmp_path / name).mkdir()
    script = EvaluateArguments(checkpoints=str(tmp_path), judge=["mine"], temperature=0.7)
    models, keys = take_run(script, {"temperature": 0.7})
    assert [*models] == ["checkpoint-9", "checkpoint-10", "final", "start"]
    assert (models["start"], models["final"]) == ("base", str(tmp_path / "final"))
    assert (script.judge, script.temperature) == (["mine", "other"], 0.7)
    assert script.max_completion_length == keys["max_completion_length"] == 9
    write_text(tmp_path / "config.yaml", "model_name_or_path: base\n")
    write_text(tmp_path / "summary.json", '{"recipe": "rloo"}')
    take_run(script, {})
    (default,) = (one.default for one in fields(RLOOConfig) if one.name == "max_completion_length")
    assert script.max_completion_length == default
    write_text(tmp_path / "config.yaml", "model_name_or_path: base\nmodel_revision: v2\n")
    with pytest.raises(UserError, match="model_revision=v2 of its start is not read"):
        take_run(script, {})
