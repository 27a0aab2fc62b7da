# SPDX-License-Identifier: Apache-2.0
"""What passes between the readers of images and the methods that score them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images that are ready for a method.

    Attributes:
        image: ``[b, c, *s]`` float32 in [0, 1]; ``s`` has two or three axes. Not standardised: that
            is the method's own business.
        mask: ``[b, *s]`` bool, true where a score is meaningful (fundus field of view, brain), or
            ``None`` for everywhere.
        id: one name per image.
    """

    image: Tensor
    id: tuple[str, ...]
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.id)

    def __getitem__(self, part: slice) -> Batch:
        """Some of the images; shares their memory."""
        mask = None if self.mask is None else self.mask[part]
        return Batch(self.image[part], self.id[part], mask)


@dataclass(frozen=True)
class Scores:
    """What a method says of a batch. Higher is more abnormal, always.

    Attributes:
        image: ``[b]`` float32.
        map: ``[b, *s']`` float32 on the method's own grid, or ``None`` for a method that only
            judges whole images. Outside the batch's mask it goes on with the scores next to it, so
            that interpolation is right at the rim: cut it with the mask at the final resolution.
    """

    image: Tensor
    map: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image)
