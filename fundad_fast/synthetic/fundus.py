# SPDX-License-Identifier: Apache-2.0
"""Lesions of diabetic retinopathy, painted into healthy fundus photographs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import ops
from .outlines import Opacity, blob, cluster, smooth_noise, streaks

Kind = Literal[
    "microaneurysms", "haemorrhages", "flame_haemorrhages", "hard_exudates", "cotton_wool_spots"
]
KINDS: tuple[Kind, ...] = get_args(Kind)

# How many of each (groups of them for what comes in groups), drawn evenly where no number is asked.
_USUAL: dict[str, tuple[int, int]] = {
    "microaneurysms": (4, 12),
    "haemorrhages": (2, 7),
    "flame_haemorrhages": (1, 3),
    "hard_exudates": (1, 3),
    "cotton_wool_spots": (1, 3),
}
_NOTICED = 0.02
"""Mean change over the channels, of [0, 1], from which a pixel belongs to a lesion: 5 of 255."""

_TRACE = 0.01
"""Opacity from which a form is there at all."""


class Lesions(NamedTuple):
    """A photograph with lesions.

    Attributes:
        image: ``[3, h, w]`` float32 in [0, 1].
        mask: ``[h, w]`` bool, where the image changed noticeably.
        by_kind: the same for every kind that was painted; their union is ``mask``.
    """

    image: Tensor
    mask: Tensor
    by_kind: dict[str, Tensor]


def add_lesions(
    image: Tensor,
    fov: Tensor,
    seed: int | np.random.Generator,
    *,
    kinds: Sequence[Kind] | Mapping[Kind, int] = KINDS,
    size: float = 1.0,
    strength: float = 1.0,
) -> Lesions:
    """Paint lesions into a healthy fundus photograph, within its field of view.

    Dark lesions filter the light as the photograph's own vessels do, bright ones lean towards its
    own brightest tissue; sharp ones are put in place by :func:`fundad_fast.ops.poisson_blend`, so
    that no rim is left and vessels show through; soft ones (cotton-wool spots), whose gradients
    would lose against the texture, by their opacity. Sizes follow the lesions of IDRiD relative to
    the field of view. The optic disc is left alone.

    Args:
        image: ``[3, h, w]`` float32 in [0, 1], RGB.
        fov: ``[h, w]`` bool, the field of view.
        seed: the same seed gives the same lesions; a generator is drawn from.
        kinds: which kinds, each in a usual number, or how many of each: single lesions, except for
            exudates, which come in clusters.
        size: factor of all diameters.
        strength: factor of the contrast; 1 is well visible, 0.5 is subtle.

    Raises:
        ValueError: a shape, type or kind that does not fit, or no room in the field of view.
    """
    _validate(image, fov, kinds, size, strength)
    rng = np.random.default_rng(seed)
    if isinstance(kinds, Mapping):
        numbers = dict(kinds)
    else:
        numbers = {kind: int(rng.integers(*_USUAL[kind], endpoint=True)) for kind in kinds}
    eye = _Eye(image, fov)
    now = image.clone()
    by_kind = {}
    for kind, number in numbers.items():
        mask = torch.zeros_like(fov)
        for _ in range(number):
            mask |= _paint(now, eye, kind, rng, size, strength)
        by_kind[str(kind)] = mask
    mask = torch.zeros_like(fov)
    for one in by_kind.values():
        mask |= one
    return Lesions(now, mask, by_kind)


def _validate(
    image: Tensor,
    fov: Tensor,
    kinds: Sequence[Kind] | Mapping[Kind, int],
    size: float,
    strength: float,
) -> None:
    if image.dim() != 3 or image.shape[0] != 3 or image.dtype != torch.float32:
        raise ValueError(
            f"add_lesions: want image [3, h, w] float32, got {list(image.shape)} {image.dtype}"
        )
    if fov.shape != image.shape[1:] or fov.dtype != torch.bool:
        raise ValueError(
            f"add_lesions: want fov {list(image.shape[1:])} bool, got {list(fov.shape)} {fov.dtype}"
        )
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"add_lesions: want kinds of {', '.join(KINDS)}, got {kind!r}")
    if not (size > 0 and strength > 0):
        raise ValueError(f"add_lesions: want size and strength > 0, got {size} and {strength}")
    if int(fov.sum()) < 1000:
        raise ValueError(
            f"add_lesions: the field of view has {int(fov.sum())} pixels, too few for lesions; "
            "give a larger photograph"
        )


class _Eye:
    """What is looked up in the photograph once: where lesions may lie and what colours it has."""

    def __init__(self, image: Tensor, fov: Tensor) -> None:
        import cv2

        pixels = image.permute(1, 2, 0).contiguous().numpy()
        inside = fov.numpy().astype(np.float32)
        self.radius = math.sqrt(float(inside.sum()) / math.pi)
        self.fov = fov
        ground = _within(pixels, inside, 0.06 * self.radius)
        rim = cv2.GaussianBlur(inside, (0, 0), 0.03 * self.radius, borderType=cv2.BORDER_CONSTANT)
        core = rim > 0.98
        if not core.any():
            core = inside > 0
        # The blood of this eye, seen by this camera: the darkest of what lies on the ground.
        share = pixels / np.maximum(ground, 1e-3)
        darkest = core & (share[..., 1] <= np.quantile(share[core][:, 1], 0.01))
        self.blood = np.clip(share[darkest].mean(0), 0.3, 0.95)
        bright = core & (pixels.mean(-1) >= np.quantile(pixels[core].mean(-1), 0.997))
        least = 1.25 * np.median(pixels[core], axis=0)  # also where no disc is in sight
        self.lightest = np.clip(np.maximum(pixels[bright].mean(0), least), 0, 1)
        light = ground.mean(-1)
        disc = light > np.quantile(light[core], 0.97)
        reach = int(0.05 * self.radius) * 2 + 1
        disc = cv2.dilate(disc.astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0
        self.room = np.flatnonzero(core & ~disc)
        if len(self.room) == 0:
            raise ValueError("add_lesions: the field of view has no room for lesions")
        self.fibres = _direction(ground[..., 1], pixels[..., 1], 0.08 * self.radius)


def _within(pixels: NDArray, inside: NDArray, sigma: float) -> NDArray[np.float32]:
    """The local mean of the pixels of the field of view."""
    import cv2

    weight = cv2.GaussianBlur(inside, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    total = cv2.GaussianBlur(
        pixels * inside[..., None], (0, 0), sigma, borderType=cv2.BORDER_CONSTANT
    )
    return np.asarray(total / np.maximum(weight, 1e-3)[..., None], np.float32)


def _direction(ground: NDArray, green: NDArray, sigma: float) -> NDArray[np.float32]:
    """The direction in which vessels, and with them nerve fibres, run: a structure tensor."""
    import cv2

    detail = np.asarray(green - ground, np.float32)
    dx, dy = cv2.Sobel(detail, cv2.CV_32F, 1, 0), cv2.Sobel(detail, cv2.CV_32F, 0, 1)
    xx, xy, yy = (cv2.GaussianBlur(t, (0, 0), sigma) for t in (dx * dx, dx * dy, dy * dy))
    return np.asarray(0.5 * np.arctan2(2 * xy, xx - yy) + math.pi / 2, np.float32)


def _paint(
    image: Tensor, eye: _Eye, kind: str, rng: np.random.Generator, size: float, strength: float
) -> Tensor:
    """Put one lesion (or cluster) into ``image``, in place, and return its mask."""
    height, width = eye.fov.shape
    mask = torch.zeros_like(eye.fov)
    for _ in range(8):  # a dark dot on a dark vessel, or a place at the rim, may show nothing
        y, x = divmod(int(rng.choice(eye.room)), width)
        opacity = _form(kind, rng, eye, size, float(eye.fibres[y, x]))
        rows, columns, part = _place(opacity, y, x, height, width)
        inside = eye.fov[rows, columns]
        before = image[:, rows, columns].clone()
        after = _blended(before, kind, part * inside.numpy(), eye, rng, strength)
        seen = (after - before).abs().mean(0) > _NOTICED
        if int(seen.sum()) >= 3:
            image[:, rows, columns] = after
            mask[rows, columns] = _closed(seen)
            break
    return mask


def _form(kind: str, rng: np.random.Generator, eye: _Eye, size: float, fibre: float) -> Opacity:
    def between(low: float, high: float, least: float) -> float:
        drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
        return max(least, size * eye.radius * drawn)

    sharp = max(1.6, 0.005 * eye.radius)  # no edge is sharper than the optics of the camera
    if kind == "microaneurysms":
        return blob(rng, between(0.006, 0.011, 1.0), sharp, roughness=0.1)
    if kind == "haemorrhages":
        radius = between(0.012, 0.045, 1.5)
        return blob(
            rng,
            radius,
            sharp + radius * rng.uniform(0.15, 0.6),
            roughness=rng.uniform(0.1, 0.35),
            elongation=rng.uniform(1, 1.7),
            angle=rng.uniform(0, math.pi),
        )
    if kind == "flame_haemorrhages":
        length, slim = between(0.07, 0.18, 8.0), rng.uniform(0.22, 0.4)
        return streaks(rng, length, length * slim, sharp, fibre + rng.normal(0, 0.15))
    if kind == "hard_exudates":
        return cluster(
            rng,
            int(rng.integers(12, 60)),
            between(0.05, 0.16, 4.0),
            between(0.006, 0.010, 1.0),
            sharp,
            ring=float(rng.choice([0.0, 0.8])),
        )
    radius = between(0.03, 0.065, 3.0)
    return blob(
        rng,
        radius,
        sharp + radius,
        roughness=0.2,
        elongation=rng.uniform(1, 1.8),
        angle=rng.uniform(0, math.pi),
    )


def _place(
    opacity: Opacity, y: int, x: int, height: int, width: int
) -> tuple[slice, slice, Opacity]:
    """The window of the image that a form covers, with a margin, and the form in that window."""
    top, left = y - opacity.shape[0] // 2, x - opacity.shape[1] // 2
    used_y, used_x = (np.flatnonzero((opacity > _TRACE).any(axis)) for axis in (1, 0))
    margin = 4  # the faces of the box and what lies next to them must be free of the form
    box = []
    for used, start, limit in ((used_y, top, height), (used_x, left, width)):
        low, high = int(used[0]) - margin, int(used[-1]) + 1 + margin
        box.append(slice(max(0, start + low), min(limit, start + high)))
    rows, columns = box
    wide = np.pad(opacity, margin)
    y0, x0 = rows.start - top + margin, columns.start - left + margin
    part = wide[y0 : y0 + rows.stop - rows.start, x0 : x0 + columns.stop - columns.start]
    return rows, columns, part


def _blended(
    before: Tensor,
    kind: str,
    opacity: Opacity,
    eye: _Eye,
    rng: np.random.Generator,
    strength: float,
) -> Tensor:
    grain = 1 + 0.06 * smooth_noise(rng, opacity.shape, 2.5)
    cover = torch.from_numpy(np.clip(opacity * grain, 0, 1))
    if kind in ("hard_exudates", "cotton_wool_spots"):
        hard = kind == "hard_exudates"
        tint = np.array([1.0, 0.93, 0.62] if hard else [0.97, 0.88, 0.80])
        colour = torch.from_numpy(np.asarray(eye.lightest * tint, np.float32))[:, None, None]
        dense = strength * (rng.uniform(0.65, 0.95) if hard else rng.uniform(0.35, 0.6))
        painted = before + (cover * min(dense, 1)) * (colour - before).clamp_min(0)
    else:
        deep = strength * rng.uniform(0.9, 1.5)
        passed = torch.from_numpy(np.asarray(eye.blood**deep, np.float32))[:, None, None]
        painted = before * (1 - cover * (1 - passed))
    if kind == "cotton_wool_spots":
        return painted.clamp(0, 1)
    wanted = torch.from_numpy(_widened(opacity > _TRACE))
    both = torch.stack([before, painted]).permute(1, 0, 2, 3).flatten(1)
    low, high = both.amin(1)[:, None, None], both.amax(1)[:, None, None]
    blended = ops.poisson_blend(before, painted, wanted).clamp(low, high)
    # Mixed gradients are no gradient of any image where a form crosses a vessel; what is left over
    # would spread over the box as a faint halo (up to 0.07). So it ends with the form, and blood
    # never brightens, nor does an exudate darken.
    blended = before + torch.from_numpy(np.minimum(opacity / 0.1, 1)) * (blended - before)
    return torch.where(painted > before, blended.maximum(before), blended.minimum(before))


def _widened(form: NDArray[np.bool_]) -> NDArray[np.bool_]:
    import cv2

    return cv2.dilate(form.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


def _closed(seen: Tensor) -> Tensor:
    """Without the pinholes that texture leaves where it crosses the lesion's own brightness."""
    import cv2

    padded = np.pad(seen.numpy().astype(np.uint8), 2)
    whole = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    return torch.from_numpy(whole[2:-2, 2:-2] > 0)
