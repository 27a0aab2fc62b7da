# SPDX-License-Identifier: Apache-2.0
"""The real rows that operators are measured on, by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fundad_fast import ops

KINDS = {
    "c": "ReSAD features P + R, 16 healthy IDRiD images at 784 px, ResNet-18 layers 2+3",
    "f": "backbone features F of the same images",
}
IMAGES = 16
SIZE = 784
WEIGHTS = "weights/resnet18_in1k_layers123.safetensors"

MAPS = {  # channels and cells per side of a feature map
    "WideResNet-50 at 784 px": (1536, 98),
    "ResNet-18 at 784 px": (384, 98),
    "ResNet-18 at 512 px": (384, 64),
}


def real_rows(kind: str, packs: Path, kept: Path) -> Tensor:
    """``[153664, 384]`` float32 rows; computed once and kept as ``rows_c.npy`` and ``rows_f.npy``.

    Args:
        kind: a key of ``KINDS``.
        packs: the folder of data packs.
        kept: where the files are kept.
    """
    file = kept / f"rows_{kind}.npy"
    if not file.exists():
        combined, plain = _make(packs)
        np.save(kept / "rows_c.npy", combined.numpy())
        np.save(kept / "rows_f.npy", plain.numpy())
    return torch.from_numpy(np.load(file))


@torch.inference_mode()
def _make(packs: Path) -> tuple[Tensor, Tensor]:
    import timm
    from PIL import Image
    from safetensors.torch import load_file

    net = timm.create_model("resnet18", features_only=True, out_indices=(2, 3)).eval()
    weights = load_file(packs / WEIGHTS)
    net.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    combined, plain = [], []
    for path in sorted((packs / "idrid_512/train/good").iterdir())[:IMAGES]:
        with Image.open(path) as image:
            resized = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
        fine, coarse = net(((pixels - mean) / std)[None])
        coarse = F.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=False)
        f = torch.cat([fine, coarse], 1)
        rows = f.flatten(2).transpose(1, 2).contiguous()
        r = ops.distance_filter(f, 12).flatten(2).transpose(1, 2)
        combined.append((ops.self_attention(rows) + r)[0])
        plain.append(rows[0])
    return torch.cat(combined), torch.cat(plain)


# Boxes that synthetic anomalies are blended in: bounding boxes of masks drawn as in "Many tasks
# make light work" for images of 256² (76² on average, up to 207 an axis) and volumes of
# 80 x 112 x 80.
BOXES = {
    "2-D 60x80": (1, 60, 80),
    "2-D 128x128": (1, 128, 128),
    "2-D 207x150": (1, 207, 150),
    "3-D 28x29x29": (1, 28, 29, 29),
    "3-D 60x70x60": (1, 60, 70, 60),
}


def box(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Target, source and an elliptic mask; smooth noise, as resampled images are."""
    g = torch.Generator().manual_seed(seed)
    coarse = [max(2, n // 4) for n in shape[1:]]
    mode = "bilinear" if len(coarse) == 2 else "trilinear"
    target, source = (
        F.interpolate(torch.randn(1, shape[0], *coarse, generator=g), shape[1:], mode=mode)[0]
        for _ in range(2)
    )
    grids = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape[1:]), indexing="ij")
    mask = torch.stack([grid.square() for grid in grids]).sum(0) < 0.95
    return target.contiguous(), source.contiguous(), mask
