#!/usr/bin/env python3
"""PPO, RLOO, GRPO, DPO and KTO from the same SFT model of the quickstart; writes a page.

First run ./scripts/quickstart; then `.venv/bin/python scripts/bench/ppo/methods_on_tales.py` has
`rlhf compare --methods` train each with a third, once and three times the learning rate of its YAML
in configs/quickstart/, one seed, and judge them by the hidden true score. Writes
docs/benchmarks/methods.md. About half an hour on one core; a run that is done is not run again, and
--methods runs two of them or more, without the page.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes import compare  # noqa: E402
from recipes.lib.config.strict_yaml import read_yaml  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.report.run_files import read_json  # noqa: E402
from recipes.lib.runs.files import write_text  # noqa: E402
from recipes.lib.runs.folder import config_text  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first

FACTORS = {"third": 1 / 3, "once": 1.0, "thrice": 3.0}
QUICKSTART = ROOT / "configs/quickstart"


def rows(label: str, methods: list[str]) -> dict[str, str]:
    """Train and judge the methods with one factor on their learning rates; a line for each."""
    configs = ROOT / f"runs/methods-{label}"
    configs.mkdir(parents=True, exist_ok=True)
    shutil.copy(QUICKSTART / "evaluate.yaml", configs)
    rates = {}
    for name in methods:
        values = read_yaml(QUICKSTART / f"{name}.yaml").values | {"disable_tqdm": True}
        rates[name] = values["learning_rate"] = values["learning_rate"] * FACTORS[label]
        write_text(configs / f"{name}.yaml", f"# {name}: {label}.\n{config_text(values)}")
    given = {"methods": methods, "configs": str(configs), "overwrite": True}
    told = compare.run(
        parse("compare", [], given | {"output_dir": f"runs/compare/methods-{label}"})
    )
    made = {}
    for name in methods:
        rate, low, high = told["win_rate"][name]
        seconds = read_json(Path(told["runs"][name]) / "summary.json")["seconds"]
        made[name] = (
            f"| {name} | {rates[name]:.2g} | {told['score'][name]:.2f} | {rate:.3f} ({low:.3f} to "
            f"{high:.3f}) | {told['kl'][name]:.1f} | {seconds:.0f} |"
        )
    return made


def main() -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=compare.METHODS, help="without the page")
    asked = parser.parse_args().methods
    os.chdir(ROOT)
    hush()
    methods = asked or [*compare.METHODS]
    made = [rows(label, methods) for label in FACTORS]
    lines = "\n".join(one[name] for name in methods for one in made)
    print(lines)
    if not asked:
        command = ".venv/bin/python scripts/bench/ppo/methods_on_tales.py"
        page = PAGE_TEXT.format(conditions=conditions(command), rows=lines)
        (ROOT / "docs/benchmarks/methods.md").write_text(page)
    return 0


PAGE_TEXT = """# Methods on the quickstart's task

{conditions}

All start from the SFT model of the quickstart and train on 2,304 completions: PPO, RLOO and GRPO
sample them against its reward model, DPO reads half as many of its pairs, KTO as many of their
texts. One seed; three learning rates each, all shown. True score (the hidden gold score, which none
of them reads) and win rate against SFT on 512 prompts that no stage trained on, with the 95 %
bootstrap interval; KL in nats per completion.

| method | learning rate | true score | win rate | KL | seconds |
|---|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    raise SystemExit(main())
