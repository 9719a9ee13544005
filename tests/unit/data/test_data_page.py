"""Every example of docs/data.md loads as what the page says."""

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.formats import FORMATS, TRL_FORMATS, format_of
from recipes.lib.data.loading import load_splits
from recipes.lib.data.streaming import load_rows
from recipes.lib.recipe.main import parse

PAGE = (Path(__file__).parents[3] / "docs/data.md").read_text(encoding="utf-8")
SECTIONS = dict(
    re.findall(
        r"^### ([^\n]+)\n(.*?)(?=^##)", PAGE.partition("## Formats")[2], flags=re.DOTALL | re.M
    )
)
YAML = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
BLOCK = re.compile(r"```json\n(.*?)```", re.DOTALL)
EXAMPLES = [
    pytest.param(title, block, id=f"{title} {number}")
    for title, text in SECTIONS.items()
    for number, block in enumerate(BLOCK.findall(text))
]


def without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("title", "block"), EXAMPLES)
def test_an_example_loads_as_its_section_says(title: str, block: str, tmp_path: Path) -> None:
    text = SECTIONS[title]
    rows = [json.loads(line) for line in block.splitlines()]
    assert len(rows) == 3
    (tmp_path / "rows.jsonl").write_text(block, encoding="utf-8")
    named = re.search(r"Set `dataset_format: (\w+)`", text)
    args = DataArguments(
        dataset_name=str(tmp_path / "rows.jsonl"), dataset_format=named[1] if named else "trl"
    )
    train, test = load_splits(args, 0, lambda data: format_of(data).columns)
    assert (len(train), test) == (3, None)
    shape = format_of(train)
    assert f"Read as **{shape.name}**" in " ".join(text.split())
    for recipe in set(re.findall(r"`(\w+)`", text)) & {"sft", "reward", "dpo", "kto", "ppo"}:
        assert recipe in shape.recipes
    # The same three rows as a stream; a table fills in keys of messages, which a stream does not.
    args.streaming = True
    stream = load_rows(args, parse("sft", ["--max_steps", "1"]).training, lambda _: shape.columns)
    names = next(iter(stream.train)).keys()
    as_stream = sorted(json.dumps(without_none(row), sort_keys=True) for row in stream.train)
    whole = [{key: row[key] for key in names} for row in train]
    assert as_stream == sorted(json.dumps(without_none(row), sort_keys=True) for row in whole)
    if not named:
        assert [{key: row[key] for key in shape.columns} for row in train] == [
            {key: row[key] for key in shape.columns} for row in rows
        ]


def test_every_format_has_an_example() -> None:
    shown = set(re.findall(r"Read as \*\*([\w ,-]+)\*\*", PAGE))
    assert shown == {shape.name for shape in TRL_FORMATS}
    assert set(re.findall(r"Set `dataset_format: (\w+)`", PAGE)) == set(FORMATS)
    assert len(EXAMPLES) == 16


def test_sft_takes_what_the_page_says(tmp_path: Path) -> None:
    from datasets import Dataset

    from recipes.sft import columns_of

    for title in ("Text", "Messages", "Prompt and completion"):
        for block in BLOCK.findall(SECTIONS[title]):
            rows = Dataset.from_list(
                [json.loads(line) for line in block.splitlines()], on_mixed_types="use_json"
            )
            assert columns_of(rows) == format_of(rows).columns


def test_the_mixture_of_the_page_parses_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, _ = YAML
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(block)
    chat = {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}
    stories = "".join(
        json.dumps({"messages": [{"role": "assistant", "content": f"story {number}"}]}) + "\n"
        for number in range(20)
    )
    Path("stories.jsonl").write_text(stories)
    Path("chats.json").write_text(json.dumps([chat | {"id": number} for number in range(3)]))
    script = parse("sft", ["--config", "run.yaml", "--use_cpu"]).script
    train, test = load_splits(script, 0, ("messages",))
    assert test is not None
    assert len(train) + len(test) == 13


def test_the_stream_of_the_page_parses_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, block = YAML
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(block)
    story = {"messages": [{"role": "assistant", "content": "a story"}]}
    chat = {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}
    for name, text in (("stories", json.dumps(story)), ("chats", json.dumps(chat))):
        lines = [re.sub('"a story"|"x"', f'"{number}"', text) for number in range(60)]
        Path(f"{name}.jsonl").write_text("\n".join(lines))
    config = parse("sft", ["--config", "run.yaml", "--use_cpu"])
    rows = load_rows(config.script, config.training, lambda _: ("messages",))
    assert rows.test is not None
    assert len(rows.known) + len(rows.test) == 120
    rows.begin()
    turns = [len(row["messages"]) for row in islice(iter(rows.train), 2000)]
    assert 0.69 < turns.count(1) / 2000 < 0.81  # six standard deviations
