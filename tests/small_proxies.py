# SPDX-License-Identifier: Apache-2.0
"""Tiny fits of ProxyAno and the autoencoders that tests and their child processes share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from small_tasks import batches

from fundad_fast.batch import Batch
from fundad_fast.methods import Method, ProxyAno, make_config

TINY = {
    "width": 4,
    "depth": 3,
    "slots": 12,
    "train_batch": 3,
    "max_steps": 6,
    "learning_rate": 0.01,
    "image_size": 32,
}
PROXY = {**TINY, "discriminator_width": 2, "proxy_settings": {"segments": 20}}


def fit_on(
    method: type[Method],
    train: Iterable[Batch],
    *,
    preset: str = "default",
    folds: dict[str, int] | None = None,
    scratch: Path | None = None,
    **settings,
):
    shared = PROXY if method is ProxyAno else TINY
    config = make_config(method, preset, {**shared, **settings})
    return method(config).fit(train, folds=folds, scratch=scratch)


if __name__ == "__main__":  # small_proxies.py SCRATCH: is killed in its fifth step
    from fundad_fast.methods import proxy_training, reconstruction

    torch.set_num_threads(1)
    steps = proxy_training.ProxyRecipe.step
    settings = reconstruction.LoopSettings

    def deadly(self, turn):
        if turn.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return steps(self, turn)

    proxy_training.ProxyRecipe.step = deadly  # type: ignore[method-assign]
    reconstruction.LoopSettings = partial(settings, save_every=0.0)  # type: ignore
    fit_on(ProxyAno, batches(7), scratch=Path(sys.argv[1]))
