# SPDX-License-Identifier: Apache-2.0
"""Random changes of light and colour of a patch, mild ones and DRAEM's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Patch = NDArray[np.float32]
"""``[h, w, c]`` float32 in [0, 1], one or three channels."""

Change = Callable[[Patch, np.random.Generator], NDArray]


def augment(
    patch: Patch, rng: np.random.Generator, pool: Literal["mild", "draem"], count: int
) -> Patch:
    """Mirror or turn a patch by quarters, then change its light and colour ``count`` times.

    Args:
        patch: ``[h, w, c]``; never modified.
        rng: drawn from.
        pool: ``mild`` (our choice of DRAEM's, with smaller ranges of hue) or ``draem`` (all of its
            public code's: METHODS.md B.2).
        count: how many of the pool, without repetition; grey patches have no hue.

    Returns:
        A patch of the same shape, in [0, 1]; a quarter turn is made of square patches only.
    """
    patch = patch[:: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))]
    if patch.shape[0] == patch.shape[1]:
        patch = np.rot90(patch, int(rng.integers(4)))
    changes: Mapping[str, Change] = _MILD if pool == "mild" else _DRAEM
    names = [name for name in changes if patch.shape[2] == 3 or name != "hue"]
    for name in rng.choice(names, min(count, len(names)), replace=False):
        whole = np.ascontiguousarray(patch, np.float32)
        patch = np.clip(changes[str(name)](whole, rng), 0, 1)
    return np.ascontiguousarray(patch, np.float32)


def _gamma(low: float, high: float, apart: float) -> Change:
    """One exponent for all channels, and a factor of each up to ``apart`` either way."""

    def change(patch: Patch, rng: np.random.Generator) -> NDArray:
        common = math.exp(rng.uniform(math.log(low), math.log(high)))
        own = np.exp(rng.uniform(-math.log(apart), math.log(apart), patch.shape[2]))
        return patch ** (common * own)

    return change


def _gamma_per_channel(patch: Patch, rng: np.random.Generator) -> NDArray:
    return patch ** rng.uniform(0.5, 2, patch.shape[2])


def _brightness(patch: Patch, rng: np.random.Generator) -> NDArray:
    return patch * rng.uniform(0.8, 1.2) + rng.uniform(-30, 30) / 255


def _hue(degrees: float, saturation: float) -> Change:
    def change(patch: Patch, rng: np.random.Generator) -> NDArray:
        import cv2

        hsv = cv2.cvtColor(patch, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + rng.uniform(-degrees, degrees)) % 360
        hsv[..., 1] = np.clip(hsv[..., 1] + rng.uniform(-saturation, saturation), 0, 1)
        return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))

    return change


def _contrast(patch: Patch, rng: np.random.Generator) -> NDArray:
    middle = patch.mean((0, 1))
    return (patch - middle) * rng.uniform(0.5, 1.6) + middle


def _sharpness(patch: Patch, rng: np.random.Generator) -> NDArray:
    import cv2

    soft = cv2.GaussianBlur(patch, (0, 0), 1.0, borderType=cv2.BORDER_REPLICATE)
    soft = soft.reshape(patch.shape)
    return patch + (patch - soft) * rng.uniform(-0.8, 1.0)


def _solarised(patch: Patch, rng: np.random.Generator) -> NDArray:
    return np.where(patch >= rng.uniform(32, 128) / 255, 1 - patch, patch)


def _posterised(patch: Patch, rng: np.random.Generator) -> NDArray:
    levels = 2 ** int(rng.integers(2, 7))
    return np.floor(patch * (levels - 1e-3)) / (levels - 1)


def _inverted(patch: Patch, rng: np.random.Generator) -> NDArray:
    return 1 - patch


def _stretched(patch: Patch, rng: np.random.Generator) -> NDArray:
    low, high = patch.min((0, 1)), patch.max((0, 1))
    return (patch - low) / np.maximum(high - low, 1e-3)


def _equalised(patch: Patch, rng: np.random.Generator) -> NDArray:
    import cv2

    levels = np.rint(patch * 255).astype(np.uint8)
    planes = [cv2.equalizeHist(np.ascontiguousarray(p)) for p in np.moveaxis(levels, -1, 0)]
    return np.stack(planes, -1) / np.float32(255)


def _turned(patch: Patch, rng: np.random.Generator) -> NDArray:
    import cv2

    height, width = patch.shape[:2]
    middle = ((width - 1) / 2, (height - 1) / 2)
    matrix = cv2.getRotationMatrix2D(middle, rng.uniform(-45, 45), 1.0)
    turned = cv2.warpAffine(patch, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(turned).reshape(patch.shape)


_MILD: Mapping[str, Change] = {
    "gamma": _gamma(0.5, 2.0, 1.1),
    "brightness": _brightness,
    "hue": _hue(8.0, 0.2),
    "contrast": _contrast,
    "sharpness": _sharpness,
}

_DRAEM: Mapping[str, Change] = {
    "gamma": _gamma_per_channel,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "hue": _hue(35.0, 50 / 255),
    "solarise": _solarised,
    "posterise": _posterised,
    "invert": _inverted,
    "autocontrast": _stretched,
    "equalise": _equalised,
    "rotate": _turned,
}
