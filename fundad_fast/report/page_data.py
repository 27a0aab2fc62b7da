# SPDX-License-Identifier: Apache-2.0
"""What a page's script works with, as JSON that is written piece by piece."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

PIECE = 4096
"""Values of a list that are turned into text at a time."""


def written(content: Any) -> Iterator[bytes]:
    """JSON that cannot end the element that it stands in.

    Args:
        content: as for ``json.dumps``; and numpy arrays ``[n]``, of which floats get six digits,
            and null where they are not finite.

    Raises:
        ValueError: a float outside of an array is not finite.
    """
    if isinstance(content, dict):
        yield b"{"
        for i, (key, value) in enumerate(content.items()):
            yield b"," * (i > 0) + _text(key) + b":"
            yield from written(value)
        yield b"}"
    elif isinstance(content, (list, tuple, np.ndarray)):
        yield b"["
        for start in range(0, len(content), PIECE):
            yield b"," * (start > 0) + _text(content[start : start + PIECE])[1:-1]
        yield b"]"
    else:
        yield _text(content)


def _text(content: Any) -> bytes:
    text = json.dumps(content, separators=(",", ":"), allow_nan=False, default=_values)
    text = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return text.encode("ascii")


def _values(array: NDArray[Any]) -> list[Any]:
    if array.dtype.kind != "f":
        return array.tolist()
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in array.tolist()]
