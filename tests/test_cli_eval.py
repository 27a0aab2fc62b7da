# SPDX-License-Identifier: Apache-2.0
"""Evaluating by the command line: rows, metrics, masks, two runs compared."""

import json
import shutil

import cv2
import numpy as np
from commands import SETTINGS, call, rows


def test_eval_writes_rows_maps_overlays_and_metrics(model, cohort, tmp_path):
    args = ("eval", cohort, "-m", model, "-o", tmp_path / "run", "--intervals", 50)
    said = call(*args, "--ap-chunk")
    assert "image_AUROC" in said
    assert "pixel_AP_chunk20" in said
    assert "image_FPR_threshold" in said
    run = tmp_path / "run"
    table = {row["id"]: row for row in rows(run)}
    assert len(table) == 8
    spot = table["test/spot/01.png"]
    assert (spot["status"], spot["gt_label"], spot["class"]) == ("ok", 1, "spot")
    assert (spot["width"], spot["height"], spot["fov_status"]) == (96, 96, "ok")
    assert spot["score_pct"] == 100
    with np.load(run / spot["map_path"]) as stored:
        assert stored["map"].dtype == np.float16
        assert stored["map"].shape == (16, 16)
        assert np.allclose(stored["affine"], [[6, 0, 2.5], [0, 6, 2.5]])
    mask = cv2.imread(str(cohort / "ground_truth/spot/01_mask.png"), 0) > 0
    region = spot["regions"][0]
    y, x = np.argwhere(mask).mean(0)
    assert region["x"] - 6 <= x <= region["x"] + region["w"] + 6
    assert region["y"] - 6 <= y <= region["y"] + region["h"] + 6
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    assert metrics["image_AUROC"]["value"] == 1.0
    assert metrics["pixel_AUROC"]["value"] > 0.9
    assert metrics["image_AUROC"]["definition"]
    assert metrics["pixel_AP_chunk20"]["value"] > 0.5
    assert "chunks of 20 images" in (run / "report.html").read_text(encoding="utf-8")
    assert len(list((run / "overlays").iterdir())) == 8
    facts = json.loads((run / "run.json").read_text())
    assert facts["counts"] == {"ok": 8}
    assert facts["model"]["id"] == spot["model_id"]


def test_images_to_learn_from_never_judge(model, cohort, tmp_path):
    shutil.copytree(cohort / "train", tmp_path / "data/train")
    shutil.copytree(cohort / "test/spot", tmp_path / "data/train/dr")
    said = call("eval", tmp_path / "data", "-m", model, "-o", tmp_path / "run", code=2)
    assert "in the split test" in said


def test_a_mask_of_another_aspect_is_that_rows_error(model, cohort, tmp_path):
    data = shutil.copytree(cohort, tmp_path / "data")
    wrong = data / "ground_truth/spot/02_mask.png"
    cv2.imwrite(str(wrong), np.full((96, 60), 255, np.uint8))
    half = data / "ground_truth/spot/03_mask.png"
    mask = cv2.imread(str(half), 0)
    cv2.imwrite(str(half), cv2.resize(mask, (48, 48), interpolation=cv2.INTER_NEAREST))
    said = call("eval", data, "-m", model, "-o", tmp_path / "run", "--intervals", 0)
    assert "7 ok, 1 unsupported" in said
    bad = next(r for r in rows(tmp_path / "run") if r["status"] != "ok")
    assert bad["id"] == "test/spot/02.png"
    assert "the mask has 60 x 96 pixels, the image 96 x 96" in bad["error"]
    call("eval", data, "-m", model, "-o", tmp_path / "r2", "--strict", "--intervals", 0, code=1)


def test_two_runs_are_compared_on_the_same_images(model, cohort, tmp_path):
    call("fit", cohort, "-o", tmp_path / "m", *SETTINGS, "--set", "combination=F")
    call("eval", cohort, "-m", tmp_path / "m", "-o", tmp_path / "a", "--intervals", 20)
    said = call(
        *("eval", cohort, "-m", model, "-o", tmp_path / "b", "--intervals", 20),
        *("--against", tmp_path / "a"),
    )
    assert "a − b" in said
    compared = json.loads((tmp_path / "b/comparison.json").read_text())
    assert compared["metrics"]["pixel_AUROC"]["difference"] is not None
    (tmp_path / "b/comparison.json").unlink()
    again = call("eval", tmp_path / "b", "--against", tmp_path / "a", "--intervals", 20)
    assert "a − b" in again
    assert json.loads((tmp_path / "b/comparison.json").read_text()) == compared
    assert "RUN --against OTHER" in call("eval", tmp_path / "b", code=2)
    args = ("eval", tmp_path / "b", "--against", tmp_path / "a", "--ap-chunk")
    assert "nor --ap-chunk" in call(*args, code=2)
    said = call("report", tmp_path / "b", "--top", 3)
    assert "report written" in said
