"""The defaults that depend on the run or the machine, and so stand in no dataclass."""

from pathlib import Path
from typing import Any

from recipes.lib.config.fields import fields_of

IN_WORDS = {
    "output_dir": "runs/<recipe>/<name of the config>",
    "bf16": "true on CUDA hardware that has it",
    "fp16": "true on CUDA hardware without bf16",
    "report_to": "none",
    "disable_tqdm": "false",
}


def with_defaults(
    recipe: str, path: Path | None, types: tuple[type, ...], values: dict[str, Any]
) -> dict[str, Any]:
    """Adds output folder, trackers and precision where the user gave none.

    Args:
        recipe: Name of the recipe.
        path: The configuration file.
        types: The recipe's dataclasses.
        values: What the user gave.

    Returns:
        A new mapping with those keys added that the dataclasses have.
    """
    fields = fields_of(types)
    # disable_tqdm left open would follow the log level, and ours is quiet.
    added: dict[str, Any] = {"report_to": "none", "disable_tqdm": False}
    if "output_dir" in fields and fields["output_dir"].default is None:
        added["output_dir"] = str(Path("runs") / recipe / (path.stem if path else "default"))
    if "bf16" in fields and "fp16" in fields:
        added |= precision(values)
    return {key: value for key, value in added.items() if key in fields} | _given(values)


def precision(values: dict[str, Any]) -> dict[str, bool]:
    """Chooses the training precision by hardware unless the user did.

    TRL's configurations turn bf16 on by default, which fails on some cards and crawls on a CPU.

    Args:
        values: What the user gave.

    Returns:
        `bf16` and `fp16`, or nothing where the user chose.
    """
    if values.get("bf16") is not None or values.get("fp16"):
        return {}
    if values.get("use_cpu"):
        return {"bf16": False}
    import torch

    if not torch.cuda.is_available():
        return {"bf16": False}
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return {"bf16": True}
    # Turing and older: fp16 unless it was switched off by name.
    return {"bf16": False, "fp16": "fp16" not in values}


def _given(values: dict[str, Any]) -> dict[str, Any]:
    # `bf16: null` asks for the default, as leaving it out does.
    return {key: value for key, value in values.items() if (key, value) != ("bf16", None)}
