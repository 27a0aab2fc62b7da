# SPDX-License-Identifier: Apache-2.0
"""Axial slices of NIfTI volumes, by nibabel: one image for each slice, in RAS order.

Slice ``#k`` is the k-th from below (foot to head). Its columns run from the patient's left to the
right and its rows from front to back, as if seen from above; axes are permuted and flipped to the
nearest of these, never interpolated. uint8 and uint16 values that the header does not scale are
kept; all others become float32 in the header's units, for which a model has a ``white_level``. The
display range of the header (cal_min, cal_max) is not applied. Whole volumes: see ``volumes.py``.
"""

from __future__ import annotations

import io
import math
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from fundad_fast.data.headers import Header
from fundad_fast.data.items import ReadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MISSING = "NIfTI needs nibabel, which is not installed: pip install nibabel"

MAX_VOLUME = 2 * 2**30
"""Bytes of a volume, unpacked: it is held while its slices are read."""

_HEADER = 544
_GZIP = b"\x1f\x8b"
_KEPT = 2


@dataclass(frozen=True)
class Volume:
    """What a header declares.

    Attributes:
        shape: voxels along the stored axes.
        dtype: of the stored values.
        start: where they start in the unpacked file.
        slope, inter: of the header's scaling.
        axes: for each of right, anterior, superior: the stored axis, and whether it runs that way.
        affine: ``[4, 4]``, stored indices to millimetres.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    start: int
    slope: float
    inter: float
    axes: tuple[tuple[int, bool], ...]
    affine: NDArray[Any]

    @property
    def slices(self) -> int:
        """How many axial slices there are."""
        return self.shape[self.axes[2][0]]

    @property
    def scaled(self) -> bool:
        """Whether slices are float32."""
        return (
            (self.slope, self.inter) != (1.0, 0.0)
            or self.dtype.kind != "u"
            or (self.dtype.itemsize > 2)
        )

    @property
    def header(self) -> Header:
        """Width, height and depth of a slice, as of any other image."""
        depth = 32 if self.scaled else 8 * self.dtype.itemsize
        return Header("nifti", self.shape[self.axes[0][0]], self.shape[self.axes[1][0]], 1, depth)


def open_nifti(file: BinaryIO) -> Volume:
    """The header of an open NIfTI file, gzipped or not.

    Raises:
        ReadError: ``unreadable`` (damaged), ``unsupported`` (a pair of files, a time series, a
            type that is not read; nibabel is not installed), ``too_large``.
    """
    try:
        import nibabel
    except ModuleNotFoundError as error:
        raise ReadError("unsupported", MISSING) from error
    head = _head(file)
    kind: Any = nibabel.Nifti2Header if head[4:7] == b"n+2" else nibabel.Nifti1Header
    if head[344:347] == b"ni1":
        raise ReadError("unsupported", "a NIfTI pair (.hdr and .img): save it as one .nii file")
    try:
        header = kind.from_fileobj(io.BytesIO(head), check=False)
        dims = [int(n) for n in header["dim"]]
        n = dims[0]
        if not 2 <= n <= 7 or any(size < 1 for size in dims[1 : n + 1]):
            raise ReadError("unreadable", f"damaged NIfTI: {n} axes of {dims[1 : n + 1]}")
        if any(size > 1 for size in dims[4 : n + 1]):
            raise ReadError("unsupported", "a series of volumes: save each volume as a file")
        shape = (dims[1], dims[2], dims[3] if n > 2 else 1)
        dtype = header.get_data_dtype()
        affine = header.get_best_affine()
        axes = _axes(nibabel.io_orientation(affine))
        slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
        start = int(header["vox_offset"])
    except (ArithmeticError, LookupError, ValueError, TypeError, EOFError) as error:
        raise ReadError("unreadable", f"damaged NIfTI: {_line(error)}") from error
    except nibabel.spatialimages.HeaderDataError as error:
        raise ReadError("unreadable", f"damaged NIfTI: {_line(error)}") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ReadError("unsupported", f"voxels of the type {dtype}: grey values are read")
    size = math.prod(shape) * dtype.itemsize
    if size > MAX_VOLUME:
        raise ReadError(
            "too_large", f"a volume of {size / 1e9:.1f} GB; the limit is {MAX_VOLUME / 1e9:.1f}"
        )
    if not math.isfinite(slope) or slope == 0:  # the standard's way to say: not scaled
        slope, inter = 1.0, 0.0
    return Volume(shape, dtype, max(start, 348), slope, inter, axes, affine)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    head = file.read(_HEADER)
    if head[:2] == _GZIP:
        file.seek(0)
        head = _unpacked(file, _HEADER)
    if len(head) < 348:
        raise ReadError("unreadable", "damaged NIfTI: the file ends in its header")
    return head


def _axes(orientation: NDArray[Any]) -> tuple[tuple[int, bool], ...]:
    """Of each direction the stored axis; raises ValueError where the header gives none."""
    found: dict[int, tuple[int, bool]] = {}
    for axis, (direction, sign) in enumerate(orientation[:3]):
        if not math.isfinite(direction):
            raise ValueError("its orientation is missing")
        found[int(direction)] = (axis, sign > 0)
    return found[0], found[1], found[2]


def one_slice(volume: Volume, first: bool, frame: int | None) -> int:
    """Which slice is meant; raises ReadError where that is not clear or there is no such slice."""
    if frame is None and volume.slices > 1 and not first:
        raise ReadError(
            "unsupported",
            f"a volume of {volume.slices} axial slices: each is an item of its own, such as #0, "
            "for a model of two dimensions",
        )
    frame = frame or 0
    if not 0 <= frame < volume.slices:
        raise ReadError("unreadable", f"there is no slice {frame}: there are {volume.slices}")
    return frame


def count_slices(file: BinaryIO) -> int:
    """How many axial slices a NIfTI file has; 1 where it is damaged, so that one row says so."""
    try:
        return open_nifti(file).slices
    except ReadError:
        return 1


def nifti_pixels(volume: Volume, file: BinaryIO, frame: int, key: object) -> np.ndarray:
    """The pixels ``[h, w, 1]`` of one axial slice: uint8, uint16 or float32.

    Args:
        volume: the file's header.
        file: the file.
        frame: which slice, from below.
        key: tells the file and its version, so that it is unpacked once for all its slices; for
            ``None`` nothing is kept.

    Raises:
        ReadError: ``unreadable`` (damaged, cut short), ``non_finite``.
    """
    values = _volumes.get(volume, file, key)
    (x, right), (y, front), (z, up) = volume.axes
    stored = values.transpose(z, y, x)[frame if up else volume.slices - 1 - frame]
    pixels = stored[:: -1 if front else 1, :: 1 if right else -1]
    if volume.scaled:
        with np.errstate(over="ignore"):  # becomes infinite, and is refused as such
            pixels = (pixels * volume.slope + volume.inter).astype(np.float32)
        if not np.isfinite(pixels).all():
            bad = pixels.size - int(np.isfinite(pixels).sum())
            raise ReadError("non_finite", f"{bad} of {pixels.size} values are NaN or infinite")
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return np.array(pixels[:, :, None], order="C")


class _Volumes:
    """The volumes read last, for all threads, each of which reads some of their slices."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[object, tuple[threading.Lock, list[np.ndarray]]] = OrderedDict()

    def get(self, volume: Volume, file: BinaryIO, key: object) -> np.ndarray:
        if key is None:
            return stored_values(volume, file)
        with self._lock:
            own, found = self._kept.setdefault(key, (threading.Lock(), []))
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        with own:  # one thread unpacks, the others wait for it
            if not found:
                found.append(stored_values(volume, file))
            return found[0]


