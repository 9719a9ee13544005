#!/usr/bin/env python3
"""CartPole by PPO of stable-baselines3, from its four numbers and from the bins of the letters.

    .venv/bin/python scripts/bench/environments/cartpole.py --page docs/benchmarks/environments.md

prints the table and writes the section "CartPole by stable-baselines3" of the page. The yardstick
of PPO of a language model there, which reads the same letters. Ten minutes on one core;
the extra [env] has what it needs.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes.lib.runs.files import write_jsonl  # noqa: E402
from recipes.lib.tasks.environments.cartpole import LETTERS, four_letters  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from scripts.bench.environments.classical import table, with_section  # noqa: E402

COMMAND = ".venv/bin/python scripts/bench/environments/cartpole.py --page FILE"
KEPT = ROOT / "runs/worlds/stable-baselines3.jsonl"  # for the picture of worlds.py
STEPS, EVERY, SEEDS = 40_000, 5000, (1, 2, 3)
NOTE = """Its default settings, and the mean return of the episodes that ended within the last 5,000
steps, as it samples. 500 is the most. `letters`: the number of each letter, from -1 to 1.
"""


def from_letters(world: Any) -> Any:
    """CartPole seen through its letters, as the numbers that a small network reads."""
    half = len(LETTERS) / 2
    return gymnasium.wrappers.TransformObservation(
        world,
        lambda seen: np.array([LETTERS.index(c) / half - 1 for c in four_letters(seen)], "f4"),
        gymnasium.spaces.Box(-1, 1, (4,), np.float32),
    )


def curve(see: Callable[[Any], Any], seed: int, steps: int = STEPS) -> list[float]:
    """Mean return of the episodes that ended within each stretch of EVERY steps."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.monitor import Monitor

    world = Monitor(see(gymnasium.make("CartPole-v1")))
    PPO("MlpPolicy", world, seed=seed, device="cpu").learn(steps)
    returns = world.get_episode_rewards()
    ends = np.cumsum(world.get_episode_lengths())
    return [
        float(
            np.mean(
                [total for total, end in zip(returns, ends, strict=True) if 0 <= last - end < EVERY]
            )
        )
        for last in range(EVERY, steps + 1, EVERY)
    ]


def main() -> int:
    """Trains, prints the table, and writes it where a page is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", type=Path)
    page: Path | None = parser.parse_args().page
    rows: list[list[Any]] = []
    for name, see in (("numbers", lambda world: world), ("letters", from_letters)):
        rows += [[name, seed, *map(round, curve(see, seed))] for seed in SEEDS]
        print(*rows[-len(SEEDS) :], sep="\n", flush=True)
    heads = ["seen", "seed", *(f"{n:,}" for n in range(EVERY, STEPS + 1, EVERY))]
    title = "## CartPole by stable-baselines3"
    section = f"{title}\n\n{conditions(COMMAND)}\n\n{NOTE}\n{table(heads, rows)}\n"
    print(section)
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(KEPT, [{"seen": seen, "returns": returns} for seen, _, *returns in rows])
    if page is not None:
        old = page.read_text(encoding="utf-8")
        page.write_text(with_section(old, section), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
