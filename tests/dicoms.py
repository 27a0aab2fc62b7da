# SPDX-License-Identifier: Apache-2.0
"""DICOM files for tests, made from arrays; a test that imports this skips without pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
encapsulate = pytest.importorskip("pydicom.encaps").encapsulate
Dataset = pydicom.Dataset
uid = pydicom.uid

PLAIN = uid.ExplicitVRLittleEndian
BASELINE, EXTENDED, LOSSLESS = uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLosslessSV1
JPEG_LS, JPEG_2000, RLE = uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.RLELossless


def dataset(pixels: np.ndarray, **tags: Any) -> Any:
    """The header of an image ``[h, w]``, ``[h, w, 3]`` or ``[n, h, w, c]``, without its pixels."""
    shape = pixels.shape if pixels.ndim == 4 else (1, *pixels.shape, *(1,) * (3 - pixels.ndim))
    ds = Dataset()
    ds.SOPClassUID = uid.VLPhotographicImageStorage
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2", "1.2.9"
    ds.PatientID, ds.ImageLaterality, ds.AcquisitionDate = "P-7", "L", "20240531"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = shape[1:]
    ds.PhotometricInterpretation = "MONOCHROME2" if shape[3] == 1 else "RGB"
    if shape[3] == 3:
        ds.PlanarConfiguration = 0
    bits = pixels.dtype.itemsize * 8
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit, ds.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
    if shape[0] > 1:
        ds.NumberOfFrames = shape[0]
    for name, value in tags.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    if "BitsStored" in tags and "HighBit" not in tags:
        ds.HighBit = ds.BitsStored - 1
    return ds


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    frames: list[bytes] | None = None,
    *,
    syntax: str = PLAIN,
    raw: bytes | None = None,
    **tags: Any,
) -> Path:
    """A file of the pixels; of compressed ``frames``, or of ``raw`` bytes, where they are given."""
    ds = dataset(pixels, **tags)
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    if frames is not None:
        ds.PixelData = encapsulate(frames)
        ds["PixelData"].is_undefined_length = True
    else:
        data = pixels.tobytes() if raw is None else raw
        ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if ds.BitsAllocated <= 8 or frames is not None else "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return path
