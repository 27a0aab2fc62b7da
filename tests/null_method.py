# SPDX-License-Identifier: Apache-2.0
"""A method that costs nothing, and runs with it that are killed or meet errors."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as nnf

from fundad_fast import run_folder
from fundad_fast.archive.run import ScoreOptions, score_run
from fundad_fast.batch import Scores
from fundad_fast.bundle import Bundle
from fundad_fast.data import InputSpec, discover
from fundad_fast.methods import Method, MethodConfig, State
from fundad_fast.run_folder import read_rows


class Null(Method):
    """Scores are mean brightness; maps are of 8 x 8 cells."""

    name = "null"
    Config = MethodConfig
    presets = MappingProxyType({"default": {}})

    def fit(self, train, **options):
        return self

    def score(self, batch):
        return Scores(batch.image.mean((1, 2, 3)), nnf.adaptive_avg_pool2d(batch.image, 8).mean(1))

    def state(self):
        return State()

    @classmethod
    def from_state(cls, config, state):
        return cls(config)

    def plan(self, images, folds):
        raise NotImplementedError


def null_bundle(size: int = 32, method: Method | None = None, **spec) -> Bundle:
    """A model without a field of view, whose thresholds find regions in bright images."""
    spec = InputSpec(image_size=size, fov="none", channels="rgb", bit_depth=8, **spec)
    return Bundle(
        method=method or Null(MethodConfig(image_size=size, fov="none")),
        preset="default",
        input_spec=spec.model_dump(mode="json"),
        thresholds={"image": {"value": 0.5}, "pixel": {"value": 0.5}},
        id="null",
    )


@contextmanager
def null_known() -> Iterator[None]:
    """Inside, the command line reads models of this method."""
    from fundad_fast import detector, methods

    class Detector(detector.Detector):
        method = Null

    methods.METHODS["null"], detector.DETECTORS["null"] = Null, Detector
    try:
        yield
    finally:
        del methods.METHODS["null"], detector.DETECTORS["null"]


def fundad(*arguments: object) -> int:
    """The exit code of the command line, which knows this method here."""
    from fundad_fast import cli

    with null_known():
        try:
            cli.app([str(argument) for argument in arguments])
        except SystemExit as end:
            return int(end.code or 0)
    raise AssertionError("the command line has returned")


def make_images(folder: Path, n: int, side: int = 24, broken: int = 7) -> Path:
    """Small pictures of noise, each ``broken``-th one damaged."""
    import cv2

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i:04d}.png"), image)
        if i % broken == broken - 1:
            os.truncate(folder / f"{i:04d}.png", 60)
    return folder


def score_null(source: Path, out: Path, **options) -> dict[str, int]:
    """Score a folder with the null model, in small parts."""
    from fundad_fast import run_folder

    torch.set_num_threads(1)
    run_folder.PART_ROWS = 8
    dataset = discover(source)
    chosen = ScoreOptions(**{"batch_size": 4, "threads": 2, **options})
    return score_run(null_bundle(), dataset, dataset.items, out, options=chosen)


def table(out: Path) -> dict[str, dict]:
    """Rows by id without times; none may be there twice, and no map may be missing."""
    rows = list(read_rows(out))
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows)
    for row in rows:
        del row["ms_read"], row["ms_model"]
        if row["map_path"] is not None:
            with np.load(out / row["map_path"]) as stored:
                row["map"] = stored["map"].tobytes()
    return found


def score_until_interrupted(source, out):
    """Score slowly in a process of its own; exit with 7 where an interrupt left no thread behind.

    It stands here because a child of a fork server finds no function of a test file.
    """

    class Slow(Null):
        def score(self, batch):
            time.sleep(0.02)
            return super().score(batch)

    run_folder.PART_ROWS = 8
    method = Slow(MethodConfig(image_size=32, fov="none"))
    dataset = discover(source)
    options = ScoreOptions(batch_size=2, threads=1)
    try:
        score_run(null_bundle(method=method), dataset, dataset.items, out, options=options)
    except KeyboardInterrupt:
        os._exit(7 if not [t for t in threading.enumerate() if "fundad" in t.name] else 8)
