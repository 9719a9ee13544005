"""Keys that only the libraries check: asked before the run, or told when it fails over them."""

from __future__ import annotations

import importlib.util
from typing import Any

from recipes.lib.config.build import yaml_text
from recipes.lib.errors import UserError, note, one_sentence

# What a library says while a run begins, and the key that it is about.
KEY_OF_MESSAGE = {
    "Unknown loss type": "loss_type",
    "Unexpected keyword arguments": "gradient_checkpointing_kwargs",
    "vLLM is not available": "use_vllm",
    "liger-kernel": "use_liger_kernel",
    "You have set `use_liger_kernel`": "use_liger_kernel",
}
NO_TEST_ROWS = (
    "eval_strategy: there are no test rows to evaluate on; set test_fraction or "
    "test_dataset_name, or leave eval_strategy out."
)
HUB_ERRORS = tuple(
    "OfflineModeIsEnabled HfHubHTTPError RepositoryNotFoundError LocalTokenNotFound".split()
)
# What earlier SFT files put into dataset_kwargs, which TRL no longer reads.
SKIP_PREPARE = "skip_prepare_dataset"
APPEND_CONCAT = "append_concat_token"  # whether an EOS token stood between packed rows
ADD_SPECIAL_TOKENS = "add_special_tokens"  # whether a tokenizer put its BOS before text
# What transformers reports to, and the modules of those that are called otherwise than the tracker.
TRACKERS = (
    "tensorboard wandb trackio mlflow comet_ml clearml swanlab dvclive neptune codecarbon dagshub "
    "azure_ml flyte kubeflow".split()
)
MODULES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "azure_ml": ("azureml.core",),
    "flyte": ("flytekit",),
    "kubeflow": ("sys",),  # the pod that it runs in tells transformers
}
LIBRARY_ERRORS = (ValueError, TypeError, ImportError, RuntimeError, KeyError, AttributeError)


def check_trackers(report_to: Any) -> None:
    """Refuse a tracker that is not known or not installed, without the imports of seconds.

    Args:
        report_to: The key as it was given, or None.

    Raises:
        UserError: There is one.
    """
    for name in report_to if isinstance(report_to, list) else [report_to]:
        # A list in JSON is read later, and what is no text is refused as that.
        if not isinstance(name, str) or name in ("none", "all") or name.startswith("["):
            continue
        if name not in TRACKERS:
            known = ", ".join(TRACKERS)
            raise UserError(f"report_to={name}: there is no such tracker; known are {known}.")
        modules = MODULES.get(name, (name,))
        if not any(map(_is_installed, modules)):
            package = modules[0].replace(".", "-")
            package = "'rlhf-recipes[track]'" if name in ("tensorboard", "wandb") else package
            raise UserError(f"report_to={name}: it is not installed; pip install {package}.")


