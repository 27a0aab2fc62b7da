# SPDX-License-Identifier: Apache-2.0
"""Greedy k-centre: rows that leave no row far away.

What decides a pick is a squared distance between the given rows, in float64. Backends differ in
what they can prove to be needless, not in what they compare, so they pick the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from . import _adapt
from ._registry import Op
from .short_picture import short_picture

BLOCK = {"cpu": 2**22, "cuda": 2**26}  # numbers that torch's form takes at a time


def kcenter(
    x: Tensor, k: int, start: int = 0, state: KCenterState | None = None
) -> tuple[Tensor, Tensor]:
    """Pick ``k`` rows, each the farthest from all picks before it.

    The lowest index wins ties, and a picked row is never picked again, also among duplicates. The
    result is not differentiable.

    Args:
        x: ``[n, d]`` finite rows of a floating type; compared as float32 values.
        k: number of picks, ``1 <= k <= n``; with ``state`` the total, those it has included.
        start: the first pick; without meaning when there is a ``state``.
        state: from :func:`kcenter_state` of the same ``x``; is moved on to ``k`` picks.

    Returns:
        ``[k]`` int64 picks, and ``[n]`` float32: each row's squared distance to its nearest pick.

    Raises:
        ValueError: the arguments do not fit, or ``x`` is not finite.

    The greedy algorithm of Gonzalez 1985, as used by Sener and Savarese 2018 (algorithm 1) and by
    PatchCore (Roth et al. 2022, algorithm 1).
    """
    if state is None:
        return torch.ops.fundad.kcenter(x.detach(), k, start)
    state.check_rows(x)
    return state.advance(k), state.radius2()


def kcenter_state(
    x: Tensor, start: int = 0, picks: Tensor | Sequence[int] | None = None
) -> KCenterState:
    """Begin a greedy k-centre that can be moved on in steps, or take one up again.

    Args:
        x: as for :func:`kcenter`; must not be modified while the state is in use.
        start: the first pick.
        picks: the picks made earlier, instead of ``start``. The state goes on as if it had made
            them itself, whichever machine or backend did.

    Raises:
        ValueError: the arguments do not fit, or ``x`` is not finite.
    """
    first = torch.tensor([start]) if picks is None else torch.as_tensor(picks, dtype=torch.int64)
    first = first.detach().cpu().reshape(-1)
    if len(first) == 0 or len(first.unique()) < len(first):
        raise ValueError("kcenter: want one or more picks, all different")
    for pick in (int(first.min()), int(first.max())):
        fake(x, len(first), pick)
    values(x, len(first), int(first[0]))
    engine = _ENGINES[op.choose(x, len(first), int(first[0])).name]
    return KCenterState(x, engine(_adapt.dense(x), first))


@dataclass(frozen=True)
class KCenterPlace:
    """Where a greedy k-centre should run.

    Attributes:
        device: where its rows should lie.
        reason: in words, why not on the device that was asked for; ``None`` if it is that.
    """

    device: torch.device
    reason: str | None = None


def kcenter_place(n: int, d: int, device: torch.device | str) -> KCenterPlace:
    """Whether rows had better be searched on a device or on the CPU.

    On the device, if that has room and its backend leaves out what cannot matter. On the CPU, if
    only the device's form that compares every row with every pick could run, while the CPU's does
    not have to.

    Args:
        n: number of rows.
        d: features of a row; rows are float32.
        device: the one that is wanted. No tensor is made there but one row.
    """
    wanted, cpu = torch.device(device), torch.device("cpu")
    if wanted.type == "cpu":
        return KCenterPlace(wanted)
    there = _ENGINES[op.choose(torch.empty(1, d, device=wanted), 1, 0).name]
    here = _ENGINES[op.choose(torch.empty(1, d), 1, 0).name]
    if here.lazy and not there.lazy:
        return KCenterPlace(
            cpu, f"on {wanted} every row would be compared with every pick, on the CPU few are"
        )
    need, free = there.memory(n, d), _adapt.free_memory(wanted)
    if need > free:
        gib = 2.0**-30
        return KCenterPlace(
            cpu, f"{need * gib:.1f} GiB are needed on {wanted}, {free * gib:.1f} GiB are free"
        )
    return KCenterPlace(wanted)


class Engine(Protocol):
    """A backend's greedy search under way; made of rows and the picks that come first.

    Attributes:
        lazy: it leaves out what cannot matter, so that a pick costs less than a look at all rows.
    """

    lazy: bool

    def __init__(self, x: Tensor, picks: Tensor) -> None: ...

    @staticmethod
    def memory(n: int, d: int) -> int:
        """Bytes on the device for ``n`` rows of ``d`` float32 features, the rows included."""
        ...

    def advance(self, k: int) -> None: ...
    def picks(self) -> Tensor: ...
    def radius2(self) -> Tensor: ...


class KCenterState:
    """A greedy k-centre under way; made by :func:`kcenter_state`.

    Only the picks need to be kept to take it up again in another process.
    """

    def __init__(self, x: Tensor, engine: Engine) -> None:
        self._x, self._version, self._engine = x, _adapt.version(x), engine

    @property
    def picks(self) -> Tensor:
        """``[k]`` int64 picks so far."""
        return self._engine.picks()

    def advance(self, k: int) -> Tensor:
        """Move on to ``k`` picks in total, and return them; cheaper than asking for the radius."""
        done = len(self.picks)
        if not done <= k <= len(self._x):
            raise ValueError(f"kcenter: k={k}, want {done} (made already) to {len(self._x)} (rows)")
        self.check_rows(self._x)
        self._engine.advance(k)
        return self.picks

    def radius2(self) -> Tensor:
        """``[n]`` float32: each row's squared distance to the nearest of the picks so far."""
        return self._engine.radius2()

    def check_rows(self, x: Tensor) -> None:
        """Raise ``ValueError`` unless these are the rows that the state was made of."""
        same = x.data_ptr() == self._x.data_ptr() and x.shape == self._x.shape
        if not same or x.stride() != self._x.stride() or x.dtype != self._x.dtype:
            raise ValueError("kcenter: the state was made of another x")
        if _adapt.version(x) != self._version:
            raise ValueError("kcenter: x was modified after the state was made")


