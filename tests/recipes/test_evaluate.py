import io
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from sklearn.metrics import cohen_kappa_score
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.evaluate import run
from recipes.lib.errors import UserError
from recipes.lib.evaluation.contest import kl_estimate
from recipes.lib.feedback.rows import make_row
from recipes.lib.generation.completions import complete
from recipes.lib.recipe.main import parse
from recipes.lib.recipe.summary import print_closing
from recipes.lib.runs.files import read_jsonl, write_jsonl, write_text

PROMPTS = [f"the {subject} {verb}" for subject in ("cat", "dog", "sun") for verb in ("is", "was")]
JUDGE = (
    "def length(prompts, completions):\n    return [float(len(c.split())) for c in completions]\n"
)


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A model, and one that differs from it in its head."""
    for name in ("base", "other"):
        tiny_model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        tiny_model.lm_head.weight.data += 0.3 * torch.randn_like(tiny_model.lm_head.weight)
    rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    (tmp_path / "prompts.jsonl").write_text(rows)
    (tmp_path / "judge.py").write_text(JUDGE)
    return tmp_path


def evaluate(folder: Path, **values: Any) -> dict[str, Any]:
    defaults = {
        "run": str(folder / "other"),
        "baseline": str(folder / "base"),
        "dataset_name": str(folder / "prompts.jsonl"),
        "judge": f"{folder / 'judge.py'}:length",
        "max_completion_length": 6,
        "output_dir": str(folder / "out"),
    }
    return run(parse("evaluate", [], defaults | values))


def test_the_summary_follows_from_the_samples(folder: Path) -> None:
    summary = evaluate(folder)
    rows = read_jsonl(folder / "out" / "samples.jsonl")
    assert [row["prompt"] for row in rows] == PROMPTS
    for row in rows:  # the judge of this test counts words
        assert row["score"] == len(row["completion"].split())
        assert row["score_baseline"] == len(row["baseline"].split())
    wins = [(row["score"] > row["score_baseline"]) for row in rows]
    ties = [(row["score"] == row["score_baseline"]) for row in rows]
    assert summary["win_rate"] == pytest.approx((sum(wins) + sum(ties) / 2) / 6)
    assert summary["win_rate_ci95"][0] <= summary["win_rate"] <= summary["win_rate_ci95"][1]
    assert summary["score"] == pytest.approx(sum(row["score"] for row in rows) / 6)
    assert 1 <= summary["completion_length"] <= 6
    assert 0 <= summary["eos_fraction"] <= 1
    assert (folder / "out" / "report.html").is_file()


def test_enough_prompts_have_a_win_rate_at_equal_lengths(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "length_controlled_win_rate" not in evaluate(folder)
    told = capsys.readouterr().err
    assert "6 prompts are too few for a length-controlled win rate" in told
    assert "6 prompts find a win rate of " in told.split("completions: ")[0]
    rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS * 10)
    (folder / "prompts.jsonl").write_text(rows)
    summary = evaluate(folder, output_dir=str(folder / "more"))
    low, high = summary["length_controlled_win_rate_ci95"]
    # The judge counts words, so it likes length alone.
    assert summary["length_controlled_win_rate"] == pytest.approx(0.5, abs=0.1)
    assert low <= summary["length_controlled_win_rate"] <= high
    assert "Win rate at equal lengths" in (folder / "more/report.html").read_text()


def test_several_judges_each_have_a_win_rate_and_an_agreement(folder: Path) -> None:
    more = "def end(prompts, completions):\n    return [float(len(c) % 3) for c in completions]\n"
    (folder / "judge.py").write_text(JUDGE + more)
    names = [f"{folder / 'judge.py'}:{name}" for name in ("length", "end")]
    alone = [evaluate(folder, judge=name, output_dir=str(folder / name[-3:])) for name in names]
    summary = evaluate(folder, judge=names)
    for name, one in zip(names, alone, strict=True):
        assert summary["judges"][name]["win_rate"] == one["win_rate"]
        assert "judges" not in one
    assert summary["win_rate"] == alone[0]["win_rate"]
    # Both judges again by hand: who wins each prompt, and how far the two say the same.
    wins: list[list[float]] = [[], []]
    for row in read_jsonl(folder / "out/samples.jsonl"):
        both = row["completion"], row["baseline"]
        scored = [[len(text.split()) for text in both], [len(text) % 3 for text in both]]
        for won, (ours, theirs) in zip(wins, scored, strict=True):
            won.append(float(ours > theirs) - float(ours < theirs))
    kappa = summary["agreement"]["kappas"][" and ".join(names)]
    assert kappa["num_prompts"] == 6
    expected = cohen_kappa_score(*[[str(one) for one in won] for won in wins])
    assert kappa["kappa"] == pytest.approx(expected)
    assert "By judge" in (folder / "out/report.html").read_text()


def test_people_judge_the_prompts_that_they_answered(folder: Path) -> None:
    evaluate(folder)
    samples = read_jsonl(folder / "out/samples.jsonl")
    runs = [str(folder / "other"), str(folder / "base")]
    rows = []
    # Which of two runs was better, whatever these wrote then: 0 is the run, None a tie.
    for prompt, value, who in [
        (0, 0, "ann"),
        (1, 1, "ann"),
        (2, None, "ann"),
        (3, 0, "ann"),
        (1, 1, "bob"),
        (1, 0, "eve"),
        (3, 1, "bob"),
    ]:
        said = [{"content": f"{run[-4:]} said", "run": run} for run in runs]
        item = {"id": str(prompt), "prompt": PROMPTS[prompt], "completions": said}
        rows.append(make_row(item, kind="pair", value=value, annotator=who, source="human"))
    (folder / "people").mkdir()
    write_jsonl(folder / "people/answers.jsonl", rows)
    summary = evaluate(folder, judge=str(folder / "people"), output_dir=str(folder / "1"))
    # One win, one loss by the majority, two ties.
    assert (summary["num_judged"], summary["win_rate"]) == (4, 0.5)
    assert "score" not in summary
    # And pairs without names count where they are of the very texts: the seed samples them again.
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": row["baseline"]}
        for row in samples[:2]
    ] + [{"prompt": PROMPTS[2], "chosen": "the cat", "rejected": "the dog"}]
    write_jsonl(folder / "pairs.jsonl", pairs)
    judges = [f"{folder / 'judge.py'}:length", str(folder / "pairs.jsonl")]
    summary = evaluate(folder, judge=judges, output_dir=str(folder / "2"))
    assert summary["judges"][judges[1]]["num_judged"] == 2
    assert summary["judges"][judges[1]]["win_rate"] == 1.0
    assert summary["agreement"]["kappas"][" and ".join(judges)]["num_prompts"] == 2
    write_jsonl(folder / "pairs.jsonl", pairs[2:])
    with pytest.raises(UserError, match="has no answers to these prompts that compare"):
        evaluate(folder, judge=judges[1], output_dir=str(folder / "3"))
    (folder / "pairs.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"judge=.*pairs.jsonl: cannot be read"):
        evaluate(folder, judge=judges[1], output_dir=str(folder / "4"))


def test_several_runs_are_ranked_as_their_samples_say(folder: Path, tmp_path: Path) -> None:
    runs = [str(folder / name) for name in ("other", "base", "third")]
    (folder / "third").symlink_to(folder / "base")
    summary = evaluate(folder, run=None, baseline=None, runs=runs)
    wins = dict.fromkeys(runs, 0.0)
    for row in read_jsonl(folder / "out/samples.jsonl"):
        words = {run: len(text.split()) for run, text in row["completions"].items()}
        for one in runs:
            for other in {*runs} - {one}:
                wins[one] += (words[one] > words[other]) + (words[one] == words[other]) / 2
    ranking = summary["ranking"]
    assert {run: one["win_rate"] * 12 for run, one in ranking.items()} == pytest.approx(wins)
    strengths = [one["strength"] for one in ranking.values()]
    assert strengths == sorted(strengths, reverse=True)
    assert ranking[runs[1]]["strength"] == pytest.approx(ranking[runs[2]]["strength"])
    assert "Ranking" in (folder / "out/report.html").read_text()
    for values, text in (
        ({"runs": runs[:2]}, "name three or more, each once"),
        ({"runs": [*runs[:2], runs[0]]}, "name three or more, each once"),
        ({"runs": runs, "baseline": "base"}, "baseline=base: does not go with runs"),
    ):
        with pytest.raises(UserError, match=text):
            evaluate(folder, **{"run": None, "baseline": None, "output_dir": "x"} | values)


def test_the_models_of_a_run_read_messages_as_it_was_trained(
    folder: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    trained, own = folder / "trained", "{% if loud %}the {% endif %}" + tiny_tokenizer.chat_template
    tiny_tokenizer.chat_template, loud = own, {"loud": True}
    for name in ("checkpoint-5", "final"):
        tiny_model.save_pretrained(trained / name)
        tiny_tokenizer.save_pretrained(trained / name)
    for name, template in (("bare", None), ("shouting", "{{ messages[0].content }} ! !")):
        tiny_tokenizer.chat_template = template
        LlamaForCausalLM.from_pretrained(folder / "base").save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
        keys = f"model_name_or_path: {folder / name}\nchat_template_kwargs: {json.dumps(loud)}\n"
        write_text(trained / "config.yaml", keys)
        spoken = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        write_jsonl(folder / "spoken.jsonl", [{"prompt": prompt} for prompt in spoken])
        (folder / "judge.py").write_text("def even(prompts, completions): return [0.0] * 6\n")
        values: dict[str, Any] = {"checkpoints": str(trained), "max_completion_length": 6}
        values |= {"dataset_name": str(folder / "spoken.jsonl")}
        values |= {"judge": f"{folder / 'judge.py'}:even"}
        run(parse("evaluate", [], values | {"output_dir": str(folder / f"of-{name}")}))
        rows = read_jsonl(folder / f"of-{name}/samples.jsonl")
        tiny_tokenizer.chat_template = own
        for side, weights in (("start", folder / "base"), ("final", trained / "final")):
            model = LlamaForCausalLM.from_pretrained(weights)
            more = {"max_new_tokens": 6, "template_kwargs": loud}
            expected = complete(model, tiny_tokenizer, spoken, **more)
            assert [row["completions"][side] for row in rows] == [one.text for one in expected]


def test_checkpoints_of_a_run_are_judged_over_their_kl_from_its_start(
    folder: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    trained = folder / "trained"
    for name in ("checkpoint-5", "checkpoint-10", "final"):
        tiny_model.lm_head.weight.data += 0.2 * torch.randn_like(tiny_model.lm_head.weight)
        tiny_model.save_pretrained(trained / name)
        tiny_tokenizer.save_pretrained(trained / name)
    more = "def chars(prompts, completions, **_):\n    return [len(c) / 4 for c in completions]\n"
    (folder / "judge.py").write_text(JUDGE + more)
    held_out, chars = f"{folder / 'judge.py'}:length", f"{folder / 'judge.py'}:chars"
    keys = {"model_name_or_path": str(folder / "base"), "max_completion_length": 6}
    keys |= {"reward_funcs": [chars, held_out], "reward_weights": [2.0, 0.5]}
    write_text(trained / "config.yaml", json.dumps(keys | {"eval_reward_funcs": held_out}))
    given = {"checkpoints": str(trained), "dataset_name": str(folder / "prompts.jsonl")}
    config = parse("evaluate", [], given | {"output_dir": str(folder / "out")})
    summary = run(config)
    table, rows = summary["checkpoints"], read_jsonl(folder / "out/samples.jsonl")
    assert [*table] == ["start", "checkpoint-5", "checkpoint-10", "final"]
    words = {name: [len(row["completions"][name].split()) for row in rows] for name in table}
    for name, row in table.items():
        letters = [len(one["completions"][name]) for one in rows]
        assert row[held_out] == pytest.approx(sum(words[name]) / 6)
        assert row["reward_funcs"] == pytest.approx(sum(letters) / 12 + sum(words[name]) / 12)
    # The KL of two models that are evaluated by themselves, with the same noise.
    alone = evaluate(folder, run=str(trained / "checkpoint-10"), output_dir=str(folder / "alone"))
    assert table["checkpoint-10"]["kl"] == pytest.approx(alone["kl"], rel=1e-5)
    assert table["checkpoint-10"]["kl_stderr"] == pytest.approx(alone["kl_stderr"], rel=1e-5)
    assert table["start"]["kl"] == 0.0
    best = max(table, key=lambda name: sum(words[name]))
    assert summary["best_checkpoint"] == best
    behind = sum(words[best]) - sum(words["final"])
    assert table["final"]["behind_best"] * 6 == pytest.approx(behind)
    page = (folder / "out/report.html").read_text()
    at_end = "The end of the run is as good as the best of its checkpoints."
    assert (f"{best} is the best: it scores" if behind else at_end) in page
    assert "Gain over the start" in page
    assert page.count('<th scope="row">checkpoint-') >= 2
    shown = Console(record=True, width=160, file=io.StringIO())
    print_closing(config, summary, shown)
    lines = shown.export_text().splitlines()
    assert f"checkpoints, best {best}" in [line.strip() for line in lines]
    (line,) = [
        row for row in lines if row.startswith("\N{BOX DRAWINGS LIGHT VERTICAL} checkpoint-10")
    ]
    assert f"{table['checkpoint-10']['kl']:.4g}" in line
    for values, text in (
        ({"checkpoints": str(folder / "base")}, "checkpoints=.*base: there is no run"),
        ({"runs": ["a", "b", "c"]}, "checkpoints=.*: does not go with runs"),
        ({"run": "base"}, "run=base: does not go with checkpoints"),
        ({"temperature": 0.0}, "temperature=0: checkpoints are told apart by KL"),
    ):
        with pytest.raises(UserError, match=text):
            run(parse("evaluate", [], given | {"output_dir": str(folder / "x")} | values))
    shutil.rmtree(trained / "checkpoint-5")
    shutil.rmtree(trained / "checkpoint-10")
    with pytest.raises(UserError, match="the run has 1 models; keep several with save_steps"):
        run(parse("evaluate", [], given | {"output_dir": str(folder / "x")}))
    assert not (folder / "x").exists()


def test_slices_follow_from_the_samples(folder: Path) -> None:
    rows = [{"prompt": prompt, "subject": prompt.split()[1]} for prompt in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = evaluate(folder, slices=["subject", "length"])["slices"]
    assert [name for name in told if name[0] == "s"] == [
        f"subject: {one}" for one in ("cat", "dog", "sun")
    ]
    for row in zip(*[iter(read_jsonl(folder / "out/samples.jsonl"))] * 2, strict=True):
        gains = [one["score"] - one["score_baseline"] for one in row]
        expected = sum((gain > 0) + (gain == 0) / 2 for gain in gains) / 2
        assert told[f"subject: {row[0]['prompt'].split()[1]}"]["win_rate"] == expected
    lengths = [one for name, one in told.items() if name.startswith("length: ")]
    assert sum(one["num_prompts"] for one in lengths) == len(PROMPTS)
    assert "By slice" in (folder / "out/report.html").read_text()


def test_a_model_against_itself_ties_everywhere_at_no_kl(folder: Path) -> None:
    summary = evaluate(folder, run=str(folder / "base"))
    assert summary["win_rate"] == 0.5
    assert summary["kl"] == summary["kl_stderr"] == 0.0
    for row in read_jsonl(folder / "out" / "samples.jsonl"):
        assert row["completion"] == row["baseline"]


def test_kl_of_one_token_is_that_of_the_two_softmaxes(folder: Path) -> None:
    rows = "".join(json.dumps({"prompt": "the cat"}) + "\n" for _ in range(2000))
    (folder / "prompts.jsonl").write_text(rows)
    summary = evaluate(folder, max_completion_length=1, temperature=0.8, batch_size=500)
    logps = []
    for name in ("other", "base"):
        model = LlamaForCausalLM.from_pretrained(folder / name)
        ids = torch.tensor([[6, 7]])  # "the cat": the words follow the six special tokens
        with torch.no_grad():
            logps.append((model(input_ids=ids).logits[0, -1].double() / 0.8).log_softmax(-1))
    exact = float((logps[0].exp() * (logps[0] - logps[1])).sum())
    assert summary["kl"] == pytest.approx(exact, abs=4 * summary["kl_stderr"])
    assert 0 < summary["kl_stderr"] < 0.2 * exact


def test_kl_is_the_mean_of_sums_with_its_standard_error() -> None:
    ours = [torch.tensor([-1.0, -1.0]), torch.tensor([-2.0])]
    theirs = [torch.tensor([-2.0, -1.5]), torch.tensor([-1.5])]
    # Sums of log-ratios: 1.0 + 0.5 = 1.5, and -0.5; deviation sqrt(2), over sqrt(2) samples.
    assert kl_estimate(ours, theirs) == {"kl": 0.5, "kl_stderr": pytest.approx(1.0)}
    assert kl_estimate(ours[:1], theirs[:1]) == {"kl": 1.5}


def test_greedy_completions_have_no_kl(folder: Path) -> None:
    assert "kl" not in evaluate(folder, temperature=0.0)


def test_models_with_different_tokenizers_have_no_kl(
    folder: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_tokenizer.add_tokens(["cow"])
    tiny_tokenizer.save_pretrained(folder / "base")
    model = LlamaForCausalLM.from_pretrained(folder / "base")
    model.resize_token_embeddings(len(tiny_tokenizer))
    model.save_pretrained(folder / "base")
    summary = evaluate(folder)
    assert "kl" not in summary
    assert 0 <= summary["win_rate"] <= 1
    # And each reads the prompts by its own: the other one does not know the word.
    prompts = [prompt.replace("cat", "cow") for prompt in PROMPTS]
    rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    (folder / "prompts.jsonl").write_text(rows)
    evaluate(folder, temperature=0.0, output_dir=str(folder / "greedy"))
    expected = complete(model, tiny_tokenizer, prompts, max_new_tokens=6, temperature=0.0)
    shown = [row["baseline"] for row in read_jsonl(folder / "greedy/samples.jsonl")]
    assert shown == [completion.text for completion in expected]


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_a_reward_model_judges_what_it_was_trained_to_read(folder: Path, kind: str) -> None:
    from recipes.lib.models.classifiers import load_reward_model
    from recipes.lib.rewards.reward_models import RewardModel

    reward, tokenizer = load_reward_model(str(folder / "base"), new_head=True)
    reward.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    prompts: list[Any] = list(PROMPTS)
    if kind == "messages":
        prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        (folder / "prompts.jsonl").write_text(lines)
    evaluate(folder, judge=str(folder / "reward"))
    rows = read_jsonl(folder / "out" / "samples.jsonl")
    texts: list[Any] = [row["completion"] for row in rows]
    if kind == "messages":
        texts = [[{"role": "assistant", "content": text}] for text in texts]
    expected = RewardModel(reward, tokenizer, "again")(prompts, texts)
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-5)


def test_a_judge_of_several_outputs_is_mixed_as_in_training(folder: Path) -> None:
    from recipes.lib.models.classifiers import load_reward_model
    from recipes.lib.models.reward_heads import RewardHeads

    heads = RewardHeads(("style", "tone"), ensemble=2)
    model, tokenizer = load_reward_model(str(folder / "base"), new_head=True, heads=heads)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    mixed: dict[str, Any] = {"reward_weights": [1.0, -0.5], "ensemble_aggregation": "mean_minus_sd"}
    mixed |= {"ensemble_sd_weight": 2.0}
    evaluate(folder, judge=str(folder / "reward"))
    plain = read_jsonl(folder / "out/samples.jsonl")
    evaluate(folder, judge=str(folder / "reward"), output_dir=str(folder / "mixed"), **mixed)
    for one, other in zip(plain, read_jsonl(folder / "mixed/samples.jsonl"), strict=True):
        assert one["completion"] == other["completion"]
        ids = tokenizer(other["prompt"] + other["completion"] + tokenizer.eos_token)["input_ids"]
        with torch.no_grad():
            style, also, tone, too = model(input_ids=torch.tensor([ids])).logits[0].tolist()
        # The standard deviation of two numbers is half their distance.
        scores = [(style + also) / 2 - abs(style - also), (tone + too) / 2 - abs(tone - too)]
        assert one["score"] == pytest.approx((style + also) / 2 + (tone + too) / 2, abs=1e-5)
        assert other["score"] == pytest.approx(scores[0] - 0.5 * scores[1], abs=1e-5)
    with pytest.raises(UserError, match=r"has 1 entries for 2 reward_funcs \(.*/style, .*/tone\)"):
        evaluate(folder, judge=str(folder / "reward"), reward_weights=[1.0])


def test_the_test_split_is_what_is_completed(folder: Path) -> None:
    evaluate(folder, test_fraction=0.5, num_prompts=2)
    assert len(read_jsonl(folder / "out" / "samples.jsonl")) == 2


def test_an_evaluation_is_named_after_what_it_compares_and_who_judges(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(run: str, baseline: str, judge: str, **more: Any) -> str:
        keys = {"run": run, "baseline": baseline, "judge": judge}
        return parse("evaluate", [], keys | more).script.output_dir

    one = named("runs/ppo/mine/final", "Qwen/Qwen3-0.6B", "rewards.py:short")
    assert one == "runs/evaluate/ppo-mine_vs_Qwen-Qwen3-0.6B_by_rewards.py-short"
    other = named("runs/ppo/mine", "elsewhere/sft/mine", "recipes.lib.tasks.tales:gold_scores")
    assert other == "runs/evaluate/ppo-mine_vs_sft-mine_by_recipes.lib.tasks.tales-gold_scores"
    assert named("a", "b", "c", output_dir="mine") == "mine"
    several = parse("evaluate", ["--runs", "runs/ppo/a", "b", "c", "--judge", "x.py:y", "z.yaml"])
    assert several.script.output_dir == "runs/evaluate/ppo-a-b-c_by_x.py-y-z.yaml"
    assert len(Path(named("a" * 300, "b" * 300, "c" * 300)).name) < 255  # what a name may have
    monkeypatch.chdir(folder)
    more = "def zero(prompts, completions):\n    return [0.0] * len(prompts)\n"
    (folder / "judge.py").write_text(
        JUDGE + more + more.replace("zero", "bad").replace("0.0", "{}")
    )
    for judge in ("length", "zero", "bad"):
        keys = {"run": "other", "baseline": "base", "judge": f"judge.py:{judge}"}
        config = parse("evaluate", [], keys | {"dataset_name": "prompts.jsonl", "num_prompts": 1})
        with pytest.raises(UserError) if judge == "bad" else nullcontext():
            run(config)
    made = [path.name for path in (folder / "runs/evaluate").iterdir()]
    assert sorted(made) == ["other_vs_base_by_judge.py-length", "other_vs_base_by_judge.py-zero"]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"baseline": None}, "baseline is missing; give --baseline"),
        ({"judge": []}, "judge is missing"),
        ({"dataset_name": None}, "dataset_name is missing"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"max_completion_length": 0}, "max_completion_length=0: must be 1 or more"),
        ({"slices": ["subject"]}, "slices=subject: the data has no such column; it has length"),
        ({"judge": "nowhere.py:length"}, "nowhere.py is not there"),
        (
            {"judge": "judge.yaml", "reward_weights": [1.0]},
            "reward_weights=.* compares completions",
        ),
    ],
)
def test_mistakes_are_told_and_leave_no_folder(
    folder: Path, values: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text):
        evaluate(folder, **values)
    assert not (folder / "out").exists()


def test_a_judge_that_gives_no_number_is_told(folder: Path) -> None:
    text = 'def length(prompts, completions):\n    return [float("inf")] * len(prompts)\n'
    (folder / "judge.py").write_text(text)
    with pytest.raises(UserError, match="length returned"):
        evaluate(folder)


def test_a_reward_of_ppo_can_judge(folder: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": text}], "answer": text} for text in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.py").write_text(
        "def right(prompts, completions, completion_ids, answer, **_):\n"
        "    assert [turns[-1]['content'] for turns in prompts] == answer\n"
        "    assert all(turns[0]['role'] == 'assistant' for turns in completions)\n"
        "    return [len(ids) for ids in completion_ids]\n"
    )
    summary = evaluate(folder, judge=f"{folder / 'judge.py'}:right", num_prompts=4)
    assert summary["score"] == summary["completion_length"]