_volumes = _Volumes()


def stored_values(volume: Volume, file: BinaryIO) -> np.ndarray:
    """The stored values along the stored axes."""
    end = volume.start + math.prod(volume.shape) * volume.dtype.itemsize
    file.seek(0)
    packed = file.read(2) == _GZIP
    file.seek(0)
    data = _unpacked(file, end) if packed else file.read(end)
    if len(data) < end:
        raise ReadError(
            "unreadable", f"the file is cut short: {len(data)} of {end} bytes are there"
        )
    return np.frombuffer(data, volume.dtype, offset=volume.start).reshape(volume.shape, order="F")


def _unpacked(file: BinaryIO, size: int) -> bytes:
    """At most ``size`` bytes of a gzipped file, whatever it would go on to."""
    inflate, parts, left = zlib.decompressobj(31), list[bytes](), size
    try:
        while left > 0 and not inflate.eof:
            data = inflate.unconsumed_tail or file.read(1 << 16)
            if not data:
                break
            parts.append(inflate.decompress(data, left))
            left -= len(parts[-1])
    except zlib.error as error:
        raise ReadError("unreadable", f"damaged gzip: {error}") from error
    return b"".join(parts)


def is_gzipped_nifti(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a gzipped NIfTI file."""
    if head[:2] != _GZIP:
        return False
    try:
        start = zlib.decompressobj(31).decompress(head, 352)
    except zlib.error:
        return False
    return start[344:347] in (b"n+1", b"ni1") or start[4:7] == b"n+2"
