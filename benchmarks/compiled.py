# SPDX-License-Identifier: Apache-2.0
"""C++ that only benchmarks need, compiled for this very machine when it is first asked for."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import subprocess
import tempfile
from pathlib import Path


@functools.cache
def compiled(name: str) -> ctypes.CDLL:
    """The library made of a source file that lies beside this one."""
    source = Path(__file__).parent / name
    mark = hashlib.sha256(source.read_bytes()).hexdigest()
    path = Path(tempfile.gettempdir()) / f"fundad-{source.stem}-{mark}.so"
    if not path.exists():
        made = path.with_suffix(".part")
        flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17"]
        subprocess.run(["c++", *flags, str(source), "-o", str(made)], check=True)
        made.rename(path)
    return ctypes.CDLL(str(path))
