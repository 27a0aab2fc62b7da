# SPDX-License-Identifier: Apache-2.0
"""TIFF through tifffile and imagecodecs: one page, 1, 8 or 16 bits or float, grey, RGB, palette."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from fundad_fast.data.headers import Header
from fundad_fast.data.items import ReadError

if TYPE_CHECKING:
    from tifffile import TiffPage

# What it says of damaged files is in the row's error; without any handler it would go to stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

# What tifffile and its codecs raise on damaged files; they check little before they compute.
_DECODER_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)

_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _SEPARATED, _YCBCR = 0, 1, 2, 3, 5, 6
_JPEG = 7


def tiff_header(file: BinaryIO, size: int, *, first_page: bool, frame: int | None = None) -> Header:
    """The header of an open TIFF of ``size`` bytes; raises ReadError for what is not read."""
    with _page(file, first_page, frame) as page:
        bits, photometric = int(page.bitspersample), int(page.photometric)
        colours = {_MINISWHITE: 1, _MINISBLACK: 1, _RGB: 3, _PALETTE: 3, _SEPARATED: 4, _YCBCR: 3}
        if photometric not in colours or (photometric == _YCBCR and page.compression != _JPEG):
            raise ReadError("unsupported", f"a TIFF in {_name(page.photometric)}: save it as RGB")
        if not _readable_samples(page):
            kind = {1: "unsigned", 2: "signed", 3: "float"}.get(int(page.sampleformat), "complex")
            raise ReadError(
                "unsupported",
                f"{bits}-bit {kind} samples: save them as 8 or 16 bits unsigned, or as float",
            )
        channels = colours[photometric]
        if page.samplesperpixel > (1 if photometric == _PALETTE else channels + 1):
            raise ReadError(
                "unsupported",
                f"{page.samplesperpixel} samples per pixel: save the image as grey or RGB",
            )
        if page.imagedepth > 1:
            raise ReadError("unsupported", "a TIFF volume: extract the slices")
        parts = list(zip(page.dataoffsets, page.databytecounts))
        if not parts or any(not count or start + count > size for start, count in parts):
            raise ReadError("unreadable", "the file ends early or lacks parts of the image")
        orientation = page.tags.valueof(274, default=1)
        return Header(
            "tiff",
            int(page.imagewidth),
            int(page.imagelength),
            channels,
            32 if page.sampleformat == 3 else (16 if bits == 16 else 8),
            orientation if orientation in range(1, 9) else 1,
        )


def tiff_pixels(file: BinaryIO, *, first_page: bool, frame: int | None = None) -> np.ndarray:
    """The pixels ``[h, w, c]`` of an open TIFF whose header has been checked."""
    with _page(file, first_page, frame) as page:
        pixels = page.asarray(maxworkers=1)
        if page.axes.startswith("S"):
            pixels = np.moveaxis(pixels, 0, -1)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        photometric = int(page.photometric)
        if photometric == _PALETTE:
            return _expand(pixels[:, :, 0], page)
        pixels = _without_alpha(_scaled(pixels, page), 1 if photometric < _RGB else 3)
        if photometric == _MINISWHITE:
            pixels = np.iinfo(pixels.dtype).max - pixels
    if pixels.dtype == np.float32 and not np.isfinite(pixels).all():
        bad = pixels.size - int(np.isfinite(pixels).sum())
        raise ReadError("non_finite", f"{bad} of {pixels.size} samples are NaN or infinite")
    return np.ascontiguousarray(pixels)


def count_pages(file: BinaryIO) -> int:
    """How many pages a TIFF has, thumbnails left out; 1 where it is damaged, so that one row says
    so."""
    try:
        with _pages(file) as (pages, _):
            return max(len(pages), 1)
    except ReadError:
        return 1


@contextmanager
def _pages(file: BinaryIO) -> Iterator[tuple[list[TiffPage], int]]:
    """The pages, and how many images they hold (of ImageJ's, one page may hold several)."""
    import tifffile

    file.seek(0)
    try:
        tif = tifffile.TiffFile(file)
        every = [page.aspage() for page in tif.pages]
        pages = [page for page in every if not page.is_reduced]  # without thumbnails
        frames = max(len(pages), (tif.imagej_metadata or {}).get("images", 1))
    except _DECODER_ERRORS as error:
        raise _damaged(error) from error
    with tif:
        yield pages, frames


@contextmanager
def _page(file: BinaryIO, first_page: bool, frame: int | None) -> Iterator[TiffPage]:
    with _pages(file) as (pages, frames):
        if not pages:
            raise ReadError("unreadable", "damaged TIFF: no image in it")
        if frame is None and frames > 1 and not first_page:
            raise ReadError(
                "unsupported",
                f"a TIFF of {frames} pages: score with --pages first or all, or fit with "
                "pages=first",
            )
        if (frame or 0) >= len(pages):
            raise ReadError("unreadable", f"there is no page {frame}: the TIFF has {len(pages)}")
        try:
            yield pages[frame or 0]
        except _DECODER_ERRORS as error:
            raise _damaged(error) from error


def _damaged(error: Exception) -> ReadError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ReadError("unreadable", f"damaged TIFF: {reason}")


def _readable_samples(page: TiffPage) -> bool:
    bits, kind = int(page.bitspersample), int(page.sampleformat)
    if kind == 3:
        return bits in (16, 32, 64) and int(page.photometric) in (_MINISBLACK, _RGB)
    if int(page.photometric) == _PALETTE:
        return kind == 1 and bits <= 8
    return kind == 1 and bits in (1, 8, 16)


def _scaled(pixels: np.ndarray, page: TiffPage) -> np.ndarray:
    if page.bitspersample == 1:
        return (pixels != 0).astype(np.uint8) * np.uint8(255)
    if page.sampleformat == 3:
        with np.errstate(over="ignore"):  # becomes infinite, and is refused as such
            return pixels.astype(np.float32)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _without_alpha(pixels: np.ndarray, channels: int) -> np.ndarray:
    if pixels.shape[2] == channels:
        return pixels
    opaque = 1.0 if pixels.dtype == np.float32 else np.iinfo(pixels.dtype).max
    if (pixels[:, :, channels] != opaque).any():
        raise ReadError(
            "unsupported", "an image with transparency: save it without an alpha channel"
        )
    return pixels[:, :, :channels]


def _expand(indices: np.ndarray, page: TiffPage) -> np.ndarray:
    if page.colormap is None:
        raise ReadError("unreadable", "damaged TIFF: its palette is missing")
    palette: np.ndarray = np.asarray(page.colormap)  # [3, colours], 16 bits by the standard
    if palette.max(initial=0) > 255:
        palette = palette >> 8  # whether made by × 257 or by × 256
    if indices.max(initial=0) >= palette.shape[1]:
        raise ReadError("unreadable", "damaged TIFF: pixels beyond its palette")
    return np.ascontiguousarray(palette.astype(np.uint8).T[indices])


def _name(photometric: object) -> str:
    return str(getattr(photometric, "name", photometric))
