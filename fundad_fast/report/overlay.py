# SPDX-License-Identifier: Apache-2.0
"""An anomaly map over its photograph, in one colour scale per model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fundad_fast.run_folder import replacing

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Bool = NDArray[np.bool_]
Pixel = TypeVar("Pixel", np.uint8, np.float32)

MAX_SIDE = 1024  # longest side of a panel, in pixels
MIN_SIDE = 256  # smaller images are enlarged to this, so that the text beside them fits
MAX_ALPHA = 0.7  # the photograph stays visible under the highest score

INK = (232, 234, 237)
FAINT = (150, 155, 162)
PAPER = (22, 24, 27)
THRESHOLD_INK = (255, 255, 255)
LESION_INK = (255, 70, 214)  # magenta: the one strong hue that turbo does not contain


def overlay(
    image: U8,
    anomaly_map: F32,
    *,
    scale: tuple[float, float],
    threshold: float | None,
    mask: Bool | None = None,
    fov: Bool | None = None,
    title: str | None = None,
    max_side: int = MAX_SIDE,
) -> U8:
    """Draws a photograph beside itself with the anomaly map in colours.

    Left the untouched photograph; right the photograph under the map in turbo colours, with the
    outline of the pixels above the threshold (white) and of the known lesions (magenta); then
    a colour bar. Opacity rises with the score, so that calm areas show the photograph.

    Args:
        image: ``[h, w, 3]`` (or ``[h, w]``, ``[h, w, 1]``) uint8 RGB.
        anomaly_map: ``[h, w]`` finite floats, at the image's resolution; higher is more abnormal.
        scale: ``(lo, hi)``, the scores at the two ends of the colours. One per model, never per
            image: a healthy image must look calm.
        threshold: the model's pixel threshold, or ``None`` where it has none.
        mask: ``[h, w]`` bool, the known lesions.
        fov: ``[h, w]`` bool, the field of view; nothing is coloured outside. ``None`` for all.
        title: one line above; cut to the width. Characters that are not ASCII appear as "?".
        max_side: larger images are reduced until a panel's longest side is this many pixels.

    Returns:
        ``[H, W, 3]`` uint8 RGB.

    Raises:
        ValueError: an argument's shape, type or range is not as said above.
    """
    import cv2

    image = _checked_image(image)
    _check_map(anomaly_map, image.shape[:2], scale)
    for name, region in (("mask", mask), ("fov", fov)):
        if region is not None and region.shape != image.shape[:2]:
            raise ValueError(f"overlay: {name} is {region.shape}, the image {image.shape[:2]}")
    if threshold is not None and not np.isfinite(threshold):
        raise ValueError(f"overlay: threshold is {threshold}; pass None where there is none")
    if max_side < MIN_SIDE:
        raise ValueError(f"overlay: max_side is {max_side}, the least is {MIN_SIDE}")

    factor = _zoom(image.shape[:2], max_side)
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    photo = _resized(image, height, width)
    scores = _resized(anomaly_map.astype(np.float32, copy=False), height, width)
    inside = None if fov is None else _resized(fov.astype(np.float32), height, width) >= 0.5
    painted = blend(photo, scores, scale, inside=inside)

    stroke = 1 if max(height, width) <= 640 else 2
    if threshold is not None:
        hot = scores > threshold
        hot = hot if inside is None else hot & inside
        _draw_outlines(painted, hot, (0, 0, 0), stroke + 2)  # white alone is lost on bright colours
        _draw_outlines(painted, hot, THRESHOLD_INK, stroke)
    if mask is not None:
        _draw_outlines(painted, lesion_region(mask, height, width), LESION_INK, stroke)

    font = min(0.62, max(0.42, max(height, width) / 1650))
    line = cv2.getTextSize("Ag", cv2.FONT_HERSHEY_SIMPLEX, font, 1)[0][1]
    pad = line
    body = max(height, 12 * line)
    bar = _colour_bar(scale, threshold, body, font)
    top = 3 * line if title else pad
    legend = 3 * line if threshold is not None or mask is not None else pad
    canvas = np.full((top + body + legend, 2 * width + bar.shape[1] + 4 * pad, 3), PAPER, np.uint8)
    y = top + (body - height) // 2
    canvas[y : y + height, pad : pad + width] = photo
    canvas[y : y + height, 2 * pad + width : 2 * pad + 2 * width] = painted
    canvas[top : top + body, 3 * pad + 2 * width : 3 * pad + 2 * width + bar.shape[1]] = bar
    if title:
        text = _cut(_ascii(title), canvas.shape[1] - 2 * pad, font)
        _write(canvas, text, pad, 2 * line, font, INK)
    _draw_legend(canvas, 2 * pad + width, top + body, font, threshold is not None, mask is not None)
    return canvas


def save_overlay(
    path: str | os.PathLike[str],
    image: U8,
    anomaly_map: F32,
    *,
    scale: tuple[float, float],
    threshold: float | None,
    mask: Bool | None = None,
    fov: Bool | None = None,
    title: str | None = None,
    max_side: int = MAX_SIDE,
    quality: int = 88,
) -> None:
    """Writes `overlay` as a JPEG; the file appears whole or not at all.

    Args:
        path: the file; its folder is made when missing. An existing file is replaced.
        quality: of the JPEG, 1 to 100.

    The other arguments and errors are those of `overlay`; `OSError` where the disk refuses.
    """
    picture = overlay(
        image, anomaly_map, scale=scale, threshold=threshold, mask=mask, fov=fov, title=title,
        max_side=max_side,
    )  # fmt: skip
    with replacing(Path(path)) as file:
        file.write(encode_jpeg(picture, quality))


def blend(
    image: U8, anomaly_map: F32, scale: tuple[float, float], *, inside: Bool | None = None
) -> U8:
    """Lays a map's colours over an image; at and below ``lo`` the image is unchanged.

    Args:
        image: ``[h, w, 3]`` uint8 RGB.
        anomaly_map: ``[h, w]`` finite floats.
        scale: ``(lo, hi)``: opacity rises linearly from 0 at ``lo`` to `MAX_ALPHA` at ``hi`` and
            above; colours run through turbo.
        inside: ``[h, w]`` bool; elsewhere the image is unchanged.

    Returns:
        ``[h, w, 3]`` uint8 RGB, a new array.
    """
    lo, hi = scale
    level = ((anomaly_map - np.float32(lo)) * np.float32(255 / (hi - lo))).clip(0, 255)
    level = level.astype(np.uint8)
    if inside is not None:
        level[~inside] = 0
    alpha = _ALPHA[level][..., None]
    mixed = image.astype(np.uint16) * (255 - alpha) + _turbo()[level] * alpha
    return ((mixed + 127) // 255).astype(np.uint8)


def outlines(region: Bool) -> list[NDArray[np.int32]]:
    """Closed outlines of a region's pixels, holes included: each ``[n, 2]`` int32 of (x, y)."""
    import cv2

    found, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return [np.asarray(points, np.int32).reshape(-1, 2) for points in found]


