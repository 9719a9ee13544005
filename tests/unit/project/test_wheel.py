"""The wheel, installed into a folder of its own, knows the configurations that come with it."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "recipes", "configs")
Run = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # building writes beside what it builds
    source.mkdir()
    for name in SOURCES:
        path = ROOT / name
        shutil.copytree(path, source / name) if path.is_dir() else shutil.copy(path, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True
    )
    wheel = next(folder.glob("*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    shutil.rmtree(source)
    return folder / "site"


def rlhf(site: Path, *words: str) -> list[str]:
    start = f"import recipes; assert recipes.__file__.startswith({str(site)!r}); "
    start += f"import sys; from recipes.cli import main; sys.exit(main({list(words)!r}))"
    return [sys.executable, "-c", start]


def run(site: Path, folder: Path, *words: str, **environment: str) -> Run:
    return subprocess.run(
        rlhf(site, *words),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(site)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_it_lists_and_copies_its_configurations(site: Path, tmp_path: Path) -> None:
    listed = run(site, tmp_path, "configs")
    assert listed.returncode == 0, listed.stderr
    assert "quickstart/ppo" in listed.stdout
    assert run(site, tmp_path, "configs", "copy", "quickstart/ppo").returncode == 0
    assert (tmp_path / "ppo.yaml").read_bytes() == (
        ROOT / "configs/quickstart/ppo.yaml"
    ).read_bytes()


@pytest.mark.slow  # the plan above is of the same wheel
def test_it_plans_with_an_accelerate_configuration(site: Path, tmp_path: Path) -> None:
    model = ROOT / "recipes/lib/tasks/tales/trained"
    shutil.copytree(model, tmp_path / "model")
    words = "plan --recipe sft --model_name_or_path model --dataset_name none --memory 8GB"
    told = run(site, tmp_path, *words.split(), "--accelerate_config", "ddp", "--num_processes", "2")
    assert told.returncode == 0, told.stderr
    assert "DDP, 2 processes" in told.stdout


def test_it_plans_a_shipped_configuration_without_a_network(site: Path, tmp_path: Path) -> None:
    nowhere = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    words = "plan --config sft/qwen3-0.6b-capybara --memory 24GB"
    told = run(site, tmp_path, *words.split(), HF_HOME=str(tmp_path), **nowhere)
    assert told.returncode == 0, told.stderr
    assert "fits in 24.00 GiB" in told.stdout


def test_it_runs_the_quickstart(site: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        rlhf(site, "quickstart"), cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    # The first stage is a copy of a model; the second one trains.
    said = []
    for line in process.stderr:
        said.append(line)
        if (tmp_path / "runs/quickstart/sft/metrics.jsonl").exists():
            process.send_signal(signal.SIGTERM)
            break
    rest = process.communicate(timeout=300)[1]
    assert process.returncode == 75, "".join([*said, rest])
    assert (tmp_path / "runs/quickstart/base/summary.json").is_file()
