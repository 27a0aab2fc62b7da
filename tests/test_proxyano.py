# SPDX-License-Identifier: Apache-2.0
"""ProxyAno and the autoencoders: the fit and what comes of it, resuming, refusals."""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import small_proxies
import torch
from cohorts import photograph
from safetensors.torch import load_file
from small_proxies import PROXY, TINY, fit_on
from small_tasks import batches

import fundad_fast
from fundad_fast.batch import Batch
from fundad_fast.data import DataError
from fundad_fast.methods import Autoencoder, ConfigError, ProxyAno, make_config
from fundad_fast.methods.autoencoders import KINDS, AutoencoderRecipe
from fundad_fast.methods.image_store import ImageStore
from fundad_fast.methods.proxy_training import ProxyRecipe
from fundad_fast.methods.reconstruction import mean_inside, steps_of
from fundad_fast.nets import Made
from fundad_fast.synthetic.holes import hole_sizes

BOTH = pytest.mark.parametrize("method", [ProxyAno, Autoencoder])


@pytest.fixture(scope="module")
def fitted():
    folds = {str(i): i % 4 for i in range(12)}
    return {m: fit_on(m, batches(12), folds=folds) for m in (ProxyAno, Autoencoder)}


def probe(n=3, **how):
    each = batches(n, start=50, **how)
    masks = None if each[0].mask is None else torch.cat([b.mask for b in each])
    return Batch(torch.cat([b.image for b in each]), tuple(str(i) for i in range(n)), masks)


# -- the fit -------------------------------------------------------------------------------------


@BOTH
def test_losses_fall_and_what_was_made_is_told(method):
    made = fit_on(method, batches(6), max_steps=22)
    rows = list(csv.DictReader(io.StringIO(made.files()["training.csv"].decode())))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert made.facts["steps"] == 22
    assert "22 steps on 6 images" in made.summary()
    assert made.files()["training.svg"].startswith(b"<svg")
    assert made.held_out_ is None


@BOTH
def test_held_out_images_are_those_of_one_fold_that_nothing_learned_from(method, fitted):
    held = fitted[method].held_out_
    assert held.id == ("0", "4", "8")
    assert "nothing was trained on" in held.rule
    want = fitted[method].score(batches(1)[0])
    assert held.score[0] == pytest.approx(want.image.item(), rel=1e-4)
    assert len(held.pixels) == 3 * 32 * 32
    folds = {str(i): i % 4 for i in range(12)}
    again = fit_on(method, batches(12, changed=("0", "4", "8")), folds=folds)
    state = fitted[method].state().weights
    assert all(torch.equal(v, again.state().weights[k]) for k, v in state.items())


@BOTH
def test_scores_do_not_depend_on_the_batch(method, fitted):
    whole = fitted[method].score(probe(5))
    for i in range(5):
        one = fitted[method].score(probe(5)[i : i + 1])
        torch.testing.assert_close(one.map[0], whole.map[i], rtol=1e-4, atol=1e-6)
        assert one.image.item() == pytest.approx(whole.image[i].item(), rel=1e-4)


def test_batch_normalisation_has_its_running_figures_at_scoring(fitted):
    """P-Net's public code evaluates in training mode, so that an image's batch changes it."""
    method = fitted[ProxyAno]
    assert not any(module.training for net in method._nets.values() for module in net.modules())
    before = {k: v.clone() for k, v in method.state().weights.items()}
    assert any("running_mean" in name and v.abs().sum() > 0 for name, v in before.items())
    method.score(probe())
    assert all(torch.equal(v, before[k]) for k, v in method.state().weights.items())


@BOTH
def test_the_state_scores_the_same_bit_for_bit(method, fitted):
    back = method.from_state(fitted[method].config, fitted[method].state())
    assert torch.equal(back.score(probe()).map, fitted[method].score(probe()).map)
    assert json.loads(json.dumps(fitted[method].state().facts)) == fitted[method].state().facts
    assert not any(name.startswith("judge") for name in fitted[method].state().weights)


