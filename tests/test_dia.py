# SPDX-License-Identifier: Apache-2.0
"""DIA: the fit and what comes of it, resuming, refusals; a method without maps, downstream."""

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import small_dia
import torch
from cohorts import photograph
from commands import call, rows
from small_dia import TINY, fit_on
from small_tasks import batches

import fundad_fast
from fundad_fast import diffusion
from fundad_fast.backbones import WeightsError
from fundad_fast.batch import Batch
from fundad_fast.diffusion import load_denoiser, make_denoiser, save_denoiser
from fundad_fast.methods import DIA, ConfigError, make_config
from fundad_fast.methods.dia_training import ContrastRecipe, DenoisingRecipe
from fundad_fast.methods.image_store import ImageStore
from fundad_fast.nets import ContrastNet
from fundad_fast.synthetic import cosine_kept
from fundad_fast.training import LoopSettings, Team, train

FOLDS = {str(i): i % 4 for i in range(8)}
pytestmark = pytest.mark.filterwarnings("ignore:the network does not know shifts apart")


def store_of(n, channels=1, side=32):
    store = ImageStore(2**30)
    for batch in batches(n, channels=channels):
        store.add(Batch(batch.image[..., :side, :side], batch.id))
    return store


@pytest.fixture(scope="module")
def fitted():
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    return fit_on(batches(8, channels=3), folds=FOLDS)


# -- the diffusion model -------------------------------------------------------------------------


