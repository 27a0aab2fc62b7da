# SPDX-License-Identifier: Apache-2.0
"""Looks at the headers of volumes to learn from: are they of one kind and spacing?"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np

from fundad_fast.data.census import refuse_mixed
from fundad_fast.data.headers import kind_of
from fundad_fast.data.items import DataError, Item, ReadError, show
from fundad_fast.data.nifti import open_nifti
from fundad_fast.data.opening import open_source
from fundad_fast.data.volume_preparation import SAME
from fundad_fast.data.volumes import spacing_of


class VolumeKind(NamedTuple):
    """What the input specification of a fit should say.

    Attributes:
        bit_depth: 8, 16 or 32 (float).
        spacing: millimetres along slices, rows and columns; the median of the volumes.
    """

    bit_depth: Literal[8, 16, 32]
    spacing: tuple[float, float, float]


def inspect_volumes(
    items: Sequence[Item],
    *,
    mixed: bool = False,
    resample: bool = False,
    threads: int = 4,
) -> VolumeKind:
    """Compare bit depths and spacings of NIfTI files, reading headers only.

    Args:
        items: one for each file.
        mixed: several bit depths are accepted.
        resample: several spacings are.
        threads: how many headers are read at a time.

    Raises:
        DataError: none can be read, or they are mixed and that is not accepted.
    """

    def look(item: Item) -> VolumeKind | ReadError:
        try:
            with open_source(item) as (file, _):
                if kind_of(file) != "nifti":
                    return ReadError("unsupported", "not a NIfTI file")
                volume = open_nifti(file)
        except ReadError as error:
            return error
        columns = np.column_stack([volume.affine[:3, axis] for axis, _ in volume.axes])
        depth: Literal[8, 16, 32] = 32
        if not volume.scaled:
            depth = 8 if volume.dtype.itemsize == 1 else 16
        return VolumeKind(depth, spacing_of(columns))

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(look, items))
    kinds = [(item, kind) for item, kind in zip(items, found) if isinstance(kind, VolumeKind)]
    if not kinds:
        error = found[0]
        reason = error.reason if isinstance(error, ReadError) else "there are none"
        raise DataError(
            f"none of the {len(items)} volumes can be read; the first, {show(items[0].id)}: "
            f"{reason}"
        )
    depths: dict[int, list[Item]] = {}
    for item, kind in kinds:
        depths.setdefault(kind.bit_depth, []).append(item)
    if not mixed:
        refuse_mixed("bit depths", depths, {8: "8-bit", 16: "16-bit", 32: "float"})
    every = np.array([kind.spacing for _, kind in kinds])
    middle = np.median(every, axis=0)
    away = (np.abs(every / middle - 1) > SAME).any(axis=1)
    if away.any() and not resample:
        at = int(np.flatnonzero(away)[0])
        raise DataError(
            f"mixed spacings: {int(away.sum())} of {len(every)} volumes are not of "
            f"{_mm(middle)}, such as {show(kinds[at][0].id)} of {_mm(every[at])}; resample them, "
            "or set resample=true (and spacing, if another than the median is wanted)"
        )
    deepest: Literal[8, 16, 32] = 32 if 32 in depths else 16 if 16 in depths else 8
    z, y, x = (float(one) for one in middle)
    return VolumeKind(deepest, (z, y, x))


def _mm(spacing: np.ndarray) -> str:
    return " x ".join(f"{one:.3g}" for one in spacing) + " mm"
