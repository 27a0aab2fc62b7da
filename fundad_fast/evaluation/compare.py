# SPDX-License-Identifier: Apache-2.0
"""Is one run better than another on the same images? Paired bootstrap of the differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import LEVEL, interval, resample_weights
from .evaluate import SCHEMA, ImageRecord, LabelledScores, labelled
from .image_metrics import DEFINITIONS as IMAGE_DEFINITIONS
from .image_metrics import check_scores, image_values, undefined_reason
from .metric import finite
from .pixel_metrics import REGIONS, SUFFIX, Cell, PixelEvaluator
from .pixel_store import UNION, Region

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluated:
    """One run: its records, its pixels if it has maps, its model's image threshold, and the
    records of volumes' slices."""

    records: Sequence[ImageRecord]
    pixels: PixelEvaluator | None = None
    image_threshold: float | None = None
    slices: Sequence[ImageRecord] = ()


def _entry(
    a: float, b: float, drawn: list[Floats], n: int, definition: str, no_interval: str | None
) -> dict[str, Any]:
    lo, hi = interval(drawn)
    above = None
    if drawn:
        d = np.concatenate(drawn)
        above = float(np.mean(d > 0) + 0.5 * np.mean(d == 0))
    entry: dict[str, Any] = {
        "a": finite(a),
        "b": finite(b),
        "difference": finite(a - b),
        "lo": lo,
        "hi": hi,
        "share_above_0": above,
        "n": n,
        "definition": definition,
    }
    if no_interval is not None:
        entry["reason"] = no_interval
    return entry


def _nothing(n: int, definition: str, reason: str) -> dict[str, Any]:
    keys = ("a", "b", "difference", "lo", "hi", "share_above_0")
    return {**dict.fromkeys(keys), "n": n, "definition": definition, "reason": reason}


def _common(a: LabelledScores, b: LabelledScores) -> tuple[LabelledScores, LabelledScores]:
    """The records of both runs that both could score, in the order of the first."""
    of_b = {r.id: r for r in b.records}
    kept = [r for r in a.records if r.id in of_b]
    other = next((r for r in kept if r.label != of_b[r.id].label), None)
    if other is not None:
        raise ValueError(f"image {other.id!r} has another label in the other run")
    return labelled(kept), labelled([of_b[r.id] for r in kept])


def compare_images(
    a: Evaluated, b: Evaluated, *, n_boot: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Differences a − b of the image metrics over the images that both runs could score."""
    first, second = _common(labelled(a.records), labelled(b.records))
    scores_a, labels = check_scores(first.scores, first.labels)
    scores_b, _ = check_scores(second.scores, second.labels)
    n = len(labels)
    thresholds = (a.image_threshold, b.image_threshold)
    threshold = None if None in thresholds else 0.0
    reasons = {k: undefined_reason(k, labels, threshold) for k in IMAGE_DEFINITIONS}
    if n == 0:
        return {k: _nothing(0, d, reasons[k] or "") for k, d in IMAGE_DEFINITIONS.items()}
    resamples = resample_weights(labels, first.patients, n_boot, seed, width=n)
    point_a = image_values(scores_a, labels, thresholds[0])
    point_b = image_values(scores_b, labels, thresholds[1])
    drawn: dict[str, list[Floats]] = {name: [] for name in IMAGE_DEFINITIONS}
    for weights in resamples.chunks():
        values_a = image_values(scores_a, labels, thresholds[0], weights)
        values_b = image_values(scores_b, labels, thresholds[1], weights)
        for name in IMAGE_DEFINITIONS:
            drawn[name].append(values_a[name] - values_b[name])
    result = {}
    for name, definition in IMAGE_DEFINITIONS.items():
        reason = reasons[name]
        if reason is not None:
            result[name] = _nothing(n, definition, reason)
            continue
        result[name] = _entry(
            float(point_a[name]),
            float(point_b[name]),
            drawn[name],
            n,
            definition,
            resamples.no_interval,
        )
    return result


def _same_pixels(a: PixelEvaluator, b: PixelEvaluator) -> NDArray[np.intp]:
    """Where a's images are in b; a ``ValueError`` when the two did not see the same ones."""
    places = {image.id: i for i, image in enumerate(b.images)}
    missing = {image.id for image in a.images} ^ set(places)
    if missing:
        raise ValueError(
            f"image {min(missing)!r} has a map in one run only; evaluate both on the images that "
            "both could score"
        )
    for image in a.images:
        other = b.images[places[image.id]]
        if (image.n_pixels, image.abnormal) != (other.n_pixels, other.abnormal):
            raise ValueError(f"image {image.id!r} was compared with another mask in the other run")
    if a.fpr_limit != b.fpr_limit:
        raise ValueError(f"the runs have AUPRO limits {a.fpr_limit} and {b.fpr_limit}")
    return np.array([places[image.id] for image in a.images], np.intp)


def compare_pixels(
    a: PixelEvaluator, b: PixelEvaluator, *, n_boot: int = 1000, seed: int = 0
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, dict[str, Any]]]]:
    """Differences a − b of the pixel metrics, of all lesions and by lesion type.

    Values as ``PixelEvaluator.metrics``; intervals from binned pixels.
    """
    in_b = _same_pixels(a, b)
    regions: list[Region] = list(REGIONS)
    cells: list[Cell] = [(UNION, region) for region in regions]
    cells += [(t, "all") for t in a.types if t in b.types]
    reasons = {cell: a.reason(*cell) or b.reason(*cell) for cell in cells}
    usable = [cell for cell in cells if reasons[cell] is None]
    points_a = {cell: a.point(cell) for cell in usable}
    points_b = {cell: b.point(cell) for cell in usable}
    drawn: dict[tuple[Cell, str], list[Floats]] = {}
    histograms_a, histograms_b = a.histograms(), b.histograms()
    no_interval: str | None = "no interval: no counts per image were kept"
    if usable and histograms_a is not None and histograms_b is not None:
        resamples = resample_weights(
            histograms_a.abnormal,
            [image.patient for image in a.images],
            n_boot,
            seed,
            width=max(histograms_a.bins, histograms_b.bins),
        )
        no_interval = resamples.no_interval
        for weights in resamples.chunks():
            of_b = np.empty_like(weights)
            of_b[:, in_b] = weights
            values_a = a.resampled(histograms_a, usable, weights)
            values_b = b.resampled(histograms_b, usable, of_b)
            for key, value in values_a.items():
                drawn.setdefault(key, []).append(value - values_b[key])
    union: dict[str, dict[str, Any]] = {}
    types: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in cells:
        target, region = cell
        into = union if target == UNION else types.setdefault(target, {})
        for name in a.names(target):
            definition, n = a.definition(name, cell), a.count(region)
            reason = reasons[cell]
            if name == "pixel_Dice" and None in (a.pixel_threshold, b.pixel_threshold):
                reason = reason or "no pixel threshold was given"
            if reason is not None:
                into[name + SUFFIX[region]] = _nothing(n, definition, reason)
                continue
            into[name + SUFFIX[region]] = _entry(
                float(points_a[cell][name]),
                float(points_b[cell][name]),
                drawn.get((cell, name), []),
                n,
                definition,
                no_interval,
            )
    return union, types


