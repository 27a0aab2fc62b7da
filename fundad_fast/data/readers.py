# SPDX-License-Identifier: Apache-2.0
"""From a file to pixels: JPEG (libjpeg-turbo), PNG, BMP, WebP (OpenCV), TIFF (tifffile), DICOM,
NIfTI.

The decoders release the interpreter lock, and every function may be called from many threads.
EXIF orientation is applied, as viewers do, so that "original pixels" are those a person sees.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import BinaryIO, NamedTuple

import numpy as np

from fundad_fast.data.dicom import DicomImage, LastDicom, one_frame
from fundad_fast.data.dicom_pixels import dicom_pixels
from fundad_fast.data.frames import count_frames
from fundad_fast.data.gpu_jpeg import JpegDecoder
from fundad_fast.data.greyscale import Window
from fundad_fast.data.headers import Header, kind_of, parse_header
from fundad_fast.data.items import Identifiers, Item, ReadError
from fundad_fast.data.npz import npz_pixels, of_npz
from fundad_fast.data.opening import Source, frame_of, open_source, version_of

_BYTES_PER_PIXEL = 32
"""More than any format needs; a larger file is no honest image of its size."""

_MAX_KEPT_BUFFER = 64 * 2**20


class PixelBuffer:
    """Memory that one thread decodes JPEGs into, again and again.

    Fresh arrays of some MB cost page faults, which threads wait on together: on two cores,
    2992 x 2000 JPEGs went from 143 to 198 a second with buffers that are kept.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def get(self, size: int) -> np.ndarray:
        """At least ``size`` bytes; what an earlier call gave is overwritten."""
        if size > _MAX_KEPT_BUFFER:
            return np.empty(size, np.uint8)
        if size > self._memory.size:
            self._memory = np.empty(size, np.uint8)
        return self._memory


class Picture(NamedTuple):
    """Pixels, and what the file says of its origin.

    Attributes:
        pixels: as :func:`read_image` returns them.
        identifiers: of a DICOM file.
    """

    pixels: np.ndarray
    identifiers: Identifiers | None = None


def read_image(
    source: Source,
    *,
    frame: int | None = None,
    max_megapixels: float = 200.0,
    first_page: bool = False,
    buffer: PixelBuffer | None = None,
    window: Window | None = None,
) -> np.ndarray:
    """Read the pixels of an image file, its format told by its content, not by its name.

    Args:
        source: a JPEG, PNG, TIFF, BMP, WebP, DICOM or NIfTI file: a path, an item, the file's
            bytes, or an open seekable file.
        frame: the page, frame or slice to read, from 0; by default an item's own.
        max_megapixels: a larger image is refused from its header, before it is decoded.
        first_page: read the first page or frame of several, which are refused otherwise.
        buffer: memory to decode into; the result is then valid until the buffer's next use.
        window: of grey DICOM, in place of the file's own.

    Returns:
        ``[h, w, c]`` with c = 1 (grey) or 3 (RGB), uint8, uint16 or float32, contiguous, upright.
        Palettes are expanded, fully opaque alpha is dropped, bilevel images become 0 and 255.
        Grey values of DICOM are rescaled and windowed, see :mod:`fundad_fast.data.greyscale`.

    Raises:
        ReadError: ``unreadable`` (missing, empty, damaged, cut short), ``unsupported`` (CMYK,
            transparency, several pages, a format or sample type that is not read), ``too_large``,
            ``non_finite``.
    """
    return read_picture(
        source,
        frame=frame,
        max_megapixels=max_megapixels,
        first_page=first_page,
        buffer=buffer,
        window=window,
    ).pixels


