# SPDX-License-Identifier: Apache-2.0
"""What images look like in figures: at a fit, and in the rows of a run."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from cohorts import photograph
from null_method import make_images, score_null

from fundad_fast.bundle import Bundle, load_bundle, model_card, save_bundle
from fundad_fast.data import InputSpec, Loader, brightness, discover, prepare, take_census
from fundad_fast.data.appearance import features, summarise
from fundad_fast.run_folder import read_rows

SPEC = InputSpec(image_size=64, fov="auto")


def test_brightness_is_the_mean_inside_the_field_of_view():
    prepared = prepare(photograph(1), SPEC)
    inside = prepared.image[:, prepared.mask]
    assert brightness(prepared) == pytest.approx(float(inside.mean()), abs=0.01)
    assert brightness(prepared) > 1.2 * float(prepared.image.mean())  # the black around counts not
    whole = prepare(photograph(1), InputSpec(image_size=64, fov="none"))
    assert brightness(whole) == pytest.approx(float(whole.image.mean()), abs=0.01)


def test_a_field_of_view_between_the_samples_is_still_seen():
    prepared = prepare(photograph(1), SPEC)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[1, 1] = True
    image = torch.zeros(3, 64, 64)
    image[:, 1, 1] = 0.75
    assert brightness(dataclasses.replace(prepared, image=image, mask=mask)) == 0.75


def test_a_volume_has_a_brightness_too():
    prepared = prepare(photograph(1), SPEC)
    image = torch.rand(1, 9, 8, 7)
    mask = torch.ones(9, 8, 7, dtype=torch.bool)
    volume = dataclasses.replace(prepared, image=image, mask=mask)
    assert brightness(volume) == pytest.approx(float(image[:, ::4, ::4].mean()))


def test_features_of_one_image():
    found = features(prepare(np.pad(photograph(1, 96), ((0, 0), (24, 24), (0, 0))), SPEC))
    assert (found["short_side"], found["aspect"]) == (96, 1.5)
    assert found["fov_radius"] == pytest.approx(0.46, abs=0.01)
    plain = features(prepare(photograph(1), InputSpec(image_size=64, fov="none")))
    assert set(plain) == {"short_side", "aspect", "brightness"}


def test_a_census_has_quantiles_and_the_frequent_sizes():
    sides = [96] * 6 + [80] * 3 + [120]
    census = summarise(prepare(photograph(i, side), SPEC) for i, side in enumerate(sides))
    short = census["short_side"]
    assert [short[k] for k in ("n", "min", "median", "max")] == [10, 80, 96, 120]
    assert short["q05"] == 80
    assert list(census["sizes"].items()) == [("96 x 96", 6), ("80 x 80", 3), ("120 x 120", 1)]
    assert census["brightness"]["min"] < census["brightness"]["max"] < 1


def test_only_some_images_are_read_from_the_first_to_the_last(tmp_path):
    for i in range(10):
        cv2.imwrite(str(tmp_path / f"{i}.png"), photograph(i, 40 + i))
    (tmp_path / "3.png").write_bytes(b"\x89PNG no")  # left out
    loader = Loader(discover(tmp_path).items, InputSpec(image_size=32, fov="none"), batch_size=2)
    assert take_census(loader, 4)["sizes"] == {"40 x 40": 1, "46 x 46": 1, "49 x 49": 1}
    assert take_census(loader)["short_side"]["n"] == 9


def test_a_fit_keeps_a_census_and_the_card_tells(fitted, tmp_path):
    census = fitted.bundle_.trained_on["census"]
    assert census["sizes"] == {"96 x 96": 12}
    assert census["fov_radius"]["n"] == 12
    path = fitted.save(tmp_path / "model")
    assert load_bundle(path).trained_on["census"] == census
    card = (path / "MODEL_CARD.md").read_text()
    assert "* most frequent sizes: 96 x 96 (12)" in card
    assert "* short side: median 96, from 96 to 96 (12 images)" in card
    assert "census" not in card


def test_a_bundle_without_a_census_loads(fitted, tmp_path):
    facts = {k: v for k, v in fitted.bundle_.trained_on.items() if k != "census"}
    old = dataclasses.replace(fitted.bundle_, trained_on=facts)
    assert "census" not in load_bundle(save_bundle(old, tmp_path / "old")).trained_on
    assert isinstance(old, Bundle)
    assert "most frequent sizes" not in model_card(old, old.method.state())


def test_rows_hold_the_brightness(tmp_path):
    source = make_images(tmp_path / "in", 8)
    score_null(source, tmp_path / "run")
    for row in read_rows(tmp_path / "run"):
        if row["status"] == "ok":  # the null model's score is the mean of all pixels
            assert row["brightness"] == pytest.approx(row["score"], abs=0.05)
            assert 0.3 < row["brightness"] < 0.7
        else:
            assert row["brightness"] is None
