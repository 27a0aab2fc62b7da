# SPDX-License-Identifier: Apache-2.0
"""What a run folder holds, as the report needs it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMA = 1

# Columns that are held for every row; those of PICTURE_COLUMNS only for rows that are shown.
TABLE_COLUMNS = ("id", "status", "error", "score", "score_pct", "pred_label", "gt_label", "class")
PICTURE_COLUMNS = (
    "path", "width", "height", "bytes", "fov_cx", "fov_cy", "fov_r", "regions", "patient_id",
    "laterality", "mask_path", "map_path", "overlay_path",
)  # fmt: skip


class ReportError(ValueError):
    """A folder that no report can be made of; the message says what to do."""


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
    """

    folder: Path
    about: dict[str, Any]
    metrics: dict[str, Any] | None
    table: dict[str, list[Any]]
    ranked: list[int]
    failed: list[int]
    normal: NDArray[np.float64]

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
        for part in _parts(self.folder):
            table = _read(part, (*TABLE_COLUMNS, *PICTURE_COLUMNS))
            inside = wanted[(wanted >= start) & (wanted < start + table.num_rows)]
            if len(inside):
                content = table.take(inside - start).to_pylist()
                found.update(zip(inside.tolist(), content))
            start += table.num_rows
        return [found[row] for row in rows]


def read_run(folder: Path) -> Run:
    """Reads a run folder.

    Raises:
        ReportError: the folder is missing, is no run folder, or is damaged.
    """
    about = _read_json(folder / "run.json", "give a folder that score or eval made")
    if about.get("schema") != SCHEMA:
        found = about.get("schema")
        raise ReportError(f"{folder}/run.json has schema {found!r}; this version reads {SCHEMA}")
    if not isinstance(about.get("model"), dict):
        raise ReportError(f"{folder}/run.json does not say which model made the scores")
    metrics = None
    if (folder / "metrics.json").exists():
        metrics = _read_json(folder / "metrics.json", "run eval again")
    table: dict[str, list[Any]] = {name: [] for name in TABLE_COLUMNS}
    for part in _parts(folder):
        content = _read(part, TABLE_COLUMNS)
        for name in TABLE_COLUMNS:
            missing = [None] * content.num_rows
            has = name in content.column_names
            table[name].extend(content.column(name).to_pylist() if has else missing)
    scores, ids = table["score"], table["id"]
    good = [
        status == "ok" and score is not None and np.isfinite(score)
        for status, score in zip(table["status"], scores)
    ]
    ranked = [row for row, ok in enumerate(good) if ok]
    ranked.sort(key=lambda row: (-scores[row], ids[row]))
    failed = [row for row, ok in enumerate(good) if not ok]
    return Run(folder, about, metrics, table, ranked, failed, _normal_scores(folder, about))


def read_map(folder: Path, relative: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A stored map ``[h', w']`` and its affine ``[2, 3]`` to original pixels.

    Raises:
        ReportError: it is missing, damaged or not finite.
    """
    path = folder / relative
    try:
        with np.load(path, allow_pickle=False) as stored:
            values = stored["map"].astype(np.float32)
            affine = stored["affine"].astype(np.float64)
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise ReportError(f"the map {relative} cannot be read ({type(error).__name__})") from error
    if values.ndim != 2 or affine.shape != (2, 3) or not np.isfinite(values).all():
        raise ReportError(f"the map {relative} is damaged")
    return values, affine


def _parts(folder: Path) -> list[Path]:
    return sorted((folder / "scores").glob("part-*.parquet"))


def _read(part: Path, columns: tuple[str, ...]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(part)
        with file:
            names = set(file.schema_arrow.names)
            if not {"id", "status", "score"} <= names:
                raise ReportError(f"{part} lacks the columns id, status and score")
            return file.read(columns=[name for name in columns if name in names])
    except pa.ArrowInvalid as error:
        raise ReportError(f"{part} is damaged ({error}); score again") from error


def _read_json(path: Path, advice: str) -> dict[str, Any]:
    if not path.is_file():
        raise ReportError(f"{path.parent} is not a run folder (no {path.name}); {advice}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ReportError(f"{path} is damaged ({error}); {advice}") from error
    if not isinstance(content, dict):
        raise ReportError(f"{path} is damaged (no JSON object); {advice}")
    return content


def _normal_scores(folder: Path, about: dict[str, Any]) -> NDArray[np.float64]:
    """From ``run.json`` ("normal_scores" of the model or beside it), else a copied Parquet file."""
    values = about["model"].get("normal_scores") or about.get("normal_scores") or []
    stored = folder / "normal_scores.parquet"
    if not values and stored.exists():
        import pyarrow.parquet as pq

        values = pq.read_table(stored, columns=["score"]).column("score").to_pylist()
    scores = np.asarray(values, np.float64)
    return scores[np.isfinite(scores)]
