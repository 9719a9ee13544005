"""Exports a run: a GGUF file for llama.cpp and Ollama, or a checkpoint in 4 or 8 bits.

What was exported is read back and compared with the model as it was trained: weights, logits, and
how text is split into tokens. Writes to runs/export/<name of the run>-<format>: model.gguf with a
Modelfile (adapter.gguf of a LoRA adapter alone), or final/; and export.json.

    rlhf export runs/quickstart/ppo
    rlhf export runs/quickstart/ppo --outtype q8_0
    rlhf export runs/quickstart/ppo --to nf4
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.errors import UserError
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.runs.files import write_json, write_text
from recipes.lib.runs.folder import FolderArguments, Run, named_folder, open_run

POSITIONAL = "run"
FOLDER = "runs/export/<run>-<kind>"
BITS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int8": {"load_in_8bit": True},
}
FORMATS = ("gguf", "gguf-adapter", *BITS)


@dataclass(kw_only=True)
class ExportArguments(FolderArguments):
    """What is exported, and as what."""

    output_dir: str | None = option(FOLDER, "Run folder.")
    run: str | None = option(None, "Run, model folder, adapter folder or Hub id to export.")
    to: str = option(
        "gguf",
        "gguf: the model, an adapter merged; gguf-adapter: a LoRA adapter for its base; nf4, int8: "
        "a checkpoint of transformers and bitsandbytes.",
        choices=FORMATS,
    )
    outtype: str = option("f16", "Numbers of a GGUF file.", choices=("f32", "f16", "q8_0"))
    dtype: str = option(
        "auto",
        "Of the model before: auto (float32 for GGUF, else that of the run), float32, bfloat16.",
    )

    @property
    def kind(self) -> str:
        """The format in one word."""
        return self.outtype if self.to == "gguf" else self.to

    def __post_init__(self) -> None:
        """Name the folder by what is exported."""
        self.output_dir = named_folder(self.output_dir or FOLDER, self)


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    return (ExportArguments,)


def export_gguf(config: Config, source: Any, tokenizer: Any) -> tuple[Run, dict[str, Any]]:
    """Write model.gguf and its Modelfile, and compare the file with the trained model."""
    from recipes.lib.models.policies import load_policy, load_trained
    from recipes.lib.publishing import gguf, readback
    from recipes.lib.publishing.comparison import distance
    from recipes.lib.publishing.modelfile import modelfile

    model, name, outtype = load_trained(source), config.script.run, config.script.outtype
    logits = readback.say(model, tokenizer)
    if hasattr(model, "peft_config"):
        del model
        model = load_policy(source)
    keys = gguf.file_keys(model, tokenizer, outtype, name)
    run = open_run(config)
    gguf.write_model(run.path / "model.gguf", model, keys, outtype)
    numbers = gguf.read_back(run.path / "model.gguf", model, tokenizer)
    numbers |= distance(zip(logits, readback.say(model, tokenizer), strict=True))
    gguf.refuse_difference(numbers, outtype, name)
    write_text(run.path / "Modelfile", modelfile(model, tokenizer))
    return run, {"outtype": outtype} | numbers


def export_adapter(config: Config, source: Any, _: Any) -> tuple[Run, dict[str, Any]]:
    """Write adapter.gguf."""
    from recipes.lib.models.policies import load_trained
    from recipes.lib.publishing import gguf

    name = config.script.run
    gguf.refuse_adapter(source.model_name_or_path, name)
    adapted = load_trained(source)
    gguf.model_keys(adapted.get_base_model(), name)
    run = open_run(config)
    return run, gguf.write_adapter(run.path / "adapter.gguf", adapted, name)


def export_quantized(config: Config, source: Any, tokenizer: Any) -> tuple[Run, dict[str, Any]]:
    """Write final/ in 4 or 8 bits; loaded again it says the same, and how far that is is told."""
    from torch import equal

    from recipes.lib.models.policies import load_policy, load_trained
    from recipes.lib.publishing import readback
    from recipes.lib.publishing.comparison import distance

    trained, kind = load_trained(source), config.script.to
    logits, dtype = readback.say(trained, tokenizer), str(trained.dtype).removeprefix("torch.")
    run = open_run(config)
    model = load_policy(replace(source, dtype=dtype, **BITS[kind]))
    before = readback.say(model, tokenizer)
    model.save_pretrained(run.partial)
    tokenizer.save_pretrained(run.partial)
    again = load_policy(replace(source, model_name_or_path=str(run.partial), dtype="auto"))
    said = readback.say(again, tokenizer)
    if not all(map(equal, before, said)):
        raise UserError(
            f"run={config.script.run}: saved in {kind} and loaded again, it says something else; "
            "choose to=gguf."
        )
    run.publish_final()
    return run, distance(zip(logits, said, strict=True))


EXPORTS = {"gguf": export_gguf, "gguf-adapter": export_adapter}


@guarded
def run(config: Config) -> dict[str, Any]:
    """Export, read back, compare.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: what was compared, KL in nats a token.

    Raises:
        UserError: The run cannot be exported so, or what was written says something else.
    """
    from trl import ModelConfig

    from recipes.lib.models.folders import fetch_adapter, resolve_model
    from recipes.lib.models.tokenizers import load_tokenizer
    from recipes.lib.recipe.spine import finish
    from recipes.lib.runs.settings import run_of, trained_dtype

    script: ExportArguments = config.script
    if script.to != "gguf" and "outtype" in config.values:
        raise UserError(f"outtype={script.outtype}: it goes with to=gguf alone; leave it out.")
    if script.to in EXPORTS and find_spec("gguf") is None:
        raise UserError(
            f"to={script.to}: the package gguf is not installed; pip install 'rlhf-recipes[gguf]'."
        )
    own = "float32" if script.to in EXPORTS else trained_dtype(run_of(str(script.run)))
    dtype = own if script.dtype == "auto" else script.dtype
    path = fetch_adapter(resolve_model(script.run))
    source = ModelConfig(model_name_or_path=path, dtype=dtype)
    export = EXPORTS.get(script.to, export_quantized)
    folder, numbers = export(config, source, load_tokenizer(path))
    summary = {"to": script.to} | numbers
    write_json(folder.path / "export.json", summary)
    return finish(folder, config, summary, model=script.run, data=[])


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("export", argv)


if __name__ == "__main__":
    raise SystemExit(main())