def test_a_model_of_diffusers_from_numbers_and_from_a_folder(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    net = make_denoiser(3, resolution=16, width=8, multipliers=(1, 2), blocks=1).eval()
    torch.testing.assert_close(net.kept, cosine_kept(), rtol=1e-4, atol=1e-8)
    x, t = torch.rand(2, 3, 16, 16), torch.tensor([3, 900])
    scheduler = diffusers.DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    diffusers.DDPMPipeline(net.unet, scheduler).save_pretrained(tmp_path / "ddpm")
    back = load_denoiser(tmp_path / "ddpm").eval()
    assert (back.resolution, back.channels) == (16, 3)
    assert torch.equal(back(x, t), net(x, t))
    assert torch.equal(back.kept, net.kept)
    save_denoiser(back, tmp_path / "saved" / "ddpm")
    again = load_denoiser(tmp_path / "saved" / "ddpm").eval()
    assert torch.equal(again(x, t), net(x, t))
    assert torch.equal(again.kept, net.kept)
    back.kept[3] *= 0.99
    with pytest.raises(WeightsError, match="only models with the cosine schedule"):
        save_denoiser(back, tmp_path / "other")
    back.kept[3] = net.kept[3]
    grey = back(x[:, :1], t)
    want = net(x[:, :1].expand(-1, 3, -1, -1), t).mean(1, keepdim=True)
    assert torch.equal(grey, want)
    assert not torch.equal(net(x, torch.tensor([3, 3]))[1], net(x, t)[1])
    with pytest.raises(WeightsError, match="cannot be halved 2 times"):
        make_denoiser(1, resolution=18, width=8, multipliers=(1, 2, 4))
    with pytest.raises(WeightsError, match="multiple of 8"):
        make_denoiser(1, width=12)
    with pytest.raises(WeightsError, match="which holds unet/ and scheduler/"):
        load_denoiser(tmp_path)
    other = diffusers.DDPMScheduler(10, prediction_type="sample")
    diffusers.DDPMPipeline(net.unet, other).save_pretrained(tmp_path / "sample")
    with pytest.raises(WeightsError, match="predicts 'sample'; want the noise"):
        load_denoiser(tmp_path / "sample")
    (tmp_path / "ddpm/unet/diffusion_pytorch_model.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="cannot read it"):
        load_denoiser(tmp_path / "ddpm")


def test_the_noise_that_was_added_is_what_is_learned():
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    config = make_config(DIA, "quick", {**TINY, "ema_every": 10, "diffusion_rate": 3e-3})

    class Half(torch.nn.Module):
        """Says w times the image: the best w for an image of nothing but noise is known."""

        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, t, return_dict):
            return (self.w * x,)

    def trained(kept, steps, every):
        net = diffusion.Denoiser(
            Half(), torch.full((1000,), kept), {"sample_size": 16, "in_channels": 1}
        )
        store = ImageStore(2**30)
        for i in range(8):
            store.add(Batch(torch.full((1, 1, 16, 16), 0.5), (str(i),)))  # 0 for the model
        recipe = DenoisingRecipe(config.model_copy(update={"ema_every": every}), net, store)
        team = Team(torch.device("cpu"))
        return train(recipe, LoopSettings(batch_size=8, max_steps=steps, seed=1), team).weights

    # x_t = sqrt(1 - kept) * noise, so w goes to 1 / sqrt(1 - kept).
    weights = trained(0.75, 1200, 1)
    assert weights["net"]["unet.w"].item() == pytest.approx(2, abs=0.02)
    early = trained(0.75, 99, 10)
    assert early["ema"]["unet.w"].item() == trained(0.75, 90, 10)["net"]["unet.w"].item()
    later = trained(0.75, 200, 10)
    assert 0 < later["ema"]["unet.w"] < later["net"]["unet.w"]


# -- the contrast --------------------------------------------------------------------------------


def test_the_network_sees_two_views_and_the_dissolved_shift_by_shift():
    config = make_config(
        DIA, "quick", {**TINY, "crop": (1.0, 1.0), "t_per": "image", "shift": "cutperm"}
    )
    store, calls = store_of(6), []

    def change(image, t):
        calls.append((image, t))
        return 1 - image

    net = ContrastNet(1, width=4)
    recipe = ContrastRecipe(config, net, store, change, steps=10)
    seen = []
    own = recipe.stacked
    recipe.stacked = lambda turn: seen.append((turn.index, own(turn))) or seen[-1][1]
    net.register_forward_pre_hook(lambda module, args: calls.append(args[0]))
    train(recipe, LoopSettings(batch_size=4, max_steps=1), Team(torch.device("cpu")))
    (index, stack), ((before, t), given) = seen[0], calls
    assert torch.equal(given, stack)
    assert stack.shape == (48, 1, 32, 32)
    assert t.shape == (16,)
    assert len(set(t.tolist())) > 4
    assert ((t >= 30) & (t <= 99)).all()
    x = store.get(index, torch.device("cpu")).image.repeat(4, 1, 1, 1)
    flipped = (before == x.flip(-1)).flatten(1).all(1)
    assert ((before == x).flatten(1).all(1) | flipped).all()
    assert 0 < flipped.sum() < 16


def test_one_time_step_for_all_images_of_a_shift_and_classes_in_order():
    config = make_config(DIA, "quick", TINY)
    steps = []

    def change(image, t):
        steps.append(t.view(4, -1))
        return image

    class Knows(ContrastNet):
        """Says the shift that the order of the rows gives away."""

        def forward(self, x):
            z, logits = super().forward(x)
            kind = torch.arange(4).repeat_interleave(4).repeat(3)
            return z, 0 * logits + 50.0 * torch.eye(4)[kind]

    recipe = ContrastRecipe(config, Knows(1, width=4), store_of(4), change, steps=10)
    outcome = train(recipe, LoopSettings(batch_size=4, max_steps=3), Team(torch.device("cpu")))
    assert all((t == t[:, :1]).all() for t in steps)
    assert len({int(v) for t in steps for v in t[:, 0]}) > 4
    assert outcome.history[-1]["shift"] == pytest.approx(0, abs=1e-6)
    assert outcome.history[-1]["shift_right"] == 1
    assert recipe.rate(0) == 10  # a twentieth of 10 steps is rounded to none
    assert ContrastRecipe(config, Knows(1, width=4), store_of(4), None, 100).rate(0) == 1


def test_shifts_are_learned():
    method = fit_on(
        batches(8), dissolve="none", shift="cutperm", max_steps=60, width=8, crop=(0.7, 1.0)
    )
    rows = list(csv.DictReader(io.StringIO(method.files()["training.csv"].decode())))
    right = [float(row["shift_right"]) for row in rows]
    assert right[-1] > 0.8
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert (method._axes.shi > 0).all()


# -- the fit -------------------------------------------------------------------------------------


def test_what_was_made_is_told_and_one_fold_is_held_out(fitted):
    facts = fitted.facts
    assert (facts["images"], facts["held_out"], facts["shape"]) == (6, 2, [3, 32, 32])
    assert facts["dissolves"] == "diffusion model of 16 pixels, trained here (raw weights)"
    assert "no labelled image was looked at" in facts["selection"]
    assert fitted.held_out_.id == ("0", "4")
    assert fitted.held_out_.pixels is None
    assert "nothing was trained on" in fitted.held_out_.rule
    again = fit_on(batches(8, channels=3, changed=("0", "4")), folds=FOLDS)
    want, got = fitted.state(), again.state()
    assert all(torch.equal(v, got.weights[k]) for k, v in want.weights.items())
    assert all(torch.equal(v, got.bank[k]) for k, v in want.bank.items())
    assert not np.array_equal(again.held_out_.score, fitted.held_out_.score)
    probe = batches(1, channels=3)[0]
    assert fitted.held_out_.score[0] == pytest.approx(fitted.score(probe).image.item(), rel=1e-4)


def test_scores_are_negated_and_do_not_depend_on_the_batch(fitted):
    batch = Batch(torch.cat([b.image for b in batches(5, 50, channels=3)]), tuple("abcde"))
    whole = fitted.score(batch)
    assert whole.map is None
    normal = fitted._axes.normality(*fitted._features(batch.image))
    torch.testing.assert_close(whole.image, -normal.float())
    for i in range(5):
        one = fitted.score(batch[i : i + 1])
        assert one.image.item() == pytest.approx(whole.image[i].item(), rel=1e-5)
    learned = [fitted.score(b).image.item() for b in batches(8, channels=3) if b.id[0] not in "04"]
    assert np.mean(learned) < -1


def test_the_state_scores_the_same_bit_for_bit_and_dissolves_the_same(fitted):
    state = fitted.state()
    back = DIA.from_state(fitted.config, state)
    batch = batches(1, 50, channels=3)[0]
    assert torch.equal(back.score(batch).image, fitted.score(batch).image)
    assert back._denoiser is None  # scoring has no use for it
    x, t = torch.rand(2, 3, 16, 16), torch.tensor([30, 60])
    assert torch.equal(back.denoiser(x, t), fitted.denoiser(x, t))
    again = DIA.from_state(fitted.config, state).state()
    assert again.weights.keys() == state.weights.keys()
    assert json.loads(json.dumps(state.facts)) == state.facts


def test_variants_of_dissolving(fitted, tmp_path):
    weights = {
        "diffusion": fitted,
        "csi": fit_on(batches(8, channels=3), preset="csi", folds=FOLDS),
        "blur": fit_on(batches(8, channels=3), preset="blur", folds=FOLDS),
        "ema": fit_on(batches(8, channels=3), diffusion_weights="ema", folds=FOLDS),
        "range": fit_on(batches(8, channels=3), compat_no_rescale=True, folds=FOLDS),
    }
    ends = {name: m.state().weights["net/shift.weight"] for name, m in weights.items()}
    names = list(ends)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            same = torch.equal(ends[a], ends[b])
            # After five steps the moving average is still a copy, made at the fourth.
            assert not same, (a, b)
    assert weights["csi"].facts["dissolves"] == "nothing (CSI)"
    assert "Gaussian blur, sigma 1.0 at 16 pixels" in weights["blur"].facts["dissolves"]
    assert not [k for k in weights["csi"].state().weights if k.startswith("denoiser")]


def test_a_given_diffusion_model_is_used_in_place_of_training_one(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    net = make_denoiser(3, resolution=8, width=8, multipliers=(1, 1), blocks=1)
    scheduler = diffusers.DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    diffusers.DDPMPipeline(net.unet, scheduler).save_pretrained(tmp_path / "ddpm")
    method = fit_on(batches(6), weights=tmp_path / "ddpm")  # grey images, a model of colours
    assert method.facts["dissolves"] == "diffusion model of 8 pixels, given"
    assert "diffusion" not in method.facts
    kept = method.state().weights
    assert torch.equal(kept["denoiser/unet.conv_in.weight"], net.unet.conv_in.weight)
    with pytest.raises(ConfigError, match="has no diffusion model; leave out weights"):
        DIA(make_config(DIA, "csi"), weights=tmp_path / "ddpm")
    grey = make_denoiser(1, resolution=8, width=8, multipliers=(1, 1), blocks=1)
    diffusers.DDPMPipeline(grey.unet, scheduler).save_pretrained(tmp_path / "grey")
    with pytest.raises(ConfigError, match="of 1 channels, these have 3"):
        fit_on(batches(6, channels=3), weights=tmp_path / "grey")


@pytest.mark.parametrize("flat", [False, True])
def test_models_of_other_schedules_and_older_folders_are_taken(tmp_path, flat):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    net = make_denoiser(1, resolution=8, width=8, multipliers=(1, 1), blocks=1)
    scheduler = diffusers.DDPMScheduler(100, beta_schedule="linear", beta_end=0.1)
    folder = tmp_path / "ddpm"
    if flat:
        net.unet.save_pretrained(folder)
        scheduler.save_pretrained(folder)
    else:
        diffusers.DDPMPipeline(net.unet, scheduler).save_pretrained(folder)
    method = fit_on(batches(6), weights=folder, map="dissolve", map_t=99)
    want = torch.linspace(1e-4, 0.1, 100, dtype=torch.float64).mul(-1).add(1).cumprod(0)
    torch.testing.assert_close(method.denoiser.kept, want, rtol=1e-4, atol=1e-8)
    back = DIA.from_state(method.config, method.state())
    batch = batches(1, 50)[0]
    # The last step keeps so little that any other rounding of the network's would show.
    assert torch.equal(back.score(batch).map, method.score(batch).map)
    for settings in ({"t_upper": 1.01}, {"map": "dissolve", "map_t": 100}):
        with pytest.raises(ConfigError, match="has 100 time steps, and 101 are wanted"):
            fit_on(batches(6), weights=folder, **settings)


@pytest.mark.parametrize("resolution", [32, 64, 128])
def test_the_papers_resolutions(resolution):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    c = make_config(DIA, "paper", {"resolution": resolution, "diffusion_width": 8})
    net = DIA(c)._new_denoiser(3)
    assert net.resolution == resolution
    if resolution > 64:  # attention at full resolution is not for a test
        return
    assert net(torch.rand(1, 3, resolution, resolution), torch.tensor([40])).isfinite().all()


def test_without_diffusers_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(WeightsError, match=r"pip install 'fundad-fast\[diffusion\]'; or choose"):
        fit_on(batches(4))
    method = fit_on(batches(6), dissolve="blur")
    assert math.isfinite(method.score(batches(1)[0]).image.item())


def test_the_map_is_what_dissolving_changes_and_no_part_of_the_score(fitted):
    mapped = fit_on(batches(8, channels=3), map="dissolve", folds=FOLDS)
    batch = batches(1, 50, channels=3)[0]
    scores = mapped.score(batch)
    assert scores.image.item() == fitted.score(batch).image.item()
    assert scores.map.shape == (1, 32, 32)
    t = torch.tensor([100])
    gone = (batch.image - mapped._dissolver()(batch.image, t)).abs().mean(1)
    torch.testing.assert_close(scores.map, gone)
    assert len(mapped.held_out_.pixels) == 2 * 32 * 32


def test_what_lies_outside_a_mask_does_not_count():
    method = fit_on(batches(6, masked=True), dissolve="blur", map="dissolve")
    batch = batches(1, 50, masked=True)[0]
    other = batch.image.clone()
    other[:, 0][~batch.mask] = 0.9
    a, b = method.score(batch), method.score(Batch(other, batch.id, batch.mask))
    assert a.image.item() == b.image.item()
    assert torch.equal(a.map, b.map)


@pytest.mark.parametrize(
    ("recipe", "how"),
    [
        ("ContrastRecipe", "blur"),
        pytest.param("ContrastRecipe", "diffusion", marks=pytest.mark.slow),
        pytest.param("DenoisingRecipe", "diffusion", marks=pytest.mark.slow),
    ],
)
def test_after_a_kill_the_models_end_as_if_nothing_had_been(tmp_path, recipe, how):
    if how == "diffusion":
        pytest.importorskip("diffusers", reason="diffusers is not installed")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, small_dia.__file__, tmp_path, recipe, how],
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = {path.parent.name.split("-")[0] for path in tmp_path.glob("*/checkpoint.safetensors")}
    assert left == ({"diffusion"} if how == "diffusion" else set()) | (
        {"contrast"} if recipe == "ContrastRecipe" else set()
    )
    torch.set_num_threads(1)
    again = fit_on(batches(6), scratch=tmp_path, dissolve=how)
    whole = fit_on(batches(6), dissolve=how)
    for name, want in whole.state().weights.items():
        assert torch.equal(again.state().weights[name], want), name


def test_a_second_fit_with_another_contrast_finds_the_diffusion_model(fitted, tmp_path):
    a = fit_on(batches(6), scratch=tmp_path)
    b = fit_on(batches(6), scratch=tmp_path, temperature=0.2, train_batch=3)
    names = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert names == ["contrast", "contrast", "diffusion"]
    wa, wb = a.state().weights, b.state().weights
    assert torch.equal(wa["denoiser/unet.conv_in.weight"], wb["denoiser/unet.conv_in.weight"])
    assert not torch.equal(wa["net/shift.weight"], wb["net/shift.weight"])
    fit_on(batches(6), scratch=tmp_path, diffusion_rate=0.01)
    assert len(list(tmp_path.glob("diffusion-*"))) == 2


# -- refusals and plans --------------------------------------------------------------------------


def test_what_cannot_be_learned_from_is_refused_with_advice():
    for given, says in (
        ([], "no healthy image"),
        (batches(1), "one healthy image"),
        ([Batch(torch.ones(1, 1, 32, 32), (str(i),)) for i in range(3)], "3 healthy.*all the same"),
        ([Batch(torch.rand(1, 1, 8, 8, 8), (str(i),)) for i in range(3)], "no volumes"),
    ):
        with pytest.raises(ConfigError, match=says):
            fit_on(given, dissolve="none")
    with pytest.raises(RuntimeError, match="not fitted"):
        DIA(make_config(DIA)).score(batches(1)[0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"crop": (0.5, 0.2)}, "want shares in order"),
        ({"view_scale": (0, 0.5)}, "want shares in order"),
        ({"t_offset": 0.9, "t_upper": 0.5}, "t_offset < t_upper"),
        ({"t_scale": 900, "t_upper": 1.2}, "t_scale \\* t_upper <= 1000"),
        ({"dissolve": "none", "map": "dissolve"}, "map=dissolve needs"),
        ({"temperature": 0}, "temperature"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        make_config(DIA, "default", settings)


def test_presets_are_the_papers_numbers():
    c = make_config(DIA, "paper")
    assert (c.resolution, c.diffusion_width, c.diffusion_multipliers) == (32, 64, (1, 2, 4, 8))
    assert (c.diffusion_rate, c.diffusion_batch, c.ema, c.ema_every) == (8e-5, 512, 0.995, 10)
    assert (c.t_offset, c.t_upper, c.t_scale, c.diffusion_weights) == (0.3, 1.0, 100, "raw")
    assert (c.temperature, c.exclusion, c.shift, c.stem) == (
        0.5,
        "shifted_removed",
        "rotation",
        "imagenet",
    )
    assert (c.learning_rate, c.momentum, c.weight_decay, c.trust) == (0.1, 0.9, 1e-6, 0.001)
    assert (c.train_batch, c.epochs, c.iterations, c.views, c.view_scale) == (
        32,
        1000,
        200,
        10,
        (0.54, 0.54),
    )
    assert DIA(c)._steps(10_000) == 200_000
    assert DIA(c)._steps(320) == 10_000
    assert DIA(c)._steps(5) == 1000
    assert make_config(DIA, "csi").dissolve == "none"
    assert make_config(DIA, "blur").dissolve == "blur"


def test_a_plan_counts_networks_steps_and_memory():
    plan = DIA(make_config(DIA, "quick", TINY)).plan(images=100, folds=5)
    assert "5 steps of 4 images (48 pictures) each" in plan.lines[0]
    assert plan.lines[1].startswith("a diffusion model of ")
    assert plan.lines[2].startswith("80 of 100 images")
    bare = DIA(make_config(DIA, "quick", {**TINY, "dissolve": "none"})).plan(100, 0)
    assert "(32 pictures)" in bare.lines[0]
    assert len(bare.lines) == 2
    assert 0 < bare.bundle < plan.bundle


# -- downstream, without maps --------------------------------------------------------------------


@pytest.fixture
def labelled(tmp_path):
    for number, (folder, n) in enumerate([("train/good", 8), ("test/good", 3), ("test/spot", 3)]):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for i in range(n):
            image = photograph(100 * number + i, lesion="spot" in folder)
            cv2.imwrite(str(tmp_path / "data" / folder / f"{i}.png"), image)
    settings = [f"{k}={json.dumps(v)}" for k, v in TINY.items()]
    args = ["fit", tmp_path / "data", "-m", "dia", "--preset", "quick", "--folds", 4]
    return tmp_path, [*args, *(x for pair in settings for x in ("--set", pair))]


def test_the_command_line_fits_scores_reports_and_dissolves(labelled):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    folder, args = labelled
    said = call(*args, "-o", folder / "model", "--dry-run")
    assert "a diffusion model of" in said
    said = call(*args, "-o", folder / "model")
    assert "image threshold" in said
    assert "no pixel threshold: the scores have no map" in said
    assert "dissolves by: diffusion model of 16 pixels, trained here" in said
    card = (folder / "model" / "MODEL_CARD.md").read_text()
    assert "Scores are CSI's, negated" in card
    said = call("eval", folder / "data", "-m", folder / "model", "-o", folder / "run")
    assert "image_AUROC" in said
    found = rows(folder / "run")
    assert len(found) == 6
    for row in found:
        assert row["status"] == "ok"
        assert math.isfinite(row["score"])
        assert row["map_path"] is None
        assert not row["regions"]
        assert row["pred_label"] in (0, 1)
    assert not list((folder / "run").glob("maps/**/*.npz"))
    metrics = json.loads((folder / "run/metrics.json").read_text())["metrics"]
    assert not [name for name in metrics if name.startswith("pixel")]
    page = (folder / "run/report.html").read_text()
    assert "AUROC" in page
    assert "above the pixel threshold" not in page
    call("score", folder / "data/test", "-m", folder / "model", "-o", folder / "scored")
    assert len(rows(folder / "scored")) == 6
    call("report", folder / "scored")
    det = fundad_fast.load(folder / "model")
    scores = det.score(str(folder / "data/test"))
    assert scores.map is None
    by_id = {row["id"]: row["score"] for row in rows(folder / "scored")}
    for name, score in zip(scores.id, scores.image.tolist()):
        assert by_id[name] == pytest.approx(score, rel=1e-5)
    image = folder / "data/test/spot/0.png"
    said = call(
        "dissolve", image, "-m", folder / "model", "-o", folder / "d.png", "--t", 50, "--t", 99
    )
    assert "t = 50: alpha_bar 0.9917" in said
    wide = cv2.imread(str(folder / "d.png"))
    assert wide.shape[1] > 3 * 160
    call("dissolve", image, "-m", folder / "model", "-o", folder / "e.png")
    assert cv2.imread(str(folder / "e.png")).shape[1] > 9 * 160
    for more, says in (
        (["-o", folder / "d.png", "-m", folder / "model"], "exists"),
        (["-o", folder / "x.jpg", "-m", folder / "model"], "ends in .png"),
        (["-o", folder / "x.png"], "say whose diffusion model"),
        (["-o", folder / "x.png", "--weights", folder], "which holds unet/"),
    ):
        assert says in call("dissolve", image, *more, code=2)
        assert not (folder / "x.png").exists()


def test_the_facade_has_its_name(tmp_path):
    x = np.stack([photograph(i) for i in range(8)])
    det = fundad_fast.DIA("csi", folds=4, **TINY).fit(x)
    assert det.bundle_.thresholds["pixel"] is None
    assert det.bundle_.colour_scale == {}
    probe = np.stack([photograph(40), photograph(41, lesion=True)])
    det.save(tmp_path / "model")
    again = fundad_fast.load(tmp_path / "model")
    np.testing.assert_array_equal(again.decision_function(probe), det.decision_function(probe))
    assert {"training.csv", "training.svg"} <= {p.name for p in (tmp_path / "model").iterdir()}
    assert set(again.predict(probe)) <= {0, 1}
