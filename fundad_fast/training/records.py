# SPDX-License-Identifier: Apache-2.0
"""What a training says of itself: rows in memory, a CSV that grows, TensorBoard where it is."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

History = list[dict[str, float]]
"""Rows in order of step, each with ``step``, ``epoch`` and what was measured there: ``lr`` and
losses (means since the row before), or figures of a validation, whose names begin with ``val``."""


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV with every column that occurs, empty where a row has none."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class Records:
    """Keeps the rows of one training, and writes them where one can watch.

    Args:
        folder: for ``log.csv`` and TensorBoard's events; ``None`` for memory alone.
        rows: those of the training that is gone on with.
    """

    def __init__(self, folder: Path | None, rows: History) -> None:
        self.folder, self.rows = folder, rows
        self._board = None if folder is None else _board(folder, rows[-1]["step"] if rows else 0)
        self._columns: list[str] = []
        if folder is not None and rows:
            self._rewrite()

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        if self.folder is None:
            return
        if set(row) - set(self._columns):
            self._rewrite()
        else:
            with open(self.folder / "log.csv", "a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)
        if self._board is not None:
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def _rewrite(self) -> None:
        assert self.folder is not None
        text = as_csv(self.rows)
        part = self.folder / ".log.csv.writing"
        part.write_text(text, encoding="utf-8")
        os.replace(part, self.folder / "log.csv")
        self._columns = text.split("\n", 1)[0].split(",")


def _board(folder: Path, step: float) -> Any:
    """A TensorBoard writer, or ``None`` where TensorBoard is not installed."""
    from importlib.util import find_spec

    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder / "tensorboard", purge_step=int(step) + 1)
