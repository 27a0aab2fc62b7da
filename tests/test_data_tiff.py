# SPDX-License-Identifier: Apache-2.0
"""TIFF: the kinds that are read, bit for bit, and a reason for those that are not."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from fundad_fast.data import ReadError, read_image
from fundad_fast.data.opening import read_header

H, W = 24, 33


def values(dtype, channels=3, seed=0):
    shape = (H, W, channels) if channels > 1 else (H, W)
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def refused(path, status, *words, **options):
    with pytest.raises(ReadError) as caught:
        read_image(path, **options)
    assert caught.value.status == status, caught.value
    for word in words:
        assert word in caught.value.reason


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits", "zstd"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_bit_is_kept(tmp_path, compression, dtype, channels):
    expected = values(dtype, channels)
    photometric = "rgb" if channels == 3 else "minisblack"
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, expected, photometric=photometric, compression=compression)
    pixels = read_image(path)
    assert pixels.dtype == dtype
    np.testing.assert_array_equal(pixels, expected.reshape(H, W, channels))
    header = read_header(str(path))
    assert (header.shape, header.channels) == ((H, W), channels)
    assert header.bit_depth == 8 * np.dtype(dtype).itemsize


@pytest.mark.parametrize(
    "options",
    [{"tile": (16, 16)}, {"rowsperstrip": 5}, {"bigtiff": True}, {"byteorder": ">"}]
    + [{"predictor": True, "compression": "zlib"}],
)
def test_ways_of_storing(tmp_path, options):
    expected = values(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", expected, photometric="rgb", **options)
    pixels = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.dtype.isnative


def test_channels_in_planes(tmp_path):
    expected = values(np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, expected.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float(tmp_path, dtype):
    expected = values(dtype, 1)
    tifffile.imwrite(tmp_path / "a.tif", expected)
    pixels = read_image(tmp_path / "a.tif")
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels[..., 0], expected.astype(np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_is_non_finite(tmp_path, bad):
    array = values(np.float32, 1)
    array[2, 3] = array[4, 5] = bad
    tifffile.imwrite(tmp_path / "a.tif", array)
    refused(tmp_path / "a.tif", "non_finite", f"2 of {H * W}")


def test_float64_beyond_float32_is_non_finite(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((H, W), 1e300))
    refused(tmp_path / "a.tif", "non_finite")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_is_turned_round(tmp_path, dtype):
    array = values(dtype, 1)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite")
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.tif")[..., 0], np.iinfo(dtype).max - array
    )


def test_bilevel(tmp_path):
    array = values(np.uint8, 1) > 128
    Image.fromarray(array).save(tmp_path / "a.tif", compression="group4")
    tifffile.imwrite(tmp_path / "b.tif", array)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[..., 0], array * np.uint8(255))
    # tifffile's own choice for bool is "white is zero".
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif")[..., 0], ~array * np.uint8(255))


def test_a_palette_is_expanded(tmp_path):
    image = Image.fromarray(values(np.uint8)).quantize(16)
    image.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("photometric", ["ycbcr", "rgb"])
def test_jpeg_in_tiff_is_rgb(tmp_path, photometric):
    y, x = np.mgrid[:64, :64]
    smooth = np.stack([3 * x, 2 * y, x + y], axis=2).astype(np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth, photometric=photometric, compression="jpeg")
    expected = np.asarray(Image.open(path).convert("RGB"))
    assert np.abs(read_image(path).astype(int) - expected).max() <= 1


def test_pages_are_counted_and_the_first_is_a_choice(tmp_path):
    pages = np.stack([values(np.uint8, 1, seed) for seed in range(3)])
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pages, photometric="minisblack")
    refused(path, "unsupported", "3 pages", "pages=first")
    np.testing.assert_array_equal(read_image(path, first_page=True)[..., 0], pages[0])
    tifffile.imwrite(path, pages, imagej=True)
    refused(path, "unsupported", "3 pages")


def test_a_thumbnail_is_no_page(tmp_path):
    expected = values(np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(expected, photometric="rgb", subifds=0)
        tif.write(expected[::2, ::2], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize(
    "array, options, words",
    [
        (values(np.int16, 1), {}, ("16-bit signed", "unsigned")),
        (values(np.uint32, 1), {}, ("32-bit unsigned",)),
        (values(np.uint8, 4), {"photometric": "separated"}, ("CMYK",)),
        (values(np.uint8, 3), {"photometric": "cielab"}, ("CIELAB",)),
        (values(np.uint8, 5), {"photometric": "minisblack", "planarconfig": "contig"}, ("5 samp",)),
        (np.ones((H, W), np.complex64), {}, ("complex",)),
    ],
)
def test_kinds_that_are_not_read(tmp_path, array, options, words):
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    refused(tmp_path / "a.tif", "unsupported", *words)


def test_parts_that_are_missing_are_not_filled_with_black(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", values(np.uint8), photometric="rgb", rowsperstrip=6)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tif:
        counts = tif.pages[0].tags["StripByteCounts"]
        counts.overwrite([counts.value[0], 0, *counts.value[2:]])
    refused(tmp_path / "a.tif", "unreadable", "lacks parts")
