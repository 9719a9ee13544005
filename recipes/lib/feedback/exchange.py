"""Answers to and from files: what recipes train on, and what other tools write.

Whatever a reader makes of a record are answers: mappings of kind, prompt, completions and value,
and perhaps further fields of a row; `_complete` makes rows of them. A record that was written here
carries its row along, which is taken where the answer is still that one.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from recipes.lib.data.file_rows import READ_ERRORS, read_text
from recipes.lib.data.problems import PLACE
from recipes.lib.data.reading import FEEDBACK_FILES
from recipes.lib.data.row_checks import row_fault, value_fault
from recipes.lib.errors import UserError, first_line, note
from recipes.lib.feedback.rows import Row, as_completions, check_row, current, item_id, make_row
from recipes.lib.rewards.loading import load_function
from recipes.lib.runs.files import write_json, write_jsonl

ANSWERS = "answers.jsonl"
ENDINGS = ("csv", "parquet", "argilla.json", "label-studio.json")  # of other formats
# Names of the field that is the prompt; else it is the first.
PROMPTS = ("prompt", "instruction", "question", "request", "input", "query")
LIKED = {"true": True, "yes": True, "good": True, "false": False, "no": False, "bad": False}
TIE = "tie"
KEPT = "feedback_row"  # where other tools' records carry the row they were made of
STRUCTURED = ("prompt", "completions", "shown_order", "value")  # JSON in a column of Parquet
TYPED = ("completions", "ranks", "rating", "weight", "noise")  # JSON in anybody's table
FORMULA = tuple("=+-@\t\r")  # what a spreadsheet would compute


def training_rows(rows: Iterable[Row]) -> dict[str, list[dict[str, Any]]]:
    """What can be trained on, of answers that have a weight.

    Args:
        rows: Answers that hold.

    Returns:
        Rows by the name of their file: preference (pairs without ties, also out of rankings and
        edits), unpaired_preference, prompt_completion (texts and edits), ranks (all comparisons,
        pairs and edits as rankings of two, ties with equal ranks), ratings. Of preference and
        thumbs those of the aspect overall; ranks of another have it in a column. A column weight
        where not all are 1.
    """
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in FEEDBACK_FILES}
    bad = set[str]()
    for row in rows:
        for name, columns in _columns(row) if row["weight"] > 0 else ():
            spoken = ("prompt", "chosen", "rejected", "completion", "completions", "ranks")
            if row_fault({key: columns[key] for key in spoken if key in columns}) is None:
                made[name].append({"prompt": row["prompt"], **columns, "weight": row["weight"]})
            else:
                bad.add(row["id"])
    if bad:
        note(f"{len(bad)} rows are not exported for training: a text is empty, or both are equal.")
    for found in made.values():
        if all(one["weight"] == 1 for one in found):
            for one in found:
                del one["weight"]
    return {name: found for name, found in made.items() if found}


def _columns(row: Row) -> Iterator[tuple[str, dict[str, Any]]]:
    prompt, value, kind = row["prompt"], row["value"], row["kind"]
    said = [_as_answer(prompt, one["content"]) for one in row["completions"]]
    is_overall = row["aspect"] == "overall"
    about = {} if is_overall else {"aspect": row["aspect"]}
    if kind in ("edit", "text"):
        new = _as_answer(prompt, value)
        yield "prompt_completion", {"completion": new}
        if kind == "edit":
            yield "preference", {"prompt": prompt, "chosen": new, "rejected": said[0]}
            yield "ranks", {"completions": [new, said[0]], "ranks": [1, 2]} | about
    elif kind == "rating":
        who = {"annotator": row["annotator"], "aspect": row["aspect"]}
        yield "ratings", {"completion": said[0], "rating": value, **who}
    elif kind == "thumb" and is_overall:
        yield "unpaired_preference", {"completion": said[0], "label": value}
    if kind in ("pair", "rank"):
        tied = value is None
        ranks = value if kind == "rank" else [1 if tied or n == value else 2 for n in (0, 1)]
        full = [place for place, one in enumerate(said) if value_fault(one) is None]
        full = full if len(full) > 1 else list(range(len(said)))  # which is told to be bad
        texts, of_them = [said[place] for place in full], [ranks[place] for place in full]
        yield "ranks", {"completions": texts, "ranks": of_them} | about
    if kind in ("pair", "rank") and is_overall and value is not None:
        for one, rank in zip(said, ranks, strict=True):
            for other, behind in zip(said, ranks, strict=True):
                if rank < behind:
                    yield "preference", {"prompt": prompt, "chosen": one, "rejected": other}


def _as_answer(prompt: Any, content: Any) -> Any:
    """A completion in the form of its prompt."""
    if isinstance(prompt, str) or not isinstance(content, str):
        return content
    return [{"role": "assistant", "content": content}]


def write_pairs(
    folder: Path, rows: Sequence[Row], held_out: Container[str], *, may_tie: bool
) -> dict[str, Any]:
    """Write train.jsonl, or for raters who tie an export, and test.jsonl; also numbers."""
    made = training_rows(row for row in rows if row["item"] not in held_out)
    files = made if may_tie else {"train": made.get("preference", [])}
    test = test_rows(rows, held_out)
    if not test:
        raise UserError("annotators: every test pair is a tie; lower tie, or raise test_fraction.")
    folder.mkdir(exist_ok=True)
    for name, found in (files | {"test": test}).items():
        write_jsonl(folder / f"{name}.jsonl", found)
    num_train = max(map(len, files.values()), default=0)
    numbers = {"num_pairs": len(rows), "num_train": num_train, "num_test": len(test)}
    known = [pair["noise"] for pair in test if "noise" in pair]
    return numbers | ({"accuracy_ceiling": 1 - sum(known) / len(test)} if known else {})


def test_rows(rows: Iterable[Row], held_out: Container[str]) -> list[dict[str, Any]]:
    """Pairs of the items that are held out, with the noise of their labels where it is known."""
    return [
        pair | ({} if row["noise"] is None else {"noise": row["noise"]})
        for row in rows
        if row["item"] in held_out
        for pair in training_rows([row]).get("preference", [])
    ]


def write_answers(
    rows: Iterable[Row], folder: Path, format: str = "trl", held_out: Container[str] = ()
) -> dict[str, int]:
    """Write the answers that hold.

    Args:
        rows: All rows of a project.
        folder: Where; trl deletes the files of earlier exports, in all formats.
        format: trl (answers.jsonl, and in final/ what recipes train on), argilla, label-studio, csv
            or parquet.
        held_out: Items that nothing trains on; their pairs are final/test.jsonl.

    Returns:
        Number of rows by file.
    """
    held = current(rows)
    path = folder / f"answers.{format}{'' if format in ENDINGS else '.json'}"
    if format == "trl":
        made = training_rows(row for row in held if row["item"] not in held_out)
        if test := test_rows(held, held_out):
            made["test"] = test
        (folder / "final").mkdir(parents=True, exist_ok=True)
        for name, found in made.items():
            write_jsonl(folder / "final" / f"{name}.jsonl", found)
        write_jsonl(folder / ANSWERS, held)
        gone = [f"final/{name}.jsonl" for name in (*FEEDBACK_FILES, "test") if name not in made]
        gone += [f"answers.{ending}" for ending in ENDINGS]
        left = [*folder.glob(".answers.*.tmp"), *folder.glob("final/.*.tmp")]  # of a kill
        for old in (*map(folder.joinpath, gone), *left):  # which may hold what was forgotten
            old.unlink(missing_ok=True)
        return {name: len(found) for name, found in made.items()} | {"answers": len(held)}
    if format == "parquet":
        import pyarrow
        from pyarrow import parquet

        cells = [row | {name: _cell(row[name]) for name in STRUCTURED} for row in held]
        parquet.write_table(pyarrow.Table.from_pylist(cells), path)
    elif format == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(held[0] if held else ())
            table.writerows([_cell(value) for value in row.values()] for row in held)
    else:
        write = _argilla if format == "argilla" else _label_studio
        write_json(path, [write(row) for row in held])
    return {"answers": len(held)}


def read_answers(path: Path, mapping: str | None = None) -> list[Row]:
    """Read answers from a file.

    Args:
        path: .json, .jsonl, .csv or .parquet, of this project, of TRL's formats, Argilla or Label
            Studio; or a folder that was exported to.
        mapping: file.py:function, which makes a list of answers of one record of any other file.

    Returns:
        Rows; the same file gives the same ids. Who has no name is called imported.

    Raises:
        UserError: The file cannot be read, or a record is not what it should be.
    """
    path = path / ANSWERS if path.is_dir() else path
    try:
        records = _records(path)
    except READ_ERRORS as error:
        told = first_line(error).replace(", or set on_bad_rows=drop", "").rstrip(".")
        raise UserError(f"names={path}: cannot be read ({told}).") from error
    read: Callable[[Any], Iterable[Row]] = load_function(mapping) if mapping else _answers_of
    rows, file = [], sha256(path.read_bytes()).hexdigest()
    for number, record in enumerate(records):
        try:
            answers = list(read(record))
            rows += [_complete(one, [file, number, place]) for place, one in enumerate(answers)]
        except (UserError, *READ_ERRORS, AttributeError) as error:
            told = str(error) if isinstance(error, UserError) else repr(error)
            raise UserError(f"names={path}: record {number} (counted from 0): {told}") from error
    return rows


def _records(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        rows, own = parquet.read_table(path).to_pylist(), STRUCTURED
    else:
        rows = [{k: v for k, v in row.items() if k != PLACE} for row in read_text(path)]
        own = tuple(rows[0]) if rows else ()
    if path.suffix not in (".csv", ".parquet"):
        return rows
    return [
        row
        | {name: _parsed(row[name]) for name in (own if "version" in row else TYPED) if name in row}
        for row in rows
    ]


def _cell(value: Any) -> Any:
    """Text as it is, where that is not read as something else; all other values as JSON."""
    if isinstance(value, str) and _parsed(value) == value and not value.startswith(FORMULA):
        return value
    return json.dumps(value, ensure_ascii=False)


def _parsed(cell: Any) -> Any:
    try:
        return json.loads(cell)
    except (TypeError, ValueError, RecursionError):
        return cell


def _complete(answer: Row, place: list[Any]) -> Row:
    if "version" in answer:
        check_row(answer)
        return answer
    said = as_completions(answer.get("completions", ()))
    contents = [one["content"] for one in said]
    item = {"prompt": answer.get("prompt"), "completions": said}
    item["id"] = answer.get("item") or item_id(item["prompt"], contents)
    others = {key: value for key, value in answer.items() if key not in (*item, "item")}
    unnamed = {"annotator": "imported", "source": "human", "id": item_id(place, [answer])}
    return make_row(item, **unnamed | others)


def _answers_of(record: Row) -> Iterable[Row]:
    if {"version", "item", "kind"} <= {*record}:
        return [record]
    if "fields" in record and "responses" in record:
        return _from_argilla(record)
    if "data" in record and "annotations" in record:
        return _from_label_studio(record)
    return [_from_trl(record)]


def _from_trl(record: Row) -> Row:
    beside = ("prompt", "weight", "annotator", "aspect", "noise")
    found = {name: record[name] for name in beside if record.get(name) is not None}
    if "chosen" in record and "rejected" in record:
        sides = [record["chosen"], record["rejected"]]
        if "prompt" not in found and all(isinstance(side, list) for side in sides):
            same = 0
            while same < min(map(len, sides)) - 1 and sides[0][same] == sides[1][same]:
                same += 1
            found["prompt"], sides = sides[0][:same], [side[same:] for side in sides]
        return found | {"kind": "pair", "completions": sides, "value": 0}
    if "completions" in record and "ranks" in record:
        said = record["completions"]
        return found | {"kind": "rank", "completions": said, "value": record["ranks"]}
    for kind, column in (("rating", "rating"), ("thumb", "label"), ("text", "completion")):
        if "completion" in record and column in record:
            said, value = [record["completion"]] if kind != "text" else [], record[column]
            value = bool(value) if kind == "thumb" and value in (0, 1) else value
            return found | {"kind": kind, "completions": said, "value": value}
    raise UserError(
        f"the fields {', '.join(map(str, record))} are of no known format; say what they are with "
        "mapping."
    )


def _fields_of(row: Row) -> dict[str, Any]:
    said = {f"completion_{n}": one["content"] for n, one in enumerate(row["completions"], 1)}
    return {"prompt": row["prompt"], **said}


def _simple(row: Row, names: Sequence[str]) -> Any:
    """A value as other tools have it, that name completions."""
    kind, value = row["kind"], row["value"]
    if kind == "pair":
        return TIE if value is None else names[value]
    if kind == "rank":
        return [{"value": name, "rank": n} for name, n in zip(names, value, strict=True)]
    if kind == "thumb":
        return "yes" if value else "no"
    return value if isinstance(value, (str, int, float)) else json.dumps(value, ensure_ascii=False)


def _argilla(row: Row) -> Row:
    fields = _fields_of(row)
    question = row["aspect"] if row["kind"] == "rating" else row["kind"]
    answer = {"value": _simple(row, [*fields][1:]), "user_id": row["annotator"]}
    return {
        "id": row["id"],
        "fields": fields,
        "metadata": {KEPT: json.dumps(row, ensure_ascii=False)},
        "suggestions": {},
        "responses": {question: [answer]},
        "vectors": {},
    }


def _from_argilla(record: Row) -> Iterator[Row]:
    kept = json.loads((record.get("metadata") or {}).get(KEPT, "null"))
    responses = record["responses"] or {}
    if kept is not None and _argilla(kept)["responses"] == responses:
        yield kept
        return
    for question, answers in responses.items():
        for one in answers:
            if one["value"] is not None:
                who = str(one.get("user_id") or "imported")
                answer = _answer(record["fields"], question, one["value"])
                yield answer | {"annotator": who} | _instead(kept, who)


def _label_studio(row: Row) -> Row:
    fields, value, kind = _fields_of(row), row["value"], row["kind"]
    names = [*fields][1:]
    simple = _simple(row, names)
    tool: str = "textarea"
    found: dict[str, Any] = {"text": [simple]}
    if kind == "rank":
        order = sorted(range(len(names)), key=lambda place: value[place])
        tool, found = "ranker", {"ranker": [names[place] for place in order]}
    elif kind == "rating":
        tool, found = "rating", {"rating": value}
    elif kind == "thumb" or value is None:
        tool, found = "choices", {"choices": [simple]}
    elif kind == "pair":
        tool, found = "pairwise", {"selected": "right" if value else "left"}
    name = row["aspect"] if kind == "rating" else kind
    result = {"from_name": name, "to_name": ",".join(names), "type": tool, "value": found}
    annotation = {"completed_by": row["annotator"], "result": [result]}
    annotation |= {"lead_time": row["seconds"], "created_at": row["created_at"]}
    return {"data": fields, "annotations": [annotation], "meta": {KEPT: row}}


def _from_label_studio(record: Row) -> Iterator[Row]:
    kept = (record.get("meta") or {}).get(KEPT)
    if kept is not None and _label_studio(kept)["annotations"] == record["annotations"]:
        yield kept
        return
    for annotation in record["annotations"]:
        who = annotation.get("completed_by")
        who = who.get("email") or who.get("id") if isinstance(who, dict) else who
        about = {"annotator": str(who or "imported"), "seconds": annotation.get("lead_time")}
        for result in () if annotation.get("was_cancelled") else annotation["result"]:
            question, value = result["from_name"], result["value"]
            _, said = _layout(record["data"])
            simple = next(iter(value.values()))
            if result["type"] == "pairwise":
                simple = [*said][simple == "right"]
            elif result["type"] in ("choices", "textarea"):
                question = "text" if result["type"] == "textarea" else question
                simple = simple[0] if isinstance(simple, list) else simple
            elif isinstance(simple, dict):  # a ranker with buckets
                simple = [name for bucket in simple.values() for name in bucket]
            answer = _answer(record["data"], question, simple)
            yield answer | about | _instead(kept, about["annotator"])


def _instead(kept: Row | None, annotator: str) -> Row:
    """What an answer that somebody changed elsewhere takes the place of."""
    return {"supersedes": kept["id"]} if kept and kept["annotator"] == annotator else {}


def _layout(fields: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The prompt, and completions by name."""
    first = next((name for name in PROMPTS if name in fields), next(iter(fields)))
    said: dict[str, Any] = {}
    for name, content in fields.items():
        if isinstance(content, list) and content and "id" in content[0]:  # a ranker's items
            said |= {str(one["id"]): one.get("body") or one.get("html") for one in content}
        elif name != first and isinstance(content, (str, list)):
            said[name] = content
    return fields[first], said


