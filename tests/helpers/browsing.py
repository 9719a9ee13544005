"""Somebody who answers in a real Chromium, by keys: prefers the tale with the better gold score.

BROWSER="python -m tests.helpers.browsing %s" rlhf quickstart --people
"""

import shutil
import sys
import tempfile
import time

from recipes.lib.tasks.tales import gold_scores
from tests.helpers.devtools import Browser

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
PATIENCE = 600.0  # seconds for completions to come
TEXTS = "[...document.querySelectorAll('#completions .text')].map(e => e.innerText)"
PROMPT = "document.querySelector('#prompt .text').innerText"
IS_ASKED = "document.body.className.startsWith('pair')"
IS_DONE = "document.body.innerText.includes('All done')"
COUNT = "document.getElementById('count').textContent"


def answer_all(page: str, seconds: float) -> None:
    """Answer pairs on the page until it says that all is done.

    Args:
        page: Its address.
        seconds: To think about each.
    """
    profile = tempfile.mkdtemp()
    browser = Browser([str(shutil.which("chromium")), *FLAGS, f"--user-data-dir={profile}"])
    browser.open(page)
    end = time.monotonic() + PATIENCE
    while not browser.ask(IS_DONE) and time.monotonic() < end:
        if not browser.ask(IS_ASKED):
            time.sleep(0.2)
            continue
        prompt, texts = browser.ask(PROMPT), browser.ask(TEXTS)
        asked = [[{"role": "user", "content": prompt}]] * 2
        said = [[{"role": "assistant", "content": text}] for text in texts]
        first, second = gold_scores(asked, said)
        time.sleep(seconds)
        browser.press("1" if first >= second else "2")
        end = time.monotonic() + PATIENCE
    browser.close()
    shutil.rmtree(profile, ignore_errors=True)


if __name__ == "__main__":
    answer_all(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
