# SPDX-License-Identifier: Apache-2.0
"""What a file says of itself: format by its first bytes, size, channels, depth, orientation.

Nothing here decodes pixels, so that a limit on size can be kept before memory is spent.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

from fundad_fast.data.items import ReadError

READABLE = ("jpeg", "png", "tiff", "bmp", "webp", "dicom", "nifti")
"""Formats whose pixels can be read."""

SNIFF_BYTES = 352
"""How much of a file :func:`sniff` wants (NIfTI has its magic at byte 344)."""

_TRUNCATED = "the file ends early: it is cut short or damaged"


@dataclass(frozen=True)
class Header:
    """What a file's header declares.

    Attributes:
        format: one of :data:`READABLE`, or ``npz``.
        width, height: in pixels, as stored, before the orientation is applied.
        channels: colour channels without alpha: 1, 3, or 4 for CMYK.
        bit_depth: of the decoded samples: 8, 16 or 32 (float).
        orientation: EXIF orientation, 1 (upright) to 8.
    """

    format: str
    width: int
    height: int
    channels: int
    bit_depth: int
    orientation: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        if self.orientation >= 5:
            return self.width, self.height
        return self.height, self.width


def sniff(head: bytes) -> str | None:
    """The format of a file from its first :data:`SNIFF_BYTES` bytes, also where it is an image
    format that is not read here (``dicom``, ``gif`` ...); ``None`` for anything else."""
    for name, start, magic in _MAGIC:
        if head[start : start + len(magic)] == magic:
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"avif"):
        return "heif"
    return None


def kind_of(file: BinaryIO) -> str | None:
    """The format of an open file, see :func:`sniff`; also that of a gzipped NIfTI file."""
    file.seek(0)
    head = file.read(4096)
    if head[:2] == b"\x1f\x8b":
        from fundad_fast.data.nifti import is_gzipped_nifti

        return "nifti" if is_gzipped_nifti(head) else None
    return sniff(head[:SNIFF_BYTES])


_MAGIC = (
    ("dicom", 128, b"DICM"),  # first: its preamble may be a TIFF's, for viewers of those
    ("jpeg", 0, b"\xff\xd8\xff"),
    ("png", 0, b"\x89PNG\r\n\x1a\n"),
    ("tiff", 0, b"II*\0"),
    ("tiff", 0, b"MM\0*"),
    ("tiff", 0, b"II+\0"),
    ("tiff", 0, b"MM\0+"),
    ("gif", 0, b"GIF8"),
    ("jpeg2000", 0, b"\0\0\0\x0cjP  \r\n\x87\n"),
    ("jpeg2000", 0, b"\xff\x4f\xff\x51"),
    ("jpegxl", 0, b"\0\0\0\x0cJXL \r\n\x87\n"),
    ("jpegxl", 0, b"\xff\x0a"),
    ("nifti", 344, b"n+1\0"),
    ("nifti", 344, b"ni1\0"),
    ("nifti", 4, b"n+2\0"),
    ("bmp", 0, b"BM"),
)


@contextmanager
def open_image(path: str) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file; yields it with its size in bytes. Raises ReadError."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ReadError("unreadable", "this is a folder, not an image file")
        if not stat.S_ISREG(status.st_mode):  # a pipe would block for ever
            raise ReadError("unreadable", "this is not a regular file")
        if status.st_size == 0:
            raise ReadError("unreadable", "the file is empty (0 bytes)")
        with open(path, "rb") as file:
            yield file, status.st_size
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ReadError("unreadable", f"the file cannot be read: {reason}") from error
    except ValueError as error:
        if "\0" in path:
            raise ReadError("unreadable", "the path contains a NUL character") from error
        raise


def parse_header(
    file: BinaryIO, size: int, *, first_page: bool = False, frame: int | None = None
) -> Header:
    """What an open file of ``size`` bytes declares.

    Args:
        file: at any position.
        size: in bytes.
        first_page: allow several pages or frames, of which the first counts.
        frame: the page or frame that counts, from 0.

    Raises:
        ReadError: ``unreadable`` or ``unsupported``.
    """
    name = kind_of(file)
    if name is None:
        raise ReadError(
            "unreadable", "no image format is recognised: the file is damaged or no image"
        )
    if name not in READABLE:
        raise ReadError(
            "unsupported",
            f"{name} files are not read by this version: export the image as PNG, TIFF or JPEG",
        )
    try:
        header = _parsed(name, file, size, first_page, frame)
    except (struct.error, IndexError) as error:  # fewer bytes than the format demands
        raise ReadError("unreadable", _TRUNCATED) from error
    if header.width < 1 or header.height < 1:
        raise ReadError("unreadable", f"the header declares {header.width} x {header.height}")
    return header


def _parsed(name: str, file: BinaryIO, size: int, first_page: bool, frame: int | None) -> Header:
    if name == "tiff":
        from fundad_fast.data.tiff import tiff_header

        return tiff_header(file, size, first_page=first_page, frame=frame)
    if name == "dicom":
        from fundad_fast.data.dicom import one_frame, open_dicom

        image = open_dicom(file, size)
        one_frame(image, first_page, frame)
        return image.header
    if name == "nifti":
        from fundad_fast.data.nifti import one_slice, open_nifti

        volume = open_nifti(file)
        one_slice(volume, first_page, frame)
        return volume.header
    if frame:
        raise ReadError("unreadable", f"there is no frame {frame}: a {name} file holds one image")
    return _PARSERS[name](file, size)


def _jpeg(file: BinaryIO, size: int) -> Header:
    orientation, position = 1, 2
    while True:
        file.seek(position)
        prefix, marker = struct.unpack(">BB", file.read(2))
        if prefix != 0xFF:
            raise ReadError("unreadable", "damaged JPEG: a marker is missing in the header")
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
            continue
        if marker in (0xD9, 0xDA):
            raise ReadError("unreadable", "damaged JPEG: the frame header is missing")
        (length,) = struct.unpack(">H", file.read(2))
        if marker == 0xE1:
            body = file.read(max(length - 2, 0))
            if body[:6] == b"Exif\0\0":
                orientation = _exif_orientation(body[6:])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, channels = struct.unpack(">BHHB", file.read(6))
            if bits != 8 or marker in (0xC3, 0xC7, 0xCB, 0xCF):
                kind = f"{bits}-bit" if bits != 8 else "lossless"
                raise ReadError(
                    "unsupported", f"{kind} JPEG is not read: export the image as PNG or TIFF"
                )
            return Header("jpeg", width, height, channels, 8, orientation)
        position += 2 + max(length, 2)


def _exif_orientation(exif: bytes) -> int:
    """Tag 0x0112 of the first directory; 1 where it is absent or the directory is damaged."""
    if exif[:2] not in (b"II", b"MM"):
        return 1
    order = "<" if exif[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for i in range(count):
            tag, kind = struct.unpack_from(f"{order}HH", exif, start + 2 + 12 * i)
            if (tag, kind) == (0x0112, 3):
                (value,) = struct.unpack_from(f"{order}H", exif, start + 2 + 12 * i + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def _png(file: BinaryIO, size: int) -> Header:
    header, transparent, position = None, False, 8
    while True:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        position += 12 + length
        if position > size:
            raise ReadError("unreadable", _TRUNCATED)
        if kind == b"IHDR":
            width, height, bits, colour = struct.unpack(">IIBB", file.read(10))
            channels = 1 if colour in (0, 4) else 3
            header = Header("png", width, height, channels, 16 if bits == 16 else 8)
        elif header is None:
            raise ReadError("unreadable", "damaged PNG: the header chunk is missing")
        elif kind == b"eXIf":
            header = replace(header, orientation=_exif_orientation(file.read(length)))
        elif kind == b"tRNS":
            transparent = colour == 0
        elif kind == b"acTL":
            raise ReadError("unsupported", "animated PNG: export one frame")
        elif kind == b"IEND":
            if transparent:  # OpenCV would drop it without a word
                raise ReadError(
                    "unsupported", "a PNG with a transparent grey level: save it without"
                )
            return header


def _bmp(file: BinaryIO, size: int) -> Header:
    file.seek(10)
    offset, info, width, height, _, bits = struct.unpack("<IIiiHH", file.read(20))
    if info < 40:
        raise ReadError("unsupported", "a BMP of an old kind: save it as PNG")
    channels = 3
    if bits <= 8:
        file.seek(14 + info)
        palette = file.read(max(0, offset - 14 - info))
        channels = 1 if palette[0::4] == palette[1::4] == palette[2::4] else 3
    if offset + (width * bits + 31) // 32 * 4 * abs(height) > size and bits > 8:
        raise ReadError("unreadable", _TRUNCATED)
    return Header("bmp", width, abs(height), channels, 8)


def _webp(file: BinaryIO, size: int) -> Header:
    file.seek(4)
    (length,) = struct.unpack("<I", file.read(4))
    if length + 8 > size:
        raise ReadError("unreadable", _TRUNCATED)
    position, orientation, shape = 12, 1, None
    while position < length + 8:
        file.seek(position)
        kind, chunk = struct.unpack("<4sI", file.read(8))
        if kind == b"VP8X":
            flags, width, height = struct.unpack("<B3x3s3s", file.read(10))
            if flags & 0x02:
                raise ReadError("unsupported", "animated WebP: export one frame")
            shape = tuple(1 + int.from_bytes(n, "little") for n in (width, height))
        elif kind == b"VP8 " and shape is None:
            width, height = struct.unpack("<6xHH", file.read(10))
            shape = (width & 0x3FFF, height & 0x3FFF)
        elif kind == b"VP8L" and shape is None:
            (packed,) = struct.unpack("<xI", file.read(5))
            shape = (1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF))
        elif kind == b"EXIF":
            body = file.read(chunk)
            orientation = _exif_orientation(body.removeprefix(b"Exif\0\0"))
        position += 8 + chunk + chunk % 2
    if shape is None:
        raise ReadError("unreadable", "damaged WebP: no image in it")
    return Header("webp", shape[0], shape[1], 3, 8, orientation)


_PARSERS: dict[str, Callable[[BinaryIO, int], Header]] = {
    "jpeg": _jpeg,
    "png": _png,
    "bmp": _bmp,
    "webp": _webp,
}
