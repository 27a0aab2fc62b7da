# SPDX-License-Identifier: Apache-2.0
"""One item for each frame of a file that has several."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Literal

from fundad_fast.data.headers import kind_of
from fundad_fast.data.items import Item, ReadError
from fundad_fast.data.listing import may_have_frames
from fundad_fast.data.opening import open_source

Pages = Literal["one", "first", "all"]

_AT_A_TIME = 1024


def with_frames(
    items: Iterable[Item], *, pages: Pages = "one", volumes: bool = False, threads: int = 8
) -> Iterator[Item]:
    """The items in their order, a file of several frames as one item for each: ``id#0``, ``id#1``.

    Only files that may have frames by their names are opened, ``threads`` at a time. A file that
    cannot be read stays one item, whose row says why.

    Args:
        items: one for each file.
        pages: of a TIFF with several: ``all`` makes an item of each, ``first`` reads the first,
            ``one`` leaves it to the reader, which refuses it unless the model says otherwise.
        volumes: a NIfTI volume is one item, not one for each slice.
        threads: how many files are looked at at a time.
    """
    source = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        while block := list(islice(source, _AT_A_TIME)):
            if pages == "first":
                block = [replace(item, frame=0) if _is_tiff(item) else item for item in block]
            asked = [item for item in block if item.frame is None and _asked(item, pages, volumes)]
            counts = dict(zip((item.id for item in asked), pool.map(count_frames, asked)))
            for item in block:
                count = counts.get(item.id, 1)
                if count == 1:
                    yield item
                else:
                    for frame in range(count):
                        yield replace(item, id=f"{item.id}#{frame}", frame=frame)


def _name(item: Item) -> str:
    return os.path.basename(item.member or item.path)


def _is_tiff(item: Item) -> bool:
    return item.frame is None and _name(item).lower().endswith((".tif", ".tiff"))


def _asked(item: Item, pages: Pages, volumes: bool) -> bool:
    if volumes and _name(item).lower().endswith((".nii", ".nii.gz")):
        return False
    return may_have_frames(_name(item)) or (pages == "all" and _is_tiff(item))


def count_frames(item: Item) -> int:
    """How many items the file of an item makes; 1 where it cannot be read."""
    try:
        with open_source(item) as (file, size):
            kind = kind_of(file)
            if kind == "dicom":
                from fundad_fast.data import dicom

                return dicom.count_frames(file, size)
            if kind == "nifti":
                from fundad_fast.data.nifti import count_slices

                return count_slices(file)
            if kind == "tiff" and _is_tiff(item):
                from fundad_fast.data.tiff import count_pages

                return count_pages(file)
    except (ReadError, OSError):
        return 1
    return 1
