# SPDX-License-Identifier: Apache-2.0
"""ReSynthDetect: losses, tiles, guidance, the fit and what comes of it, resuming, refusals."""

import contextlib
import csv
import io
import itertools
import json
import os
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import small_proxies
import small_resynth
import torch
import torch.nn.functional as nnf
from cohorts import photograph
from commands import call
from small_resynth import TINY, fit_on
from small_tasks import batches, volumes

import fundad_fast
from fundad_fast.batch import Batch
from fundad_fast.methods import ConfigError, ReSynthDetect, make_config
from fundad_fast.methods.image_store import ImageStore
from fundad_fast.methods.losses import focal_loss, structural_loss
from fundad_fast.methods.resynth import _split, image_score
from fundad_fast.methods.resynth_training import (
    ReconstructionStage,
    cut_tile,
    reconstruction_loss,
    view,
)
from fundad_fast.methods.tiling import tile_starts, tiled
from fundad_fast.nets import Autoencoder, GuidedPair, GuidedUNet, guidance
from fundad_fast.training import multi_step


def eyes(n, **options):
    return batches(n, channels=3, masked=True, **options)


@pytest.fixture(scope="module")
def fitted():
    return fit_on(eyes(12), folds={str(i): i % 4 for i in range(12)})


# -- losses --------------------------------------------------------------------------------------


def test_focal_loss_is_cross_entropy_without_focus():
    torch.manual_seed(0)
    x, y = 5 * torch.randn(4, 6, 6), (torch.rand(4, 6, 6) > 0.8).float()
    want = nnf.binary_cross_entropy_with_logits(x, y)
    torch.testing.assert_close(focal_loss(x, y, 0.0), want)
    torch.testing.assert_close(focal_loss(x, y, 1e-6), want, rtol=1e-4, atol=1e-6)


def test_focal_loss_is_the_posters_formula():
    x, y = torch.tensor([0.3, -1.2, 2.0, 0.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    for tau in (0.5, 2.0, 5.0):
        p = x.sigmoid()
        terms = torch.where(y > 0, -((1 - p) ** tau) * p.log(), -(p**tau) * (1 - p).log())
        torch.testing.assert_close(focal_loss(x, y, tau), terms.mean())


def test_focal_loss_is_finite_where_the_network_is_certain():
    x = torch.tensor([200.0, -200.0, 200.0, -200.0], requires_grad=True)
    loss = focal_loss(x, torch.tensor([1.0, 0.0, 0.0, 1.0]), 2.0)
    assert loss.item() == pytest.approx(100)
    loss.backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_first_stage_learns_to_make_healthy_images_again_by_squared_differences():
    store, (first,) = ImageStore(2**30), eyes(1)
    for one in eyes(3):
        store.add(one)
    config = make_config(ReSynthDetect, "default", {**TINY, "mirror": "none", "rotation": 0.0})
    net = Autoencoder(3, 2, 3).eval()
    stage = ReconstructionStage(config, net, store, np.array([0]), np.array([1, 2]))
    losses = []

    class Turn:
        index, seeds, device, networks = (0,), (5,), torch.device("cpu"), {"reconstruction": net}

        def autocast(self):
            return contextlib.nullcontext()

        def descend(self, loss, name):
            losses.append(loss)

    assert stage.step(Turn())["loss"] is losses[0]
    with torch.no_grad():
        again = net(first.image)
    torch.testing.assert_close(losses[0], ((again - first.image) ** 2).mean())
    draem = config.model_copy(update={"reconstruction_loss": "l2+ssim"})
    torch.testing.assert_close(
        reconstruction_loss(again, first.image, draem),
        losses[0] + structural_loss(again, first.image),
    )


def test_weights_are_chosen_on_images_that_are_not_trained_on():
    for seed in range(5):
        own, other = _split(23, make_config(ReSynthDetect, "default", {"seed": seed}))
        assert len(other) == 2
        assert sorted([*own, *other]) == list(range(23))
    splits = {
        tuple(_split(23, make_config(ReSynthDetect, "default", {"seed": s}))[1]) for s in (0, 1)
    }
    assert len(splits) == 2


def test_structural_loss_is_zero_for_the_same_image_and_grows_with_blur():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 20, 24)
    assert structural_loss(x, x).item() == pytest.approx(0, abs=1e-6)
    soft = nnf.avg_pool2d(x, 3, 1, 1)
    softer = nnf.avg_pool2d(x, 7, 1, 3)
    assert 0.05 < structural_loss(x, soft) < structural_loss(x, softer) <= 1
    from skimage.metrics import structural_similarity

    _, map_ = structural_similarity(
        x[0, 0].double().numpy(),
        soft[0, 0].double().numpy(),
        gaussian_weights=True,
        use_sample_covariance=False,
        data_range=1.0,
        full=True,
    )
    want = 1 - map_[5:-5, 5:-5].mean()
    assert structural_loss(x[:1, :1], soft[:1, :1]).item() == pytest.approx(want, abs=1e-5)


def test_the_rate_drops_at_shares_of_the_steps():
    rates = [multi_step(s, 100, at=(0.8, 0.9), factor=0.2) for s in (0, 79, 80, 89, 90, 99)]
    assert rates == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])


