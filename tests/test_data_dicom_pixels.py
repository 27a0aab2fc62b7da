# SPDX-License-Identifier: Apache-2.0
"""Pixels of DICOM: compressed frames, colour spaces, planes and palettes, from known arrays."""

from __future__ import annotations

import struct

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
    H,
    W,
    colours,
    deep_grey,
    refused,
    rle,
    write_dicom,
)
from pydicom.pixels import convert_color_space

from fundad_fast.data import read_image
from fundad_fast.data.opening import read_header
from fundad_fast.data.readers import PixelBuffer

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")


@pytest.fixture
def rgb() -> np.ndarray:
    return colours()


@pytest.fixture
def deep() -> np.ndarray:
    return deep_grey()


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
