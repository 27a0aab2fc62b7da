# SPDX-License-Identifier: Apache-2.0
"""The overlays of a run: which are drawn, why the others are not, and what they show."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fundad_fast.data import path_of_row
from fundad_fast.report import make_overlays, overlays
from fundad_fast.run_folder import RunError, overlay_path

make_run = runpy.run_path(str(Path(__file__).with_name("test_report_html.py")))["make_run"]
SIZE = 48


def drawn(run: Path, n: int = 6) -> list[int]:
    """The images that have an overlay; image 0 has a difficult name."""
    return [i for i in range(1, n) if overlay_path(run, f"image {i}").exists()]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was given to be drawn, in order."""
    calls: list[dict[str, Any]] = []

    def save(path: Path, image: np.ndarray, scores: np.ndarray, **more: Any) -> None:
        calls.append({"path": path, "image": image, "scores": scores, **more})

    monkeypatch.setattr(overlays, "save_overlay", save)
    return calls


def test_the_worst_are_drawn_once(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    result = make_overlays(tmp_path / "run", 2)
    assert (result.drawn, result.kept, result.left_out) == (2, 0, {})
    assert drawn(tmp_path / "run") == [4, 5]
    assert result.describe() == "2 overlays"
    overlay_path(tmp_path / "run", "image 5").write_bytes(b"mine")
    result = make_overlays(tmp_path / "run", None)
    assert (result.drawn, result.kept, result.left_out) == (4, 2, {})
    assert result.describe() == "6 overlays"
    assert overlay_path(tmp_path / "run", "image 5").read_bytes() == b"mine"
    picture = cv2.imread(str(overlay_path(tmp_path / "run", "image 3")))
    assert picture is not None
    assert min(picture.shape[:2]) > 250


def test_why_there_is_none_is_told(tmp_path: Path) -> None:
    run, source = tmp_path / "run", tmp_path / "source"
    make_run(run, 8)
    (source / "7.png").unlink()
    (source / "6.png").write_bytes(b"\x89PNG no")
    (source / "5_mask.png").unlink()
    cv2.imwrite(str(source / "4.png"), np.zeros((SIZE, SIZE + 1, 3), np.uint8))
    (run / "maps" / "3.npz").write_bytes(b"PK\x03\x04")
    (source / "2.png").write_bytes((source / "2.png").read_bytes() + b"x")
    result = make_overlays(run, 7)
    assert drawn(run, 8) == [1]
    assert (result.drawn, result.kept) == (1, 0)
    assert result.left_out == {
        "photographs are gone": 1,
        "photographs cannot be read: unreadable": 1,
        "photographs have changed since they were scored": 2,
        "masks are gone or cannot be read": 1,
        "maps are gone or damaged": 1,
    }
    assert result.describe().startswith("1 overlay, 6 not drawn (1 maps are gone")


def test_photographs_whose_names_are_not_utf8_are_found(tmp_path: Path) -> None:
    run, source = tmp_path / "run", os.fsencode(tmp_path / "source")
    make_run(run)
    os.rename(source + b"/4.png", source + b"/4\xff.png")
    os.rename(source + b"/5_mask.png", source + b"/5\xe9_mask.png")
    for part in (run / "scores").iterdir():
        table = pq.read_table(part)
        rows = table.to_pylist()
        for row in rows:
            row["path"] = row["path"].replace("/4.png", r"/4\xff.png")
            row["mask_path"] = (row["mask_path"] or "").replace("/5_", r"/5\xe9_") or None
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), part)
    assert make_overlays(run, None).left_out == {}
    assert drawn(run) == [1, 2, 3, 4, 5]


def test_a_name_that_looks_like_an_escape_is_itself(tmp_path: Path) -> None:
    name = str(tmp_path / r"a\xff.png")
    assert os.fsencode(path_of_row(name)) == os.fsencode(tmp_path) + b"/a\xff.png"
    Path(name).touch()
    assert path_of_row(name) == name
    assert path_of_row(r"a\xzz") == r"a\xzz"


def test_without_a_colour_scale_there_are_none(tmp_path: Path) -> None:
    make_run(tmp_path / "run", model={"colour_scale": None})
    said = make_overlays(tmp_path / "run", 4).describe()
    assert said == (
        "0 overlays, 4 not drawn (4 without a colour scale: fitted without held-out images)"
    )
    make_run(tmp_path / "plain" / "run", maps=False, model={"colour_scale": None})
    assert make_overlays(tmp_path / "plain" / "run", 4).describe() == "0 overlays"


def test_the_limit_reaches_photographs_and_masks(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 4)
    limit = 0.0015  # 48 x 48 are 0.0023 megapixels
    left_out = make_overlays(tmp_path / "run", None, max_megapixels=limit).left_out
    assert left_out == {"photographs cannot be read: too_large": 4}
    mask = tmp_path / "source" / "3_mask.png"
    cv2.imwrite(str(mask), np.zeros((2 * SIZE, 2 * SIZE), np.uint8))
    left_out = make_overlays(tmp_path / "run", None, max_megapixels=0.003).left_out
    assert left_out == {"masks are gone or cannot be read": 1}


def test_sixteen_bits_are_no_black_pictures(tmp_path: Path, seen: list[dict[str, Any]]) -> None:
    rows = make_run(tmp_path / "run", 2, failed=0, parts=1)
    for row in rows:
        ramp = np.linspace(0, 4095, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)
        cv2.imwrite(row["path"], ramp)
        row |= {"bytes": None}
    part = tmp_path / "run" / "scores" / "part-00000.parquet"
    pq.write_table(pa.Table.from_pylist(rows), part)
    make_overlays(tmp_path / "run", None)
    assert [int(call["image"].max()) for call in seen] == [255, 255]
    assert "shown from 20.03 to 4074" in seen[0]["title"]
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    run["model"]["input_spec"] |= {"bit_depth": 16, "white_level": 16380}
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    make_overlays(tmp_path / "run", None)
    assert int(seen[2]["image"].max()) == 64
    assert "shown" not in seen[2]["title"]


def test_the_rim_of_the_field_of_view_keeps_its_scores(
    tmp_path: Path, seen: list[dict[str, Any]]
) -> None:
    make_run(tmp_path / "run", 2, failed=0)
    values = np.full((12, 12), 5, np.float16)
    affine = np.array([[4, 0, 1.5], [0, 4, 1.5]])
    np.savez(tmp_path / "run" / "maps" / "1.npz", map=values, affine=affine)
    make_overlays(tmp_path / "run", 1)
    y, x = np.mgrid[:SIZE, :SIZE]
    inside = np.hypot(x - 23.5, y - 23.5) <= 22 * 0.97  # eroded as in scoring
    np.testing.assert_array_equal(seen[0]["fov"], inside)
    np.testing.assert_array_equal(seen[0]["scores"], 5)
    assert (seen[0]["scale"], seen[0]["threshold"]) == ((1.0, 8.0), 4.0)
    assert seen[0]["mask"].sum() == 12 * 12


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        make_overlays(tmp_path, 1)
    make_run(tmp_path / "run", model={"input_spec": {"image_size": "x"}})
    with pytest.raises(RunError, match="input_spec"):
        make_overlays(tmp_path / "run", 1)
