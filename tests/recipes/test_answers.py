"""Ranks, ratings, thumbs, ties, aspects and ensembles train reward models as pairs do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes import merge
from recipes.lib.errors import UserError
from recipes.lib.models.classifiers import load_reward_model
from recipes.lib.plan.planner import plan_of
from recipes.lib.plan.target import Target
from recipes.lib.recipe.main import launch, parse
from recipes.lib.rewards.reward_models import (
    Aggregation,
    ModelReward,
    RewardModel,
    load_reward_functions,
)
from recipes.lib.runs.files import read_jsonl
from recipes.reward import run
from tests.helpers import four_roles
from tests.helpers.tiny_runs import FAST, LORA, write

SUBJECTS = ("cat", "dog", "bird", "child", "sun", "moon", "rain", "tree")
VERBS = ("was", "sat", "ran", "is")
MOODS = ("happy", "big", "sad")  # from the best
PROMPTS = [f"the {subject}" for subject in SUBJECTS]


def said(verb: str, mood: str) -> str:
    return f" {verb} {mood} ."


def rows_of(kind: str) -> list[dict[str, Any]]:
    """Answers that like the moods in their order, two annotators' ratings a point apart."""
    asked = [(prompt, verb) for prompt in PROMPTS for verb in VERBS]
    if kind == "pair":
        return [
            {"prompt": p, "chosen": said(v, MOODS[0]), "rejected": said(v, MOODS[2])}
            for p, v in asked
        ]
    if kind == "rank":
        return [
            {"prompt": p, "completions": [said(v, mood) for mood in MOODS], "ranks": [1, 2, 3]}
            for p, v in asked
        ]
    if kind == "tie":
        texts = [
            (said(v, MOODS[0]), said("ran" if v == "is" else "is", MOODS[0])) for _, v in asked
        ]
        pairs = zip(asked, texts, strict=True)
        return [{"prompt": p, "completions": [*two], "ranks": [1, 1]} for (p, _), two in pairs]
    each = [(p, v, place) for p, v in asked for place in range(3)]
    if kind == "rating":
        return [
            {
                "prompt": p,
                "completion": said(v, MOODS[place]),
                "rating": 4 - place + (VERBS.index(v) < 2),
                "annotator": "kind" if VERBS.index(v) < 2 else "strict",
            }
            for p, v, place in each
        ]
    return [
        {"prompt": p, "completion": said(v, MOODS[place]), "label": place == 0}
        for p, v, place in each
        if place != 1
    ]


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    tiny_model.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    for kind in ("pair", "rank", "rating", "thumb", "tie"):
        write(tmp_path / f"{kind}.jsonl", rows_of(kind))
    return tmp_path


def train(folder: Path, name: str, *kinds: str, **values: Any) -> dict[str, Any]:
    files = [str(folder / f"{kind}.jsonl") for kind in kinds]
    data = (
        {"dataset_name": files[0]}
        if len(files) == 1
        else {"datasets": [{"path": f} for f in files]}
    )
    tiny = {
        "model_name_or_path": str(folder / "tiny"),
        "test_fraction": 0.25,
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "output_dir": str(folder / name),
    }
    return run(parse("reward", [], FAST | tiny | data | values))


def scores_of(folder: Path, name: str) -> list[tuple[float, float]]:
    samples = read_jsonl(folder / name / "samples.jsonl")
    return [(row["score_chosen"], row["score_rejected"]) for row in samples]


@pytest.mark.parametrize(
    ("kinds", "values"),
    [
        (["rank"], {}),
        (["rank", "tie"], LORA),
        (["rating"], {"eval_strategy": "steps", "eval_steps": 6}),
        (["rating"], {"rating_loss": "regression", "max_steps": 24}),
        (["thumb"], LORA),
        (["pair", "rank", "tie", "rating", "thumb"], {"answer_weights": {"thumb": 0.5}}),
    ],
    ids=["ranks", "ties-lora", "ordinal", "regression", "thumbs-lora", "all"],
)
def test_each_kind_learns_the_order_and_is_saved_as_a_plain_reward_model(
    folder: Path, kinds: list[str], values: dict[str, Any]
) -> None:
    summary = train(folder, "run", *kinds, **values)
    assert summary["accuracy"] > 0.9
    final = folder / "run" / "final"
    file = "adapter_model" if values is LORA else "model"
    assert not [key for key in load_file(final / f"{file}.safetensors") if "beside" in key]
    assert not (final / "beside.safetensors").exists()
    model, tokenizer = load_reward_model(str(folder / "run"))
    assert model.config.num_labels == 1
    samples = read_jsonl(folder / "run" / "samples.jsonl")
    scorer = RewardModel(model, tokenizer, "again", 3)
    again = scorer([row["prompt"] for row in samples], [row["chosen"] for row in samples])
    assert again == pytest.approx([row["score_chosen"] for row in samples], abs=1e-4)
    assert (folder / "run" / "report.html").is_file()


