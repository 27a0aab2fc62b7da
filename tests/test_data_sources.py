# SPDX-License-Identifier: Apache-2.0
"""Several inputs at once, pages of TIFFs, and trees of DICOM files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from test_data_shards import make_tar, make_zip, png

from fundad_fast.data import DataError, ReadError, discover, read_image
from fundad_fast.data.frames import with_frames
from fundad_fast.data.opening import read_header


@pytest.fixture
def rgb() -> np.ndarray:
    y, x = np.mgrid[:40, :60]
    return np.stack([x * 4, y * 6, 255 - x * 3], -1).astype(np.uint8)


@pytest.fixture
def tree(tmp_path, rgb, monkeypatch) -> Path:
    """Two folders with images of one name, a shard, a manifest and a single image."""
    for folder in ("a", "b/deep"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.png").write_bytes(png(rgb))
    make_tar(tmp_path / "s.tar", {"1.png": png(rgb)})
    make_zip(tmp_path / "s.zip", {"1.png": png(rgb)})
    (tmp_path / "m.csv").write_text("path,id\na/1.png,first\n")
    (tmp_path / "one.png").write_bytes(png(rgb))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ids(source, **options) -> list[str]:
    dataset = discover(source, **options)
    for item in dataset.items:
        read_image(item)
    return [item.id for item in dataset.items]


def test_folders_of_one_content_stay_apart(tree):
    assert ids(["a", "b/"]) == ["a/1.png", "b/deep/1.png"]
    assert ids(["./a", str(tree / "b")]) == ["./a/1.png", f"{tree}/b/deep/1.png"]
    assert discover(["a", "b"]).layout == "several"


def test_every_kind_of_input_at_once(tree):
    sources = ["a", "b/**/*.png", "s.tar", "s.zip", "one.png"]
    wanted = ["a/1.png", "b/deep/1.png", "s.tar!/1.png", "s.zip!/1.png", "one.png"]
    assert ids(sources) == wanted
    assert ids(["m.csv", "a"]) == ["first", "a/1.png"]
    assert ids(["s.tar", "m.csv"]) == ["s.tar!/1.png", "first"]


def test_a_manifest_among_images_was_named_by_a_pattern(tree):
    dataset = discover(["one.png", "m.csv", "s.tar"])
    assert [item.id for item in dataset.items] == ["one.png", "s.tar!/1.png"]
    assert "1 manifest: not taken for images" in dataset.describe()
    assert dataset.layout == "list"


@pytest.mark.parametrize(
    "sources, message",
    [
        (["a", "a"], r"the id a/1.png is listed twice"),
        (["a", "a/1.png"], r"the id a/1.png is listed twice"),
        (["s.tar", "s.tar"], r"the id s.tar!/1.png is listed twice"),
        (["a", "empty"], r"no images in empty"),
        (["a", "no*such"], r"matches no image"),
    ],
)
def test_what_is_wrong_is_told_before_work_starts(tree, sources, message):
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        discover(sources)


def test_notes_of_several_inputs_say_whose_they_are(tree):
    (tree / "a" / "loop").symlink_to(tree / "a")
    assert "note: a: the link loop leads back" in discover(["a", "b"]).describe()


@pytest.fixture
def pages(tmp_path, rgb) -> Path:
    path = tmp_path / "in" / "pages.tif"
    path.parent.mkdir()
    with tifffile.TiffWriter(path) as tif:
        for pixels in (rgb, rgb // 2, rgb[:20]):
            tif.write(pixels, photometric="rgb", metadata=None)
        tif.write(rgb[::8, ::8], photometric="rgb", subfiletype=1, metadata=None)  # a thumbnail
    cv2.imwrite(str(path.with_name("single.tiff")), rgb[:, :, ::-1])
    return path


def test_pages_of_a_tiff_are_a_choice(pages, rgb):
    folder = pages.parent
    one = discover(folder).items
    assert [item.id for item in one] == ["pages.tif", "single.tiff"]
    with pytest.raises(ReadError, match=r"3 pages: score with --pages first or all"):
        read_image(one[0])
    first = discover(folder, pages="first").items
    assert [(item.id, item.frame) for item in first] == [("pages.tif", 0), ("single.tiff", 0)]
    np.testing.assert_array_equal(read_image(first[0]), rgb)
    np.testing.assert_array_equal(read_image(first[1]), rgb)
    every = discover(folder, pages="all").items
    assert [item.id for item in every] == [f"pages.tif#{i}" for i in range(3)] + ["single.tiff"]
    assert tuple(with_frames(every, pages="all")) == every
    for item, pixels in zip(every, (rgb, rgb // 2, rgb[:20], rgb)):
        np.testing.assert_array_equal(read_image(item), pixels)
        assert read_header(item).shape == pixels.shape[:2]


def test_pages_that_are_not_there(pages):
    for frame in (3, 99):
        with pytest.raises(ReadError, match=f"no page {frame}: the TIFF has 3"):
            read_image(pages, frame=frame)
    (pages.parent / "broken.tif").write_bytes(pages.read_bytes()[:200])
    every = discover(pages.parent, pages="all").items
    assert "broken.tif" in [item.id for item in every]


def test_pages_inside_a_shard(pages, rgb, tmp_path):
    path = make_zip(tmp_path / "s.zip", {"x.tif": pages.read_bytes()})
    every = discover(path, pages="all").items
    assert [item.id for item in every] == [f"s.zip!/x.tif#{i}" for i in range(3)]
    np.testing.assert_array_equal(read_image(every[1]), rgb // 2)


def test_no_other_format_has_frames(tmp_path, rgb):
    (tmp_path / "a.png").write_bytes(png(rgb))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", frame=0), rgb)
    with pytest.raises(ReadError, match="no frame 1: a png file holds one image"):
        read_image(tmp_path / "a.png", frame=1)


def test_a_dicom_tree(tmp_path, rgb):
    dicoms = pytest.importorskip("dicoms")
    for i in range(3):
        dicoms.write_dicom(tmp_path / "DICOM" / "ST0001" / f"IM0000{i}", rgb)
    dicoms.write_dicom(tmp_path / "DICOM" / "1.2.840.99.1", rgb)
    (tmp_path / "DICOMDIR").write_bytes((tmp_path / "DICOM" / "1.2.840.99.1").read_bytes())
    (tmp_path / "AUTORUN.INF").write_bytes(b"[autorun]")
    dataset = discover(tmp_path)
    assert [item.id for item in dataset.items] == [
        "DICOM/1.2.840.99.1",
        *(f"DICOM/ST0001/IM0000{i}" for i in range(3)),
    ]
    assert dataset.ignored == 2
    np.testing.assert_array_equal(read_image(dataset.items[2]), rgb)
