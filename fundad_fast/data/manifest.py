# SPDX-License-Identifier: Apache-2.0
"""Manifests: a table (CSV or Parquet) with a row for each image."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from fundad_fast.data.items import DataError, Dataset, Item, item_id, show
from fundad_fast.data.naming import SPLIT_NAMES, is_healthy

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

MANIFEST_NAMES = ("manifest.csv", "manifest.tsv", "manifest.parquet")

_LOOKED_AT = 100

_ALIASES = {"image_path": "path", "label_index": "label", "class_name": "class"}
_KNOWN = frozenset(
    ("path", "id", "label", "split", "mask_path", "patient_id", "laterality", "group", "class")
)
_NOT_NAMES = ("na", "n/a", "none", "null", "-", "?")
_LOOK_LIKE_PATH = ("image", "file", "filename", "file_name", "filepath", "img", "img_path")


def is_manifest(path: str) -> bool:
    """Whether a file is a manifest by its extension."""
    return os.path.splitext(path)[1].lower() in (".csv", ".tsv", ".parquet", ".pq")


def has_path_column(path: str) -> bool:
    """Whether a table can serve as a manifest; raises DataError where it cannot be read."""
    return "path" in _columns(_names(path)).values()


def read_manifest(path: str) -> Dataset:
    """The data set that a manifest lists, in its order; relative paths start at its folder.

    Columns: ``path`` (or image_path), and optional ``id, label`` (or label_index: 0, 1, or a class
    name), ``split, mask_path, patient_id, laterality, group, class``. Others are noted.

    Raises:
        DataError: no such column, no rows, a wrong value (which row, and what is wanted), or none
            of the first files exists.
    """
    items = tuple(manifest_items(path))
    return Dataset(items, "manifest", manifest_root(path), 0, manifest_notes(path))


def manifest_root(path: str) -> str:
    """The folder that relative paths start at."""
    return os.path.dirname(path) or os.curdir


def manifest_items(path: str) -> Iterator[Item]:
    """The images that a manifest lists, one after the other; raises as :func:`read_manifest`."""
    columns = _columns(_names(path))
    if "path" not in columns.values():
        raise DataError(f"{show(path)} has no column named path{_path_hint(path)}")
    root = manifest_root(path)
    n, first, exists = 0, "", False
    for where, row in _rows(path, columns):
        item = _item(row, where, root)
        n, first = n + 1, first or item.path
        if n <= _LOOKED_AT:
            exists = exists or os.path.lexists(item.path)
        elif not exists:
            break
        yield item
    if n == 0:
        raise DataError(f"{show(path)} has a header and no rows")
    if not exists:
        raise DataError(
            f"none of the first {min(n, _LOOKED_AT)} files of {show(path)} exists, such as "
            f"{show(first)}: relative paths start at the manifest's folder"
        )


def manifest_notes(path: str) -> tuple[str, ...]:
    """What to tell of a manifest: columns that say nothing here."""
    columns = _columns(_names(path))
    unknown = [name for name in _names(path) if name not in columns]
    return (f"columns not used: {', '.join(show(name) for name in unknown)}",) if unknown else ()


def _columns(names: list[str]) -> dict[str, str]:
    """Column name -> what it means; an alias counts only where the real name is absent."""
    clean = {name: name.strip().lower() for name in names}
    columns = {name: plain for name, plain in clean.items() if plain in _KNOWN}
    for name, plain in clean.items():
        if plain in _ALIASES and _ALIASES[plain] not in columns.values():
            columns[name] = _ALIASES[plain]
    return columns


def _path_hint(path: str) -> str:
    names = _names(path)
    close = [name for name in names if name.strip().lower() in _LOOK_LIKE_PATH]
    if close:
        return f": rename the column {show(close[0])} to path"
    return f": its columns are {show(', '.join(names))}"


def _names(path: str) -> list[str]:
    if _is_parquet(path):
        return list(_parquet(path).schema.names)
    with _text(path) as lines:
        header = next(lines, None)
    if not header:
        raise DataError(f"{show(path)} is empty: a manifest starts with a line of column names")
    return header


def _rows(path: str, columns: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    name = show(os.path.basename(path))
    if _is_parquet(path):
        file, done = _parquet(path), 0
        for batch in file.iter_batches(columns=list(columns)):
            for i, row in enumerate(batch.to_pylist()):
                yield f"{name}, row {done + i + 1}", {columns[k]: v for k, v in row.items()}
            done += len(batch)
        return
    with _text(path) as lines:
        header = next(lines)
        for cells in lines:
            if not cells:
                continue
            if len(cells) > len(header):
                raise DataError(
                    f"{name}, line {lines.line}: {len(cells)} cells under {len(header)} columns; "
                    "put cells that contain the separator in quotes"
                )
            row = {columns[key]: cell for key, cell in zip(header, cells) if key in columns}
            yield f"{name}, line {lines.line}", row


class _Lines(Iterator[list[str]]):
    """The rows of a CSV file, and the line that the last one ended on."""

    def __init__(self, file: TextIO) -> None:
        head = file.readline()
        file.seek(0)
        # The separator is the one of the three that the column names hold most of.
        separator = max(",;\t", key=head.count)
        self._reader = csv.reader(file, delimiter=separator)

    def __next__(self) -> list[str]:
        return next(self._reader)

    @property
    def line(self) -> int:
        return self._reader.line_num


@contextmanager
def _text(path: str) -> Iterator[_Lines]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield _Lines(file)
    except OSError as error:
        raise DataError(f"{show(path)} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{show(path)} is not UTF-8 text: save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{show(path)} is not a CSV table: {error}") from error


def _is_parquet(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in (".parquet", ".pq")


def _parquet(path: str) -> ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{show(path)} is not a Parquet table: {show(reason)}") from error


def _item(row: dict[str, Any], where: str, root: str) -> Item:
    path = _cell(row, "path")
    if path is None:
        raise DataError(f"{where}: the path is empty; give each row the file of its image")
    class_name = _cell(row, "class")
    label, class_name = _label(row.get("label"), class_name, where)
    split = _cell(row, "split")
    if split is not None and split.lower() not in SPLIT_NAMES:
        raise DataError(f"{where}: the split {show(split)!r} must be train, val, test or empty")
    mask = _cell(row, "mask_path")
    return Item(
        id=_cell(row, "id") or item_id(path),
        path=_resolved(root, path),
        label=label,
        class_name=class_name,
        split=SPLIT_NAMES[split.lower()] if split is not None else None,
        mask_path=_resolved(root, mask) if mask is not None else None,
        patient_id=_cell(row, "patient_id"),
        laterality=_cell(row, "laterality"),
        group=_cell(row, "group"),
    )


def _cell(row: dict[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # ids that a table with gaps turned to float
    text = str(value)
    if name not in ("path", "mask_path"):
        text = text.strip()  # a file name may end in a space
    return text if text.strip() else None


def _label(value: Any, class_name: str | None, where: str) -> tuple[int | None, str | None]:
    """Label and class name from the two cells; one of them may be empty."""
    text = _cell({"label": value}, "label")
    if text is None:
        return (None if class_name is None else int(not is_healthy(class_name))), class_name
    number = _number(text)
    if number in (0, 1):
        label = int(number)
        if label == 1 and class_name is not None and is_healthy(class_name):
            raise DataError(f"{where}: label 1 (abnormal) contradicts class {show(class_name)}")
        return label, class_name
    if number is not None or text.lower() in _NOT_NAMES:
        raise DataError(
            f"{where}: the label {show(text)!r} must be 0 (healthy), 1 (abnormal), a class name or "
            "empty; grades belong in a column named class or group"
        )
    return int(not is_healthy(text)), class_name or text


def _number(text: str) -> float | None:
    """What a cell says as a number: tables with gaps write 1.0 for 1, and True is 1."""
    if text.lower() in ("true", "false"):
        return float(text.lower() == "true")
    try:
        return float(text)
    except ValueError:
        return None


def _resolved(root: str, path: str) -> str:
    return os.path.join(root, os.path.expanduser(path))
