# SPDX-License-Identifier: Apache-2.0
"""ReSynthDetect's consistent anomalies: patches of healthy images, mixed in within Perlin masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .consistent_settings import ConsistentSettings
from .perlin import perlin_noise
from .photometry import Patch, augment
from .tasks import Synthetic

_TRIES = 6
"""Further noises drawn for an image until one has a component of the wanted size."""

_LEAST_PIXELS = 4
"""The least component of a small image; of fewer pixels no shape is seen."""

_LEAST_CELL = 3
"""Pixels of a cell of the noise: of smaller ones, components are single pixels."""

_LEAST_SIDE = 16

Mask = NDArray[np.bool_]
Map = NDArray[np.float32]


@dataclass(frozen=True)
class Mixed(Synthetic):
    """Images with anomalies, and how much of the patch each pixel has taken.

    Attributes:
        fusion: ``[b, h, w]`` float32 in [0, 1], the weight of the patch; 0 outside the mask.
    """

    fusion: Tensor


def mix_in(
    image: Tensor,
    *,
    seeds: Sequence[int],
    sources: Tensor,
    mask: Tensor | None = None,
    source_masks: Tensor | None = None,
    settings: ConsistentSettings | None = None,
    area: int | None = None,
) -> Mixed:
    """Put consistent anomalies into healthy images.

    A patch of a healthy image is augmented, cropped, brought to the size of a component of
    thresholded Perlin noise, and mixed in by a fusion map: Ĩ = (1 - F) T + F S'. Labels are 1 where
    that changed something. Source: ReSynthDetect's poster for the steps, METHODS.md B.2 for what it
    leaves open, which is our design.

    Args:
        image: ``[b, c, h, w]`` float32 in [0, 1], one or three channels; never modified.
        seeds: of each image; what is made of an image depends on its seed and its inputs alone.
        sources: ``[n, c, h', w']``, healthy images; one is drawn for each image, and the image
            itself may be among them.
        mask: ``[b, h, w]`` bool, where anomalies may lie (the field of view).
        source_masks: ``[n, h', w']`` bool; what lies outside is in no patch.
        settings: the numbers.
        area: pixels that shares of area are of, where the images are tiles of larger ones.

    Returns:
        The images, binary labels, masks and fusion maps, on the same device. Some images stay as
        they are (``clean_share``), as do those whose noise has no component of the wanted size.

    Raises:
        ValueError: a shape, type or number of seeds that does not fit.
    """
    settings = settings or ConsistentSettings.model_validate({})
    _validate(image, seeds, sources, mask, source_masks)
    pixels = _rows(image).copy()
    pool = _rows(sources)
    on = None if mask is None else mask.cpu().numpy()
    pool_on = None if source_masks is None else source_masks.cpu().numpy()
    b, h, w = pixels.shape[:3]
    fusion = np.zeros((b, h, w), np.float32)
    pasted, label = np.zeros((b, h, w), bool), np.zeros((b, h, w), np.float32)
    for i, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        if rng.random() < settings.clean_share:
            continue
        room = np.ones((h, w), bool) if on is None else on[i]
        components = draw_components(rng, room, settings, area or h * w)
        number = int(rng.integers(len(pool)))
        source, source_on = pool[number], None if pool_on is None else pool_on[number]
        if settings.match_colours:
            source = _matched(source, source_on, pixels[i], room)
        weight = fusion_map(rng, components, settings)
        before = pixels[i].copy()
        _paste(rng, pixels[i], components, weight, source, source_on, settings)
        fusion[i], pasted[i] = weight, components > 0
        change = np.abs(pixels[i] - before).mean(-1)
        label[i] = pasted[i] & (change >= settings.least_change)
    made = [torch.from_numpy(a).to(image.device) for a in (label, pasted, fusion)]
    whole = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 1))).to(image.device)
    return Mixed(whole, made[0], made[1], made[2])


def draw_components(
    rng: np.random.Generator, room: Mask, settings: ConsistentSettings, area: int
) -> NDArray[np.int32]:
    """Numbered components ``[h, w]``, 0 for none, all of them inside ``room``, none touching.

    Args:
        rng: drawn from.
        room: ``[h, w]`` bool.
        settings: the noise, and which components are kept.
        area: pixels that the shares of area are of, and over which the noise's cells are counted.
    """
    import cv2

    result = np.zeros(room.shape, np.int32)
    share = min(1.0, room.size / area)
    if settings.masks == "perlin":
        for _ in range(_TRIES):
            cut = ((_noise(rng, room.shape, share, settings) > settings.threshold) & room).astype(
                np.uint8
            )
            count, numbered = cv2.connectedComponents(cut, connectivity=8)
            if count > 1:
                return np.asarray(numbered, np.int32)
        return result
    most = max(1.0, settings.components_max * share)
    wanted = round(most ** rng.random())
    found, taken = 0, np.zeros(room.shape, bool)
    for number in range(settings.noises + _TRIES):
        # Each noise gives its part of them; those that come after, what is still missing, if any.
        left = max(1, settings.noises - number)
        part = -(-(wanted - found) // left)
        if part <= 0 or (number >= settings.noises and found):
            break
        high = (_noise(rng, room.shape, share, settings) > settings.threshold).astype(np.uint8)
        count, numbered, stats, _ = cv2.connectedComponentsWithStats(high, connectivity=8)
        free = np.ones(count, bool)
        free[numbered[~room]] = False
        if found:
            free[numbered[taken]] = False
        areas = stats[1:, cv2.CC_STAT_AREA]
        least = max(_LEAST_PIXELS, settings.area_min * area)
        sized = (areas >= least) & (areas <= settings.area_max * area)
        fitting = np.flatnonzero(sized & free[1:]) + 1
        for old in rng.choice(fitting, min(part, len(fitting)), replace=False):
            found += 1
            box = _box(stats[old])
            result[box][numbered[box] == old] = found
        if found < wanted and number + 1 < settings.noises:
            taken = cv2.dilate((result > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return result


def _noise(
    rng: np.random.Generator, shape: tuple[int, ...], share: float, settings: ConsistentSettings
) -> Map:
    """Noise for a picture that is a share of an image, whose cells have the size of the image's."""
    low, high = settings.exponent_min, settings.exponent_max
    first = int(rng.integers(low, high + 1))
    apart = settings.exponents_apart
    second = int(rng.integers(max(low, first - apart), min(high, first + apart) + 1))
    turn = np.deg2rad(rng.uniform(-settings.turn, settings.turn))
    cells = [
        min(max(1, round(2**power * share**0.5)), max(1, side // _LEAST_CELL))
        for power, side in zip((first, second), shape, strict=True)
    ]
    return perlin_noise(rng, (shape[0], shape[1]), (cells[0], cells[1]), turn)


def fusion_map(
    rng: np.random.Generator, components: NDArray[np.int32], settings: ConsistentSettings
) -> Map:
    """Weight of the patch ``[h, w]`` in [0, 1], 0 outside the components.

    Distances are Euclidean, to the nearest pixel outside the component, so 1 at its rim.
    Source: METHODS.md B.2, step 3; ``continuous`` is our design.
    """
    import cv2

    weight = np.zeros(components.shape, np.float32)
    constant = rng.uniform(*settings.rim)
    for number, box in enumerate(boxes_of(components), start=1):
        inside = components[box] == number
        # A frame of zeros: what is cut by the image's edge has its rim there, too.
        framed = np.pad(inside.astype(np.uint8), 1)
        depth = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        if settings.fusion == "constant":
            part = np.full(depth.shape, constant, np.float32)
        elif settings.fusion == "continuous":
            part = np.minimum(1, depth / max(settings.edge, settings.ramp * float(depth.max())))
            part *= rng.uniform(*settings.strength)
        else:
            low, high = (0.7, 1.0) if settings.fusion == "selfmix_reference" else settings.rim
            rim = rng.uniform(low, high)
            least, most = float(depth[inside].min()), float(depth.max())
            inner = depth if most <= 1 else (depth - least) / max(most - least, 1e-6)
            part = (1 - rim) * np.clip(inner, 0, 1) + rim
        weight[box][inside] = part[inside]
    return weight


def boxes_of(components: NDArray[np.int32]) -> list[tuple[slice, slice]]:
    """The box of each component, by number from 1."""
    from scipy.ndimage import find_objects

    return list(find_objects(components))


def _paste(
    rng: np.random.Generator,
    image: Patch,
    components: NDArray[np.int32],
    weight: Map,
    source: Patch,
    source_on: Mask | None,
    settings: ConsistentSettings,
) -> None:
    """Mix patches of the source into ``image`` ``[h, w, c]``, in place."""
    boxes = boxes_of(components)
    if settings.patch == "mask" and boxes:
        rows, columns = zip(*boxes, strict=True)
        boxes = [_around(rows, columns)]
    for number, box in enumerate(boxes, start=1):
        height, width = (s.stop - s.start for s in box)
        patch = _cropped(rng, source, source_on, (height, width), settings)
        patch = augment(patch, rng, settings.augmentation, settings.augmentations)
        share = weight[box]
        if settings.patch == "component":
            share = share * (components[box] == number)
        target = image[box]
        mixed = target + share[..., None] * (patch - target)
        image[box] = np.where(share[..., None] > 0, np.clip(mixed, 0, 1), target)


def _matched(source: Patch, source_on: Mask | None, image: Patch, room: Mask) -> Patch:
    """The source with each channel scaled, so that its mean inside its mask is the image's."""
    own = source.reshape(-1, source.shape[2]) if source_on is None else source[source_on]
    wanted = image[room]
    if not len(own) or not len(wanted):
        return source
    gain = wanted.mean(0) / np.maximum(own.mean(0), 1e-3)
    return np.minimum(source * gain, 1).astype(np.float32)


def _cropped(
    rng: np.random.Generator,
    source: Patch,
    on: Mask | None,
    size: tuple[int, int],
    settings: ConsistentSettings,
) -> Patch:
    """A square of the source, brought to ``size``; what lies outside its mask has its mean."""
    import cv2

    height, width = source.shape[:2]
    side = round(rng.uniform(settings.crop_min, settings.crop_max) * min(height, width))
    side = min(max(side, 2), height, width)
    if on is None or not on.any():
        top, left = (int(rng.integers(n - side + 1)) for n in (height, width))
    else:  # a pixel of the object in its middle, as far as the edges allow
        inside = np.flatnonzero(on)
        y, x = divmod(int(inside[rng.integers(len(inside))]), width)
        top, left = (min(max(at - side // 2, 0), n - side) for at, n in ((y, height), (x, width)))
    crop = source[top : top + side, left : left + side]
    if on is not None:
        seen = on[top : top + side, left : left + side]
        if seen.any() and not seen.all():
            crop = np.where(seen[..., None], crop, crop[seen].mean(0))
    shrunk = size[0] * size[1] < side * side
    how = cv2.INTER_AREA if shrunk else cv2.INTER_LINEAR
    whole = cv2.resize(
        np.ascontiguousarray(crop, np.float32), (size[1], size[0]), interpolation=how
    )
    return np.asarray(whole, np.float32).reshape(*size, source.shape[2])


def _box(stats: NDArray) -> tuple[slice, slice]:
    left, top, width, height = (int(v) for v in stats[:4])
    return slice(top, top + height), slice(left, left + width)


def _around(rows: Sequence[slice], columns: Sequence[slice]) -> tuple[slice, slice]:
    return (
        slice(min(s.start for s in rows), max(s.stop for s in rows)),
        slice(min(s.start for s in columns), max(s.stop for s in columns)),
    )


def _rows(image: Tensor) -> NDArray[np.float32]:
    """``[b, c, h, w]`` as ``[b, h, w, c]`` on the CPU."""
    return np.ascontiguousarray(np.moveaxis(image.detach().cpu().numpy(), 1, -1))


def _validate(
    image: Tensor,
    seeds: Sequence[int],
    sources: Tensor,
    mask: Tensor | None,
    source_masks: Tensor | None,
) -> None:
    if image.dim() != 4 or image.dtype != torch.float32 or image.shape[1] not in (1, 3):
        raise ValueError(
            "mix_in: want image [b, c, h, w] float32 of one or three channels, got "
            f"{list(image.shape)} {image.dtype}"
        )
    if min(image.shape[2:]) < _LEAST_SIDE:
        raise ValueError(
            f"mix_in: want sides of at least {_LEAST_SIDE} pixels, got {list(image.shape)}"
        )
    if len(seeds) != len(image):
        raise ValueError(f"mix_in: want a seed for each of {len(image)} images, got {len(seeds)}")
    if (
        sources.dim() != 4
        or sources.dtype != torch.float32
        or sources.shape[1] != image.shape[1]
        or len(sources) == 0
    ):
        raise ValueError(
            f"mix_in: want sources [n, {image.shape[1]}, h, w] float32, at least one, got "
            f"{list(sources.shape)} {sources.dtype}"
        )
    for name, given, of in (("mask", mask, image), ("source_masks", source_masks, sources)):
        want = [len(of), *of.shape[2:]]
        if given is not None and (list(given.shape) != want or given.dtype != torch.bool):
            raise ValueError(
                f"mix_in: want {name} {want} bool, got {list(given.shape)} {given.dtype}"
            )
