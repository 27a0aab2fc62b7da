# SPDX-License-Identifier: Apache-2.0
"""Compile the Triton kernels for GPUs that are not here; a program of its own.

    python tests/triton_ahead.py CAPABILITY [some|all]

Triton must not be in its interpreter's mode. Every launch that the backends make is caught, and its
kernel compiled with the very arguments; printed are, as JSON, its name, its bytes of shared memory,
and those of its stack, where registers that did not fit lie.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from fundad_fast.ops import OPS
from fundad_fast.ops.triton import availability

TYPES = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64",
    torch.int64: "i64",
}  # fmt: skip
DUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


class Compiler:
    """Takes the place of a launch."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.seen: set[str] = set()
        self.found: list[dict[str, Any]] = []

    def launch(self, kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        given = dict(zip(kernel.arg_names, args))
        given |= {name: options.pop(name) for name in list(options) if name in kernel.arg_names}
        constants, signature, attributes = {}, {}, {}
        for i, parameter in enumerate(kernel.params):
            value = given[parameter.name]
            one = type(value) is int and value == 1
            if parameter.is_constexpr or value is None or one:
                constants[parameter.name] = value
                signature[parameter.name] = "constexpr"
                continue
            signature[parameter.name] = kind(value)
            if isinstance(value, Tensor) or (type(value) is int and value % 16 == 0):
                attributes[(i,)] = [["tt.divisibility", 16]]
        key = f"{kernel.__name__} {signature} {constants} {options}"
        if key in self.seen:
            return
        self.seen.add(key)
        source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
        compiled = triton.compile(source, target=self.target, options=options)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            command = [str(DUMP), "-res-usage", file.name]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        stack = max(int(found) for found in re.findall(r"STACK:(\d+)", usage))
        shared = compiled.metadata.shared
        self.found.append({"kernel": kernel.__name__, "shared": shared, "stack": stack})


def calls(everything: bool) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Operators and arguments whose launches are worth compiling."""
    adopted = ("euclidean", "1-d/(r+1)", "sum1")
    planes = torch.zeros(1, 64, 98, 98)
    last = planes.to(memory_format=torch.channels_last)
    f = torch.zeros(1, 300, 1536)
    boxes = ([torch.zeros(1, 28, 29, 29)],) * 2 + ([torch.zeros(28, 29, 29, dtype=torch.bool)],)
    yield "distance_filter", (planes, 12.0, "radius", *adopted, "renormalise", False)
    yield "self_attention", (f, 1.0, "none", "row")
    yield "nearest", (torch.zeros(200, 1536), torch.zeros(500, 1536), 1, [])
    yield "poisson_blend", boxes
    if not everything:
        return
    for border, adjoint in (("renormalise", True), ("reflect", False), ("reflect", True)):
        yield "distance_filter", (last, 12.0, "radius", *adopted, border, adjoint)
    yield "distance_filter", (last.half(), 33.0, "size", *adopted, "zero", False)
    for reading in ("column", "hadamard_sum", "hadamard_diag"):
        yield "self_attention", (f, 1.0, "l2", reading)
    yield "self_attention", (f.half(), 1.0, "none", "row")
    yield "self_attention", (f.bfloat16(), 1.0, "l2", "column")
    yield "nearest", (torch.zeros(200, 384), torch.zeros(500, 384), 3, [])
    yield "nearest", (torch.zeros(2, 70), torch.zeros(1100, 70), 1024, [])
    yield "poisson_blend", tuple([t.half() if t.is_floating_point() else t for t in some]
                                 for some in boxes)  # fmt: skip


def main() -> None:
    compiler = Compiler(int(sys.argv[1]))
    availability.before_hopper = lambda device: int(sys.argv[1]) < 90

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        compiler.launch(self, args, options)

    JITFunction.run = run
    for name, args in calls(sys.argv[2:] == ["all"]):
        OPS[name].backends["triton"].run(*args)
    print(json.dumps(compiler.found))


if __name__ == "__main__":
    main()