def test_accuracy_is_that_of_the_pairs_which_ranks_and_ratings_imply(folder: Path) -> None:
    # One prompt of four is held out: four rankings of three have 12 pairs; of ratings each
    # annotator's six of a prompt have 3 * 2 * 2 = 12 pairs of different ratings, of thumbs 4 * 4.
    pairs = {"rank": 12, "rating": 24, "thumb": 16}
    for kind, number in pairs.items():
        train(folder, kind, kind, max_steps=1, test_fraction=1 if kind != "rank" else 4)
        assert len(scores_of(folder, kind)) == number
    rated = read_jsonl(folder / "rating" / "samples.jsonl")
    assert len({row["prompt"] for row in rated}) == 1
    order = {mood: place for place, mood in enumerate(MOODS)}
    for row in rated:
        better, worse = (order[row[side].split()[-2]] for side in ("chosen", "rejected"))
        assert better < worse


def test_thumbs_on_a_prompt_each_are_compared_across_prompts(folder: Path) -> None:
    rows = [row for n, row in enumerate(rows_of("thumb")) if n % 2 == (n // 2) % 2]
    one_each = {row["prompt"] + row["completion"]: row for row in rows}
    rows = [row | {"prompt": f"{row['prompt']} {n}"} for n, row in enumerate(one_each.values())]
    write(folder / "alone.jsonl", rows)
    assert train(folder, "run", "alone", max_steps=30)["accuracy"] > 0.8


@pytest.mark.parametrize("method", [{}, LORA], ids=["full", "lora"])
def test_a_stopped_run_resumes_to_the_same_scores_and_the_same_beside(
    folder: Path, method: dict[str, Any]
) -> None:
    keep = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "ensemble": 2} | method
    kinds = ("pair", "tie", "rating", "thumb")
    train(folder, "whole", *kinds, **keep)
    shutil.copytree(folder / "whole", folder / "cut")
    for name in ("checkpoint-4", "checkpoint-6", "final"):
        shutil.rmtree(folder / "cut" / name)
    (folder / "cut" / "summary.json").unlink()
    train(folder, "cut", *kinds, **keep, resume=True)
    assert scores_of(folder, "whole") == scores_of(folder, "cut")
    whole, cut = (
        load_file(folder / name / "checkpoint-6" / "beside.safetensors")
        for name in ("whole", "cut")
    )
    start = load_file(folder / "whole" / "checkpoint-2" / "beside.safetensors")
    for name, weight in whole.items():
        assert torch.equal(weight, cut[name])
        assert not torch.equal(weight, start[name])
    metrics = [read_jsonl(folder / name / "metrics.jsonl") for name in ("whole", "cut")]
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in metrics]
    assert losses[0] == losses[1]


def test_cut_points_and_offsets_find_what_the_ratings_were_made_of(folder: Path) -> None:
    values = {"max_steps": 60, "save_strategy": "steps", "save_steps": 60}
    train(folder, "run", "rating", **values, rater_learning_rate=0.05)
    beside = load_file(folder / "run" / "checkpoint-60" / "beside.safetensors")
    kind, strict = beside["offsets"].tolist()  # by first rows: verbs in their order
    assert kind > 0.3 > -0.3 > strict
    assert beside["cuts"].shape == (1, 3)  # four levels, 2 to 5


def test_the_split_into_micro_batches_changes_no_gradient(folder: Path) -> None:
    kinds = ("pair", "tie", "rating", "thumb")
    norms = []
    for rows, steps in ((16, 1), (4, 4)):
        values: dict[str, Any] = {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": steps,
        }
        values |= {"max_steps": 3, "learning_rate": 1e-3, "answer_weights": {"rating": 0.25}}
        name = f"by {rows}"
        train(folder, name, *kinds, **values)
        logged = [row for row in read_jsonl(folder / name / "metrics.jsonl") if "grad_norm" in row]
        norms.append([(row["grad_norm"], row["loss"]) for row in logged])
    for one, other in zip(*norms, strict=True):
        assert one == pytest.approx(other, rel=2e-4)
    pairs = zip(scores_of(folder, "by 16"), scores_of(folder, "by 4"), strict=True)
    assert all(one == pytest.approx(other, abs=1e-3) for one, other in pairs)


