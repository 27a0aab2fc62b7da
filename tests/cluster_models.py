# SPDX-License-Identifier: Apache-2.0
"""Models that workers of a cluster load; a module of its own, which other processes can import."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from null_method import Null, null_bundle

from fundad_fast.methods import MethodConfig

SLOW_SECONDS = 0.02


class Slow(Null):
    """Takes its time for each image, so that a run can be disturbed."""

    def score(self, batch):
        time.sleep(SLOW_SECONDS * len(batch))
        return super().score(batch)


class Deadly(Null):
    """One image ends the process that scores it."""

    def score(self, batch):
        if "0010.png" in batch.id:
            os._exit(3)
        return super().score(batch)


def load_null(device):
    """The null model."""
    return null_bundle()


def load_slow(device):
    """The same scores, slowly."""
    return null_bundle(method=Slow(MethodConfig(image_size=32, fov="none")))


def load_deadly(device):
    """The same scores, but for one image."""
    return null_bundle(method=Deadly(MethodConfig(image_size=32, fov="none")))


def load_other(device):
    """A model of another id."""
    bundle = null_bundle()
    bundle.id = "other"
    return bundle


def main(source, out):
    """Score a folder slowly on Ray, in small blocks, in a process that can be killed."""
    from fundad_fast import run_folder
    from fundad_fast.archive import ray_engine
    from fundad_fast.archive.run import ScoreOptions, score_run
    from fundad_fast.data import discover

    run_folder.PART_ROWS = ray_engine.BLOCK = 8
    ray_engine._BATCHES = 1
    dataset = discover(source)
    score_run(
        null_bundle(),
        dataset,
        dataset.items,
        Path(out),
        options=ScoreOptions(batch_size=4, threads=1),
        engine=ray_engine.RayEngine(load_slow),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
