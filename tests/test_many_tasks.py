# SPDX-License-Identifier: Apache-2.0
"""ManyTasks: the scheme of tasks and folds, the fit and what comes of it, resuming, refusals."""

import csv
import io
import json
import os
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import small_tasks
import torch
from cohorts import SMALL, photograph
from commands import call
from small_tasks import TINY, batches, fit_on, volumes

import fundad_fast
from fundad_fast.batch import Batch
from fundad_fast.methods import ConfigError, ManyTasks, make_config
from fundad_fast.methods.normalise import normalised
from fundad_fast.methods.task_folds import task_folds
from fundad_fast.synthetic import TASKS


@pytest.fixture(scope="module")
def fitted():
    folds = {str(i): i % 4 for i in range(16)}
    return fit_on(batches(16), folds=folds)


# -- the scheme ----------------------------------------------------------------------------------


def test_the_table_of_folds():
    counts = {t: len(task_folds(TASKS, t, 100)) for t in range(1, 6)}
    assert counts == {1: 5, 2: 10, 3: 10, 4: 5, 5: 1}
    names = {t: [f.train_tasks for f in task_folds(TASKS, t, 100)] for t in (1, 2, 4)}
    assert names[1] == [(t,) for t in TASKS]
    assert names[2][:5] == [
        *[("intra", "inter"), ("intra", "sink"), ("intra", "source"), ("intra", "intensity")],
        ("inter", "sink"),
    ]
    assert names[4][0] == ("intra", "inter", "sink", "source")
    assert names[4][4] == ("inter", "sink", "source", "intensity")
    for t in range(1, 5):
        for number, fold in enumerate(task_folds(TASKS, t, 100)):
            assert fold.number == number
            assert sorted(fold.train_tasks + fold.val_tasks) == sorted(TASKS)
            assert sorted([*fold.train, *fold.val]) == list(range(100))


def test_the_larger_pool_always_trains():
    sizes = {
        t: {(len(f.train), len(f.val)) for f in task_folds(TASKS, t, 100)} for t in range(1, 5)
    }
    assert sizes == {1: {(80, 20)}, 2: {(60, 40)}, 3: {(60, 40)}, 4: {(80, 20)}}
    one = task_folds(TASKS, 1, 12)  # parts of 3, 3, 2, 2, 2 images
    assert one[1].val.tolist() == [3, 4, 5]
    assert one[4].train.tolist() == list(range(10))
    three = task_folds(TASKS, 3, 12)[0]  # intra, inter, sink
    assert three.train.tolist() == list(range(8))
    assert task_folds(TASKS[:2], 1, 4)[1].train.tolist() == [2, 3]  # of equals, the tasks' own


def test_a_model_of_all_tasks_validates_on_them_with_images_of_its_own():
    (fold,) = task_folds(("fpi",), 1, 10)
    assert fold.train_tasks == fold.val_tasks == ("fpi",)
    assert (fold.train.tolist(), fold.val.tolist()) == (list(range(8)), [8, 9])


# -- the images ----------------------------------------------------------------------------------


def test_images_are_on_the_papers_scales():
    image = torch.rand(2, 1, 9, 8)
    torch.testing.assert_close(normalised(image, None, "range"), 2 * image - 1)
    mask = torch.rand(2, 9, 8) > 0.4
    z = normalised(image, mask, "zscore")
    for i in range(2):
        inside = z[i, 0][mask[i]]
        assert inside.mean().item() == pytest.approx(0, abs=1e-6)
        assert inside.square().mean().item() == pytest.approx(1, rel=1e-5)
        assert not z[i, 0][~mask[i]].any()
    assert not normalised(torch.ones(1, 1, 4, 4), None, "zscore").any()


# -- the fit -------------------------------------------------------------------------------------


