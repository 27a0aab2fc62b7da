# SPDX-License-Identifier: Apache-2.0
"""Words of messages."""

from __future__ import annotations


def count(n: int, noun: str) -> str:
    """``1 image`` and ``2,000 images``; for nouns whose plural ends in s."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
