"""Values of every kind for real options of the recipes, as strategies of hypothesis."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from recipes.lib.config.build import HIDDEN, SECRET
from recipes.lib.config.fields import Field, fields_of, is_enum, members
from recipes.lib.errors import UserError
from recipes.lib.recipe.main import parse
from tests.helpers.fuzz.inputs import FIRST, RECIPES, types_of

# As YAML has them, and what a reader of YAML 1.2 makes of them.
ODD: list[tuple[str, Any]] = [
    (".nan", math.nan), (".inf", math.inf), ("-.inf", -math.inf), ("1e999", math.inf),
    ("null", None), ("~", None), ("", None), ("true", True), ("false", False), ("yes", "yes"),
    ("no", "no"), ("off", "off"), ("0x10", 16), ("1_000", "1_000"), ("1e3", 1000.0), ("'7'", "7"),
    ("'1e-5'", "1e-5"), ("''", ""), ("' '", " "), ("[]", []), ("{}", {}), ("[1, a]", [1, "a"]),
    ("{a: 1}", {"a": 1}), ("2024-01-01", "2024-01-01"), ("12:30:45", "12:30:45"),
    ("'None'", "None"), ("None", "None"), ("[null]", [None]), ("[[1]]", [[1]]),
    ("9" * 30, 10**30 - 1),
    ("-1", -1), ("0", 0), ("1", 1), ("1.0", 1.0), ("-0.0", -0.0), ("2.7", 2.7), ("1e-5", 1e-5),
    ("1e300", 1e300), ("9223372036854775807", 2**63 - 1), ("9223372036854775808", 2**63),
]  # fmt: skip
TEXTS = ["a", "auto", "steps", "true", "1", "null", "no/such/file", "../x", "~", "\u4f60", "a: b"]
WORDS = FIRST | {"data": ["rows.jsonl"]}
FILLED = {"feedback": "action", "evaluate": "run", "data": "dataset_name"}  # by those words
BEFORE = {"ppo": "reward_funcs: [r.py:f]\n", "rloo": "reward_funcs: [r.py:f]\n"}
BEFORE["grpo"] = BEFORE["rloo"]


@dataclass
class Option:
    """One key of a recipe with the text of its value in YAML."""

    recipe: str
    key: str
    text: str
    value: Any


def fitting(field: Field) -> SearchStrategy[Any]:
    """Values of the types that a field has, in and out of their range."""
    pools: list[SearchStrategy[Any]] = []
    for member in members(field.hint):
        if field.choices:
            pools.append(st.sampled_from(list(field.choices)))
        elif member is bool:
            pools.append(st.booleans())
        elif member is int:
            pools.append(st.integers(-(2**65), 2**65) | st.integers(-3, 2048))
        elif member is float:
            pools.append(st.floats(allow_nan=False, allow_infinity=False) | st.floats(-1, 2))
        elif is_enum(member):
            pools.append(st.sampled_from([item.value for item in member]) | st.sampled_from(TEXTS))
        elif get_origin(member) is not None and str in get_args(member):
            pools.append(st.lists(st.sampled_from(TEXTS), max_size=3))
        elif member is dict or get_origin(member) is dict:
            pools.append(st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 3)))
        else:
            pools.append(st.sampled_from(TEXTS) | st.text(st.characters(codec="utf-8"), max_size=6))
    return st.one_of(pools)


# Keys of files of before, which are told and read as others: tests/unit/config has them.
READ_AS_OTHERS = {"ppo": {"gradient_accumulation_steps"}}


@st.composite
def options(draw: DrawFn) -> Option:
    """An option with a value of its type, or one that is odd."""
    recipe = draw(st.sampled_from(RECIPES))
    known = fields_of(types_of(recipe))
    key = draw(st.sampled_from(sorted(known.keys() - READ_AS_OTHERS.get(recipe, set()))))
    if draw(st.integers(0, 2)) == 0:
        text, value = draw(st.sampled_from(ODD))
    else:
        value = draw(fitting(known[key]))
        text = json.dumps(value)
    return Option(recipe, key, text, value)


def read_option(case: Option, folder: Path) -> str:
    """Parse the option; its value is what the file says, or a sentence names key and value."""
    before = BEFORE.get(case.recipe, "") if case.key != "reward_funcs" else ""
    (folder / "run.yaml").write_bytes(f"{before}{case.key}: {case.text}\n".encode())
    forced = {} if case.recipe in FIRST or case.key == "use_cpu" else {"use_cpu": True}
    forced = {key: on for key, on in forced.items() if key in fields_of(types_of(case.recipe))}
    first = WORDS.get(case.recipe, []) if case.key != FILLED.get(case.recipe) else []
    try:
        config = parse(case.recipe, [*first, "--config", "run.yaml"], forced)
    except UserError as error:
        check_sentence(case, str(error))
        raise
    found = config.values[case.key]
    if not same(found, case.value):
        raise ValueError(f"{case.key}: {case.text} became {found!r}")
    held = [getattr(part, case.key) for part in built(config) if hasattr(part, case.key)]
    if type(found) in (bool, int, float) and case.key not in CHANGED and held != [found]:
        raise ValueError(f"{case.key}: {case.text} became {held!r} in the configuration")
    return "right"


def built(config: Any) -> list[Any]:
    """The dataclasses of a configuration."""
    parts = (config.script, config.training, config.model)
    return [part for part in parts if dataclasses.is_dataclass(part)]


def same(found: Any, said: Any) -> bool:
    """Whether two values are one; a whole number may have become a float, a text a list."""
    if isinstance(found, float) and type(said) is int:
        return found == float(said)
    if found == [said]:
        return True
    return type(found) is type(said) and found == said


def check_sentence(case: Option, text: str) -> None:
    """A refusal names the key, and the value where it has one that can be shown."""
    if case.key not in text:
        raise ValueError(f"{case.key}: {case.text} is refused without its key: {text!r}")
    words = {None: "null", True: "true", False: "false"}
    value = case.value
    shown = words[value] if value is None or isinstance(value, bool) else repr(value)
    plain = str(value)
    if SECRET.search(case.key):
        shown = HIDDEN
    is_long = len(case.text) > 20 or "is missing" in text or "too long" in text or "number" in text
    if not any(one[:8] in text for one in (shown, plain, case.text)) and not is_long:
        raise ValueError(f"{case.key}: {case.text} is refused without its value: {text!r}")


# Keys that the dataclasses set anew: no memory is pinned without a card, every column is handed to
# rewards, tokens are counted in one of two ways, and a run of PPO never reads over its prompts.
CHANGED = {
    "dataloader_pin_memory",
    "remove_unused_columns",
    "include_num_input_tokens_seen",
    "ignore_data_skip",
}
