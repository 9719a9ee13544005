"""Malformed inputs by number: files, rows, configurations and command lines, each reproducible."""

import json
import random
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TEXTS = [
    "", " ", "\n", "a", "the cat sat", "\u4f60\u597d", "\U0001f600", "x" * 500, "\x00", "\x1b[31m",
    "\u2028", "null", "1e-5", "\n\nHuman: a\n\nAssistant: b", "{}", "\ufeffa", "\ud800", "a\rb",
]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 3.5, 1e308, 2**63, -(2**70), 10**400, 0.1, 1e-300]
ROLES = ["user", "assistant", "system", "tool", "bot", "", None, 3]
COLUMNS = [
    "prompt", "completion", "chosen", "rejected", "messages", "text", "label", "instruction",
    "input", "output", "conversations", "system", "history", "tools", "kto_tag", "id", "", "a b",
]  # fmt: skip
FORMATS = ["trl", "alpaca", "sharegpt", "hh"]
SUFFIXES = [".jsonl", ".jsonl", ".json", ".csv", ".parquet"]
SAID = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yes"}

# Good rows by name of the format; {n} makes rows differ.
GOOD: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("trl", {"text": "row {n}"}),
    "messages": ("trl", {"messages": [SAID, {"role": "assistant", "content": "row {n}"}]}),
    "completion": ("trl", {"prompt": "p {n}", "completion": "c"}),
    "prompt": ("trl", {"prompt": "p {n}", "answer": 3}),
    "pair": ("trl", {"prompt": "p {n}", "chosen": "a", "rejected": "b"}),
    "chat pair": ("trl", {"prompt": [SAID], "chosen": [ANSWER], "rejected": [SAID], "id": "{n}"}),
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


def good_row(name: str, number: int) -> dict[str, Any]:
    """A row of a format that nothing is wrong with."""
    return json.loads(json.dumps(GOOD[name][1]).replace("{n}", str(number)))


