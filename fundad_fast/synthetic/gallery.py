# SPDX-License-Identifier: Apache-2.0
"""A picture of synthetic anomalies: before, after, what changed, and the label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .tasks import Synthetic

U8 = NDArray[np.uint8]

PAPER, INK = (255, 255, 255), (40, 40, 40)
MARGIN, LINE = 8, 22
PLANES = ("axial", "coronal", "sagittal")
COLUMNS = ("before", "after", "difference", "label")
WHITE = 0.5
LEGEND = f"difference: white from {WHITE} on; label: black is 0, light yellow 1"


def draw_gallery(
    before: Tensor, made: Mapping[str, Synthetic], *, panel: int = 224, title: str = ""
) -> U8:
    """One row for each task; volumes are cut three times, through the middle of their largest part.

    Args:
        before: ``[1, c, *s]`` float32, 1 or 3 channels, two or three axes; volumes stand as
            (superior, anterior, right).
        made: the results of one image each, by the name of their task.
        panel: longest side of a picture of an image, in pixels; of a volume, three quarters.
        title: a line above, followed by what colours mean.

    Returns:
        ``[h, w, 3]`` uint8 RGB. Images are shown over their own range; differences are the mean
        absolute ones of the channels, and white where they are 0.5 or more. All cuts through a
        volume have one scale; left is left.
    """
    image = before[0].cpu().numpy()
    spread = float(image.min()), float(image.max())
    rows = []
    for name, result in made.items():
        rows += _row(name, image, result, spread, panel)
    body = np.concatenate(_to_width(rows), 0)
    if not title:
        return body
    head = np.full((2 * LINE + MARGIN, body.shape[1], 3), PAPER, np.uint8)
    _write(head, title, MARGIN, LINE)
    _write(head, LEGEND, MARGIN, 2 * LINE, 0.4)
    return np.concatenate([head, body], 0)


def _row(
    name: str, image: NDArray[Any], result: Synthetic, spread: tuple[float, float], panel: int
) -> list[U8]:
    after = result.image[0].cpu().numpy()
    label = result.label[0].cpu().numpy()
    shown = [
        image,
        after,
        np.abs(after - image).mean(0) / WHITE,
        label,
    ]
    cuts: list[tuple[str, list[NDArray[Any]]]] = [("", shown)]
    if label.ndim == 3:
        panel = panel * 3 // 4
        middle = _middle(label if label.any() else result.mask[0].cpu().numpy())
        cuts = [
            (plane, [_cut(one, axis, middle[axis]) for one in shown])
            for axis, plane in enumerate(PLANES)
        ]
    factor = panel / max(label.shape)  # one for all planes
    pictures = []
    for plane, views in cuts:
        for column, view in zip(COLUMNS, views, strict=True):
            picture = _coloured(column, view, spread)
            pictures.append(_titled(_scaled(picture, factor), f"{plane} {column}".strip()))
    tall = max(len(picture) for picture in pictures)
    strip = np.concatenate([_padded(one, tall, one.shape[1] + MARGIN) for one in pictures], 1)
    head = np.full((LINE + 4, strip.shape[1], 3), PAPER, np.uint8)
    _write(head, name, MARGIN, LINE)
    return [head, strip]


def _middle(values: NDArray[Any]) -> tuple[int, ...]:
    """The cell that cuts show: the centre of the label's largest connected part."""
    from scipy.ndimage import center_of_mass, label

    parts, count = label(values > 0.05 * values.max())
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    centre = center_of_mass(parts == int(sizes.argmax()))
    return tuple(round(float(c)) for c in centre)


def _cut(values: NDArray[Any], axis: int, at: int) -> NDArray[Any]:
    """A plane as it is usually shown: up is superior, or anterior in an axial plane."""
    plane = np.take(values, at, values.ndim - 3 + axis)
    return np.flip(plane, -2)


def _coloured(column: str, values: NDArray[Any], spread: tuple[float, float]) -> U8:
    import cv2

    if column in ("before", "after"):
        low, high = spread
        scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
        grey = np.rint(np.moveaxis(scaled, 0, -1) * 255).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(grey, (*grey.shape[:2], 3)))
    levels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    table = cv2.COLORMAP_INFERNO if column == "label" else cv2.COLORMAP_BONE
    return np.asarray(cv2.applyColorMap(np.ascontiguousarray(levels), table)[..., ::-1])


def _fit(picture: U8, side: int) -> U8:
    return _scaled(picture, side / max(picture.shape[:2]))


def _scaled(picture: U8, factor: float) -> U8:
    import cv2

    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST if factor >= 2 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(picture), size, interpolation=how))


def _titled(picture: U8, words: str) -> U8:
    head = np.full((16, picture.shape[1], 3), PAPER, np.uint8)
    _write(head, words, 0, 12, 0.36)
    return np.concatenate([head, picture], 0)


def _padded(picture: U8, height: int, width: int) -> U8:
    whole = np.full((height, width, 3), PAPER, np.uint8)
    whole[: picture.shape[0], width - picture.shape[1] :] = picture
    return whole


def _to_width(rows: list[U8]) -> list[U8]:
    width = max(row.shape[1] for row in rows) + MARGIN
    whole = [np.full((len(row), width, 3), PAPER, np.uint8) for row in rows]
    for one, row in zip(whole, rows, strict=True):
        one[:, : row.shape[1]] = row
    return whole


def _write(picture: U8, words: str, x: int, y: int, size: float = 0.5) -> None:
    import cv2

    text = words.encode("ascii", "replace").decode()
    cv2.putText(picture, text, (x, y - 4), cv2.FONT_HERSHEY_SIMPLEX, size, INK, 1, cv2.LINE_AA)
