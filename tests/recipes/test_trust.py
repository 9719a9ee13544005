"""What comes from elsewhere runs no code and writes nowhere else; secrets stay where they are."""

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from recipes.lib.errors import UserError
from recipes.lib.models.classifiers import load_reward_model
from recipes.lib.models.policies import load_policy
from recipes.lib.models.tokenizers import load_tokenizer
from recipes.lib.recipe.main import launch
from recipes.lib.runs.checkpoints import MANIFEST, seal
from recipes.lib.runs.pickles import check_checkpoint
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import flags, snapshot, write

SFT = {
    "dataset_name": "rows.jsonl",
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "save_strategy": "steps",
    "save_steps": 1,
}
TURNS = [{"role": "user", "content": "who sat ?"}, {"role": "assistant", "content": "the cat ."}]
CODE = """
from pathlib import Path
Path("ran").write_text("code of the model ran")
from transformers import LlamaConfig, LlamaForCausalLM
class MineConfig(LlamaConfig):
    model_type = "mine"
class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""


class Bomb:
    """What a pickle can do when it is read: here, make a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, ("open('ran', 'w').close()",))


@pytest.fixture
def place(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model(Path("model"), tiny_tokenizer)
    rows = [{"prompt": f"the {word}", "completion": " sat ."} for word in ("cat", "dog", "bird")]
    write(Path("rows.jsonl"), rows)
    write(Path("chat.jsonl"), [{"messages": TURNS}] * 3)
    return tmp_path


def args(name: str, **more: Any) -> Any:
    from trl import ModelConfig

    return ModelConfig(model_name_or_path=name, **more)


def test_the_bomb_of_these_tests_goes_off(place: Path) -> None:
    pickle.loads(pickle.dumps(Bomb()))
    assert Path("ran").exists()


@pytest.mark.parametrize("what", ["model", "adapter"])
def test_weights_in_pickles_are_not_read(what: str, place: Path) -> None:
    if what == "model":
        Path("model/model.safetensors").unlink()
        torch.save({"model.embed_tokens.weight": Bomb()}, "model/pytorch_model.bin")
        name = "model"
    else:
        Path("adapter").mkdir()
        config = {"peft_type": "LORA", "base_model_name_or_path": "model", "task_type": "CAUSAL_LM"}
        Path("adapter/adapter_config.json").write_text(json.dumps(config | {"r": 2}))
        torch.save({"base_model.model.x": Bomb()}, "adapter/adapter_model.bin")
        name = "adapter"
    with pytest.raises(UserError, match="safetensors"):
        load_policy(args(name))
    with pytest.raises(UserError, match="safetensors"):
        load_reward_model(name, new_head=True)
    assert not Path("ran").exists()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A true checkpoint after the first of two steps, made once."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from tests.conftest import SPECIAL, TEMPLATE, WORDS

    folder = tmp_path_factory.mktemp("honest")
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    save_model(folder / "model", tokenizer)
    rows = [{"prompt": f"the {word}", "completion": " sat ."} for word in ("cat", "dog", "bird")]
    write(folder / "rows.jsonl", rows)
    values = {"model_name_or_path": str(folder / "model"), "output_dir": str(folder / "run")}
    values |= {"dataset_name": str(folder / "rows.jsonl")}
    assert launch("sft", flags(SFT | values)) == 0
    return folder / "run" / "checkpoint-1"


def seal_anew(checkpoint: Path) -> None:
    """As somebody would who changes a checkpoint on purpose."""
    (checkpoint / MANIFEST).unlink()
    seal(checkpoint, 1)


def test_an_honest_checkpoint_goes_on_and_holds_no_pickled_arguments(
    checkpoint: Path, place: Path
) -> None:
    shutil.copytree(checkpoint, "theirs")
    assert {path.name for path in Path("theirs").iterdir()} >= {"optimizer.pt", "rng_state.pth"}
    assert not Path("theirs/training_args.bin").exists()
    torch.save(Bomb(), "theirs/training_args.bin")  # of older versions; nothing reads it
    assert launch("sft", flags(SFT | {"resume_from_checkpoint": "theirs"})) == 0
    rows = Path("run/metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 2
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("kind", ["torch", "plain"])
def test_a_checkpoint_with_code_in_a_pickle_is_refused(
    name: str, kind: str, checkpoint: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint, "theirs")
    if kind == "torch":
        torch.save({"state": Bomb()}, f"theirs/{name}")
    else:
        Path("theirs", name).write_bytes(pickle.dumps(Bomb()))
    seal_anew(Path("theirs"))
    before = snapshot(place)
    assert launch("sft", flags(SFT | {"resume_from_checkpoint": "theirs"})) == 2
    said = capsys.readouterr().err
    assert f"resume_from_checkpoint=theirs: {name} " in said
    if kind == "torch":
        assert "asks for builtins.eval, which could run code, and is not read; resume" in said
    assert "Traceback" not in said
    assert snapshot(place) == before  # and so there is no file `ran`


def test_a_checkpoint_with_pickled_weights_is_refused(
    checkpoint: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint, "theirs")
    Path("theirs/model.safetensors").unlink()
    torch.save({"model.norm.weight": Bomb()}, "theirs/pytorch_model.bin")
    seal_anew(Path("theirs"))
    assert launch("sft", flags(SFT | {"resume_from_checkpoint": "theirs"})) == 2
    assert "it holds no weights as .safetensors" in capsys.readouterr().err
    assert not Path("ran").exists()


def test_a_run_from_elsewhere_is_not_resumed_with_code_or_links_in_it(
    checkpoint: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint.parent, "run")
    for name in ("checkpoint-2", "final"):
        shutil.rmtree(Path("run", name))
    Path("run/summary.json").unlink()
    import yaml

    values = yaml.safe_load(Path("run/config.yaml").read_text())
    same = {key: values[key] for key in ("model_name_or_path", "dataset_name")}
    resume = flags(SFT | same | {"resume": True})
    Path("outside").mkdir()
    Path("run/_final.partial").symlink_to(Path("outside").absolute())
    assert launch("sft", resume) == 2
    assert "_final.partial is a link that leads out of it" in capsys.readouterr().err
    Path("run/_final.partial").unlink()
    torch.save({"state": Bomb()}, "run/checkpoint-1/optimizer.pt")
    seal_anew(Path("run/checkpoint-1"))
    assert launch("sft", resume) == 2
    assert "optimizer.pt asks for builtins.eval" in capsys.readouterr().err
    Path("run/config.yaml").write_text("seed: !!python/object/apply:os.mkdir [ran]\n")
    assert launch("sft", resume) == 2
    assert "is not the configuration of a run" in capsys.readouterr().err
    assert list(Path("outside").iterdir()) == []
    assert not Path("ran").exists()


def test_lineage_does_not_speak_of_trust_where_none_was_given(checkpoint: Path) -> None:
    assert "trust_remote_code" not in (checkpoint.parent / "lineage.json").read_text()


def test_other_places_for_code_in_a_model_folder_are_left_alone(place: Path) -> None:
    Path("model/custom_generate").mkdir()
    Path("model/custom_generate/generate.py").write_text(CODE)
    Path("model/mine.py").write_text(CODE)
    config = json.loads(Path("model/tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["mine.Mine", None]}
    Path("model/tokenizer_config.json").write_text(json.dumps(config))
    load_policy(args("model"))
    load_tokenizer("model")
    assert not Path("ran").exists()


def test_a_template_cannot_reach_out_of_its_sandbox(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("model/chat_template.jinja").write_text(
        "{{ cycler.__init__.__globals__.os.mkdir('ran') }}{{ messages[0].content }}"
    )
    before = snapshot(place)
    assert launch("sft", flags(SFT | {"dataset_name": "chat.jsonl"})) == 2
    said = capsys.readouterr().err
    assert "the chat template cannot render (access to attribute '__init__'" in said
    assert snapshot(place) == before


def test_a_template_with_a_path_for_a_name_is_refused_before_training(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("model/chat_template.jinja").unlink()
    config = json.loads(Path("model/tokenizer_config.json").read_text())
    named = {"default": "{{ messages[0].content }}", "../../ran": "x"}
    config["chat_template"] = [{"name": key, "template": text} for key, text in named.items()]
    Path("model/tokenizer_config.json").write_text(json.dumps(config))
    assert launch("sft", flags(SFT)) == 2
    assert "is named '../../ran', which is a path; rename it" in capsys.readouterr().err
    assert not Path("run").exists()


def test_tokens_reach_no_file_and_no_output(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secrets = {
        "HF_TOKEN": "hf_plantedbytest1",
        "WANDB_API_KEY": "plantedbytest2",
        "OPENAI_API_KEY": "sk-plantedbytest3",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    given = "hf_plantedbytest4"
    Path("rewards.py").write_text(
        "def odd(completion_ids, **_):\n    return [ids[0] / 9 for ids in completion_ids]\n"
    )
    ppo = {
        "dataset_name": "rows.jsonl",
        "reward_funcs": ["rewards.py:odd"],
        "total_episodes": 4,
        "rollout_batch_size": 4,
        "num_ppo_epochs": 1,
        "per_device_train_batch_size": 4,
        "max_completion_length": 4,
        "save_strategy": "steps",
        "save_steps": 1,
        "output_dir": "ppo",
        "model_name_or_path": "run",
    }
    for recipe, values in (("sft", SFT), ("ppo", ppo)):
        own = {"hub_token": given, "disable_tqdm": False}
        assert launch(recipe, flags(values | own)) == 0
        # A mistake is told without them, too.
        assert launch(recipe, flags(values | own)) == 2
    said = capfd.readouterr()
    written = [path for path in place.rglob("*") if path.is_file()]
    assert {"lineage.json", "report.html", "config.yaml", "optimizer.pt"} <= {
        path.name for path in written
    }
    for secret in (*secrets.values(), given):
        assert secret not in said.out + said.err
        found = [str(path) for path in written if secret.encode() in path.read_bytes()]
        assert found == []


SAVED_BY_ONE = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def sharded(folder: Path) -> Path:
    """A checkpoint in shards, as FSDP writes it."""
    from torch.distributed.checkpoint.state_dict_saver import save

    state = {"weight": torch.arange(4.0), "step": torch.tensor(3)}
    save(state, checkpoint_id=folder / "pytorch_model_fsdp_0", no_dist=True)
    return folder


@SAVED_BY_ONE
def test_honest_shards_are_read(tmp_path: Path) -> None:
    check_checkpoint(sharded(tmp_path))


@SAVED_BY_ONE
@pytest.mark.parametrize(
    "place", ["pytorch_model_fsdp_0/.metadata", "global_step1/mp_rank_00_model_states.pt"]
)
def test_code_in_shards_is_refused_unread_unless_it_is_trusted(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = sharded(tmp_path / "checkpoint-1")
    path = folder / place
    path.parent.mkdir(exist_ok=True)
    if path.suffix:
        torch.save({"module": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match=r"asks for (builtins|__builtin__)\.eval, which could run"):
        check_checkpoint(folder)
    assert not Path("ran").exists()
    check_checkpoint(folder, is_trusted=True)


@SAVED_BY_ONE
@pytest.mark.parametrize(
    "reference",
    [
        b"ctorch.distributed.checkpoint.metadata\nos.getcwd\n",  # through a module into another
        b"ctorch.distributed.checkpoint.metadata\nfind_state_dict_object\n",
        b"cshutil\nrmtree\n",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused_in_metadata(
    reference: bytes, tmp_path: Path
) -> None:
    folder = sharded(tmp_path / "checkpoint-1")
    (folder / "pytorch_model_fsdp_0/.metadata").write_bytes(b"\x80\x04" + reference + b"(tR.")
    with pytest.raises(UserError, match=r"\.metadata asks for (torch|shutil)\."):
        check_checkpoint(folder)


@SAVED_BY_ONE
def test_code_in_a_part_of_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    monkeypatch.chdir(tmp_path)
    state = {"harmless": "words", "state": Bomb()}  # in one file, one behind the other
    save(state, checkpoint_id=tmp_path / "pytorch_model_fsdp_0", no_dist=True)
    with pytest.raises(UserError, match=r"asks for (builtins|__builtin__)\.eval"):
        check_checkpoint(tmp_path)
    assert not Path("ran").exists()


@pytest.mark.parametrize("elsewhere", ["../other", "..", "", "/tmp", "global_step1/.."])
def test_what_deepspeed_would_read_elsewhere_is_refused(elsewhere: str, tmp_path: Path) -> None:
    (tmp_path / "global_step1").mkdir()
    (tmp_path / "latest").write_text("global_step1")
    check_checkpoint(tmp_path)
    (tmp_path / "latest").write_text(elsewhere)
    with pytest.raises(UserError, match=re.escape(f"latest asks for the folder {elsewhere!r}")):
        check_checkpoint(tmp_path)
