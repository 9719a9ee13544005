"""The pages as a whole: what is on them, that it is true, and that it is contained."""

import json
import math
import re
from pathlib import Path

import pytest

from recipes.lib.report.page import write_quickstart_report, write_report
from tests.helpers import report_runs
from tests.helpers.report_html import Page

PPO_FIGURES = [
    "Reward",
    "Distance from the reference",
    "Entropy",
    "Clip fraction",
    "Value loss",
    "Completion length",
]
STAGES = ["base", "sft", "feedback", "reward", "ppo", "evaluate"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quickstart folder in which every page was written."""
    root = report_runs.quickstart_run(tmp_path_factory.mktemp("runs") / "quickstart")
    for stage in STAGES:
        write_report(root / stage)
    write_quickstart_report(root)
    return root


@pytest.fixture(scope="module", params=["", *STAGES])
def page(request: pytest.FixtureRequest, folder: Path) -> Page:
    """Each of the pages in turn."""
    return Page(folder / request.param / "report.html")


@pytest.fixture(scope="module")
def quickstart(folder: Path) -> Page:
    """The page of the quickstart."""
    return Page(folder / "report.html")


def test_a_page_refers_to_nothing_outside_itself(page: Page) -> None:
    tags = {element.tag for element in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for element in page.elements:
        for name, value in element.attributes.items():
            if name in ("value", "aria-label", "content"):
                continue
            assert "//" not in value, (element.tag, name, value)
            assert not re.search(r"url\((?!#)", value), (element.tag, name, value)
            assert not name.startswith("on"), (element.tag, name)
    style = "".join(element.text for element in page.all("style"))
    assert "url(" not in style
    assert "@import" not in style


def test_a_page_forbids_the_browser_to_load_or_run_anything(page: Page) -> None:
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    allowed = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert policy.attributes["content"] == allowed


def test_ids_are_unique_and_inner_references_resolve(page: Page) -> None:
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'(?:url\(|href=")#([^)"]+)', page.source)
    assert set(wanted) <= set(ids)


def test_every_figure_has_a_title_a_caption_axes_and_words_for_those_who_cannot_see(
    page: Page,
) -> None:
    for figure in page.all("figure"):
        mine = [e for e in page.elements if figure in e.parents]
        (title,) = [e for e in mine if e.tag == "h3"]
        (caption,) = [e for e in mine if e.tag == "figcaption"]
        (plot,) = [e for e in mine if e.attributes.get("role") == "img"]
        labels = [e.text for e in mine if e.tag == "text"]
        assert title.text
        assert caption.text.strip().count(" ") >= 10
        assert len(plot.attributes["aria-label"]) > 40
        assert sum(bool(re.search(r"[a-z]{3}", label)) for label in labels) >= 2, labels


def test_a_page_is_small(page: Page) -> None:
    assert len(page.source.encode()) < 400_000


def test_pictures_use_the_colours_and_fonts_of_the_page(page: Page) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}\b", drawn)
    assert "font-family" not in drawn


def test_the_quickstart_page_opens_with_the_verdict(quickstart: Page) -> None:
    (sentence,) = quickstart.all("p", class_="verdict")
    assert sentence.text.replace("\u00a0", " ") == (
        "PPO beats SFT on 87 % of unseen prompts (95 % interval 82 to 91) by the gold score, "
        "at 9.3 nats of KL."
    )


def test_every_number_in_the_quickstart_tiles_equals_the_summary(quickstart: Page) -> None:
    shown = {e.attributes["data-key"]: e for e in quickstart.all("data") if e.inside("dl")}
    summary = dict(report_runs.QUICKSTART_SUMMARY)
    summary["total_seconds"] = sum(summary.pop("seconds").values())
    interval = summary.pop("win_rate_ci95")
    assert shown.pop("win_rate_ci95").attributes["value"] == f"{interval[0]} {interval[1]}"
    assert shown.keys() == summary.keys()
    for key, element in shown.items():
        assert float(element.attributes["value"]) == summary[key], key
    texts = {key: element.text.replace("\u00a0", " ") for key, element in shown.items()}
    assert texts == {
        "win_rate": "87.2 %",
        "gold_ppo": "1.21",
        "gold_sft": "0.12",
        "kl": "9.3",
        "reward_accuracy": "82.6 %",
        "reward_accuracy_ceiling": "87.1 %",
        "sft_perplexity": "4.76",
        "base_perplexity": "9.87",
        "total_seconds": "4 min 16 s",  # 61.2 + 22.4 + 14.8 + 31.5 + 113.7 + 12.3 = 255.9
        "peak_rss_mb": "1,835",
    }


def test_the_stage_table_has_time_number_and_folder_of_each_stage(quickstart: Page) -> None:
    rows = [e for e in quickstart.all("tr") if e.inside("section", id="stages")][1:]
    seconds = report_runs.QUICKSTART_SUMMARY["seconds"]
    for row, stage in zip(rows, STAGES, strict=True):
        cells = [e for e in quickstart.elements if row in e.parents]
        values = [e.attributes["value"] for e in cells if e.tag == "data"]
        assert float(values[0]) == seconds[stage]
        assert [e.attributes["href"] for e in cells if e.tag == "a"] == [f"{stage}/report.html"]


def test_the_quickstart_page_shows_every_picture_that_was_promised(quickstart: Page) -> None:
    assert set(PPO_FIGURES) <= set(quickstart.figures)
    promised = {"Accuracy", "Loss", "Margins on test pairs", "Calibration", "Gain on each prompt"}
    assert promised | {"Loss of the base model", "Loss of SFT"} <= set(quickstart.figures)


def test_at_least_five_prompts_stand_side_by_side_with_both_scores(quickstart: Page) -> None:
    rows = [
        e for e in quickstart.all("tr", role="row") if e.inside("section", id="section-evaluation")
    ][1:]
    assert len(rows) >= 5
    assert all(row.text.count("score ") == 2 for row in rows)


def test_text_of_a_model_is_shown_and_never_run(quickstart: Page) -> None:
    assert "<script" not in quickstart.source
    texts = [e.text for e in quickstart.all("div", class_="text")]
    assert report_runs.SCRIPT in texts


def test_text_in_any_script_arrives_unchanged(folder: Path) -> None:
    texts = [e.text for e in Page(folder / "ppo/report.html").all("div", class_="text")]
    # The lowest, the median and the highest of the four texts of the first rollout are shown.
    assert {report_runs.CHINESE, report_runs.SCRIPT} <= set(texts)
    texts = [e.text for e in Page(folder / "sft/report.html").all("div", class_="text")]
    assert {report_runs.CHINESE, report_runs.ARABIC, report_runs.EMOJI} <= set(texts)


def test_every_recipe_has_its_own_pictures(folder: Path) -> None:
    figures = {stage: Page(folder / stage / "report.html").figures for stage in STAGES}
    assert figures["ppo"][:6] == PPO_FIGURES
    assert figures["sft"] == figures["base"] == ["Loss", "Next token right"]
    assert figures["reward"] == [
        "Accuracy",
        "Loss",
        "Margin during training",
        "Margins on test pairs",
        "Calibration",
    ]
    assert figures["evaluate"] == ["Gain on each prompt"]
    assert figures["feedback"] == []


def test_how_it_was_run_is_told(quickstart: Page, folder: Path) -> None:
    assert "trl 1.16.0" in quickstart.source
    assert "kl_coef: 0.05" in quickstart.source
    facts = {e.text for e in quickstart.all("th", scope="row") if e.inside("section", id="how")}
    assert {"seed", "versions", "commit", "model"} <= facts


def test_the_numbers_of_the_summary_are_all_listed(folder: Path) -> None:
    shown = {e.attributes["value"] for e in Page(folder / "ppo/report.html").all("data")}
    summary = json.loads((folder / "ppo/summary.json").read_text())
    assert {repr(v) for v in summary.values() if isinstance(v, float)} <= shown


def test_an_empty_folder_gives_a_page_without_sections(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path))
    assert page.headings == page.figures == []
    assert page.all("h1")[0].text == tmp_path.name
    empty = Page(write_quickstart_report(tmp_path))
    assert empty.headings == empty.figures == []


def test_a_quickstart_that_lacks_stages_shows_the_others(tmp_path: Path) -> None:
    report_runs.ppo_run(tmp_path / "ppo", rollouts=3)
    page = Page(write_quickstart_report(tmp_path))
    assert page.headings == ["Stages", "PPO, rollout by rollout", "How it was run"]


def test_metrics_that_were_not_logged_are_left_out(tmp_path: Path) -> None:
    rows = [
        {"episode": 8 * i, "objective/kl": i / 10, "policy/entropy_avg": math.nan} for i in (1, 2)
    ]
    report_runs.write_run(tmp_path, {"recipe": "ppo", "kl": math.nan}, rows)
    page = Page(write_report(tmp_path))
    assert page.figures == ["Distance from the reference"]
    assert "not a number" in page.all("dl")[0].text


def test_a_line_that_was_cut_off_is_left_out_and_said(tmp_path: Path) -> None:
    report_runs.sft_run(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 41, "lo')
    page = Page(write_report(tmp_path))
    assert "1 unreadable line(s) of metrics.jsonl were left out." in page.all("footer")[0].text


def test_the_name_of_a_run_is_escaped(tmp_path: Path) -> None:
    page = Page(write_report(report_runs.sft_run(tmp_path / "a<b>&c")))
    assert page.all("h1")[0].text == "a<b>&c"


def test_warnings_stand_on_top_of_the_run_and_of_the_quickstart(tmp_path: Path) -> None:
    report_runs.quickstart_run(tmp_path)
    warning = {"kind": "value_loss", "step": 12, "episode": 1280, "message": "value loss is <b>"}
    summary = json.loads((tmp_path / "ppo/summary.json").read_text()) | {"warnings": [warning]}
    (tmp_path / "ppo/summary.json").write_text(json.dumps(summary))
    for page in (Page(write_report(tmp_path / "ppo")), Page(write_quickstart_report(tmp_path))):
        assert page.headings[0] == "One warning"
        (line,) = page.all("li", class_="warning")
        assert line.text == "From episode 1,280, step 12: value loss is <b>"
    assert not Page(write_report(tmp_path / "sft")).all("li", class_="warning")


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    report_runs.reward_run(tmp_path)
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_and_lines_have_enough_contrast(quickstart: Page, mode: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", quickstart.source, flags=re.DOTALL)
    assert len(blocks) == 3
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[mode]))

    def contrast(front: str, back: str) -> float:
        values = sorted((luminance(colors[front]), luminance(colors[back])))
        return (values[1] + 0.05) / (values[0] + 0.05)

    for back in ("paper", "card", "tint"):
        assert all(contrast(name, back) >= 4.5 for name in ("ink", "muted", "accent"))
    assert all(contrast(f"series-{i}", "card") >= 3 for i in (1, 2, 3))
