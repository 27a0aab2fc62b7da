# SPDX-License-Identifier: Apache-2.0
"""What pictures of one row are made of: photograph, scores, field of view, lesions; all small."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fundad_fast.report.overlay import F32, U8, Bool
from fundad_fast.run_folder import RunError, read_map

if TYPE_CHECKING:
    from fundad_fast.data import InputSpec

_BITS = {"uint8": 8, "uint16": 16, "float32": 32}


@dataclass(frozen=True)
class Photograph:
    """A photograph as a screen shows it.

    Attributes:
        pixels: ``[h, w, 3]`` uint8 RGB, reduced.
        window: the samples that became black and white, where they were chosen for this image.
        height, width: of the file in pixels.
    """

    pixels: U8
    window: tuple[float, float] | None
    height: int
    width: int


def input_spec(about: dict[str, Any]) -> InputSpec:
    """The model's input specification, from ``run.json``.

    Raises:
        RunError: there is none that this version understands.
    """
    from pydantic import ValidationError

    from fundad_fast.data import InputSpec

    try:
        return InputSpec(**about["model"]["input_spec"])
    except (KeyError, TypeError, ValidationError) as error:
        raise RunError(
            "run.json holds no input_spec that this version understands; score again"
        ) from error


def read_photograph(
    row: dict[str, Any], spec: InputSpec, side: int, max_megapixels: float
) -> Photograph:
    """The photograph of a row, its longest side reduced to ``side``.

    Raises:
        ReadError: it is gone or cannot be read.
    """
    from fundad_fast.data import ReadError, item_of_row, path_of_row, read_image

    if not row.get("path") or not Path(path_of_row(row["path"])).is_file():
        raise ReadError("unreadable", "the file is not there any more")
    pixels = read_image(
        item_of_row(row),
        max_megapixels=max_megapixels,
        first_page=spec.pages == "first",
        window=spec.window,
    )
    shown, window = for_display(pixels, spec, side)
    return Photograph(shown, window, *pixels.shape[:2])


def changed(row: dict[str, Any], photograph: Photograph) -> bool:
    """Whether the file is another than the one that was scored, as far as its sizes tell."""
    if (row["height"], row["width"]) != (photograph.height, photograph.width):
        return True
    from fundad_fast.data import path_of_row

    size = row.get("bytes")
    return size is not None and Path(path_of_row(row["path"])).stat().st_size != size


def for_display(
    pixels: np.ndarray, spec: InputSpec, side: int
) -> tuple[U8, tuple[float, float] | None]:
    """RGB for looking at, from any depth and number of channels.

    Samples up to the model's white level become 0 to 255. Where it has none, 8 bits stay as they
    are, and of 16 bits and floats, which rarely fill their range, the middle 99 % are stretched.

    Args:
        pixels: ``[h, w, c]`` uint8, uint16 or float32, c = 1 or 3, finite.
        spec: the model's input specification.
        side: longest side of the result.

    Returns:
        ``[h', w', 3]`` uint8, and the window (black, white) where it was chosen for this image.
    """
    small, window = reduced(pixels, side), None
    low, high = 0.0, 255.0
    if spec.white_level is not None and _BITS[pixels.dtype.name] == spec.bit_depth:
        high = spec.white_level
    elif pixels.dtype != np.uint8:
        low, high = (float(value) for value in np.percentile(small, [0.5, 99.5]))
        window = (low, high)
    if pixels.dtype != np.uint8 or high != 255:
        factor = 255 / (high - low) if high > low else 0.0
        scaled = (small.astype(np.float32) - np.float32(low)) * np.float32(factor)
        small = scaled.round().clip(0, 255).astype(np.uint8)
    return np.repeat(small, 3, axis=2) if small.shape[2] == 1 else small, window


def reduced(pixels: np.ndarray, side: int) -> np.ndarray:
    """``[h, w, c]`` with its longest side at most ``side``; a pixel is the mean of its area."""
    import cv2

    factor = min(1.0, side / max(pixels.shape[:2]))
    if factor == 1:
        return pixels
    height, width = (max(1, round(n * factor)) for n in pixels.shape[:2])
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small).reshape(height, width, -1)  # cv2 drops a single channel's axis


def scores_at(run: Path, row: dict[str, Any], height: int, width: int, inside: Bool | None) -> F32:
    """A row's map on a picture of its image, straight from the map's own grid.

    Args:
        run: the run folder.
        row: with a map.
        height, width: of the picture.
        inside: the field of view on the picture: scores elsewhere are 0. The map's cells beyond
            it repeat their neighbours, so that interpolation does not lower the rim.

    Returns:
        ``[height, width]`` float32.

    Raises:
        RunError: the map is missing or damaged.
    """
    from fundad_fast.evaluation import resample_map

    values, affine = read_map(run, row["map_path"])
    to_image = np.vstack([_from_picture(row, height, width), [0, 0, 1]])
    to_picture = np.linalg.inv(to_image)[:2] @ np.vstack([affine, [0, 0, 1]])
    scores = resample_map(values, to_picture, height, width)
    return scores if inside is None else np.where(inside, scores, np.float32(0))


def field_of_view(row: dict[str, Any], spec: InputSpec, height: int, width: int) -> Bool | None:
    """The part of a picture that was scored, ``[height, width]`` bool; ``None`` for all of it."""
    from fundad_fast.data import Fov

    if spec.fov == "none" or row["fov_status"] in (None, "none"):
        return None
    circle = (row["fov_status"], row["fov_cx"], row["fov_cy"], row["fov_r"])
    fov = Fov(*circle, tuple(row["fov_box"]), row["height"], row["width"])
    square = fov.contains(
        _from_picture(row, height, width),
        max(height, width),
        erode=spec.fov_erode,
        padded=spec.fov_crop,
    )
    return np.asarray(square[:height, :width])


def read_lesions(row: dict[str, Any], height: int, width: int, max_megapixels: float) -> Bool:
    """A row's lesion mask on a picture of its image, ``[height, width]`` bool.

    Where it is reduced, a pixel counts when any of it is lesion: small lesions do not vanish.

    Raises:
        ReadError: it is gone, cannot be read, or is of another aspect.
    """
    from fundad_fast.data import ReadError, path_of_row, read_mask
    from fundad_fast.report.overlay import mask_at

    path = path_of_row(row["mask_path"])
    if not Path(path).is_file():
        raise ReadError("unreadable", "the file is not there any more")
    shape = (row["height"], row["width"])
    mask = read_mask(path, shape=shape, frame=row.get("frame"), max_megapixels=max_megapixels)
    return mask_at(mask, height, width)


def _from_picture(row: dict[str, Any], height: int, width: int) -> NDArray[np.float64]:
    from fundad_fast.evaluation import resize_affine

    return resize_affine((height, width), row["height"], row["width"])