# -- tiles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "tile", "overlap"), [(100, 40, 10), (41, 40, 10), (97, 32, 31)])
def test_tiles_cover_an_axis_and_overlap(side, tile, overlap):
    starts = tile_starts(side, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] + tile == side
    assert all(0 < b - a <= tile - overlap for a, b in itertools.pairwise(starts))
    assert tile_starts(tile, tile, overlap) == [0]


def test_what_does_not_look_around_is_the_same_in_tiles():
    x = torch.rand(2, 3, 50, 37)
    seen = []

    def mean(part):
        seen.append(tuple(part.shape[2:]))
        return part.mean(1)

    torch.testing.assert_close(tiled(mean, x, 16, 5), x.mean(1))
    assert set(seen) == {(16, 16)}
    assert torch.equal(tiled(mean, x, 64, 5), x.mean(1))
    middle = tiled(lambda part: torch.ones_like(part[:, 0]) * part[0, 0, 0, 0], x, 30, 10)
    assert middle[:, 15].std() > 0  # where two tiles meet, both count
    places = iter((0.0, 1.0))
    across = tiled(lambda part: torch.full_like(part[:, 0], next(places)), x[..., :16, :24], 16, 8)
    shares = across[0, 0, 8:16]
    assert across[0, 0, 7] == 0
    assert across[0, 0, 16] == 1
    assert (shares.diff() > 0).all()  # a tile counts less towards its edge


def test_training_tiles_lie_around_pixels_of_the_mask():
    mask = torch.zeros(1, 40, 60, dtype=torch.bool)
    mask[0, 30, 50] = True
    one = Batch(torch.arange(2400.0).view(1, 1, 40, 60), ("a",), mask)
    made = cut_tile(one, np.random.default_rng(0), 16)
    assert made.image.shape == (1, 1, 16, 16)
    assert made.mask is not None
    assert made.mask[0, 30 - 22, 50 - 42]
    assert made.image[0, 0, 8, 8] == 30 * 60 + 50
    assert cut_tile(one, np.random.default_rng(0), 64) is one
    wide = cut_tile(one, np.random.default_rng(0), 50)
    assert wide.image.shape == (1, 1, 40, 50)
    assert wide.image[0, 0, 0, 0] == 10


