# SPDX-License-Identifier: Apache-2.0
"""The facade: what may be given, what comes back, what is refused."""

import shutil

import cv2
import numpy as np
import pytest
import torch
from cohorts import SMALL, photograph

import fundad_fast
from fundad_fast.data import DataError
from fundad_fast.detector import NotFittedError
from fundad_fast.methods import ConfigError


def small(**more):
    return fundad_fast.ReSAD(**{"weights": "untrained", "folds": 3, **SMALL, **more})


def arrays(n, start=100):
    return np.stack([photograph(start + i) for i in range(n)])


def test_a_folder_is_fitted_on_its_healthy_training_images_and_lesions_score_higher(fitted, cohort):
    assert fitted.bundle_.trained_on["images"] == 12
    healthy = fitted.score(cohort / "test" / "good")
    spots = fitted.score(cohort / "test" / "spot")
    assert spots.image.min() > healthy.image.max()
    assert healthy.map.shape == (4, 16, 16)
    assert healthy.id == ("00.png", "01.png", "02.png", "03.png")
    assert set(healthy.status) == {"ok"}
    assert fitted.predict(cohort / "test" / "spot").tolist() == [1, 1, 1, 1]


def test_the_threshold_is_from_held_out_images(fitted):
    assert len(fitted.decision_scores_) == 12
    assert fitted.threshold_ == fitted.decision_scores_.max()  # 12 are too few for 5 %
    assert "too few" in fitted.bundle_.thresholds["image"]["rule"]
    loose = small(target_fpr=0.25).fit(arrays(12))
    assert loose.threshold_ == pytest.approx(np.sort(loose.decision_scores_)[9])


