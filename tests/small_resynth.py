# SPDX-License-Identifier: Apache-2.0
"""Tiny fits of ReSynthDetect that tests and their child processes share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from small_tasks import batches

from fundad_fast.batch import Batch
from fundad_fast.methods import ReSynthDetect, make_config

TINY = {
    "image_size": 32,
    "width": 2,
    "reconstruction_width": 2,
    "depth": 3,
    "train_batch": 3,
    "max_steps": 6,
    "reconstruction_steps": 4,
    "validate_every": 2,
    "val_repeats": 2,
    "learning_rate": 0.01,
    "pool": 5,
}


def fit_on(
    train: Iterable[Batch],
    *,
    preset: str = "default",
    folds: dict[str, int] | None = None,
    external: Iterable[Batch] | None = None,
    scratch: Path | None = None,
    **settings,
) -> ReSynthDetect:
    config = make_config(ReSynthDetect, preset, {**TINY, **settings})
    return ReSynthDetect(config).fit(train, folds=folds, external=external, scratch=scratch)


if __name__ == "__main__":  # small_resynth.py SCRATCH: is killed in the second stage
    import torch

    from fundad_fast.methods import resynth_training

    torch.set_num_threads(1)
    step = resynth_training.LocalisationStage.step

    def deadly(self, turn):
        if turn.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, turn)

    resynth_training.LocalisationStage.step = deadly  # type: ignore[method-assign]
    fit_on(batches(8, channels=3, masked=True), scratch=Path(sys.argv[1]))
