"""What does not fit is told by DPO, KTO, RLOO, GRPO and PPO before they make a file.

SFT and the reward model have theirs in tests/recipes/test_token_traps.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from recipes.lib.recipe.main import launch
from tests.helpers.tiny_models import save_model, with_bos
from tests.helpers.tiny_runs import LORA, flags, snapshot, write

ASKED = [{"role": "user", "content": "who sat ?"}]
GOOD = [{"role": "assistant", "content": "the cat ."}]
BAD = [{"role": "assistant", "content": "the dog ."}]
STEP = {"max_steps": 1, "per_device_train_batch_size": 2}
SAMPLED = {"reward_funcs": ["rewards.py:odd"], "max_completion_length": 4}
GROUPS = STEP | SAMPLED | {"num_generations": 2}
EPISODES = {
    "total_episodes": 4,
    "rollout_batch_size": 4,
    "num_ppo_epochs": 1,
    "per_device_train_batch_size": 4,
}
VALUES: dict[str, dict[str, Any]] = {
    "dpo": STEP,
    "kto": STEP,
    "rloo": GROUPS,
    "grpo": GROUPS,
    "ppo": SAMPLED | EPISODES,
}
PREFERENCES, SAMPLERS = ("dpo", "kto"), ("rloo", "grpo", "ppo")
PLAIN: dict[str, Any] = {
    "dpo": [{"prompt": f"the {word}", "chosen": " sat .", "rejected": " is"} for word in "abcd"],
    "kto": [
        {"prompt": f"the {word}", "completion": " sat .", "label": word in "ac"} for word in "abcd"
    ],
} | {key: [{"prompt": f"the {word}"} for word in "abcd"] for key in SAMPLERS}
SPOKEN: dict[str, Any] = {
    "dpo": [{"prompt": ASKED, "chosen": GOOD, "rejected": BAD}] * 2,
    "kto": [{"prompt": ASKED, "completion": side, "label": side is GOOD} for side in (GOOD, BAD)],
} | {key: [{"prompt": ASKED}] * 2 for key in SAMPLERS}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("rewards.py").write_text(
        "def odd(completion_ids, **_):\n    return [ids[0] / 9 for ids in completion_ids]\n"
    )
    return tmp_path


def started(recipe: str, rows: list[dict[str, Any]], **more: Any) -> int:
    write(Path("rows.jsonl"), rows)
    return launch(recipe, flags(VALUES[recipe] | {"dataset_name": "rows.jsonl"} | more))


def refused(
    capsys: pytest.CaptureFixture[str], recipe: str, rows: list[dict[str, Any]], **more: Any
) -> str:
    """The one sentence that is said; nothing was written."""
    write(Path("rows.jsonl"), rows)
    before = snapshot(Path.cwd())
    capsys.readouterr()
    values = VALUES[recipe] | {"dataset_name": "rows.jsonl"} | more
    assert launch(recipe, flags(values)) == 2
    said = capsys.readouterr().err
    (told,) = [line for line in said.splitlines() if line.startswith(f"rlhf {recipe}: error: ")]
    assert "Traceback" not in said
    assert snapshot(Path.cwd()) == before
    return told


@pytest.mark.parametrize(
    ("recipe", "row"),
    [
        ("dpo", {"prompt": "the cat", "chosen": " sat", "rejected": " sat on the hill and sang ."}),
        ("kto", {"prompt": "the cat", "completion": " sat on the hill and sang .", "label": True}),
    ],
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_rows_longer_than_the_context_name_the_length_to_set(
    recipe: str,
    row: dict[str, Any],
    name: str,
    place: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = {"n_positions": 8} if name == "gpt2" else {"max_position_embeddings": 8}
    save_model(Path("model"), tiny_tokenizer, name, **short)
    told = refused(capsys, recipe, [*PLAIN[recipe], row])
    assert told.endswith(
        "max_length=1024: the longest row has 10 tokens and the model's context 8; set max_length "
        "to 8 or less."
    )
    assert started(recipe, [*PLAIN[recipe], row], max_length=8) == 0


def test_a_completion_that_kto_puts_behind_another_prompt_counts_too(
    place: Path, tiny_tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(Path("model"), tiny_tokenizer, max_position_embeddings=8)
    rows = [
        {"prompt": "the cat sat on the hill", "completion": " .", "label": True},  # 6 + 2
        {"prompt": "the", "completion": " dog sat on it", "label": False},  # 1 + 5
    ]
    # For its estimate of the KL, KTO reads the second completion behind the first prompt: 6 + 5.
    assert "the longest row has 11 tokens" in refused(capsys, "kto", rows)
    assert started("kto", rows, loss_type="apo_zero_unpaired") == 0  # without that estimate


@pytest.mark.parametrize("recipe", SAMPLERS)
def test_a_prompt_without_room_for_a_completion_is_refused(
    recipe: str,
    place: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_model(Path("model"), tiny_tokenizer, max_position_embeddings=8)
    rows = [*PLAIN[recipe], {"prompt": "the cat sat on it"}]
    assert refused(capsys, recipe, rows).endswith(
        "max_completion_length=4: with the longest prompt of 5 tokens that is more than the "
        "model's context of 8; lower it, or drop the prompts that are long (rlhf data shows the "
        "lengths)."
    )
    assert started(recipe, rows, max_completion_length=3) == 0


@pytest.mark.parametrize("recipe", ["rloo", "grpo"])
def test_a_prompt_to_evaluate_on_needs_room_too(
    recipe: str,
    place: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_model(Path("model"), tiny_tokenizer, max_position_embeddings=8)
    write(Path("test.jsonl"), [{"prompt": "the cat sat on it"}])
    told = refused(capsys, recipe, PLAIN[recipe], test_dataset_name="test.jsonl")
    assert "with the longest prompt of 5 tokens" in told


@pytest.mark.parametrize("recipe", VALUES)
def test_messages_without_a_template_are_refused(
    recipe: str,
    place: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_tokenizer.chat_template = None
    save_model(Path("model"), tiny_tokenizer)
    told = refused(capsys, recipe, SPOKEN[recipe])
    assert "prompt: messages were given, but the model's tokenizer has no chat template; " in told
    assert started(recipe, PLAIN[recipe]) == 0


@pytest.mark.parametrize("recipe", VALUES)
def test_a_template_that_repeats_bos_is_refused_and_one_that_drops_it_is_told(
    recipe: str,
    place: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain, bos = tiny_tokenizer.chat_template, "{{ bos_token }} "
    with_bos(tiny_tokenizer, "<system>").chat_template = bos + bos + plain
    save_model(Path("model"), tiny_tokenizer, bos_token_id=3)
    assert refused(capsys, recipe, SPOKEN[recipe]).endswith(
        "model_name_or_path=model: its chat template begins with <system> twice; save the model "
        "with a template that writes it once."
    )
    for template, is_told in ((plain, True), (bos + plain, False)):
        tiny_tokenizer.chat_template = template
        save_model(Path("model"), tiny_tokenizer, bos_token_id=3)
        capsys.readouterr()
        assert started(recipe, SPOKEN[recipe], overwrite=True) == 0
        warning = (
            "Warning: the chat template writes no <system>, which the tokenizer puts before plain "
            "text; if the model was trained with it, save the model with a template that writes it."
        )
        assert (warning in capsys.readouterr().err) == is_told


@pytest.mark.parametrize("recipe", PREFERENCES)
def test_a_template_that_asks_otherwise_than_it_trains_or_never_ends_is_refused(
    recipe: str,
    place: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = tiny_tokenizer.chat_template
    head, _, _ = plain.partition("{% if add_generation_prompt %}")
    thinks = "{% if add_generation_prompt %}<assistant> <system> {% endif %}"
    tiny_tokenizer.chat_template = head + thinks
    save_model(Path("model"), tiny_tokenizer)
    told = refused(capsys, recipe, SPOKEN[recipe])
    assert "path=model: its chat template renders a prompt alone as ...'<user> who sat ? " in told
    assert told.endswith("save the model with a template that renders both alike.")
    tiny_tokenizer.chat_template = plain.replace("<eos>", "")
    save_model(Path("model"), tiny_tokenizer)
    told = refused(capsys, recipe, SPOKEN[recipe])
    assert "eos_token=<eos>: the chat template does not end an answer with it, so" in told
    tiny_tokenizer.chat_template = plain
    save_model(Path("model"), tiny_tokenizer)
    assert started(recipe, SPOKEN[recipe]) == 0


@pytest.mark.parametrize("recipe", VALUES)
@pytest.mark.parametrize("kind", ["zeros", "twins"])
def test_added_tokens_without_training_are_refused_under_an_adapter(
    recipe: str,
    kind: str,
    place: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>"]})
    save_model(Path("model"), tiny_tokenizer)
    model = AutoModelForCausalLM.from_pretrained("model")
    with torch.no_grad():
        rows = model.model.embed_tokens.weight
        rows[4:6] = 0.0 if kind == "zeros" else rows[7]
    model.save_pretrained("model")
    told = refused(capsys, recipe, SPOKEN[recipe], **LORA)
    assert "missing: the data uses <user>, <assistant>, whose embeddings were never" in told
    assert started(recipe, PLAIN[recipe], **LORA) == 0  # which does not use these tokens
    assert started(recipe, SPOKEN[recipe], overwrite=True) == 0  # full fine-tuning trains them


@pytest.mark.parametrize("recipe", PREFERENCES)
def test_a_limit_that_drops_every_row_is_told(
    recipe: str,
    place: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_model(Path("model"), tiny_tokenizer)
    told = refused(capsys, recipe, PLAIN[recipe], max_length=2)  # the prompts have two tokens
    assert "max_length=2: every training row is longer and dropped; raise it." in told
    assert started(recipe, PLAIN[recipe], max_length=3) == 0
