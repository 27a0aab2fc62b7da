# SPDX-License-Identifier: Apache-2.0
"""Walks a source without holding what it finds, for an inventory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from fundad_fast.data.folders import is_plain
from fundad_fast.data.items import DataError, Dataset, Item, item_id, show
from fundad_fast.data.layouts import (
    LeftOut,
    below,
    check_list,
    find,
    list_entries,
    nothing_listed,
    start_of,
)
from fundad_fast.data.listing import is_image_file, walk
from fundad_fast.data.manifest import (
    MANIFEST_NAMES,
    is_manifest,
    manifest_items,
    manifest_notes,
    manifest_root,
)
from fundad_fast.data.parts import is_packed_shard, is_shard
from fundad_fast.data.shards import list_shard, notes_of_shards


class Piece:
    """One of the inputs that a source is made of: a pattern, an image or a shard.

    Attributes:
        file: its path.
        name: as it was written in a list, ``None`` where it is all of the source.
        in_order: whether its items keep their order; else they are in order of id.
        layout, root, ignored, notes: as of a ``Dataset``, once its items have been walked.
    """

    in_order = False

    def __init__(self, file: str, name: str | None = None, recursive: bool = True) -> None:
        self.file, self.name, self.recursive = file, name, recursive
        self.layout, self.root, self.ignored = "", "", 0
        self.notes: list[str] = []

    def items(self) -> Iterable[Item]:
        """The items, one for each file."""
        return self.in_memory()

    def refused(self) -> bool:
        """Whether there is more to say of the items than was: those of :meth:`in_memory` count."""
        return False

    def in_memory(self) -> Iterable[Item]:
        """The items as ``discover`` finds them, and in its order."""
        self.in_order = True
        dataset: Dataset = find(self.file, self.recursive)
        self.layout, self.root = dataset.layout, dataset.root
        self.ignored, self.notes = dataset.ignored, list(dataset.notes)
        return dataset.items if self.name is None else below(self.name, dataset)


class ManifestPiece(Piece):
    """A manifest, row by row."""

    in_order = True

    def items(self) -> Iterator[Item]:
        self.layout, self.root = "manifest", manifest_root(self.file)
        self.notes = list(manifest_notes(self.file))
        return manifest_items(self.file)


class FolderPiece(Piece):
    """A folder of images and shards; refused where its layout says more of them."""

    _says_more = False

    def items(self) -> Iterator[Item]:
        self.layout, self.root = "folder", self.file
        start = "" if self.name is None else start_of(self.name)
        manifests = (os.path.join(self.file, name) for name in MANIFEST_NAMES)
        self._says_more = any(os.path.isfile(name) for name in manifests)
        images = shards = inside = masks = 0
        for path in walk(self.file, "", self.recursive, (), self.notes):
            full = os.path.join(self.file, path)
            if self._says_more:
                return
            if is_image_file(full):
                images += 1
                self._says_more = not is_plain(path)
                yield Item(start + item_id(path), full)
            elif is_shard(path) or is_packed_shard(path):
                listing = list_shard(full, path)
                shards, inside = shards + 1, inside + len(listing.items)
                masks, self.ignored = masks + listing.masks, self.ignored + listing.ignored
                for item in listing.items:
                    yield replace(item, id=start + item.id)
            else:
                self.ignored += 1
        self._says_more = self._says_more or not (images or shards)
        self.notes += notes_of_shards(inside, shards, masks)

    def refused(self) -> bool:
        return self._says_more


class ListedPiece(Piece):
    """Files and shards by their names, one after the other."""

    in_order = True

    def __init__(self, entries: Iterable[tuple[str, str, str]]) -> None:
        super().__init__("")
        self._entries = entries

    def items(self) -> Iterator[Item]:
        for name, file, kind in self._entries:
            if kind == "file":
                yield Item(item_id(name), file)
                continue
            listing = list_shard(file, name)
            self.ignored += listing.ignored
            self.notes += notes_of_shards(len(listing.items), 1, listing.masks)
            yield from listing.items


class Stream:
    """A source to be walked, piece by piece.

    Attributes:
        stem: what the paths of items start with where the rest is their id; empty where they are
            their ids, or nothing of that kind.
    """

    def __init__(
        self, source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], recursive: bool
    ) -> None:
        self._recursive, self._done = recursive, list[Piece]()
        self._left: LeftOut | None = None
        self.stem = ""
        if isinstance(source, str | os.PathLike):
            file = os.path.expanduser(os.fspath(source))
            self._pieces = iter([self._piece(file, None)])
            if os.path.isdir(file):
                self.stem = os.path.join(file, "")
        else:
            check_list(source)
            self._left = LeftOut()
            self._pieces = self._of_list(source, self._left)

    def _piece(self, file: str, name: str | None) -> Piece:
        if os.path.isdir(file):
            return FolderPiece(file, name, self._recursive)
        kind = ManifestPiece if is_manifest(file) and os.path.lexists(file) else Piece
        return kind(file, name, self._recursive)

    def _of_list(self, paths: Sequence[str | os.PathLike[str]], left: LeftOut) -> Iterator[Piece]:
        entries = list_entries(paths, left)
        for several, group in groupby(entries, lambda entry: entry[2] == "several"):
            if several:
                for name, file, _ in group:
                    yield self._piece(file, name)
            else:
                yield ListedPiece(group)

    def pieces(self) -> Iterator[Piece]:
        """The pieces in order; each is to be walked before the next is asked for."""
        for piece in self._pieces:
            self._done.append(piece)
            yield piece

    def facts(self) -> tuple[str, str, int, list[str]]:
        """Layout, root, ignored files and notes, once all pieces have been walked."""
        if self._left is None:
            (piece,) = self._done
            return piece.layout, piece.root, piece.ignored, piece.notes
        notes = []
        for piece in self._done:
            of = "" if piece.name is None else f"{show(piece.name)}: "
            notes += [f"{of}{note}" for note in piece.notes]
        several = any(piece.name is not None for piece in self._done)
        ignored = sum(piece.ignored for piece in self._done)
        layout = "several" if several else "list"
        return layout, os.getcwd(), ignored, [*notes, *self._left.notes()]

    def nothing(self) -> DataError:
        """What is wrong with a source in which no item was found."""
        assert self._left is not None  # other sources say so themselves
        return nothing_listed(self._left)
