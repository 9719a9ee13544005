"""Feedback of people, from the page to what trains on it: real processes, a real model."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import recipes
from recipes.lib.errors import UserError
from recipes.lib.runs.files import read_jsonl
from tests.helpers.answering import answer_all, post
from tests.helpers.tiny_runs import FAST, write

ROOT = Path(__file__).parents[2]
WORDS = "cat dog bird child sun moon rain tree house river".split()
SERVE = ["serve", "a", "b", "--dataset_name", "prompts.jsonl", "--port", "0", "--seed", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from tests.conftest import word_tokenizer
    from tests.helpers.tiny_models import save_model

    folder = tmp_path_factory.mktemp("people")
    for name in ("a", "b"):
        save_model(folder / name, word_tokenizer(), hidden_size=32, initializer_range=0.3)
    asked = [f"tell me {word} {other}" for word in WORDS for other in WORDS[:4]]
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in asked]
    write(folder / "prompts.jsonl", rows)
    with contextlib.chdir(folder):
        yield folder


def start(place: Path, *flags: str, browser: str = "true") -> subprocess.Popen[str]:
    """`rlhf feedback`, with a program in the browser's place."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "recipes.cli", "feedback", *flags],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "BROWSER": browser, "HF_HUB_OFFLINE": "1"},
    )


def page_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if found := re.search(r"http://\S+", line):
            return found[0]
    raise AssertionError(said)


