"""All checks of one reward model, and check.json."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from recipes.lib.doctor.findings import (
    FAULT,
    FINE,
    NOT_CHECKED,
    REMARK,
    Finding,
    NotCheckedError,
    texts,
)
from recipes.lib.errors import FaultError, one_sentence
from recipes.lib.models.folders import resolve_model
from recipes.lib.report.run_files import read_json
from recipes.lib.runs.files import write_json
from recipes.lib.runs.settings import run_of
from recipes.lib.verbosity import short_bars_hidden

FILE = "check.json"


def checks() -> dict[str, Callable[[Any], Finding]]:
    """The checks by name, causes before what they bring about: the first fault is the diagnosis."""
    from recipes.lib.doctor import leakage, learned, likes, paths, saved

    every = (
        *(saved.head_not_saved, saved.template, saved.outputs_mixed_up, saved.recorded_scores),
        *(learned.no_eos, likes.length_only, saved.random_head),
        *(paths.last_column, paths.left_padding, paths.pipeline, paths.merged_and_shared),
        *(paths.fewer_bits, leakage.leaked_rows, leakage.near_duplicates),
        *(leakage.prompts_on_both_sides, likes.prompt_ignored),
        *(learned.wrong_labels, learned.learned_nothing, learned.calibration),
        *(likes.style, likes.odd_texts, likes.suffix),
    )
    return {check.__name__: check for check in every}


def check_up(subject: Any) -> dict[str, Any]:
    """Ask every check.

    Args:
        subject: A reward model with what is known of it.

    Returns:
        What check.json holds: status (the gravest), hash of the files, seconds, findings.
    """
    start, findings = time.monotonic(), []
    for name, check in checks().items():
        try:
            findings.append(check(subject))
            continue
        except NotCheckedError as error:
            said = str(error)
        except Exception as error:  # a model that a check does not understand may be sound
            said = f"it failed ({type(error).__name__}: {one_sentence(error)[:200]})"
        findings.append({"name": name, "status": NOT_CHECKED, "sentence": f"not checked: {said}"})
    return _report(subject.path, findings, time.monotonic() - start)


def _report(path: str, findings: list[Finding], seconds: float = 0.0) -> dict[str, Any]:
    found = {finding["status"] for finding in findings}
    status = next((grave for grave in (FAULT, REMARK) if grave in found), FINE)
    whole: dict[str, Any] = {"status": status, "model": hash_of(path), "checks": version()}
    whole |= {"seconds": round(seconds, 1)}
    return whole | {"findings": findings}


def version() -> str:
    """Hash of the limits and words of the checks: an answer of other ones is asked for again."""
    return hashlib.sha256(json.dumps(texts(), sort_keys=True).encode()).hexdigest()[:12]


def hash_of(path: str) -> str | None:
    """Hash of all files of a model folder: weights, configuration, tokenizer; None of a Hub id."""
    if not Path(path).is_dir():
        return None
    every = hashlib.sha256()
    for file in sorted(file for file in Path(path).iterdir() if file.is_file()):
        with file.open("rb") as opened:
            every.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return every.hexdigest()


def look(
    name: str,
    rows: Any = None,
    size: int = 32,
    *,
    trusted: bool = False,
    anew: bool = True,
    is_own: bool = True,
) -> dict[str, Any]:
    """Check a saved reward model and keep the answer beside its run's summary.

    Args:
        name: Run, folder or Hub id.
        rows: Training and test rows; None for those of its run.
        size: Texts at a time.
        trusted: Whether code beside the model may run.
        anew: Whether it is asked again where there is an answer of these very weights.
        is_own: Whether the rows are those of its training.

    Returns:
        What check.json holds; where it cannot be written, it is not kept.

    Raises:
        UserError: It cannot be loaded.
        MemoryError: It is large, and nobody asked for it.
    """
    from recipes.lib.doctor.saved import missing_head
    from recipes.lib.doctor.subject import examine

    path = resolve_model(name)
    run = run_of(path)
    if run is not None and not anew:
        with suppress(ValueError):  # it was cut short
            kept = read_json(run / FILE)
            if kept and (kept["model"], kept.get("checks")) == (hash_of(path), version()):
                return kept
    if (headless := missing_head(path)) is not None:
        report = _report(path, [headless])
    else:
        with short_bars_hidden():  # of the loads that the checks compare
            if not anew:
                _refuse_large(path, trusted)
            report = check_up(examine(name, rows, size, trusted=trusted, is_own=is_own))
    if run is not None:
        with suppress(OSError):
            write_json(run / FILE, report)
    return report


def _refuse_large(path: str, trusted: bool) -> None:
    """Leave out a model that would take more than half of the memory here, in 32 bits."""
    from trl import ModelConfig

    from recipes.lib.plan.breakdown import memory_text
    from recipes.lib.plan.check import card_memory, machine_memory
    from recipes.lib.plan.meta_models import classifier, model_bytes
    from recipes.lib.plan.model_shapes import find_source

    try:
        shape = find_source(path).config(trusted)
        size = model_bytes(classifier(shape, ModelConfig(dtype="float32"), trusted))
    except Exception:  # a model that the plan does not understand may be sound
        return
    room = min(filter(None, (machine_memory(), card_memory())), default=2 * size)
    if 2 * size > room:
        raise MemoryError(f"in 32 bits it takes {memory_text(size)} of {memory_text(room)} here")


def refuse(report: dict[str, Any], name: str, beside: str = "") -> None:
    """Stop at the first fault of a report.

    Args:
        report: What check.json holds.
        name: The reward model.
        beside: What else can be done.

    Raises:
        FaultError: There is one.
    """
    faults = [row for row in report.get("findings", ()) if row["status"] == FAULT]
    if faults:
        first, more = faults[0], f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        told = f"reward model {name}: {first['name']}: {first['sentence']}{more}"
        raise FaultError(f"{told}; {first['remedy']}{beside}.")


def show(report: dict[str, Any]) -> None:
    """Print a report, a line for each check."""
    for row in report["findings"]:
        known = row.get("statistic") is not None
        number = f" ({row['statistic']:.3g}; limit {row['limit']:.3g})" if known else ""
        sentence = row["sentence"].removeprefix(f"{NOT_CHECKED}: ")
        print(f"{row['status']:<12}{row['name']}: {sentence}{number}")
