# SPDX-License-Identifier: Apache-2.0
"""
Operators of fundad_fast in C++. Called by fundad_fast.ops only.
"""
from __future__ import annotations
import collections.abc
import enum
import typing
__all__: list[str] = ['Isa', 'KCenter', 'best_isa', 'compiler', 'cuda_architectures', 'has_openmp', 'nearest_cpu', 'nearest_cuda', 'nearest_tiles_cpu', 'short_picture', 'tile_order']
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
def has_openmp() -> bool:
    ...
def nearest_cpu(q: typing.SupportsInt | typing.SupportsIndex, bank: typing.SupportsInt | typing.SupportsIndex, center: typing.SupportsInt | typing.SupportsIndex, m: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex, d: typing.SupportsInt | typing.SupportsIndex, k: typing.SupportsInt | typing.SupportsIndex, scratch: typing.SupportsInt | typing.SupportsIndex, dist2: typing.SupportsInt | typing.SupportsIndex, index: typing.SupportsInt | typing.SupportsIndex, isa: Isa, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
def nearest_cuda(q: typing.SupportsInt | typing.SupportsIndex, bank: typing.SupportsInt | typing.SupportsIndex, center: typing.SupportsInt | typing.SupportsIndex, m: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex, d: typing.SupportsInt | typing.SupportsIndex, k: typing.SupportsInt | typing.SupportsIndex, scratch: typing.SupportsInt | typing.SupportsIndex, dist2: typing.SupportsInt | typing.SupportsIndex, index: typing.SupportsInt | typing.SupportsIndex, stream: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
def nearest_tiles_cpu(q: typing.SupportsInt | typing.SupportsIndex, bank: typing.SupportsInt | typing.SupportsIndex, m: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex, d: typing.SupportsInt | typing.SupportsIndex, k: typing.SupportsInt | typing.SupportsIndex, scratch: typing.SupportsInt | typing.SupportsIndex, dist2: typing.SupportsInt | typing.SupportsIndex, index: typing.SupportsInt | typing.SupportsIndex, tiles: typing.SupportsInt | typing.SupportsIndex, tensors: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(8)"], lengths: typing.Annotated[collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], "FixedSize(8)"], isa: Isa, threads: typing.SupportsInt | typing.SupportsIndex) -> typing.Annotated[list[int], "FixedSize(3)"]:
    ...
def short_picture(x: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex, d: typing.SupportsInt | typing.SupportsIndex, center: typing.SupportsInt | typing.SupportsIndex, axes: typing.SupportsInt | typing.SupportsIndex, p: typing.SupportsInt | typing.SupportsIndex, scale: typing.SupportsFloat | typing.SupportsIndex, z: typing.SupportsInt | typing.SupportsIndex, isa: Isa, threads: typing.SupportsInt | typing.SupportsIndex) -> float:
    ...
def tile_order(z: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex, stride: typing.SupportsInt | typing.SupportsIndex, axes: typing.SupportsInt | typing.SupportsIndex, order: typing.SupportsInt | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
