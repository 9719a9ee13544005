"""Trackers: TensorBoard gets what metrics.jsonl gets, and one that is absent is told at once."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from recipes.lib.config.library_checks import TRACKERS, check_trackers, check_training
from recipes.lib.errors import UserError
from recipes.lib.recipe.main import parse
from recipes.lib.runs.files import read_jsonl
from tests.helpers.mistakes import within
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import FAST, write

TOKEN = "hf_0123456789"


def events(run: Path) -> dict[tuple[str, int], float]:
    """The newest number of each name and step in TensorBoard's files, by its own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (run / "runs").iterdir()
    read = EventAccumulator(str(folder))
    read.Reload()
    return {
        (name, event.step): event.value
        for name in read.Tags()["scalars"]
        for event in read.Scalars(name)
    }


def told(run: Path) -> dict[tuple[str, int], float]:
    """What metrics.jsonl says, under the names that transformers gives to trackers."""
    return {
        (f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}", row["step"]): value
        for row in read_jsonl(run / "metrics.jsonl")
        for name, value in row.items()
        if name not in ("step", "seconds")
    }


# `all` means those that are installed.
@pytest.mark.parametrize(("recipe", "trackers"), [("sft", "all"), ("ppo", ["tensorboard"])])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's own imports
def test_tensorboard_gets_what_metrics_jsonl_gets(
    recipe: str, trackers: Any, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    import importlib

    save_model(tmp_path / "model", tiny_tokenizer)
    rows = [{"prompt": f"the {word}", "completion": " sat"} for word in "cat dog sun bird".split()]
    (tmp_path / "rewards.py").write_text("def even(prompts, **_):\n    return [0.5] * len(prompts)")
    of_recipe: dict[str, dict[str, Any]] = {
        "sft": {"max_steps": 2, "model_init_kwargs": {"token": TOKEN}},
        "ppo": {
            "reward_funcs": [f"{tmp_path / 'rewards.py'}:even"],
            "total_episodes": 4,
            "rollout_batch_size": 2,
            "num_ppo_epochs": 1,
            "per_device_train_batch_size": 2,
            "max_completion_length": 4,
        },
    }
    values = FAST | of_recipe[recipe]
    values |= {
        "model_name_or_path": str(tmp_path / "model"),
        "dataset_name": str(write(tmp_path / "rows.jsonl", rows[:3])),
        "test_dataset_name": str(write(tmp_path / "test.jsonl", rows[3:])),
        "eval_strategy": "steps",
        "eval_steps": 1,
        "output_dir": str(tmp_path / "run"),
        "report_to": trackers,
    }
    importlib.import_module(f"recipes.{recipe}").run(parse(recipe, [], values, runs=True))
    seen, expected = events(tmp_path / "run"), told(tmp_path / "run")
    assert {"sft": ("eval/loss", 2), "ppo": ("train/objective/kl", 2)}[recipe] in expected
    assert {key: seen.get(key) for key in expected} == pytest.approx(expected, rel=1e-6)
    # Beside them the totals that Trainer logs once.
    assert {name for name, _ in set(seen) - set(expected)} <= {
        f"train/{name}" for name in ("train_loss", "train_runtime", "total_flos")
    } | {f"train/train_{name}_per_second" for name in ("samples", "steps")}
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_every_tracker_of_transformers_is_known() -> None:
    from transformers.integrations import integration_utils

    assert set(TRACKERS) == set(integration_utils.INTEGRATION_TO_CALLBACK)


@pytest.mark.parametrize(
    ("name", "package"),
    [("wandb", "'rlhf-recipes[track]'"), ("azure_ml", "azureml-core"), ("flyte", "flytekit")],
)
def test_an_absent_one_is_refused_with_what_installs_it(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()  # as wandb leaves one where it ran
    monkeypatch.syspath_prepend(str(tmp_path))
    said = f"report_to={name}: it is not installed; pip install {package}."
    with within(tmp_path), pytest.raises(UserError) as refused:
        check_trackers(["tensorboard", name])
    assert str(refused.value) == said


def test_what_is_there_or_is_read_later_passes() -> None:
    for given in (None, "none", ["none"], "all", "tensorboard", '["wandb"]', True, "kubeflow"):
        check_trackers(given)
    with pytest.raises(UserError, match=r"^report_to=tensorbord: there is no such tracker; known"):
        check_trackers("tensorbord")
    config = parse("sft", ["--report_to", '["wandb"]'], runs=True)
    with pytest.raises(UserError, match=r"^report_to=wandb: it is not installed"):
        check_training(config.training, config.values)
