"""A few completions of held-out rows beside what the data says, for people to read."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from recipes.lib.data.prompts import prompt_text
from recipes.lib.generation.completions import complete, fits
from recipes.lib.pictures.files import IMAGES, data_uri

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NUM_PROMPT_WORDS = 8  # of a row of plain text, to be continued


def held_out_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test: Dataset,
    *,
    num_samples: int,
    max_new_tokens: int,
    temperature: float,
) -> list[dict[str, str]]:
    """Complete the first test prompts, of rows as of SFT, that leave room in the model's context.

    Returns:
        Rows of prompt, reference and completion, as plain text.
    """
    if IMAGES in test.column_names:
        rows = islice(test, num_samples)
        return [_pictured(model, tokenizer, row, max_new_tokens, temperature) for row in rows]
    pairs = map(prompt_and_reference, test)
    fitting = (one for one in pairs if one[0] and fits(model, tokenizer, one[0], max_new_tokens))
    kept = [*islice(fitting, num_samples)]
    prompts, length = [prompt for prompt, _ in kept], max_new_tokens
    made = complete(model, tokenizer, prompts, max_new_tokens=length, temperature=temperature)
    return [
        {"prompt": prompt_text(prompt), "reference": reference, "completion": completion.text}
        for (prompt, reference), completion in zip(kept, made, strict=True)
    ]


def _pictured(
    model: Any, processor: Any, row: dict[str, Any], max_new_tokens: int, temperature: float
) -> dict[str, str]:
    from trl.data_utils import prepare_multimodal_messages

    prompt, reference = prompt_and_reference(row)
    text = prompt
    if isinstance(prompt, list):
        spoken = prepare_multimodal_messages(prompt, images=row[IMAGES])
        text = processor.apply_chat_template(spoken, add_generation_prompt=True, tokenize=False)
    batch = processor(images=row[IMAGES] or None, text=[text], return_tensors="pt").to(model.device)
    how: dict[str, Any] = {"do_sample": False}
    if temperature:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    said = model.generate(**batch, max_new_tokens=max_new_tokens, **how)
    told = processor.tokenizer.decode(
        said[0, batch["input_ids"].shape[1] :], skip_special_tokens=True
    )
    shown = {"prompt": prompt_text(prompt), "reference": reference, "completion": told}
    return shown | {"image": data_uri(row[IMAGES][0])} if row[IMAGES] else shown


def prompt_and_reference(row: dict[str, Any]) -> tuple[Any, str]:
    """What of a row is given to the model, and how the row itself goes on, as text.

    Of messages the last is the reference; of text the first words are the prompt.
    """
    if "prompt" in row:
        return row["prompt"], prompt_text(row["completion"])
    if "messages" in row:
        return row["messages"][:-1], prompt_text(row["messages"][-1:])
    words = row["text"].split(" ")
    return " ".join(words[:NUM_PROMPT_WORDS]), " " + " ".join(words[NUM_PROMPT_WORDS:])
