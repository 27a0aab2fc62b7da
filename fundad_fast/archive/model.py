# SPDX-License-Identifier: Apache-2.0
"""The model at work in a run: what ``run.json`` says of it, and scores in what memory there is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..batch import Batch, Scores
from ..bundle import Bundle
from ..methods.portions import Portion, in_portions
from ..run_folder import RunError

NORMAL_SCORES = 5000
"""Held-out healthy scores that ``run.json`` keeps at most: enough for a histogram."""


def describe_model(bundle: Bundle) -> dict[str, Any]:
    """What ``run.json`` says of the model."""
    normal = [] if bundle.normal is None else thinned(bundle.normal.score)
    return {
        "id": bundle.id,
        "method": bundle.method.name,
        "preset": bundle.preset,
        "config": bundle.method.config.model_dump(mode="json"),
        "input_spec": bundle.input_spec,
        "thresholds": bundle.thresholds,
        "colour_scale": bundle.colour_scale,
        "trained_on": bundle.trained_on,
        "caveats": list(bundle.method.caveats),
        "normal_scores": normal,
    }


def thinned(scores: np.ndarray, n: int = NORMAL_SCORES) -> list[float]:
    """At most ``n`` of the scores, evenly by rank with both ends; sorted, to six digits."""
    ordered = np.sort(np.asarray(scores, np.float64))
    if len(ordered) > n:
        ordered = ordered[np.linspace(0, len(ordered) - 1, n).round().astype(np.intp)]
    return [float(f"{value:.6g}") for value in ordered]


@dataclass(frozen=True)
class Scored:
    """Scores of a batch, off the device: ``image`` ``[b]``, ``map`` ``[b, h', w']`` or ``None``."""

    image: np.ndarray
    map: torch.Tensor | None
    ms: float


@dataclass
class Scorer:
    """Scores batches; where memory runs out, half as many images at a time from then on.

    Attributes:
        bundle: the model.
        portion: how many images at a time.
    """

    bundle: Bundle
    portion: Portion = field(default_factory=lambda: Portion("images"))

    def __call__(self, batch: Batch) -> Scored:
        """See the class.

        Raises:
            RunError: not even one image fits.
        """
        began = time.perf_counter()
        try:
            parts = in_portions(lambda part: self._part(batch[part]), len(batch), self.portion)
        except torch.cuda.OutOfMemoryError as error:
            raise RunError(
                f"memory runs out with a single image of {batch.image.shape[-1]} pixels a side; "
                "free some, or use another --device"
            ) from error
        image = np.concatenate([part.image for part in parts])
        maps = [part.map for part in parts if part.map is not None]
        whole = maps[0] if len(maps) == 1 else torch.cat(maps) if maps else None
        return Scored(image, whole, (time.perf_counter() - began) * 1000 / len(batch))

    def _part(self, batch: Batch) -> Scored:
        try:
            scores: Scores = self.bundle.method.score(batch)
            map = None if scores.map is None else scores.map.cpu()
            return Scored(scores.image.cpu().numpy(), map, 0.0)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError) or not _of_memory(error):
                raise
            # The processor's memory is halved for in the same way as a GPU's.
            raise torch.cuda.OutOfMemoryError(str(error)) from None


def _of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
