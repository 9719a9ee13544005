"""Models and data by Hub id and pinned revision, also streamed, from a Hub on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from recipes.lib.runs.files import read_jsonl
from tests.helpers.loopback_hub import LoopbackHub, commit_of
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import flags, write

ROOT = Path(__file__).parents[2]
RUN = {
    "model_name_or_path": "nobody/tiny",
    "model_revision": "v2",
    "dataset_name": "nobody/rows",
    "dataset_revision": "v2",
    "max_steps": 1,
    "max_length": 32,
    "max_new_tokens": 2,
    "test_fraction": 0.3,
}
# One process for all: the imports cost more than the runs.
RUNS: dict[str, dict[str, object]] = {
    "whole": {},
    "streamed": {"streaming": True},
    "no_such_data": {"dataset_revision": "v9"},
    "no_such_model": {"model_revision": "v9"},
}
SCRIPT = """
import json, sys
from recipes.lib.recipe.main import launch
for recipe, *words in json.loads(sys.argv[1]):
    print("code", launch(recipe, words), file=sys.stderr)
"""


def run_all(commands: list[list[str]], place: Path, **variables: str) -> str:
    """Run commands one after the other in a process of their own; what they said."""
    clean = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    more = {"HF_HOME": str(place / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        cwd=place,
        env=clean | more | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """The folder of the runs, what was asked of the Hub, and what the runs said."""
    from tests.conftest import word_tokenizer

    place = tmp_path_factory.mktemp("hub")
    tokenizer: PreTrainedTokenizerFast = word_tokenizer()
    repos = {}
    for tag, size, subject in (("main", 16, "cat"), ("v2", 32, "dog")):
        save_model(place / f"model-{tag}", tokenizer, hidden_size=size)
        (place / f"rows-{tag}").mkdir()
        rows = [{"prompt": f"the {subject}", "completion": f" sat {n} ."} for n in range(20)]
        write(place / f"rows-{tag}/train.jsonl", rows)
        repos["models", "nobody/tiny", tag] = place / f"model-{tag}"
        repos["datasets", "nobody/rows", tag] = place / f"rows-{tag}"
    commands = [["sft", *flags(RUN | {"output_dir": name} | more)] for name, more in RUNS.items()]
    with LoopbackHub(repos) as hub:
        said = run_all(commands, place, HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="0")
    return place, hub.asked, said


@pytest.mark.parametrize("name", ["whole", "streamed"])
def test_a_hub_id_is_read_at_its_revision(name: str, asked: tuple[Path, list[str], str]) -> None:
    run = asked[0] / name
    assert json.loads((run / "final/config.json").read_text())["hidden_size"] == 32
    samples = read_jsonl(run / "samples.jsonl")
    assert samples
    assert {row["prompt"] for row in samples} == {"the dog"}
    model = json.loads((run / "lineage.json").read_text())["model"]
    assert (model["name"], model["commit"]) == ("nobody/tiny", commit_of("v2"))


def test_nothing_is_asked_of_another_revision(asked: tuple[Path, list[str], str]) -> None:
    resolved = [one for one in asked[1] if "/resolve/" in one]
    assert resolved
    assert not [one for one in resolved if "/main/" in one or commit_of("main") in one]
    weights = f"GET /nobody/tiny/resolve/{commit_of('v2')}/model.safetensors"
    rows = f"GET /datasets/nobody/rows/resolve/{commit_of('v2')}/train.jsonl"
    assert asked[1].count(weights) == 1  # then it is in the cache
    assert asked[1].count(rows) > 1  # a stream asks again


def told(said: str, start: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith(start)]


def test_a_revision_that_is_not_there_is_one_sentence(
    asked: tuple[Path, list[str], str],
) -> None:
    place, _, said = asked
    assert told(said, "code ") == ["code 0", "code 0", "code 2", "code 2"]
    data, model = told(said, "rlhf sft: error: ")
    assert "dataset_name=nobody/rows: no such file here, and the Hub gave no dataset (" in data
    assert "Revision 'v9' doesn't exist" in data
    assert "nobody/tiny" in model
    assert "v9" in model
    assert not (place / "no_such_data").exists()
    assert not (place / "no_such_model").exists()


def test_without_the_hub_no_other_revision_is_taken_from_the_cache(
    asked: tuple[Path, list[str], str],
) -> None:
    commit = commit_of("v2")
    revisions = ["v2", commit, "main", "v9", commit_of("main")]
    commands = [["data", "nobody/rows", "--dataset_revision", one] for one in revisions]
    commands.append(["data", "nobody/rows"])
    said = run_all(commands, asked[0], HF_HUB_OFFLINE="1")
    assert [line[-1] for line in told(said, "code ")] == ["0", "0", "2", "2", "2", "0"]
    (first, *_) = told(said, "rlhf data: error: ")
    assert first.removeprefix("rlhf data: error: ") == (
        "dataset_revision=main: the Hub did not give this revision of nobody/rows, and the rows in "
        f"the cache are of {commit[:10]}; check the name and the network, or leave it out to use "
        "those."
    )
    notes = told(said, "note: dataset_name=nobody/rows: not read from the Hub but from the cache")
    assert [line.split()[-1] for line in notes] == [f"{commit[:10]}."] * 3
