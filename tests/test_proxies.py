# SPDX-License-Identifier: Apache-2.0
"""Proxies of images, and patches pasted on them."""

import numpy as np
import pytest
import torch
from cohorts import photograph

from fundad_fast.synthetic.proxies import PROXIES, ProxySettings, make_proxy, superpixels
from fundad_fast.synthetic.pseudo_anomalies import PasteSettings, paste_patches

FEW = ProxySettings(segments=40)


def picture(seed=0, channels=3, side=64):
    pixels = photograph(seed, side)[..., :channels].astype(np.float32) / 255
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_superpixel_has_its_mean(channels):
    image = picture(channels=channels)
    labels = superpixels(image, FEW)
    assert labels.shape == (64, 64)
    assert labels.min() == 0
    assert 15 < labels.max() < 80
    got = make_proxy(image, None, "superpixel", FEW)
    for label in labels.unique():
        at = labels == label
        want = image[:, at].double().mean(1).float()
        torch.testing.assert_close(got[:, at], want[:, None].expand(-1, int(at.sum())))
    assert torch.equal(got, make_proxy(image, None, "superpixel", FEW))


def test_means_are_of_what_the_mask_contains():
    image = picture(channels=1)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[10:50, 9:40] = True
    loud = image.clone()
    loud[:, ~mask] = 1
    for kind in PROXIES:
        got = make_proxy(image, mask, kind, FEW)
        assert not got[:, ~mask].any()
        assert got[:, mask].any()
        assert torch.equal(got, make_proxy(loud, mask, kind, FEW)), kind
    labels = superpixels(image * mask, FEW)
    label = labels[12, 9]  # in the corner: a superpixel that may reach over the rim
    at = (labels == label) & mask
    got = make_proxy(image, mask, "superpixel", FEW)
    assert got[0, 12, 9].item() == pytest.approx(image[0][at].mean().item(), rel=1e-5)


def test_superpixels_of_grey_images_follow_them_and_are_no_grid():
    """With Lab's compactness of 10, a bright disc on a grey ground is cut into squares."""
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    disc = ((y - 45) ** 2 + (x - 50) ** 2) < 27**2
    image = (0.3 + 0.3 * disc)[None]
    by_default = ProxySettings(segments=60)
    grid = ProxySettings(segments=60, compactness=10)

    def torn(settings):
        """Share of the pixels in superpixels of both sides that are on the smaller side."""
        labels = superpixels(image, settings)
        inside = torch.bincount(labels[disc], minlength=int(labels.max()) + 1)
        outside = torch.bincount(labels[~disc], minlength=int(labels.max()) + 1)
        return torch.minimum(inside, outside).sum().item() / labels.numel()

    assert torn(by_default) < 0.02 < 0.04 < torn(grid)


def test_other_proxies():
    image = picture()
    low = make_proxy(image, None, "lowres", ProxySettings(low_side=4))
    assert torch.nn.functional.avg_pool2d(low, 16)[0, 1, 1].item() == pytest.approx(
        image[0, 16:32, 16:32].mean().item(), abs=0.1
    )
    assert (low[:, :, 1:] - low[:, :, :-1]).abs().max() < 0.06
    ramp = torch.linspace(0, 1, 33).expand(1, 20, 33).contiguous()
    edges = make_proxy(ramp, None, "edge", FEW)
    torch.testing.assert_close(edges[0, 5, 5:-5], torch.full((23,), 8 / 32))
    step = torch.zeros(1, 20, 20)
    step[..., 10:] = 0.2
    assert make_proxy(step, None, "edge", FEW)[0, 5].tolist() == pytest.approx(
        [0] * 9 + [0.8] * 2 + [0] * 9, abs=1e-6
    )
    assert make_proxy(step * 5, None, "edge", FEW).max() == 1
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[7:30, 3:21] = True
    even = torch.full((1, 40, 40), 0.7)
    for kind in ("superpixel", "lowres", "blur"):  # nothing of the black outside comes in
        torch.testing.assert_close(make_proxy(even, mask, kind, FEW), even * mask, msg=kind)
    assert make_proxy(even, mask, "edge", FEW).max() < 1e-6
    dot = torch.zeros(1, 41, 41)
    dot[0, 20, 20] = 1
    blurred = make_proxy(dot, None, "blur", ProxySettings(blur=2))[0]
    assert blurred.sum().item() == pytest.approx(1, rel=1e-3)
    assert (blurred[20, 22] / blurred[20, 20]).item() == pytest.approx(np.exp(-0.5), rel=1e-3)


