# SPDX-License-Identifier: Apache-2.0
"""Fitting by the command line: what is written, and what goes on after a kill."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
from commands import SETTINGS, call


def test_fit_leaves_a_model_and_no_scratch(model):
    assert sorted(p.name for p in model.iterdir()) == [
        "MODEL_CARD.md",
        "bank.safetensors",
        "bundle.json",
        "normal_scores.parquet",
        "weights.safetensors",
    ]
    assert [p.name for p in model.parent.iterdir()] == ["model"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["features", "coreset fold1", "coreset all"])
def test_a_killed_fit_goes_on_and_gives_the_same_model(model, cohort, tmp_path, stage):
    out = tmp_path / "killed"
    command = [sys.executable, "-c", "from fundad_fast.cli import main; main()", "fit"]
    command += [str(cohort), "-o", str(out), *SETTINGS, "--progress", "json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("{"):
                said = json.loads(line)
                if said["stage"] == stage and (stage != "features" or said["done"] >= 4):
                    process.send_signal(signal.SIGKILL)
                    break
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    assert list(tmp_path.glob(".killed.work/*/*/rows.jsonl"))
    subprocess.run(command, check=True, capture_output=True)
    ids = [json.loads((p / "bundle.json").read_text())["id"] for p in (model, out)]
    assert ids[0] == ids[1]
    assert [p.name for p in tmp_path.iterdir()] == ["killed"]


def test_a_model_lost_between_two_renames_comes_back(model, cohort, tmp_path):
    shutil.copytree(model, tmp_path / ".m.old")
    said = call("fit", cohort, "-o", tmp_path / "m", *SETTINGS, code=2)
    assert "exists; give another -o" in said
    assert (tmp_path / "m/bundle.json").exists()
    shutil.copytree(model, tmp_path / ".m.old")
    call("fit", cohort, "-o", tmp_path / "m", *SETTINGS, "--overwrite")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_config_file_says_what_flags_say(model, cohort, tmp_path):
    (tmp_path / "c.yaml").write_text(
        "method: resad\nweights: untrained\nsettings:\n  backbone: resnet18\n"
        "  layers: [layer1, layer2]\n  image_size: 64\n  coreset_sampling_ratio: 0.5\n"
    )
    call(
        *("fit", cohort, "-o", tmp_path / "m", "--config", tmp_path / "c.yaml", "--folds", 3),
        *("--set", "coreset_sampling_ratio=0.1"),
    )
    ids = [json.loads((p / "bundle.json").read_text())["id"] for p in (model, tmp_path / "m")]
    assert ids[0] == ids[1]


def test_an_input_that_is_not_there_is_not_fitted_around(cohort, tmp_path):
    def refused(*more):
        return call("fit", cohort, *more, "-o", tmp_path / "m", *SETTINGS, "--dry-run", code=2)

    assert "image_size=32 is no file; a setting has a --set of its own" in refused(
        "--set", "seed=1", "image_size=32"
    )
    near = cohort.with_name(f"{cohort.name}s")
    assert f"{near} does not exist; did you mean {cohort}" in refused(near)
    (tmp_path / "a=b.png").write_bytes(next(cohort.rglob("*.png")).read_bytes())
    call("fit", cohort, tmp_path / "a=b.png", "-o", tmp_path / "m", *SETTINGS, "--dry-run")
