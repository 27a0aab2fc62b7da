# SPDX-License-Identifier: Apache-2.0
"""Whole volumes: read in RAS order, laid on a grid, scored, mapped, evaluated and shown."""

from __future__ import annotations

import itertools
from types import MappingProxyType

import nibabel
import numpy as np
import pytest
import torch
from null_method import Null
from pydantic import Field, ValidationError

from fundad_fast import detector as detectors
from fundad_fast.archive.run import ScoreOptions, score_run
from fundad_fast.archive.truth import evaluate_run
from fundad_fast.archive.truth_volumes import add_voxels
from fundad_fast.batch import Scores
from fundad_fast.bundle import Bundle
from fundad_fast.data import (
    DataError,
    InputSpec,
    Item,
    Loader,
    ReadError,
    as_nifti,
    discover,
    inspect_volumes,
    prepare_volume,
    read_volume,
    take_inventory,
)
from fundad_fast.data.volume_preparation import onto_grid
from fundad_fast.detector import Detector
from fundad_fast.evaluation import PixelEvaluator
from fundad_fast.evaluation.resample import resample_volume
from fundad_fast.methods import MethodConfig
from fundad_fast.report import write_report
from fundad_fast.report.overlays import make_overlays
from fundad_fast.report.planes import side_by_side
from fundad_fast.run_folder import overlay_path, read_rows, read_volume_map

SPACING = (2.0, 2.0, 2.0)


def spec(volume=(16, 20, 16), **more) -> InputSpec:
    given = {"image_size": 16, "channels": "grey", "fov": "none", "spacing": SPACING}
    return InputSpec(**{**given, "volume": volume, **more})


def ball(shape=(14, 18, 12), lesion=False) -> np.ndarray:
    """``[z, y, x]`` uint8, 0 outside of an ellipsoid, a hole in it, bright in its lesion."""
    at = np.indices(shape).astype(float)
    middle = (np.array(shape) - 1) / 2
    off = [(a - m) / (n / 2 - 1) for a, m, n in zip(at, middle, shape)]
    values = np.where(sum(o**2 for o in off) <= 1, 90 + 5 * at[2], 0).astype(np.uint8)
    values[7, 9, 6] = 0
    if lesion:
        values[4:7, 6:9, 4:7] = 250
    return values


def write(path, values, *, mm=2.0, orientation="RAS", dtype=np.uint8):
    """A NIfTI file of ``[z, y, x]`` values in RAS order, stored in another orientation."""
    affine = np.diag([mm, mm, mm, 1.0])
    affine[:3, 3] = -10, -20, 5
    image = nibabel.Nifti1Image(values.transpose(2, 1, 0).astype(dtype), affine)
    want = nibabel.orientations.axcodes2ornt(orientation)
    have = nibabel.orientations.io_orientation(affine)
    image = image.as_reoriented(nibabel.orientations.ornt_transform(have, want))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "SAR", "PIL", "ASL"])
def test_volumes_are_the_same_however_they_are_stored(orientation, tmp_path):
    values = ball()
    got = read_volume(write(tmp_path / "v.nii.gz", values, orientation=orientation))
    np.testing.assert_array_equal(got.values, values)
    np.testing.assert_allclose(got.affine, np.c_[np.eye(3) * 2, [-10, -20, 5]])
    assert got.spacing == SPACING


def test_voxels_of_different_sides_are_named_in_order(tmp_path):
    image = nibabel.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.diag([1.0, 2.0, 3.0, 1.0]))
    nibabel.save(image, tmp_path / "v.nii")
    assert read_volume(tmp_path / "v.nii").spacing == (3.0, 2.0, 1.0)


def test_a_volume_is_laid_in_the_middle_of_its_grid_and_its_voxels_stay_where_they_are(tmp_path):
    values = ball()
    volume = read_volume(write(tmp_path / "v.nii.gz", values))
    got = prepare_volume(volume, spec())
    assert (got.image.shape, got.image.dtype) == ((1, 16, 20, 16), torch.float32)
    np.testing.assert_allclose(got.image[0, 1:15, 1:19, 2:14], values / 255, atol=1e-6)
    assert float(got.image.sum()) == pytest.approx(values.sum() / 255, rel=1e-5)
    assert got.mask is not None
    assert bool(got.mask[8, 10, 8]), "holes belong to the object"
    assert int(got.mask.sum()) == int((values > 0).sum()) + 1
    np.testing.assert_allclose(got.affine @ [2, 1, 1, 1], volume.affine @ [0, 0, 0, 1])
    back = resample_volume(got.image[0], got.affine, values.shape, volume.affine)
    np.testing.assert_allclose(back, values / 255, atol=1e-6)