def read_picture(
    source: Source,
    *,
    frame: int | None = None,
    max_megapixels: float = 200.0,
    first_page: bool = False,
    buffer: PixelBuffer | None = None,
    window: Window | None = None,
    labels: bool = False,
    jpeg: JpegDecoder | None = None,
) -> Picture:
    """As :func:`read_image`, with what a DICOM file says of itself; a DICOM segmentation is
    ``unsupported`` unless ``labels`` are wanted. JPEG files that ``jpeg`` cannot decode are decoded
    by libjpeg-turbo, which says why they cannot be."""
    if of_npz(source):
        return Picture(npz_pixels(source, max_megapixels))
    frame = frame_of(source, frame)
    max_bytes = max_megapixels * 1e6 * _BYTES_PER_PIXEL
    with open_source(source, max_bytes=max_bytes) as (file, size):
        try:
            kind = kind_of(file)
            key = version_of(source) if isinstance(source, Item) else None
            if kind == "nifti":
                return _read_nifti(file, key, frame, max_megapixels, first_page)
            if kind == "dicom":
                image = _last_dicom.open(file, size, key)
                frame = _checked_frame(image, frame, max_megapixels, first_page, labels)
                memory = None if buffer is None else buffer.get
                pixels = dicom_pixels(image, file, frame, memory, window)
                return Picture(pixels, image.identifiers)
            header = parse_header(file, size, first_page=first_page, frame=frame)
            _check_size(header, max_megapixels)
            if header.format != "tiff" or frame is None:  # other pages may be many
                _check_bytes(size, max_megapixels)
            if header.channels == 4:
                raise ReadError(
                    "unsupported", "a CMYK image, made for print: save it as RGB (sRGB) first"
                )
            pixels = _decode(file, header, first_page, frame, buffer, jpeg)
        except MemoryError as error:
            raise ReadError("failed", "not enough memory to decode this image") from error
    if pixels.shape[:2] != (header.height, header.width):
        raise ReadError(
            "unreadable",
            f"the header declares {header.width} x {header.height} pixels, the data holds "
            f"{pixels.shape[1]} x {pixels.shape[0]}",
        )
    return Picture(_upright(pixels, header.orientation))


def _read_nifti(
    file: BinaryIO, key: object, frame: int | None, max_megapixels: float, first: bool
) -> Picture:
    from fundad_fast.data.nifti import nifti_pixels, one_slice, open_nifti

    volume = open_nifti(file)
    frame = one_slice(volume, first, frame)
    _check_size(volume.header, max_megapixels)
    return Picture(nifti_pixels(volume, file, frame, key))


_last_dicom = LastDicom()


def _checked_frame(
    image: DicomImage, frame: int | None, max_megapixels: float, first: bool, labels: bool
) -> int:
    """Which frame of a DICOM file is meant, where it may be read."""
    try:
        if image.labels and not labels:
            raise ReadError("unsupported", "a DICOM segmentation: labels, no image")
        frame = one_frame(image, first, frame)
        _check_size(image.header, max_megapixels)
    except ReadError as error:
        error.identifiers = image.identifiers
        raise
    return frame


def read_mask(
    path: Source,
    *,
    shape: tuple[int, int] | None = None,
    frame: int | None = None,
    max_megapixels: float = 200.0,
) -> np.ndarray:
    """Read a mask: true where any channel is above 0 (of a JPEG, which rings: 128 or more).

    Args:
        path: an image file, see :func:`read_image`; of a TIFF the first page.
        shape: (height, width) of the image that the mask belongs to. The mask may be of another
            size, but must be of the same aspect up to one pixel of rounding.
        frame: of the image; of a mask with several frames the same one is read.
        max_megapixels: as for :func:`read_image`.

    Returns:
        ``[h, w]`` bool at the mask's own size.

    Raises:
        ReadError: as :func:`read_image`, and ``unsupported`` for another aspect.
    """
    source = path
    if frame is not None and isinstance(path, str | os.PathLike):
        whole = Item("", os.fspath(path))
        if count_frames(whole) > 1:  # else one mask for all frames of the image
            source = replace(whole, frame=frame)
    pixels = read_picture(
        source, max_megapixels=max_megapixels, first_page=True, labels=True
    ).pixels
    with open_source(path) as (file, _):
        jpeg = file.read(2) == b"\xff\xd8"
    mask: np.ndarray = np.any(pixels > (127 if jpeg else 0), axis=2)
    if shape is not None and not _same_aspect(mask.shape, shape):
        raise ReadError(
            "unsupported",
            f"the mask has {mask.shape[1]} x {mask.shape[0]} pixels, the image {shape[1]} x "
            f"{shape[0]}: another aspect, so they cannot be laid on each other",
        )
    return mask


