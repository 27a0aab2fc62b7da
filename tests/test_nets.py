# SPDX-License-Identifier: Apache-2.0
"""The U-Net's shapes and numbers, and the channels that say where a pixel lies."""

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from torch import nn

from fundad_fast.nets import UNet, position_channels
from fundad_fast.nets.doubling import doubled


def test_position_channels_are_coordinates_then_sines_then_cosines():
    got = position_channels((4, 6))
    assert got.shape == (66, 4, 6)
    np.testing.assert_allclose(got[0, :, 2], [-1, -1 / 3, 1 / 3, 1], atol=1e-6)
    np.testing.assert_allclose(got[1, 3], np.linspace(-1, 1, 6), atol=1e-6)
    b = 12 * np.random.default_rng(42).standard_normal((32, 2))
    phase = 2 * np.pi * b @ [3 / 4, 5 / 6]
    np.testing.assert_allclose(got[2:34, 3, 5], np.sin(phase), atol=1e-5)
    np.testing.assert_allclose(got[34:, 3, 5], np.cos(phase), atol=1e-5)
    assert position_channels((2, 3, 4)).shape == (67, 2, 3, 4)


def widths(net):
    stages = [*net.down, *net.up]
    return [(s.conv1.in_channels, s.conv1.out_channels, s.conv2.out_channels) for s in stages]


def test_widths_are_those_of_the_public_code():
    brain = UNet(1, 3, width=32, depth=5)
    assert widths(brain) == [
        *[(68, 32, 32), (32, 64, 64), (64, 128, 128), (128, 256, 256), (256, 320, 256)],
        *[(512, 256, 128), (256, 128, 64), (128, 64, 32), (64, 32, 32)],
    ]
    xray = UNet(1, 2, width=32, depth=7)
    assert [w[1] for w in widths(xray)[:7]] == [32, 64, 128, 256, 512, 512, 512]
    assert widths(xray)[0][0] == 67
    assert xray.out.bias is None
    assert [s.conv1.stride for s in xray.down] == [(1, 1), *[(2, 2)] * 6]


@pytest.mark.parametrize("shape", [(16, 16), (13, 18), (8, 12, 10)])
def test_the_output_is_of_the_inputs_shape_and_each_image_is_on_its_own(shape):
    torch.manual_seed(0)
    net = UNet(2, len(shape), width=4, depth=3, outputs=3)
    x = torch.randn(3, 2, *shape)
    y = net(x)
    assert y.shape == (3, 3, *shape)
    assert y.min() < 0
    torch.testing.assert_close(net(x[1:2]), y[1:2], rtol=1e-4, atol=1e-5)


def test_positions_computed_once_are_positions_appended_to_every_image():
    torch.manual_seed(0)
    net = UNet(1, 2, width=4, depth=2).double()
    x = torch.randn(2, 1, 9, 8, dtype=torch.float64)
    place = position_channels((9, 8)).double()[None]
    net._positions[(9, 8)] = place
    whole = nn.Conv2d(67, 4, 3, padding=1).double()
    whole.load_state_dict(net.down[0].conv1.state_dict())
    want = whole(torch.cat([x, place.expand(2, -1, -1, -1)], 1))
    stage = net.down[0]
    want = nnf.gelu(stage.norm1(want))
    want = nnf.gelu(stage.norm2(stage.conv2(want)))
    torch.testing.assert_close(stage(x, place), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(net._position((9, 8), x.device), place)


@pytest.mark.parametrize("shape", [(1, 5), (4, 3, 2)])
def test_up_sampling_is_linear_without_aligned_corners(shape):
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    mode = {2: "bilinear", 3: "trilinear"}[len(shape)]
    want = nnf.interpolate(x, scale_factor=2, mode=mode, align_corners=False)
    torch.testing.assert_close(doubled(x), want)


def test_weights_start_as_he_normal():
    torch.manual_seed(0)
    net = UNet(1, 2, width=32, depth=3)
    conv = net.down[1].conv2
    want = (2 / (1 + 0.01**2) / (conv.in_channels * 9)) ** 0.5
    assert conv.weight.std().item() == pytest.approx(want, rel=0.02)
    assert not conv.bias.any()


def test_impossible_networks_are_refused():
    with pytest.raises(ValueError, match="dims"):
        UNet(1, 4)
    with pytest.raises(ValueError, match="depth"):
        UNet(1, 2, depth=1)


def test_a_quiet_network_says_nothing_at_first_and_learns_all_the_same():
    torch.manual_seed(0)
    net = UNet(1, 2, width=4, depth=3, quiet=True)
    x = torch.randn(2, 1, 16, 16)
    assert not net(x).any()
    (net(x) - 1).square().mean().backward()
    assert net.out.weight.grad.abs().min() > 0
    assert net.down[1].conv2.weight.std() > 0.1
