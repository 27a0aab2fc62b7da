# SPDX-License-Identifier: Apache-2.0
"""Names, layers and weights of the feature extractors, without a network."""

import urllib.error

import pytest
import torch
from safetensors.torch import save_file

from fundad_fast import backbones
from fundad_fast.backbones import Backbone, BackboneError, WeightsError, load_backbone, state_hash

LAYERS = ("layer1", "layer2")


@pytest.fixture(scope="module")
def net() -> Backbone:
    return load_backbone("resnet18", LAYERS, "untrained", seed=3)


def test_features_have_the_layers_shapes_and_the_right_scale(net):
    image = torch.rand(2, 3, 64, 96)
    first, second = net(image)
    assert first.shape == (2, 64, 16, 24)
    assert second.shape == (2, 128, 8, 12)
    assert (net.channels, net.reduction) == ((64, 128), (4, 8))
    x = (image - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(1, 3, 1, 1)
    torch.testing.assert_close(first, net.net(x)[0])
    assert not first.requires_grad


def test_untrained_weights_follow_the_seed_and_leave_the_global_state_alone(net):
    before = torch.random.get_rng_state()
    same, other = (load_backbone("resnet18", LAYERS, "untrained", seed=s) for s in (3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert state_hash(same) == state_hash(net) == net.info.sha256
    assert state_hash(other) != state_hash(net)


def test_weights_come_back_from_a_file_with_surplus_layers(tmp_path, net):
    state = {**net.net.state_dict(), "fc.weight": torch.ones(2, 2)}
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "w"
    )
    read = load_backbone("resnet18.a1_in1k", LAYERS, tmp_path / "w")
    assert read.info.source == "file"
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(read(image)[1], net(image)[1], rtol=0.05, atol=0.05)


def test_what_does_not_fit_is_refused_in_words(tmp_path, net):
    state = net.net.state_dict()
    save_file({k: v for k, v in state.items() if "layer2" not in k}, tmp_path / "short")
    with pytest.raises(WeightsError, match=r"lacks \d+ tensors.*layer2"):
        load_backbone("resnet18", LAYERS, tmp_path / "short")
    save_file({**state, "conv1.weight": torch.ones(1, 3, 7, 7)}, tmp_path / "shape")
    with pytest.raises(WeightsError, match=r"conv1.weight has shape \(1, 3, 7, 7\)"):
        load_backbone("resnet18", LAYERS, tmp_path / "shape")
    (tmp_path / "junk").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_backbone("resnet18", LAYERS, tmp_path / "junk")
    with pytest.raises(WeightsError, match="no such file"):
        load_backbone("resnet18", LAYERS, tmp_path / "absent")


def test_unknown_names_say_what_exists():
    with pytest.raises(BackboneError, match="no model 'resnet17'.*resnet18"):
        Backbone("resnet17", LAYERS)
    with pytest.raises(BackboneError, match="has act1, layer1, .*asked for layer9"):
        Backbone("resnet18", ("layer1", "layer9"))


def test_an_unreachable_hub_names_the_file_and_the_flag(monkeypatch):
    asked = []

    def refuse(request, timeout):
        asked.append((request.full_url, timeout))
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(backbones, "cached_file", lambda name: None)
    monkeypatch.setattr(backbones.urllib.request, "urlopen", refuse)
    with pytest.raises(
        WeightsError, match=r"model.safetensors of timm/resnet18.tv_in1k.*--weights"
    ):
        load_backbone("resnet18", LAYERS)
    assert len(asked) == 1
    assert asked[0][1] == 5.0


def test_a_bare_name_means_torchvision_weights():
    assert backbones.tagged("wide_resnet50_2") == "wide_resnet50_2.tv_in1k"
    assert backbones.tagged("resnet18.a1_in1k") == "resnet18.a1_in1k"


def test_the_packs_weights_load(packs):
    file = packs / "weights" / "resnet18_in1k_layers123.safetensors"
    net = load_backbone("resnet18", ("layer2", "layer3"), file)
    deep = net(torch.rand(1, 3, 64, 64))[1]
    assert deep.shape == (1, 256, 4, 4)
    assert torch.isfinite(deep).all()
    assert (deep >= 0).all()
