# SPDX-License-Identifier: Apache-2.0
"""Pictures of the gallery: where the map, its outline and the lesions come to lie."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import tifffile

from fundad_fast.data import Fov, InputSpec
from fundad_fast.report import pictures, view
from fundad_fast.report.columns import Columns
from fundad_fast.report.run_files import Run

WIDTH, HEIGHT = 1200, 900  # reduced to 512 × 384
CELL = 50


def run_of(folder: Path, *, pixel: float | None = 5.0, **settings: Any) -> Run:
    thresholds = {} if pixel is None else {"pixel": {"value": pixel}}
    model = {"colour_scale": {"lo": 1.0, "hi": 8.0}, "thresholds": thresholds}
    about = {"schema": 1, "model": model}
    spec = InputSpec(image_size=64, fov_erode=0, **settings)
    none = np.zeros(0, np.intp)
    flags = np.zeros(0, np.int8)
    return Run(folder, about, None, Columns([]), flags, none, none, np.zeros(0), spec)


def row_of(folder: Path, values: np.ndarray, **more: Any) -> dict[str, Any]:
    """A grey photograph, a map with cells of 50 × 50 pixels, and their row."""
    cv2.imwrite(str(folder / "a.png"), np.full((HEIGHT, WIDTH), 100, np.uint8))
    half = CELL / 2 - 0.5
    affine = np.array([[CELL, 0, half], [0, CELL, half]], float)
    np.savez(folder / "a.npz", map=values.astype(np.float16), affine=affine)
    row = {"id": "a", "path": str(folder / "a.png"), "map_path": "a.npz", "fov_status": None}
    return {**row, "width": WIDTH, "height": HEIGHT, **more}


def fov(cx: float, cy: float, r: float, *box: int) -> dict[str, Any]:
    """The columns of a field of view."""
    whole = [0, 0, WIDTH, HEIGHT]
    return {
        "fov_status": "ok", "fov_cx": cx, "fov_cy": cy, "fov_r": r, "fov_box": [*box] or whole
    }  # fmt: skip


def grid() -> np.ndarray:
    return np.zeros((HEIGHT // CELL, WIDTH // CELL), np.float32)


def decoded(uri: str | None) -> np.ndarray:
    assert uri is not None
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))


def box(path: str) -> list[int]:
    points = np.array(re.findall(r"(\d+) (\d+)", path), int)
    return [*points.min(0).tolist(), *points.max(0).tolist()]


def draw(run: Run, row: dict[str, Any]) -> pictures.Picture:
    return pictures.draw(run, row, max_megapixels=200)


def test_the_map_is_sampled_at_the_pictures_pixel_centres(tmp_path: Path) -> None:
    """A map that holds its own x (then y) in original pixels must be read back exactly."""
    columns = (np.arange(WIDTH // CELL) + 0.5) * CELL - 0.5
    rows = (np.arange(HEIGHT // CELL) + 0.5) * CELL - 0.5
    for values, axis, full, side in (
        (grid() + columns, 1, WIDTH, 512),
        (grid() + rows[:, None], 0, HEIGHT, 384),
    ):
        row = row_of(tmp_path, values)
        np.savez(  # float32: the test wants more digits than runs keep
            tmp_path / "a.npz", map=values, affine=np.load(tmp_path / "a.npz")["affine"]
        )
        seen = view.scores_at(tmp_path, row, 384, 512, None)
        expected = (np.arange(side) + 0.5) * full / side - 0.5
        inner = slice(20, -20)
        found = seen.mean(1 - axis)
        np.testing.assert_allclose(found[inner], expected[inner], atol=0.01)


def test_a_reduced_picture_keeps_lesions_and_outline_in_place(tmp_path: Path) -> None:
    values = grid()
    values[6:9, 10:14] = 10
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[300:450, 500:700] = 255
    mask[100, 100] = 255  # a single pixel
    row = row_of(tmp_path, values, mask_path=str(tmp_path / "m.png"))
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    picture = draw(run_of(tmp_path), row)
    assert (picture.width, picture.height) == (512, 384)
    scale = 512 / WIDTH
    found = box(picture.hot)
    expected = np.array([500, 300, 700, 450]) * scale - [0, 0, 1, 1]
    np.testing.assert_allclose(found, expected, atol=1)
    assert picture.lesions is not None
    dots = [box(part) for part in picture.lesions.split("Z") if part]
    assert len(dots) == 2
    assert [100 * scale - 3 < side < 100 * scale + 3 for side in min(dots)] == [True] * 4


def test_scores_at_the_pixel_threshold_have_no_outline(tmp_path: Path) -> None:
    row = row_of(tmp_path, grid() + 5)
    assert draw(run_of(tmp_path, pixel=5.0), row).hot == ""
    assert draw(run_of(tmp_path, pixel=4.99), row).hot != ""
    assert draw(run_of(tmp_path, pixel=None), row).hot == ""


def test_colours_and_outline_keep_to_the_field_of_view(tmp_path: Path) -> None:
    row = row_of(tmp_path, grid() + 8, **fov(600, 450, 200))
    picture = draw(run_of(tmp_path), row)
    scale = 512 / WIDTH
    expected = np.array([400, 250, 800, 650]) * scale
    np.testing.assert_allclose(box(picture.hot), expected, atol=1.5)
    photo, painted = decoded(picture.photo).astype(int), decoded(picture.painted).astype(int)
    y, x = np.mgrid[:384, :512]
    distance = np.hypot(x - 600 * scale, y - 450 * scale)
    change = np.abs(photo - painted).max(-1)
    assert change[distance > 200 * scale + 16].max() < 10  # JPEG blocks reach 16 pixels out
    assert change[distance < 200 * scale - 16].min() > 30


def test_the_field_of_view_is_the_scored_one(tmp_path: Path) -> None:
    """Its box, its erosion, and the frame's border where the model crops: as in scoring."""
    row = row_of(tmp_path, grid() + 8, **fov(600, 450, 500, 0, 0, 900, HEIGHT))
    plain = InputSpec(image_size=64, fov_erode=0.1)
    for spec, edges in (
        (plain.model_copy(update={"fov_erode": 0.0}), [100, 0, 900, 900]),
        (plain, [150, 0, 850, 900]),  # eroded at the box inside the frame, not at the frame
        (plain.model_copy(update={"fov_crop": True}), [150, 50, 850, 850]),
    ):
        inside = view.field_of_view(row, spec, 384, 512)
        assert inside is not None
        y, x = np.nonzero(inside)
        found = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) * WIDTH / 512
        np.testing.assert_allclose(found, edges, atol=2.5)
        prepared = fov_of(row).contains(
            np.array([[WIDTH / 256, 0, WIDTH / 512 - 0.5], [0, HEIGHT / 256, HEIGHT / 512 - 0.5]]),
            256, erode=spec.fov_erode, padded=spec.fov_crop,
        )  # fmt: skip
        assert abs(prepared.mean() - inside.mean()) < 0.003


