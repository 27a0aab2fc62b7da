# SPDX-License-Identifier: Apache-2.0
"""``fundad tasks`` draws pictures of images and volumes."""

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fundad_fast.cli import app
from fundad_fast.synthetic import EXTRA_TASKS, TASKS, Synthetic
from fundad_fast.synthetic.gallery import LINE, draw_gallery
from fundad_fast.synthetic.proxies import PROXIES

nib = pytest.importorskip("nibabel", reason="nibabel is not installed")


def call(*args, code=0):
    result = CliRunner().invoke(app, ["tasks", *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def grey(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (9, 11), dtype=np.uint8)
    path = tmp_path / "grey.png"
    cv2.imwrite(str(path), cv2.resize(noise, (88, 72), interpolation=cv2.INTER_CUBIC))
    return path


def ball(path, seed=0):
    at = np.stack(np.meshgrid(*[np.linspace(-1, 1, 30)] * 3, indexing="ij"))
    noise = np.random.default_rng(seed).normal(100, 20, (30, 30, 30))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image((noise * ((at**2).sum(0) < 0.7)).astype(np.float32), np.eye(4)), path)
    return path


def test_a_picture_of_every_task(grey, tmp_path):
    said = call(grey, "-o", tmp_path / "all.png", "--size", 48)
    for task in TASKS + EXTRA_TASKS:
        assert task in said
    whole = cv2.imread(str(tmp_path / "all.png"))
    assert call(grey, "-o", tmp_path / "one.png", "--size", 48, "--task", "sink").strip()
    one = cv2.imread(str(tmp_path / "one.png"))
    assert whole.shape[0] > 8 * (one.shape[0] - 40)
    assert whole.shape[1] == one.shape[1]
    rows = one[-200:].astype(int)
    assert (rows[..., 0] != rows[..., 2]).any()  # the label has colours
    before = (tmp_path / "one.png").read_bytes()
    said = call(grey, "-o", tmp_path / "one.png", "--task", "sink", code=2)
    assert "exists" in said
    call(grey, "-o", tmp_path / "one.png", "--size", 48, "--task", "sink", "--overwrite")
    assert (tmp_path / "one.png").read_bytes() == before
    call(grey, "-o", tmp_path / "two.png", "--size", 48, "--task", "sink", "--seed", 1)
    assert (tmp_path / "two.png").read_bytes() != before


def test_rows_of_consistent_anomalies_with_settings_of_their_own(grey, tmp_path):
    args = (grey, "--size", 64, "--task", "consistent")
    said = call(*args, "-o", tmp_path / "a.png", "--rows", 2)
    assert said.strip().endswith("a.png: consistent, seed 0, consistent, seed 1")
    call(*args, "-o", tmp_path / "b.png")
    two, one = (cv2.imread(str(tmp_path / f"{name}.png")) for name in "ab")
    assert two.shape[0] > 1.8 * (one.shape[0] - 40)
    call(*args, "-o", tmp_path / "c.png", "--set", "area_max=0.1", "--set", "threshold=0.2")
    assert (cv2.imread(str(tmp_path / "c.png")) != one).any()
    assert "no_such" in call(*args, "-o", tmp_path / "d.png", "--set", "no_such=1", code=2)
    volume = ball(tmp_path / "v.nii.gz")
    said = call(volume, "-o", tmp_path / "v.png", "--task", "consistent", code=2)
    assert "consistent is left out: it is made for images" in said


def test_a_volume_is_cut_three_times(tmp_path):
    volume = ball(tmp_path / "v.nii.gz")
    said = call(volume, "-o", tmp_path / "v.png", "--task", "sink", "--task", "inter")
    assert "inter is left out: a volume needs --external DIR" in said
    assert said.strip().endswith("v.png: sink")
    wide = cv2.imread(str(tmp_path / "v.png"))
    assert wide.shape[1] == 12 * (224 * 3 // 4) + 13 * 8
    ball(tmp_path / "others/a.nii.gz", 1)
    ball(tmp_path / "others/b.nii.gz", 2)
    said = call(
        *(volume, "-o", tmp_path / "w.png", "--task", "inter"), "--external", tmp_path / "others"
    )
    assert said.strip().endswith("w.png: inter")


def test_cuts_through_a_volume_have_one_scale_and_stand_upright():
    before = torch.zeros(1, 1, 20, 40, 30)  # superior, anterior, right
    before[:, :, 14:, 30:, 20:] = 1
    label = before[:, 0].clone()
    picture = draw_gallery(before, {"x": Synthetic(before, label, label > 0)}, panel=160)
    yellow = (picture[..., 0] > 200) & (picture[..., 2] < 200)  # where the label is 1
    columns = yellow.any(0).nonzero()[0]
    spans = []
    for part in np.split(columns, (np.diff(columns) > 1).nonzero()[0] + 1):
        rows = yellow[:, part].any(1).nonzero()[0]
        spans.append((len(rows), len(part)))
        assert rows[0] == LINE + 4 + 16  # superior, or anterior, is up
        assert (picture[rows[0], part[-1] + 1] == 255).all()  # right, or anterior, is right
    # 3 pixels a cell, whatever the plane: 6 cells superior, 10 anterior, 10 right.
    assert spans == [(30, 30), (18, 30), (18, 30)]


def test_a_picture_of_proxies(grey, tmp_path):
    said = call(grey, "-o", tmp_path / "p.png", "--size", 48, "--proxies", "--set", "segments=40")
    for name in ("superpixel, 40 asked", "superpixel, 10 asked", "pseudo-anomaly", *PROXIES):
        assert name in said
    picture = cv2.imread(str(tmp_path / "p.png"))
    assert picture.shape[0] > 7 * 224
    volume = ball(tmp_path / "v.nii.gz")
    for args, words in (
        ([volume, "--proxies"], "not of volumes"),
        ([grey, "--proxies", "--task", "sink"], "leave out --task"),
        ([grey, "--proxies", "--rows", 2], "--rows"),
        ([grey, "--proxies", "--set", "segments=1"], "segments"),
    ):
        assert words in call(*args, "-o", tmp_path / "no.png", code=2)
        assert not (tmp_path / "no.png").exists()


def test_mistakes_are_told_in_one_line(grey, tmp_path):
    volume = ball(tmp_path / "v.nii.gz")
    for args, words in (
        ([grey, "-o", tmp_path / "x.jpg"], "want a name that ends in .png"),
        ([grey, "-o", tmp_path / "x.png", "--task", "drain"], "--task drain: use one of intra"),
        ([volume, "-o", tmp_path / "x.png", "--task", "inter"], "nothing is left to draw"),
        ([tmp_path / "no.png", "-o", tmp_path / "x.png"], "No such file"),
        ([grey, "-o", tmp_path / "x.png", "--set", "g_max=0.1"], "want g_min <= g_max"),
        ([volume, "-o", tmp_path / "x.png", "--external", grey.parent], "is no 3-D image"),
    ):
        assert words in call(*args, code=2)
        assert not (tmp_path / "x.png").exists()