def reference(x: Tensor, k: int, start: int) -> tuple[Tensor, Tensor]:
    rows = x.float().double()
    reach2 = rows.new_full((len(rows),), math.inf)
    free = torch.ones_like(reach2, dtype=torch.bool)
    picks = []
    pick = start
    for _ in range(k):
        picks.append(pick)
        free[pick] = False
        reach2 = torch.minimum(reach2, (rows - rows[pick]).square().sum(1))
        pick = int(torch.where(free, reach2, -1).argmax())  # the first of equals
    return torch.tensor(picks, device=x.device), reach2


def fake(x: Tensor, k: int, start: int) -> tuple[Tensor, Tensor]:
    torch._check_value(
        x.dim() == 2 and x.is_floating_point(),
        lambda: f"kcenter: want x [n,d] of a floating type, got {list(x.shape)} {x.dtype}",
    )
    n, d = x.shape
    torch._check_value(d >= 1, lambda: "kcenter: want d >= 1, got rows without features")
    torch._check_value(k >= 1, lambda: f"kcenter: want k >= 1, got k={k}")
    torch._check_value(k <= n, lambda: f"kcenter: want k <= n, got k={k} of {n} rows")
    torch._check_value(start >= 0, lambda: f"kcenter: want a row to start at, got {start}")
    torch._check_value(start < n, lambda: f"kcenter: want a row to start at, got {start} of {n}")
    return x.new_empty(k, dtype=torch.int64), x.new_empty(n, dtype=torch.float32)


def values(x: Tensor, k: int, start: int) -> None:
    low, high = x.float().aminmax()  # NaN shows in both
    if not (torch.isfinite(low) & torch.isfinite(high)):
        raise ValueError("kcenter: x has values that are not finite as float32; remove those rows")


