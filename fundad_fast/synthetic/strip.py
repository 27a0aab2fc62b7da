# SPDX-License-Identifier: Apache-2.0
"""A picture of an image that dissolves: the steps side by side, and below what each took away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .gallery import LINE, MARGIN, PAPER, U8, _fit, _titled, _write

FULL = 0.25
"""The change that is drawn black."""


def draw_strip(
    before: Tensor, after: Tensor, titles: Sequence[str], *, panel: int = 160, title: str = ""
) -> U8:
    """Two rows of pictures: the image and its dissolved versions; below, the mean absolute change.

    Args:
        before: ``[1, c, h, w]`` float32 in [0, 1], 1 or 3 channels.
        after: ``[n, c, h, w]``.
        titles: ``n`` words, one above each.
        panel: longest side of a picture, in pixels.
        title: a line above.

    Returns:
        ``[h, w, 3]`` uint8 RGB.
    """
    upper = [_titled(_fit(_shown(before[0]), panel), "image")]
    lower = [np.full_like(upper[0], 255)]
    for name, one in zip(titles, after, strict=True):
        upper.append(_titled(_fit(_shown(one), panel), name))
        change = 1 - ((one - before[0]).abs().mean(0, keepdim=True) / FULL)
        lower.append(_titled(_fit(_shown(change), panel), "change"))
    rows = []
    for pictures in (upper, lower):
        gap = np.full((len(pictures[0]), MARGIN, 3), PAPER, np.uint8)
        rows.append(np.concatenate([part for one in pictures for part in (gap, one)] + [gap], 1))
    body = np.concatenate(rows, 0)
    if not title:
        return body
    head = np.full((LINE + MARGIN, body.shape[1], 3), PAPER, np.uint8)
    _write(head, title, MARGIN, LINE)
    return np.concatenate([head, body], 0)


def _shown(image: Tensor) -> U8:
    levels = (image.clamp(0, 1) * 255).round().byte().cpu().numpy()
    planes = np.moveaxis(levels, 0, -1)
    return np.ascontiguousarray(np.broadcast_to(planes, (*planes.shape[:2], 3)))
