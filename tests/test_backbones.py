# SPDX-License-Identifier: Apache-2.0
"""Names, layers and weights of the feature extractors, without a network."""

import http.server
import threading
import urllib.error

import pytest
import torch
from safetensors.torch import save_file

from fundad_fast import backbones
from fundad_fast.backbones import (
    Backbone,
    BackboneError,
    WeightsError,
    load_backbone,
    pretrained_file,
    state_hash,
    weights_available,
)

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


def test_building_for_other_weights_leaves_the_global_state_alone():
    backbones._feature_layers.cache_clear()
    before = torch.random.get_rng_state()
    Backbone("resnet18", LAYERS)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_network_is_built_once_after_the_first_of_its_kind(monkeypatch):
    import timm

    Backbone("resnet18", LAYERS)
    real, built = timm.create_model, []
    monkeypatch.setattr(
        timm, "create_model", lambda *args, **more: built.append(args) or real(*args, **more)
    )
    Backbone("resnet18", ("layer3",))
    assert built == [("resnet18",)]
    backbones._feature_layers.cache_clear()
    Backbone("resnet18", LAYERS)
    assert len(built) == 3


def test_a_model_that_reads_values_while_it_is_built_is_looked_at_too(monkeypatch):
    import timm

    real = timm.create_model

    def reads(*args, **more):
        torch.zeros(1).item()  # fails on the meta device
        return real(*args, **more)

    backbones._feature_layers.cache_clear()
    monkeypatch.setattr(timm, "create_model", reads)
    assert Backbone("resnet18", LAYERS).layers == LAYERS


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
    for use in (
        lambda: Backbone("resnet18.nope", LAYERS),
        lambda: pretrained_file("resnet18.nope"),
    ):
        with pytest.raises(BackboneError, match="no weights 'nope' of resnet18; it has .*tv_in1k"):
            use()


@pytest.fixture
def uncached(monkeypatch):
    """An empty cache, and a client that must not be asked."""
    import huggingface_hub

    def client(*args, **more):
        pytest.fail("the hub's client was asked")

    monkeypatch.setattr(backbones, "cached_file", lambda name: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", client)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def endpoint(monkeypatch):
    """A hub on this machine that answers every look with the status in the list."""
    import huggingface_hub

    asked, status = [], [200]

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        template = base + "/{repo_id}/resolve/{revision}/{filename}"
        # What the environment variable HF_ENDPOINT sets.
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield asked, status
        server.shutdown()


ADVICE = r"model.safetensors of timm/resnet18.tv_in1k.*--weights"


def test_an_unreachable_hub_names_the_file_and_the_flag(monkeypatch, uncached):
    asked = []

    def refuse(request, timeout):
        asked.append((request.full_url, request.get_method(), timeout))
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(backbones.urllib.request, "urlopen", refuse)
    with pytest.raises(WeightsError, match=f"no route.*{ADVICE}"):
        load_backbone("resnet18", LAYERS)
    ((url, method, timeout),) = asked
    assert url.endswith("/timm/resnet18.tv_in1k/resolve/main/model.safetensors")
    assert (method, timeout) == ("HEAD", 5.0)


def test_a_hub_that_hangs_is_given_up(monkeypatch, uncached):
    ended = threading.Event()
    monkeypatch.setattr(backbones.urllib.request, "urlopen", lambda *a, **b: ended.wait(2))
    monkeypatch.setattr(backbones, "HUB_TIMEOUT_S", 0.05)
    error = weights_available("resnet18")
    assert isinstance(error, WeightsError)
    assert "did not answer within 0.05 s" in str(error)
    ended.set()


def test_offline_is_honoured(monkeypatch, uncached):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(backbones, "_look", lambda url: pytest.fail("the network was asked"))
    with pytest.raises(WeightsError, match=f"HF_HUB_OFFLINE is set.*{ADVICE}"):
        pretrained_file("resnet18")


@pytest.mark.parametrize("status", [404, 503])
def test_a_hub_without_the_file(uncached, endpoint, status):
    endpoint[1][0] = status
    with pytest.raises(WeightsError, match=f"{status}.*{ADVICE}"):
        pretrained_file("resnet18")
    assert endpoint[0] == ["/timm/resnet18.tv_in1k/resolve/main/model.safetensors"]


@pytest.mark.parametrize("status", [200, 401])
def test_any_error_of_the_hubs_client_is_said_in_words(monkeypatch, uncached, endpoint, status):
    import huggingface_hub

    class ClientError(Exception):
        pass

    def client(repository, name, **more):
        raise ClientError("disk\nquota")

    endpoint[1][0] = status
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", client)
    with pytest.raises(WeightsError, match=rf"\(disk quota\).*{ADVICE}"):
        pretrained_file("resnet18")
    assert len(endpoint[0]) == 1


def test_fetched_weights_are_loaded(monkeypatch, uncached, endpoint, tmp_path, net):
    import huggingface_hub

    save_file(net.net.state_dict(), tmp_path / "w")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **b: str(tmp_path / "w"))
    assert weights_available("resnet18") is None
    read = load_backbone("resnet18", LAYERS)
    assert (read.info.source, read.info.name) == ("hub", "resnet18.tv_in1k")
    assert read.info.sha256 == net.info.sha256


def test_a_damaged_file_in_the_cache_is_to_be_deleted(monkeypatch, uncached, tmp_path, net):
    save_file(net.net.state_dict(), tmp_path / "w")
    whole = (tmp_path / "w").read_bytes()
    monkeypatch.setattr(backbones, "cached_file", lambda name: tmp_path / "w")
    assert pretrained_file("resnet18") == tmp_path / "w"
    for damaged in (b"", b"<html>", whole[:-100]):
        (tmp_path / "w").write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"/w are damaged .*delete this file.*--weights"):
            load_backbone("resnet18", LAYERS)


def test_a_model_without_pretrained_weights_says_so():
    with pytest.raises(WeightsError, match="no pretrained weights for .*--weights"):
        pretrained_file("resnet10t_nothing")


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
