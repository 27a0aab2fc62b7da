# SPDX-License-Identifier: Apache-2.0
"""Which inputs are whose, where several machines share an archive."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass


def id_hash(name: str) -> int:
    """64 bits of BLAKE2b of an id; the same on every machine and in every version."""
    data = name.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Shard:
    """Part ``number`` of ``of``, from 1: every id is in exactly one, whatever else is there."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From ``3/8``.

        Raises:
            ValueError: it is not of that form, or there is no such part.
        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"shard {text!r}: want i/n with i from 1 to n, such as 3/8")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def holds(self, name: str) -> bool:
        """Whether the input of this id is of this part."""
        return id_hash(name) % self.of == self.number - 1
