# SPDX-License-Identifier: Apache-2.0
"""A small cohort made from one real fundus photograph, to try everything on."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .data import find_fov
from .synthetic import Photograph, fundus, vary_geometry, vary_photometry

_ABOUT = """\
Made by fundad_fast from one photograph of a healthy eye (scikit-image's data.retina; see its
licence there): healthy images are geometric and photometric variations of it, abnormal ones are
others with painted lesions. Every image shows the same eye, so figures measured here say that the
program works, and nothing about any other eye.
"""


def make_cohort(
    root: str | Path,
    *,
    n_train: int = 24,
    n_healthy: int = 8,
    n_abnormal: int = 12,
    size: int = 512,
    seed: int = 0,
) -> Path:
    """Write a cohort in MVTec's layout, with a manifest, made from scikit-image's fundus image.

    Args:
        root: the folder to make; it must not hold anything yet.
        n_train: healthy images to learn from, ``train/good``.
        n_healthy: healthy images to test on, ``test/good``.
        n_abnormal: images with lesions, ``test/lesions``, with masks in ``ground_truth/lesions``
            and one mask per kind of lesion in ``ground_truth_by_type/<kind>``.
        size: side of the images in pixels, at least 128.
        seed: the same seed writes the same images.

    Returns:
        The path of the manifest.

    Raises:
        ValueError: a number is out of range, or ``root`` is not empty.
    """
    for name, number in (
        ("n_train", n_train),
        ("n_healthy", n_healthy),
        ("n_abnormal", n_abnormal),
    ):
        if number < 0:
            raise ValueError(f"make_cohort: want {name} >= 0, got {number}")
    if size < 128:
        raise ValueError(f"make_cohort: want size >= 128, got {size}: lesions would not be seen")
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"make_cohort: {root} is not an empty folder: choose another name")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # its tensors are small: on a busy machine two threads took 4x as long
    try:
        rows = _write_images(root, (n_train, n_healthy, n_abnormal), size, seed)
    finally:
        torch.set_num_threads(before)
    root.mkdir(parents=True, exist_ok=True)
    (root / "README.txt").write_text(_ABOUT, encoding="utf-8")
    manifest = root / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["path", "split", "label", "class", "mask_path"])
        writer.writeheader()
        writer.writerows(rows)
    return manifest


def _write_images(
    root: Path, counts: tuple[int, int, int], size: int, seed: int
) -> list[dict[str, str]]:
    """Write the images and masks, and return the rows of the manifest."""
    photograph, rows = _retina(), []
    parts = ("train", "good"), ("test", "good"), ("test", "lesions")
    for part, ((split, class_name), count) in enumerate(zip(parts, counts, strict=True)):
        for i in range(count):
            # A generator for each image: its looks do not depend on how many others are made.
            rng = np.random.default_rng([seed, part, i])
            image, fov = vary_geometry(photograph, size, rng)
            row = {"path": f"{split}/{class_name}/{i:03d}.jpg", "split": split, "class": class_name}
            row |= {"label": str(int(class_name != "good")), "mask_path": ""}
            if class_name == "lesions":
                lesions = fundus.add_lesions(image, fov, rng, kinds=_some_kinds(rng))
                image, row["mask_path"] = lesions.image, f"ground_truth/lesions/{i:03d}_mask.png"
                _write_mask(root / row["mask_path"], lesions.mask)
                for kind, mask in lesions.by_kind.items():
                    _write_mask(root / "ground_truth_by_type" / kind / f"{i:03d}.png", mask)
            _write_image(root / row["path"], vary_photometry(image, fov, rng))
            rows.append(row)
    return rows


def _some_kinds(rng: np.random.Generator) -> list[fundus.Kind]:
    """Two to four kinds of lesion: an eye seldom has them all."""
    order = rng.permutation(len(fundus.KINDS))
    return [fundus.KINDS[i] for i in order[: rng.integers(2, 5)]]


def _retina() -> Photograph:
    from skimage import data

    pixels = data.retina()
    fov = find_fov(pixels)
    if fov.status == "none":
        raise RuntimeError("scikit-image's retina has changed: its field of view is not found")
    return Photograph(pixels, fov.cx, fov.cy, fov.r)


def _write_image(path: Path, image: Tensor) -> None:
    import simplejpeg

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).contiguous().numpy()
    path.write_bytes(simplejpeg.encode_jpeg(pixels, quality=92, colorspace="RGB"))


def _write_mask(path: Path, mask: Tensor) -> None:
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), mask.numpy().astype(np.uint8) * 255)
