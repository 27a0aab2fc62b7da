# SPDX-License-Identifier: Apache-2.0
"""Finds the field of view of a fundus photograph: a disc, often cut by straight edges.

The background is what the corners of the frame show, of any colour; what differs from it, taken as
one filled region, must agree with a circle cut by an upright rectangle. Anything else is ``none``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

_WORKING_SIDE = 288
"""Longer side of the copy that is looked at, in pixels: the circle is then good to 0.2 %."""

_MIN_SUPPORT = 0.6
"""Share of the visible circle that must be found in the image; the rest may be a notch, a label."""

_MIN_SUPPORT_OF_SHORT_ARC = 0.85
"""The same where less than 120 degrees are visible, which rounded corners of other images imitate
(at most 0.70 on 1,024 chest radiographs and 10 natural images; real fields of view reach 0.96)."""

_MIN_IOU = 0.93
"""Agreement that the region and the cut circle must have."""

_MIN_ARC = 40.0
"""Degrees of the circle that must be visible: less could be any rounded corner."""

_MIN_RADIUS = 0.15
"""Smallest radius, as a fraction of the frame's shorter side."""


@dataclass(frozen=True)
class Fov:
    """A field of view: the disc of radius ``r`` around (``cx``, ``cy``), inside ``box``.

    Attributes:
        status: ``ok``; ``truncated`` where an edge cuts the disc; ``none`` where there is none.
        cx, cy, r: in original pixels (indices of pixel centres); NaN for ``none``.
        box: (left, top, right, bottom) of the lit part, half open; the whole frame for ``none``.
            A disc cut by the sensor and then padded with black has a box inside the frame.
        height, width: of the frame in pixels.
    """

    status: Literal["ok", "truncated", "none"]
    cx: float
    cy: float
    r: float
    box: tuple[int, int, int, int]
    height: int
    width: int

    @classmethod
    def missing(cls, height: int, width: int) -> Fov:
        """No field of view in a frame of this size."""
        nan = float("nan")
        return cls("none", nan, nan, nan, (0, 0, width, height), height, width)

    def contains(
        self, affine: np.ndarray, size: int, *, erode: float = 0.0, padded: bool = False
    ) -> np.ndarray:
        """The field of view on a prepared grid.

        Args:
            affine: ``[2, 3]``, grid indices (x, y, 1) to original pixel indices, without rotation.
            size: side of the grid.
            erode: width of the rim left out, as a fraction of ``r``.
            padded: whether the grid shows black beyond the frame, so that the frame's own border
                is an edge too and is eroded like the others.

        Returns:
            ``[size, size]`` bool.
        """
        index = np.arange(size, dtype=np.float64)
        return self._inside(
            affine[0, 0] * index + affine[0, 2],
            affine[1, 1] * index + affine[1, 2],
            erode,
            padded,
        )

    def _inside(self, x: np.ndarray, y: np.ndarray, erode: float, padded: bool) -> np.ndarray:
        if self.status == "none":
            raise ValueError("there is no field of view (status none), so it has no mask")
        rim = erode * self.r
        left, top, right, bottom = self.box
        low_x = left - 0.5 + (rim if left > 0 or padded else 0.0)
        low_y = top - 0.5 + (rim if top > 0 or padded else 0.0)
        high_x = right - 0.5 - (rim if right < self.width or padded else 0.0)
        high_y = bottom - 0.5 - (rim if bottom < self.height or padded else 0.0)
        in_x, in_y = (x >= low_x) & (x <= high_x), (y >= low_y) & (y <= high_y)
        distance2 = ((x - self.cx) ** 2)[None, :] + ((y - self.cy) ** 2)[:, None]
        return (distance2 <= (self.r - rim) ** 2) & in_x[None, :] & in_y[:, None]


