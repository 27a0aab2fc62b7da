# SPDX-License-Identifier: Apache-2.0
"""The demo's cohort is complete, readable, repeatable, and refuses to write over anything."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fundad_fast.data import discover, find_fov, read_image, read_mask
from fundad_fast.demo import _some_kinds, make_cohort


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "cohort"
    make_cohort(folder, n_train=2, n_healthy=1, n_abnormal=3, size=192)
    return folder


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_it_is_found_and_read(root):
    dataset = discover(root)
    assert len(dataset.items) == 6
    assert len(dataset.select(split="train", label=0)) == 2
    assert len(dataset.select(split="test", label=0)) == 1
    abnormal = dataset.select(split="test", label=1)
    assert len(abnormal) == 3
    for item in dataset.items:
        pixels = read_image(item.path)
        assert pixels.shape == (192, 192, 3)
        assert find_fov(pixels).status == "ok"
        assert pixels[..., 0].mean() > pixels[..., 2].mean()  # red, as retinas are: not BGR
    for item in abnormal:
        mask = read_mask(item.mask_path, shape=(192, 192))
        assert 0 < mask.mean() < 0.2
        kinds = [read_mask(path) for _, path in item.mask_paths_by_type]
        assert 2 <= len(kinds) <= 4
        assert np.array_equal(np.any(kinds, axis=0), mask)


def test_lesions_are_where_the_masks_are(root):
    """Inside the masks there is more that is unlike its surroundings than in healthy images."""

    def contrast(path: Path) -> np.ndarray:
        pixels = cv2.imread(str(path)).astype(np.float32)
        return np.abs(pixels - cv2.GaussianBlur(pixels, (0, 0), 8)).mean(-1)

    inside, outside = [], []
    for path in sorted((root / "test/lesions").glob("*.jpg")):
        mask = read_mask(root / "ground_truth/lesions" / f"{path.stem}_mask.png")
        away = cv2.erode((~mask).astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
        y, x = np.mgrid[:192, :192]
        away &= np.hypot(x - 96, y - 96) < 75
        seen = contrast(path)
        inside.append(seen[mask].mean())
        outside.append(seen[away].mean())
    assert np.mean(inside) > 1.5 * np.mean(outside)


def test_the_manifest_lists_every_image_once(root):
    with (root / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    images = {str(p.relative_to(root)) for p in root.rglob("*.jpg")}
    assert {row["path"] for row in rows} == images
    assert len(rows) == len(images)
    for row in rows:
        assert row["path"].startswith(f"{row['split']}/{row['class']}/")
        assert row["label"] == ("1" if row["class"] == "lesions" else "0")
        assert bool(row["mask_path"]) == (row["label"] == "1")
        assert not row["mask_path"] or (root / row["mask_path"]).is_file()
    assert "same eye" in (root / "README.txt").read_text()


def test_the_layout_says_the_same_without_the_manifest(root, tmp_path):
    listed = discover(root)
    for path in root.iterdir():
        if path.name != "manifest.csv":
            (tmp_path / path.name).symlink_to(path)
    found = discover(tmp_path)
    assert {(i.split, i.label, Path(i.path).name) for i in found.items} == {
        (i.split, i.label, Path(i.path).name) for i in listed.items
    }
    masks = [
        {Path(i.path).name: Path(i.mask_path).name for i in d.items if i.mask_path}
        for d in (found, listed)
    ]
    assert masks[0] == masks[1]
    assert len(masks[0]) == 3


def test_a_seed_is_a_cohort(root, tmp_path):
    threads = torch.get_num_threads()
    make_cohort(tmp_path / "more", n_train=0, n_healthy=2, n_abnormal=1, size=192)
    assert torch.get_num_threads() == threads
    first, more = files(root), files(tmp_path / "more")
    assert more["test/good/000.jpg"] == first["test/good/000.jpg"]
    assert more["test/lesions/000.jpg"] == first["test/lesions/000.jpg"]
    assert more["test/good/001.jpg"] != more["test/good/000.jpg"]
    assert len({content for name, content in first.items() if name.endswith(".jpg")}) == 6
    make_cohort(tmp_path / "other", n_train=0, n_healthy=1, n_abnormal=0, size=192, seed=1)
    assert files(tmp_path / "other")["test/good/000.jpg"] != first["test/good/000.jpg"]


def test_two_to_four_kinds_in_an_eye():
    chosen = [_some_kinds(np.random.default_rng(seed)) for seed in range(60)]
    assert {len(kinds) for kinds in chosen} == {2, 3, 4}
    assert all(len(set(kinds)) == len(kinds) for kinds in chosen)
    assert len({kind for kinds in chosen for kind in kinds}) == 5


def test_what_is_there_stays_there(root, tmp_path):
    with pytest.raises(ValueError, match="is not an empty folder: choose another name"):
        make_cohort(root)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder"):
        make_cohort(tmp_path / "file")
    with pytest.raises(ValueError, match="want n_healthy >= 0, got -1"):
        make_cohort(tmp_path / "new", n_healthy=-1)
    with pytest.raises(ValueError, match="want size >= 128, got 64"):
        make_cohort(tmp_path / "new", size=64)
    assert not (tmp_path / "new").exists()
