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
from recipes.lib.models.forward import Batch, base_model
from recipes.lib.plan.measure import FakeModels, MemoryMeasure, Pass, on_gradients

# Numbers per token that TRL's trainers ask the head for.
OUTPUTS = {
    "sft": ("log_probs", "entropy", "is_top1"),
    "dpo": ("log_probs", "entropy", "mean_logits", "is_top1"),
    "kto": ("log_probs", "entropy", "mean_logits"),
    "rloo": ("log_probs", "entropy"),
    "grpo": ("log_probs", "entropy"),
}


def prepare(fakes: FakeModels, config: Config) -> None:
    """Do to the models what the trainer does: checkpointing, TRL's head, training mode.

    Args:
        fakes: The models.
        config: The parsed Config of the recipe.
    """
    from peft import PeftModel
    from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

    training, models = config.training, fakes.models
    if getattr(training, "disable_dropout", False):
        for module in models.modules:
            disable_dropout_in_model(module)
    if config.recipe in OUTPUTS:
        for model in (models.policy, models.reference):
            if model is not None:
                add_fused_lm_head(base_model(model), outputs=OUTPUTS[config.recipe])
    if training.activation_checkpointing:
        how = dict(training.activation_checkpointing_kwargs or {})
        every, offload = how.pop("every_n_layers", 1), how.pop("offload", False)
        models.trained.activation_checkpointing_enable(
            activation_checkpointing_kwargs=how or None, every_n_layers=every, offload=offload
        )
        if isinstance(models.policy, PeftModel):
            with fakes.mode:
                models.policy.enable_input_require_grads()
    models.trained.train()


def training_pass(
    fakes: FakeModels, config: Config, loss_of: Callable[[MemoryMeasure], Tensor], launch: Launch
) -> dict[str, int]:
    """Weigh the forward and backward pass of a micro-batch.

    Args:
        fakes: The models.
        config: The parsed Config of the recipe.
        loss_of: Makes the loss, in mixed precision where the run has it.
        launch: How the run is started: where gradients are sharded, each leaves as soon as it is
            there.

    Returns:
        Bytes by kind.
    """
    trained = [p for p in fakes.models.trained.parameters() if p.requires_grad]
    # Added to what is there, or sent to where its shard is: gone, for this pass.
    leaves = launch.shards_optimizer > 1 or config.training.gradient_accumulation_steps > 1

    def leave(parameter: Tensor) -> None:
        parameter.grad = None

    def run(measure: MemoryMeasure) -> None:
        try:
            with on_gradients(trained, leave) if leaves else measure.gradients_of(trained):
                with measure.keeping():
                    loss = loss_of(measure)
                loss.backward()
        finally:
            for parameter in trained:
                parameter.grad = None

    # Where gradients come as activations go, the fullest moment may be anywhere.
    is_full = not leaves and sum(p.numel() for p in trained) > 10**9
    return fakes.peak(run, is_deep=is_full)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Use a model as where nothing is learned: without dropout, checkpointing and gradients."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(was_training)


def fused_loss(
    fakes: FakeModels, rows: int, width: int, *, judged: int = 0, others: int = 0, scored: int = 0
) -> Callable[[MemoryMeasure], Tensor]:
    """The loss of TRL's trainers on log-probabilities.

    Args:
        fakes: The models.
        rows: B.
        width: T.
        judged: Passes of the reference while the activations of the policy are kept.
        others: Passes of the policy without gradient before.
        scored: Tokens of each row that are scored; 0 for all.

    Returns:
        Makes the loss.
    """
    policy, reference = fakes.models.policy, fakes.models.reference

    def loss_of(measure: MemoryMeasure) -> Tensor:
        given = _fused_batch(measure, fakes, rows, width, scored)
        with fakes.autocast():
            for _ in range(others):
                with torch.no_grad():
                    policy(**given)
            loss: Tensor = -policy(**given).log_probs.sum()
            for _ in range(judged):
                with torch.no_grad():
                    reference_pass(policy, reference, given)
        return loss

    return loss_of


def _fused_batch(
    measure: MemoryMeasure, fakes: FakeModels, rows: int, width: int, scored: int
) -> dict[str, Any]:
    """A batch for TRL's head, which makes log-probabilities of the scored tokens alone."""
    measure.most_kept = rows * scored or None
    given = fakes.batch(rows, width) | {"fused_lm_head": True, "use_cache": False}
    return given | {"labels": given["input_ids"]}


