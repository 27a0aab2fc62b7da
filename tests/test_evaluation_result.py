# SPDX-License-Identifier: Apache-2.0
"""The content of metrics.json, its tables, and the controls."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fundad_fast.evaluation import (
    ImageRecord,
    PcaReconstruction,
    PixelEvaluator,
    comparison_table,
    control_metrics,
    control_scores,
    evaluate,
    markdown_table,
)


def some_records():
    rng = np.random.default_rng(0)
    records = [ImageRecord(f"h{i}", float(rng.normal()), 0, "good", "A") for i in range(20)]
    records += [
        ImageRecord(f"d{i}", float(rng.normal(1)), 1, "DR", "A" if i % 2 else "B", f"p{i // 2}")
        for i in range(10)
    ]
    records += [ImageRecord(f"g{i}", float(rng.normal(2)), 1, "glaucoma", "B") for i in range(7)]
    return records


def some_pixels():
    rng = np.random.default_rng(1)
    pixels = PixelEvaluator(pixel_threshold=2.0)
    for i in range(6):
        mask = rng.random((20, 20)) > 0.97
        types = {"MA": mask & (np.arange(20) < 10), "EX": mask & (np.arange(20) >= 10)}
        score = rng.normal(size=(20, 20)) + mask
        abnormal = i % 2 == 1
        pixels.add(str(i), score, mask if abnormal else None, None, types if abnormal else None)
    return pixels


def test_metrics_json():
    records = [
        *some_records(),
        ImageRecord("failed", None, 1, "DR"),
        ImageRecord("unlabelled", 1.0, None),
    ]
    result = evaluate(
        records, some_pixels(), image_threshold=1.0, n_boot=100, settings={"model_id": "m"}
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["schema"] == 1
    image = ["AUROC", "AP", "F1Max", "balanced_accuracy_youden", "balanced_accuracy_threshold"]
    image += ["sensitivity_at_specificity_95", "FPR_threshold"]
    pixel = ["AUROC", "AP", "AUPRO", "F1Max", "Dice"]
    for name in [f"image_{n}" for n in image] + [f"pixel_{n}" for n in pixel]:
        entry = result["metrics"][name]
        assert set(entry) == {"value", "lo", "hi", "n", "definition"}
        assert 0 <= entry["lo"] <= entry["value"] <= entry["hi"] <= 1
        assert entry["n"] == (37 if name.startswith("image") else 6)
        assert entry["definition"].endswith(".")
    assert set(result["metrics"]["pixel_AUROC_fov"]) >= {"reason"}
    assert set(result["groups"]["class"]) == {"DR", "glaucoma"}
    assert set(result["groups"]["group"]) == {"A", "B"}
    assert set(result["groups"]["lesion_type"]) == {"MA", "EX"}
    assert "pixel_Dice" not in result["groups"]["lesion_type"]["MA"]
    assert result["settings"]["model_id"] == "m"
    assert result["settings"]["images"] == {
        "given": 39,
        "without_score": 1,
        "without_label": 1,
        "healthy": 20,
        "abnormal": 17,
        "patients": 5,
    }
    assert result["groups"]["class"]["DR"]["image_AUROC"]["n"] == 30  # all healthy, 10 DR


def test_nothing_to_evaluate_is_no_crash():
    result = evaluate([], PixelEvaluator())
    json.dumps(result, allow_nan=False)
    assert all(entry["value"] is None for entry in result["metrics"].values())
    assert all(entry["reason"] for entry in result["metrics"].values())
    assert "Not computed because there are no scored images" in markdown_table(result)


def test_ids_come_once():
    with pytest.raises(ValueError, match="'a' comes more than once"):
        evaluate([ImageRecord("a", 1.0, 0), ImageRecord("a", 2.0, 1)])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.sampled_from([None, "x", "y", "z"])),
        min_size=2,
        max_size=40,
    )
)
def test_union_is_the_weighted_mean_of_the_groups(images):
    records = [ImageRecord("healthy", 0.0, 0)]
    records += [
        ImageRecord(str(i), float(s), int(g is not None), g) for i, (s, g) in enumerate(images)
    ]
    result = evaluate(records, n_boot=0)
    groups = result["groups"]["class"]
    if not groups:
        return
    counts = [sum(g == name for _, g in images) for name in groups]
    values = [entries["image_AUROC"]["value"] for entries in groups.values()]
    assert result["metrics"]["image_AUROC"]["value"] == pytest.approx(
        np.average(values, weights=counts), abs=1e-12
    )


def test_markdown_tables():
    result = evaluate(some_records(), some_pixels(), n_boot=50)
    table = markdown_table(result, definitions=True)
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert rows[0] == "| metric | value [95 %] | images | definition |"
    assert all(row.count("|") == 5 for row in rows)
    entry = result["metrics"]["image_AUROC"]
    wanted = f"{entry['value']:.3f} [{entry['lo']:.3f}, {entry['hi']:.3f}]"
    assert f"| image_AUROC | {wanted} | 37 |" in table
    assert "lesion_type MA: pixel_AP" in table
    assert "Not computed because no field of view was given: pixel_AUROC_fov" in table
    table = comparison_table({"ours": result["metrics"], "mean": {}}, ["image_AUROC", "x"])
    assert f"| ours | {wanted} | – |" in table
    assert "| mean | – | – |" in table


def test_control_scores_by_hand():
    image = np.zeros((3, 4, 6))
    image[0] = 0.3
    image[1] = np.arange(6) * 0.1
    got = control_scores(image)
    assert got["mean_red"] == pytest.approx(0.3)
    assert got["mean_green"] == pytest.approx(0.25)
    assert got["mean_blue"] == 0
    assert got["mean"] == pytest.approx(0.55 / 3)
    assert got["standard_deviation"] == pytest.approx(np.std(np.arange(6) * 0.1) / 3)
    assert got["mean_gradient"] == pytest.approx(0.1 / 3)
    mask = np.zeros((4, 6), bool)
    mask[:, :2] = True
    assert control_scores(image, mask)["mean_green"] == pytest.approx(0.05)
    assert set(control_scores(image[:1])) == {"mean", "standard_deviation", "mean_gradient"}
    with pytest.raises(ValueError, match="1 or 3 channels"):
        control_scores(np.zeros((4, 6)))
    with pytest.raises(ValueError, match="no pixel"):
        control_scores(image, np.zeros((4, 6)))
    with pytest.raises(ValueError, match="the mask is"):
        control_scores(image, np.ones((4, 5)))


def test_pca_control_knows_what_it_was_shown():
    rng = np.random.default_rng(0)
    basis = rng.random((3, 3, 20, 24))
    healthy = [np.tensordot(rng.random(3), basis, 1) for _ in range(10)]
    control = PcaReconstruction(components=3, size=8).fit(healthy)
    like = control.score(np.tensordot([0.2, 0.5, 0.1], basis, 1))
    strange = control.score(np.tensordot([0.2, 0.5, 0.1], basis, 1) + rng.random((3, 20, 24)))
    assert like < 1e-12 < 1e-3 < strange
    # Three images span two directions around their mean; a third would be arbitrary.
    odd = rng.random((3, 20, 24))
    most, two = (PcaReconstruction(components=n).fit(healthy[:3]) for n in (99, 2))
    assert most.score(odd) == pytest.approx(two.score(odd), rel=1e-9)
    assert most.score(healthy[0]) < 1e-12
    with pytest.raises(ValueError, match="at least two"):
        PcaReconstruction().fit(healthy[:1])
    with pytest.raises(ValueError, match="fit"):
        PcaReconstruction().score(healthy[0])


def test_pca_control_averages_blocks():
    image = np.arange(24.0).reshape(1, 4, 6)
    from fundad_fast.evaluation.controls import _shrink

    np.testing.assert_allclose(_shrink(image, 2), [4, 7, 16, 19])
    np.testing.assert_allclose(_shrink(image, 99), image.ravel())


def test_controls_take_the_sign_that_suits_them():
    labels = [0, 0, 0, 1, 1, 1]
    up = [1.0, 2.0, 4.0, 3.0, 5.0, 6.0]
    got = control_metrics({"up": up, "down": [-v for v in up]}, labels, n_boot=50)
    assert (got["up"]["sign"], got["down"]["sign"]) == (1, -1)
    assert got["up"]["metrics"]["image_AUROC"]["value"] == pytest.approx(8 / 9)
    assert got["up"]["metrics"] == got["down"]["metrics"]
    assert "image_FPR_threshold" not in got["up"]["metrics"]
