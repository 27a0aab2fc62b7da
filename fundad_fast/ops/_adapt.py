# SPDX-License-Identifier: Apache-2.0
"""From tensors to what the native code takes: addresses, a thread count, a stream.

The only file that imports the native module.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch  # before the native module: torch's libgomp must be the one in the process
from torch import Tensor

_NAME = "fundad_fast._native"
_native: ModuleType | None
try:
    import fundad_fast._native as _native
except ModuleNotFoundError as error:
    if error.name != _NAME:
        raise
    _native = None
except ImportError as error:  # there, but unusable: to go on without it would hide a broken build
    raise ImportError(
        f"{_NAME} is installed but cannot be loaded ({error}); "
        "build it again on this machine: pip install --force-reinstall --no-deps ."
    ) from error

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)


def native() -> Any:
    """The native module; ask ``no_cpu`` or ``no_cuda`` first."""
    if _native is None:
        raise ImportError(f"{_NAME} is not built")
    return _native


def no_cpu(*args: Any) -> str | None:
    """Why the native CPU code cannot take these arguments, or ``None``."""
    if _native is None:
        return "the native module is not built"
    return elsewhere("cpu", args)


def no_cuda(*args: Any) -> str | None:
    """Why the native CUDA code cannot take these arguments, or ``None``."""
    if _native is None:
        return "the native module is not built"
    if not _native.cuda_architectures():
        return "the native module is built without CUDA"
    return elsewhere("cuda", args)


def elsewhere(device: str, args: Any) -> str | None:
    """Which tensor among the arguments is not on a kind of device, in words, or ``None``."""
    others = (t.device for t in _tensors(args) if t.device.type != device)
    return next((f"a tensor is on {other}" for other in others), None)


def _tensors(args: Any) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from _tensors(arg)


def dense(tensor: Tensor) -> Tensor:
    """The same values as contiguous float32, the only type that the native code reads."""
    return tensor.detach().to(torch.float32).contiguous()


def threads(work: float) -> int:
    """How many threads a native call may use.

    One if there are fewer than four million multiplications to do, because waking others may take
    longer; one after a fork, because the pool of OpenMP threads does not survive it and the child
    would hang.
    """
    return 1 if _forked or work < 4e6 else torch.get_num_threads()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch's linear algebra run on one thread for a moment.

    A small decomposition passes hundreds of barriers. Where another program keeps a core busy, each
    of them waits for a helper that is not running: 0.4 s instead of 1 ms for a QR of 384 x 128.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def isa() -> Any:
    """The instruction set in force: the CPU's best, or what ``FUNDAD_ISA`` asks for.

    Raises:
        ValueError: the name is unknown, or this CPU (or build) has no such instructions. Asking
            for too much is not lowered in silence: a test of avx512 that ran as avx2 would lie.
    """
    module = native()
    best = module.best_isa()
    name = os.environ.get("FUNDAD_ISA", "")
    if not name:
        return best
    known = module.Isa.__members__
    if name not in known:
        raise ValueError(f"FUNDAD_ISA={name!r}: use one of {', '.join(known)}")
    if int(known[name]) > int(best):
        raise ValueError(f"FUNDAD_ISA={name!r}: this CPU and build go up to {best.name}")
    return known[name]


def version(tensor: Tensor) -> int | None:
    """A number that changes whenever the tensor is modified, or ``None``.

    A tensor of inference mode has none: what was made of it may be out of date at any later call.
    """
    return None if tensor.is_inference() else tensor._version


def free_memory(device: torch.device) -> int:
    """Bytes that torch can still be given on a CUDA device, its own unused ones included."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def stream(tensor: Tensor) -> int:
    """The address of the current CUDA stream on the tensor's device."""
    return torch.cuda.current_stream(tensor.device).cuda_stream


def multiprocessors(tensor: Tensor) -> int:
    """How many multiprocessors the tensor's CUDA device has."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


def build() -> dict[str, str]:
    """What the native module was built with and what is in force, in words."""
    if _native is None:
        return {"native": "not built: operators run as torch code"}
    return {
        "native": str(_native.__file__),
        "compiler": _native.compiler(),
        "instruction sets": f"up to {_native.best_isa().name} on this CPU",
        "instruction set in force": isa().name,
        "OpenMP": "yes" if _native.has_openmp() else "no: one thread",
        "CUDA": _native.cuda_architectures() or "no",
    }