def paste(seed=0, **settings):
    image = torch.stack([picture(i) for i in range(3)])
    proxy = torch.stack([make_proxy(one, None, "superpixel", FEW) for one in image])
    mask = torch.zeros(3, 64, 64, dtype=torch.bool)
    mask[:, 14:60, 6:50] = True
    kept = image.clone(), proxy.clone(), mask.clone()
    made = paste_patches(
        proxy,
        image.roll(1, 0),
        seeds=[seed, seed + 1, seed + 2],
        mask=mask,
        source_mask=mask,
        settings=PasteSettings(**settings),
    )
    assert all(torch.equal(a, b) for a, b in zip(kept, (image, proxy, mask)))
    return image, proxy, mask, made


def test_patches_are_pasted_inside_the_object_and_nowhere_else():
    sides = []
    for seed in range(0, 90, 3):
        _, proxy, mask, made = paste(seed)
        assert not (made.mask & ~mask).any()
        away = (made.image != proxy).any(1)
        assert not (away & ~made.mask).any()
        assert torch.equal(made.label, made.mask.float())
        for one in made.mask:
            assert one.any()
            at = one.nonzero()
            sides += (at.amax(0) - at.amin(0) + 1).tolist()
            y0, x0, y1, x1 = *at.amin(0), *at.amax(0)
            assert one[y0 : y1 + 1, x0 : x1 + 1].all()  # one rectangle
    assert max(sides) <= round(0.3 * 64)
    assert max(sides) > 14
    assert min(sides) < 8


def test_a_patch_is_a_part_of_the_other_image():
    image, _, _, made = paste(4)
    at = made.mask[1].nonzero()
    (y0, x0), (y1, x1) = at.amin(0).tolist(), at.amax(0).tolist()
    patch = made.image[1, :, y0 : y1 + 1, x0 : x1 + 1]
    h, w = patch.shape[1:]
    windows = image[0].unfold(1, h, 1).unfold(2, w, 1)
    assert (windows == patch[:, None, None]).all(0).flatten(2).all(-1).any()
    *_, jittered = paste(4, jitter=0.5)
    assert torch.equal(jittered.mask, made.mask)
    assert not torch.equal(jittered.image, made.image)


def test_a_seed_is_a_patch():
    assert torch.equal(paste(7)[3].image, paste(7)[3].image)
    assert not torch.equal(paste(7)[3].mask, paste(8)[3].mask)


def test_without_a_mask_black_is_no_object():
    proxy = torch.zeros(1, 1, 40, 40)
    source = torch.ones(1, 1, 40, 40)
    made = paste_patches(proxy, source, seeds=[0], mask=None, settings=PasteSettings())
    assert not made.mask.any()
    proxy[..., 20:] = 0.5
    for seed in range(30):
        made = paste_patches(proxy, source, seeds=[seed], mask=None, settings=PasteSettings())
        assert made.mask.any()
        assert not made.mask[..., :20].any()


def test_nothing_is_pasted_of_what_is_no_object_in_the_source():
    proxy, source = torch.full((1, 1, 40, 40), 0.5), torch.zeros(1, 1, 40, 40)
    on = torch.zeros(1, 40, 40, dtype=torch.bool)
    on[:, :23] = True
    source[on[:, None]] = 0.8
    for mask in (on, None):
        for seed in range(30):
            made = paste_patches(
                proxy, source, seeds=[seed], mask=None, source_mask=mask, settings=PasteSettings()
            )
            assert made.mask.any()
            assert set(made.image.unique().tolist()) == {0.5, source.max().item()}
    black = paste_patches(proxy, 0 * source, seeds=[0], mask=None, settings=PasteSettings())
    assert not black.mask.any()
