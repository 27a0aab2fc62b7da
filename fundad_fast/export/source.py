# SPDX-License-Identifier: Apache-2.0
"""The DICOM image that a row was scored from: what objects derived from it take over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fundad_fast.data import ReadError, item_of_row, open_source
from fundad_fast.data.dicom import damage, open_dicom
from fundad_fast.data.headers import kind_of

if TYPE_CHECKING:
    from pydicom import Dataset

_IDENTITY = (
    ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID")
    + ("StudyDate", "StudyTime", "ReferringPhysicianName")
)  # fmt: skip
_PLACE = (
    ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    + ("SliceThickness",)
)  # fmt: skip
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


@dataclass(frozen=True)
class SourceImage:
    """A DICOM image, without its pixels.

    Attributes:
        header: its elements. The SOP class is VL Photographic whatever the file says, as highdicom
            has no table of what patients and studies consist of for every class.
        sop_class: what the file says.
        frame: from 1, of a file with several; ``None`` for a file of one.
    """

    header: Dataset
    sop_class: str
    frame: int | None

    @property
    def laterality(self) -> str | None:
        """``L`` or ``R``, where the file says so."""
        side = self.header.get("ImageLaterality") or self.header.get("Laterality")
        return side if side in ("L", "R") else None

    def number(self, name: str, default: int) -> int:
        """A positive whole number of the header, such as ``SeriesNumber``."""
        value = self.header.get(name)
        return int(value) if value is not None and 0 < int(value) < 100_000 else default

    def reference(self, *, frame: bool) -> Dataset:
        """An item that points to it, or to its frame."""
        from pydicom import Dataset

        item = Dataset()
        item.ReferencedSOPClassUID = self.sop_class
        item.ReferencedSOPInstanceUID = self.header.SOPInstanceUID
        if frame and self.frame is not None:
            item.ReferencedFrameNumber = self.frame
        return item

    def stand_in(self) -> Dataset:
        """What highdicom makes a segmentation of.

        highdicom takes every image with ``NumberOfFrames``, so also Ophthalmic Photography of one
        frame, for an enhanced multi-frame one and fails (its issues 159, 200 and 284). Here it sees
        a single VL Photographic image, in space only where a position is known; the reference
        to the real class and frame is put in its place afterwards. Names stay out: highdicom
        repeats in its warnings those that it finds unusual.
        """
        from pydicom import Dataset
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian

        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        kept = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
        names = [*kept, "Rows", "Columns", *_LOSSY]
        if self.frame is None and all(self.header.get(name) is not None for name in _PLACE):
            names += _PLACE
        for name in names:
            if name in self.header:
                image[name] = self.header[name]
        for name in _IDENTITY:
            setattr(image, name, None)
        return image


def read_source(row: dict[str, Any]) -> SourceImage:
    """The image that a row was scored from.

    Raises:
        ReadError: ``unreadable``, ``unsupported`` (no DICOM), ``changed`` (another instance).
    """
    from pydicom import dcmread
    from pydicom.uid import VLPhotographicImageStorage

    with open_source(item_of_row(row)) as (file, size):
        if kind_of(file) != "dicom":
            raise ReadError("changed", "the file is no DICOM file any more")
        frames = open_dicom(file, size).frames  # refuses what pydicom would inflate without a limit
        with damage():
            file.seek(0)
            header = dcmread(file, stop_before_pixels=True)
            for name in ("sop_instance_uid", "study_instance_uid", "series_instance_uid"):
                if str(header.get(_KEYWORDS[name], "")).strip("\0 ") != row[name]:
                    raise ReadError("changed", "the file holds another instance by now")
            sop_class = str(header.SOPClassUID)
            header.SOPClassUID = VLPhotographicImageStorage
    frame = (row.get("frame") or 0) + 1 if frames > 1 else None
    return SourceImage(header, sop_class, frame)


_KEYWORDS = {
    "sop_instance_uid": "SOPInstanceUID",
    "study_instance_uid": "StudyInstanceUID",
    "series_instance_uid": "SeriesInstanceUID",
}
