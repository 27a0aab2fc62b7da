# SPDX-License-Identifier: Apache-2.0
"""Readers: pixels against Pillow's and tifffile's own, and a status and a reason for the rest."""

import io
import os
import random
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from fundad_fast.data import ReadError, read_image, read_mask
from fundad_fast.data.headers import sniff
from fundad_fast.data.opening import read_header
from fundad_fast.data.readers import PixelBuffer

H, W = 24, 33


@pytest.fixture
def rgb():
    """Smooth, so that JPEG is close, and different in every channel and direction."""
    y, x = np.mgrid[:H, :W]
    return np.stack([6 * x, 9 * y, 3 * (x + y)], axis=2).astype(np.uint8)


def save(path, array, kind="PNG", **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, kind, **options)
    return path


def refused(path, status, *words, **options):
    with pytest.raises(ReadError) as caught:
        read_image(path, **options)
    assert caught.value.status == status, caught.value
    for word in words:
        assert word in caught.value.reason
    assert "\n" not in caught.value.reason
    return caught.value


# -- JPEG ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_has_the_pixels_that_pillow_sees(tmp_path, rgb, options):
    path = save(tmp_path / "a.jpg", rgb, "JPEG", quality=95, **options)
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(path)))


def test_a_grey_jpeg_has_one_channel(tmp_path, rgb):
    path = save(tmp_path / "a.jpg", rgb[..., 0], "JPEG")
    assert read_image(path).shape == (H, W, 1)
    assert read_header(str(path)).channels == 1


def test_a_jpeg_stored_as_rgb_keeps_its_colours(tmp_path, rgb):
    path = save(tmp_path / "a.jpg", rgb, "JPEG", quality=100, keep_rgb=True)
    assert np.abs(read_image(path).astype(int) - rgb).max() <= 2


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.995])
def test_a_jpeg_cut_short_is_unreadable(tmp_path, rgb, progressive, part):
    big = np.kron(rgb, np.ones((8, 8, 1), np.uint8))
    path = save(tmp_path / "a.jpg", big, "JPEG", progressive=progressive)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    refused(path, "unreadable", "damaged JPEG" if part > 0.5 else "")


def test_a_jpeg_cut_short_and_closed_again_is_unreadable(tmp_path, rgb):
    big = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    path = save(tmp_path / "a.jpg", big, "JPEG")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    refused(path, "unreadable", "damaged JPEG")


def test_what_follows_a_jpeg_does_not_matter(tmp_path, rgb):
    path = save(tmp_path / "a.jpg", rgb, "JPEG")
    expected = read_image(path)
    path.write_bytes(path.read_bytes() + b"maker's own data" * 9)
    np.testing.assert_array_equal(read_image(path), expected)


def test_cmyk_is_unsupported_and_says_what_to_do(tmp_path, rgb):
    path = save(tmp_path / "a.jpg", Image.fromarray(rgb).convert("CMYK"), "JPEG")
    refused(path, "unsupported", "CMYK", "RGB")


def test_a_12_bit_jpeg_is_unsupported(tmp_path):
    frame = struct.pack(">BBHBHHB", 0xFF, 0xC1, 11, 12, 40, 40, 1) + b"\x01\x11\x00"
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8" + frame)
    refused(tmp_path / "a.jpg", "unsupported", "12-bit")


