# SPDX-License-Identifier: Apache-2.0
"""Splits images into folds so that no patient is on both sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fundad_fast.data.items import DataError, Item


def assign_folds(items: Sequence[Item], k: int, seed: int) -> np.ndarray:
    """A fold for each image, all images of a patient in the same one.

    Images without a patient id count as a patient each. Patients are taken in random order, those
    with most images first, each to the fold with fewest images (the lowest of equals), so that fold
    sizes differ by at most the images of one patient.

    Args:
        items: the images.
        k: how many folds, at least 2.
        seed: of the random order; the same items, k and seed give the same folds.

    Returns:
        ``[n]`` int64 in [0, k); every fold has at least one image.

    Raises:
        DataError: fewer patients than folds.
    """
    if k < 2:
        raise ValueError(f"k must be at least 2; got {k}")
    members: dict[tuple[bool, str], list[int]] = {}
    for index, item in enumerate(items):
        known = item.patient_id is not None
        members.setdefault((known, item.patient_id or str(index)), []).append(index)
    groups = list(members.values())
    if len(groups) < k:
        kind = "patients" if any(known for known, _ in members) else "images"
        raise DataError(
            f"{k} folds need at least {k} {kind}, there are {len(groups)}: add healthy images or "
            "ask for fewer folds"
        )
    order = np.random.default_rng(seed).permutation(len(groups))
    folds = np.empty(len(items), np.int64)
    sizes = [0] * k
    for group in sorted((groups[i] for i in order), key=len, reverse=True):
        fold = min(range(k), key=sizes.__getitem__)
        folds[group] = fold
        sizes[fold] += len(group)
    return folds
