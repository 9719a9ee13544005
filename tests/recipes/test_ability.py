"""Ability kept, of whole runs: against the models' own log-probabilities, worked out here."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.evaluate import run
from recipes.lib.errors import UserError
from recipes.lib.recipe.main import parse
from recipes.lib.recipe.summary import print_closing
from tests.helpers.tiny_runs import write

WORDS = "cat dog bird child sun moon rain tree house river stone book".split()
KINDS = "old new small red blue warm cold happy sad kind".split()
DOCUMENTS: list[dict[str, Any]] = [
    {
        "question": f"the {word} is",
        "choices": [KINDS[n % 10], KINDS[(3 * n + 1) % 10]],
        "answer": n % 2,
    }
    for n, word in enumerate(WORDS)
]
TASK: dict[str, Any] = {
    "task": "things",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
TEXTS = ["the cat sat on the hill .", "it was old and it was kind .", "they ran"]


@pytest.fixture
def folder(
    tmp_path: Path,
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A model, an adapter on it, a task of a file, and texts."""
    tiny_model.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    adapted = get_peft_model(tiny_model, LoraConfig(r=4, target_modules=["q_proj", "o_proj"]))
    for name, weight in adapted.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(weight, std=1.0)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer.save_pretrained(tmp_path / "adapter")
    write(tmp_path / "documents.jsonl", DOCUMENTS)
    write(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    data = {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "documents.jsonl")}}}
    (tmp_path / "things.yaml").write_text(yaml.safe_dump(TASK | data))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def evaluate(folder: Path, **values: Any) -> Any:
    defaults: dict[str, Any] = {"run": str(folder / "adapter"), "baseline": str(folder / "base")}
    defaults |= {"tasks": [str(folder / "things.yaml")], "output_dir": str(folder / "out")}
    config = parse("evaluate", [], defaults | {"batch_size": 5} | values)
    return config, run(config)


def nats(model: Any, ids: list[int], first: int) -> list[float]:
    """The nats of each token from `first` on, by one forward pass of the row alone."""
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [-float(logps[place - 1, ids[place]]) for place in range(first, len(ids))]


def right(model: Any, tokenizer: Any, norm: bool) -> list[int]:
    """1 for each document whose likelier choice is its answer; per character with norm."""
    made = []
    for row in DOCUMENTS:
        start = len(tokenizer(row["question"])["input_ids"])
        costs = []
        for choice in row["choices"]:
            ids = tokenizer(f"{row['question']} {choice}")["input_ids"]
            costs.append(sum(nats(model, ids, start)) / (len(choice) if norm else 1))
        made.append(int(costs.index(min(costs)) == row["answer"]))
    return made