def samples() -> dict[str, tuple[Any, ...]]:
    g = torch.Generator().manual_seed(0)

    def cloud(n: int, d: int) -> Tensor:
        return torch.randn(n, d, generator=g)

    flat = cloud(700, 12) @ cloud(12, 150) + 0.05 * cloud(700, 150)  # near a plane, as features are
    tie = torch.zeros(300, 3)
    tie[40:240, 1] = 5  # 200 equal rows: more than any block of work
    specks = torch.cat([torch.full((120, 66), side) for side in (-1e4, 1e4)]) + cloud(240, 66) / 256
    middle, sphere = cloud(1, 37), cloud(200, 37)
    sphere = middle + sphere / sphere.norm(dim=1, keepdim=True)  # equally far but for rounding
    # Equally far but for the order of summation: every instruction set must round alike.
    turns = torch.stack([sphere[0, torch.randperm(37, generator=g)] for _ in range(100)])
    grid = torch.cartesian_prod(*[torch.arange(5.0)] * 4)
    return {
        "cloud": (cloud(1500, 17), 40, 7),
        "flat": (flat, 120, 0),
        "wide": (cloud(130, 401), 60, 129),
        "all": (cloud(150, 5), 150, 11),
        "one_pick": (cloud(50, 17), 1, 3),
        "one_row": (cloud(1, 17), 1, 0),
        "one_column": (cloud(333, 1), 50, 0),
        "copies": (cloud(5, 17).repeat(30, 1), 150, 2),
        "all_equal": (torch.full((200, 70), 0.3), 100, 190),
        "wide_tie": (tie, 100, 0),
        "grid": (grid, 150, 312),
        "far_from_origin": (cloud(400, 20) + 3000, 60, 0),
        "one_far_away": (torch.cat([cloud(300, 80) * 1e-3, torch.full((1, 80), 1e4)]), 60, 0),
        "two_specks": (specks, 40, 0),  # no wider than float32 rounding of the space between
        "sphere": (torch.cat([middle, sphere]), 40, 0),
        "permuted": (torch.cat([torch.full((1, 37), 0.1), turns]), 20, 0),
        "huge": (cloud(100, 66) * 3e19, 30, 0),
        "tiny": (cloud(100, 66) * 1e-22, 30, 0),
        "transposed": (cloud(90, 200).T, 30, 0),
        "every_other": (cloud(300, 68)[::2, ::2], 30, 0),
        "float16": (cloud(200, 40).half(), 30, 0),
        "bfloat16": (cloud(200, 40).bfloat16(), 30, 0),
        "float64": (cloud(200, 40).double(), 30, 0),
    }


def bad() -> dict[str, tuple[tuple[Any, ...], str]]:
    x = torch.ones(4, 3)
    return {
        "nan": ((torch.tensor([[0.0], [math.nan]]), 1, 0), "not finite"),
        "inf": ((torch.tensor([[0.0], [-math.inf]]), 1, 0), "not finite"),
        "beyond_float32": ((torch.tensor([[0.0], [1e300]], dtype=torch.float64), 1, 0), "float32"),
        "no_picks": ((x, 0, 0), "want k >= 1"),
        "more_picks_than_rows": ((x, 5, 0), "k=5 of 4 rows"),
        "no_rows": ((x[:0], 1, 0), "k=1 of 0 rows"),
        "no_columns": ((x[:, :0], 1, 0), "without features"),
        "start_outside": ((x, 1, 4), "got 4 of 4"),
        "start_negative": ((x, 1, -1), "got -1"),
        "vector": ((x[0], 1, 0), r"got \[3\]"),
        "integers": ((x.int(), 1, 0), "int32"),
    }


def check(args: tuple[Any, ...], got: Any, want: Any) -> None:
    """Replay the picks: at each step none may be farther by more than rounding in float64."""
    (x, k, start), (picks, radius2) = args, got
    rows = x.float().double()
    assert picks.tolist()[0] == start
    assert len(set(picks.tolist())) == len(picks) == k
    assert picks.dtype == torch.int64
    assert radius2.dtype == torch.float32
    exact = bool((rows == rows.round()).all() and rows.abs().max() < 1000)  # then sums are exact
    reach2 = (rows - rows[start]).square().sum(1)
    reach2[start] = -1
    for pick in picks[1:].tolist():
        farthest = reach2.max()
        assert reach2[pick] >= farthest * (1 - 1e-13), f"{pick} is nearer than another row"
        rivals = torch.nonzero(reach2 == reach2[pick])[:, 0]
        equals = rivals[(rows[rivals] == rows[pick]).all(1)]
        assert pick == int((rivals if exact else equals).min()), "the lowest index wins ties"
        reach2 = torch.minimum(reach2, (rows - rows[pick]).square().sum(1))
        reach2[pick] = -1
    torch.testing.assert_close(radius2, reach2.clamp_min(0).float(), rtol=3e-7, atol=1e-44)
    torch.testing.assert_close(radius2.max(), want[1].max().float(), rtol=1e-6, atol=1e-44)


