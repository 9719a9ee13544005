"""From a run to what others load: merged, with a card of its files, and talked to."""

import contextlib
import io
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers import AutoModelForCausalLM

import recipes
from recipes.lib.errors import UserError
from recipes.lib.generation.completions import complete
from recipes.lib.publishing import merge
from recipes.lib.publishing.card import base_of, write_card
from recipes.lib.publishing.source import load_as_trained
from tests.helpers.mistakes import attempt
from tests.helpers.tiny_runs import FAST, LORA, write

ROOT = Path(__file__).parents[2]
JUDGE = "def length(completions, **_):\n    return [float(len(c)) for c in completions]\n"
WORDS = ("cat", "dog", "bird", "child", "sun", "moon", "rain", "tree")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, SFT with an adapter, PPO from there, a reward model, an evaluation, merges."""
    from tests.conftest import word_tokenizer
    from tests.helpers.tiny_models import save_model

    folder = tmp_path_factory.mktemp("release")
    save_model(folder / "model", word_tokenizer(), hidden_size=32, initializer_range=0.3)
    (folder / "model/README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (folder / "judge.py").write_text(JUDGE)
    rows = [
        {"messages": [user(f"the {word}"), {"role": "assistant", "content": "was happy ."}]}
        for word in WORDS
    ]
    write(folder / "chats.jsonl", rows)
    write(folder / "prompts.jsonl", [{"prompt": [user(f"the {word}")]} for word in WORDS])
    pairs = [
        {"prompt": f"the {word}", "chosen": f" {verb} happy .", "rejected": f" {verb} sad ."}
        for word in WORDS
        for verb in ("was", "is")
    ]
    write(folder / "pairs.jsonl", pairs)
    common = FAST | {"max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 4}
    with contextlib.chdir(folder):
        begin = {"model_name_or_path": "model"} | common | LORA
        recipes.run("sft", **begin, dataset_name="chats.jsonl", output_dir="runs/sft/chats")
        recipes.run(
            "reward",
            **begin,
            dataset_name="pairs.jsonl",
            test_fraction=0.25,
            output_dir="runs/reward/pairs",
        )
        ppo = {
            "model_name_or_path": "runs/sft/chats",
            "dataset_name": "prompts.jsonl",
            "reward_funcs": "judge.py:length",
            "total_episodes": 16,
            "rollout_batch_size": 8,
            "per_device_train_batch_size": 4,
            "max_completion_length": 6,
            "learning_rate": 1e-2,
            "output_dir": "runs/ppo/long",
        }
        recipes.run(
            "ppo", **FAST | {"save_strategy": "steps", "save_steps": 1} | ppo, use_peft=True
        )
        recipes.run(
            "evaluate",
            run="runs/ppo/long",
            baseline="runs/sft/chats",
            judge="judge.py:length",
            dataset_name="prompts.jsonl",
            max_completion_length=6,
            output_dir="runs/evaluate/long",
        )
        recipes.run("merge", run="runs/ppo/long")
        recipes.run("merge", run="runs/reward/pairs")
    return folder


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_merge_is_a_run_with_its_comparison(runs: Path) -> None:
    merged = runs / "runs/merge/ppo-long"
    told = json.loads((merged / "export.json").read_text())
    assert told["num_prompts"] == len(WORDS)  # the run's own
    assert told["logits_max_difference"] <= 1e-3
    assert told["greedy_equal"] == told["prompts_equal"] == 1
    assert told["adapter_arrived"] == pytest.approx([1, 1], abs=1e-3)
    lineage = json.loads((merged / "lineage.json").read_text())
    assert lineage["model"]["name"] == "runs/ppo/long"
    assert lineage["model"]["lineage"]["recipe"] == "ppo"
    assert (merged / "report.html").is_file()
    scored = json.loads((runs / "runs/merge/reward-pairs/export.json").read_text())
    assert scored["scores_max_difference"] <= 1e-4 < scored["scores_spread"]


def test_a_checkpoint_of_ppo_gives_its_policy(runs: Path) -> None:
    (checkpoint,) = (runs / "runs/ppo/long").glob("checkpoint-1")
    with contextlib.chdir(runs):
        told = recipes.run("merge", run=str(checkpoint.relative_to(runs)), num_prompts=2)
    assert told["num_prompts"] == 2
    assert told["kl_per_token"] <= 1e-6
    merged = runs / "runs/merge/long-checkpoint-1/final"
    assert not list(merged.glob("*value*"))  # the policy alone


def test_what_is_refused_leaves_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.chdir(runs):
        before = sorted(Path("runs").rglob("*"))
        with pytest.raises(UserError, match="run=model: it is a whole model"):
            recipes.run("merge", run="model")
        with pytest.raises(UserError, match="num_prompts=0: must be 1 or more"):
            recipes.run("merge", run="runs/sft/chats", num_prompts=0)
        with pytest.raises(UserError, match="holds a run"):
            recipes.run("merge", run="runs/ppo/long")
        monkeypatch.setattr(merge, "ARRIVED", -1.0)  # nothing is right
        with pytest.raises(UserError, match="says something else than the trained one: 100% of"):
            recipes.run("merge", run="runs/sft/chats")
        assert sorted(Path("runs").rglob("*")) == before


CARDS = {
    "runs/ppo/long": ("peft", "text-generation"),
    "runs/merge/ppo-long": ("transformers", "text-generation"),
    "runs/reward/pairs": ("peft", "text-classification"),
    "runs/merge/reward-pairs": ("transformers", "text-classification"),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_valid_and_its_lines_load_the_model(name: str, runs: Path) -> None:
    library, task = CARDS[name]
    with contextlib.chdir(runs):
        run = Path(name)
        text = write_card(run, run / "final")
        card: Any = ModelCard(text)
        code = card.text.partition("```python\n")[2].partition("```")[0]
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(code, {})
    assert said.getvalue().strip()
    assert card.data.library_name == library
    assert card.data.pipeline_tag == task
    assert card.data.license == "apache-2.0"  # of the base
    assert card.data.base_model is None  # a folder that nobody else has
    assert str(runs) not in text.replace(repr(str(run / "final")), "")
    assert "None" not in text
    assert "nan" not in text.lower().split()


def test_a_card_says_who_judged_and_how_sure_that_is(runs: Path) -> None:
    with contextlib.chdir(runs):
        for name in ("runs/ppo/long", "runs/merge/ppo-long"):
            card: Any = ModelCard(write_card(Path(name), Path(name) / "final", "someone/long"))
            summary = json.loads(Path("runs/evaluate/long/summary.json").read_text())
            (result,) = model_index_to_eval_results(card.data.to_dict()["model-index"])[1]
            told: Any = result
            assert told.metric_type == "win_rate"
            assert told.metric_value == summary["win_rate"]
            assert told.metric_args["interval_95"] == summary["win_rate_ci95"]
            assert "simulated" in told.metric_name
            assert "judge.py:length (simulated" in card.text
            assert "name = 'someone/long'" in card.text
            assert "  chats (sft)" in card.text  # in the tree of runs
    assert "Completions had at most 6 tokens in training." in card.text


def test_what_began_with_the_projects_own_base_has_no_base_on_the_hub(tmp_path: Path) -> None:
    base = {"recipe": "base", "model": {"name": "shipped", "lineage": None, "commit": None}}
    sft = {"recipe": "sft", "model": {"name": "runs/base", "lineage": base}}
    assert base_of(base, tmp_path) == (None, None)
    assert base_of(sft, tmp_path) == (None, None)
    hub = {"recipe": "sft", "model": {"name": "a/b", "lineage": None, "commit": "c0"}}
    ppo = {"recipe": "ppo", "model": {"name": "runs/sft", "lineage": hub}}
    assert base_of(ppo, tmp_path) == ("a/b", "c0")
    local = {"recipe": "sft", "model": {"name": "models/b", "lineage": None}}
    assert base_of(local, tmp_path) == ("models/b", None)


def test_a_model_that_was_trained_again_has_no_results_of_before(runs: Path) -> None:
    path = runs / "runs/ppo/long/lineage.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"commit": "another"}))
    with contextlib.chdir(runs):
        text = write_card(Path("runs/ppo/long"), Path("runs/ppo/long/final"))
    path.write_text(before)
    assert "win_rate" not in text


def test_an_adapter_folder_alone_has_a_card_that_says_no_more(runs: Path, tmp_path: Path) -> None:
    config = {"base_model_name_or_path": "somebody/base", "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    card: Any = ModelCard(write_card(tmp_path, tmp_path))
    assert card.data.base_model == "somebody/base"
    for word in ("trained by", "scratch", "lineage.json"):
        assert word not in card.text


def test_a_rounded_run_is_merged_and_talked_to_as_it_was_trained(runs: Path) -> None:
    with contextlib.chdir(runs):
        keys = FAST | LORA | {"load_in_4bit": True, "max_steps": 1, "model_name_or_path": "model"}
        recipes.run("sft", **keys, dataset_name="chats.jsonl", output_dir="runs/sft/bits")
        model, *_ = load_as_trained("runs/sft/bits")
        told = recipes.run("merge", run="runs/sft/bits", num_prompts=2)
        lineage = json.loads(Path("runs/merge/sft-bits/lineage.json").read_text())
    assert any("Linear4bit" in type(part).__name__ for part in model.modules())
    assert (told["base"], told["stored"]) == ("4-bit", "float32")
    assert (lineage["base"], lineage["onto"]) == ("4-bit", "trained")


def test_talking_to_a_run(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "the cat\n/again\n/frobnicate\nthe dog\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    flags = ["--max_completion_length", "5", "--temperature", "0"]
    done = attempt("chat", ["runs/sft/chats", *flags], runs)
    assert (done.code, done.changed) == (0, []), done.err
    first, again, other = done.out.splitlines()
    assert first == again != ""  # greedy
    assert other
    assert "rlhf chat: /frobnicate: is no command" in done.err


def test_ctrl_c_ends_an_answer_and_not_the_conversation(runs: Path) -> None:
    from tests.conftest import word_tokenizer
    from tests.helpers.tiny_models import save_model

    tokenizer = word_tokenizer()
    more = {"initializer_range": 0.3, "max_position_embeddings": 4096}
    save_model(runs / "endless", tokenizer, hidden_size=32, **more)
    model = AutoModelForCausalLM.from_pretrained(runs / "endless")
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] = 0  # the best token is always another
    model.save_pretrained(runs / "endless")
    words = [sys.executable, "-u", "-m", "recipes.cli", "chat", "endless"]
    words += ["--temperature", "0", "--max_completion_length", "4000"]
    ours, theirs = pty.openpty()
    terminal = termios.tcgetattr(theirs)
    terminal[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, terminal)
    process = subprocess.Popen(
        words,
        cwd=runs,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HF_HUB_OFFLINE": "1"},
        start_new_session=True,
        # A shell may have ignored SIGINT of what runs in its background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    read_until(ours, b"> ")
    for _ in range(30):  # while it is asked; one just before the wait for a line is heard with it
        process.send_signal(signal.SIGINT)
        if select.select([ours], [], [], 2)[0]:
            break
    read_until(ours, b"> ")
    os.write(ours, b"the cat\n")
    cut = os.read(ours, 1024)
    process.send_signal(signal.SIGINT)  # while it answers
    cut = (cut + read_until(ours, b"\r\n> ")).removesuffix(b"\r\n> ")
    os.write(ours, b"the dog\n")
    said = os.read(ours, 1024)
    while len(said) < 40:
        said += os.read(ours, 1024)
    process.send_signal(signal.SIGINT)
    read_until(ours, b"> ")
    os.write(ours, b"/quit\n")
    assert process.wait(timeout=60) == 0
    os.close(ours)
    turns = [user("the cat")]
    (whole,) = complete(model, tokenizer, [turns], max_new_tokens=200, temperature=0.0)
    assert whole.text.startswith(cut.decode())
    assert 0 < len(cut) < len(whole.text)
    turns += [{"role": "assistant", "content": cut.decode()}, user("the dog")]
    (whole,) = complete(model, tokenizer, [turns], max_new_tokens=200, temperature=0.0)
    assert whole.text.startswith(said.decode())  # what was said before it was cut counts


def read_until(terminal: int, mark: bytes) -> bytes:
    """What a terminal shows, up to a mark at its end."""
    shown, end = b"", time.monotonic() + 120
    while not shown.endswith(mark):
        ready, _, _ = select.select([terminal], [], [], max(0, end - time.monotonic()))
        assert ready, shown
        shown += os.read(terminal, 1024)
    return shown


def test_a_reward_model_does_not_talk(runs: Path) -> None:
    for name in ("runs/reward/pairs", "runs/merge/reward-pairs"):
        with contextlib.chdir(runs), pytest.raises(UserError, match="reward model"):
            load_as_trained(name)


def test_a_merged_model_answers_at_an_openai_address(runs: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = Path(sys.executable).with_name("transformers")
    server = subprocess.Popen(
        [command, "serve", "runs/merge/ppo-long/final", "--port", str(port), "--device", "cpu"],
        cwd=runs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        asked = {
            "model": "runs/merge/ppo-long/final",
            "messages": [user("the cat")],
            "max_tokens": 4,
            "temperature": 0,
        }
        answer = ask_when_ready(f"http://127.0.0.1:{port}/v1/chat/completions", asked, server)
    finally:
        server.terminate()
        _, told = server.communicate(timeout=60)
    assert answer is not None, told.decode()
    assert answer["choices"][0]["message"]["content"].strip()


def ask_when_ready(url: str, asked: dict[str, object], server: subprocess.Popen[bytes]) -> Any:
    """The answer, as soon as the server gives one; None where it ends or takes two minutes."""
    request = Request(url, json.dumps(asked).encode(), {"Content-Type": "application/json"})
    for _ in range(240):
        if server.poll() is not None:
            return None
        try:
            with urlopen(request, timeout=60) as reply:
                return json.load(reply)
        except (URLError, ConnectionError):
            time.sleep(0.5)
    return None