def compare(a: Evaluated, b: Evaluated, *, n_boot: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Paired comparison of two runs on the same images.

    Both runs are resampled together (patients where a's records know them, else images; never
    pixels), so what makes an image hard for both cancels out.

    Args:
        a, b: the runs.
        n_boot: resamples, 0 for no intervals.
        seed: of the resampling.

    Returns:
        ``{schema, metrics, groups, settings}`` where every entry is ``{a, b, difference, lo, hi,
        share_above_0, n, definition}`` and ``reason`` where something is missing: the values, a − b
        with its 95 % interval, and the share of resamples in which a is higher (equal counts half).
        ``groups`` holds the lesion types that both runs have. Strictly valid JSON.

    Raises:
        ValueError: labels that differ, maps of different images, another mask for an image.
    """
    metrics = compare_images(a, b, n_boot=n_boot, seed=seed)
    types: dict[str, dict[str, dict[str, Any]]] = {}
    if a.pixels is not None and b.pixels is not None:
        pixel, types = compare_pixels(a.pixels, b.pixels, n_boot=n_boot, seed=seed)
        metrics.update(pixel)
    scored_a, scored_b = labelled(a.records), labelled(b.records)
    common = {r.id for r in scored_a.records} & {r.id for r in scored_b.records}
    return {
        "schema": SCHEMA,
        "metrics": metrics,
        "groups": {"lesion_type": types},
        "settings": {
            "images": {
                "both": len(common),
                "only_a": len(scored_a.records) - len(common),
                "only_b": len(scored_b.records) - len(common),
            },
            "intervals": {
                "level": LEVEL,
                "method": "paired percentile bootstrap of a - b, stratified by label; patients "
                "are resampled where known, else images, never pixels",
                "n_boot": n_boot,
                "seed": seed,
            },
        },
    }


def markdown_comparison(result: dict[str, Any]) -> str:
    """A table of ``compare``'s result: both values, difference [95 % interval], share above 0."""
    lines = ["| metric | a | b | a − b [95 %] | share above 0 |", "| --- | --- | --- | --- | --- |"]
    tables = [("", result["metrics"])]
    tables += [(f"{t}: ", entries) for t, entries in result["groups"]["lesion_type"].items()]
    missing: dict[str, list[str]] = {}
    for prefix, entries in tables:
        for name, e in entries.items():
            if e["difference"] is None:
                missing.setdefault(e["reason"], []).append(prefix + name)
                continue
            text = f"{e['difference']:+.3f}"
            share = "–"
            if e["lo"] is not None:
                text += f" [{e['lo']:+.3f}, {e['hi']:+.3f}]"
                share = f"{e['share_above_0']:.3f}"
            lines.append(f"| {prefix}{name} | {e['a']:.3f} | {e['b']:.3f} | {text} | {share} |")
    for reason, names in missing.items():
        lines += ["", f"Not computed because {reason}: {', '.join(names)}."]
    return "\n".join(lines) + "\n"
