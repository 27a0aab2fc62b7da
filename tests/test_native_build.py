# SPDX-License-Identifier: Apache-2.0
"""The native module: what it offers, what its stub says of it, and how its sources are kept."""

from __future__ import annotations

import ast
import enum
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fundad_fast
from fundad_fast import ops
from fundad_fast.ops import _adapt

ROOT = Path(__file__).parent.parent
STUB = Path(fundad_fast.__file__).parent / "_native.pyi"


def arguments_of_stub() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for node in ast.parse(STUB.read_text()).body:
        inside = node.body if isinstance(node, ast.ClassDef) and node.name != "Isa" else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for item in inside:
            if isinstance(item, ast.FunctionDef):
                names = [arg.arg for arg in item.args.args if arg.arg != "self"]
                found[prefix + item.name] = names
    return found


def arguments_of_module() -> dict[str, list[str]]:
    """pybind11 writes each function's signature into its documentation."""
    module = _adapt.native()
    found: dict[str, list[str]] = {}
    things = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    for name, thing in list(things.items()):
        if isinstance(thing, enum.EnumMeta):
            del things[name]
        elif isinstance(thing, type):
            del things[name]
            for method, value in vars(thing).items():
                if method == "__init__" or not method.startswith("_"):
                    things[f"{name}.{method}"] = value
    for name, thing in things.items():
        signature = thing.__doc__.split(" ->")[0]
        found[name] = [arg for arg in re.findall(r"(\w+): ", signature) if arg != "self"]
    return found


def test_the_stub_is_current():
    assert arguments_of_stub() == arguments_of_module()


def test_the_stub_knows_the_instruction_sets():
    text = STUB.read_text()
    for name, isa in _adapt.native().Isa.__members__.items():
        assert f"{name}: typing.ClassVar[Isa]" in text
        assert isinstance(isa, int)
    assert list(_adapt.native().Isa.__members__) == ["base", "avx2", "avx512", "avx512vnni"]


def test_the_module_says_how_it_was_built():
    build = ops.build()
    assert Path(build["native"]).is_file()
    assert build["instruction set in force"] in _adapt.native().Isa.__members__
    assert build["compiler"]


@pytest.mark.skipif(bool(_adapt.native().cuda_architectures()), reason="built with CUDA")
def test_a_build_without_cuda_says_so():
    assert _adapt.no_cuda(torch.ones(1)) == "the native module is built without CUDA"
    for name, arguments in arguments_of_stub().items():
        if name.endswith("_cuda"):
            with pytest.raises(RuntimeError, match="built without CUDA"):
                getattr(_adapt.native(), name)(*[0] * len(arguments))


def test_one_openmp_runtime():
    """Two of them, ours and torch's, would fight for the cores. (In a process of its own, since
    scikit-learn brings another.)"""
    if not Path("/proc/self/maps").exists():
        pytest.skip("no list of loaded libraries on this system")
    code = """
import torch
from fundad_fast import ops
ops.nearest(torch.ones(1, 1), torch.ones(1, 1))
lines = open("/proc/self/maps").read().splitlines()
print(len({line.split()[-1] for line in lines if "libgomp" in line}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 1


sources = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="no sources beside the tests")


@sources
def test_every_source_is_listed():
    listed = (ROOT / "CMakeLists.txt").read_text()
    probes = {"csrc/cuda/probe.cu"}  # compiled to see whether the compiler works
    for path in sorted((ROOT / "csrc").rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in (".cpp", ".cu") and name not in probes:
            assert name in listed, f"{name} is not built"


@sources
def test_only_the_bindings_know_python_and_nobody_knows_torch():
    for path in (ROOT / "csrc").rglob("*.*"):
        included = re.findall(r'#include [<"]([^>"]+)', path.read_text())
        strangers = [name for name in included if name.startswith(("torch", "ATen", "c10"))]
        assert not strangers, path
        if path.name != "bindings.cpp":
            assert not [n for n in included if n.startswith(("pybind11", "Python"))], path


@sources
def test_inner_loops_share_nothing_with_the_linker():
    """See vec-inl.h: what has external linkage may be the AVX-512 copy for everybody."""
    for path in (ROOT / "csrc" / "cpu").glob("*-inl.h"):
        text = path.read_text()
        included = re.findall(r'#include [<"]([^>"]+)', text)
        allowed = {"cstdint", "cstring", "immintrin.h", "kernels.h"}
        assert {n for n in included if not n.endswith("-inl.h")} <= allowed, path
        code = re.sub(r"//.*", "", text)
        used = {name for name in re.findall(r"std::(\w+)", code) if not name.endswith("int64_t")}
        assert used <= {"memcpy", "int8_t", "uint8_t", "int16_t", "int32_t"}, path
        body = re.sub(r"\s+", " ", re.sub(r"^\s*(#.*|)$", "", code, flags=re.M)).strip()
        assert body.startswith("namespace { "), path
        assert body.endswith(" }"), path
