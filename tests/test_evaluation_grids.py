# SPDX-License-Identifier: Apache-2.0
"""Bringing maps and masks to one grid; counting scores on bins; thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fundad_fast.evaluation import (
    colour_scale,
    image_threshold,
    pixel_threshold,
    resample_map,
    resize_affine,
    score_percentile,
)
from fundad_fast.evaluation.resample import resize_map, resize_mask
from fundad_fast.evaluation.score_counts import Counts, Rank, from_bins, to_bins


def ramp(affine, h, w):
    """A map whose value at each cell is a linear function of the original pixel below it."""
    y, x = np.mgrid[:h, :w]
    big_x, big_y = np.einsum("ij,jyx->iyx", affine, np.stack([x, y, np.ones_like(x)]))
    return (2 * big_x - 3 * big_y + 5).astype(np.float32)


@pytest.mark.parametrize(
    "affine",
    [
        resize_affine((7, 11), 60, 100),
        np.array([[3.0, 0, 12], [0, 4.0, 7]]),  # a crop
        np.array([[3.0, 0.5, 12], [-0.4, 4.0, 17]]),  # turned
    ],
)
def test_a_ramp_survives_resampling(affine):
    out = resample_map(ramp(affine, 7, 11), affine, 60, 100)
    y, x = np.mgrid[:60, :100]
    inverse = np.linalg.inv(affine[:, :2])
    u, v = np.einsum("ij,jyx->iyx", inverse, np.stack([x - affine[0, 2], y - affine[1, 2]]))
    inside = (u >= 0) & (u <= 10) & (v >= 0) & (v <= 6)
    assert inside.sum() > 500
    wanted = 2 * x - 3 * y + 5
    np.testing.assert_allclose(out[inside], wanted[inside], atol=1e-3)


def test_the_border_is_clamped():
    m = np.array([[1.0, 2.0], [3.0, 4.0]])
    out = resample_map(m, resize_affine((2, 2), 4, 4), 4, 4)
    np.testing.assert_allclose(out[0], [1, 1.25, 1.75, 2], atol=1e-6)
    np.testing.assert_allclose(out[:, 0], [1, 1.5, 2.5, 3], atol=1e-6)


def test_same_grid_is_the_identity_and_matches_torch():
    import torch

    m = np.random.default_rng(0).random((9, 13)).astype(np.float32)
    np.testing.assert_array_equal(resize_map(m, 9, 13), m)
    wanted = torch.nn.functional.interpolate(torch.tensor(m)[None, None], (50, 77), mode="bilinear")
    np.testing.assert_allclose(resize_map(m, 50, 77), wanted[0, 0].numpy(), atol=1e-6)


def test_unusable_grids_are_refused():
    with pytest.raises(ValueError, match="inverted"):
        resample_map(np.zeros((2, 2)), [[0, 0, 0], [0, 1, 0]], 4, 4)
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        resample_map(np.zeros((2, 2)), np.eye(3), 4, 4)
    with pytest.raises(ValueError, match="not empty"):
        resample_map(np.zeros((2, 0)), np.eye(3)[:2], 4, 4)


def test_resize_mask_takes_the_pixel_under_the_centre():
    mask = np.zeros((6, 6), bool)
    mask[1, 4] = True  # the centre of a cell when 6 becomes 2
    np.testing.assert_array_equal(resize_mask(mask, 2, 2), [[False, True], [False, False]])
    np.testing.assert_array_equal(resize_mask(mask, 6, 6), mask)
    assert resize_mask(mask, 12, 12).sum() == 4


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=200, deadline=None)
@given(st.lists(floats, min_size=1, max_size=30), st.integers(12, 31))
def test_bins_keep_the_order_and_round_down(values, bits):
    scores = np.array(values, np.float32)
    bins = to_bins(scores, bits)
    order = np.argsort(scores)
    assert (np.diff(bins[order].astype(np.int64)) >= 0).all()
    lower = from_bins(bins, bits)
    assert (lower <= scores).all()
    np.testing.assert_array_equal(to_bins(lower, bits), bins)
    step = np.abs(scores) * 2.0 ** (9 - bits) + 1e-37
    assert (scores.astype(float) - lower <= step).all()


def test_negative_zero_is_zero():
    assert len(np.unique(to_bins(np.array([0.0, -0.0], np.float32)))) == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-3, 3), max_size=30), st.lists(st.integers(-4, 4), max_size=8))
def test_rank_counts(values, asked):
    scores, v = np.array(values, np.float32), np.array(asked, np.float32)
    at_or_above, above = (scores >= v[:, None]).sum(1), (scores > v[:, None]).sum(1)
    binned = from_bins(to_bins(v))  # binned counts are asked for binned scores
    for counted, wanted in ((Counts(scores), v), (Counts(scores).binned(22), binned)):
        rank = Rank(counted)
        np.testing.assert_array_equal(rank.at_or_above(wanted), at_or_above)
        np.testing.assert_array_equal(rank.above(wanted), above)
        assert rank.total == len(values)


def test_conformal_rank_by_hand():
    scores = np.arange(1.0, 40.0)  # 39 scores: rank ceil(40 * 0.95) = 38
    got = image_threshold(scores, folds=5)
    assert (got["value"], got["n"], got["folds"], got["target_fpr"]) == (38.0, 39, 5, 0.05)
    assert image_threshold(np.arange(1.0, 20.0))["value"] == 19.0  # rank ceil(20 * 0.95) = 19
    assert image_threshold(np.arange(1.0, 41.0))["value"] == 39.0  # rank ceil(41 * 0.95) = 39
    few = image_threshold(np.arange(18.0))
    assert few["value"] == 17.0
    assert "at least 19" in few["rule"]
    assert "at least 19" not in image_threshold(np.arange(19.0))["rule"]


@pytest.mark.parametrize("tied", [False, True])
def test_target_false_positive_rate_holds_on_new_images(tied):
    rng = np.random.default_rng(0)
    above = []
    for _ in range(2000):
        scores = rng.gamma(2, 1, 31)
        if tied:
            scores = np.round(scores)
        above.append(scores[30] > image_threshold(scores[:30], target_fpr=0.1)["value"])
    rate = np.mean(above)
    assert rate < 0.1 + 3 * np.sqrt(0.09 / 2000)
    assert tied or rate > 0.06  # rank 28 of 30: the exact rate is 3/31


def test_pixel_threshold_and_colour_scale():
    pixels = np.random.default_rng(1).gamma(4, 1, 100_000).astype(np.float32)
    got = pixel_threshold(pixels)
    assert np.mean(pixels > got["value"]) == pytest.approx(0.005, abs=2e-5)
    assert got["target_fpr"] == 0.005
    scale = colour_scale(pixels, got["value"])
    assert scale["lo"] == pytest.approx(np.median(pixels))
    assert (got["value"] - scale["lo"]) / (scale["hi"] - scale["lo"]) == pytest.approx(0.5)
    heavy = np.r_[np.zeros(9900), np.full(100, 100.0)]
    assert colour_scale(heavy, 1.0)["hi"] == 100
    flat = colour_scale(np.zeros(5), 0.0)
    assert flat["lo"] < flat["hi"]
    assert "alike" in flat["rule"]


def test_percentile_takes_the_middle_of_ties():
    got = score_percentile([0, 1, 2, 2.5, 9], [1, 2, 2, 3])
    np.testing.assert_allclose(got, [0, 12.5, 50, 75, 100])
    with pytest.raises(ValueError, match="no held-out"):
        score_percentile([1.0], [])


def test_thresholds_refuse_nonsense():
    with pytest.raises(ValueError, match="no held-out healthy image scores"):
        image_threshold([])
    with pytest.raises(ValueError, match="not finite"):
        pixel_threshold([1.0, np.inf])
    with pytest.raises(ValueError, match="between 0 and 1"):
        image_threshold([1.0], target_fpr=1.0)