def test_a_weight_multiplies_the_loss_of_its_row_and_rows_of_weight_0_are_rows_still(
    folder: Path,
) -> None:
    rows = rows_of("pair")[:8]
    write(folder / "once.jsonl", [row | {"weight": 2.0} for row in rows])
    write(folder / "never.jsonl", [*rows, *(row | {"weight": 0.0} for row in rows_of("rank")[:8])])
    write(folder / "test.jsonl", rows_of("pair")[8:])
    values = {"max_steps": 1, "test_fraction": 0, "test_dataset_name": str(folder / "test.jsonl")}
    grads = []
    for name, size in (("once", 8), ("never", 16)):
        train(folder, name, name, **values, per_device_train_batch_size=size)
        (step,) = [r for r in read_jsonl(folder / name / "metrics.jsonl") if "grad_norm" in r]
        grads.append(step["grad_norm"])
    assert grads[0] == pytest.approx(4 * grads[1], rel=1e-4)  # 2 * 8 / 8 against 8 / 16


def aspects(folder: Path) -> None:
    """Happy is good in tone, and `is` good in style: of the same rows each likes another."""
    rows = [
        {"prompt": p, "completion": said(v, mood), "rating": rating, "aspect": aspect}
        for p in PROMPTS
        for v in ("is", "was")
        for mood in ("happy", "sad")
        for aspect, rating in (("tone", 1 + 4 * (mood == "happy")), ("style", 1 + 4 * (v == "is")))
    ]
    write(folder / "aspects.jsonl", rows)


@pytest.mark.parametrize("method", [{}, LORA], ids=["full", "lora"])
def test_aspects_are_outputs_of_one_model_that_know_their_own(
    folder: Path, method: dict[str, Any]
) -> None:
    aspects(folder)
    values = {"max_steps": 60, "ensemble": 2, "learning_rate": 2e-2 if method else 1e-2}
    assert train(folder, "run", "aspects", **values, **method)["accuracy"] == 1.0
    model, tokenizer = load_reward_model(str(folder / "run"))
    names = ["style 1", "style 2", "tone 1", "tone 2"]
    assert [*model.config.id2label.values()] == names
    if not method:
        stored = json.loads((folder / "run" / "final" / "config.json").read_text())
        assert [*stored["id2label"].values()] == names
    reward = RewardModel(model, tokenizer, "run")
    style, tone = reward.by_aspect()
    prompts, texts = ["the cat"] * 2, [" is sad .", " was happy ."]
    by_style, by_tone = style(prompts, texts), tone(prompts, texts)
    assert by_style[0] > by_style[1]
    assert by_tone[0] < by_tone[1]
    both = [one + other for one, other in zip(by_style, by_tone, strict=True)]
    assert reward(prompts, texts) == pytest.approx(both)
    # It goes on as what it is, and as nothing else.
    more = {"model_name_or_path": str(folder / "run"), "max_steps": 1} | method
    train(folder, "more", "aspects", **more, ensemble=2)
    with pytest.raises(UserError, match=r"outputs style 1, style 2, tone 1, tone 2, and this run"):
        train(folder, "other", "pair", **more)
    assert not (folder / "other").exists()


@pytest.mark.parametrize(
    ("kinds", "values", "text"),
    [
        (["tie"], {}, "every training row is a tie or has the same value"),
        (["pair", "half"], {}, "column 'ranks' has "),
        (["odd"], {}, "column 'rating' has '5 stars', which is no number"),
        (["many"], {}, "have 24 different values and at most 20"),
        (["rank"], {"streaming": True, "max_steps": 2}, "streaming=true: ranks, ratings"),
        (["rank"], {"answer_weights": {"stars": 1}}, r"answer_weights=\{stars: 1\.?0?\}: give"),
        (["rank"], {"label_smoothing": 0.5}, "label_smoothing=0.5: give 0 to below 0.5"),
        (["rank"], {"ensemble": 0}, "ensemble=0: give the number"),
        (["heavy"], {}, "column 'weight' has -1, which is no number from 0 on"),
    ],
)
def test_mistakes_are_told_and_leave_no_folder(
    folder: Path, kinds: list[str], values: dict[str, Any], text: str
) -> None:
    ranked, rated = rows_of("rank"), rows_of("rating")
    write(folder / "half.jsonl", [row | {"ranks": row["ranks"][:2]} for row in ranked])
    write(folder / "odd.jsonl", [*rated, rated[0] | {"rating": "5 stars"}])
    write(folder / "many.jsonl", [row | {"rating": n % 24} for n, row in enumerate(rated)])
    write(folder / "heavy.jsonl", [row | {"weight": -1} for row in ranked])
    with pytest.raises(UserError, match=text):
        train(folder, "run", *kinds, **values)
    assert not (folder / "run").exists()


