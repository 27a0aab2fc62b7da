# SPDX-License-Identifier: Apache-2.0
"""Tiny fits of DIA that tests and their child processes share."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from small_tasks import batches

from fundad_fast.methods import DIA, make_config

TINY = {
    "image_size": 32,
    "resolution": 16,
    "diffusion_width": 8,
    "diffusion_multipliers": (1, 2),
    "diffusion_steps": 5,
    "diffusion_batch": 4,
    "ema_every": 2,
    "width": 4,
    "projection": 8,
    "train_batch": 4,
    "max_steps": 5,
    "views": 2,
}


def fit_on(train, *, preset="quick", weights=None, folds=None, scratch=None, **settings) -> DIA:
    config = make_config(DIA, preset, {**TINY, **settings})
    return DIA(config, weights=weights).fit(train, folds=folds, scratch=scratch)


if __name__ == "__main__":  # small_dia.py SCRATCH RECIPE DISSOLVE [SETTINGS]: is killed there
    from fundad_fast.methods import dia_training
    from fundad_fast.training import loop

    torch.set_num_threads(1)
    recipe = getattr(dia_training, sys.argv[2])
    steps = recipe.step
    settings = loop.LoopSettings.__init__

    def deadly(self, turn):
        if turn.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return steps(self, turn)

    def saves_often(self, **given):
        settings(self, **{"save_every": 0.0, **given})

    recipe.step = deadly  # type: ignore[method-assign]
    loop.LoopSettings.__init__ = saves_often  # type: ignore[method-assign]
    more = json.loads(sys.argv[4]) if sys.argv[4:] else {}
    fit_on(batches(6), scratch=Path(sys.argv[1]), **{"dissolve": sys.argv[3], **more})
