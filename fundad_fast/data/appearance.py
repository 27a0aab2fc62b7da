# SPDX-License-Identifier: Apache-2.0
"""What images look like in a few figures, so that others can be held against them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from fundad_fast.data.items import Item
from fundad_fast.data.loader import Loader, Source
from fundad_fast.data.preparation import Prepared

CENSUS_IMAGES = 256
_SIZES = 5
_STEP = 4


class _Some:
    """At most ``n`` images of a source, evenly spaced; a source itself."""

    def __init__(self, source: Source, n: int) -> None:
        total = len(source.items)
        at = np.linspace(0, total - 1, min(n, total)).round().astype(int)
        self._source, self._at = source, at.tolist()
        self.items: tuple[Item, ...] = tuple(source.items[i] for i in self._at)
        self.any_depth = source.any_depth

    def read(self, index: int, spec: Any, max_megapixels: float) -> Any:
        """See :class:`fundad_fast.data.loader.Source`."""
        return self._source.read(self._at[index], spec, max_megapixels)


def brightness(prepared: Prepared) -> float:
    """Mean sample of the prepared image inside its field of view, in [0, 1].

    Every fourth row and column is looked at, which is enough for a mean.
    """
    image = prepared.image[:, ::_STEP, ::_STEP].numpy().astype(np.float64)
    if prepared.mask is None:
        return float(image.mean())
    inside = prepared.mask[::_STEP, ::_STEP].numpy()
    if not inside.any():
        inside = prepared.mask.numpy()
        image = prepared.image.numpy().astype(np.float64)
    return float(image[:, inside].mean())


def features(prepared: Prepared) -> dict[str, float]:
    """Figures of one image.

    Returns:
        ``short_side`` in pixels, ``aspect`` (width / height), ``brightness`` in [0, 1], and, with a
        field of view, ``fov_radius`` as a share of the shorter side.
    """
    short = min(prepared.height, prepared.width)
    found = {
        "short_side": float(short),
        "aspect": prepared.width / prepared.height,
        "brightness": brightness(prepared),
    }
    if prepared.fov.status != "none":
        found["fov_radius"] = prepared.fov.r / short
    return found


def take_census(loader: Loader, n: int = CENSUS_IMAGES) -> dict[str, Any]:
    """What the images of a loader look like; images that cannot be used are left out.

    Args:
        loader: says how images are prepared; it is not walked.
        n: how many of its images are read at most, evenly spaced.

    Returns:
        for each of the ``features``: ``n, min, q05, median, q95, max`` to six digits; ``sizes``,
        the most frequent ones, as ``{"width x height": images}``.
    """
    some = Loader(
        _Some(loader.source, n),
        loader.spec,
        batch_size=loader.batch_size,
        threads=loader.threads,
        max_megapixels=loader.max_megapixels,
    )
    return summarise(prepared for chunk in some for prepared in chunk.prepared)


def summarise(images: Iterable[Prepared]) -> dict[str, Any]:
    """The census of prepared images; see ``take_census``."""
    values: dict[str, list[float]] = {}
    sizes: Counter[str] = Counter()
    for prepared in images:
        for name, value in features(prepared).items():
            values.setdefault(name, []).append(value)
        sizes[f"{prepared.width} x {prepared.height}"] += 1
    census: dict[str, Any] = {name: _figures(found) for name, found in sorted(values.items())}
    common = sorted(sizes.items(), key=lambda kv: (-kv[1], kv[0]))
    return {**census, "sizes": dict(common[:_SIZES])}


def _figures(values: list[float]) -> dict[str, float]:
    at = np.quantile(values, (0, 0.05, 0.5, 0.95, 1))
    named = zip(("min", "q05", "median", "q95", "max"), at)
    return {"n": len(values), **{name: float(f"{value:.6g}") for name, value in named}}
