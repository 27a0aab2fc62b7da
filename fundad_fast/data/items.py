# SPDX-License-Identifier: Apache-2.0
"""What the rest of the package is told of input: items, data sets, the two kinds of error."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from fundad_fast.words import count

Status = Literal[
    "ok",
    "no_fov",
    "low_quality",
    "unreadable",
    "unsupported",
    "too_large",
    "too_small",
    "non_finite",
    "changed",
    "failed",
]
STATUSES: tuple[str, ...] = get_args(Status)

SPLITS = ("train", "val", "test")

NO_LABELS = "no folder is named good, normal or healthy, so labels are unknown"


class DataError(ValueError):
    """Input that is unusable as a whole; the message is one line that says what to do."""


class ReadError(Exception):
    """One image that cannot be used; it becomes a row with this status and reason.

    Attributes:
        status: one of :data:`STATUSES`.
        reason: one line, without the path (the row has it).
        identifiers: what the file said of itself before it failed.
    """

    def __init__(self, status: Status, reason: str, identifiers: Identifiers | None = None) -> None:
        super().__init__(f"{status}: {reason}")
        self.status: Status = status
        self.reason = reason
        self.identifiers = identifiers

    def __reduce__(self) -> tuple[type[ReadError], tuple[Any, ...]]:
        return (type(self), (self.status, self.reason, self.identifiers))


@dataclass(frozen=True, slots=True)
class Identifiers:
    """What a DICOM file says of its origin; each part ``None`` where it says nothing.

    Attributes:
        sop_instance_uid, study_instance_uid, series_instance_uid: as stored.
        patient_id: as stored.
        laterality: ``L``, ``R`` or ``B`` (both).
        acquired: day of acquisition, else of the content, series or study: ``2024-05-31``.
    """

    sop_instance_uid: str | None = None
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    patient_id: str | None = None
    laterality: str | None = None
    acquired: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One image and what is known of it.

    Attributes:
        id: unique within a data set; the manifest's, else the path relative to the root. Always
            valid Unicode.
        path: the file; empty for an image that lies in memory. Bytes that are not UTF-8 are kept
            as surrogates, so that the file opens.
        label: 0 healthy, 1 abnormal, ``None`` unknown.
        class_name: such as ``good`` or ``dr``.
        split: ``train``, ``val``, ``test`` or ``None``.
        mask_path: lesion mask, all types together.
        patient_id, laterality, group: as the manifest gives them.
        mask_paths_by_type: pairs (lesion type, mask file), sorted by type.
        member: name of the image inside the ``.tar`` or ``.zip`` shard that ``path`` names.
        frame: 0-based frame, page or slice of a file with several; ``None`` for a file of one.
        offset: where the member's header lies in the shard, so that it is found without a search.
        identifiers: what a DICOM file says of itself, once it has been read.
    """

    id: str
    path: str
    label: int | None = None
    class_name: str | None = None
    split: str | None = None
    mask_path: str | None = None
    patient_id: str | None = None
    laterality: str | None = None
    group: str | None = None
    mask_paths_by_type: tuple[tuple[str, str], ...] = ()
    member: str | None = None
    frame: int | None = None
    offset: int | None = None
    identifiers: Identifiers | None = None


def identified(item: Item, identifiers: Identifiers | None) -> Item:
    """The item with what its file says of itself; a manifest's patient and side come first."""
    if identifiers is None:
        return item
    return replace(
        item,
        identifiers=identifiers,
        patient_id=item.patient_id or identifiers.patient_id,
        laterality=item.laterality or identifiers.laterality,
    )


