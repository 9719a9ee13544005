"""The test run itself: a skip without a known reason fails it, and long tests wait for --all."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def run_pytest(folder: Path, code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs code as a test module of its own under this project's settings and plugins."""
    (folder / "test_inner.py").write_text(f"import pytest\n{code}")
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir"]
    command += [str(folder), "-p", "tests.conftest", "-p", "no:cacheprovider", *flags]
    return subprocess.run(
        [*command, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )


SKIPS = {
    "in a test": "def test_a():\n    pytest.skip({reason!r})\n",
    "by a mark": "@pytest.mark.skip(reason={reason!r})\ndef test_a():\n    pass\n",
    "of a module": "pytest.skip({reason!r}, allow_module_level=True)\n",
}


@pytest.mark.parametrize("kind", SKIPS)
def test_a_skip_for_an_unknown_reason_fails_the_run(kind: str, tmp_path: Path) -> None:
    code = SKIPS[kind].format(reason="felt like it") + "def test_b():\n    pass\n"
    done = run_pytest(tmp_path, code)
    assert done.returncode == 1
    assert "skipped for a reason that is not in tests/allowed_skips.txt" in done.stdout
    assert "felt like it" in done.stdout


def test_a_skip_for_a_listed_reason_passes(tmp_path: Path) -> None:
    code = SKIPS["in a test"].format(reason="../shared is not beside the project")
    assert run_pytest(tmp_path, code).returncode == 0


def test_slow_tests_run_with_all_only(tmp_path: Path) -> None:
    code = "@pytest.mark.slow\ndef test_a():\n    pass\n\n\ndef test_b():\n    pass\n"
    assert "1 passed, 1 deselected" in run_pytest(tmp_path, code).stdout
    assert "2 passed" in run_pytest(tmp_path, code, "--all").stdout


def test_an_unknown_mark_is_an_error(tmp_path: Path) -> None:
    code = "@pytest.mark.slwo\ndef test_a():\n    pass\n"
    assert run_pytest(tmp_path, code).returncode != 0


def test_the_tiny_model_reads_its_own_template(tiny_model: Any, tiny_tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "tell me"}, {"role": "assistant", "content": "the sun"}]
    text = tiny_tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<user> tell me <assistant> the sun <eos> "
    encoded = tiny_tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    assert encoded["assistant_masks"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    assert tiny_tokenizer.unk_token_id not in encoded["input_ids"]
    logits = tiny_model(input_ids=encoded["input_ids"]).logits
    assert logits.shape == (1, 7, len(tiny_tokenizer))