def test_both_are_measured_as_their_log_probabilities_say(
    folder: Path, tiny_tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    config, summary = evaluate(folder, text_dataset_name=str(folder / "texts.jsonl"))
    from peft import PeftModel

    base = LlamaForCausalLM.from_pretrained(folder / "base")
    plain = LlamaForCausalLM.from_pretrained(folder / "base")
    adapted = PeftModel.from_pretrained(plain, folder / "adapter")
    told = summary["tasks"]
    for metric, norm in (("acc", False), ("acc_norm", True)):
        ours, theirs = (right(model, tiny_tokenizer, norm) for model in (adapted, base))
        assert sum(ours) != sum(theirs)  # or the sides could be exchanged unseen
        assert told[f"things/{metric}"] == sum(ours) / 12
        assert told[f"things/{metric}_baseline"] == sum(theirs) / 12
        low, high = told[f"things/{metric}_difference_ci95"]
        assert low <= (sum(ours) - sum(theirs)) / 12 <= high
    assert told["things/num_documents"] == 12
    # Texts end with EOS, and their first token has nothing before it.
    rows = [tiny_tokenizer(f"{text}<eos>")["input_ids"] for text in TEXTS]
    for model, suffix in ((adapted, ""), (base, "_baseline")):
        each = [value for ids in rows for value in nats(model, ids, 1)]
        mean = sum(each) / len(each)
        assert summary[f"nats_per_token{suffix}"] == pytest.approx(mean, abs=1e-5)
        assert summary[f"perplexity{suffix}"] == pytest.approx(math.e**mean, rel=1e-5)
    gap = summary["nats_per_token"] - summary["nats_per_token_baseline"]
    assert abs(gap) > 0.001
    assert summary["nats_per_token_difference"] == pytest.approx(gap)
    low, high = summary["nats_per_token_difference_ci95"]
    assert low < gap < high
    # Nobody judged, nothing was sampled; page and terminal say what was measured.
    assert "win_rate" not in summary
    assert not (folder / "out/samples.jsonl").exists()
    page = (folder / "out/report.html").read_text()
    assert "Ability kept" in page
    assert "things/acc norm" in page
    print_closing(config, summary)
    printed = capsys.readouterr().out
    assert "tasks/things/acc_difference_ci95" in printed
    assert "nats_per_token_difference_ci95" in printed


def test_a_judge_and_a_task_go_together(folder: Path) -> None:
    write(folder / "prompts.jsonl", [{"prompt": f"the {word}"} for word in WORDS])
    (folder / "judge.py").write_text(
        "def length(prompts, completions):\n    return [float(len(c)) for c in completions]\n"
    )
    data = {"judge": f"{folder / 'judge.py'}:length", "dataset_name": str(folder / "prompts.jsonl")}
    _, summary = evaluate(folder, tasks_limit=4, max_completion_length=3, **data)
    assert summary["tasks"]["things/num_documents"] == 4
    assert summary["num_prompts"] == 12
    assert 0 <= summary["win_rate"] <= 1


def test_a_model_keeps_its_own_ability(folder: Path) -> None:
    texts = str(folder / "texts.jsonl")
    _, summary = evaluate(folder, run=str(folder / "base"), text_dataset_name=texts)
    assert summary["tasks"]["things/acc_difference"] == 0
    # 0.025^(1/12) = 0.7354 of the documents at least do not turn.
    interval = summary["tasks"]["things/acc_difference_ci95"]
    assert interval == pytest.approx([-0.2646, 0.2646], abs=1e-4)
    assert summary["nats_per_token_difference_ci95"] == [0.0, 0.0]


def test_the_folder_is_named_after_what_is_measured() -> None:
    def named(**values: Any) -> Any:
        return parse("evaluate", [], {"run": "a", "baseline": "b"} | values).script.output_dir

    tasks = {"tasks": ["arc_easy", "hellaswag"], "text_dataset_name": "c.jsonl"}
    assert named(**tasks) == "runs/evaluate/a_vs_b_on_arc_easy-hellaswag"
    assert named(**tasks, judge=["d"]) == "runs/evaluate/a_vs_b_by_d"
    assert named(text_dataset_name="c.jsonl") == "runs/evaluate/a_vs_b_on_c.jsonl"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"baseline": None}, "baseline is missing"),
        ({"slices": ["length"]}, "judge is missing"),
        ({"dataset_name": "texts.jsonl"}, "judge is missing"),
        ({"judge": ["judge.py:length"]}, "dataset_name is missing"),
        ({"run": None, "baseline": None, "runs": ["a", "b", "c"]}, "tasks=.*does not go with runs"),
        (
            {"tasks": ["broken.yaml"]},
            r"tasks=broken.yaml: lm-eval cannot load it \(.*nowhere.jsonl",
        ),
        (
            {"text_dataset_name": "gone.jsonl"},
            "^text_dataset_name=gone.jsonl: there is no such file",
        ),
        ({"tasks": [], "tasks_limit": 4}, "tasks_limit=4: there are no tasks"),
        ({"text_dataset_name": "pairs.jsonl"}, "text_dataset_name=pairs.jsonl: holds preference"),
    ],
)
def test_mistakes_are_told_and_leave_no_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], text: str
) -> None:
    monkeypatch.chdir(folder)
    write(folder / "pairs.jsonl", [{"prompt": "the", "chosen": "cat", "rejected": "dog"}])
    data = {"dataset_kwargs": {"data_files": {"test": str(folder / "nowhere.jsonl")}}}
    Path("broken.yaml").write_text(yaml.safe_dump(TASK | data))
    with pytest.raises(UserError, match=text):
        evaluate(folder, **values)
    assert not Path("out").exists()


def test_without_the_extra_the_sentence_says_how_to_install_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"not installed; pip install 'rlhf-recipes\[eval\]'"):
        evaluate(folder)
    assert not (folder / "out").exists()


@pytest.mark.slow
def test_names_of_lm_eval_are_known_and_others_told() -> None:
    from recipes.lib.evaluation.ability import load_tasks

    # Its index knows the task, whose data are on the Hub.
    with pytest.raises(UserError, match=r"tasks=arc_easy: .*(offline|ai2_arc)"):
        load_tasks(["arc_easy"])
    with pytest.raises(UserError, match=r"tasks=arc_eazy: .*not a registered task"):
        load_tasks(["arc_eazy"])


def test_shots_are_the_same_for_both(folder: Path) -> None:
    from recipes.lib.evaluation.ability import load_tasks

    text = (folder / "things.yaml").read_text() + "num_fewshot: 3\n"
    (folder / "things.yaml").write_text(text)
    (task,) = load_tasks([str(folder / "things.yaml")])["tasks"].values()
    seen = []
    for _ in range(2):
        task.set_fewshot_seed(1)
        task.build_all_requests(limit=2)
        seen.append([one.args[0] for one in task.instances])
    assert seen[0] == seen[1]
    assert seen[0][0].count(" is ") == 3  # three examples with their answers, and the question
    assert json.dumps(seen[0][0]).count("\\n\\n") == 3
