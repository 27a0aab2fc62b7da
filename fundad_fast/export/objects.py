# SPDX-License-Identifier: Apache-2.0
"""The DICOM objects of one row: a picture as Secondary Capture, its regions as a Segmentation.

Nothing in them depends on the clock or on chance: a row of a run gives the same bytes each time.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fundad_fast.export.source import SourceImage
from fundad_fast.report.overlay import F32, U8, Bool, encode_jpeg

if TYPE_CHECKING:
    from highdicom.base import SOPClass
    from pydicom import Dataset

SCHEME = "1"  # another one for objects that look different, as a UID must never name two contents
MAX_REGIONS = 10  # segments of their own, the number that a row names; more share the last one
_QUALITY = 90
_NAMESPACE = uuid.UUID("5f0f6c0e-8d5c-4f4e-9a57-0a2f6a1d6f13")
_MAKER = "fundad_fast"
_SERIES = {"SC": (9001, "anomaly overlay"), "SEG": (9002, "anomaly regions")}


@dataclass(frozen=True)
class Made:
    """What objects say of the run that they come from.

    Attributes:
        run: tells it from other runs.
        method, model, version: of the model, and of the package that scored.
        at: when the run began; the date of its objects.
    """

    run: str
    method: str
    model: str
    version: str
    at: datetime

    def uid(self, kind: str, row: dict[str, Any]) -> str:
        """The instance UID of a row's object; another for each score, so for each content."""
        return self._uid(kind, row["id"], row["sop_instance_uid"], float(row["score"]).hex())

    def series(self, kind: str, source: SourceImage) -> str:
        """One series for each series of the archive and side."""
        header = source.header
        of = str(header.StudyInstanceUID), str(header.SeriesInstanceUID), source.laterality or ""
        return self._uid(f"{kind} series", *of)

    def part(self, uid: str, name: str) -> str:
        """A UID for a part of an object."""
        return self._uid(name, uid)

    def _uid(self, *facts: str) -> str:
        """Source: PS3.5, B.2 (UUID-derived), with a UUID of RFC 4122, 4.3 (from a name)."""
        text = "\0".join([SCHEME, self.run, *facts])
        return f"2.25.{uuid.uuid5(_NAMESPACE, text.encode('utf-8', 'surrogatepass').hex()).int}"


def secondary_capture(
    source: SourceImage, picture: U8, row: dict[str, Any], made: Made, derivation: str
) -> Dataset:
    """A picture ``[h, w, 3]`` uint8 RGB as a Secondary Capture image (JPEG), in the source's study.

    Args:
        derivation: how the picture came about.

    Source: PS3.3, A.8.1 and C.8.6.
    """
    from highdicom.base import SOPClass
    from pydicom.encaps import encapsulate
    from pydicom.sr.codedict import codes
    from pydicom.uid import JPEGBaseline8Bit, SecondaryCaptureImageStorage

    image = SOPClass(
        **_common("SC", source, row, made),
        study_instance_uid=source.header.StudyInstanceUID,
        sop_class_uid=SecondaryCaptureImageStorage,
        modality="OT",
        transfer_syntax_uid=JPEGBaseline8Bit,
    )
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.ConversionType = "WSD"
    image.DateOfSecondaryCapture, image.TimeOfSecondaryCapture = _date(made), _time(made)
    image.PatientOrientation, image.Laterality = None, source.laterality
    image.DerivationDescription = derivation
    reference = source.reference(frame=True)
    reference.PurposeOfReferenceCodeSequence = [
        _code(codes.DCM.SourceImageForImageProcessingOperation)
    ]
    image.SourceImageSequence = [reference]
    # Text of our own never names anybody, but the photograph may: that is the source's to say.
    for name in ("BurnedInAnnotation", "RecognizableVisualFeatures", "AnatomicRegionSequence"):
        if name in source.header:
            image[name] = source.header[name]

    image.Rows, image.Columns, image.SamplesPerPixel = picture.shape
    image.PhotometricInterpretation, image.PlanarConfiguration = "YBR_FULL_422", 0
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    jpeg = encode_jpeg(picture, _QUALITY, "422")
    image.LossyImageCompression = "01"
    image.LossyImageCompressionRatio = f"{picture.size / len(jpeg):.4g}"
    image.LossyImageCompressionMethod = "ISO_10918_1"
    image.PixelData = encapsulate([jpeg])
    image["PixelData"].VR = "OB"
    image["PixelData"].is_undefined_length = True
    return _finished(image, source, made)


@dataclass(frozen=True)
class Regions:
    """The parts of an image that are above the pixel threshold.

    Attributes:
        labels: ``[h, w]`` uint8, 0 outside, then regions from 1, the worst first.
        names: of the regions.
    """

    labels: NDArray[np.uint8]
    names: tuple[str, ...]


