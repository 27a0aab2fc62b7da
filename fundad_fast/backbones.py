# SPDX-License-Identifier: Apache-2.0
"""Frozen feature extractors from timm; their weights from a file, a cache or the hub."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HUB = "https://huggingface.co"
HUB_TIMEOUT_S = 5.0


class BackboneError(ValueError):
    """A backbone that timm does not have, or layers that the backbone does not have."""


class WeightsError(BackboneError):
    """Weights are missing or do not fit; the message says which file to give, and how."""


@dataclass(frozen=True)
class WeightsInfo:
    """Where a backbone's weights came from.

    Attributes:
        source: ``file``, ``hub``, ``untrained`` or ``bundle``.
        name: file name, or timm's name of the pretrained weights, or the seed.
        sha256: of the loaded tensors (names and values), so that equal weights have equal hashes
            whatever file they came from.
    """

    source: str
    name: str
    sha256: str


class Backbone(nn.Module):
    """A timm network cut after its last wanted layer, in evaluation mode and without gradients.

    Args:
        name: a timm model name, with or without a weights tag (``resnet18.tv_in1k``).
        layers: module names as timm's feature info gives them (``layer2``), in order of depth.

    Raises:
        BackboneError: for a name that timm does not know, or layers the model does not have.
    """

    def __init__(self, name: str, layers: Sequence[str]) -> None:
        import timm

        super().__init__()
        architecture = name.split(".")[0]
        if not timm.is_model(architecture):
            near = get_close_matches(architecture, timm.list_models(), n=5)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise BackboneError(f"backbone: timm has no model {architecture!r}{hint}")
        try:
            probe = timm.create_model(architecture, pretrained=False, features_only=True)
        except (RuntimeError, AttributeError) as error:
            raise BackboneError(
                f"backbone: timm cannot extract features from {architecture}: {error}"
            ) from error
        known: list[str] = _info(probe).module_name()
        missing = [layer for layer in layers if layer not in known]
        if missing or not layers:
            raise BackboneError(
                f"layers: {architecture} has {', '.join(known)}; asked for "
                f"{', '.join(missing) or 'none'}"
            )
        indices = sorted(known.index(layer) for layer in layers)
        self.net = timm.create_model(
            architecture, pretrained=False, features_only=True, out_indices=tuple(indices)
        )
        self.name = name
        self.layers = tuple(known[i] for i in indices)
        self.channels: tuple[int, ...] = tuple(_info(self.net).channels())
        self.reduction: tuple[int, ...] = tuple(_info(self.net).reduction())
        config = timm.models.get_pretrained_cfg(tagged(name))
        mean = config.mean if config else (0.485, 0.456, 0.406)
        std = config.std if config else (0.229, 0.224, 0.225)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.info = WeightsInfo("untrained", "not initialised", "")
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> list[Tensor]:
        """Feature maps of the wanted layers, shallow first; ``image [b, 3, h, w]`` in [0, 1]."""
        x = ((image - self.mean) / self.std).to(memory_format=torch.channels_last)
        return self.net(x)


def _info(net: Any) -> Any:
    """timm's description of a feature extractor's layers."""
    return net.feature_info


def tagged(name: str) -> str:
    """timm's name with a weights tag: torchvision's ImageNet weights where they exist.

    A bare name stands for ``<name>.tv_in1k``, the weights that the papers used, and not for timm's
    own default; where timm has no such tag the name is left to timm.
    """
    import timm

    if "." in name:
        return name
    return f"{name}.tv_in1k" if timm.is_model_pretrained(f"{name}.tv_in1k") else name


def load_backbone(
    name: str, layers: Sequence[str], weights: str | Path | None = None, *, seed: int = 0
) -> Backbone:
    """Build a backbone and fill it with weights.

    Args:
        name: timm model name.
        layers: see ``Backbone``.
        weights: a ``.safetensors`` file with timm's key names, ``"untrained"`` for seeded random
            weights, or ``None`` for timm's pretrained weights (from the local cache, else from the
            hub, which is given one attempt of 5 s).
        seed: of untrained weights.

    Raises:
        WeightsError: when the file does not fit, or the hub cannot be reached.
    """
    if str(weights) == "untrained":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = Backbone(name, layers)
        net.info = WeightsInfo("untrained", f"seed {seed}", state_hash(net))
        return net
    net = Backbone(name, layers)
    if weights is not None:
        state = _from_file(Path(weights))
        source, label = "file", Path(weights).name
    else:
        state = _from_hub(tagged(name))
        source, label = "hub", tagged(name)
    _fill(net, state, str(weights or label))
    net.info = WeightsInfo(source, label, state_hash(net))
    return net


def state_hash(net: nn.Module) -> str:
    """SHA-256 of a module's tensors, by name, type, shape and value.

    Batch-norm's step counters are left out: they change nothing in evaluation mode, and files of
    the same weights differ in whether they have them.
    """
    digest = hashlib.sha256()
    for key, value in sorted(net.state_dict().items()):
        if key.endswith("num_batches_tracked"):
            continue
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cached_file(name: str) -> Path | None:
    """The pretrained weights of a tagged timm name in the local hub cache, or ``None``."""
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return None
    found = try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
    return Path(found) if isinstance(found, str) else None


def _from_file(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError(f"--weights {path}: no such file")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"--weights {path}: not a readable safetensors file ({error}); pickled checkpoints are "
            "not accepted because loading one can run code"
        ) from error


def _from_hub(name: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise WeightsError(
            f"timm has no pretrained weights for {name}; give --weights FILE.safetensors, or "
            "--weights untrained"
        )
    cached = cached_file(name)
    if cached is not None:
        return load_file(cached)
    url = f"{HUB}/{config.hf_hub_id}/resolve/main/model.safetensors"
    try:  # one look before the hub's own client, whose retries take minutes without a network
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S).close()
        from huggingface_hub import hf_hub_download

        return load_file(hf_hub_download(config.hf_hub_id, "model.safetensors"))
    except (urllib.error.URLError, OSError) as error:
        raise WeightsError(
            f"the pretrained weights of {name} are not cached and cannot be fetched ({error}); "
            f"fetch model.safetensors of {config.hf_hub_id} from the Hugging Face hub elsewhere "
            "and give it with --weights FILE, or use --weights untrained for a trial without them"
        ) from error


def _fill(net: Backbone, state: dict[str, Tensor], source: str) -> None:
    want = net.net.state_dict()
    counters = {key for key in want if key.endswith("num_batches_tracked")}
    missing = sorted(set(want) - set(state) - counters)
    if missing:
        raise WeightsError(
            f"{source} lacks {len(missing)} tensors that {net.name} up to {net.layers[-1]} needs "
            f"({', '.join(missing[:3])}, ...); are they the weights of another model?"
        )
    for key, value in want.items():
        if key in state and state[key].shape != value.shape:
            raise WeightsError(
                f"{source}: {key} has shape {tuple(state[key].shape)}, {net.name} needs "
                f"{tuple(value.shape)}"
            )
    kept = {key: state[key].to(want[key].dtype) for key in want if key in state}
    net.net.load_state_dict({**want, **kept})
