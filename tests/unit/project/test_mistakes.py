"""Each mistake on the command line or in a file is one sentence with exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.lib.config.strict_yaml import MAX_BYTES
from tests.helpers.mistakes import attempt
from tests.helpers.tiny_runs import snapshot

ROOT = Path(__file__).parents[3]

# id: (text of run.yaml or None for no file, flags, what is said)
MISTAKES: dict[str, tuple[str | bytes | None, list[str], str]] = {
    "unknown key": (
        "learning_rte: 0.1",
        [],
        "learning_rte (run.yaml, line 1): sft has no such key; the nearest is learning_rate.",
    ),
    "unknown key, nothing near": (
        "zzzzqqqq: 0.1",
        [],
        "zzzzqqqq (run.yaml, line 1): sft has no such key; see rlhf sft --help_all.",
    ),
    "unknown flag": (
        None,
        ["--learning_rte", "0.1"],
        "--learning_rte: sft has no such key; the nearest is learning_rate.",
    ),
    "abbreviated flag": (
        None,
        ["--max_ste", "3"],
        "--max_ste: sft has no such key; the nearest is max_steps.",
    ),
    "short flag": (None, ["-s", "3"], "-s: sft has no such key; the nearest is seed."),
    "duplicate key": (
        "seed: 1\nmax_steps: 2\nseed: 3",
        [],
        "run.yaml, line 3: seed is already set on line 1; remove one of the two.",
    ),
    "duplicate key inside a value": (
        "model_init_kwargs:\n  a: 1\n  a: 2",
        [],
        "run.yaml, line 3: a is already set on line 2; remove one of the two.",
    ),
    "repeated flag": (
        None,
        ["--seed", "1", "--seed", "2"],
        "--seed: seed is already set by --seed; give it once.",
    ),
    "repeated flag in its two spellings": (
        None,
        ["--no_logging_nan_inf_filter", "--logging-nan-inf-filter", "true"],
        "--logging-nan-inf-filter: logging_nan_inf_filter is already set by "
        "--no_logging_nan_inf_filter; give it once.",
    ),
    "true for an int": (
        "max_steps: true",
        [],
        "max_steps=true (run.yaml, line 1): must be a whole number.",
    ),
    "fraction for an int": (
        "max_steps: 2.7",
        [],
        "max_steps=2.7 (run.yaml, line 1): must be a whole number.",
    ),
    "fraction for an int by flag": (
        None,
        ["--max_steps", "2.7"],
        "--max_steps 2.7: must be a whole number.",
    ),
    "true for a float": (
        "learning_rate: true",
        [],
        "learning_rate=true (run.yaml, line 1): must be a number.",
    ),
    "list for a float": (
        "seed: 1\nlearning_rate: [1, 2]",
        [],
        "learning_rate=[1, 2] (run.yaml, line 2): must be a number.",
    ),
    "mapping for a float": (
        "learning_rate: {a: 1}",
        [],
        "learning_rate={'a': 1} (run.yaml, line 1): must be a number.",
    ),
    "null for a float": (
        "learning_rate:",
        [],
        "learning_rate=null (run.yaml, line 1): must be a number; leave the key out to get the "
        "default.",
    ),
    "text for a float": (
        "learning_rate: fast",
        [],
        "learning_rate='fast' (run.yaml, line 1): must be a number.",
    ),
    "quoted float": (
        'learning_rate: "1e-5"',
        [],
        "learning_rate='1e-5' (run.yaml, line 1): must be a number; write it without quotes.",
    ),
    "nan": (
        "learning_rate: .nan",
        [],
        "learning_rate=nan (run.yaml, line 1): must be a finite number.",
    ),
    "overflow to infinity": (
        "learning_rate: 1e999",
        [],
        "learning_rate=inf (run.yaml, line 1): must be a finite number.",
    ),
    "int of 30 digits": (
        "max_steps: 100000000000000000000000000000",
        [],
        "max_steps=100000000000000000000000000000 (run.yaml, line 1): must be a smaller number.",
    ),
    "int of 5,000 digits": (
        "max_steps: " + "9" * 5000,
        [],
        "run.yaml, line 1: the number is too long; write it shorter.",
    ),
    "int for text": (
        "run_name: 7",
        [],
        "run_name=7 (run.yaml, line 1): must be text or null; put it in quotes.",
    ),
    "word for a bool": (
        "packing: yes",
        [],
        "packing='yes' (run.yaml, line 1): must be true or false.",
    ),
    "int for a bool": ("packing: 1", [], "packing=1 (run.yaml, line 1): must be true or false."),
    "word for a bool by flag": (
        None,
        ["--packing", "maybe"],
        "--packing maybe: must be true or false.",
    ),
    "number for a list": (
        "lora_target_modules: 3",
        [],
        "lora_target_modules=3 (run.yaml, line 1): must be a list of texts or null.",
    ),
    "list of wrong items": (
        "lora_target_modules: [1]",
        [],
        "lora_target_modules=[1] (run.yaml, line 1): must be text; put it in quotes.",
    ),
    "none of the choices": (
        "dtype: bf16",
        [],
        "dtype='bf16' (run.yaml, line 1): must be one of auto, bfloat16, float16, float32.",
    ),
    "none of an enum": (
        None,
        ["--eval_strategy", "sometimes"],
        "--eval_strategy sometimes: must be one of no, steps, epoch.",
    ),
    "env block": (
        "seed: 1\nenv:\n  A: b",
        [],
        "env (run.yaml, line 2): a configuration may not set environment variables; set them in "
        "the shell.",
    ),
    "config key in the file": (
        "config: other.yaml",
        [],
        "config (run.yaml, line 1): sft has no such key; the nearest is fsdp_config.",
    ),
    "config without a value": (
        None,
        ["--config"],
        "--config: the file is missing; write --config FILE.",
    ),
    "config followed by a flag": (
        None,
        ["--config", "--seed", "1"],
        "--config: the file is missing; write --config FILE.",
    ),
    "config twice": (
        "seed: 1",
        ["--config", "other.yaml"],
        "--config other.yaml: --config is given twice; name one file.",
    ),
    "config not there": (
        None,
        ["--config", "absent.yaml"],
        "--config absent.yaml: there is no such file; `rlhf configs` lists those that are shipped.",
    ),
    "config is a folder": (
        None,
        ["--config=."],
        "--config .: is not a file; name a YAML file.",
    ),
    "config not UTF-8": (
        b"seed: 1 # caf\xe9",
        [],
        "--config run.yaml: is not UTF-8 text (byte 13); save it as UTF-8.",
    ),
    "config far too long": (
        "# " + "x" * MAX_BYTES,
        [],
        f"--config run.yaml: has {MAX_BYTES + 2} bytes; a configuration is a short file.",
    ),
    "empty file": ("", [], "run.yaml: must hold `key: value` lines; it holds nothing."),
    "list instead of keys": (
        "- seed: 1",
        [],
        "run.yaml: must hold `key: value` lines; it holds a list.",
    ),
    "YAML that does not parse": (
        "seed: 1\nrun_name: [a, b",
        [],
        "run.yaml, line 2: is not valid YAML (expected ',' or ']', but got '<stream end>').",
    ),
    "tab": (
        "seed: 1\n\tmax_steps: 2",
        [],
        "run.yaml, line 2: is not valid YAML (found character '\\t' that cannot start any token).",
    ),
    "control character": (
        "run_name: \x01",
        [],
        "run.yaml: is not valid YAML (unacceptable character #x0001: special characters are not "
        'allowed in "<unicode string>", position 10).',
    ),
    "nested without end": (
        "run_name: " + "[" * 5000,
        [],
        "run.yaml: is nested too deeply; a configuration is flat.",
    ),
    "second document": (
        "seed: 1\n---\nseed: 2",
        [],
        "run.yaml, line 2: is not valid YAML (but found another document).",
    ),
    "anchor": (
        "run_name: &a x\noptim_args: *a",
        [],
        "run.yaml, line 1: anchors and aliases are not used here; write the value out.",
    ),
    "tag": (
        "run_name: !!python/name:os.system ''",
        [],
        "run.yaml, line 1: the tag tag:yaml.org,2002:python/name:os.system is refused; write a "
        "plain value.",
    ),
    "list as a key": (
        "? [a]\n: 1",
        [],
        "run.yaml, line 1: a key must be a word, not a list or a mapping.",
    ),
    "null character": (
        'run_name: "a\\0b"',
        [],
        "run_name='a\\x00b' (run.yaml, line 1): must be text in UTF-8 without null characters.",
    ),
    "control characters": (
        None,
        ["--packing=\x1e\x1b[31m\n"],
        "--packing \\x1e\\x1b[31m\\n: must be true or false.",
    ),
    "flag without its value": (
        None,
        ["--eval_steps"],
        "--eval_steps: a value is missing; write --eval_steps VALUE.",
    ),
    "stray word": (None, ["run.yaml"], "'run.yaml' belongs to no flag; write --key value."),
    "end of flags": (None, ["--", "x"], "--: sft has no such key; see rlhf sft --help_all."),
    "broken JSON in a flag": (
        None,
        ["--model_init_kwargs", "{a: 1}"],
        "--model_init_kwargs {a: 1}: must be valid JSON.",
    ),
    "empty output folder": (
        None,
        ["--output_dir", ""],
        "output_dir='': must name a folder; leave the key out for the default.",
    ),
    "negative rate": (
        "learning_rate: -1e-5",
        [],
        "learning_rate=-1e-05 (run.yaml, line 1): must be 0 or more.",
    ),
    "negative seed": (None, ["--seed", "-1"], "--seed -1: must be from 0 to 4294967295."),
    "rank of 0": (None, ["--lora_r", "0"], "--lora_r 0: must be 1 or more."),
    "no steps": (
        "max_steps: 0",
        [],
        "max_steps=0 (run.yaml, line 1): must be -1 (go by num_train_epochs) or 1 or more.",
    ),
    "old key as a flag": (
        None,
        ["--max_seq_length", "512"],
        "--max_seq_length: is called max_length now; write that.",
    ),
    "the dataclass's own check": (
        None,
        ["--fsdp", "bogus"],
        "fsdp='bogus': Unknown `fsdp` option: bogus.",
    ),
}


def prepare(name: str, folder: Path) -> tuple[str, list[str]]:
    """Write the file of a mistake; the recipe and the words of the command that makes it."""
    content, flags, _ = MISTAKES[name]
    if content is None:
        return "sft", flags
    (folder / "run.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    return "sft", ["--config", "run.yaml", *flags]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_with_exit_code_2_and_nothing_on_disk(
    name: str, tmp_path: Path
) -> None:
    answer = attempt(*prepare(name, tmp_path), tmp_path)
    assert answer.err == f"rlhf sft: error: {MISTAKES[name][2]}\n"
    assert answer.out == ""
    assert answer.code == 2
    assert answer.changed == []


@pytest.mark.parametrize("name", ["config not there", "fraction for an int"])
def test_a_mistake_ends_a_real_process_the_same_way(name: str, tmp_path: Path) -> None:
    _, argv = prepare(name, tmp_path)
    before = snapshot(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "recipes.cli", "sft", *argv],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"rlhf sft: error: {MISTAKES[name][2]}\n")
    assert "Traceback" not in done.stderr
    assert snapshot(tmp_path) == before
