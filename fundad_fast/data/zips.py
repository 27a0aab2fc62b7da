# SPDX-License-Identifier: Apache-2.0
"""`.zip` shards in place: members by the central directory, read at their offsets.

The directory is walked and not held, so a shard of a million members costs no more memory than one
of ten. Stored and deflated members are read. Source: APPNOTE.TXT of PKWARE, 4.3.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from fundad_fast.data.items import ReadError
from fundad_fast.data.parts import Member, Part, ShardError

MAX_RATIO = 200
"""A member that grows by more is taken for a bomb: images hardly compress."""

RATIO_COUNTS_FROM = 16 * 2**20
"""Bytes up to which it may: a blank image compresses as far."""

_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _UTF8 = 0x1, 0x800
_TAIL = 22 + 65535
_LINK = 0o120000


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of the central directory; ``length`` is its own, ``start`` that of the data."""

    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    start: int
    mode: int
    length: int


def zip_members(file: BinaryIO, size: int) -> Iterator[Member]:
    """The members of a zip, folders left out, in the order of its directory.

    Raises:
        ShardError: after the members that came before the damage.
    """
    count, offset = _directory(file, size)
    for done in range(count):
        try:
            entry = _entry(file, offset)
        except (struct.error, OSError) as error:
            raise ShardError(
                f"damaged zip: its directory names {count} members and holds {done}"
            ) from error
        if not entry.name.endswith("/"):
            yield Member(entry.name, offset, (entry.mode & 0o170000) != _LINK)
        offset += entry.length


def _directory(file: BinaryIO, size: int) -> tuple[int, int]:
    """How many entries the central directory has, and where it starts."""
    start = max(0, size - _TAIL)
    file.seek(start)
    tail = file.read(_TAIL)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        raise ShardError("damaged zip: its end is missing, so it is cut short or no zip at all")
    disk, _, _, count, _, offset = struct.unpack_from("<4H2L", tail, at + 4)
    if 0xFFFF in (count, disk) or offset == 0xFFFFFFFF:
        try:
            file.seek(start + at - 20)
            signature, where = struct.unpack("<4s4xQ4x", file.read(20))
            file.seek(where)
            big, count, offset = struct.unpack("<4s28xQ8xQ", file.read(56))
        except (struct.error, OSError, ValueError, OverflowError) as error:
            raise ShardError("damaged zip: its end is cut short") from error
        if (signature, big) != (b"PK\x06\x07", b"PK\x06\x06"):
            raise ShardError("damaged zip: its end is not that of a large zip")
        disk = 0
    if disk:
        raise ShardError("a zip in several volumes: join them")
    if count and offset + 46 * count > size:
        raise ShardError(f"damaged zip: no room for the {count} members that its end declares")
    return count, offset


def _entry(file: BinaryIO, offset: int) -> _Entry:
    """The entry at an offset; raises struct.error where there is none."""
    file.seek(offset)
    head = file.read(46)
    if head[:4] != b"PK\x01\x02":
        raise struct.error("no entry")
    flags, method = struct.unpack_from("<2H", head, 8)
    crc, packed, size, n, extra_n, comment_n = struct.unpack_from("<3L3H", head, 16)
    (mode,) = struct.unpack_from("<L", head, 38)
    (start,) = struct.unpack_from("<L", head, 42)
    rest = file.read(n + extra_n)
    if len(rest) < n + extra_n:
        raise struct.error("cut short")
    values = [size, packed, start]
    wide = _wide(rest[n:])
    for i, value in enumerate(values):  # in this order, and only those that do not fit
        if value == 0xFFFFFFFF:
            (values[i],) = struct.unpack_from("<Q", wide)
            wide = wide[8:]
    return _Entry(
        _name(rest[:n], flags),
        flags,
        method,
        crc,
        values[1],
        values[0],
        values[2],
        mode >> 16,
        46 + n + extra_n + comment_n,
    )


def _wide(extra: bytes) -> bytes:
    """The extra field that holds sizes of more than 32 bits."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return b""


def _name(raw: bytes, flags: int) -> str:
    """Names should be UTF-8 or code page 437, but many are UTF-8 and do not say so."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "surrogateescape") if flags & _UTF8 else raw.decode("cp437")


def open_zip_member(
    file: BinaryIO, size: int, member: Member, max_bytes: float
) -> tuple[BinaryIO, int]:
    """The data of a member as a file, and its size; ``file`` may be used by it.

    Raises:
        ReadError: ``changed`` where another member lies there by now, ``unsupported`` (a link,
            encrypted, another compression), ``too_large`` (beyond ``max_bytes``, or a bomb),
            ``unreadable`` (damaged, or more or less data than declared).
    """
    try:
        entry = _entry(file, member.offset)
    except struct.error:
        entry = None
    if entry is None or entry.name != member.name:
        raise ReadError("changed", "the shard is no longer what it was when it was listed")
    if (entry.mode & 0o170000) == _LINK:
        raise ReadError("unsupported", "a link inside a shard: it is not followed")
    if entry.flags & _ENCRYPTED:
        raise ReadError("unsupported", "an encrypted member: write the shard without a password")
    if entry.method not in (_STORED, _DEFLATED):
        raise ReadError(
            "unsupported", f"compression {entry.method}: write the zip stored or deflated"
        )
    if entry.size == 0:
        raise ReadError("unreadable", "the file is empty (0 bytes)")
    file.seek(entry.start)
    head = file.read(30)
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        raise ReadError("unreadable", "damaged zip: the member's header is missing")
    n, extra = struct.unpack_from("<2H", head, 26)
    start = entry.start + 30 + n + extra
    if start + entry.packed > size:
        raise ReadError("unreadable", "the shard is cut short within this member")
    if entry.method == _STORED:
        if entry.size != entry.packed:
            raise ReadError("unreadable", "damaged zip: two sizes of a stored member")
        return io.BufferedReader(Part(file, start, entry.size)), entry.size
    if entry.size > max_bytes:
        raise ReadError(
            "too_large", f"it unpacks to {entry.size / 1e6:.0f} MB; {max_bytes / 1e6:.0f} may be"
        )
    if entry.size > max(RATIO_COUNTS_FROM, MAX_RATIO * entry.packed):
        raise ReadError(
            "too_large",
            f"{entry.packed} bytes that unpack to {entry.size}: taken for a zip bomb (more than "
            f"{MAX_RATIO} to 1)",
        )
    file.seek(start)
    return io.BytesIO(_inflated(file, entry)), entry.size


def _inflated(file: BinaryIO, entry: _Entry) -> bytes:
    inflate = zlib.decompressobj(-15)
    try:
        # One byte more than declared is enough to know, whatever the data go on to.
        data = inflate.decompress(file.read(entry.packed), entry.size + 1)
    except zlib.error as error:
        raise ReadError("unreadable", f"damaged zip: {error}") from error
    if len(data) > entry.size:
        raise ReadError("unreadable", f"it unpacks to more than the {entry.size} bytes declared")
    if len(data) < entry.size or zlib.crc32(data) != entry.crc:
        raise ReadError("unreadable", "damaged zip: the member's checksum is wrong")
    return data
