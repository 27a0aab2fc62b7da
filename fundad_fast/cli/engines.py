# SPDX-License-Identifier: Apache-2.0
"""Where score has its work done, and which part of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .options import Engine, UsageError

if TYPE_CHECKING:
    from ..archive import run
    from ..archive.sharding import Shard


def which_shard(text: str | None) -> Shard | None:
    from ..archive.sharding import Shard

    try:
        return None if text is None else Shard.parse(text)
    except ValueError as error:
        raise UsageError(f"--{error}") from error


def which_engine(
    engine: Engine, model: Path, device: str | None, compile: str | None, gpu_decode: bool
) -> run.Engine | None:
    """The engine of a name; ``None`` is this process. Raises RunError where it is not installed."""
    if engine is Engine.local:
        return None
    from ..archive.ray_engine import RayEngine
    from ..archive.ray_worker import load_model

    if device not in (None, "cpu", "cuda"):
        raise UsageError(f"--device {device} with --engine ray: use cpu, or cuda (one per worker)")
    if gpu_decode:
        raise UsageError(
            "--gpu-decode with --engine ray: whether a GPU decodes is tried on each machine, and a "
            "run keeps to one answer; leave it away, or use --shard and merge"
        )
    return RayEngine(partial(load_model, str(model.absolute()), compile=compile), device=device)
