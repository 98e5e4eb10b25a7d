"""What an installation promises, as far as it can be checked in seconds: names, versions, extras, what importing costs.

Building wheels, installing them elsewhere and their sizes are steps of .ci/run.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import generant

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text()
HEAVY = {"torch", "cupy", "scipy", "sklearn", "matplotlib", "PIL", "safetensors", "tqdm", "threadpoolctl"}


def modules_after(program):
    """The modules that a program has loaded when it ends."""
    command = [sys.executable, "-c", f"{program}\nimport sys; print(' '.join(sys.modules))"]
    return set(subprocess.check_output(command, text=True).splitlines()[-1].split())


def names_in(section):
    """Package names in a list of pyproject.toml."""
    found = re.search(rf"^{section} = \[(.*?)\]", PYPROJECT, re.MULTILINE | re.DOTALL)
    assert found, section
    return set(re.findall(r'"([\w.-]+)', found.group(1)))


def test_the_version_is_told_once():
    declared = re.search(r'^version = "(.+)"', PYPROJECT, re.MULTILINE)
    assert declared and declared.group(1) == generant.__version__
    try:
        assert metadata.version("generant") == generant.__version__
    except metadata.PackageNotFoundError:
        pytest.skip("run from the source tree, not from an installation")


def test_dependencies_are_few_and_the_tests_do_not_pull_torch():
    assert names_in("dependencies") == {"numpy", "safetensors", "tqdm"}
    assert "torch" not in names_in("test") | names_in("demo") | names_in("dev")


def test_importing_generant_imports_nothing_but_the_standard_library():
    before, after = modules_after(""), modules_after("import generant")
    ours = {m for m in after - before if m.split(".")[0] == "generant"}
    assert ours == {"generant"}, "submodules are imported when they are first used"
    assert not {m for m in after - before if "numpy" in m}
    assert len(after - before) < 60


def test_using_ops_imports_nothing_heavy(native):
    program = """
import numpy as np
import generant
from generant import grad, ops
grad(lambda x: ops.sum(ops.matmul(x, x)))(np.ones((3, 3)))
generant.get_num_threads()
"""
    assert not {m.split(".")[0] for m in modules_after(program)} & (HEAVY | {"numba"})


def test_every_public_name_exists():
    for name in generant.__all__:
        assert getattr(generant, name) is not None, name
    assert set(generant.__all__) <= set(dir(generant))
    with pytest.raises(AttributeError, match="module 'generant' has no attribute 'trian'"):
        generant.trian  # noqa: B018


def test_the_package_is_typed_and_the_compiled_module_has_a_stub(native):
    folder = Path(generant.__file__).parent
    assert (folder / "py.typed").exists()
    stub = (folder / "_native.pyi").read_text()
    public = {name for name in dir(native) if not name.startswith("_")}
    assert public == set(re.findall(r"^(?:def |class )?(\w+)(?=[:(])", stub, re.MULTILINE))


def test_the_command_is_an_entry_point():
    assert 'generant = "generant.cli:main"' in PYPROJECT
    out = subprocess.check_output([sys.executable, "-m", "generant.cli", "--version"], text=True)
    assert out.split() == ["generant", generant.__version__]
