# SPDX-License-Identifier: Apache-2.0
"""Intervals: what is resampled, that binned pixels serve, and paired differences."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from fundad_fast.evaluation import (
    Evaluated,
    ImageRecord,
    PixelEvaluator,
    compare,
    image_metrics,
    markdown_comparison,
)
from fundad_fast.evaluation import bootstrap as bootstrap_module
from fundad_fast.evaluation.bootstrap import resample_weights


def drawn(labels, patients=None, n_boot=200, seed=0):
    return np.concatenate(
        list(resample_weights(labels, patients, n_boot, seed, width=len(labels)).chunks())
    )


def test_images_are_drawn_within_their_label():
    labels = np.array([0, 1, 0, 1, 1, 0, 0])
    w = drawn(labels)
    assert w.shape == (200, 7)
    assert (w[:, labels == 0].sum(1) == 4).all()
    assert (w[:, labels == 1].sum(1) == 3).all()
    # With replacement: an image is missing in (1 - 1/4)^4 = 32 % of the resamples.
    assert 0.2 < np.mean(w[:, 0] == 0) < 0.45
    np.testing.assert_array_equal(w, drawn(labels))
    assert (w != drawn(labels, seed=1)).any()


def test_patients_are_drawn_whole():
    labels = np.array([0, 0, 0, 1, 1, 1, 0, 1, 0])
    patients = ["a", "a", "b", "c", "c", "d", "e", "e", None]
    w = drawn(labels, patients)
    assert (w[:, 0] == w[:, 1]).all()
    assert (w[:, 3] == w[:, 4]).all()
    assert (w[:, 6] == w[:, 7]).all()
    assert (w[:, 0] + w[:, 2] + w[:, 8] == 3).all()  # healthy patients: a, b, the unknown one
    assert (w[:, 3] + w[:, 5] == 2).all()
    assert (w[:, 6] == 1).all()  # the only patient with both kinds
    # A patient called like a place in the list is not the unknown patient there.
    assert (drawn([0, 0, 1, 1], [None, "0", None, None])[:, 0] != 1).any()


def test_every_resample_has_both_labels():
    labels = np.array([0, 1, 0, 1])
    for patients in (None, ["a", "a", "b", "b"], ["a", "a", "b", "c"], ["a", "b", "c", "c"]):
        w = drawn(labels, patients)
        assert (w[:, labels == 0].sum(1) > 0).all()
        assert (w[:, labels == 1].sum(1) > 0).all()


def test_chunks_do_not_change_the_draws(monkeypatch):
    labels = np.arange(10) % 3 == 0
    whole = drawn(labels, n_boot=50)
    monkeypatch.setattr(bootstrap_module, "CHUNK_ELEMENTS", 70)
    plan = resample_weights(labels, None, 50, 0, width=10)
    assert plan.rows == 7
    np.testing.assert_array_equal(np.concatenate(list(plan.chunks())), whole)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth = 0.7602  # P(N(1, 1) > N(0, 1))
    inside = 0
    for _ in range(200):
        scores = np.r_[rng.normal(size=60), rng.normal(1, 1, 60)]
        metric = image_metrics(scores, np.repeat([0, 1], 60), n_boot=200)["image_AUROC"]
        assert metric.lo <= metric.value <= metric.hi
        inside += metric.lo <= truth <= metric.hi
    assert 178 <= inside <= 199


def test_patients_widen_the_interval():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 40)
    effect = np.repeat(rng.normal(size=20), 4)
    scores = effect + labels + 0.05 * rng.normal(size=80)
    patients = [str(i // 4) for i in range(80)]
    by_image = image_metrics(scores, labels)["image_AUROC"]
    by_patient = image_metrics(scores, labels, patients=patients)["image_AUROC"]
    assert by_patient.hi - by_patient.lo > 1.3 * (by_image.hi - by_image.lo)


def test_no_interval_from_one_image():
    got = image_metrics([1.0, 2.0, 3.0], [0, 0, 1])["image_AUROC"]
    assert (got.value, got.lo, got.hi) == (1.0, None, None)
    assert "only one abnormal image" in got.reason
    got = image_metrics([1.0, 2.0, 3.0], [0, 0, 1], n_boot=0)["image_AUROC"]
    assert "no resamples" in got.reason


def test_no_interval_of_width_zero():
    scores, labels = [1.0, 2.0, 3.0, 4.0, 5.0], [0, 0, 0, 1, 1]
    got = image_metrics(scores, labels, threshold=3.0)
    assert (got["image_AUROC"].value, got["image_AUROC"].lo) == (1.0, None)
    assert "same value" in got["image_AUROC"].reason
    # None of three healthy images above: the rate can still be up to 1 - 0.025^(1/3).
    rate = got["image_FPR_threshold"]
    assert (rate.value, rate.lo, rate.reason) == (0, 0, None)
    assert rate.hi == pytest.approx(binomtest(0, 3).proportion_ci().high)
    rate = image_metrics(scores, labels, threshold=0.5)["image_FPR_threshold"]
    assert (rate.value, rate.hi) == (1, 1)
    assert rate.lo == pytest.approx(binomtest(3, 3).proportion_ci().low)
    patients = ["a", "a", "b", "c", "d"]
    rate = image_metrics(scores, labels, threshold=3.0, patients=patients)["image_FPR_threshold"]
    assert rate.hi == pytest.approx(binomtest(0, 2).proportion_ci().high)
    rate = image_metrics(scores, labels, threshold=3.0, n_boot=0)["image_FPR_threshold"]
    assert rate.hi is None


def lesion_cohort(seed=0, n=24, size=96, gain=1.0, rare=False):
    """Smooth maps with lesions that stand out, every third image healthy; with types."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:size, :size]
    fov = (yy - size / 2) ** 2 + (xx - size / 2) ** 2 < (0.47 * size) ** 2
    images = []
    for i in range(n):
        noise = gaussian_filter(rng.normal(size=(size, size)), 2)
        score = 3 + noise / noise.std()
        masks = {"MA": np.zeros((size, size), bool), "HE": np.zeros((size, size), bool)}
        if i % 3:
            for t, mask in masks.items():
                for _ in range(rng.integers(1, 3 if rare else 9)):
                    y, x = rng.integers(10, size - 10, 2)
                    r = rng.uniform(1, 2 if t == "MA" else 5)
                    mask |= (yy - y) ** 2 + (xx - x) ** 2 <= r**2
        union = masks["MA"] | masks["HE"]
        # Annotated anatomy, no lesion: outside the union, and where scores are high.
        masks["OD"] = (yy - size / 2) ** 2 + (xx - size / 3) ** 2 <= (size / 6) ** 2
        score += masks["OD"] & ~union
        images.append((score + gain * union, union, fov, masks))
    return images


