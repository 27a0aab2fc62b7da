# SPDX-License-Identifier: Apache-2.0
"""Feature rows of many images, in memory while they fit and in a file when they do not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class RowStore:
    """Rows ``[n, d]``, added image by image and read back as float32.

    With a folder, rows go to ``rows.bin`` there as they come and each image is noted in
    ``rows.jsonl`` after its rows are on disk, so a store that was killed half-way opens again with
    every image that had been noted. Without one, rows stay in memory.

    Args:
        d: number of features.
        dtype: how rows are kept: ``float32``, or ``bfloat16`` for half the space (relative error
            2⁻⁹ per value).
        folder: where to spill; made when missing. ``None`` keeps everything in memory.
    """

    def __init__(self, d: int, *, dtype: str = "float32", folder: Path | None = None) -> None:
        self.d, self.dtype, self.folder = d, DTYPES[dtype], folder
        self.ids: list[str] = []
        self.counts: list[int] = []
        self.notes: list[str] = []
        self._parts: list[Tensor] = []
        self._joined: Tensor | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._reopen()

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def bytes_per_row(self) -> int:
        return self.d * self.dtype.itemsize

    def offsets(self) -> np.ndarray:
        """First row of each image, and the number of rows at the end: ``[images + 1]`` int64."""
        return np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)]).astype(np.int64)

    def append(self, name: str, rows: Tensor, note: str = "") -> None:
        """Add one image's rows ``[m, d]``; ``note`` is any short text to be kept with them."""
        kept = rows.detach().to("cpu", self.dtype).contiguous()
        self._joined = None
        if self.folder is None:
            self._parts.append(kept)
        else:
            with open(self.folder / "rows.bin", "ab") as file:
                file.write(kept.view(torch.uint8).numpy().data)
                file.flush()
                os.fsync(file.fileno())
            line = json.dumps({"id": name, "rows": len(rows), "note": note})
            with open(self.folder / "rows.jsonl", "a", encoding="utf-8") as file:
                file.write(line + "\n")
        self.ids.append(name)
        self.counts.append(len(rows))
        self.notes.append(note)

    def all(self) -> Tensor:
        """Every row as stored, ``[n, d]``; a view of the file when there is one."""
        if self._joined is None:
            if len(self) == 0:
                self._joined = torch.empty(0, self.d, dtype=self.dtype)
            elif self.folder is None:
                self._joined = torch.cat(self._parts)
                self._parts = [self._joined]
            else:
                file = np.memmap(self.folder / "rows.bin", dtype=np.uint8, mode="c")
                raw = np.asarray(file)[: len(self) * self.bytes_per_row]
                self._joined = torch.from_numpy(raw).view(self.dtype).view(-1, self.d)
        return self._joined

    def rows(self, index: Tensor) -> Tensor:
        """The rows of these numbers, ``[len(index), d]`` float32."""
        return self.all()[index].float()

    def image(self, i: int) -> Tensor:
        """The rows of the i-th image, ``[m, d]`` float32."""
        begin = int(self.offsets()[i])
        return self.all()[begin : begin + self.counts[i]].float()

    def blocks(self, size: int = 65_536) -> Iterator[Tensor]:
        """All rows in order, ``[≤ size, d]`` float32 at a time."""
        for part in self.all().split(size):
            yield part.float()

    def _reopen(self) -> None:
        assert self.folder is not None
        rows, notes = self.folder / "rows.bin", self.folder / "rows.jsonl"
        there = rows.stat().st_size if rows.exists() else 0
        kept = 0
        if notes.exists():
            for line in notes.read_text(encoding="utf-8").splitlines(keepends=True):
                if not line.endswith("\n"):
                    break  # torn by a kill: its image is done again
                entry = json.loads(line)
                end = (len(self) + entry["rows"]) * self.bytes_per_row
                if end > there:
                    break
                kept += len(line.encode())
                self.ids.append(entry["id"])
                self.counts.append(entry["rows"])
                self.notes.append(entry["note"])
            os.truncate(notes, kept)
        if rows.exists():
            os.truncate(rows, len(self) * self.bytes_per_row)
