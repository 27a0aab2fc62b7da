# SPDX-License-Identifier: Apache-2.0
"""Feature rows of many images, in memory while they fit and in a file when they do not."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class RowStore:
    """Rows ``[n, d]``, added image by image and read back as float32.

    With a folder, rows go to ``rows.bin`` there as they come and each image is noted in
    ``rows.jsonl`` after its rows are on disk, so a store that was killed half-way opens again with
    every image that had been noted. Without one, rows stay in memory up to a limit, and go to a
    temporary folder beyond it.

    Args:
        d: number of features.
        dtype: how rows are kept: ``float32``, or ``bfloat16`` for half the space (relative error
            2⁻⁹ per value).
        folder: where to spill; made when missing.
        limit: bytes that rows may take in memory when there is no folder (twice that for a moment,
            when they are joined); ``None`` for no limit.
    """

    def __init__(
        self,
        d: int,
        *,
        dtype: str = "float32",
        folder: Path | None = None,
        limit: int | None = None,
    ) -> None:
        self.d, self.dtype, self.folder, self.limit = d, DTYPES[dtype], folder, limit
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self.ids: list[str] = []
        self.counts: list[int] = []
        self.notes: list[str] = []
        self._offsets = [0]
        self._parts: list[Tensor] = []
        self._joined: Tensor | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._reopen()

    def __len__(self) -> int:
        return self._offsets[-1]

    @property
    def bytes_per_row(self) -> int:
        return self.d * self.dtype.itemsize

    def offsets(self) -> np.ndarray:
        """First row of each image, and the number of rows at the end: ``[images + 1]`` int64."""
        return np.array(self._offsets, dtype=np.int64)

    def append(self, name: str, rows: Tensor, note: str = "") -> None:
        """Add one image's rows ``[m, d]``; ``note`` is any short text to be kept with them."""
        kept = rows.detach().to("cpu", self.dtype).contiguous()
        self._joined = None
        if self.folder is None:
            self._parts.append(kept)
        else:
            self._write(name, kept, note)
        self.ids.append(name)
        self.counts.append(len(rows))
        self.notes.append(note)
        self._offsets.append(len(self) + len(rows))
        over = self.limit is not None and len(self) * self.bytes_per_row > self.limit
        if self.folder is None and over:
            self._leave_memory()

    def _write(self, name: str, kept: Tensor, note: str) -> None:
        assert self.folder is not None
        with open(self.folder / "rows.bin", "ab") as file:
            file.write(kept.view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        line = json.dumps({"id": name, "rows": len(kept), "note": note})
        with open(self.folder / "rows.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _leave_memory(self) -> None:
        parts = self.all().split(self.counts)
        self._temporary = tempfile.TemporaryDirectory(prefix="fundad-rows-")
        self.folder = Path(self._temporary.name)
        for name, kept, note in zip(self.ids, parts, self.notes):
            self._write(name, kept, note)
        self._parts, self._joined = [], None

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
        return self.all()[self._offsets[i] : self._offsets[i + 1]].float()

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
                end_row = len(self) + entry["rows"]
                if end_row * self.bytes_per_row > there:
                    break
                kept += len(line.encode())
                self.ids.append(entry["id"])
                self.counts.append(entry["rows"])
                self._offsets.append(end_row)
                self.notes.append(entry["note"])
            os.truncate(notes, kept)
        if rows.exists():
            os.truncate(rows, len(self) * self.bytes_per_row)
