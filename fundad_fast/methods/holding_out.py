# SPDX-License-Identifier: Apache-2.0
"""One fold of healthy images that a training never sees, for the thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from ..batch import Batch, Scores
from ._base import HeldOut, thinned, touched
from .image_store import ImageStore


def kept_and_apart(
    train: Iterable[Batch],
    folds: Mapping[str, int] | None,
    limit: int,
    prepare: Callable[[Batch], Batch] | None = None,
) -> tuple[ImageStore, ImageStore]:
    """The images to train on, and those of the lowest fold, which are held out.

    Args:
        train: healthy images.
        folds: fold of each id; ``None``: nothing is held out.
        limit: bytes in memory, see :class:`ImageStore`.
        prepare: what is done to the images before they are kept.
    """
    kept, apart = ImageStore(limit), ImageStore(limit)
    held = min(folds.values()) if folds else None
    for batch in train:
        out = [held is not None and folds is not None and folds[i] == held for i in batch.id]
        for store, is_apart in ((kept, False), (apart, True)):
            chosen = [i for i, left_out in enumerate(out) if left_out is is_apart]
            if chosen:
                some = picked(batch, chosen)
                store.add(prepare(some) if prepare else some)
    return kept, apart


def picked(batch: Batch, numbers: list[int]) -> Batch:
    """Some images of a batch, by their places in it."""
    mask = None if batch.mask is None else batch.mask[numbers]
    return Batch(batch.image[numbers], tuple(batch.id[i] for i in numbers), mask)


@torch.no_grad()
def held_out(
    store: ImageStore,
    judge: Callable[[Batch], Scores],
    device: torch.device,
    unseen: str = "nothing was trained on",
) -> HeldOut:
    """Scores of the images that were held out, one at a time.

    Args:
        store: the images, at least one.
        judge: the fitted method; called without gradients.
        device: where it is.
        unseen: goes on after "images that", for the rule that is kept.
    """
    rule = (
        f"{len(store)} healthy images, one fold, that {unseen} (our design: refits are too costly)"
    )
    image, cells = [], []
    for number in range(len(store)):
        one = store.get([number], device)
        scores = judge(one)
        image.append(scores.image.cpu().numpy())
        if scores.map is not None:
            shown = scores.map[touched(one.mask, scores.map)].cpu().numpy()
            cells.append(thinned(shown, len(store)))
    pixels = np.concatenate(cells) if cells else None
    fold = np.zeros(len(store), np.int32)
    return HeldOut(tuple(store.ids), fold, np.concatenate(image), pixels, rule=rule)
