# SPDX-License-Identifier: Apache-2.0
"""Maps of what was made of an image: pixels or structure, blurred, relative to contrast."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from small_proxies import fit_on
from small_tasks import batches

from fundad_fast.batch import Batch
from fundad_fast.methods import Autoencoder, ConfigError, ProxyAno
from fundad_fast.methods.residuals import residual_map, to_contrast, top_means


def pair(size=48, seed=0):
    torch.manual_seed(seed)
    image = torch.rand(2, 1, size, size) * 0.5 + 0.2
    return image, (image + 0.1 * torch.randn_like(image)).clamp(0, 1)


def test_pixels_are_compared_by_absolute_or_squared_differences():
    image, made = (
        x.expand(-1, 3, -1, -1) * torch.tensor([1, 0.5, 0.2])[:, None, None] for x in pair()
    )
    for squared, want in ((False, (made - image).abs()), (True, (made - image) ** 2)):
        torch.testing.assert_close(residual_map(made, image, None, squared=squared), want.mean(1))


def test_structure_is_scikit_images():
    image, made = pair()
    full = residual_map(made, image, None, squared=False, compare="structure")
    for i in range(2):
        _, want = structural_similarity(
            image[i, 0].numpy(),
            made[i, 0].numpy(),
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        inner = (slice(5, -5),) * 2  # it mirrors at the edges
        np.testing.assert_allclose(full[i].numpy()[inner], 1 - want[inner], atol=1e-4)
    assert residual_map(image, image, None, squared=False, compare="structure").abs().max() < 1e-5


def test_blurred_differences_cancel_at_edges_and_stay_over_areas():
    image = torch.zeros(1, 1, 64, 64)
    shifted, brighter = image.clone(), image.clone()
    shifted[..., 20], shifted[..., 21] = 0.5, -0.5  # an edge, a pixel off
    brighter[..., 30:50, 30:50] = 0.5
    for made, stays in ((shifted, False), (brighter, True)):
        sharp = residual_map(made, image, None, squared=False)
        soft = residual_map(made, image, None, squared=False, blur=0.05)
        assert (soft.max() > 0.9 * sharp.max()).item() is stays
        assert (soft.mean() > 0.8 * sharp.mean()).item() is stays
    # What is outside the mask takes nothing from what is inside.
    mask = torch.ones(1, 64, 64, dtype=torch.bool)
    mask[:, :, 50:] = False
    flat = residual_map(image + 0.3, image, mask, squared=False, blur=0.05)
    torch.testing.assert_close(flat[mask], torch.full_like(flat[mask], 0.3))


@pytest.mark.parametrize("squared", [False, True])
def test_relative_to_contrast_an_image_of_more_contrast_has_no_larger_differences(squared):
    image, made = pair()
    both = torch.cat([image, 0.5 + 3 * (image - 0.5)]), torch.cat([made, 0.5 + 3 * (made - 0.5)])
    plain, whole, local = (
        residual_map(both[1], both[0], None, squared=squared, relative=how).mean((1, 2))
        for how in ("none", "image", "local")
    )
    assert plain[2] == pytest.approx(float(plain[0]) * 3 ** (1 + squared), rel=1e-4)
    for one in (whole, local):
        assert 1 <= one[2] / one[0] < 1.4 ** (1 + squared)  # but for what keeps it finite
    # Contrast is of what lies inside the mask alone.
    mask = torch.zeros(2, 48, 48, dtype=torch.bool)
    mask[:, 8:40, 8:40] = True
    cut = image * mask[:, None]
    deviation = cut[0, 0][mask[0]].std(unbiased=False) + 0.02
    full = to_contrast(torch.ones(2, 48, 48), cut, mask, "image", squared)
    assert float(full[0, 20, 20]) == pytest.approx(float(deviation) ** -(1 + squared), rel=1e-4)
    inner = to_contrast(torch.ones(2, 48, 48), cut, mask, "local", squared)[0, 24, 24]
    assert float(inner) == pytest.approx(float(full[0, 20, 20]), rel=0.5)
    flat = torch.full((1, 1, 32, 32), 0.4)
    assert residual_map(flat + 0.1, flat, None, squared=False, relative="local").max() < 5.2


def test_the_highest_share_is_of_what_lies_inside():
    full = torch.arange(100.0).view(1, 10, 10)
    assert top_means(full, None, 0.05) == 97
    mask = torch.ones(1, 10, 10, dtype=torch.bool)
    mask[:, 9] = False
    assert top_means(full, mask, 0.001) == 89
    assert top_means(full, ~mask & mask, 0.5) == 0


@pytest.mark.parametrize("method", [ProxyAno, Autoencoder])
def test_scores_follow_these_settings_and_weights_do_not(method):
    plain = fit_on(method, batches(6, masked=True), max_steps=2)
    changes = {"compare": "structure", "image_score": "top", "top_fraction": 0.1}
    other = fit_on(method, batches(6, masked=True), max_steps=2, **changes)
    assert set(changes) <= method.of_scoring
    weights = other.state().weights
    assert all(torch.equal(v, weights[k]) for k, v in plain.state().weights.items())
    one = batches(1, start=50, masked=True)[0]
    scores = other.score(one)
    assert scores.image == pytest.approx(top_means(scores.map, one.mask, 0.1))
    assert not torch.allclose(scores.map, plain.score(one).map)
    outside = Batch(torch.where(one.mask[:, None], one.image, 0.9), one.id, one.mask)
    assert torch.equal(other.score(outside).image, scores.image)


def test_what_judges_single_pixels_says_so():
    for kind in ("aeu", "inpaint"):
        with pytest.raises(ConfigError, match=f"kind={kind} compares single pixels"):
            fit_on(Autoencoder, batches(6), kind=kind, residual_blur=0.1)
        fit_on(Autoencoder, batches(6), kind=kind, residual_relative="image", max_steps=1)


@pytest.mark.parametrize("how", [{}, {"compare": "structure"}, {"blur": 0.05}])
def test_what_was_made_outside_the_mask_does_not_count(how):
    image, made = pair()
    mask = torch.zeros(2, 48, 48, dtype=torch.bool)
    mask[:, 8:40, 8:40] = True
    image = image * mask[:, None]
    other = torch.where(mask[:, None], made, 0.9)
    full, again = (residual_map(m, image, mask, squared=False, **how) for m in (made, other))
    assert torch.equal(full[mask], again[mask])
