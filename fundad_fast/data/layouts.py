# SPDX-License-Identifier: Apache-2.0
"""Turns a folder, a file, a manifest, a pattern or a list of paths into a data set."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fundad_fast.data.folders import dataset_of_folder
from fundad_fast.data.frames import Pages, with_frames
from fundad_fast.data.items import DataError, Dataset, Item, item_id, show
from fundad_fast.data.listing import is_image_file
from fundad_fast.data.manifest import is_manifest, read_manifest
from fundad_fast.data.masks import base_of_side_by_side, stem_of
from fundad_fast.data.naming import is_mask_folder
from fundad_fast.data.npz import dataset_of_npz, is_npz
from fundad_fast.data.parts import is_packed_shard, is_shard
from fundad_fast.data.shards import PACKED_REASON, items_of_shards
from fundad_fast.words import count

_MAGIC_CHARACTERS = "*?["


def discover(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    recursive: bool = True,
    pages: Pages = "one",
    volumes: bool = False,
) -> Dataset:
    """Find the images that a source names, and what is known of them.

    Args:
        source: a folder in one of the layouts below, an image, a ``.tar`` or ``.zip`` shard of
            images, a manifest (``.csv``, ``.tsv``, ``.parquet``), an ``.npz`` of MedMNIST (whose
            classes are numbers: see ``Dataset.with_normal_class``), a pattern such as
            ``"archive/**/*.png"``, or a list of these. The ids of a list are as its entries are
            written; those of a folder or pattern in it start with the entry.

            * ``mvtec``, ``visa``, ``bmad``, ``imagefolder``: ``train|val|test/<class>/…``, with
              masks in ``ground_truth/<class>``, ``ground_truth_by_type/<type>`` or beside the
              images' folder.
            * ``classes``: a folder for each class, one of them named as healthy, and masks in
              ``mask/``.
            * ``folder``: images and shards in any folders, without labels.
            * A ``manifest.csv`` or ``manifest.parquet`` at a folder's root says more than the
              folders and is used instead.

            Folders named good, normal, healthy (or no_dr, 0_normal, or 0 of grades up to 4 or more)
            hold healthy images; numbers up to 3 may mean anything. Masks (in folders of masks, or
            ``x_mask.png`` beside ``x.png``) and manifests are never images, also where a pattern
            matches or a list names them.
        recursive: look into the folders of a folder.
        pages: what a TIFF of several pages is: one image that only a model with ``pages=first``
            reads (``one``), its first page (``first``), or an image for each (``all``). A DICOM
            file of several frames is always an image for each.
        volumes: a NIfTI volume is one item, for a method of three dimensions, not one for each
            of its axial slices.

    Returns:
        The data set. Its items are in order of id, those of a manifest or list in its own order.

    Raises:
        DataError: nothing is there, no image is found, ids are not unique, a manifest is wrong, or
            the folder holds several data sets.
    """
    dataset = find(source, recursive)
    items = tuple(with_frames(dataset.items, pages=pages, volumes=volumes))
    notes = dataset.notes
    if len(items) > len(dataset.items):
        split = len({(item.path, item.member) for item in items if item.frame is not None})
        notes += (f"{count(split, 'file')} of several frames: {count(len(items), 'image')} in all",)
    return _unique(replace(dataset, items=items, notes=notes))


def find(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], recursive: bool = True
) -> Dataset:
    """As :func:`discover`, an item for each file, whose ids have not been compared."""
    if not isinstance(source, str | os.PathLike):
        return _dataset_of_list(source, recursive)
    path = os.path.expanduser(os.fspath(source))
    if os.path.isdir(path):
        return dataset_of_folder(path, recursive=recursive)
    if os.path.lexists(path):
        if is_npz(path):
            return dataset_of_npz(path)
        return read_manifest(path) if is_manifest(path) else _dataset_of_file(path)
    if _is_pattern(path):
        return _dataset_of_pattern(path)
    raise DataError(f"{show(path)} does not exist{_near_miss(path)}")


def _is_pattern(path: str) -> bool:
    return any(character in path for character in _MAGIC_CHARACTERS) and not os.path.lexists(path)


def _dataset_of_list(paths: Sequence[str | os.PathLike[str]], recursive: bool) -> Dataset:
    check_list(paths)
    left, items, notes, ignored = LeftOut(), list[Item](), list[str](), 0
    entries = list(list_entries(paths, left))
    for name, file, kind in entries:
        if kind == "several":
            part = find(file, recursive)
            items += below(name, part)
            notes += [f"{show(name)}: {note}" for note in part.notes]
            ignored += part.ignored
        elif kind == "shard":
            found, more, said = items_of_shards([(file, name)])
            items += found
            ignored, notes = ignored + more, notes + said
        else:
            items.append(Item(item_id(name), file))
    if not items:
        raise nothing_listed(left)
    layout = "several" if any(kind == "several" for _, _, kind in entries) else "list"
    return Dataset(tuple(items), layout, os.getcwd(), ignored, (*notes, *left.notes()))


def check_list(paths: Sequence[str | os.PathLike[str]]) -> None:
    """Raise DataError for a list that is empty or of something else than paths."""
    wrong = next((p for p in paths if not isinstance(p, str | os.PathLike)), None)
    if wrong is not None:
        raise DataError(f"a list of paths holds {type(wrong).__name__}: give strings or Paths")
    if len(paths) == 0:
        raise DataError("the list of images is empty")


def nothing_listed(left: LeftOut) -> DataError:
    """What is wrong with a list of masks and manifests alone."""
    return DataError(
        f"the list holds no images, but {left}: give the images, or the manifest itself"
    )


def list_entries(
    paths: Sequence[str | os.PathLike[str]], left: LeftOut
) -> Iterator[tuple[str, str, Literal["file", "shard", "several"]]]:
    """The entries of a list, without masks and manifests that were named by accident.

    Args:
        paths: files, shards, folders, patterns, manifests.
        left: told about those that are left out.

    Yields:
        the entry as written, its path, and whether that names several images by a folder, pattern
        or manifest.
    """
    meant, root = True, None
    for path in paths:
        file = os.path.expanduser(os.fspath(path))
        if not _is_wide(file):
            # Beside images a manifest was named by a shell's pattern; without any it is meant.
            meant = meant and (is_manifest(file) or is_shard(file))
            folder = os.path.dirname(os.path.abspath(file))
            root = folder if root is None else os.path.commonpath((root, folder))
    for path in paths:
        name = os.fspath(path)
        file = os.path.expanduser(name)
        if _is_wide(file) or is_npz(file) or (meant and is_manifest(file)):
            yield name, file, "several"
        elif is_shard(file):
            yield name, file, "shard"
        elif not left.takes(file, os.path.relpath(os.path.dirname(os.path.abspath(file)), root)):
            yield name, file, "file"


def _is_wide(path: str) -> bool:
    return os.path.isdir(path) or _is_pattern(path)


def below(name: str, dataset: Dataset) -> list[Item]:
    """The items of one of several inputs: their ids start with it, so that they stay apart."""
    if dataset.layout == "manifest" and is_manifest(name):
        return list(dataset.items)
    start = start_of(dataset.root if dataset.layout == "glob" else name)
    return [replace(item, id=f"{start}{item.id}") for item in dataset.items]


def start_of(name: str) -> str:
    """What the ids of a folder among several inputs start with."""
    return item_id(os.path.join(name, "")) if name not in ("", os.curdir) else ""


class LeftOut:
    """Decides which files of a pattern or list are masks or manifests, and counts them."""

    def __init__(self) -> None:
        self.masks = self.manifests = 0
        self._names: dict[str, list[str]] = {}

    def takes(self, path: str, below: str) -> bool:
        """Whether a file is no image to score; ``below`` is its folder, from the root."""
        if is_manifest(path):
            self.manifests += 1
            return True
        in_folder = any(is_mask_folder(part) for part in Path(below).parts)
        if in_folder or self._beside_its_image(path):
            self.masks += 1
            return True
        return False

    def _beside_its_image(self, path: str) -> bool:
        """Whether it is an ``x_mask.png`` with an image ``x`` in its folder, named or not."""
        folder, name = os.path.split(path)
        base = base_of_side_by_side(name)
        if base is None:
            return False
        if folder not in self._names:
            try:
                self._names[folder] = os.listdir(folder or os.curdir)
            except OSError:  # not there: the reader says so of each file in it
                self._names[folder] = []
        return any(
            stem_of(other) == base and is_image_file(os.path.join(folder, other))
            for other in self._names[folder]
        )

    def __str__(self) -> str:
        counts = ((self.masks, "mask"), (self.manifests, "manifest"))
        return " and ".join(count(n, kind) for n, kind in counts if n)

    def notes(self) -> tuple[str, ...]:
        """What to tell the user."""
        return (f"{self}: not taken for images",) if self.masks or self.manifests else ()


def _dataset_of_file(path: str) -> Dataset:
    folder, name = os.path.split(path)
    if is_packed_shard(path):
        raise DataError(f"{show(path)}: {PACKED_REASON}")
    if is_shard(path):
        items, ignored, notes = items_of_shards([(path, name)])
        return Dataset(tuple(items), "shard", folder or os.curdir, ignored, tuple(notes))
    if os.path.exists(path) and not is_image_file(path):
        raise DataError(
            f"{show(path)} is neither an image nor a manifest (.csv, .tsv, .parquet): give a "
            "folder, an image, a .tar or .zip shard, an .npz, or a manifest"
        )
    return Dataset((Item(item_id(name), path),), "file", folder or os.curdir)


def _dataset_of_pattern(pattern: str) -> Dataset:
    parts = Path(pattern).parts
    fixed = []
    for part in parts[:-1]:
        if any(character in part for character in _MAGIC_CHARACTERS):
            break
        fixed.append(part)
    root = os.path.join(*fixed) if fixed else os.curdir
    found = sorted(p for p in glob.glob(pattern, recursive=True) if not os.path.isdir(p))
    images, left, shards = [], LeftOut(), []
    for path in found:
        relative = Path(os.path.relpath(path, root)).as_posix()
        if is_shard(path) or is_packed_shard(path):
            shards.append((path, relative))
        elif not left.takes(path, os.path.dirname(relative)) and is_image_file(path):
            images.append(Item(item_id(relative), path))
    ignored = len(found) - len(images) - len(shards) - left.masks - left.manifests
    notes = list(left.notes())
    if shards:
        more_items, more, said = items_of_shards(shards)
        images += more_items
        ignored, notes = ignored + more, notes + said
    if not images:
        raise DataError(
            f"the pattern {show(pattern)} matches no image"
            + (f" among {len(found)} files" if found else "")
            + "; ** stands for folders of any depth, as in 'archive/**/*.png'"
        )
    images.sort(key=lambda item: item.id)
    return Dataset(tuple(images), "glob", root, ignored, tuple(notes))


def _unique(dataset: Dataset) -> Dataset:
    seen: dict[str, Item] = {}
    for item in dataset.items:
        other = seen.setdefault(item.id, item)
        if other is not item:
            raise duplicate(other, item)
    return dataset


def duplicate(one: Item, other: Item) -> DataError:
    """What is wrong with two items of one id."""
    what = "is listed twice" if one.path == other.path else "names two images"
    return DataError(
        f"the id {show(one.id)} {what} ({show(one.path)} and {show(other.path)}): ids must be "
        "unique; remove one, or give the manifest an id column"
    )


def _near_miss(path: str) -> str:
    """A hint at names that are like the missing one."""
    path = os.path.abspath(path)
    folder, name = os.path.split(path)
    while folder and not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder, name = os.path.split(folder)
    try:
        names = os.listdir(folder)
    except OSError:
        return ""
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(show(os.path.join(folder, n)) for n in close)}?"
    return f"; the folder {show(folder)} has no {show(name)}"
