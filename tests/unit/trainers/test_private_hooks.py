"""What the recipes override, replace or call of the libraries' insides is there, and as it was.

The libraries may change these without a word. A release that does fails here, by name, before any
run does; and so does a hook of ours that nobody wrote down.
"""

import ast
import functools
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
import trl

from recipes.lib.generation.cache import WindowedLayer
from recipes.lib.generation.sampling import EpisodeNoise, FiniteLogits
from recipes.lib.ppo.trainer import PPOTrainer
from recipes.lib.trainers.answers import AnswerTrainer
from recipes.lib.trainers.batch_sizes import GRPOBatchConfig, RLOOBatchConfig
from recipes.lib.trainers.out_of_memory import PLACES
from recipes.lib.trainers.progress import ProgressBar, RunCallback
from recipes.lib.trainers.sampled_rewards import SampleWriter
from recipes.lib.trainers.trl import resumable

LIB = Path(__file__).parents[3] / "recipes"
LIBRARIES = {"accelerate", "bitsandbytes", "datasets", "deepspeed", "huggingface_hub", "peft"}
LIBRARIES |= {"torch", "transformers", "trl"}
SAMPLING = ["RLOOTrainer", "GRPOTrainer"]
TRL = ["SFTTrainer", "DPOTrainer", "KTOTrainer", *SAMPLING]
TRAINERS = {name: resumable(getattr(trl, name)) for name in TRL}
TRAINERS |= {"PPOTrainer": PPOTrainer, "AnswerTrainer": AnswerTrainer}

# Methods of Trainer that its mixins override, with the parameters that Trainer gives them.
RESUMABLE = {
    "_save": "output_dir state_dict",
    "create_model_card": "language license tags model_name finetuned_from tasks dataset_tags "
    "dataset dataset_args",
    "_evaluate": "trial ignore_keys_for_eval skip_scheduler",
    "_finalize_training": "trial num_train_samples start_time",
    "_get_grad_norm": "model grad_norm",
    "_get_output_dir": "trial",
    "_issue_warnings_after_load": "load_result",
    "_init_training_state": "max_steps num_update_steps_per_epoch num_train_epochs "
    "resume_from_checkpoint trial",
    "_load_best_model": "",
    "_load_from_checkpoint": "resume_from_checkpoint model",
    "_load_rng_state": "checkpoint",
    "_maybe_log_save_evaluate": "tr_loss grad_norm model trial epoch ignore_keys_for_eval "
    "start_time learning_rate",
    "_prepare_for_training": "max_steps train_dataloader resume_from_checkpoint",
    "_push_from_checkpoint": "checkpoint_folder",
    "_run_epoch": "model epoch train_dataloader steps_in_epoch num_update_steps_per_epoch trial "
    "ignore_keys_for_eval start_time resume_from_checkpoint epochs_trained "
    "steps_trained_in_current_epoch",
    "_save_checkpoint": "model trial",
    "_save_rng_state": "output_dir",
    "get_batch_samples": "epoch_iterator num_batches device",
    "log": "logs start_time",
    "train": "resume_from_checkpoint trial ignore_keys_for_eval",
    "training_step": "model inputs num_items_in_batch",
}
TRLS_CARD = "model_name dataset_name tags"
OF_SAMPLING = RESUMABLE | {
    "_get_train_sampler": "dataset",
    "evaluate": "eval_dataset ignore_keys metric_key_prefix",
}
OF_ANSWERS = RESUMABLE | {
    "compute_loss": "model inputs return_outputs num_items_in_batch",
    "create_optimizer": "model",
}
OF_PPO = RESUMABLE | {
    "_prepare_inputs": "inputs",
    "compute_loss": "model inputs return_outputs num_items_in_batch",
    "create_optimizer": "model",
    "evaluate": "eval_dataset ignore_keys metric_key_prefix",
    "get_train_dataloader": "",
    "save_model": "output_dir _internal_call",
}
# What the libraries call on smaller things of ours.
SMALL = {
    RunCallback: {
        "on_log": "args state control kwargs",
        "on_step_end": "args state control kwargs",
        "on_train_begin": "args state control kwargs",
    },
    ProgressBar: {
        "on_log": "args state control logs kwargs",
        "on_train_begin": "args state control kwargs",
    },
    SampleWriter: {"on_log": "args state control kwargs"},
    WindowedLayer: {
        "get_mask_sizes": "query_length",
        "get_max_length": "",
        "get_seq_length": "",
        "lazy_initialization": "key_states value_states",
        "update": "key_states value_states args kwargs",
    },
    EpisodeNoise: {"__call__": "input_ids scores"},
    FiniteLogits: {"__call__": "input_ids scores"},
    RLOOBatchConfig: {"__post_init__": ""},
    GRPOBatchConfig: {"__post_init__": ""},
}

