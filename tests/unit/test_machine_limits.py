"""A disk that is full or read-only and a memory that is too small: one sentence, nothing half."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from recipes.lib.arguments import launch
from tests.tiny_models import save_model
from tests.tiny_runs import flags, snapshot, write

ROOT = Path(__file__).parents[2]
SFT = {"dataset_name": "rows.jsonl", "max_steps": 1, "per_device_train_batch_size": 2}


@pytest.fixture
def place(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model(Path("model"), tiny_tokenizer)
    rows = [{"prompt": f"the {word}", "completion": " sat ."} for word in ("cat", "dog", "bird")]
    write(Path("rows.jsonl"), rows)
    return tmp_path


@pytest.mark.usefixtures("place")
def test_a_read_only_folder_is_told_before_anything_is_loaded(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    values = SFT | {"output_dir": "disk/runs/new", "model_name_or_path": "nothing at all"}
    assert launch("sft", flags(values)) == 2
    sentence = "output_dir=disk/runs/new cannot be written: "
    assert sentence in capsys.readouterr().err
    assert list(small_disk.iterdir()) == []


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("room", [0, 60_000])
def test_a_full_disk_is_told_and_leaves_no_half_model(
    room: int, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "filler").write_bytes(bytes(free - room))
    assert launch("sft", flags(SFT | {"output_dir": "disk/run"})) == 2
    said = capsys.readouterr().err
    assert "output_dir=disk/run cannot be written: " in said
    assert "Traceback" not in said
    left = [path.name for path in (small_disk / "run").rglob("*") if path.is_file()]
    assert not any(name.endswith(".safetensors") for name in left)
    assert not (small_disk / "run" / "final").exists()
    assert not (small_disk / "run" / "_final.partial").exists()


LIMITED = """
import resource, sys
from recipes.lib.arguments import launch
import recipes.lib.models, trl, torch, peft
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from trl import SFTTrainer
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 60_000_000, resource.RLIM_INFINITY))
raise SystemExit(launch("sft", sys.argv[1:]))
"""


def test_a_model_that_does_not_fit_into_memory_is_told(
    place: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    # Two embeddings of 160 MB each, where 60 MB are left.
    save_model(
        place / "model",
        tiny_tokenizer,
        vocab_size=2_500_000,
        num_hidden_layers=1,
        tie_word_embeddings=False,
    )
    before = snapshot(place).keys()
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *flags(SFT)],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        "rlhf sft: error: model_name_or_path=model: there is not enough memory to load it; choose "
        "dtype=bfloat16, load_in_4bit with use_peft, or a smaller model.\n"
    ) in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
    assert snapshot(place).keys() == before
