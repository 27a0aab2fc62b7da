# SPDX-License-Identifier: Apache-2.0
"""What a run folder holds, as the report needs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fundad_fast.report.view import input_spec
from fundad_fast.run_folder import read_json, read_part, read_run, score_parts

if TYPE_CHECKING:
    from fundad_fast.data import InputSpec

# Columns that are held for every row; those of PICTURE_COLUMNS only for rows that are shown.
TABLE_COLUMNS = ("id", "status", "error", "score", "score_pct", "pred_label", "gt_label", "class")
PICTURE_COLUMNS = (
    "path", "member", "member_offset", "frame", "width", "height", "bytes", "fov_status", "fov_cx",
    "fov_cy", "fov_r", "fov_box", "regions", "patient_id", "laterality", "mask_path", "map_path",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run folder in memory, without its pictures.

    Attributes:
        folder: the run folder.
        about: ``run.json``.
        metrics: ``metrics.json``, or ``None`` for a run that was only scored.
        table: one list per name of `TABLE_COLUMNS`, all of the same length; unknown is ``None``.
        ranked: rows with status ok and a score, worst first; equal scores in order of id.
        failed: the other rows, in the order in which they were scored.
        normal: scores of held-out healthy images; empty where they are not known.
        spec: the model's input specification.
    """

    folder: Path
    about: dict[str, Any]
    metrics: dict[str, Any] | None
    table: dict[str, list[Any]]
    ranked: list[int]
    failed: list[int]
    normal: NDArray[np.float64]
    spec: InputSpec

    def __len__(self) -> int:
        return len(self.table["id"])

    def column(self, name: str, rows: list[int]) -> list[Any]:
        values = self.table[name]
        return [values[row] for row in rows]

    def threshold(self, kind: str) -> float | None:
        """The model's ``image`` or ``pixel`` threshold, where it has one."""
        stored = (self.about["model"].get("thresholds") or {}).get(kind) or {}
        return stored.get("value")

    def colour_scale(self) -> tuple[float, float] | None:
        """The scores at the two ends of the model's colours, where it makes maps."""
        stored = self.about["model"].get("colour_scale") or {}
        return (stored["lo"], stored["hi"]) if {"lo", "hi"} <= stored.keys() else None

    def picture_rows(self, rows: list[int]) -> list[dict[str, Any]]:
        """All columns of some rows, in the order asked for."""
        found: dict[int, dict[str, Any]] = {}
        wanted = np.asarray(sorted(rows), np.intp)
        start = 0
        for part in score_parts(self.folder):
            table = read_part(part, (*TABLE_COLUMNS, *PICTURE_COLUMNS))
            inside = wanted[(wanted >= start) & (wanted < start + table.num_rows)]
            if len(inside):
                content = table.take(inside - start).to_pylist()
                found.update(zip(inside.tolist(), content))
            start += table.num_rows
        return [found[row] for row in rows]


def open_run(folder: Path) -> Run:
    """Reads a run folder.

    Raises:
        RunError: the folder is missing, is no run folder, or is damaged.
    """
    about = read_run(folder)
    metrics = None
    if (folder / "metrics.json").exists():
        metrics = read_json(folder / "metrics.json", "run eval again")
    table: dict[str, list[Any]] = {name: [] for name in TABLE_COLUMNS}
    for part in score_parts(folder):
        content = read_part(part, TABLE_COLUMNS)
        for name in TABLE_COLUMNS:
            table[name].extend(content.column(name).to_pylist())
    scores, ids = table["score"], table["id"]
    good = [
        status == "ok" and score is not None and np.isfinite(score)
        for status, score in zip(table["status"], scores)
    ]
    ranked = [row for row, ok in enumerate(good) if ok]
    ranked.sort(key=lambda row: (-scores[row], ids[row]))
    failed = [row for row, ok in enumerate(good) if not ok]
    normal = np.asarray(about["model"].get("normal_scores") or [], np.float64)
    normal = normal[np.isfinite(normal)]
    return Run(folder, about, metrics, table, ranked, failed, normal, input_spec(about))
