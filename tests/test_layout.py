"""Keeps the architecture picture of the README true: who imports whom, what lives where, what no file may contain."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

import generant

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, CSRC = ROOT / "python" / "generant", ROOT / "csrc"
PYTHON = sorted(PACKAGE.rglob("*.py"))
SOURCES = [
    path
    for folder in ("python", "csrc", "tests", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".cpp", ".h", ".cu") and "lab" not in path.parts and "build" not in path.parts
]

# cli -> models -> diffusion, metrics -> nn -> ops -> autograd. A module imports only what has a lower number, or its
# own package.
LAYER = {
    "cli": 7,
    "models": 6,
    "diffusion": 5, "metrics": 5,
    "nn": 4,
    "optim": 3, "data": 3, "io": 3,
    "random": 2, "pairwise": 2, "recording": 2, "_config": 2,
    "ops": 1,
    "autograd": 0, "_threadpoolctl": 0, "_native": 0,
}  # fmt: skip
LATER = {("autograd", "ops")}  # inside a function: the operators of Var look their op up when first used


def relative(path):
    return str(path.relative_to(ROOT))


def imported_from_generant(path):
    """(top-level module of generant, whether the import runs when the file is imported) for every import in a file."""
    package = ["generant", *path.relative_to(PACKAGE).parent.parts]
    tree = ast.parse(path.read_text())
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        targets: list[list[str]] = []
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = start + (node.module.split(".") if node.module else [])
            targets = [module] if len(module) > 1 else [[*module, alias.name] for alias in node.names]
        for target in targets:
            if target[0] == "generant" and len(target) > 1 and target[1] != "__version__":
                yield generant._NAMES.get(target[1], target[1]), id(node) not in inside


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_imports_go_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return  # public names, imported when first used
    assert own in LAYER, f"{own}: give it a layer here and in the README's picture"
    for target, at_once in imported_from_generant(path):
        assert target in LAYER, f"{relative(path)} imports generant.{target}, which has no layer"
        allowed = target == own or LAYER[target] < LAYER[own] or (not at_once and (own, target) in LATER)
        assert allowed, f"{relative(path)} (layer {LAYER[own]}) imports {target} (layer {LAYER[target]})"


def test_the_same_family_has_the_same_file_name_at_every_layer():
    families = {p.stem for p in (PACKAGE / "ops").glob("*.py") if not p.stem.startswith("_")} - {"transport", "flat"}
    native = {p.stem for p in (CSRC / "cpu").glob("*.cpp")}
    cuda = {p.stem for p in (CSRC / "cuda").glob("*.cu")}
    twins = {p.stem for p in (PACKAGE / "ops" / "_numba").glob("*.py") if not p.stem.startswith("_")}
    assert native == families  # a loop over logsumexp and views of a buffer: no kernels
    assert cuda == families
    assert twins == families


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_file_has_a_name_and_a_size_that_say_what_it_is(path):
    parts = {p.lower().removesuffix(path.suffix).strip("_") for p in path.relative_to(ROOT).parts}
    assert not parts & {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base"}
    lines = path.read_text().splitlines()
    assert len(lines) <= 500, f"{len(lines)} lines: split it"
    if path.suffix == ".py" and path.stem not in ("__main__",):
        assert ast.get_docstring(ast.parse(path.read_text())), "the file does not say what is here"
    elif path.suffix != ".py":
        assert lines[0].startswith("//"), "the file does not say what is here"


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_array_types_are_known_in_one_place(path):
    if path in (PACKAGE / "ops" / "_dispatch.py", PACKAGE / "ops" / "_device.py"):
        return
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = {(node.module or "").split(".")[0]}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = {node.value.id}
        else:
            continue
        assert not names & {"torch", "cupy"}, f"{relative(path)}:{node.lineno} knows about {names}"


@pytest.mark.parametrize("path", sorted(CSRC.rglob("*")), ids=relative)
def test_only_bind_cpp_knows_python(path):
    if path.is_file() and path.name != "bind.cpp":
        assert not re.search(r"#include\s*<(Python\.h|pybind11|numpy)|\bPy[A-Z]\w*_|\bpy::", path.read_text())


@pytest.mark.parametrize("path", sorted((CSRC / "cpu").glob("*.cpp")), ids=relative)
def test_kernels_have_nothing_that_the_linker_could_share(path):
    text = re.sub(r"//.*", "", path.read_text())
    for header in re.findall(r"#include\s*<([^>]+)>", text):
        assert header.endswith(".h"), f"<{header}>: C++ headers bring inline functions compiled for one instruction set"
    for word in ("std::", "throw", "new ", "malloc(", "omp "):
        assert word not in text, f"{word!r} in a kernel file"


# ---- the object files: set GENERANT_BUILD_DIR to a CMake build folder ----------------------------------------------

BUILD = os.environ.get("GENERANT_BUILD_DIR")
needs_objects = pytest.mark.skipif(not BUILD, reason="GENERANT_BUILD_DIR does not name a build folder")


ISAS = ("base", "avx2", "avx512", "avx512bf16")


def objects(isa):
    """The object files of an instruction set; of avx512bf16 those with bfloat16 products only."""
    found = sorted(Path(str(BUILD)).resolve().glob(f"CMakeFiles/kernels_{isa}.dir/csrc/cpu/*.o"))
    sources = [p for p in (CSRC / "cpu").glob("*.cpp") if isa != "avx512bf16" or "_bf16.h" in p.read_text()]
    assert [p.name.removesuffix(".o") for p in found] == sorted(p.name for p in sources)
    return found


@needs_objects
@pytest.mark.parametrize("isa", ISAS)
def test_objects_share_no_code_and_run_nothing_at_load(isa):
    whole = "avx512" if isa == "avx512bf16" else isa
    own = re.compile(rf"_ZNK?8generant{len(whole)}{whole}\w+")  # the namespace of the instruction set
    for path in objects(isa):
        for line in subprocess.check_output(["nm", path], text=True).splitlines():
            kind, name = line.split()[-2:]
            # t, d, r, b: of this file alone. U: defined elsewhere. Everything else could be merged with another copy,
            # unless it is in the namespace of its instruction set, into which a partial set may only call.
            if own.match(name) and (kind == "U" or whole == isa):
                continue
            assert kind in "tdrbU", f"{path.name} ({isa}): symbol {name} of kind {kind} is not internal"
            if kind == "U":
                assert not name.startswith("_Z"), f"{path.name} ({isa}) calls the C++ function {name}"
        sections = subprocess.check_output(["objdump", "-h", path], text=True)
        assert not re.search(r"\.init_array|\.ctors", sections), f"{path.name} ({isa}) has a static initialiser"
        assert f"generant_rows_{isa}" in sections


@needs_objects
def test_the_baseline_has_no_avx_instruction():
    for path in objects("base"):
        code = subprocess.check_output(["objdump", "-d", "--no-show-raw-insn", path], text=True)
        found = re.search(r".*%[yz]mm.*|.*\tv[a-z]+[0-9]*[a-z]* .*%xmm.*", code)
        assert not found, f"{path.name}: {found and found.group()}"


@needs_objects
@pytest.mark.parametrize(("isa", "word"), [("avx2", "%ymm"), ("avx512", "%zmm"), ("avx512bf16", "vdpbf16ps")])
def test_the_wide_kernels_use_what_they_have(isa, word):
    code = "".join(subprocess.check_output(["objdump", "-d", p], text=True) for p in objects(isa))
    assert word in code
    assert isa != "avx2" or "%zmm" not in code
    assert isa == "avx512bf16" or "vdpbf16ps" not in code
