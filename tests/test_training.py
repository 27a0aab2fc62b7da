# SPDX-License-Identifier: Apache-2.0
"""The training loop: what it draws, when it ends, and that a kill changes nothing."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
import trainings
from safetensors.torch import load_file
from trainings import Line, flat, run

from fundad_fast.progress import Progress
from fundad_fast.training import (
    LoopSettings,
    Team,
    TrainingError,
    draw_curves,
    seed_of,
    train,
    warm_up_and_decay,
)
from fundad_fast.training.checkpoint import CheckpointError


def child(folder, result, launcher=(), **options):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *launcher, trainings.__file__, folder, result, json.dumps(options)],
        capture_output=True,
        text=True,
        env=env,
    )


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a)


def test_the_schedule_has_the_public_codes_values():
    for step, want in [(0, 0.01), (50, 0.505), (100, 1), (8100, 0.1), (10508, 0.05), (10**6, 0.05)]:
        assert warm_up_and_decay(step) == pytest.approx(want, rel=1e-9), step
    assert warm_up_and_decay(101) == pytest.approx(0.9997122, rel=1e-7)
    assert warm_up_and_decay(10507) > 0.05
    assert warm_up_and_decay(0, warmup=0) == 1


def test_an_epoch_shows_every_image_once_in_a_new_order_with_new_seeds():
    recipe = Line(images=8)
    run(recipe, max_steps=4)
    epochs = [recipe.seen[0] + recipe.seen[1], recipe.seen[2] + recipe.seen[3]]
    assert [sorted(e) for e in epochs] == [list(range(8))] * 2
    assert epochs[0] != epochs[1]
    assert len(set(sum(recipe.seeds, ()))) == 16
    assert len(set(recipe.drawn)) == 4
    other = Line(images=8)
    run(other, max_steps=4, seed=1)
    assert other.seen != recipe.seen
    assert seed_of(1, 2) != seed_of(2, 1)


@pytest.mark.parametrize(("alike", "differ"), [(False, 3), (True, 1)])
def test_validations_draw_anew_or_alike(alike, differ):
    drawn = []

    class Heard(Line):
        def validate(self, turn):
            drawn.append((*turn.seeds, torch.rand(1).item()))
            return super().validate(turn)

    run(Heard(), max_steps=6, validate_alike=alike)
    assert len(drawn) == 3
    assert len(set(drawn)) == differ


def test_batches_are_full_and_few_images_are_one_batch():
    recipe = Line(images=10)
    run(recipe, max_steps=2)
    assert [len(i) for i in recipe.seen] == [4, 4]
    few = Line(images=3)
    outcome = run(few, max_steps=2)
    assert [sorted(i) for i in few.seen] == [[0, 1, 2]] * 2
    assert outcome.history[-1]["epoch"] == 2


def test_losses_fall_rates_follow_and_the_best_validation_is_kept():
    recipe = Line()
    outcome = run(recipe, max_steps=60)
    vals = {row["step"]: row["val"] for row in outcome.history if "val" in row}
    assert outcome.best_loss == min(vals.values())
    assert vals[outcome.best_step] == outcome.best_loss
    assert outcome.best_loss < 0.2 * vals[2]
    assert recipe.rates[4] == 2 * recipe.rates[5] == 0.05
    kept = Line()
    kept.networks["a"].load_state_dict(outcome.weights["a"])
    kept.networks["a"].eval()
    out = kept.networks["a"](kept.x[10:])
    error = (out - kept.y[10:]).square().mean().item()
    assert error == pytest.approx(outcome.best_loss, rel=1e-5)
    assert (outcome.ended, outcome.steps) == ("max_steps", 60)
    assert not torch.equal(outcome.weights["mean"]["weight"], outcome.weights["b"]["weight"])


def test_training_ends_when_validation_has_stopped_getting_better():
    class Stuck(Line):
        def validate(self, turn):
            return {"loss": torch.tensor(float(len(turn.index) * (1 if turn.step < 6 else 2)))}

    outcome = run(Stuck(), max_steps=100, patience=5)
    assert (outcome.ended, outcome.best_step, outcome.best_loss) == ("patience", 2, 1)
    assert outcome.steps == 8  # the first above 2 + 5
    assert run(Line(), max_steps=100, max_epochs=3).steps == 6
    free = Line(val_images=0)
    outcome = run(free, max_steps=9, patience=2)
    assert (outcome.ended, outcome.best_step) == ("max_steps", 9)
    assert math.isnan(outcome.best_loss)


@pytest.mark.parametrize("kill_at", [1, 7])
def test_after_a_kill_the_weights_end_as_if_nothing_had_been(tmp_path, kill_at):
    whole = run(Line())
    killed = child(tmp_path / "work", tmp_path / "no", kill_at=kill_at)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = Line()
    outcome = run(again, tmp_path / "work")
    assert len(again.seen) == 12 - kill_at
    assert same(flat(outcome), flat(whole))
    assert outcome.history == whole.history
    assert (outcome.best_step, outcome.best_loss) == (whole.best_step, whole.best_loss)
    with open(tmp_path / "work" / "log.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["step"]) for row in table] == [row["step"] for row in whole.history]


def test_a_finished_training_is_not_made_again_and_a_longer_one_goes_on(tmp_path):
    first = run(Line(), tmp_path)
    done = Line()
    assert same(flat(run(done, tmp_path)), flat(first))
    assert done.seen == []
    assert same(flat(run(Line(), tmp_path, max_steps=20)), flat(run(Line(), max_steps=20)))


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_refused(tmp_path):
    run(Line(), tmp_path)
    with pytest.raises(CheckpointError, match="other settings"):
        run(Line(), tmp_path, seed=3)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(Line(), tmp_path)


def test_gradients_are_clipped_to_the_norm_that_is_asked_for():
    class Kept(Line):
        def __init__(self):
            super().__init__()
            self.norms = []
            self.optimizers["a"].register_step_pre_hook(
                lambda *_: self.norms.append(
                    sum(p.grad.square().sum() for p in self.networks["a"].parameters()).sqrt()
                )
            )

    free, clipped = Kept(), Kept()
    run(free, max_steps=2)
    run(clipped, max_steps=2, clip=0.01)
    assert min(free.norms) > 0.02
    assert max(clipped.norms) == pytest.approx(0.01, rel=1e-3)


def test_short_products_change_the_weights_by_rounding(tmp_path):
    whole, short = run(Line()), run(Line(), precision="bfloat16")
    a, b = whole.weights["a"]["0.weight"], short.weights["a"]["0.weight"]
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, rtol=0.2, atol=0.05)


def test_a_loss_that_is_not_finite_ends_it_with_advice():
    class Broken(Line):
        def step(self, turn):
            return {"loss": torch.tensor(float("nan"))}

    with pytest.raises(TrainingError, match=r"loss is not finite at step 3.*learning rate"):
        run(Broken())


def test_the_callers_generator_is_left_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    run(Line())
    assert torch.equal(torch.rand(3), want)


def test_progress_tells_losses():
    told = []

    class Ear(Progress):
        def task(self, name, total, unit="it"):
            told.append((name, total, unit))
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def advance(self, n=1, **info):
            told.append((n, info))

    settings = LoopSettings(batch_size=4, max_steps=4, log_every=2)
    train(Line(), settings, Team(torch.device("cpu")), progress=Ear(), name="model 1")
    assert told[0] == ("model 1", 4, "steps")
    assert sum(n for n, _ in told[1:]) == 4
    assert {"loss", "second", "val"} <= set(told[-1][1])
    told.clear()
    ended = LoopSettings(batch_size=4, max_steps=100, max_epochs=3)
    train(Line(), ended, Team(torch.device("cpu")), progress=Ear())
    assert told[0] == ("train", 6, "steps")  # so that the time left is that of what is left


def test_tensorboard_hears_what_the_csv_does_where_it_is_installed(tmp_path, monkeypatch):
    told, purged = [], []

    class Writer:
        def __init__(self, folder, purge_step):
            purged.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            told.append((step, name, value))

        def close(self):
            told.append("closed")

    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer)
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    history = run(Line(), tmp_path).history
    want = [
        (row["step"], name, value)
        for row in history
        for name, value in row.items()
        if name not in ("step", "epoch")
    ]
    assert told == [*want, "closed"]
    run(Line(), tmp_path, max_steps=20)
    assert purged == [(tmp_path / "tensorboard", 1), (tmp_path / "tensorboard", 13)]


def test_curves_are_a_picture_with_a_line_for_each_figure():
    rows = [{"step": i, "loss": 1 / i, "val": 2 / i} for i in range(1, 9)]
    picture = ElementTree.fromstring(draw_curves({"<one>": rows, "two": rows[:4]}))
    names = [e.text for e in picture.iter() if e.tag.endswith("text")]
    assert {"<one>", "two", "steps"} <= set(names)
    lines = [e for e in picture.iter() if e.tag.endswith("path") and e.get("stroke-width")]
    assert len(lines) == 4
    assert len([e for e in picture.iter() if e.tag.endswith("circle")]) == 2
    ends = lines[0].get("d").split("L")
    assert float(ends[0].split()[1]) < float(ends[-1].split()[1])  # falls: y grows downwards
    places = [(e.get("x"), e.get("y")) for e in picture.iter() if e.tag.endswith("text")]
    assert len(set(places)) == len(places)
    rows = [{"step": i, "loss": 0.6 / i, "val": 0.7} for i in (20, 110)]
    picture = ElementTree.fromstring(draw_curves({"one": rows}))
    ticks = [e.text for e in picture.iter() if e.tag.endswith("text") and e.text[0].isdigit()]
    assert sorted(ticks, key=float) == [
        *["0", "0.01", "0.03", "0.1", "0.3"],
        *["20", "40", "60", "80", "100"],
    ]
    names = [f"model {i}: intra+inter+sink+intensity" for i in range(5)]
    picture = ElementTree.fromstring(draw_curves(dict.fromkeys(names, rows)))
    said = {t.text: (float(t.get("x")), float(t.get("y"))) for t in picture if t.text in names}
    assert said[names[0]][1] == said[names[1]][1] < said[names[2]][1]  # two long names in a row
    assert said[names[1]][0] - said[names[0]][0] > 7 * len(names[0])
    assert said[names[4]] == (64.0, said[names[3]][1] + 18)
    ElementTree.fromstring(draw_curves({"flat": [{"step": 1, "loss": -1.0}]}))
    ElementTree.fromstring(draw_curves({}))


class Member(Team):
    """One of several that hears nobody but itself."""

    def __init__(self, rank, size):
        super().__init__(torch.device("cpu"))
        self.rank, self.size = rank, size

    def share(self, networks):
        return dict(networks)

    def gather(self, value):
        return [value] * self.size

    def agree(self, networks):
        pass


def test_processes_share_a_batch_and_draw_the_same_for_all_of_it():
    class Heard(Line):
        def __init__(self):
            super().__init__(images=11, val_images=5)
            self.turns, self.checks = [], []

        def step(self, turn):
            self.turns.append(turn)
            return super().step(turn)

        def validate(self, turn):
            self.checks.append(turn)
            return super().validate(turn)

    made = []
    for rank, size in ((0, 1), (0, 2), (1, 2)):
        recipe = Heard()
        settings = LoopSettings(batch_size=4, max_steps=4)
        train(recipe, settings, Member(rank, size))
        made.append(recipe)
    alone, *both = made
    for whole, *parts in zip(alone.turns, *(one.turns for one in both), strict=True):
        assert {t.seed for t in parts} == {whole.seed} == {whole.seeds[0]}
        assert {t.whole for t in parts} == {whole.whole} == {4}
        assert [len(t.index) for t in parts] == [2, 2]
        found = dict(pair for t in parts for pair in zip(t.index, t.seeds, strict=True))
        assert found == dict(zip(whole.index, whole.seeds, strict=True))
    assert len({t.seed for t in alone.turns}) == 4
    # Of five images to validate on the last is a batch of its own, and the second has none of it.
    assert [t.index for t in alone.checks[:2]] == [(0, 1, 2, 3), (4,)]
    assert [t.index for t in both[0].checks[:2]] == [(0, 2), (4,)]
    assert [t.index for t in both[1].checks[:2]] == [(1, 3), (1, 3)]  # of the next validation
    assert both[1].checks[0].seed == alone.checks[0].seed != both[1].checks[1].seed
    assert both[0].checks[0].networks is both[0].networks


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = {"random": False, "val_images": 5}
    done = child(tmp_path / "work", tmp_path / "two", launcher, norm=True, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.split()) == ["0/2", "1/2"]
    one = run(Line(**options))
    first, second = (load_file(tmp_path / f"two.{rank}") for rank in (0, 1))
    assert same(first, second)
    for name, want in flat(one).items():
        torch.testing.assert_close(first[name], want, rtol=1e-5, atol=1e-6)
    with open(tmp_path / "work" / "log.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for name in ("loss", "second", "val", "val_size"):
        got = [float(row[name]) for row in table if row[name]]
        want = [row[name] for row in one.history if name in row]
        assert got == pytest.approx(want, rel=1e-5), name
