# SPDX-License-Identifier: Apache-2.0
"""``fundad dissolve``: what a diffusion model makes of one's own image, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Overwrite, UsageError
from .steps import told

if TYPE_CHECKING:
    from torch import Tensor

    from ..diffusion import Denoiser

STEPS = tuple(range(50, 401, 50))
"""The time steps of the poster's strip, and those between them."""


def dissolve(
    image: Annotated[Path, typer.Argument(help="An image.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.")],
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="A model of dia, as fit writes it.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Or a folder with a DDPM of diffusers.")
    ] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option("--t", min=0, max=999, help="A time step; may be repeated. 50, 100 to 400."),
    ] = None,
    side: Annotated[
        int | None,
        typer.Option("--size", min=16, help="Side of the square. Default: the model's, or 224."),
    ] = None,
    compat_no_rescale: Annotated[
        bool, typer.Option("--compat-no-rescale", help="The range of the public code.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw an image as a diffusion model dissolves it, step by step, and what it took away."""
    with told(resumes=False):
        from ..data import ReadError

        if output.exists() and not overwrite:
            raise UsageError(f"{output} exists; give another -o, or --overwrite")
        if output.suffix.lower() != ".png":
            raise UsageError(f"-o {output}: want a name that ends in .png")
        if (model is None) == (weights is None):
            raise UsageError("say whose diffusion model: -m MODEL of dia, or --weights FOLDER")
        try:
            _draw(image, output, model, weights, steps or list(STEPS), side, compat_no_rescale)
        except ReadError as error:
            raise UsageError(f"{error.status}: {error.reason}") from error


def _draw(
    path: Path,
    output: Path,
    model: Path | None,
    weights: Path | None,
    steps: list[int],
    side: int | None,
    compat: bool,
) -> None:
    import cv2
    import torch

    from ..synthetic import dissolve
    from ..synthetic.strip import draw_strip

    net, own, compat = _model(model, weights, compat)
    before = _read(path, side or own, net.channels)
    t = torch.tensor(steps)
    after = dissolve(
        before.expand(len(t), -1, -1, -1),
        t,
        net,
        net.kept,
        resolution=net.resolution,
        compat_no_rescale=compat,
    )
    share = net.kept[t].tolist()
    picture = draw_strip(
        before,
        after,
        [f"t = {step}" for step in steps],
        title=f"{path.name}, dissolved at {net.resolution} x {net.resolution} pixels; "
        f"below: what went, from white = 0 to black = 0.25",
    )
    done, png = cv2.imencode(".png", picture[..., ::-1])
    if not done:
        raise UsageError("OpenCV cannot write PNG here")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(png.tobytes())
    for step, kept, one in zip(steps, share, after, strict=True):
        moved = float((one - before[0]).abs().mean())
        print(f"t = {step}: alpha_bar {kept:.4f}, mean change {moved:.4f}")
    print(output)


def _model(model: Path | None, weights: Path | None, compat: bool) -> tuple[Denoiser, int, bool]:
    """The network, the side of the images that it is used on, and the range that it is handed."""
    from ..bundle import load_bundle
    from ..diffusion import load_denoiser
    from ..methods import DIA

    if model is None:
        assert weights is not None
        return load_denoiser(weights).eval(), 224, compat
    method = load_bundle(model).method
    if not isinstance(method, DIA) or method.config.dissolve != "diffusion":
        raise UsageError(f"{model} has no diffusion model; give one of dia with dissolve=diffusion")
    return method.denoiser, method.config.image_size, compat or method.config.compat_no_rescale


def _read(path: Path, side: int, channels: int) -> Tensor:
    """``[1, c, s, s]`` in [0, 1] over the file's own range, as many channels as the model has."""
    import numpy as np
    import torch

    from ..data import read_image, resize

    pixels = read_image(path)
    if (pixels == pixels[..., :1]).all():  # grey values stored as RGB
        pixels = pixels[..., :1]
    values = pixels.astype(np.float32)
    white = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else max(values.max(), 1e-12)
    planes = np.ascontiguousarray(np.moveaxis(values / white, -1, 0))
    image = resize(torch.from_numpy(planes), side)[None]
    if channels == 1:
        return image.mean(1, keepdim=True)
    return image.expand(-1, channels, -1, -1).contiguous()
