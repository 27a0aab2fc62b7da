# SPDX-License-Identifier: Apache-2.0
"""What a run folder holds, as the report needs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fundad_fast.evaluation.likeness import PREVALENCE
from fundad_fast.report.columns import Columns
from fundad_fast.report.view import input_spec
from fundad_fast.run_folder import read_json, read_run, score_parts

if TYPE_CHECKING:
    from fundad_fast.data import InputSpec

Rows = NDArray[np.intp]

PICTURE_COLUMNS = (
    "id", "status", "error", "score", "score_pct", "pred_label", "gt_label", "class",
    "path", "member", "member_offset", "frame", "width", "height", "bytes", "fov_status", "fov_cx",
    "fov_cy", "fov_r", "fov_box", "regions", "patient_id", "laterality", "mask_path", "map_path",
)  # fmt: skip
TABLE_ROWS = 100_000
"""Rows that the report names one by one, worst first."""


@dataclass(frozen=True)
class Run:
    """A run folder, without its pictures and names.

    Attributes:
        folder: the run folder.
        about: ``run.json``.
        metrics: ``metrics.json``, or ``None`` for a run that was only scored.
        rows: what is held of every row.
        flag: int8 ``[n]``: 1 above the image threshold, 0 not, -1 not known.
        ranked: rows with status ok and a score, worst first; of the first `TABLE_ROWS`, equal
            scores in order of id.
        failed: the other rows, in the order in which they were scored.
        normal: scores of held-out healthy images; empty where they are not known.
        spec: the model's input specification.
    """

    folder: Path
    about: dict[str, Any]
    metrics: dict[str, Any] | None
    rows: Columns
    flag: NDArray[np.int8]
    ranked: Rows
    failed: Rows
    normal: NDArray[np.float64]
    spec: InputSpec

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def score(self) -> NDArray[np.float32]:
        """``[n]``, NaN for none."""
        return self.rows.numbers["score"]

    @property
    def label(self) -> NDArray[np.int8]:
        """``[n]``: 0 healthy, 1 abnormal, -1 not known."""
        return self.rows.small["gt_label"]

    def threshold(self, kind: str) -> float | None:
        """The model's ``image`` or ``pixel`` threshold, where it has one."""
        return _threshold(self.about, kind).get("value")

    def target_fpr(self) -> float | None:
        """The share of healthy images that the image threshold aims to flag, where known."""
        return _threshold(self.about, "image").get("target_fpr")

    def colour_scale(self) -> tuple[float, float] | None:
        """The scores at the two ends of the model's colours, where it makes maps."""
        stored = self.about["model"].get("colour_scale") or {}
        return (stored["lo"], stored["hi"]) if {"lo", "hi"} <= stored.keys() else None

    def picture_rows(self, rows: Rows) -> list[dict[str, Any]]:
        """All that a picture needs of some rows, in the order asked for."""
        found = self.rows.text(PICTURE_COLUMNS, rows)
        return [dict(zip(found, values)) for values in zip(*found.values())]


def open_run(folder: Path) -> Run:
    """Reads a run folder.

    Raises:
        RunError: the folder is missing, is no run folder, or is damaged.
    """
    about = read_run(folder)
    metrics = None
    if (folder / "metrics.json").exists():
        metrics = read_json(folder / "metrics.json", "run eval again")
    rows = Columns(score_parts(folder))
    scores = rows.numbers["score"]
    statuses = rows.names["status"] or ()
    ok = statuses.index("ok") if "ok" in statuses else len(statuses)
    good = np.isfinite(scores) & (rows.codes["status"] == ok)
    ranked = np.flatnonzero(good)
    ranked = ranked[np.argsort(-scores[ranked], kind="stable")]
    _order_ties(rows, ranked[:TABLE_ROWS])
    normal = np.asarray(about["model"].get("normal_scores") or [], np.float64)
    return Run(
        folder=folder,
        about=about,
        metrics=metrics,
        rows=rows,
        flag=_flags(rows, _threshold(about, "image").get("value")),
        ranked=ranked,
        failed=np.flatnonzero(~good),
        normal=normal[np.isfinite(normal)],
        spec=input_spec(about),
    )


def not_abnormal(run: Run) -> Rows:
    """The scored rows, worst first, without those that are known to be abnormal."""
    return run.ranked[run.label[run.ranked] != 1]


def plausible_prevalence(run: Run, rows: Rows) -> float:
    """The largest share of abnormal images among some rows that is held possible."""
    return PREVALENCE * (float(np.mean(run.label[rows] < 0)) if len(rows) else 1.0)


def _threshold(about: dict[str, Any], kind: str) -> dict[str, Any]:
    return (about["model"].get("thresholds") or {}).get(kind) or {}


def _flags(rows: Columns, threshold: float | None) -> NDArray[np.int8]:
    """The rows' own labels; where they have none, whether the score is above the threshold."""
    flag, score = rows.small["pred_label"].copy(), rows.numbers["score"]
    if threshold is not None:
        unsaid = (flag < 0) & np.isfinite(score)
        flag[unsaid] = score[unsaid].astype(np.float64) > threshold
    return flag


def _order_ties(rows: Columns, ranked: Rows) -> None:
    """Put rows of equal scores in order of id, in place: shards may come in any order."""
    scores = rows.numbers["score"][ranked]
    tied = np.zeros(len(ranked), bool)
    equal = scores[1:] == scores[:-1]
    tied[1:] |= equal
    tied[:-1] |= equal
    places = np.flatnonzero(tied)
    if len(places):
        names = rows.text(("id",), ranked[places])["id"]
        keys = sorted(range(len(places)), key=lambda k: (-scores[places[k]], names[k]))
        ranked[places] = ranked[places[keys]]
