# SPDX-License-Identifier: Apache-2.0
"""The consistent anomaly generator: noise, sizes, fusion maps, what is pasted and where."""

import math

import numpy as np
import pytest
import torch
from cohorts import photograph

from fundad_fast.synthetic import ConsistentSettings, mix_in
from fundad_fast.synthetic.consistent import _paste, draw_components, fusion_map
from fundad_fast.synthetic.perlin import perlin_noise
from fundad_fast.synthetic.photometry import augment

SIDE = 96


def settings(**changed):
    return ConsistentSettings.model_validate({"clean_share": 0.0, **changed})


@pytest.fixture(scope="module")
def eyes():
    """Photographs, other ones as sources, and a disc for the field of view."""
    pixels = np.stack([photograph(i, SIDE) for i in range(6)]).astype(np.float32) / 255
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    disc = ((y - 48) ** 2 + (x - 48) ** 2 < 40**2)[None].expand(3, -1, -1)
    return image[:3], image[3:], disc


def mixed(eyes, seeds=(0, 1, 2), **changed):
    image, sources, disc = eyes
    return mix_in(
        image,
        seeds=seeds,
        sources=sources,
        mask=disc,
        source_masks=disc,
        settings=settings(**changed),
    )


# -- noise ---------------------------------------------------------------------------------------


def test_noise_is_zero_at_its_nodes_and_continuous_between():
    noise = perlin_noise(np.random.default_rng(0), (64, 96), (8, 4))
    assert noise.shape == (64, 96)
    assert np.abs(noise[::8, ::24]).max() < 1e-5
    assert 0.2 < np.abs(noise).max() <= 1
    assert np.abs(np.diff(noise, axis=0)).max() < 0.6  # a cell is eight pixels high
    far = perlin_noise(np.random.default_rng(0), (64, 96), (8, 4), turn=math.pi / 2)
    assert np.abs(far[::8, ::24]).max() > 0.05


def test_a_quarter_turn_of_the_noise_swaps_its_axes():
    flat = perlin_noise(np.random.default_rng(1), (64, 64), (32, 1))
    turned = perlin_noise(np.random.default_rng(1), (64, 64), (32, 1), turn=math.pi / 2)
    steep = [np.abs(np.diff(n, axis=a)).mean() for n in (flat, turned) for a in (0, 1)]
    assert steep[0] > 3 * steep[1]
    assert steep[3] > 3 * steep[2]


# -- sizes and places ----------------------------------------------------------------------------


def test_components_have_a_lesions_size_and_lie_inside_whole():
    y, x = np.mgrid[:128, :128]
    room = (y - 64) ** 2 + (x - 64) ** 2 < 50**2
    rule = settings(area_min=10 / 128**2, area_max=60 / 128**2, components_max=3)
    counts = set()
    for seed in range(30):
        found = draw_components(np.random.default_rng(seed), room, rule, 128**2)
        areas = np.bincount(found.ravel())[1:]
        assert not (found > 0)[~room].any()
        assert all(10 <= a <= 60 for a in areas)
        counts.add(len(areas))
    assert counts >= {1, 2, 3}
    half = draw_components(np.random.default_rng(3), room, rule, 64**2)  # of a smaller image
    assert np.bincount(half.ravel())[1:].max() <= 15


def test_small_and_large_components_lie_side_by_side_and_do_not_touch():
    import cv2

    room = np.ones((256, 256), bool)
    spread = {}
    for noises in (1, 4):
        ratios = []
        for seed in range(12):
            rule = settings(noises=noises, exponent_min=3, components_max=100)
            found = draw_components(np.random.default_rng(seed), room, rule, 256**2)
            count = cv2.connectedComponents((found > 0).astype(np.uint8), connectivity=8)[0]
            assert count - 1 == found.max()
            areas = np.bincount(found.ravel())[1:]
            if len(areas) >= 4:
                ratios.append(areas.max() / np.median(areas))
        spread[noises] = np.median(ratios)
    assert spread[4] > 1.5 * spread[1]


def test_a_tile_has_its_share_of_an_images_components_of_the_same_size():
    rule = settings(components_max=60)
    numbers, middles = {256: [], 128: []}, {256: [], 128: []}
    for side, seen in numbers.items():
        for seed in range(40):
            room = np.ones((side, side), bool)
            found = draw_components(np.random.default_rng(seed), room, rule, 256**2)
            seen.append(found.max())
            middles[side] += np.bincount(found.ravel())[1:].tolist()
    assert max(numbers[256]) > 30
    assert max(numbers[128]) <= 15
    assert 0.6 < np.mean(middles[128]) / np.mean(middles[256]) < 1.6


def test_all_of_the_noise_covers_more_than_lesions_do(eyes):
    few = mixed(eyes, components_max=10).mask.float().mean()
    most = mixed(eyes, masks="perlin", exponent_min=0, exponents_apart=8).mask
    assert most.float().mean() > 2 * few
    assert not (most & ~eyes[2]).any()


