"""Base model: trains a small Llama from scratch on plain text that the project generates itself.

Loss: the mean of -log p(token | tokens before it) over all tokens.

Data: none is read. The text comes from recipes/lib/tasks/tales, seeded; so do the rows of the later
stages, which share nothing with it: data/sft_train.jsonl, sft_test.jsonl, feedback_prompts.jsonl,
ppo_prompts.jsonl and eval_prompts.jsonl in the run folder.
Writes final/ (model and tokenizer), data/, metrics.jsonl and summary.json.

    python -m recipes.base --config configs/quickstart/base.yaml
    accelerate launch --num_processes 2 -m recipes.base --config configs/quickstart/base.yaml
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.distributed.processes import is_main_process
from recipes.lib.errors import UserError
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.runs.files import copy_tree, write_jsonl
from recipes.lib.runs.folder import Run, RunArguments, open_run

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(kw_only=True)
class BaseArguments(RunArguments):
    """Keys of the recipe beside those of SFTConfig."""

    trained: str | None = option(
        None,
        "A model this recipe has trained before: its folder, or shipped for the one "
        "that comes with the project: it is taken as it is, and only the data are written.",
    )
    num_texts: int = option(8000, "Plain texts to train on.")
    num_sft_train: int = option(4000, "Rows of data/sft_train.jsonl.")
    num_sft_test: int = option(256, "Rows of data/sft_test.jsonl.")
    num_feedback_prompts: int = option(3000, "Rows of data/feedback_prompts.jsonl.")
    num_ppo_prompts: int = option(4000, "Rows of data/ppo_prompts.jsonl.")
    num_eval_prompts: int = option(512, "Rows of data/eval_prompts.jsonl.")
    vocab_size: int = option(1024, "Entries of the tokenizer.")
    hidden_size: int = option(128, "Width of the model.")
    intermediate_size: int = option(384, "Width inside of its MLPs.")
    num_layers: int = option(3, "Layers of the model.")
    num_heads: int = option(4, "Attention heads of a layer.")
    initializer_range: float = option(
        0.06, "Standard deviation of the drawn weights; 0.02 suits wider models."
    )
    context_tokens: int = option(256, "Longest sequence, in tokens.")


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    from trl import SFTConfig

    return BaseArguments, SFTConfig


SHIPPED = Path(__file__).parent / "lib/tasks/tales/trained"
NUM_TOKENIZER_TEXTS = 8000  # the last: the first know few words, and beyond these no new ones come

SPLIT_OF_KEY = {  # of the tales, by the key of its size
    f"num_{name}": name.removesuffix("_prompts")
    for name in "sft_train sft_test feedback_prompts ppo_prompts eval_prompts".split()
}


def validate(script: BaseArguments) -> None:
    """Check the sizes before anything is generated.

    Raises:
        UserError: The heads do not divide the width evenly, the vocabulary has no room, or more
            rows are asked for than there are different ones.
    """
    from recipes.lib.tasks.tales.prompts import facts_of

    if script.num_heads < 1 or script.hidden_size % (2 * script.num_heads):
        raise UserError(
            f"hidden_size={script.hidden_size}: not a multiple of {2 * script.num_heads}, twice "
            f"num_heads={script.num_heads}; change one of them."
        )
    if script.vocab_size < 300:
        raise UserError(
            f"vocab_size={script.vocab_size}: too small for 256 bytes, 5 special tokens and any "
            "words; use 300 or more."
        )
    if script.trained and not (trained_folder(script.trained) / "model.safetensors").is_file():
        raise UserError(f"trained={script.trained}: there is no model.safetensors in it.")
    for key, split in SPLIT_OF_KEY.items():
        number, most = getattr(script, key), len(facts_of(split))
        if not 0 < number <= most:
            raise UserError(f"{key}={number}: give 1 to {most}, all the different prompts it has.")


def trained_folder(trained: str) -> Path:
    """The folder of a model that was trained before."""
    return SHIPPED if trained == "shipped" else Path(trained)


def write_data(script: BaseArguments, seed: int, folder: Path) -> None:
    """Write the rows of the later stages."""
    from recipes.lib.tasks.tales.rows import prompt_rows, sft_rows

    folder.mkdir(exist_ok=True)
    for key, split in SPLIT_OF_KEY.items():
        rows_of = sft_rows if split.startswith("sft") else prompt_rows
        rows = rows_of(split, getattr(script, key), seed)
        write_jsonl(folder / f"{key.removeprefix('num_')}.jsonl", rows)


def make_model(
    script: BaseArguments, tokenizer: PreTrainedTokenizerFast, seed: int
) -> LlamaForCausalLM:
    """Draw a model of the asked size."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, set_seed

    from recipes.lib.models.cpu_linear import use_fast_products

    set_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=script.vocab_size,
            hidden_size=script.hidden_size,
            intermediate_size=script.intermediate_size,
            num_hidden_layers=script.num_layers,
            num_attention_heads=script.num_heads,
            num_key_value_heads=script.num_heads,
            max_position_embeddings=script.context_tokens,
            tie_word_embeddings=True,
            initializer_range=script.initializer_range,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    use_fast_products(model)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    return model


@guarded
def run(config: Config) -> dict[str, Any]:
    """Generate the text and the data, train the tokenizer and the model, save.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: train_loss in nats per token, sizes, seconds.

    Raises:
        UserError: The sizes do not fit together, or the run folder cannot be used.
    """
    from recipes.lib.recipe.spine import finish

    script, training = config.script, config.training
    validate(script)
    folder = open_run(config)
    if is_main_process():
        write_data(script, training.seed, folder.path / "data")
    summary = copy_trained(script.trained, folder) if script.trained else train_new(config, folder)
    return finish(folder, config, summary, model=script.trained, data=[])


def copy_trained(trained: str, folder: Run) -> dict[str, Any]:
    """Copy a model that was trained before to final/."""
    from safetensors import safe_open

    if is_main_process():
        copy_tree(trained_folder(trained), folder.final)
    with safe_open(folder.final / "model.safetensors", framework="np") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    return {"num_parameters": sum(math.prod(shape) for shape in shapes)}


def train_new(config: Config, folder: Run) -> dict[str, Any]:
    """Train the tokenizer and the model, save both to final/."""
    from datasets import Dataset
    from trl import SFTTrainer

    from recipes.lib.recipe import spine
    from recipes.lib.tasks.tales.rows import base_texts
    from recipes.lib.tasks.tales.tokenizer import train_tokenizer
    from recipes.lib.trainers.progress import add_run_callbacks
    from recipes.lib.trainers.trl import resumable

    script, training = config.script, config.training
    texts = base_texts(script.num_texts, training.seed)
    tokenizer = train_tokenizer(texts[-NUM_TOKENIZER_TEXTS:], script.vocab_size)
    model = make_model(script, tokenizer, training.seed)
    trainer = resumable(SFTTrainer)(
        model=model,
        args=training,
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=tokenizer,
    )
    add_run_callbacks(
        trainer, folder.path, "base", {"loss": "loss", "mean_token_accuracy": "accuracy"}
    )
    train_loss = spine.train(trainer, folder)["train_loss"]
    spine.save_final(trainer, folder)
    return {
        "train_loss": train_loss,
        "num_parameters": model.num_parameters(),
        "num_texts": len(texts),
    }


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("base", argv)


if __name__ == "__main__":
    raise SystemExit(main())
