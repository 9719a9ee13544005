"""Kept completions: the text of each token in any script, and the numbers beside it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.samples import token_texts
from recipes.lib.ppo.trainer import PPOTrainer
from recipes.lib.report.page import write_report
from recipes.lib.report.tokens import (
    MAX_TOKENS,
    Ramp,
    grouped,
    has_tokens,
    scales,
    text_pieces,
)
from recipes.lib.runs.files import read_jsonl
from tests.helpers.report_runs import ARABIC, CHINESE, EMOJI, write_run

FLAG = "\U0001f1ea\U0001f1fa"
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
TEXTS = [CHINESE, ARABIC, EMOJI, FLAG + FAMILY, "na\u00efve cafe\u0301, two  spaces\nand a line"]


@pytest.fixture
def bytes_tokenizer() -> Any:
    """Every byte is a token, as in GPT-2's alphabet: no character but ASCII is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate(["<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_come_together_to_characters_and_nothing_is_lost(
    bytes_tokenizer: Any, text: str
) -> None:
    prompt, ids = bytes_tokenizer("Say: ")["input_ids"], bytes_tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    made = token_texts(bytes_tokenizer, prompt, [*ids, bytes_tokenizer.eos_token_id])
    # each character stands where its last byte is, and nothing stands elsewhere
    expected = [part for sign in text for part in [""] * (len(sign.encode()) - 1) + [sign]]
    assert made == [*expected, "<eos>"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_real_tokenizer_with_byte_fallback_gives_whole_characters(
    shared: Path, text: str
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models/stories260K")
    prompt = tokenizer("Once upon a time")["input_ids"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    made = token_texts(tokenizer, prompt, ids)
    assert len(made) == len(ids)
    assert "".join(made).strip() == text
    assert "\ufffd" not in "".join(made)


def test_leading_spaces_belong_to_their_words(tiny_tokenizer: Any) -> None:
    prompt, ids = (
        tiny_tokenizer(text)["input_ids"] for text in ("the cat", "sat on the door <eos>")
    )
    assert token_texts(tiny_tokenizer, prompt, ids) == [" sat", " on", " the", " door", " <eos>"]


def test_broken_bytes_are_shown_as_such_and_the_rest_stays_whole(bytes_tokenizer: Any) -> None:
    cat = bytes_tokenizer("\u732b")["input_ids"]
    a = bytes_tokenizer("a")["input_ids"]
    # cut off within a character
    assert token_texts(bytes_tokenizer, a, a + cat[:2])[0] == "a"
    assert set("".join(token_texts(bytes_tokenizer, a, a + cat[:2]))) == {"a", "\ufffd"}
    # a lonely middle byte, then an ordinary letter and a whole character
    made = token_texts(bytes_tokenizer, a, [cat[1], *a, *cat])
    assert "".join(made).endswith("a\u732b")
    assert made[-3:] == ["", "", "\u732b"]
    # broken bytes alone do not collect without end
    assert len([text for text in token_texts(bytes_tokenizer, a, [cat[1]] * 20) if text]) >= 5


def test_what_modifies_a_sign_is_drawn_with_it() -> None:
    tokens = ["a", "", "\U0001f44d", "", "\U0001f3fd", "e", "\u0301", "x"]
    assert grouped(tokens) == [
        ("a", [0]),
        ("\U0001f44d\U0001f3fd", [1, 2, 3, 4]),
        ("e\u0301", [5, 6]),
        ("x", [7]),
    ]
    assert [text for text, _ in grouped(list(FLAG + FLAG))] == [FLAG, FLAG]
    assert [text for text, _ in grouped(["b", *FAMILY, "c"])] == ["b", FAMILY, "c"]
    assert grouped(["a", "", ""]) == [("a", [0, 1, 2])]
    assert grouped(["", ""]) == [("", [0, 1])]


def test_colours_follow_the_square_root_and_are_symmetric() -> None:
    scale = Ramp(middle=1.0, reach=4.0)
    assert [scale.strength(value) for value in (5.0, 2.0, 1.0, 0.0, -3.0)] == [1, 0.5, 0, -0.5, -1]
    assert Ramp(0.0, 0.0).strength(0.0) == 0.0


def sample(tokens: list[str]) -> dict[str, Any]:
    numbers = [float(i) for i in range(len(tokens))]
    return {"tokens": tokens} | {
        f"token_{name}": numbers for name in ("kl", "value", "advantage", "reward")
    }


def test_a_long_text_is_cut_in_the_middle_and_says_how_much() -> None:
    row = sample([f" {i}" for i in range(300)])
    made = text_pieces(row, scales([row]))
    assert len(made) == MAX_TOKENS
    assert [piece.numbers[0].place for piece in made] == [*range(1, 121), *range(261, 301)]
    assert [piece.left_out for piece in made if piece.left_out] == [140]
    assert made[120].left_out == 140


def test_a_page_of_long_texts_stays_small(tmp_path: Path) -> None:
    tokens = [f" {word}" for word in range(1000)]
    rows = [
        sample(tokens) | {"step": step, "prompt": f"{step} {n}", "completion": "".join(tokens)}
        for step in (1, 2, 3)
        for n in range(4)
    ]
    page = write_report(write_run(tmp_path, {"recipe": "ppo"}, samples=rows))
    assert page.read_text().count('class="t"') == 9 * MAX_TOKENS
    assert len(page.read_bytes()) < 400_000


def test_a_sample_without_numbers_for_each_token_is_shown_as_plain_text() -> None:
    assert has_tokens(sample(["a", "b"]))
    assert not has_tokens(sample(["a", "b"]) | {"token_kl": [1.0]})
    assert not has_tokens(sample(["a", "b"]) | {"token_kl": [1.0, float("nan")]})
    assert not has_tokens({"completion": "a b"})


def test_the_numbers_of_a_real_run_are_those_of_the_objective(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [sum(token % 5 == 0 for token in ids) / 3 for ids in completion_ids]

    args = PPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        total_episodes=16,
        rollout_batch_size=4,  # all of them are kept
        per_device_train_batch_size=4,
        max_completion_length=7,
        learning_rate=2e-2,
        kl_coef=0.3,
        gamma=0.9,
        lam=0.8,
        log_completions=True,
    )
    prompts = Dataset.from_list([{"prompt": "the cat"}, {"prompt": "a bird sat"}])
    trainer = PPOTrainer(tiny_model, reward, args, prompts, processing_class=tiny_tokenizer)
    trainer.train()
    rows = read_jsonl(tmp_path / "samples.jsonl")
    assert [row["step"] for row in rows] == [s for s in (4, 8, 12, 16) for _ in range(4)]
    last = rows[-4:]
    for row in last:
        size = row["num_tokens"]
        assert [len(row[k]) for k in row if k.startswith("token")] == [size] * 5
        assert "".join(row["tokens"]).replace("<eos>", "").strip() == row["completion"].strip()
        assert sum(row["token_kl"]) == pytest.approx(row["kl"], abs=2e-3)
        paid = row["score"] - 0.3 * row["kl"]
        assert sum(row["token_reward"]) == pytest.approx(paid, abs=2e-3)
    assert any(abs(row["kl"]) > 0.05 for row in last)
    # advantages by the definition of GAE, a double sum, then whitened over the rollout
    raw = [gae(row["token_reward"], row["token_value"], 0.9, 0.8) for row in last]
    together = np.concatenate(raw)
    whitened = (together - together.mean()) / together.std()
    shown = np.concatenate([row["token_advantage"] for row in last])
    assert shown == pytest.approx(whitened, abs=5e-3)


def gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> np.ndarray:
    following = [*values[1:], 0.0]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, following, values, strict=True)]
    return np.array(
        [
            sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:]))
            for t in range(len(deltas))
        ]
    )
