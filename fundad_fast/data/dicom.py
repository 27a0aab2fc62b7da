# SPDX-License-Identifier: Apache-2.0
"""The headers of DICOM files, by pydicom; `dicom_pixels` makes pixels of their frames.

Read are uncompressed, RLE, JPEG (baseline, extended, lossless), JPEG-LS and JPEG 2000 frames in
grey, RGB, YBR and palette colours. Only what an image needs is kept of a header.
"""

from __future__ import annotations

import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, BinaryIO

from fundad_fast.data.codestream import JPEG, JPEG_2000, JPEG_LOSSLESS, JPEG_LS, RLE
from fundad_fast.data.headers import Header
from fundad_fast.data.items import Identifiers, ReadError, item_id

if TYPE_CHECKING:
    from pydicom import Dataset

MISSING = "DICOM needs pydicom, which is not installed: pip install pydicom"

_BASE = "1.2.840.10008.1.2"
ENCAPSULATED = {
    f"{_BASE}.4.50": JPEG,
    f"{_BASE}.4.51": JPEG,
    f"{_BASE}.4.57": JPEG_LOSSLESS,
    f"{_BASE}.4.70": JPEG_LOSSLESS,
    f"{_BASE}.4.80": JPEG_LS,
    f"{_BASE}.4.81": JPEG_LS,
    f"{_BASE}.4.90": JPEG_2000,
    f"{_BASE}.4.91": JPEG_2000,
    f"{_BASE}.5": RLE,
}
_PLAIN = (_BASE, f"{_BASE}.1", f"{_BASE}.2")
BIG_ENDIAN = f"{_BASE}.2"
UNDEFINED = 0xFFFFFFFF
"""The length of pixel data that comes in parts."""

_HEAD = 65536

_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_DIRECTORY = "1.2.840.10008.1.3.10"

GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")

_WANTED = (
    ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID")
    + ("ImageLaterality", "Laterality", "AcquisitionDateTime", "AcquisitionDate", "ContentDate")
    + ("SeriesDate", "StudyDate", "SpecificCharacterSet", "NumberOfFrames", "Rows", "Columns")
    + ("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated")
    + ("BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue")
    + ("PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")
    + ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence")
    + ("RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData")
    + ("GreenPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData")
    + ("BluePaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableData")
    + ("SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData")
    + ("SegmentedBluePaletteColorLookupTableData",)
    + ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    + ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
)

# What pydicom raises on damaged headers and values; it converts values when they are asked for.
_PARSER_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,  # also UnicodeError
    struct.error,
)


@dataclass(frozen=True)
class DicomImage:
    """The header of a DICOM file that holds an image.

    Attributes:
        syntax: transfer syntax UID.
        rows, columns, frames, samples: of the pixel data.
        allocated, stored, high: bits per sample, and the highest stored one.
        signed: whether samples are two's complement.
        photometric: photometric interpretation.
        planar: whether each colour has a plane of its own.
        start, length: where the value of the pixel data lies in the file; 2**32 - 1 is undefined.
        identifiers: what a row says of it.
        labels: whether it is a segmentation.
        dataset: the elements that an image needs.
    """

    syntax: str
    rows: int
    columns: int
    frames: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    photometric: str
    planar: bool
    start: int
    length: int
    identifiers: Identifiers
    labels: bool
    dataset: Dataset

    @property
    def header(self) -> Header:
        """Width, height, channels and depth, as of any other image."""
        channels = 1 if self.photometric in GREY else 3
        deep = self.stored > 8 and self.photometric != "PALETTE COLOR"
        return Header("dicom", self.columns, self.rows, channels, 16 if deep else 8)


def open_dicom(file: BinaryIO, size: int) -> DicomImage:
    """Read the header of an open DICOM file of ``size`` bytes, up to its pixels.

    Raises:
        ReadError: ``unreadable`` (damaged, cut short), ``unsupported`` (no image in it, a transfer
            syntax, colour space or sample type that is not read; pydicom is not installed). Its
            ``identifiers`` are set where they could be read.
    """
    syntax = _transfer_syntax(file)
    if syntax not in _PLAIN and syntax not in ENCAPSULATED:
        raise ReadError("unsupported", f"the transfer syntax {_syntax_name(syntax)} is not read")
    with damage():
        dataset = _read_dataset(file)
        identifiers = _identifiers(dataset)
    try:
        with damage():
            return _image(file, size, syntax, dataset, identifiers)
    except ReadError as error:
        error.identifiers = identifiers
        raise


