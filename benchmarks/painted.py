# SPDX-License-Identifier: Apache-2.0
"""Healthy photographs with painted lesions: a cohort to choose settings on.

What is chosen on painted lesions leaves every real one for the report. Painted and untouched copies
of the same photographs are tested against a bank of the pack's own training images.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from fundad_fast.data import Dataset, InputSpec, Item, Loader, discover
from fundad_fast.synthetic import fundus


def painted_cohort(
    folder: Path, train: tuple[Item, ...], healthy: tuple[Item, ...], size: int, seeds: int
) -> Dataset:
    """Write (or find) ``seeds`` painted copies of each healthy image, ``size`` pixels a side.

    Two to four kinds of lesion are drawn per image, as in ``fundad demo``; the same seeds paint the
    same pixels.
    """
    manifest = folder / "manifest.csv"
    if not manifest.exists():
        rows: list[dict[str, str | int]] = [
            {"path": str(Path(i.path).absolute()), "split": "train", "label": 0} for i in train
        ]
        for image, fov, name, shape in _prepared(healthy, size):
            rows.append(_write(folder, f"good/{name}", image, None, shape))
            for seed in range(1, seeds + 1):
                rng = np.random.default_rng([seed, len(rows)])
                order = rng.permutation(len(fundus.KINDS))
                kinds = [fundus.KINDS[j] for j in order[: rng.integers(2, 5)]]
                lesions = fundus.add_lesions(image, fov, rng, kinds=kinds)
                mask = lesions.mask.numpy()
                rows.append(_write(folder, f"painted/{name}-{seed}", lesions.image, mask, shape))
        with manifest.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["path", "split", "label", "class", "mask_path"])
            writer.writeheader()
            writer.writerows(rows)
    return discover(manifest)


def _prepared(
    items: tuple[Item, ...], size: int
) -> Iterator[tuple[Tensor, Tensor, str, tuple[int, int]]]:
    """Image and field of view ``[size, size]``, name, and (width, height) of the same aspect."""
    for chunk in Loader(items, InputSpec(image_size=size, fov="auto"), batch_size=1):
        assert chunk.batch.mask is not None
        for item, ready, fov in zip(chunk.items, chunk.prepared, chunk.batch.mask):
            scale = size / min(ready.width, ready.height)
            shape = round(ready.width * scale), round(ready.height * scale)
            yield ready.image, fov, Path(item.path).stem, shape


def _write(
    folder: Path, name: str, image: Tensor, mask: np.ndarray | None, shape: tuple[int, int]
) -> dict[str, str | int]:
    path = folder / "images" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
    cv2.imwrite(str(path), cv2.resize(pixels[..., ::-1], shape))
    row: dict[str, str | int] = {"path": str(path.absolute()), "split": "test", "label": 0}
    if mask is not None:
        drawn = folder / "masks" / f"{name}.png"
        drawn.parent.mkdir(parents=True, exist_ok=True)
        drawing = cv2.resize(mask.astype(np.uint8), shape, interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(drawn), drawing * 255)
        row |= {"label": 1, "class": "painted", "mask_path": str(drawn.absolute())}
    return row