def regions_of(scores: F32, inside: Bool | None, threshold: float) -> Regions | None:
    """The 8-connected regions above a threshold, worst first; ``None`` where there is none.

    Args:
        scores: ``[h, w]`` of the image's pixels.
        inside: ``[h, w]``, the part that counts; ``None`` for all.
        threshold: a pixel belongs to a region when its score is above it.

    Returns:
        at most ``MAX_REGIONS`` regions, and one more of all the others together.
    """
    import cv2

    over = scores > threshold
    if inside is not None:
        over &= inside
    count, found = cv2.connectedComponents(over.astype(np.uint8), connectivity=8)
    if count == 1:
        return None
    worst = np.full(count - 1, -np.inf, np.float32)
    np.maximum.at(worst, found[over].astype(np.intp) - 1, scores[over])
    order = np.argsort(-worst, kind="stable")
    number = np.zeros(count, np.uint8)
    number[1 + order] = np.minimum(np.arange(1, count), MAX_REGIONS + 1)
    names = [f"Region {k}, score {worst[i]:.4g}" for k, i in enumerate(order[:MAX_REGIONS], 1)]
    if count - 1 > MAX_REGIONS:
        names.append(f"{count - 1 - MAX_REGIONS} regions more")
    return Regions(number[found], tuple(names))


def segmentation(source: SourceImage, regions: Regions, row: dict[str, Any], made: Made) -> Dataset:
    """Regions of an image as a binary Segmentation, a segment each, in the source's study.

    Source: PS3.3, A.51 and C.8.20; segments are "selected regions" of CID 7150's spatial concepts,
    as a model of healthy images does not say what an abnormality is.
    """
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.valuerep import DT

    algorithm = AlgorithmIdentificationSequence(
        name=f"{_MAKER} {made.method}"[:64],
        family=codes.DCM.ArtificialIntelligence,
        version=made.version,
        parameters={"model": made.model},
    )
    described = [
        SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
            segmented_property_type=codes.DCM.SelectedRegion,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(regions.names, 1)
    ]
    image = Segmentation(
        **_common("SEG", source, row, made),
        source_images=[source.stand_in()],
        pixel_array=regions.labels[None],
        segmentation_type="BINARY",
        segment_descriptions=described,
        content_label="ANOMALY_REGIONS",
        content_description="Above the model's pixel threshold; research use",
    )
    image.ContentCreatorName = None
    if "FrameOfReferenceUID" not in image:
        image.PatientOrientation = None
    _refer(image, source)
    organization = made.part(image.SOPInstanceUID, "dimensions")
    for item in (*image.DimensionOrganizationSequence, *image.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    for item in image.ContributingEquipmentSequence:
        if "ContributionDateTime" in item:
            item.ContributionDateTime = DT(f"{_date(made)}{_time(made)}")
    return _finished(image, source, made)


def _common(kind: str, source: SourceImage, row: dict[str, Any], made: Made) -> dict[str, Any]:
    """What all constructors of highdicom want to know."""
    number, what = _SERIES[kind]
    series = source.header.get("SeriesNumber")
    said = "" if series is None else f" of series {series}"
    return {
        "series_instance_uid": made.series(kind, source),
        "series_number": number,
        "sop_instance_uid": made.uid(kind, row),
        "instance_number": source.frame or source.number("InstanceNumber", 1),
        "manufacturer": _MAKER,
        "manufacturer_model_name": made.method[:64],
        "software_versions": made.version[:64],
        "device_serial_number": made.model[:64],
        "series_description": f"{what}{said}, research use"[:64],
        "series_date": _date(made),
        "series_time": _time(made),
        "content_date": _date(made),
        "content_time": _time(made),
    }


def _finished(image: SOPClass, source: SourceImage, made: Made) -> Dataset:
    """With the patient and study of the source, as they are written there."""
    from pydicom.valuerep import DA, TM

    image.copy_patient_and_study_information(source.header)
    if "SpecificCharacterSet" in source.header:
        image["SpecificCharacterSet"] = source.header["SpecificCharacterSet"]
    # A new one, as highdicom shares its items with the sequence above, which names frames.
    image.ReferencedSeriesSequence = [_series_item(source)]
    image.InstanceCreationDate, image.InstanceCreationTime = DA(_date(made)), TM(_time(made))
    return image


def _refer(image: Dataset, source: SourceImage) -> None:
    """Name the real class and frame wherever the stand-in is named."""
    for element in image:
        if element.VR != "SQ":
            continue
        for item in element.value:
            if item.get("ReferencedSOPInstanceUID") == source.header.SOPInstanceUID:
                item.update(source.reference(frame=True))
            _refer(item, source)


def _series_item(source: SourceImage) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.SeriesInstanceUID = source.header.SeriesInstanceUID
    item.ReferencedInstanceSequence = [source.reference(frame=False)]
    return item


def _code(code: Any) -> Dataset:
    from highdicom.sr import CodedConcept

    return CodedConcept(*code)


def _date(made: Made) -> str:
    return made.at.strftime("%Y%m%d")


def _time(made: Made) -> str:
    return made.at.strftime("%H%M%S")
