# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter, a little faster: tests spend most of their time in it."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any


def patch_once() -> None:
    """Let the interpreter prepare triton's own functions once, not at each call.

    ``tl.sum`` and its like are kernels themselves. Each call of one replaces about four hundred
    functions of the language by interpreted ones, which takes half a millisecond and finds them
    replaced already. If triton is absent or has changed, nothing is done, and tests are slower.
    """
    if importlib.util.find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    patch: Callable[[Any], Any] | None = getattr(interpreter, "_patch_lang", None)
    if patch is None:
        return

    scopes: list[Any] = []

    @functools.wraps(patch)
    def patch_if_new(kernel: Any) -> Any:
        if kernel.__module__ != "triton.language.standard":
            return patch(kernel)
        if not scopes:
            scopes.append(patch(kernel))
        return scopes[0]

    interpreter._patch_lang = patch_if_new
