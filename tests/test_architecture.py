# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: the arrows point down, and this file is where that is written."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fundad_fast

ROOT = Path(fundad_fast.__file__).parent
BOTTOM = {"__init__", "batch", "progress", "words"}
ROOMS = {"ops", "spill", "backbones", "synthetic", "nets"}
MAY_IMPORT = {  # room: rooms that it may name, wherever in its files the import stands
    "__init__": {"ops", "detector"},
    "batch": set(),
    "progress": set(),
    "words": set(),
    "set_aside": set(),
    "run_folder": {"set_aside"},
    "ops": {"ops", "_native"},
    "spill": set(),
    "backbones": set(),
    "synthetic": {"synthetic", "ops"},
    "nets": {"nets"},
    "training": {"training"},
    "diffusion": {"backbones"},  # for its error
    "methods": {"methods", "training", "diffusion"} | ROOMS,
    "data": {"data", "ops"},
    "bundle": {"methods"},
    "evaluation": {"evaluation"},
    "report": {"report", "evaluation", "data", "run_folder"},
    # Objects for clinics show what the report draws, so that both say the same.
    "export": {"export", "report", "data", "run_folder"},
    "held_out": {"methods", "evaluation"},
    "detector": {"methods", "bundle", "data", "held_out"},
    "archive": {"archive", "methods", "bundle", "data", "evaluation", "run_folder"},
    "demo": {"synthetic", "data"},
    "cli": {"cli", "detector", "archive", "evaluation", "report", "export", "demo"}
    | {"methods", "training", "bundle", "data", "backbones", "ops", "run_folder", "synthetic"}
    | {"diffusion"},
}


def ours(path: Path) -> set[str]:
    """The rooms that a file imports."""
    package = ("fundad_fast", *path.relative_to(ROOT).parts[:-1])
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{stem}.{alias.name}" for alias in node.names]
    rooms = {name.split(".")[1] for name in names if name.startswith("fundad_fast.")}
    return {room for room in rooms if (ROOT / room).is_dir() or (ROOT / f"{room}.py").exists()} | (
        rooms & {"_native"}
    )


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert ours(path) <= MAY_IMPORT[room] | BOTTOM | {room}


def test_the_native_module_is_named_in_one_place():
    users = {str(p.relative_to(ROOT)) for p in FILES if "_native" in ours(p)}
    assert users == {"ops/_adapt.py"}


def test_methods_open_no_files_and_name_no_backends():
    for path in (ROOT / "methods").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for word in ("argparse", "typer", "imread", "read_image", "FUNDAD_BACKEND"):
            assert word not in text, f"{path.name} names {word}"


def test_importing_the_package_costs_nothing():
    heavy = (
        "torch numpy torchvision timm sklearn scipy skimage cv2 pyarrow tifffile pydantic rich "
        "typer accelerate tensorboard diffusers"
    )
    code = (
        "import sys; before = set(sys.modules); import fundad_fast; "
        f"print([m for m in {heavy.split()} if m in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_is_longer_than_one_sitting():
    long = {p.name: n for p in FILES if (n := len(p.read_text().splitlines())) > 500}
    assert not long


def test_every_source_file_names_its_licence():
    bare = [p.name for p in FILES if "SPDX-License-Identifier" not in p.read_text()[:80]]
    assert not bare