def test_headers_of_a_jpeg_that_are_legal_and_rare(tmp_path, rgb):
    path = save(tmp_path / "a.jpg", rgb, "JPEG")
    expected, data = read_image(path), path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xff\xff" + data[2:])  # fill bytes, then a marker's own
    np.testing.assert_array_equal(read_image(path), expected)
    odd = b"\xff\xe1\x00\x12Exif\0\0II*\0\xff\xff\xff\x7f\0\0"  # a directory beyond its end
    path.write_bytes(data[:2] + odd + data[2:])
    np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"\xff\xd8\xff\xd9" + b"\0" * 20, "frame header is missing"),
        (b"\xff\xd8\xff\x01\xff\xda" + b"\0" * 20, "frame header is missing"),
        (b"\xff\xd8\xff\xe0\x00\x04ab" + b"\0" * 20, "marker is missing"),
        (b"\xff\xd8\xff\xc3\x00\x0b\x08\x00\x10\x00\x10\x01" + b"\0" * 20, "lossless"),
        (b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x00\x00\x10\x01" + b"\0" * 20, "16 x 0"),
    ],
)
def test_headers_of_a_jpeg_that_are_wrong(tmp_path, data, words):
    (tmp_path / "a.jpg").write_bytes(data)
    status = "unsupported" if words == "lossless" else "unreadable"
    refused(tmp_path / "a.jpg", status, words)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path, rgb, kind, orientation):
    image = Image.fromarray(rgb)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    if kind == "TIFF":
        path = tmp_path / "a"
        tifffile.imwrite(path, rgb, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
        upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    else:
        path = save(tmp_path / "a", image, kind, exif=exif, **options)
        upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    pixels = read_image(path)
    np.testing.assert_array_equal(pixels, upright)
    assert read_header(str(path)).shape == pixels.shape[:2]
    assert pixels.flags.c_contiguous


def test_a_buffer_is_used_again_and_gives_the_same_pixels(tmp_path, rgb):
    paths = [save(tmp_path / f"{i}.jpg", np.roll(rgb, i, 0)[: H - i], "JPEG") for i in range(3)]
    buffer = PixelBuffer()
    first = read_image(paths[0], buffer=buffer)
    kept = first.copy()
    for path in paths:
        np.testing.assert_array_equal(read_image(path, buffer=buffer), read_image(path))
    assert not np.array_equal(first, kept)  # so it was the same memory
    assert np.shares_memory(first, read_image(paths[0], buffer=buffer))


# -- PNG, BMP, WebP --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA"])
def test_png_modes(tmp_path, rgb, mode):
    image = Image.fromarray(rgb)
    image = image.convert("L").convert("LA") if mode == "LA" else image.convert(mode)
    path = save(tmp_path / "a.png", image)
    grey = mode in ("1", "L", "LA")
    expected = np.asarray(image.convert("L" if grey else "RGB"))
    pixels = read_image(path)
    assert read_header(str(path)).channels == pixels.shape[2] == (1 if grey else 3)
    np.testing.assert_array_equal(pixels, expected[..., None] if grey else expected)


@pytest.mark.parametrize("shape", [(H, W), (H, W, 3)])
def test_16_bit_png_keeps_its_bits(tmp_path, shape):
    values = np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), values if values.ndim == 2 else values[..., ::-1])
    pixels = read_image(tmp_path / "a.png")
    assert pixels.dtype == np.uint16
    assert read_header(str(tmp_path / "a.png")).bit_depth == 16
    np.testing.assert_array_equal(pixels.reshape(shape), values)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_real_transparency_is_unsupported(tmp_path, rgb, kind):
    alpha = np.full((H, W, 1), 255, np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    opaque = save(tmp_path / "o", np.concatenate([rgb, alpha], 2), kind, **options)
    np.testing.assert_array_equal(read_image(opaque), rgb)
    alpha[3, 4] = 254
    holed = save(tmp_path / "h", np.concatenate([rgb, alpha], 2), kind, **options)
    refused(holed, "unsupported", "alpha channel")


def test_transparent_colours_of_a_png_are_unsupported(tmp_path, rgb):
    refused(save(tmp_path / "g.png", rgb[..., 0], transparency=30), "unsupported", "transparent")
    palette = Image.fromarray(rgb).quantize(8)
    refused(save(tmp_path / "p.png", palette, transparency=3), "unsupported", "alpha")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_cut_short_anywhere_is_unreadable(tmp_path, rgb, kind):
    path = save(tmp_path / "a", rgb, kind)
    data = path.read_bytes()
    # Some writers put a directory or padding last: all but the last bytes are pixels for certain.
    for length in range(1, len(data) - 2, 41):
        path.write_bytes(data[:length])
        refused(path, "unreadable")


def test_a_png_with_a_wrong_byte_is_unreadable(tmp_path, rgb):
    data = bytearray(save(tmp_path / "a.png", rgb).read_bytes())
    data[len(data) // 2] ^= 0x55
    (tmp_path / "a.png").write_bytes(data)
    refused(tmp_path / "a.png", "unreadable", "damaged png")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_bmp_modes(tmp_path, rgb, mode):
    image = Image.fromarray(rgb).convert(mode)
    path = save(tmp_path / "a.bmp", image, "BMP")
    grey = mode in ("1", "L")
    expected = np.asarray(image.convert("L" if grey else "RGB")).reshape(H, W, -1)
    np.testing.assert_array_equal(read_image(path), expected)
    assert read_header(str(path)).channels == expected.shape[2]


@pytest.mark.parametrize("lossless", [False, True])
def test_webp(tmp_path, rgb, lossless):
    path = save(tmp_path / "a.webp", rgb, "WEBP", lossless=lossless, quality=95)
    assert np.abs(read_image(path).astype(int) - rgb).mean() < (1 if lossless else 8)
    assert read_header(str(path)).shape == (H, W)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_unsupported(tmp_path, rgb, kind):
    frames = [Image.fromarray(np.roll(rgb, i, 0)) for i in range(3)]
    path = save(tmp_path / "a", frames[0], kind, save_all=True, append_images=frames[1:])
    refused(path, "unsupported", "animated")


# -- any format ------------------------------------------------------------------------------------


def test_the_content_tells_the_format_not_the_name(tmp_path, rgb):
    for name, kind in (("a.jpg", "PNG"), ("b.tif", "JPEG"), ("c", "PNG"), ("d.txt", "BMP")):
        pixels = read_image(save(tmp_path / name, rgb, kind))
        assert pixels.shape == (H, W, 3)


@pytest.mark.parametrize("name", ["a\nb.png", "Auge 👁.png", "käse.png", "a'\"`$.png"])
def test_odd_names(tmp_path, rgb, name):
    np.testing.assert_array_equal(read_image(save(tmp_path / name, rgb)), rgb)


def test_a_name_that_is_not_unicode(tmp_path, rgb):
    path = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    with open(path, "wb") as file:
        Image.fromarray(rgb).save(file, "PNG")
    np.testing.assert_array_equal(read_image(os.fsdecode(path)), rgb)


def test_files_that_are_no_files(tmp_path):
    (tmp_path / "x.jpg").mkdir()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.jpg").write_text("not an image at all")
    refused(tmp_path / "x.jpg", "unreadable", "folder")
    refused(tmp_path / "empty.png", "unreadable", "0 bytes")
    refused(tmp_path / "loop.png", "unreadable", "symbolic links")
    refused(tmp_path / "gone.png", "unreadable", "No such file")
    refused(tmp_path / "missing.png", "unreadable", "No such file")
    refused(tmp_path / "pipe.png", "unreadable", "regular file")
    refused(tmp_path / "text.jpg", "unreadable", "no image format")
    refused("a\0b.png", "unreadable", "NUL")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path, rgb):
    path = save(tmp_path / "a.png", rgb)
    path.chmod(0)
    refused(path, "unreadable", "Permission denied")


def test_an_error_of_the_disk_is_a_row(tmp_path, rgb, monkeypatch):
    path = save(tmp_path / "a.png", rgb)

    def broken(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", broken)
    refused(path, "unreadable", "Permission denied")


def png_header(width, height):
    def chunk(kind, body):
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", body), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_size_is_limited_before_decoding(tmp_path, rgb):
    (tmp_path / "a.png").write_bytes(png_header(20000, 20000))
    refused(tmp_path / "a.png", "too_large", "20000 x 20000", "limit is 200", "--max-megapixels")
    refused(tmp_path / "a.png", "unreadable", max_megapixels=400)  # within it: the data is short
    refused(tmp_path / "a.png", "too_large", "399.9", max_megapixels=399.9)
    small = H * W / 1e6
    path = save(tmp_path / "b.jpg", rgb, "JPEG")
    assert read_image(path, max_megapixels=small).shape == (H, W, 3)
    refused(path, "too_large", max_megapixels=small * 0.99)
    refused(save(tmp_path / "c.tif", rgb, "TIFF"), "too_large", max_megapixels=small * 0.99)


def test_a_file_far_larger_than_its_image_is_refused(tmp_path, rgb):
    path = save(tmp_path / "a.jpg", rgb, "JPEG")
    with open(path, "ab") as file:
        file.truncate(40_000_000)  # sparse: takes no space
    refused(path, "too_large", "40 MB", max_megapixels=1)


@pytest.mark.parametrize(
    "name, head",
    [
        ("gif", b"GIF89a"),
        ("jpeg2000", b"\xff\x4f\xff\x51"),
        ("heif", b"\0\0\0\x18ftypheic"),
    ],
)
def test_formats_that_are_known_and_not_read(tmp_path, name, head):
    assert sniff(head) == name
    (tmp_path / "a.png").write_bytes(head.ljust(400, b"\0"))
    refused(tmp_path / "a.png", "unsupported", name, "export")


def test_every_kind_of_damage_ends_in_a_row(tmp_path, rgb, capfd):
    made = {}
    for kind, options in (("JPEG", {}), ("PNG", {}), ("BMP", {}), ("WEBP", {})):
        stream = io.BytesIO()
        Image.fromarray(rgb).save(stream, kind, **options)
        made[kind] = stream.getvalue()
    for kind, options in (("lzw", {}), ("zlib", {"tile": (16, 16)})):
        stream = io.BytesIO()
        tifffile.imwrite(stream, rgb, photometric="rgb", compression=kind, **options)
        made[kind] = stream.getvalue()
    chance = random.Random(0)
    path, reasons = tmp_path / "a", []
    for data in made.values():
        for _ in range(60):
            broken = bytearray(data)
            for _ in range(chance.randint(1, 4)):
                broken[chance.randrange(min(len(broken), 300))] = chance.randrange(256)
            path.write_bytes(broken)
            try:
                pixels = read_image(path, max_megapixels=1)
                assert pixels.ndim == 3
            except ReadError as error:
                reasons.append(error.reason)
    assert len(reasons) > 150
    assert [r for r in reasons if r != " ".join(r.split()) or not r] == []
    assert "tifffile" not in capfd.readouterr().err


def test_many_threads_read_the_same_pixels(tmp_path, rgb):
    paths = []
    for i in range(4):
        shifted = np.roll(rgb, i, 1)
        paths.append(save(tmp_path / f"{i}.jpg", shifted, "JPEG"))
        paths.append(save(tmp_path / f"{i}.png", shifted))
        paths.append(save(tmp_path / f"{i}.tif", shifted, "TIFF", compression="tiff_lzw"))
    alone = [read_image(path) for path in paths]
    local = threading.local()

    def work(i):
        if not hasattr(local, "buffer"):
            local.buffer = PixelBuffer()
        pixels = read_image(paths[i % len(paths)], buffer=local.buffer)
        return np.array_equal(pixels, alone[i % len(paths)])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(200)))


