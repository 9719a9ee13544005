"""A language model as a judge that is loaded here, without a server."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from recipes.lib.errors import UserError
from recipes.lib.rewards.reward_models import load_reward_functions
from tests.conftest import word_tokenizer

PROMPTS, TEXTS = ["say a", "say b", "say c", "say d"], ["one", "two", "three", "four"]


@pytest.fixture
def small_model(tmp_path: Path, tiny_model: LlamaForCausalLM) -> Path:
    """A model that was taught to go on with `7` behind `Score:` and with `A` behind `Better:`."""
    taught = ["Score:", "7", "Better:", "A"]
    tokenizer = word_tokenizer(taught)
    tiny_model.resize_token_embeddings(len(tokenizer))
    tiny_model.config.max_position_embeddings = 4096
    words = len(tokenizer) - len(taught)
    score, seven, better, a = tokenizer.convert_tokens_to_ids(taught)
    optimizer = torch.optim.AdamW(tiny_model.parameters(), lr=1e-2)
    for step in range(120):
        before = torch.randint(words, (8, 60 + 15 * (step % 10)))
        ends = torch.tensor([[score, seven], [better, a]] * 4)
        ids = torch.cat([before, ends, torch.full((8, 1), tokenizer.eos_token_id)], dim=1)
        labels = ids.clone()
        labels[:, :-2] = -100
        tiny_model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tiny_model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_that_is_loaded_here_judges_too(tmp_path: Path, small_model: Path) -> None:
    keys = {"model": str(small_model), "cache": str(tmp_path / "cache"), "batch_size": 3}
    file = tmp_path / "judge.yaml"
    file.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    judge: Any = load_reward_functions(str(file), None, 8, "cpu")[0]
    assert judge(PROMPTS, TEXTS) == [7.0] * 4
    assert judge.compare(PROMPTS[:2], ["a", "same"], ["b", "same"]) == [
        ("one", "other"),  # A both times
        ("tie", "tie"),
    ]
    expected = {"questions": 6, "asked": 6, "flips": 1, "tokens_out": 12}  # a word and the end
    assert {name: judge.counts[name] for name in expected} == expected
    assert judge.counts["tokens_in"] > 6 * 50
    again: Any = load_reward_functions(str(file), None, 8, "cpu")[0]
    assert again(PROMPTS, TEXTS) == [7.0] * 4
    assert (again.counts["cached"], again.counts["asked"]) == (4, 0)
    with pytest.raises(UserError, match=r"a question has \d+ tokens and the model reads 4096"):
        judge(["word " * 5000], ["a"])


@pytest.mark.slow
def test_a_real_small_chat_model_judges(tmp_path: Path, shared: Path) -> None:
    """SmolLM2-135M-Instruct keeps to the form most of the time; what it says is worth little."""
    made = tmp_path / "smollm2"
    subprocess.run([sys.executable, str(shared / "tools/get_smollm2"), str(made)], check=True)
    file = tmp_path / "judge.yaml"
    file.write_text(
        f"model: {made}\ndtype: float32\ncache: {tmp_path / 'cache'}\nmax_unparsable: 0.5\n"
    )
    lines = (shared / "data/preference/rasbt_polite.jsonl").read_text().splitlines()[:4]
    rows = [json.loads(line) for line in lines]
    prompts, texts = ([row[name] for row in rows] for name in ("prompt", "chosen"))
    judge: Any = load_reward_functions(str(file), None, 8, "cpu")[0]
    said = judge(prompts, texts)
    print(said, dict(judge.counts))
    assert judge.counts["questions"] == 4
    assert [one for one in said if one is not None and not 1 <= one <= 10] == []
    assert sum(one is not None for one in said) >= 2
    again: Any = load_reward_functions(str(file), None, 8, "cpu")[0]
    assert again(prompts, texts) == said
    assert again.counts["asked"] == 0
