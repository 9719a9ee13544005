"""Coloured shapes as pictures, and a small model that has seen none of them."""

import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SHAPES = ("circle", "square", "triangle")
COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (40, 200, 60)}
COLOURS["yellow"] = (230, 220, 40)
SIDE, PATCH = 24, 4  # pixels
WORDS = f"what is this ? a . {' '.join(SHAPES)} {' '.join(COLOURS)}".split()
SPECIAL = ["<pad>", "<eos>", "<unk>", "<image>", "<user>", "<assistant>"]
TEMPLATE = """
{%- macro said(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}
{{ "<image>" if part.type == "image" else part.text }}{{ "" if loop.last else " " }}
{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- if message.role == "assistant" -%}
<assistant> {% generation %}{{ said(message.content) }} <eos>{% endgeneration %}
{%- else -%}<user> {{ said(message.content) }} {% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<assistant> {% endif -%}
"""


def picture(shape: str, colour: str, draw: random.Random) -> Image.Image:
    """A shape somewhere on a dark ground."""
    made = Image.new("RGB", (SIDE, SIDE), tuple(draw.randrange(60) for _ in "rgb"))
    pen, size = ImageDraw.Draw(made), draw.randrange(10, 14)
    left, top = draw.randrange(SIDE - size), draw.randrange(SIDE - size)
    box = (left, top, left + size, top + size)
    if shape == "circle":
        pen.ellipse(box, COLOURS[colour])
    elif shape == "square":
        pen.rectangle(box, COLOURS[colour])
    else:
        corners = [(left, top + size), (left + size, top + size), (left, top)]
        pen.polygon(corners, COLOURS[colour])
    return made


def write_pictures(folder: Path, number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pictures in a folder, and rows of SFT that name them."""
    draw, rows = random.Random(seed), []
    for place in range(number):
        shape, colour = draw.choice(SHAPES), draw.choice([*COLOURS])
        file = folder / "pictures" / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(shape, colour, draw).save(file)
        asked = [{"role": "user", "content": "what is this ?"}]
        said = [{"role": "assistant", "content": f"a {colour} {shape} ."}]
        rows.append({"images": [f"pictures/{place}.png"], "prompt": asked, "completion": said})
    return rows


def make_llava(folder: Path, seed: int = 0) -> None:
    """A LLaVA of 0.17 million drawn weights with its processor, in a folder."""
    words = {word: place for place, word in enumerate([*SPECIAL, *WORDS])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[3:],
        chat_template=TEMPLATE,
    )
    size: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    size["num_attention_heads"] = 4
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**size, image_size=SIDE, patch_size=PATCH),
        text_config=LlamaConfig(
            **size,
            vocab_size=len(words),
            max_position_embeddings=128,
            pad_token_id=words["<pad>"],
            eos_token_id=words["<eos>"],
            bos_token_id=None,
        ),
        image_token_index=words["<image>"],
        vision_feature_layer=-1,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = words["<eos>"]
    model.generation_config.pad_token_id = words["<pad>"]
    model.save_pretrained(folder)
    sides = {"height": SIDE, "width": SIDE}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=sides, crop_size=sides, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
