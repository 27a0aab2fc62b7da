# SPDX-License-Identifier: Apache-2.0
"""Batches for a GPU lie in page-locked memory; without one it is asked for by a stand-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cohorts import photograph
from null_method import make_images, null_bundle

from fundad_fast import ReSAD
from fundad_fast.archive.run import ScoreOptions, score_run
from fundad_fast.data import ArraySource, InputSpec, Loader, discover, prepare
from fundad_fast.run_folder import read_rows, read_run

MASKED = InputSpec(image_size=24)
PLAIN = InputSpec(image_size=24, fov="none")
CUDA = torch.cuda.is_available()


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What was asked for in page-locked memory; it is plain memory where there is no GPU."""
    found: list[torch.Tensor] = []
    empty = torch.empty

    def instead(*args: Any, pin_memory: bool = False, **more: Any) -> torch.Tensor:
        made = empty(*args, pin_memory=pin_memory and CUDA, **more)
        if pin_memory:
            found.append(made)
        return made

    monkeypatch.setattr(torch, "empty", instead)
    return found


def photographs(n: int) -> np.ndarray:
    return np.stack([photograph(seed) for seed in range(n)])


def test_images_and_masks_lie_in_it(locked: list[torch.Tensor]) -> None:
    plain = list(Loader(ArraySource(photographs(5)), MASKED, batch_size=2))
    assert locked == []
    pinned = list(Loader(ArraySource(photographs(5)), MASKED, batch_size=2, pinned=True))
    assert len(locked) == 6
    homes = {one.data_ptr() for one in locked}
    for a, b in zip(plain, pinned, strict=True):
        assert a.items
        torch.testing.assert_close(a.batch.image, b.batch.image, rtol=0, atol=0)
        torch.testing.assert_close(a.batch.mask, b.batch.mask, rtol=0, atol=0)
        # The last batch has one image: a part of its memory, not a copy out of it.
        assert {b.batch.image.data_ptr(), b.batch.mask.data_ptr()} <= homes  # type: ignore[union-attr]


def test_gaps_in_the_middle_are_closed_all_the_same(locked: list[torch.Tensor]) -> None:
    pictures = [*photographs(4)]
    pictures[1] = pictures[1][:8, :8]
    spec = PLAIN
    (chunk,) = Loader(ArraySource(pictures), spec, batch_size=4, pinned=True)
    assert chunk.batch.id == ("0", "2", "3")
    assert len(chunk.batch.image) == 3
    torch.testing.assert_close(chunk.batch.image[2], prepare(pictures[3], spec).image)
    pictures[3] = pictures[3][:8, :8]
    pictures[1] = pictures[0]
    (chunk,) = Loader(ArraySource(pictures), spec, batch_size=4, pinned=True)
    assert chunk.batch.id == ("0", "1", "2")
    assert chunk.batch.image.data_ptr() == locked[-1].data_ptr()


@pytest.mark.parametrize("device, said", [("cpu", "pageable"), ("cuda", "page-locked")])
def test_a_run_uses_it_for_models_on_a_gpu(
    device: str, said: str, locked: list[torch.Tensor], tmp_path: Path
) -> None:
    bundle = null_bundle()
    bundle.method.device = torch.device(device)  # it scores where the batch lies
    dataset = discover(make_images(tmp_path / "in", 6))
    run = tmp_path / "run"
    score_run(bundle, dataset, dataset.items, run, options=ScoreOptions(batch_size=4, threads=1))
    assert read_run(run)["profile"]["memory"] == said
    assert bool(locked) == (device == "cuda")
    assert sum(row["status"] == "ok" for row in read_rows(run)) == 6


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_so_does_a_detector(device: str) -> None:
    detector = ReSAD("quick", weights="untrained", device="cpu")
    detector.device_ = torch.device(device)
    assert detector._loader((), PLAIN).pinned == (device == "cuda")


@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_it_is_page_locked() -> None:
    for chunk in Loader(ArraySource(photographs(5)), MASKED, batch_size=2, pinned=True):
        assert chunk.batch.image.is_pinned()
        assert chunk.batch.mask is not None
        assert chunk.batch.mask.is_pinned()
