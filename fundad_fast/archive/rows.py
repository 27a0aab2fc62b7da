# SPDX-License-Identifier: Apache-2.0
"""What a row says of an input, and how it names it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf

from ..bundle import Bundle
from ..data import Failure, Identifiers, Item, Prepared, as_nifti, brightness, item_id
from ..evaluation.thresholds import score_percentile
from ..run_folder import RunFolder
from .regions import map_affine, top_regions, volume_affine

Files = tuple[int | None, int | None, int | None, int | None]

FILE_COLUMNS = ("bytes", "mtime_ns", "mask_bytes", "mask_mtime_ns")
LABEL_COLUMNS = ("gt_label", "class", "group", "patient_id", "laterality")
MAY_COME_FROM_THE_FILE = ("patient_id", "laterality")

_IDENTIFIERS = ("sop_instance_uid", "study_instance_uid", "series_instance_uid", "acquired")


class Naming:
    """How rows name their inputs: as they are."""

    def id(self, item: Item) -> str:
        """The row's id."""
        return item.id

    def path(self, path: str) -> str:
        """A path as a row holds it: absolute; Parquet knows no bytes that are not UTF-8."""
        return os.fsencode(os.path.abspath(path)).decode("utf-8", "backslashreplace")

    def same_file(self, stored: str, path: str) -> bool:
        """Whether a row's path is that of an item."""
        return stored == self.path(path) or os.path.realpath(stored) == os.path.realpath(path)

    def files(self, item: Item) -> Files:
        """Size and time of an item's file and of its masks; ``None`` where there is none."""
        size, newest = _size_and_time(item.path)
        paths = [item.mask_path] if item.mask_path is not None else []
        paths += [path for _, path in item.mask_paths_by_type]
        masks = [_size_and_time(path) for path in paths]
        sizes = [one for one, _ in masks if one is not None]
        times = [one for _, one in masks if one is not None]
        return size, newest, sum(sizes) if sizes else None, max(times, default=None)

    def labels(self, item: Item) -> dict[str, Any]:
        """What a row repeats of an item."""
        said = (item.label, item.class_name, item.group, item.patient_id, item.laterality)
        return dict(zip(LABEL_COLUMNS, said))

    def origin(self, item: Item) -> dict[str, Any]:
        """Where an item comes from."""
        found = item.identifiers or Identifiers()
        return {
            "member": None if item.member is None else item_id(item.member),
            "member_offset": item.offset,
            "frame": item.frame,
            **{name: getattr(found, name) for name in _IDENTIFIERS},
            "mask_path": None if item.mask_path is None else self.path(item.mask_path),
        }

    def error(self, item: Item, status: str, error: str | None) -> str | None:
        """Why it has no score."""
        return error

    def about(self, about: dict[str, Any]) -> dict[str, Any]:
        """What ``run.json`` says."""
        return about


def _size_and_time(path: str) -> tuple[int | None, int | None]:
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return None, None  # the row's own status says what is wrong with the file
    return facts.st_size, facts.st_mtime_ns


@dataclass
class RowMaker:
    """Makes the rows of a run.

    Attributes:
        bundle: the model.
        run: where maps are written.
        naming: how rows name their inputs.
        save_maps: whether maps are written.
    """

    bundle: Bundle
    run: RunFolder
    naming: Naming
    save_maps: bool

    def failed(self, failure: Failure, files: Files) -> dict[str, Any]:
        """The row of an input that could not be read or prepared.

        Where the system refused it, and not its content, the row keeps nothing of its file: the
        next call finds it changed, and tries again.
        """
        row = self._row(failure.item, failure.status, failure.error)
        return row | dict(zip(FILE_COLUMNS, (None,) * 4 if failure.passing else files))

    def scored(
        self,
        item: Item,
        prepared: Prepared,
        files: Files,
        score: np.float32,
        values: torch.Tensor | None,
        wrong: tuple[str, str] | None,
    ) -> dict[str, Any]:
        """The row of an input that was scored, its map written.

        Args:
            item, prepared, files: the input.
            score: of the image.
            values: its map ``[h', w']``, if the method makes one.
            wrong: status and error where something beside the image cannot be used.
        """
        if wrong is None and not np.isfinite(score):
            wrong = ("failed", "the score is not finite; please report this image's kind")
        row = self._row(item, *(wrong or ("ok", None))) | dict(zip(FILE_COLUMNS, files))
        row["width"], row["height"] = prepared.width, prepared.height
        row["brightness"] = brightness(prepared)
        if self.bundle.input_spec["fov"] == "auto":
            fov = prepared.fov
            row |= {
                "fov_status": fov.status,
                "fov_cx": fov.cx,
                "fov_cy": fov.cy,
                "fov_r": fov.r,
                "fov_box": list(fov.box),
            }
        if wrong is not None:
            return row
        row["score"] = float(score)
        if self.bundle.normal is not None:
            percentile = score_percentile(np.array([score]), self.bundle.normal.score)
            row["score_pct"] = float(percentile[0])
        threshold = (self.bundle.thresholds.get("image") or {}).get("value")
        if threshold is not None:
            row["pred_label"] = int(score > threshold)
        if values is not None:
            self._add_map(row, values, prepared)
        return row

    def _add_map(self, row: dict[str, Any], values: torch.Tensor, prepared: Prepared) -> None:
        if self.bundle.input_spec.get("volume") is not None:
            if self.save_maps:
                affine = volume_affine(prepared.affine, prepared.image.shape[1:], values.shape)
                content = as_nifti(values.numpy(), affine)
                row["map_path"] = self.run.save_volume_map(row["id"], content)
            return
        size = self.bundle.input_spec["image_size"]
        if self.save_maps:
            affine = map_affine(prepared.affine, size, (values.shape[0], values.shape[1]))
            row["map_path"] = self.run.save_map(row["id"], values.numpy(), affine)
        threshold = (self.bundle.thresholds.get("pixel") or {}).get("value")
        if threshold is None:
            return
        # Interpolation lies between its cells, but for its rounding.
        if float(values.max()) < threshold - 1e-5 * abs(threshold):
            row["regions"] = []
        else:
            full = nnf.interpolate(values[None, None], (size, size), mode="bilinear")[0, 0]
            if prepared.mask is not None:
                full = full * prepared.mask
            row["regions"] = top_regions(
                full.numpy(), threshold, prepared.affine, prepared.height, prepared.width
            )

    def _row(self, item: Item, status: str, error: str | None) -> dict[str, Any]:
        return {
            "id": self.naming.id(item),
            "path": self.naming.path(item.path),
            "status": status,
            "error": self.naming.error(item, status, error),
            **self.naming.labels(item),
            **self.naming.origin(item),
            "model_id": self.bundle.id,
        }
