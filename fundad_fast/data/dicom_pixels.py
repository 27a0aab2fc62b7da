# SPDX-License-Identifier: Apache-2.0
"""The pixels of DICOM frames: stored values, then grey (see `greyscale`), RGB, YBR or palette."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from fundad_fast.data.codestream import Memory, decode_codestream
from fundad_fast.data.dicom import BIG_ENDIAN, ENCAPSULATED, GREY, UNDEFINED, DicomImage, damage
from fundad_fast.data.greyscale import Greyscale, Table, Window
from fundad_fast.data.items import ReadError

if TYPE_CHECKING:
    from pydicom import Dataset


def dicom_pixels(
    image: DicomImage,
    file: BinaryIO,
    frame: int,
    memory: Memory | None = None,
    window: Window | None = None,
) -> np.ndarray:
    """The pixels ``[h, w, c]`` of one frame: uint8, or uint16 where more than 8 bits are stored.

    The pixels of a JPEG frame may lie in ``memory``, which gives so many bytes or more. ``window``
    is of grey values; by default the file's.

    Raises:
        ReadError: ``unreadable`` (missing or damaged frame), ``unsupported`` (such as a window that
            the file lacks).
    """
    try:
        with damage():
            stored, rgb = _stored(image, file, frame, memory)
            if image.photometric in GREY:
                pixels = _greyscale(image, frame, window).apply(_shifted(image, stored))
            elif image.photometric == "PALETTE COLOR":
                pixels = _expanded(image, stored)
            else:
                pixels = _rgb(image, stored, rgb)
    except ReadError as error:
        error.identifiers = image.identifiers
        raise
    return np.ascontiguousarray(pixels)


def _stored(
    image: DicomImage, file: BinaryIO, frame: int, memory: Memory | None = None
) -> tuple[np.ndarray, bool]:
    """The stored values ``[h, w, c]`` of a frame, and whether its colours are RGB already."""
    kind = ENCAPSULATED.get(image.syntax)
    shape = (image.rows, image.columns, image.samples)
    if kind is None:
        return _plain(image, file, frame), False
    if image.allocated == 1:
        raise ReadError("unsupported", "compressed samples of one bit")
    if image.length != UNDEFINED:
        raise ReadError("unreadable", "damaged DICOM: compressed pixels without their parts")
    from pydicom.encaps import get_frame

    file.seek(image.start)
    offsets = None
    if "ExtendedOffsetTable" in image.dataset:
        offsets = (image.dataset.ExtendedOffsetTable, image.dataset.ExtendedOffsetTableLengths)
    data = get_frame(file, frame, extended_offsets=offsets, number_of_frames=image.frames)
    if not data:
        raise ReadError("unreadable", f"frame {frame} of {image.frames} is empty")
    dtype = np.dtype(f"<u{image.allocated // 8}")
    colour = image.photometric != "RGB"
    return decode_codestream(kind, data, shape=shape, dtype=dtype, colour=colour, memory=memory)


def _plain(image: DicomImage, file: BinaryIO, frame: int) -> np.ndarray:
    """The stored values of an uncompressed frame."""
    if image.length == UNDEFINED:
        raise ReadError("unreadable", "damaged DICOM: uncompressed pixels of undefined length")
    values = image.rows * image.columns * image.samples
    halved = image.photometric == "YBR_FULL_422"  # two pixels share their chroma
    if halved:
        if image.columns % 2 or image.allocated != 8:
            raise ReadError("unsupported", "YBR_FULL_422 of odd width or more than 8 bits")
        values = values // 3 * 2
    bits = values * image.allocated
    first, last = frame * bits // 8, -(-(frame + 1) * bits // 8)
    file.seek(image.start + first)
    # Into an array of our own: one over the bytes of a read could not be written to.
    data = np.empty(last - first, np.uint8)
    if last > image.length or _read_into(file, data) < len(data):
        raise ReadError("unreadable", f"frame {frame} of {image.frames} is missing or cut short")
    if image.allocated == 1:
        skipped = frame * bits - first * 8
        found = np.unpackbits(data, bitorder="little")
        return found[skipped : skipped + values].reshape(image.rows, image.columns, 1)
    order = ">" if image.syntax == BIG_ENDIAN else "<"
    if order == ">" and image.allocated == 8:
        raise ReadError("unsupported", "8-bit samples in big-endian words: save it little-endian")
    found = data.view(f"{order}u{image.allocated // 8}")
    found = found.astype(found.dtype.newbyteorder("="), copy=False)
    if halved:
        pairs = found.reshape(image.rows, image.columns // 2, 4)
        y = pairs[:, :, :2].reshape(image.rows, image.columns)
        return np.stack([y, *(np.repeat(pairs[:, :, i], 2, axis=1) for i in (2, 3))], axis=-1)
    if image.planar and image.samples == 3:
        return np.moveaxis(found.reshape(3, image.rows, image.columns), 0, -1)
    return found.reshape(image.rows, image.columns, image.samples)


def _read_into(file: BinaryIO, data: np.ndarray) -> int:
    """How many bytes were there to read."""
    view, done = data.data, 0
    while done < len(view):
        n = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not n:
            break
        done += n
    return done


def _shifted(image: DicomImage, stored: np.ndarray) -> np.ndarray:
    """With the stored bits lowest, whatever else lies in the words."""
    if image.high == image.stored - 1:
        return stored
    unsigned = stored.view(f"u{stored.dtype.itemsize}")
    return unsigned >> unsigned.dtype.type(image.high + 1 - image.stored)


def _rgb(image: DicomImage, stored: np.ndarray, rgb: bool) -> np.ndarray:
    if image.stored not in (8, 16):  # all of the depth, as grey
        stored = Greyscale(image.stored).apply(_shifted(image, stored))
    if rgb or image.photometric == "RGB":
        return stored
    from pydicom.pixels import convert_color_space

    return convert_color_space(stored, "YBR_FULL", "RGB")


def _expanded(image: DicomImage, stored: np.ndarray) -> np.ndarray:
    """Palette colours in 8 bits: the high ones, where the palette has 16."""
    from pydicom.pixels import apply_color_lut

    mask = (1 << image.stored) - 1
    unsigned = stored.view(f"u{stored.dtype.itemsize}")
    colours = apply_color_lut(unsigned[:, :, 0] & unsigned.dtype.type(mask), image.dataset)
    colours = colours[:, :, :3]
    return (colours >> 8).astype(np.uint8) if colours.dtype == np.uint16 else colours


def _greyscale(image: DicomImage, frame: int, wanted: Window | None) -> Greyscale:
    """What the header says of grey values; a frame's own functional groups come first."""
    rescale = _group(image.dataset, frame, "PixelValueTransformationSequence")
    voi = _group(image.dataset, frame, "FrameVOILUTSequence")
    slope, intercept = _first(rescale, "RescaleSlope"), _first(rescale, "RescaleIntercept")
    if slope is not None and not (np.isfinite(slope) and slope):
        raise ReadError("unreadable", f"damaged DICOM: a rescale slope of {slope}")
    modality = _table_of(rescale, "ModalityLUTSequence", image)
    signed = image.signed if modality is None else False
    k = wanted if isinstance(wanted, int) else 0
    centre, width = _kth(voi, "WindowCenter", k), _kth(voi, "WindowWidth", k)
    function = str(voi.get("VOILUTFunction") or "LINEAR").strip()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ReadError("unsupported", f"a window of the kind {function[:30]}")
    # A width below one is no window (the standard forbids it): then the stored range counts.
    least = 1.0 if function == "LINEAR" else 0.0
    window = None
    if centre is not None and width is not None and np.isfinite(centre):
        window = (centre, width) if np.isfinite(width) and width >= max(least, 1e-9) else None
    if wanted == k and window is None:
        raise ReadError("unsupported", f"the file has no window {k}, counted from 0")
    if isinstance(wanted, tuple):
        window, function = wanted, "LINEAR"
    elif wanted == "none":
        window = None
    low = _padding(image, "PixelPaddingValue")
    high = _padding(image, "PixelPaddingRangeLimit")
    return Greyscale(
        bits=image.stored,
        signed=image.signed,
        inverted=image.photometric == "MONOCHROME1",
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        modality=modality,
        voi=_table_of(voi, "VOILUTSequence", image, signed=signed) if wanted is None else None,
        window=window,
        function=function,  # type: ignore[arg-type]
        padding=None if low is None else (min(low, high or low), max(low, high or low)),
    )