# Attributes that Trainer and TRL's trainers set and the mixins read or put back.
OF_TRAINER = {"_globalstep_last_logged", "_tr_loss", "current_flos", "model_wrapped", "control"}
OF_TRL = {"_metrics", "_total_train_tokens"}
OF_GENERATION = {"_buffered_inputs", "_step", "num_iterations"}
# Methods of Trainer that the mixins call and do not override.
CALLED = {"_determine_best_metric": "metrics trial"}

# What is called or replaced outside a class: place, and parameters (None: anything).
FUNCTIONS: dict[str, str | None] = {
    "accelerate.commands.launch.launch_command": "args",
    "accelerate.commands.launch.simple_launcher": "args",
    "accelerate.utils.launch.prepare_simple_launcher_cmd_env": "args",
    "torch._subclasses.FakeTensor": None,
    "torch._subclasses.FakeTensorMode": None,
    "torch.cuda.memory._set_allocator_settings": "env",
    "torch.ops.mkldnn._linear_pointwise": None,
    "torch.utils._python_dispatch.TorchDispatchMode": None,
    "torch.utils._pytree.tree_leaves": "tree is_leaf",
    "transformers.integrations.deepspeed._hf_deepspeed_config_weak_ref": None,
    "transformers.integrations.deepspeed.deepspeed_load_checkpoint": "deepspeed_engine "
    "checkpoint_path load_module_strict",
    "transformers.integrations.deepspeed.unset_hf_deepspeed_config": "",
    "trl.kernels.chunked_logprob._addmm_fp32": None,
    "trl.kernels.chunked_logprob._backward_kernel": None,
    "trl.kernels.chunked_logprob._forward_kernel": None,
    "trl.kernels.chunked_logprob._use_triton": "device",
    "trl.models.utils.add_hooks": "model",
    "trl.models.utils.remove_hooks": "model",
    "trl.trainer.utils._use_triton": "device",
    "trl.trainer.utils.split_tensor_dict": "tensor_dict num_chunks",
}
# Private attributes of the libraries' objects, and a class whose code has them.
ATTRIBUTES = {
    "_active_adapter": "peft.tuners.tuners_utils.BaseTunerLayer",
    "_attn_implementation": "transformers.PretrainedConfig",
    "_buffers": "torch.nn.Module",
    "_can_compile_fullgraph": "transformers.PreTrainedModel",
    "_cdata": "torch.UntypedStorage",
    "_disable_adapters": "peft.tuners.tuners_utils.BaseTunerLayer",
    "_finish_current_push": "transformers.Trainer",
    "_hf_hook": "accelerate.hooks",
    "_hf_peft_config_loaded": "transformers.integrations.peft.PeftAdapterMixin",
    "_index_put_impl_": "torch.ops.aten",
    "_local_scalar_dense": "torch.ops.aten",
    "_name_or_path": "transformers.PretrainedConfig",
    "_no_split_modules": "transformers.PreTrainedModel",
    "_option_string_actions": "argparse._ActionsContainer",
    "_parameters": "torch.nn.Module",
    "_qualified_op_name": "torch._ops.OpOverloadPacket",
}
NOT_THEIRS = {"_exit", "_run_exitfuncs"}  # of os and atexit


def is_ours(cls: type) -> bool:
    # `resumable` makes a class of no other content in its own module.
    return cls.__module__.startswith("recipes")


def overridden(cls: type) -> dict[str, Any]:
    """Functions of ours that stand before one of the libraries' of that name, which is given."""
    theirs = [base for base in cls.__mro__ if not is_ours(base) and base is not object]
    found = {}
    for ours in filter(is_ours, cls.__mro__):
        for name, value in vars(ours).items():
            first = next((vars(base)[name] for base in theirs if name in vars(base)), None)
            if inspect.isfunction(value) and inspect.isfunction(first) and name != "__init__":
                found[name] = first
    return found