op = Op(
    "kcenter",
    "(Tensor x, int k, int start) -> (Tensor, Tensor)",
    reference=reference,
    fake=fake,
    samples=samples,
    check=check,
    bad=bad,
    values=values,
)


class _NativeEngine:
    """The lazy search in C++; see csrc/include/fundad/kcenter.h."""

    lazy = True

    @staticmethod
    def memory(n: int, d: int) -> int:
        return n * (4 * d + 1200)  # measured peaks: 1,170 beside the row

    def __init__(self, x: Tensor, picks: Tensor) -> None:
        self._x = x  # the native object points into it
        (n, d), z, scale, slack = x.shape, *short_picture(x)
        self._work = 8 * n * d
        self._search = _adapt.native().KCenter(
            *(x.data_ptr(), n, d, z.data_ptr(), z.shape[1] - 1, scale, slack),
            *(picks.data_ptr(), len(picks), _adapt.isa(), _adapt.threads(self._work)),
        )
        self._count = len(picks)

    def advance(self, k: int) -> None:
        step = 512  # so that Ctrl-C is heard
        for count in [*range(self._count + step, k, step), k]:
            self._search.advance(count, _adapt.threads(self._work))
            self._count = count

    def picks(self) -> Tensor:
        picks = torch.empty(self._count, dtype=torch.int64)
        self._search.picks(picks.data_ptr())
        return picks

    def radius2(self) -> Tensor:
        radius2 = torch.empty(len(self._x), dtype=torch.float32)
        self._search.radius2(radius2.data_ptr(), _adapt.threads(self._work))
        return radius2


class _TorchEngine:
    """Every row against every pick, in float64 on the rows' device."""

    lazy = False

    @staticmethod
    def memory(n: int, d: int) -> int:
        return n * (4 * d + 8) + 4 * 8 * BLOCK["cuda"]

    def __init__(self, x: Tensor, picks: Tensor) -> None:
        self._x = x
        self._picks = [pick.reshape(1) for pick in picks.to(x.device)]
        self._reach2 = x.new_full((len(x),), math.inf, dtype=torch.float64)
        elements = BLOCK["cpu" if x.device.type == "cpu" else "cuda"]
        self._block = max(1, elements // x.shape[1])
        for pick in self._picks:
            self._meet(pick)

    def _meet(self, pick: Tensor) -> None:
        row = self._x[pick].double()
        for first in range(0, len(self._x), self._block):
            part = slice(first, first + self._block)
            dist2 = (self._x[part].double() - row).square_().sum(1)
            torch.minimum(self._reach2[part], dist2, out=self._reach2[part])
        self._reach2.index_fill_(0, pick, -1)  # below every distance: never picked again

    def advance(self, k: int) -> None:
        while len(self._picks) < k:
            pick = self._reach2.argmax().reshape(1)  # the first of equals; stays on the device
            self._picks.append(pick)
            self._meet(pick)

    def picks(self) -> Tensor:
        return torch.cat(self._picks)

    def radius2(self) -> Tensor:
        return self._reach2.clamp_min(0).float()


_ENGINES: dict[str, type[Engine]] = {
    "cpu": _NativeEngine,
    "torch": _TorchEngine,
}


def _run(engine: type[Engine], x: Tensor, k: int, start: int) -> Any:
    search = engine(_adapt.dense(x), torch.tensor([start]))
    search.advance(k)
    return search.picks(), search.radius2()


@op.backend("cpu", lambda x, k, start: _adapt.no_cpu(x))
def _cpu(x: Tensor, k: int, start: int) -> tuple[Tensor, Tensor]:
    return _run(_NativeEngine, x, k, start)


@op.backend("torch")
def _torch(x: Tensor, k: int, start: int) -> tuple[Tensor, Tensor]:
    return _run(_TorchEngine, x, k, start)