def reference_pass(policy: Any, reference: Any, given: dict[str, Any]) -> None:
    """A pass of the reference: a model of its own, or the policy with its adapter off."""
    if reference is not None:
        reference(**given)
        return
    with policy.disable_adapter():
        policy(**given)


def answer_loss(
    fakes: FakeModels, rows: int, completions: int, width: int
) -> Callable[[MemoryMeasure], Tensor]:
    """The loss of a reward model: all completions of each row in one batch."""

    def loss_of(measure: MemoryMeasure) -> Tensor:
        with fakes.autocast():
            batch = fakes.batch(completions * rows, width)
            scores = fakes.models.policy(**batch, use_cache=False).logits
        of_rows = scores.float().view(completions, rows)
        loss: Tensor = (of_rows.logsumexp(0) - of_rows[0]).mean()
        return loss

    return loss_of


def ppo_loss(fakes: FakeModels, args: Any, rows: int) -> Callable[[MemoryMeasure], Tensor]:
    """The loss of PPO on a micro-batch of full length."""

    def loss_of(measure: MemoryMeasure) -> Tensor:
        with fakes.autocast():
            logps, entropy, values = _ppo_forward(fakes, args, rows)
        loss: Tensor = logps.sum() + values.sum()
        return loss + entropy.sum() if args.entropy_coef else loss

    return loss_of


def ppo_scoring(fakes: FakeModels, args: Any, rows: int) -> Pass:
    """Log-probabilities and values of the policy, and then those of the reference."""
    from recipes.lib.ppo.actor_critic import reference_logps

    def run(measure: MemoryMeasure) -> None:
        model = fakes.models.trained
        with evaluating(model), fakes.autocast():
            said = _ppo_forward(fakes, args, rows)
            ids, mask = _ppo_batch(args, rows)
            batch = Batch(ids, mask, args.max_completion_length)
            reference_logps(model, fakes.models.reference, batch, args.temperature)
            del said

    return run


def _ppo_batch(args: Any, rows: int) -> tuple[Tensor, Tensor]:
    width = args.max_prompt_length + args.max_completion_length
    ids = torch.zeros(rows, width, dtype=torch.long)
    return ids, torch.ones_like(ids)


def _ppo_forward(fakes: FakeModels, args: Any, rows: int) -> Any:
    entropies = bool(args.entropy_coef)
    return fakes.models.trained(
        *_ppo_batch(args, rows), args.max_completion_length, args.temperature, entropies
    )


def classifier_scoring(fakes: FakeModels, model: Any, rows: int, width: int) -> Pass:
    """A pass of a reward model over texts."""

    def run(measure: MemoryMeasure) -> None:
        with evaluating(model):
            model(**fakes.batch(rows, width), use_cache=False)

    return run


def fused_scoring(fakes: FakeModels, rows: int, width: int, scored: int) -> Pass:
    """Log-probabilities of the reference under RLOO and GRPO."""

    def run(measure: MemoryMeasure) -> None:
        given = _fused_batch(measure, fakes, rows, width, scored)
        with torch.no_grad(), fakes.autocast():
            reference_pass(fakes.models.policy, fakes.models.reference, given)

    return run


def evaluation_pass(
    fakes: FakeModels, rows: int, width: int, loss_of: Callable[[MemoryMeasure], Tensor]
) -> Pass:
    """Log-probabilities of the test rows (`recipes.lib.models.likelihood`), and then their loss."""
    from recipes.lib.models.forward import has_plain_head
    from recipes.lib.models.likelihood import _batch_logps

    policy = fakes.models.policy

    class Prepared:
        """The model as accelerate wraps it: mixed precision inside, fp32 outside."""

        config = policy.config
        device = torch.device("cpu")

        def __call__(self, **given: Any) -> Any:
            if rows == 1:
                given["attention_mask"] = None
            with fakes.autocast():
                out = policy(**given)
            if fakes.dtype is not None:
                out.logits = out.logits.float()
            return out

    def run(measure: MemoryMeasure) -> None:
        with evaluating(policy):
            ids = [[0] * width] * rows
            is_plain = has_plain_head(policy, of_trunk=False)
            head = policy.get_output_embeddings() if is_plain else None
            _batch_logps(Prepared(), head, ids, ids, 1.0)
            loss_of(measure)

    return run
