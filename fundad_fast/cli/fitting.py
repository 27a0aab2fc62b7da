# SPDX-License-Identifier: Apache-2.0
"""What `fundad fit` is made of: a detector from options, its plan, the model's folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..words import count
from .options import UsageError, parse_settings, read_config

if TYPE_CHECKING:
    from ..data import Dataset
    from ..detector import Detector


def first_of_launched() -> bool:
    """Whether this is the first, or only, of the processes that were launched.

    The others train along, and leave it to the first to write and to print.
    """
    from ..training import launched

    return launched()[0] == 0


def make_detector(
    method: str | None,
    preset: str | None,
    settings: list[str] | None,
    config: Path | None,
    weights: str | None,
    seed: int | None,
    **options: Any,
) -> Detector:
    from ..detector import DETECTORS
    from ..training import launched

    said = read_config(config) if config else {}
    name = method or said.get("method", "resad")
    if name not in DETECTORS:
        raise UsageError(f"no method {name!r}; there are {', '.join(DETECTORS)}")
    if launched()[1] > 1 and not DETECTORS[name].method.trains:
        raise UsageError(f"{name} trains no network; call it without accelerate launch or torchrun")
    values = {**(said.get("settings") or {}), **parse_settings(settings or [])}
    if seed is not None:
        values["seed"] = seed
    reserved = {"method", "preset", "weights", *options} & set(values)
    if reserved:
        raise UsageError(f"{', '.join(sorted(reserved))} is an option of its own, not for --set")
    return DETECTORS[name](
        preset or said.get("preset", "default"),
        weights=weights or said.get("weights"),
        **options,
        **values,
    )


def print_plan(detector: Detector, dataset: Dataset) -> None:
    plan = detector.plan(dataset)
    for line in plan.lines:
        print(line)
    print(f"memory  about {_size(plan.memory)}")
    print(f"disk    about {_size(plan.disk)} while fitting, {_size(plan.bundle)} for the model")
    print(f"time    about {plan.seconds:.0f} s on this machine (a rough estimate)")


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def replace_model(detector: Detector, output: Path) -> None:
    """Save the model; an old one gives way only when the new one is complete."""
    new, old = (output.with_name(f".{output.name}.{what}") for what in ("new", "old"))
    restore_model(output)
    if not output.exists():
        detector.save(output)
        return
    shutil.rmtree(new, ignore_errors=True)
    detector.save(new)
    output.rename(old)
    new.rename(output)
    shutil.rmtree(old)


def restore_model(output: Path) -> None:
    """Bring back, or clear away, what a kill between two renames has left."""
    old = output.with_name(f".{output.name}.old")
    if old.exists():
        if output.exists():
            shutil.rmtree(old)
        else:
            old.rename(output)


def print_fitted(detector: Detector, output: Path, seconds: float) -> None:
    bundle = detector.bundle_
    assert bundle is not None
    for failure in list(detector.failures_.values())[:10]:
        print(f"left out {failure.item.id}: {failure.status}, {failure.error}")
    if len(detector.failures_) > 10:
        print(f"left out {len(detector.failures_) - 10} more")
    facts = getattr(bundle.method, "facts", {})
    backbone = facts.get("backbone", {})
    if backbone.get("source") == "untrained":
        print("the backbone is untrained (random weights): scores mean little")
    print(
        f"{bundle.method.name} ({bundle.preset}) fitted on "
        f"{count(bundle.trained_on['images'], 'image')} "
        f"in {seconds:.1f} s: {bundle.method.summary()}"
    )
    for text in bundle.method.caveats:
        print(text)
    for kind, fact in bundle.thresholds.items():
        if fact is None:
            mapless = kind == "pixel" and bundle.thresholds.get("image") is not None
            why = "the scores have no map" if mapless else "nothing was held out"
            print(f"no {kind} threshold: {why}")
        else:
            print(f"{kind} threshold {fact['value']:.5g}: {fact['rule']}")
    print(f"model {bundle.id} written to {output}")


def demo_detector(weights: str | None, options: dict[str, Any]) -> Detector:
    from ..backbones import WeightsError, load_backbone
    from ..detector import ReSAD

    detector = ReSAD("quick", weights=weights, **options)
    config: Any = detector.config
    try:
        load_backbone(config.backbone, config.layers, weights)
    except WeightsError as error:
        if weights is not None:
            raise
        print(f"using an untrained backbone, so scores mean little: {error}")
        detector = ReSAD("quick", weights="untrained", **options)
    return detector


def print_settings(name: str) -> None:
    from ..methods import METHODS

    if name not in METHODS:
        raise UsageError(f"no method {name!r}; there are {', '.join(METHODS)}")
    method = METHODS[name]
    for key, field in method.Config.model_fields.items():
        print(f"{key} = {field.default!r}\n    {field.description}")
    for preset, values in method.presets.items():
        changed = ", ".join(f"{key}={value!r}" for key, value in values.items())
        print(f"preset {preset}: {changed or 'the values above'}")
