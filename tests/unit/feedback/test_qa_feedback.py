"""The mapping that docs/feedback.md shows brings QA-Feedback in without loss."""

import json
import re
from collections import Counter
from pathlib import Path

from recipes.lib.feedback.agreement import describe
from recipes.lib.feedback.exchange import read_answers, training_rows
from recipes.lib.feedback.rows import current

PAGE = Path(__file__).parents[3] / "docs/feedback.md"


def test_counts_and_spans_are_those_of_the_file(shared: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(# qa_feedback\.py.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "qa_feedback.py").write_text(code)
    path = shared / "data/feedback/qa_feedback_dev.json"
    records = json.loads(path.read_text())
    rows = read_answers(path, f"{tmp_path / 'qa_feedback.py'}:answers")
    kinds = Counter(row["kind"] for row in rows)
    labels = "".join(str(one) for record in records for one in record["preference"])
    told = [record["feedback"] for record in records]
    errors = [error for one in told for error in one["errors"]]
    missing = sum(len(one["missing-info"]) for one in told)
    assert kinds == {
        "pair": len(labels),
        "thumb": len(errors) + missing,
        "edit": len(records),
        "text": len(records),
    }
    values = Counter(row["value"] for row in rows if row["kind"] == "pair")
    assert values == {None: labels.count("0"), 0: labels.count("1"), 1: labels.count("2")}
    spans = [
        (row["completions"][0]["content"], row["aspect"], *json.loads(row["reason"]).values())
        for row in rows
        if row["kind"] == "thumb" and "start" in row["reason"]
    ]
    assert sorted(spans) == sorted(
        (record["prediction 1"], one["error type"], one["explanation"], one["start"], one["end"])
        for record in records
        for one in record["feedback"]["errors"]
    )
    edits = [one["corrected-prediction"] for one in told if one["corrected-prediction"]]
    held = current(rows)
    assert [row["value"] for row in held if row["kind"] == "edit"] == edits
    unchanged = sum(
        record["feedback"]["corrected-prediction"] == record["prediction 1"] for record in records
    )
    made = training_rows(held)
    assert len(made["preference"]) == len(re.findall("[12]", labels)) + len(edits) - unchanged
    assert len(made["prompt_completion"]) == len(records) + len(edits)
    assert describe(rows, {})["annotators"]["imported"]["cannot_judge"] == len(records) - len(edits)
    # As the page says.
    said = (3000, 384, 1373, 842, 487, 13, 500)
    number_empty = len(records) - len(edits)
    found = (len(labels), values[None], len(errors), missing, len(edits), number_empty)
    assert (*found, len(records)) == said
