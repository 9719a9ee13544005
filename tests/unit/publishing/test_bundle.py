"""What is pushed of a run: refused before the first byte, cleaned, listed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.lib.errors import UserError
from recipes.lib.publishing.bundle import Bundle, gather, show_bundle
from recipes.lib.runs.lineage import write_lineage

TOKEN = "hf_" + "aB3" * 11


def text_of(bundle: Bundle, name: str) -> str:
    with bundle.files[name].as_file() as file:
        return file.read().decode()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run below the working folder; nothing loads its weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "")
    final = tmp_path / "runs/sft/tiny/final"
    final.mkdir(parents=True)
    (final / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (final / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    vocabulary = {"password": 1, f"{Path.home()}/": 2}
    (final / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    (final / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (final / "model.safetensors").write_bytes(b"weights")
    (final / ".cache").mkdir()
    (final / ".cache/left").write_text("over")
    write_lineage(final.parent, "sft", "somebody/base", [])
    return final.parent


def test_model_card_report_and_lineage_are_pushed(run: Path) -> None:
    (run / "report.html").write_text("<p>fine</p>")
    for name in ("metrics.jsonl", "samples.jsonl", "config.yaml"):
        (run / name).write_text("seed: 1\n")
    bundle = gather("sft/tiny", "me/tiny")
    assert bundle.faults == []
    model = "chat_template.jinja config.json model.safetensors tokenizer.json tokenizer_config.json"
    assert set(bundle.files) == {*model.split(), "README.md", "lineage.json", "report.html"}
    assert bundle.num_bytes == sum(len(text_of(bundle, name)) for name in bundle.files)
    assert bundle.marks == {}


def test_the_card_of_a_folder_is_its_own(run: Path) -> None:
    (run / "final/README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    bundle = gather(str(run / "final"))
    assert text_of(bundle, "README.md").endswith("Mine.\n")
    assert bundle.licence == "mit"
    (run / "final/README.md").unlink()
    card = text_of(gather(str(run)), "README.md")
    assert "tiny (sft)" in card
    assert "base_model: somebody/base" in card


def adapter_on(base: str) -> Callable[[Path], object]:
    text = json.dumps({"base_model_name_or_path": base, "task_type": "CAUSAL_LM"})
    return lambda final: (final / "adapter_config.json").write_text(text)


def two_shards(final: Path) -> None:
    (final / "model.safetensors").rename(final / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (final / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "arguments": (
        lambda final: (final / "training_args.bin").write_bytes(b""),
        "training_args.bin can run code where it is loaded; save it as safetensors, or remove it",
    ),
    "optimizer": (
        lambda final: (final / "optimizer.pt").write_bytes(b""),
        "optimizer.pt can run code",
    ),
    "shard": (
        two_shards,
        "model-00002-of-00002.safetensors is missing, which model.safetensors.index.json names",
    ),
    "weights": (lambda final: (final / "model.safetensors").unlink(), "it has no weights"),
    "tokenizer": (
        lambda final: (final / "tokenizer_config.json").unlink(),
        "it has no tokenizer (tokenizer_config.json); put that of its training beside it",
    ),
    "words": (lambda final: (final / "tokenizer.json").unlink(), "it has no tokenizer"),
    "template": (
        lambda final: (final / "chat_template.jinja").unlink(),
        "chat_template.jinja is not the one it was trained with; put that back",
    ),
    "other template": (
        lambda final: (final / "chat_template.jinja").write_text("{{ messages }}"),
        "chat_template.jinja is not the one it was trained with",
    ),
    "no model": (lambda final: (final / "config.json").unlink(), "it holds no model"),
    "base that is here": (
        adapter_on("runs/sft/tiny"),
        "it is an adapter on runs/sft/tiny, which nobody else has; push what rlhf merge makes",
    ),
    "base that is gone": (adapter_on("/gone/model"), "it is an adapter on /gone/model, which"),
    "token": (
        lambda final: (final / "notes.txt").write_text(f"my token is {TOKEN}."),
        "notes.txt holds a secret (hf_aB3...); remove it, or the file",
    ),
    "key of another service": (
        lambda final: (final.parent / "report.html").write_text("<p>sk-proj-" + "x" * 20),
        "report.html holds a secret (sk-pro...)",
    ),
    "password": (
        lambda final: (final.parent / "lineage.json").write_text('{"judge": {"api_key": "abc"}}'),
        "lineage.json holds a secret (api_key)",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_may_not_leave_is_refused(name: str, run: Path) -> None:
    spoil, expected = FAULTS[name]
    spoil(run / "final")
    bundle = gather("sft/tiny")
    assert [fault for fault in bundle.faults if fault.startswith(expected)]
    with pytest.raises(UserError) as told:
        bundle.refuse()
    assert str(told.value) == f"run=sft/tiny: {bundle.faults[0]}."


def test_an_adapter_on_a_base_of_the_hub_is_fine(run: Path) -> None:
    adapter_on("Qwen/Qwen3-0.6B")(run / "final")
    assert gather("sft/tiny").faults == []


def test_what_only_looks_like_a_secret_is_none(run: Path) -> None:
    hidden = {
        "hub_token": "(hidden)",
        "password": "",
        "eos_token": "<eos>",
        "text": "sk-ate hf_hub",
    }
    (run / "lineage.json").write_text(json.dumps(hidden))
    assert gather("sft/tiny").faults == []


def test_secrets_of_the_environment_are_known_by_their_value(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "plain-words")
    (run / "report.html").write_text("<p>with plain-words in it</p>")
    assert gather("sft/tiny").faults == [
        "report.html holds a secret (plain-...); remove it, or the file"
    ]


def test_a_word_of_a_vocabulary_is_no_secret(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "password")
    assert gather("sft/tiny").faults == []


def test_places_of_this_machine_are_taken_out(run: Path, tmp_path: Path) -> None:
    inside, home = tmp_path / "data/rows.jsonl", Path.home() / "models/base"
    lineage = {
        "recipe": "sft",
        "model": {"name": str(home), "lineage": {"data": [{"name": str(inside), "sha256": "1"}]}},
        "reward_funcs": ["/fsx/me/rewards.py:short", "https://a.b/home/c"],
    }
    (run / "lineage.json").write_text(json.dumps(lineage))
    page = f"<td>{home} (sha256 1)</td><pre>a: '{inside}'\nb: /fsx/me/other.txt</pre></home/>"
    (run / "report.html").write_text(page)
    bundle = gather("sft/tiny")
    assert json.loads(text_of(bundle, "lineage.json")) == {
        "recipe": "sft",
        "model": {
            "name": "local file base",
            "lineage": {"data": [{"name": "data/rows.jsonl", "sha256": "1"}]},
        },
        "reward_funcs": ["local file rewards.py:short", "https://a.b/home/c"],
    }
    assert text_of(bundle, "report.html") == (
        "<td>local file base (sha256 1)</td><pre>a: 'data/rows.jsonl'\n"
        "b: local file other.txt</pre></home/>"
    )
    found = {"lineage.json", "report.html"}
    assert bundle.marks == dict.fromkeys(found, "local paths taken out")
    assert str(home) in (run / "lineage.json").read_text()  # that of the run stays


def test_the_files_of_a_model_go_as_they_are_and_their_places_are_told(run: Path) -> None:
    (run / "final/generation_config.json").write_text(f'{{"_from": "{Path.home()}/x"}}')
    bundle = gather("sft/tiny")
    assert bundle.marks == {"generation_config.json": "has local paths"}
    assert str(Path.home()) in text_of(bundle, "generation_config.json")


def test_a_run_that_is_not_there_is_one_sentence(run: Path) -> None:
    for name in ("nothing", "./nothing"):
        with pytest.raises(UserError, match=rf"^run={name}: there is no such folder; "):
            gather(name)


def test_the_dry_run_fits_a_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "final" / ("long_" * 20 + ".txt")).write_text("")
    (run / "final/notes.txt").write_text(TOKEN)
    show_bundle(gather("sft/tiny"), "me/tiny", "private")
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert "9 files, " in said
    assert "private" in said
    assert "licence: not known" in said
    assert "refused: notes.txt holds a secret (hf_aB3...)" in said
    assert TOKEN not in said
