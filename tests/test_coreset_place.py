# SPDX-License-Identifier: Apache-2.0
"""Where the coreset is chosen: on the model's device, or on the CPU, and what is said of it.

The meta device stands for a GPU: it has no values, so whatever runs there by mistake fails.
"""

from __future__ import annotations

import importlib
import types

import pytest
import torch

from fundad_fast import ops
from fundad_fast.methods import ReSAD, coreset, make_config
from fundad_fast.ops import _adapt
from fundad_fast.progress import Progress
from fundad_fast.spill import RowStore

kcenter_file = importlib.import_module("fundad_fast.ops.kcenter")
META, CPU = torch.device("meta"), torch.device("cpu")
NATIVE = _adapt.no_cpu() is None


class Lazy(kcenter_file._TorchEngine):
    """Stands for a device's own search."""

    lazy = True

    @staticmethod
    def memory(n: int, d: int) -> int:
        return n * d * 10


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A device with a search of its own and with ``gpu.free`` bytes."""
    gpu = types.SimpleNamespace(free=1000)
    form = types.SimpleNamespace(name="own", why_not=lambda x, *_: _adapt.elsewhere("meta", [x]))
    backends = {"own": form, **ops.OPS["kcenter"].backends}
    monkeypatch.setattr(ops.OPS["kcenter"], "backends", backends)
    monkeypatch.setitem(kcenter_file._ENGINES, "own", Lazy)
    monkeypatch.setattr(_adapt, "free_memory", lambda device: gpu.free)
    return gpu


def test_a_device_with_a_search_of_its_own_and_room_is_taken(gpu):
    assert ops.kcenter_place(10, 10, META) == ops.KCenterPlace(META)
    place = ops.kcenter_place(10, 11, "meta")
    assert place.device == CPU
    assert "0.0 GiB are needed on meta" in place.reason
    gpu.free = 2**31 * 10 - 1
    assert "20.0 GiB are needed on meta, 20.0 GiB are free" in (
        ops.kcenter_place(2**21, 2**10, META).reason or ""
    )


def test_the_cpu_is_the_cpu(monkeypatch):
    monkeypatch.delattr(_adapt, "free_memory")  # it is a question to CUDA
    assert ops.kcenter_place(10**9, 10, "cpu") == ops.KCenterPlace(CPU)


@pytest.mark.skipif(not NATIVE, reason="the native module is not built")
def test_a_device_that_would_compare_everything_is_left_out():
    place = ops.kcenter_place(10, 10, META)
    assert place.device == CPU
    assert "every row would be compared with every pick" in place.reason


def test_where_both_would_compare_everything_the_device_is_taken(monkeypatch):
    monkeypatch.setattr(_adapt, "_native", None)
    monkeypatch.setattr(_adapt, "free_memory", lambda device: 2**40)
    assert ops.kcenter_place(10, 10, META) == ops.KCenterPlace(META)


@pytest.mark.parametrize("engine", list(kcenter_file._ENGINES))
def test_memory_counts_the_rows(engine):
    memory = kcenter_file._ENGINES[engine].memory
    assert memory(2000, 700) - memory(1000, 700) >= 1000 * 4 * 700
    assert memory(1000, 700) - memory(1000, 600) == 1000 * 4 * 100


def store() -> RowStore:
    rows = RowStore(6)
    for i in range(3):
        rows.append(f"im{i}", torch.randn(400, 6, generator=torch.Generator().manual_seed(i)))
    return rows


def choose(**settings) -> coreset.Chosen:
    base = {"coreset_size": 50, "projection_eps": None}
    config = make_config(ReSAD, "paper", base)
    config = config.model_copy(update=settings)
    return coreset.choose(
        store(), range(3), config, name="x", progress=Progress(), device=torch.device("meta")
    )


class OnTheDevice:
    """Searches on the CPU what must have been handed over on the device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, full_at: int = 10**9) -> None:
        self.begin, self.finish, self.full_at = ops.kcenter_state, ops.kcenter, full_at
        self.shapes: list[list[int]] = []
        self.rows: dict[int, torch.Tensor] = {}
        monkeypatch.setattr(ops, "kcenter_state", self.state)
        monkeypatch.setattr(ops, "kcenter", self.kcenter)
        monkeypatch.setattr(torch.Tensor, "to", self.moved(torch.Tensor.to))
        self.before: torch.Tensor | None = None

    def moved(self, to):
        def move(tensor, *args, **more):
            got = to(tensor, *args, **more)
            if args and args[0] == META:
                self.before = tensor
            return got

        return move

    def state(self, x, start=0, picks=None):
        if x.device.type == "cpu":
            return self.begin(x, start, picks)
        self.shapes.append(list(x.shape))
        if len(x) > self.full_at:
            raise torch.OutOfMemoryError("full")
        assert self.before is not None
        self.rows[id(x)] = self.before
        return self.begin(self.before, start, picks)

    def kcenter(self, x, k, start=0, state=None):
        return self.finish(self.rows.get(id(x), x), k, start, state)


def test_rows_are_handed_over_and_picks_come_back(gpu, monkeypatch):
    want = choose()
    assert want.ran[0].startswith("cpu: ")
    gpu.free = 2**30
    device = OnTheDevice(monkeypatch)
    got = choose()
    assert device.shapes == [[1200, 6]]
    assert got.ran == ("meta",)
    assert torch.equal(got.index, want.index)
    assert got.index.device == CPU
    assert got.radius == want.radius


def test_shards_are_handed_over_too(gpu, monkeypatch):
    want = choose(memory_budget=2 * coreset.selection_bytes(500, 6))
    gpu.free = 2**30
    device = OnTheDevice(monkeypatch)
    got = choose(memory_budget=2 * coreset.selection_bytes(500, 6))
    assert device.shapes == [[500, 6], [500, 6], [200, 6], [100, 6]]  # and those they gave
    assert (got.ran, got.radius) == (("meta",), want.radius)
    assert torch.equal(got.index, want.index)


def test_a_device_that_runs_out_of_memory_leaves_it_to_the_cpu(gpu, monkeypatch):
    want = choose()
    gpu.free = 2**30
    device = OnTheDevice(monkeypatch, full_at=1000)
    got = choose()
    assert device.shapes == [[1200, 6]]
    assert got.ran == ("cpu: the memory of meta ran out",)
    assert torch.equal(got.index, want.index)