def test_arrays_tensors_and_data_sets_are_the_same_images():
    x = arrays(6)
    by_array = small().fit(x)
    probe = arrays(3, 200)
    want = by_array.decision_function(probe)
    tensor = torch.from_numpy(probe).permute(0, 3, 1, 2).float() / 255
    listed = torch.utils.data.TensorDataset(tensor)
    for form in (list(probe), listed, tensor):
        np.testing.assert_allclose(by_array.decision_function(form), want, rtol=0.02)
    # All rows in the bank: which are picked may turn on the last digit of the resize.
    whole = small(coreset_sampling_ratio=1.0)
    want = whole.fit(x).decision_function(probe)
    by_tensor = whole.fit(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(by_tensor.decision_function(tensor), want, rtol=0.03)


def test_labels_of_arrays_leave_the_abnormal_out():
    x = np.concatenate([arrays(5), np.stack([photograph(7, lesion=True)])])
    labelled = small().fit(x, y=[0, 0, 0, 0, 0, 1])
    alone = small().fit(x[:5])
    assert labelled.bundle_.normal.id == ("0", "1", "2", "3", "4")
    np.testing.assert_array_equal(labelled.decision_function(x), alone.decision_function(x))
    with pytest.raises(DataError, match="no healthy image"):
        small().fit(x, y=[1] * 6)


def test_an_unreadable_image_is_a_row_and_stops_nothing(fitted, cohort, tmp_path):
    folder = shutil.copytree(cohort / "test" / "good", tmp_path / "mixed")
    (folder / "01b.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    cv2.imwrite(str(folder / "02b.png"), np.full((96, 96, 3), 128, np.uint8))
    scores = fitted.score(folder)
    assert scores.id == ("00.png", "01.png", "01b.png", "02.png", "02b.png", "03.png")
    assert scores.status == ("ok", "ok", "unreadable", "ok", "no_fov", "ok")
    assert torch.isnan(scores.image).tolist() == [False, False, True, False, True, False]
    assert torch.isnan(scores.map[2]).all()
    clean = fitted.score(cohort / "test" / "good")
    np.testing.assert_allclose(scores.image[[0, 1, 3, 5]], clean.image, rtol=1e-5)
    with pytest.raises(DataError, match=r"2 of 6 images cannot be used.*01b.png"):
        fitted.predict(folder)
    assert np.isnan(fitted.decision_function(folder)[2])


def test_failures_while_fitting_are_kept_and_told(cohort, tmp_path):
    folder = shutil.copytree(cohort / "train" / "good", tmp_path / "train")
    (folder / "05.png").write_bytes(b"")
    detector = small().fit(folder)
    assert list(detector.failures_) == ["05.png"]
    assert detector.bundle_.trained_on["images"] == 11
    assert detector.bundle_.trained_on["failed"] == 1
    for file in folder.iterdir():
        cv2.imwrite(str(file), np.full((64, 64, 3), 99, np.uint8))
    with pytest.raises(DataError, match="none of the 12 healthy images can be used.*no_fov"):
        small().fit(folder)


def test_a_killed_fit_with_a_bad_image_goes_on(cohort, tmp_path, monkeypatch):
    folder = shutil.copytree(cohort / "train" / "good", tmp_path / "train")
    (folder / "05.png").write_bytes(b"")
    whole = small().fit(folder)
    killed = small()
    monkeypatch.setattr(killed.method, "_hold_out", lambda *args: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        killed.fit(folder, scratch=tmp_path / "work")
    monkeypatch.undo()
    again = small().fit(folder, scratch=tmp_path / "work")
    assert list(again.failures_) == ["05.png"]
    assert torch.equal(again.bundle_.method._bank.rows, whole.bundle_.method._bank.rows)


def test_a_loaded_detector_has_the_parameters_it_was_fitted_with(fitted, tmp_path):
    loaded = fundad_fast.load(fitted.save(tmp_path / "m"))
    assert loaded.config == fitted.config
    params = loaded.get_params()
    assert params["image_size"] == 64
    assert params["target_fpr"] == fitted.target_fpr
    assert fundad_fast.ReSAD(**params).config == fitted.config


def test_threads_and_batches_do_not_change_scores(fitted, cohort):
    want = fitted.score(cohort / "test")
    before = torch.get_num_threads()
    try:
        for threads, batch in ((1, 1), (2, 3), (1, 8)):
            torch.set_num_threads(threads)
            fitted.batch_size, fitted.threads = batch, threads
            got = fitted.score(cohort / "test")
            np.testing.assert_allclose(got.image, want.image, rtol=1e-5)
    finally:
        torch.set_num_threads(before)
        fitted.batch_size, fitted.threads = 4, None


def test_a_validation_split_sets_the_thresholds(cohort, tmp_path):
    lines = ["path,label,split"]
    lines += [f"{cohort}/train/good/{i:02d}.png,0,{'val' if i < 4 else 'train'}" for i in range(12)]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    detector = small().fit(tmp_path / "m.csv")
    assert detector.bundle_.trained_on["images"] == 8
    assert len(detector.decision_scores_) == 4
    assert detector.bundle_.thresholds["image"]["folds"] is None
    val = detector.score([f"{cohort}/train/good/{i:02d}.png" for i in range(4)])
    np.testing.assert_allclose(np.sort(detector.decision_scores_), np.sort(val.image), rtol=1e-5)


def test_patients_stay_in_one_fold(cohort, tmp_path):
    lines = ["path,patient_id"]
    lines += [f"{cohort}/train/good/{i:02d}.png,p{i // 4}" for i in range(12)]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    normal = small().fit(tmp_path / "m.csv").bundle_.normal
    folds = dict(zip(normal.id, normal.fold.tolist()))
    by_patient = [{folds[name] for name in list(folds)[i : i + 4]} for i in (0, 4, 8)]
    assert [len(found) for found in by_patient] == [1, 1, 1]
    assert len(set.union(*by_patient)) == 3


def test_without_folds_or_with_one_image_there_is_no_threshold():
    for detector in (small(folds=0).fit(arrays(3)), small().fit(arrays(1))):
        with pytest.raises(NotFittedError, match="no threshold was set"):
            _ = detector.threshold_
        assert np.isfinite(detector.decision_function(arrays(1))).all()


def test_parameters_are_scikit_learns():
    from sklearn.base import clone

    detector = small(radius=3)
    params = detector.get_params()
    assert params["radius"] == 3
    assert params["folds"] == 3
    assert clone(detector).get_params() == params
    assert detector.set_params(radius=5, folds=2).config.radius == 5
    with pytest.raises(NotFittedError):
        detector.score(arrays(1))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: small(folds=1), "folds=1"),
        (lambda: small(target_fpr=0.0), "target_fpr=0"),
        (lambda: small(radius="big"), "radius"),
        (lambda: small(device="foo"), "device=foo"),
        (lambda: fundad_fast.PatchCore("nope"), "no preset"),
    ],
)
def test_wrong_arguments(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


def test_wrong_data():
    with pytest.raises(DataError, match="y is for arrays"):
        small().fit("folder", y=[0])
    with pytest.raises(DataError, match="scratch is for files"):
        small().fit(arrays(2), scratch="x")
    with pytest.raises(ConfigError, match="coreset_size=5000"):
        small(coreset_size=5000).fit(arrays(2))


def test_the_default_preset_works_offline_with_weights_from_a_file(packs, tmp_path):
    weights = packs / "weights" / "resnet18_in1k_layers123.safetensors"
    detector = fundad_fast.ReSAD(
        "quick", weights=weights, image_size=128, backbone="resnet18", folds=2
    )
    detector.fit(sorted((packs / "idrid_512" / "train" / "good").iterdir())[:4])
    assert detector.bundle_.method.facts["backbone"]["source"] == "file"
    sick = detector.score(sorted((packs / "idrid_512" / "test" / "dr").iterdir())[:2])
    assert (sick.image > 0).all()