def test_a_long_axis_is_cut_around_the_object():
    values = np.zeros((30, 10, 10), np.float32)
    values[20:28, 2:8, 2:8] = 1
    got, _, start = onto_grid(values, values > 0, (12, 10, 10))
    assert start.tolist() == [18, 0, 0]
    assert got.sum() == values.sum()
    with pytest.raises(ReadError, match="takes 8 slices, the model's grid has 7") as error:
        onto_grid(values, values > 0, (7, 10, 10))
    assert error.value.status == "too_large"


def test_another_spacing_is_resampled_with_a_sharp_edge_or_refused(tmp_path):
    fine = np.zeros((28, 36, 24), np.uint8)
    fine[6:20, 8:28, 6:18] = 200
    volume = read_volume(write(tmp_path / "v.nii.gz", fine, mm=1.0))
    with pytest.raises(ReadError, match="1 x 1 x 1 mm, but the model learned from 2 x 2 x 2"):
        prepare_volume(volume, spec())
    got = prepare_volume(volume, spec(resample=True))
    assert got.mask is not None
    inside = got.image[0][got.mask]
    assert int(got.mask.sum()) == 7 * 10 * 6
    np.testing.assert_allclose(inside, 200 / 255, atol=0.01)  # the rim is no darker
    at = np.argwhere(got.mask.numpy()).mean(0)[::-1]
    middle = np.argwhere(fine > 0).mean(0)[::-1]
    np.testing.assert_allclose(got.affine @ [*at, 1], volume.affine @ [*middle, 1], atol=1e-9)


@pytest.mark.parametrize(
    "values, settings, match",
    [
        (np.zeros((8, 8, 8), np.uint8), {}, "no object"),
        (np.full((8, 8, 8), -1.0, np.float32), {"bit_depth": 32}, "values from -1"),
        (np.full((8, 8, 8), 2.0, np.float32), {"bit_depth": 32, "white_level": 1.0}, "up to 2"),
        (np.full((8, 8, 8), 2.0, np.float32), {}, "float image, but the model learned from 8-bit"),
    ],
)
def test_what_a_volume_must_not_be(values, settings, match, tmp_path):
    path = write(tmp_path / "v.nii.gz", values, dtype=values.dtype)
    with pytest.raises(ReadError, match=match):
        prepare_volume(read_volume(path), spec(**settings))


def test_float_volumes_are_scaled_by_their_largest_value(tmp_path):
    path = write(tmp_path / "v.nii.gz", ball() * 3.5, dtype=np.float32)
    got = prepare_volume(read_volume(path), spec(bit_depth=32))
    assert float(got.image.max()) == 1


def test_other_files_and_slices_are_refused_in_words(tmp_path):
    path = write(tmp_path / "v.nii.gz", ball())
    with pytest.raises(ReadError, match="one slice of a volume"):
        read_volume(Item("v#1", str(path), frame=1))
    with pytest.raises(ReadError, match="million voxels"):
        read_volume(path, max_megapixels=0.001)
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ReadError, match="not a NIfTI file"):
        read_volume(tmp_path / "p.png")


@pytest.mark.parametrize(
    "wrong", [{"volume": (4, 20, 20)}, {"channels": "rgb"}, {"intensity": "equalise"}]
)
def test_a_specification_of_volumes_that_cannot_be(wrong):
    with pytest.raises(ValidationError):
        spec(**wrong)


def test_a_volume_is_one_item_where_the_method_takes_volumes(tmp_path):
    write(tmp_path / "in/a.nii.gz", ball())
    write(tmp_path / "in/b.nii", ball())
    assert len(discover(tmp_path / "in").items) == 28
    assert [item.id for item in discover(tmp_path / "in", volumes=True).items] == [
        "a.nii.gz",
        "b.nii",
    ]
    inventory = take_inventory(tmp_path / "in", tmp_path / "at", volumes=True)
    assert [item.frame for item in inventory] == [None, None]


def test_headers_say_bit_depth_and_spacing(tmp_path):
    for name, mm in (("a", 2.0), ("b", 2.01), ("c", 1.0)):
        write(tmp_path / f"{name}.nii.gz", ball(), mm=mm)
    items = discover(tmp_path, volumes=True).items
    kind = inspect_volumes(items[:2])
    assert kind.bit_depth == 8
    assert kind.spacing == pytest.approx((2.005,) * 3)
    with pytest.raises(DataError, match=r"1 of 3 volumes are not of 2 x 2 x 2 mm.* such as c"):
        inspect_volumes(items)
    assert inspect_volumes(items, resample=True).spacing == pytest.approx(SPACING)