def _is_installed(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of the package around it
        return False
    return spec is not None and spec.origin is not None  # wandb leaves a mere folder of its name


def check_training(training: Any, values: dict[str, Any]) -> None:
    """Ask the libraries for what they would make of some keys in the middle of a run.

    Args:
        training: The TrainingArguments of the run, or None.
        values: What the user set.

    Raises:
        UserError: The optimizer, the schedule or a tracker cannot be had with these values.
    """
    if training is None:
        return
    import torch
    from transformers import Trainer, get_scheduler
    from transformers.integrations import get_reporting_integration_callbacks

    if values.get("model_init_kwargs"):
        note(
            "model_init_kwargs is left out: the model is loaded by keys of their own (dtype, "
            "attn_implementation, model_revision)."
        )
        training.model_init_kwargs = None  # which trackers would be told, tokens and all

    def schedule() -> None:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        kwargs = training.lr_scheduler_kwargs or {}
        name = training.lr_scheduler_type
        if name not in ("reduce_lr_on_plateau", "greedy"):
            get_scheduler(name, optimizer, 1, 10, kwargs)

    def trackers() -> None:
        for tracker in get_reporting_integration_callbacks(training.report_to):
            tracker()

    if training.push_to_hub:
        _check_hub_strategy(values.get("hub_strategy", "end"))
    check_trackers(training.report_to)
    _ask(schedule, values, ("lr_scheduler_type", "lr_scheduler_kwargs"))
    _ask(trackers, values, ("report_to",))
    if "optim" in values:
        _ask(lambda: Trainer.get_optimizer_cls_and_kwargs(training), values, ("optim",))


def _check_hub_strategy(strategy: str) -> None:
    if strategy == "every_save":  # Trainer's default, which many files spell out
        note("hub_strategy=every_save: the run is pushed once, whole, when it is done.")
    elif strategy != "end":
        raise UserError(
            f"hub_strategy={strategy}: checkpoints hold pickles, which are not pushed; leave it "
            "out, and the finished run is."
        )


def _ask(question: Any, values: dict[str, Any], keys: tuple[str, ...]) -> None:
    given = [key for key in keys if key in values]
    if not given:
        return
    try:
        question()
    except LIBRARY_ERRORS as error:
        named = ", ".join(f"{key}={yaml_text(values[key])}" for key in given)
        raise UserError(f"{named}: {one_sentence(error)}.") from error


def library_refusal(error: BaseException, values: dict[str, Any]) -> UserError | None:
    """What a library refuses while a run begins, in one sentence.

    Args:
        error: What was raised.
        values: What the user set.

    Returns:
        The error to raise, or None for what is a fault of the program.
    """
    said = one_sentence(error)
    if "didn't pass an `eval_dataset`" in said:
        return UserError(NO_TEST_ROWS)
    for words, key in KEY_OF_MESSAGE.items():
        if words in said and key in values:
            return UserError(f"{key}={yaml_text(values[key])}: {said}.")
    if values.get("push_to_hub") and type(error).__name__.startswith(HUB_ERRORS):
        return UserError(
            f"push_to_hub=true: the Hub refused or cannot be reached ({said}); log in, or leave it "
            "out."
        )
    return None


def check_dataset_kwargs(kwargs: Any, is_text: bool, tokenizer: Any) -> None:
    """Say what becomes of dataset_kwargs that TRL would ignore without a word.

    Args:
        kwargs: dataset_kwargs of an SFTConfig.
        is_text: Whether the rows are text; messages have the tokens of their chat template alone.
        tokenizer: The model's.

    Raises:
        UserError: A key is not known, or leaving it out would change the tokens of the rows.
    """
    if not isinstance(kwargs, dict):
        return
    unknown = sorted(set(kwargs) - {SKIP_PREPARE, APPEND_CONCAT, ADD_SPECIAL_TOKENS})
    if unknown:
        raise UserError(
            f"dataset_kwargs: {unknown[0]} is not known; TRL knows {SKIP_PREPARE} alone."
        )
    if APPEND_CONCAT in kwargs:
        note(f"dataset_kwargs: {APPEND_CONCAT} is left out: each row ends with one EOS token.")
    if ADD_SPECIAL_TOKENS not in kwargs:
        return
    with_them, without = (
        tokenizer("a", add_special_tokens=on)["input_ids"] for on in (True, False)
    )
    if is_text and not kwargs[ADD_SPECIAL_TOKENS] and with_them != without:
        first = tokenizer.convert_ids_to_tokens(with_them)[0]
        raise UserError(
            f"dataset_kwargs: {ADD_SPECIAL_TOKENS}=false is no longer in TRL, and text gets "
            f"the tokens of its tokenizer, such as {first}; leave it out, or write the rows as "
            "messages."
        )
    same = "text has the tokens of its tokenizer" if is_text else "the chat template writes them"
    note(f"dataset_kwargs: {ADD_SPECIAL_TOKENS} is left out: {same}.")
