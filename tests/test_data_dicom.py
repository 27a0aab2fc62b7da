# SPDX-License-Identifier: Apache-2.0
"""DICOM against pydicom's own pixels and against arrays that the files were made of."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import simplejpeg
from dicoms import (
    BASELINE,
    EXTENDED,
    JPEG_2000,
    JPEG_LS,
    LOSSLESS,
    PLAIN,
    RLE,
    pydicom,
    write_dicom,
)
from pydicom.pixels import apply_modality_lut, apply_voi_lut, convert_color_space
from pydicom.pixels.encoders import RLELosslessEncoder

from fundad_fast.data import DataError, InputSpec, Loader, ReadError, discover, read_image
from fundad_fast.data.items import Identifiers, Item
from fundad_fast.data.opening import read_header
from fundad_fast.data.readers import PixelBuffer, read_mask, read_picture

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")

H, W = 34, 50
SAMPLES = "dicom_samples"


@pytest.fixture
def rgb() -> np.ndarray:
    y, x = np.mgrid[:H, :W]
    return np.stack([x * 5, y * 7, 255 - x * 3], -1).astype(np.uint8)


@pytest.fixture
def deep() -> np.ndarray:
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
    return RLELosslessEncoder.encode(
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


@pytest.mark.parametrize("quality, sampling", [(95, "420"), (90, "422"), (100, "444")])
def test_baseline_frames_go_to_libjpeg_turbo_as_they_are(tmp_path, rgb, quality, sampling):
    frame = simplejpeg.encode_jpeg(rgb, quality, colorsubsampling=sampling)
    path = write_dicom(
        tmp_path / "a.dcm",
        rgb,
        [frame],
        syntax=BASELINE,
        PhotometricInterpretation="YBR_FULL_422",
    )
    np.testing.assert_array_equal(read_image(path), simplejpeg.decode_jpeg(frame))


def test_baseline_frames_are_decoded_into_kept_memory(tmp_path, rgb):
    frames = [simplejpeg.encode_jpeg(x, 90) for x in (rgb, 255 - rgb)]
    tags = {"syntax": BASELINE, "PhotometricInterpretation": "YBR_FULL_422"}
    paths = [write_dicom(tmp_path / f"{i}.dcm", rgb, [f], **tags) for i, f in enumerate(frames)]
    buffer = PixelBuffer()
    first = read_image(paths[0], buffer=buffer)
    np.testing.assert_array_equal(first, simplejpeg.decode_jpeg(frames[0]))
    second = read_image(paths[1], buffer=buffer)
    np.testing.assert_array_equal(second, simplejpeg.decode_jpeg(frames[1]))
    assert np.shares_memory(first, second)


def test_grey_baseline(tmp_path, rgb):
    grey = np.ascontiguousarray(rgb[:, :, :1])
    frame = simplejpeg.encode_jpeg(grey, 95, colorspace="GRAY")
    path = write_dicom(tmp_path / "a.dcm", grey[:, :, 0], [frame], syntax=BASELINE)
    np.testing.assert_array_equal(read_image(path), simplejpeg.decode_jpeg(frame, "GRAY"))


def without_markers(frame: bytes) -> bytes:
    """A JPEG that says nothing of its colours: without JFIF, components named 0, 1, 2."""
    assert frame[2:4] == b"\xff\xe0"
    (length,) = struct.unpack(">H", frame[4:6])
    return frame[:2] + frame[4 + length :]


@pytest.mark.parametrize("photometric, said", [("RGB", "RGB"), ("YBR_FULL_422", "YCBCR")])
def test_a_jpeg_that_says_nothing_is_what_the_header_says(tmp_path, rgb, photometric, said):
    frame = imagecodecs.jpeg8_encode(rgb, 98, colorspace="RGB", outcolorspace=said)
    if said == "YCBCR":
        frame = without_markers(frame)
    else:  # drop Adobe's marker, which would say it
        at = frame.index(b"Adobe") - 4
        (length,) = struct.unpack(">H", frame[at + 2 : at + 4])
        frame = frame[:at] + frame[at + 2 + length :]
        for name, number in zip(b"RGB", (1, 2, 3)):  # in the frame's header and the scan's
            frame = frame.replace(bytes((name, 0x11)), bytes((number, 0x11)))
            frame = frame.replace(bytes((name, 0x00)), bytes((number, 0x00)), 1)
    path = write_dicom(
        tmp_path / "a.dcm", rgb, [frame], syntax=BASELINE, PhotometricInterpretation=photometric
    )
    assert np.abs(read_image(path).astype(int) - rgb).mean() < 8


@pytest.mark.parametrize("said", ["RGB", "YCBCR"])
def test_what_a_jpeg_says_of_its_colours_comes_before_the_header(tmp_path, rgb, said):
    frame = imagecodecs.jpeg8_encode(rgb, 98, colorspace="RGB", outcolorspace=said)
    other = {"RGB": "YBR_FULL_422", "YCBCR": "RGB"}[said]
    path = write_dicom(
        tmp_path / "a.dcm", rgb, [frame], syntax=BASELINE, PhotometricInterpretation=other
    )
    assert np.abs(read_image(path).astype(int) - rgb).mean() < 8


@pytest.mark.parametrize("photometric, transformed", [("YBR_RCT", True), ("YBR_FULL", False)])
def test_chroma_of_jpeg_2000(tmp_path, rgb, photometric, transformed):
    stored = rgb if transformed else convert_color_space(rgb, "RGB", "YBR_FULL")
    frame = imagecodecs.jpeg2k_encode(stored, codecformat="j2k", level=0, mct=transformed)
    tags = {"syntax": JPEG_2000, "PhotometricInterpretation": photometric}
    path = write_dicom(tmp_path / "a.dcm", rgb, [frame], **tags)
    assert np.abs(read_image(path).astype(int) - rgb).max() <= 2


def test_twelve_bits_of_jpeg(tmp_path, deep):
    smooth = (np.add.outer(np.arange(H), np.arange(W)) * 40).astype(np.uint16)
    frame = imagecodecs.jpeg8_encode(smooth, 100, bitspersample=12)
    tags = {"syntax": EXTENDED, "BitsStored": 12}
    path = write_dicom(tmp_path / "a.dcm", smooth, [frame], **tags)
    pixels = read_image(path)
    assert pixels.dtype == np.uint16
    np.testing.assert_allclose(pixels[:, :, 0] / 65535 * 4095, smooth, atol=12)
    cut = write_dicom(tmp_path / "b.dcm", smooth, [frame[: len(frame) // 2]], **tags)
    refused(cut, "unreadable", "ends early")


@pytest.mark.parametrize(
    "syntax, encode",
    [
        (JPEG_2000, lambda x: imagecodecs.jpeg2k_encode(x, codecformat="j2k", level=0)),
        (JPEG_LS, imagecodecs.jpegls_encode),
        (LOSSLESS, lambda x: imagecodecs.ljpeg_encode(x, bitspersample=12)),
        (RLE, rle),
    ],
)
def test_lossless_compression_of_deep_grey(tmp_path, deep, syntax, encode):
    plain = read_image(write_dicom(tmp_path / "p.dcm", deep, BitsStored=12))
    frame = encode(deep)
    path = write_dicom(tmp_path / "a.dcm", deep, [frame], syntax=syntax, BitsStored=12)
    np.testing.assert_array_equal(read_image(path), plain)
    np.testing.assert_array_equal(plain[:, :, 0], np.floor(deep / 4095 * 65535 + 0.5))
    for cut in (3, 60, len(frame) // 2, len(frame) - 40):
        part = write_dicom(
            tmp_path / f"{cut}.dcm", deep, [frame[:cut]], syntax=syntax, BitsStored=12
        )
        refused(part, "unreadable")


@pytest.mark.parametrize(
    "syntax, encode",
    [
        (JPEG_2000, lambda x: imagecodecs.jpeg2k_encode(x, codecformat="j2k", level=0)),
        (JPEG_2000, lambda x: imagecodecs.jpeg2k_encode(x, codecformat="jp2", level=0)),
        (JPEG_LS, imagecodecs.jpegls_encode),
        (RLE, rle),
    ],
)
def test_lossless_compression_of_colour(tmp_path, rgb, syntax, encode):
    path = write_dicom(tmp_path / "a.dcm", rgb, [encode(rgb)], syntax=syntax)
    np.testing.assert_array_equal(read_image(path), rgb)


@pytest.mark.parametrize("syntax", [PLAIN, RLE, JPEG_LS])
def test_luminance_and_chroma(tmp_path, rgb, syntax):
    ybr = convert_color_space(rgb, "RGB", "YBR_FULL")
    encode = {PLAIN: None, RLE: rle, JPEG_LS: imagecodecs.jpegls_encode}[syntax]
    path = write_dicom(
        tmp_path / "a.dcm",
        ybr,
        [encode(ybr)] if encode else None,
        syntax=syntax,
        PhotometricInterpretation="YBR_FULL",
    )
    np.testing.assert_array_equal(read_image(path), convert_color_space(ybr, "YBR_FULL", "RGB"))
    assert np.abs(read_image(path).astype(int) - rgb).max() <= 2


def test_uncompressed_ybr_422(tmp_path, rgb):
    smooth = np.repeat(rgb[:, ::2], 2, axis=1)
    ybr = convert_color_space(smooth, "RGB", "YBR_FULL")
    raw = np.stack([ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], -1)
    path = write_dicom(
        tmp_path / "a.dcm", smooth, raw=raw.tobytes(), PhotometricInterpretation="YBR_FULL_422"
    )
    assert np.abs(read_image(path).astype(int) - smooth).max() <= 2


def test_planes(tmp_path, rgb):
    raw = np.ascontiguousarray(rgb.transpose(2, 0, 1)).tobytes()
    path = write_dicom(tmp_path / "a.dcm", rgb, raw=raw, PlanarConfiguration=1)
    np.testing.assert_array_equal(read_image(path), rgb)


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes(tmp_path, bits):
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 200, (H, W)).astype(np.uint8)
    palette = rng.integers(0, 256, (3, 200)).astype(np.uint16)
    entries = palette * 257 if bits == 16 else palette
    tags: dict = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in zip(("Red", "Green", "Blue"), entries):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [200, 0, bits]
        tags[f"{name}PaletteColorLookupTableData"] = values.astype(
            "<u2" if bits == 16 else np.uint8
        ).tobytes()
    path = write_dicom(tmp_path / "a.dcm", indices, **tags)
    np.testing.assert_array_equal(read_image(path), palette.T[indices].astype(np.uint8))
    assert read_header(str(path)).channels == 3


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
    assert "1 files of several frames" in dataset.describe()
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
