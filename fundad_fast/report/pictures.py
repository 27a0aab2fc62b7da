# SPDX-License-Identifier: Apache-2.0
"""The gallery's pictures of one row: photograph, coloured map, outlines; small enough to inline."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fundad_fast.report import view
from fundad_fast.report.overlay import F32, U8, Bool, blend, encode_jpeg, lesion_region, outlines
from fundad_fast.report.run_files import Run
from fundad_fast.run_folder import RunError, overlay_path

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
    from fundad_fast.data import ReadError

    if run.spec.volume is not None:
        return _planes(run, row, max_megapixels)
    try:
        photo = view.read_photograph(row, run.spec, SIDE, max_megapixels)
    except ReadError as error:
        why = f"The photograph cannot be shown: {error.reason}."
        return _stored_overlay(run, row, why, max_megapixels)
    notes = []
    if photo.window is not None:
        low, high = photo.window
        notes.append(f"Shown from {low:.4g} (black) to {high:.4g} (white).")
    if view.changed(row, photo):
        notes.append("The file has changed since it was scored; the map belongs to the old one.")
    height, width = photo.pixels.shape[:2]
    painted, hot = None, ""
    same_frame = (row["height"], row["width"]) == (photo.height, photo.width)
    if same_frame and row.get("map_path") and run.colour_scale() is not None:
        try:
            inside = view.field_of_view(row, run.spec, height, width)
            scores = view.scores_at(run.folder, row, height, width, inside)
            painted, hot = _painted(run, photo.pixels, scores, inside)
        except RunError as error:
            notes.append(f"{str(error).capitalize()}.")
    lesions = None
    if row.get("mask_path"):
        try:
            mask = view.read_lesions(row, height, width, max_megapixels)
            lesions = svg_path(lesion_region(mask, height, width))
        except ReadError as error:
            notes.append(f"The lesion mask cannot be shown: {error.reason}.")
    return Picture(width, height, _uri(photo.pixels), painted, hot, lesions, tuple(notes))


def _stored_overlay(run: Run, row: dict[str, Any], why: str, max_megapixels: float) -> Picture:
    """The overlay that was saved after scoring stands in for a photograph that is gone."""
    from fundad_fast.data import ReadError, read_image

    file = overlay_path(run.folder, row["id"])
    if not file.is_file():
        return Picture(notes=(why,))
    try:
        picture = view.reduced(read_image(file, max_megapixels=max_megapixels), 2 * SIDE)
    except ReadError as error:
        return Picture(notes=(f"{why} Nor can its overlay: {error.reason}.",))
    note = f"{why} This is the overlay that was saved when it was scored."
    return Picture(picture.shape[1], picture.shape[0], _uri(picture), notes=(note,))


def _planes(run: Run, row: dict[str, Any], max_megapixels: float) -> Picture:
    """Three planes through the worst voxel of a volume."""
    from fundad_fast.data import ReadError
    from fundad_fast.report.planes import draw_planes

    if not row.get("map_path"):
        return Picture(notes=("No map was written, so that no plane is the worst.",))
    try:
        planes = draw_planes(run.folder, row, run.spec, max_megapixels)
    except (ReadError, RunError) as error:
        return Picture(notes=(f"The volume cannot be shown: {error}.",))
    height, width = planes.scores.shape
    painted, hot, lesions = None, "", None
    if run.colour_scale() is not None:
        painted, hot = _painted(run, planes.pixels, planes.scores, planes.inside)
    if planes.lesions is not None:
        lesions = svg_path(planes.lesions)
    note = f"{planes.place.capitalize()}."
    return Picture(width, height, _uri(planes.pixels), painted, hot, lesions, (note,))


def _painted(run: Run, photo: U8, scores: F32, inside: Bool | None) -> tuple[str, str]:
    scale, threshold = run.colour_scale(), run.threshold("pixel")
    assert scale is not None  # or there is nothing to paint
    painted = _uri(blend(photo, scores, scale, inside=inside))
    if threshold is None:
        return painted, ""
    hot = scores > threshold
    return painted, svg_path(hot if inside is None else hot & inside)


def svg_path(region: Bool) -> str:
    """SVG path through the border pixels of a region, "" for an empty one.

    Coordinates are pixel indices: shift by half a pixel to lay it over the picture.
    """
    lines = (" ".join(f"{x} {y}" for x, y in line.tolist()) for line in outlines(region))
    return "".join(f"M{line}Z" for line in lines)


def _uri(image: U8) -> str:
    data = encode_jpeg(image, QUALITY, subsampling="420")
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