def _answer(fields: Mapping[str, Any], question: str, value: Any) -> Row:
    """What somebody answered to a question about fields."""
    prompt, said = _layout(fields)
    by_name = {re.sub(r"\W|_", "", name.lower()): n for n, name in enumerate(said)}

    def place(name: Any) -> int | None:
        return by_name.get(re.sub(r"\W|_", "", str(name).lower()))

    found = {"prompt": prompt, "completions": list(said.values())}
    if isinstance(value, list):
        ranks = {
            place(name): rank
            for n, one in enumerate(value, 1)
            for name, rank in [(one["value"], one["rank"]) if isinstance(one, dict) else (one, n)]
        }
        return found | {"kind": "rank", "value": [ranks.get(n) for n in range(len(said))]}
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = re.search(r"\d+$", question)  # rating_2 of several
        if number and len(said) > 1:
            found["completions"] = found["completions"][int(number[0]) - 1 :][:1]
        return found | {"kind": "rating", "value": value, "aspect": question}
    text = str(value)
    if question not in ("edit", "text"):
        if text.lower() in LIKED:
            return found | {"kind": "thumb", "value": LIKED[text.lower()]}
        if place(text) is not None or text.lower() == TIE:
            return found | {"kind": "pair", "value": place(text)}
    return found | {"kind": "edit" if len(said) == 1 else "text", "value": text}