# -- masks -----------------------------------------------------------------------------------------


def test_a_mask_is_what_is_above_zero_in_any_channel(tmp_path):
    values = np.zeros((8, 10, 3), np.uint8)
    values[1, 2, 0] = values[3, 4, 2] = 1
    mask = read_mask(save(tmp_path / "a.png", values))
    assert mask.dtype == bool
    assert sorted(zip(*np.nonzero(mask))) == [(1, 2), (3, 4)]
    bilevel = Image.fromarray(values.any(2))
    np.testing.assert_array_equal(read_mask(save(tmp_path / "b.png", bilevel)), mask)
    tifffile.imwrite(tmp_path / "c.tif", mask.astype(np.uint8)[None].repeat(2, 0))
    np.testing.assert_array_equal(read_mask(tmp_path / "c.tif"), mask)


def test_a_jpeg_mask_is_cut_in_the_middle(tmp_path):
    values = np.zeros((64, 64), np.uint8)
    values[20:40, 20:40] = 255
    path = save(tmp_path / "a", values, "JPEG", quality=50)
    assert (np.asarray(Image.open(path).convert("L"))[values == 0] > 0).any()  # ringing
    assert (read_mask(path) != (values > 0)).mean() < 0.01


@pytest.mark.parametrize(
    "shape, fits",
    [((40, 60), True), ((20, 30), True), ((80, 120), True), ((13, 20), True), ((40, 62), False)]
    + [((60, 40), False), ((40, 40), False), ((20, 32), False), ((400, 600), True)],
)
def test_a_mask_of_another_aspect_is_refused(tmp_path, shape, fits):
    path = save(tmp_path / "a.png", np.zeros(shape, np.uint8))
    if fits:
        assert read_mask(path, shape=(40, 60)).shape == shape
    else:
        with pytest.raises(ReadError, match="aspect") as caught:
            read_mask(path, shape=(40, 60))
        assert caught.value.status == "unsupported"
