import subprocess
import sys
from typing import Any

import pytest

from recipes.lib.errors import UserError
from recipes.lib.feedback.rows import KINDS, check_row, current, item_id, make_row

TURNS = [{"role": "user", "content": "hello?"}]
VALUES = {
    "pair": 1,
    "rank": [2, 1],
    "rating": 4.5,
    "thumb": False,
    "edit": "better",
    "text": "mine",
}


def row_of(kind: str = "pair", **fields: Any) -> dict[str, Any]:
    contents = ["one", "two"] if kind in ("pair", "rank") else ["one"]
    item = {"prompt": TURNS, "completions": [{"content": one, "run": None} for one in contents]}
    given = {"kind": kind, "value": VALUES[kind], "annotator": "anna", "source": "human"}
    return make_row(item | {"id": item_id(TURNS, contents)}, **given | fields)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_each_kind_has_the_fields_of_the_contract(kind: str) -> None:
    fields = """version id item kind prompt completions shown_order value aspect strength annotator
    source weight noise seconds reason supersedes created_at""".split()
    assert list(row_of(kind)) == fields
    assert row_of(kind, value=None, weight=0.0)["value"] is None  # cannot judge


def test_a_tie_has_a_weight_and_no_value() -> None:
    assert row_of("pair", value=None)["weight"] == 1.0


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        ("pair", {"value": 2}, "value=2"),
        ("pair", {"value": True}, "value=True"),
        ("rank", {"value": [1]}, "value=[1]"),
        ("rank", {"value": [1, True]}, "value=[1, True]"),
        ("rank", {"value": [2, 3]}, "value=[2, 3]"),
        ("rating", {"value": float("nan")}, "value=nan"),
        ("rating", {"value": True}, "value=True"),
        ("thumb", {"value": 1}, "value=1"),
        ("thumb", {"value": None}, "value=None"),
        ("thumb", {"strength": 1}, "strength=1"),
        ("edit", {"value": " "}, "value=' '"),
        ("text", {"value": [{"role": "user"}]}, "value="),
        ("pair", {"shown_order": [0, 0]}, "shown_order=[0, 0]"),
        ("pair", {"shown_order": [1]}, "shown_order=[1]"),
        ("pair", {"strength": 4}, "strength=4"),
        ("pair", {"weight": -1.0}, "weight=-1.0"),
        ("pair", {"weight": float("inf")}, "weight=inf"),
        ("pair", {"weight": True}, "weight=True"),
        ("pair", {"noise": 1.5}, "noise=1.5"),
        ("pair", {"seconds": "3"}, "seconds='3'"),
        ("pair", {"source": "cat"}, "source='cat'"),
        ("pair", {"annotator": " "}, "annotator=' '"),
        ("pair", {"reason": 3}, "reason=3"),
        ("pair", {"created_at": "yesterday"}, "created_at='yesterday'"),
        ("pair", {"source": "implicit", "value": None, "weight": 0.0}, "value=None"),
    ],
)
def test_a_field_that_is_wrong_is_named(kind: str, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        row_of(kind, **fields)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"version": 2}, "version=2 must be at most 1"),
        ({"version": True}, "version=True"),
        ({"kind": "star"}, "kind='star'"),
        ({"kind": ["pair"]}, "kind=['pair']"),
        ({"kind": "thumb", "value": True}, "completions="),
        ({"prompt": []}, "prompt=[]"),
        ({"completions": ["one", "two"]}, "completions=['one', 'two']"),
        ({"completions": [{"content": None, "run": None}] * 2}, "completions="),
        ({"stars": 3}, "stars is no field"),
    ],
)
def test_a_row_of_a_foreign_file_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        check_row(row_of() | fields)
    assert told in str(error.value)


def test_all_wrong_fields_are_told_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"aspect=''.*weight=None.*created_at=3.*\.$"):
        check_row(row_of() | {"aspect": "", "weight": None, "created_at": 3})
    with pytest.raises(UserError, match="id is missing; item is missing"):
        check_row({name: one for name, one in row_of().items() if name not in ("id", "item")})
    with pytest.raises(UserError, match="'x' is no row"):
        check_row("x")


def test_what_is_superseded_withdrawn_or_not_judged_does_not_hold() -> None:
    first = row_of(id="a")
    second = row_of(id="b", value=0, supersedes="a")
    other, gone = row_of(id="c"), row_of(id="d", value=None, weight=0.0, supersedes="c")
    tie, implicit = row_of(id="e", value=None), row_of(id="f", source="implicit", weight=0.0)
    kept = current([first, second, other, gone, tie, implicit, row_of(value=None, weight=0.0)])
    assert [row["id"] for row in kept] == ["b", "e", "f"]


def test_an_item_is_named_by_its_content() -> None:
    assert item_id("a", ["b", "c"]) == item_id("a", ["b", "c"]) != item_id("a", ["c", "b"])
    assert len(item_id(TURNS, ["\ud800"])) == 16


def test_rows_and_agreement_are_light_to_import() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'sklearn', 'scipy'}"
    code = f"import sys, recipes.lib.feedback.agreement; print({heavy} & {{*sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
