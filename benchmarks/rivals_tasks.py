# SPDX-License-Identifier: Apache-2.0
"""The five tasks as one would write them with numpy, SciPy, scikit-image and PIE-torch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from fundad_fast.synthetic.blending import Piece
from fundad_fast.synthetic.deformation import Deformation
from fundad_fast.synthetic.intensity import Change
from fundad_fast.synthetic.masks import Form
from fundad_fast.synthetic.settings import TaskSettings
from fundad_fast.synthetic.tasks import Inputs

F64 = NDArray[np.float64]


def synthesize(
    image: NDArray[np.float32],
    task: str,
    seeds: range,
    pool: torch.Tensor,
    settings: TaskSettings,
) -> tuple[F64, F64]:
    """One sample after the other; what is drawn is drawn by the code it is compared with.

    Returns:
        Images ``[b, c, *s]`` and labels ``[b, *s]``.
    """
    batch = torch.from_numpy(image)
    inputs = Inputs(batch, [task] * len(image), seeds, None, pool, None, pool, None)
    rounds = inputs.draw(settings)
    sources = pool.numpy()
    images, labels = [], []
    for i, before in enumerate(image):
        after, mask = before.astype(np.float64), np.zeros(before.shape[1:], bool)
        axes = tuple(range(1, before.ndim))
        low, high = before.min(axes, keepdims=True), before.max(axes, keepdims=True)
        for spot in (spot for spots in rounds for spot in spots if spot.sample == i):
            box, inside = (slice(None), *spot.box), spot.form.inside.copy()
            crop = after[box]
            if task in ("sink", "source"):
                if spot.decision is not None:
                    after[box] = deform(crop, spot.form, spot.decision)
            elif task == "intensity":
                after[box] = np.clip(crop + change(spot.decision, spot.form), low, high)
            else:
                new = np.clip(blend(crop, piece(sources, spot.decision, inside), inside), low, high)
                inside |= np.abs(new - crop).mean(0) > settings.changed
                after[box] = new
            mask[box[1:]] |= inside
        images.append(after)
        labels.append(label(after, before, mask, settings.label_sigma))
    return np.stack(images), np.stack(labels)


def deform(crop: F64, form: Form, drawn: Deformation) -> F64:
    extent = form.inside.shape
    at = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in extent), indexing="ij"))
    within = (slice(None), *(slice(1, -1) for _ in extent))
    chosen = form.inside[within[1:]]
    centre = np.array(drawn.centre, float)[:, None]
    middle = np.array(form.centre, float)[:, None]
    offset = at[within][:, chosen] - centre
    rho = np.sqrt((offset**2).sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        direction = offset / rho
        d = surface(form, form.inverse @ (centre - middle), form.inverse @ direction)
        share, f = np.minimum(rho / d, 1), drawn.exponent
        new = d * (1 - (1 - share) ** f) if drawn.kind == "sink" else d * share**f
        at[within][:, chosen] = np.where(rho > 0, centre + new * direction, centre)
    return np.stack([ndimage.map_coordinates(channel, at, mode="nearest") for channel in crop])


def surface(form: Form, origin: F64, direction: F64) -> F64:
    half = np.array(form.half)[:, None]
    if not form.ellipsoid:
        faces = np.concatenate([(half - origin) / direction, (-half - origin) / direction])
        faces[faces < 0] = np.inf
        return faces.min(0)
    a = (direction**2 / half**2).sum(0)
    b = (2 * origin * direction / half**2).sum(0)
    c = (origin**2 / half**2).sum(0) - 1
    return (-b + np.sqrt(b**2 - 4 * a * c)) / (2 * a)


def change(drawn: Change, form: Form) -> F64:
    depth = ndimage.distance_transform_edt(np.pad(form.inside, 1))
    depth = depth[tuple(slice(1, -1) for _ in form.inside.shape)]
    slope = np.minimum(depth / min(drawn.width, depth.max()), 1)
    return np.asarray(slope * np.array(drawn.amount).reshape(-1, *[1] * form.inside.ndim))


def piece(sources: NDArray[np.float32], drawn: Piece, inside: NDArray[np.bool_]) -> F64:
    whole = sources[drawn.source]
    box = tuple(slice(c, c + n) for c, n in zip(drawn.corner, drawn.extent, strict=True))
    turned = [
        ndimage.affine_transform(channel[box], drawn.matrix, drawn.offset, inside.shape)
        for channel in whole
    ]
    axes = tuple(range(1, whole.ndim))
    return np.clip(np.stack(turned), whole.min(axes, keepdims=True), whole.max(axes, keepdims=True))


def blend(crop: F64, source: F64, inside: NDArray[np.bool_]) -> F64:
    """PIE-torch clears the faces of the mask that it is given."""
    from pietorch import blend_dst_numpy

    corner = np.zeros(inside.ndim, dtype=int)
    return np.asarray(blend_dst_numpy(crop, source, inside, corner, True, 0))


def label(after: F64, before: NDArray[np.float32], mask: NDArray[np.bool_], sigma: float) -> F64:
    from skimage.morphology import reconstruction

    y = 1 - np.exp(-((np.abs(after - before) * mask).mean(0) ** 2) / (2 * sigma**2))
    footprint = ndimage.generate_binary_structure(mask.ndim, 2)
    for box in ndimage.find_objects(ndimage.label(mask)[0]):
        closed = ndimage.grey_closing(y[box], footprint=footprint)
        seed = closed.copy()
        seed[(slice(1, -1),) * mask.ndim] = closed.max()
        y[box] = reconstruction(seed, closed, method="erosion", footprint=footprint)
    return np.asarray(y)
