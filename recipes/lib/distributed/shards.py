"""Models whose weights lie in shards: whole again where one process has to use or save them.

Under FSDP2 and ZeRO-3 a forward pass gathers weights from all processes, so one process that
generates or scores by itself would wait for the others for ever. Inside `unsharded_model` it does
not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from recipes.lib.distributed.processes import is_main_process
from recipes.lib.errors import UserError

Result = TypeVar("Result")


def zero_stage(trainer: Any) -> int:
    """DeepSpeed's ZeRO stage; 0 without it."""
    if not trainer.is_deepspeed_enabled:
        return 0
    return int(trainer.accelerator.state.deepspeed_plugin.zero_stage)


@contextmanager
def unsharded_model(trainer: Any, *, trained: bool = False, alone: bool = False) -> Iterator[Any]:
    """Let each process use the trained model by itself; all processes enter and leave together.

    Args:
        trainer: A transformers Trainer, in training or behind it.
        trained: The training is over: the model computes in the format of its weights, without
            the mixed precision that accelerate put around it.
        alone: The processes may do different things; under ZeRO-3 the weights are then gathered
            before, where its engine would gather them in every forward pass, in step.

    Yields:
        The model without what the launcher wrapped around it.
    """
    from torch.distributed.fsdp import FSDPModule

    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=not trained)
    if zero_stage(trainer) == 3:
        with _gathered(trainer, model, alone):
            yield model
    elif isinstance(model, FSDPModule):
        # Before a part of a module is used alone, FSDP2 has to see a pass through all of it.
        getattr(model, "pass_through", lambda: None)()
        with _unsharded(model, trainer.accelerator.state.fsdp_plugin.reshard_after_forward):
            yield model
    else:
        yield model
    trainer.accelerator.wait_for_everyone()


def unsharded(trainer: Any, function: Callable[[int], Result]) -> Callable[[int], Result]:
    """A function that each process calls by itself, with the model whole during it.

    Args:
        trainer: A transformers Trainer.
        function: The function.

    Returns:
        The same, called inside `unsharded_model`; as it is where the model is in no shards.
    """
    if not trainer.is_fsdp_enabled and zero_stage(trainer) != 3:
        return function

    def called(number: int) -> Result:
        with unsharded_model(trainer, alone=True):
            return function(number)

    return called


def does_main_work(trainer: Any) -> bool:
    """Whether a process does what is the main process's to do, inside `unsharded_model`.

    Under ZeRO-3 all of them do the same in step, because its engine gathers in every forward pass.
    """
    return is_main_process() or zero_stage(trainer) == 3


@contextmanager
def load_unsharded(args: Any) -> Iterator[None]:
    """Let models be loaded as they are, where ZeRO-3 would load a shard of them.

    Args:
        args: A TrainingArguments.
    """
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is None or plugin.zero_stage != 3:
        yield
        return
    from transformers.integrations import deepspeed

    before = deepspeed._hf_deepspeed_config_weak_ref  # where from_pretrained looks
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = before


@contextmanager
def _gathered(trainer: Any, model: Any, alone: bool) -> Iterator[None]:
    engine = trainer.model_wrapped
    if engine is not model and not alone:  # it gathers by itself
        yield
        return
    import deepspeed
    from trl.models.utils import add_hooks, remove_hooks

    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        if engine is model:
            yield
            return
        remove_hooks(engine)  # which would let go of weights behind each layer
        try:
            yield
        finally:
            add_hooks(engine)


@contextmanager
def _unsharded(model: Any, reshards: bool) -> Iterator[None]:
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    # Else every layer would let go of its weights behind its forward pass, and gather them anew.
    model.set_reshard_after_forward(False)
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
        model.set_reshard_after_forward(reshards)
        model.set_reshard_after_forward(False, recurse=False)  # the outermost is needed at once


def gathered_state_dict(trainer: Any) -> dict[str, Any] | None:
    """Weights of a model in shards, whole, on the main process; all processes call it.

    Args:
        trainer: A transformers Trainer.

    Returns:
        The weights by name (empty on the others); None for a model that is in no shards.
    """
    if trainer.is_fsdp_enabled:
        return dict(trainer.accelerator.get_state_dict(trainer.model))
    if zero_stage(trainer) == 3:
        return dict(trainer.accelerator.get_state_dict(trainer.model_wrapped) or {})
    return None


def refuse_in_engine(args: Any) -> None:
    """Refuse what PPO cannot do in DeepSpeed's engine.

    Args:
        args: A PPOConfig.

    Raises:
        UserError: A critic is to be warmed up, where the engine makes the policy's step, too; or
            checkpoints are to hold the model alone, which is in the engine's files.
    """
    if args.deepspeed_plugin is None:
        return
    if number := args.critic_warmup_rollouts:
        raise UserError(
            f"critic_warmup_rollouts={number}: DeepSpeed keeps gradients to itself, and the policy "
            "would move; set it to 0, or use DDP or FSDP2."
        )
    if args.save_only_model:
        raise UserError(
            "save_only_model=true: under DeepSpeed the weights of PPO's checkpoints are in the "
            "files of its engine, which would be left out; leave it out."
        )


@contextmanager
def save_unsharded(trainer: Any) -> Iterator[None]:
    """Let a trainer save the whole model and not the shard of each process.

    Args:
        trainer: A transformers Trainer.

    Raises:
        UserError: DeepSpeed's configuration does not allow it.
    """
    if zero_stage(trainer) == 3:
        engine = trainer.model_wrapped
        if not engine.zero_gather_16bit_weights_on_model_save():
            raise UserError(
                "zero3_save_16bit_model=false: ZeRO-3 would leave out the weights; set it to true."
            )
    if not trainer.is_fsdp_enabled:
        yield
        return
    plugin = trainer.accelerator.state.fsdp_plugin
    before = plugin.state_dict_type
    plugin.set_state_dict_type("FULL_STATE_DICT")
    try:
        yield
    finally:
        plugin.set_state_dict_type(before.name)
