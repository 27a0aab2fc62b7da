# SPDX-License-Identifier: Apache-2.0
"""The images of a run by patient: a patient's score is that of the worst of the images.

Our design. A patient of whom there are more images has more chances to be flagged, also when
healthy, and the report says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundad_fast.report.columns import side_of
from fundad_fast.report.run_files import TABLE_ROWS, Run

Ints = NDArray[np.intp]


@dataclass(frozen=True)
class Patients:
    """The p patients of a run, worst first; those without a score come last.

    Attributes:
        worst: row of the worst image, or of the first one where none was scored.
        images, scored, flagged: how many there are of each patient.
        sides: by ``R`` and ``L``, the score of the worst image of that eye; NaN where unknown.
        of_row: ``[n]`` place of each row's patient; -1 where it is unknown.
    """

    worst: Ints
    images: Ints
    scored: Ints
    flagged: Ints
    sides: dict[str, NDArray[np.float32]]
    of_row: Ints

    def __len__(self) -> int:
        return len(self.worst)

    def first(self) -> NDArray[np.bool_]:
        """``[n]``: whether a row is the worst of its patient, or of an unknown one."""
        found = self.of_row < 0
        found[self.worst] = True
        return found


def by_patient(run: Run) -> Patients | None:
    """Group the rows of a run; ``None`` where no patient is known."""
    ids = run.rows.patient
    if not ids.any():
        return None
    rank = np.empty(len(ids), np.intp)  # worst first, then failures
    order = np.concatenate([run.ranked, run.failed])
    rank[order] = np.arange(len(order))
    known = np.flatnonzero(ids)
    _, code = np.unique(ids[known], return_inverse=True)
    first = np.full(int(code.max()) + 1, len(order), np.intp)
    np.minimum.at(first, code, rank[known])
    place = np.empty(len(first), np.intp)
    place[np.argsort(first, kind="stable")] = np.arange(len(first))
    of_row = np.full(len(ids), -1, np.intp)
    of_row[known] = place[code]
    worst = order[np.sort(first)]
    scored = run.ranked[of_row[run.ranked] >= 0]

    def count(rows: Ints) -> Ints:
        return np.bincount(of_row[rows], minlength=len(worst))

    return Patients(
        worst=worst,
        images=count(known),
        scored=count(scored),
        flagged=count(scored[run.flag[scored] > 0]),
        sides=_sides(run, scored, of_row, len(worst)),
        of_row=of_row,
    )


def _sides(run: Run, scored: Ints, of_row: Ints, n: int) -> dict[str, NDArray[np.float32]]:
    words = [side_of(name) for name in run.rows.names["laterality"] or ()]
    found = {}
    for side in ("R", "L"):
        codes = [code for code, word in enumerate(words) if word == side]
        rows = scored[np.isin(run.rows.codes["laterality"][scored], codes)]
        highest = np.full(n, np.nan, np.float32)
        np.fmax.at(highest, of_row[rows], run.score[rows])
        found[side] = highest
    return found


def table_data(run: Run, patients: Patients, images: Ints) -> dict[str, Any]:
    """The worst `TABLE_ROWS` patients as columns, for the page's script.

    Args:
        run, patients: what is shown.
        images: rows of the table of images; the worst image is named by its place there.
    """
    shown = patients.worst[:TABLE_ROWS]
    n = len(shown)
    place = np.full(len(run), -1, np.intp)
    place[images] = np.arange(len(images))
    sides = {
        side: scores[:n] for side, scores in patients.sides.items() if np.isfinite(scores).any()
    }
    names = run.rows.text(("patient_id",), shown)["patient_id"]
    return {
        "name": [str(name) for name in names],
        "worst": place[shown],
        "images": patients.images[:n],
        "scored": patients.scored[:n],
        "flagged": patients.flagged[:n],
        "sides": sides,
    }


def notes(run: Run, patients: Patients) -> list[str]:
    """What one must know to read the table of patients."""
    found = ["A patient's score is that of the worst image of either eye (our design)."]
    target, mean = run.target_fpr(), float(patients.images.mean())
    if target is not None and mean > 1:
        chance = 1 - (1 - target) ** mean
        found.append(
            f"With {mean:.2g} images each, up to {100 * chance:.2g} % of the healthy patients are "
            f"flagged where the threshold aims at {100 * target:.3g} % of the healthy images."
        )
    unknown = int(np.count_nonzero(patients.of_row < 0))
    if unknown:
        images = "image" if unknown == 1 else "images"
        found.append(f"Of {unknown:,} {images} the patient is not known: left out of the table.")
    if len(patients) > TABLE_ROWS:
        found.append(f"The table shows the {TABLE_ROWS:,} worst of {len(patients):,} patients.")
    return found
