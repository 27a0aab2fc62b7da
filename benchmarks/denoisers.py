# SPDX-License-Identifier: Apache-2.0
"""Diffusion models that lines of a table of DIA share, trained once each."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from variants import Line

from fundad_fast.data import Dataset
from fundad_fast.detector import DETECTORS
from fundad_fast.diffusion import save_denoiser
from fundad_fast.methods import DIA
from fundad_fast.methods.dia_config import DIAConfig
from fundad_fast.progress import Bars
from fundad_fast.run_folder import replacing

SHARED = ("seed", "one", "line")


class BusyError(Exception):
    """Another call is at it at the moment."""


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether this process alone is at a folder until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


class Denoisers:
    """Trains and keeps diffusion models as DDPM folders of diffusers.

    Args:
        folder: where they are kept.
        how: ``seed``: one for all lines of a seed that want the same; ``one``: one for all seeds,
            the first's; ``line``: none here, every fit trains its own.
        first: the first seed.
        given: a folder with a model that all lines use, or ``None``.
        options: of the detector that trains them.
    """

    def __init__(
        self, folder: Path, how: str, first: int, given: str | None, options: dict[str, Any]
    ) -> None:
        self.folder, self.how, self.first = folder, how, first
        self.given, self.options = given, options

    def of(self, line: Line, seed: int, dataset: Dataset) -> tuple[str | None, float]:
        """The weights that a line is fitted with, and the seconds that they took to train.

        Raises:
            BusyError: another call trains them.
        """
        config = line.config(seed if self.how != "one" else self.first)
        if not isinstance(config, DIAConfig) or config.dissolve != "diffusion":
            return None, 0.0
        if self.given is not None:
            return self.given, 0.0
        if self.how == "line":
            return None, 0.0
        wanted = config.of_diffusion()
        key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:12]
        folder = self.folder / f"seed-{config.seed}-{key}"
        with claimed(folder) as mine:
            if not mine:
                raise BusyError
            if not (folder / "ddpm").exists():
                self._train(folder, line, config.seed, wanted, dataset)
        return str(folder / "ddpm"), json.loads((folder / "about.json").read_text())["seconds"]

    def _train(
        self, folder: Path, line: Line, seed: int, wanted: dict[str, Any], dataset: Dataset
    ) -> None:
        # What follows the diffusion model in a fit is made as short as can be.
        settings = {**line.settings, "max_steps": 1, "views": 1, "seed": seed}
        detector = DETECTORS["dia"](
            line.preset, folds=0, progress=Bars(), **self.options, **settings
        )
        detector.fit(dataset, scratch=folder / "work")
        assert detector.bundle_ is not None
        method = detector.bundle_.method
        assert isinstance(method, DIA)
        about = {"settings": wanted, **method.facts["diffusion"]}
        with replacing(folder / "about.json", "w") as file:
            json.dump(about, file, indent=1)
        part = folder / "ddpm.part"
        shutil.rmtree(part, ignore_errors=True)
        save_denoiser(method.denoiser, part)
        part.rename(folder / "ddpm")
        shutil.rmtree(folder / "work", ignore_errors=True)
