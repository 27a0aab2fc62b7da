# SPDX-License-Identifier: Apache-2.0
"""The tasks of earlier papers: FPI, PII, NSA and CutPaste, for any number of axes.

FPI (Tan et al. 2020), PII (Tan et al. 2021) and NSA (Schlüter et al. 2022) are the papers'
baselines of "Many tasks make light work"; CutPaste is Li et al. 2021. They are made here from the
same parts; where that makes a difference to their own code, it is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import ops
from .blending import Piece, Pool, paste, resample
from .canvas import Canvas, Spot, cells, upload
from .labels import Box, logistic
from .masks import Form, Mask, draw_extent, limits, place
from .settings import TaskSettings


@dataclass(frozen=True)
class Patch:
    """What was drawn for FPI, PII and CutPaste.

    Attributes:
        source: which image of the pool; CutPaste takes the image itself.
        corner: the lowest cell of what is taken.
        factor: share of the foreign image.
        brightness, contrast: factors of CutPaste's jitter.
    """

    source: int
    corner: tuple[int, ...]
    factor: float = 1.0
    brightness: float = 1.0
    contrast: float = 1.0


def box_form(extent: Sequence[int], framed: bool = False) -> Form:
    """An aligned box; ``framed``: without its outermost cells."""
    inside: Mask = np.ones(tuple(extent), dtype=bool)
    if framed:
        inside = np.zeros_like(inside)
        inside[tuple(slice(1, -1) for _ in extent)] = True
    unit = np.eye(len(extent))
    return Form(False, tuple(n / 2 for n in extent), unit, unit, inside)


def draw_patch(
    rng: np.random.Generator, task: str, sample: int, pool: Pool, settings: TaskSettings
) -> Spot:
    """A box of FPI or PII, at the same place of two images.

    One half-width for all axes, a share of the shortest; boxes end at the border of the image, and
    PII's one cell before it, where the target's values are needed.
    """
    size = pool.size
    shortest = min(size)
    least = max(1, round(settings.patch_min * shortest))
    width = int(rng.integers(least, max(least + 1, round(settings.patch_max * shortest))))
    low, high = [], []
    for n in size:
        edge = (1 - settings.patch_core) / 2 * n
        centre = int(rng.integers(int(edge), max(int(edge) + 1, int(n - edge))))
        low.append(max(0, centre - width - (task == "pii")))
        high.append(min(n, centre + width + (task == "pii")))
    form = box_form([b - a for a, b in zip(low, high, strict=True)], framed=task == "pii")
    factor = float(rng.uniform(settings.factor_min, settings.factor_max))
    source = int(rng.integers(len(pool.image)))
    return Spot(sample, tuple(low), form, Patch(source, tuple(low), factor))


def draw_cutpaste(
    rng: np.random.Generator,
    sample: int,
    size: Sequence[int],
    on: Mask | None,
    settings: TaskSettings,
) -> Spot:
    """A box of the image itself, pasted elsewhere. Aspects of more than two axes are ours."""
    axes = len(size)
    share = rng.uniform(settings.cutpaste_min, settings.cutpaste_max) ** (1 / axes)
    reach = math.log(settings.cutpaste_aspect) / 2
    aspect = rng.uniform(-reach, reach, axes)
    aspect -= aspect.mean()
    extent = [
        min(n, max(1, round(n * share * math.exp(a))))
        for n, a in zip(size, aspect.tolist(), strict=True)
    ]
    form = box_form(extent)
    taken = rng.integers(0, [n - e + 1 for n, e in zip(size, extent, strict=True)])
    jitter = 1 + rng.uniform(-settings.cutpaste_jitter, settings.cutpaste_jitter, 2)
    patch = Patch(-1, tuple(taken.tolist()), 1.0, *jitter.tolist())
    return Spot(sample, place(rng, form.inside, size, on, settings), form, patch)


def draw_nsa(
    rng: np.random.Generator,
    sample: int,
    size: Sequence[int],
    on: Mask | None,
    pool: Pool,
    settings: TaskSettings,
) -> Spot:
    """A box of another image, scaled, put elsewhere.

    Sizes, number and placement are those of the five tasks, which took them from NSA.
    """
    taken = draw_extent(rng, pool.size, settings)
    scale = float(
        np.clip(
            rng.normal(1, settings.nsa_scale_sigma),
            settings.nsa_scale_min,
            settings.nsa_scale_max,
        )
    )
    extent = [
        min(max(round(scale * n), least), most)
        for n, least, most in zip(taken, *limits(size, settings), strict=True)
    ]
    source = int(rng.integers(len(pool.image)))
    corner = rng.integers(0, [n - e + 1 for n, e in zip(pool.size, taken, strict=True)])
    ratio = np.array(taken) / np.array(extent)
    # Outer borders of both boxes lie on each other, not the centres of their outer cells.
    piece = Piece(source, tuple(corner.tolist()), tuple(taken), np.diag(ratio), (ratio - 1) / 2)
    form = box_form(extent)
    return Spot(sample, place(rng, form.inside, size, on, settings), form, piece)


def interpolate(canvas: Canvas, spots: Sequence[Spot], pool: Pool) -> None:
    """FPI, in place: (1 - factor) of the image and ``factor`` of another one."""
    for spot in spots:
        patch, crop = spot.decision, canvas.crop(spot)
        other = pool.image[cells(patch.source, slice(None), *spot.box)].to(crop.device)
        crop.add_((other - crop).mul_(patch.factor))
        canvas.crop_mask(spot).fill_(True)


def interpolate_blended(canvas: Canvas, spots: Sequence[Spot], pool: Pool) -> None:
    """PII, in place: (1 - factor) of the image and ``factor`` of its blend with another one.

    Its code scales both images' gradients by their shares before it takes the larger one of each
    pair; here the larger one is taken first. Both leave no seam.
    """
    targets = [canvas.crop(spot).contiguous() for spot in spots]
    others = [
        pool.image[cells(spot.decision.source, slice(None), *spot.box)].to(canvas.image.device)
        for spot in spots
    ]
    masks = upload([spot.form.inside for spot in spots], canvas.image.device)
    blended = ops.poisson_blend(targets, [other.contiguous() for other in others], masks)
    for spot, target, mask, new in zip(spots, targets, masks, blended, strict=True):
        new = target + (new - target) * spot.decision.factor
        canvas.crop_mask(spot).logical_or_(mask)
        canvas.keep_in_range(spot.sample, new, out=canvas.crop(spot))


def cut_and_paste(canvas: Canvas, spots: Sequence[Spot]) -> None:
    """CutPaste, in place: a box of the image, a little brighter or darker, somewhere else."""
    for spot in spots:
        patch = spot.decision
        taken = tuple(
            slice(c, c + n) for c, n in zip(patch.corner, spot.form.inside.shape, strict=True)
        )
        piece = canvas.original[cells(spot.sample, slice(None), *taken)] * patch.brightness
        mean = piece.mean()
        piece = (piece - mean) * patch.contrast + mean
        canvas.keep_in_range(spot.sample, piece, out=canvas.crop(spot))
        canvas.crop_mask(spot).fill_(True)


def blend_scaled(canvas: Canvas, spots: Sequence[Spot], pool: Pool, settings: TaskSettings) -> None:
    """NSA, in place: boxes of other images, blended in by mixed gradients."""
    extents = [spot.form.inside.shape for spot in spots]
    pieces = resample([spot.decision for spot in spots], extents, pool, "edge")
    paste(canvas, spots, [piece.to(canvas.image.device) for piece in pieces], settings)


def factor_label(canvas: Canvas, spot: Spot) -> Tensor:
    """``[*s]`` of one image: the factor wherever FPI or PII changed a channel."""
    changed = (canvas.image[spot.sample] != canvas.original[spot.sample]).any(0)
    return (changed & canvas.mask[spot.sample]).float().mul_(spot.decision.factor)


def binary_label(canvas: Canvas, sample: int) -> Tensor:
    """``[*s]`` of one image: CutPaste's label, the mask."""
    return canvas.mask[sample].float()


def nsa_label(
    canvas: Canvas, places: Sequence[tuple[int, Box]], sample: int, settings: TaskSettings
) -> Tensor:
    """``[*s]`` of one image: a logistic function of the change, without grain.

    Medians are over 5 cells of each axis (its code: 5 x 5, then a disc of radius 5).
    """
    from scipy.ndimage import median_filter

    result = torch.zeros_like(canvas.mask[sample], dtype=torch.float32)
    for _, box in (one for one in places if one[0] == sample):
        at = cells(sample, slice(None), *box)
        difference = (canvas.image[at] - canvas.original[at]).abs().mean(0)
        inside = canvas.mask[sample][box].cpu().numpy()
        values = difference.cpu().numpy() * inside
        changed = median_filter((values > settings.nsa_tolerance).view(np.uint8), size=5) > 0
        values = median_filter(values * changed, size=5)
        label = (changed & inside) * logistic(values, settings.nsa_steepness, settings.nsa_middle)
        result[box] = torch.from_numpy(label).to(result.device)
    return result