def _group(dataset: Dataset, frame: int, name: str) -> Dataset:
    """A functional group: of the frame, else shared by all, else the data set itself."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in (*per_frame[frame : frame + 1], *shared[:1]):
        found = groups.get(name)
        if found:
            return found[0]
    return dataset


def _first(dataset: Dataset, name: str) -> float | None:
    return _kth(dataset, name, 0)


def _kth(dataset: Dataset, name: str, k: int) -> float | None:
    """One of an element's values, from 0; ``None`` where it has fewer."""
    value = dataset.get(name)
    if value is None or value == "":
        return None
    several = not isinstance(value, str) and hasattr(value, "__len__")
    values = list(value) if several else [value]
    return float(values[k]) if k < len(values) else None


def _padding(image: DicomImage, name: str) -> int | None:
    """Stored as bits of the pixels' type, but often under the other sign."""
    value = image.dataset.get(name)
    if value is None or value == "":
        return None
    bits = (int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)) & (
        (1 << image.stored) - 1
    )
    half = 1 << (image.stored - 1)
    return (bits ^ half) - half if image.signed else bits


def _table_of(
    dataset: Dataset, name: str, image: DicomImage, *, signed: bool | None = None
) -> Table | None:
    sequence = dataset.get(name)
    if not sequence:
        return None
    count, first, bits = (int(value) for value in sequence[0].LUTDescriptor)
    count = count or 65536
    if (image.signed if signed is None else signed) and first >= 32768:
        first -= 65536
    data = sequence[0].LUTData
    if isinstance(data, bytes):
        wide = len(data) >= 2 * count
        order = ">" if image.syntax == BIG_ENDIAN else "<"
        data = np.frombuffer(data, f"{order}u2" if wide else np.uint8)
    entries = tuple(int(value) & 0xFFFF for value in data[:count])
    if len(entries) < count or not 1 <= bits <= 16:
        raise ReadError("unreadable", f"damaged DICOM: its {name} has {len(entries)} of {count}")
    return Table(first, bits, entries)
