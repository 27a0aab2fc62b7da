# SPDX-License-Identifier: Apache-2.0
"""The memory, the discriminators and the networks from image to image."""

import math

import pytest
import torch

from fundad_fast.nets import (
    Memory,
    PatchDiscriminator,
    Reconstructor,
    code_divergence,
    fooling_loss,
    telling_loss,
)
from fundad_fast.nets.discriminator import LEAST_SIDE
from fundad_fast.nets.memory import address_entropy, hard_shrink


def test_shrinking_zeroes_small_weights_and_the_rest_sums_to_one():
    weights = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25]])
    got = hard_shrink(weights, 0.2)
    torch.testing.assert_close(got[0], torch.tensor([0.625, 0.375, 0, 0]))
    torch.testing.assert_close(got[1], weights[1])
    edge = hard_shrink(torch.tensor([0.5, 0.25, 0.25]), 0.25)  # at the threshold is below it
    assert edge.tolist() == [1, 0, 0]
    many = hard_shrink(torch.randn(50, 40).mul(2).softmax(-1), 2 / 40)
    torch.testing.assert_close(many.sum(-1), torch.ones(50))
    assert torch.equal(hard_shrink(weights, 0), weights)


def test_where_every_weight_is_small_the_largest_is_kept():
    even = torch.full((6,), 1 / 6)
    even[4] += 0.01
    assert hard_shrink(even, 0.5).tolist() == [0, 0, 0, 0, 1, 0]
    assert hard_shrink(torch.full((3,), 1 / 3), 0.5).tolist() == [1, 0, 0]  # the first of equals
    assert hard_shrink(torch.full((4,), 0.25), 0.25).tolist() == [1, 0, 0, 0]  # at the threshold
    both = hard_shrink(torch.stack([even, torch.tensor([0.9, 0.1, 0, 0, 0, 0])]), 0.5)
    assert both.tolist() == [[0, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0]]


def test_entropy_is_that_of_the_weights():
    weights = torch.tensor([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]], requires_grad=True)
    got = address_entropy(weights)
    torch.testing.assert_close(got, torch.tensor([math.log(4), 0, math.log(2)]), atol=1e-6, rtol=0)
    got.sum().backward()
    assert weights.grad.isfinite().all()


@pytest.mark.parametrize("address", ["dot", "cosine"])
def test_a_memory_reads_mixtures_of_its_slots(address):
    memory = Memory(3, 5, shrink=2.0, address=address)
    z = 3 * torch.randn(2, 3, 4, 6)
    read, weights = memory(z)
    assert read.shape == z.shape
    assert weights.shape == (2, 4, 6, 5)
    torch.testing.assert_close(read, (weights @ memory.keys).movedim(-1, 1))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 6))
    assert not (weights[weights > 0] <= 0).any()
    assert (weights == 0).any()
    keys = memory.keys
    feature = z[1, :, 2, 5]
    like = torch.cosine_similarity(feature[None], keys) if address == "cosine" else keys @ feature
    torch.testing.assert_close(weights[1, 2, 5], hard_shrink(like.softmax(0), 2 / 5))
    read.sum().backward()
    assert keys.grad.abs().sum() > 0
    assert keys.abs().max() <= 3**-0.5


def test_keys_and_values_are_apart():
    memory = Memory(3, 5, values=2)
    read, weights = memory(torch.randn(1, 3, 2, 2))
    torch.testing.assert_close(read, (weights @ memory.values).movedim(-1, 1))
    assert read.shape == (1, 2, 2, 2)


def test_a_discriminator_judges_patches_with_normalised_weights():
    net = PatchDiscriminator(1, 2)
    assert net(torch.rand(3, 1, 64, 64)).shape == (3, 1, 6, 6)
    assert net(torch.rand(1, 1, LEAST_SIDE, LEAST_SIDE)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        net(torch.rand(1, 1, LEAST_SIDE - 1, LEAST_SIDE - 1))
    for _ in range(30):
        net(torch.rand(1, 1, 32, 32))
    net.eval()
    for layer in net.layers[::2]:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
        assert largest == pytest.approx(1, rel=0.05)
    assert any("_u" in name for name in net.state_dict())


def test_the_two_sides_of_the_game():
    logits = torch.tensor([0.3, -1.2])
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(fooling_loss(logits), bce(logits, torch.ones(2)))
    want = (bce(logits, torch.ones(2)) + bce(-2 * logits, torch.zeros(2))) / 2
    torch.testing.assert_close(telling_loss(logits, -2 * logits), want)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"skips": True},
        {"latent": 2},
        {"memory": 7},
        {"memory": 7, "key_value": True, "latent": 3},
        {"latent": 2, "variational": True},
    ],
)
def test_reconstructors_keep_the_size(settings):
    net = Reconstructor(1, 3, width=2, depth=3, **settings)
    made = net(torch.rand(2, 1, 21, 18))
    assert made.image.shape == (2, 3, 21, 18)
    assert (made.weights is not None) == ("memory" in settings)
    assert (made.mean is not None) == ("variational" in settings)
    made.image.mean().backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None]
    assert unused == []


def test_skips_go_past_what_is_narrow_and_without_them_nothing_does():
    x = torch.rand(1, 1, 16, 16)
    for skips in (True, False):
        torch.manual_seed(0)
        net = Reconstructor(1, 1, width=2, depth=3, skips=skips, memory=1).eval()
        other = torch.rand(1, 1, 16, 16)  # one slot: whatever comes, the same is read
        assert torch.equal(net(x).image, net(other).image) is not skips


def test_a_code_is_drawn_in_training_alone():
    net = Reconstructor(1, 1, width=2, depth=2, latent=2, variational=True)
    x = torch.rand(2, 1, 8, 8)
    assert not torch.equal(net(x).image, net(x).image)
    assert torch.equal(net(x, draw=False).image, net(x, draw=False).image)
    net.eval()
    assert torch.equal(net(x).image, net(x).image)


def test_divergence_is_that_of_normal_distributions():
    mean, log_variance = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(
        normal(mean, (log_variance / 2).exp()), normal(torch.zeros(()), torch.ones(()))
    )
    torch.testing.assert_close(code_divergence(mean, log_variance), want)