def any_value(rng: random.Random, depth: int = 0) -> Any:
    """Some value that JSON can hold."""
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind < 2:
        return rng.choice(TEXTS)
    if kind < 5:
        return rng.choice([None, True, False, rng.choice(NUMBERS)])
    if kind == 5:
        return [any_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return {rng.choice(COLUMNS): any_value(rng, depth + 1) for _ in range(rng.randrange(3))}
    keys = rng.choice([("role", "content"), ("from", "value")])
    return [{keys[0]: rng.choice(ROLES), keys[1]: rng.choice(TEXTS)} for _ in range(2)]


def spoiled(rng: random.Random, row: dict[str, Any]) -> dict[str, Any]:
    """A row with one or two things changed, which may leave it good."""
    row = dict(row)
    for _ in range(rng.choice([1, 1, 2])):
        change = rng.randrange(4)
        column = rng.choice(list(row) or COLUMNS)
        if change == 0:
            row.pop(column, None)
        elif change == 1:
            row[rng.choice(COLUMNS)] = any_value(rng)
        elif change == 2 and isinstance(row.get(column), list) and row[column]:
            row[column] = [*row[column][:-1], any_value(rng)]
        else:
            row[column] = any_value(rng)
    return row


def as_bytes(rng: random.Random, rows: list[Any], suffix: str) -> bytes:
    """Rows as a file of an ending, perhaps of another one."""
    if suffix == ".json" and rng.random() < 0.7:
        return json.dumps(rows).encode()
    if suffix == ".csv":
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [[str(row.get(column, "")) for column in columns] for row in rows]
        lines = [",".join(f'"{cell}"' for cell in line) for line in [columns, *cells]]
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    return "\n".join(json.dumps(row) for row in rows).encode()


def broken(rng: random.Random, data: bytes) -> bytes:
    """Bytes with a few accidents."""
    for _ in range(rng.choice([0, 1, 1, 2, 5])):
        place = rng.randrange(len(data) + 1)
        junk = [b"\xff", b"\x00", b"\n", b'"', b"[", b"{", b"}", b",", b"\xef\xbb\xbf", b"\\ud800"]
        accident = rng.randrange(6)
        if accident == 0:
            data = data[:place]
        elif accident == 1:
            data = data[:place] + data[place + 1 + rng.randrange(5) :]
        elif accident == 2:
            data = data[:place] + bytes(rng.randrange(256) for _ in range(3)) + data[place:]
        elif accident == 3:
            data = data[:place] + rng.choice(junk) * rng.choice([1, 1, 3000]) + data[place:]
        elif accident == 4:
            data = rng.choice([b"\xef\xbb\xbf" + data, data.decode("latin-1").encode("utf-16")])
        else:
            data = data + data[place:]
    return data


def configuration(rng: random.Random) -> tuple[str, bytes]:
    """A recipe and the text of a configuration that something happened to."""
    folders = [ROOT / "configs", ROOT / "tests/old_configs"]
    paths = sorted(path for folder in folders for path in folder.rglob("*.yaml"))
    path = rng.choice([path for path in paths if path.parent.name != "accelerate"])
    names = {"quickstart": path.stem, "old_configs": path.stem.rpartition("_")[2]}
    recipe = names.get(path.parent.name, path.parent.name)
    lines = path.read_text(encoding="utf-8").splitlines()
    for _ in range(rng.choice([1, 1, 2, 4])):
        place = rng.randrange(len(lines))
        key = lines[place].partition(":")[0]
        change = rng.randrange(7)
        if change == 0:
            del lines[place : place + 1]
            lines = lines or [""]
        elif change == 1:
            lines.append(lines[place])
        elif change == 2:
            lines[place] = f"{key}: {yaml_value(rng)}"
        elif change == 3:
            lines[place] = key[: rng.randrange(len(key) + 1)] + lines[place][len(key) :]
        elif change == 4:
            lines[place] = rng.choice([" ", "\t", "- ", "&a ", "!!x ", "? ", "%"]) + lines[place]
        elif change == 5:
            lines.append(f"{any_key(rng)}: {yaml_value(rng)}")
        else:
            lines[place] = lines[place] + rng.choice(
                [" #", ": x", " [", "\x00", '"', " |", "\u2028"]
            )
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    data = broken(rng, data) if rng.random() < 0.15 else data
    return ("sft" if recipe == "mixture" else recipe), data


def yaml_value(rng: random.Random) -> str:
    """Some value as YAML has it."""
    value = any_value(rng)
    if isinstance(value, float) or rng.random() < 0.6:
        return rng.choice(
            "1e-5 .nan .inf 1e999 0x10 010 yes no null ~ true 'x' 3 -1 0.5 2024-01-01 [a, {} [1] "
            "{a: {b: [1]}} --- *a 99999999999999999999 0".split(" ")
        )
    return json.dumps(value)


def any_key(rng: random.Random) -> str:
    """Some key, known, old or neither."""
    return rng.choice(
        "datasets dataset_mixer dataset_mixture dataset_splits torch_dtype warmup_ratio seed "
        "learning_rate test_fraction max_train_rows on_bad_rows dataset_format dataset_name "
        "gradient_accumulation_steps reward_model_path stop_token_id per_device_train_batch_size "
        "max_length lora_target_modules model_init_kwargs loss_type report_to optim fsdp "
        "eval_strategy logging_steps nothing env config resume".split()
    )


def command_line(rng: random.Random, known: dict[str, Any]) -> list[str]:
    """Words behind `rlhf RECIPE`, some of which fit their flags."""
    words: list[str] = []
    for _ in range(rng.randrange(4)):
        key = rng.choice(sorted(known)) if rng.random() < 0.8 else any_key(rng)
        if key in known and rng.random() < 0.6:
            words += [f"--{key}", fitting(rng, known[key])]
            continue
        flag = rng.choice(["--", "--", "--", "-", ""]) + key
        values = ["1", "-1", "0.5", "true", "x", "", "None", "[1]", '{"a": 1}', "{", "--", "-1e5"]
        values += ["nan", "rows.jsonl", "\u4f60", "9" * 30, "--seed"]
        shape = rng.randrange(4)
        if shape == 0:
            words.append(flag)
        elif shape == 1:
            words.append(f"{flag}={rng.choice(values)}")
        else:
            words += [flag, *rng.choices(values, k=rng.choice([1, 1, 1, 2]))]
    return words


def fitting(rng: random.Random, field: Any) -> str:
    """A value that a flag takes, where its type is a simple one."""
    if field.choices:
        return str(rng.choice(field.choices))
    values = {"bool": "true", "int": "3", "float": "0.1"}
    kinds = [kind for kind in values if kind in str(field.hint)]
    return values[kinds[0]] if kinds else "x"