def samplers(place: Path) -> list[str]:
    """The processes that sample for a project here."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"sample" in words and (folder / "cwd").resolve() == place.resolve():
                found.append(folder.name)
    return found


def test_from_the_page_to_a_reward_model_through_a_kill_and_forgotten(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*SERVE, "--output_dir", "runs/feedback/mine", "--max_completion_length", "8"]
    first = start(place, *flags)
    assert answer_all(page_of(first), 3) == 3
    assert samplers(place)
    first.send_signal(signal.SIGKILL)
    first.wait()
    end = time.monotonic() + 60
    while samplers(place):  # hear that their other end is gone
        assert time.monotonic() < end
        time.sleep(0.2)
    answering = f"{sys.executable} -m tests.helpers.answering %s"
    second = start(place, *flags, "--num_answers", "20", browser=answering)
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 0, said
    assert not samplers(place)
    rows = read_jsonl(place / "runs/feedback/mine/answers.jsonl")
    pairs = read_jsonl(place / "runs/feedback/mine/final/preference.jsonl")
    assert len(rows) == len(pairs) == 20
    assert len({row["item"] for row in rows}) == 20
    for row, pair in zip(rows, pairs, strict=True):
        assert {one["run"] for one in row["completions"]} == {"a", "b"}
        assert len(pair["chosen"][0]["content"]) >= len(pair["rejected"][0]["content"])
    summary = json.loads((place / "runs/feedback/mine/summary.json").read_text())
    assert sum(summary["preferred"].values()) == 20
    assert "was preferred" not in said  # that is what status says
    page = (place / "runs/feedback/mine/report.html").read_text()
    assert "Who answered" in page
    assert "20 pairs shown without names" in page
    trained = recipes.run(
        "reward",
        **FAST,
        model_name_or_path="a",
        dataset_name="runs/feedback/mine",
        output_dir="runs/reward/mine",
        max_steps=1,
        per_device_train_batch_size=2,
        test_fraction=4,
    )
    assert trained["recipe"] == "reward"
    lineage = json.loads((place / "runs/reward/mine/lineage.json").read_text())
    assert len(lineage["data"][0]["files"]["preference.jsonl"]) == 64
    tell_and_forget(place, capsys)


def tell_and_forget(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys: dict[str, Any] = {"output_dir": "runs/feedback/mine"}
    told = recipes.run("feedback", action="status", **keys)
    shown = capsys.readouterr().out
    (name,) = told["annotators"]
    assert f"20 of {told['items']} items are answered" in shown
    assert name in shown
    assert "a was preferred in" in shown
    with pytest.raises(UserError, match=r"'zoe'.*have answered nothing here; known: "):
        recipes.run("feedback", action="forget", names=["zoe"], **keys)
    summary = recipes.run("feedback", action="forget", names=[name], **keys)
    assert summary["num_answers"] == 0
    assert "learned from this project before: runs/reward/mine" in capsys.readouterr().out
    assert not (place / "runs/feedback/mine/final/preference.jsonl").exists()
    files = [path for path in (place / "runs/feedback/mine").rglob("*") if path.is_file()]
    assert not any(f'"{name}"'.encode() in path.read_bytes() for path in files)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["serve"], "nothing is to be asked"),
        (["serve", "a"], "dataset_name is missing"),
        (["serve", "--dataset_name", "prompts.jsonl"], "names is missing"),
        (["serve", "a", "--chat", "--dataset_name", "prompts.jsonl"], "chat=true"),
        (["serve", "a", "--items", "prompts.jsonl"], "items=prompts.jsonl: stands for runs"),
        (["serve", "--items", "absent.jsonl"], "items=absent.jsonl: is not there"),
        (["serve", "--items", "prompts.jsonl"], "line 1: kind=pair has 0 completions; 2 are asked"),
        (["serve", "--items", "prompts.jsonl", "--kinds", "pear"], "kinds=\\['pear'\\]"),
        (["serve", "--items", "prompts.jsonl", "--overlap", "2"], "overlap=2.0: must be a share"),
        (["serve", "a", "--chat", "--database", "postgresql://me:x@host/y"], "holds a password"),
        (["serve", "a", "--chat", "--database", "postgresql://h/y?password=x"], "holds a password"),
        (["import"], "names is missing; write rlhf feedback import FILE"),
        (["forget"], "names is missing; write rlhf feedback forget NAME"),
        (["status"], "no feedback project is there"),
        (["export"], "no feedback project is there"),
        (["sample"], "no feedback project is there"),
        (["serve", "--judge", "x:y"], "judge=x:y: is a key of simulate"),
        (["status", "a"], "names"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(place: Path, words: list[str], told: str) -> None:
    from recipes.feedback import run
    from recipes.lib.recipe.main import parse

    with pytest.raises(UserError, match=told):
        run(parse("feedback", [*words, "--output_dir", "runs/feedback/none"]))
    assert not (place / "runs/feedback/none").exists()


def test_a_chat_keeps_what_people_do_and_what_that_implies_apart(place: Path) -> None:
    folder = place / "runs/feedback/chat"
    flags = ["--chat", "--compare_every", "2", "--max_completion_length", "6", "--port", "0"]
    served = start(place, "serve", "a", "b", *flags, "--output_dir", str(folder))
    page, number = page_of(served), iter(range(99))

    def ask(messages: list[dict[str, str]], attempt: int = 0) -> tuple[str, list[str]]:
        job = post(page, "/say", {"chat": "c", "messages": messages, "attempt": attempt})["job"]
        end = time.monotonic() + 120
        while (said := post(page, "/reply", {"job": job}))["state"] != "done":
            assert time.monotonic() < end
            time.sleep(0.05)
        return job, said["texts"]

    def react(job: str, **reaction: Any) -> str:
        name = str(next(number))
        post(page, "/react", {"job": job, "id": name, "reaction": reaction, "seconds": 1.5})
        return name

    first = [{"role": "user", "content": "tell me cat"}]
    job, (text,) = ask(first)
    assert ask(first) == (job, [text])  # asked twice, such as after a cut line, is asked once
    liked = react(job, kind="thumb", value=True)
    react(job, kind="thumb", value=False, supersedes=liked)
    react(job, kind="thumb", value=False, implicit="asked again")
    again, (other,) = ask(first, attempt=1)
    react(again, kind="pair", value=0, other=job)
    react(again, kind="edit", value="the cat sun moon")
    react(again, kind="thumb", value=True, implicit="kept")
    turns = [*first, {"role": "assistant", "content": other}, {"role": "user", "content": "more"}]
    both, two = ask(turns)
    react(both, kind="pair", value=1)
    for reaction in (
        {"kind": "pair", "value": 0, "other": both},  # a reply to something else
        {"kind": "thumb", "value": True, "completion": 2},
        {"kind": "thumb", "value": False, "implicit": "kept"},
        {"kind": "rank", "value": [1]},
    ):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            react(job, **reaction)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        react("of somebody else", kind="thumb", value=True)
    served.send_signal(signal.SIGINT)
    said, _ = served.communicate(timeout=120)
    assert served.returncode == 0, said
    rows = read_jsonl(folder / "answers.jsonl")
    assert [(row["kind"], row["source"], row["weight"], row["reason"]) for row in rows] == [
        ("thumb", "human", 1.0, None),
        ("thumb", "implicit", 0.0, "asked again"),
        ("pair", "human", 1.0, None),
        ("edit", "human", 1.0, None),
        ("thumb", "implicit", 0.0, "kept"),
        ("pair", "human", 1.0, None),
    ]
    assert {one["run"] for one in rows[-1]["completions"]} == {"a", "b"}
    (thumb,) = read_jsonl(folder / "final/unpaired_preference.jsonl")
    assert (thumb["label"], thumb["completion"][0]["content"]) == (False, text)
    chosen = [row["chosen"][0]["content"] for row in read_jsonl(folder / "final/preference.jsonl")]
    assert set(chosen) <= {other, "the cat sun moon", two[1]}
    (written,) = read_jsonl(folder / "final/prompt_completion.jsonl")
    assert written["completion"][0]["content"] == "the cat sun moon"
    recipes.run("feedback", action="export", output_dir=str(folder), implicit_weight=0.25)
    thumbs = read_jsonl(folder / "final/unpaired_preference.jsonl")
    assert [(one["label"], one["weight"]) for one in thumbs] == [
        (False, 1.0),
        (False, 0.25),
        (True, 0.25),
    ]


def test_each_of_several_people_has_a_link_and_only_that(place: Path) -> None:
    write(place / "items.jsonl", [{"prompt": "x", "completions": ["y", "z"]}])
    flags = ["--items", "items.jsonl", "--port", "0", "--host", "127.0.0.1"]
    served = start(place, "serve", *flags, "--share", "anna", "ben", "--output_dir", "shared")
    links = [page_of(served), page_of(served)]
    assert len(set(links)) == 2
    page = links[0].partition("/a/")[0]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        post(page, "/next", {"tab": "t", "holding": [], "number": 1})
    for link in links:
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        assert opener.open(link).status == 200
        asked = urllib.request.Request(
            f"{page}/next", b'{"tab": "t", "holding": [], "number": 1}', {"Origin": page}
        )
        assert len(json.load(opener.open(asked))["asked"]) == (link == links[0])  # one item
    served.send_signal(signal.SIGINT)
    served.communicate(timeout=60)
    status = recipes.run("feedback", action="status", output_dir="shared")
    assert status["items"] == 1
