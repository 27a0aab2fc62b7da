# SPDX-License-Identifier: Apache-2.0
"""The synthetic tasks: what they do to images, by their plain form and by their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import task_reference
import torch
import torch.nn.functional as F
from scipy import ndimage

from fundad_fast.ops import OPS, change_labels, clean_labels
from fundad_fast.synthetic import (
    EXTRA_TASKS,
    TASKS,
    TaskSettings,
    deformation,
    embedded_external,
    intensity,
    synthesize,
)
from fundad_fast.synthetic.canvas import Canvas
from fundad_fast.synthetic.masks import Form, draw_form
from fundad_fast.synthetic.tasks import Inputs

SIZES = {"2-D": (2, 64, 80), "3-D": (1, 24, 32, 28)}  # channels, cells
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def smooth(*shape: int, seed: int = 0) -> torch.Tensor:
    """Images of smooth noise, about as wide as [-1, 1]."""
    g = torch.Generator().manual_seed(seed)
    coarse = [max(2, n // 5) for n in shape[2:]]
    mode = "bicubic" if len(coarse) == 2 else "trilinear"
    return F.interpolate(torch.randn(*shape[:2], *coarse, generator=g), shape[2:], mode=mode)


def pools(size: str, n: int = 3) -> dict[str, torch.Tensor]:
    shape = SIZES[size]
    return {
        "sources": smooth(n, *shape, seed=1),
        "external": 2 * smooth(n, shape[0], *(s + 9 for s in shape[1:]), seed=2),
    }


def ball(size: str) -> torch.Tensor:
    grids = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in SIZES[size][1:]), indexing="ij")
    return torch.stack(grids).square().sum(0) < 0.6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_what_its_plain_form_says(task, size, device):
    image, seeds = smooth(4, *SIZES[size]), [3, 5, 7, 11]
    given = pools(size) | {"mask": ball(size).expand(4, *SIZES[size][1:]).contiguous()}
    got = synthesize(
        image.to(device), [task] * 4, seeds=seeds, **{k: v.to(device) for k, v in given.items()}
    )
    after, want, mask = task_reference.synthesize(image, [task] * 4, seeds, **given)
    assert got.image.dtype == got.label.dtype == torch.float32
    np.testing.assert_allclose(got.image.cpu(), after, rtol=0, atol=2e-4)
    # A blended cell may change by just as much as makes it one of the mask.
    assert (got.mask.cpu().numpy() != mask).mean() < 2e-5
    np.testing.assert_allclose(got.label.cpu(), want, rtol=0, atol=2e-3)
    assert (got.image.cpu() != image).any((1, *range(2, image.dim()))).all()


@pytest.mark.parametrize("size", SIZES)
def test_a_sample_depends_on_its_seed_and_not_on_the_batch(size):
    tasks = [*TASKS, *EXTRA_TASKS]
    image, given = smooth(len(tasks), *SIZES[size]), pools(size)
    before = image.clone()
    seeds = [100 + i for i in range(len(tasks))]
    whole = synthesize(image, tasks, seeds=seeds, **given)
    assert torch.equal(image, before)
    assert not torch.equal(whole.image, image)
    for i, task in enumerate(tasks):
        alone = synthesize(image[i : i + 1], [task], seeds=[seeds[i]], **given)
        torch.testing.assert_close(alone.image[0], whole.image[i], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.label[0], whole.label[i], rtol=0, atol=1e-4)
        assert torch.equal(alone.mask[0], whole.mask[i])
        other = synthesize(image[i : i + 1], [task], seeds=[seeds[i] + 50], **given)
        assert not torch.equal(other.mask[0], whole.mask[i])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", [*TASKS, *EXTRA_TASKS])
def test_laws_of_every_task(task, size):
    image, given = smooth(8, *SIZES[size]), pools(size)
    settings = TaskSettings(clean_labels=False, min_size=0.2)  # medians leave thin boxes nothing
    got = synthesize(image, [task] * 8, seeds=range(8), settings=settings, **given)
    assert torch.isfinite(got.image).all()
    assert got.label.min() >= 0
    assert 0.02 < got.label.max() <= 1
    assert (got.label[~got.mask] == 0).all()
    untouched = (got.image == image).all(1)
    assert untouched[~got.mask].float().mean() > 0.97  # blending changes a little around a shape
    lanes, now = image.flatten(2), got.image.flatten(2)
    if task not in ("sink", "source", "fpi"):  # splines may swing over; FPI mixes
        assert (now.amin(2) >= lanes.amin(2)).all()
        assert (now.amax(2) <= lanes.amax(2)).all()


@pytest.mark.parametrize("task", TASKS)
def test_images_of_four_axes(task):
    image, pool = smooth4(2), smooth4(2, seed=1)
    given = {"sources": pool, "external": pool}
    settings = TaskSettings(max_size=0.5)
    got = synthesize(image, [task] * 2, seeds=[0, 1], settings=settings, **given)
    assert torch.isfinite(got.image).all()
    assert ((got.image != image)[:, 0] & got.mask).flatten(1).any(1).all()
    assert (got.label[~got.mask] == 0).float().mean() > 0.99
    if task in ("intra", "inter"):  # a sparse solve in four dimensions takes too long
        return
    after, want, mask = task_reference.synthesize(
        image, [task] * 2, [0, 1], settings=settings, **given
    )
    np.testing.assert_allclose(got.image, after, rtol=0, atol=2e-4)
    np.testing.assert_allclose(got.label, want, rtol=0, atol=2e-3)
    assert (got.mask.numpy() == mask).all()


def smooth4(n: int, seed: int = 0) -> torch.Tensor:
    waves = torch.rand(n, 4, generator=torch.Generator().manual_seed(seed))
    at = torch.meshgrid(*[torch.linspace(0, 3, k) for k in (16, 17, 16, 18)], indexing="ij")
    phase = torch.einsum("na,awxyz->nwxyz", 1 + waves, torch.stack(at))
    return phase.sin()[:, None]


def test_the_number_of_anomalies():
    image = smooth(1, 1, 16, 16).expand(2000, 1, 16, 16)
    rounds = Inputs(image, ["sink"] * 2000, range(2000), *[None] * 5).draw(TaskSettings())
    numbers = np.array([len(spots) for spots in rounds])
    assert len(numbers) == 4
    assert numbers.sum() / 2000 == pytest.approx(1.875, rel=0.03)
    np.testing.assert_allclose(numbers / 2000, [1, 0.5, 0.25, 0.125], atol=0.03)


# ------------------------------------------------------------------------------- sink and source


@pytest.mark.parametrize(
    "push, f", [(0.05, 1.336), (0.2, 3.376), (0.45, 58.4), (0.1, 1.794), (0.3, 7.213)]
)
def test_the_exponent_of_a_push(push, f):
    assert deformation.exponent(push) == pytest.approx(f, rel=1e-3)
    # Where curve and diagonal are farthest apart for f near 1, the curve lies `push` away.
    x = 0.5 + push
    assert (x - x ** deformation.exponent(push)) / 2 == pytest.approx(push)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["sink", "source"])
def test_a_deformation_keeps_the_box_and_its_centre(kind, size):
    image, moved = smooth(1, *SIZES[size]), 0
    for seed in range(16):
        settings = TaskSettings(max_anomalies=1)
        inputs = Inputs(image, [kind], [seed], *[None] * 5)
        (spot,) = inputs.draw(settings)[0]
        canvas = Canvas(image)
        deformation.deform(canvas, [spot])
        assert torch.isfinite(canvas.image).all()
        crop, before = canvas.crop(spot), image[(0, slice(None), *spot.box)]
        for axis in range(1, crop.dim()):
            for face in (0, -1):
                assert torch.equal(crop.select(axis, face), before.select(axis, face))
        outside = ~torch.from_numpy(spot.form.inside)
        assert torch.equal(crop[:, outside], before[:, outside])
        if spot.decision is None:  # a single cell
            assert spot.form.inside.sum() == 1
            continue
        at = (slice(None), *spot.decision.centre)
        assert spot.form.inside[spot.decision.centre]
        assert torch.equal(crop[at], before[at])
        moved += not torch.equal(crop, before)
    assert moved > 10


def test_halfway_a_sink_of_exponent_two_reads_at_three_quarters():
    """The paper's example, along an axis of a ball of radius 10 around its centre."""
    unit = np.eye(2)
    form = Form(True, (10.0, 10.0), unit, unit, np.ones((21, 21), bool))
    cells = np.array([10 * 21 + 15, 5 * 21 + 10, 10 * 21 + 0])
    for kind, share in (("sink", [0.75, 0.75, 1]), ("source", [0.25, 0.25, 1])):
        drawn = deformation.Deformation(kind, (10, 10), 2.0, cells)
        at = torch.from_numpy(deformation.positions(form, drawn))
        a, b, c = share
        want = torch.tensor([[10, 10 - 10 * b, 10], [10 + 10 * a, 10, 10 - 10 * c]])
        torch.testing.assert_close(at, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["sink", "source"])
