# SPDX-License-Identifier: Apache-2.0
"""Looks at the headers of the images to learn from: are they of one kind?"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from fundad_fast.data.headers import Header
from fundad_fast.data.items import DataError, Item, ReadError, show
from fundad_fast.data.opening import read_header


@dataclass(frozen=True)
class InputCensus:
    """What the headers say.

    Attributes:
        n: images whose header could be read.
        unreadable: images whose header could not; each becomes a failure when it is loaded.
        channels: images by channel count, 1 (grey) or 3 (RGB).
        bit_depths: images by bit depth, 8, 16 or 32 (float).
        sizes: images by (height, width), upright.
        spec_channels, spec_bit_depth: what the input specification should say.
    """

    n: int
    unreadable: int
    channels: dict[int, int]
    bit_depths: dict[int, int]
    sizes: dict[tuple[int, int], int]
    spec_channels: Literal["rgb", "grey"]
    spec_bit_depth: Literal[8, 16, 32]


def inspect_inputs(
    items: Sequence[Item],
    *,
    mixed_inputs: Literal["error", "convert"] = "error",
    pages: Literal["one", "first"] = "one",
    threads: int = 4,
) -> InputCensus:
    """Count channels, bit depths and sizes of files, reading headers only.

    Args:
        items: images with files.
        mixed_inputs, pages: as in :class:`fundad_fast.data.InputSpec`.
        threads: how many headers are read at a time.

    Returns:
        The census; where kinds are mixed and that is allowed, its specification has colour if any
        image has, and the greatest bit depth.

    Raises:
        DataError: there are no items, none can be read, or they are mixed and ``mixed_inputs`` is
            ``error``.
    """
    if not items:
        raise DataError("no images to inspect")

    def look(item: Item) -> Header | ReadError:
        try:
            header = read_header(item, first_page=pages == "first")
        except ReadError as error:
            return error
        if header.channels == 4:
            return ReadError("unsupported", "a CMYK image")
        return header

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(look, items))
    headers = [(item, h) for item, h in zip(items, found) if isinstance(h, Header)]
    errors = [(item, e) for item, e in zip(items, found) if isinstance(e, ReadError)]
    if not headers:
        item, error = errors[0]
        raise DataError(
            f"none of the {len(items)} images can be read; the first, {show(item.id)}: "
            f"{error.reason}"
        )
    channels: dict[int, list[Item]] = {}
    depths: dict[int, list[Item]] = {}
    sizes: dict[tuple[int, int], int] = {}
    for item, header in headers:
        channels.setdefault(header.channels, []).append(item)
        depths.setdefault(header.bit_depth, []).append(item)
        sizes[header.shape] = sizes.get(header.shape, 0) + 1
    if mixed_inputs == "error":
        refuse_mixed("channel counts", channels, {1: "grey", 3: "RGB"})
        refuse_mixed("bit depths", depths, {8: "8-bit", 16: "16-bit", 32: "float"})
    deepest: Literal[8, 16, 32] = 32 if 32 in depths else 16 if 16 in depths else 8
    return InputCensus(
        n=len(headers),
        unreadable=len(errors),
        channels={key: len(group) for key, group in sorted(channels.items())},
        bit_depths={key: len(group) for key, group in sorted(depths.items())},
        sizes=sizes,
        spec_channels="rgb" if 3 in channels else "grey",
        spec_bit_depth=deepest,
    )


def refuse_mixed(what: str, groups: dict[int, list[Item]], names: dict[int, str]) -> None:
    """Raise DataError unless there is one group; ``names`` says what each is."""
    if len(groups) < 2:
        return
    parts = [
        f"{len(group)} {names[key]} (such as {show(group[0].id)})"
        for key, group in sorted(groups.items(), key=lambda kv: -len(kv[1]))
    ]
    raise DataError(
        f"mixed {what}: {' and '.join(parts)}; make the images alike or set mixed_inputs=convert"
    )