def test_views_mirror_and_turn_images_with_their_masks():
    config = make_config(ReSynthDetect, "default", {**TINY, "rotation": 0})
    (one,) = eyes(1)
    seen = {
        view(one, np.random.default_rng(s), config).image.sum(1).mul(1e4).long().numpy().tobytes()
        for s in range(20)
    }
    assert len(seen) == 4
    still = make_config(ReSynthDetect, "default", {**TINY, "rotation": 0, "mirror": "none"})
    assert torch.equal(view(one, np.random.default_rng(0), still).image, one.image)
    turned = make_config(ReSynthDetect, "default", {**TINY, "rotation": 40, "mirror": "none"})
    made = view(one, np.random.default_rng(3), turned)
    assert made.mask is not None
    assert one.mask is not None
    agree = (made.image[:, 0] > 0.1) == made.mask
    assert agree.float().mean() > 0.95
    assert not torch.equal(made.mask, one.mask)


# -- the networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", ["none", "image", "features", "difference"])
def test_the_guide_reaches_the_logits_and_nothing_else_does(guide):
    torch.manual_seed(0)
    known, other = (Autoencoder(3, 3, depth=3).eval() for _ in range(2))
    net = GuidedUNet(3, guide, width=2, guide_width=3, depth=3).eval()
    x = torch.rand(2, 3, 20, 24)
    again, given = guidance(known, x, guide)
    y = net(x, given)
    assert y.shape == (2, 20, 24)
    same = torch.equal(net(x, guidance(other, x, guide)[1]), y)
    assert same is (guide == "none")
    assert (again is None) is (guide == "none")
    if again is not None:
        torch.testing.assert_close(again, known(x))
        torch.testing.assert_close(GuidedPair(known, net)(x)[0], y)


def test_features_that_do_not_differ_guide_to_nothing():
    class Mirror(Autoencoder):
        def features(self, x):
            return x, self.encoder(x), []

    net = Mirror(3, 2, depth=3).eval()
    known = guidance(net, torch.rand(1, 3, 16, 16), "difference")[1]
    assert isinstance(known, list)
    assert [tuple(k.shape) for k in known] == [(1, 2, 16, 16), (1, 4, 8, 8)]
    assert not any(k.any() for k in known)


# -- the fit -------------------------------------------------------------------------------------


def test_two_stages_are_trained_and_told(fitted):
    facts = fitted.facts
    assert (facts["images"], facts["trained_on"], facts["validated_on"]) == (9, 8, 1)
    assert facts["held_out"] == 3
    assert list(facts["stages"]) == ["reconstruction", "localisation"]
    assert facts["stages"]["reconstruction"]["steps"] == 4
    assert facts["textures"] == "healthy images"
    rows = list(csv.DictReader(io.StringIO(fitted.files()["training.csv"].decode())))
    for stage in facts["stages"]:
        values = [float(r["val"]) for r in rows if r["stage"] == stage and r["val"]]
        assert facts["stages"][stage]["best_val"] == min(values)
    assert fitted.files()["training.svg"].startswith(b"<svg")
    assert "guide features" in fitted.summary()


def test_losses_fall():
    long = fit_on(eyes(8), max_steps=60, reconstruction_steps=40, validate_every=20)
    rows = list(csv.DictReader(io.StringIO(long.files()["training.csv"].decode())))
    for stage in ("reconstruction", "localisation"):
        values = [float(r["val"]) for r in rows if r["stage"] == stage and r["val"]]
        assert values[-1] < 0.8 * values[0]


def test_the_reconstruction_is_frozen_while_it_guides():
    alone = fit_on(eyes(8), max_steps=1)
    more = fit_on(eyes(8), max_steps=6)
    names = [k for k in alone.state().weights if k.startswith("reconstruction/")]
    assert any("running_mean" in k for k in names)
    assert all(torch.equal(alone.state().weights[k], more.state().weights[k]) for k in names)


def test_what_guides_is_the_best_reconstruction_not_the_last(monkeypatch):
    def worse_and_worse(self, turn):
        return {"loss": torch.tensor(float(turn.step * len(turn.index)))}

    monkeypatch.setattr(ReconstructionStage, "validate", worse_and_worse)
    long = fit_on(eyes(8), reconstruction_steps=4, rate_drops=())
    assert long.facts["stages"]["reconstruction"]["best_step"] == 2
    short = fit_on(eyes(8), reconstruction_steps=2, rate_drops=())
    assert all(torch.equal(v, long.state().weights[k]) for k, v in short.state().weights.items())


