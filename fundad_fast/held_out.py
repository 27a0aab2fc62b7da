# SPDX-License-Identifier: Apache-2.0
"""What a model takes from held-out healthy images: its thresholds and its colour scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .evaluation.thresholds import colour_scale, image_threshold, pixel_threshold
from .methods import HeldOut


def thresholds_of(held_out: HeldOut | None, target_fpr: float, from_val: bool) -> dict[str, Any]:
    """The image's and the pixel's threshold, each with how it was set, or ``None``.

    Args:
        held_out: scores of healthy images that were not learned from.
        target_fpr: share of healthy images that may be called abnormal.
        from_val: whether they are of a split ``val``.
    """
    if held_out is None or len(held_out.score) < 2:
        return {"image": None, "pixel": None}
    in_turn = not (from_val or held_out.rule)
    folds = len(set(held_out.fold.tolist())) if in_turn else None
    found: dict[str, Any] = {
        "image": image_threshold(held_out.score, target_fpr=target_fpr, folds=folds),
        "pixel": None,
    }
    if held_out.pixels is not None:
        found["pixel"] = pixel_threshold(held_out.pixels, folds=folds)
    return found


def how_held_out(held_out: HeldOut | None, folds: Mapping[str, int] | None, from_val: bool) -> str:
    """Which images those are, in words."""
    if from_val:
        return "split val"
    if held_out is not None and held_out.rule:
        return held_out.rule
    return f"{len(set((folds or {}).values()))} folds"


def colour_scale_of(held_out: HeldOut | None, thresholds: dict[str, Any]) -> dict[str, Any]:
    """What maps are shown on: from healthy pixels to well above their threshold."""
    if held_out is None or held_out.pixels is None or thresholds["pixel"] is None:
        return {}
    return colour_scale(held_out.pixels, thresholds["pixel"]["value"])