def test_planes_lie_side_by_side_head_and_front_up():
    volume = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    got = side_by_side(volume, (1, 2, 3))
    assert got.shape == (4, 5 + 4 + 5 + 4 + 4)
    np.testing.assert_array_equal(got[:, :5], volume[1, ::-1])
    np.testing.assert_array_equal(got[:3, 9:14], volume[::-1, 2])
    np.testing.assert_array_equal(got[:3, 18:], volume[::-1, :, 3])


class VolumeConfig(MethodConfig):
    volume: tuple[int, int, int] = Field((16, 20, 16))
    spacing: tuple[float, float, float] | None = None


class Bright(Null):
    """Scores are brightness beyond 0.7."""

    name = "bright"
    Config = VolumeConfig
    presets = MappingProxyType({"default": {"fov": "none", "image_size": 32}})

    def score(self, batch):
        map = (batch.image[:, 0] - 0.7).clamp_min(0)
        return Scores(map.amax((1, 2, 3)), map)


class BrightDetector(Detector):
    method = Bright


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("volumes")
    for name, lesion in (("good/h1", False), ("good/h2", False), ("tumour/t1", True)):
        write(root / f"test/{name}.nii.gz", ball(lesion=lesion), orientation="LPI")
    labels = (ball(lesion=True) == 250).astype(np.uint8)
    write(root / "ground_truth/tumour/t1_mask.nii.gz", labels)
    for i in range(3):
        write(root / f"train/good/n{i}.nii.gz", ball())
    return root


def test_fit_takes_grid_and_spacing_from_method_and_data(cohort):
    detector = BrightDetector(folds=0).fit(cohort)
    got = InputSpec(**detector.bundle_.input_spec)
    assert (got.volume, got.spacing, got.channels) == ((16, 20, 16), SPACING, "grey")
    scores = detector.score(cohort / "test")
    assert scores.map.shape == (3, 16, 20, 16)
    np.testing.assert_allclose(scores.image, [0, 0, 250 / 255 - 0.7], atol=1e-6)


def test_volumes_in_memory_are_scored_as_files_are(cohort):
    detector = BrightDetector(folds=0).fit(cohort)
    values = np.stack([ball(lesion=True), ball()])
    want = [250 / 255 - 0.7, 0]
    np.testing.assert_allclose(detector.decision_function(values), want, atol=1e-6)
    as_float = torch.from_numpy(values).float()[:, None] / 255
    np.testing.assert_allclose(detector.decision_function(as_float), want, atol=1e-6)
    with pytest.raises(DataError, match="an array of 3 axes; wanted are uint8 volumes"):
        detector.score(values[0])


def test_a_run_over_volumes_has_maps_figures_and_pictures(cohort, tmp_path):
    detector = BrightDetector(folds=0).fit(cohort)
    bundle = Bundle(
        method=detector.bundle_.method,
        preset="default",
        input_spec=detector.bundle_.input_spec,
        thresholds={"image": {"value": 0.1, "target_fpr": 0.05}, "pixel": {"value": 0.1}},
        colour_scale={"lo": 0.0, "hi": 0.3},
        id="bright",
    )
    dataset = discover(cohort / "test", volumes=True)
    assert [item.mask_path is not None for item in dataset.items] == [False, False, False]
    dataset = discover(cohort, volumes=True)
    items = dataset.select(split="test")
    run = tmp_path / "run"
    score_run(bundle, dataset, items, run, kind="eval", options=ScoreOptions(batch_size=2))
    rows = {row["id"]: row for row in read_rows(run)}
    assert [row["status"] for row in rows.values()] == ["ok"] * 3
    ill = next(row for row in rows.values() if row["gt_label"] == 1)
    assert ill["map_path"].endswith(".nii.gz")
    map, affine = read_volume_map(run, ill["map_path"])
    where = np.argwhere(map > 0.2)[:, ::-1]
    low, high = affine @ [*where.min(0), 1], affine @ [*where.max(0), 1]
    np.testing.assert_allclose(low, [-10 + 2 * 4, -20 + 2 * 6, 5 + 2 * 4])  # as the label file
    np.testing.assert_allclose(high, [-10 + 2 * 6, -20 + 2 * 8, 5 + 2 * 6])

    metrics = evaluate_run(run, items, n_boot=0)["metrics"]
    for name in ("image_AUROC", "pixel_AUROC", "pixel_AP", "slice_AUROC", "slice_AP"):
        assert metrics[name]["value"] == 1, name
    assert metrics["slice_AUROC"]["n"] == 3 * 14
    assert "more than 5/128² of it is lesion" in metrics["slice_AUROC"]["definition"]

    drawn = make_overlays(run, None)
    assert (drawn.drawn, dict(drawn.left_out)) == (3, {})
    assert overlay_path(run, ill["id"]).stat().st_size > 1000
    write_report(run, threads=1)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Planes through slice" in page