def test_test_rows_that_are_ties_alone_are_refused(folder: Path) -> None:
    values = {"test_fraction": 0, "test_dataset_name": str(folder / "tie.jsonl")}
    with pytest.raises(UserError, match="the test rows are ties alone"):
        train(folder, "run", "rank", **values)


def test_data_page_shows_what_is_ranked_and_rated(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, shown in (("rank", ["ranks, text", "rank 1"]), ("rating", ["ratings, text", "LOSS"])):
        argv = [str(folder / f"{kind}.jsonl"), "--model_name_or_path", str(folder / "tiny")]
        assert launch("data", [*argv, "--max_length", "4"]) == 0
        out = capsys.readouterr().out
        assert all(text in out for text in [*shown, "for reward", "reward: "])


def test_aspects_of_an_adapter_on_the_policys_base_are_rewards_with_weights(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4}
    folders = four_roles.write_folders(tmp_path / "roles", **sizes)
    path = folders / "aspects"
    shutil.copytree(folders / "reward", path)
    weights = load_file(path / "adapter_model.safetensors")
    name = next(key for key in weights if key.endswith("score.weight"))
    width = weights[name].shape[1]
    head = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    save_file(weights | {name: head}, path / "adapter_model.safetensors")
    (path / "reward_heads.json").write_text('{"aspects": ["style", "tone"], "ensemble": 2}')
    given = (["a b", "c"], [" d", " e f"])
    said = Aggregation("mean_minus_sd", 0.5)
    values = {"critic": "head", "critic_model_name_or_path": None, "reward_weights": [1.0, 0.5]}
    reward = ModelReward(str(path), said)
    trainer = four_roles.trainer(folders, tmp_path / "out", reward=reward, **values)
    assert "reward" in trainer.actor_critic.adapters.model.peft_config
    alone = load_reward_functions(reward, None, 4, "cpu")
    names = ["aspects/style", "aspects/tone"]
    assert [function.__name__ for function in trainer.collector.functions] == names
    for shared, own in zip(trainer.collector.functions, alone, strict=True):
        assert shared(*given) == pytest.approx(own(*given), abs=1e-5)
    trainer.collector.rollout(0)
    critic = {"critic": "adapter", "critic_model_name_or_path": str(path)}
    with pytest.raises(UserError, match="has 4 outputs; a reward model has 1"):
        four_roles.trainer(folders, tmp_path / "no", reward=reward, **critic)


def test_an_ensemble_speaks_by_its_mean_its_least_or_its_mean_less_deviations() -> None:
    outputs = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    assert Aggregation()(outputs).tolist() == [2.0, 0.0]
    assert Aggregation("min")(outputs).tolist() == [1.0, 0.0]
    assert Aggregation("mean_minus_sd", 2.0)(outputs).tolist() == [0.0, 0.0]  # sd of 1 and 3: 1


def test_a_plan_counts_the_completions_of_a_row(folder: Path) -> None:
    keys = FAST | {"model_name_or_path": str(folder / "tiny"), "dataset_name": "rank.jsonl"}
    config = parse("reward", [], keys | {"max_length": 64, "output_dir": str(folder / "run")})
    two, four = (plan_of(config, Target(num_completions=number)) for number in (2, 4))
    peaks = [next(p for p in plan.phases if p.name == "training").allocated for plan in (two, four)]
    assert peaks[0] < peaks[1]
    assert four.facts["lengths"] == "rows of 4 times 64 tokens"


def test_a_merged_adapter_has_the_outputs_of_the_adapter(folder: Path) -> None:
    aspects(folder)
    train(folder, "run", "aspects", max_steps=4, **LORA)
    values = {"run": str(folder / "run"), "output_dir": str(folder / "merged")}
    merge.run(parse("merge", [], values))
    (model, tokenizer), (plain, _) = (
        load_reward_model(str(folder / name)) for name in ("run", "merged")
    )
    assert plain.config.id2label == model.config.id2label == {0: "style", 1: "tone"}
    both = [
        RewardModel(one, tokenizer, "both").scores(["the cat"], [" is sad ."])
        for one in (model, plain)
    ]
    assert torch.allclose(both[0], both[1], atol=1e-4)