# -- fusion --------------------------------------------------------------------------------------


def blocks():
    found = np.zeros((40, 40), np.int32)
    found[0:15, 2:17] = 1  # at the image's edge
    found[20:22, 5:30] = 2  # thin
    found[30:37, 30:39] = 3
    return found


def test_the_default_fusion_rises_from_nothing_at_the_rim():
    found = blocks()
    weight = fusion_map(np.random.default_rng(0), found, settings(edge=4.0, strength=(1, 1)))
    assert not weight[found == 0].any()
    assert weight[found > 0].min() > 0
    framed = np.pad(weight, 1)
    for axis in (0, 1):
        assert np.abs(np.diff(framed, axis=axis)).max() <= 1 / 4 + 1e-6
    assert weight[7, 9] == 1
    assert weight[found == 2].max() == pytest.approx(1 / 4)
    half = fusion_map(np.random.default_rng(0), found, settings(edge=1.0, strength=(1, 1)))
    assert half[2, 9] == pytest.approx(3 / 4)  # by default the rise ends at half of the depth
    rule = settings(edge=1.0, ramp=1.0, strength=(0.6, 0.9))
    deep = fusion_map(np.random.default_rng(0), found, rule)
    strengths = [deep[2, 9] * 8 / 3, deep[33, 34]]  # three pixels in, of eight; a middle
    assert 0.6 <= min(strengths) < max(strengths) <= 0.9  # each component's own


def test_self_mix_starts_from_its_share_at_the_rim():
    found = blocks()
    rims = []
    for seed in range(20):
        weight = fusion_map(np.random.default_rng(seed), found, settings(fusion="selfmix"))
        rims += [weight[0, 2], weight[30, 30]]
        assert weight[7, 9] == pytest.approx(1)
        assert (weight[found == 2] == 1).all()  # no depth to rise over
        assert weight[3, 9] == pytest.approx(rims[-2] + (1 - rims[-2]) * 3 / 7)
    assert 0 <= min(rims) < 0.1
    assert 0.4 < max(rims) <= 0.5
    assert len(set(rims)) == 40  # each component's own
    reference = [
        fusion_map(np.random.default_rng(s), found, settings(fusion="selfmix_reference"))[0, 2]
        for s in range(20)
    ]
    assert 0.7 <= min(reference) <= max(reference) <= 1
    flat = fusion_map(np.random.default_rng(0), found, settings(fusion="constant", rim=(0.2, 0.9)))
    assert len(np.unique(flat[found > 0])) == 1
    assert 0.2 <= flat.max() <= 0.9


# -- the images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["continuous", "selfmix", "selfmix_reference", "constant"])
def test_what_is_pasted_is_labelled_and_stays_in_range_and_in_the_field_of_view(eyes, fusion):
    image, _, disc = eyes
    kept = image.clone()
    made = mixed(eyes, fusion=fusion, least_change=0.0, rim=(0.2, 0.5))
    assert torch.equal(image, kept)
    assert made.mask.flatten(1).any(1).all()
    assert torch.equal(made.label, made.mask.float())
    assert torch.equal(made.fusion > 0, made.mask)
    assert 0 <= made.fusion.min() <= made.fusion.max() <= 1
    assert 0 <= made.image.min() <= made.image.max() <= 1
    assert not (made.mask & ~disc).any()
    outside = ~made.mask[:, None].expand_as(image)
    assert torch.equal(made.image[outside], image[outside])
    assert (made.image != image).any()


def test_every_component_has_a_patch_of_its_own_alone(eyes):
    image, sources, _ = eyes
    ring = np.zeros((SIDE, SIDE), np.int32)
    ring[20:60, 20:60] = 1
    ring[26:54, 26:54] = 0
    both = ring.copy()
    both[35:45, 35:45] = 2  # inside the first one's box
    weight = (both > 0).astype(np.float32)
    pixels = np.ascontiguousarray(np.moveaxis(image[0].numpy(), 0, -1))
    source = np.ascontiguousarray(np.moveaxis(sources[0].numpy(), 0, -1))
    one, two = pixels.copy(), pixels.copy()
    for target, parts in ((one, ring), (two, both)):
        rng = np.random.default_rng(0)
        _paste(rng, target, parts, weight * (parts > 0), source, None, settings())
    assert np.array_equal(one[both == 1], two[both == 1])
    whole = both.copy()
    whole[both == 1] = 2
    whole[both == 2] = 1
    swapped = pixels.copy()
    _paste(np.random.default_rng(0), swapped, whole, weight, source, None, settings())
    assert np.array_equal(swapped[both == 0], pixels[both == 0])
    small = np.where(both == 2, 1, 0).astype(np.int32)
    alone = pixels.copy()
    _paste(np.random.default_rng(0), alone, small, weight, source, None, settings())
    assert np.array_equal(swapped[both == 2], alone[both == 2])  # the ring came later, around it