def filled(images, **options):
    pixels = PixelEvaluator(pixel_threshold=4.5, **options)
    for i, (score, union, fov, masks) in enumerate(images):
        healthy = not union.any()
        pixels.add(
            str(i),
            score,
            None if healthy else union,
            fov,
            None if healthy else masks,
        )
    return pixels


@pytest.mark.parametrize("rare", [False, True])
@pytest.mark.parametrize("mode", ["exact", "streaming"])
def test_binned_pixels_are_within_a_thousandth(mode, rare):
    pixels = filled(lesion_cohort(rare=rare), mode=mode)
    histograms = pixels.histograms()
    once = np.ones((1, len(pixels)))
    cells = [
        ("", "all"),
        ("", "fov"),
        ("", "abnormal"),
        ("MA", "all"),
        ("OD", "all"),
        ("OD", "fov"),
    ]
    binned = pixels.resampled(histograms, cells, once)
    for cell in cells:
        for name, value in pixels.point(cell).items():
            assert binned[cell, name][0] == pytest.approx(float(value), abs=1e-3), (cell, name)


def test_bins_hold_little_of_pixels_and_of_lesions():
    # Nearly all lesion pixels lie in one large lesion, nearly all lesions in few pixels.
    rng = np.random.default_rng(0)
    mask = np.zeros((400, 500), bool)
    mask[:, :250] = True
    mask[5::10, 260::10] = True
    pixels = PixelEvaluator()
    pixels.add("a", rng.normal(size=mask.shape), mask)
    columns = pixels.histograms().targets[""].columns.sum(axis=1)
    assert (columns[0] + columns[1]).max() < 1.1 / 2048 * mask.sum()
    lesions = 1 + mask[:, 250:].sum()
    assert columns[2].max() <= 2.01  # of 961 lesions; 1024 quantiles
    assert columns[2].sum() == pytest.approx(lesions)


