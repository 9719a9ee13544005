"""The pictures of docs/feedback.md: the page in Chromium, asked about tales.

.venv/bin/python scripts/bench/feedback/pictures.py
"""

import random
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from recipes.lib.feedback.store import Store  # noqa: E402
from recipes.lib.tasks.tales.prompts import draw_facts, request  # noqa: E402
from recipes.lib.tasks.tales.stories import TELLER, tell  # noqa: E402
from tests.helpers.devtools import Browser  # noqa: E402
from tests.helpers.feedback_server import Server, item  # noqa: E402

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
KINDS = {"pair": 2, "phone": 2, "rating": 1}
ASPECTS = {"aspects": ["lively", "true to the request"]}


def main() -> None:
    """Take them."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "feedback.db")
        drawn = zip(KINDS.items(), draw_facts("feedback", len(KINDS), 0), strict=True)
        for number, ((name, count), facts) in enumerate(drawn):
            kind = name.replace("phone", "pair")
            told = [tell(facts, TELLER, rng).text for _ in range(count)]
            more = {"prompt": request(facts, rng)} | (ASPECTS if kind == "rating" else {})
            Store(server.database).add_items([item(number, kind, told, **more)])
        browser = Browser([str(shutil.which("chromium")), *FLAGS, f"--user-data-dir={folder}/user"])
        browser.open(server.address)
        for name in KINDS:
            width, height = (390, 700) if name == "phone" else (1000, 500)
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            browser.call("Emulation.setDeviceMetricsOverride", **size)
            browser.wait_for("document.body.className.includes(' of-')")
            if name == "rating":
                browser.press("4")
            browser.wait_for("document.getElementById('saved').textContent === '\u2713 saved'")
            browser.screenshot(ROOT / "docs/pictures" / f"{name}.png")
            browser.press("x")
        browser.close()
        server.kill()


if __name__ == "__main__":
    main()
