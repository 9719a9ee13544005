#!/usr/bin/env python3
"""Memory and speed on a GPU: four roles on one 4-bit base, beside TRL's PPO, decoding, the plan.

`.venv/bin/python scripts/bench/gpu/gpu.py [--trl112 FOLDER]` takes about a quarter of an hour on
one card and prints its tables last; `--json FILE` keeps the numbers and `--page` writes
docs/benchmarks/gpu.md. FOLDER holds the unpacked wheel of trl 1.12.0. `--tiny` runs the same code
on tiny shapes, on a CPU too.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).parent
sys.path.insert(0, str(ROOT))

from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from scripts.bench.gpu.gpu_files import CARDS, read_file  # noqa: E402

PAGE = ROOT / "docs/benchmarks/gpu.md"
COMMAND = ".venv/bin/python scripts/bench/gpu/gpu.py --trl112 FOLDER --page"
PHASES = ("sampling", "scoring", "training")
MEMORY = ("allocated", "reserved", "device")
PLANNED = ("ppo", "sft, 4 bits", "sft", "reward", "sft, full")
CRITICS = ("adapter", "head")
MISSING = "not yet measured"
MOST_SECONDS = 230  # of a part
Found = dict[str, dict[str, Any]]


def chains(size: str) -> list[dict[str, list[str]]]:
    """Arguments of each part by its name, in chains of which each part waits for the one before.

    The chains run beside each other: memory is counted by process, and one trains at a time.
    """
    by_model: dict[str, dict[str, list[str]]] = {}
    for name in CARDS:
        by_model.setdefault(name.split("/")[1], {})[f"card {name}"] = ["card", size, name]
    planned = {f"plan {case}": ["plan", size, case] for case in PLANNED}
    return [*by_model.values(), planned]


def alone(size: str, trl112: str | None) -> dict[str, list[str]]:
    """Arguments of the parts that have the card to themselves, by their names."""
    # What matters most comes first, because a long run may be cut off.
    found = {f"critic: {kind}": ["versus_ours", size, kind, "graph"] for kind in CRITICS}
    found |= {f"decode {weights}": ["decode", size, weights] for weights in ("bf16", "nf4")}
    if trl112:
        found["TRL 1.12"] = ["versus_trl112", size]
    for epochs, sampler in (("1", "graph"), ("4", "graph"), ("1", "transformers")):
        name = f"four roles, {epochs} epochs, {sampler}"
        found[name] = ["four_roles", size, epochs, sampler]
    return found


class Part:
    """One part in a process of its own, which imports what it needs and waits for its turn."""

    def __init__(self, given: list[str], trl112: str | None) -> None:
        environment = dict(os.environ)
        if given[0] == "versus_trl112":
            environment["PYTHONPATH"] = f"{trl112}{os.pathsep}{environment.get('PYTHONPATH', '')}"
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "gpu_parts.py"), *given],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self) -> dict[str, Any]:
        """Let it run alone on the card; what went wrong is a result too."""
        before, start = used_before(), time.monotonic()
        try:
            said, errors = self.process.communicate("go\n", timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler says where it was
            _, errors = self.process.communicate()
            print(errors[-4000:], file=sys.stderr)
            return {"error": f"not done after {MOST_SECONDS} s"}
        last = (said.strip().splitlines() or [""])[-1]
        if self.process.returncode or not last.startswith("{"):
            print(errors[-4000:], file=sys.stderr)
            return {"error": (errors.strip().splitlines() or ["no output"])[-1][:300]}
        found: dict[str, Any] = json.loads(last)
        return found | {"whole": time.monotonic() - start, "used_before_mib": before}


def used_before() -> str:
    """What is in use on the card, MiB, before a part begins: nothing, if it is ours alone."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def measure(asked: Any, told: Callable[[Found], object]) -> Found:
    """Run all parts, chains beside each other first; `told` hears of each that is done."""
    known = asked.json and asked.json.is_file()
    found: Found = json.loads(asked.json.read_text(encoding="utf-8")) if known else {}
    done = {name for name, part in found.items() if "error" not in part}
    size, one_at_a_time = "tiny" if asked.tiny else "full", Lock()

    def run_chain(chain: dict[str, list[str]]) -> None:
        todo = [(name, given) for name, given in chain.items() if name not in done]
        waiting: Part | None = None
        for number, (name, given) in enumerate(todo):
            part = waiting or Part(given, asked.trl112)
            more = todo[number + 1 : number + 2]
            waiting = Part(more[0][1], asked.trl112) if more else None  # it imports meanwhile
            numbers = part.run()
            with one_at_a_time:
                found[name] = numbers
                print(name, numbers, flush=True)
                told(found)

    beside = chains(size)
    with ThreadPoolExecutor(1 if asked.tiny else len(beside)) as pool:
        list(pool.map(run_chain, beside))
    run_chain(alone(size, asked.trl112))
    return found


