# SPDX-License-Identifier: Apache-2.0
"""What the numbers of a run depend on: commit, machine, versions."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from fundad_fast import __version__, ops

LIBRARIES = (
    "numpy",
    "scipy",
    "scikit-learn",
    "opencv-python-headless",
    "triton",
    "timm",
    "faiss-cpu",
    "anomalib",
    "pie-torch",
)


@functools.cache
def environment() -> dict[str, str]:
    """What the numbers depend on."""
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            libraries[name] = "not installed"
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = os.environ.get("FUNDAD_COMMIT", "")
    try:
        commit = (
            commit
            or subprocess.run(git, capture_output=True, text=True).stdout.strip()
            or "unknown"
        )
    except FileNotFoundError:  # a machine without git
        commit = "unknown"
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return {
        "fundad_fast": f"{__version__} ({commit})",
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "CPU": cpu,
        "instruction set": ops.build().get("instruction set in force", "torch only"),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "CUDA": str(torch.version.cuda) if torch.cuda.is_available() else "none",
        "Python": platform.python_version(),
        **libraries,
    }
