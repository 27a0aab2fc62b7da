# SPDX-License-Identifier: Apache-2.0
"""
Operators of fundad_fast in C++. Called by fundad_fast.ops only.
"""
from __future__ import annotations
import collections.abc
import enum
import typing
__all__: list[str] = ['Isa', 'KCenter', 'best_isa', 'compiler', 'cuda_architectures', 'distance_filter_cpu', 'fill_sines', 'has_openmp', 'kcenter_cuda', 'nearest_cpu', 'nearest_cuda', 'nearest_tiles_cpu', 'poisson_blend_cpu', 'poisson_blend_cuda', 'poisson_scratch', 'self_attention_cpu', 'short_picture', 'sines_floats', 'tile_order']
class Isa(enum.IntEnum):
    """
    Instruction sets, lowest first.
    """
    avx2: typing.ClassVar[Isa]
    avx512: typing.ClassVar[Isa]
    avx512vnni: typing.ClassVar[Isa]
    base: typing.ClassVar[Isa]
    @classmethod
    def __new__(cls, value):
        ...
    def __format__(self, format_spec):
        ...
class KCenter:
    """
    A greedy k-centre in progress; see fundad/kcenter.h.
    """
    def __init__(self, x: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex, d: typing.SupportsInt | typing.SupportsIndex, z: typing.SupportsInt | typing.SupportsIndex, p: typing.SupportsInt | typing.SupportsIndex, scale: typing.SupportsFloat | typing.SupportsIndex, slack: typing.SupportsFloat | typing.SupportsIndex, picks: typing.SupportsInt | typing.SupportsIndex, count: typing.SupportsInt | typing.SupportsIndex, isa: Isa, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def advance(self, k: typing.SupportsInt | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def picks(self, picks: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def radius2(self, radius2: typing.SupportsInt | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
def best_isa() -> Isa:
    """
    The highest set that this CPU and this build have.
    """
def compiler() -> str:
    ...
def cuda_architectures() -> str:
    """
    What the CUDA kernels were compiled for; empty if there are none.
    """
def distance_filter_cpu(x: typing.SupportsInt | typing.SupportsIndex, out: typing.SupportsInt | typing.SupportsIndex, b: typing.SupportsInt | typing.SupportsIndex, c: typing.SupportsInt | typing.SupportsIndex, h: typing.SupportsInt | typing.SupportsIndex, w: typing.SupportsInt | typing.SupportsIndex, channels_last: bool, taps: typing.SupportsInt | typing.SupportsIndex, half: typing.SupportsInt | typing.SupportsIndex, reach: typing.SupportsInt | typing.SupportsIndex, row: typing.SupportsInt | typing.SupportsIndex, column: typing.SupportsInt | typing.SupportsIndex, before: typing.SupportsInt | typing.SupportsIndex, after: typing.SupportsInt | typing.SupportsIndex, isa: Isa, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
def fill_sines(n: typing.SupportsInt | typing.SupportsIndex, table: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
def has_openmp() -> bool:
    ...
def kcenter_cuda(x: typing.SupportsInt | typing.SupportsIndex, z: typing.SupportsInt | typing.SupportsIndex, center: typing.SupportsInt | typing.SupportsIndex, ball: typing.SupportsInt | typing.SupportsIndex, row: typing.SupportsInt | typing.SupportsIndex, reach2: typing.SupportsInt | typing.SupportsIndex, limit2: typing.SupportsInt | typing.SupportsIndex, top2: typing.SupportsInt | typing.SupportsIndex, top_slot: typing.SupportsInt | typing.SupportsIndex, tops: typing.SupportsInt | typing.SupportsIndex, picks: typing.SupportsInt | typing.SupportsIndex, d: typing.SupportsInt | typing.SupportsIndex, p: typing.SupportsInt | typing.SupportsIndex, leaves: typing.SupportsInt | typing.SupportsIndex, unit: typing.SupportsFloat | typing.SupportsIndex, slack: typing.SupportsFloat | typing.SupportsIndex, first: typing.SupportsInt | typing.SupportsIndex, last: typing.SupportsInt | typing.SupportsIndex, given: bool, stream: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
def nearest_cpu(q: typing.SupportsInt | typing.SupportsIndex, bank: typing.SupportsInt | typing.SupportsIndex, center: typing.SupportsInt | typing.SupportsIndex, m: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex, d: typing.SupportsInt | typing.SupportsIndex, k: typing.SupportsInt | typing.SupportsIndex, scratch: typing.SupportsInt | typing.SupportsIndex, dist2: typing.SupportsInt | typing.SupportsIndex, index: typing.SupportsInt | typing.SupportsIndex, isa: Isa, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
def nearest_cuda(q: typing.SupportsInt | typing.SupportsIndex, bank: typing.SupportsInt | typing.SupportsIndex, q_z: typing.SupportsInt | typing.SupportsIndex, bank_z: typing.SupportsInt | typing.SupportsIndex, half2: typing.SupportsInt | typing.SupportsIndex, q_norm2: typing.SupportsInt | typing.SupportsIndex, reach: typing.SupportsInt | typing.SupportsIndex, loss: typing.SupportsInt | typing.SupportsIndex, unit: typing.SupportsFloat | typing.SupportsIndex, m: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex, d: typing.SupportsInt | typing.SupportsIndex, k: typing.SupportsInt | typing.SupportsIndex, p: typing.SupportsInt | typing.SupportsIndex, splits: typing.SupportsInt | typing.SupportsIndex, seed_value: typing.SupportsInt | typing.SupportsIndex, seed_row: typing.SupportsInt | typing.SupportsIndex, worst: typing.SupportsInt | typing.SupportsIndex, found_dist2: typing.SupportsInt | typing.SupportsIndex, found_row: typing.SupportsInt | typing.SupportsIndex, head: typing.SupportsInt | typing.SupportsIndex, dist2: typing.SupportsInt | typing.SupportsIndex, index: typing.SupportsInt | typing.SupportsIndex, stream: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
def nearest_tiles_cpu(q: typing.SupportsInt | typing.SupportsIndex, bank: typing.SupportsInt | typing.SupportsIndex, m: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex, d: typing.SupportsInt | typing.SupportsIndex, k: typing.SupportsInt | typing.SupportsIndex, scratch: typing.SupportsInt | typing.SupportsIndex, dist2: typing.SupportsInt | typing.SupportsIndex, index: typing.SupportsInt | typing.SupportsIndex, tiles: typing.SupportsInt | typing.SupportsIndex, tensors: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(8)"], lengths: typing.Annotated[collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], "FixedSize(8)"], isa: Isa, threads: typing.SupportsInt | typing.SupportsIndex) -> typing.Annotated[list[int], "FixedSize(3)"]:
    ...
def poisson_blend_cpu(boxes: typing.SupportsInt | typing.SupportsIndex, count: typing.SupportsInt | typing.SupportsIndex, scratch: typing.SupportsInt | typing.SupportsIndex, isa: Isa, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
def poisson_blend_cuda(boxes: typing.SupportsInt | typing.SupportsIndex, count: typing.SupportsInt | typing.SupportsIndex, cells_inside: typing.SupportsInt | typing.SupportsIndex, cells: typing.SupportsInt | typing.SupportsIndex, tiles0: typing.SupportsInt | typing.SupportsIndex, tiles1: typing.SupportsInt | typing.SupportsIndex, tiles2: typing.SupportsInt | typing.SupportsIndex, blocks_inside: typing.SupportsInt | typing.SupportsIndex, blocks: typing.SupportsInt | typing.SupportsIndex, blocks0: typing.SupportsInt | typing.SupportsIndex, blocks1: typing.SupportsInt | typing.SupportsIndex, blocks2: typing.SupportsInt | typing.SupportsIndex, lengths: typing.SupportsInt | typing.SupportsIndex, offsets: typing.SupportsInt | typing.SupportsIndex, tables: typing.SupportsInt | typing.SupportsIndex, table: typing.SupportsInt | typing.SupportsIndex, work0: typing.SupportsInt | typing.SupportsIndex, work1: typing.SupportsInt | typing.SupportsIndex, wide: bool, stream: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
def poisson_scratch(boxes: typing.SupportsInt | typing.SupportsIndex, count: typing.SupportsInt | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex) -> int:
    ...
def self_attention_cpu(query: typing.SupportsInt | typing.SupportsIndex, key: typing.SupportsInt | typing.SupportsIndex, value: typing.SupportsInt | typing.SupportsIndex, out: typing.SupportsInt | typing.SupportsIndex, b: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex, d: typing.SupportsInt | typing.SupportsIndex, isa: Isa, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
def short_picture(x: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex, d: typing.SupportsInt | typing.SupportsIndex, center: typing.SupportsInt | typing.SupportsIndex, axes: typing.SupportsInt | typing.SupportsIndex, p: typing.SupportsInt | typing.SupportsIndex, scale: typing.SupportsFloat | typing.SupportsIndex, z: typing.SupportsInt | typing.SupportsIndex, isa: Isa, threads: typing.SupportsInt | typing.SupportsIndex) -> float:
    ...
def sines_floats(n: typing.SupportsInt | typing.SupportsIndex) -> int:
    ...
def tile_order(z: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex, stride: typing.SupportsInt | typing.SupportsIndex, axes: typing.SupportsInt | typing.SupportsIndex, order: typing.SupportsInt | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
