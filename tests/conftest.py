"""What every test gets: no network, fixed seeds, a tiny model, no skip for an unknown reason."""

import gc
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # one core each, before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from recipes.lib.models.quick_import import import_quickly

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from tests.helpers.loopback_hub import LoopbackHub

import_quickly()
ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
WORDS = (
    "the cat dog bird child sun moon rain tree house river stone book door road hill "
    "is was sat ran saw found kept loved made gave took sang slept old new small red blue warm "
    "cold happy sad kind and but on in to with a it they . ? ! what who tell me"
).split()
LONG_FIRST = ("distributed/", "recipes/")
SPECIAL = ["<pad>", "<eos>", "<unk>", "<system>", "<user>", "<assistant>"]
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "<assistant> {% generation %}{{ message.content }} <eos>{% endgeneration %} "
    "{% else %}<{{ message.role }}> {{ message.content }} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Files that take minutes begin first, so that no process waits for one of them at the end.
    items.sort(key=lambda item: (*(folder not in item.nodeid for folder in LONG_FIRST),))
    if config.getoption("--all"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if item not in slow]
    config.hook.pytest_deselected(items=slow)


class SkipGate:
    """Fails the session when a test was skipped for a reason that is not on the committed list."""

    def __init__(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines()
        self.allowed = {line.strip() for line in lines if line.strip() and line[0] != "#"}
        self.offending: list[str] = []

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = text.removeprefix("Skipped: ")
        if reason not in self.allowed:
            self.offending.append(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.note(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        harmless = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        if self.offending and session.exitstatus in harmless:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.offending:
            terminalreporter.section("skipped for a reason that is not in tests/allowed_skips.txt")
            for line in self.offending:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipGate(ROOT / "tests" / "allowed_skips.txt"), "skip-gate")


@pytest.fixture(autouse=True, scope="module")
def _loaded_modules_are_no_garbage() -> None:
    """Half a second for each training, which collects garbage among all that was ever imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    # Only where they are loaded: most tests need neither, and loading takes seconds.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data beside the project."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not beside the project")
    return SHARED


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator["Callable[[LoopbackHub], None]"]:
    """Has the Hub's client speak to a loopback Hub, in this process and in those that it starts."""
    from huggingface_hub import close_session, constants, hf_api

    def connect(hub: "LoopbackHub") -> None:
        close_session()
        variables = {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_not_a_real_token"}
        variables |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.address)
        files = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + files)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        if "transformers.utils.hub" in sys.modules:  # which remembers the Hub that it spoke to
            monkeypatch.setattr("transformers.utils.hub._hf_api", None)

    for name in [name for name in os.environ if "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    yield connect
    close_session()


@pytest.fixture
def without_feedback_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the packages of the extra [feedback] be absent, which few need and tests have."""
    for package in ("markdown_it", "nh3", "sqlalchemy", "starlette", "uvicorn"):
        monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith("recipes.lib.feedback.")]:
        monkeypatch.delitem(sys.modules, name)  # what imported them before


def word_tokenizer(more: Sequence[str] = ()) -> "PreTrainedTokenizerFast":
    """Whole words split at white space, and a chat template that marks the assistant's tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS, *more])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def tiny_tokenizer() -> "PreTrainedTokenizerFast":
    """The tokenizer of `word_tokenizer`."""
    return word_tokenizer()


@pytest.fixture
def tiny_model(tiny_tokenizer: "PreTrainedTokenizerFast") -> "LlamaForCausalLM":
    """A random Llama of two layers over the words of `tiny_tokenizer`; always the same weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tiny_tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            pad_token_id=tiny_tokenizer.pad_token_id,
            eos_token_id=tiny_tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