def parameters(function: Any) -> str:
    return " ".join(name for name in inspect.signature(function).parameters if name != "self")


def known_of(name: str) -> dict[str, str]:
    own = {"PPOTrainer": OF_PPO, "AnswerTrainer": OF_ANSWERS}
    return own.get(name) or (OF_SAMPLING if name in SAMPLING else RESUMABLE)


@pytest.mark.parametrize("name", TRAINERS)
def test_what_a_trainer_overrides_is_there_and_is_written_down(name: str) -> None:
    found = overridden(TRAINERS[name])
    assert set(found) == set(known_of(name))
    for method, expected in known_of(name).items():
        # some of TRL's hand everything on
        assert parameters(found[method]) in (expected, "args kwargs", TRLS_CARD), method
        plain = getattr(transformers.Trainer, method)
        assert method == "_get_train_sampler" or parameters(plain) == expected, method


@pytest.mark.parametrize("cls", SMALL, ids=lambda cls: cls.__name__)
def test_what_smaller_classes_override_is_there_and_is_written_down(cls: type) -> None:
    said = {name: parameters(function) for name, function in overridden(cls).items()}
    made = {"__init__", "__eq__", "__repr__"}  # of a dataclass
    assert {name: said[name] for name in said if name not in made} == SMALL[cls]


