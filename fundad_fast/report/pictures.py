# SPDX-License-Identifier: Apache-2.0
"""The gallery's pictures of one row: photograph, coloured map, outlines; small enough to inline."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundad_fast.report.overlay import U8, Bool, blend, encode_jpeg, lesion_region, outlines
from fundad_fast.report.run_files import ReportError, Run, read_map

SIDE = 512  # longest side of a picture
QUALITY = 82


@dataclass(frozen=True)
class Picture:
    """What a gallery card shows of one image.

    Attributes:
        width, height: of the pictures below and of the outlines' coordinates.
        photo: data URI of the photograph, or of the stored overlay where the photograph is gone.
        painted: data URI of the photograph under the map's colours, or ``None``.
        hot: SVG path around what is above the pixel threshold; "" for none.
        lesions: SVG path around the known lesions; ``None`` where no lesions are known.
        notes: what could not be shown, one line each.
    """

    width: int = 0
    height: int = 0
    photo: str | None = None
    painted: str | None = None
    hot: str = ""
    lesions: str | None = None
    notes: tuple[str, ...] = ()


def draw_all(
    run: Run, rows: list[dict[str, Any]], *, threads: int, max_megapixels: float
) -> Iterator[Picture]:
    """One picture per row, in order. A row whose files are gone gets a note, never an error."""
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda row: draw(run, row, max_megapixels=max_megapixels), rows)


def draw(run: Run, row: dict[str, Any], *, max_megapixels: float) -> Picture:
    """The picture of one row."""
    from fundad_fast.data import ReadError, read_image

    path = _source(run, row)
    try:
        if path is None:
            raise ReadError("unreadable", "the file is not there any more")
        # What was scored of a file with several pages is its first.
        pixels = read_image(path, max_megapixels=max_megapixels, first_page=True)
    except ReadError as error:
        return _stored_overlay(run, row, f"The photograph cannot be shown: {error.reason}.")
    notes = []
    photo, window = _for_display(pixels)
    if window is not None:
        notes.append(f"Shown from {window[0]:.4g} (black) to {window[1]:.4g} (white).")
    full_height, full_width = pixels.shape[:2]
    height, width = photo.shape[:2]
    changed = (row.get("width"), row.get("height")) != (full_width, full_height)
    if changed or (row.get("bytes") is not None and path.stat().st_size != row["bytes"]):
        notes.append("The file has changed since it was scored; the map belongs to the old one.")
    painted, hot = None, ""
    if not changed:
        try:
            scores = _map_at(run, row, height, width)
            if scores is not None:
                painted, hot = _painted(run, row, photo, scores)
        except ReportError as error:
            notes.append(f"{str(error).capitalize()}.")
    lesions, problem = _lesions(run, row, height, width, max_megapixels)
    notes += [problem] if problem else []
    return Picture(width, height, _uri(photo), painted, hot, lesions, tuple(notes))


def _source(run: Run, row: dict[str, Any], column: str = "path") -> Path | None:
    """The file that a row names: as it stands, else relative to the run's input."""
    if not row.get(column):
        return None
    here = Path(row[column])
    for path in (here, Path(str(run.about.get("input") or "")) / here):
        if path.is_file():
            return path
    return None


def _stored_overlay(run: Run, row: dict[str, Any], why: str) -> Picture:
    """The overlay that was saved while scoring stands in for a photograph that is gone."""
    from fundad_fast.data import ReadError, read_image

    names = [row["overlay_path"]] if row.get("overlay_path") else []
    if row.get("map_path"):
        names.append(f"overlays/{Path(row['map_path']).stem}.jpg")
    for name in names:
        if (run.folder / name).is_file():
            try:
                picture = _reduced(read_image(run.folder / name), 2 * SIDE)
            except ReadError:
                continue  # why already says that there is nothing to show
            note = f"{why} This is the overlay that was saved when it was scored."
            return Picture(picture.shape[1], picture.shape[0], _uri(picture), notes=(note,))
    return Picture(notes=(why,))


