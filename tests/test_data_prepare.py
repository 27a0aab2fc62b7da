# SPDX-License-Identifier: Apache-2.0
"""Preparation: the resize, where pixels go, what is refused, and the specification."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from fundad_fast.data import (
    DataError,
    InputSpec,
    Item,
    ReadError,
    fov_mask,
    inspect_inputs,
    prepare,
    read_image,
    resize,
)
from fundad_fast.data.resizing import resize_uint8

WHOLE = InputSpec(image_size=32, fov="none")


def noise(h, w, c=3, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.random((h, w, c)).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max + 1, (h, w, c)).astype(dtype)


def disc(h=200, w=260, cx=130.0, cy=100.0, r=90.0):
    y, x = np.mgrid[:h, :w]
    d = np.hypot(x - cx, y - cy)
    colour = np.array([180, 90, 40]) * np.clip(1 - 0.3 * (d / r) ** 2, 0, 1)[..., None]
    return np.where((d <= r)[..., None], colour, 0).astype(np.uint8)


def refused(status, pixels, spec, *words, **options):
    with pytest.raises(ReadError) as caught:
        prepare(pixels, spec, **options)
    assert caught.value.status == status, caught.value
    for word in words:
        assert word in caught.value.reason


# -- resize ----------------------------------------------------------------------------------------

SIDES = st.integers(16, 150)


@settings(max_examples=30, deadline=None)
@given(SIDES, SIDES, st.integers(16, 120), st.sampled_from([1, 3]))
def test_8_bit_resize_is_within_one_grey_level_of_the_reference(h, w, size, channels):
    pixels = noise(h, w, channels)
    reference = resize(torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32)), size)
    quick = resize_uint8(pixels, size)
    assert quick.dtype == torch.uint8
    assert (quick.float() - reference.round()).abs().max() <= 1
    assert (quick.float() - reference).mean().abs() < 0.25


@pytest.mark.parametrize("shape", [(200, 150), (20, 30), (64, 500)])
def test_the_reference_is_pillows_bilinear(shape):
    values = noise(*shape, 1, np.float32)[..., 0]
    pillow = np.asarray(Image.fromarray(values).resize((48, 40), Image.Resampling.BILINEAR))
    ours = resize(torch.from_numpy(values)[None], (40, 48))
    np.testing.assert_allclose(ours[0], pillow, atol=2e-6)


def test_resize_to_the_same_size_is_a_copy():
    image = torch.rand(3, 20, 20)
    same = resize(image, 20)
    torch.testing.assert_close(same, image, rtol=0, atol=0)
    assert same.data_ptr() != image.data_ptr()


@pytest.mark.parametrize("bad", [torch.zeros(4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)])
def test_resize_names_what_it_wants(bad):
    with pytest.raises(ValueError, match=r"float32 image \[c, h, w\]"):
        resize(bad, 8)


# -- where pixels go -------------------------------------------------------------------------------


def ramps(h, w):
    """Pixel values are their own coordinates, over the size."""
    y, x = np.mgrid[:h, :w].astype(np.float32)
    return np.stack([x / w, y / h, np.zeros_like(x)], axis=2)


@pytest.mark.parametrize("shape", [(100, 160), (40, 30), (32, 32), (512, 300)])
def test_the_affine_says_where_prepared_pixels_lie(shape):
    h, w = shape
    spec = InputSpec(image_size=32, fov="none", bit_depth=32)
    prepared = prepare(ramps(h, w), spec)
    j, i = np.meshgrid(np.arange(32), np.arange(32))
    at = prepared.affine @ np.stack([j.ravel(), i.ravel(), np.ones(32 * 32)])
    inner = (slice(2, -2), slice(2, -2))  # at the border the window of the filter is cut
    x = at[0].reshape(32, 32)[inner]
    y = at[1].reshape(32, 32)[inner]
    np.testing.assert_allclose(prepared.image[0].numpy()[inner] * w, x, atol=0.05)
    np.testing.assert_allclose(prepared.image[1].numpy()[inner] * h, y, atol=0.05)
    # The outer edges fall on each other.
    np.testing.assert_allclose(prepared.affine @ [-0.5, -0.5, 1], [-0.5, -0.5], atol=1e-9)
    np.testing.assert_allclose(prepared.affine @ [31.5, 31.5, 1], [w - 0.5, h - 0.5], atol=1e-9)


@pytest.mark.parametrize("centre", [(130.0, 100.0), (90.0, 100.0), (130.0, 60.0)])
def test_the_crop_is_the_square_of_the_field_of_view(centre):
    """Coordinates are hidden in the channels of a disc; also where it is cut by the frame."""
    h, w = 200, 260
    y, x = np.mgrid[:h, :w]
    d = np.hypot(x - centre[0], y - centre[1])
    hidden = np.stack([0.3 + x / w / 2, 0.3 + y / h / 2, 0.3 + 0 * x], axis=2)
    pixels = np.where((d <= 90)[..., None], hidden, 0).astype(np.float32)
    spec = InputSpec(image_size=64, bit_depth=32, fov_crop=True, fov_erode=0.06)
    prepared = prepare(pixels, spec)
    # A square with round pixels, of the disc's size, around its centre.
    kx, ky = prepared.affine[0, 0], prepared.affine[1, 1]
    assert kx == ky
    assert abs(64 * kx - 181) < 4
    middle = prepared.affine @ [31.5, 31.5, 1]
    np.testing.assert_allclose(middle, centre, atol=2)
    i, j = np.nonzero(prepared.mask.numpy())
    assert len(i) > 1500
    at = prepared.affine @ np.stack([j, i, np.ones(len(i))])
    assert (at >= -0.5).all()
    assert (at[0] <= w - 0.5).all()
    assert (at[1] <= h - 0.5).all()
    hidden_x = (prepared.image[0].numpy()[i, j] - 0.3) * 2 * w
    hidden_y = (prepared.image[1].numpy()[i, j] - 0.3) * 2 * h
    np.testing.assert_allclose(hidden_x, at[0], atol=0.1)
    np.testing.assert_allclose(hidden_y, at[1], atol=0.1)


def test_beyond_the_frame_is_black_and_outside_the_mask():
    pixels = disc(cy=50.0)  # 40 rows of the disc are above the frame
    prepared = prepare(pixels, InputSpec(image_size=90, fov_crop=True, fov_erode=0))
    assert prepared.fov.status == "truncated"
    assert not prepared.image[:, :18].any()
    assert not prepared.mask[:18].any()
    assert prepared.mask[22, 45]
    # The edge that the padding makes is eroded like the rim: by 0.1 r = 4.5 of 90 rows.
    eroded = prepare(pixels, InputSpec(image_size=90, fov_crop=True, fov_erode=0.1))
    assert not eroded.mask[:24].any()
    assert eroded.mask[26, 45]


def test_the_mask_at_full_size_is_the_fields_own():
    pixels = disc(200, 200, 98.0, 101.0, 80.0)
    prepared = prepare(pixels, InputSpec(image_size=200, fov_erode=0.07))
    np.testing.assert_array_equal(prepared.mask, fov_mask(prepared.fov, 200, 200, erode=0.07))
    assert (prepared.height, prepared.width) == (200, 200)


def test_the_mask_of_a_stretched_image_is_stretched():
    pixels = disc()
    whole = fov_mask(prepare(pixels, InputSpec(image_size=50)).fov, 200, 260, erode=0.03)
    mask = prepare(pixels, InputSpec(image_size=50, fov_erode=0.03)).mask
    assert abs(mask.float().mean().item() - whole.mean()) < 0.01


# -- values ----------------------------------------------------------------------------------------


def test_values_lie_between_0_and_1_at_every_depth():
    for dtype, depth, white in ((np.uint8, 8, 255), (np.uint16, 16, 65535), (np.float32, 32, 1)):
        pixels = np.zeros((40, 40, 3), dtype)
        pixels[:, 20:] = white
        prepared = prepare(pixels, InputSpec(image_size=40, fov="none", bit_depth=depth))
        assert prepared.image.dtype == torch.float32
        assert prepared.image.is_contiguous()
        assert prepared.mask is None
        assert prepared.fov.status == "none"
        assert prepared.image[:, :, :20].eq(0).all()
        assert prepared.image[:, :, 20:].eq(1).all()
        shrunk = prepare(
            noise(77, 91, 3, dtype), InputSpec(image_size=33, fov="none", bit_depth=depth)
        )
        assert shrunk.image.min() >= 0
        assert shrunk.image.max() <= 1


def test_white_stays_white_through_the_interpolations_rounding():
    spec = InputSpec(image_size=20, fov="none", bit_depth=32, channels="grey")
    white = np.ones((23, 26, 1), np.float32)
    assert resize(torch.from_numpy(white[None, ..., 0]), 20).max() > 1
    assert prepare(white, spec).image.max() == 1


def test_16_bits_are_more_than_8():
    pixels = np.full((40, 40, 1), 1000, np.uint16)
    pixels[:, 20:] = 1001
    spec = InputSpec(image_size=20, fov="none", bit_depth=16, channels="grey")
    image = prepare(pixels, spec).image[0]
    assert torch.allclose(image[:, :8] * 65535, torch.tensor(1000.0), atol=0.01)
    assert torch.allclose(image[:, 12:] * 65535, torch.tensor(1001.0), atol=0.01)


def test_the_pixels_given_are_neither_kept_nor_changed():
    for dtype, depth in ((np.uint8, 8), (np.float32, 32)):
        pixels = noise(32, 32, 3, dtype)
        before = pixels.copy()
        prepared = prepare(pixels, InputSpec(image_size=32, fov="none", bit_depth=depth))
        kept = prepared.image.clone()
        np.testing.assert_array_equal(pixels, before)
        pixels[:] = 0
        torch.testing.assert_close(prepared.image, kept, rtol=0, atol=0)


def test_white_level():
    spec = InputSpec(image_size=20, fov="none", bit_depth=16, channels="grey", white_level=4095)
    pixels = np.full((20, 20, 1), 4095, np.uint16)
    assert prepare(pixels, spec).image.eq(1).all()
    pixels[3, 3] = 4096
    refused("unsupported", pixels, spec, "4096", "white_level")


@pytest.mark.parametrize("value, words", [(1.5, "0 to 1 is expected"), (-0.1, "-0.1")])
def test_float_samples_beyond_white_are_refused(value, words):
    pixels = noise(40, 40, 3, np.float32)
    pixels[3, 4, 0] = value
    refused("unsupported", pixels, InputSpec(image_size=32, fov="none", bit_depth=32), words)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite(value):
    pixels = noise(40, 40, 3, np.float32)
    pixels[3, 4, 0] = pixels[5, 6, 1] = value
    spec = InputSpec(image_size=32, fov="none", bit_depth=32)
    refused("non_finite", pixels, spec, "2 of 4800")


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (15, 400), (400, 15)])
def test_too_small(shape):
    refused("too_small", noise(*shape), WHOLE, "16")


def test_16_pixels_are_enough():
    assert prepare(noise(16, 400), WHOLE).image.shape == (3, 32, 32)


def test_other_channels_or_depth_than_the_models():
    grey = InputSpec(image_size=32, fov="none", channels="grey")
    refused("unsupported", noise(40, 40, 1), WHOLE, "grey image, but", "from RGB images", "convert")
    refused("unsupported", noise(40, 40, 3), grey, "RGB image, but", "from grey images", "convert")
    refused("unsupported", noise(40, 40, 3, np.uint16), WHOLE, "16-bit", "8-bit", "convert")
    refused("unsupported", noise(40, 40, 3, np.float32), WHOLE, "float image")


def test_converted_where_that_is_wanted():
    spec = InputSpec(image_size=40, fov="none", mixed_inputs="convert")
    grey = noise(40, 40, 1)
    image = prepare(grey, spec).image
    assert image.shape == (3, 40, 40)
    np.testing.assert_allclose(image.numpy() * 255, grey.transpose(2, 0, 1).repeat(3, 0), atol=1e-4)
    deep = prepare(grey.astype(np.uint16) * 257, spec).image
    torch.testing.assert_close(deep, image, rtol=0, atol=1e-6)
    one = spec.model_copy(update={"channels": "grey"})
    colour = noise(40, 40, 3)
    expected = np.asarray(Image.fromarray(colour).convert("L")) / 255
    np.testing.assert_allclose(prepare(colour, one).image[0], expected, atol=1 / 255)


def test_any_depth_for_images_in_memory():
    pixels = noise(32, 32, 3)
    prepared = prepare((pixels / 255).astype(np.float32), WHOLE, any_depth=True)
    torch.testing.assert_close(prepared.image, prepare(pixels, WHOLE).image, rtol=0, atol=1e-6)


def test_no_field_of_view():
    spec = InputSpec(image_size=32)
    refused("no_fov", noise(100, 100), spec, "fov=none")
    assert prepare(noise(100, 100), WHOLE).mask is None


def test_an_erosion_that_leaves_nothing():
    """A narrow band of a disc, cut by the sensor inside the frame."""
    pixels = disc(200, 200, 100.0, 100.0, 90.0)
    pixels[:60] = 0
    pixels[140:] = 0
    assert prepare(pixels, InputSpec(image_size=50, fov_erode=0.4)).mask.any()
    refused("no_fov", pixels, InputSpec(image_size=50, fov_erode=0.46), "erosion")


# -- specification ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [{"image_size": 8}, {"image_size": 512, "fov_crop": True, "fov": "none"}]
    + [{"image_size": 512, "fov_erode": 0.5}, {"image_size": 512, "white_level": 0}]
    + [{"image_size": 512, "size": 3}, {"image_size": 512, "bit_depth": 12}],
)
def test_a_specification_is_checked(bad):
    with pytest.raises(ValidationError):
        InputSpec(**bad)


def test_a_specification_survives_json_and_is_frozen():
    spec = InputSpec(image_size=784, bit_depth=16, white_level=4095, fov_crop=True)
    assert InputSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(ValidationError):
        spec.image_size = 3


# -- census ----------------------------------------------------------------------------------------


def items(tmp_path, *arrays):
    made = []
    for i, array in enumerate(arrays):
        path = tmp_path / f"{i}.png"
        if array is None:
            path.write_bytes(b"nothing")
        else:
            import cv2

            cv2.imwrite(str(path), array)
        made.append(Item(path.name, str(path)))
    return made


def test_the_census_counts_from_headers(tmp_path):
    found = inspect_inputs(items(tmp_path, noise(20, 30), noise(20, 30), noise(40, 30), None))
    assert (found.n, found.unreadable) == (3, 1)
    assert found.channels == {3: 3}
    assert found.bit_depths == {8: 3}
    assert found.sizes == {(20, 30): 2, (40, 30): 1}
    assert (found.spec_channels, found.spec_bit_depth) == ("rgb", 8)


def test_mixed_channels_are_refused_or_converted(tmp_path):
    mixed = items(tmp_path, noise(20, 30, 1), noise(20, 30), noise(20, 30))
    with pytest.raises(
        DataError, match="2 RGB .such as 1.png. and 1 grey .such as 0.png"
    ) as caught:
        inspect_inputs(mixed)
    assert "mixed_inputs=convert" in str(caught.value)
    found = inspect_inputs(mixed, mixed_inputs="convert")
    assert found.spec_channels == "rgb"
    spec = InputSpec(image_size=20, fov="none", channels="rgb", mixed_inputs="convert")
    assert all(prepare(read_image(item.path), spec).image.shape[0] == 3 for item in mixed)


def test_mixed_depths_are_refused_or_converted(tmp_path):
    mixed = items(tmp_path, noise(20, 30, 1), noise(20, 30, 1, np.uint16))
    with pytest.raises(DataError, match="mixed bit depths: 1 8-bit .such as 0.png. and 1 16-bit"):
        inspect_inputs(mixed)
    found = inspect_inputs(mixed, mixed_inputs="convert")
    assert (found.spec_channels, found.spec_bit_depth) == ("grey", 16)


def test_a_census_of_nothing(tmp_path):
    with pytest.raises(DataError, match="no images"):
        inspect_inputs([])
    with pytest.raises(DataError, match="none of the 2 images can be read; the first, 0.png: no i"):
        inspect_inputs(items(tmp_path, None, None))


def test_real_packs_are_of_one_kind(packs):
    folder = packs / "hrf_1024"
    files = [Item(p.name, str(p)) for p in sorted(folder.glob("*/*/*"))]
    found = inspect_inputs(files)
    assert (found.n, found.spec_channels, found.spec_bit_depth) == (45, "rgb", 8)


def test_equalisation_is_that_of_scikit_image_stretched_to_the_whole_range():
    from skimage.exposure import equalize_hist

    from fundad_fast.data.preparation import equalised

    rng = np.random.default_rng(0)
    pixels = (rng.gamma(2, 20, (50, 60, 1)).clip(0, 255)).astype(np.uint8)
    want = equalize_hist(pixels[:, :, 0].astype(np.float64), 256)
    want = (want - want.min()) / (want.max() - want.min())
    np.testing.assert_allclose(equalised(pixels)[:, :, 0], want, atol=1e-6)
    spec = InputSpec(image_size=16, fov="none", channels="grey", intensity="equalise")
    got = prepare(pixels, spec).image
    assert 0.3 < float(got.mean()) < 0.7
    with pytest.raises(ReadError, match="one value everywhere"):
        prepare(np.full((20, 20, 1), 9, np.uint8), spec)
    colour = InputSpec(image_size=16, fov="none", channels="rgb", intensity="equalise")
    saved_as_colour = prepare(pixels.repeat(3, axis=2), colour).image
    torch.testing.assert_close(saved_as_colour, got.expand(3, 16, 16))
    coloured = pixels.repeat(3, axis=2)
    coloured[5, 5, 2] ^= 1
    with pytest.raises(ReadError, match="a colour image, but the model equalises grey ones"):
        prepare(coloured, colour)
