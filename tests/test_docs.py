"""What the README and the pages in docs promise is run: programs, commands, the table of settings, the picture."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import generant
from generant.diffusion import samplers

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {
    f"{page.stem}-{number}": program
    for page in PAGES
    for number, program in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
}
COMMANDS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def test_there_are_programs_to_run():
    pages = [name.split("-")[0] for name in PROGRAMS]
    assert pages.count("README") >= 3 and pages.count("diffusion") >= 5 and pages.count("models") >= 4


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_run(name, tmp_path):
    program = PROGRAMS[name]
    if "generant.data" in program:
        pytest.importorskip("sklearn")
    path = tmp_path / "program.py"
    path.write_text(program)
    env = {**os.environ, "PYTHONPATH": str(Path(generant.__file__).parent.parent)}
    command = [sys.executable, "-W", "error", path]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout


def test_the_two_commands_do_all_the_setting_up():
    assert "pip install '.[demo]' && generant demo\n" in COMMANDS
    assert "pip install '.[test]' && pytest\n" in COMMANDS


def test_every_setting_is_documented():
    sources = "".join(p.read_text() for p in (ROOT / "python").rglob("*.py"))
    native = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".h") and p.stem != "simulator"]
    sources += "".join(p.read_text() for p in native) + (ROOT / "pyproject.toml").read_text()
    internal = {"GENERANT_ISA_", "GENERANT_ROWS", "GENERANT_ROW", "GENERANT_STRING"}
    read = set(re.findall(r"(?:environ\S*|getenv)\(?\"?\W*(GENERANT_[A-Z_]+)", sources)) | {"GENERANT_PURE"}
    documented = set(re.findall(r"^\| `(GENERANT_\w+)`", README, re.MULTILINE))
    assert documented >= read - internal
    assert documented <= set(re.findall(r"GENERANT_\w+", sources)), "documented, but nothing reads it"


def test_what_is_named_exists():
    for name in ("grad", "vjp", "value_and_grad", "show_config", "set_num_threads", "trim", "ops", "metrics", "models"):
        assert hasattr(generant, name)
    for path in re.findall(r"`((?:csrc|tests|benchmarks|\.ci)/[\w./]+\w)`", README):
        assert (ROOT / path).exists() or not (ROOT / ".ci").exists(), path  # an sdist has no .ci and no benchmarks


def test_the_table_of_samplers_is_complete():
    page = (ROOT / "docs" / "diffusion.md").read_text()
    listed = re.findall(r"^\| `(\w+)(?:\([^`]*\))?` \|", page, re.MULTILINE)
    assert set(samplers.SAMPLERS) <= set(listed), set(samplers.SAMPLERS) - set(listed)
    assert [name for name in listed if not hasattr(samplers, name)] == []
    assert page.count("<!-- lab:begin -->") == 1 and page.count("<!-- lab:end -->") == 1



def test_the_table_of_models_is_true():
    page = (ROOT / "docs" / "models.md").read_text()
    head = re.search(r"^\| method \| (.*) \|$", page, re.MULTILINE)
    names = head.group(1).split(" | ")
    for line in page[head.end() :].split("\n\n")[0].splitlines()[2:]:
        methods, *cells = line.strip("| ").split(" | ")
        assert len(cells) == len(names), line
        for name, cell in zip(names, cells, strict=True):
            model = getattr(generant.models, name)
            model = model(generant.models.VAE()) if name == "GenerativeClassifier" else model()
            for method in re.findall(r"`(\w+)`", methods):
                assert hasattr(model, method) == (cell == "yes"), (name, method)
                if cell.startswith("if "):
                    assert hasattr(model.set_params(**{cell[3:]: True}), method)
                    model.set_params(**{cell[3:]: False})


def test_the_benchmark_tables_have_their_place():
    tables = (ROOT / "docs" / "benchmarks.md").read_text()
    begin, end = tables.index("<!-- benchmarks:begin -->"), tables.index("<!-- benchmarks:end -->")
    assert begin < end


def test_the_command_is_installed_and_says_what_runs():
    command = [sys.executable, "-m", "generant.cli", "info"]
    out = subprocess.check_output(command, text=True, env={**os.environ, "GENERANT_NUM_THREADS": "1"})
    assert generant.__version__ in out and "backend" in out
