# SPDX-License-Identifier: Apache-2.0
"""From per-image records and collected pixels to the content of ``metrics.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .image_metrics import image_metrics
from .metric import Metric, as_dicts
from .pixel_metrics import PixelEvaluator

SCHEMA = 1

SLICE_LESION_SHARE = 5 / 128**2
"""A slice with a larger share of lesion voxels is abnormal (Baugh et al. 2023, their code)."""

SLICE_RULE = (
    " Axial slices of all volumes, empty ones too; a slice scores the mean of its map, and is "
    "abnormal where more than 5/128² of it is lesion (protocol of Baugh et al. 2023)."
)


@dataclass(frozen=True)
class ImageRecord:
    """What evaluation needs to know of one image.

    Attributes:
        id: its name, once only.
        score: higher = more abnormal; ``None`` where the image could not be scored.
        label: 0 healthy, 1 abnormal, ``None`` unknown.
        class_name: of an abnormal image, e.g. the diagnosis.
        group: anything else to report separately: site, camera, grade.
        patient_id: to resample patients instead of images.
    """

    id: str
    score: float | None
    label: int | None
    class_name: str | None = None
    group: str | None = None
    patient_id: str | None = None


@dataclass(frozen=True)
class LabelledScores:
    """The records that can be judged, as lists."""

    records: tuple[ImageRecord, ...]
    scores: tuple[float, ...]
    labels: tuple[int, ...]
    patients: tuple[str | None, ...]


def labelled(records: Sequence[ImageRecord]) -> LabelledScores:
    """Records with a score and a label; a ``ValueError`` when an id comes twice."""
    ids = [r.id for r in records]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"the id {twice!r} comes more than once")
    kept, scores, labels = [], [], []
    for r in records:
        if r.score is not None and r.label is not None:
            kept.append(r)
            scores.append(float(r.score))
            labels.append(int(r.label))
    return LabelledScores(
        tuple(kept), tuple(scores), tuple(labels), tuple(r.patient_id for r in kept)
    )


def metrics_by(
    records: Sequence[ImageRecord],
    key: str,
    *,
    threshold: float | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Metric]]:
    """Image metrics of each abnormal class or group against **all** healthy images.

    EyeQ's "0&k" is this. The AUROC of all abnormal images together is the mean of the groups',
    weighted with their numbers of images.

    Args:
        records: of the whole test set.
        key: ``class_name`` or ``group``; records without one are left out.
        threshold, n_boot, seed: as in ``image_metrics``.
    """
    data = labelled(records)
    of = [getattr(r, key) for r in data.records]
    names = sorted({k for k, y in zip(of, data.labels) if y == 1 and k is not None})
    result = {}
    for name in names:
        places = [i for i, (k, y) in enumerate(zip(of, data.labels)) if y == 0 or k == name]
        result[name] = image_metrics(
            [data.scores[i] for i in places],
            [data.labels[i] for i in places],
            threshold=threshold,
            patients=[data.patients[i] for i in places],
            n_boot=n_boot,
            seed=seed,
        )
    return result


def evaluate(
    records: Sequence[ImageRecord],
    pixels: PixelEvaluator | None = None,
    *,
    slices: Sequence[ImageRecord] = (),
    image_threshold: float | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    ap_chunk: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``metrics.json``.

    Args:
        records: one per input, also those that failed or have no label: they are counted.
        pixels: filled with the maps of the images that have a known mask or are healthy.
        slices: one per axial slice of volumes, for ``slice_AUROC`` and ``slice_AP``; with
            ``patient_id``, as slices of one volume are resampled together.
        image_threshold: the model's stored one.
        n_boot: bootstrap resamples, 0 for no intervals.
        seed: of the resampling.
        ap_chunk: add ``pixel_AP_chunk20``.
        settings: of the caller, recorded beside ours.

    Returns:
        ``{schema, metrics, groups, settings}``; ``metrics`` maps a name to ``{value, lo, hi, n,
        definition}`` and, where something is missing, ``reason``. Strictly valid JSON: what is
        undefined is ``None``, never NaN.

    Raises:
        ValueError: ids that come twice, scores that are not finite, labels other than 0 and 1.
    """
    data = labelled(records)
    boot = {"n_boot": n_boot, "seed": seed}
    metrics = image_metrics(
        data.scores, data.labels, threshold=image_threshold, patients=data.patients, **boot
    )
    groups: dict[str, dict[str, dict[str, Any]]] = {"class": {}, "group": {}, "lesion_type": {}}
    for word, key in (("class", "class_name"), ("group", "group")):
        found = metrics_by(data.records, key, threshold=image_threshold, **boot)
        groups[word] = {name: as_dicts(m) for name, m in found.items()}
    if pixels is not None:
        metrics.update(pixels.metrics(ap_chunk=ap_chunk, **boot))
        found = pixels.metrics_by_type(**boot)
        groups["lesion_type"] = {name: as_dicts(m) for name, m in found.items()}
    if slices:
        metrics.update(_slice_metrics(slices, **boot))
    patients = {p for p in data.patients if p is not None}
    return {
        "schema": SCHEMA,
        "metrics": as_dicts(metrics),
        "groups": groups,
        "settings": {
            **(settings or {}),
            "images": {
                "given": len(records),
                "without_score": sum(r.score is None for r in records),
                "without_label": sum(r.score is not None and r.label is None for r in records),
                "healthy": int(np.sum(np.asarray(data.labels) == 0)),
                "abnormal": int(np.sum(np.asarray(data.labels) == 1)),
                "patients": len(patients) or None,
            },
            "image_threshold": image_threshold,
            "intervals": {
                "level": 0.95,
                "method": "percentile bootstrap, stratified by label; patients are resampled where "
                "known, else images, never pixels; pixel intervals from scores on quantile bins, "
                "whose values lie within 0.001 of the exact ones",
                **boot,
            },
            "pixels": None if pixels is None else pixels.settings(),
        },
    }


