# SPDX-License-Identifier: Apache-2.0
"""The report's long tables, of images and of patients: their frames, and their rows as columns.

The rows travel as JSON in the page; its script puts one page of them into the document. A hundred
thousand take about 10 MB, and need no server.
"""

from __future__ import annotations

from string import Template
from typing import Any

import numpy as np

from fundad_fast.report import patients as by_patients
from fundad_fast.report.asset_files import asset
from fundad_fast.report.drift import divisions
from fundad_fast.report.patients import Patients
from fundad_fast.report.run_files import TABLE_ROWS, Rows, Run
from fundad_fast.report.sections import Rendered


def rows_section(run: Run, patients: Patients | None) -> Rendered:
    """The table of all images."""
    if not len(run):
        return "rows", "All images", '<p class="note">This run has no images.</p>'
    cut = ""
    if len(run) > TABLE_ROWS:
        cut = (
            f'<p class="note">The {TABLE_ROWS:,} worst of {len(run):,} images; the rest is in '
            "<code>scores/</code> in the run folder.</p>"
        )
    more = "" if patients is None else _head("patient", "patient")
    more += _head("side", "eye") if _sides_known(run) else ""
    body = Template(asset("rows.html")).substitute(more=more)
    return "rows", f"All images ({len(run):,})", cut + body


def patients_section(run: Run, patients: Patients | None) -> Rendered:
    """The table of patients, by the worst of their images."""
    if patients is None:
        return "patients", "Patients", ""
    notes = "".join(f'<p class="note">{text}</p>' for text in by_patients.notes(run, patients))
    eyes = [("R", "right eye"), ("L", "left eye")]
    more = "".join(
        _head(side, name, number=True)
        for side, name in eyes
        if np.isfinite(patients.sides[side]).any()
    )
    body = Template(asset("patients.html")).substitute(more=more)
    return "patients", f"Patients ({len(patients):,})", notes + body


def data(run: Run, patients: Patients | None) -> dict[str, Any]:
    """The rows of both tables as columns, worst first and failures last."""
    order = np.concatenate([run.ranked, run.failed])[:TABLE_ROWS]
    rows = run.rows
    found: dict[str, Any] = {
        "id": [str(name) for name in rows.text(("id",), order)["id"]],
        "score": run.score[order],
        "pct": rows.numbers["score_pct"][order],
        "flag": run.flag[order],
        "label": run.label[order],
        "ranked": len(run.ranked),
    }
    for name, names in (("class", "classes"), ("status", "statuses"), ("laterality", "sides")):
        found[name], found[names] = _sorted_codes(run, name, order)
    found["divisions"] = [
        {"word": d.word, "names": d.names, "code": d.code[order]} for d in divisions(run)
    ]
    if patients is not None:
        # Both are worst first, so that no row is of a patient beyond those in the table.
        found["patient"] = patients.of_row[order]
        found["patients"] = by_patients.table_data(run, patients, order)
    return found


def _sorted_codes(run: Run, name: str, order: Rows) -> tuple[Rows, list[str]]:
    """Codes of some rows, with only the words that they need, in alphabetical order."""
    words, codes = run.rows.names[name], run.rows.codes[name][order]
    used = [] if words is None else sorted((words[k], k) for k in np.unique(codes) if k >= 0)
    place = np.full(len(words or ()) + 1, -1, np.intp)
    for i, (_, k) in enumerate(used):
        place[k] = i
    return place[codes], [word for word, _ in used]


def _sides_known(run: Run) -> bool:
    return bool((run.rows.codes["laterality"] >= 0).any())


def _head(key: str, name: str, number: bool = False) -> str:
    style = ' class="num"' if number else ""
    return (
        f'<th scope="col"{style} data-column="{key}">'
        f'<button type="button" data-sort="{key}">{name}</button></th>\n'
    )
