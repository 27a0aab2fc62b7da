# SPDX-License-Identifier: Apache-2.0
"""What a machine can do at most, measured: the roof that times are compared with.

    python benchmarks/roofline.py [--threads N]

On a CPU: float32 multiply-adds from registers, and reading an array that no cache holds. On a GPU:
products of 8192² in float32 and bfloat16, and a copy, counting what is read and what is written.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from compiled import compiled


@dataclass(frozen=True)
class Work:
    """What a computation needs at least, in its plain form.

    Attributes:
        operations: floating-point operations; a multiply-add is two.
        traffic: bytes that must be read and written.
        kind: the arithmetic, a name of ``Roof.operations``.
    """

    operations: float
    traffic: float
    kind: str = "float32"


@dataclass(frozen=True)
class Roof:
    """Operations and bytes per second at most."""

    device: str
    threads: int
    operations: dict[str, float]
    traffic: float

    def share(self, work: Work, seconds: float) -> float:
        """The least time the work can take by this roof, over the time it took.

        More than 1 says that the algorithm does less than the plain form of the work.
        """
        least = max(work.operations / self.operations[work.kind], work.traffic / self.traffic)
        return least / seconds


def _best(run: Callable[[], float], rounds: int = 5) -> float:
    """The highest rate: amount of work over seconds."""
    run()
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        amount = run()
        rates.append(amount / (time.perf_counter() - began))
    return max(rates)


@functools.cache
def of_cpu(threads: int) -> Roof:
    """Measured in about half a second."""
    library = compiled("roofline.cpp")
    library.multiply_add.restype = ctypes.c_double
    out = torch.zeros(1)
    address = ctypes.c_void_p(out.data_ptr())
    x = torch.ones(64 << 20)

    def multiply_add() -> float:
        return library.multiply_add(ctypes.c_int64(4_000_000), ctypes.c_int(threads), address)

    def read() -> float:
        sizes = ctypes.c_int64(x.numel()), ctypes.c_int(threads)
        library.read_once(ctypes.c_void_p(x.data_ptr()), *sizes, address)
        return float(x.numel() * x.element_size())

    return Roof("cpu", threads, {"float32": _best(multiply_add)}, _best(read))


@functools.cache
def of_gpu(size: int = 8192) -> Roof:
    """Of the current CUDA device."""

    def product(dtype: torch.dtype) -> float:
        a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))

        def run() -> float:
            for _ in range(3):
                a @ b
            torch.cuda.synchronize()
            return 3 * 2.0 * size**3

        return _best(run)

    x = torch.randn(256 << 20, device="cuda")
    y = torch.empty_like(x)

    def copy() -> float:
        for _ in range(5):
            y.copy_(x)
        torch.cuda.synchronize()
        return 5 * 2.0 * x.numel() * x.element_size()

    kinds = {"float32": product(torch.float32), "bfloat16": product(torch.bfloat16)}
    return Roof("cuda", 0, kinds, _best(copy))


def of(device: str) -> Roof:
    return of_gpu() if device == "cuda" else of_cpu(torch.get_num_threads())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    roofs = [of_cpu(args.threads)]
    if torch.cuda.is_available():
        roofs.append(of_gpu())
    print(json.dumps([asdict(roof) for roof in roofs], indent=1))


if __name__ == "__main__":
    main()
