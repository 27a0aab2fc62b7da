# SPDX-License-Identifier: Apache-2.0
"""Images that are larger than what a network is trained on, in tiles that overlap."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def tile_starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis: evenly, the first at 0, the last ending with the axis.

    Neighbours share at least ``overlap`` pixels. An axis no longer than a tile has one.
    """
    if side <= tile:
        return [0]
    count = 1 + -(-(side - tile) // (tile - overlap))
    return [round(i * (side - tile) / (count - 1)) for i in range(count)]


def tiled(call: Callable[[Tensor], Tensor], image: Tensor, tile: int, overlap: int) -> Tensor:
    """What ``call`` makes of an image, put together from tiles.

    Where tiles overlap their results are averaged, with weights that fall towards a tile's edges:
    a network knows least there.

    Args:
        call: takes ``[b, c, h', w']``, gives ``[b, h', w']``.
        image: ``[b, c, h, w]``.
        tile: side of a tile; shorter axes are taken whole.
        overlap: pixels that neighbours share at least, below ``tile``.
    """
    h, w = image.shape[2:]
    rows, columns = (tile_starts(n, tile, overlap) for n in (h, w))
    if len(rows) == len(columns) == 1:
        return call(image)
    th, tw = min(h, tile), min(w, tile)
    weight = _hat(th, image)[:, None] * _hat(tw, image)[None, :]
    total = image.new_zeros(image.shape[0], h, w)
    weights = image.new_zeros(h, w)
    for y in rows:
        for x in columns:
            result = call(image[:, :, y : y + th, x : x + tw])
            total[:, y : y + th, x : x + tw] += weight * result
            weights[y : y + th, x : x + tw] += weight
    return total / weights


def _hat(n: int, like: Tensor) -> Tensor:
    """From just above 0 at the ends up to 1 in the middle."""
    at = torch.arange(n, device=like.device, dtype=like.dtype)
    return torch.minimum(at + 1, n - at) / ((n + 1) // 2)
