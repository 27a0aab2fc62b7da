# SPDX-License-Identifier: Apache-2.0
"""One item for each frame of a file that has several."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

from fundad_fast.data.headers import SNIFF_BYTES, sniff
from fundad_fast.data.items import Item, ReadError
from fundad_fast.data.listing import may_have_frames
from fundad_fast.data.opening import open_source

_AT_A_TIME = 1024


def with_frames(items: Iterable[Item], *, threads: int = 8) -> Iterator[Item]:
    """The items in their order, a file of several frames as one item for each: ``id#0``, ``id#1``.

    Only files that may have frames by their names are opened, ``threads`` at a time. A file that
    cannot be read stays one item, whose row says why.
    """
    source = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        while block := list(islice(source, _AT_A_TIME)):
            asked = [item for item in block if item.frame is None and _may_have_frames(item)]
            counts = dict(zip((item.id for item in asked), pool.map(count_frames, asked)))
            for item in block:
                count = counts.get(item.id, 1)
                if count == 1:
                    yield item
                else:
                    for frame in range(count):
                        yield replace(item, id=f"{item.id}#{frame}", frame=frame)


def _may_have_frames(item: Item) -> bool:
    return may_have_frames(os.path.basename(item.member or item.path))


def count_frames(item: Item) -> int:
    """How many items the file of an item makes; 1 where it cannot be read."""
    from fundad_fast.data import dicom

    try:
        with open_source(item) as (file, size):
            if sniff(file.read(SNIFF_BYTES)) == "dicom":
                return dicom.count_frames(file, size)
    except (ReadError, OSError):
        return 1
    return 1
