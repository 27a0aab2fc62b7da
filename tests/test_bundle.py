# SPDX-License-Identifier: Apache-2.0
"""The bundle: the same scores back, bit for bit, and nothing accepted that was changed."""

import json
import shutil

import numpy as np
import pytest
import torch
from cohorts import SMALL, photograph

import fundad_fast
from fundad_fast import bundle
from fundad_fast.bundle import BundleError, load_bundle


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory):
    return fitted.save(tmp_path_factory.mktemp("bundle") / "model")


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def test_scores_come_back_bit_for_bit(fitted, saved):
    x = np.stack([photograph(seed, lesion=seed % 2 == 1) for seed in range(50, 56)])
    before = fitted.score(x)
    again = fundad_fast.load(saved)
    after = again.score(x)
    assert torch.equal(before.image, after.image)
    assert torch.equal(before.map, after.map)
    assert again.threshold_ == fitted.threshold_
    assert np.array_equal(again.decision_scores_, fitted.decision_scores_)
    assert again.bundle_.id == fitted.bundle_.id


def test_two_fits_with_one_seed_give_the_same_bundle(fitted, saved, cohort, tmp_path):
    again = fundad_fast.ReSAD(weights="untrained", folds=3, **SMALL).fit(cohort)
    again.save(tmp_path / "again")
    other = fundad_fast.ReSAD(weights="untrained", folds=3, seed=1, **SMALL).fit(cohort)
    other.save(tmp_path / "other")
    ids = [load_bundle(path).id for path in (saved, tmp_path / "again", tmp_path / "other")]
    assert ids[0] == ids[1] != ids[2]
    for name in ("bundle.json", "bank.safetensors", "normal_scores.parquet", "MODEL_CARD.md"):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "bank.safetensors", "normal_scores.parquet", "MODEL_CARD.md"]
)
def test_a_changed_or_missing_file_is_noticed(copy, name):
    raw = bytearray((copy / name).read_bytes())
    raw[-1] ^= 1
    (copy / name).write_bytes(raw)
    with pytest.raises(BundleError, match=f"{name} is not what was saved"):
        load_bundle(copy)
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load_bundle(copy)


def test_a_changed_threshold_is_noticed(copy):
    content = json.loads((copy / "bundle.json").read_text())
    content["thresholds"]["image"]["value"] *= 2
    (copy / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match="was changed after it was saved"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"files": {}}, "does not name the files of a model"),
        ({"files": {"../x": "0"}}, "does not name the files of a model"),
        ({"facts": {}}, "cannot be understood"),
        ({"config": {"radius": -1}}, "cannot be understood"),
        ({"method": "other"}, "method 'other'"),
    ],
)
def test_content_of_another_make_is_refused(copy, change, says):
    """Even with an id that fits: hashes tell of damage, not of meaning."""
    content = {**json.loads((copy / "bundle.json").read_text()), **change}
    del content["id"]
    content["id"] = bundle._content_id(content)
    (copy / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=says):
        load_bundle(copy)


def test_colleagues_may_read_a_model(saved):
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in saved.iterdir())


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "is not JSON"), ("[]", "schema None"), ('{"schema": 99}', "schema 99")],
)
def test_other_json_is_refused(copy, text, says):
    (copy / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=says):
        load_bundle(copy)


def test_what_is_no_bundle_says_so(tmp_path):
    with pytest.raises(BundleError, match="is not a folder"):
        load_bundle(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"holds no bundle.json"):
        load_bundle(tmp_path)


def test_an_existing_folder_is_not_overwritten(fitted, saved):
    with pytest.raises(BundleError, match="exists"):
        fitted.save(saved)


def test_the_card_and_the_facts_tell_what_a_user_needs(saved):
    card = (saved / "MODEL_CARD.md").read_text()
    assert "no clinical claim" in card
    assert "images: 12" in card
    content = json.loads((saved / "bundle.json").read_text())
    assert content["config"]["image_size"] == 64
    assert content["input_spec"]["channels"] == "rgb"
    assert content["facts"]["backbone"]["source"] == "untrained"
    assert content["thresholds"]["image"]["n"] == 12
    assert content["thresholds"]["image"]["folds"] == 3
    assert content["environment"]["torch"]
