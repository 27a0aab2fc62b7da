# SPDX-License-Identifier: Apache-2.0
"""The overlay: colours, scale, outlines, sizes, files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from fundad_fast.report import blend, overlay, save_overlay
from fundad_fast.report.overlay import LESION_INK, THRESHOLD_INK, distinct_numbers, outlines

SCALE = (1.0, 3.0)


def photograph(height: int = 300, width: int = 400) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Pixels of a colour; antialiased lines miss the exact one by a little."""
    return (np.abs(picture.astype(int) - colour) <= 30).all(-1)


def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int(near(picture, colour).sum())


def disc(height: int, width: int, cx: float, cy: float, r: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (x - cx) ** 2 + (y - cy) ** 2 <= r**2


def panels(picture: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Left and right panel of an overlay without a title, found by the layout's own rule."""
    filled = (picture != picture[0, 0]).any(-1)
    top = int(np.flatnonzero(filled[:, : width // 2].any(1))[0])
    left = int(np.flatnonzero(filled[top : top + height].any(0))[0])
    gap = left
    return (
        picture[top : top + height, left : left + width],
        picture[top : top + height, left + width + gap : left + 2 * width + gap],
    )


def test_calm_map_shows_the_photograph_unchanged() -> None:
    image = photograph()
    calm = np.full(image.shape[:2], SCALE[0], np.float32)
    left, right = panels(overlay(image, calm - 5, scale=SCALE, threshold=2.5), 300, 400)
    np.testing.assert_array_equal(left, image)
    np.testing.assert_array_equal(right, image)
    np.testing.assert_array_equal(blend(image, calm, SCALE), image)


def test_opacity_rises_with_the_score_and_ends_at_hi() -> None:
    grey = np.full((1, 6, 3), 128, np.uint8)
    scores = np.array([[1.0, 1.5, 2.0, 2.5, 3.0, 99.0]], np.float32)
    change = np.abs(blend(grey, scores, SCALE).astype(int) - 128).max(-1)[0]
    assert change[0] == 0
    assert (np.diff(change[:3]) > 0).all()
    np.testing.assert_array_equal(
        blend(grey, scores, SCALE)[0, 4], blend(grey, scores, SCALE)[0, 5]
    )
    assert (blend(grey, scores, SCALE)[0, 4] != 0).any()


def test_one_scale_whatever_the_map_holds() -> None:
    """The colour of a score may not depend on the other scores of the image."""
    image = photograph(4, 4)
    quiet, loud = np.full((4, 4), 2.0, np.float32), np.full((4, 4), 2.0, np.float32)
    loud[3, 3] = 1000
    np.testing.assert_array_equal(blend(image, quiet, SCALE)[:3], blend(image, loud, SCALE)[:3])


def test_high_scores_are_red_and_middle_scores_green() -> None:
    black = np.zeros((1, 2, 3), np.uint8)
    middle, high = blend(black, np.array([[2.0, 3.0]], np.float32), SCALE)[0].astype(int)
    assert middle[1] > middle[2]
    assert high[0] > 5 * max(1, high[2])


def test_red_stays_red_in_the_file(tmp_path: Path) -> None:
    red = np.zeros((256, 256, 3), np.uint8)
    red[..., 0] = 255
    file = tmp_path / "red.jpg"
    save_overlay(file, red, np.zeros((256, 256), np.float32), scale=SCALE, threshold=None)
    decoded = simplejpeg.decode_jpeg(file.read_bytes(), colorspace="RGB")
    r, g, b = decoded[100:200, 60:200].reshape(-1, 3).mean(0)
    assert r > 245
    assert max(g, b) < 12
    assert cv2.imread(str(file))[150, 150, 2] > 245
    assert [p.name for p in tmp_path.iterdir()] == ["red.jpg"]


def test_threshold_outline_encloses_scores_above_the_threshold() -> None:
    image = photograph()
    scores = np.zeros((300, 400), np.float32)
    scores[100:150, 200:260] = 2.5
    above = panels(overlay(image, scores, scale=SCALE, threshold=2.49), 300, 400)[1]
    ys, xs = np.nonzero(near(above, THRESHOLD_INK))
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (100, 149, 200, 259)
    at = panels(overlay(image, scores, scale=SCALE, threshold=2.5), 300, 400)[1]
    assert count(at, THRESHOLD_INK) == 0


def test_lesion_outline_survives_a_strong_reduction() -> None:
    image = np.zeros((3000, 4000, 3), np.uint8)
    mask = np.zeros((3000, 4000), bool)
    mask[1500, 2000] = True
    plain = np.zeros((3000, 4000), np.float32)
    drawn = overlay(image, plain, scale=SCALE, threshold=None, mask=mask)
    empty = overlay(image, plain, scale=SCALE, threshold=None, mask=mask & False)
    assert count(drawn, LESION_INK) > count(empty, LESION_INK)


def test_nothing_is_coloured_outside_the_field_of_view() -> None:
    image = photograph()
    hot = np.full((300, 400), 9.0, np.float32)
    inside = disc(300, 400, 200, 150, 100)
    picture = overlay(image, hot, scale=SCALE, threshold=None, fov=inside)
    right = panels(picture, 300, 400)[1]
    np.testing.assert_array_equal(right[~inside], image[~inside])
    assert (right[inside] != image[inside]).any(-1).mean() > 0.99
    everywhere = overlay(image, hot, scale=SCALE, threshold=None)
    assert (panels(everywhere, 300, 400)[1] != image).any(-1).mean() > 0.99


def test_outlines_keep_to_the_field_of_view() -> None:
    image = photograph()
    hot = np.full((300, 400), 9.0, np.float32)
    inside = disc(300, 400, 200, 150, 100)
    picture = overlay(image, hot, scale=SCALE, threshold=2.0, fov=inside)
    right = panels(picture, 300, 400)[1]
    beyond = ~disc(300, 400, 200, 150, 104)  # the line is a few pixels wide
    np.testing.assert_array_equal(right[beyond], image[beyond])


def test_the_field_of_view_of_a_reduced_image_stays_centred() -> None:
    image = np.full((2048, 2048, 3), 60, np.uint8)
    hot = np.full((2048, 2048), 9.0, np.float32)
    centre = (2048 - 1) / 2
    inside = disc(2048, 2048, centre, centre, 700)
    picture = overlay(image, hot, scale=SCALE, threshold=None, fov=inside, max_side=256)
    changed = (panels(picture, 256, 256)[1] != 60).any(-1)
    assert abs(changed.mean() / inside.mean() - 1) < 0.01
    np.testing.assert_array_equal(changed, changed[::-1, ::-1])


def test_blend_rounds_as_the_formula_says() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pure = cv2.applyColorMap(np.array([[255]], np.uint8), cv2.COLORMAP_TURBO)[0, 0, ::-1]
    alpha = 178 / 255  # MAX_ALPHA in 255ths
    error = blend(image, np.full((64, 64), 3, np.float32), SCALE) - (
        image * (1 - alpha) + pure * alpha
    )
    assert np.abs(error).max() <= 0.5


@pytest.mark.parametrize("threshold", [1.0, 1.01, 2.99, 3.0, 50.0, -50.0])
def test_a_threshold_near_an_end_does_not_cover_its_number(threshold: float) -> None:
    image, scores = photograph(), np.zeros((300, 400), np.float32)
    usual = overlay(image, scores, scale=SCALE, threshold=2.0)
    other = overlay(image, scores, scale=SCALE, threshold=threshold)
    body = slice(862, 892)  # right of the bar and its ticks: where the numbers begin
    ends = [slice(0, 28), slice(300, 330)]
    width = min(usual.shape[1], other.shape[1])
    for rows in ends:
        np.testing.assert_array_equal(usual[rows, body], other[rows, body])
    assert (usual[28:300, body] != other[28:300, body]).any()
    assert width >= body.stop


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (2, 900), (2848, 4288), (37, 1500)])
def test_any_size_gives_a_readable_picture(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 90, np.uint8)
    scores = np.full(shape, 2.0, np.float32)
    picture = overlay(
        image, scores, scale=SCALE, threshold=2.0, mask=scores > 1, fov=scores > 1, title="T"
    )
    assert picture.dtype == np.uint8
    assert 120 <= picture.shape[0] <= 1200
    assert 600 <= picture.shape[1] <= 2400
    assert count(picture, (232, 234, 237)) > 20  # the numbers are there


def test_grey_images_in_either_form() -> None:
    grey = np.full((300, 300), 77, np.uint8)
    scores = np.linspace(0, 4, 90000, dtype=np.float32).reshape(300, 300)
    flat = overlay(grey, scores, scale=SCALE, threshold=2.0)
    np.testing.assert_array_equal(
        flat, overlay(grey[..., None], scores, scale=SCALE, threshold=2.0)
    )


def test_the_title_is_cut_and_never_breaks_the_picture() -> None:
    image, scores = photograph(), np.zeros((300, 400), np.float32)
    plain = overlay(image, scores, scale=SCALE, threshold=None)
    for title in ("x" * 5000, 'a "quoted"\n<script>', "眼底 😀 \x00"):
        titled = overlay(image, scores, scale=SCALE, threshold=None, title=title)
        assert titled.shape[1] == plain.shape[1]
        assert titled.shape[0] > plain.shape[0]


def test_arguments_are_not_modified() -> None:
    image, scores = photograph(), np.full((300, 400), 5, np.float32)
    mask = np.eye(300, 400, dtype=bool)
    before = image.copy(), scores.copy(), mask.copy()
    overlay(image, scores, scale=SCALE, threshold=2.0, mask=mask, fov=~mask)
    for now, then in zip((image, scores, mask), before):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scale": (3.0, 3.0)}, "lo < hi"),
        ({"scale": (0.0, float("nan"))}, "lo < hi"),
        ({"anomaly_map": np.zeros((4, 5), np.float32)}, "the map is"),
        ({"anomaly_map": np.full((4, 4), np.nan, np.float32)}, "16 values"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "uint8"),
        ({"image": np.zeros((4, 4, 4), np.uint8)}, "wanted"),
        ({"mask": np.zeros((4, 5), bool)}, "mask is"),
        ({"fov": np.ones((5, 4), bool)}, "fov is"),
        ({"threshold": float("inf")}, "threshold"),
        ({"max_side": 10}, "max_side"),
    ],
)
def test_refusals_say_what_was_wrong(change: dict[str, object], says: str) -> None:
    call: dict[str, object] = {
        "image": np.zeros((4, 4, 3), np.uint8),
        "anomaly_map": np.zeros((4, 4), np.float32),
        "scale": SCALE,
        "threshold": 1.0,
    }
    with pytest.raises(ValueError, match=says):
        overlay(**(call | change))  # type: ignore[arg-type]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("disk full")

    image = photograph()
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        save_overlay(
            tmp_path / "a.jpg", image, np.zeros((300, 400), np.float32), scale=SCALE, threshold=None
        )
    assert list(tmp_path.iterdir()) == []


def test_ticks_keep_different_values_apart() -> None:
    assert distinct_numbers([1, 2.5, 3]) == ["1", "2.5", "3"]
    assert distinct_numbers([1000.1, 1000.2]) == ["1000.1", "1000.2"]
    assert distinct_numbers([0.1 + 0.2, 0.3]) == ["0.30000000000000004", "0.29999999999999999"]
    assert distinct_numbers([2.0, 2.0]) == ["2", "2"]


def test_outlines_include_holes() -> None:
    region = np.zeros((9, 9), bool)
    region[1:8, 1:8] = True
    region[3:6, 3:6] = False
    assert len(outlines(region)) == 2
    assert outlines(region & False) == []