@BOTH
def test_the_same_seed_is_the_same_method_and_another_is_not(method):
    a, b, other = (fit_on(method, batches(6), seed=s).state().weights for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], other[k]) for k in a)


@BOTH
def test_a_mask_bounds_what_is_learned_and_scored(method):
    def loud(made):
        image = torch.where(made.mask[:, None], made.image, 1.0)
        return Batch(image, made.id, made.mask)

    masked = [
        fit_on(method, f, max_steps=2)
        for f in (batches(6, masked=True), [loud(b) for b in batches(6, masked=True)])
    ]
    for a, b in zip(*(m.state().weights.values() for m in masked)):
        assert torch.equal(a, b)
    one = probe(2, masked=True)
    scores, others = masked[0].score(one), masked[0].score(loud(one))
    assert torch.equal(scores.map, others.map)
    for i in range(2):
        want = scores.map[i][one.mask[i]].mean().item()
        assert scores.image[i].item() == pytest.approx(want, rel=1e-4)
    assert not scores.map[:, :3, :3].any()  # far outside


def test_colour_and_the_residual_of_the_proxy():
    method = fit_on(ProxyAno, batches(6, channels=3), proxy_residual=0.0)
    one = probe(channels=3)
    plain = method.score(one)
    both = ProxyAno.from_state(
        method.config.model_copy(update={"proxy_residual": 0.5}), method.state()
    ).score(one)
    guess, again = method._made(one.image, None)
    torch.testing.assert_close(plain.map, (again - one.image).abs().mean(1).detach())
    proxies = method._proxies(one.image, None)
    want = plain.map + 0.5 * (guess - proxies).abs().mean(1).detach()
    torch.testing.assert_close(both.map, want)
    assert proxies.shape == one.image.shape


def test_pseudo_anomalies_are_of_the_input_and_the_target_stays(monkeypatch):
    """The second network is given the made proxy, the proxy, and the proxy with a patch."""
    from fundad_fast.methods import proxy_training

    seen = []
    pasted = proxy_training.paste_patches

    def spy(proxy, source, **how):
        made = pasted(proxy, source, **how)
        seen.append((proxy.clone(), source.clone(), made))
        return made

    inputs = []
    steps = ProxyRecipe.step

    def watched(self, turn):
        net = turn.networks["image"]
        handle = net.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach()))
        batch = self.store.get(list(turn.index), turn.device).image
        seen_before = len(seen)
        said = steps(self, turn)
        handle.remove()
        proxy, source, made = seen[seen_before]
        assert torch.equal(self.store.get(list(turn.index), turn.device).image, batch)
        assert torch.equal(source, batch.roll(1, 0))
        b = len(batch)
        assert torch.equal(inputs[-1][b : 2 * b], proxy)
        assert torch.equal(inputs[-1][2 * b :], made.image)
        return said

    monkeypatch.setattr(proxy_training, "paste_patches", spy)
    monkeypatch.setattr(ProxyRecipe, "step", watched)
    fit_on(ProxyAno, batches(6), max_steps=2)
    assert len(seen) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"proxy": "lowres"},
        {"proxy": "edge"},
        {"proxy": "blur"},
        {"memory": "none"},
        {"memory": "kv", "address": "cosine"},
        {"pseudo_anomalies": False},
        {"discriminators": False},
        {"patch_from": "same", "detached": True},
    ],
)
def test_the_ablations_train(settings, fitted):
    made = fit_on(ProxyAno, batches(6), max_steps=2, **settings)
    plain = fit_on(ProxyAno, batches(6), max_steps=2)
    a, b = made.state().weights, plain.state().weights
    assert a.keys() != b.keys() or not all(torch.equal(a[k], b[k]) for k in a)
    assert made.score(probe()).map.isfinite().all()


def test_detached_the_image_teaches_the_proxy_nothing():
    """What the second network is asked for then changes no weight of the first one."""
    alone = {"discriminators": False, "max_steps": 2}
    for detached in (True, False):
        a, b = (
            fit_on(ProxyAno, batches(6), detached=detached, pseudo_anomalies=more, **alone).state()
            for more in (True, False)
        )
        same = [torch.equal(v, b.weights[k]) for k, v in a.weights.items() if "proxy/" in k]
        assert all(same) is detached


