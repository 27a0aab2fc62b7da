# SPDX-License-Identifier: Apache-2.0
"""A memory bank, and what is computed of it once for all searches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _adapt, nearest_tiles
from .nearest_tiles import Tiles


@dataclass(frozen=True)
class NearestPrepared:
    """A bank, and what is computed of it once; plain tensors, to be kept.

    Attributes:
        rows: ``[n, d]`` contiguous float32, the bank itself; shared with it where it is that.
        center: ``[d]`` float32, a point amid the bank; products around it lose fewer digits.
        norm2: ``[n]`` float32, the squared distance of each row to it.
        tiles: the bank as integers, for the CPU; ``None`` if that was not tried.
    """

    rows: Tensor
    center: Tensor
    norm2: Tensor
    tiles: Tiles | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, to be saved."""
        found = {name: getattr(self, name) for name in ("rows", "center", "norm2")}
        if self.tiles is not None:
            found |= {f"tiles.{name}": getattr(self.tiles, name) for name in nearest_tiles.NAMES}
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> NearestPrepared:
        """Rebuild from :meth:`tensors`; other names are ignored.

        Tiles that are missing, as from a version without them, are made anew from the rows.

        Raises:
            ValueError: a tensor is missing, or the tensors do not fit together.
        """
        names = ("rows", "center", "norm2")
        if missing := [name for name in names if name not in tensors]:
            raise ValueError(f"nearest: a prepared bank lacks {', '.join(missing)}; prepare again")
        rows, center, norm2 = (tensors[name] for name in names)
        if any(f"tiles.{name}" not in tensors for name in nearest_tiles.NAMES):
            return cls(rows, center, norm2, _tiles(rows, center))
        tiles = Tiles(*(tensors[f"tiles.{name}"] for name in nearest_tiles.NAMES))
        nearest_tiles.check(tiles, *rows.shape)
        return cls(rows, center, norm2, tiles)

    def to(self, device: torch.device | str) -> NearestPrepared:
        """The same on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return NearestPrepared.from_tensors(moved)

    def arguments(self) -> list[Tensor]:
        """What the operator takes beside the bank."""
        return [self.center, self.norm2, *(self.tiles.tensors() if self.tiles else [])]


def nearest_prepare(bank: Tensor, tiles: bool | None = None) -> NearestPrepared:
    """Compute once what every search in a bank needs.

    On the CPU that includes tiles of integers, if they pay: not for few rows, nor for rows that
    vary in all directions alike.

    Args:
        bank: ``[n, d]`` rows of a floating type, ``n, d >= 1``, finite as float32.
        tiles: make them (``True``) or not (``False``), instead of trying out whether they pay.

    Raises:
        ValueError: the shape is another, or a value is not finite.
        NotImplementedError: tiles are asked for, where the native CPU code cannot take the bank.
    """
    check_bank(bank)
    rows = _adapt.dense(bank)
    check_finite(rows)
    center = torch.zeros(bank.shape[1], dtype=torch.float64, device=bank.device)
    for part in rows.split(8192):
        center += part.double().sum(0) / len(rows)
    center = center.float()
    norm2 = [(part - center).double().square().sum(1).float() for part in rows.split(8192)]
    return NearestPrepared(rows, center, torch.cat(norm2), _tiles(rows, center, tiles))


def _tiles(rows: Tensor, center: Tensor, wanted: bool | None = None) -> Tiles | None:
    if reason := _adapt.no_cpu(rows):
        if wanted:
            raise NotImplementedError(f"nearest: no tiles for this bank: {reason}")
        return None
    return nearest_tiles.prepare(rows, center, wanted)


def check_bank(bank: Tensor) -> None:
    """Raise ``ValueError`` unless this is the shape of a bank."""
    torch._check_value(
        bank.dim() == 2 and bank.is_floating_point(),
        lambda: f"nearest: want bank [n,d] of a floating type, got {list(bank.shape)} {bank.dtype}",
    )
    n, d = bank.shape
    torch._check_value(n >= 1, lambda: "nearest: want n >= 1, the bank is empty")
    torch._check_value(d >= 1, lambda: "nearest: want d >= 1, got rows without features")


def check_finite(rows: Tensor) -> None:
    """Raise ``ValueError`` if a float32 bank has a value that is not finite."""
    low, high = rows.aminmax()  # NaN shows in both
    if not (torch.isfinite(low) & torch.isfinite(high)):
        raise ValueError("nearest: the bank has values that are not finite as float32")
