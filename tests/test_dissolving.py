# SPDX-License-Identifier: Apache-2.0
"""Dissolving: the formula, the schedule, ranges, sizes, time steps; shifts and views."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf

from fundad_fast.synthetic import (
    SHIFTS,
    augmented,
    blurred,
    cosine_kept,
    dissolve,
    draw_t,
    draw_views,
    mirrored,
    one_step,
    shifted,
)
from fundad_fast.synthetic.dissolving import to_resolution

KEPT = cosine_kept()
TABLE = {30: 0.9965, 50: 0.9917, 99: 0.9721, 200: 0.898, 400: 0.646}


def silent(x, t):
    return torch.zeros_like(x)


# -- the formula ---------------------------------------------------------------------------------


def test_the_schedule_has_the_published_values():
    for t, want in TABLE.items():
        assert KEPT[t].item() == pytest.approx(want, abs=6e-5 if t < 200 else 6e-4), t
    for t, want in {30: 0.060, 50: 0.091, 99: 0.169, 200: 0.337, 400: 0.740}.items():
        assert math.sqrt(1 / KEPT[t].item() - 1) == pytest.approx(want, abs=6e-4), t
    assert KEPT.shape == (1000,)
    assert (KEPT.diff() < 0).all()
    # The last beta is cut to 0.999, so that a thousandth is left.
    assert (KEPT[999] / KEPT[998]).item() == pytest.approx(0.001)


def test_the_schedule_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    theirs = diffusers.DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    torch.testing.assert_close(KEPT.float(), theirs, rtol=1e-4, atol=1e-8)


def test_without_noise_an_image_is_divided_by_the_root_of_what_is_kept():
    x = torch.linspace(-1.2, 1.2, 2 * 5 * 16).view(5, 2, 4, 4)
    t = torch.tensor(list(TABLE))
    got = one_step(x, t, silent, KEPT)
    for i, step in enumerate(TABLE):
        want = (x[i].double() / KEPT[step].sqrt()).clamp(-1, 1)
        torch.testing.assert_close(got[i].double(), want, rtol=1e-6, atol=1e-7)
    assert got.min() == -1
    assert got.max() == 1


def test_the_exact_noise_brings_the_exact_image_back():
    g = torch.Generator().manual_seed(0)
    x0 = torch.rand(5, 3, 8, 8, generator=g) * 1.8 - 0.9
    eps = torch.randn(5, 3, 8, 8, generator=g)
    t = torch.tensor([0, 30, 99, 200, 400])
    kept = KEPT[t].view(-1, 1, 1, 1)
    noisy = (kept.sqrt() * x0 + (1 - kept).sqrt() * eps).float()
    seen = []

    def exact(x, steps):
        seen.append(steps.tolist())
        return eps

    torch.testing.assert_close(one_step(noisy, t, exact, KEPT), x0, rtol=0, atol=2e-6)
    assert seen == [t.tolist()]
    with pytest.raises(ValueError, match="time steps from 0 to 1000"):
        one_step(noisy, t.clamp_min(0) + torch.tensor([0, 0, 0, 0, 600]), exact, KEPT)


# -- ranges and sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize("compat", [False, True])
def test_the_model_sees_its_own_range_or_that_of_the_public_code(compat):
    image = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
    seen = []

    def noise(x, t):
        seen.append((x.min().item(), x.max().item()))
        return 0.1 * x

    t = torch.tensor([99])
    got = dissolve(image, t, noise, KEPT, resolution=8, compat_no_rescale=compat)
    assert seen == [(0, 1)] if compat else seen == [(-1, 1)]
    factor = (1 / KEPT[99]).sqrt().item() - 0.1 * (1 / KEPT[99] - 1).sqrt().item()
    want = image * factor if compat else ((2 * image - 1) * factor + 1) / 2
    torch.testing.assert_close(got, want.clamp(-1 if compat else 0, 1))


def test_a_model_that_says_more_than_there_is_leaves_the_range_alone():
    def loud(x, t):
        return torch.full_like(x, 50.0)

    image = torch.rand(1, 1, 8, 8)
    t = torch.tensor([99])
    assert dissolve(image, t, loud, KEPT, resolution=8).eq(0).all()
    assert dissolve(image, t, loud, KEPT, resolution=8, compat_no_rescale=True).eq(-1).all()


def test_small_images_are_padded_and_large_ones_resized_without_antialiasing():
    seen = []

    def noise(x, t):
        seen.append(x)
        return torch.zeros_like(x)

    still = torch.ones(1)  # nothing is noise: what comes back is what went in
    t = torch.zeros(2, dtype=torch.int64)
    small = torch.rand(2, 1, 28, 27)
    torch.testing.assert_close(dissolve(small, t, noise, still, resolution=32), small)
    assert seen[0].shape == (2, 1, 32, 32)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[2:30, 2:29] = True
    assert (seen[0][:, :, ~inside] == -1).all()  # black
    wide = torch.rand(2, 1, 20, 32)
    torch.testing.assert_close(dissolve(wide, t, noise, still, resolution=32), wide)
    large = torch.rand(2, 3, 65, 65)
    got = dissolve(large, t, noise, still, resolution=32)
    down = nnf.interpolate(large, (32, 32), mode="bilinear")
    torch.testing.assert_close(seen[2], 2 * down - 1)
    torch.testing.assert_close(got, nnf.interpolate(down, (65, 65), mode="bilinear"))
    assert torch.equal(to_resolution(large, 32), down)


def test_the_blur_keeps_what_is_even_and_goes_by_the_same_sizes():
    assert torch.allclose(
        blurred(torch.full((2, 3, 16, 16), 0.7), 1.0, resolution=16), torch.tensor(0.7)
    )
    spot = torch.zeros(1, 2, 33, 33)
    spot[:, 0, 16, 16] = 1
    got = blurred(spot, 1.5, resolution=33)[0]
    assert got[1].eq(0).all()
    assert got[0].sum().item() == pytest.approx(1, abs=1e-5)
    y = torch.arange(33) - 16.0
    assert (got[0] * y[:, None] ** 2).sum().item() == pytest.approx(1.5**2, rel=0.03)
    large = torch.rand(1, 1, 64, 64)
    want = nnf.interpolate(
        blurred(to_resolution(large, 32), 1.0, resolution=32), (64, 64), mode="bilinear"
    )
    torch.testing.assert_close(blurred(large, 1.0), want)


# -- time steps ----------------------------------------------------------------------------------


def test_time_steps_are_30_to_99():
    t = draw_t(20_000, np.random.default_rng(0))
    assert t.dtype == torch.int64
    assert (t.min().item(), t.max().item()) == (30, 99)
    counts = torch.bincount(t, minlength=100)[30:]
    assert counts.min() > 180
    assert counts.max() < 400
    low, high = (
        draw_t(20_000, np.random.default_rng(0), sampler=s) for s in ("beta_low", "beta_high")
    )
    assert low.double().mean().item() == pytest.approx(30 + 70 / 2.7 - 0.5, abs=0.6)
    assert high.double().mean().item() == pytest.approx(30 + 70 * 1.7 / 2.7 - 0.5, abs=0.6)
    for progress, same in ((0.0, low), (1.0, high), (7.0, high)):
        rng = np.random.default_rng(0)
        moving = draw_t(20_000, rng, sampler="beta_moving", progress=progress)
        assert torch.equal(moving, same)
    assert set(draw_t(500, np.random.default_rng(1), offset=0, upper=0.02, scale=100).tolist()) == {
        0,
        1,
    }

    class Last:
        def beta(self, a, b, size):
            return np.ones(size)

    assert draw_t(1, Last()).item() == 99


# -- shifts and views ----------------------------------------------------------------------------


def test_shifts_turn_or_swap_halves():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(shifted(image, 0), image)
    assert torch.equal(shifted(image, 1)[0, 0, 0], image[0, 0, :, 3])  # the right side is on top
    assert torch.equal(shifted(shifted(image, 1), 3), image)
    across, down = (shifted(image, k, "cutperm") for k in (1, 2))
    assert across[0, 0, 0].tolist() == [2, 3, 0, 1]
    assert down[0, 0, :, 0].tolist() == [8, 12, 0, 4]
    assert torch.equal(shifted(image, 3, "cutperm"), shifted(across, 2, "cutperm"))
    assert torch.equal(shifted(image, 0, "cutperm"), image)


def test_views_are_drawn_in_their_ranges():
    v = draw_views(4000, np.random.default_rng(0), scale=(0.08, 1.0))
    assert len(v) == 4000
    for name, p in (("flip", 0.5), ("jitter", 0.8), ("contrast_first", 0.5), ("grey", 0.2)):
        drawn = getattr(v, name)
        assert drawn.dtype == torch.bool
        assert drawn.double().mean().item() == pytest.approx(p, abs=0.03), name
    for name in ("brightness", "contrast", "saturation"):
        drawn = getattr(v, name)
        assert 0.6 <= drawn.min() < 0.61
        assert 1.39 < drawn.max() <= 1.4
    assert -0.1 <= v.hue.min() < -0.095
    area, ratio = v.width * v.height, v.width / v.height
    assert 0.0799 <= area.min() < 0.1
    assert area.max() <= 1
    assert 0.749 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.334
    assert ((v.x.abs() + v.width) <= 1 + 1e-6).all()
    assert ((v.y.abs() + v.height) <= 1 + 1e-6).all()
    fixed = draw_views(50, np.random.default_rng(0), scale=(0.54, 0.54))
    torch.testing.assert_close(fixed.width * fixed.height, torch.full((50,), 0.54))
    again = draw_views(50, np.random.default_rng(0), scale=(0.54, 0.54))
    assert torch.equal(fixed.x, again.x)


def still(n, **changed):
    """Views that change nothing."""
    v = draw_views(n, np.random.default_rng(0), scale=(1, 1))
    values = {"flip": 0, "jitter": 0, "contrast_first": 0, "brightness": 1, "contrast": 1}
    values |= {"saturation": 1, "hue": 0, "grey": 0, "width": 1, "height": 1, "x": 0, "y": 0}
    return type(v)(
        **{
            name: torch.full((n,), value).to(getattr(v, name).dtype)
            for name, value in (values | changed).items()
        }
    )


def test_views_that_change_nothing_change_nothing():
    g = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 9, 9, generator=g)
    torch.testing.assert_close(augmented(image, still(2)), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(augmented(image, still(2, jitter=1)), image, atol=1e-5, rtol=0)
    grey = image[:, :1]
    torch.testing.assert_close(augmented(grey, still(2, jitter=1, grey=1, hue=0.1)), grey)
    flips = torch.tensor([True, False])
    assert torch.equal(mirrored(image, flips), torch.stack([image[0].flip(-1), image[1]]))


def test_colours_change_as_hsv_has_them():
    import colorsys

    g = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 4, 4, generator=g)
    changed = still(1, jitter=1, hue=0.07, saturation=1.3, brightness=0.8)
    got = augmented(image, changed)
    for y in range(4):
        for x in range(4):
            h, s, v = colorsys.rgb_to_hsv(*image[0, :, y, x].tolist())
            want = colorsys.hsv_to_rgb((h + 0.07) % 1, min(s * 1.3, 1), v * 0.8)
            assert got[0, :, y, x].tolist() == pytest.approx(want, abs=1e-5)
    grey = augmented(image, still(1, grey=1))
    want = (image[0] * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    torch.testing.assert_close(grey[0], want.expand(3, -1, -1), atol=1e-6, rtol=1e-5)
    for order in (0, 1):
        both = still(1, jitter=1, contrast=1.4, brightness=1.4, contrast_first=order)
        got = augmented(image[:, :1], both)
        bright = (image[:, :1] * 1.4).clamp(0, 1)
        far = ((image[:, :1] - image[:, :1].mean()) * 1.4 + image[:, :1].mean()).clamp(0, 1)
        want = (
            (far * 1.4).clamp(0, 1) if order else ((bright - bright.mean()) * 1.4 + bright.mean())
        )
        torch.testing.assert_close(got, want.clamp(0, 1), atol=1e-6, rtol=1e-5)


def test_crops_are_where_they_are_said_to_be():
    image = torch.arange(64.0).view(1, 1, 8, 8) / 64
    got = augmented(image, still(1, width=0.5, height=0.5, x=0.5, y=-0.5))
    want = nnf.interpolate(image[..., 0:4, 4:8], (8, 8), mode="bilinear")
    torch.testing.assert_close(got[..., 1:7, 1:7], want[..., 1:7, 1:7])
    assert SHIFTS == 4
