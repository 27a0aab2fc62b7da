# SPDX-License-Identifier: Apache-2.0
"""The two recipes of DIA, step by step: what is drawn, seen, averaged and handed on."""

import numpy as np
import pytest
import torch
from small_dia import TINY
from small_tasks import batches

from fundad_fast.methods import DIA, dia_training, make_config
from fundad_fast.methods.contrast import nt_xent
from fundad_fast.methods.dia_training import ContrastRecipe, DenoisingRecipe
from fundad_fast.methods.image_store import ImageStore
from fundad_fast.nets import ContrastNet
from fundad_fast.synthetic import SHIFTS, draw_t, shifted
from fundad_fast.training import LoopSettings, Team, train

CPU = Team(torch.device("cpu"))


def store_of(n):
    store = ImageStore(2**30)
    for batch in batches(n):
        store.add(batch)
    return store


class Notes(torch.nn.Module):
    """In place of a diffusion model: says nothing, and notes what it is asked."""

    def __init__(self, kept):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))
        self.kept = kept
        self.asked = []

    def forward(self, x, t):
        self.asked.append((x.detach(), t))
        return self.w * x


@pytest.fixture
def denoising(monkeypatch):
    """A training without noise, of images that are no mirror images of themselves."""

    def run(steps, **settings):
        monkeypatch.setattr(dia_training, "Denoiser", Notes)
        config = make_config(DIA, "quick", {**TINY, **settings})
        net = Notes(torch.ones(1000))  # nothing is noise: the model sees the images
        recipe = DenoisingRecipe(config, net, store_of(4))
        train(recipe, LoopSettings(batch_size=4, max_steps=steps), CPU)
        return recipe, net

    return run


# -- the diffusion model -------------------------------------------------------------------------


def test_the_model_learns_from_mirrored_images_in_its_range_at_all_time_steps(denoising):
    recipe, net = denoising(30)
    seen = torch.cat([x for x, _ in net.asked])
    steps = torch.cat([t for _, t in net.asked])
    own = 2 * recipe.store.get(range(4), torch.device("cpu")).image - 1
    as_is = (seen[:, None] - own).abs().flatten(2).amax(2).amin(1) < 1e-6
    turned = (seen[:, None] - own.flip(-1)).abs().flatten(2).amax(2).amin(1) < 1e-6
    assert (as_is | turned).all()
    assert 0.3 < turned.float().mean() < 0.7
    assert (steps.min() < 100, steps.max() > 900, len(set(steps.tolist())) > 90) == (True,) * 3


def test_the_optimiser_is_the_codes(denoising):
    recipe, _ = denoising(1, diffusion_rate=0.002)
    (group,) = recipe.optimizers["net"].param_groups
    assert (group["lr"], group["betas"]) == (0.002, (0.9, 0.99))


def test_the_moving_average_copies_then_lags_up_to_its_decay(denoising):
    recipe, net = denoising(1, ema=0.9)
    ema = recipe.networks["ema"]
    # 1 - (1 + n)^(-2/3) after n = steps - 101 of them; 7^(-2/3) is 0.27.
    for made, share in ((101, 1.0), (102, 2 ** (-2 / 3)), (107, 7 ** (-2 / 3)), (10_000, 0.1)):
        ema.w.data.fill_(1.0)
        net.w.data.fill_(3.0)
        recipe._average(made)
        assert ema.w.item() == pytest.approx(1 + 2 * share, rel=1e-5), made
        assert net.w.item() == 3


# -- the contrast --------------------------------------------------------------------------------


def test_each_view_is_mirrored_or_not_then_shifted_and_so_is_the_dissolved_one(monkeypatch):
    monkeypatch.setattr(dia_training, "augmented", lambda stack, views: stack)
    config = make_config(DIA, "quick", {**TINY, "shift": "rotation"})
    asked, stacks = [], []

    def change(image, t):
        asked.append(image)
        return 1 - image

    recipe = ContrastRecipe(config, ContrastNet(1, width=4), store_of(8), change, steps=4)
    own = recipe.stacked
    recipe.stacked = lambda turn: stacks.append((turn.index, own(turn))) or stacks[-1][1]
    train(recipe, LoopSettings(batch_size=8, max_steps=2), CPU)
    mirrored = []
    for (index, stack), dissolved in zip(stacks, asked):
        x = recipe.store.get(index, torch.device("cpu")).image
        first, second, third = stack.view(3, SHIFTS, 8, 1, 32, 32)
        for view in (first, second):
            flips = (view[0] == x.flip(-1)).flatten(1).all(1)
            base = torch.where(flips.view(-1, 1, 1, 1), x.flip(-1), x)
            for k in range(SHIFTS):  # one mirroring for all shifts of a view
                assert torch.equal(view[k], shifted(base, k, "rotation"))
            mirrored.append(flips.tolist())
        for k, part in enumerate(dissolved.split(8)):
            assert torch.equal(third[k], shifted(1 - part, k, "rotation"))
    assert len({tuple(flips) for flips in mirrored}) == 4  # each view of each step its own
    assert all(0 < sum(flips) < 8 for flips in mirrored)


def test_time_steps_are_drawn_as_the_settings_say_and_move_with_the_training(monkeypatch):
    drawn = []

    def note(n, rng, **given):
        drawn.append((n, given))
        return draw_t(n, rng, **given)

    monkeypatch.setattr(dia_training, "draw_t", note)
    settings = {"t_sampler": "beta_moving", "t_offset": 0.1, "t_upper": 0.5, "t_scale": 300}
    config = make_config(DIA, "quick", {**TINY, **settings})
    net = ContrastNet(1, width=4)
    recipe = ContrastRecipe(config, net, store_of(4), lambda image, t: image, steps=4)
    train(recipe, LoopSettings(batch_size=4, max_steps=3), CPU)
    want = {"sampler": "beta_moving", "offset": 0.1, "upper": 0.5, "scale": 300}
    assert drawn == [(SHIFTS, {**want, "progress": step / 4}) for step in range(3)]


def test_the_loss_and_the_optimiser_are_as_the_settings_say(monkeypatch):
    asked = []

    def note(z, pairs, **given):
        asked.append((pairs, given))
        return nt_xent(z, pairs, **given)

    monkeypatch.setattr(dia_training, "nt_xent", note)
    settings = {"temperature": 0.2, "exclusion": "naive", "divisor": "images"}
    settings |= {"learning_rate": 0.3, "momentum": 0.8, "weight_decay": 1e-3, "trust": 0.02}
    config = make_config(DIA, "quick", {**TINY, **settings})
    recipe = ContrastRecipe(
        config, ContrastNet(1, width=4), store_of(4), lambda image, t: image, steps=4
    )
    (group,) = recipe.optimizers["net"].param_groups
    for name in ("momentum", "weight_decay", "trust"):
        assert group[name] == settings[name]
    assert group["lr"] == 0.3
    outcome = train(recipe, LoopSettings(batch_size=4, max_steps=1), CPU)
    assert asked == [(16, {"temperature": 0.2, "mode": "naive", "divisor": "images"})]
    row = outcome.history[-1]
    assert row["loss"] == pytest.approx(row["contrast"] + row["shift"], rel=1e-5)
    assert np.isfinite(row["loss"])