def test_joint_training_moves_both_networks_at_once():
    options = {"preset": "draem-default", "textures": "healthy"}
    one, two = (fit_on(eyes(8), max_steps=n, **options) for n in (1, 3))
    assert list(one.facts["stages"]) == ["localisation"]
    for name in ("reconstruction", "localisation"):
        key = next(k for k in one.state().weights if k.startswith(f"{name}/"))
        assert not torch.equal(one.state().weights[key], two.state().weights[key])


def test_textures_come_from_other_images_where_asked():
    kept = fit_on(eyes(6), textures="external")
    assert kept.facts["textures"].startswith("everyday pictures")
    given = fit_on(eyes(6), textures="external", external=eyes(2, start=70))
    assert given.facts["textures"] == "given"
    key = next(iter(kept.state().weights))
    local = [k for k in kept.state().weights if k.startswith("localisation/")]
    assert key.startswith("reconstruction/")
    assert not all(torch.equal(kept.state().weights[k], given.state().weights[k]) for k in local)
    with pytest.raises(ConfigError, match="as many channels"):
        fit_on(eyes(6), textures="external", external=batches(2))


def test_held_out_images_are_those_of_one_fold_that_nothing_learned_from(fitted):
    held = fitted.held_out_
    assert held.id == ("0", "4", "8")
    assert "trained or validated on" in held.rule
    (probe,) = eyes(1)
    assert held.score[0] == pytest.approx(fitted.score(probe).image.item(), rel=1e-5)
    assert len(held.pixels) == int(sum(b.mask.sum() for b in eyes(12)[::4]))
    changed = eyes(12, changed=("0", "4", "8"))
    again = fit_on(changed, folds={str(i): i % 4 for i in range(12)})
    assert all(torch.equal(v, again.state().weights[k]) for k, v in fitted.state().weights.items())


def test_the_same_seed_makes_the_same_weights_and_another_others():
    first, again, other = (fit_on(eyes(6), seed=s) for s in (0, 0, 1))
    for k, v in first.state().weights.items():
        assert torch.equal(v, again.state().weights[k])
    moved = [
        k for k, v in first.state().weights.items() if not torch.equal(v, other.state().weights[k])
    ]
    assert moved


# -- scores --------------------------------------------------------------------------------------


