# SPDX-License-Identifier: Apache-2.0
"""Scores items into a run folder: read, prepare, score, write; one row per item, always."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf

from ..bundle import Bundle, environment
from ..data import Chunk, Dataset, InputSpec, Item, Loader, Prepared
from ..evaluation.thresholds import score_percentile
from ..progress import Progress
from .folder import RunFolder
from .regions import map_affine, top_regions

Check = Callable[[Item, Prepared], tuple[str, str] | None]


@dataclass(frozen=True)
class ScoreOptions:
    """How a run is made; none of these changes a score."""

    batch_size: int = 8
    threads: int | None = None
    max_megapixels: float = 200.0
    save_maps: bool = True


def score_run(
    bundle: Bundle,
    dataset: Dataset,
    items: Sequence[Item],
    out: Path,
    *,
    kind: str = "score",
    options: ScoreOptions | None = None,
    check: Check | None = None,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Score items into a run folder; an interrupted run of the same model and settings goes on.

    Args:
        bundle: the model.
        dataset: where the items come from, for ``run.json``.
        items: what to score.
        out: the run folder.
        kind: ``score`` or ``eval``.
        options: batch size, threads, limits.
        check: may turn a prepared image into a failed row, as ``(status, error)``.
        progress: told about the images.

    Returns:
        number of rows by status, over the whole run.
    """
    options, progress = options or ScoreOptions(), progress or Progress()
    about = {
        "kind": kind,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "input": dataset.root,
        "layout": dataset.layout,
        "notes": list(dataset.notes),
        "model": describe_model(bundle),
        "settings": {"save_maps": options.save_maps, "max_megapixels": options.max_megapixels},
        "environment": environment(),
        "intended_use": "research; no clinical claim",
    }
    began = time.monotonic()
    with RunFolder(out, about) as run:
        done = run.done()
        todo = [item for item in items if item.id not in done]
        loader = Loader(
            todo,
            InputSpec(**bundle.input_spec),
            batch_size=options.batch_size,
            threads=options.threads,
            max_megapixels=options.max_megapixels,
        )
        with progress.task("score", len(items), "images") as task:
            task.advance(len(items) - len(todo))
            for chunk in loader:
                for row in _rows(bundle, chunk, run, options, check):
                    run.add(row)
                task.advance(len(chunk), failed=len(chunk.failures))
        run.flush()
        counts = count_statuses(out)
        seconds = round(time.monotonic() - began, 3)
        run.write_json("run.json", {**run.about, "counts": counts, "seconds": seconds})
        run.log("end", counts=counts)
    return counts


def count_statuses(out: Path) -> dict[str, int]:
    """Number of rows of a run by status."""
    from .folder import read_rows

    return dict(Counter(row["status"] for row in read_rows(out, columns=["status"])))


def describe_model(bundle: Bundle) -> dict[str, Any]:
    """What ``run.json`` says of the model."""
    normal = [] if bundle.normal is None else [round(float(v), 6) for v in bundle.normal.score]
    return {
        "id": bundle.id,
        "method": bundle.method.name,
        "preset": bundle.preset,
        "config": bundle.method.config.model_dump(mode="json"),
        "input_spec": bundle.input_spec,
        "thresholds": bundle.thresholds,
        "colour_scale": bundle.colour_scale,
        "trained_on": bundle.trained_on,
        "normal_scores": normal[:5000],
    }


def _rows(
    bundle: Bundle, chunk: Chunk, run: RunFolder, options: ScoreOptions, check: Check | None
) -> list[dict[str, Any]]:
    rows = [_row(f.item, bundle, f.status, f.error) for f in chunk.failures]
    if not chunk.items:
        return rows
    began = time.perf_counter()
    scores = bundle.method.score(chunk.batch)
    image = scores.image.cpu().numpy()
    ms_model = (time.perf_counter() - began) * 1000 / len(chunk.items)
    maps = None if scores.map is None else scores.map.cpu()
    for i, (item, prepared) in enumerate(zip(chunk.items, chunk.prepared)):
        wrong = check(item, prepared) if check else None
        if wrong is None and not np.isfinite(image[i]):
            wrong = ("failed", "the score is not finite; please report this image's kind")
        if wrong is not None:
            rows.append(_row(item, bundle, *wrong, prepared=prepared))
            continue
        row = _row(item, bundle, "ok", None, prepared=prepared)
        row["score"] = float(image[i])
        row["ms_read"], row["ms_model"] = chunk.ms_read[i], ms_model
        if bundle.normal is not None:
            row["score_pct"] = float(score_percentile(image[i : i + 1], bundle.normal.score)[0])
        threshold = (bundle.thresholds.get("image") or {}).get("value")
        if threshold is not None:
            row["pred_label"] = int(image[i] > threshold)
        if maps is not None:
            _add_map(row, maps[i], item, prepared, bundle, run, options)
        rows.append(row)
    return rows


def _add_map(
    row: dict[str, Any],
    values: torch.Tensor,
    item: Item,
    prepared: Prepared,
    bundle: Bundle,
    run: RunFolder,
    options: ScoreOptions,
) -> None:
    size = bundle.input_spec["image_size"]
    if options.save_maps:
        affine = map_affine(prepared.affine, size, (values.shape[0], values.shape[1]))
        row["map_path"] = run.save_map(item.id, values.numpy(), affine)
    threshold = (bundle.thresholds.get("pixel") or {}).get("value")
    if threshold is not None:
        full = nnf.interpolate(values[None, None], (size, size), mode="bilinear")[0, 0]
        if prepared.mask is not None:
            full = full * prepared.mask
        row["regions"] = top_regions(
            full.numpy(), threshold, prepared.affine, prepared.height, prepared.width
        )


def _row(
    item: Item,
    bundle: Bundle,
    status: str,
    error: str | None,
    *,
    prepared: Prepared | None = None,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": item.id,
        "path": item.path,
        "status": status,
        "error": error,
        "gt_label": item.label,
        "class": item.class_name,
        "group": item.group,
        "patient_id": item.patient_id,
        "laterality": item.laterality,
        "mask_path": item.mask_path,
        "model_id": bundle.id,
    }
    try:
        facts = os.stat(item.path)
        row["bytes"], row["mtime_ns"] = facts.st_size, facts.st_mtime_ns
    except OSError:
        pass  # the row's own status says what is wrong with the file
    if prepared is not None:
        row["width"], row["height"] = prepared.width, prepared.height
        if bundle.input_spec["fov"] == "auto":
            fov = prepared.fov
            row |= {
                "fov_status": fov.status,
                "fov_cx": fov.cx,
                "fov_cy": fov.cy,
                "fov_r": fov.r,
                "fov_box": list(fov.box),
            }
    return row