def number(value: Any, digits: int = 2, missing: str = MISSING) -> str:
    """A number as it stands in a table."""
    return missing if value is None else f"{value:,.{digits}f}"


def runs_table(found: Found, names: list[str], against: str | None = None) -> list[str]:
    """Seconds by phase and peaks of memory; a part that failed says why."""
    compared = found.get(against or "", {}).get("seconds")
    lines = [
        "| run | seconds | sampling | scoring | training | of TRL 1.12 | allocated | reserved "
        "| device |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        part = found.get(name, {})
        if "error" in part:
            lines.append(f"| {name} | {part['error']} |" + " |" * 7)
            continue
        seconds = part.get("seconds", {})
        whole = sum(seconds[phase] for phase in PHASES) if seconds else None
        base = sum(compared[phase] for phase in PHASES) if compared else None
        ratio = whole / base if whole is not None and base else None
        cells = [whole, *(seconds.get(phase) for phase in PHASES), ratio]
        cells += [part.get("memory", {}).get(kind) for kind in MEMORY]
        missing = "-" if seconds else MISSING
        shown = [number(cell, missing=missing) for cell in cells]
        if seconds:
            shown[0] += f" +- {part['spread']:.2f}"
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return lines


def wholes(found: Found, names: list[str]) -> list[str]:
    """A sentence on how long whole parts took, for what was not done in time."""
    known = [
        f"{name} {found[name]['whole']:.0f} s" for name in names if "whole" in found.get(name, {})
    ]
    return ["", f"With loading and all three iterations: {', '.join(known)}."] if known else []


def decode_table(found: Found) -> list[str]:
    """Tokens per second of each sampler beside the bound."""
    lines = [
        "| weights | rows | transformers | graph | bound | same tokens |",
        "|---|---|---|---|---|---|",
    ]
    for weights in ("bf16", "nf4"):
        part = found.get(f"decode {weights}", {})
        if "error" in part:
            lines.append(f"| {weights} | {part['error']} | | | | |")
        for row in part.get("rows", [{"batch": batch} for batch in (1, 8, 32, 128)]):
            if "error" not in part:
                cells = (row.get(way) for way in ("transformers", "graph", "bound"))
                shown = [number(cell, 0) for cell in cells] + [number(row.get("same"), 3)]
                lines.append(f"| {weights} | {row['batch']} | " + " | ".join(shown) + " |")
    return lines


def compared(part: dict[str, Any]) -> list[str]:
    """What was planned beside what was measured: tensors, and all on the card."""
    planned, measured = part.get("planned", {}), part.get("memory", {})
    cells = []
    for one, other in (("tensors", "allocated"), ("card", "device")):
        said = planned.get(one)
        seen = measured.get("process" if other == "device" and "process" in measured else other)
        error = f"{100 * (said - seen) / seen:+.1f} %" if said and seen else MISSING
        cells += [number(said), number(seen), error]
    return cells


def plan_table(found: Found) -> list[str]:
    """The plan of each case beside its run."""
    lines = [
        "| run | tensors planned | allocated | error | card planned | device | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in PLANNED:
        part = found.get(f"plan {case}", {})
        cells = [part["error"], *[""] * 5] if "error" in part else compared(part)
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return lines


def cards_table(found: Found) -> list[str]:
    """Each shipped configuration for a card: plan, peaks and seconds."""
    lines = [
        "| configuration | GB | tensors planned | allocated | error | card planned | device "
        "| error | reserved | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in CARDS:
        part = found.get(f"card {name}", {})
        if "error" in part:
            cells = [part["error"], *[""] * 7]
        else:
            reserved = number(part.get("memory", {}).get("reserved"))
            cells = [*compared(part), reserved, seconds_of_card(part)]
        lines.append(f"| `{name}` | {read_file(name)[1]} | " + " | ".join(cells) + " |")
    return lines


def seconds_of_card(part: dict[str, Any]) -> str:
    """Seconds of a micro-batch, or of the phases of a rollout."""
    if phases := part.get("phases"):
        times = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in phases.items())
        return f"{times} ({part['rows']} episodes)"
    if "micro" not in part:
        return MISSING
    return (
        f"{part['micro']:.2f} ({part['rows']} rows, {part['tokens'] / part['micro']:,.0f} tokens/s)"
    )


def page(found: Found, about: str) -> str:
    """The tables as a page."""
    roles = [name for name in alone("full", "TRL") if name.startswith("four roles")]
    return "\n".join(
        [
            "# On a GPU",
            "",
            about,
            "",
            "Weights are random, shapes are real. Seconds are those of one rollout and its",
            "updates: mean of two behind a first one, and how far each is from it; memory is in",
            "GiB: what PyTorch allocated and reserved at most, and all that was in use on the",
            "device.",
            "",
            "## Configurations for cards",
            "",
            "Each shipped file as it is (`configs/`), on a model of its shape and rows as long as",
            "it allows, with PyTorch limited to what a card of so many GB has beside CUDA's",
            "context. Planned is what `rlhf plan` says of the file; seconds are those of a",
            "micro-batch, the median behind the first two, or of the second of two rollouts. Only",
            "the memory is limited: speed is that of the GPU named above. Cards run beside each",
            "other, one training at a time while others load: the device column is what the",
            "process used, by NVML, and the seconds are upper bounds.",
            "",
            *cards_table(found),
            "",
            "## Four roles on one 4-bit base",
            "",
            "Llama-3.1-8B's shape in NF4 with double quantization, LoRA 16 on every layer for",
            "policy, value and reward, the reference with adapters off; 16 episodes of 256 + 256",
            "tokens, 4 optimizer steps an epoch, micro-batches of 4, activation checkpointing. To",
            "be met: 10.5 GiB reserved, 11.5 on the device.",
            "",
            *runs_table(found, roles),
            "",
            "## Beside TRL 1.12's PPO",
            "",
            "Qwen3-1.7B's shape in bf16, LoRA 16, a reward model of its own; 32 episodes of 256 +",
            "256 tokens, 4 epochs of one optimizer step, micro-batches of 8. To be met: 0.33 of",
            "TRL's time.",
            "",
            *runs_table(found, ["critic: head", "critic: adapter", "TRL 1.12"], "TRL 1.12"),
            *wholes(found, ["critic: head", "critic: adapter", "TRL 1.12"]),
            "",
            "## Decoding",
            "",
            "Tokens per second of Llama-3.1-8B's shape with a LoRA adapter of rank 16, behind",
            "prompts of 256 tokens; the least of two runs. The bound is that of reading weights",
            "and cache once a step at the bandwidth that a copy on the same device reaches. Both",
            "samplers have the same noise; where rounding turns one token the rest of a row goes",
            "another way.",
            "",
            *decode_table(found),
            "",
            "## The plan",
            "",
            "Runs of the recipes on Qwen3-0.6B's shape in bf16, rows of 1,024 tokens (PPO: 512 +",
            "512), LoRA 16 but where it says full: what `rlhf plan` said, and the peaks. To be",
            "met: 10 %.",
            "",
            *plan_table(found),
        ]
    )


def main() -> int:
    """Measure what is asked for, print the tables last."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--trl112", help="folder of trl 1.12.0; without it that row stays empty")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: does the code run?")
    parser.add_argument(
        "--json", type=Path, help="file for the numbers; what it has already is not measured again"
    )
    parser.add_argument("--page", action="store_true", help="write docs/benchmarks/gpu.md")
    parser.add_argument(
        "--empty", action="store_true", help="measure nothing: the page to be filled"
    )
    asked = parser.parse_args()

    def told(found: Found) -> str:
        about = conditions(COMMAND) if found else f"Not yet measured. The command: `{COMMAND}`"
        text = page(found, about)
        if asked.json:
            asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if asked.page:
            PAGE.write_text(text + "\n", encoding="utf-8")
        return text

    found = {} if asked.empty else measure(asked, told)
    print(told(found))
    return int(any("error" in part for part in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
