# SPDX-License-Identifier: Apache-2.0
"""``fundad dissolve``: what a diffusion model makes of one's own image, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Overwrite, UsageError
from .pictures import check_png, write_png
from .steps import told

if TYPE_CHECKING:
    from ..data import InputSpec
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
    with told(goes_on=""):
        from ..data import ReadError

        check_png(output, overwrite)
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
    import torch

    from ..batch import Batch
    from ..data import prepare, read_image
    from ..methods.normalise import black_outside
    from ..synthetic import dissolve
    from ..synthetic.dissolving import at_resolution
    from ..synthetic.strip import draw_strip

    net, spec, compat = _model(model, weights, compat)
    if max(steps) >= len(net.kept):
        raise UsageError(f"--t {max(steps)}: the diffusion model has 0 to {len(net.kept) - 1}")
    # As the model sees its images, but of any kind: it is only a picture.
    spec = spec.model_copy(
        update={"image_size": side or spec.image_size, "mixed_inputs": "convert"}
    )
    seen = prepare(read_image(path, window=spec.window), spec)
    mask = None if seen.mask is None else seen.mask[None]
    before = black_outside(Batch(seen.image[None], (path.name,), mask)).image
    t = torch.tensor(steps)
    after = dissolve(
        before.expand(len(t), -1, -1, -1),
        t,
        net,
        net.kept,
        resolution=net.resolution,
        compat_no_rescale=compat,
    )
    # What the model's size alone takes away is most of it where t is small.
    alone = at_resolution(before, net.resolution, lambda x: x)
    share = net.kept[t].tolist()
    picture = draw_strip(
        before,
        torch.cat([alone, after]),
        ["resized alone", *(f"t = {step}" for step in steps)],
        title=f"{path.name}, dissolved at {net.resolution} x {net.resolution} pixels; "
        f"below: what went, from white = 0 to black = 0.25",
    )
    write_png(picture, output)
    print(f"resized alone: mean change {float((alone - before).abs().mean()):.4f}")
    for step, kept, one in zip(steps, share, after, strict=True):
        moved = float((one - before[0]).abs().mean())
        print(f"t = {step}: alpha_bar {kept:.4f}, mean change {moved:.4f}")
    print(output)


def _model(
    model: Path | None, weights: Path | None, compat: bool
) -> tuple[Denoiser, InputSpec, bool]:
    """The network, the images that it is used on, and the range that it is handed."""
    from ..bundle import load_bundle
    from ..data import InputSpec
    from ..diffusion import load_denoiser
    from ..methods import DIA

    if model is None:
        assert weights is not None
        net = load_denoiser(weights).eval()
        if net.channels not in (1, 3):
            raise UsageError(
                f"--weights {weights}: a model of {net.channels} channels; want 1 or 3"
            )
        spec = InputSpec(
            image_size=224, channels="rgb" if net.channels == 3 else "grey", fov="none"
        )
        return net, spec, compat
    bundle = load_bundle(model)
    method = bundle.method
    if not isinstance(method, DIA) or method.config.dissolve != "diffusion":
        raise UsageError(f"{model} has no diffusion model; give one of dia with dissolve=diffusion")
    compat = compat or method.config.compat_no_rescale
    return method.denoiser, InputSpec(**bundle.input_spec), compat