def mask_at(mask: Bool, height: int, width: int) -> Bool:
    """A mask ``[h, w]`` at a picture's size.

    Where it is reduced, a pixel counts when any of it is lesion: small lesions do not vanish.
    """
    part = _resized(mask.astype(np.float32), height, width)
    shrinks = height < mask.shape[0] or width < mask.shape[1]
    return np.asarray(part > 0 if shrinks else part >= 0.5)


def lesion_region(mask: Bool, height: int, width: int) -> Bool:
    """A lesion mask at a picture's size, one pixel wider, so that its outline does not hide it."""
    import cv2

    lesion = mask_at(mask, height, width).astype(np.uint8)
    return np.asarray(cv2.dilate(lesion, np.ones((3, 3), np.uint8)), bool)


def encode_jpeg(image: U8, quality: int, subsampling: str = "444") -> bytes:
    """JPEG bytes of ``[h, w, 3]`` uint8 RGB."""
    import simplejpeg

    return bytes(
        simplejpeg.encode_jpeg(
            np.ascontiguousarray(image),
            quality=quality,
            colorspace="RGB",
            colorsubsampling=subsampling,
        )
    )


def distinct_numbers(values: Sequence[float]) -> list[str]:
    """Short decimal forms in which different values stay different."""
    distinct = len(set(values))
    for digits in range(3, 18):
        texts = [f"{value:.{digits}g}" for value in values]
        if len(set(texts)) == distinct:
            break
    return texts


def turbo_stops(n: int) -> list[tuple[int, int, int]]:
    """``n`` RGB colours evenly along turbo, lowest first."""
    at = np.linspace(0, 255, n).round().astype(np.intp)
    return [(int(r), int(g), int(b)) for r, g, b in _turbo()[at]]


# alpha in 255ths by level
_ALPHA: NDArray[np.uint16] = np.round(np.arange(256) * MAX_ALPHA).astype(np.uint16)


@lru_cache(maxsize=1)
def _turbo() -> NDArray[np.uint16]:
    """Turbo as ``[256, 3]`` RGB, wide enough to multiply by an alpha."""
    import cv2

    ramp = np.arange(256, dtype=np.uint8)[:, None]
    bgr = cv2.applyColorMap(ramp, cv2.COLORMAP_TURBO)
    return np.asarray(bgr[:, 0, ::-1], np.uint16)


