"""The passes of each recipe, run on paper with the code that runs them in earnest.

Shapes: B sequences, T tokens, P prompt tokens, C completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from recipes.lib.config.parse import Config
from recipes.lib.distributed.launch import Launch
from recipes.lib.plan.measure import Meter, Scale

# Numbers per token that TRL's trainers ask the head for.
OUTPUTS = {
    "sft": ("log_probs", "entropy", "is_top1"),
    "dpo": ("log_probs", "entropy", "mean_logits", "is_top1"),
    "kto": ("log_probs", "entropy", "mean_logits"),
    "rloo": ("log_probs", "entropy"),
    "grpo": ("log_probs", "entropy"),
}


def prepare(scale: Scale, config: Config) -> None:
    """Do to the models what the trainer does: checkpointing, TRL's head, training mode.

    Args:
        scale: The models.
        config: The parsed Config of the recipe.
    """
    from peft import PeftModel
    from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

    training, cast = config.training, scale.cast
    if getattr(training, "disable_dropout", False):
        for module in cast.modules:
            disable_dropout_in_model(module)
    if config.recipe in OUTPUTS:
        for model in (cast.policy, cast.reference):
            if model is not None:
                base = model.get_base_model() if isinstance(model, PeftModel) else model
                add_fused_lm_head(base, outputs=OUTPUTS[config.recipe])
    if training.activation_checkpointing:
        how = dict(training.activation_checkpointing_kwargs or {})
        every, offload = how.pop("every_n_layers", 1), how.pop("offload", False)
        cast.trained.activation_checkpointing_enable(
            activation_checkpointing_kwargs=how or None, every_n_layers=every, offload=offload
        )
        if isinstance(cast.policy, PeftModel):
            with scale.mode:
                cast.policy.enable_input_require_grads()
    cast.trained.train()


def training_pass(
    scale: Scale, config: Config, loss_of: Callable[[Meter], Tensor], launch: Launch
) -> dict[str, int]:
    """Weigh the forward and backward pass of a micro-batch.

    Args:
        scale: The models.
        config: The parsed Config of the recipe.
        loss_of: Makes the loss, in mixed precision where the run has it.
        launch: How the run is started: where gradients are sharded, each leaves as soon as it is
            there.

    Returns:
        Bytes by kind.
    """
    trained = [p for p in scale.cast.trained.parameters() if p.requires_grad]
    # Added to what is there, or sent to where its shard is: gone, for this pass.
    leaves = launch.shards_optimizer > 1 or config.training.gradient_accumulation_steps > 1

    def run(meter: Meter) -> None:
        try:
            with _leaving(trained) if leaves else meter.gradients_of(trained):
                with meter.keeping():
                    loss = loss_of(meter)
                loss.backward()
        finally:
            for parameter in trained:
                parameter.grad = None

    # Where gradients come as activations go, the fullest moment may be anywhere.
    is_full = not leaves and sum(p.numel() for p in trained) > 10**9
    return scale.weigh(run, is_deep=is_full)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Use a model as where nothing is learned: without dropout, checkpointing and gradients."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(was_training)


@contextmanager
def _leaving(parameters: list[Any]) -> Iterator[None]:
    def leave(parameter: Any) -> None:
        parameter.grad = None

    handles = [p.register_post_accumulate_grad_hook(leave) for p in parameters]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def fused_loss(
    scale: Scale, rows: int, width: int, *, judged: int = 0, others: int = 0, scored: int = 0
) -> Callable[[Meter], Tensor]:
    """The loss of TRL's trainers on log-probabilities.

    Args:
        scale: The models.
        rows: B.
        width: T.
        judged: Passes of the reference while the activations of the policy are kept.
        others: Passes of the policy without gradient before.
        scored: Tokens of each row that are scored; 0 for all.

    Returns:
        Makes the loss.
    """
    policy, reference = scale.cast.policy, scale.cast.reference

    def loss_of(meter: Meter) -> Tensor:
        given = _fused_batch(meter, scale, rows, width, scored)
        with scale.autocast():
            for _ in range(others):
                with torch.no_grad():
                    policy(**given)
            loss: Tensor = -policy(**given).log_probs.sum()
            for _ in range(judged):
                with torch.no_grad():
                    without_adapter(policy, reference, given)
        return loss

    return loss_of


def _fused_batch(meter: Meter, scale: Scale, rows: int, width: int, scored: int) -> dict[str, Any]:
    """A batch for TRL's head, which makes log-probabilities of the scored tokens alone."""
    meter.most_kept = rows * scored or None
    given = scale.batch(rows, width) | {"fused_lm_head": True, "use_cache": False}
    return given | {"labels": given["input_ids"]}


