# SPDX-License-Identifier: Apache-2.0
"""Opens what pixels are read from: a path, an item, bytes or an open file."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from fundad_fast.data.headers import Header, open_image, parse_header
from fundad_fast.data.items import Item, ReadError
from fundad_fast.data.npz import npz_pixels, of_npz
from fundad_fast.data.shards import open_member, refuse_shard

Source = str | os.PathLike[str] | Item | bytes | BinaryIO
"""A path, an item (whose frame counts), the bytes of an image file, or such a file, seekable."""


MAX_BYTES = 200e6 * 32
"""A compressed member of a shard is unpacked into memory: larger ones are refused."""


@contextmanager
def open_source(source: Source, *, max_bytes: float = MAX_BYTES) -> Iterator[tuple[BinaryIO, int]]:
    """Open a source; yields a seekable file and its size in bytes. Raises ReadError.

    An open file is left open, at any position. A member of a shard that would have to be unpacked
    to more than ``max_bytes`` is ``too_large``. Of an image of an ``.npz`` it is the whole file.
    """
    if isinstance(source, Item) and source.member is not None and not of_npz(source):
        with open_member(source, max_bytes) as opened:
            yield opened
    elif isinstance(source, str | os.PathLike | Item):
        path = source.path if isinstance(source, Item) else os.fspath(source)
        refuse_shard(path)
        with open_image(path) as opened:
            yield opened
    else:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            raise ReadError("unreadable", "the file is empty (0 bytes)")
        yield file, size


def frame_of(source: Source, frame: int | None) -> int | None:
    """The frame asked for, else the item's."""
    return source.frame if frame is None and isinstance(source, Item) else frame


def version_of(item: Item) -> tuple[object, ...] | None:
    """What tells a frame's file, and the version of it, from others; ``None`` without frames."""
    if item.frame is None:
        return None
    try:
        facts = os.stat(item.path)
    except OSError:
        return None
    return item.path, item.member, facts.st_ino, facts.st_size, facts.st_mtime_ns


def read_header(source: Source, *, first_page: bool = False, frame: int | None = None) -> Header:
    """The header of an image file.

    Args:
        source: the file.
        first_page: allow a file of several pages or frames, whose first counts.
        frame: the page or frame that counts, from 0; by default an item's own.

    Raises:
        ReadError: ``unreadable`` or ``unsupported``.
    """
    if of_npz(source):
        h, w, c = (pixels := npz_pixels(source, math.inf)).shape
        return Header("npz", w, h, c, 8 * pixels.itemsize)
    with open_source(source) as (file, size):
        return parse_header(file, size, first_page=first_page, frame=frame_of(source, frame))