@dataclass(frozen=True)
class Dataset:
    """What was found under a source.

    Attributes:
        items: in order of id; those of a manifest or a list in its own order.
        layout: name of the layout that was recognised.
        root: the folder that ids and relative paths start from.
        ignored: how many files are neither images, masks nor the manifest.
        notes: what the user should know, one line each.
    """

    items: tuple[Item, ...]
    layout: str
    root: str
    ignored: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def select(self, split: str | None = None, label: int | None = None) -> tuple[Item, ...]:
        """The items of one split, of one label, or of both; ``None`` does not restrict."""
        if split is not None and split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
        return tuple(
            item
            for item in self.items
            if (split is None or item.split == split) and (label is None or item.label == label)
        )

    def healthy(self, split: Literal["train", "val"]) -> tuple[Item, ...]:
        """The healthy images of a split, to learn from or to set thresholds on; often none in val.

        Those labelled healthy. Where no image of the split has a label or a class, all of them
        count as healthy: the user says so by fitting on them. Where no image has a split at all,
        all are of ``train``.
        """
        if split not in ("train", "val"):
            raise ValueError(f"split must be train or val; got {split!r}: a fit sees no test image")
        pool = self._of_split(split)
        if all(item.label is None and item.class_name is None for item in pool):
            return pool
        return tuple(item for item in pool if item.label == 0)

    def _of_split(self, split: str) -> tuple[Item, ...]:
        if all(item.split is None for item in self.items):
            return self.items if split == "train" else ()
        return self.select(split)

    def with_normal_class(self, name: str) -> Dataset:
        """The same images, those of one class healthy and those of all others abnormal.

        Args:
            name: of the class, as ``describe`` prints it; small and capital letters are alike
                where that is unambiguous.

        Raises:
            DataError: there is no such class, or no classes at all.
        """
        names = {item.class_name for item in self.items if item.class_name is not None}
        alike = [other for other in names if other.casefold() == name.casefold()]
        if name not in names and len(alike) != 1:
            there = ", ".join(show(other) for other in sorted(names)) or "no classes at all"
            raise DataError(f"{show(self.root)} has no class {show(name)}: there are {there}")
        normal = name if name in names else alike[0]
        items = tuple(
            item if item.class_name is None else replace(item, label=int(item.class_name != normal))
            for item in self.items
        )
        left = tuple(note for note in self.notes if note != NO_LABELS)
        return replace(self, items=items, notes=(*left, f"the class {show(normal)} is healthy"))

    def healthy_for_fit(self) -> tuple[Item, ...]:
        """``healthy("train")``, which must not be empty.

        Raises:
            DataError: there is no such image.
        """
        healthy = self.healthy("train")
        if healthy:
            return healthy
        where = f"{show(self.root)} (layout {self.layout})"
        pool = self._of_split("train")
        if not pool:
            raise DataError(
                f"no images in the split train of {where}: healthy images to learn from "
                "belong in train/good, or have split=train in the manifest"
            )
        where += ", split train" if pool[0].split is not None else ""
        first = "put them in a folder named"
        if all(item.label is None for item in self.items):
            first = (
                f"none of the classes {self.classes()} is said to be healthy; name it with "
                "--normal-class NAME (Dataset.with_normal_class), or put them in a folder named"
            )
        raise DataError(
            f"no healthy images among the {len(pool)} of {where}: {first} good, normal or healthy, "
            "or give them label 0 in a manifest"
        )

    def classes(self) -> str:
        """The classes and how many images they have: ``0 (1214), 1 (3494)``."""
        counts = Counter(item.class_name for item in self.items if item.class_name is not None)
        return ", ".join(f"{show(name)} ({n})" for name, n in sorted(counts.items()))

    def describe(self) -> str:
        """What was understood, in a few lines: counts by split and class, masks, notes."""
        parts: list[_Part] = []
        for split in (*SPLITS, None):
            items = [item for item in self.items if item.split == split]
            if items:
                classes = Counter((item.label, item.class_name) for item in items)
                masks = sum(item.mask_path is not None for item in items)
                types = Counter(kind for item in items for kind, _ in item.mask_paths_by_type)
                parts.append((split, classes, masks, types))
        return describe_items(
            self.root, self.layout, len(self.items), parts, self.ignored, self.notes
        )


def item_of_row(row: Mapping[str, Any]) -> Item:
    """The image of a row of a run, to be read again."""
    return Item(
        row["id"],
        path_of_row(row["path"]),
        member=row.get("member"),
        frame=row.get("frame"),
        offset=row.get("member_offset"),
    )


def path_of_row(text: str) -> str:
    """The path that a row holds, as the system names it.

    Bytes that are not UTF-8 stand in rows as escapes (``\\xff``); a name may also hold such letters
    as they are, and where a file of that name is there, it is meant.
    """
    if "\\x" not in text or os.path.lexists(text):
        return text
    name = re.sub(
        rb"\\x([89a-f][0-9a-f])", lambda found: bytes.fromhex(found[1].decode()), text.encode()
    )
    return os.fsdecode(name)


def item_id(path: str) -> str:
    """A path as an id: bytes that are not UTF-8 are written as escapes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    return path


def show(text: object, limit: int = 200) -> str:
    """Text, most often a path, as it may stand in a one-line message: control characters and
    undecodable bytes escaped, the middle left out where longer than ``limit``."""
    line = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)
    )
    if len(line) > limit:
        line = f"{line[: limit // 2]}…{line[-(limit // 2) :]}"
    return line


_Part = tuple[str | None, Counter[tuple[int | None, str | None]], int, Counter[str]]


def describe_items(
    root: str, layout: str, n: int, parts: Iterable[_Part], ignored: int, notes: Iterable[str]
) -> str:
    """The lines of :meth:`Dataset.describe`.

    Args:
        root, layout, ignored, notes: of the data set.
        n: images in all.
        parts: for each split with images: its name, images by label and class, how many have a
            mask, and masks by type.
    """
    lines = [f"{show(root)}: {count(n, 'image')}, layout {layout}"]
    for split, classes, masks, types in parts:
        lines.append(f"  {split or 'no split'}: {_describe(classes, masks, types)}")
    if ignored:
        lines.append(f"  ignored: {count(ignored, 'other file')}")
    lines.extend(f"  note: {note}" for note in notes)
    return "\n".join(lines)


def _describe(
    classes: Counter[tuple[int | None, str | None]], masks: int, types: Counter[str]
) -> str:
    words = {0: "healthy", 1: "abnormal", None: "unlabelled"}
    parts = [
        f"{n} {words[label]}" + (f" ({show(name)})" if name is not None else "")
        for (label, name), n in sorted(classes.items(), key=lambda kv: _class_order(kv[0]))
    ]
    if masks:
        parts.append(count(masks, "mask"))
    if types:
        by_type = " ".join(f"{show(kind)} {n}" for kind, n in sorted(types.items()))
        parts.append(f"masks by type: {by_type}")
    return ", ".join(parts)


def _class_order(key: tuple[int | None, str | None]) -> tuple[int, str]:
    label, name = key
    return (2 if label is None else label, name or "")
