# SPDX-License-Identifier: Apache-2.0
"""What tables of scores share: which test images, the controls, cells, paired differences."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fundad_fast.data import Dataset, InputSpec, Item, Loader
from fundad_fast.evaluation.compare import Evaluated, compare
from fundad_fast.evaluation.controls import PcaReconstruction, control_scores
from fundad_fast.evaluation.evaluate import ImageRecord, evaluate


def parts(pack: str, dataset: Dataset, part: str) -> tuple[Item, ...]:
    """The test images of a part. ``idrid_512`` is cut in two: settings are chosen on IDRiD_25 to 54
    and the first 15 healthy test images, figures are reported on IDRiD_01 to 24 (whose masks are
    lossless) and the other healthy ones."""
    items = dataset.select(split="test")
    if part == "all" or pack != "idrid_512":
        return items
    healthy = [item for item in items if item.label == 0]
    tune = {item.id for item in healthy[:15]}
    tune |= {item.id for item in items if item.label == 1 and _number(item) >= 25}
    return tuple(item for item in items if (item.id in tune) == (part == "tune"))


def _number(item: Item) -> int:
    return int("".join(c for c in item.id.split("/")[-1] if c.isdigit())[:2])


def control_values(
    dataset: Dataset, items: Sequence[Item], spec: InputSpec
) -> dict[str, list[float]]:
    """Trivial scores of every image, by name: brightness, contrast, principal components, size."""
    pca = PcaReconstruction()
    train = Loader(dataset.healthy_for_fit(), spec)
    pca.fit(image for chunk in train for image in chunk.batch.image.numpy())
    scores: dict[str, list[float]] = {}
    for chunk in Loader(items, spec):
        if chunk.failures:
            raise SystemExit(f"{chunk.failures[0].item.id}: {chunk.failures[0].error}")
        for image in chunk.batch.image.numpy():
            found = control_scores(image)
            found["pca_reconstruction"] = float(pca.score(image))
            for name, value in found.items():
                scores.setdefault(name, []).append(value)
    scores["file_size"] = [float(os.path.getsize(item.path)) for item in items]
    return scores


def run_of(values: Sequence[float], items: Sequence[Item]) -> Evaluated:
    """Image scores as a run, to compare with others."""
    pairs = zip(items, values, strict=True)
    return Evaluated([ImageRecord(i.id, v, i.label, patient_id=i.patient_id) for i, v in pairs])


def signed(values: list[float], items: Sequence[Item]) -> list[float]:
    """A control with the sign that suits it on these images, which favours the control."""
    found = evaluate(run_of(values, items).records, n_boot=0)["metrics"]["image_AUROC"]["value"]
    return values if found >= 0.5 else [-v for v in values]


def best(lines: Mapping[str, Mapping[str, Any]], key: str) -> str:
    """The line with the highest value of a metric; of equal ones the first."""
    return max(lines, key=lambda name: lines[name][key]["value"])


def differences(
    a: Evaluated, b: Evaluated, keys: Sequence[str], n_boot: int, seed: int = 0
) -> dict[str, Any]:
    """a minus b of some metrics, paired bootstrap over the images."""
    found = compare(a, b, n_boot=n_boot, seed=seed)["metrics"]
    return {key: found[key] for key in keys if key in found}


def cell(entry: Mapping[str, Any] | None) -> str:
    """``0.811 [0.765, 0.856]`` of a metric, ``–`` where there is none."""
    return _with_interval(entry, "value", "{:.3f}")


def gap(entry: Mapping[str, Any] | None) -> str:
    """``+0.010 [+0.004, +0.018]`` of a difference, ``–`` where there is none."""
    return _with_interval(entry, "difference", "{:+.3f}")


def _with_interval(entry: Mapping[str, Any] | None, key: str, form: str) -> str:
    if entry is None or entry[key] is None:
        return "–"
    if entry["lo"] is None:
        return form.format(entry[key])
    return f"{form.format(entry[key])} [{form.format(entry['lo'])}, {form.format(entry['hi'])}]"


def compact(value: Any, definitions: dict[str, str], name: str = "") -> Any:
    """The same to six digits, with the definition of every metric said once, in ``definitions``."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Path):
        return value.name
    if isinstance(value, list | tuple):
        return [compact(one, definitions, name) for one in value]
    if not isinstance(value, dict):
        return value
    if "definition" in value:
        definitions[name] = value["definition"]
    return {k: compact(v, definitions, k) for k, v in value.items() if k != "definition"}
