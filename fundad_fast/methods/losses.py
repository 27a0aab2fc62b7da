# SPDX-License-Identifier: Apache-2.0
"""Losses of methods that train."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

_C1, _C2 = 0.01**2, 0.03**2  # of Wang et al. 2004, for values in [0, 1]


def focal_loss(logits: Tensor, label: Tensor, tau: float = 2.0) -> Tensor:
    """Mean focal loss: -(1 - p)^τ log p where the label is 1, -p^τ log(1 - p) where it is 0.

    With τ = 0 it is the binary cross-entropy. Computed from logits, so that no p is clamped.
    Source: Lin et al. 2017, as printed on ReSynthDetect's poster, without a class weight.

    Args:
        logits: of any shape.
        label: of the same, 0 or 1.
        tau: the focusing parameter, at least 0.
    """
    entropy = nnf.binary_cross_entropy_with_logits(logits, label, reduction="none")
    if tau == 0:
        return entropy.mean()
    # The logarithm of the probability that was given to the other class.
    wrong = nnf.logsigmoid(torch.where(label > 0.5, -logits, logits))
    return ((tau * wrong).exp() * entropy).mean()


def structural_loss(a: Tensor, b: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """1 - SSIM, the mean over pixels and channels.

    Source: Wang et al. 2004, which DRAEM adds to the squared error; borders without a whole window
    are left out.

    Args:
        a, b: ``[n, c, h, w]`` in [0, 1], sides of at least ``window``.
        window: taps of the Gaussian window along an axis.
        sigma: of that window, in pixels.
    """
    return _dissimilarity(a, b, window, sigma).mean()


def dissimilarity(a: Tensor, b: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """1 - SSIM around every pixel, ``[n, c, h, w]``, from 0 to 2; edges go on as they end.

    Source and arguments: see :func:`structural_loss`; any size of image.
    """
    pad = (window // 2,) * 4
    return _dissimilarity(
        nnf.pad(a, pad, mode="replicate"), nnf.pad(b, pad, mode="replicate"), window, sigma
    )


def _dissimilarity(a: Tensor, b: Tensor, window: int, sigma: float) -> Tensor:
    c = a.shape[1]
    taps = torch.arange(window, device=a.device, dtype=a.dtype) - window // 2
    line = (-(taps**2) / (2 * sigma**2)).exp()
    line = (line / line.sum()).view(1, 1, 1, -1).expand(c, 1, 1, window)

    def blurred(x: Tensor) -> Tensor:
        return nnf.conv2d(nnf.conv2d(x, line, groups=c), line.transpose(2, 3), groups=c)

    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    both = blurred(a * b) - mean_a * mean_b
    upper = (2 * mean_a * mean_b + _C1) * (2 * both + _C2)
    lower = (mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2)
    return 1 - upper / lower