def test_a_score_depends_on_its_image_alone(fitted):
    parts = eyes(5, start=40)
    whole = Batch(
        torch.cat([p.image for p in parts]),
        tuple("abcde"),
        torch.cat([p.mask for p in parts if p.mask is not None]),
    )
    together = fitted.score(whole)
    assert together.map.shape == (5, 32, 32)
    assert 0 <= together.map.min() <= together.map.max() <= 1
    for i, part in enumerate(parts):
        alone = fitted.score(part)
        torch.testing.assert_close(alone.image[0], together.image[i], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(alone.map[0], together.map[i], rtol=1e-4, atol=1e-6)


def test_what_lies_outside_the_mask_is_not_in_the_image_score(fitted):
    for how in ("pooled", "max", "top"):
        config = make_config(ReSynthDetect, "default", {**TINY, "image_score": how})
        map_ = torch.rand(2, 32, 32)
        mask = torch.zeros(2, 32, 32, dtype=torch.bool)
        mask[:, 8:20, 8:20] = True
        inside = map_.masked_fill(~mask, 0)
        got = image_score(inside, mask, config)
        if how == "max":
            want = map_[:, 8:20, 8:20].flatten(1).amax(1)
        elif how == "pooled":
            want = nnf.avg_pool2d(inside[:, None], 5, 1, 2).flatten(1).amax(1)
        else:
            want = map_[:, 8:20, 8:20].flatten(1).amax(1)  # a thousandth of 144 pixels is one
        torch.testing.assert_close(got, want)
    top = make_config(
        ReSynthDetect, "default", {**TINY, "image_score": "top", "top_fraction": 0.25}
    )
    want = map_[:, 8:20, 8:20].flatten(1).sort(1).values[:, -36:].mean(1)
    torch.testing.assert_close(image_score(inside, mask, top), want)


def test_no_pixel_outside_the_mask_scores(fitted):
    (probe,) = eyes(1, start=60)
    assert probe.mask is not None
    whole = fitted.score(Batch(probe.image, probe.id))
    assert whole.map is not None
    peak = int(whole.map.argmax())
    mask = torch.ones(1, 32 * 32, dtype=torch.bool)
    y, x = divmod(peak, 32)
    far = (torch.arange(32)[:, None] - y).abs().maximum((torch.arange(32)[None] - x).abs()) > 8
    mask &= far.flatten()
    inside = fitted.score(Batch(probe.image, probe.id, mask.view(1, 32, 32)))
    cut = whole.map.masked_fill(~mask.view(1, 32, 32), 0)
    want = nnf.avg_pool2d(cut[:, None], 5, 1, 2).amax()
    torch.testing.assert_close(inside.image[0], want)
    assert inside.image[0] < whole.image[0]


def test_larger_images_are_trained_on_and_scored_in_tiles():
    big = [Batch(torch.cat([b.image] * 2, 2).repeat(1, 1, 1, 2), b.id) for b in eyes(6)]
    found = fit_on(big, image_size=64, tile=32, overlap=8)
    scores = found.score(big[0])
    assert scores.map.shape == (1, 64, 64)
    assert found.facts["shape"] == [3, 64, 64]


def test_a_bundle_scores_the_same_bit_for_bit(fitted, tmp_path):
    (probe,) = eyes(1, start=30)
    config = fitted.config
    again = ReSynthDetect.from_state(config, fitted.state())
    assert torch.equal(again.score(probe).map, fitted.score(probe).map)
    assert torch.equal(again.score(probe).image, fitted.score(probe).image)
    images = np.stack([photograph(i, 64) for i in range(8)])
    settings = {k: v for k, v in TINY.items() if k != "pool"}
    detector = fundad_fast.ReSynthDetect("quick", fov="none", **settings).fit(images)
    detector.save(tmp_path / "model")
    loaded = fundad_fast.load(tmp_path / "model")
    a, b = detector.score(images[:3]), loaded.score(images[:3])
    assert torch.equal(a.map, b.map)
    assert torch.equal(a.image, b.image)
    assert loaded.threshold_ == detector.threshold_
    assert (tmp_path / "model" / "training.svg").exists()


# -- resuming ------------------------------------------------------------------------------------


def test_a_fit_killed_in_its_second_stage_ends_with_the_same_weights(tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(
        [sys.executable, small_resynth.__file__, str(tmp_path)], env=env, capture_output=True
    )
    assert child.returncode == -signal.SIGKILL
    (work,) = tmp_path.iterdir()
    assert sorted(p.name for p in work.iterdir()) == ["localisation", "reconstruction"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed = fit_on(eyes(8), scratch=tmp_path)
        whole = fit_on(eyes(8))
    finally:
        torch.set_num_threads(threads)
    assert resumed.facts["stages"]["localisation"]["steps"] == 6
    for k, v in whole.state().weights.items():
        assert torch.equal(v, resumed.state().weights[k]), k
    fit_on(eyes(8), scratch=tmp_path, tau=0.0)
    assert len(list(tmp_path.iterdir())) == 2  # other settings do not go on with it


# -- refusals ------------------------------------------------------------------------------------


def test_refusals_say_what_to_do():
    with pytest.raises(ConfigError, match="no healthy image"):
        fit_on([])
    with pytest.raises(ConfigError, match="one healthy image to learn from.*a few dozen"):
        fit_on(eyes(1))
    with pytest.raises(ConfigError, match="2 healthy images"):
        fit_on(eyes(2))
    same = [Batch(eyes(1)[0].image, (str(i),), eyes(1)[0].mask) for i in range(4)]
    with pytest.raises(ConfigError, match="all the same"):
        fit_on(same)
    with pytest.raises(ConfigError, match="resynth takes images, no volumes"):
        fit_on(volumes(4))
    with pytest.raises(ConfigError, match="one or three channels"):
        fit_on([Batch(torch.rand(1, 2, 32, 32), (str(i),)) for i in range(4)])
    with pytest.raises(ConfigError, match="leave out weights"):
        ReSynthDetect(make_config(ReSynthDetect), weights="resnet18.safetensors")
    with pytest.raises(RuntimeError, match="not fitted"):
        ReSynthDetect(make_config(ReSynthDetect)).score(eyes(1)[0])
    for wrong, said in (
        ({"overlap": 32, "tile": 32}, "overlap"),
        ({"pool": 4}, "odd"),
        ({"stages": "joint", "guide": "none"}, "joint"),
        ({"depth": 6, "tile": 32, "overlap": 0}, "depth=6"),
        ({"generator": {"masks": "stars"}}, "'lesions' or 'perlin'"),
    ):
        with pytest.raises(ConfigError, match=said):
            make_config(ReSynthDetect, "default", wrong)


def test_presets_say_what_they_are():
    assert set(ReSynthDetect.presets) >= {"paper", "default", "quick", "draem"}
    for preset in ReSynthDetect.presets:
        make_config(ReSynthDetect, preset)
    paper = make_config(ReSynthDetect, "paper")
    assert (paper.image_size, paper.guide, paper.stages, paper.tau) == (512, "features", "two", 2)
    for name, field in ReSynthDetect.Config.model_fields.items():
        assert field.description, name


def test_the_command_refuses_photographs_without_a_field_of_view(tmp_path):
    folder = tmp_path / "healthy"
    folder.mkdir()
    for i in range(6):
        grey = np.random.default_rng(i).integers(90, 160, (64, 64, 3), np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), grey)
    small = [f"--set={k}={json.dumps(v)}" for k, v in TINY.items()]
    said = call("fit", folder, "-m", "resynth", "-o", tmp_path / "model", *small, code=2)
    assert "fit with fov=none for other images" in said
    call("fit", folder, "-m", "resynth", "-o", tmp_path / "model", "--set=fov=none", *small)


@pytest.mark.parametrize("method", ["resynth", "proxyano"])
def test_the_commands_go_from_photographs_to_figures_and_a_page(tmp_path, method):
    data = tmp_path / "pack"
    for folder, seeds in (("train/good", range(6)), ("test/good", (6, 7)), ("test/sick", (8, 9))):
        (data / folder).mkdir(parents=True)
        for seed in seeds:
            picture = photograph(seed, size=64, lesion=folder == "test/sick")
            cv2.imwrite(str(data / folder / f"{seed}.png"), picture[..., ::-1])
            if folder == "test/sick":
                (data / "ground_truth/sick").mkdir(parents=True, exist_ok=True)
                mask = np.uint8(255 * (picture[..., 2] > 120))
                cv2.imwrite(str(data / f"ground_truth/sick/{seed}_mask.png"), mask)
    tiny = TINY if method == "resynth" else {**small_proxies.PROXY, "fov": "auto"}
    small = [f"--set={k}={json.dumps(v)}" for k, v in tiny.items()]
    model, run = tmp_path / "model", tmp_path / "run"
    said = call("fit", data, "-m", method, "-o", model, *small)
    assert "image threshold" in said
    call("eval", data, "-m", model, "-o", run, "--intervals", "0", "--overlays", "1")
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    assert metrics["pixel_AP"]["n"] == 4
    assert 0 < metrics["pixel_AP"]["value"] <= 1
    assert method in (run / "report.html").read_text()
    assert len(list((run / "overlays").glob("*.jpg"))) == 1
    assert (model / "training.svg").is_file()
