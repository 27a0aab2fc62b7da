# SPDX-License-Identifier: Apache-2.0
"""Frozen feature extractors from timm; their weights from a file, a cache or the hub."""

from __future__ import annotations

import hashlib
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HUB_TIMEOUT_S = 5.0
"""What the hub has to answer in, from the look-up of its name to the file's last redirection."""

_FILE = "model.safetensors"


class BackboneError(ValueError):
    """A backbone or weights tag that timm does not have, or layers the backbone does not have."""


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

    The weights are random, drawn from torch's generator, whose state is then put back.

    Raises:
        BackboneError: for a name or tag that timm does not know, or layers the model does not have.
    """

    def __init__(self, name: str, layers: Sequence[str]) -> None:
        import timm

        super().__init__()
        architecture = name.split(".")[0]
        if not timm.is_model(architecture):
            near = get_close_matches(architecture, timm.list_models(), n=5)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise BackboneError(f"backbone: timm has no model {architecture!r}{hint}")
        config = _pretrained_config(name)
        known = _feature_layers(architecture)
        missing = [layer for layer in layers if layer not in known]
        if missing or not layers:
            raise BackboneError(
                f"layers: {architecture} has {', '.join(known)}; asked for "
                f"{', '.join(missing) or 'none'}"
            )
        indices = sorted(known.index(layer) for layer in layers)
        with torch.random.fork_rng(devices=[]):
            self.net = timm.create_model(
                architecture, pretrained=False, features_only=True, out_indices=tuple(indices)
            )
        self.name = name
        self.layers = tuple(known[i] for i in indices)
        self.channels: tuple[int, ...] = tuple(_info(self.net).channels())
        self.reduction: tuple[int, ...] = tuple(_info(self.net).reduction())
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


@lru_cache
def _feature_layers(architecture: str) -> tuple[str, ...]:
    """The layers whose features timm can give, in order of depth."""
    import timm

    def build() -> Any:
        return timm.create_model(architecture, pretrained=False, features_only=True)

    try:
        with torch.random.fork_rng(devices=[]):
            try:
                with torch.device("meta"):  # shapes only: no memory, and no time for random values
                    probe = build()
            except (NotImplementedError, RuntimeError):  # computes with values while it is built
                probe = build()
    except (RuntimeError, AttributeError) as error:
        raise BackboneError(
            f"backbone: timm cannot extract features from {architecture}: {error}"
        ) from error
    return tuple(_info(probe).module_name())


def _pretrained_config(name: str) -> Any:
    """timm's record of pretrained weights, ``None`` for a model without; raises BackboneError."""
    import timm

    try:
        return timm.models.get_pretrained_cfg(tagged(name))
    except RuntimeError as error:
        architecture, _, tag = name.partition(".")
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
        raise BackboneError(
            f"backbone: timm has no weights {tag!r} of {architecture}; it has "
            f"{', '.join(tags) or 'none'}"
        ) from error


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
            weights, or ``None`` for timm's pretrained weights, see :func:`pretrained_file`.
        seed: of untrained weights.

    Raises:
        BackboneError: see ``Backbone``.
        WeightsError: when the file does not fit, or pretrained weights cannot be had.
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
        state = _tensors(pretrained_file(name))
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
    """The pretrained weights of a timm name in the local hub cache, or ``None``."""
    from huggingface_hub import try_to_load_from_cache

    config = _pretrained_config(name)
    if config is None or not config.hf_hub_id:
        return None
    found = try_to_load_from_cache(config.hf_hub_id, _FILE)
    return Path(found) if isinstance(found, str) else None


def pretrained_file(name: str) -> Path:
    """The pretrained weights of a timm name: from the local hub cache, else fetched into it.

    The hub has 5 s to answer, after which a download takes its time. ``HF_HUB_OFFLINE``,
    ``HF_ENDPOINT`` and the other variables of huggingface_hub hold.

    Raises:
        BackboneError: timm does not know the name or its tag.
        WeightsError: timm has no weights for it, the cached file is damaged, or there is none and
            the hub cannot be reached.
    """
    config = _pretrained_config(name)
    if config is None or not config.hf_hub_id:
        raise WeightsError(
            f"timm has no pretrained weights for {tagged(name)}; give --weights FILE.safetensors, "
            "or --weights untrained"
        )
    path = cached_file(name) or _fetched(tagged(name), config.hf_hub_id)
    _check_header(path)
    return path


def weights_available(name: str) -> WeightsError | None:
    """Why :func:`pretrained_file` cannot give the weights; ``None``: they are in the cache now."""
    try:
        pretrained_file(name)
    except WeightsError as error:
        return error
    return None


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


def _fetched(name: str, repository: str) -> Path:
    """Download the weights of ``repository`` into the hub's cache."""
    from huggingface_hub import constants, hf_hub_download, hf_hub_url

    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        # One look before the hub's own client, whose retries take minutes without a network.
        _look(hf_hub_url(repository, _FILE))
        return Path(hf_hub_download(repository, _FILE, etag_timeout=HUB_TIMEOUT_S))
    except Exception as error:  # the client's own, its HTTP library's, the disk's: no weights
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(
            f"the pretrained weights of {name} are not cached and cannot be fetched ({reason}); "
            f"fetch {_FILE} of {repository} from the Hugging Face hub elsewhere "
            "and give it with --weights FILE, or use --weights untrained for a trial without them"
        ) from error


def _look(url: str) -> None:
    """Ask for the headers of a file; raises within ``HUB_TIMEOUT_S`` where nobody answers."""
    answer: Future[None] = Future()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S).close()
        except Exception as error:  # raised again below
            answer.set_exception(error)
        else:
            answer.set_result(None)

    # urlopen's limit is one of each socket operation, and of none of the look-up of the name. The
    # thread may outlive the limit, and ends with the process.
    threading.Thread(target=ask, name="fundad-hub", daemon=True).start()
    try:
        answer.result(HUB_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):  # the hub is there, and its client may have a token
            raise
    except TimeoutError as error:
        raise TimeoutError(f"{url} did not answer within {HUB_TIMEOUT_S:g} s") from error


def _check_header(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            file.keys()  # to open it was the check: that its header and the file's length agree
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"the cached weights {path} are damaged ({error}): delete this file so that it is "
            "fetched again, or give --weights FILE.safetensors"
        ) from error


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


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