def _same_aspect(a: tuple[int, ...], b: tuple[int, int]) -> bool:
    """Whether ``a`` is ``b`` scaled, each side rounded by at most one pixel of the smaller."""
    (h, w), (height, width) = (a[:2], b) if a[0] <= b[0] else (b, a[:2])
    scale = height / h
    return abs(w - width / scale) <= 1 or abs(h - height * w / width) <= 1


def _check_size(header: Header, max_megapixels: float) -> None:
    megapixels = header.width * header.height / 1e6
    if megapixels > max_megapixels:
        raise ReadError(
            "too_large",
            f"{header.width} x {header.height} = {megapixels:.1f} megapixels; the limit is "
            f"{max_megapixels:g} (--max-megapixels)",
        )
    if header.width < 1 or header.height < 1:
        raise ReadError("unreadable", f"the header declares {header.width} x {header.height}")


def _check_bytes(size: int, max_megapixels: float) -> None:
    if size > max_megapixels * 1e6 * _BYTES_PER_PIXEL:
        raise ReadError(
            "too_large",
            f"a file of {math.ceil(size / 1e6)} MB; the limit for {max_megapixels:g} megapixels "
            f"(--max-megapixels) is {max_megapixels * _BYTES_PER_PIXEL:.0f} MB",
        )


def _decode(
    file: BinaryIO,
    header: Header,
    first_page: bool,
    frame: int | None,
    buffer: PixelBuffer | None,
    jpeg: JpegDecoder | None,
) -> np.ndarray:
    if header.format == "tiff":
        from fundad_fast.data.tiff import tiff_pixels

        return tiff_pixels(file, first_page=first_page, frame=frame)
    file.seek(0)
    data = file.read()
    if header.format == "jpeg":
        if jpeg is not None:
            pixels = jpeg(data, header.channels)
            shape = header.height, header.width, header.channels
            if pixels is not None and pixels.shape == shape:
                return pixels
        return _decode_jpeg(data, header, buffer)
    return _decode_opencv(data, header)


def _decode_jpeg(data: bytes, header: Header, buffer: PixelBuffer | None) -> np.ndarray:
    import simplejpeg

    space = "GRAY" if header.channels == 1 else "RGB"
    memory = None
    if buffer is not None:
        memory = buffer.get(header.width * header.height * header.channels)
    try:
        # Strict: what libjpeg only warns of (a file cut short, lost data) is grey or torn pixels.
        return simplejpeg.decode_jpeg(data, space, buffer=memory, strict=True)
    except ValueError as error:
        raise ReadError("unreadable", f"damaged JPEG: {_one_line(error)}") from error


def _decode_opencv(data: bytes, header: Header) -> np.ndarray:
    import cv2

    # A BMP's fourth channel is padding far more often than transparency.
    flags = cv2.IMREAD_UNCHANGED if header.format != "bmp" else cv2.IMREAD_ANYCOLOR
    flags |= cv2.IMREAD_IGNORE_ORIENTATION if header.format == "bmp" else 0
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ReadError("unreadable", f"damaged {header.format}: {_one_line(error)}") from error
    if pixels is None:
        raise ReadError("unreadable", f"damaged {header.format}: its data cannot be decoded")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.shape[2] == 4:
        if not np.all(pixels[:, :, 3] == (65535 if pixels.dtype == np.uint16 else 255)):
            raise ReadError(
                "unsupported", "an image with transparency: save it without an alpha channel"
            )
        pixels = pixels[:, :, :3]
    if header.channels == 1:
        return np.ascontiguousarray(pixels[:, :, :1])
    return np.ascontiguousarray(pixels[:, :, ::-1])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation: 5 to 8 swap the axes, and each then flips as its row below."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