def _checked_image(image: U8) -> U8:
    if image.dtype != np.uint8:
        raise ValueError(f"overlay: image is {image.dtype}; convert it to uint8 for display first")
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"overlay: image is {image.shape}, wanted [h, w, 3] or [h, w, 1]")
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _check_map(anomaly_map: F32, shape: tuple[int, ...], scale: tuple[float, float]) -> None:
    if anomaly_map.shape != shape:
        raise ValueError(f"overlay: the map is {anomaly_map.shape}, the image {shape}")
    if not np.isfinite(anomaly_map).all():
        count = int((~np.isfinite(anomaly_map)).sum())
        raise ValueError(f"overlay: {count} values of the map are not finite")
    lo, hi = scale
    if not (np.isfinite(lo) and np.isfinite(hi) and lo < hi):
        raise ValueError(f"overlay: scale is ({lo}, {hi}), wanted two finite numbers, lo < hi")


def _zoom(shape: tuple[int, ...], max_side: int) -> float:
    longest = max(shape)
    if longest > max_side:
        return max_side / longest
    return MIN_SIDE / longest if longest < MIN_SIDE else 1.0


def _resized(picture: NDArray[Pixel], height: int, width: int) -> NDArray[Pixel]:
    import cv2

    if picture.shape[:2] == (height, width):
        return picture
    shrinks = height < picture.shape[0] or width < picture.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how), picture.dtype)


def _draw_outlines(canvas: U8, region: Bool, colour: tuple[int, int, int], stroke: int) -> None:
    import cv2

    cv2.drawContours(canvas, outlines(region), -1, colour, stroke, cv2.LINE_AA)


def _colour_bar(
    scale: tuple[float, float], threshold: float | None, height: int, font: float
) -> U8:
    """The bar with its numbers, ``[height, w, 3]``; hi is on top."""
    import cv2

    lo, hi = scale
    line = cv2.getTextSize("0", cv2.FONT_HERSHEY_SIMPLEX, font, 1)[0][1]
    texts = distinct_numbers([lo, hi] if threshold is None else [lo, hi, threshold])
    labels = texts[:2]
    if threshold is not None:
        side = " (above)" if threshold > hi else " (below)" if threshold < lo else ""
        labels = [*labels, f"{texts[2]} threshold{side}"]
    bar_width, tick = 2 * line, line // 2
    text_width = max(cv2.getTextSize(t, cv2.FONT_HERSHEY_SIMPLEX, font, 1)[0][0] for t in labels)
    picture = np.full((height, bar_width + 2 * tick + text_width, 3), PAPER, np.uint8)
    top, bottom = line, height - 1 - line
    ramp = np.linspace(255, 0, bottom - top + 1).round().astype(np.intp)
    picture[top : bottom + 1, :bar_width] = _turbo()[ramp][:, None]

    _write(picture, labels[1], bar_width + 2 * tick, top + line // 2, font, INK)
    _write(picture, labels[0], bar_width + 2 * tick, bottom + line // 2, font, INK)
    for y in (top, bottom):
        picture[y, bar_width : bar_width + tick] = INK
    if threshold is not None:
        at = round(bottom - (bottom - top) * min(1.0, max(0.0, (threshold - lo) / (hi - lo))))
        picture[max(0, at - 1) : at + 2, :bar_width] = 0
        picture[at, : bar_width + tick] = THRESHOLD_INK
        gap = 2 * line  # a number near an end moves aside so that both can be read
        text_y = min(max(at, top + gap), bottom - gap)
        _write(picture, labels[2], bar_width + 2 * tick, text_y + line // 2, font, INK)
    return picture


def _draw_legend(
    canvas: U8, x: int, top: int, font: float, has_threshold: bool, has_mask: bool
) -> None:
    import cv2

    line = cv2.getTextSize("Ag", cv2.FONT_HERSHEY_SIMPLEX, font, 1)[0][1]
    y = top + 2 * line
    entries = [("score > threshold", THRESHOLD_INK)] if has_threshold else []
    entries += [("known lesion", LESION_INK)] if has_mask else []
    for text, colour in entries:
        middle = y - line // 2
        cv2.line(canvas, (x, middle), (x + 2 * line, middle), colour, 2)
        x += 2 * line + line // 2
        _write(canvas, text, x, y, font, FAINT)
        x += cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, font, 1)[0][0] + 2 * line


def _ascii(text: str) -> str:
    """OpenCV 4's fonts hold ASCII only; control characters become spaces."""
    plain = text.encode("ascii", "replace").decode()
    return "".join(c if c.isprintable() else " " for c in plain)


def _cut(text: str, width: int, font: float) -> str:
    import cv2

    def fits(candidate: str) -> bool:
        size = cv2.getTextSize(candidate, cv2.FONT_HERSHEY_SIMPLEX, font, 1)[0][0]
        return bool(size <= width)

    if fits(text):
        return text
    while text and not fits(text + "..."):
        text = text[:-1]
    return text + "..."


def _write(
    canvas: U8, text: str, x: int, y: int, font: float, colour: tuple[int, int, int]
) -> None:
    import cv2

    cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, font, colour, 1, cv2.LINE_AA)
