# SPDX-License-Identifier: Apache-2.0
"""What one model of ManyTasks is shown, and what its errors are."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_tasks import TINY, batches, fit_on

from fundad_fast.batch import Batch
from fundad_fast.methods import ManyTasks, make_config, task_training
from fundad_fast.methods.image_store import ImageStore
from fundad_fast.methods.task_folds import task_folds
from fundad_fast.methods.task_training import TaskRecipe
from fundad_fast.nets import UNet
from fundad_fast.synthetic import TASKS, Synthetic
from fundad_fast.training import LoopSettings, Team, train


def stored(n=10, start=0, masked=False):
    """Images whose value is their number."""
    store = ImageStore(2**30)
    for i in range(start, start + n):
        mask = torch.zeros(1, 16, 16, dtype=torch.bool)
        mask[:, : i - start + 1, :8] = True
        image = torch.full((1, 1, 16, 16), float(i))
        image[..., 0] += 0.5  # so that a reversed one is seen
        store.add(Batch(image, (str(i),), mask if masked else None))
    return store


@pytest.fixture
def shown(monkeypatch):
    """Every call of ``synthesize``; images come back with 1 added and a label of 0.25."""
    calls = []

    def synthesize(image, tasks, **given):
        calls.append(SimpleNamespace(image=image, tasks=tasks, **given))
        label = torch.full_like(image[:, 0], 0.25)
        return Synthetic(image + 1, label, label > 0)

    monkeypatch.setattr(task_training, "synthesize", synthesize)
    return calls


def recipe(fold=0, store=None, foreign=None, **settings):
    config = make_config(ManyTasks, "default", {**TINY, **settings})
    store = store or stored()
    return TaskRecipe(config, UNet(1, 2, width=2, depth=2), fold_of(fold, store), store, foreign)


def fold_of(number, store):
    return task_folds(TASKS, 1, len(store))[number]


def run(made, **settings):
    chosen = {"batch_size": 4, "max_steps": 2, **settings}
    return train(made, LoopSettings(**chosen), Team(torch.device("cpu")))


def numbers(images):
    return set(images[:, 0, 0, 7].int().tolist())


def test_training_and_validation_each_have_their_own_images_and_tasks(shown):
    run(recipe(1))  # inter: images 2 and 3 validate
    first, last = shown[0], shown[-1]
    assert set(first.tasks) == {"inter"}
    assert not numbers(first.image) & {2, 3}
    assert not numbers(first.sources) & {2, 3}
    assert numbers(first.external) == {2, 3}  # nothing of another kind: the other pool
    assert numbers(last.image) == numbers(last.sources) == {2, 3}
    assert set(last.tasks) <= set(TASKS) - {"inter"}
    assert last.external is None
    run(recipe(0, foreign=stored(6, 100)))
    assert shown[2].external is None  # intra alone takes nothing from outside
    assert min(numbers(shown[-1].external)) >= 100


def test_all_tasks_of_a_pool_come_up_and_seeds_differ(shown):
    config = make_config(ManyTasks, "default", {**TINY, "train_tasks": 4})
    store = stored(40)
    fold = task_folds(TASKS, 4, 40)[0]
    run(TaskRecipe(config, UNet(1, 2, width=2, depth=2), fold, store, None), max_steps=8)
    training = [call for call in shown if numbers(call.image) <= set(fold.train.tolist())]
    assert {task for call in training for task in call.tasks} == set(fold.train_tasks)
    seeds = [seed for call in training for seed in call.seeds]
    assert len(set(seeds)) == len(seeds) == 32
    assert len(set().union(*(numbers(call.sources) for call in training))) > 12


def test_the_validation_is_the_error_on_clean_images_and_on_anomalies(shown):
    made = recipe(0)
    outcome = run(made, max_steps=1, validate_every=1)
    net = UNet(1, 2, width=2, depth=2)
    net.load_state_dict(outcome.weights["net"])
    clean = torch.cat([made.store.get([int(i)], torch.device("cpu")).image for i in made.fold.val])
    with torch.no_grad():
        quiet = net(clean).square().mean().item()
        found = (net(clean + 1) - 0.25).square().mean().item()
    row = outcome.history[0]
    assert row["val_clean"] == pytest.approx(quiet, rel=1e-4)
    assert row["val_anomalies"] == pytest.approx(found, rel=1e-4)
    assert row["val_silent"] == pytest.approx(0.25**2)
    assert row["val"] == pytest.approx(quiet + found, rel=1e-4)


def test_masks_go_with_their_images_and_flips_reverse_both(shown):
    run(recipe(0, store=stored(40, masked=True), flip=True), max_steps=8)
    reversed_ = 0
    for call in shown[:8]:
        for image, mask in zip(call.image[:, 0], call.mask):
            number = int(image[0, 7])
            want = torch.zeros(16, 16, dtype=torch.bool)
            want[: number + 1, :8] = True
            flipped = image[0, -1] != number
            reversed_ += int(flipped)
            assert torch.equal(mask.flip(-1) if flipped else mask, want)
            assert image[0, 0 if not flipped else -1] == number + 0.5
        assert call.source_masks.shape == call.sources[:, 0].shape
    assert 6 <= reversed_ <= 26
    shown.clear()
    run(recipe(0))
    assert (shown[0].image[..., 0] % 1 == 0.5).all()
    assert shown[0].mask is None


def test_models_and_seeds_draw_apart(shown):
    drawn = []
    for seed in (0, 1):
        shown.clear()
        fit_on(batches(8), models=(0, 1), max_steps=1, seed=seed)
        drawn += [call.seeds[0] for call in shown]
    assert len(shown) >= 4
    assert len(set(drawn)) == len(drawn)


def test_rates_follow_the_schedule_of_the_settings():
    made = recipe(warmup_steps=10, tenfold_steps=100, rate_floor=0.5)
    assert made.rate(0) == pytest.approx(0.01)
    assert made.rate(10) == 1
    assert made.rate(1000) == 0.5
    assert made.optimizers["net"].param_groups[0]["lr"] == TINY["learning_rate"]


def test_a_store_beyond_its_limit_gives_the_same_images():
    small, large = ImageStore(2**12), ImageStore(2**30)
    for batch in batches(6, masked=True):
        small.add(batch)
        large.add(batch)
    for numbers_ in ([5, 0, 3], [2]):
        a, b = (s.get(numbers_, torch.device("cpu")) for s in (small, large))
        assert a.id == b.id == tuple(str(i) for i in numbers_)
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.mask, b.mask)
    assert not small.all_alike()
    np.testing.assert_array_equal(
        small.get([4], torch.device("cpu")).mask, batches(5, masked=True)[4].mask
    )