def without_adapter(policy: Any, reference: Any, given: dict[str, Any]) -> None:
    """A pass of the reference: a model of its own, or the policy with its adapter off."""
    if reference is not None:
        reference(**given)
        return
    with policy.disable_adapter():
        policy(**given)


def pair_loss(scale: Scale, pairs: int, width: int) -> Callable[[Meter], Tensor]:
    """The loss of a reward model: both sides of each pair in one batch."""

    def loss_of(meter: Meter) -> Tensor:
        with scale.autocast():
            scores = scale.cast.policy(**scale.batch(2 * pairs, width), use_cache=False).logits
        chosen, rejected = scores.float().squeeze(-1).chunk(2)
        return -torch.nn.functional.logsigmoid(chosen - rejected).mean()

    return loss_of


def ppo_loss(scale: Scale, args: Any, rows: int) -> Callable[[Meter], Tensor]:
    """The loss of PPO on a micro-batch of full length."""

    def loss_of(meter: Meter) -> Tensor:
        with scale.autocast():
            logps, entropy, values = _ppo_forward(scale, args, rows)
        loss: Tensor = logps.sum() + values.sum()
        return loss + entropy.sum() if args.entropy_coef else loss

    return loss_of


def ppo_scoring(scale: Scale, args: Any, rows: int) -> Callable[[Meter], None]:
    """Log-probabilities and values of the policy, and then those of the reference."""
    from recipes.lib.models.forward import Batch
    from recipes.lib.ppo.actor_critic import reference_logps

    def run(meter: Meter) -> None:
        model = scale.cast.trained
        with evaluating(model), scale.autocast():
            said = _ppo_forward(scale, args, rows)
            ids, mask = _ppo_batch(args, rows)
            batch = Batch(ids, mask, args.max_completion_length)
            reference_logps(model, scale.cast.reference, batch, args.temperature)
            del said

    return run


def _ppo_batch(args: Any, rows: int) -> tuple[Tensor, Tensor]:
    width = args.max_prompt_length + args.max_completion_length
    ids = torch.zeros(rows, width, dtype=torch.long)
    return ids, torch.ones_like(ids)


def _ppo_forward(scale: Scale, args: Any, rows: int) -> Any:
    entropies = bool(args.entropy_coef)
    return scale.cast.trained(
        *_ppo_batch(args, rows), args.max_completion_length, args.temperature, entropies
    )


def classifier_scoring(scale: Scale, model: Any, rows: int, width: int) -> Callable[[Meter], None]:
    """A pass of a reward model over texts."""

    def run(meter: Meter) -> None:
        with evaluating(model):
            model(**scale.batch(rows, width), use_cache=False)

    return run


def fused_scoring(scale: Scale, rows: int, width: int, scored: int) -> Callable[[Meter], None]:
    """Log-probabilities of the reference under RLOO and GRPO."""

    def run(meter: Meter) -> None:
        given = _fused_batch(meter, scale, rows, width, scored)
        with torch.no_grad(), scale.autocast():
            without_adapter(scale.cast.policy, scale.cast.reference, given)

    return run


def evaluation(scale: Scale, rows: int, width: int) -> Callable[[Meter], None]:
    """Log-probabilities of the test rows, from full logits: `recipes.lib.models.likelihood`."""
    from recipes.lib.models.likelihood import _batch_logps

    policy = scale.cast.policy

    class Prepared:
        """The model as accelerate wraps it: mixed precision inside, fp32 outside."""

        device = torch.device("cpu")

        def __call__(self, **given: Any) -> Any:
            if rows == 1:
                given["attention_mask"] = None
            with scale.autocast():
                out = policy(**given)
            if scale.dtype is not None:
                out.logits = out.logits.float()
            return out

    def run(meter: Meter) -> None:
        with evaluating(policy):
            _batch_logps(Prepared(), [[0] * width] * rows, 1.0)

    return run
