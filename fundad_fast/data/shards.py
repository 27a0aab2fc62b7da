# SPDX-License-Identifier: Apache-2.0
"""Shards: `.tar` and `.zip` files of images, which are listed and read in place, never extracted.

Compressed tars are not read: a member could only be reached by unpacking all before it, again after
every interruption and for every thread. Members of a shard that no reader should follow (absolute
names, `..`, links, devices) and shards that are damaged become rows that say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from fundad_fast.data.headers import SNIFF_BYTES, open_image, sniff
from fundad_fast.data.items import Item, ReadError, item_id
from fundad_fast.data.listing import by_name
from fundad_fast.data.masks import base_of_side_by_side, stem_of
from fundad_fast.data.naming import is_mask_folder
from fundad_fast.data.parts import (
    Member,
    ShardError,
    is_packed_shard,
    is_shard,
    unsafe_name,
)
from fundad_fast.data.tars import open_tar_member, tar_members
from fundad_fast.data.zips import open_zip_member, zip_members
from fundad_fast.words import count

PACKED_REASON = (
    "a compressed tar cannot be read in place: unpack the compression (gunzip, unxz ...) and give "
    "the .tar"
)


@dataclass(frozen=True)
class ShardListing:
    """What a shard holds.

    Attributes:
        items: its images in order of id; the shard itself, as an item, where it is damaged or holds
            no image, so that a row says so.
        ignored: members that are no images.
        masks: members that are masks, by their folders or names.
    """

    items: tuple[Item, ...]
    ignored: int
    masks: int


def list_shard(path: str, name: str) -> ShardListing:
    """The images of a shard, without decoding any.

    Args:
        path: the file.
        name: its id; those of members are ``name!/member``.
    """
    whole = Item(item_id(name), path)
    images: list[tuple[str, Member]] = []
    ignored, damaged = 0, False
    if is_packed_shard(path):
        return ShardListing((whole,), 0, 0)
    try:
        with open_image(path) as (file, size):
            for member in _members(path, file, size):
                plain = _plain(member.name)
                parts = plain.split("/")
                if any(part.startswith(".") and part != ".." for part in parts):
                    continue
                if "__MACOSX" in parts:
                    continue
                if _is_image(path, file, size, member):
                    images.append((plain, member))
                else:
                    ignored += 1
    except (ShardError, ReadError):
        damaged = True
    kept = _without_masks(images)
    items = [
        Item(item_id(f"{name}!/{plain}"), path, member=member.name, offset=member.offset)
        for plain, member in kept
    ]
    if damaged or not images:
        items.append(whole)
    items.sort(key=lambda item: item.id)
    return ShardListing(tuple(items), ignored, len(images) - len(kept))


def ids_of_files(item: Item) -> list[str]:
    """For a frame of a file, or a member of a shard: the ids of these, were they items themselves.

    ``s.tar!/a.dcm#0`` is of ``s.tar!/a.dcm`` and of ``s.tar``.
    """
    found, name = [], item.id
    endings = [] if item.frame is None else [f"#{item.frame}"]
    endings += [] if item.member is None else [f"!/{item_id(_plain(item.member))}"]
    for end in endings:
        if name.endswith(end):  # not those of a manifest
            name = name.removesuffix(end)
            found.append(name)
    return found


def items_of_shards(shards: Iterable[tuple[str, str]]) -> tuple[list[Item], int, list[str]]:
    """The images of shards, given as pairs (file, id); how many members are none; notes."""
    items: list[Item] = []
    n = ignored = masks = 0
    for path, name in shards:
        listing = list_shard(path, name)
        items += listing.items
        n, ignored, masks = n + 1, ignored + listing.ignored, masks + listing.masks
    return items, ignored, notes_of_shards(len(items), n, masks)


def notes_of_shards(items: int, shards: int, masks: int) -> list[str]:
    """What to tell the user of shards that were listed."""
    notes = []
    if shards:
        notes.append(
            f"{count(items, 'image')} in {count(shards, 'shard')} (.tar, .zip), read in place"
        )
    if masks:
        notes.append(f"{count(masks, 'mask')} in shards not taken for images")
    return notes


def _plain(name: str) -> str:
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def _members(path: str, file: BinaryIO, size: int) -> Iterator[Member]:
    if path.lower().endswith(".zip"):
        return zip_members(file, size)
    return tar_members(file)


def _is_image(path: str, file: BinaryIO, size: int, member: Member) -> bool:
    said = by_name(member.name.rsplit("/", 1)[-1])
    if said is not None:
        return said
    if not member.regular:
        return False
    try:
        opened, _ = _open(path, file, size, member, float("inf"))
        return sniff(opened.read(SNIFF_BYTES)) is not None
    except ReadError:
        return False


def _without_masks(images: list[tuple[str, Member]]) -> list[tuple[str, Member]]:
    def place(plain: str) -> tuple[str, str]:
        folder, _, name = plain.rpartition("/")
        return folder, name

    beside = None
    kept = []
    for plain, member in images:
        folder, name = place(plain)
        if any(is_mask_folder(part) for part in folder.split("/")):
            continue
        base = base_of_side_by_side(name)
        if base is not None:
            if beside is None:
                beside = {(f, stem_of(n)) for f, n in (place(other) for other, _ in images)}
            if (folder, base) in beside:
                continue
        kept.append((plain, member))
    return kept


def _open(
    path: str, file: BinaryIO, size: int, member: Member, max_bytes: float
) -> tuple[BinaryIO, int]:
    if path.lower().endswith(".zip"):
        return open_zip_member(file, size, member, max_bytes)
    return open_tar_member(file, size, member)


@contextmanager
def open_member(item: Item, max_bytes: float) -> Iterator[tuple[BinaryIO, int]]:
    """Open the member of a shard that an item is; yields a file and its size. Raises ReadError.

    The shard is opened for each member: no handle stays open, and a mount that went away and came
    back is found again.
    """
    assert item.member is not None
    reason = unsafe_name(item.member)
    if reason is not None:
        raise ReadError("unsupported", f"{reason}: members of this kind are not read")
    with open_image(item.path) as (file, size):
        offset = item.offset if item.offset is not None else _find(item, file, size)
        yield _open(item.path, file, size, Member(item.member, offset), max_bytes)


def _find(item: Item, file: BinaryIO, size: int) -> int:
    try:
        for member in _members(item.path, file, size):
            if member.name == item.member:
                return member.offset
    except ShardError as error:
        raise ReadError("unreadable", str(error)) from error
    raise ReadError("unreadable", "the shard has no such member")


def refuse_shard(path: str) -> None:
    """Raise the ReadError that the row of a shard itself has: why it could not be listed."""
    if is_packed_shard(path):
        raise ReadError("unsupported", PACKED_REASON)
    if not is_shard(path):
        return
    count = 0
    with open_image(path) as (file, size):
        if sniff(file.read(SNIFF_BYTES)) is not None:
            return  # an image under a wrong name
        try:
            for _ in _members(path, file, size):
                count += 1
        except ShardError as error:
            raise ReadError("unreadable", str(error)) from error
    if any(item.member is not None for item in list_shard(path, "").items):
        raise ReadError("changed", "the shard can be listed now: call again to read its images")
    raise ReadError("unsupported", f"a shard without an image of its own ({count} members)")
