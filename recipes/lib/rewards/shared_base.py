"""Reward adapters that speak on the policy's base, which then is in memory once.

Shapes: B rows, T tokens (padded right).
"""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from recipes.lib.errors import UserError
from recipes.lib.models.adapter_folders import adapter_base, adapter_task
from recipes.lib.models.adapters import Adapters
from recipes.lib.models.folders import resolve_model
from recipes.lib.models.forward import base_model, trunk_of
from recipes.lib.models.reward_heads import ONE, RewardHeads, adapter_heads, name_outputs
from recipes.lib.models.tokenizers import load_tokenizer

SEPARATE = "set share_backbone: false to load it as a model of its own"


class RewardRole(nn.Module):
    """A reward adapter and its score head, called like the classifier that they were trained as.

    Args:
        adapters: The adapters on the policy's base.
        name: Name of the reward adapter among them.
        head: Weights of its score head.
        pad_token_id: Id that its rows are padded with.
        heads: What its outputs are.
    """

    def __init__(
        self,
        adapters: Adapters,
        name: str,
        head: dict[str, Tensor],
        pad_token_id: int,
        heads: RewardHeads = ONE,
    ) -> None:
        super().__init__()
        self.adapters = adapters
        self.name = name
        outputs, width = head["weight"].shape
        self.score = nn.Linear(width, outputs, "bias" in head, dtype=torch.float32)
        self.score.load_state_dict(head)
        self.config = copy.deepcopy(base_model(adapters.model).config)
        name_outputs(self.config, heads)
        self.config.get_text_config().pad_token_id = pad_token_id

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Scores of each row, one for each output, at its last token that is no padding."""
        with self.adapters.role(self.name):
            trunk = trunk_of(self.adapters.model)
            hidden = trunk(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False
            ).last_hidden_state
        # By id and not by mask, as the classifiers of transformers do it, also in training.
        is_word = input_ids != self.config.get_text_config().pad_token_id
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (places * is_word).argmax(1)
        rows = torch.arange(len(last), device=last.device)
        with torch.autocast(hidden.device.type, enabled=False):
            return SimpleNamespace(logits=self.score(hidden[rows, last].float()))


class SharedBase:
    """The policy's base as a place for reward adapters.

    Args:
        adapters: The adapters on it.
        tokenizer: The policy's tokenizer.
    """

    def __init__(self, adapters: Adapters, tokenizer: Any) -> None:
        self.adapters = adapters
        self.tokenizer = tokenizer

    def reward(
        self, given: str, key: str = "reward_funcs", *, trust_remote_code: bool = False
    ) -> tuple[RewardRole, Any]:
        """Put a reward adapter on the base.

        Args:
            given: Its run or folder.
            key: Key that named it, for messages.
            trust_remote_code: Whether code beside its tokenizer may run.

        Returns:
            The role and its tokenizer.

        Raises:
            UserError: It belongs to another base, tokenizer or chat template, or has no head.
        """
        path = resolve_model(given)
        check_same_base(self.adapters, path, key, given)
        tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
        self._check_tokenizer(tokenizer, key, given)
        number = sum(name.startswith("reward") for name in self.adapters.model.peft_config)
        name = "reward" if not number else f"reward_{number + 1}"
        head = self.adapters.load(name, path, trainable=False)
        heads = adapter_heads(path)
        check_head(head, path, key, given, len(heads.names()))
        role = RewardRole(self.adapters, name, head, tokenizer.pad_token_id, heads)
        return role.to(self.adapters.model.device), tokenizer

    def _check_tokenizer(self, theirs: Any, key: str, given: str) -> None:
        ours = self.tokenizer
        for what, one, other in (
            ("tokenizer", theirs.get_vocab(), ours.get_vocab()),
            ("chat template", theirs.chat_template, ours.chat_template),
        ):
            if one != other:
                raise UserError(
                    f"{key}={given}: its {what} is not the policy's; train it with the "
                    f"policy's, or {SEPARATE}."
                )


def check_same_base(adapters: Adapters, path: str, key: str, given: str) -> None:
    """Refuse an adapter that was trained on another model than the policy's base.

    Args:
        adapters: The adapters on the policy's base.
        path: Folder of the adapter.
        key: Key that named it, for the message.
        given: What stood there.

    Raises:
        UserError: The models differ.
    """
    theirs, ours = adapter_base(path)[0], base_model(adapters.model).name_or_path
    if _place(theirs) != _place(ours):
        remedy = SEPARATE if key.endswith("_funcs") else "name one that was trained on it"
        raise UserError(
            f"{key}={given} is an adapter on {theirs}, and the policy's base is {ours}; {remedy}."
        )


def check_head(head: dict[str, Tensor], path: str, key: str, given: str, number: int = 1) -> None:
    """Refuse an adapter without a trained score head, or with another number of outputs.

    Args:
        head: Weights of its head.
        path: Folder of the adapter.
        key: Key that named it, for the message.
        given: What stood there.
        number: How many outputs it has to have.

    Raises:
        UserError: There is no head, or it has other outputs.
    """
    if adapter_task(path) != "SEQ_CLS" or "weight" not in head:
        raise UserError(
            f"{key}={given}: an adapter without a score head is no reward model; train one from it "
            "with `rlhf reward`."
        )
    if (found := head["weight"].shape[0]) != number:
        raise UserError(f"{key}={given} has {found} outputs; a reward model has {number}.")


def _place(name: str) -> str:
    try:
        found = resolve_model(name)
    except UserError:
        return name
    return str(Path(found).resolve()) if Path(found).is_dir() else found
