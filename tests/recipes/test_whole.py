"""What one process does with the model in the middle of a training leaves the training alone."""

from pathlib import Path

import torch

from recipes.lib.distributed.shards import unsharded_model
from tests.helpers import tiny


def test_mixed_precision_stays_on_behind_a_look_at_the_model(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, bf16=True)
    trainer.train()
    model = trainer.actor_critic
    assert "_original_forward" in vars(model)  # where accelerate puts its autocast around
    with unsharded_model(trainer) as seen:
        assert seen is model
    assert "_original_forward" in vars(model)
    dtypes: set[torch.dtype] = set()
    model.policy.lm_head.register_forward_hook(lambda *args: dtypes.add(args[2].dtype))
    head = model.policy.model.layers[0].mlp
    head.register_forward_hook(lambda *args: dtypes.add(args[2].dtype))
    model.pass_through()
    assert torch.bfloat16 in dtypes
    with unsharded_model(trainer, trained=True):  # behind the training, as its weights are saved
        assert "_original_forward" not in vars(model)
