# SPDX-License-Identifier: Apache-2.0
"""Images that a training walks over again and again, in memory or in a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..batch import Batch
from ..spill import RowStore
from ._base import ConfigError


class ImageStore:
    """Normalised images ``[c, *s]`` of one shape with their masks, looked up by number.

    Args:
        limit: bytes that images may take in memory; beyond it they go to a temporary folder.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.shape: tuple[int, ...] = ()
        self._rows: RowStore | None = None
        self._masks: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ids(self) -> list[str]:
        return [] if self._rows is None else self._rows.ids

    def add(self, batch: Batch) -> None:
        """Keep the images of a batch.

        Raises:
            ConfigError: they are not of the others' shape.
        """
        shape = tuple(batch.image.shape[1:])
        if self._rows is None:
            self.shape = shape
            self._rows = RowStore(int(np.prod(shape)), limit=self.limit)
            self._masks = None if batch.mask is None else []
        if shape != self.shape or (batch.mask is None) != (self._masks is None):
            raise ConfigError(
                f"{batch.id[0]} is of shape {list(shape)}, the images before of {list(self.shape)}"
                "; images to learn from have to be of one shape"
            )
        for i, name in enumerate(batch.id):
            self._rows.append(name, batch.image[i].reshape(1, -1))
            if self._masks is not None and batch.mask is not None:
                self._masks.append(np.packbits(batch.mask[i].cpu().numpy()))

    def get(self, numbers: Sequence[int], device: torch.device) -> Batch:
        """Images ``[b, c, *s]`` and masks of these numbers, on a device."""
        assert self._rows is not None
        image = self._rows.rows(torch.tensor(numbers)).view(len(numbers), *self.shape)
        mask = None
        if self._masks is not None:
            space = self.shape[1:]
            bits = np.stack([self._masks[i] for i in numbers])
            flat = np.unpackbits(bits, axis=1, count=int(np.prod(space)))
            mask = torch.from_numpy(flat.astype(bool)).view(len(numbers), *space).to(device)
        return Batch(image.to(device), tuple(self.ids[i] for i in numbers), mask)

    def all_alike(self) -> bool:
        """Whether there is more than one image and all are the same."""
        assert self._rows is not None
        first = self._rows.image(0)
        return len(self) > 1 and all(
            torch.equal(first, self._rows.image(i)) for i in range(1, len(self))
        )
