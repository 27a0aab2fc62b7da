# SPDX-License-Identifier: Apache-2.0
"""DICOM against pydicom's own pixels and against arrays that the files were made of."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import simplejpeg
from dicoms import (
    BASELINE,
    JPEG_2000,
    JPEG_LS,
    RLE,
    colours,
    deep_grey,
    pydicom,
    refused,
    rle,
    write_dicom,
)
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from fundad_fast.data import DataError, InputSpec, Loader, ReadError, discover, read_image
from fundad_fast.data.items import Identifiers, Item
from fundad_fast.data.opening import read_header
from fundad_fast.data.readers import read_mask, read_picture

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")

SAMPLES = "dicom_samples"


@pytest.fixture
def rgb() -> np.ndarray:
    return colours()


@pytest.fixture
def deep() -> np.ndarray:
    return deep_grey()


def shown(path: Path, frame: int | None = None) -> np.ndarray:
    """What pydicom makes of a grey file, as a share of the output range of its window."""
    ds = pydicom.dcmread(path)
    stored = ds.pixel_array if frame is None else ds.pixel_array[frame]
    values = apply_voi_lut(apply_modality_lut(stored, ds), ds, prefer_lut=True).astype(float)
    signed, bits = ds.PixelRepresentation, ds.BitsStored
    ends = np.array([-(2 ** (bits - 1)) if signed else 0, 2 ** (bits - signed) - 1], float)
    ends = ends * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
    share = (values - ends[0]) / (ends[1] - ends[0])
    return 1 - share if ds.PhotometricInterpretation == "MONOCHROME1" else share


# -- the sample files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["MR_small", "MR_small_bigendian", "MR_small_implicit", "MR2_UNCR", "CT_small"]
)
def test_grey_values_are_pydicoms(packs, name):
    path = packs / SAMPLES / f"{name}.dcm"
    pixels = read_image(path)
    assert pixels.dtype == np.uint16
    np.testing.assert_allclose(pixels[:, :, 0] / 65535, shown(path), atol=0.6 / 65535)


def test_a_signed_window_with_padding(packs):
    path = packs / SAMPLES / "693_UNCI.dcm"
    expected = shown(path)
    expected[pydicom.dcmread(path).pixel_array == -2000] = 0
    np.testing.assert_allclose(read_image(path)[:, :, 0] / 65535, expected, atol=0.6 / 65535)


@pytest.mark.parametrize("kind", ["RLE", "jp2klossless", "jpeg_ls_lossless"])
def test_lossless_frames_are_those_of_the_uncompressed_file(packs, kind):
    expected = read_image(packs / SAMPLES / "MR_small.dcm")
    np.testing.assert_array_equal(read_image(packs / SAMPLES / f"MR_small_{kind}.dcm"), expected)


def test_every_sample_file(packs):
    files = sorted((packs / SAMPLES).glob("*.dcm"))
    assert len(files) == 16
    dataset = discover(packs / SAMPLES)
    assert len(dataset.items) == 14 + 2 * 10  # two of ten frames; a segmentation is one row
    for item in dataset.items:
        if item.id.startswith("liver"):
            refused(item, "unsupported", "segmentation")
            continue
        picture = read_picture(item)
        assert picture.pixels.shape[:2] == read_header(item).shape
        assert picture.pixels.std() > 0
        assert picture.identifiers.sop_instance_uid.startswith("1.")


def test_frames_of_a_file_and_of_its_compressed_twin(packs):
    for k in (0, 3, 9):
        plain = read_image(packs / SAMPLES / "emri_small.dcm", frame=k)
        packed = read_image(packs / SAMPLES / "emri_small_RLE.dcm", frame=k)
        np.testing.assert_array_equal(plain, packed)
        stored = pydicom.dcmread(packs / SAMPLES / "emri_small.dcm").pixel_array[k]
        np.testing.assert_allclose(plain[:, :, 0] / 65535, stored / 4095, atol=0.6 / 65535)


def test_monochrome1_and_the_identifiers(packs):
    picture = read_picture(packs / SAMPLES / "RG3_J2KR.dcm")
    assert picture.identifiers.laterality == "R"
    assert picture.identifiers.acquired == "1992-12-25"
    stored = imagecodecs.jpeg2k_decode(
        pydicom.encaps.get_frame(
            pydicom.dcmread(packs / SAMPLES / "RG3_J2KR.dcm").PixelData, 0, number_of_frames=1
        )
    ).astype(float)
    expected = 1 - np.clip((stored - 549.5) / 1023 + 0.5, 0, 1)
    np.testing.assert_allclose(picture.pixels[:, :, 0] / 65535, expected, atol=0.6 / 65535)


def test_bits_of_a_segmentation_as_a_mask(packs):
    expected = pydicom.dcmread(packs / SAMPLES / "liver.dcm").pixel_array[0] > 0
    assert expected.any()
    np.testing.assert_array_equal(read_mask(packs / SAMPLES / "liver.dcm"), expected)


# -- made ones -----------------------------------------------------------------------------------


def test_identifiers(tmp_path, rgb):
    picture = read_picture(write_dicom(tmp_path / "a.dcm", rgb))
    np.testing.assert_array_equal(picture.pixels, rgb)
    assert picture.identifiers == Identifiers("1.2.3", "1.2", "1.2.9", "P-7", "L", "2024-05-31")


@pytest.mark.parametrize(
    "tags, laterality, acquired",
    [
        ({"ImageLaterality": "U"}, None, "2024-05-31"),
        ({"ImageLaterality": None, "Laterality": "R"}, "R", "2024-05-31"),
        ({"AcquisitionDate": "2024.02.01"}, "L", "2024-02-01"),
        ({"AcquisitionDate": "20240231", "StudyDate": "20240101"}, "L", "2024-01-01"),
        ({"AcquisitionDateTime": "20230704101500.5+0200"}, "L", "2023-07-04"),
        ({"AcquisitionDate": ""}, "L", None),
    ],
)
def test_sides_and_days(tmp_path, rgb, tags, laterality, acquired):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_dicom(tmp_path / "a.dcm", rgb, **tags)
    found = read_picture(path).identifiers
    assert (found.laterality, found.acquired) == (laterality, acquired)


def test_rows_get_the_identifiers_and_a_manifest_comes_first(tmp_path, rgb):
    write_dicom(tmp_path / "a.dcm", rgb)
    write_dicom(tmp_path / "b.dcm", rgb, raw=b"\0\0")
    (tmp_path / "c.jpg").write_bytes(simplejpeg.encode_jpeg(rgb))
    (tmp_path / "manifest.csv").write_text("path,patient_id\na.dcm,mine\nb.dcm,\nc.jpg,\n")
    spec = InputSpec(image_size=32, fov="none")
    (chunk,) = Loader(discover(tmp_path).items, spec)
    good, plain = chunk.items
    assert (good.patient_id, good.laterality, good.identifiers.patient_id) == ("mine", "L", "P-7")
    assert plain.identifiers is None
    (failure,) = chunk.failures
    assert failure.status == "unreadable"
    assert failure.item.patient_id == "P-7"


# -- frames --------------------------------------------------------------------------------------


def test_frames_are_items(tmp_path, rgb):
    frames = np.stack([rgb, 255 - rgb, rgb // 2])
    write_dicom(tmp_path / "scan" / "many.dcm", frames)
    write_dicom(tmp_path / "scan" / "one", rgb)
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    dataset = discover(tmp_path)
    ids = ["scan/many.dcm#0", "scan/many.dcm#1", "scan/many.dcm#2", "scan/one"]
    assert [item.id for item in dataset.items] == ids
    assert [item.frame for item in dataset.items] == [0, 1, 2, None]
    assert "1 file of several frames" in dataset.describe()
    for item, expected in zip(dataset.items, (*frames, rgb)):
        np.testing.assert_array_equal(read_image(item), expected)
    path = tmp_path / "scan" / "many.dcm"
    refused(path, "unsupported", "3 frames")
    np.testing.assert_array_equal(read_image(path, first_page=True), rgb)
    refused(path, "unreadable", "no frame 3", frame=3)
    refused(tmp_path / "scan" / "one", "unreadable", "no frame 1", frame=1)


def test_a_file_that_changes_between_its_frames(tmp_path, rgb):
    path = write_dicom(tmp_path / "many.dcm", np.stack([rgb, rgb]))
    items = discover(path).items
    np.testing.assert_array_equal(read_image(items[0]), rgb)
    other = np.stack([rgb[:20], rgb[:20] // 2, rgb[:20]])
    write_dicom(path, other)
    np.testing.assert_array_equal(read_image(items[1]), other[1])


def test_missing_frames_are_rows(tmp_path, rgb):
    frames = np.stack([rgb] * 3)
    path = write_dicom(tmp_path / "many.dcm", frames, raw=frames[:2].tobytes())
    items = discover(path).items
    assert len(items) == 3
    np.testing.assert_array_equal(read_image(items[1]), rgb)
    refused(items[2], "unreadable", "frame 2 of 3", "cut short")


def test_frames_in_parts(tmp_path, rgb):
    frames = [simplejpeg.encode_jpeg(x, 95) for x in (rgb, 255 - rgb)]
    shape = np.stack([rgb, rgb])
    tags = {"syntax": BASELINE, "PhotometricInterpretation": "YBR_FULL_422"}
    path = write_dicom(tmp_path / "many.dcm", shape, frames, **tags)
    for k in (1, 0):
        expected = simplejpeg.decode_jpeg(frames[k])
        np.testing.assert_array_equal(read_image(path, frame=k), expected)
    path = write_dicom(tmp_path / "few.dcm", shape, frames[:1], **tags)
    refused(path, "unreadable", frame=1)


def test_frame_windows_of_functional_groups(tmp_path, deep):
    def group(slope, centre):
        item, pixel, voi = (pydicom.Dataset() for _ in range(3))
        pixel.RescaleSlope, pixel.RescaleIntercept = slope, 0
        voi.WindowCenter, voi.WindowWidth = centre, 100
        item.PixelValueTransformationSequence, item.FrameVOILUTSequence = [pixel], [voi]
        return item

    frames = np.stack([deep[..., None]] * 2)
    shared = group(9, 9)
    own = group(2, 3000)
    path = write_dicom(
        tmp_path / "a.dcm",
        frames,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[own],  # none for the second frame
    )
    for frame, slope, centre in ((0, 2, 3000), (1, 9, 9)):
        expected = np.clip((deep.astype(float) * slope - centre + 0.5) / 99 + 0.5, 0, 1)
        found = read_image(path, frame=frame)[:, :, 0] / 65535
        np.testing.assert_allclose(found, expected, atol=0.6 / 65535)


# -- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tags, status, word",
    [
        ({"PhotometricInterpretation": "YBR_PARTIAL_420"}, "unsupported", "YBR_PARTIAL_420"),
        ({"PhotometricInterpretation": None}, "unreadable", "PhotometricInterpretation"),
        ({"SamplesPerPixel": 1}, "unreadable", "1 samples"),
        ({"Rows": None}, "unreadable", "Rows"),
        ({"Rows": 0}, "unreadable", "50 x 0"),
        ({"BitsStored": 9}, "unreadable", "9 bits"),
        ({"BitsStored": 4, "HighBit": 2}, "unreadable", "4 bits up to bit 2"),
        ({"BitsAllocated": 12}, "unsupported", "12 bits"),
        ({"Rows": 60000, "Columns": 60000}, "too_large", "3600.0 megapixels"),
        ({"NumberOfFrames": 2_000_000_000}, "unreadable", "2000000000 frames"),
        ({"NumberOfFrames": -1}, "unreadable", "-1 frames"),
    ],
)
def test_headers_that_cannot_be(tmp_path, rgb, tags, status, word):
    path = write_dicom(tmp_path / "a.dcm", rgb, **tags)
    assert [item.id for item in discover(path).items] == ["a.dcm"]
    error = refused(path, status, word)
    assert error.identifiers.patient_id == "P-7"


def test_transfer_syntaxes_that_are_not_read(tmp_path, rgb):
    path = write_dicom(tmp_path / "a.dcm", rgb, [b"\0" * 100], syntax="1.2.840.10008.1.2.4.100")
    refused(path, "unsupported", "MPEG2")
    data = bytearray(write_dicom(tmp_path / "b.dcm", rgb).read_bytes())
    at = data.index(b"1.2.840.10008.1.2.1\0")
    data[at : at + 20] = b"1.2.840.10008.1.2.1.99"[:20]
    refused(bytes(data), "unsupported", "1.2.840.10008.1.2.1.")


def test_objects_without_an_image(tmp_path, rgb):
    ds = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", rgb))
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    del ds.PixelData
    pydicom.dcmwrite(tmp_path / "sr.dcm", ds)
    error = refused(tmp_path / "sr.dcm", "unsupported", "without an image", "Basic Text SR")
    assert error.identifiers.study_instance_uid == "1.2"


def test_a_frame_larger_than_declared_is_not_decoded(tmp_path, rgb):
    big = np.zeros((4000, 4000, 3), np.uint8)
    for syntax, frame in (
        (BASELINE, simplejpeg.encode_jpeg(big)),
        (JPEG_2000, imagecodecs.jpeg2k_encode(big[:999], codecformat="j2k")),
        (JPEG_LS, imagecodecs.jpegls_encode(big[:999])),
    ):
        path = write_dicom(tmp_path / "a.dcm", rgb, [frame], syntax=syntax)
        refused(path, "unreadable", "the header declares 50 x 34 x 3")


def test_every_cut_ends_in_a_reason(tmp_path, rgb, deep):
    frame = simplejpeg.encode_jpeg(rgb, 90)
    files = [
        write_dicom(tmp_path / "plain.dcm", deep, WindowCenter=9, WindowWidth=50),
        write_dicom(tmp_path / "jpeg.dcm", rgb, [frame], syntax=BASELINE),
        write_dicom(tmp_path / "rle.dcm", deep, [rle(deep)], syntax=RLE),
    ]
    for path in files:
        data = path.read_bytes()
        read_image(data)
        for cut in range(132, len(data) - 10, 37):
            with pytest.raises(ReadError) as caught:
                read_image(data[:cut])
            assert caught.value.status in ("unreadable", "unsupported")
        rng = np.random.default_rng(1)
        for _ in range(300):
            broken = bytearray(data)
            for at in rng.integers(132, len(data), 3):
                broken[at] = rng.integers(256)
            with contextlib.suppress(ReadError):  # and no other error
                read_image(bytes(broken), max_megapixels=1)


def test_an_open_file_stays_open(tmp_path, rgb):
    path = write_dicom(tmp_path / "a.dcm", rgb)
    with open(path, "rb") as file:
        np.testing.assert_array_equal(read_image(file), rgb)
        assert not file.closed
    np.testing.assert_array_equal(read_image(io.BytesIO(path.read_bytes())), rgb)


def test_pydicom_is_not_there(tmp_path, rgb, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", np.stack([rgb, rgb]))
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    (item,) = discover(path).items
    refused(item, "unsupported", "pip install pydicom")


def test_two_files_of_one_id(tmp_path, rgb):
    path = write_dicom(tmp_path / "a.dcm", np.stack([rgb, rgb]))
    (tmp_path / "m.csv").write_text(f"path,id\n{path},x\n{path},x\n")
    with pytest.raises(DataError, match=r"the id x#0 is listed twice"):
        discover(tmp_path / "m.csv")


def test_an_item_of_a_frame_needs_no_listing(tmp_path, rgb):
    path = write_dicom(tmp_path / "a.dcm", np.stack([rgb, 255 - rgb]))
    np.testing.assert_array_equal(read_image(Item("x", str(path), frame=1)), 255 - rgb)
