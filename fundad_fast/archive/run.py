# SPDX-License-Identifier: Apache-2.0
"""Scores items into a run folder: read, prepare, score, write; one row per item, always.

What goes on where: items without a row are scored; so are, anew, items whose file, masks or labels
are no longer what their row says. The old row goes first, so the parts never hold two of one id.
"""

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
from ..data import Chunk, Dataset, Identifiers, InputSpec, Item, Loader, Prepared, item_id
from ..evaluation.thresholds import score_percentile
from ..progress import Progress
from ..run_folder import RunError, RunFolder, read_rows
from .regions import map_affine, top_regions
from .sharding import Shard

Check = Callable[[Item, Prepared], tuple[str, str] | None]
Files = tuple[int | None, int | None, int | None, int | None]

NORMAL_SCORES = 5000
"""Held-out healthy scores that ``run.json`` keeps at most: enough for a histogram."""

_NAMED_ONE_BY_ONE = ("list", "file", "shard", "glob", "manifest")
"""Layouts whose folder does not say what belongs to them."""

_FILE_COLUMNS = ("bytes", "mtime_ns", "mask_bytes", "mask_mtime_ns")
_MAY_COME_FROM_THE_FILE = ("patient_id", "laterality")
_LABEL_COLUMNS = ("gt_label", "class", "group", "patient_id", "laterality")


@dataclass(frozen=True)
class ScoreOptions:
    """How a run is made; none of these changes a score.

    Attributes:
        batch_size: images per batch.
        threads: that read images; by default the processors of this process.
        max_megapixels: larger images are refused.
        save_maps: whether maps are written.
        retry_failed: score again what failed, even where its files have not changed.
        limit: only so many inputs, the first ones of the shard, are to have rows.
        shard: score only this part of the inputs.
    """

    batch_size: int = 8
    threads: int | None = None
    max_megapixels: float = 200.0
    save_maps: bool = True
    retry_failed: bool = False
    limit: int | None = None
    shard: Shard | None = None


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

    A run goes on with the same folder, which may have grown or shrunk. A list of files, a pattern
    or a manifest may only have grown: where it no longer names what has a row, it is another one.

    On going on, an item is scored anew when the size or time of its file or masks or its labels
    have changed since, so also a failed one that was repaired; a row whose file has gone stays.

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

    Raises:
        RunError: the folder holds something else, another run, or a run on other images.
    """
    options, progress = options or ScoreOptions(), progress or Progress()
    about = {
        "kind": kind,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "input": os.path.realpath(dataset.root),
        "layout": dataset.layout,
        "notes": list(dataset.notes),
        "model": describe_model(bundle),
        # What must stay the same while a run goes on. The limit of megapixels is not of them: a
        # higher one is how inputs that were too large are tried again.
        "settings": {"save_maps": options.save_maps}
        | ({"shard": str(options.shard)} if options.shard else {}),
        "max_megapixels": options.max_megapixels,
        "environment": environment(),
        "intended_use": "research; no clinical claim",
    }
    if options.shard:
        items = [item for item in items if options.shard.holds(item.id)]
    began = time.monotonic()
    with RunFolder(out, about) as run:
        done = _keep_rows(run, dataset.layout, items, options.retry_failed)
        todo = [item for item in items[: options.limit] if item.id not in done]
        # Before anything is read: what changes while the run goes on is noticed by the next one.
        files = {item.id: _files(item) for item in todo}
        loader = Loader(
            todo,
            InputSpec(**bundle.input_spec),
            batch_size=options.batch_size,
            threads=options.threads,
            max_megapixels=options.max_megapixels,
        )
        wanted = len(items[: options.limit])
        with progress.task("score", wanted, "images") as task:
            task.advance(wanted - len(todo))
            for chunk in loader:
                for row in _rows(bundle, chunk, run, options, check):
                    row.update(zip(_FILE_COLUMNS, files[row["id"]]))
                    run.add(row)
                task.advance(len(chunk), failed=len(chunk.failures))
        run.flush()
        counts = count_statuses(out)
        seconds = round(run.about.get("seconds", 0.0) + time.monotonic() - began, 3)
        left = len(items) - len(done) - len(todo)
        ends = {"inputs": len(items), "left": left, "counts": counts, "seconds": seconds}
        run.write_json("run.json", {**run.about, **ends})
        run.log("end", counts=counts)
    return counts


def _keep_rows(run: RunFolder, layout: str, items: Sequence[Item], retry_failed: bool) -> set[str]:
    """Ids whose rows stand; rows that no longer do are dropped."""
    known = {item.id: item for item in items}
    done, changed, failed = set(), set(), set()
    columns = ["id", "path", "status", *_FILE_COLUMNS, *_LABEL_COLUMNS]
    for row in read_rows(run.path, columns=columns):
        item = known.get(row["id"])
        if item is None:
            if layout in _NAMED_ONE_BY_ONE:
                raise RunError(
                    f"{run.path} holds {row['id']}, which this {layout} does not name (it may "
                    "grow, not change); give another -o, or --overwrite"
                )
            continue
        if not _same_file(row["path"], item.path):
            raise RunError(
                f"{run.path} holds {row['id']} of {row['path']}, which is now {_path(item.path)}; "
                "give another -o, or --overwrite"
            )
        files = _files(item)
        # What only the file says of the patient is in the row, and cannot be in the item yet.
        labels = {
            key: value
            for key, value in _labels(item).items()
            if value is not None or key not in _MAY_COME_FROM_THE_FILE
        }
        was = tuple(row[name] for name in _FILE_COLUMNS)
        there = files[0] is not None
        if there and (was != files or any(row[key] != value for key, value in labels.items())):
            changed.add(item.id)
        elif retry_failed and row["status"] != "ok":
            failed.add(item.id)
        else:
            done.add(item.id)
    if changed or failed:
        run.log("anew", changed=len(changed), failed=len(failed))
        run.drop(changed | failed)
    return done


def _files(item: Item) -> Files:
    """Size and time of an item's file and of its masks; ``None`` where there is none."""
    size, newest = _size_and_time(item.path)
    paths = [item.mask_path] if item.mask_path is not None else []
    masks = [_size_and_time(p) for p in (*paths, *(path for _, path in item.mask_paths_by_type))]
    sizes = [one for one, _ in masks if one is not None]
    times = [one for _, one in masks if one is not None]
    return size, newest, sum(sizes) if sizes else None, max(times, default=None)


