"""Malformed inputs as strategies of hypothesis: files, rows, configurations and command lines."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from recipes.lib.config.fields import fields_of

ROOT = Path(__file__).parents[3]
RECIPES = ("sft", "reward", "dpo", "kto", "ppo", "rloo", "grpo", "evaluate", "feedback", "data")
TEXTS = [
    "a", "the cat sat", "", " ", "\n", "\u4f60\u597d", "\U0001f600", "x" * 500, "\x00", "\x1b[31m",
    "\u2028", "null", "1e-5", "\n\nHuman: a\n\nAssistant: b", "{}", "\ufeffa", "\ud800", "a\rb",
]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 3.5, 1e308, 2**63, -(2**70), 10**400, 0.1, 1e-300]
ROLES = ["user", "assistant", "system", "tool", "bot", "", None, 3]
COLUMNS = [
    "prompt", "completion", "chosen", "rejected", "messages", "text", "label", "instruction",
    "input", "output", "conversations", "system", "history", "tools", "kto_tag", "id", "", "a b",
]  # fmt: skip
FIRST = {"feedback": ["simulate"], "evaluate": ["runs/x"]}  # words that these recipes begin with
FORMATS = ["trl", "alpaca", "sharegpt", "hh"]
KEYS = (
    "datasets dataset_mixer dataset_mixture dataset_splits torch_dtype warmup_ratio seed "
    "learning_rate test_fraction max_train_rows on_bad_rows dataset_format dataset_name "
    "gradient_accumulation_steps reward_model_path stop_token_id per_device_train_batch_size "
    "max_length lora_target_modules model_init_kwargs loss_type report_to optim fsdp "
    "eval_strategy logging_steps nothing env config resume streaming"
).split()
YAML_VALUES = (
    "0 3 -1 0.5 1e-5 true null yes no ~ 'x' .nan .inf 1e999 0x10 010 2024-01-01 [a, {} [1] "
    "{a: {b: [1]}} --- *a 99999999999999999999"
).split(" ")
JUNK = [b"\n", b'"', b"[", b"{", b"}", b",", b"\xff", b"\x00", b"\xef\xbb\xbf", b"\\ud800"]
SAID = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yes"}

# Good rows by name of the format; {n} makes rows differ.
GOOD: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("trl", {"text": "row {n}"}),
    "messages": ("trl", {"messages": [SAID, {"role": "assistant", "content": "row {n}"}]}),
    "completion": ("trl", {"prompt": "p {n}", "completion": "c"}),
    "prompt": ("trl", {"prompt": "p {n}", "answer": 3}),
    "pair": ("trl", {"prompt": "p {n}", "chosen": "a", "rejected": "b"}),
    "chat pair": (
        "trl",
        {"prompt": [SAID | {"content": "{n}"}], "chosen": [ANSWER], "rejected": [SAID], "id": 3},
    ),
    "label": ("trl", {"prompt": "p {n}", "completion": "c", "label": True}),
    "alpaca": ("alpaca", {"instruction": "i {n}", "input": "", "output": "o"}),
    "sharegpt": (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "{n}"}, {"from": "gpt", "value": "y"}]},
    ),
    "hh": (
        "hh",
        {
            "chosen": "\n\nHuman: {n}\n\nAssistant: a",
            "rejected": "\n\nHuman: {n}\n\nAssistant: b",
        },
    ),
}


@dataclass
class File:
    """A file of rows and how it is read."""

    suffix: str
    data: bytes | None  # None is a Parquet file, made of the rows
    rows: list[Any]
    accidents: list[tuple[str, int, Any]]  # what happens to its bytes
    keys: dict[str, Any]  # of DataArguments
    stays: set[str]  # numbers of the rows that must be kept


@dataclass
class Configuration:
    """A recipe and the bytes of its YAML file."""

    recipe: str
    data: bytes


@dataclass
class Command:
    """A recipe and the words behind its name."""

    recipe: str
    words: list[str]


def good_row(name: str, number: int) -> dict[str, Any]:
    """A row of a format that nothing is wrong with."""
    return json.loads(json.dumps(GOOD[name][1]).replace("{n}", str(number)))


def as_bytes(rows: list[Any], suffix: str, *, is_list: bool = True) -> bytes:
    """Rows as a file of an ending; .json holds a list, or one row a line."""
    if suffix == ".json" and is_list:
        return json.dumps(rows).encode()
    if suffix == ".csv":
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [[str(row.get(column, "")) for column in columns] for row in rows]
        lines = [",".join(f'"{cell}"' for cell in line) for line in [columns, *cells]]
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    return "\n".join(json.dumps(row) for row in rows).encode()


def broken(data: bytes, accidents: list[tuple[str, int, Any]]) -> bytes:
    """Bytes after some accidents; a place beyond the end counts on from the start."""
    for what, where, more in accidents:
        place = where % (len(data) + 1)
        if what == "cut":
            data = data[:place]
        elif what == "lose":
            data = data[:place] + data[place + more :]
        elif what == "insert":
            data = data[:place] + more + data[place:]
        elif what == "repeat":
            data = data + data[place:]
        else:
            data = data.decode("latin-1").encode("utf-16")
    return data


def values() -> SearchStrategy[Any]:
    """Some value that JSON can hold, and some that Python writes though JSON has no such word."""
    texts = st.sampled_from(TEXTS) | st.text(max_size=8)
    numbers = st.sampled_from(NUMBERS) | st.integers() | st.floats()
    leaves = st.none() | st.booleans() | numbers | texts
    turns = st.sampled_from([("role", "content"), ("from", "value")]).flatmap(
        lambda keys: st.fixed_dictionaries({keys[0]: st.sampled_from(ROLES), keys[1]: texts})
    )
    return st.recursive(
        leaves | st.lists(turns, min_size=1, max_size=2),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(COLUMNS), inner, max_size=2)
        ),
        max_leaves=6,
    )


@st.composite
def spoiled(draw: DrawFn, row: dict[str, Any]) -> dict[str, Any]:
    """A row with one or two things changed, which may leave it good."""
    row = dict(row)
    for _ in range(draw(st.integers(1, 2))):
        change = draw(st.sampled_from(["replace", "remove", "add", "last"]))
        column = draw(st.sampled_from(list(row) or COLUMNS))
        if change == "remove":
            row.pop(column, None)
        elif change == "add":
            row[draw(st.sampled_from(COLUMNS))] = draw(values())
        elif change == "last" and isinstance(row.get(column), list) and row[column]:
            row[column] = [*row[column][:-1], draw(values())]
        else:
            row[column] = draw(values())
    return row


def accidents(least: int = 0) -> SearchStrategy[list[tuple[str, int, Any]]]:
    """What may happen to the bytes of a file."""
    place = st.integers(0, 2000)
    junk = st.binary(min_size=1, max_size=3) | st.sampled_from(JUNK)
    many = st.sampled_from([part * 3000 for part in JUNK])
    return st.lists(
        st.tuples(st.just("insert"), place, junk | many)
        | st.tuples(st.just("lose"), place, st.integers(1, 5))
        | st.tuples(st.sampled_from(["cut", "repeat", "utf-16"]), place, st.none()),
        min_size=least,
        max_size=5,
    )


def reading(name: str) -> SearchStrategy[dict[str, Any]]:
    """Keys of DataArguments for a file of a format."""
    formats = st.one_of(*[st.just(name)] * 9, st.sampled_from(FORMATS))
    return st.fixed_dictionaries(
        {
            "dataset_format": formats,
            "on_bad_rows": st.sampled_from(["refuse", "drop"]),
            "test_fraction": st.sampled_from([0.0, 0.0, 0.0, 0.5]),
            "streaming": st.booleans(),
        }
    )


@st.composite
def files(draw: DrawFn) -> File:
    """A file with accidents in its bytes."""
    suffix = draw(st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]))
    name = draw(st.sampled_from(list(GOOD)))
    rows = [good_row(name, number) for number in range(draw(st.integers(0, 5)))]
    is_list = draw(st.booleans())
    data = None if suffix == ".parquet" else as_bytes(rows, suffix, is_list=is_list)
    found = draw(accidents())
    return File(suffix, data, rows, found, draw(reading(GOOD[name][0])), set())


@st.composite
def rows(draw: DrawFn) -> File:
    """Rows of which some are spoiled; where those are dropped, the good ones must stay."""
    name = draw(st.sampled_from(list(GOOD)))
    good = [good_row(name, number) for number in range(draw(st.integers(2, 7)))]
    bad = [draw(spoiled(good_row(name, 100 + n))) for n in range(draw(st.integers(0, 3)))]
    mixed = draw(st.permutations(good + bad))
    suffix = draw(st.sampled_from([".jsonl", ".json"]))
    data = as_bytes(mixed, suffix, is_list=draw(st.booleans()))
    keys = draw(reading(GOOD[name][0]))
    # A first row of another kind makes the good ones the odd ones.
    is_odd = mixed[0] not in good or suffix == ".json" or keys["dataset_format"] != GOOD[name][0]
    return File(suffix, data, mixed, [], keys, set() if is_odd else set(map(str, range(len(good)))))


def shipped() -> list[tuple[str, list[str]]]:
    """Recipe and lines of each YAML file of this project, and of the old ones in the tests."""
    folders = [ROOT / "configs", ROOT / "tests/old_configs"]
    found = []
    for path in sorted(path for folder in folders for path in folder.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        command = text.partition("recipes.")[2].partition(" ")[0]  # in the second line
        names = {"quickstart": command, "environments": command}
        names |= {"old_configs": path.stem.rpartition("_")[2]}
        recipe = names.get(path.parent.name, path.parent.name)
        recipe = "sft" if recipe == "mixture" else recipe
        if recipe != "accelerate":
            found.append((recipe, text.splitlines()))
    return found


def yaml_values() -> SearchStrategy[str]:
    """Some value as YAML has it."""
    return st.sampled_from(YAML_VALUES) | values().map(json.dumps)


@st.composite
def configurations(draw: DrawFn) -> Configuration:
    """A configuration file that something happened to."""
    recipe, lines = draw(st.sampled_from(shipped()))
    for _ in range(draw(st.integers(1, 4))):
        lines = draw(_changed(lines))
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 6)) == 6:
        data = broken(data, draw(accidents(1)))
    return Configuration(recipe, data)


@st.composite
def _changed(draw: DrawFn, lines: list[str]) -> list[str]:
    lines = list(lines) or [""]
    place = draw(st.integers(0, len(lines) - 1))
    line = lines[place]
    key = line.partition(":")[0]
    changes = ["value", "add", "drop", "double", "misspell", "before", "behind"]
    change = draw(st.sampled_from(changes))
    if change == "drop":
        del lines[place]
    elif change == "double":
        lines.append(line)
    elif change == "value":
        lines[place] = f"{key}: {draw(yaml_values())}"
    elif change == "misspell":
        lines[place] = key[: draw(st.integers(0, len(key)))] + line[len(key) :]
    elif change == "before":
        lines[place] = draw(st.sampled_from([" ", "\t", "- ", "&a ", "!!x ", "? ", "%"])) + line
    elif change == "add":
        lines.append(f"{draw(st.sampled_from(KEYS))}: {draw(yaml_values())}")
    else:
        lines[place] = line + draw(
            st.sampled_from([" #", ": x", " [", "\x00", '"', " |", "\u2028"])
        )
    return lines


@st.composite
def commands(draw: DrawFn) -> Command:
    """Words behind `rlhf RECIPE`, some of which fit their flags."""
    recipe = draw(st.sampled_from(RECIPES))
    known = fields_of(types_of(recipe))
    words: list[str] = []
    for _ in range(draw(st.integers(0, 3))):
        key = draw(st.sampled_from(sorted(known)) | st.sampled_from(KEYS))
        if key in known and draw(st.booleans()):
            words += [f"--{key}", draw(_fitting(known[key]))]
        else:
            words += draw(_odd(key))
    return Command(recipe, words)


@st.composite
def _odd(draw: DrawFn, key: str) -> list[str]:
    flag = draw(st.sampled_from(["--", "--", "--", "-", ""])) + key
    some = ["1", "-1", "0.5", "true", "x", "", "None", "[1]", '{"a": 1}', "{", "--", "-1e5"]
    some += ["nan", "rows.jsonl", "\u4f60", "9" * 30, "--seed"]
    given = st.sampled_from(some) | st.text(st.characters(codec="utf-8"), max_size=5)
    shape = draw(st.sampled_from(["alone", "joined", "one", "two"]))
    if shape == "alone":
        return [flag]
    if shape == "joined":
        return [f"{flag}={draw(given)}"]
    return [flag, *(draw(given) for _ in range(1 if shape == "one" else 2))]


def _fitting(field: Any) -> SearchStrategy[str]:
    if field.choices:
        return st.sampled_from([str(choice) for choice in field.choices])
    values = {"bool": ["true", "false"], "int": ["3", "0", "-2"], "float": ["0.1", "1e-6"]}
    kinds = [kind for kind in values if kind in str(field.hint)]
    return st.sampled_from(values[kinds[0]] if kinds else ["x"])


def types_of(recipe: str) -> tuple[type, ...]:
    """The dataclasses of a recipe's keys."""
    import importlib

    types: tuple[type, ...] = importlib.import_module(f"recipes.{recipe}").arguments()
    return types


KINDS = {"files": files, "rows": rows, "configurations": configurations, "commands": commands}
