# SPDX-License-Identifier: Apache-2.0
"""The synthetic tasks in plain float64 numpy and scipy: what they do, given what was drawn."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from skimage.morphology import reconstruction

from fundad_fast.ops import OPS
from fundad_fast.synthetic.tasks import Inputs, TaskSettings


def contains(form, cells):
    """Whether points ``[d, n]`` around the shape's centre are in it."""
    own = np.linalg.inv(form.matrix) @ cells
    half = np.array(form.half)[:, None]
    if form.ellipsoid:
        return ((own / half) ** 2).sum(0) <= 1
    return (np.abs(own) <= half).all(0)


def grid(extent):
    return np.stack(np.meshgrid(*(np.arange(n) for n in extent), indexing="ij")).reshape(
        len(extent), -1
    )


def far(form, origin, direction):
    """Distance to the surface by bisection; ``[d]``, ``[d, n]``, lengths of one."""
    low, high = np.zeros(direction.shape[1]), np.full(direction.shape[1], 1e4)
    for _ in range(80):
        middle = (low + high) / 2
        within = contains(form, origin[:, None] + middle * direction)
        low, high = np.where(within, middle, low), np.where(within, high, middle)
    return low


def deform(crop, form, drawn):
    """Equations 1 and 2, on the whole box; the outermost cells stay."""
    extent = form.inside.shape
    at = grid(extent).astype(float)
    centre = np.array(drawn.centre, float)
    middle = (np.array(extent) - 1) / 2
    offset = at - centre[:, None]
    rho = np.sqrt((offset**2).sum(0))
    edge = ((at == 0) | (at == np.array(extent)[:, None] - 1)).any(0)
    moving = form.inside.ravel() & ~edge & (rho > 0)
    direction = offset[:, moving] / rho[moving]
    d = far(form, centre - middle, direction)
    share = np.minimum(rho[moving] / d, 1)
    f = drawn.exponent
    new = d * (1 - (1 - share) ** f) if drawn.kind == "sink" else d * share**f
    at[:, moving] = centre[:, None] + new * direction
    moved = [ndimage.map_coordinates(c, at, order=3, mode="nearest").reshape(extent) for c in crop]
    return np.stack(moved)


def piece(pool, drawn, extent):
    box = tuple(slice(c, c + n) for c, n in zip(drawn.corner, drawn.extent, strict=True))
    turned = np.stack(
        [
            ndimage.affine_transform(channel[box], drawn.matrix, drawn.offset, extent, order=3)
            for channel in pool[drawn.source]
        ]
    )
    axes = tuple(range(1, pool.ndim - 1))
    whole = pool[drawn.source]
    return np.clip(turned, whole.min(axes, keepdims=True), whole.max(axes, keepdims=True))


def blend(crop, source, inside):
    box = [torch.from_numpy(crop)], [torch.from_numpy(source)], [torch.from_numpy(inside)]
    return OPS["poisson_blend"].reference(*box)[0].numpy()


def label(after, before, mask, sigma, clean=True):
    y = 1 - np.exp(-((np.abs(after - before).mean(0) * mask) ** 2) / (2 * sigma**2))
    if not clean:
        return y
    footprint = ndimage.generate_binary_structure(mask.ndim, 2)
    for box in ndimage.find_objects(ndimage.label(mask)[0]):
        closed = ndimage.grey_closing(y[box], footprint=footprint)
        seed = closed.copy()
        seed[(slice(1, -1),) * mask.ndim] = closed.max()
        y[box] = reconstruction(seed, closed, method="erosion", footprint=footprint)
    return y


def synthesize(image, tasks, seeds, mask=None, sources=None, external=None, settings=None):
    """Image, label and mask of each sample, one after the other; tensors in, arrays out."""
    settings = settings or TaskSettings()
    inputs = Inputs(image, tasks, seeds, mask, sources, None, external, None)
    pools = {
        "intra": None if sources is None else sources.double().numpy(),
        "inter": None if external is None else external.double().numpy(),
    }
    before = image.double().numpy()
    after, masks = before.copy(), np.zeros((len(before), *before.shape[2:]), bool)
    axes = tuple(range(1, before.ndim - 1))
    for spots in inputs.draw(settings):
        for spot in spots:
            i, task, box = spot.sample, tasks[spot.sample], (slice(None), *spot.box)
            low, high = before[i].min(axes, keepdims=True), before[i].max(axes, keepdims=True)
            crop, inside = after[i][box].copy(), spot.form.inside.copy()
            if task in ("sink", "source"):
                new = crop if spot.decision is None else deform(crop, spot.form, spot.decision)
            elif task == "intensity":
                amount = np.array(spot.decision.amount).reshape(-1, *[1] * inside.ndim)
                depth = ndimage.distance_transform_edt(np.pad(inside, 1))
                depth = depth[(slice(1, -1),) * inside.ndim]
                slope = np.minimum(depth / min(spot.decision.width, depth.max()), 1)
                new = np.clip(crop + amount * slope, low, high)
            else:
                for axis in range(inside.ndim):
                    np.moveaxis(inside, axis, 0)[[0, -1]] = False
                source = piece(pools[task], spot.decision, inside.shape)
                new = np.clip(blend(crop, source, inside), low, high)
                inside |= np.abs(new - crop).mean(0) > settings.changed
            after[i][box] = new
            masks[i][box[1:]] |= inside
    labels = np.stack(
        [
            label(a, b, m, settings.label_sigma, settings.clean_labels)
            for a, b, m in zip(after, before, masks, strict=True)
        ]
    )
    return after, labels, masks