def test_losses_fall_and_what_was_made_is_told(fitted):
    assert [m["number"] for m in fitted.facts["models"]] == [0, 1, 2, 3, 4]
    assert [m["train_tasks"] for m in fitted.facts["models"]] == [[t] for t in TASKS]
    assert (fitted.facts["images"], fitted.facts["held_out"]) == (12, 4)
    rows = list(csv.DictReader(io.StringIO(fitted.files()["training.csv"].decode())))
    assert {row["model"] for row in rows} == {f"model {i}: {t}" for i, t in enumerate(TASKS)}
    vals = [float(row["val"]) for row in rows if row["val"] and row["model"] == "model 0: intra"]
    assert vals[-1] < vals[0]
    assert fitted.facts["models"][0]["best_val"] == min(vals)
    assert fitted.files()["training.svg"].startswith(b"<svg")


def test_held_out_images_are_those_of_one_fold_that_nothing_learned_from(fitted):
    held = fitted.held_out_
    assert held.id == ("0", "4", "8", "12")
    assert "no model was trained or validated on" in held.rule
    probe = next(iter(batches(1)))
    want = fitted.score(probe)
    assert held.score[0] == pytest.approx(want.image.item(), rel=1e-4)
    assert len(held.pixels) == 4 * 32 * 32
    again = fit_on(
        batches(16, changed=("0", "4", "8", "12")), folds={str(i): i % 4 for i in range(16)}
    )
    assert all(torch.equal(v, again.state().weights[k]) for k, v in fitted.state().weights.items())
    assert fit_on(batches(12), models=(0,)).held_out_ is None


def test_the_score_is_the_mean_of_the_models_raw_outputs(fitted):
    batch = Batch(torch.cat([b.image for b in batches(3, start=50)]), ("a", "b", "c"))
    scores = fitted.score(batch)
    alone = [fitted.only(n).score(batch) for n in range(5)]
    torch.testing.assert_close(scores.map, torch.stack([s.map for s in alone]).mean(0))
    torch.testing.assert_close(scores.image, scores.map.flatten(1).mean(1))
    assert scores.map.shape == (3, 32, 32)
    assert scores.map.min() < 0  # raw: nothing is clipped
    assert fitted.only(3).facts["models"][0]["train_tasks"] == ["source"]
    with pytest.raises(ConfigError, match="no model"):
        fitted.only(7)


def test_scores_do_not_depend_on_the_batch(fitted):
    batch = Batch(torch.cat([b.image for b in batches(5, start=50)]), tuple("abcde"))
    whole = fitted.score(batch)
    for i in range(5):
        one = fitted.score(batch[i : i + 1])
        torch.testing.assert_close(one.map[0], whole.map[i], rtol=1e-4, atol=1e-6)
        assert one.image.item() == pytest.approx(whole.image[i].item(), rel=1e-4)


def test_the_state_scores_the_same_bit_for_bit(fitted):
    batch = next(iter(batches(1, start=50)))
    back = ManyTasks.from_state(fitted.config, fitted.state())
    assert torch.equal(back.score(batch).map, fitted.score(batch).map)
    assert json.loads(json.dumps(fitted.state().facts)) == fitted.state().facts


def test_the_same_seed_is_the_same_method_and_another_is_not():
    a, b, other = (fit_on(batches(8), models=(0,), seed=s) for s in (1, 1, 2))
    wa, wb, wo = (m.state().weights for m in (a, b, other))
    assert all(torch.equal(wa[k], wb[k]) for k in wa)
    assert not all(torch.equal(wa[k], wo[k]) for k in wa)


def test_a_mask_bounds_the_score_and_the_anomalies():
    masked = fit_on(batches(8, masked=True), models=(0, 4))
    batch = next(iter(batches(1, start=50, masked=True)))
    scores = masked.score(batch)
    assert scores.image.item() == pytest.approx(scores.map[batch.mask].mean().item(), rel=1e-5)
    bare = masked.score(Batch(batch.image, batch.id))
    torch.testing.assert_close(bare.map[batch.mask], scores.map[batch.mask])
    assert not torch.equal(bare.map, scores.map)