def _for_display(pixels: np.ndarray) -> tuple[U8, tuple[float, float] | None]:
    """RGB at the pictures' size, and the window of values that 16-bit and float images need."""
    if pixels.dtype == np.uint8:
        small, window = _reduced(pixels, SIDE), None
    else:
        values = _reduced(pixels.astype(np.float32), SIDE)
        low, high = (float(v) for v in np.percentile(values, [0.5, 99.5]))
        scaled = (values - low) * (255 / (high - low) if high > low else 0)
        small, window = scaled.clip(0, 255).astype(np.uint8), (low, high)
    return np.repeat(small, 3, axis=2) if small.shape[2] == 1 else small, window


def _reduced(pixels: np.ndarray, side: int) -> np.ndarray:
    import cv2

    factor = min(1.0, side / max(pixels.shape[:2]))
    if factor == 1:
        return pixels
    height, width = (max(1, round(n * factor)) for n in pixels.shape[:2])
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small).reshape(height, width, -1)  # cv2 drops a single channel's axis


def _map_at(run: Run, row: dict[str, Any], height: int, width: int) -> NDArray[np.float32] | None:
    """The map at the picture's size, straight from its own grid."""
    from fundad_fast.evaluation import resample_map

    if not row.get("map_path") or run.colour_scale() is None:
        return None
    values, affine = read_map(run.folder, row["map_path"])
    kx, ky = width / row["width"], height / row["height"]
    # Pixel centres are whole numbers on every grid, hence the halves.
    shrink = np.array([[kx, 0, 0.5 * kx - 0.5], [0, ky, 0.5 * ky - 0.5]])
    to_picture = shrink[:, :2] @ affine
    to_picture[:, 2] += shrink[:, 2]
    return resample_map(values, to_picture, height, width)


def _painted(
    run: Run, row: dict[str, Any], photo: U8, scores: NDArray[np.float32]
) -> tuple[str, str]:
    scale = run.colour_scale()
    assert scale is not None  # _map_at gave a map
    inside = _fov(row, *photo.shape[:2])
    painted = _uri(blend(photo, scores, scale, inside=inside))
    threshold = run.threshold("pixel")
    if threshold is None:
        return painted, ""
    hot = scores > threshold
    return painted, svg_path(hot if inside is None else hot & inside)


def _fov(row: dict[str, Any], height: int, width: int) -> Bool | None:
    circle = [row.get(name) for name in ("fov_cx", "fov_cy", "fov_r")]
    if None in circle or not np.isfinite(np.asarray(circle, np.float64)).all():
        return None
    cx, cy, r = np.asarray(circle, np.float64)
    x = (np.arange(width) + 0.5) * row["width"] / width - 0.5
    y = (np.arange(height) + 0.5) * row["height"] / height - 0.5
    return np.asarray((x[None] - cx) ** 2 + (y[:, None] - cy) ** 2 <= r**2)


def _lesions(
    run: Run, row: dict[str, Any], height: int, width: int, max_megapixels: float
) -> tuple[str | None, str | None]:
    """Outlines of the known lesions, and why there are none where there should be."""
    from fundad_fast.data import ReadError, read_mask

    if not row.get("mask_path"):
        return None, None
    path = _source(run, row, "mask_path")
    if path is None:
        return None, "The lesion mask is not there any more."
    try:
        shape = (row["height"], row["width"])
        mask = read_mask(path, shape=shape, max_megapixels=max_megapixels)
    except ReadError as error:
        return None, f"The lesion mask cannot be shown: {error.reason}."
    return svg_path(lesion_region(mask, height, width)), None


def svg_path(region: Bool) -> str:
    """SVG path through the border pixels of a region, "" for an empty one.

    Coordinates are pixel indices: shift by half a pixel to lay it over the picture.
    """
    lines = (" ".join(f"{x} {y}" for x, y in line.tolist()) for line in outlines(region))
    return "".join(f"M{line}Z" for line in lines)


def _uri(image: U8) -> str:
    data = encode_jpeg(image, QUALITY, subsampling="420")
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
