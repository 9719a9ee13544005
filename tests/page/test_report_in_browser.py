"""The report pages in a real headless Chromium that can reach no network."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from recipes.lib.report.page import write_quickstart_report, write_report
from tests.helpers import report_runs

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
# No name resolves, and what needs none goes to a port that nobody listens on.
OFFLINE = ["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def browse(page: Path, profile: Path, *flags: str) -> str:
    """What Chromium prints for a page, opened with a fresh profile."""
    shutil.rmtree(profile, ignore_errors=True)
    command = [str(CHROMIUM), *FLAGS, *OFFLINE, f"--user-data-dir={profile}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def screenshot(page: Path, tmp_path: Path, *flags: str, size: str = "1280,1600") -> np.ndarray:
    """The pixels of a page, rows x columns x 3, in 0..1."""
    target = tmp_path / "page.png"
    target.unlink(missing_ok=True)
    browse(page, tmp_path / "profile", f"--screenshot={target}", f"--window-size={size}", *flags)
    return np.asarray(imread(target))[:, :, :3]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a quickstart."""
    return write_quickstart_report(report_runs.quickstart_run(tmp_path_factory.mktemp("runs")))


def test_the_browser_builds_the_whole_page_and_runs_nothing_from_the_texts(
    page: Path, tmp_path: Path
) -> None:
    log = tmp_path / "net.json"
    dom = browse(page, tmp_path / "profile", "--dump-dom", f"--log-net-log={log}")
    assert "<title>RLHF quickstart: From a base model to PPO</title>" in dom
    assert dom.count("<figure") == dom.count("<svg") == page.read_text().count("<figure")
    assert report_runs.CHINESE in dom
    assert "&lt;script&gt;document.title='owned'&lt;/script&gt;" in dom
    assert "example.org" not in log.read_text()


def test_the_log_of_requests_would_show_a_page_that_asks_for_one(tmp_path: Path) -> None:
    page = tmp_path / "asking.html"
    page.write_text(f"<!doctype html><title>asking</title>{report_runs.SCRIPT}")
    log = tmp_path / "net.json"
    dom = browse(page, tmp_path / "profile", "--dump-dom", f"--log-net-log={log}")
    assert "<title>owned</title>" in dom
    assert "example.org" in log.read_text()


def test_the_page_is_drawn_light_and_dark(page: Path, tmp_path: Path) -> None:
    light = screenshot(page, tmp_path)
    dark = screenshot(page, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert light.shape == dark.shape == (1600, 1280, 3)
    for pixels, is_light in ((light, True), (dark, False)):
        brightness = pixels.mean(axis=2)
        background = np.median(brightness)
        assert (background > 0.9) == is_light
        assert (background < 0.15) != is_light
        # Text and lines differ strongly from the background on a few percent of the pixels.
        assert 0.01 < (abs(brightness - background) > 0.4).mean() < 0.2


def test_figures_keep_their_colours_in_both_schemes(tmp_path: Path) -> None:
    page = write_report(report_runs.sft_run(tmp_path / "run"))
    for flags, color in (
        ((), (0x1F, 0x5A, 0xA8)),
        (("--blink-settings=preferredColorScheme=0",), (0x7F, 0xB1, 0xF5)),
    ):
        pixels = screenshot(page, tmp_path, *flags)
        is_series = abs(pixels * 255 - color).max(axis=2) < 3
        assert is_series.sum() > 200, color


def test_nothing_is_wider_than_a_phone(page: Path, tmp_path: Path) -> None:
    # Chromium opens no window of 390 pixels, a frame of that width obeys the same media queries.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<!doctype html><iframe id="f" style="width:390px;height:800px;border:0" '
        f'src="{page.as_uri()}"></iframe><p id="answer"></p><script>'
        "onload = () => { const page = document.getElementById('f').contentDocument;"
        "const columns = getComputedStyle(page.querySelector('.figures')).gridTemplateColumns;"
        "document.getElementById('answer').textContent = JSON.stringify({"
        "width: page.documentElement.scrollWidth, columns: columns.split(' ').length}); };"
        "</script>"
    )
    dom = browse(frame, tmp_path / "profile", "--dump-dom", "--allow-file-access-from-files")
    answer = re.search(r'<p id="answer">(.*?)</p>', dom)
    assert answer is not None
    assert json.loads(answer[1]) == {"width": 390, "columns": 1}


def test_chinese_characters_have_glyphs_of_their_own(tmp_path: Path) -> None:
    fonts = subprocess.run(["fc-list", ":lang=zh"], capture_output=True, text=True, check=True)
    if not fonts.stdout.strip():
        pytest.skip("no Chinese font is installed")
    pictures = []
    for character in "\u732b\u72d7":  # cat and dog: a missing glyph draws the same box for both
        row = {"prompt": character * 8, "reference": "", "completion": ""}
        run = report_runs.write_run(tmp_path / "run", {"recipe": "sft"}, samples=[row])
        pictures.append(screenshot(write_report(run), tmp_path, size="1280,500"))
    differing = (abs(pictures[0] - pictures[1]).max(axis=2) > 0.3).sum()
    assert differing > 300


def test_the_page_prints(page: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.pdf"
    browse(page, tmp_path / "profile", f"--print-to-pdf={target}", "--no-pdf-header-footer")
    content = target.read_bytes()
    assert content.startswith(b"%PDF-")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 12
