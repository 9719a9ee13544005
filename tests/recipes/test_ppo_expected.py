"""What users of Trainer and of TRL expect of a trainer, on tiny models."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.trainer import PPOTrainer
from recipes.lib.runs.files import read_jsonl
from tests.conftest import SPECIAL, WORDS

PROMPTS = ["the cat", "the dog sat", "a bird in the tree", "rain"]
HELD_OUT = ["the moon", "the old house"]


def every_fifth(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [sum(token % 5 == 0 for token in ids) / 3 for ids in completion_ids]


def make(model: Any, tokenizer: Any, folder: Path, **more: Any) -> PPOTrainer:
    settings = {
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "total_episodes": 32,
        "rollout_batch_size": 8,
        "num_ppo_epochs": 2,
        "per_device_train_batch_size": 8,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
    }
    given = {
        name: more.pop(name)
        for name in ("callbacks", "peft_config", "reward_processing_classes", "eval_dataset")
        if name in more
    }
    reward = more.pop("reward_funcs", every_fifth)
    rows = more.pop("rows", [{"prompt": prompt} for prompt in PROMPTS])
    args = PPOConfig(output_dir=str(folder), **(settings | more))
    data = Dataset.from_list(rows)
    return PPOTrainer(model, reward, args, data, processing_class=tokenizer, **given)


def updates(trainer: PPOTrainer) -> list[dict[str, Any]]:
    return [row for row in trainer.state.log_history if "loss" in row]


class Watcher(TrainerCallback):
    """Notes which of Trainer's events came, and what came with them."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.logged: list[dict[str, Any]] = []
        self.evaluated: list[dict[str, Any]] = []
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("train_begin")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("step_end")
        self.weights[state.global_step] = copy.deepcopy(kwargs["model"].state_dict())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.events.append("log")
        self.logged.append(dict(logs))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("evaluate")
        self.evaluated.append({"step": state.global_step} | kwargs["metrics"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("save")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("train_end")


def test_callbacks_see_every_event_and_trackers_get_plain_numbers(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    watcher = Watcher()
    trainer = make(
        tiny_model,
        tiny_tokenizer,
        tmp_path,
        callbacks=[watcher],
        eval_dataset=Dataset.from_list([{"prompt": prompt} for prompt in HELD_OUT]),
        total_episodes=16,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=4,
        log_completions=True,
    )
    trainer.train()
    first = ["step_end", "step_end", "log", "log", "evaluate"]  # the second log is eval's
    assert watcher.events == ["train_begin", *first, *first, "save", "log", "train_end"]
    for row in watcher.logged:
        for name, value in row.items():
            assert isinstance(value, int | float), name  # what TensorBoard takes for a scalar
            assert np.isfinite(value), name
    assert [row["step"] for row in watcher.evaluated] == [2, 4]
    keys = {"eval_scores", "eval_kl", "eval_completions/mean_length", "eval_greedy_scores", "step"}
    assert set(watcher.evaluated[0]) == keys
    assert len(read_jsonl(tmp_path / "samples.jsonl")) == 2 * 4


@pytest.mark.parametrize("critic", ["head", "model"])
@pytest.mark.parametrize("lora", [False, True])
def test_the_best_checkpoint_is_kept_and_loaded_at_the_end(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, lora: bool, critic: str
) -> None:
    watcher, asked = Watcher(), [0]

    def souring(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        if prompts[0] in HELD_OUT:  # sampled and greedy texts of each evaluation
            asked[0] += 1
            return [{3: 2.0}.get(asked[0], 1.0)] * len(prompts)  # the second evaluation is best
        return every_fifth(completion_ids)

    trainer = make(
        tiny_model,
        tiny_tokenizer,
        tmp_path,
        reward_funcs=souring,
        callbacks=[watcher],
        eval_dataset=Dataset.from_list([{"prompt": prompt} for prompt in HELD_OUT]),
        critic=critic,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        metric_for_best_model="eval_scores",
        load_best_model_at_end=True,
        peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
    )
    trainer.train()
    scores = {r["step"]: r["eval_scores"] for r in trainer.state.log_history if "eval_scores" in r}
    assert scores == {2: 1.0, 4: 2.0, 6: 1.0, 8: 1.0}
    assert trainer.state.best_metric == 2.0
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    loaded = trainer.model.state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in watcher.weights[4].items())
    assert any(not torch.equal(loaded[name], t) for name, t in watcher.weights[8].items())


def test_several_sets_to_evaluate_on_have_metrics_of_their_own(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    sets = {
        name: Dataset.from_list([{"prompt": prompt}])
        for name, prompt in zip(("moon", "house"), HELD_OUT, strict=True)
    }
    trainer = make(
        tiny_model, tiny_tokenizer, tmp_path, eval_dataset=sets, eval_strategy="steps", eval_steps=4
    )
    trainer.train()
    names = {name for row in trainer.state.log_history for name in row}
    assert {"eval_moon_scores", "eval_house_scores"} <= names


def test_each_prompt_is_answered_as_often_as_asked(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    seen: list[tuple[str, tuple[int, ...]]] = []

    def note(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        seen.extend((p, tuple(ids)) for p, ids in zip(prompts, completion_ids, strict=True))
        return [0.0] * len(prompts)

    trainer = make(tiny_model, tiny_tokenizer, tmp_path, reward_funcs=note, num_generations=4)
    trainer.collector.rollout(0)
    trainer.collector.rollout(1)
    groups = [seen[start : start + 4] for start in range(0, 16, 4)]
    assert [len({prompt for prompt, _ in group}) for group in groups] == [1] * 4
    assert sorted(group[0][0] for group in groups) == sorted(PROMPTS)  # one pass in two rollouts
    assert all(len({ids for _, ids in group}) > 1 for group in groups)


THINKING = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% if not thinking %}. {% endif %}{% endif %}"
)


@pytest.mark.parametrize("given", [{"thinking": True}, '{"thinking": true}', None])
def test_arguments_of_the_chat_template_reach_it(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, given: Any
) -> None:
    tiny_tokenizer.chat_template = THINKING
    rows = [{"prompt": [{"role": "user", "content": "the cat"}]}]
    trainer = make(tiny_model, tiny_tokenizer, tmp_path, rows=rows, chat_template_kwargs=given)
    text = "<user> the cat <assistant>" + ("" if given else " .")
    assert trainer.collector.prompts.ids == [tiny_tokenizer(text)["input_ids"]]


def test_the_entropy_bonus_raises_the_entropy(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    entropies = []
    for coef in (0.0, 0.1):
        trainer = make(
            copy.deepcopy(tiny_model),
            tiny_tokenizer,
            tmp_path,
            entropy_coef=coef,
            critic="model",  # with a trunk of its own to learn on, so that the policy goes further
            total_episodes=320,
            rollout_batch_size=32,
            per_device_train_batch_size=32,
            seed=3,
        )
        trainer.train()
        entropies.append([row["policy/entropy_avg"] for row in updates(trainer)])
    without, with_bonus = entropies
    # before the first update takes effect they are the same policy
    assert with_bonus[0] == pytest.approx(without[0], abs=0.01)
    assert with_bonus[-1] > without[-1] + 0.05


def test_raw_and_penalised_scores_are_logged_apart_as_worked_out_by_hand(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    said: list[list[float]] = []
    ends: list[list[bool]] = []

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        said.append([float(sum(ids)) for ids in completion_ids])
        ends.append([ids[-1] == tiny_tokenizer.eos_token_id for ids in completion_ids])
        return said[-1]

    trainer = make(
        tiny_model,
        tiny_tokenizer,
        tmp_path,
        reward_funcs=reward,
        normalize_rewards=True,
        reward_clip=3.0,
        missing_eos_penalty=0.75,
    )
    trainer.train()
    rows = updates(trainer)
    assert len(rows) == len(said) == 4
    assert 0 < np.mean(ends) < 1  # both kinds occurred
    clipped = 0
    for number, row in enumerate(rows):
        so_far = np.concatenate(said[: number + 1])
        scaled = np.array(said[number]) / so_far.std()  # of all scores up to now, not shifted
        clipped += int((abs(scaled) > 3).sum())
        kept = np.clip(scaled, -3, 3) - 0.75 * ~np.array(ends[number])
        assert row["objective/raw_scores"] == pytest.approx(np.mean(said[number]), rel=1e-5)
        assert row["objective/raw_scores_std"] == pytest.approx(np.std(said[number]), rel=1e-5)
        assert row["objective/scores"] == pytest.approx(kept.mean(), rel=1e-5)
        assert row["objective/scores_std"] == pytest.approx(kept.std(), rel=1e-5)
        assert row["objective/eos_fraction"] == np.mean(ends[number])
        penalty = row["objective/kl_coef"] * row["objective/kl"]
        assert row["objective/rlhf_reward"] == pytest.approx(kept.mean() - penalty, abs=1e-5)
    assert clipped > 0


def reward_model(words: list[str], template: str, seed: int) -> tuple[Any, Any]:
    """A random reward model with a vocabulary and a chat template of its own."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, "[ask]", "[say]", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_labels=1,
        pad_token_id=0,
        max_position_embeddings=64,
    )
    model = LlamaForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight, std=1.0)
    return model.eval(), tokenizer


SHORT = "{% for m in messages %}{{ m.content }} {% endfor %}<eos>"
LONG = (
    "{% for m in messages %}{{ '[ask]' if m.role == 'user' else '[say]' }} {{ m.content }} "
    "{% endfor %}<eos>"
)


def test_reward_models_with_other_tokenizers_and_templates_read_the_same_texts(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    first, first_tokenizer = reward_model(WORDS, SHORT, 1)
    second, second_tokenizer = reward_model(list(reversed(WORDS)), LONG, 2)
    second.save_pretrained(tmp_path / "a/final")
    second_tokenizer.save_pretrained(tmp_path / "a/final")
    third, third_tokenizer = reward_model(sorted(WORDS), LONG, 3)
    third.save_pretrained(tmp_path / "b/final")
    third_tokenizer.save_pretrained(tmp_path / "b/final")
    heard: list[tuple[str, str]] = []

    def listen(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        heard.extend(
            (p[-1]["content"], c[0]["content"]) for p, c in zip(prompts, completions, strict=True)
        )
        return [0.0] * len(prompts)

    trainer = make(
        tiny_model,
        tiny_tokenizer,
        tmp_path / "run",
        rows=[{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS],
        reward_funcs=[first, str(tmp_path / "a/final"), str(tmp_path / "b/final"), listen],
        reward_processing_classes=[first_tokenizer, None, None, None],
        reward_weights=[1.0, -0.5, 2.0, 1.0],
    )
    trainer.collector.rollout(0)
    expected = np.zeros((len(heard), 3))
    for row, (asked, said) in enumerate(heard):
        texts = [f"{asked} {said} <eos>"] + [f"[ask] {asked} [say] {said} <eos>"] * 2
        models_of = ((first, first_tokenizer), (second, second_tokenizer), (third, third_tokenizer))
        for column, ((model, tokenizer), text) in enumerate(zip(models_of, texts, strict=True)):
            with torch.no_grad():  # one text at a time, by the model's own rule of the last token
                ids = torch.tensor([tokenizer(text)["input_ids"]])
                expected[row, column] = model(ids).logits.item()
    metrics = trainer.collector.metrics
    means = expected.mean(0)
    assert metrics["objective/raw_scores"] == pytest.approx(means @ [1.0, -0.5, 2.0], abs=1e-5)
    # two models of the same folder name are told apart
    assert metrics["rewards/final"] == pytest.approx(means[1], abs=1e-5)
    assert metrics["rewards/final-2"] == pytest.approx(means[2], abs=1e-5)
    assert len(set(np.round(means, 3))) == 3
