# SPDX-License-Identifier: Apache-2.0
"""DICOM files for tests, made from arrays; a test that imports this skips without pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundad_fast.data import ReadError, read_image

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
encapsulate = pytest.importorskip("pydicom.encaps").encapsulate
encoders = pytest.importorskip("pydicom.pixels.encoders")
Dataset = pydicom.Dataset
uid = pydicom.uid

PLAIN = uid.ExplicitVRLittleEndian
BASELINE, EXTENDED, LOSSLESS = uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLosslessSV1
H, W = 34, 50
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


def colours() -> np.ndarray:
    """``[H, W, 3]`` uint8, smooth and different in every channel."""
    y, x = np.mgrid[:H, :W]
    return np.stack([x * 5, y * 7, 255 - x * 3], -1).astype(np.uint8)


def deep_grey() -> np.ndarray:
    """``[H, W]`` uint16 of 12 bits."""
    return np.random.default_rng(3).integers(0, 4096, (H, W)).astype(np.uint16)


def refused(source, status, *words, **options) -> ReadError:
    with pytest.raises(ReadError) as caught:
        read_image(source, **options)
    assert caught.value.status == status, caught.value
    for word in words:
        assert word in caught.value.reason, caught.value
    return caught.value


def rle(pixels: np.ndarray) -> bytes:
    samples = 1 if pixels.ndim == 2 else 3
    return encoders.RLELosslessEncoder.encode(
        pixels.tobytes(),
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        samples_per_pixel=samples,
        bits_allocated=pixels.dtype.itemsize * 8,
        bits_stored=pixels.dtype.itemsize * 8,
        pixel_representation=0,
        photometric_interpretation="RGB" if samples == 3 else "MONOCHROME2",
        number_of_frames=1,
        planar_configuration=0,
    )
