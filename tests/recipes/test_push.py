"""`rlhf push`: shown, pushed, downloaded again by a process that has nothing of this project."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from recipes.lib.errors import UserError
from recipes.lib.publishing import verify
from recipes.lib.publishing.bundle import gather
from recipes.lib.publishing.fresh_process import compare
from recipes.lib.recipe.main import launch, run
from tests.conftest import word_tokenizer
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.tiny_models import save_model

NAME = "someone/tiny"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, a reward model, and adapters for both on a base of the Hub."""
    place = tmp_path_factory.mktemp("models")
    tokenizer = word_tokenizer()
    save_model(place / "base", tokenizer)
    save_model(place / "policy/final", tokenizer, tie_word_embeddings=True)
    classes = {"CAUSAL_LM": AutoModelForCausalLM, "SEQ_CLS": AutoModelForSequenceClassification}
    for task, kind in classes.items():
        options = {"num_labels": 1} if task == "SEQ_CLS" else {}
        model = kind.from_pretrained(place / "base", **options)
        if options:
            model.save_pretrained(place / "reward")
            tokenizer.save_pretrained(place / "reward")
        lora = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
        adapted = get_peft_model(model, LoraConfig(task_type=task, **lora))
        adapted.save_pretrained(place / task)
        (place / task / "README.md").unlink()
        config = json.loads((place / task / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "someone/base"
        (place / task / "adapter_config.json").write_text(json.dumps(config))
        tokenizer.save_pretrained(place / task)
    return place


@pytest.fixture
def hub(models: Path, online: Callable[[LoopbackHub], None]) -> Iterator[LoopbackHub]:
    with LoopbackHub({("models", "someone/base", "main"): models / "base"}) as hub:
        online(hub)
        yield hub


def words(models: Path, folder: str, **more: object) -> list[str]:
    values = {"repo": "tiny"} | more
    flat = [part for key, value in values.items() for part in (f"--{key}", str(value))]
    return [str(models / folder), *flat]


def test_a_dry_run_asks_nothing(
    models: Path, hub: LoopbackHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("push", [*words(models, "policy"), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    for word in ("model.safetensors", "README.md", "private", "licence: not known"):
        assert word in said
    assert hub.asked == []


def test_without_network_it_ends_after_the_dry_run(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("push", words(models, "policy")) == 2
    said = capsys.readouterr()
    assert "model.safetensors" in said.out
    (sentence,) = said.err.splitlines()
    assert sentence.startswith("rlhf push: error: repo=tiny: it does not get through (")
    assert sentence.endswith("; nothing was sent.")


def test_a_refusal_comes_before_the_first_byte(
    models: Path, hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert launch("push", [str(tmp_path), "--repo", "tiny"]) == 2
    said = capsys.readouterr()
    assert "refused: it has no weights" in said.out
    start = f"rlhf push: error: run={tmp_path}: it has no tokenizer (tokenizer_config.json);"
    assert said.err.startswith(start)
    assert hub.asked == []
    assert launch("push", [str(models / "policy")]) == 2
    assert "repo is missing; give --repo NAME." in capsys.readouterr().err


def test_a_run_is_pushed_and_loaded_by_a_process_of_its_own(
    models: Path, hub: LoopbackHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("push", words(models, "policy")) == 0
    said = capsys.readouterr().out.splitlines()
    head = hub.model(NAME).head
    assert said[-2:] == [
        f"{NAME} is whole at commit {head}; 7 files were sent",
        "verified: full",
    ]
    weights = f"GET /{NAME}/resolve/{head}/model.safetensors"
    assert hub.asked.count(weights) == 1
    again = run("push", run=str(models / "policy"), repo="tiny", verify="checksums")
    assert again["commit"] == head
    assert again["num_sent"] == 0


@pytest.fixture
def pushed(
    models: Path, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """Pushes a folder, lets a commit of somebody's change it, and compares in this process."""
    for variable in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setattr(f"huggingface_hub.constants.{variable}", str(tmp_path))

    def push_and_compare(folder: str, **changed: bytes) -> list[str]:
        run("push", run=str(models / folder), repo="tiny", verify="checksums")
        commit = hub.model(NAME).head
        if changed:
            files = {name.replace("__", "."): data for name, data in changed.items()}
            commit = hub.commit(NAME, files)
        bundle = gather(str(models / folder), "tiny")
        hashes = {name: file.upload_info.sha256.hex() for name, file in bundle.files.items()}
        asked = {"repo": NAME, "commit": commit, "folder": str(bundle.final), "files": hashes}
        return compare(asked | {"trust_remote_code": False})

    return push_and_compare


@pytest.mark.parametrize("folder", ["policy", "reward", "CAUSAL_LM", "SEQ_CLS"])
def test_policies_rewards_and_adapters_are_the_same_again(
    folder: str, pushed: Callable[..., list[str]], hub: LoopbackHub
) -> None:
    assert pushed(folder) == []
    head = hub.model(NAME).head
    assert any("/resolve/" in one and "safetensors" in one and head in one for one in hub.asked)


def test_other_weights_are_noticed(models: Path, pushed: Callable[..., list[str]]) -> None:
    weights = load_file(models / "policy/final/model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] += 0.5
    found = pushed("policy", model__safetensors=save(weights, {"format": "pt"}))
    assert found[0] == "model.safetensors is another file"
    assert found[1].startswith("logits are off by ")


def test_another_tokenizer_is_noticed(pushed: Callable[..., list[str]]) -> None:
    found = pushed("policy", chat_template__jinja=b"{{ messages }}")
    assert found == [
        "chat_template.jinja is another file",
        "tokens, template or greedy text are others",
    ]


def test_a_file_beside_the_bundle_that_changes_the_model_is_noticed(
    models: Path, pushed: Callable[..., list[str]]
) -> None:
    config = json.loads((models / "policy/final/generation_config.json").read_text())
    tokens = json.dumps(config | {"eos_token_id": list(range(60))}).encode()
    found = pushed("policy", generation_config__json=tokens)
    assert "tokens, template or greedy text are others" in found


def test_a_difference_ends_with_a_sentence(
    models: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "fresh_process.py").write_text("""print('["a is another file", "b"]')""")
    monkeypatch.setattr(verify, "__file__", str(tmp_path / "verify.py"))
    with pytest.raises(UserError) as told:
        run("push", run=str(models / "policy"), repo="tiny")
    assert str(told.value) == (
        f"repo=tiny: it is whole at commit {hub.model(NAME).head[:10]}, but what loads from it is "
        f"not {models / 'policy/final'}: a is another file; b."
    )


def test_what_needs_this_project_is_not_loaded_by_others(
    models: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = Path(verify.__file__).with_name("fresh_process.py").read_text()
    start, stop, end = whole.partition("    print(")
    assert stop
    script = f"{start}    import recipes.lib.errors\n{stop}{end}"
    (tmp_path / "fresh_process.py").write_text(script)
    monkeypatch.setattr(verify, "__file__", str(tmp_path / "verify.py"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with pytest.raises(UserError, match=r"cannot load it \(ModuleNotFoundError: .*'recipes'"):
        run("push", run=str(models / "policy"), repo="tiny")


@pytest.mark.parametrize("folder", ["reward", "CAUSAL_LM", "SEQ_CLS"])
@pytest.mark.slow
def test_every_kind_is_loaded_by_a_process_of_its_own(
    folder: str, models: Path, hub: LoopbackHub
) -> None:
    done = run("push", run=str(models / folder), repo="tiny")
    assert done["verified"] == "full"


def test_the_base_of_an_adapter_counts(
    models: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = gather(str(models / "CAUSAL_LM"))
    base = (models / "base/model.safetensors").stat().st_size
    monkeypatch.setattr(verify, "MOST_BYTES", adapter.num_bytes + base)
    assert not verify.is_small(adapter)
    monkeypatch.setattr(verify, "MOST_BYTES", adapter.num_bytes + base + 1)
    assert verify.is_small(adapter)
