# SPDX-License-Identifier: Apache-2.0
"""``fundad tasks``: a picture of the synthetic tasks, made of one's own image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Overwrite, Settings, UsageError, parse_settings
from .pictures import check_png, write_png
from .steps import told

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..synthetic import ConsistentSettings, Synthetic, TaskSettings

CONSISTENT = "consistent"
"""The name of ReSynthDetect's anomalies among the tasks."""

BRAIN_PUSH = 5.0
"""Largest push in volumes, where nothing else was asked for: the paper's number for brains."""


def tasks(
    image: Annotated[Path, typer.Argument(help="An image, or a NIfTI volume.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.")],
    task: Annotated[
        list[str] | None, typer.Option(help="Only this task; may be repeated. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    rows: Annotated[
        int, typer.Option(min=1, max=32, help="Rows of each task, with seeds from --seed on.")
    ] = 1,
    external: Annotated[
        Path | None,
        typer.Option(help="Folder of images of another kind, for the task inter."),
    ] = None,
    proxies: Annotated[
        bool, typer.Option("--proxies", help="ProxyAno's proxies in place of the tasks.")
    ] = False,
    side: Annotated[
        int, typer.Option("--size", min=16, help="Images are resized to squares of this side.")
    ] = 256,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw synthetic anomalies in an image, or its proxies: before, after, difference and label."""
    with told(goes_on=""):
        from ..data import ReadError

        check_png(output, overwrite)
        try:
            if proxies and (task or external or rows > 1):
                raise UsageError("--proxies has no tasks: leave out --task, --external and --rows")
            said = parse_settings(settings or [])
            if proxies:
                _draw_proxies(image, output, seed, side, said)
            else:
                _draw(image, output, task, range(seed, seed + rows), external, side, said)
        except ReadError as error:
            raise UsageError(f"{error.status}: {error.reason}") from error


def _draw(
    path: Path,
    output: Path,
    wanted: list[str] | None,
    seeds: range,
    external: Path | None,
    side: int,
    said: dict[str, Any],
) -> None:
    from ..synthetic import EXTRA_TASKS, TASKS, ConsistentSettings, TaskSettings

    every = (*TASKS, *EXTRA_TASKS, CONSISTENT)
    if unknown := sorted(set(wanted or []) - set(every)):
        raise UsageError(f"--task {unknown[0]}: use one of {', '.join(every)}")
    before, on, extent = _read(path, side)
    volume = before.dim() == 5
    if volume:
        said = {"g_max": BRAIN_PUSH} | said
    pool = _external(external, before, side)
    left_out = set()
    if pool is None:
        left_out.add("inter")
        print("inter is left out: a volume needs --external DIR, volumes of another kind")
    if volume:
        left_out.add(CONSISTENT)
        if CONSISTENT in (wanted or []):
            print(f"{CONSISTENT} is left out: it is made for images, not for volumes")
    chosen = [t for t in wanted or every if t not in left_out]
    if not chosen:
        raise UsageError("nothing is left to draw")
    own = {key: said.pop(key) for key in list(said) if key in ConsistentSettings.model_fields}
    mixing = ConsistentSettings.model_validate({"clean_share": 0.0} | own)
    made = _make(before, on, pool, chosen, seeds, TaskSettings.model_validate(said), mixing)
    few = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    _write(before, made, f"{path.name}, {extent}, {few}", output)


def _draw_proxies(path: Path, output: Path, seed: int, side: int, said: dict[str, Any]) -> None:
    """Each proxy, finer and coarser superpixels, and a pseudo-anomaly on superpixels."""
    import torch

    from ..synthetic import Synthetic
    from ..synthetic.proxies import PROXIES, ProxySettings, make_proxy
    from ..synthetic.pseudo_anomalies import PasteSettings, paste_patches

    settings = ProxySettings.model_validate(said)
    before, on, extent = _read(path, side)
    if before.dim() == 5:
        raise UsageError(f"{path}: proxies are of images, not of volumes")
    image, mask = (before + 1) / 2, None if on is None else on[0]
    nowhere = torch.zeros(image[:, 0].shape)
    made = {}
    for kind in PROXIES:
        counts = [settings.segments]
        if kind == "superpixel":
            counts = [settings.segments, max(2, settings.segments // 4), settings.segments * 4]
        for count in counts:
            here = settings.model_copy(update={"segments": count})
            proxy = make_proxy(image[0], mask, kind, here)[None]
            name = f"superpixel, {count} asked for" if kind == "superpixel" else kind
            made[name] = Synthetic(proxy * 2 - 1, nowhere, nowhere > 0)
            if len(made) == 1:
                # There is but one image: the patch is from it mirrored.
                pasted = paste_patches(
                    proxy,
                    image.flip(-1),
                    seeds=[seed],
                    mask=on,
                    source_mask=None if on is None else on.flip(-1),
                    settings=PasteSettings.model_validate({}),
                )
                made[f"{name}, with a pseudo-anomaly"] = Synthetic(
                    pasted.image * 2 - 1, pasted.label, pasted.mask
                )
    _write(before, made, f"{path.name}, {extent}, seed {seed}", output)


def _write(before: Tensor, made: dict[str, Synthetic], title: str, output: Path) -> None:
    from ..synthetic.gallery import draw_gallery

    write_png(draw_gallery(before, made, title=title), output)
    print(f"{output}: {', '.join(made)}")


def _make(
    before: Tensor,
    on: Tensor | None,
    pool: Tensor | None,
    chosen: list[str],
    seeds: range,
    settings: TaskSettings,
    mixing: ConsistentSettings,
) -> dict[str, Synthetic]:
    """One result for each task and seed, by the title of its row."""
    from ..synthetic import synthesize

    # There is but one image: as a source it stands mirrored, so that patches of the same place
    # differ.
    mirrored = before.flip(-1)
    source_masks = None if on is None else on.flip(-1)
    made = {}
    for task in chosen:
        for seed in seeds:
            title = task if len(seeds) == 1 else f"{task}, seed {seed}"
            if task == CONSISTENT:
                made[title] = _mixed(before, on, mirrored, source_masks, seed, mixing)
                continue
            made[title] = synthesize(
                before,
                [task],
                seeds=[seed],
                mask=on,
                sources=mirrored,
                source_masks=source_masks,
                external=pool,
                settings=settings,
            )
    return made


def _mixed(
    before: Tensor,
    on: Tensor | None,
    sources: Tensor,
    source_masks: Tensor | None,
    seed: int,
    settings: ConsistentSettings,
) -> Synthetic:
    """ReSynthDetect's anomalies, which are made in [0, 1], in [-1, 1] as the others are."""
    from ..synthetic import Synthetic, mix_in

    made = mix_in(
        (before + 1) / 2,
        seeds=[seed],
        sources=(sources + 1) / 2,
        mask=on,
        source_masks=source_masks,
        settings=settings,
    )
    return Synthetic(made.image * 2 - 1, made.label, made.mask)


def _read(path: Path, side: int) -> tuple[Tensor, Tensor | None, str]:
    """``[1, c, *s]`` in the range that the tasks are made for, the object, and the size in words.

    Images: [-1, 1] over their own range; the object is a fundus photograph's field of view.
    Volumes: the brain (what is not 0, holes filled) to mean 0 and deviation 1, 0 elsewhere.
    """
    import numpy as np
    import torch

    from ..data import find_fov, fov_mask, read_image, resize
    from ..data.headers import kind_of
    from ..data.opening import open_source
    from ..data.volumes import read_volume

    with open_source(path) as (file, _):
        volume = kind_of(file) == "nifti"
    if volume:
        return _normalised(read_volume(path).values.astype(np.float32))
    pixels = read_image(path)
    fov = find_fov(pixels)
    if (pixels == pixels[..., :1]).all():  # grey values stored as RGB
        pixels = pixels[..., :1]
    values = pixels.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    planes = np.moveaxis((values - low) * (2 / max(high - low, 1e-12)) - 1, -1, 0)
    before = resize(torch.from_numpy(np.ascontiguousarray(planes)), side)[None]
    on = None
    if fov.status != "none":
        inside = fov_mask(fov, *pixels.shape[:2])
        on = resize(torch.from_numpy(inside[None].astype(np.float32)), side) > 0.5
    return before, on, f"{pixels.shape[1]} x {pixels.shape[0]} at {side} x {side} pixels"


def _normalised(values: np.ndarray) -> tuple[Tensor, Tensor, str]:
    import torch
    from scipy.ndimage import binary_fill_holes

    on = torch.from_numpy(binary_fill_holes(values != 0))
    brain = torch.from_numpy(values)
    inside = brain[on]
    if inside.numel() < 2:
        raise UsageError("the volume is empty: every voxel is 0")
    normalised = ((brain - inside.mean()) / (inside.std() + 1e-8)).masked_fill(~on, 0)
    return normalised[None, None], on[None], " x ".join(map(str, values.shape)) + " voxels"


def _external(folder: Path | None, like: Tensor, side: int) -> Tensor | None:
    import torch

    from ..data import discover
    from ..synthetic import embedded_external

    if folder is None:
        if like.dim() == 5:
            return None
        return embedded_external(side, like.shape[1])
    found = []
    paths = dict.fromkeys(item.path for item in discover(str(folder)).items)
    for path in list(paths)[:16]:
        one = _read(Path(path), side)[0]
        if one.dim() != like.dim():
            raise UsageError(f"--external {folder}: {path} is no {like.dim() - 2}-D image")
        if one.shape[1] != like.shape[1]:  # grey as RGB, or the mean of RGB
            one = one.mean(1, keepdim=True).expand(-1, like.shape[1], *one.shape[2:])
        found.append(one)
    shapes = {tuple(one.shape) for one in found}
    if len(shapes) > 1:
        raise UsageError(f"--external {folder}: want volumes of one size, got {sorted(shapes)}")
    return torch.cat(found).contiguous()