def test_volumes_are_images_of_three_axes():
    with pytest.warns(RuntimeWarning, match="no external volumes"):
        method = fit_on(volumes(7), normalise="zscore", flip=True, models=(1, 2), max_steps=2)
    assert "healthy volumes" in method.facts["external"]
    batch = next(iter(volumes(1)))
    scores = method.score(batch)
    assert scores.map.shape == (1, 16, 18, 17)
    assert scores.image.item() == pytest.approx(scores.map[batch.mask].mean().item(), rel=1e-4)
    back = ManyTasks.from_state(method.config, method.state())
    assert torch.equal(back.score(batch).map, scores.map)


def test_external_images_are_taken_from_where_they_are_given():
    method = fit_on(batches(8), external=batches(3, start=70), models=(1,), max_steps=2)
    assert method.facts["external"] == "given"
    other = fit_on(batches(8), external=batches(3, start=90), models=(1,), max_steps=2)
    default = fit_on(batches(8), models=(1,), max_steps=2)
    assert "scikit-image" in default.facts["external"]
    weights = [m.state().weights["1/out.weight"] for m in (method, other, default)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    with pytest.raises(ConfigError, match="as many channels"):
        fit_on(batches(8), external=batches(2, channels=3), models=(1,))


@pytest.mark.parametrize("preset", ["fpi", "pii", "nsa"])
def test_older_methods_are_presets(preset):
    method = fit_on(batches(8), preset=preset, max_steps=2)
    (model,) = method.facts["models"]
    assert model["train_tasks"] == model["val_tasks"] == [preset]
    assert method.facts["external"] == "none needed"


def test_after_a_kill_the_models_end_as_if_nothing_had_been(tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, small_tasks.__file__, tmp_path], capture_output=True, text=True, env=env
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(tmp_path.glob("*/model-2/checkpoint.safetensors"))
    torch.set_num_threads(1)
    again = fit_on(batches(8), models=(0, 2), scratch=tmp_path)
    whole = fit_on(batches(8), models=(0, 2))
    for name, want in whole.state().weights.items():
        assert torch.equal(again.state().weights[name], want), name
    assert [m["best_val"] for m in again.facts["models"]] == [
        m["best_val"] for m in whole.facts["models"]
    ]


# -- refusals and plans --------------------------------------------------------------------------


def test_what_cannot_be_learned_from_is_refused_with_advice():
    with pytest.raises(ConfigError, match="no healthy image"):
        fit_on([])
    with pytest.raises(ConfigError, match="one healthy image"):
        fit_on(batches(1))
    same = torch.rand(1, 1, 32, 32)
    alike = [Batch(same, (str(i),)) for i in range(6)]
    with pytest.raises(ConfigError, match="6 healthy images are all the same"):
        fit_on(alike)
    with pytest.raises(ConfigError, match=r"4 healthy images.*at least 5.*folds=0"):
        fit_on(batches(4))
    with pytest.raises(ConfigError, match=r"sides of at least 65.*depth"):
        fit_on(batches(8), depth=7)
    mixed = [*batches(3), Batch(torch.rand(1, 1, 32, 40), ("odd",))]
    with pytest.raises(ConfigError, match="odd is of shape"):
        fit_on(mixed)
    with pytest.raises(ConfigError, match="no pretrained backbone"):
        ManyTasks(make_config(ManyTasks), weights="w.safetensors")
    with pytest.raises(RuntimeError, match="not fitted"):
        ManyTasks(make_config(ManyTasks)).score(next(iter(batches(1))))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tasks": ("intra", "nose")}, "no task nose"),
        ({"tasks": ("intra", "intra")}, "at most once"),
        ({"train_tasks": 6}, "there are 5 tasks"),
        ({"models": (5,)}, "from 0 to 4"),
        ({"models": (1, 1)}, "different"),
        ({"synthesis": {"g_min": 9, "g_max": 2}}, "g_min"),
        ({"learning_rate": 0}, "learning_rate"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        make_config(ManyTasks, "default", settings)


def test_presets_are_the_papers_numbers():
    xray, brain = (make_config(ManyTasks, name) for name in ("paper-cxr", "paper-brain"))
    assert (xray.width, xray.depth, xray.train_batch, xray.learning_rate) == (32, 7, 50, 5e-3)
    assert (brain.width, brain.depth, brain.train_batch, brain.learning_rate) == (32, 5, 8, 1e-3)
    assert (xray.synthesis.g_max, brain.synthesis.g_max) == (10, 5)
    assert xray.patience == brain.patience == 5000
    assert (xray.intensity, brain.volume) == ("equalise", (80, 112, 80))
    assert (xray.normalise, brain.normalise, brain.flip) == ("range", "zscore", True)
    assert make_config(ManyTasks, "paper") == xray


def test_a_plan_counts_models_steps_and_memory():
    config = make_config(ManyTasks, "quick", {**TINY, "train_tasks": 2})
    plan = ManyTasks(config).plan(images=100, folds=5)
    assert plan.lines[0].startswith("10 models of ")
    assert plan.lines[1].startswith("80 of 100 images")
    assert plan.bundle == 4 * 10 * int(plan.lines[0].split()[3])
    assert plan.seconds > 0
    assert ManyTasks(config).plan(100, 0).lines[1].startswith("100 of 100")
    assert "at most 6 steps of 3 images" in plan.lines[0]
    few = make_config(ManyTasks, "quick", {**TINY, "max_epochs": 1, "max_steps": 900})
    assert "at most 26 steps" in ManyTasks(few).plan(100, 0).lines[0]  # 80 images train


def test_a_plan_refuses_what_the_fit_would():
    flat = make_config(ManyTasks, "default", {"image_size": 64, "depth": 7})
    with pytest.raises(ConfigError, match=r"images of \[64, 64\].*at least 65.*raise image_size"):
        ManyTasks(flat).plan(images=100, folds=5)
    deep = make_config(ManyTasks, "quick", {"volume": (16, 16, 16), "depth": 5})
    with pytest.raises(ConfigError, match=r"volumes of \[16, 16, 16\].*at least 17.*raise volume"):
        ManyTasks(deep).plan(images=100, folds=5)


def test_the_facade_fits_saves_and_loads(tmp_path):
    settings = {**TINY, "models": (0, 4), "image_size": 32}
    det = fundad_fast.ManyTasks("quick", folds=3, **settings)
    x = np.stack([photograph(i) for i in range(12)])
    det.fit(x)
    assert "no model was trained" in det.bundle_.trained_on["held_out"]
    assert det.bundle_.thresholds["image"]["folds"] is None
    assert len(det.decision_scores_) == 4
    det.save(tmp_path / "model")
    names = {p.name for p in (tmp_path / "model").iterdir()}
    assert {"training.csv", "training.svg"} <= names
    again = fundad_fast.load(tmp_path / "model")
    probe = np.stack([photograph(40), photograph(41, lesion=True)])
    np.testing.assert_array_equal(again.decision_function(probe), det.decision_function(probe))
    again.save(tmp_path / "copy")
    assert (tmp_path / "copy/training.csv").read_text().startswith("model,step")


@pytest.fixture
def labelled(tmp_path):
    plan = [("train/good", 8), ("test/good", 2), ("test/spot", 2)]
    for number, (folder, n) in enumerate(plan):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for i in range(n):
            image = photograph(100 * number + i, lesion="spot" in folder)[..., 1]
            cv2.imwrite(str(tmp_path / "data" / folder / f"{i}.png"), image)
    settings = [*(f"{k}={v}" for k, v in TINY.items()), "models=[0, 3]", "image_size=32"]
    args = ["fit", tmp_path / "data", "-m", "manytasks", "--preset", "quick", "--folds", 4]
    return tmp_path, [*args, *(x for pair in settings for x in ("--set", pair))]


@pytest.mark.parametrize(
    ("preset", "first", "positions"),
    [("quick", 0, 0), ("small-brain", 0, 0), ("paper-cxr", None, 66), ("paper-brain", None, 67)],
)
def test_short_trainings_start_from_silence_and_see_the_image_alone(preset, first, positions):
    method = ManyTasks(make_config(ManyTasks, preset, {"width": 2, "depth": 2}))
    shape = (1, *(method.config.volume or (64, 64)))
    net = method._net(shape)
    assert net.down[0].conv1.in_channels == 1 + positions
    largest = net.out.weight.abs().max().item()
    assert largest == first if first is not None else largest > 0.1


@pytest.mark.parametrize("preset", ["quick", "paper-cxr"])
def test_grey_pictures_saved_as_rgb_can_be_taken_as_grey(preset):
    grey = np.stack([photograph(i)[..., :1] for i in range(7)])
    settings = {**TINY, "models": (4,), "image_size": 32, "max_steps": 2, "channels": "grey"}
    a, b = (
        fundad_fast.ManyTasks(preset, folds=0, **settings).fit(x) for x in (grey, grey.repeat(3, 3))
    )
    assert b.bundle_.method.facts["shape"] == [1, 32, 32]
    want = a.decision_function(grey)
    np.testing.assert_allclose(b.decision_function(grey.repeat(3, 3)), want, rtol=0.05)
    colour = fundad_fast.ManyTasks("quick", folds=0, **{**settings, "channels": "auto"})
    assert colour.fit(grey.repeat(3, 3)).bundle_.method.facts["shape"] == [3, 32, 32]


def test_the_command_line_plans_fits_and_evaluates(labelled):
    folder, args = labelled
    said = call(*args, "-o", folder / "model", "--dry-run")
    assert "2 models of" in said
    assert not (folder / "model").exists()
    said = call(*args, "-o", folder / "model", "--external", folder / "data" / "test" / "spot")
    assert "2 models, best after" in said
    card = (folder / "model" / "MODEL_CARD.md").read_text()
    assert "that no model was trained or validated on" in card
    assert "outputs, about 0 for healthy" in card
    assert "external: given" in card
    said = call("eval", folder / "data", "-m", folder / "model", "-o", folder / "run")
    assert "image_AUROC" in said


def test_a_method_without_use_for_external_images_says_so():
    x = np.stack([photograph(i) for i in range(3)])
    with pytest.raises(ConfigError, match="resad learns from healthy images alone"):
        fundad_fast.ReSAD(weights="untrained", **SMALL).fit(x, external=x)


@pytest.mark.slow
def test_two_processes_make_one_model(labelled):
    folder, args = labelled
    # On CPUs accelerate launch starts one process, without MPI; torchrun as many as it is told to.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    (folder / "fundad").write_text("from fundad_fast.cli import main\nmain()\n")
    options = ["--set", "train_batch=4", "--set", "max_steps=20"]
    command = [*launcher, folder / "fundad", *args, "-o", folder / "two", *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    planned, done = (
        subprocess.run([str(c) for c in [*command, *more]], capture_output=True, text=True, env=env)
        for more in (["--dry-run"], [])
    )
    assert planned.returncode == 0, planned.stderr[-3000:]
    assert planned.stdout.count("2 models of") == 1
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("2 models, best after") == 1
    call(*args, *options, "-o", folder / "one")
    probe = folder / "data" / "test"
    models = [fundad_fast.load(folder / name) for name in ("one", "two")]
    one, two = (model.score(probe).map for model in models)
    # Rounding came to 1e-6 in a few trials, of outputs up to 0.15; one drawn otherwise to 1e-3.
    torch.testing.assert_close(one, two, rtol=0, atol=2e-5)
    facts = [[m["best_val"] for m in model.bundle_.method.facts["models"]] for model in models]
    assert facts[0] == pytest.approx(facts[1], rel=1e-5)
    refused = subprocess.run(
        [
            str(c)
            for c in [
                *command[: command.index(folder / "fundad") + 1],
                "fit",
                folder / "data",
                "-o",
                folder / "no",
            ]
        ],
        capture_output=True,
        text=True,
        env=env,
    )
    assert refused.returncode != 0
    assert "resad trains no network" in refused.stderr