def test_labels_leave_out_what_changed_nothing(eyes):
    image = eyes[0]
    made = mixed(eyes, least_change=0.05)
    change = (made.image - image).abs().mean(1)
    assert torch.equal(made.label > 0, made.mask & (change >= 0.05))
    assert made.label.sum() < made.mask.sum()


def test_the_default_paste_has_no_step_at_the_rim(eyes):
    image = eyes[0]
    steps = {}
    for fusion in ("continuous", "selfmix_reference"):
        made = mixed(
            eyes, seeds=(5, 6, 7), fusion=fusion, exponent_min=2, area_min=0.005, area_max=0.1
        )
        change = (made.image - image).abs().mean(1)
        inner = -torch.nn.functional.max_pool2d(-made.mask.float()[:, None], 3, 1, 1)[:, 0]
        rim = made.mask & (inner == 0)
        steps[fusion] = change[rim].mean().item()
    assert steps["continuous"] < 0.5 * steps["selfmix_reference"]


def test_the_same_seed_makes_the_same_of_an_image_whatever_the_batch(eyes):
    image, sources, disc = eyes
    first, again = mixed(eyes), mixed(eyes)
    assert torch.equal(first.image, again.image)
    alone = mix_in(
        image[1:2],
        seeds=[1],
        sources=sources,
        mask=disc[1:2],
        source_masks=disc,
        settings=settings(),
    )
    assert torch.equal(alone.image[0], first.image[1])
    assert torch.equal(alone.label[0], first.label[1])
    assert not torch.equal(mixed(eyes, seeds=(3, 4, 5)).label, first.label)


def test_about_half_of_the_images_stay_healthy(eyes):
    image, sources, _ = eyes
    many = image[:1].expand(80, -1, -1, -1)
    made = mix_in(many, seeds=range(80), sources=sources)
    clean = ~made.mask.flatten(1).any(1)
    assert 25 <= int(clean.sum()) <= 55
    assert torch.equal(made.image[clean], many[clean])


def test_another_eyes_colour_is_no_lesion(eyes):
    image, _, disc = eyes
    bluish = image.flip(1) * 0.5
    changes = []
    for match in (True, False):
        made = mix_in(
            image,
            seeds=(0, 1, 2),
            sources=bluish,
            mask=disc,
            source_masks=disc,
            settings=settings(match_colours=match, augmentations=0),
        )
        changes.append((made.image - image).abs().sum() / made.fusion.sum())
    assert changes[0] < 0.6 * changes[1]


def test_no_background_of_the_source_is_in_a_patch(eyes):
    image, _, disc = eyes
    sources = torch.full_like(image, 0.5)
    sources[:, :, ~disc[0]] = 0.0
    made = mix_in(
        torch.full_like(image, 0.5),
        seeds=(0, 1, 2),
        sources=sources,
        source_masks=disc,
        settings=settings(augmentations=0, crop_min=0.9, crop_max=1.0, match_colours=False),
    )
    assert made.mask.any()
    torch.testing.assert_close(made.image, torch.full_like(image, 0.5))


@pytest.mark.parametrize("pool", ["mild", "draem"])
@pytest.mark.parametrize("channels", [1, 3])
def test_augmented_patches_stay_patches(pool, channels):
    rng = np.random.default_rng(0)
    patch = rng.random((7, 9, channels)).astype(np.float32)
    kept, different = patch.copy(), 0
    for seed in range(60):
        made = augment(patch, np.random.default_rng(seed), pool, 3)
        assert made.shape == patch.shape
        assert made.dtype == np.float32
        assert 0 <= made.min() <= made.max() <= 1
        different += not np.array_equal(np.sort(made, None), np.sort(patch, None))
    assert different == 60
    assert np.array_equal(patch, kept)


def test_mild_changes_keep_the_order_of_a_tissues_colours():
    tissue = np.full((8, 8, 3), (0.7, 0.4, 0.2), np.float32)
    for seed in range(200):
        red, green, blue = augment(tissue, np.random.default_rng(seed), "mild", 3)[4, 4]
        assert red >= green >= blue


def test_refusals_say_what_is_wanted(eyes):
    image, sources, disc = eyes
    with pytest.raises(ValueError, match="one or three channels"):
        mix_in(image[:, :2], seeds=(0, 1, 2), sources=sources)
    with pytest.raises(ValueError, match="a seed for each of 3"):
        mix_in(image, seeds=(0,), sources=sources)
    with pytest.raises(ValueError, match="at least one"):
        mix_in(image, seeds=(0, 1, 2), sources=sources[:0])
    with pytest.raises(ValueError, match=r"want mask \[3, 96, 96\] bool"):
        mix_in(image, seeds=(0, 1, 2), sources=sources, mask=disc[:1])
    with pytest.raises(ValueError, match="sides of at least 16"):
        mix_in(image[:, :, :8], seeds=(0, 1, 2), sources=sources)
    with pytest.raises(ValueError, match="rim"):
        settings(rim=(0.5, 0.2))
