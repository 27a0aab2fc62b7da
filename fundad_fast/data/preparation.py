# SPDX-License-Identifier: Apache-2.0
"""From pixels of any size and depth to the square float image, mask and affine of a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fundad_fast.data.fundus import Fov, find_fov
from fundad_fast.data.items import ReadError
from fundad_fast.data.resizing import resize, resize_uint8

if TYPE_CHECKING:
    from fundad_fast.data.spec import InputSpec

MIN_SIDE = 16
"""Images with a shorter side, in pixels, are refused as too small."""

_BIT_DEPTH = {"uint8": 8, "uint16": 16, "float32": 32}
_WHITE = {8: 255.0, 16: 65535.0, 32: 1.0}
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG's own Y


@dataclass(frozen=True)
class Prepared:
    """One image, ready for a batch.

    Attributes:
        image: ``[c, s, s]`` float32 in [0, 1]; of a volume ``[1, d, h, w]``.
        mask: ``[s, s]`` bool, true inside the eroded field of view; ``None`` for ``fov="none"``. Of
            a volume ``[d, h, w]``, true inside the object.
        affine: ``[2, 3]`` float64, prepared pixel indices (x, y, 1) to original pixel indices
            (X, Y); the centre of a pixel has an integer index. Of a volume ``[3, 4]``, grid indices
            (x, y, z, 1) to millimetres.
        height, width: of the original in pixels; of a volume, of its axial slices.
        fov: field of view in original pixels; its status is ``none`` for ``fov="none"``.
    """

    image: Tensor
    mask: Tensor | None
    affine: np.ndarray
    height: int
    width: int
    fov: Fov


@dataclass(frozen=True)
class _Window:
    """The part of the original that is resized; it may reach beyond the frame."""

    left: int
    top: int
    width: int
    height: int

    def affine(self, size: int) -> np.ndarray:
        kx, ky = self.width / size, self.height / size
        return np.array(
            [[kx, 0.0, 0.5 * kx - 0.5 + self.left], [0.0, ky, 0.5 * ky - 0.5 + self.top]]
        )


def prepare(
    pixels: np.ndarray,
    spec: InputSpec,
    *,
    any_depth: bool = False,
    out: Tensor | None = None,
) -> Prepared:
    """Check an image against the specification, find its field of view, and resize it.

    8-bit images are resized in 8 bits (within one grey level of :func:`fundad_fast.data.resize`),
    others in float32.

    Args:
        pixels: ``[h, w, c]`` uint8, uint16 or float32, c = 1 or 3. Not kept.
        spec: the model's input specification.
        any_depth: accept any bit depth, scaled to [0, 1], whatever ``spec.mixed_inputs`` says.
        out: ``[c, s, s]`` float32 to write the image into, such as a part of a batch.

    Raises:
        ReadError: ``too_small`` (shorter side under 16 pixels), ``unsupported`` (other
            channels or bit depth than the model's, samples beyond the white level),
            ``non_finite``, ``no_fov``.
    """
    height, width, _ = pixels.shape
    if min(height, width) < MIN_SIDE:
        raise ReadError(
            "too_small", f"{width} x {height} pixels; the shorter side must have {MIN_SIDE}"
        )
    depth = check_depth(pixels, spec, any_depth)
    convert = spec.mixed_inputs == "convert"
    if pixels.shape[2] != spec.channel_count and not convert:
        raise ReadError(
            "unsupported",
            f"{_channel_name(pixels.shape[2])} image, but the model learned from "
            f"{_channel_name(spec.channel_count)} images: convert the image, or fit with "
            "mixed_inputs=convert",
        )
    white = white_of(depth, spec)
    _check_samples(pixels, white, depth)

    fov = Fov.missing(height, width)
    window = _Window(0, 0, width, height)
    if spec.fov == "auto":
        fov = find_fov(pixels)
        if fov.status == "none":
            raise ReadError(
                "no_fov",
                "no circular field of view found: check that this is a fundus photograph, or fit "
                "with fov=none for other images",
            )
        if spec.fov_crop:
            window = _square(fov)
    image = torch.empty(spec.shape) if out is None else out
    if spec.intensity == "equalise":
        pixels, white = equalised(pixels), 1.0
    _resize_into(image, _cut(pixels, window), white)
    affine = window.affine(spec.image_size)
    mask = None
    if spec.fov == "auto":
        mask = torch.from_numpy(
            fov.contains(affine, spec.image_size, erode=spec.fov_erode, padded=spec.fov_crop)
        )
        if not mask.any():
            raise ReadError("no_fov", "nothing is left of the field of view after its erosion")
    return Prepared(image, mask, affine, height, width, fov)


def check_depth(pixels: np.ndarray, spec: InputSpec, any_depth: bool) -> int:
    """Bits per sample; raises ReadError (``unsupported``) where the model wants others."""
    depth = _BIT_DEPTH[pixels.dtype.name]
    if depth != spec.bit_depth and not (spec.mixed_inputs == "convert" or any_depth):
        raise ReadError(
            "unsupported",
            f"{_depth_name(depth)} image, but the model learned from {_depth_name(spec.bit_depth)} "
            "images: convert the image, or fit with mixed_inputs=convert",
        )
    return depth


def white_of(depth: int, spec: InputSpec) -> float:
    """The sample that becomes 1."""
    return spec.white_level if spec.white_level and depth == spec.bit_depth else _WHITE[depth]


def equalised(pixels: np.ndarray) -> np.ndarray:
    """Histogram equalisation with 256 bins, ``[h, w, 1]`` to float32 ``[h, w, 1]`` in [0, 1].

    Grey pictures saved as RGB, all channels alike, are taken as grey.

    A sample becomes the share of samples not above it, interpolated between the bins; the darkest
    sample is brought to 0, the brightest to 1. Source: the chest X-rays of "Many tasks make light
    work" (C.1.2), in whose pipeline the result is then scaled to [-1, 1].

    Raises:
        ReadError: ``unsupported`` for an image that is not grey, or has one value only.
    """
    if not (pixels == pixels[:, :, :1]).all():
        raise ReadError("unsupported", "a colour image, but the model equalises grey ones")
    samples = pixels[:, :, :1].astype(np.float32)
    low, high = float(samples.min()), float(samples.max())
    if not high > low:
        raise ReadError("unsupported", "one value everywhere: there is nothing to equalise")
    count, edges = np.histogram(samples, bins=256, range=(low, high))
    share = np.cumsum(count) / samples.size
    found = np.interp(samples, (edges[:-1] + edges[1:]) / 2, share)
    least = float(found.min())
    return ((found - least) / (float(found.max()) - least)).astype(np.float32)


def _channel_name(channels: int) -> str:
    return "grey" if channels == 1 else "RGB"


def _depth_name(depth: int) -> str:
    return "float" if depth == 32 else f"{depth}-bit"


def _check_samples(pixels: np.ndarray, white: float, depth: int) -> None:
    if depth < 32 and white >= np.iinfo(pixels.dtype).max:
        return
    low, high = float(pixels.min()), float(pixels.max())  # NaN passes through both
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int(pixels.size - np.isfinite(pixels).sum())
        raise ReadError("non_finite", f"{count} of {pixels.size} samples are NaN or infinite")
    if low < 0 or high > white:
        raise ReadError(
            "unsupported",
            f"samples from {low:g} to {high:g}, but 0 to {white:g} is expected: rescale the "
            "image, or fit with white_level set to the value of white",
        )


def _square(fov: Fov) -> _Window:
    side = round(2 * fov.r + 1)
    return _Window(round(fov.cx - fov.r), round(fov.cy - fov.r), side, side)


def _cut(pixels: np.ndarray, window: _Window) -> np.ndarray:
    """The window's pixels; black where it reaches beyond the frame."""
    height, width, channels = pixels.shape
    if (window.left, window.top, window.width, window.height) == (0, 0, width, height):
        return np.ascontiguousarray(pixels)
    x0, y0 = max(0, window.left), max(0, window.top)
    x1, y1 = min(width, window.left + window.width), min(height, window.top + window.height)
    out = np.zeros((window.height, window.width, channels), pixels.dtype)
    out[y0 - window.top : y1 - window.top, x0 - window.left : x1 - window.left] = pixels[
        y0:y1, x0:x1
    ]
    return out


def _resize_into(out: Tensor, pixels: np.ndarray, white: float) -> None:
    channels, size, _ = out.shape
    if pixels.dtype == np.uint8:
        small = resize_uint8(pixels, size)
        if small.shape[0] == channels:
            torch.div(small, white, out=out)  # the common case in one pass
            return
        image = small / white
    else:
        samples = pixels.astype(np.float32).transpose(2, 0, 1)
        image = resize(torch.from_numpy(samples / np.float32(white)), size)
    if image.shape[0] > channels:
        image = (image * torch.tensor(_LUMINANCE).reshape(3, 1, 1)).sum(0)
    # Rounding in the interpolation can leave [0, 1] by one unit in the last place.
    out.copy_(image).clamp_(0, 1)
