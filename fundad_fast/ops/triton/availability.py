# SPDX-License-Identifier: Apache-2.0
"""Whether Triton kernels can run here, in words; triton itself is not imported."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

import torch

from .._adapt import elsewhere

_CAPABILITY = (8, 0)  # the first with tensor cores for TF32 and bfloat16


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def before_hopper(device: torch.device) -> bool:
    """Whether this is a GPU older than compute capability 9.0: a thread's registers hold less."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < (9, 0)


def no_triton(*args: Any) -> str | None:
    """Why Triton kernels cannot take these arguments, or ``None``; triton is not imported."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if interpreted():
        if (reason := elsewhere("cpu", args)) is not None:
            return f"{reason}, and TRITON_INTERPRET=1 runs kernels on the CPU"
        if _compiles(sys.modules.get("triton.language")):
            return "TRITON_INTERPRET=1 was set after triton was imported: set it before"
        return None
    if (reason := elsewhere("cuda", args)) is not None:
        return f"{reason}, where only Triton's interpreter runs (TRITON_INTERPRET=1)"
    if torch.version.hip is None and torch.cuda.get_device_capability() < _CAPABILITY:
        return "the GPU is older than compute capability 8.0"
    return None


def _compiles(language: Any) -> bool:
    """Whether triton was imported, and not as an interpreter: that cannot be changed later."""
    return language is not None and type(language.sum).__name__ == "JITFunction"
