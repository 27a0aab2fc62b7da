# SPDX-License-Identifier: Apache-2.0
"""A run as DICOM objects for a clinic's archive: overlays and regions, beside what was scored.

Each object joins the study of its source instance and refers to it. So there is none for an image
that is not DICOM: nobody could say whose it is, and an archive would hold it as a study of nobody.
"""

from __future__ import annotations

import csv
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fundad_fast.data import ReadError
from fundad_fast.data.dicom import damage
from fundad_fast.export.objects import Made, regions_of, secondary_capture, segmentation
from fundad_fast.export.source import SourceImage, read_source
from fundad_fast.progress import Progress
from fundad_fast.report import view
from fundad_fast.report.overlay import MAX_SIDE, overlay
from fundad_fast.run_folder import RunError, read_rows, read_run, replacing
from fundad_fast.words import count

if TYPE_CHECKING:
    from pydicom import Dataset

    from fundad_fast.data import InputSpec

MISSING = (
    "exporting DICOM needs highdicom, which is not installed: pip install 'fundad-fast[dicom-out]'"
)
TABLE = "export.csv"
KINDS = {"overlay": "SC", "regions": "SEG"}
_UIDS = ("study_instance_uid", "series_instance_uid", "sop_instance_uid")
_COLUMNS = (
    ("id", "path", "member", "member_offset", "frame", "status", "width", "height", "fov_status")
    + ("fov_cx", "fov_cy", "fov_r", "fov_box", "score", "score_pct", "pred_label", "map_path")
    + ("bytes", "regions", *_UIDS)
)


@dataclass
class Exported:
    """What became of the objects of a run.

    Attributes:
        written: overlays and regions that were written now.
        kept: those that were there already.
        without: why rows have only one of the two, as is to be expected: how many by reason.
        left_out: why rows have none: how many by reason.
    """

    written: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    without: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """How many there are, and why not more."""
        found = [
            count(self.written[kind] + self.kept[kind], what)
            + (f" ({self.kept[kind]} already there)" if self.kept[kind] else "")
            for kind, what in (("overlay", "overlay"), ("regions", "segmentation"))
        ]
        why = sorted(self.without.items()) + sorted(self.left_out.items())
        return [", ".join(found), *(f"rows with {reason}: {n}" for reason, n in why)]


def export_dicom(
    run: Path,
    out: Path,
    *,
    top: int | None = None,
    above_threshold: bool = False,
    progress: Progress | None = None,
    max_megapixels: float = 200.0,
) -> Exported:
    """Write a run's overlays as Secondary Capture and its regions as Segmentation.

    ``OUT/<study>/SC-<uid>.dcm`` and ``SEG-<uid>.dcm``, and ``OUT/export.csv``, which says for each
    row of this call where its objects are, or why there are none. UIDs come from the run and the
    row, so that a second export gives the same objects; what is there already is not made again.
    A row has regions where its map passes the model's pixel threshold, inside the field of view;
    they are those that the overlay outlines. Patient and study are as in the source's header;
    the text on an overlay names nobody, but the photograph is shown as it is.

    Args:
        run: a run folder with maps.
        out: folder to write into.
        top: how many rows, from the highest score down; ``None`` for all, in the order of the run.
        above_threshold: only rows whose score is above the model's image threshold.
        progress: told about the rows.
        max_megapixels: larger images are not decoded.

    Raises:
        RunError: highdicom is not installed; ``run`` is no run folder, is damaged, is
            de-identified, or has no image threshold where one is asked for.
        OSError: ``out`` cannot be written; the next call goes on.
    """
    about = read_run(run)
    if (about.get("settings") or {}).get("deidentify"):
        raise RunError(
            f"{run} is de-identified: its rows name no patient, study or instance that DICOM "
            "objects could belong to; export a run that was scored without --deidentify"
        )
    facts = about["model"]
    if above_threshold and not _threshold(facts, "image"):
        raise RunError("the model has no image threshold: export without --above-threshold")
    if find_spec("highdicom") is None:
        raise RunError(MISSING)
    exporter = _Exporter(run, out, about, max_megapixels)
    result = Exported()
    total = sum(1 for _ in _rows(run, above_threshold, ["status", "pred_label"]))
    rows: Iterable[dict[str, Any]] = _rows(run, above_threshold, list(_COLUMNS))
    if top is not None:
        rows = heapq.nsmallest(top, rows, key=lambda row: (-row["score"], row["id"]))
        total = len(rows)
    with (
        (progress or Progress()).task("export", total, "images") as task,
        replacing(out / TABLE, "w") as file,
    ):
        table = csv.DictWriter(file, ["id", "score", *KINDS, "left_out"])
        table.writeheader()
        for row in rows:
            table.writerow({"id": row["id"], "score": row["score"], **exporter(row, result)})
            task.advance()
    return result


def _rows(run: Path, above_threshold: bool, columns: list[str]) -> Iterator[dict[str, Any]]:
    for row in read_rows(run, columns):
        if row["status"] == "ok" and (not above_threshold or row["pred_label"]):
            yield row


def _threshold(facts: dict[str, Any], kind: str) -> dict[str, Any]:
    return (facts.get("thresholds") or {}).get(kind) or {}


class _LeftOut(Exception):
    """Why a row has no objects."""


