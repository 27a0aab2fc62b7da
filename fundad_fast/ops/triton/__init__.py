# SPDX-License-Identifier: Apache-2.0
"""Triton kernels, one file per operator, and their backends, which are registered on import.

A backend imports its kernels, and with them triton, when it first runs. Triton's interpreter
(``TRITON_INTERPRET=1``, set before triton is imported) runs the same text on CPU tensors, slowly:
it is how the kernels are tested where there is no GPU.
"""

from . import backends as backends
