# SPDX-License-Identifier: Apache-2.0
"""A file of MedMNIST from fit to report, and classes that no name says to be healthy."""

import json
import math

import numpy as np
import pytest
from commands import call, rows
from npz_files import medmnist
from small_dia import TINY

pytestmark = pytest.mark.filterwarnings("ignore:the network does not know shifts apart")


def test_from_an_npz_to_scores_and_figures(tmp_path):
    file = tmp_path / "breastmnist.npz"
    medmnist(file, counts=(16, 4, 10), healthy=1)
    small = [x for k, v in TINY.items() for x in ("--set", f"{k}={json.dumps(v)}")]
    fit = ["fit", file, "-m", "dia", "--preset", "csi", *small, "-o", tmp_path / "model"]
    said = call(*fit, code=2)
    assert "--normal-class NAME" in said
    assert "0 (15), 1 (15)" in said
    assert "no class 7: there are 0, 1" in call(*fit, "--normal-class", 7, code=2)
    said = call(*fit, "--normal-class", 1)
    assert "0 malignant, 1 normal and benign" in said
    assert "the class 1 is healthy" in said
    assert "fitted on 8 images" in said
    about = json.loads((tmp_path / "model/bundle.json").read_text())
    assert about["input_spec"]["channels"] == "grey"
    assert about["thresholds"]["image"]["n"] == 2  # the healthy ones of val
    evaluate = ["eval", file, "-m", tmp_path / "model", "-o", tmp_path / "run", "--intervals", 0]
    assert "--normal-class" in call(*evaluate, code=2)
    call(*evaluate, "--normal-class", 1)
    found = rows(tmp_path / "run")
    assert [row["id"] for row in found] == [f"test/{i:06d}" for i in range(10)]
    assert [row["gt_label"] for row in found] == [0, 1] * 5
    assert all(row["status"] == "ok" and row["path"] == str(file) for row in found)
    assert json.loads((tmp_path / "run/metrics.json").read_text())["metrics"]["image_AUROC"]
    assert (tmp_path / "run/report.html").stat().st_size > 10_000
    # To score, nobody need know which class is healthy.
    call("score", file, "-m", tmp_path / "model", "-o", tmp_path / "scored")
    scored = {row["id"]: row for row in rows(tmp_path / "scored")}
    assert len(scored) == 30
    for row in found:
        assert math.isclose(scored[row["id"]]["score"], row["score"], rel_tol=1e-5)
        assert scored[row["id"]]["gt_label"] is None
    again = call("score", file, "-m", tmp_path / "model", "-o", tmp_path / "scored")
    assert "30 rows" in again
    # Two runs are compared with the labels of the file.
    both = ["eval", tmp_path / "run", "--against", tmp_path / "run", "--intervals", 0]
    assert "image_AUROC" in call(*both, "--normal-class", 1)
    np.savez(file, test_images=np.zeros((3, 8, 8), np.uint8))
    said = call("score", file, "-m", tmp_path / "model", "-o", tmp_path / "small")
    assert "3 too_small" in said
