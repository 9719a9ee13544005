"""Tools in the format of a real chat template, under PPO and in TRL's loop under GRPO."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import grpo, ppo
from recipes.lib.environments.rendering import Rendering
from recipes.lib.errors import UserError
from recipes.lib.recipe.main import parse
from recipes.lib.runs.files import read_jsonl
from tests.helpers import tiny
from tests.unit.environments.test_rendering import QUESTION, add, tokenizer

PPO = {"total_episodes": 8, "rollout_batch_size": 8, "max_prompt_length": 1024}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 12, "b": 30}}\n</tool_call>'
FILE = '''
import json


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first one.
        b: The second one.
    """
    return a + b


class Desk:
    def reset(self, **row) -> None:
        """Nothing is to be added to the prompt."""

    def add(self, a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: The first one.
            b: The second one.
        """
        return a + b


def right(completions, **columns):
    with open("seen.jsonl", "a") as file:
        print(json.dumps(completions), file=file)
    return [float("42" in said[-1]["content"]) for said in completions]
'''


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned one conversation with one call by heart, mostly."""
    torch.manual_seed(0)
    start = tmp_path_factory.mktemp("start")
    words = tokenizer("qwen2_5")
    rendering = Rendering(words, words.eos_token_id, None, [add])
    model = tiny.llama(
        vocab_size=len(words), hidden_size=64, max_position_embeddings=2048, initializer_range=0.05,
        pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    _, ids = rendering.begin(QUESTION, "")
    labels = [-100] * len(ids)
    for text, answer in ((CALL, "42"), ("It is 42.", None)):
        said = [*words(text, add_special_tokens=False)["input_ids"], words.eos_token_id]
        heard = rendering.answer_ids(answer, as_text=False, has_ended=True) if answer else []
        ids, labels = [*ids, *said, *heard], [*labels, *said, *[-100] * len(heard)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(start)
    words.save_pretrained(start)
    return start


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learned: Path) -> Path:
    """Where a run is, with what it needs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start").symlink_to(learned)
    (tmp_path / "tools.py").write_text(FILE, encoding="utf-8")
    row = json.dumps({"prompt": QUESTION})
    (tmp_path / "rows.jsonl").write_text(f"{row}\n" * 4, encoding="utf-8")
    return tmp_path


def values(folder: Path, **more: Any) -> dict[str, Any]:
    settings = {
        "model_name_or_path": str(folder / "start"),
        "dataset_name": "rows.jsonl",
        "output_dir": str(folder / "run"),
        "reward_funcs": ["tools.py:right"],
        "max_completion_length": 80,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-5,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "log_completions": True,
    }
    return settings | more


def seen(folder: Path) -> list[list[dict[str, Any]]]:
    lines: list[Any] = read_jsonl(folder / "seen.jsonl")
    return [said for line in lines for said in line]


def test_ppo_answers_the_calls_of_its_policy(folder: Path) -> None:
    given = values(folder, tools=["tools.py:add"], **PPO)
    summary = ppo.run(parse("ppo", [], given))
    assert summary["scores"] > 0.5
    called = [said for said in seen(folder) if len(said) == 3]
    assert called
    for assistant, answer, last in called:
        assert (assistant["role"], last["role"]) == ("assistant", "assistant")
        assert assistant["content"].startswith("<tool_call>")
        assert answer["role"] == "tool"
    assert {"role": "tool", "content": "42"} in [said[1] for said in called]
    row = next(row for row in read_jsonl(folder / "run/samples.jsonl") if len(row["turns"]) == 2)
    assert row["turns"][0]["text"].strip() == CALL
    page = (folder / "run/report.html").read_text(encoding="utf-8")
    assert 'class="t heard"' in page
    assert "return by turn" in page


@pytest.mark.parametrize("key", [{"tools": ["tools.py:add"]}, {"environment": "tools.py:Desk"}])
def test_grpo_hands_both_to_trls_trainer(folder: Path, key: dict[str, Any]) -> None:
    given = values(folder, num_generations=4, max_steps=1, max_completion_length=200, **key)
    grpo.run(parse("grpo", [], given))
    roles = [[message["role"] for message in said] for said in seen(folder)]
    assert ["assistant", "tool", "assistant"] in roles


def test_ppo_refuses_both_at_once(folder: Path) -> None:
    given = values(folder, tools=["tools.py:add"], environment="tools.py:Desk", total_episodes=64)
    with pytest.raises(UserError, match="environment Desk: give a class that has reset and step"):
        ppo.run(parse("ppo", [], given))
    (folder / "worlds.py").write_text(
        "class W:\n    def reset(self): ...\n    def step(self): ...\n"
    )
    given = values(folder, tools=["tools.py:add"], environment="worlds.py:W", total_episodes=64)
    with pytest.raises(UserError, match="environment and tools exclude each other"):
        ppo.run(parse("ppo", [], given))


def test_rloo_says_where_there_are_environments() -> None:
    with pytest.raises(UserError, match="RLOO has one turn; use ppo or grpo for environment"):
        parse("rloo", [], {"environment": "worlds.py:W"})
