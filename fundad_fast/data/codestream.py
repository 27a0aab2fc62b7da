# SPDX-License-Identifier: Apache-2.0
"""Decodes one compressed frame, as DICOM encapsulates it, by its own markers.

Size and components are taken from the codestream before it is decoded, so that a frame which is
larger than the header of its file says costs no memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fundad_fast.data.items import ReadError

Memory = Callable[[int], np.ndarray]

JPEG, JPEG_LOSSLESS, JPEG_LS = "JPEG", "lossless JPEG", "JPEG-LS"
JPEG_2000, RLE = "JPEG 2000", "RLE"

_PADDING = 16
"""Bytes at the end of a frame that may follow the marker of its end."""

_ADOBE_RGB = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"
"""A marker that says: no colour transform. libjpeg would guess that there is one."""


@dataclass(frozen=True)
class Codestream:
    """What the markers of a JPEG, JPEG-LS or JPEG 2000 stream say.

    Attributes:
        width, height: in pixels.
        components: samples per pixel.
        precision: bits per sample.
        decided: whether the stream itself says how its colours are stored, so that a decoder
            gives RGB.
    """

    width: int
    height: int
    components: int
    precision: int
    decided: bool = False


def parse_codestream(kind: str, data: bytes) -> Codestream:
    """The markers of a frame; raises ReadError ``unreadable`` where they are damaged."""
    try:
        return _jpeg2000(data) if kind == JPEG_2000 else _jpeg(data)
    except (struct.error, IndexError) as error:
        raise ReadError("unreadable", f"damaged {kind} frame: it ends in its header") from error


def _jpeg(data: bytes) -> Codestream:
    if data[:2] != b"\xff\xd8":
        raise ReadError("unreadable", "damaged frame: no JPEG stream starts in it")
    position, decided = 2, False
    while True:
        prefix, marker = data[position], data[position + 1]
        if prefix != 0xFF:
            raise ReadError("unreadable", "damaged JPEG frame: a marker is missing in its header")
        if marker == 0xFF:
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
            continue
        if marker in (0xD9, 0xDA):
            raise ReadError("unreadable", "damaged JPEG frame: the frame header is missing")
        (length,) = struct.unpack_from(">H", data, position + 2)
        body = position + 4
        if (marker == 0xE0 and data[body : body + 4] == b"JFIF") or (
            marker == 0xEE and data[body : body + 5] == b"Adobe" and length >= 14
        ):
            decided = True
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            bits, height, width, n = struct.unpack_from(">BHHB", data, body)
            names = bytes(data[body + 6 + 3 * i] for i in range(n))
            # As libjpeg decides, but for its last guess, which is the caller's: DICOM may know.
            return Codestream(width, height, n, bits, decided or names == b"RGB")
        position += 2 + max(length, 2)


def _jpeg2000(data: bytes) -> Codestream:
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # some writers leave the JP2 boxes around it
    if start < 0:
        raise ReadError("unreadable", "damaged frame: no JPEG 2000 stream starts in it")
    x1, y1, x0, y0 = struct.unpack_from(">4I", data, start + 8)
    (n,) = struct.unpack_from(">H", data, start + 40)
    found = Codestream(x1 - x0, y1 - y0, n, (data[start + 42] & 0x7F) + 1)
    (length,) = struct.unpack_from(">H", data, start + 4)
    position = start + 4 + length
    while data[position] == 0xFF and data[position + 1] not in (0x90, 0xD9):
        if data[position + 1] == 0x52:  # COD: the last byte of its general part
            return replace(found, decided=data[position + 8] != 0)
        (length,) = struct.unpack_from(">H", data, position + 2)
        position += 2 + length
    raise ReadError("unreadable", "damaged JPEG 2000 frame: its coding style is missing")


def decode_codestream(
    kind: str,
    data: bytes,
    *,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    colour: bool,
    memory: Memory | None = None,
) -> tuple[np.ndarray, bool]:
    """Decode a frame.

    Args:
        kind: JPEG, JPEG_LOSSLESS, JPEG_LS, JPEG_2000 or RLE.
        data: the frame's bytes.
        shape: rows, columns and samples per pixel that the file declares.
        dtype: of the samples, as allocated; only RLE needs it.
        colour: whether a JPEG that says nothing of its colours holds luminance and chroma.
        memory: gives so many bytes or more to decode into; a JPEG's result may lie there.

    Returns:
        ``[h, w, c]``, and whether colours are RGB already, whatever the file calls them.

    Raises:
        ReadError: ``unreadable`` for a damaged frame or one of another size than declared.
    """
    import imagecodecs

    if kind == RLE:
        return _decode_rle(data, shape, dtype.newbyteorder("<")), False
    said = parse_codestream(kind, data)
    if (said.height, said.width, said.components) != shape:
        raise ReadError(
            "unreadable",
            f"the frame is {said.width} x {said.height} x {said.components}, the header declares "
            f"{shape[1]} x {shape[0]} x {shape[2]}",
        )
    if kind != JPEG_2000 and b"\xff\xd9" not in data[-_PADDING:]:
        # The decoder of 12 bits fills up with grey; that of JPEG-LS can take seconds to find out.
        raise ReadError("unreadable", f"damaged {kind} frame: it ends early")
    try:
        if kind == JPEG:
            return _decode_jpeg(data, said, colour, memory)
        if kind == JPEG_LOSSLESS:
            pixels = imagecodecs.jpegsof3_decode(data)
        elif kind == JPEG_LS:
            pixels = imagecodecs.jpegls_decode(data)
        else:
            pixels = imagecodecs.jpeg2k_decode(data, numthreads=1)
        return pixels.reshape(shape), kind == JPEG_2000 and said.decided
    except (RuntimeError, ValueError, TypeError) as error:
        raise _damaged(kind, error) from error


def _decode_rle(data: bytes, shape: tuple[int, int, int], dtype: np.dtype) -> np.ndarray:
    import imagecodecs

    rows, columns, samples = shape
    memory: Any = np.empty(rows * columns * samples * dtype.itemsize, np.uint8)
    try:
        decoded: Any = imagecodecs.dicomrle_decode(data, dtype, out=memory)
    except (RuntimeError, ValueError) as error:
        raise _damaged(RLE, error) from error
    if decoded.nbytes != memory.nbytes:
        raise ReadError("unreadable", "damaged RLE frame: it ends early")
    return np.moveaxis(memory.view(dtype).reshape(samples, rows, columns), 0, -1)


def _decode_jpeg(
    data: bytes, said: Codestream, colour: bool, memory: Memory | None
) -> tuple[np.ndarray, bool]:
    shape = (said.height, said.width, said.components)
    if said.precision != 8:
        import imagecodecs

        return imagecodecs.jpeg8_decode(data).reshape(shape), said.components == 3
    import simplejpeg

    buffer = None if memory is None else memory(said.width * said.height * said.components)
    if said.components == 1:
        return simplejpeg.decode_jpeg(data, "GRAY", buffer=buffer, strict=True), False
    if not (said.decided or colour):
        data = data[:2] + _ADOBE_RGB + data[2:]
    # Strict: what libjpeg only warns of (a frame cut short) is grey or torn pixels.
    return simplejpeg.decode_jpeg(data, "RGB", buffer=buffer, strict=True), True


def _damaged(kind: str, error: Exception) -> ReadError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ReadError("unreadable", f"damaged {kind} frame: {reason}")