def test_slices_are_judged_as_published(tmp_path):
    """A slice is abnormal above 5 of 128² voxels and scores the mean of its map (C.7)."""
    shape = (4, 128, 128)
    values, labels = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    values[1:, 8:-8, 8:-8] = 100
    labels[1, 60, 60:65] = 1  # 5 voxels: not more
    labels[2, 60, 60:66] = 1
    for name, content in (("v", values), ("l", labels)):
        image = nibabel.Nifti1Image(content.transpose(2, 1, 0), np.diag([2, 2, 2, 1]))
        nibabel.save(image, tmp_path / f"{name}.nii.gz")
    item = Item("v", str(tmp_path / "v.nii.gz"), label=1, mask_path=str(tmp_path / "l.nii.gz"))
    scores = np.random.default_rng(0).random(shape, np.float32)
    scores[0] = 0
    (tmp_path / "map.nii.gz").write_bytes(as_nifti(scores, np.diag([2.0, 2, 2, 1])[:3]))
    row = {"path": item.path, "map_path": "map.nii.gz", "member": None, "frame": None, "id": "v"}
    slices = []
    add_voxels(PixelEvaluator(), slices, tmp_path, row, item, 200.0)
    assert [one.label for one in slices] == [0, 0, 1, 0]
    assert [one.id for one in slices] == ["v#0", "v#1", "v#2", "v#3"]  # empty ones too
    np.testing.assert_allclose([one.score for one in slices], scores.mean((1, 2)), rtol=1e-3)
    assert {one.patient_id for one in slices} == {"v"}  # resampled together


def test_a_map_is_a_nifti_that_others_read(tmp_path):
    values = np.random.default_rng(0).random((4, 5, 6), np.float32)
    affine = np.c_[np.diag([2.0, 3.0, 4.0]), [1, 2, 3]]
    (tmp_path / "m.nii.gz").write_bytes(as_nifti(values, affine))
    image = nibabel.load(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(image.get_fdata().transpose(2, 1, 0), values)
    np.testing.assert_allclose(image.affine[:3], affine)
    got, back = read_volume_map(tmp_path, "m.nii.gz")
    np.testing.assert_array_equal(got, values)
    np.testing.assert_allclose(back, affine)


def test_a_map_of_other_cells_is_laid_over_by_millimetres():
    rng = np.random.default_rng(1)
    coarse = rng.random((4, 4, 4), np.float32)
    affine = np.c_[np.eye(3) * 4, [1.0, 1.0, 1.0]]  # cells of two voxels of 2 mm each
    fine = np.c_[np.eye(3) * 2, [0.0, 0.0, 0.0]]
    got = resample_volume(coarse, affine, (8, 8, 10), fine)
    for z, y, x in itertools.product((1, 2, 6), repeat=3):
        at = (np.array([z, y, x]) * 2 - 1) / 4
        low = np.floor(at).astype(int)
        part = at - low
        want = 0.0
        for corner in itertools.product((0, 1), repeat=3):
            weight = np.prod([p if c else 1 - p for p, c in zip(part, corner)])
            want += weight * coarse[tuple(np.minimum(low + corner, 3))]
        assert got[z, y, x] == pytest.approx(want, abs=1e-6)
    assert (got[:, :, 8:] == 0).all()
    assert got[0, 0, 0] == coarse[0, 0, 0]
    shifted = np.c_[np.eye(3) * 2, [-4.0, 0.0, 0.0]]  # the first two columns lie beside the map
    got = resample_volume(coarse, affine, (8, 8, 10), shifted)
    assert (got[:, :, :2] == 0).all()
    assert (got[:, :, 2] > 0).all()


def test_loaders_say_what_is_wrong_with_a_volume_in_its_row(tmp_path):
    good = write(tmp_path / "a.nii.gz", ball())
    (tmp_path / "b.nii.gz").write_bytes(good.read_bytes()[:200])
    write(tmp_path / "c.nii.gz", ball(), mm=1.0)
    (chunk,) = Loader(discover(tmp_path, volumes=True).items, spec(), threads=1)
    assert [item.id for item in chunk.items] == ["a.nii.gz"]
    assert chunk.batch.image.shape == (1, 1, 16, 20, 16)
    assert chunk.batch.mask.shape == (1, 16, 20, 16)
    assert [f.status for f in chunk.failures] == ["unreadable", "unsupported"]


def test_the_public_names_know_no_method_of_volumes_by_accident():
    assert not any(cls().volumes for cls in detectors.DETECTORS.values() if cls.__name__ != "")