@pytest.mark.parametrize("mode", ["exact", "streaming"])
def test_a_resample_is_the_repeated_images(mode):
    images = lesion_cohort(seed=2, n=12)
    times = np.array([0, 2, 1, 1, 0, 3, 2, 1, 1, 1, 0, 1])
    pixels = filled(images, mode=mode)
    got = pixels.resampled(pixels.histograms(), [("", "all"), ("OD", "fov")], times[None] * 1.0)
    repeated = filled([images[i] for i in np.repeat(np.arange(12), times)], mode=mode)
    for cell in [("", "all"), ("OD", "fov")]:
        for name, value in repeated.point(cell).items():
            assert got[cell, name][0] == pytest.approx(float(value), abs=1e-3), (cell, name)


def test_pixel_intervals_hold_the_value_and_resample_patients():
    images = lesion_cohort(seed=3)
    got = filled(images).metrics(n_boot=200)
    for name, metric in got.items():
        assert metric.lo < metric.value < metric.hi, name
    again = filled(images).metrics(n_boot=200)
    assert got == again
    # The same image three times over is one patient: as wide as without the copies.
    copies = PixelEvaluator(pixel_threshold=4.5)
    for i, (score, union, fov, _) in enumerate(images):
        for copy in range(3):
            copies.add(f"{i}-{copy}", score, union if union.any() else None, fov, patient=str(i))
    by_patient = copies.metrics(n_boot=200)
    for name, metric in got.items():
        assert by_patient[name].value == pytest.approx(metric.value, abs=1e-6)
        assert by_patient[name].lo == pytest.approx(metric.lo, abs=2e-3)
        assert by_patient[name].hi == pytest.approx(metric.hi, abs=2e-3)


def test_chunked_ap_equals_its_definition():
    from sklearn.metrics import average_precision_score

    images = lesion_cohort(seed=4, n=43, size=40)
    pixels = filled(images)
    names = sorted(range(43), key=str)
    shuffles = []
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(43)
        chunks = [[names[j] for j in order[i : i + 20]] for i in range(0, 43, 20)]
        shuffles.append(
            np.mean(
                [
                    average_precision_score(
                        np.concatenate([images[j][1].ravel() for j in chunk]),
                        np.concatenate([images[j][0].ravel() for j in chunk]),
                    )
                    for chunk in chunks
                    if any(images[j][1].any() for j in chunk)
                ]
            )
        )
    got = pixels.metrics(n_boot=0, ap_chunk=True)["pixel_AP_chunk20"]
    assert got.value == pytest.approx(np.mean(shuffles), abs=1e-3)
    assert abs(got.value - pixels.metrics(n_boot=0)["pixel_AP"].value) > 3e-3
    assert "pixel_AP_chunk20" not in pixels.metrics(n_boot=0)


def records_of(scores, labels):
    return [ImageRecord(str(i), s, y) for i, (s, y) in enumerate(zip(scores, labels))]


