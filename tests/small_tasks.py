# SPDX-License-Identifier: Apache-2.0
"""Tiny fits of ManyTasks that tests and their child processes share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from cohorts import photograph

from fundad_fast.batch import Batch
from fundad_fast.methods import ManyTasks, make_config

TINY = {
    "width": 2,
    "depth": 3,
    "train_batch": 3,
    "max_steps": 6,
    "validate_every": 3,
    "warmup_steps": 2,
    "learning_rate": 0.02,
    "positions": True,
    "start": "he",
}


def batches(
    n: int,
    start: int = 0,
    channels: int = 1,
    masked: bool = False,
    changed: tuple[str, ...] = (),
) -> list[Batch]:
    """``n`` grey photographs of 32 pixels in batches of one; ``changed`` ones are others."""
    made = []
    for i in range(n):
        seed = start + i + (1000 if str(i) in changed else 0)
        pixels = photograph(seed, 32)[..., :channels].astype(np.float32) / 255
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
        made.append(Batch(image, (str(i),), image[:, 0] > 0.1 if masked else None))
    return made


def volumes(n: int) -> list[Batch]:
    """``n`` balls of noise on black, with the mask of the ball."""
    made = []
    axes = [torch.linspace(-1, 1, k) for k in (16, 18, 17)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    ball = ((z**2 + y**2 + x**2) < 0.9)[None]
    for i in range(n):
        generator = torch.Generator().manual_seed(i)
        image = torch.rand(1, 1, 16, 18, 17, generator=generator) * ball
        made.append(Batch(image, (str(i),), ball))
    return made


def fit_on(
    train: Iterable[Batch],
    *,
    preset: str = "default",
    folds: dict[str, int] | None = None,
    external: Iterable[Batch] | None = None,
    scratch: Path | None = None,
    **settings,
) -> ManyTasks:
    config = make_config(ManyTasks, preset, {**TINY, **settings})
    return ManyTasks(config).fit(train, folds=folds, external=external, scratch=scratch)


if __name__ == "__main__":  # small_tasks.py SCRATCH: is killed in the second of two models
    from fundad_fast.methods import task_training

    torch.set_num_threads(1)
    steps = task_training.TaskRecipe.step

    def deadly(self, turn):
        if self.fold.number == 2 and turn.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return steps(self, turn)

    task_training.TaskRecipe.step = deadly  # type: ignore[method-assign]
    fit_on(batches(8), models=(0, 2), scratch=Path(sys.argv[1]))
