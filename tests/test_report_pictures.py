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

from fundad_fast.report import pictures
from fundad_fast.report.run_files import Run

WIDTH, HEIGHT = 1200, 900  # reduced to 512 × 384
CELL = 50


def run_of(folder: Path, *, pixel: float | None = 5.0) -> Run:
    thresholds = {} if pixel is None else {"pixel": {"value": pixel}}
    model = {"colour_scale": {"lo": 1.0, "hi": 8.0}, "thresholds": thresholds}
    about = {"schema": 1, "input": str(folder), "model": model}
    return Run(folder, about, None, {"id": []}, [], [], np.zeros(0))


def row_of(folder: Path, values: np.ndarray, **more: Any) -> dict[str, Any]:
    """A grey photograph, a map with cells of 50 × 50 pixels, and their row."""
    cv2.imwrite(str(folder / "a.png"), np.full((HEIGHT, WIDTH), 100, np.uint8))
    half = CELL / 2 - 0.5
    affine = np.array([[CELL, 0, half], [0, CELL, half]], float)
    np.savez(folder / "a.npz", map=values.astype(np.float16), affine=affine)
    return {"path": "a.png", "map_path": "a.npz", "width": WIDTH, "height": HEIGHT, **more}


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
        seen = pictures._map_at(run_of(tmp_path), row, 384, 512)
        assert seen is not None
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
    row = row_of(tmp_path, values, mask_path="m.png")
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
    row = row_of(tmp_path, grid() + 8, fov_cx=600.0, fov_cy=450.0, fov_r=200.0)
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


@pytest.mark.parametrize(
    "fov", [{}, {"fov_cx": None}, {"fov_cx": 1.0, "fov_cy": 1.0, "fov_r": np.nan}]
)
def test_without_a_field_of_view_all_is_coloured(tmp_path: Path, fov: dict[str, Any]) -> None:
    picture = draw(run_of(tmp_path), row_of(tmp_path, grid() + 8, **fov))
    change = decoded(picture.photo).astype(int) - decoded(picture.painted)
    assert np.abs(change).max(-1).min() > 30


def test_colours_are_in_their_order(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "red.png"), np.full((64, 64, 3), (0, 0, 255), np.uint8))
    row = {"path": "red.png", "width": 64, "height": 64}
    pixel = decoded(draw(run_of(tmp_path), row).photo)[32, 32]
    assert pixel[0] > 240
    assert pixel[1:].max() < 15


def test_an_empty_path_has_no_outline() -> None:
    assert pictures.svg_path(np.zeros((4, 4), bool)) == ""
    assert pictures.svg_path(np.ones((1, 1), bool)) == "M0 0Z"