def fov_of(row: dict[str, Any]) -> Fov:
    circle = row["fov_cx"], row["fov_cy"], row["fov_r"]
    return Fov("ok", *circle, tuple(row["fov_box"]), HEIGHT, WIDTH)


def test_scores_are_cut_at_the_edge_and_not_lowered_before_it(tmp_path: Path) -> None:
    row = row_of(tmp_path, grid() + 8, **fov(600, 450, 200))
    inside = view.field_of_view(row, run_of(tmp_path).spec, 384, 512)
    assert inside is not None
    scores = view.scores_at(tmp_path, row, 384, 512, inside)
    assert set(np.unique(scores)) == {0, 8}
    np.testing.assert_array_equal(scores == 8, inside)


@pytest.mark.parametrize(
    ("settings", "columns"),
    [({}, {}), ({}, {"fov_status": "none"}), ({"fov": "none"}, fov(600, 450, 200))],
)
def test_without_a_field_of_view_all_is_coloured(
    tmp_path: Path, settings: dict[str, Any], columns: dict[str, Any]
) -> None:
    picture = draw(run_of(tmp_path, **settings), row_of(tmp_path, grid() + 8, **columns))
    change = decoded(picture.photo).astype(int) - decoded(picture.painted)
    assert np.abs(change).max(-1).min() > 30


def test_the_models_white_is_white_else_the_image_is_stretched() -> None:
    ramp = np.linspace(0, 4095, 4096).reshape(64, 64, 1)
    deep = ramp.astype(np.uint16)
    spec = InputSpec(image_size=64, bit_depth=16, white_level=4095)
    shown, window = view.for_display(deep, spec, 64)
    assert window is None
    np.testing.assert_allclose(shown[..., 0], ramp[..., 0] * 255 / 4095, atol=0.51)
    assert shown.shape == (64, 64, 3)
    half, _ = view.for_display(deep // 2, spec, 64)
    assert half.max() == 127  # a dark image stays dark
    # No white level, or that of another depth.
    for other, given in ((deep, InputSpec(image_size=64)), (deep / np.float32(4095), spec)):
        shown, window = view.for_display(other, given, 64)
        assert window is not None
        np.testing.assert_allclose(np.array(window) / other.max(), [0.005, 0.995], atol=1e-3)
        assert (shown.min(), shown.max()) == (0, 255)
    flat, _ = view.for_display(deep * 0 + 7, InputSpec(image_size=64), 64)
    assert flat.max() == 0


def test_eight_bits_are_shown_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 90, (40, 30, 3), dtype=np.uint8)
    shown, window = view.for_display(pixels, InputSpec(image_size=64), 64)
    np.testing.assert_array_equal(shown, pixels)
    assert window is None


def test_limits_and_pages_reach_every_file(tmp_path: Path) -> None:
    row = row_of(tmp_path, grid(), mask_path=str(tmp_path / "m.png"))
    cv2.imwrite(str(tmp_path / "m.png"), np.zeros((2 * HEIGHT, 2 * WIDTH), np.uint8))
    note = pictures.draw(run_of(tmp_path), row, max_megapixels=2).notes
    assert [("mask" in n, "the limit is 2" in n) for n in note] == [(True, True)]
    note = pictures.draw(run_of(tmp_path), row, max_megapixels=1).notes
    assert [("photograph" in n, "the limit is 1" in n) for n in note] == [(True, True)]
    tifffile.imwrite(tmp_path / "pages.tif", np.full((2, HEIGHT, WIDTH), 9, np.uint8))
    row["path"] = str(tmp_path / "pages.tif")
    assert draw(run_of(tmp_path), row).photo is None
    assert draw(run_of(tmp_path, pages="first"), row).photo is not None


def test_colours_are_in_their_order(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "red.png"), np.full((64, 64, 3), (0, 0, 255), np.uint8))
    row = {"id": "r", "path": str(tmp_path / "red.png"), "width": 64, "height": 64}
    pixel = decoded(draw(run_of(tmp_path), row).photo)[32, 32]
    assert pixel[0] > 240
    assert pixel[1:].max() < 15


def test_an_empty_path_has_no_outline() -> None:
    assert pictures.svg_path(np.zeros((4, 4), bool)) == ""
    assert pictures.svg_path(np.ones((1, 1), bool)) == "M0 0Z"