def one_frame(image: DicomImage, first: bool, frame: int | None) -> int:
    """Which frame is meant; raises ReadError where that is not clear or there is no such frame."""
    if frame is None and image.frames > 1 and not first:
        raise ReadError(
            "unsupported",
            f"a DICOM file of {image.frames} frames: each is an item of its own, such as #0",
            image.identifiers,
        )
    frame = frame or 0
    if not 0 <= frame < image.frames:
        raise ReadError(
            "unreadable",
            f"there is no frame {frame}: the file has {image.frames}",
            image.identifiers,
        )
    return frame


def count_frames(file: BinaryIO, size: int) -> int:
    """How many frames a DICOM file declares; 1 where it holds no image or is damaged, so that one
    row says so."""
    file.seek(0)
    head = file.read(_HEAD)
    # Most files have one frame and say nothing of it: then pydicom, which takes a millisecond,
    # need not be asked. A header that goes on after the head is parsed.
    little = _transfer_syntax_or_none(file) != BIG_ENDIAN
    if little and b"\xe0\x7f\x10\0" in head and b"\x28\0\x08\0" not in head:
        return 1
    try:
        image = open_dicom(file, size)
    except ReadError:
        return 1
    return 1 if image.labels else image.frames


class LastDicom(threading.local):
    """The header that a thread read last, for the next frame of the same file."""

    def __init__(self) -> None:
        self._key: object = None
        self._image: DicomImage | None = None

    def open(self, file: BinaryIO, size: int, key: object) -> DicomImage:
        """As :func:`open_dicom`; ``key`` tells the file and its version, ``None`` keeps nothing."""
        if key is None or key != self._key or self._image is None:
            self._key, self._image = None, open_dicom(file, size)
            self._key = key
        return self._image


def _transfer_syntax_or_none(file: BinaryIO) -> str | None:
    try:
        return _transfer_syntax(file)
    except ReadError:
        return None


@contextmanager
def damage() -> Iterator[None]:
    try:
        yield
    except EOFError as error:
        raise ReadError("unreadable", "damaged DICOM: the file ends early") from error
    except _PARSER_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ReadError("unreadable", f"damaged DICOM: {reason[:200]}") from error


def _transfer_syntax(file: BinaryIO) -> str:
    """From the file meta group, which is always explicit little endian.

    pydicom is not asked before this is known: it would inflate a deflated file without a limit.
    """
    file.seek(132)
    for _ in range(64):
        head = file.read(8)
        if len(head) < 8 or head[:2] != b"\x02\0":
            break
        if head[4:6] in (b"OB", b"UN", b"OW", b"SQ", b"UT"):
            (length,) = struct.unpack("<I", file.read(4).ljust(4, b"\0"))
        else:
            (length,) = struct.unpack("<H", head[6:8])
        if head[2:4] == b"\x10\0":
            return file.read(min(length, 64)).decode("ascii", "replace").strip("\0 ")
        file.seek(length, 1)
    raise ReadError("unreadable", "damaged DICOM: its transfer syntax is missing")


def _syntax_name(syntax: str) -> str:
    from importlib.util import find_spec

    if find_spec("pydicom") is None:
        return item_id(syntax)
    from pydicom.uid import UID

    return f"{UID(syntax).name} ({item_id(syntax)})"


def _read_dataset(file: BinaryIO) -> Dataset:
    try:
        import pydicom
    except ModuleNotFoundError as error:
        raise ReadError("unsupported", MISSING) from error
    if not _quiet:
        # What it warns of is either an error of the row or of no consequence for the image.
        warnings.filterwarnings("ignore", module=r"pydicom(\..*)?")
        _quiet.append(True)
    file.seek(0)
    return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_WANTED))


_quiet: list[bool] = []


