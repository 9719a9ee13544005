"""A disk that is full or read-only and a memory that is too small: one sentence, nothing half."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.helpers.mistakes import Answer, attempt, changes
from tests.helpers.small_disk import NoMountError, small_disk
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import flags, snapshot
from tests.unit.project.test_model_mistakes import furnish

ROOT = Path(__file__).parents[3]
SFT = {"dataset_name": "rows.jsonl", "max_steps": 1, "per_device_train_batch_size": 2}


LIMITED = """
import resource, sys
from recipes.lib.recipe.main import launch
import recipes.lib.models, trl, torch, peft
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from trl import SFTTrainer
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 60_000_000, resource.RLIM_INFINITY))
raise SystemExit(launch("sft", sys.argv[1:]))
"""


def on_a_read_only_disk(place: Path) -> Answer:
    values = SFT | {"output_dir": "disk/runs/new", "model_name_or_path": "nothing at all"}
    with small_disk(place) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        return attempt("sft", flags(values), place)


def on_a_full_disk(place: Path, room: int = 0) -> Answer:
    """Try with some bytes of room; a folder that was begun may stay, a half model may not."""
    with small_disk(place) as disk:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(bytes(free - room))
        return attempt("sft", flags(SFT | {"output_dir": "disk/run"}), place)


def on_an_almost_full_disk(place: Path) -> Answer:
    return on_a_full_disk(place, 60_000)


def with_too_little_memory(place: Path) -> Answer:
    """Two embeddings of 160 MB each, where 60 MB are left."""
    sizes = {"vocab_size": 2_500_000, "num_hidden_layers": 1, "tie_word_embeddings": False}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(place / "model")
    save_model(place / "model", tokenizer, **sizes)
    before = snapshot(place)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *flags(SFT)],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    changed = changes(before, snapshot(place))
    return Answer("sft", done.returncode, done.stderr, done.stdout, changed)


# id: (what is tried, what is said, a part)
LIMITS: dict[str, tuple[Callable[[Path], Answer], str]] = {
    "read-only disk": (on_a_read_only_disk, "output_dir=disk/runs/new cannot be written: "),
    "full disk": (on_a_full_disk, "output_dir=disk/run cannot be written: "),
    "almost full disk": (on_an_almost_full_disk, "output_dir=disk/run cannot be written: "),
    "too little memory for the model": (
        with_too_little_memory,
        "model_name_or_path=model: there is not enough memory to load it; choose dtype=bfloat16, "
        "load_in_4bit with use_peft, or a smaller model.",
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_of_the_machine_is_one_sentence_and_leaves_no_half_model(
    name: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    furnish(tmp_path, tiny_tokenizer)
    run, sentence = LIMITS[name]
    try:
        answer = run(tmp_path)
    except NoMountError:
        pytest.skip("a file system cannot be mounted here")
    assert sentence in answer.sentence()
    assert answer.code == 2
    assert "Traceback" not in answer.err
    # The time of the disk's top folder may change; what was logged before it was full may stay.
    logged = {"run", "config.yaml", "metrics.jsonl"} if name == "almost full disk" else set()
    assert {Path(path).name for path in answer.changed} <= {"disk"} | logged
