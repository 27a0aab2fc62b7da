# SPDX-License-Identifier: Apache-2.0
"""Runs on the torture archive in processes of their own: a fork server finds its functions here."""

from __future__ import annotations

import os
import random
import sys
import warnings
from pathlib import Path
from typing import IO, Any

from null_method import fundad

from fundad_fast import run_folder
from fundad_fast.data import headers, listing

NO_SUCH_USER = 99


def score_archive(root: Path, model: Path, out: Path, *more: object) -> None:
    """Score with the null model by the command line and exit with its code.

    What it prints is appended to a file beside the run folder.
    """
    log = os.open(out.with_name(f"{out.name}.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.exit(score_here(root, model, out, *more))


def score_here(root: Path, model: Path, out: Path, *more: object) -> int:
    """The exit code."""
    run_folder.PART_ROWS = 32
    os.fsync = lambda handle: None  # killed are processes, not the machine; a third of the time
    if not {"--report", "--overlays"} & set(more):
        more = (*more, "--no-report", "--overlays", "none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fundad(
            "score", root, "-m", model, "-o", out, "--pages", "all", "--threads", 2,
            "--batch-size", 8, "--progress", "none", *more,
        )  # fmt: skip


class _Full:
    """A file that takes so many bytes more, of all such files together, and then fails."""

    def __init__(self, file: IO[Any], room: list[int], code: int) -> None:
        self._file, self._room, self._code = file, room, code

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes if not isinstance(data, str) else len(data)
        self._room[0] -= size
        if self._room[0] < 0:
            self._file.write(data[: len(data) // 2])  # torn, as a full disk leaves it
            raise OSError(self._code, os.strerror(self._code), "somewhere")
        return self._file.write(data)

    def __enter__(self) -> _Full:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def score_on_a_full_disk(code: int, room: int, *arguments: Any) -> None:
    """The run folder takes so many bytes."""
    left = [room]

    def opened(path: Any, mode: str = "r", **options: Any) -> Any:
        if not set(mode) & set("wa"):
            return open(path, mode, **options)
        return _Full(open(path, mode, **options), left, code)

    run_folder.open = opened  # type: ignore[attr-defined]
    score_archive(*arguments)


class _Failing:
    """A file that fails at its first or second read."""

    def __init__(self, file: IO[bytes], code: int, after: int) -> None:
        self._file, self._code, self._left = file, code, after

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise OSError(self._code, os.strerror(self._code))
        return self._file.read(size)

    def __enter__(self) -> _Failing:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def score_from_a_bad_disk(code: int, share: float, seed: int, *arguments: Any) -> None:
    """So many of the files that are opened fail, at once or when they are read."""
    rng = random.Random(seed)

    def opened(path: Any, mode: str = "r", **options: Any) -> Any:
        fails = rng.random() < share
        after = rng.randrange(4)
        if fails and after == 0:
            raise OSError(code, os.strerror(code), path)
        if not fails:
            return open(path, mode, **options)
        return _Failing(open(path, mode, **options), code, after - 1)

    headers.open = listing.open = opened  # type: ignore[attr-defined]
    score_archive(*arguments)


def score_as_nobody(user: int, root: Path, model: Path, out: Path) -> None:
    """As another user, who may not even read this package: all of it is imported before."""
    score_here(root, model, out.with_name("warm"))
    try:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    except OSError:  # a container without other users
        sys.exit(NO_SUCH_USER)
    score_archive(root, model, out)
