# SPDX-License-Identifier: Apache-2.0
"""Diffusion models of diffusers: built, read from a folder, and called as one function.

diffusers is an extra (``pip install 'fundad-fast[diffusion]'``), imported when a model is built:
neither the package nor a method that has no diffusion model in it needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .backbones import WeightsError

STEPS = 1000
"""T of the models that are built here."""

Attention = Literal["all", "deepest"]


class Denoiser(nn.Module):
    """ε_θ with its noise schedule.

    Attributes:
        kept: ᾱ ``[T]`` float64, a buffer, so that it travels with the weights.
        config: what the network is built from, as JSON can hold it.
    """

    kept: Tensor

    def __init__(self, unet: nn.Module, kept: Tensor, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.unet = unet
        self.config = dict(config)
        self.register_buffer("kept", kept.double())

    @property
    def resolution(self) -> int:
        """Side of the images that it takes, in pixels."""
        return int(self.config["sample_size"])

    @property
    def channels(self) -> int:
        return int(self.config["in_channels"])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The noise in images ``[b, c, r, r]`` in [-1, 1] at steps ``[b]``, of the same shape.

        Grey images go through a model of colour ones as three equal channels; the mean comes back.
        """
        if x.shape[1] == 1 and self.channels == 3:
            return self.unet(x.expand(-1, 3, -1, -1), t, return_dict=False)[0].mean(1, keepdim=True)
        return self.unet(x, t, return_dict=False)[0]


def make_denoiser(
    channels: int,
    *,
    resolution: int = 32,
    width: int = 64,
    multipliers: Sequence[int] = (1, 2, 4, 8),
    blocks: int = 2,
    attention: Attention = "all",
) -> Denoiser:
    """An untrained U-Net that predicts noise, with the cosine schedule of 1,000 steps.

    diffusers' ``UNet2DModel`` in place of the public code's U-Net, which has linear attention and
    standardised weights that this one has not: our choice. GroupNorm of 8, SiLU, time as scale and
    shift, heads of 32, as there. The weights are drawn from torch's generator.

    Args:
        channels: of the images.
        resolution: side of the images, in pixels; divides by 2 at every level but the last.
        width: channels at full resolution, a multiple of 8.
        multipliers: of the width, one per level.
        blocks: residual blocks of a level.
        attention: at ``all`` levels (and in the middle), or at the ``deepest`` alone.

    Raises:
        WeightsError: diffusers is not installed, or a number does not fit.
    """
    diffusers = _diffusers()
    levels = len(multipliers)
    if resolution % 2 ** (levels - 1):
        raise WeightsError(
            f"a resolution of {resolution} cannot be halved {levels - 1} times; use fewer levels, "
            "or a multiple"
        )
    if width % 8:
        raise WeightsError(f"a width of {width}: want a multiple of 8")
    attends = [attention == "all" or level == levels - 1 for level in range(levels)]
    down = ["AttnDownBlock2D" if yes else "DownBlock2D" for yes in attends]
    up = ["AttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)]
    config = {
        "sample_size": resolution,
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": blocks,
        "block_out_channels": [width * m for m in multipliers],
        "down_block_types": down,
        "up_block_types": up,
        "norm_num_groups": 8,
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": min(32, width),
    }
    scheduler = diffusers.DDPMScheduler(STEPS, beta_schedule="squaredcos_cap_v2")
    return Denoiser(diffusers.UNet2DModel(**config), scheduler.alphas_cumprod, config)


def load_denoiser(folder: str | Path) -> Denoiser:
    """The model of a DDPM folder as diffusers writes it: ``unet/`` and ``scheduler/``.

    Older ones have the files of both in the folder itself. Any noise schedule and any number of
    steps will do. Nothing is fetched and nothing pickled is read.

    Raises:
        WeightsError: diffusers is not installed, or the folder is no such model; says why.
    """
    path = Path(folder)
    in_folders = (path / "unet").is_dir() and (path / "scheduler").is_dir()
    if not in_folders and not (path / "scheduler_config.json").is_file():
        raise WeightsError(
            f"--weights {path}: want a diffusers DDPM folder, which holds unet/ and scheduler/"
        )
    diffusers = _diffusers()
    try:
        scheduler = diffusers.DDPMScheduler.from_pretrained(
            str(path), subfolder="scheduler" if in_folders else None, local_files_only=True
        )
        unet = diffusers.UNet2DModel.from_pretrained(
            str(path),
            subfolder="unet" if in_folders else None,
            local_files_only=True,
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise WeightsError(f"--weights {path}: diffusers cannot read it ({error})") from error
    kind = scheduler.config.prediction_type
    if kind != "epsilon":
        raise WeightsError(
            f"--weights {path}: the model predicts {kind!r}; want the noise, epsilon"
        )
    config = {k: v for k, v in dict(unet.config).items() if not k.startswith("_")}
    size, taken, given = (config[k] for k in ("sample_size", "in_channels", "out_channels"))
    if not isinstance(size, int) or taken != given:
        raise WeightsError(
            f"--weights {path}: want a model of squares with as many channels out as in, got "
            f"sample_size={size}, {taken} and {given} channels"
        )
    # Weights that lie where the file is mapped are not aligned, and products of them round
    # otherwise than those of the same weights from a bundle: a copy is aligned.
    return Denoiser(deepcopy(unet.float()), scheduler.alphas_cumprod, config)


def save_denoiser(net: Denoiser, folder: str | Path) -> None:
    """Write a model as a DDPM folder of diffusers, as :func:`load_denoiser` reads it.

    Args:
        net: a model with the cosine schedule, such as :func:`make_denoiser`'s.
        folder: is made.

    Raises:
        WeightsError: diffusers is not installed, or the model has another schedule.
    """
    diffusers = _diffusers()
    scheduler = diffusers.DDPMScheduler(len(net.kept), beta_schedule="squaredcos_cap_v2")
    if not torch.equal(scheduler.alphas_cumprod.double(), net.kept.cpu()):
        raise WeightsError(f"{folder}: only models with the cosine schedule can be written")
    diffusers.DDPMPipeline(net.unet, scheduler).save_pretrained(folder)


def denoiser_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Denoiser:
    """A model from its ``config`` and its state, as a bundle holds them.

    Raises:
        WeightsError: diffusers is not installed.
    """
    diffusers = _diffusers()
    with torch.random.fork_rng([]):
        unet = diffusers.UNet2DModel(**config)
    made = Denoiser(unet, tensors["kept"], config)
    made.load_state_dict(dict(tensors))
    return made


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise WeightsError(
            "a diffusion model needs the package diffusers, which is not installed: "
            "pip install 'fundad-fast[diffusion]'; or choose dissolve=blur or dissolve=none"
        ) from error
    return diffusers
