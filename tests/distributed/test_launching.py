"""`--accelerate_config`: what is handed to accelerate, what is refused before it starts."""

import signal
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config import load_config_from_file

from recipes import cli
from recipes.lib.distributed import accelerate_launch
from recipes.lib.distributed.launch import Launch, find_accelerate_config
from recipes.lib.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs/accelerate"
NAMES = ("cpu", "ddp", "fsdp2", "multi_node", "single_gpu", "zero2", "zero3")
KINDS = ("ddp", "ddp", "fsdp2", "ddp", "single", "zero2", "zero3")


def content(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if value not in ({}, None)}


@pytest.mark.parametrize(("name", "kind"), list(zip(NAMES, KINDS, strict=True)))
def test_accelerate_reads_a_configuration_and_its_header_has_both_commands(
    name: str, kind: str
) -> None:
    path = CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(path))  # an unknown key is an error there
    assert Launch.of(content(config)).kind == kind
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert head[0].startswith("# Purpose: ")
    assert any(line.startswith("# rlhf ") and f"config {name}" in line for line in head)
    assert any(f"accelerate launch --config_file configs/accelerate/{name}" in h for h in head)


def test_these_are_all_configurations_and_each_is_found_by_name_or_path() -> None:
    assert sorted(path.stem for path in CONFIGS.iterdir()) == sorted(NAMES)
    assert find_accelerate_config("ddp") == CONFIGS / "ddp.yaml"
    assert find_accelerate_config(str(CONFIGS / "cpu.yaml")) == CONFIGS / "cpu.yaml"


def test_flags_of_accelerate_go_to_it_and_all_others_to_the_recipe() -> None:
    words = "--config a.yaml --accelerate_config multi_node --num-processes=4 --num_machines 2"
    words += " --machine_rank 1 --main_process_ip host --main_process_port 1234 --seed 3"
    given, rest = accelerate_launch.split_launcher_flags(words.split())
    assert rest == ["--config", "a.yaml", "--seed", "3"]
    args = accelerate_launch.accelerate_arguments("ppo", given, rest)
    assert args.config_file == str(CONFIGS / "multi_node.yaml")
    assert (args.num_processes, args.num_machines, args.machine_rank) == (4, 2, 1)
    assert (args.main_process_ip, args.main_process_port) == ("host", 1234)
    assert (args.module, args.training_script) == (True, "recipes.ppo")
    assert args.training_script_args == rest


@pytest.mark.parametrize("name", [name for name in NAMES if name != "single_gpu"])
def test_each_configuration_starts_its_share_on_each_of_two_machines(name: str) -> None:
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    # As scripts/slurm/train.sbatch has it.
    words = f"--accelerate_config {name} --num_machines 2 --num_processes 4 --machine_rank 1 "
    words += "--main_process_ip host --main_process_port 1234"
    args = accelerate_launch.accelerate_arguments(
        "ppo", *accelerate_launch.split_launcher_flags(words.split())
    )
    args, defaults, _ = launch._validate_launch_command(args)
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        command, _ = prepare_deepspeed_cmd_env(args)
        assert command is None  # that of DeepSpeed logs in to every machine from each of them
    else:
        prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "2", 1)
    assert (args.rdzv_endpoint, args.rdzv_backend) == ("host:1234", "static")


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with accelerate_launch._signals_passed_on():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is accelerate_launch._pass_on
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "ppo --num_processes 2",
            "num_processes is a flag of accelerate; name its configuration with "
            "--accelerate_config, such as --accelerate_config ddp.",
        ),
        ("ppo --accelerate_config", "accelerate_config has no value; write --accelerate_config"),
        (
            "ppo --accelerate_config dpp",
            "accelerate_config=dpp: there is no such configuration; there are cpu, ddp, ",
        ),
        (
            "ppo --accelerate_config ddp --num_processes two",
            "num_processes=two: must be a whole number.",
        ),
        (
            "ppo --accelerate_config fsdp2 --num_machines 2 --accelerate-config=multi_node",
            "accelerate_config is given twice (fsdp2, multi_node); give it once.",
        ),
        (
            "ppo --accelerate_config single_gpu --num_machines 2",
            "accelerate_config=single_gpu: it starts one process on one machine; use ",
        ),
        ("ppo --accelerate_config single_gpu --num_processes 2", "; use --accelerate_config ddp"),
        ("evaluate run --accelerate_config ddp", "accelerate_config is for recipes that train: "),
        (
            "sft --accelerate_config {folder}/mpi.yaml",
            "distributed_type=MULTI_CPU starts one process where mpirun does not; use "
            "--accelerate_config cpu.",
        ),
        ("sft --accelerate_config {folder}/odd.yaml", "accelerate cannot read it (The config file"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mpi.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 2\n")
    (tmp_path / "odd.yaml").write_text("distributed_type: MULTI_GPU\nnum_cards: 2\n")
    assert cli.main(words.format(folder=tmp_path).split()) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.startswith("rlhf ")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ({0: 2, 1: -15}, 2),
        ({0: -15, 1: 2}, 2),
        ({0: 75, 1: 75}, 75),
        ({0: 75, 1: -15}, 75),
        ({0: 1, 1: -15}, 1),
        ({0: 1, 1: -9}, 137),
        ({0: -15, 1: -15}, 143),
    ],
)
def test_the_exit_code_is_the_one_that_says_most(codes: dict[int, int], code: int) -> None:
    assert accelerate_launch._told("ppo", codes) == code


def test_an_installed_package_brings_its_configurations_along() -> None:
    import tomllib

    from recipes.lib.config.shipped_configs import SHARE

    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = {path.parent for path in (ROOT / "configs").rglob("*.yaml")}
    named = {f"share/rlhf-recipes/{p.relative_to(ROOT)}" for p in shipped}
    assert set(tables["data-files"]) == named
    assert Path("share/rlhf-recipes/configs") == SHARE


def test_a_wrong_name_without_any_configurations_asks_for_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("recipes.lib.distributed.launch.FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"accelerate_config=ddp: .*; name a file\.$"):
        find_accelerate_config("ddp")