def test_cells_beyond_the_surface_stay_where_they_are(kind):
    """As rounding may put some: a negative base would have no power."""
    unit = np.eye(2)
    form = Form(True, (10.0, 10.0), unit, unit, np.ones((21, 21), bool))
    cells = np.array([0, 20, 21 * 21 - 1, 1])
    at = deformation.positions(form, deformation.Deformation(kind, (10, 10), 2.5, cells))
    np.testing.assert_allclose(at, [[0, 0, 20, 0], [0, 20, 20, 1]], rtol=0, atol=1e-5)


def test_the_push_stays_within_its_limits():
    pushes = {}
    for low, high in ((0.5, 10.0), (0.5, 1.0), (6.0, 8.0), (90.0, 99.0), (1e-4, 1e-3)):
        settings = TaskSettings(g_min=low, g_max=high)
        rng, found = np.random.default_rng(0), []
        for _ in range(60):
            form = draw_form(rng, (96, 96), settings)
            drawn = deformation.draw(rng, form, "sink", settings)
            rim = form.inside & ~ndimage.binary_erosion(form.inside)
            offset = np.argwhere(rim) - np.array(drawn.centre)
            radius = np.sqrt((offset**2).sum(1)).mean()
            q = _push_of(drawn.exponent)
            found.append((q * math.sqrt(2) * radius, radius / math.sqrt(2)))
        pushes[low, high] = np.array(found).T
    for (low, high), (push, most) in pushes.items():
        want_low = np.minimum(np.maximum(0.1 * most, low), 0.9 * most)
        want_high = np.maximum(np.minimum(0.9 * most, high), 0.1 * most)
        assert (push >= want_low - 1e-6).all()
        assert (push <= want_high + 1e-6).all()
    np.testing.assert_allclose(pushes[90.0, 99.0][0], 0.9 * pushes[90.0, 99.0][1], rtol=1e-6)
    np.testing.assert_allclose(pushes[1e-4, 1e-3][0], 0.1 * pushes[1e-4, 1e-3][1], rtol=1e-6)


