# SPDX-License-Identifier: Apache-2.0
"""What a caller hands over, paths or arrays, as a source of images; and the hash of one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .arrays import ArraySource
from .items import DataError, Dataset, Item, ReadError
from .layouts import discover
from .opening import open_source


def training_images(
    X: Any, y: Sequence[int] | None, *, volumes: bool = False
) -> tuple[Any, tuple[Item, ...]]:
    """What to learn from, and the healthy images of a validation split.

    Of labelled data only the healthy images of the training split are taken.

    Raises:
        DataError: nothing that can be learned from.
    """
    source, dataset = as_source(X, y, volumes=volumes)
    if dataset is None:
        return source, ()
    return dataset.healthy_for_fit(), dataset.healthy("val")


def as_source(
    X: Any, y: Sequence[int] | None = None, *, volumes: bool = False
) -> tuple[Any, Dataset | None]:
    """A source that a loader takes, and the data set behind it where there is one.

    Args:
        X: paths, items, a data set, or images in memory; see ``Detector.fit``.
        y: labels of images in memory, 0 healthy: only these are taken.
        volumes: NIfTI volumes are items as a whole, not slice by slice.

    Raises:
        DataError: nothing is found, or what is found cannot be understood.
    """
    if isinstance(X, Dataset):
        return X.items, X
    paths = isinstance(X, (str, Path)) or (
        isinstance(X, (list, tuple)) and bool(X) and isinstance(X[0], (str, Path, Item))
    )
    if not paths:
        return _arrays(X, y, volumes), None
    if y is not None:
        raise DataError("y is for arrays; label files by their folders or a manifest")
    if isinstance(X, (list, tuple)) and isinstance(X[0], Item):
        return tuple(X), None
    dataset = discover(X, volumes=volumes)
    return dataset.items, dataset


def _arrays(X: Any, y: Sequence[int] | None, volumes: bool) -> ArraySource:
    if y is None:
        return ArraySource(X, volumes=volumes)
    source = ArraySource(X, labels=[int(label) for label in y], volumes=volumes)
    kept = [i for i, item in enumerate(source.items) if item.label == 0]
    if not kept:
        raise DataError("y has no healthy image: 0 means healthy")
    if isinstance(X, (np.ndarray, torch.Tensor)):
        healthy: Any = X[kept]
    else:
        healthy = torch.utils.data.Subset(X, kept)
    names = [str(i) for i in kept]
    return ArraySource(healthy, labels=[0] * len(kept), ids=names, volumes=volumes)


def items_of(source: Any) -> tuple[Item, ...]:
    """The items of a source, in order."""
    return source if isinstance(source, tuple) else source.items


def data_hash(source: Any) -> str | None:
    """SHA-256 over ids and the files' contents; ``None`` for images in memory."""
    if isinstance(source, ArraySource):
        return None
    digest, last, of_file = hashlib.sha256(), None, b""
    for item in source:
        digest.update(item.id.encode("utf-8", "surrogatepass") + b"\0")
        if last != (item.path, item.member):  # the frames of a file follow each other
            last, of_file = (item.path, item.member), _file_hash(item)
        digest.update(of_file)
    return digest.hexdigest()


def _file_hash(item: Item) -> bytes:
    try:
        with open_source(item) as (file, _):
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
            return digest.digest()
    except (ReadError, OSError) as error:  # the loader will say what is wrong with it
        return type(error).__name__.encode()
