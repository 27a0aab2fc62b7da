# SPDX-License-Identifier: Apache-2.0
"""From stored grey values of DICOM to the values of an image: rescale, window, full depth.

The rule, in this order: stored value; modality (rescale slope and intercept, or modality table);
the file's first window (or, before it, its VOI table), or without any the whole range that the
stored bits can express, so that images of one kind stay comparable (a model may name another
window, see :data:`Window`); scaled to all of 8 bits where
up to 8 bits are stored, else to all of 16 bits; MONOCHROME1 inverted; padding black.
Source: DICOM PS3.3, C.11.1 and C.11.2; PS3.4, N.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

MAX_TABLE_BITS = 16

Window = int | tuple[float, float] | Literal["none"]
"""In place of a file's first window or table: its k-th window, from 0; a centre and width, linear,
in rescaled units; or none, so the whole range that the stored bits can express."""


@dataclass(frozen=True)
class Table:
    """A table of DICOM: of the modality, or of values of interest.

    Attributes:
        first: the value that the first entry is for; smaller ones get the first entry too.
        bits: of an entry.
        entries: unsigned.
    """

    first: int
    bits: int
    entries: tuple[int, ...]

    def of(self, values: np.ndarray) -> np.ndarray:
        """The entries for values; those beyond an end get the end's."""
        index = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        return np.asarray(self.entries, np.float64)[index.astype(np.int64)]


@dataclass(frozen=True)
class Greyscale:
    """How stored values become grey values.

    Attributes:
        bits: stored.
        signed: whether they are two's complement.
        inverted: MONOCHROME1.
        slope, intercept: of the rescale.
        modality: a table instead of them.
        voi: table of values of interest, before any window.
        window: centre and width, in rescaled units.
        function: of the window.
        padding: lowest and highest stored value that mean "no pixel".
    """

    bits: int
    signed: bool = False
    inverted: bool = False
    slope: float = 1.0
    intercept: float = 0.0
    modality: Table | None = None
    voi: Table | None = None
    window: tuple[float, float] | None = None
    function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"] = "LINEAR"
    padding: tuple[int, int] | None = None

    def apply(self, stored: np.ndarray) -> np.ndarray:
        """Grey values of stored ones (any integer type, bits above ``bits`` ignored); uint8 for up
        to 8 bits, else uint16."""
        mask = (1 << self.bits) - 1
        if self.bits <= MAX_TABLE_BITS:
            unsigned = stored.view(f"u{stored.dtype.itemsize}")
            return np.take(_table(self), unsigned & unsigned.dtype.type(mask))
        values = stored.astype(np.int64) & mask
        return self._grey(self._signed(values))

    def _signed(self, values: np.ndarray) -> np.ndarray:
        if not self.signed:
            return values
        half = 1 << (self.bits - 1)
        return (values ^ half) - half

    def _grey(self, values: np.ndarray) -> np.ndarray:
        dtype = np.uint8 if self.bits <= 8 else np.uint16
        white = np.iinfo(dtype).max
        grey = np.floor(self._share(self._units(values)) * white + 0.5).astype(dtype)
        if self.inverted:
            grey = white - grey
        if self.padding is not None:
            low, high = self.padding
            grey[(values >= low) & (values <= high)] = 0
        return grey

    def _units(self, values: np.ndarray) -> np.ndarray:
        """Values after the modality's step: Hounsfield units, say."""
        if self.modality is not None:
            return self.modality.of(values)
        return values * self.slope + self.intercept

    def _share(self, units: np.ndarray) -> np.ndarray:
        """The share of white in [0, 1]."""
        if self.voi is not None:
            return self.voi.of(units) / ((1 << self.voi.bits) - 1)
        if self.window is None:
            low, high = self._range()
            return np.clip((units - low) / (high - low), 0.0, 1.0)
        centre, width = self.window
        if self.function == "SIGMOID":
            with np.errstate(over="ignore"):
                return 1.0 / (1.0 + np.exp(-4.0 * (units - centre) / width))
        if self.function == "LINEAR_EXACT":
            return np.clip((units - centre) / width + 0.5, 0.0, 1.0)
        if width == 1:
            return (units > centre - 0.5).astype(np.float64)
        return np.clip((units - (centre - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)

    def _range(self) -> tuple[float, float]:
        """The least and the greatest value that the stored bits can express after the rescale."""
        if self.modality is not None:
            return 0.0, float((1 << self.modality.bits) - 1)
        half = 1 << (self.bits - 1)
        ends = (-half, half - 1) if self.signed else (0, 2 * half - 1)
        low, high = sorted(self.intercept + self.slope * end for end in ends)
        return low, high


@lru_cache(maxsize=8)
def _table(greyscale: Greyscale) -> np.ndarray:
    # What is stored has at most 65,536 values: one look-up each is faster than the arithmetic.
    every = np.arange(1 << greyscale.bits, dtype=np.int64)
    return greyscale._grey(greyscale._signed(every))
