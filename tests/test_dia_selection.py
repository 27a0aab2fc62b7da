# SPDX-License-Identifier: Apache-2.0
"""Which weights DIA keeps: of the last step, of synthetic validation, or, leaking, of labels."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import warnings

import cv2
import numpy as np
import pytest
import small_dia
import torch
from cohorts import photograph
from commands import call
from small_dia import TINY, fit_on
from small_tasks import batches

import fundad_fast
from fundad_fast.batch import Batch
from fundad_fast.data import DataError, discover
from fundad_fast.methods import DIA, ConfigError, ReSAD, dia_selection, make_config
from fundad_fast.methods.dia_selection import (
    TASKS,
    Judged,
    Look,
    auroc,
    handed_in,
    some_of,
    split_off,
    with_anomalies,
)
from fundad_fast.methods.image_store import ImageStore
from fundad_fast.nets import ContrastNet

pytestmark = pytest.mark.filterwarnings("ignore:the network does not know shifts apart")
CPU = torch.device("cpu")
CHOSEN = {"dissolve": "none", "select_every": 2, "max_steps": 9, "shift": "cutperm"}


def store_of(made):
    store = ImageStore(2**30)
    for batch in made:
        store.add(batch)
    return store


def labelled(sick, n=6):
    """Batches of which every second is abnormal, and their labels."""
    made = []
    for i in range(n):
        image = batches(1, 70 + i)[0].image
        if i % 2:
            image = sick(image)
        made.append(Batch(image, (f"l{i}",)))
    return made, {f"l{i}": i % 2 for i in range(n)}


def history(method):
    rows = csv.DictReader(io.StringIO(method.files()["training.csv"].decode()))
    return [row for row in rows if row["training"] == "contrast"]


# -- the parts -----------------------------------------------------------------------------------


def test_auroc_is_sklearns_with_ties():
    from sklearn.metrics import roc_auc_score

    g = torch.Generator().manual_seed(0)
    score = torch.randint(0, 9, (40,), generator=g).double()
    abnormal = torch.rand(40, generator=g) < 0.4
    want = roc_auc_score(abnormal.numpy(), score.numpy())
    assert auroc(score, abnormal).item() == pytest.approx(want, abs=1e-12)


def test_what_is_looked_at_is_not_trained_on():
    config = make_config(DIA, "quick", {"select": "synthetic", "select_share": 0.3})
    train, looked_at = split_off(10, config)
    assert len(looked_at) == 3
    assert sorted(train + looked_at) == list(range(10))
    assert split_off(10, config) == (train, looked_at)
    assert split_off(10, config.model_copy(update={"seed": 1}))[1] != looked_at
    assert split_off(10, make_config(DIA, "quick")) == (list(range(10)), [])
    few = config.model_copy(update={"select_share": 0.1})
    assert len(split_off(2, few)[1]) == 1
    with pytest.raises(ConfigError, match="1 healthy images are too few"):
        split_off(1, config)
    store = store_of(batches(10))
    assert some_of(store, looked_at).ids == [str(i) for i in looked_at]


@pytest.mark.parametrize("masked", [False, True])
def test_every_image_is_there_healthy_and_with_anomalies(masked):
    healthy, sources = store_of(batches(5, masked=masked)), store_of(batches(6, 20, masked=masked))
    judged = with_anomalies(healthy, sources, 3)
    assert judged.abnormal.tolist() == [False] * 5 + [True] * 5
    for i in range(5):
        clean, made = (judged.store.get([n], CPU) for n in (i, i + 5))
        assert torch.equal(clean.image, healthy.get([i], CPU).image)
        moved = (made.image - clean.image).abs()
        assert made.image.min() >= 0
        assert made.image.max() <= 1
        assert 0 < (moved > 1e-4).float().mean() < 0.9  # something, and not everything
        assert moved.max() > 0.01
        if masked:
            assert (made.image[:, 0][~made.mask] == 0).all()
    again, other = (with_anomalies(healthy, sources, seed) for seed in (3, 4))
    last = [s.store.get([7], CPU).image for s in (judged, again, other)]
    assert torch.equal(last[0], last[1])
    assert not torch.equal(last[0], last[2])


def test_anomalies_differ_in_kind_and_seed_from_image_to_image(monkeypatch):
    asked, own = [], dia_selection.synthesize

    def note(image, tasks, **given):
        asked.append((image, tasks, given))
        return own(image, tasks, **given)

    monkeypatch.setattr(dia_selection, "synthesize", note)
    monkeypatch.setattr(dia_selection, "_SOURCES", 3)
    healthy, sources = store_of(batches(5, masked=True)), store_of(batches(6, 20, masked=True))
    with_anomalies(healthy, sources, 3)
    assert [tasks for _, tasks, _ in asked] == [[name] for name in (*TASKS, TASKS[0])]
    assert len({tuple(given["seeds"]) for *_, given in asked}) == 5
    others = sources.get(range(3), CPU)
    for i, (image, _, given) in enumerate(asked):
        one = healthy.get([i], CPU)
        assert torch.equal(image, 2 * one.image - 1)
        assert torch.equal(given["mask"], one.mask)
        assert torch.equal(given["sources"], 2 * others.image - 1)
        assert torch.equal(given["source_masks"], others.mask)


def test_labelled_images_are_black_outside_and_only_1_is_abnormal():
    made = batches(3, masked=True)
    judged = handed_in(made, {"0": 0, "1": 1, "2": 0}, 2**30)
    assert judged.abnormal.tolist() == [False, True, False]
    for i, batch in enumerate(made):
        image = judged.store.get([i], CPU).image
        assert (image[:, 0][~batch.mask] == 0).all()
        assert torch.equal(image[:, 0][batch.mask], batch.image[:, 0][batch.mask])
    assert (made[0].image[:, 0][~made[0].mask] > 0).any()
    with pytest.raises(ConfigError, match="3 are abnormal and 0 healthy"):
        handed_in(made, dict.fromkeys("012", 1), 2**30)


def test_a_look_in_parts_compares_with_images_from_end_to_end(monkeypatch):
    config = make_config(DIA, "quick", {**TINY, "dissolve": "none"})
    net = ContrastNet(1, width=4, projection=8).eval()
    made, labels = labelled(lambda image: 1 - image)
    judged, train = handed_in(made, labels, 2**30), store_of(batches(6))
    whole = Look(config, train, judged, CPU)
    assert whole.compared == list(range(6))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # what is not known yet is not told at every look
        want = whole(net)
        monkeypatch.setattr(dia_selection, "_AT_A_TIME", 4)
        assert Look(config, train, judged, CPU)(net).item() == want.item()
    monkeypatch.setattr(dia_selection, "_AXES", 3)
    assert Look(config, train, judged, CPU).compared == [0, 2, 5]


def test_a_look_is_the_auroc_of_the_score_at_its_views():
    config = make_config(DIA, "quick", {**TINY, "select_views": 2, "dissolve": "none"})
    method = fit_on(batches(6), **CHOSEN)
    net = method._nets["net"]
    made, labels = labelled(lambda image: 1 - image)
    judged = handed_in(made, labels, 2**30)
    train = store_of(batches(6))
    found = Look(config, train, judged, CPU)(net)
    scored = DIA(config.model_copy(update={"views": 2, "view_scale": (0.54, 1.0)}))
    scored._nets = {"net": net}
    from fundad_fast.methods.shift_scores import Axes

    scored._axes = Axes.of(*scored._walked(train))
    scores = torch.cat([scored._judge(batch).image for batch in made])
    assert found.item() == auroc(scores, judged.abnormal).item()
    backwards = Look(config, train, Judged(judged.store, ~judged.abnormal), CPU)(net)
    assert backwards.item() == pytest.approx(1 - found.item())


# -- fits ----------------------------------------------------------------------------------------


def test_synthetic_validation_keeps_the_best_weights():
    method = fit_on(batches(10), select="synthetic", **CHOSEN)
    seen = {int(r["step"]): float(r["val_AUROC"]) for r in history(method) if r.get("val_AUROC")}
    assert sorted(seen) == [2, 4, 6, 8, 9]
    facts = method.facts["contrast"]
    best = min(step for step, value in seen.items() if value == max(seen.values()))
    assert facts["best_step"] == best
    assert 1 - facts["best_val"] == pytest.approx(max(seen.values()))
    said = method.facts["selection"]
    assert f"weights of step {best}, AUROC {max(seen.values()):.3f} on 2 healthy images" in said
    assert "no labelled image was looked at" in said
    assert method.caveats == ()
    assert method.state().bank["axes"].shape[1] == 8  # those looked at are no axes


def test_labels_choose_the_weights_and_the_model_says_that_this_leaks(monkeypatch):
    aurocs = iter([0.2, 0.9, 0.5, 0.9, 0.1])
    kept = []

    def look(self, net):
        kept.append(net.shift.weight.detach().clone())
        return torch.tensor(next(aurocs), dtype=torch.float64)

    monkeypatch.setattr(Look, "__call__", look)
    method = DIA(make_config(DIA, "quick", {**TINY, **CHOSEN, "select": "labelled"}))
    method.take_labelled(*labelled(lambda image: 1 - image))
    method.fit(batches(6))
    assert len(kept) == 5
    assert torch.equal(method._nets["net"].shift.weight, kept[1])  # of equal ones the first
    assert (
        "step 4, AUROC 0.900 on 6 labelled images (3 abnormal) that were handed in: a leak"
        in (method.facts["selection"])
    )
    (caveat,) = method.caveats
    assert caveat.startswith("LEAK")
    back = DIA.from_state(method.config, method.state())
    assert back.caveats == method.caveats


def test_labels_are_refused_where_nothing_asks_for_them_and_asked_for_where_wanted():
    made, labels = labelled(lambda image: 1 - image)
    with pytest.raises(ConfigError, match="select=labelled.*fit --select-on DATA"):
        fit_on(batches(6), select="labelled")
    for select in ("last", "synthetic"):
        method = DIA(make_config(DIA, "quick", {**TINY, "select": select}))
        with pytest.raises(ConfigError, match=f"with select={select} no label is looked at"):
            method.take_labelled(made, labels)
    with pytest.raises(ConfigError, match="resad chooses nothing by labelled images"):
        ReSAD(make_config(ReSAD)).take_labelled(made, labels)
    with pytest.raises(ConfigError, match="0 are abnormal and 6 healthy.*give both"):
        handed_in(made, dict.fromkeys(labels, 0), 2**30)
    method = DIA(make_config(DIA, "quick", {**TINY, **CHOSEN, "select": "labelled"}))
    method.take_labelled([Batch(b.image.expand(-1, 3, -1, -1), b.id) for b in made], labels)
    with pytest.raises(ConfigError, match=r"labelled images are of shape \[3, 32, 32\]"):
        method.fit(batches(6))


def test_after_a_kill_the_same_weights_are_chosen(tmp_path):
    chosen = json.dumps({**CHOSEN, "select": "synthetic"})
    done = subprocess.run(
        [sys.executable, small_dia.__file__, tmp_path, "ContrastRecipe", "none", chosen],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    torch.set_num_threads(1)
    again = fit_on(batches(6), scratch=tmp_path, select="synthetic", **CHOSEN)
    whole = fit_on(batches(6), select="synthetic", **CHOSEN)
    assert again.facts["selection"] == whole.facts["selection"]
    assert [row.get("val") for row in history(again)] == [row.get("val") for row in history(whole)]
    for name, want in whole.state().weights.items():
        assert torch.equal(again.state().weights[name], want), name


# -- downstream ----------------------------------------------------------------------------------


def test_the_leak_is_told_wherever_the_model_is_used(tmp_path):
    for number, (folder, n) in enumerate([("train/0", 6), ("test/0", 3), ("test/1", 3)]):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for i in range(n):
            image = photograph(100 * number + i, 32, lesion=folder == "test/1")
            cv2.imwrite(str(tmp_path / "data" / folder / f"{i}.png"), image)
    settings = {**TINY, **CHOSEN, "select": "labelled"}
    small = [x for k, v in settings.items() for x in ("--set", f"{k}={json.dumps(v)}")]
    data, model = tmp_path / "data", tmp_path / "model"
    fit = ["fit", data, "-m", "dia", "--preset", "quick", *small, "-o", model, "--folds", 0]
    assert "--select-on DATA" in call(*fit, "--normal-class", 0, code=2)
    said = call(*fit, "--normal-class", 0, "--select-on", data)
    assert "LEAK: of all weights" in said
    assert "**LEAK" in (model / "MODEL_CARD.md").read_text()
    assert json.loads((model / "bundle.json").read_text())["facts"]["selection"].endswith("a leak")
    said = call("eval", data, "-m", model, "-o", tmp_path / "run", "--normal-class", 0)
    assert "LEAK: of all weights" in said
    assert json.loads((tmp_path / "run/run.json").read_text())["model"]["caveats"]
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["settings"]["caveats"][0].startswith("LEAK")
    assert '<p class="warning">LEAK' in (tmp_path / "run/report.html").read_text()
    det = fundad_fast.DIA("quick", folds=0, **settings)
    with pytest.raises(DataError, match="no labelled image to select by"):
        det.fit(discover(data).with_normal_class("0"), select_on=data / "train/0")
    assert np.isfinite(metrics["metrics"]["image_AUROC"]["value"])
