"""The feedback page in Chromium: 200 answers of 10,000 items by real keys, and what they cost.

    .venv/bin/python scripts/bench/feedback/page.py

Prints the lines of docs/benchmarks/feedback.md. A key is pressed 0.2 s after the next item is
painted, faster than anybody reads, and in a second round at once, so that it waits for the server.
The time goes from the browser's event to the first moment after a frame with another item in it.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from recipes.lib.feedback.store import Store  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402
from tests.helpers.devtools import Browser  # noqa: E402
from tests.helpers.feedback_server import Server, item  # noqa: E402

NUM_ITEMS, NUM_ANSWERS, NUM_STARTS = 10_000, 200, 5
PAUSE = 0.2  # seconds
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
TEXT = "It is carried in refrigerated tanks, and it is poisonous when inhaled. " * 6
WATCH = """
window.painted = [];
addEventListener("keydown", (event) => { window.pressed = event.timeStamp; }, true);
const prompt = document.getElementById("prompt");
let before = prompt.textContent;
new MutationObserver(() => {
  if (prompt.textContent === before) return;
  before = prompt.textContent;
  requestAnimationFrame(() => {
    const channel = new MessageChannel();  // its message comes after the frame
    channel.port1.onmessage = () => painted.push(performance.now() - pressed);
    channel.port2.postMessage(0);
  });
}).observe(prompt, { childList: true });
0
"""


def start_times(database: Path) -> list[tuple[float, float]]:
    """Seconds from starting the server's process to the page, of the clock and of CPU."""
    times = []
    for _ in range(NUM_STARTS):
        start = time.perf_counter()
        server = Server(database)
        urllib.request.urlopen(server.address).read()
        seconds = time.perf_counter() - start
        ticks = Path(f"/proc/{server.process.pid}/stat").read_text().split()[13:15]
        times.append((seconds, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")))
        server.kill()
    return times


def peak_memory(process: int) -> float:
    """The most memory a process has held, in MB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def measure(folder: Path) -> dict[str, float]:
    """Answer, and tell all numbers."""
    database = folder / "feedback.db"
    contents = [[f"{side} {n}: {TEXT}" for side in ("one", "two")] for n in range(NUM_ITEMS)]
    Store(database).add_items(item(n, contents=texts) for n, texts in enumerate(contents))
    starts = start_times(database)
    server = Server(database)
    profile = f"--user-data-dir={folder / 'profile'}"
    browser = Browser([str(shutil.which("chromium")), *FLAGS, profile])
    browser.call("Network.enable")
    browser.open(server.address)
    browser.wait_for("document.querySelector('#prompt .text')")
    sent = [e for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    browser.wait_for("document.getElementById('saved').textContent !== ''")
    loaded = [
        e["params"]["encodedDataLength"]
        for e in browser.events
        if e.get("method") == "Network.loadingFinished"
    ]
    browser.call("Network.disable")
    browser.ask(WATCH)
    load = os.getloadavg()[0]
    for number in range(2 * NUM_ANSWERS):
        browser.press("12"[number % 2])
        browser.wait_for(f"painted.length > {number}")
        time.sleep(PAUSE if number < NUM_ANSWERS else 0)
    painted = browser.ask("painted")
    browser.wait_for("document.getElementById('saved').textContent.startsWith('\u2713')")
    memory = peak_memory(server.process.pid)
    browser.close()
    server.kill()
    assert sum(1 for _ in Store(database).rows()) == 2 * NUM_ANSWERS
    cuts, fast = (
        statistics.quantiles(part, n=20) for part in (painted[:NUM_ANSWERS], painted[NUM_ANSWERS:])
    )
    return {
        "p50": cuts[9],
        "p95": cuts[18],
        "slowest": max(painted[:NUM_ANSWERS]),
        "fast p50": fast[9],
        "fast p95": fast[18],
        "memory": memory,
        "start": statistics.median(seconds for seconds, _ in starts),
        "start cpu": statistics.median(seconds for _, seconds in starts),
        "bytes": sum(loaded),
        "requests": len([e for e in sent if e["params"]["request"]["url"] != "data:,"]),
        "load": load,
    }


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        got = measure(Path(folder))
    names = ("starlette", "uvicorn", "sqlalchemy")
    print(conditions(".venv/bin/python scripts/bench/feedback/page.py"))
    print(f"- page: {', '.join(f'{name} {version(name)}' for name in names)}, Chromium headless")
    print(f"- beside it: a load of {got['load']:.1f} on the machine\n")
    print("| what | measured | bar |\n|---|---|---|")
    print(f"| key to next item painted, p50 | {got['p50']:.0f} ms | |")
    print(f"| the same, p95 | {got['p95']:.0f} ms | 60 ms |")
    print(f"| the same, slowest of {NUM_ANSWERS} | {got['slowest']:.0f} ms | |")
    print(f"| pressed at once, p50 and p95 | {got['fast p50']:.0f}, {got['fast p95']:.0f} ms | |")
    print(f"| server's memory at its peak | {got['memory']:.0f} MB | 90 MB |")
    print(f"| cold start to the page, median of {NUM_STARTS} | {got['start']:.2f} s | 1.5 s |")
    print(f"| of it on a CPU | {got['start cpu']:.2f} s | |")
    print(f"| bytes that travel for the page and its first items | {got['bytes']:,.0f} | 20,000 |")
    print(f"| requests for them | {got['requests']:.0f} | 8 |")


if __name__ == "__main__":
    main()
