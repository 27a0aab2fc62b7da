# SPDX-License-Identifier: Apache-2.0
"""The images of an archive, listed on disk: for as many as do not fit into memory.

An inventory is what :func:`fundad_fast.data.discover` finds, in an SQLite file: it is written while
the source is walked, and read item by item. None of its inputs is held in memory, also not to find
ids that occur twice: the file's index does. Held are the names of the folders in one folder, and of
the members of one shard. What is labelled by its folders, has masks, or a manifest in its folder,
is no archive of millions: that is found by ``discover`` in memory, and then written.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from fundad_fast.data.frames import Pages, with_frames
from fundad_fast.data.items import SPLITS, DataError, Item, describe_items, show
from fundad_fast.data.layouts import duplicate
from fundad_fast.data.streams import Piece, Stream
from fundad_fast.words import count

FILE = "inventory.sqlite"

_AT_A_TIME = 4096
_NUMBERED = re.compile(r"(.*)#(0|[1-9]\d{0,8})", re.DOTALL)

_TABLE = """
create table items (part, place, base, number, path, member, frame, offset, label, class, split,
                    mask, patient, laterality, "group", masks_by_type);
create table about (layout, root, stem, ignored, notes);
"""
_COLUMNS = (
    "base, number, path, member, frame, offset, label, class, split, mask, patient, laterality, "
    '"group", masks_by_type'
)


class Inventory:
    """The images of a source, on disk; it can stand where a ``Dataset`` does.

    Iterating reads the items one after the other, anew each time, from any thread. They are in the
    order that ``discover`` gives them; frames are in the order of their numbers.

    Attributes:
        path: the file.
        layout, root, ignored, notes: as of a ``Dataset``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open an inventory; raises DataError where the file is none."""
        self.path = Path(path)
        try:
            with closing(self._open()) as db:
                self.layout, root, stem, self.ignored, notes = db.execute(
                    "select layout, root, stem, ignored, notes from about"
                ).fetchone()
                (self._length,) = db.execute("select count(*) from items").fetchone()
        except (sqlite3.Error, TypeError) as error:
            raise DataError(f"{show(path)} is no inventory: {error}") from error
        self.root, self._stem = _text(root), _text(stem)
        self.notes: tuple[str, ...] = tuple(json.loads(notes))

    def _open(self) -> sqlite3.Connection:
        # Read-only, and for a generator that another thread may go on with.
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False
        )

    @property
    def items(self) -> Inventory:
        """The items: itself."""
        return self

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Item]:
        with closing(self._open()) as db:
            rows = db.execute(f"select {_COLUMNS} from items order by part, place, base, number")
            while block := rows.fetchmany(_AT_A_TIME):
                for row in block:
                    yield _item(row, self._stem)

    def describe(self) -> str:
        """What was understood, as ``Dataset.describe`` says it."""
        classes: dict[str | None, Counter[tuple[int | None, str | None]]] = {}
        masks: Counter[str | None] = Counter()
        types: dict[str | None, Counter[str]] = {}
        with closing(self._open()) as db:
            for split, label, name, n, with_mask in db.execute(
                "select split, label, class, count(*), count(mask) from items group by 1, 2, 3"
            ):
                classes.setdefault(split, Counter())[label, name] += n
                masks[split] += with_mask
            for split, pairs in db.execute(
                "select split, masks_by_type from items where masks_by_type is not null"
            ):
                types.setdefault(split, Counter()).update(kind for kind, _ in json.loads(pairs))
        parts = [
            (split, classes[split], masks[split], types.get(split, Counter()))
            for split in (*SPLITS, None)
            if split in classes
        ]
        return describe_items(self.root, self.layout, len(self), parts, self.ignored, self.notes)


def take_inventory(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    recursive: bool = True,
    pages: Pages = "one",
    volumes: bool = False,
) -> Inventory:
    """List the images that a source names into a file.

    Args:
        source, recursive, pages, volumes: as for :func:`fundad_fast.data.discover`.
        folder: where ``inventory.sqlite`` is written; made when missing. An older one is replaced
            when the new one is complete.

    Returns:
        The inventory: the items and ids that ``discover`` would give.

    Raises:
        DataError: as for ``discover``.
        OSError: the file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{FILE}.{os.getpid()}.part"
    part.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(part, isolation_level=None)) as db:
            _write(db, Stream(source, recursive), pages, volumes)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, folder / FILE)
    except sqlite3.Error as error:
        raise OSError(None, f"the inventory cannot be written: {error}", str(part)) from error
    finally:
        part.unlink(missing_ok=True)
    return Inventory(folder / FILE)


