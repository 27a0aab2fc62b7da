# SPDX-License-Identifier: Apache-2.0
"""Controls: trivial scores that a method must beat before its figures mean anything.

Brightness, contrast or file size often separate two sources of images. Where such a number does as
well as a method, the method may have learned no more than that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import curves
from .image_metrics import check_scores, image_metrics
from .metric import as_dicts

Floats = NDArray[np.float64]

CHANNELS = {1: ("grey",), 3: ("red", "green", "blue")}


def _image(image: ArrayLike) -> Floats:
    values = np.asarray(image, np.float64)
    if values.ndim != 3 or values.shape[0] not in CHANNELS:
        raise ValueError(f"an image must be [c, h, w] with 1 or 3 channels, got {values.shape}")
    return values


def control_scores(image: ArrayLike, mask: ArrayLike | None = None) -> dict[str, float]:
    """Trivial numbers of one prepared image.

    Args:
        image: ``[c, h, w]`` in [0, 1], c in {1, 3}.
        mask: ``[h, w]`` true where to look (field of view); ``None`` for everywhere.

    Returns:
        ``mean_red, mean_green, mean_blue`` (of three channels), and of the mean of the channels
        ``mean``, ``standard_deviation`` and ``mean_gradient`` (mean length of the gradient by
        central differences, per pixel).
    """
    values = _image(image)
    inside = np.ones(values.shape[1:], bool) if mask is None else np.asarray(mask, bool)
    if inside.shape != values.shape[1:]:
        raise ValueError(f"the mask is {inside.shape} but the image is {values.shape[1:]}")
    if not inside.any():
        raise ValueError("the mask leaves no pixel to look at")
    result = {}
    if len(values) > 1:
        for name, channel in zip(CHANNELS[len(values)], values):
            result[f"mean_{name}"] = float(channel[inside].mean())
    grey = values.mean(axis=0)
    result["mean"] = float(grey[inside].mean())
    result["standard_deviation"] = float(grey[inside].std())
    dy, dx = (np.gradient(grey, axis=a) if grey.shape[a] > 1 else 0 * grey for a in (0, 1))
    result["mean_gradient"] = float(np.hypot(dy, dx)[inside].mean())
    return result


def _shrink(image: ArrayLike, size: int) -> Floats:
    """Mean of each of ``size × size`` blocks (fewer where the image is smaller), flattened."""
    values = _image(image)
    for axis in (1, 2):
        n = values.shape[axis]
        cells = min(size, n)
        starts = np.arange(cells) * n // cells
        lengths = np.diff(np.r_[starts, n])
        shape = [1, 1, 1]
        shape[axis] = cells
        values = np.add.reduceat(values, starts, axis=axis) / lengths.reshape(shape)
    return values.ravel()


class PcaReconstruction:
    """Reconstruction error after principal components of healthy images: the plainest autoencoder.

    Args:
        components: at most; fewer when there are fewer images.
        size: images are averaged down to this side first.
    """

    def __init__(self, components: int = 16, size: int = 64) -> None:
        if components < 1 or size < 1:
            raise ValueError(f"components and size must be positive, got {components}, {size}")
        self.components = components
        self.size = size
        self._pca: Any = None

    def fit(self, images: Iterable[ArrayLike]) -> Self:
        """Learn from healthy prepared images ``[c, h, w]`` of one size, at least two."""
        from sklearn.decomposition import PCA

        rows = [_shrink(image, self.size) for image in images]
        if len(rows) < 2:
            raise ValueError(f"PCA needs at least two healthy images, got {len(rows)}")
        # More components than n - 1 would reproduce the training images; the exact solver needs no
        # seed.
        n = min(self.components, len(rows) - 1, len(rows[0]))
        self._pca = PCA(n_components=n, svd_solver="full").fit(np.stack(rows))
        return self

    def score(self, image: ArrayLike) -> float:
        """Mean squared error of one image's reconstruction; higher = less like the healthy ones."""
        if self._pca is None:
            raise ValueError("fit the PCA control on healthy images first")
        row = _shrink(image, self.size)[None]
        back = self._pca.inverse_transform(self._pca.transform(row))
        return float(np.mean((row - back) ** 2))


def control_metrics(
    controls: Mapping[str, Sequence[float]],
    labels: Sequence[int],
    *,
    patients: Sequence[str | None] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Image metrics of every control, in the direction that suits it.

    A control has no direction of its own, so the sign with the AUROC above one half is taken **on
    these test images**. That favours the control, as it should: a method must beat it.

    Args:
        controls: scores ``[n]`` per control, e.g. from ``control_scores``, ``PcaReconstruction``,
            or file sizes.
        labels: ``[n]`` 0 healthy, 1 abnormal.
        patients, n_boot, seed: as in ``image_metrics``.

    Returns:
        Per control ``{"sign": 1 or -1, "metrics": {name: entry}}``, entries as in
        ``metrics.json``, without those that need a threshold.
    """
    result: dict[str, dict[str, Any]] = {}
    for name, scores in controls.items():
        s, y = check_scores(scores, labels)
        sign = 1
        if len(y) and float(curves.auroc(curves.make_curve(s, y))) < 0.5:
            sign = -1
        metrics = image_metrics(sign * s, y, patients=patients, n_boot=n_boot, seed=seed)
        entries = as_dicts({k: m for k, m in metrics.items() if not k.endswith("_threshold")})
        result[name] = {"sign": sign, "metrics": entries}
    return result
