"""The notebook docs/first-run.ipynb: it is one, its commands exist, and it runs from top to bottom.

Jupyter is no dependency of the project, so there is no kernel here: the cells run in order in one
fresh Python process, and their lines that begin with ! or % go to the shell, as in IPython, but
that one that fails ends the test.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recipes.lib.recipe.main import parse
from tests.helpers.loopback_hub import LoopbackHub

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs/first-run.ipynb"
TEMPLATE = (
    "{% for message in messages %}{{ message.content + ' ' }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
SHELL_LINE = re.compile(r"^( *)[!%]((?:.*\\\n)*.*)$", flags=re.MULTILINE)
SHELL = """
import subprocess


def shell(command):
    subprocess.run(command, shell=True, check=True)
"""


def notebook() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return content


def code_cells() -> list[str]:
    return ["".join(c["source"]) for c in notebook()["cells"] if c["cell_type"] == "code"]


def as_python(cell: str) -> str:
    """A cell with its shell lines as calls; what stands in braces is put in, as IPython does."""
    return SHELL_LINE.sub(lambda found: f"{found[1]}shell(f{found[2]!r})", cell)


def run_cells(cells: list[str], folder: Path, env: dict[str, str]) -> str:
    """What the cells print, run in one new process."""
    python = "\n".join([SHELL, *map(as_python, cells)])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where rlhf is
    own = {"PYTHONPATH": str(ROOT), "PATH": path, "HF_HOME": str(folder / "hub")}
    inherited = {
        k: v for k, v in os.environ.items() if k != "HF_TOKEN" and "proxy" not in k.lower()
    }
    done = subprocess.run(
        [sys.executable, "-u", "-c", python],
        cwd=folder,
        env=inherited | own | env,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_a_notebook_without_outputs() -> None:
    """The keys that version 4.5 of the format asks for, no more."""
    content = notebook()
    assert set(content) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    always = {"cell_type", "id", "metadata", "source"}
    for cell in content["cells"]:
        is_code = cell["cell_type"] == "code"
        assert is_code or cell["cell_type"] == "markdown"
        assert set(cell) == always | ({"execution_count", "outputs"} if is_code else set())
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"])
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if is_code:
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            compile(as_python("".join(cell["source"])), cell["id"], "exec")
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids)
    assert NOTEBOOK.stat().st_size < 20_000


def test_its_commands_are_commands_of_ours() -> None:
    commands = [m[2] for cell in code_cells() for m in SHELL_LINE.finditer(cell) if "rlhf " in m[2]]
    parsed = []
    for command in commands:
        if "pip install" in command:
            continue
        command = command.replace("{dry_run}", "true").replace("\\\n", "")
        rlhf, recipe, *words = shlex.split(command.partition("<")[0])
        assert rlhf == "rlhf"
        parsed.append(parse(recipe, words).recipe)
    assert parsed == ["data", "chat", "sft", "chat", "merge", "push"]


def test_a_line_for_the_shell_keeps_its_place_and_gets_its_variables(tmp_path: Path) -> None:
    cell = 'what = "tea"\nif what:\n    !echo "a {what}" \\\n        more\nprint("and after")'
    assert run_cells([cell], tmp_path, {}) == "a tea more\nand after\n"


@pytest.mark.slow
def test_it_runs_from_rows_to_the_hub(shared: Path, tmp_path: Path) -> None:
    model = tmp_path / "stories260K"
    shutil.copytree(shared / "models/stories260K", model)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    settings, *_, last = code_cells()
    given = {"MODEL": str(model), "REPO": "first"}
    with LoopbackHub() as hub:
        online = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        said = run_cells(code_cells(), tmp_path, given | online | {"HF_TOKEN": "hf_not_a_real_one"})
        repo = hub.model("someone/first")
        num_asked = len(hub.asked)
        dry = run_cells([settings, last], tmp_path, given | online)
        assert not any("/commit/" in request for request in hub.asked[num_asked:])
    assert "verified: full" in said
    assert "model.safetensors" in dry
    summary = json.loads((tmp_path / "runs/first/summary.json").read_text())
    assert summary["perplexity"] < summary["base_perplexity"]
    merged = (tmp_path / "runs/first-merged/final/model.safetensors").read_bytes()
    assert repo.private
    assert repo.files[repo.head]["model.safetensors"] == merged
    assert merged != (model / "model.safetensors").read_bytes()
