# SPDX-License-Identifier: Apache-2.0
"""`.tar` shards in place: members listed by their headers, read at their offsets."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from fundad_fast.data.items import ReadError
from fundad_fast.data.parts import Member, Part, ShardError

_BLOCK = 512


def tar_members(file: BinaryIO) -> Iterator[Member]:
    """The members of an uncompressed tar, folders left out, in the order of the file.

    Raises:
        ShardError: after the members that came before the damage.
    """
    count = 0
    try:
        file.seek(0)
        with tarfile.TarFile(fileobj=file, mode="r", errors="surrogateescape") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                count += 1
                if not info.isdir():
                    yield Member(info.name, info.offset, info.isreg() and not info.issparse())
            # tarfile takes a damaged header for the end. A real end is a block of zeros.
            file.seek(tar.offset)
            block = file.read(_BLOCK)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise ShardError(_after(count, f"damaged tar: {error}")) from error
    if len(block) < _BLOCK or block.strip(b"\0"):
        raise ShardError(_after(count, "the tar is damaged or cut short: its end mark is missing"))


def _after(count: int, what: str) -> str:
    return f"{' '.join(what.split())}; members before the damage: {count}"


def open_tar_member(file: BinaryIO, size: int, member: Member) -> tuple[BinaryIO, int]:
    """The data of a member as a file, and its size; ``file`` is used by it.

    Raises:
        ReadError: ``changed`` where another member lies there by now, ``unsupported`` for links
            and the like, ``unreadable`` where its data are cut short.
    """
    try:
        file.seek(member.offset)
        with tarfile.TarFile(fileobj=file, mode="r", errors="surrogateescape") as tar:
            info = tar.next()
    except (tarfile.TarError, ValueError, OverflowError):
        info = None
    if info is None or info.name != member.name:
        raise ReadError("changed", "the shard is no longer what it was when it was listed")
    if info.issym() or info.islnk():
        raise ReadError("unsupported", "a link inside a shard: it is not followed")
    if not info.isreg() or info.issparse():
        kind = "sparse file" if info.issparse() else "device or pipe"
        raise ReadError("unsupported", f"a {kind} inside a shard: it is not read")
    if info.size == 0:
        raise ReadError("unreadable", "the file is empty (0 bytes)")
    if info.offset_data + info.size > size:
        raise ReadError("unreadable", "the shard is cut short within this member")
    return io.BufferedReader(Part(file, info.offset_data, info.size)), info.size
