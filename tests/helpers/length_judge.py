"""A tiny model, prompts, and a judge that likes what the model knows nothing of: long texts."""

from pathlib import Path
from typing import Any

from tests.helpers.tiny_runs import write

JUDGE = """
def judge(prompts, completions):
    return [float(len(turns[0]["content"])) for turns in completions]
"""
WORDS = "cat dog bird child sun moon rain tree house river".split()


def prepare(folder: Path, model: Any, tokenizer: Any, num_prompts: int) -> Path:
    """Write model/, judge.py and prompts.jsonl, of at most 100 prompts.

    Returns:
        The folder.
    """
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "judge.py").write_text(JUDGE)
    asked = [f"tell me {one} {other}" for other in WORDS for one in WORDS][:num_prompts]
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in asked]
    write(folder / "prompts.jsonl", rows)
    return folder
