# SPDX-License-Identifier: Apache-2.0
"""Proxies of an image: pictures that keep its layout and lose its detail, above all superpixels."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as nnf
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

ProxyKind = Literal["superpixel", "lowres", "edge", "blur"]
PROXIES: tuple[ProxyKind, ...] = get_args(ProxyKind)
"""Kinds of proxies; the paper found superpixels the best of several that it does not name."""

_EDGE_GAIN = 8.0
GREY_COMPACTNESS, LAB_COMPACTNESS = 0.1, 10.0


class ProxySettings(BaseModel):
    """Numbers of the proxies. None of them is published: all are our design (METHODS.md E.2)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    segments: int = Field(
        500, ge=2, description="Superpixels asked of SLIC; 500 is about 10x10 pixels at 224. Ours."
    )
    compactness: float | None = Field(
        None,
        gt=0,
        description="SLIC's weight of nearness against likeness. None: 10 for colour (in Lab), 0.1 "
        "for grey, where 10 gives a grid. Ours. Of the detail that means of a 22x22 grid lose, "
        "500 superpixels kept 0.61 on four chest X-rays at 0.1, and lost more at 10 (-0.24).",
    )
    sigma: float = Field(1.0, ge=0, description="Blur before SLIC, in pixels. Ours.")
    iterations: int = Field(10, ge=1, description="Of SLIC. Ours.")
    low_side: int = Field(28, ge=2, description="Side of the image of low resolution. Ours.")
    blur: float = Field(4.0, gt=0, description="Of the blurred image, σ in pixels. Ours.")


def make_proxy(
    image: Tensor, mask: Tensor | None, kind: ProxyKind, settings: ProxySettings
) -> Tensor:
    """A proxy of one image, ``[c, h, w]`` float32, 0 outside the mask.

    ``superpixel``: every pixel has its superpixel's mean (the published definition), taken inside
    the mask. ``lowres``: means of cells, enlarged again; ``blur``: Gaussian, both of what the mask
    contains alone. ``edge``: length of Sobel's gradient per channel, 1 from an eighth of white per
    pixel on; the mask's rim has none.

    Args:
        image: ``[c, h, w]`` float32 in [0, 1], 1 or 3 channels.
        mask: ``[h, w]`` bool or ``None`` for everywhere.
        kind: of :data:`PROXIES`.
        settings: their numbers.
    """
    inside = torch.ones_like(image[0]) if mask is None else mask.to(image)
    seen = (image * inside).cpu()
    if kind == "superpixel":
        made = _means(seen, inside.cpu(), superpixels(seen, settings))
    elif kind == "lowres":
        made = _low(seen, inside.cpu(), settings.low_side)
    elif kind == "edge":
        made = _edges(seen, inside.cpu())
    else:
        made = _blurred(seen, inside.cpu(), settings.blur)
    return made.to(image) * inside


def superpixels(image: Tensor, settings: ProxySettings) -> Tensor:
    """SLIC's labels from 0, ``[h, w]`` int64; scikit-image's, the reference.

    Each image is first stretched to its own range (scikit-image does); three channels are compared
    in Lab. Source: Achanta et al. 2012.

    Args:
        image: ``[c, h, w]`` float32 in [0, 1], 1 or 3 channels, on the CPU.
        settings: their numbers.
    """
    from skimage.segmentation import slic

    grey = image.shape[0] == 1
    compactness = settings.compactness or (GREY_COMPACTNESS if grey else LAB_COMPACTNESS)
    labels = slic(
        image[0].numpy() if grey else np.ascontiguousarray(image.movedim(0, -1).numpy()),
        n_segments=settings.segments,
        compactness=compactness,
        sigma=settings.sigma,
        max_num_iter=settings.iterations,
        enforce_connectivity=True,
        start_label=0,
        convert2lab=not grey,
        channel_axis=None if grey else -1,
    )
    return torch.from_numpy(labels.astype(np.int64))


def _means(image: Tensor, inside: Tensor, labels: Tensor) -> Tensor:
    flat, weight = labels.flatten(), inside.flatten().double()
    n = int(flat.max()) + 1
    count = torch.zeros(n, dtype=torch.float64).index_add_(0, flat, weight).clamp_min(1)
    rows = []
    for channel in image.flatten(1).double():
        total = torch.zeros(n, dtype=torch.float64).index_add_(0, flat, channel)
        rows.append((total / count)[flat].view(labels.shape))
    return torch.stack(rows).float()


def _low(image: Tensor, inside: Tensor, side: int) -> Tensor:
    h, w = image.shape[1:]
    both = torch.cat([image, inside[None]])[None]
    small = nnf.adaptive_avg_pool2d(both, (min(side, h), min(side, w)))
    large = nnf.interpolate(small, (h, w), mode="bilinear", align_corners=False)[0]
    return large[:-1] / large[-1:].clamp_min(1e-6)


def _edges(image: Tensor, inside: Tensor) -> Tensor:
    row = torch.tensor([1.0, 2.0, 1.0])[:, None] * torch.tensor([-1.0, 0.0, 1.0]) / 8
    kernel = torch.stack([row, row.T])[:, None]
    padded = nnf.pad(image[:, None], (1, 1, 1, 1), mode="replicate")
    length = nnf.conv2d(padded, kernel).square().sum(1).sqrt()
    rim = nnf.max_pool2d(1 - inside[None], 3, stride=1, padding=1)  # no edge of the image's own
    return (length * _EDGE_GAIN).clamp_max(1) * (1 - rim)


def _blurred(image: Tensor, inside: Tensor, sigma: float) -> Tensor:
    from scipy.ndimage import gaussian_filter

    both = torch.cat([image, inside[None]]).numpy()
    blurred = torch.from_numpy(gaussian_filter(both, (0, sigma, sigma), mode="nearest"))
    return blurred[:-1] / blurred[-1:].clamp_min(1e-6)