def _image(
    file: BinaryIO, size: int, syntax: str, dataset: Dataset, identifiers: Identifiers
) -> DicomImage:
    sop_class = str(dataset.get("SOPClassUID", ""))
    if sop_class == _DIRECTORY:
        raise ReadError("unsupported", "a DICOMDIR, which lists files and holds no image")
    start, length = _pixel_data(file, syntax, sop_class)
    photometric = str(_required(dataset, "PhotometricInterpretation")).strip()
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if photometric not in GREY + _COLOUR:
        raise ReadError("unsupported", f"colours of the kind {photometric[:30]}: save it as RGB")
    if samples != (1 if photometric in GREY or photometric == "PALETTE COLOR" else 3):
        raise ReadError("unreadable", f"damaged DICOM: {samples} samples in {photometric}")
    allocated = int(_required(dataset, "BitsAllocated"))
    stored = int(dataset.get("BitsStored") or allocated)
    high = int(dataset.get("HighBit", stored - 1))
    if allocated not in (1, 8, 16, 32) or (allocated == 1 and samples > 1):
        raise ReadError("unsupported", f"{allocated} bits are allocated for a sample: 8 or 16 are")
    if not (1 <= stored <= allocated and stored - 1 <= high < allocated):
        raise ReadError(
            "unreadable", f"damaged DICOM: {stored} bits up to bit {high} of {allocated}"
        )
    if photometric not in GREY and allocated > 16:
        raise ReadError("unsupported", f"colours of {allocated} bits: 8 or 16 are read")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames < 1:
        raise ReadError("unreadable", f"damaged DICOM: it declares {frames} frames")
    # Eight bytes are the least that any frame takes: a file that declares more than that is
    # damaged or hostile, and must not become millions of rows.
    if frames > 1 and frames > max(size // 8, 1):
        raise ReadError("unreadable", f"damaged DICOM: it declares {frames} frames in {size} bytes")
    return DicomImage(
        syntax=syntax,
        rows=int(_required(dataset, "Rows")),
        columns=int(_required(dataset, "Columns")),
        frames=frames,
        samples=samples,
        allocated=allocated,
        stored=stored,
        high=high,
        signed=int(dataset.get("PixelRepresentation") or 0) == 1,
        photometric=photometric,
        planar=int(dataset.get("PlanarConfiguration") or 0) == 1,
        start=start,
        length=length,
        identifiers=identifiers,
        labels=sop_class == _SEGMENTATION,
        dataset=dataset,
    )


def _required(dataset: Dataset, name: str) -> Any:
    value = dataset.get(name)
    if value is None or value == "":
        raise ReadError("unreadable", f"damaged DICOM: {name} is missing")
    return value


def _pixel_data(file: BinaryIO, syntax: str, sop_class: str) -> tuple[int, int]:
    """Where the value of the pixel data starts, and its length; the file stands before it."""
    order = ">" if syntax == BIG_ENDIAN else "<"
    head = file.read(8)
    if len(head) < 8:
        kind = _syntax_name(sop_class).split(" (")[0] if sop_class else "DICOM"
        raise ReadError("unsupported", f"a DICOM file without an image: {kind}")
    group, element = struct.unpack(f"{order}HH", head[:4])
    if (group, element) != (0x7FE0, 0x0010):
        raise ReadError("unsupported", "float pixel data (a parametric map) is not read")
    if syntax == _BASE:  # implicit: no type is stored
        (length,) = struct.unpack("<I", head[4:])
        return file.tell(), length
    (length,) = struct.unpack(f"{order}I", file.read(4))
    return file.tell(), length


def _identifiers(dataset: Dataset) -> Identifiers:
    def text(name: str) -> str | None:
        value = item_id(str(dataset.get(name) or "").strip("\0 "))
        return value if 0 < len(value) <= 64 else None  # a longer one is damage

    side = text("ImageLaterality") or text("Laterality")
    return Identifiers(
        sop_instance_uid=text("SOPInstanceUID"),
        study_instance_uid=text("StudyInstanceUID"),
        series_instance_uid=text("SeriesInstanceUID"),
        patient_id=text("PatientID"),
        laterality=side if side in ("L", "R", "B") else None,
        acquired=next(
            (
                found
                for name in ("AcquisitionDateTime", "AcquisitionDate", "ContentDate")
                + ("SeriesDate", "StudyDate")
                if (found := _date(text(name))) is not None
            ),
            None,
        ),
    )


def _date(value: str | None) -> str | None:
    match = re.match(r"(\d{4})\.?(\d\d)\.?(\d\d)", value or "")
    if match is None:
        return None
    try:
        return date(*(int(part) for part in match.groups())).isoformat()
    except ValueError:
        return None
