# SPDX-License-Identifier: Apache-2.0
"""Pseudo-anomalies of ProxyAno: a patch of an image, pasted on a proxy."""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from .tasks import Synthetic


class PasteSettings(BaseModel):
    """Numbers of the pasted patches. Published is only that a patch of an image goes on the proxy
    and that the target stays the healthy image: these are our design (METHODS.md E.5)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    least_side: Annotated[float, Field(gt=0, le=1)] = Field(
        0.05, description="Least side of a patch, as a share of the image's. Ours."
    )
    largest_side: Annotated[float, Field(gt=0, le=1)] = Field(
        0.3, description="Largest side of a patch, as a share of the image's. Ours."
    )
    jitter: float = Field(
        0.0, ge=0, le=1, description="A patch's values are scaled by 1 ± up to this. Ours."
    )
    foreground: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="Where there is no mask, proxies darker than this are no object. Ours.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.least_side > self.largest_side:
            raise ValueError("want least_side <= largest_side")
        return self


def paste_patches(
    proxy: Tensor,
    source: Tensor,
    *,
    seeds: list[int],
    mask: Tensor | None,
    source_mask: Tensor | None = None,
    settings: PasteSettings,
) -> Synthetic:
    """Proxies with a rectangle of an image pasted on each, inside the object only.

    Sides and places are uniform, in the source and in the proxy on their own; the centre lies on
    the object in both, and what is not of the source's object is not pasted: a piece of the black
    around a fundus photograph would be no lesion. The object is the mask, or, without one, what
    is not black.

    Args:
        proxy: ``[b, c, h, w]`` float32.
        source: of the same shape: what patches are cut from.
        seeds: one per image.
        mask, source_mask: ``[b, h, w]`` bool or ``None``.
        settings: their numbers.

    Returns:
        Proxies with patches; ``label`` is 1 and ``mask`` true where a patch is. The arguments are
        left as they are.
    """
    image = proxy.clone()
    where = torch.zeros(proxy[:, 0].shape, dtype=torch.bool, device=proxy.device)
    objects = proxy.amax(1) > settings.foreground if mask is None else mask
    sources = source.amax(1) > settings.foreground if source_mask is None else source_mask
    h, w = proxy.shape[2:]
    for i, seed in enumerate(seeds):
        places, origins = objects[i].nonzero(), sources[i].nonzero()
        if not len(places) or not len(origins):
            continue
        rng = np.random.default_rng(seed)
        share = rng.uniform(settings.least_side, settings.largest_side, 2)
        tall, wide = (max(1, round(s * side)) for s, side in zip(share, (h, w), strict=True))
        y, x = _corner(places, rng, (tall, wide), (h, w))
        v, u = _corner(origins, rng, (tall, wide), (h, w))
        gain = 1 + settings.jitter * rng.uniform(-1, 1)
        on = objects[i, y : y + tall, x : x + wide] & sources[i, v : v + tall, u : u + wide]
        patch = (source[i, :, v : v + tall, u : u + wide] * gain).clamp(0, 1)
        here = image[i, :, y : y + tall, x : x + wide]
        image[i, :, y : y + tall, x : x + wide] = torch.where(on, patch, here)
        where[i, y : y + tall, x : x + wide] = on
    return Synthetic(image, where.float(), where)


def _corner(
    places: Tensor, rng: np.random.Generator, extent: tuple[int, int], sides: tuple[int, int]
) -> tuple[int, int]:
    """The first row and column of a rectangle around a place, moved into the frame."""
    centre = places[int(rng.integers(len(places)))].tolist()
    row, column = (
        min(max(c - s // 2, 0), side - s) for c, s, side in zip(centre, extent, sides, strict=True)
    )
    return row, column