def test_centres_and_pushes_are_uniform():
    unit, inside = np.eye(2), np.ones((3, 5), bool)
    inside[0, :2] = False
    form = Form(False, (1.5, 2.5), unit, unit, inside)
    rng, counts, shares = np.random.default_rng(0), np.zeros((3, 5)), []
    for _ in range(3000):
        drawn = deformation.draw(rng, form, "sink", TaskSettings(g_min=1e-6))
        counts[drawn.centre] += 1
        # q is between 0.1 and 0.9 of its largest, a half: nothing else limits it here.
        shares.append((_push_of(drawn.exponent) / 0.5 - 0.1) / 0.8)
    assert (counts[~inside] == 0).all()
    # 231 of each cell, with a deviation of 15.
    np.testing.assert_allclose(counts[inside], 3000 / 13, rtol=0, atol=60)
    np.testing.assert_allclose(np.quantile(shares, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.03)


def _push_of(f: float) -> float:
    low, high = 1e-9, 0.5 - 1e-9
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if deformation.exponent(middle) < f else (low, middle)
    return low


# ------------------------------------------------------------------------ intensity and the label


def test_amounts_share_their_size_and_differ_in_sign():
    settings, rng = TaskSettings(), np.random.default_rng(0)
    drawn = [intensity.draw(rng, (32, 40), 3, settings) for _ in range(3000)]
    amounts = np.array([one.amount for one in drawn])
    widths = np.array([one.width for one in drawn]) / 32 - 0.02
    assert (np.abs(amounts) == np.abs(amounts[:, :1])).all()
    assert np.abs(amounts[:, 0]).mean() == pytest.approx(0.1 + 0.6, rel=0.05)
    assert np.abs(amounts[:, 0]).min() > 0.1
    np.testing.assert_allclose((amounts > 0).mean(0), 0.5, atol=0.04)
    assert 0.2 < ((amounts > 0).sum(1) % 3 == 0).mean() < 0.3
    # Gamma(3, 0.01): its mean is 3 and its deviation the root of 3 times the scale.
    assert widths.mean() == pytest.approx(0.03, rel=0.05)
    assert widths.std() == pytest.approx(0.01 * math.sqrt(3), rel=0.06)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_the_table_of_labels(backend):
    difference = torch.tensor([0, 0.05, 0.1, 0.2, 0.4, 0.6, 1e-5]).expand(1, 2, 7)
    want = torch.tensor([0, 0.031, 0.118, 0.393, 0.865, 0.989, 1.25e-9])
    args = difference, 0 * difference, torch.ones(1, 7, dtype=torch.bool), [(0, 0, 7)]
    with OPS["change_labels"].using(backend):
        got = change_labels(*args, sigma=0.2, clean=False)[0]
    torch.testing.assert_close(got, want, rtol=0, atol=5e-4)
    assert float(got[-1]) == pytest.approx(1.25e-9, rel=1e-3)  # not lost as 1 - 1


@pytest.mark.parametrize("shape", [(40, 37), (13, 15, 14), (1, 9), (2, 2, 7), (6, 5, 5, 6)])
def test_labels_are_closed_and_filled(shape):
    rng = np.random.default_rng(0)
    for seed in range(4):
        mask = ndimage.gaussian_filter(rng.normal(size=shape), 1.2) > (0.02, 0.1, -0.1, -9)[seed]
        y = (rng.random(shape) * mask).astype(np.float32)
        difference = np.sqrt(-2 * 0.04 * np.log1p(-y.astype(np.float64)))[None]
        want = task_reference.label(difference, 0 * difference, mask, 0.2)
        got = y.copy()
        got = clean_labels(torch.from_numpy(got), torch.from_numpy(mask)).numpy()
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
        assert (got >= y).all()


def test_a_closed_ring_is_filled_and_an_open_one_is_not():
    y = np.zeros((11, 11), np.float32)
    y[1:10, 1:10] = 0.5
    y[3:8, 3:8] = 0.25
    mask = y > 0
    closed = y.copy()
    closed = clean_labels(torch.from_numpy(closed), torch.from_numpy(mask))
    assert (closed[1:10, 1:10] == 0.5).all()
    y[4:7, :4] = 0.125
    opened = clean_labels(torch.from_numpy(y), torch.from_numpy(y > 0))
    assert (opened[3:8, 5] == 0.25).all()


# ------------------------------------------------------------------------------------ other tasks


@pytest.mark.parametrize("size", SIZES)
def test_fpi_and_pii(size):
    image, sources = smooth(12, *SIZES[size]), pools(size)["sources"]
    inputs = {"sources": sources, "seeds": range(12)}
    factors = {}
    for task in ("fpi", "pii"):
        got = synthesize(image, [task] * 12, **inputs)
        drawn = Inputs(image, [task] * 12, range(12), None, sources, None, None, None)
        (spots,) = drawn.draw(TaskSettings())
        factors[task] = [spot.decision.factor for spot in spots]
        for spot in spots:
            i, box = spot.sample, (slice(None), *spot.box)
            factor, other = spot.decision.factor, sources[spot.decision.source]
            assert 0.05 <= factor <= 0.95
            where = got.label[i] > 0
            torch.testing.assert_close(got.label[i][where], torch.full((int(where.sum()),), factor))
            assert (got.mask[i] & ~where).float().mean() < 0.01
            if task == "fpi":
                want = (1 - factor) * image[i][box] + factor * other[box]
                torch.testing.assert_close(got.image[i][box], want)
                assert where[box[1:]].all()
            else:
                inside = torch.from_numpy(spot.form.inside)
                parts = [[image[i][box].contiguous()], [other[box].contiguous()], [inside]]
                blended = OPS["poisson_blend"].reference(*parts)[0]
                want = (1 - factor) * image[i][box] + factor * blended
                low, high = image[i].flatten(1).aminmax(dim=1)
                shape = (-1, *[1] * inside.dim())
                want = torch.minimum(torch.maximum(want, low.view(shape)), high.view(shape))
                torch.testing.assert_close(got.image[i][box].double(), want, rtol=0, atol=1e-4)
    assert factors["fpi"] == factors["pii"]  # the same seeds draw the same patches


def test_cutpaste_takes_from_the_image_itself():
    image = smooth(6, *SIZES["2-D"])
    settings = TaskSettings(cutpaste_jitter=0)
    got = synthesize(image, ["cutpaste"] * 6, seeds=range(6), settings=settings)
    (spots,) = Inputs(image, ["cutpaste"] * 6, range(6), *[None] * 5).draw(settings)
    for spot in spots:
        taken = tuple(
            slice(c, c + n)
            for c, n in zip(spot.decision.corner, spot.form.inside.shape, strict=True)
        )
        i = spot.sample
        want = image[(i, slice(None), *taken)]
        torch.testing.assert_close(got.image[(i, slice(None), *spot.box)], want)
        share = spot.form.inside.size / image[0, 0].numel()
        assert 0.018 < share < 0.16
    assert torch.equal(got.label, got.mask.float())


def test_nsa_labels_grow_with_the_change():
    image, given = smooth(6, *SIZES["2-D"]), pools("2-D")
    got = synthesize(image, ["nsa"] * 6, seeds=range(6), sources=3 * given["sources"])
    difference = (got.image - image).abs().mean(1)
    assert (got.label[difference > 0.5] > 0.5).float().mean() > 0.8
    assert (got.label[difference == 0] < 0.5).float().mean() > 0.99
    settings = TaskSettings()
    assert 1 / (1 + math.exp(settings.nsa_steepness * settings.nsa_middle)) < 0.1


# ----------------------------------------------------------------------------------------- inputs


def test_embedded_pictures():
    grey = embedded_external(40, 1)
    assert grey.shape == (15, 1, 40, 40)
    assert grey.dtype == torch.float32
    assert float(grey.min()) == -1
    assert float(grey.max()) == 1
    colour = embedded_external((30, 50), 3, value_range=(0, 1), equalise=False)
    assert colour.shape == (15, 3, 30, 50)
    assert 0 <= float(colour.min()) < float(colour.max()) <= 1
    assert (colour[0, 0] != colour[0, 2]).any()
    assert len({tuple(one.flatten().tolist()) for one in grey}) == 15
    with pytest.raises(ValueError, match="want 1 or 3 channels, got 2"):
        embedded_external(32, 2)


X = torch.zeros(2, 1, 16, 16)
BAD = {
    "axes": ({"image": X[0]}, r"want image \[b, c, \*s\] float32"),
    "type": ({"image": X.double()}, "got .* torch.float64"),
    "small": ({"image": X[..., :7]}, "8 cells along each axis"),
    "few tasks": ({"tasks": ["sink"]}, "want tasks, one for each of 2 images"),
    "one word": ({"tasks": "sink"}, "want tasks, one for each of 2 images"),
    "seeds": ({"seeds": [1, 2, 3]}, "want seeds, one for each of 2 images"),
    "task": ({"tasks": ["sink", "drain"]}, "no task drain; use one of intra, inter, sink"),
    "no sources": ({"tasks": ["sink", "intra"]}, "intra takes from other images: give sources"),
    "no external": ({"tasks": ["inter"] * 2}, "inter .* give external, .* embedded_external"),
    "channels": ({"sources": X.expand(2, 3, 16, 16)}, r"want sources \[n, 1, \*s\]"),
    "tiny": ({"sources": X[..., :9]}, "16 cells along each axis"),
    "place": (
        {"tasks": ["fpi"] * 2, "sources": torch.zeros(2, 1, 17, 16)},
        r"want sources of \[16, 16\] cells, got \[17, 16\]",
    ),
    "mask": ({"mask": X[:, 0] == 0, "image": X[:1], "tasks": ["sink"], "seeds": [0]}, "want mask"),
    "mask type": ({"mask": X[:, 0]}, r"want mask \[2, 16, 16\] bool"),
    "empty": ({"mask": X[:, 0] != 0}, r"masks of images \[0, 1\] are empty"),
    "source mask": ({"source_masks": X[:, 0] == 0}, "source_masks were given, but no sources"),
    "external mask": (
        {"external": X, "external_masks": X[:, 0]},
        r"want external_masks \[2, 16, 16\] bool",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_in_words(name):
    changed, words = BAD[name]
    fine = {"image": X, "tasks": ["sink"] * 2, "seeds": [0, 1]}
    synthesize(**fine)
    with pytest.raises(ValueError, match=f"^synthesize: .*{words}"):
        synthesize(**(fine | changed))


def test_settings_are_judged():
    with pytest.raises(ValueError, match="want g_min <= g_max"):
        TaskSettings(g_min=3, g_max=2)
    with pytest.raises(ValueError, match="Extra inputs"):
        TaskSettings(gmax=2)
    for field in TaskSettings.model_fields.values():
        assert field.description