@pytest.mark.parametrize("cls", [*TRAINERS.values(), *SMALL], ids=lambda cls: cls.__name__)
def test_an_override_takes_all_that_is_handed_to_it(cls: type) -> None:
    for name, theirs in overridden(cls).items():
        given = [p for p in inspect.signature(theirs).parameters.values() if p.name != "self"]
        ours = list(inspect.signature(getattr(cls, name)).parameters.values())[1:]
        kinds = {parameter.kind for parameter in ours}
        names = [parameter.name for parameter in ours]
        for place, parameter in enumerate(given):
            if parameter.kind is parameter.VAR_POSITIONAL:
                continue
            if parameter.kind is parameter.VAR_KEYWORD:
                assert parameter.VAR_KEYWORD in kinds or "args" in parameters(theirs), name
                continue
            by_name = parameter.name in names or parameter.VAR_KEYWORD in kinds
            by_place = parameter.VAR_POSITIONAL in kinds or place < len(ours)
            by_place_alone = name in ("_get_output_dir", "_push_from_checkpoint")
            assert by_place, f"{name}: {parameter.name}"
            assert by_name or by_place_alone, f"{name}: {parameter.name}"
        needed = [p for p in ours if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        assert len(needed) <= len(given), name


def class_sources() -> Iterator[ast.ClassDef]:
    for base in {base for cls in TRAINERS.values() for base in cls.__mro__ if is_ours(base)}:
        if base.__qualname__ not in TRL:  # those of `resumable` have no text
            tree = ast.parse(inspect.getsource(inspect.getmodule(base)))
            classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
            yield from (node for node in classes if node.name == base.__name__)


def attributes(node: ast.AST, *owners: str) -> set[str]:
    """Names behind `self.` or `super().` in some code."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute):
            owner = part.value.func if isinstance(part.value, ast.Call) else part.value
            if isinstance(owner, ast.Name) and owner.id in owners:
                found.add(part.attr)
    return found


def test_what_is_asked_of_the_class_above_is_there() -> None:
    ours = list(class_sources())
    assert {node.name for node in ours} >= {"Resumable", "Stoppable", "ResumableSampling"}
    own = {"save_state_into", "load_state_from", "moment", "go_back_to"}
    asked = set.union(*(attributes(node, "super") for node in ours)) - own - {"__init__"}
    assert asked <= set(RESUMABLE) | set(OF_SAMPLING) | set(OF_PPO)
    # The private names of self that are none of ours.
    private = {name for node in ours for name in attributes(node, "self") if name[:1] == "_"}
    bases = {base for cls in TRAINERS.values() for base in cls.__mro__ if is_ours(base)}
    defined = {name for base in bases for name in vars(base)}
    set_here = {
        part.attr
        for node in ours
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store)
    }
    assert private - defined - set_here - OF_TRL - OF_GENERATION == set(CALLED)
    for name, expected in CALLED.items():
        assert parameters(getattr(transformers.Trainer, name)) == expected


@functools.cache
def named_in(cls: type) -> set[str]:
    return attributes(ast.parse(inspect.getsource(cls)), "self")


def set_by(cls: type) -> set[str]:
    bases = [base for base in cls.__mro__ if not is_ours(base) and base is not object]
    return {name for base in bases for name in named_in(base)}


@pytest.mark.parametrize("name", TRAINERS)
def test_what_a_trainer_carries_over_is_still_its_own(name: str) -> None:
    expected = OF_TRAINER | (OF_TRL if name != "PPOTrainer" else set())
    expected |= OF_GENERATION if name in SAMPLING else set()
    assert expected - set_by(TRAINERS[name]) == set()


def find(place: str) -> Any:
    parts = place.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ImportError(place)


@pytest.mark.parametrize("place", FUNCTIONS)
def test_what_is_called_or_replaced_is_where_it_was(place: str) -> None:
    found, expected = find(place), FUNCTIONS[place]
    assert expected is None or parameters(found) == expected


def test_the_launcher_that_is_replaced_is_the_one_that_is_called() -> None:
    from accelerate.commands import launch

    assert "simple_launcher(args)" in inspect.getsource(launch.launch_command)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_private_attribute_is_still_in_its_class(name: str) -> None:
    owner = find(ATTRIBUTES[name])
    if not hasattr(owner, name):  # an object gets it when it is made
        assert name in inspect.getsource(owner)


@pytest.mark.parametrize("place", PLACES)
def test_a_function_that_is_looked_for_in_tracebacks_has_that_name(place: str) -> None:
    import accelerate
    import accelerate.optimizer

    from recipes.lib.ppo.collector import Collector
    from recipes.lib.trainers.interruption import Stoppable
    from recipes.lib.trainers.resumable import Resumable

    ours = {"Collector": Collector, "Stoppable": Stoppable, "Resumable": Resumable}
    theirs = {"Accelerator": accelerate.Accelerator}
    theirs |= {"AcceleratedOptimizer": accelerate.optimizer.AcceleratedOptimizer}
    theirs |= {name: getattr(trl, name) for name in SAMPLING}
    owner, method = place.split(".")
    function = inspect.unwrap(vars((ours | theirs)[owner])[method])
    assert function.__code__.co_qualname == place


def imported(tree: ast.AST) -> dict[str, set[str]]:
    """What names of a file stand for, where that is of a library."""
    known: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        pairs = []
        if isinstance(node, ast.ImportFrom):
            pairs = [(a.asname or a.name, f"{node.module}.{a.name}") for a in node.names]
        elif isinstance(node, ast.Import):
            heads = [(a.asname, a.name, a.name.partition(".")[0]) for a in node.names]
            pairs = [(name or head, whole if name else head) for name, whole, head in heads]
        for name, place in pairs:
            if place.partition(".")[0] in LIBRARIES:
                known.setdefault(name, set()).add(place)
    return known


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_uses(tree: ast.AST) -> Iterator[tuple[set[str], str]]:
    """Private names in a file: the places that one may stand for, or the attribute it is."""
    known = imported(tree)
    for places in known.values():
        yield from (({p}, "") for p in places if any(map(is_private, p.split("."))))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner: ast.expr = node.value
            names = [node.attr]
            while isinstance(owner, ast.Attribute):
                names.insert(0, owner.attr)
                owner = owner.value
            base = owner.id if isinstance(owner, ast.Name) else ""
            if base in known and (is_private(node.attr) or isinstance(node.ctx, ast.Store)):
                yield {".".join([place, *names]) for place in known[base]}, ""
            elif is_private(node.attr) and base not in ("self", "cls", ""):
                yield set(), node.attr


def test_every_private_use_of_a_library_is_written_down() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(LIB.rglob("*.py"))]
    uses = [use for tree in trees for use in private_uses(tree)]
    places = [places for places, _ in uses if places]
    assert [names for names in places if not names & set(FUNCTIONS)] == [
        {"torch.compile"},  # while bitsandbytes is imported, and back
        {"torch.compile"},
        {"trl.kernels.chunked_logprob.triton"},  # made where it is missing
    ]
    assert {name for _, name in uses if name} - NOT_THEIRS <= set(ATTRIBUTES)
