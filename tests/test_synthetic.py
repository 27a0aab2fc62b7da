# SPDX-License-Identifier: Apache-2.0
"""Painted lesions change what they say, where they say, and as lesions do."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from fundad_fast.synthetic import Photograph, vary_geometry, vary_photometry
from fundad_fast.synthetic.fundus import KINDS, add_lesions
from fundad_fast.synthetic.outlines import blob, cluster, smooth_noise, streaks

DARK = {"microaneurysms", "haemorrhages", "flame_haemorrhages"}
NOTICED = 0.02


@pytest.fixture(scope="module")
def eye() -> tuple[Tensor, Tensor]:
    """A picture of an eye, with vessels, a disc, a macula and some grain."""
    return picture(320)


def picture(size: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:size, :size] / size * 2 - 1
    image = np.empty((size, size, 3), np.float32)
    image[:] = (0.75, 0.36, 0.22)
    image *= (1 - 0.35 * np.exp(-(x**2 + y**2) / 0.02))[..., None]
    for bend in (-0.6, -0.3, 0.25, 0.7):
        vessel = np.exp(-((y - bend * (1 - x**2)) ** 2) / 0.0003)
        image *= 1 - vessel[..., None] * np.float32([0.2, 0.5, 0.4])
    image += 0.4 * np.exp(-((x + 0.7) ** 2 + y**2) / 0.02)[..., None]
    image += rng.normal(0, 0.006, image.shape)
    fov = np.hypot(x, y) < 0.95
    image[~fov] = 0
    planes = np.ascontiguousarray(np.moveaxis(image.clip(0, 1), -1, 0), dtype=np.float32)
    return torch.from_numpy(planes), torch.from_numpy(fov)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lesion_changes_what_its_mask_says(eye, kind):
    image, fov = eye
    signs, rims = [], []
    for seed in range(4):
        kept = image.clone(), fov.clone()
        got, mask, by_kind = add_lesions(image, fov, seed, kinds={kind: 1})
        assert torch.equal(image, kept[0])
        assert torch.equal(fov, kept[1])
        assert set(by_kind) == {kind}
        assert torch.equal(by_kind[kind], mask)
        assert mask.sum() >= 3
        assert got.min() >= 0
        assert got.max() <= 1
        change = (got - image).abs().mean(0)
        assert change[~mask].max() <= NOTICED
        assert (change[mask] > NOTICED).float().mean() > 0.7  # the rest are closed pinholes
        assert change[~fov].max() == 0
        sign = -1 if kind in DARK else 1
        assert (sign * (got - image)).min() >= 0
        signs.append(sign * (got - image).mean(0)[mask].mean())
        near = cv2.dilate(mask.numpy().astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        beyond = torch.from_numpy(near) & ~mask & fov
        if kind != "cotton_wool_spots":  # their edge is as wide as they are
            inner = cv2.dilate(mask.numpy().astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
            rims.append(change[beyond & ~torch.from_numpy(inner)].mean())
    assert min(signs) > NOTICED
    assert all(r < 0.004 for r in rims)  # one grey level of 255: no halo


def test_the_same_seed_gives_the_same_lesions(eye):
    one, again, other = (add_lesions(*eye, seed) for seed in (3, 3, 4))
    assert torch.equal(one.image, again.image)
    assert torch.equal(one.mask, again.mask)
    assert not torch.equal(one.mask, other.mask)
    drawn = add_lesions(*eye, np.random.default_rng(3))
    assert torch.equal(one.image, drawn.image)
    rng = np.random.default_rng(3)
    add_lesions(*eye, rng)
    assert not torch.equal(add_lesions(*eye, rng).image, one.image)


def test_all_kinds_by_default(eye):
    image, fov = eye
    got, mask, by_kind = add_lesions(image, fov, 0)
    assert set(by_kind) == set(KINDS)
    assert all(m.any() for m in by_kind.values())
    union = torch.stack(list(by_kind.values())).any(0)
    assert torch.equal(mask, union)
    assert not (mask & ~fov).any()
    changed = (got - image).abs().mean(0) > NOTICED
    assert (changed & ~mask).sum() <= 0.02 * mask.sum()  # where two faint edges meet


def test_numbers_size_and_strength(eye):
    def forms(mask: Tensor) -> int:
        return cv2.connectedComponents(mask.numpy().astype(np.uint8))[0] - 1

    few, many = (
        [forms(add_lesions(*eye, s, kinds={"microaneurysms": n}).mask) for s in range(3)]
        for n in (2, 9)
    )
    assert max(few) <= 2
    assert min(many) >= 6
    assert forms(add_lesions(*eye, 0, kinds={"haemorrhages": 0}).mask) == 0
    small, large = (
        sum(
            int(add_lesions(*eye, s, kinds={"haemorrhages": 1}, size=k).mask.sum())
            for s in range(6)
        )
        for k in (1.0, 2.0)
    )
    assert 3 < large / small < 5.5
    image = eye[0]
    depth = [
        float((add_lesions(*eye, 1, kinds={"haemorrhages": 3}, strength=k).image - image).sum())
        for k in (0.5, 1.0)
    ]
    assert depth[1] < 1.3 * depth[0] < 0


def test_the_disc_is_left_alone(eye):
    image, fov = eye
    y, x = np.mgrid[:320, :320] / 160 - 1
    disc = torch.from_numpy(np.hypot(x + 0.7, y) < 0.08)
    for seed in range(5):
        mask = add_lesions(image, fov, seed, kinds={"microaneurysms": 10}).mask
        assert not (mask & disc).any()


def test_lesions_end_at_the_field_of_view(eye):
    image, fov = eye
    kinds = {"hard_exudates": 12, "cotton_wool_spots": 12}
    got = add_lesions(image, fov, 0, kinds=kinds, size=2)
    assert torch.equal(got.image[:, ~fov], image[:, ~fov])
    # Where bright forms cross vessels and the rim, no dark halo may spread between them.
    assert (got.image - image).min() >= 0


def test_results_stay_in_the_range_of_what_is_blended():
    _, fov = picture(320)
    lines = torch.full((320,), 0.99)
    lines[::4] = 0.7
    image = lines.expand(3, 320, 320) * fov
    for seed in range(3):
        got = add_lesions(image, fov, seed, kinds={"hard_exudates": 4})
        assert got.image.max() <= 1
        assert got.image.min() >= 0


@pytest.mark.parametrize("kind", ["haemorrhages", "hard_exudates"])
def test_fine_lines_stay_visible_in_a_lesion(kind):
    """What mixed gradients are for; painted over, the lines would be half as deep or less."""
    _, fov = picture(320)
    lines = torch.ones(320)
    lines[::4] = 0.8
    image = (torch.tensor([0.7, 0.5, 0.4])[:, None, None] * lines).expand(3, 320, 320) * fov
    for seed in range(3):
        got = add_lesions(image, fov, seed, kinds={kind: 2}, size=2)
        inner = torch.from_numpy(cv2.erode(got.mask.numpy().astype(np.uint8), np.ones((5, 5))) > 0)

        def depth(t: Tensor, inner: Tensor = inner) -> Tensor:
            return t.diff(dim=2).abs().mean(0)[inner[:, 1:]].mean()

        assert depth(got.image) > 0.8 * depth(image)


def test_bright_lesions_darken_nothing():
    _, fov = picture(320)
    pale = torch.tensor([0.80, 0.75, 0.70])[:, None, None] * fov
    for kind in ("hard_exudates", "cotton_wool_spots"):
        got = add_lesions(pale, fov, 0, kinds={kind: 3})
        assert (got.image - pale).min() >= 0
        assert got.mask.any()


def test_a_lesion_that_would_not_be_seen_goes_elsewhere(eye):
    image, fov = eye
    image = image.clone()
    image[:, :, :200] *= 0.02
    for seed in range(3):
        mask = add_lesions(image, fov, seed, kinds={"microaneurysms": 10}).mask
        assert cv2.connectedComponents(mask.numpy().astype(np.uint8))[0] - 1 >= 8


def test_what_does_not_fit_is_refused(eye):
    image, fov = eye
    with pytest.raises(ValueError, match=r"want image \[3, h, w\] float32, got \[320, 320\]"):
        add_lesions(image[0], fov, 0)
    with pytest.raises(ValueError, match="got .* torch.float64"):
        add_lesions(image.double(), fov, 0)
    with pytest.raises(ValueError, match=r"want fov \[320, 320\] bool, got \[319, 320\]"):
        add_lesions(image, fov[1:], 0)
    with pytest.raises(ValueError, match="want kinds of microaneurysms, .* got 'drusen'"):
        add_lesions(image, fov, 0, kinds=["drusen"])
    with pytest.raises(ValueError, match="want size and strength > 0, got 0 and 1"):
        add_lesions(image, fov, 0, size=0)
    with pytest.raises(ValueError, match="the field of view has 0 pixels"):
        add_lesions(image, torch.zeros_like(fov), 0)


def test_a_field_of_view_cut_by_the_frame(eye):
    image, fov = eye
    cut = image[:, 100:220, 100:].contiguous(), fov[100:220, 100:].contiguous()
    for seed in range(5):
        got = add_lesions(*cut, seed)
        assert got.mask.any()
        assert torch.equal(got.image[:, ~cut[1]], cut[0][:, ~cut[1]])


# ----------------------------------------------------------------------------------- the outlines


def test_a_blob_has_the_area_and_the_direction_that_were_asked():
    rng = np.random.default_rng(0)
    plain = blob(rng, 12, 1.6, roughness=0)
    assert plain.sum() == pytest.approx(math.pi * 144, rel=0.02)
    assert plain.max() == 1
    assert plain[0].max() == plain[-1].max() == plain[:, 0].max() == plain[:, -1].max() == 0
    for angle in (0.4, 2.0):
        for form in (
            blob(rng, 12, 2, roughness=0, elongation=3, angle=angle),
            streaks(rng, 40, 10, 2, angle),
        ):
            y, x = np.mgrid[: form.shape[0], : form.shape[1]] - form.shape[0] // 2
            xx, xy, yy = ((form * t).sum() for t in (x * x, x * y, y * y))
            found = 0.5 * math.atan2(2 * xy, xx - yy) % math.pi
            assert abs(found - angle) < 0.12


def test_roughness_bends_the_outline():
    def wander(roughness: float) -> float:
        form = blob(rng, 20, 1.6, roughness=roughness)
        (outline,), _ = cv2.findContours(
            (form > 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        reach = np.linalg.norm(outline[:, 0] - outline[:, 0].mean(0), axis=1)
        return float(reach.std() / reach.mean())

    rng = np.random.default_rng(0)
    assert max(wander(0) for _ in range(10)) < 0.03
    assert 0.06 < np.mean([wander(0.3) for _ in range(20)]) < 0.2


def test_forms_end_inside_their_frame():
    rng = np.random.default_rng(1)
    for _ in range(30):
        forms = [
            blob(rng, 5, 4, roughness=0.4, elongation=1.8, angle=1),
            streaks(rng, 30, 9, 2, 0.7),
            cluster(rng, 20, 15, 1.5, 2, ring=float(rng.choice([0, 0.8]))),
        ]
        for form in forms:
            assert form.dtype == np.float32
            assert 0 <= form.min() <= form.max() <= 1
            assert form.any()
            rim = np.concatenate([form[0], form[-1], form[:, 0], form[:, -1]])
            assert rim.max() < 0.01


def test_a_ring_is_open_in_the_middle():
    rng = np.random.default_rng(2)
    heap, ring = (
        sum(form[i - 4 : i + 5, i - 4 : i + 5].sum() for form in forms for i in [len(form) // 2])
        for forms in ([cluster(rng, 30, 20, 1.5, 2, ring=r) for _ in range(10)] for r in (0, 1))
    )
    assert ring < 0.1 * heap


def test_noise_is_smooth_and_of_unit_size():
    fields = [smooth_noise(np.random.default_rng(s), (90, 70), 8) for s in range(20)]
    assert all(f.shape == (90, 70) for f in fields)
    assert abs(np.mean(fields)) < 0.15
    assert 0.8 < np.std(fields) < 1.25
    steps = np.std(np.diff(fields, axis=1))
    assert steps < 0.35
    assert smooth_noise(np.random.default_rng(0), (1, 5), 100).shape == (1, 5)


# ------------------------------------------------------------------------------------- variation


def test_new_looks_show_only_what_was_seen():
    size = 300
    y, x = np.mgrid[:size, :size]
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[:] = (255, 0, 255)  # must never be seen: it lies outside the field of view
    pixels[np.hypot(x - 150, y - 148) < 140] = (40, 160, 80)
    photograph = Photograph(pixels, 150, 148, 140)
    fields = []
    for seed in range(6):
        image, fov = vary_geometry(photograph, 128, np.random.default_rng(seed))
        again, _ = vary_geometry(photograph, 128, np.random.default_rng(seed))
        assert torch.equal(image, again)
        assert image.shape == (3, 128, 128)
        assert image.dtype == torch.float32
        assert fov.sum() == pytest.approx(math.pi * (0.47 * 128) ** 2, rel=0.08)
        inner = torch.from_numpy(cv2.erode(fov.numpy().astype(np.uint8), np.ones((3, 3))) > 0)
        seen = image[:, inner] * 255
        assert (seen - torch.tensor([40.0, 160.0, 80.0])[:, None]).abs().max() < 2
        outer = torch.from_numpy(cv2.dilate(fov.numpy().astype(np.uint8), np.ones((3, 3))) == 0)
        assert image[:, outer].max() == 0
        fields.append(fov)
    assert not torch.equal(fields[0], fields[1])


def test_new_looks_differ_but_not_much():
    image, fov = picture(200)
    pixels = (image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    photograph = Photograph(pixels, 99.5, 99.5, 94)
    looks = [vary_geometry(photograph, 128, np.random.default_rng(s)) for s in range(6)]
    means = torch.stack([i[:, f].mean(1) for i, f in looks])
    assert (means - image[:, fov].mean(1)).abs().max() < 0.05
    assert len({tuple(np.round(i[:, 64, 40].tolist(), 3)) for i, _ in looks}) > 3


def test_development_is_mild_and_repeatable(eye):
    image, fov = eye
    colours = []
    for seed in range(6):
        got = vary_photometry(image, fov, np.random.default_rng(seed))
        assert torch.equal(got, vary_photometry(image, fov, np.random.default_rng(seed)))
        assert got.shape == image.shape
        assert got.dtype == torch.float32
        assert got.min() >= 0
        assert got.max() <= 1
        assert (got - image)[:, fov].abs().mean() < 0.15
        outer = torch.from_numpy(cv2.dilate(fov.numpy().astype(np.uint8), np.ones((33, 33))) == 0)
        assert got[:, outer].max() <= 2 / 255
        structure = np.corrcoef(got[1, fov].numpy(), image[1, fov].numpy())[0, 1]
        assert structure > 0.8
        colours.append(got[:, fov].mean(1))
    assert torch.stack(colours).std(0).min() > 0.005
