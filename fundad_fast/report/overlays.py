# SPDX-License-Identifier: Apache-2.0
"""Overlays of a finished run, worst first."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fundad_fast.progress import Progress
from fundad_fast.report import view
from fundad_fast.report.overlay import MAX_SIDE, save_overlay
from fundad_fast.run_folder import RunError, overlay_path, read_rows, read_run
from fundad_fast.words import count

if TYPE_CHECKING:
    from fundad_fast.data import InputSpec


@dataclass
class Overlays:
    """What became of the overlays of a run.

    Attributes:
        drawn: how many were drawn now.
        kept: how many were there already.
        left_out: why the others were not drawn: how many by reason.
    """

    drawn: int = 0
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def describe(self) -> str:
        """One line: how many there are, and why not more."""
        line = count(self.drawn + self.kept, "overlay")
        if self.left_out:
            why = "; ".join(f"{n} {reason}" for reason, n in sorted(self.left_out.items()))
            line += f", {sum(self.left_out.values())} not drawn ({why})"
        return line


def make_overlays(
    run: Path,
    top: int | None,
    *,
    progress: Progress | None = None,
    max_megapixels: float = 200.0,
) -> Overlays:
    """Draw the overlays of a run that are not there yet.

    Args:
        run: a run folder with maps.
        top: how many, from the highest score down; ``None`` for all.
        progress: told about the pictures.
        max_megapixels: larger photographs and masks are not decoded.

    Returns:
        how many of the wanted overlays exist now and why the others do not. A model without a
        colour scale (fitted without held-out images) has none at all, since a scale per image
        would mislead.

    Raises:
        RunError: ``run`` is no run folder, or is damaged.
    """
    about = read_run(run)
    facts, spec = about["model"], view.input_spec(about)
    scale, pixel = facts.get("colour_scale"), (facts.get("thresholds") or {}).get("pixel") or {}
    found = (r for r in read_rows(run) if r["status"] == "ok" and r["map_path"] is not None)
    rows = _worst(found, top)
    result = Overlays()
    if not scale:
        if rows:
            result.left_out["without a colour scale: fitted without held-out images"] = len(rows)
        return result
    with (progress or Progress()).task("overlays", len(rows), "images") as task:
        for row in rows:
            if overlay_path(run, row["id"]).exists():
                result.kept += 1
            elif why := _draw(run, row, spec, scale, pixel.get("value"), max_megapixels):
                result.left_out[why] += 1
            else:
                result.drawn += 1
            task.advance()
    return result


def _worst(rows: Iterable[dict[str, Any]], top: int | None) -> list[dict[str, Any]]:
    """The ``top`` highest scores, equal ones by id; the others are not held."""
    if top is None:
        return sorted(rows, key=_rank)
    return heapq.nsmallest(top, rows, key=_rank)


def _rank(row: dict[str, Any]) -> tuple[float, str]:
    return -row["score"], row["id"]


def _draw(
    run: Path,
    row: dict[str, Any],
    spec: InputSpec,
    scale: dict[str, Any],
    threshold: float | None,
    max_megapixels: float,
) -> str | None:
    """Draw one overlay, or say why not."""
    from fundad_fast.data import ReadError, path_of_row

    if spec.volume is not None:
        return _draw_planes(run, row, spec, scale, threshold, max_megapixels)
    try:
        photo = view.read_photograph(row, spec, MAX_SIDE, max_megapixels)
    except ReadError as error:
        gone = not Path(path_of_row(row["path"])).is_file()
        return "photographs are gone" if gone else f"photographs cannot be read: {error.status}"
    if view.changed(row, photo):
        return "photographs have changed since they were scored"
    height, width = photo.pixels.shape[:2]
    mask = None
    if row["mask_path"] is not None:
        try:
            mask = view.read_lesions(row, height, width, max_megapixels)
        except ReadError:
            return "masks are gone or cannot be read"
    try:
        # Not cut by the field of view: the overlay is, after the last interpolation.
        scores = view.scores_at(run, row, height, width, None)
    except RunError:
        return "maps are gone or damaged"
    title = _title(row)
    if photo.window is not None:
        title += f"   shown from {photo.window[0]:.4g} to {photo.window[1]:.4g}"
    save_overlay(
        overlay_path(run, row["id"]),
        photo.pixels,
        scores,
        scale=(scale["lo"], scale["hi"]),
        threshold=threshold,
        mask=mask,
        fov=view.field_of_view(row, spec, height, width),
        title=title,
    )
    return None


def _draw_planes(
    run: Path,
    row: dict[str, Any],
    spec: InputSpec,
    scale: dict[str, Any],
    threshold: float | None,
    max_megapixels: float,
) -> str | None:
    """Draw the overlay of a volume, or say why not."""
    from fundad_fast.data import ReadError
    from fundad_fast.report.planes import draw_planes

    try:
        planes = draw_planes(run, row, spec, max_megapixels)
    except ReadError:
        return "volumes or labels are gone or cannot be read"
    except RunError:
        return "maps are gone or damaged"
    save_overlay(
        overlay_path(run, row["id"]),
        planes.pixels,
        planes.scores,
        scale=(scale["lo"], scale["hi"]),
        threshold=threshold,
        mask=planes.lesions,
        fov=planes.inside,
        title=_title(row),
    )
    return None


def _title(row: dict[str, Any]) -> str:
    title = f"{row['id']}   score {row['score']:.4g}"
    if row["score_pct"] is not None:
        title += f"   percentile {row['score_pct']:.0f} of healthy"
    return title
