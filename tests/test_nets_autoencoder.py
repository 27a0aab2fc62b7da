# SPDX-License-Identifier: Apache-2.0
"""The plain encoder and decoder: widths, sizes, what is handed on to a level."""

import pytest
import torch
from torch import nn

from fundad_fast.nets import Autoencoder, Decoder, Encoder, level_widths


def test_widths_double_up_to_eight_times():
    assert level_widths(64) == (64, 128, 256, 512, 512)
    assert level_widths(3, 3) == (3, 6, 12)
    encoder = Encoder(3, level_widths(4))
    convs = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convs] == [
        *[(3, 4), (4, 4), (4, 8), (8, 8), (8, 16)],
        *[(16, 16), (16, 32), (32, 32), (32, 32), (32, 32)],
    ]
    with pytest.raises(ValueError, match="two levels"):
        Encoder(3, (4,))


@pytest.mark.parametrize("shape", [(32, 32), (37, 50), (16, 17)])
def test_levels_halve_and_come_back(shape):
    torch.manual_seed(0)
    net = Autoencoder(2, width=2).eval()
    x = torch.rand(2, 2, *shape)
    image, down, up = net.features(x)
    assert image.shape == x.shape
    sizes = [tuple(-(-n // 2**i) for n in shape) for i in range(5)]
    assert [tuple(f.shape[1:]) for f in down] == [
        (w, *s) for w, s in zip((2, 4, 8, 16, 16), sizes, strict=True)
    ]
    assert [f.shape for f in up] == [f.shape for f in down[:-1]]
    torch.testing.assert_close(net(x), image)
    torch.testing.assert_close(net(x[1:]), image[1:], rtol=1e-4, atol=1e-5)


def test_an_autoencoder_knows_the_image_by_its_coarsest_level_alone():
    torch.manual_seed(0)
    net = Autoencoder(1, width=2).eval()
    _, down, _ = net.features(torch.rand(1, 1, 32, 32))
    sizes = [tuple(f.shape[2:]) for f in down]
    bottom = down[-1].detach().requires_grad_()
    image, _ = net.decoder(bottom, sizes)
    image.sum().backward()
    assert bottom.grad is not None
    assert bottom.grad.abs().max() > 0
    hollow = [torch.zeros_like(f) for f in down[:-1]]
    torch.testing.assert_close(net.decoder(bottom, sizes, hollow)[0], image)


def test_what_is_handed_on_reaches_its_level_and_those_above():
    torch.manual_seed(0)
    widths = level_widths(2, 3)
    decoder = Decoder(widths, 1, extras=(1, 3)).eval()
    x, sizes = torch.rand(1, 8, 4, 4), [(16, 16), (8, 8)]
    extras = [torch.rand(1, 1, 16, 16), torch.rand(1, 3, 8, 8)]
    out, (fine, coarse) = decoder(x, sizes, extras)
    assert out.shape == (1, 1, 16, 16)
    other_fine = decoder(x, sizes, [extras[0] + 1, extras[1]])
    assert torch.equal(other_fine[1][1], coarse)
    assert not torch.equal(other_fine[1][0], fine)
    other_coarse = decoder(x, sizes, [extras[0], extras[1] + 1])
    assert not torch.equal(other_coarse[1][1], coarse)
    with pytest.raises(ValueError, match="2 levels"):
        Decoder(widths, 1, extras=(1,))


def test_a_step_trains_every_part():
    torch.manual_seed(0)
    net = Autoencoder(1, width=2, depth=3)
    x = torch.rand(2, 1, 16, 16)
    (net(x) - x).square().mean().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still