def fov_mask(
    fov: Fov, height: int, width: int, erode: float = 0.0, padded: bool = False
) -> np.ndarray:
    """The field of view as ``[height, width]`` bool on the original pixels.

    Args:
        fov: of an image of this size.
        height, width: of the image in pixels.
        erode: width of the rim left out, as a fraction of the radius. Edges that cut the disc
            inside the frame are eroded too; the frame's own border is not, unless ``padded``.
        padded: as in :meth:`Fov.contains`; the mask of a model with ``fov_crop``.

    Raises:
        ValueError: the status is ``none``, or the size is not that of the field of view's frame.
    """
    if (height, width) != (fov.height, fov.width):
        raise ValueError(
            f"the field of view belongs to {fov.width} x {fov.height} pixels, not {width} x "
            f"{height}"
        )
    x, y = np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)
    return fov._inside(x, y, erode, padded)


def find_fov(pixels: np.ndarray) -> Fov:
    """Find the field of view.

    Args:
        pixels: ``[h, w, c]`` uint8, uint16 or float32, c = 1 or 3.

    Returns:
        The field of view; status ``none`` for an image without a disc on a plain background, and
        so also for one cropped so far that no edge of the disc is left.
    """
    height, width, _ = pixels.shape
    missing = Fov.missing(height, width)
    if min(height, width) < 16:
        return missing
    small, (kx, ky, x0, y0) = _shrunk(pixels)
    best: _Fit | None = None
    for background, noise in _backgrounds(small):
        difference = _distance(small, background)
        for threshold in _thresholds(difference, noise):
            fit = _fit(difference > threshold)
            if fit is not None and (best is None or fit.quality > best.quality):
                best = fit
            if best is not None and best.quality > 0.97:
                break
    if best is None:
        return missing
    cx, cy, r = best.x * kx + x0, best.y * ky + y0, best.r * (kx + ky) / 2
    box = _cut_box(best.box, small.shape[1:], (kx, ky, x0, y0), (cx, cy, r), (height, width))
    status: Literal["ok", "truncated"] = "truncated"
    if box == missing.box and _reach_beyond((cx, cy, r), box) == (False,) * 4:
        status = "ok"
    return Fov(status, cx, cy, r, box, height, width)


def _reach_beyond(
    circle: tuple[float, float, float], box: tuple[int, int, int, int]
) -> tuple[bool, bool, bool, bool]:
    """Whether the circle goes beyond the box's left, top, right and bottom by 2 % of its radius."""
    cx, cy, r = circle
    left, top, right, bottom = box
    reach = 0.98 * r
    return (
        cx - reach < left - 0.5,
        cy - reach < top - 0.5,
        cx + reach > right - 0.5,
        cy + reach > bottom - 0.5,
    )


def _cut_box(
    box: tuple[int, int, int, int],
    shape: tuple[int, ...],
    mapping: tuple[float, float, float, float],
    circle: tuple[float, float, float],
    frame: tuple[int, int],
) -> tuple[int, int, int, int]:
    """The box in original pixels; a side that does not cut the circle goes to the frame's border.

    So does one within a pixel (of the small copy) of the border.
    """
    (h, w), (kx, ky, x0, y0), (height, width) = shape, mapping, frame
    left, top, right, bottom = box
    scaled = (
        0 if left <= 1 else round((left - 0.5) * kx + x0 + 0.5),
        0 if top <= 1 else round((top - 0.5) * ky + y0 + 0.5),
        width if right >= w - 1 else round((right - 0.5) * kx + x0 + 0.5),
        height if bottom >= h - 1 else round((bottom - 0.5) * ky + y0 + 0.5),
    )
    cuts = _reach_beyond(circle, scaled)
    whole = (0, 0, width, height)
    x_low, y_low, x_high, y_high = (
        side if cut else border for side, cut, border in zip(scaled, cuts, whole)
    )
    return x_low, y_low, x_high, y_high


@dataclass(frozen=True)
class _Fit:
    x: float
    y: float
    r: float
    box: tuple[int, int, int, int]
    quality: float


