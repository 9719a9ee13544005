"""Where the shapes of a model come from: its configuration alone, for a run also before it ran.

Those of the models that shipped configurations name come along (shipped_models.json), so that
planning them needs no network.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from recipes.lib.config.parse import Config
from recipes.lib.errors import UserError
from recipes.lib.models.folders import is_adapter, load_errors, resolve_model


@dataclass(frozen=True)
class Shapes:
    """A model by its shapes.

    Args:
        name: As the user named it.
        base: Folder or Hub id of the configuration of the whole model.
        revision: Of a Hub id.
        adapter: PEFT's configuration, where what was named is an adapter.
        origin: In words, where a run's shapes come from that did not run yet.
    """

    name: str
    base: str
    revision: str = "main"
    adapter: Any = None
    origin: str | None = None

    def config(self, trust_remote_code: bool = False) -> Any:
        """The configuration of the whole model.

        Raises:
            UserError: There is none.
        """
        from transformers import AutoConfig

        if (known := _shipped(self.base, self.revision)) is not None:
            return AutoConfig.for_model(**known)
        with load_errors(self.base, "configuration"):
            return AutoConfig.from_pretrained(
                self.base,
                revision=self.revision,
                trust_remote_code=trust_remote_code,
                local_files_only=_is_here(self.base),
            )


def find_source(name: str, revision: str = "main", configs: Path | None = None) -> Shapes:
    """Find the shapes of a model.

    Args:
        name: A run, a folder, an adapter or a Hub id.
        revision: Of a Hub id.
        configs: Folder `configs/` that knows what runs will be made from.

    Returns:
        The source.

    Raises:
        UserError: Nothing is there, and no configuration says what will be.
    """
    try:
        path = resolve_model(name)
    except UserError as error:
        file = _recipe_file(name, configs)
        if file is None:
            if Path(name).parts[:1] != ("runs",):
                raise
            raise UserError(
                f"model_name_or_path={name}: there is no such run, and no configuration of its "
                "name beside the file to take the shapes from; name a model with "
                "--model_name_or_path."
            ) from error
        return _to_be_trained(name, file)
    if (folder := _adapter_config(path, revision)) is None:
        return Shapes(name, path, revision)
    values = json.loads(folder.read_text(encoding="utf-8"))
    below = values.get("base_model_name_or_path")
    if not below or below == name:
        raise UserError(f"model_name_or_path={name}: adapter_config.json names no base model.")
    source = find_source(str(below), str(values.get("revision") or "main"), configs)
    from peft import PeftConfig

    return Shapes(
        name, source.base, source.revision, PeftConfig.from_pretrained(str(folder.parent))
    )


def policy_shapes(config: Config, configs: Path | None) -> Shapes:
    """The shapes of the model that a configuration names; see `find_source`."""
    args = config.model
    return find_source(args.model_name_or_path or "", args.model_revision, configs)


@cache
def shipped_models() -> dict[str, dict[str, Any]]:
    """What sets the shapes of the models that shipped configurations name, by Hub id."""
    path = Path(__file__).with_name("shipped_models.json")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _shipped(name: str, revision: str) -> dict[str, Any] | None:
    # A folder of the name comes first, as where the model is loaded.
    is_asked = revision == "main" and not Path(name).is_dir()
    return shipped_models().get(name) if is_asked else None


def _is_here(name: str) -> bool:
    """Whether a model is to be found on this machine or nowhere."""
    from huggingface_hub import constants

    return Path(name).is_dir() or constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT)


@cache
def _answers(endpoint: str) -> bool:
    """Whether the Hub answers, asked once: without a network its client tries for half a minute."""
    from huggingface_hub import get_session

    with suppress(Exception):  # whatever its client raises: no network, no name, no certificate
        get_session().head(endpoint, timeout=5)
        return True
    return False


def _adapter_config(path: str, revision: str) -> Path | None:
    if Path(path).is_dir():
        return Path(path) / "adapter_config.json" if is_adapter(path) else None
    if _shipped(path, revision) is not None:
        return None
    from transformers.utils.peft_utils import find_adapter_config_file

    with load_errors(path, "configuration"):
        is_here = _is_here(path)
        found = find_adapter_config_file(path, revision=revision, local_files_only=is_here)
    return Path(found) if found else None


def _recipe_file(name: str, configs: Path | None) -> Path | None:
    """The configuration that a run of this name is made with: runs/sft/x by configs/sft/x.yaml."""
    parts = Path(name).parts[-2:]
    if configs is None or len(parts) < 2 or Path(name).is_absolute():
        return None
    file = configs / parts[0] / f"{parts[1]}.yaml"
    return file if file.is_file() else None


def _to_be_trained(name: str, file: Path) -> Shapes:
    from trl import ModelConfig

    from recipes.lib.config.strict_yaml import read_yaml
    from recipes.lib.models.policies import lora_config

    values = read_yaml(file).values
    known = {field.name for field in fields(ModelConfig)}
    args = ModelConfig(**{key: value for key, value in values.items() if key in known})
    if not args.model_name_or_path:
        raise UserError(
            f"model_name_or_path={name}: there is no such run yet, and {file.name} does not say "
            "from which model it is made; run that first, or name a model."
        )
    source = find_source(args.model_name_or_path or "", args.model_revision, file.parent.parent)
    task = "SEQ_CLS" if file.parent.name == "reward" else "CAUSAL_LM"
    adapter = lora_config(args, task)
    return Shapes(name, source.base, source.revision, adapter, f"not trained yet; as {file.name}")
