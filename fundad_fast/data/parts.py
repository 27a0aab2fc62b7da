# SPDX-License-Identifier: Apache-2.0
"""Members of shards: what is told of one, a file over a part of a file, and names that are safe."""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a shard.

    Attributes:
        name: as the shard has it; bytes that are not UTF-8 as surrogates.
        offset: where its header lies, from which it is opened again.
        regular: false for links, devices and the like.
    """

    name: str
    offset: int
    regular: bool = True


class ShardError(Exception):
    """A shard that is damaged or not what its name says; the message is one line."""


class Part(io.RawIOBase):
    """A part of a seekable file as a file of its own; the whole one stays its owner's."""

    name = ""  # pydicom asks buffered files for it

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._position = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError(f"a position before the start: {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), max(self._length - self._position, 0))
        self._file.seek(self._start + self._position)
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def unsafe_name(name: str) -> str | None:
    """Why a member's name must not be followed, in words; ``None`` for a harmless one.

    Nothing is ever extracted; such names are refused all the same, as they are made to harm.
    """
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "its name is absolute"
    if ".." in re.split(r"[/\\]", name):
        return "its name leads out of the shard (..)"
    if "\0" in name:
        return "its name contains a NUL character"
    return None


_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")


def is_shard(path: str) -> bool:
    """Whether a file is a shard by its name."""
    return path.lower().endswith((".tar", ".zip"))


def is_packed_shard(path: str) -> bool:
    """Whether a file is a compressed tar by its name."""
    return path.lower().endswith(_PACKED)