def _shrunk(pixels: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """A small float copy ``[c, h, w]`` with white near 255, and how its indices map back."""
    import cv2

    height, width, channels = pixels.shape
    # Strided first: averaging millions of pixels would cost more than all that follows.
    # A narrow strip keeps 8 rows, or columns, whatever its length.
    step = max(1, min(max(height, width) // (2 * _WORKING_SIDE), min(height, width) // 8))
    offset = step // 2
    strided = np.ascontiguousarray(pixels[offset::step, offset::step])
    h0, w0, _ = strided.shape
    scale = min(1.0, _WORKING_SIDE / max(h0, w0))
    h, w = max(8, round(h0 * scale)), max(8, round(w0 * scale))
    small = cv2.resize(strided, (w, h), interpolation=cv2.INTER_AREA).reshape(h, w, channels)
    planes = np.ascontiguousarray(small.transpose(2, 0, 1), dtype=np.float32)
    white = float(np.percentile(planes[:, ::3, ::3], 99.5))
    planes *= 255.0 / max(white, 1e-12)
    kx, ky = w0 / w, h0 / h
    return np.minimum(planes, 255.0, out=planes), (
        kx * step,
        ky * step,
        (0.5 * kx - 0.5) * step + offset,
        (0.5 * ky - 0.5) * step + offset,
    )


def _distance(planes: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """The greatest difference from a colour over the channels, ``[h, w]``."""
    return np.abs(planes - colour[:, None, None]).max(axis=0)


def _backgrounds(small: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Colour and noise of the background: that of the corners, likeliest first.

    Corners that agree speak together; where they do not, the disc covers some of them.
    """
    _, h, w = small.shape
    n = max(2, round(0.03 * min(h, w)))
    patches = [
        small[:, rows, columns]
        for rows in (slice(0, n), slice(h - n, h))
        for columns in (slice(0, n), slice(w - n, w))
    ]
    colours = [np.median(patch, axis=(1, 2)) for patch in patches]
    groups: list[list[int]] = []
    for i in range(4):
        for group in groups:
            if np.abs(colours[i] - colours[group[0]]).max() < 16:
                group.append(i)
                break
        else:
            groups.append([i])
    groups.sort(key=lambda group: (-len(group), float(colours[group[0]].sum())))
    found = []
    for group in groups:
        colour = np.median([colours[i] for i in group], axis=0).astype(np.float32)
        spread = [float(np.percentile(_distance(patches[i], colour), 98)) for i in group]
        found.append((colour, float(np.median(spread))))
    return found


def _thresholds(difference: np.ndarray, noise: float) -> list[float]:
    """From just above the background's noise upwards; the lowest keep a dark rim."""
    base = 1.5 * noise + 5.0
    foreground = difference[::3, ::3]
    foreground = foreground[foreground > base]
    typical = float(np.median(foreground)) if foreground.size else 0.0
    higher = [base + 6.0, base + 14.0, base + 28.0, 0.5 * typical]
    return [base, *(level for level in higher if base < level < 0.8 * typical)]


def _fit(foreground: np.ndarray) -> _Fit | None:
    """The circle cut by a rectangle that the largest region is, or ``None``."""
    region = _largest_region(foreground)
    if region is None:
        return None
    filled, contour = region
    h, w = filled.shape
    left, top = contour.min(axis=0)
    right, bottom = contour.max(axis=0) + 1
    # Points on the sides of the bounding box are where a straight edge may cut: not of the circle.
    x, y = contour[:, 0], contour[:, 1]
    free = (x >= left + 2) & (x < right - 2) & (y >= top + 2) & (y < bottom - 2)
    points = contour[free].astype(np.float64)
    if len(points) < 12:
        return None
    circle = _circle(points)
    if circle is None:
        return None
    cx, cy, r = circle
    centred = left <= cx < right and top <= cy < bottom
    if not centred or r < _MIN_RADIUS * min(h, w) or r > max(h, w):
        return None
    support, arc = _support(points, circle, (left + 2, top + 2, right - 3, bottom - 3))
    grid_y, grid_x = np.ogrid[:h, :w]
    model = (grid_x - cx) ** 2 + (grid_y - cy) ** 2 <= (r + 0.5) ** 2
    model &= (grid_x >= left) & (grid_x < right) & (grid_y >= top) & (grid_y < bottom)
    union = int((model | filled).sum())
    iou = int((model & filled).sum()) / union
    needed = _MIN_SUPPORT if arc >= 120 else _MIN_SUPPORT_OF_SHORT_ARC
    if support < needed or iou < _MIN_IOU or arc < _MIN_ARC:
        return None
    # The contour runs through the outermost pixels that the disc touches at all: on its edge.
    return _Fit(cx, cy, r, (int(left), int(top), int(right), int(bottom)), (support + iou) / 2)


def _largest_region(foreground: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The largest connected region with its holes filled and thin attachments cut off."""
    import cv2

    filled = foreground.astype(np.uint8)
    for width in (3, 7):
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
        # Beyond the frame the region goes on: its border must not be worn off.
        opened = cv2.morphologyEx(filled, cv2.MORPH_OPEN, kernel, borderType=cv2.BORDER_REPLICATE)
        contours, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        if not contours:
            return None
        contour = max(contours, key=cv2.contourArea)
        filled = np.zeros_like(filled)
        cv2.drawContours(filled, [contour], -1, 1, cv2.FILLED)
    return filled.astype(bool), contour[:, 0, :]


def _circle(points: np.ndarray) -> tuple[float, float, float] | None:
    """The circle that most points lie on: RANSAC over triples, then least squares on its points."""
    points = points[np.linspace(0, len(points) - 1, min(len(points), 160)).astype(int)]
    rng = np.random.default_rng(0)  # always the same triples: the same image, the same circle
    triples = points[rng.integers(0, len(points), (200, 3))]
    (ax, ay), (bx, by), (cx, cy) = (triples[:, i].T for i in range(3))
    ux, uy, vx, vy = bx - ax, by - ay, cx - ax, cy - ay
    double_area = 2 * (ux * vy - uy * vx)
    usable = np.abs(double_area) > 1e-6 * len(points)
    if not usable.any():
        return None
    ux, uy, vx, vy, ax, ay, double_area = (
        array[usable] for array in (ux, uy, vx, vy, ax, ay, double_area)
    )
    u2, v2 = ux**2 + uy**2, vx**2 + vy**2
    x = ax + (vy * u2 - uy * v2) / double_area
    y = ay + (ux * v2 - vx * u2) / double_area
    r2 = (x - ax) ** 2 + (y - ay) ** 2
    # |d - r| < 1.5 as |d² - r²| < 3 r: no root for each pair.
    distance2 = (points[:, 0] - x[:, None]) ** 2 + (points[:, 1] - y[:, None]) ** 2
    near = np.abs(distance2 - r2[:, None]) < 3.0 * np.sqrt(r2)[:, None]
    best = int(near.sum(axis=1).argmax())
    circle = float(x[best]), float(y[best]), float(np.sqrt(r2[best]))
    for tolerance in (2.0, 1.5, 1.5):
        near = np.abs(np.hypot(points[:, 0] - circle[0], points[:, 1] - circle[1]) - circle[2])
        inliers = points[near < tolerance]
        if len(inliers) < 6:
            return None
        circle = _least_squares(inliers)
    return circle


def _least_squares(points: np.ndarray) -> tuple[float, float, float]:
    """Kåsa's algebraic fit of a circle, about the points' centre for its conditioning."""
    centre = points.mean(axis=0)
    x, y = (points - centre).T
    design = np.stack([x, y, np.ones_like(x)], axis=1)
    a, b, c = np.linalg.lstsq(design, x**2 + y**2, rcond=None)[0]
    cx, cy = a / 2, b / 2
    r = float(np.sqrt(max(c + cx**2 + cy**2, 0.0)))
    return float(cx + centre[0]), float(cy + centre[1]), r


def _support(
    points: np.ndarray, circle: tuple[float, float, float], box: tuple[int, int, int, int]
) -> tuple[float, float]:
    """Share of the circle inside the box that has points on it, and degrees inside the box."""
    cx, cy, r = circle
    bins = 180
    angle = (np.arange(bins) + 0.5) * (2 * np.pi / bins)
    x, y = cx + r * np.cos(angle), cy + r * np.sin(angle)
    left, top, right, bottom = box
    visible = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
    dx, dy = points[:, 0] - cx, points[:, 1] - cy
    on = np.abs(np.hypot(dx, dy) - r) < 2.0
    hit = np.zeros(bins, bool)
    hit[((np.arctan2(dy[on], dx[on]) / (2 * np.pi)) % 1.0 * bins).astype(int) % bins] = True
    seen = int(visible.sum())
    if seen == 0:
        return 0.0, 0.0
    return int((hit & visible).sum()) / seen, seen * 360.0 / bins
