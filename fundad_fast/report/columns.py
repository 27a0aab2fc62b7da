# SPDX-License-Identifier: Apache-2.0
"""What the report holds of every row of a run: numbers and codes, about 60 bytes for each.

Names stay on disk until they are shown: those of patients are held as 64-bit hashes, which for
10 million patients clash with a probability of 3 in a million.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundad_fast.run_folder import read_part

Array = NDArray[Any]

MAX_NAMES = 1000
"""Distinct classes, groups, folders that are told apart; a column with more is left out."""

NUMBERS = {"score": np.float32, "score_pct": np.float32, "width": np.float32,
           "height": np.float32, "fov_r": np.float32, "brightness": np.float32}  # fmt: skip
SMALL = ("pred_label", "gt_label")
CODED = ("status", "class", "group", "laterality", "folder")
READ = ("id", *NUMBERS, *SMALL, *CODED[:-1], "patient_id", "acquired")

_MONTH = re.compile(r"(\d{4})-(\d{2})(-\d{2})?")
_RIGHT, _LEFT = ("r", "od", "right", "re"), ("l", "os", "left", "le")


class Columns:
    """The rows of a run as arrays of length n, in the order in which they were scored.

    Attributes:
        numbers: by name of `NUMBERS`, float32; NaN where unknown.
        small: by name of `SMALL`, int8; -1 where unknown.
        codes: by name of `CODED`, int32 places in ``names``; -1 where unknown. ``folder`` is the
            first folder in the ids.
        names: the words of the codes; ``None`` where they were more than `MAX_NAMES`.
        patient: uint64 hash of the patient's id; 0 where unknown.
        month: int32, 12 times the year plus the month from 0; -1 where unknown.
        parts, starts: the files of the rows, and the row that each begins with.
    """

    def __init__(self, parts: list[Path]) -> None:
        self.parts = parts
        self._codes: dict[str, _Codes] = {name: _Codes() for name in CODED}
        held: dict[str, list[Array]] = {}
        starts = [0]
        for part in parts:
            table = read_part(part, READ)
            starts.append(starts[-1] + table.num_rows)
            for name, values in self._arrays(table).items():
                held.setdefault(name, []).append(values)

        def joined(name: str, kind: Any) -> Array:
            found = held.pop(name, None)
            return np.concatenate(found) if found else np.zeros(0, kind)

        self.starts = np.asarray(starts, np.intp)
        self.numbers = {name: joined(name, kind) for name, kind in NUMBERS.items()}
        self.small = {name: joined(name, np.int8) for name in SMALL}
        self.codes = {name: joined(name, np.int32) for name in CODED}
        self.patient = joined("patient", np.uint64)
        self.month = joined("month", np.int32)
        self.names = {name: codes.words() for name, codes in self._codes.items()}
        for name, words in self.names.items():
            if words is None:
                self.codes[name][:] = -1

    def __len__(self) -> int:
        return int(self.starts[-1])

    def text(self, columns: tuple[str, ...], rows: Array) -> dict[str, list[Any]]:
        """Columns of some rows from disk, in the order asked for; only their files are read."""
        wanted = np.asarray(rows, np.intp)
        found: dict[str, list[Any]] = {name: [None] * len(wanted) for name in columns}
        of_part = np.searchsorted(self.starts, wanted, side="right") - 1
        order = np.argsort(of_part, kind="stable")
        bounds = np.searchsorted(of_part[order], np.arange(len(self.parts) + 1))
        for k, part in enumerate(self.parts):
            places = order[bounds[k] : bounds[k + 1]]
            if not len(places):
                continue
            content = read_part(part, columns).take(wanted[places] - self.starts[k])
            for name in columns:
                for place, value in zip(places.tolist(), content.column(name).to_pylist()):
                    found[name][place] = value
        return found

    def _arrays(self, table: Any) -> dict[str, Array]:
        n = table.num_rows
        found: dict[str, Array] = {}
        for name, kind in NUMBERS.items():
            found[name] = _filled(table.column(name), np.nan, n).astype(kind)
        for name in SMALL:
            found[name] = _filled(table.column(name), -1, n).astype(np.int8)
        for name in CODED[:-1]:
            found[name] = self._codes[name].of(table.column(name))
        folders = self._codes["folder"]
        found["folder"] = folders.of_words(_top(name) for name in table.column("id").to_pylist())
        found["patient"] = _by_word(table.column("patient_id"), _hash, np.uint64, 0)
        found["month"] = _by_word(table.column("acquired"), _month, np.int32, -1)
        return found


class _Codes:
    """Numbers for words, in the order in which they come."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._too_many = False

    def of(self, column: Any) -> Array:
        return _by_word(column, self._code, np.int32, -1)

    def of_words(self, words: Any) -> Array:
        return np.fromiter((-1 if w is None else self._code(w) for w in words), np.int32)

    def words(self) -> tuple[str, ...] | None:
        return None if self._too_many else tuple(self._known)

    def _code(self, word: str) -> int:
        code = self._known.get(word, -1)
        if code < 0 and not self._too_many:
            code = self._known[word] = len(self._known)
            self._too_many = len(self._known) > MAX_NAMES
        return code


def side_of(word: str | None) -> str | None:
    """``R`` or ``L`` for the names of right and left that data sets use, else ``None``."""
    plain = (word or "").strip().lower()
    return "R" if plain in _RIGHT else "L" if plain in _LEFT else None


def _filled(column: Any, missing: float, n: int) -> Array:
    if column.null_count == n:
        return np.full(n, missing)
    values = np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
    known = np.asarray(column.is_valid().to_numpy(zero_copy_only=False), bool)
    return np.where(known, values, missing)


def _by_word(column: Any, number: Any, kind: Any, missing: int) -> Array:
    """A number for each distinct word of a column."""
    n = len(column)
    if column.null_count == n:
        return np.full(n, missing, kind)
    coded = column.combine_chunks().dictionary_encode()
    numbers = np.array([number(str(w)) for w in coded.dictionary.to_pylist()] + [missing], kind)
    return np.asarray(numbers[coded.indices.fill_null(len(numbers) - 1).to_numpy()])


def _top(name: str) -> str | None:
    """The first folder of an id; that of a shard's member is the shard."""
    head, slash, _ = name.partition("/")
    return head.removesuffix("!") if slash and head else None


def _hash(word: str) -> int:
    data = word.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


def _month(day: str) -> int:
    found = _MONTH.fullmatch(day)
    if not found or not 1 <= int(found[2]) <= 12:
        return -1
    return 12 * int(found[1]) + int(found[2]) - 1
