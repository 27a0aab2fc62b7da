# SPDX-License-Identifier: Apache-2.0
"""Synthetic anomalies for training: the tasks of "Many tasks make light work", and earlier ones.

Baugh et al., MICCAI 2023, with the details of their public code. Everything random is drawn on the
CPU from each sample's own seed; what is heavy runs on the images' device, for the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import blending, deformation, intensity, labels, patches
from .blending import Pool
from .canvas import Canvas, Spot
from .masks import Mask, draw_form, place
from .settings import TaskSettings

TASKS: tuple[str, ...] = ("intra", "inter", "sink", "source", "intensity")
"""The five tasks, by their number."""

EXTRA_TASKS: tuple[str, ...] = ("fpi", "pii", "nsa", "cutpaste")
"""Tasks of earlier papers, made from the same parts."""

_LEAST = 8
"""Cells along an axis from which shapes of a twentieth of it are more than a cell."""


@dataclass(frozen=True)
class Synthetic:
    """Images with anomalies.

    Attributes:
        image: ``[b, c, *s]`` float32, in the range of each channel of the image before.
        label: ``[b, *s]`` float32 in [0, 1], how abnormal each cell is.
        mask: ``[b, *s]`` bool, where something was done.
    """

    image: Tensor
    label: Tensor
    mask: Tensor


def synthesize(
    image: Tensor,
    tasks: Sequence[str],
    *,
    seeds: Sequence[int],
    mask: Tensor | None = None,
    sources: Tensor | None = None,
    source_masks: Tensor | None = None,
    external: Tensor | None = None,
    external_masks: Tensor | None = None,
    settings: TaskSettings | None = None,
) -> Synthetic:
    """Put one to four synthetic anomalies into each image.

    Args:
        image: ``[b, c, *s]`` float32, two or more spatial axes, on any device; never modified. The
            settings suit images in [-1, 1] or normalised to a standard deviation of 1.
        tasks: of each image, one of ``TASKS`` or ``EXTRA_TASKS``.
        seeds: of each image. What is drawn for an image depends on its seed, its task and the
            sizes of the inputs alone, not on the rest of the batch.
        mask: ``[b, *s]`` bool, the object (brain); at least half of each shape lies on it.
            ``None``: the whole image.
        sources: ``[n, c, *s']``, images of the same kind, for ``intra``, ``fpi``, ``pii`` and
            ``nsa``; for ``fpi`` and ``pii`` of the same size. The image itself may be among them.
        source_masks: ``[n, *s']`` bool, their objects.
        external: ``[n, c, *s']``, images of another kind, in a like range, for ``inter``.
        external_masks: ``[n, *s']`` bool, their objects.
        settings: the numbers; default: those of the paper's chest X-rays.

    Returns:
        The images with their anomalies, labels and masks, on the same device.

    Raises:
        ValueError: a shape, type, task or number of seeds that does not fit; a task without the
            images that it takes from; an object mask without a cell.
    """
    settings = settings or TaskSettings.model_validate({})
    inputs = Inputs(image, tasks, seeds, mask, sources, source_masks, external, external_masks)
    canvas = Canvas(image)
    with torch.no_grad():
        rounds = inputs.draw(settings)
        for spots in rounds:
            for run, chosen in _by_kind(spots, tasks, inputs, settings):
                run(canvas, chosen)
            canvas.spots += spots
        label = labels.label(canvas, settings.label_sigma, settings.clean_labels)
        _own_labels(canvas, label, tasks, settings)
    return Synthetic(canvas.image, label, canvas.mask)


class Inputs:
    """The arguments of :func:`synthesize`, once they were found to fit."""

    def __init__(
        self,
        image: Tensor,
        tasks: Sequence[str],
        seeds: Sequence[int],
        mask: Tensor | None,
        sources: Tensor | None,
        source_masks: Tensor | None,
        external: Tensor | None,
        external_masks: Tensor | None,
    ) -> None:
        if image.dim() < 4 or image.dtype != torch.float32:
            raise ValueError(
                "synthesize: want image [b, c, *s] float32 with two or more spatial axes, got "
                f"{list(image.shape)} {image.dtype}"
            )
        size = tuple(image.shape[2:])
        if min(size) < _LEAST or 0 in image.shape[:2]:
            raise ValueError(
                f"synthesize: want images of at least one channel and {_LEAST} cells along each "
                f"axis, got {list(image.shape)}"
            )
        for name, given in (("tasks", tasks), ("seeds", seeds)):
            if isinstance(given, str) or len(given) != len(image):
                raise ValueError(
                    f"synthesize: want {name}, one for each of {len(image)} images, got {given!r}"
                )
        unknown = sorted({task for task in tasks if task not in TASKS + EXTRA_TASKS})
        if unknown:
            raise ValueError(
                f"synthesize: no task {', '.join(unknown)}; "
                f"use one of {', '.join(TASKS + EXTRA_TASKS)}"
            )
        self.size, self.channels = size, image.shape[1]
        self.tasks, self.seeds = tasks, seeds
        self.on = self._objects(image, mask)
        self.own = _pool("sources", image, sources, source_masks)
        self.foreign = _pool("external", image, external, external_masks)
        for task in sorted(set(tasks)):
            self._check_pool(task)

    def _objects(self, image: Tensor, mask: Tensor | None) -> Mask | None:
        if mask is None:
            return None
        want = [len(image), *self.size]
        if list(mask.shape) != want or mask.dtype != torch.bool:
            raise ValueError(
                f"synthesize: want mask {want} bool, got {list(mask.shape)} {mask.dtype}"
            )
        empty = (~mask.flatten(1).any(1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"synthesize: the object masks of images {empty} are empty; leave those images out"
            )
        return mask.cpu().numpy()

    def _check_pool(self, task: str) -> None:
        if task in ("intra", "fpi", "pii", "nsa") and self.own is None:
            raise ValueError(f"synthesize: the task {task} takes from other images: give sources")
        if task == "inter" and self.foreign is None:
            raise ValueError(
                "synthesize: the task inter takes from images of another kind: give external, "
                "for 2-D images for example embedded_external(size, channels)"
            )
        if task in ("fpi", "pii") and self.own is not None and self.own.size != self.size:
            raise ValueError(
                f"synthesize: the task {task} takes from the same place: want sources of "
                f"{list(self.size)} cells, got {list(self.own.size)}"
            )

    def draw(self, settings: TaskSettings) -> list[list[Spot]]:
        """All decisions: the first anomalies of all samples, then the second ones, ..."""
        rounds: list[list[Spot]] = [[] for _ in range(settings.max_anomalies)]
        for sample in range(len(self.tasks)):
            rng = np.random.default_rng(self.seeds[sample])
            once = self.tasks[sample] in ("fpi", "pii", "cutpaste")
            for spots in rounds:
                spots.append(self._draw_one(rng, sample, settings))
                if once or rng.random() < 0.5:
                    break
        return [spots for spots in rounds if spots]

    def _draw_one(self, rng: np.random.Generator, sample: int, settings: TaskSettings) -> Spot:
        task, size = self.tasks[sample], self.size
        on = None if self.on is None else self.on[sample]
        if task in ("fpi", "pii"):
            return patches.draw_patch(rng, task, sample, _given(self.own), settings)
        if task == "cutpaste":
            return patches.draw_cutpaste(rng, sample, size, on, settings)
        if task == "nsa":
            return patches.draw_nsa(rng, sample, size, on, _given(self.own), settings)
        form = draw_form(rng, size, settings)
        corner = place(rng, form.inside, size, on, settings)
        decision: Any
        if task in ("sink", "source"):
            kind: deformation.Kind = "sink" if task == "sink" else "source"
            decision = deformation.draw(rng, form, kind, settings)
        elif task == "intensity":
            decision = intensity.draw(rng, size, self.channels, settings)
        else:
            pool = _given(self.own if task == "intra" else self.foreign)
            decision = blending.draw(rng, form, pool, settings)
        return Spot(sample, corner, form, decision)


def _given(pool: Pool | None) -> Pool:
    assert pool is not None  # Inputs has refused tasks without their pool
    return pool


def _pool(name: str, image: Tensor, given: Tensor | None, masks: Tensor | None) -> Pool | None:
    singular = "source" if name == "sources" else name
    if given is None:
        if masks is not None:
            raise ValueError(f"synthesize: {singular}_masks were given, but no {name}")
        return None
    axes = image.dim() - 2
    if given.dim() != image.dim() or given.shape[1] != image.shape[1] or given.dtype != image.dtype:
        raise ValueError(
            f"synthesize: want {name} [n, {image.shape[1]}, *s] float32 of {axes} spatial axes, "
            f"got {list(given.shape)} {given.dtype}"
        )
    if len(given) == 0 or min(given.shape[2:]) < 2 * _LEAST:
        raise ValueError(
            f"synthesize: want {name} of at least one image with {2 * _LEAST} cells along each "
            f"axis, got {list(given.shape)}"
        )
    if masks is not None:
        want = [len(given), *given.shape[2:]]
        if list(masks.shape) != want or masks.dtype != torch.bool:
            raise ValueError(
                f"synthesize: want {singular}_masks {want} bool, got {list(masks.shape)} "
                f"{masks.dtype}"
            )
    return Pool(given, masks)


def _by_kind(
    spots: Sequence[Spot], tasks: Sequence[str], inputs: Inputs, settings: TaskSettings
) -> list[tuple[Callable[[Canvas, Sequence[Spot]], None], list[Spot]]]:
    """Who makes which anomalies of a round."""
    own, foreign = inputs.own, inputs.foreign
    kinds: dict[str, Callable[[Canvas, Sequence[Spot]], None]] = {
        "sink source": deformation.deform,
        "intensity": intensity.change,
        "cutpaste": patches.cut_and_paste,
    }
    if own is not None:
        kinds["intra"] = partial(blending.blend, pool=own, settings=settings)
        kinds["nsa"] = partial(patches.blend_scaled, pool=own, settings=settings)
        kinds["fpi"] = partial(patches.interpolate, pool=own)
        kinds["pii"] = partial(patches.interpolate_blended, pool=own)
    if foreign is not None:
        kinds["inter"] = partial(blending.blend, pool=foreign, settings=settings)
    chosen = [
        (run, [spot for spot in spots if tasks[spot.sample] in names.split()])
        for names, run in kinds.items()
    ]
    return [(run, some) for run, some in chosen if some]


def _own_labels(
    canvas: Canvas, label: Tensor, tasks: Sequence[str], settings: TaskSettings
) -> None:
    """The labels of tasks that have their own, in place."""
    places = labels.regions(canvas) if "nsa" in tasks else []
    for spot in canvas.spots:
        task, sample = tasks[spot.sample], spot.sample
        if task in ("fpi", "pii"):
            label[sample] = patches.factor_label(canvas, spot)
        elif task == "cutpaste":
            label[sample] = patches.binary_label(canvas, sample)
    for sample, task in enumerate(tasks):
        if task == "nsa":
            label[sample] = patches.nsa_label(canvas, places, sample, settings)