def _size_and_time(path: str) -> tuple[int | None, int | None]:
    try:
        facts = os.stat(path)
    except OSError:
        return None, None  # the row's own status says what is wrong with the file
    return facts.st_size, facts.st_mtime_ns


def _labels(item: Item) -> dict[str, Any]:
    """What a row repeats of an item."""
    return dict(
        zip(
            _LABEL_COLUMNS,
            (item.label, item.class_name, item.group, item.patient_id, item.laterality),
        )
    )


def _identifiers(item: Item) -> dict[str, str | None]:
    found = item.identifiers or Identifiers()
    names = ("sop_instance_uid", "study_instance_uid", "series_instance_uid", "acquired")
    return {name: getattr(found, name) for name in names}


def _path(path: str) -> str:
    """A path as a row holds it: absolute; Parquet knows no bytes that are not UTF-8."""
    return os.fsencode(os.path.abspath(path)).decode("utf-8", "backslashreplace")


def _same_file(stored: str, path: str) -> bool:
    return stored == _path(path) or os.path.realpath(stored) == os.path.realpath(path)


def count_statuses(out: Path) -> dict[str, int]:
    """Number of rows of a run by status."""
    return dict(Counter(row["status"] for row in read_rows(out, columns=["status"])))


def describe_model(bundle: Bundle) -> dict[str, Any]:
    """What ``run.json`` says of the model."""
    normal = [] if bundle.normal is None else thinned(bundle.normal.score)
    return {
        "id": bundle.id,
        "method": bundle.method.name,
        "preset": bundle.preset,
        "config": bundle.method.config.model_dump(mode="json"),
        "input_spec": bundle.input_spec,
        "thresholds": bundle.thresholds,
        "colour_scale": bundle.colour_scale,
        "trained_on": bundle.trained_on,
        "normal_scores": normal,
    }


def thinned(scores: np.ndarray, n: int = NORMAL_SCORES) -> list[float]:
    """At most ``n`` of the scores, evenly by rank with both ends; sorted, to six digits."""
    ordered = np.sort(np.asarray(scores, np.float64))
    if len(ordered) > n:
        ordered = ordered[np.linspace(0, len(ordered) - 1, n).round().astype(np.intp)]
    return [float(f"{value:.6g}") for value in ordered]


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
        "path": _path(item.path),
        "status": status,
        "error": error,
        **_labels(item),
        "member": None if item.member is None else item_id(item.member),
        "member_offset": item.offset,
        "frame": item.frame,
        **_identifiers(item),
        "mask_path": None if item.mask_path is None else _path(item.mask_path),
        "model_id": bundle.id,
    }
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