def test_what_is_made_of_a_fundus_is_black_outside_it():
    method = fit_on(ProxyAno, batches(6, masked=True), max_steps=2)
    one = probe(masked=True)
    with torch.no_grad():
        guess, _ = method._made(one.image * one.mask[:, None], one.mask)
    assert guess[one.mask[:, None]].any()
    assert not guess[~one.mask[:, None]].any()


def first_losses(**settings):
    made = fit_on(Autoencoder, batches(6), max_steps=1, **settings)
    return {k: float(v) for k, v in made._histories[made.name][-1].items()}


def test_what_each_kind_of_autoencoder_adds_to_the_loss():
    for kind, weight, term in (
        ("vae", "divergence_weight", "divergence"),
        ("memae", "entropy_weight", "entropy"),
    ):
        none, all_of_it = (first_losses(kind=kind, shrink=0.0, **{weight: w}) for w in (0, 1))
        assert none[term] > 0
        assert all_of_it["loss"] == pytest.approx(none["loss"] + none[term], rel=1e-5)
    vae, cevae = first_losses(kind="vae"), first_losses(kind="cevae")
    assert cevae["loss"] == pytest.approx(vae["loss"] + cevae["context"], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_autoencoder_learns(kind):
    made = fit_on(Autoencoder, batches(6), kind=kind, max_steps=25)
    rows = list(csv.DictReader(io.StringIO(made.files()["training.csv"].decode())))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    has = {"vae": {"divergence"}, "cevae": {"divergence", "context"}, "memae": {"entropy"}}
    assert set(rows[0]) - {"step", "epoch", "lr", "loss"} == has.get(kind, set())
    if kind == "inpaint":
        return  # what it scores is another test's
    one = probe()
    scores, net = made.score(one), made._nets["net"]
    with torch.no_grad():
        out = net(one.image).image
    if kind == "aeu":
        again, log_variance = out.chunk(2, 1)
        want = (again - one.image) ** 2 / log_variance.exp()
    else:
        want = (out - one.image) ** 2
    torch.testing.assert_close(scores.map, want.mean(1))
    presets = {make_config(Autoencoder, preset).kind for preset in Autoencoder.presets}
    assert presets == set(KINDS)


def test_inpainting_judges_pixels_by_what_is_around_them_alone():
    made = fit_on(Autoencoder, batches(6), preset="lesion2void", max_steps=2, depth=2)
    side, period = hole_sizes((32, 32), made.config.holes)
    assert (side, period) == (2, 7)
    seen = []

    class Guess(torch.nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return Made(torch.full_like(x, 0.25))

    made._nets["net"] = Guess()
    one = probe(2)
    scores = made.score(one)
    torch.testing.assert_close(scores.map, (one.image - 0.25).abs().mean(1))
    hidden = torch.stack([(x != one.image).any(1) for x in seen])
    assert hidden.any(0).all()  # every pixel lies in a hole at some time
    assert 2 <= hidden[:, 0].sum((1, 2)).min() <= hidden[:, 0].sum((1, 2)).max() <= 100  # of 1024
    noise = [x[hide[:, None].expand_as(x)] for x, hide in zip(seen, hidden, strict=True)]
    assert 0 <= torch.cat(noise).min() < 0.1
    assert 0.9 < torch.cat(noise).max() <= 1
    assert torch.equal(made.score(one).map, scores.map)


def test_inpainting_learns_what_is_in_holes_inside_the_mask_alone():
    config = make_config(Autoencoder, "lesion2void", TINY)
    store, losses = ImageStore(2**30), []
    for one in batches(3, masked=True):
        store.add(one)

    class Guess(torch.nn.Conv2d):
        def forward(self, x):
            self.seen = x
            return Made(torch.full_like(x, 0.25))

    net = Guess(1, 1, 1)
    recipe = AutoencoderRecipe(config, {"net": net}, store)

    class Turn:
        index, seeds, device, networks = (0, 1, 2), (4, 5, 6), torch.device("cpu"), {"net": net}

        def autocast(self):
            return contextlib.nullcontext()

        def descend(self, loss, name):
            losses.append(loss)

    recipe.step(Turn())
    known = store.get([0, 1, 2], torch.device("cpu"))
    hidden = (net.seen != known.image).any(1)
    assert not torch.equal(hidden[0], hidden[1])  # another place for each image
    inside = hidden & known.mask
    assert 0 < inside.sum() < min(hidden.sum(), known.mask.sum())
    torch.testing.assert_close(losses[0], (known.image[:, 0] - 0.25).abs()[inside].mean())


def test_the_skips_of_a_fading_network_are_silent_after_their_share_of_the_steps():
    made = {
        steps: fit_on(Autoencoder, batches(6), preset="wdmt", max_steps=steps, skip_decay=0.8)
        for steps in (1, 5)
    }
    one = probe(2)
    for steps, share in ((1, 1.0), (5, 0.0)):
        net = made[steps]._nets["net"]
        assert float(net.skip_share) == pytest.approx(share)
        with torch.no_grad():
            down = net.encoder(one.image)
            sizes = [tuple(f.shape[2:]) for f in down]
            without = net.decoder(
                down[-1], sizes, [torch.zeros_like(f) for f in down[:-1]], net.skip_share
            )[0]
        # At 0 it is the coarsest level alone that reaches the image.
        assert torch.allclose(net(one.image).image, without) == (share == 0)
    assert float(
        fit_on(Autoencoder, batches(6), preset="wdmt", max_steps=3, skip_decay=1.0)
        ._nets["net"]
        .skip_share
    ) == pytest.approx(1 / 3)  # of the third step
    again = type(made[1]).from_state(made[1].config, made[1].state())
    assert torch.equal(again.score(one).map, made[1].score(one).map)


# -- going on after a kill -----------------------------------------------------------------------


def test_after_a_kill_all_networks_end_as_if_nothing_had_been(tmp_path, monkeypatch):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, small_proxies.__file__, killed], capture_output=True, text=True, env=env
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (before,) = killed.glob("*/training/checkpoint.safetensors")
    assert any("judge" in name for name in load_file(before))
    torch.set_num_threads(1)
    from fundad_fast.methods import proxy_training

    with monkeypatch.context() as patched:  # the proxies are there: none is made again
        patched.setattr(proxy_training, "make_proxy", None)
        again = fit_on(ProxyAno, batches(7), scratch=killed)
    whole = fit_on(ProxyAno, batches(7), scratch=tmp_path / "whole")
    assert again.facts["steps"] == whole.facts["steps"] == 6
    (one,) = killed.glob("*/training/checkpoint.safetensors")
    (two,) = (tmp_path / "whole").glob("*/training/checkpoint.safetensors")
    assert one.parent.parent.name == two.parent.parent.name
    got, want = load_file(one), load_file(two)
    assert got.keys() == want.keys()
    names = {name.split("/")[1] for name in want if name.startswith("net/")}
    assert names == {"proxy", "image", "judge_proxy", "judge_image"}
    assert {name.split("/")[1] for name in want if name[:4] == "opti"} == {"networks", "judges"}
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name
    state = whole.state().weights
    assert all(torch.equal(v, again.state().weights[k]) for k, v in state.items())


# -- small parts ---------------------------------------------------------------------------------


def test_rates_drop_at_shares_of_the_steps():
    config = make_config(ProxyAno, "paper", {"train_batch": 4, "max_epochs": 100})
    assert steps_of(config, 10) == 200  # two full batches an epoch
    assert steps_of(config, 3) == 100
    assert steps_of(make_config(ProxyAno), 10) == 6000
    recipe = object.__new__(ProxyRecipe)
    recipe._drops, recipe._steps = (0.25, 0.5), 200
    assert [recipe.rate(s) for s in (0, 49, 50, 99, 100)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_the_mean_inside_is_over_the_mask():
    values = torch.arange(16.0).view(2, 2, 2, 2)
    mask = torch.tensor([[[True, False], [False, False]], [[True, False], [False, True]]])
    assert mean_inside(values, mask).item() == pytest.approx((0 + 4 + 8 + 11 + 12 + 15) / 6)
    assert mean_inside(values, None).item() == pytest.approx(7.5)


# -- refusals and plans --------------------------------------------------------------------------


@BOTH
def test_what_cannot_be_learned_from_is_refused_with_advice(method):
    with pytest.raises(ConfigError, match="no healthy image to learn from"):
        fit_on(method, [])
    with pytest.raises(ConfigError, match=r"one healthy image.*few dozen"):
        fit_on(method, batches(1))
    alike = [Batch(torch.ones(1, 1, 32, 32) / 3, (str(i),)) for i in range(6)]
    with pytest.raises(ConfigError, match="6 healthy images are all the same"):
        fit_on(method, alike)
    with pytest.raises(ConfigError, match=r"sides of at least 64.*lower depth"):
        fit_on(method, batches(4), depth=6)
    with pytest.raises(ConfigError, match="no pretrained backbone"):
        method(make_config(method), weights="w.safetensors")
    with pytest.raises(RuntimeError, match="not fitted"):
        method(make_config(method)).score(probe())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rate_drops": (0.5, 0.2)}, "rising shares"),
        ({"rate_drops": (1.0,)}, "rising shares"),
        ({"betas": (0.5, 1.0)}, "below 1"),
        ({"proxy": "nose"}, "proxy"),
        ({"proxy_settings": {"segments": 1}}, "proxy_settings"),
        ({"paste": {"least_side": 0.5}}, "least_side"),
        ({"slots": 1}, "slots"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        make_config(ProxyAno, "default", settings)


def test_presets():
    paper, fundus = (make_config(ProxyAno, name) for name in ("paper", "paper-fundus"))
    assert (paper.width, paper.slots, paper.train_batch, paper.max_epochs) == (64, 2000, 8, 800)
    assert (paper.learning_rate, paper.betas, paper.weight_decay) == (1e-3, (0.1, 0.9), 1e-4)
    assert (paper.proxy, paper.proxy_settings.segments, paper.shrink) == ("superpixel", 500, 2)
    assert (paper.fov, fundus.fov) == ("none", "auto")
    assert make_config(ProxyAno, "fundus").fov == "auto"
    for method in (ProxyAno, Autoencoder):
        said = {n: f.description for n, f in method.Config.model_fields.items()}
        assert all(said.values()), said


@BOTH
def test_a_plan_counts_steps_and_parameters(method):
    config = make_config(method, "quick", {**(PROXY if method is ProxyAno else TINY)})
    plan = method(config).plan(images=100, folds=5)
    assert plan.lines[2].startswith("80 of 100 images")
    assert "6 steps" in plan.lines[1]
    assert plan.seconds > 0
    folds = {str(i): i % 5 for i in range(10)}
    made = fit_on(method, batches(10, channels=3), preset="quick", folds=folds)
    assert plan.bundle == 4 * made.facts["parameters"]


@BOTH
def test_the_facade_fits_saves_and_loads(tmp_path, method):
    settings = PROXY if method is ProxyAno else TINY
    det = getattr(fundad_fast, method.__name__)("quick", folds=3, **settings)
    det.fit(np.stack([photograph(i) for i in range(12)]))
    assert "nothing was trained on" in det.bundle_.trained_on["held_out"]
    det.save(tmp_path / "model")
    assert {"training.csv", "training.svg"} <= {p.name for p in (tmp_path / "model").iterdir()}
    again = fundad_fast.load(tmp_path / "model")
    x = np.stack([photograph(40), photograph(41, lesion=True)])
    np.testing.assert_array_equal(again.decision_function(x), det.decision_function(x))
    assert again.threshold_ == det.threshold_


def test_a_fundus_preset_on_images_without_a_field_of_view():
    noise = np.random.default_rng(0).integers(90, 160, (6, 64, 64, 3), dtype=np.uint8)
    with pytest.raises(DataError, match=r"none of the 6 healthy images.*no_fov"):
        fundad_fast.ProxyAno("fundus", **PROXY).fit(noise)
