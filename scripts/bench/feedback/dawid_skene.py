"""Dawid and Skene's estimates on planted raters, beside the majority and crowd-kit's.

    .venv/bin/python scripts/bench/feedback/dawid_skene.py

crowd-kit brings a hundred megabytes of packages that nothing else here needs, so it has a virtual
environment of its own, with its numbers kept in tests/unit/feedback/crowd_kit.json:

    PYTHONPATH=. crowd-kit-venv/bin/python scripts/bench/feedback/dawid_skene.py --store
"""

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from recipes.lib.feedback.agreement import dawid_skene  # noqa: E402
from tests.helpers.planted_raters import accuracy, majority, planted  # noqa: E402

STORED = ROOT / "tests/unit/feedback/crowd_kit.json"
SEEDS = range(5)


def crowd_kit_accuracy(truth: list[int], found: list[tuple[int, int, int]]) -> float:
    """Accuracy of crowd-kit's estimates."""
    import pandas
    from crowdkit.aggregation import DawidSkene

    table = pandas.DataFrame(found, columns=["task", "worker", "label"])
    return accuracy(truth, list(DawidSkene(n_iter=100).fit_predict(table).sort_index()))


def measure(seed: int) -> dict[str, Any]:
    """Accuracies and seconds on 10,000 labels."""
    truth, found = planted(seed)
    units, raters, labels = map(list, zip(*found, strict=True))
    start = time.perf_counter()
    probabilities, _, _ = dawid_skene(units, raters, labels)
    seconds = time.perf_counter() - start
    ours = accuracy(truth, list(probabilities.argmax(1)))
    row = {"seed": seed, "majority": accuracy(truth, majority(found)), "ours": ours}
    return row | {"seconds": round(seconds, 3)}


def main() -> None:
    """Print a line for each seed; with --store, keep what crowd-kit says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", action="store_true")
    store = parser.parse_args().store
    for seed in SEEDS:
        print(json.dumps(measure(seed)))
    if store:
        names = ("crowd-kit", "numpy", "pandas")
        rows = {str(seed): crowd_kit_accuracy(*planted(seed)) for seed in SEEDS}
        kept = {"versions": {name: version(name) for name in names}, "accuracy": rows}
        STORED.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
