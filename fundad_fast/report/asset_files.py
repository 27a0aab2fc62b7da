# SPDX-License-Identifier: Apache-2.0
"""The parts of the report that are files: style, scripts, frames of pages."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources


@lru_cache(maxsize=8)
def asset(name: str) -> str:
    """The text of a file of ``assets/``."""
    return (resources.files("fundad_fast.report") / "assets" / name).read_text(encoding="utf-8")