def test_paired_comparison_of_images():
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], 40)
    hard = rng.normal(size=80)
    good = records_of(hard + 1.2 * labels + 0.1 * rng.normal(size=80), labels)
    worse = records_of(hard + 0.9 * labels + 0.1 * rng.normal(size=80), labels)
    got = compare(Evaluated(good), Evaluated(worse[::-1]))
    entry = got["metrics"]["image_AUROC"]
    alone = [image_metrics([r.score for r in run], labels)["image_AUROC"] for run in (good, worse)]
    assert entry["a"] == alone[0].value
    assert entry["b"] == alone[1].value
    assert entry["difference"] == pytest.approx(entry["a"] - entry["b"])
    assert 0 < entry["lo"] < entry["difference"] < entry["hi"]
    assert entry["share_above_0"] > 0.975
    # What is hard for both cancels out: far narrower than the two intervals apart.
    assert entry["hi"] - entry["lo"] < 0.6 * (alone[0].hi - alone[0].lo)
    swapped = compare(Evaluated(worse[::-1]), Evaluated(good))["metrics"]["image_AUROC"]
    assert swapped["difference"] == -entry["difference"]
    same = compare(Evaluated(good), Evaluated(good))["metrics"]["image_AUROC"]
    assert (same["difference"], same["lo"], same["hi"], same["share_above_0"]) == (0, 0, 0, 0.5)


def test_paired_comparison_of_pixels():
    better, worse = lesion_cohort(seed=6, gain=1.5), lesion_cohort(seed=6, gain=1.2)
    a, b = filled(better), PixelEvaluator(pixel_threshold=4.5)
    for i in reversed(range(len(worse))):  # another order of the same images
        score, union, fov, masks = worse[i]
        healthy = not union.any()
        b.add(str(i), score, None if healthy else union, fov, None if healthy else masks)
    records = records_of([0.0] * 24, [int(i % 3 > 0) for i in range(24)])
    got = compare(Evaluated(records, a), Evaluated(records, b), n_boot=200)
    json.dumps(got, allow_nan=False)
    values_a, values_b = a.metrics(n_boot=200), b.metrics(n_boot=0)
    for name in ("pixel_AUROC", "pixel_AP", "pixel_AUPRO_fov", "pixel_Dice_abnormal"):
        entry = got["metrics"][name]
        assert entry["a"] == values_a[name].value
        assert entry["b"] == values_b[name].value
        assert 0 < entry["lo"] < entry["difference"] < entry["hi"], name
        assert entry["share_above_0"] == 1
        assert entry["hi"] - entry["lo"] < values_a[name].hi - values_a[name].lo
    assert got["groups"]["lesion_type"]["MA"]["pixel_AP"]["difference"] > 0
    table = markdown_comparison(got)
    assert "| pixel_AUROC | " in table
    assert "MA: pixel_AP" in table
    assert "no threshold was given: image_balanced_accuracy_threshold" in table
    same = compare(Evaluated(records, a), Evaluated(records, a), n_boot=20)
    assert same["metrics"]["pixel_AP"]["hi"] == 0


def test_comparison_of_different_images():
    a = records_of([1.0, 2.0, 3.0, 4.0, 5.0], [0, 0, 1, 1, 1])
    b = records_of([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1]) + [ImageRecord("4", None, 1)]
    got = compare(Evaluated(a), Evaluated(b))
    assert got["settings"]["images"] == {"both": 4, "only_a": 1, "only_b": 0}
    assert got["metrics"]["image_AUROC"]["n"] == 4
    other = records_of([1.0, 2.0, 3.0], [0, 1, 1])
    with pytest.raises(ValueError, match="another label"):
        compare(Evaluated(a), Evaluated(other))
    images = lesion_cohort(n=6, size=32)
    few, fewer = filled(images), filled(images[:5])
    with pytest.raises(ValueError, match="'5' has a map in one run only"):
        compare(Evaluated(a, few), Evaluated(a, fewer))
    changed = [*images[:5], (images[5][0][:30], *(m[:30] for m in images[5][1:3]), {})]
    with pytest.raises(ValueError, match="another mask"):
        compare(Evaluated(a, few), Evaluated(a, filled(changed)))
