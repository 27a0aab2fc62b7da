# SPDX-License-Identifier: Apache-2.0
"""`fundad fit` of every method that trains, killed in the middle, ends with the same weights."""

import json
import os
import signal
import subprocess
import sys

import cv2
import killed_fit
import pytest
import small_dia
import small_proxies
import small_resynth
import small_tasks
from cohorts import photograph
from safetensors.torch import load_file

import fundad_fast

SETTINGS = {  # and a number of checkpoints into the second training, or the middle of the only one
    "manytasks": ({**small_tasks.TINY, "models": [0, 3]}, 9),
    "resynth": (small_resynth.TINY, 7),
    "proxyano": (small_proxies.PROXY, 4),
    "dia": (small_dia.TINY, 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", SETTINGS)
def test_a_killed_fit_ends_with_the_same_weights(method, tmp_path):
    for i in range(8):
        (tmp_path / "healthy").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "healthy" / f"{i}.png"), photograph(i)[..., 1])
    settings, saves = SETTINGS[method]
    args = ["fit", tmp_path / "healthy", "-m", method, "--folds", 4, "--threads", 1]
    for key, value in ({"image_size": 32, "fov": "none"} | settings).items():
        args += ["--set", f"{key}={json.dumps(value)}"]

    def fit(into, saves):
        command = [sys.executable, killed_fit.__file__, saves, *args, "-o", tmp_path / into]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run([str(c) for c in command], capture_output=True, text=True, env=env)

    done = fit("killed", saves)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "killed").exists()
    assert list((tmp_path / ".killed.work").rglob("checkpoint.safetensors"))
    for into in ("killed", "whole"):
        done = fit(into, 10**6)
        assert done.returncode == 0, done.stderr
    again, whole = (
        load_file(tmp_path / into / "weights.safetensors") for into in ("killed", "whole")
    )
    assert again.keys() == whole.keys()
    assert all((again[name] == want).all() for name, want in whole.items())
    assert not (tmp_path / ".killed.work").exists()
    models = [fundad_fast.load(tmp_path / into) for into in ("killed", "whole")]
    assert (models[0].decision_scores_ == models[1].decision_scores_).all()
