# SPDX-License-Identifier: Apache-2.0
"""Pixel metrics against scikit-learn and a brute-force AUPRO; streaming against exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from fundad_fast.evaluation import PixelEvaluator


def regions_of(mask):
    """8-connected regions by flood fill."""
    left = {tuple(p) for p in np.argwhere(mask)}
    regions = []
    while left:
        stack, region = [left.pop()], []
        while stack:
            y, x = stack.pop()
            region.append((y, x))
            for p in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if p in left:
                    left.remove(p)
                    stack.append(p)
        regions.append(tuple(np.array(region).T))
    return regions


def brute_force_aupro(maps, masks, limit, counted=None):
    """From the definition: every threshold, every region, then the area by fine sampling's exact
    form, the trapezoid, with the last one cut where the straight line meets the limit."""
    counted = counted or [np.ones(m.shape, bool) for m in maps]
    levels = sorted({float(v) for m in maps for v in m.ravel()}, reverse=True)
    points = [(0.0, 0.0)]
    for t in levels:
        overlaps, fp, n = [], 0, 0
        for score, mask, inside in zip(maps, masks, counted):
            called = score >= t
            fp += np.sum(called & ~mask & inside)
            n += np.sum(~mask & inside)
            for region in regions_of(mask):
                kept = inside[region]
                if kept.any():
                    overlaps.append(np.mean(called[region][kept]))
        points.append((fp / n, np.mean(overlaps)))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def cohort(seed, n=6, size=12, levels=None):
    """Maps with lesions that score somewhat higher; every third image is healthy."""
    rng = np.random.default_rng(seed)
    maps, masks, fovs = [], [], []
    yy, xx = np.mgrid[:size, :size]
    for i in range(n):
        mask = np.zeros((size, size), bool)
        if i % 3:
            for _ in range(rng.integers(1, 5)):
                y, x, r = *rng.integers(0, size, 2), rng.uniform(0.3, 2.5)
                mask |= (yy - y) ** 2 + (xx - x) ** 2 <= r**2
        score = rng.normal(size=(size, size)) + mask
        if levels:
            score = np.round(score * levels) / levels
        maps.append(score.astype(np.float32))
        masks.append(mask)
        fovs.append((yy - size / 2) ** 2 + (xx - size / 2) ** 2 < (size * 0.45) ** 2)
    return maps, masks, fovs


def filled(maps, masks, fovs=None, **options):
    pixels = PixelEvaluator(**options)
    for i, (score, mask) in enumerate(zip(maps, masks)):
        pixels.add(
            f"image{i}", score, mask if mask.any() else None, None if fovs is None else fovs[i]
        )
    return pixels


def oracle(maps, masks, counted, threshold):
    y = np.concatenate([m[c] for m, c in zip(masks, counted)])
    s = np.concatenate([m[c] for m, c in zip(maps, counted)])
    precision, recall, _ = precision_recall_curve(y, s)
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    called = s > threshold
    return {
        "pixel_AUROC": roc_auc_score(y, s),
        "pixel_AP": average_precision_score(y, s),
        "pixel_F1Max": f1.max(),
        "pixel_AUPRO": brute_force_aupro(maps, masks, 0.3, counted),
        "pixel_Dice": 2 * np.sum(called & y) / (called.sum() + y.sum()),
    }


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_exact_equals_the_oracles_with_ties(seed, levels):
    maps, masks, fovs = cohort(seed, levels=levels)
    got = filled(maps, masks, fovs, pixel_threshold=1.0).metrics(n_boot=0)
    everything = [np.ones(m.shape, bool) for m in maps]
    abnormal = [np.full(m.shape, m.any()) for m in masks]
    for suffix, counted in (("", everything), ("_fov", fovs), ("_abnormal", abnormal)):
        for name, value in oracle(maps, masks, counted, 1.0).items():
            assert got[name + suffix].value == pytest.approx(value, abs=1e-6), name + suffix


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([None, 1, 2]), st.floats(0.01, 1.0))
def test_aupro_equals_brute_force_at_any_limit(seed, levels, limit):
    maps, masks, _ = cohort(seed, n=2, size=6, levels=levels)
    if not masks[1].any() or masks[1].all():
        return
    got = filled(maps, masks, fpr_limit=limit).metrics(n_boot=0)["pixel_AUPRO"].value
    assert got == pytest.approx(brute_force_aupro(maps, masks, limit), abs=1e-6)


def test_aupro_of_perfect_random_and_inverted_maps():
    mask = np.zeros((20, 20), bool)
    mask[3:5, 3:5] = mask[10:18, 9:19] = True
    for score, wanted in ((mask, 1.0), (np.zeros((20, 20)), 0.15), (~mask, 0.0)):
        pixels = PixelEvaluator()
        pixels.add("a", score.astype(float), mask)
        assert pixels.metrics(n_boot=0)["pixel_AUPRO"].value == pytest.approx(wanted, abs=1e-6)


def test_aupro_connects_diagonals_and_averages_lesions_not_pixels():
    # A lesion of two diagonal pixels, only one found, and one of eight pixels, all found.
    mask = np.zeros((9, 9), bool)
    mask[0, 0] = mask[1, 1] = True
    mask[4:6, 4:8] = True
    score = np.zeros((9, 9))
    score[mask] = 1
    score[1, 1] = -1
    pixels = PixelEvaluator()
    pixels.add("a", score, mask)
    # 8-connected: mean overlap (1/2 + 1) / 2 up to a false positive rate of 1; tied zeros follow
    # on a straight line. 4-connected would give (0 + 1 + 1) / 3.
    assert pixels.metrics(n_boot=0)["pixel_AUPRO"].value == pytest.approx(0.75, abs=1e-6)


@pytest.mark.parametrize("bits, tolerance", [(22, 3e-4), (16, 5e-3)])
def test_streaming_is_close_to_exact(bits, tolerance):
    maps, masks, fovs = cohort(3, n=30, size=64)
    shifted = [20 + m for m in maps]  # a narrow range far from zero is the hard case
    exact = filled(shifted, masks, fovs, pixel_threshold=21, mode="exact")
    streaming = filled(shifted, masks, fovs, pixel_threshold=21, mode="streaming", bits=bits)
    a, b = exact.metrics(n_boot=0), streaming.metrics(n_boot=0)
    for name in a:
        assert a[name].value == pytest.approx(b[name].value, abs=tolerance), name
    assert a["pixel_Dice"].value == b["pixel_Dice"].value
    assert exact.settings()["mode"] == "exact"
    assert streaming.settings()["mode"] == "streaming"


def test_auto_turns_to_streaming_at_the_limit_and_gives_the_same():
    maps, masks, fovs = cohort(4, n=9, size=16)
    at_limit = filled(maps, masks, fovs, exact_limit=9 * 256)
    assert at_limit.settings()["mode"] == "exact"
    beyond = filled(maps, masks, fovs, exact_limit=9 * 256 - 1)
    assert beyond.settings()["mode"] == "streaming"
    from_start = filled(maps, masks, fovs, mode="streaming")
    for name, metric in beyond.metrics(n_boot=50).items():
        other = from_start.metrics(n_boot=50)[name]
        assert metric.value == pytest.approx(other.value, abs=1e-9) if other.value else True
        assert (metric.lo, metric.hi) == (other.lo, other.hi)


def test_streaming_keeps_little():
    rng = np.random.default_rng(0)
    pixels = PixelEvaluator(mode="streaming", per_image=False)
    for i in range(5):
        pixels.add(str(i), rng.gamma(3, 1, (200, 200)), rng.random((200, 200)) > 0.99)
    assert sum(len(c.scores) for image in pixels.images for c in image.negative) == 0
    kept = sum(len(rank.scores) for rank in pixels.totals().negative.values())
    assert kept < 8192 * 10  # at most the bins of the octaves in use
    metric = pixels.metrics()["pixel_AUROC"]
    assert metric.value is not None
    assert metric.lo is None
    assert "per image" in metric.reason


@pytest.mark.parametrize("mode", ["exact", "streaming"])
def test_lesion_types_leave_other_types_out(mode):
    rng = np.random.default_rng(5)
    score = np.round(rng.normal(size=(30, 30)), 1).astype(np.float32)
    red, yellow, disc = (np.zeros((30, 30), bool) for _ in range(3))
    red[2:6, 2:6] = True
    yellow[5:12, 5:9] = True  # overlaps red
    disc[20:26, 20:26] = True  # annotated, but no lesion: not in the union
    healthy = np.round(rng.normal(size=(30, 30)), 1).astype(np.float32)
    pixels = PixelEvaluator(mode=mode, bits=31)
    pixels.add("a", score, red | yellow, types={"red": red, "yellow": yellow, "disc": disc})
    pixels.add("b", healthy, None)
    got = pixels.metrics_by_type(n_boot=0)
    free = ~(red | yellow)
    for name, mask in (("red", red), ("yellow", yellow), ("disc", disc)):
        s = np.concatenate([score[mask], score[free & ~mask], healthy.ravel()])
        y = np.arange(len(s)) < mask.sum()
        assert got[name]["pixel_AUROC"].value == pytest.approx(roc_auc_score(y, s), abs=1e-6)
        assert got[name]["pixel_AP"].value == pytest.approx(average_precision_score(y, s), abs=1e-6)
        assert "lesion type" in got[name]["pixel_AP"].definition


def test_undefined_says_why():
    pixels = PixelEvaluator()
    assert "no image" in pixels.metrics()["pixel_AUROC"].reason
    pixels.add("a", np.zeros((4, 4)), None)
    got = pixels.metrics()
    assert got["pixel_AUROC"].value is None
    assert "no lesion masks" in got["pixel_AUROC"].reason
    pixels.add("b", np.zeros((4, 4)), np.zeros((4, 4)))
    assert "no lesion pixel" in pixels.metrics()["pixel_AUPRO"].reason
    pixels.add("c", np.zeros((4, 4)), np.eye(4))
    got = pixels.metrics()
    assert got["pixel_AUROC"].value == 0.5
    assert "no field of view" in got["pixel_AUROC_fov"].reason
    assert "no pixel threshold" in got["pixel_Dice"].reason
    assert got["pixel_AUROC_abnormal"].n == 2
    assert got["pixel_AUROC"].n == 3


def test_unusable_input_is_refused():
    pixels = PixelEvaluator()
    pixels.add("a", np.zeros((4, 4)), None)
    with pytest.raises(ValueError, match="twice"):
        pixels.add("a", np.zeros((4, 4)), None)
    with pytest.raises(ValueError, match="bring the map to the mask's resolution"):
        pixels.add("b", np.zeros((4, 4)), np.zeros((4, 5)))
    with pytest.raises(ValueError, match="not finite"):
        pixels.add("b", np.full((4, 4), np.nan), None)
    with pytest.raises(ValueError, match="healthy image"):
        pixels.add("b", np.zeros((4, 4)), None, types={"MA": np.zeros((4, 4))})
    with pytest.raises(ValueError, match="mode"):
        PixelEvaluator(mode="fast")
    assert len(pixels) == 1


def test_pixel_threshold_is_strict_for_float32_maps():
    score = np.array([[0.1, 0.2], [0.2, 0.3]], np.float32)
    mask = np.array([[0, 0], [1, 1]], bool)
    for threshold, wanted in ((float(np.float32(0.2)), 2 / 3), (0.2, 0.8), (0.3, 2 / 3)):
        pixels = PixelEvaluator(pixel_threshold=threshold)
        pixels.add("a", score, mask)
        called = score.astype(float) > threshold
        assert 2 * np.sum(called & mask) / (called.sum() + 2) == pytest.approx(wanted)
        assert pixels.metrics(n_boot=0)["pixel_Dice"].value == pytest.approx(wanted)


def test_eval_size_resizes_masks_by_nearest_pixel():
    mask = np.zeros((8, 8), bool)
    mask[4:, 4:] = True
    score = mask.astype(np.float32)
    pixels = PixelEvaluator(eval_size=4)
    pixels.add("a", score[::2, ::2], mask)
    assert pixels.settings()["n_pixels"] == 16
    assert pixels.metrics(n_boot=0)["pixel_AP"].value == 1
    pixels.add("b", score, mask)  # a map on another grid is brought there
    assert pixels.settings()["n_pixels"] == 32
