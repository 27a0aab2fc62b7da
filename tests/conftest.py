# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: real data where there is some, and the native module where it is due."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton_interpreter
from cohorts import SMALL, photograph

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is defined
    triton_interpreter.patch_once()

import fundad_fast
from fundad_fast import ops


def pytest_configure(config: pytest.Config) -> None:
    """Tests without the native module would pass on the torch forms alone: never by accident."""
    if (
        ops.build()["native"].startswith("not built")
        and os.environ.get("FUNDAD_REQUIRE_NATIVE") != "0"
    ):
        where = Path(fundad_fast.__file__).parent
        raise pytest.UsageError(
            f"the native module is missing from {where}: run `pip install '.[test]'` and then "
            "`pytest` (not `python -m pytest`, which imports the source tree); "
            "FUNDAD_REQUIRE_NATIVE=0 tests the torch forms alone"
        )


@pytest.fixture(scope="session")
def packs() -> Path:
    """The folder of real data packs that FUNDAD_DATA names."""
    folder = os.environ.get("FUNDAD_DATA")
    if not folder:
        pytest.skip("FUNDAD_DATA does not name a folder of data packs")
    return Path(folder)


@pytest.fixture(scope="session")
def forks() -> Any:
    """Children that have imported everything, but have none of this process's threads."""
    context = multiprocessing.get_context("forkserver")
    # What it imports must be installed: the server does not search this folder.
    ours = ("archive.run", "cli", "detector", "data.layouts", "report.overlays")
    readers = ("cv2", "imagecodecs", "nibabel", "PIL.Image", "pydicom.pixels", "simplejpeg")
    others = ("pyarrow.parquet", "pytest", "scipy.ndimage", "tifffile")
    context.set_forkserver_preload([*(f"fundad_fast.{name}" for name in ours), *readers, *others])
    return context


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = len(terminalreporter.stats.get("skipped", []))
    terminalreporter.write_line(f"{skipped} tests skipped")
    for name, op in ops.OPS.items():
        args = next(iter(op.samples().values()))
        for backend in op.backends.values():
            if reason := backend.why_not(*args):
                terminalreporter.write_line(f"not run here: {name} by {backend.name}: {reason}")


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve healthy photographs to learn from, four healthy and four abnormal ones to test."""
    import cv2

    root = tmp_path_factory.mktemp("cohort")
    plan = [("train/good", 12, False), ("test/good", 4, False), ("test/spot", 4, True)]
    seed = 0
    for folder, n, lesion in plan:
        (root / folder).mkdir(parents=True)
        for i in range(n):
            image = photograph(seed, lesion=lesion)
            cv2.imwrite(str(root / folder / f"{i:02d}.png"), image[..., ::-1])
            if lesion:
                mask = np.abs(image.astype(int) - photograph(seed)).sum(-1) > 30
                place = root / "ground_truth" / "spot"
                place.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(place / f"{i:02d}_mask.png"), mask.astype(np.uint8) * 255)
            seed += 1
    return root


@pytest.fixture(scope="session")
def fitted(cohort: Path) -> fundad_fast.ReSAD:
    """A small ReSAD with an untrained backbone, fitted on the cohort."""
    return fundad_fast.ReSAD(weights="untrained", folds=3, **SMALL).fit(cohort)


@pytest.fixture(scope="session")
def model(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small ReSAD that the command line has fitted on the cohort."""
    from commands import SETTINGS, call  # not before the interpreter of kernels is set

    path = tmp_path_factory.mktemp("cli") / "model"
    said = call("fit", cohort, "-o", path, *SETTINGS)
    assert "12 healthy (good)" in said
    assert "the backbone is untrained" in said
    assert "image threshold" in said
    return path