class _Exporter:
    """Makes the objects of rows."""

    def __init__(self, run: Path, out: Path, about: dict[str, Any], max_megapixels: float) -> None:
        self.run, self.out, self.max_megapixels = run, out, max_megapixels
        facts = about["model"]
        self.spec: InputSpec = view.input_spec(about)
        self.scale = facts.get("colour_scale")
        self.pixel: float | None = _threshold(facts, "pixel").get("value")
        try:
            at = datetime.strptime(str(about.get("created")), "%Y-%m-%dT%H:%M:%S%z")
        except ValueError as error:
            raise RunError(f"{run / 'run.json'} does not say when the run began") from error
        self.made = Made(
            run=f"{facts.get('id')} {about['created']}",
            method=str(facts.get("method")),
            model=str(facts.get("id")),
            version=str((about.get("environment") or {}).get("fundad-fast") or "unknown"),
            at=at,
        )

    def __call__(self, row: dict[str, Any], result: Exported) -> dict[str, str]:
        """What the table says of a row."""
        said: dict[str, str] = {}
        reasons = self._not_wanted(row)
        try:
            paths = self._paths(row)
            wanted = {kind: path for kind, path in paths.items() if kind not in reasons}
            missing = {kind: path for kind, path in wanted.items() if not path.exists()}
            made = self._objects(row, list(missing)) if missing else {}
            for kind, path in wanted.items():
                if kind in made:
                    self._write(path, made[kind])
                elif kind in missing:
                    reasons[kind] = "no region above the pixel threshold"
                    continue
                (result.written if kind in made else result.kept)[kind] += 1
                said[kind] = path.relative_to(self.out).as_posix()
        except _LeftOut as why:
            result.left_out[str(why)] += 1
            return {"left_out": str(why)}
        result.without.update(reasons.values())
        return {**said, "left_out": "; ".join(reasons.values())}

    def _not_wanted(self, row: dict[str, Any]) -> dict[str, str]:
        """Why a kind of object is not made, as far as the row tells."""
        reasons = {}
        if not self.scale:
            reasons["overlay"] = "no overlay, as the model has no colour scale (nothing held out)"
        if self.pixel is None:
            reasons["regions"] = "no regions, as the model has no pixel threshold"
        elif not row["regions"]:
            reasons["regions"] = "no region above the pixel threshold"
        return reasons

    def _paths(self, row: dict[str, Any]) -> dict[str, Path]:
        if row["map_path"] is None:
            raise _LeftOut("no map: scored with --no-maps, or by a method without maps")
        if any(re.fullmatch(r"[0-9]+(\.[0-9]+)*", row[name] or "") is None for name in _UIDS):
            raise _LeftOut("no DICOM image with valid identifiers, so no study to belong to")
        folder = self.out / row["study_instance_uid"]
        return {k: folder / f"{s}-{self.made.uid(s, row)}.dcm" for k, s in KINDS.items()}

    def _objects(self, row: dict[str, Any], kinds: list[str]) -> dict[str, Dataset]:
        """The objects of a row that can be made."""
        try:
            photograph = view.read_photograph(row, self.spec, MAX_SIDE, self.max_megapixels)
            if view.changed(row, photograph):
                raise _LeftOut("an image that has changed since it was scored")
            source = read_source(row)
            with damage():
                made = {kind: self._object(kind, row, source, photograph) for kind in kinds}
        except ReadError as error:
            why = f"an image that cannot be used ({error.status}): {error.reason}"
            raise _LeftOut(why) from error
        except RunError as error:
            raise _LeftOut("a map that is gone or damaged") from error
        return {kind: one for kind, one in made.items() if one is not None}

    def _object(
        self, kind: str, row: dict[str, Any], source: SourceImage, photograph: view.Photograph
    ) -> Dataset | None:
        if kind == "overlay":
            return self._overlay(row, source, photograph)
        assert self.pixel is not None
        height, width = row["height"], row["width"]
        scores = view.scores_at(self.run, row, height, width, None)
        inside = view.field_of_view(row, self.spec, height, width)
        regions = regions_of(scores, inside, self.pixel)
        return None if regions is None else segmentation(source, regions, row, self.made)

    def _overlay(
        self, row: dict[str, Any], source: SourceImage, photograph: view.Photograph
    ) -> Dataset:
        height, width = photograph.pixels.shape[:2]
        lo, hi = self.scale["lo"], self.scale["hi"]
        # No id here: it is a path, and people name folders after patients.
        title = f"{self.made.method}   score {row['score']:.4g}"
        if row["score_pct"] is not None:
            title += f"   percentile {row['score_pct']:.0f} of healthy"
        title += "   research use only"
        if photograph.window is not None:
            title += f"   shown from {photograph.window[0]:.4g} to {photograph.window[1]:.4g}"
        picture = overlay(
            photograph.pixels,
            view.scores_at(self.run, row, height, width, None),
            scale=(lo, hi),
            threshold=self.pixel,
            fov=view.field_of_view(row, self.spec, height, width),
            title=title,
        )
        derivation = (
            f"The image beside itself under an anomaly map, coloured from {lo:.6g} to {hi:.6g}"
            + ("" if self.pixel is None else f", scores above {self.pixel:.6g} outlined")
            + f"; image score {row['score']:.6g}, higher is more abnormal; model {self.made.model}"
            + "; for research, not for diagnosis"
        )
        return secondary_capture(source, np.ascontiguousarray(picture), row, self.made, derivation)

    def _write(self, path: Path, image: Dataset) -> None:
        from pydicom import dcmwrite

        with replacing(path) as file:
            dcmwrite(file, image, enforce_file_format=True)