def _slice_metrics(slices: Sequence[ImageRecord], *, n_boot: int, seed: int) -> dict[str, Metric]:
    data = labelled(slices)
    found = image_metrics(
        data.scores, data.labels, patients=data.patients, n_boot=n_boot, seed=seed
    )
    return {
        f"slice_{name}": replace(
            found[f"image_{name}"],
            definition=found[f"image_{name}"].definition.replace("image", "slice") + SLICE_RULE,
        )
        for name in ("AUROC", "AP")
    }


def _figure(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return "–"
    text = f"{entry['value']:.3f}"
    if entry["lo"] is not None:
        text += f" [{entry['lo']:.3f}, {entry['hi']:.3f}]"
    return text


def markdown_table(result: Mapping[str, Any], *, definitions: bool = False) -> str:
    """A table of ``evaluate``'s result for people: value [95 % interval], images, what is missing.

    Args:
        result: of ``evaluate``.
        definitions: add a column that says what each figure is.
    """
    head = ["metric", "value [95 %]", "images"] + (["definition"] if definitions else [])
    rows = []
    missing: dict[str, list[str]] = {}
    tables = [("", result["metrics"])]
    tables += [
        (f"{word} {name}: ", entries)
        for word, groups in result["groups"].items()
        for name, entries in groups.items()
    ]
    for prefix, entries in tables:
        for name, entry in entries.items():
            if entry["value"] is None:
                missing.setdefault(entry["reason"], []).append(prefix + name)
                continue
            row = [prefix + name, _figure(entry), str(entry["n"])]
            rows.append(row + ([entry["definition"]] if definitions else []))
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    for reason, names in missing.items():
        text += f"\n\nNot computed because {reason}: {', '.join(names)}."
    return text + "\n"


def comparison_table(
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]], names: Sequence[str]
) -> str:
    """A Markdown table with one line per method or control and one column per metric.

    Args:
        rows: per line its entries by metric name, as in ``metrics.json``.
        names: the columns; a line without one of them shows a dash.
    """
    nothing = {"value": None}
    lines = [["", *names], ["---"] * (len(names) + 1)]
    lines += [
        [row, *(_figure(entries.get(n, nothing)) for n in names)] for row, entries in rows.items()
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
