# SPDX-License-Identifier: Apache-2.0
"""The row store: what goes in comes out, also after a kill at any byte."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fundad_fast.spill import RowStore


def filled(folder: Path | None, dtype: str = "float32") -> RowStore:
    store = RowStore(3, dtype=dtype, folder=folder)
    for i, m in enumerate((4, 0, 2)):
        store.append(f"image {i}", torch.arange(3.0 * m).view(m, 3) + 100 * i, note=f"n{i}")
    return store


@pytest.mark.parametrize("spilled", [False, True])
def test_rows_come_back_in_order(tmp_path, spilled):
    store = filled(tmp_path if spilled else None)
    assert len(store) == 6
    assert store.offsets().tolist() == [0, 4, 4, 6]
    assert store.rows(torch.tensor([5, 0])).tolist() == [[203, 204, 205], [0, 1, 2]]
    assert store.image(1).shape == (0, 3)
    assert store.image(2).tolist() == [[200, 201, 202], [203, 204, 205]]
    store.append("late", torch.ones(1, 3))
    assert store.rows(torch.tensor([6])).tolist() == [[1, 1, 1]]


def test_bfloat16_halves_the_space_and_keeps_nine_bits(tmp_path):
    store = RowStore(5, dtype="bfloat16", folder=tmp_path)
    rows = torch.rand(50, 5) + 1
    store.append("a", rows)
    assert (tmp_path / "rows.bin").stat().st_size == 50 * 5 * 2
    error = ((store.image(0) - rows) / rows).abs().max()
    assert 0 < error <= 2**-8


def test_reopened_store_has_every_noted_image(tmp_path):
    filled(tmp_path)
    again = RowStore(3, folder=tmp_path)
    assert (again.ids, again.counts, again.notes) == (
        ["image 0", "image 1", "image 2"],
        [4, 0, 2],
        ["n0", "n1", "n2"],
    )
    assert torch.equal(again.all(), filled(None).all())


@pytest.mark.parametrize("cut", [*range(0, 130, 7), 10_000])  # the last: every line is whole
def test_a_kill_at_any_byte_loses_only_the_open_image(tmp_path, cut):
    filled(tmp_path)
    for name, size in (("rows.jsonl", cut), ("rows.bin", 60)):
        raw = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(raw[:size])
    again = RowStore(3, folder=tmp_path)
    whole = filled(None)
    n = len(again.ids)
    assert again.ids == whole.ids[:n]
    assert torch.equal(again.all(), whole.all()[: len(again)])
    assert n <= 2  # the third image's rows were cut off
    for i in range(n, 3):
        again.append(whole.ids[i], whole.image(i), whole.notes[i])
    assert torch.equal(RowStore(3, folder=tmp_path).all(), whole.all())


def test_a_store_over_its_limit_leaves_memory_and_cleans_up():
    store = RowStore(3, limit=5 * 12)
    whole = filled(None)
    for i in range(3):
        store.append(whole.ids[i], whole.image(i), whole.notes[i])
        assert (store.folder is None) == (i < 2)
    folder = store.folder
    assert (folder / "rows.bin").stat().st_size == 6 * 12
    assert torch.equal(store.all(), whole.all())
    store.append("late", torch.ones(1, 3))
    assert store.rows(torch.tensor([6])).tolist() == [[1, 1, 1]]
    del store
    assert not folder.exists()


def test_empty_store():
    assert RowStore(7).all().shape == (0, 7)
    assert np.array_equal(RowStore(7).offsets(), [0])
