# SPDX-License-Identifier: Apache-2.0
"""Field of view: discs whose place is known, other pictures, and the real packs."""

import math

import numpy as np
import pytest

from fundad_fast.data import Fov, find_fov, fov_mask, read_image

SIZE = (420, 500)
CENTRE = (243.0, 205.0)
RADIUS = 170.0


def disc(
    shape=SIZE,
    centre=CENTRE,
    r=RADIUS,
    *,
    background=(0.0, 0.0, 0.0),
    rim=0.35,
    noise=2.0,
    seed=0,
):
    """A disc like a fundus: red over green over blue, darker to the rim, with texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    d = np.hypot(x - centre[0], y - centre[1])
    light = 1 - (1 - rim) * (d / r) ** 2
    texture = 1 + 0.15 * np.sin(x / 17) * np.cos(y / 13)
    colour = np.array([190.0, 100.0, 45.0])
    inside = np.clip((light * texture)[..., None] * colour, 0, 255)
    edge = np.clip(r + 0.5 - d, 0, 1)[..., None]
    image = edge * inside + (1 - edge) * np.array(background)
    return np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


def assert_circle(fov, centre=CENTRE, r=RADIUS, tolerance=0.01):
    assert abs(fov.r - r) < tolerance * r, fov
    assert math.hypot(fov.cx - centre[0], fov.cy - centre[1]) < tolerance * r, fov


@pytest.mark.parametrize(
    "background", [(0, 0, 0), (12, 12, 12), (30, 28, 26), (128, 128, 128), (255, 255, 255)]
)
@pytest.mark.parametrize("noise", [0.0, 2.0, 5.0])
def test_a_disc_on_a_plain_background(background, noise):
    fov = find_fov(disc(background=background, noise=noise))
    assert fov.status == "ok"
    assert_circle(fov)
    assert fov.box == (0, 0, SIZE[1], SIZE[0])


@pytest.mark.parametrize("rim", [0.12, 0.2])
def test_a_dark_rim_belongs_to_the_disc(rim):
    assert_circle(find_fov(disc(rim=rim)))


def test_jpeg_changes_little(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "a.jpg"), disc()[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 60])
    # Its ringing reaches 8 pixels beyond the rim.
    assert_circle(find_fov(read_image(tmp_path / "a.jpg")), tolerance=0.015)


def test_a_notch_a_marker_and_text_are_not_of_the_circle():
    image = disc()
    image[180:240, 405:440] = 90  # a tab beyond the rim
    image[60:100, 215:265] = 0  # a bite out of it
    image[400:415, 20:120] = 255  # text in a corner
    fov = find_fov(image)
    assert fov.status == "ok"
    assert_circle(fov, tolerance=0.004)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("depth", ["uint8", "uint16", "float32", "12 bits"])
def test_every_sample_type_gives_the_same(depth, grey):
    image = disc()
    if grey:
        image = image[..., :1]
    scaled = {
        "uint8": image,
        "uint16": image.astype(np.uint16) * 257,
        "12 bits": image.astype(np.uint16) * 16,
        "float32": image.astype(np.float32) / 255,
    }[depth]
    fov = find_fov(np.ascontiguousarray(scaled))
    assert fov.status == "ok"
    assert_circle(fov)


@pytest.mark.parametrize("scale", [0.15, 0.5, 3.3, 6.0])
def test_every_size(scale):
    import cv2

    image = cv2.resize(disc(), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    fov = find_fov(image)
    assert fov.status == "ok"
    centre = [(value + 0.5) * scale - 0.5 for value in CENTRE]
    assert_circle(fov, centre, RADIUS * scale, tolerance=0.001 if scale > 1 else 0.01)


def test_cut_at_top_and_bottom_by_the_frame():
    whole = disc((420, 500), (250, 210), 230)
    fov = find_fov(whole)
    assert fov.status == "truncated"
    assert_circle(fov, (250, 210), 230)
    assert fov.box == (0, 0, 500, 420)


def test_cut_by_the_sensor_and_padded_with_black():
    image = disc((500, 500), (250, 245), 240)
    image[:60] = 0
    image[430:] = 0
    fov = find_fov(image)
    assert fov.status == "truncated"
    assert_circle(fov, (250, 245), 240)
    np.testing.assert_allclose(fov.box, (0, 60, 500, 430), atol=2)
    mask = fov_mask(fov, 500, 500)
    assert not mask[:56].any()
    assert not mask[434:].any()
    assert mask[64:426, 250].all()
    eroded = fov_mask(fov, 500, 500, erode=0.1)
    assert not eroded[:80].any()
    assert eroded[90, 250]


@pytest.mark.parametrize("side", [0.99, 0.9, 0.8])
def test_cropped_to_less_than_the_disc(side):
    """The circle is larger than the frame; only the corners are dark."""
    image = disc((600, 600), (300, 300), 280)
    half = round(280 * side)
    fov = find_fov(np.ascontiguousarray(image[300 - half : 300 + half, 300 - half : 300 + half]))
    assert fov.status == ("ok" if side == 0.99 else "truncated")
    assert_circle(fov, (half, half), 280, tolerance=0.02)


def test_cropped_to_its_bounding_square():
    fov = find_fov(disc((401, 401), (200, 200), 200))
    assert fov.status == "ok"
    assert_circle(fov, (200, 200), 200)


def test_cropped_at_one_side_so_that_corners_disagree():
    image = np.ascontiguousarray(disc((420, 500), (250, 210), 190)[:, :300])
    fov = find_fov(image)
    assert fov.status == "truncated"
    assert_circle(fov, (250, 210), 190, tolerance=0.02)


@pytest.mark.parametrize("size, status", [(1.25, "truncated"), (1.33, "none")])
def test_corners_have_to_show_enough_of_the_circle(size, status):
    """At 1.25 times the half side, 59 degrees of it are seen in the corners; at 1.33, 29."""
    fov = find_fov(disc((600, 600), (300, 300), 300 * size, rim=0.9))
    assert fov.status == status


def test_cropped_so_far_that_no_edge_is_left():
    image = disc((600, 600), (300, 300), 280)
    assert find_fov(np.ascontiguousarray(image[150:450, 150:450])).status == "none"


def other_pictures():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:300, :400]
    ramp = np.stack([x * 0.6, y * 0.8, x * 0.2 + 40], axis=2).astype(np.uint8)
    square = np.zeros((300, 400, 3), np.uint8)
    square[40:260, 60:340] = 150
    triangle = np.where((y > 40) & (np.abs(x - 200) < (y - 40) * 0.7), 180, 0)
    ellipse = np.where(((x - 200) / 180) ** 2 + ((y - 150) / 80) ** 2 < 1, 180, 0)
    speck = np.zeros((300, 400, 1), np.uint8)
    speck[(x - 200) ** 2 + (y - 150) ** 2 < 12**2] = 200
    return {
        "black": np.zeros((300, 400, 3), np.uint8),
        "white": np.full((300, 400, 3), 255, np.uint8),
        "dark noise": rng.integers(0, 6, (300, 400, 3)).astype(np.uint8),
        "noise": rng.integers(0, 256, (300, 400, 3)).astype(np.uint8),
        "ramp": ramp,
        "square": square,
        "triangle": triangle[..., None].astype(np.uint8),
        "ellipse": ellipse[..., None].astype(np.uint8),
        "a small spot": speck,
        "tiny": np.zeros((3, 5, 1), np.uint8),
        "a line": np.full((16, 5000, 1), 99, np.uint8),
        "NaN": np.full((300, 400, 3), np.nan, np.float32),
    }


@pytest.mark.parametrize("shape", [(16, 40000), (40000, 16), (17, 9300), (16, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_strips_have_none(shape, channels):
    rng = np.random.default_rng(0)
    assert find_fov(rng.integers(0, 256, (*shape, channels), np.uint8)).status == "none"
    assert find_fov(np.zeros((*shape, channels), np.uint8)).status == "none"


@pytest.mark.parametrize("name", other_pictures())
def test_other_pictures_have_none(name):
    image = other_pictures()[name]
    fov = find_fov(image)
    assert fov.status == "none"
    assert math.isnan(fov.r)
    assert (fov.height, fov.width) == image.shape[:2]


@pytest.mark.parametrize(
    "name", ["astronaut", "brick", "camera", "chelsea", "coffee", "coins", "moon", "rocket", "page"]
)
def test_photographs_of_other_things_have_none(name):
    import skimage.data

    image = getattr(skimage.data, name)()
    assert find_fov(image if image.ndim == 3 else image[..., None]).status == "none"


def test_the_fundus_photograph_of_scikit_image():
    import skimage.data

    fov = find_fov(skimage.data.retina())
    assert fov.status == "ok"
    assert_circle(fov, (704, 703), 700)


def test_the_same_image_gives_the_same_circle():
    image = disc(noise=5)
    assert find_fov(image) == find_fov(image.copy())


def test_the_mask_is_the_disc_shrunk_by_a_share_of_its_radius():
    fov = Fov("ok", 50.0, 40.0, 20.0, (0, 0, 100, 90), 90, 100)
    mask = fov_mask(fov, 90, 100)
    assert mask[40, 70]
    assert not mask[40, 71]
    assert mask[20, 50]
    assert not mask[19, 50]
    y, x = np.mgrid[:90, :100]
    expected = np.hypot(x - 50, y - 40) <= 15
    np.testing.assert_array_equal(fov_mask(fov, 90, 100, erode=0.25), expected)


def test_cut_edges_inside_the_frame_are_eroded_and_the_border_is_not():
    fov = Fov("truncated", 50.0, 40.0, 60.0, (0, 10, 100, 70), 90, 100)
    mask = fov_mask(fov, 90, 100, erode=0.1)
    assert mask[:, 50].nonzero()[0].tolist() == list(range(16, 64))
    assert mask[40].nonzero()[0].tolist() == list(range(0, 100))


def test_a_mask_needs_a_field_of_view_of_the_same_frame():
    with pytest.raises(ValueError, match="status none"):
        fov_mask(Fov.missing(10, 20), 10, 20)
    with pytest.raises(ValueError, match="20 x 10"):
        fov_mask(Fov("ok", 5, 5, 3, (0, 0, 20, 10), 10, 20), 20, 10)


# -- real images -----------------------------------------------------------------------------------


def found(folder, pattern):
    files = sorted(folder.glob(pattern))
    assert len(files) > 10
    return [find_fov(read_image(path)) for path in files]


@pytest.mark.parametrize("part", ["train/good", "test/good", "test/dr"])
def test_idrid_has_discs_cut_and_padded(packs, part):
    fovs = found(packs / "idrid_512" / part, "*.jpg")
    assert {fov.status for fov in fovs} == {"truncated"}
    assert all(255 < fov.r < 261 and 250 < fov.cx < 260 and 250 < fov.cy < 260 for fov in fovs)
    assert all(30 <= fov.box[1] <= 64 and 448 <= fov.box[3] <= 482 for fov in fovs)
    assert all(fov.box[0] == 0 and fov.box[2] == 512 for fov in fovs)


def test_hrf_has_discs_cut_by_the_frame(packs):
    fovs = found(packs / "hrf_1024", "*/*/*.[jJ]*")
    assert len(fovs) == 45
    assert {fov.status for fov in fovs} == {"truncated"}
    assert all(475 < fov.r < 480 and fov.box == (0, 0, 1024, 683) for fov in fovs)


def test_chest_radiographs_have_none(packs):
    fovs = found(packs / "cxr_224", "test/*/*0.jpeg")
    assert sum(fov.status != "none" for fov in fovs) <= 0.02 * len(fovs)
