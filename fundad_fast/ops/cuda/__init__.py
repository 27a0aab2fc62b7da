# SPDX-License-Identifier: Apache-2.0
"""Backends in CUDA C++, one file per operator; each registers itself when it is imported.

They come last in every operator's order of preference: they are compiled and their text is tested
on a CPU, but none has been measured on a device yet. Ask for them with ``FUNDAD_BACKEND=cuda``.
"""

from . import kcenter as kcenter
from . import nearest as nearest
from . import poisson_blend as poisson_blend