def _write(db: sqlite3.Connection, stream: Stream, pages: Pages, volumes: bool) -> None:
    # Half a file is never used: no journal is needed.
    db.executescript("pragma journal_mode = off; pragma synchronous = off;" + _TABLE)
    db.execute("begin")
    files = 0
    for number, piece in enumerate(stream.pieces()):
        here = _insert(db, stream, number, piece, piece.items(), pages, volumes)
        if piece.refused():
            db.execute("delete from items where part = ?", (number,))
            here = _insert(db, stream, number, piece, piece.in_memory(), pages, volumes)
        files += here
    (images,) = db.execute("select count(*) from items").fetchone()
    if images == 0:
        raise stream.nothing()
    layout, root, ignored, notes = stream.facts()
    if images > files:
        (n,) = db.execute(
            "select count(*) from (select distinct path, base, member from items "
            "where frame is not null)"
        ).fetchone()
        notes.append(f"{count(n, 'file')} of several frames: {count(images, 'image')} in all")
    db.execute(
        "insert into about values (?, ?, ?, ?, ?)",
        (layout, _bytes(root), _bytes(stream.stem), ignored, json.dumps(notes)),
    )
    try:
        db.execute("create unique index ids on items (base, number)")
    except sqlite3.IntegrityError:
        raise _doubled(db, stream.stem) from None
    db.execute("create index places on items (part, place, base, number)")
    db.execute("commit")


def _insert(
    db: sqlite3.Connection,
    stream: Stream,
    part: int,
    piece: Piece,
    items: Iterable[Item],
    pages: Pages,
    volumes: bool,
) -> int:
    """Write the items of a piece, frame by frame; returns how many files they are."""
    files = 0

    def counted() -> Iterator[Item]:
        nonlocal files
        for item in items:
            files += 1
            yield item

    rows = (
        _row(item, part, place if piece.in_order else 0, stream.stem)
        for place, item in enumerate(with_frames(counted(), pages=pages, volumes=volumes))
    )
    db.executemany(f"insert into items values ({', '.join('?' * 16)})", rows)
    return files


def _doubled(db: sqlite3.Connection, stem: str) -> DataError:
    base, number = db.execute(
        "select base, number from items group by 1, 2 having count(*) > 1 limit 1"
    ).fetchone()
    rows = db.execute(
        f"select {_COLUMNS} from items where base = ? and number = ? limit 2", (base, number)
    ).fetchall()
    return duplicate(*(_item(row, stem) for row in rows))


def _row(item: Item, part: int, place: int, stem: str) -> tuple[Any, ...]:
    match = _NUMBERED.fullmatch(item.id)
    base, number = (match[1], int(match[2])) if match else (item.id, -1)
    types = item.mask_paths_by_type
    return (
        part,
        place,
        base,
        number,
        None if item.path == stem + base else _bytes(item.path),
        _bytes(item.member),
        item.frame,
        item.offset,
        item.label,
        item.class_name,
        item.split,
        _bytes(item.mask_path),
        item.patient_id,
        item.laterality,
        item.group,
        json.dumps(types) if types else None,
    )


def _item(row: tuple[Any, ...], stem: str) -> Item:
    base, number, path, member, frame, offset = row[:6]
    label, name, split, mask, patient, laterality, group, types = row[6:]
    return Item(
        base if number < 0 else f"{base}#{number}",
        stem + base if path is None else _text(path),
        label,
        name,
        split,
        _text(mask),
        patient,
        laterality,
        group,
        tuple((kind, file) for kind, file in json.loads(types)) if types else (),
        member=_text(member),
        frame=frame,
        offset=offset,
    )


def _bytes(text: str | None) -> bytes | None:
    """Names may hold bytes that are no Unicode, which a column of text does not take."""
    return None if text is None else text.encode("utf-8", "surrogateescape")


def _text(data: bytes | None) -> Any:
    return None if data is None else data.decode("utf-8", "surrogateescape")
