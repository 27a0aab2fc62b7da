# SPDX-License-Identifier: Apache-2.0
"""Rescale and window of DICOM grey values, by the formulas of the standard."""

from __future__ import annotations

import numpy as np
import pytest

from fundad_fast.data.greyscale import Greyscale, Table

EVERY = {bits: np.arange(1 << bits, dtype=np.uint16) for bits in (1, 4, 8, 12, 16)}


@pytest.mark.parametrize("bits", [1, 4, 8, 12, 16])
def test_without_a_window_the_stored_range_is_the_whole_depth(bits):
    grey = Greyscale(bits).apply(EVERY[bits])
    white = 255 if bits <= 8 else 65535
    assert grey.dtype == (np.uint8 if bits <= 8 else np.uint16)
    np.testing.assert_array_equal(
        grey, np.floor(EVERY[bits] / (2**bits - 1) * white + 0.5).astype(int)
    )


def test_all_of_16_bits_stay_as_they_are():
    np.testing.assert_array_equal(Greyscale(16).apply(EVERY[16]), EVERY[16])
    np.testing.assert_array_equal(Greyscale(8).apply(EVERY[8]), EVERY[8])


def test_signs_and_what_lies_above_the_stored_bits():
    stored = np.array([-2048, -1, 0, 2047], np.int16)
    grey = Greyscale(12, signed=True).apply(stored)
    np.testing.assert_array_equal(grey, [0, round(2047 / 4095 * 65535), 32776, 65535])
    dirty = (stored.view(np.uint16) & 0x0FFF) | 0xA000
    np.testing.assert_array_equal(Greyscale(12, signed=True).apply(dirty), grey)


def test_a_rescale_alone_changes_nothing_but_a_falling_one_turns():
    rising = Greyscale(12, slope=3.7, intercept=-1024).apply(EVERY[12])
    assert np.abs(rising.astype(int) - Greyscale(12).apply(EVERY[12])).max() <= 1
    falling = Greyscale(12, slope=-2.0).apply(EVERY[12])
    assert falling[0] == 65535
    assert falling[-1] == 0


def by_the_standard(x: np.ndarray, c: float, w: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, LINEAR, with an output from 0 to 1."""
    out = ((x - (c - 0.5)) / (w - 1) + 0.5) if w > 1 else np.zeros(len(x))
    out = np.where(x <= c - 0.5 - (w - 1) / 2, 0, out)
    return np.where(x > c - 0.5 + (w - 1) / 2, 1, out)


@pytest.mark.parametrize("window", [(40, 100), (41, 1), (40.5, 2), (-900, 350), (2000, 4096)])
def test_windows(window):
    units = EVERY[12] * 1.5 - 1000
    grey = Greyscale(12, slope=1.5, intercept=-1000, window=window).apply(EVERY[12])
    expected = by_the_standard(units, *window)
    np.testing.assert_array_equal(grey, np.floor(expected * 65535 + 0.5).astype(int))


def test_other_functions_of_the_window():
    x = EVERY[8]
    exact = Greyscale(8, window=(100, 50), function="LINEAR_EXACT").apply(x)
    assert [int(v) for v in exact[[75, 100, 125]]] == [0, 128, 255]
    sigmoid = Greyscale(8, window=(100, 50), function="SIGMOID").apply(x)
    np.testing.assert_array_equal(
        sigmoid, np.floor(255 / (1 + np.exp(-4 * (x - 100.0) / 50)) + 0.5).astype(int)
    )


def test_tables():
    modality = Table(10, 8, (5, 50, 250))
    grey = Greyscale(8, modality=modality).apply(EVERY[8])
    assert [int(v) for v in grey[[0, 10, 11, 12, 255]]] == [5, 5, 50, 250, 250]
    voi = Table(50, 12, (0, 4095))
    both = Greyscale(8, modality=modality, voi=voi, window=(1, 2)).apply(EVERY[8])
    assert [int(v) for v in both[[10, 11, 12]]] == [0, 0, 255]


def test_monochrome1_and_padding():
    grey = Greyscale(8, inverted=True, padding=(250, 255)).apply(EVERY[8])
    np.testing.assert_array_equal(grey[:250], 255 - EVERY[8][:250])
    assert not grey[250:].any()
    signed = Greyscale(16, signed=True, padding=(-2000, -2000))
    grey = signed.apply(np.array([-2001, -2000, -1999], np.int16))
    assert list(grey > 0) == [True, False, True]


def test_more_bits_than_a_table_has():
    stored = np.array([0, 2**31, 2**32 - 1], np.uint32)
    np.testing.assert_array_equal(Greyscale(32).apply(stored), [0, 32768, 65535])
    signed = np.array([-(2**31), 0, 2**31 - 1], np.int32)
    np.testing.assert_array_equal(Greyscale(32, signed=True).apply(signed), [0, 32768, 65535])
    window = Greyscale(32, signed=True, window=(0.5, 101))
    np.testing.assert_array_equal(window.apply(np.array([-50, 0, 50], np.int32)), [0, 32768, 65535])
