# SPDX-License-Identifier: Apache-2.0
"""Joins the shards of a run into one run folder, and refuses what is not all of one run."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..progress import Progress
from ..run_folder import (
    LOCK,
    RunError,
    RunFolder,
    read_part,
    read_rows,
    read_run,
    replacing,
    score_parts,
)
from .sharding import Shard, id_hash

_SAME = ("kind", "layout", "input")


def merge_runs(
    shards: Sequence[Path],
    out: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Join shards 1 to n of one run into a new run folder, which goes on as a whole would.

    Rows stand in the order of the shards. Maps and overlays become hard links where the file system
    allows, else copies; the shards stay as they are. ``out`` appears only when it is complete.

    Args:
        shards: the run folders, in any order.
        out: a folder that does not exist.
        overwrite: a run folder that is there gives way, once the new one is complete.
        progress: told about the rows.

    Returns:
        number of rows by status.

    Raises:
        RunError: a shard is missing, unfinished, twice or being written, or lacks rows, an id is in
            two of them, or they differ in model, settings or input.
    """
    if out.exists():
        if not overwrite:
            raise RunError(f"{out} exists; give another -o, or --overwrite")
        read_run(out)  # anything else is not ours to remove
    with ExitStack() as held:
        for path in shards:
            read_run(path)  # what is no run folder gets no lock
            held.enter_context(_unchanging(path))
        abouts = _in_order(shards)
        _check_ids([path for path, _ in abouts])
        for path, about in abouts:
            _check_rows(path, about)
        first = abouts[0][1]
        settings = {k: v for k, v in first["settings"].items() if k != "shard"}
        about = {k: v for k, v in first.items() if k not in ("counts", "profile", "limit")}
        about |= {
            "settings": settings,
            "created": min(about["created"] for _, about in abouts),
            "inputs": sum(about["inputs"] for _, about in abouts),
            "seconds": round(sum(about.get("seconds", 0.0) for _, about in abouts), 3),
            "merged": len(abouts),
        }
        part = out.with_name(f".{out.name}.merging")
        shutil.rmtree(part, ignore_errors=True)  # of a merge that was killed
        part.parent.mkdir(parents=True, exist_ok=True)
        total = sum(sum(about["counts"].values()) for _, about in abouts)
        counts: Counter[str] = Counter()
        with (
            (progress or Progress()).task("merge", total, "rows") as task,
            RunFolder(part, about) as run,
        ):
            for path, _ in abouts:
                for file in score_parts(path):
                    statuses = read_part(file, ["status"]).column("status").to_pylist()
                    counts.update(statuses)
                    with open(file, "rb") as source, replacing(run.next_part()) as copy:
                        shutil.copyfileobj(source, copy)
                    task.advance(len(statuses))
                for name in ("maps", "overlays"):
                    if (path / name).is_dir():
                        shutil.copytree(
                            path / name, part / name, copy_function=_link, dirs_exist_ok=True
                        )
            run.write_json("run.json", {**run.about, "left": 0, "counts": dict(counts)})
            run.log("merge", shards=len(abouts), counts=dict(counts))
        if out.exists():
            shutil.rmtree(out)
        part.rename(out)
    return dict(counts)


class _unchanging:
    """Holds a run folder so that nobody writes to it meanwhile; readers do not disturb."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.lock = open(self.path / LOCK)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.lock.close()
            raise RunError(f"another process is writing to {self.path}; wait for it") from error

    def __exit__(self, *error: object) -> None:
        self.lock.close()


def _in_order(shards: Sequence[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """The shards with their ``run.json``, from 1 to n; all there, finished and of one run."""
    found: dict[int, tuple[Path, dict[str, Any]]] = {}
    of = 0
    for path in shards:
        about = read_run(path)
        text = (about.get("settings") or {}).get("shard")
        if text is None:
            raise RunError(f"{path} is no shard: it was not scored with --shard")
        shard = Shard.parse(text)
        if found and shard.of != of:
            other = next(iter(found.values()))[0]
            raise RunError(f"{path} is shard {shard}, but {other} is one of {of}")
        if shard.number in found:
            raise RunError(f"{path} and {found[shard.number][0]} are both shard {shard}")
        if "counts" not in about:
            raise RunError(f"{path} (shard {shard}) is not finished; score it to its end first")
        if about.get("left"):
            raise RunError(
                f"{path} (shard {shard}) lacks {about['left']} of its {about['inputs']} inputs; "
                "score it again without --limit"
            )
        found[shard.number] = path, about
        of = shard.of
    missing = [str(i) for i in range(1, of + 1) if i not in found]
    if missing:
        shown = ", ".join(missing[:10]) + (" ..." if len(missing) > 10 else "")
        raise RunError(f"of {of} shards, {len(missing)} missing: {shown}")
    ordered = [found[number] for number in sorted(found)]
    for one in ordered[1:]:
        _check_same(ordered[0], one)
    return ordered


def _check_same(a: tuple[Path, dict[str, Any]], b: tuple[Path, dict[str, Any]]) -> None:
    def facts(about: dict[str, Any]) -> dict[str, Any]:
        settings = {f"setting {k}": v for k, v in (about.get("settings") or {}).items()}
        rootless = about.get("layout") in ("list", "several")
        keys = [key for key in _SAME if not rootless or key != "input"]
        said = {"model": about["model"].get("id"), **{key: about.get(key) for key in keys}}
        return {**said, **{k: v for k, v in settings.items() if k != "setting shard"}}

    was, now = facts(a[1]), facts(b[1])
    for key in sorted({*was, *now}):
        if was.get(key) != now.get(key):
            raise RunError(
                f"{a[0]} and {b[0]} differ in {key}: {was.get(key)} and {now.get(key)}; "
                "they are not of one run"
            )


def _check_rows(path: Path, about: dict[str, Any]) -> None:
    """As many rows as its last call has counted: a file of them may be lost when it is copied."""
    there = sum(read_part(file, ["id"]).num_rows for file in score_parts(path))
    told = sum(about["counts"].values())
    if there != told:
        raise RunError(
            f"{path} holds {there} rows, where {told} were scored: files of {path / 'scores'} are "
            "missing, or there are more than belong to it; copy it again, or score it again"
        )


def _check_ids(shards: Sequence[Path]) -> None:
    """No id twice; 8 bytes per row are held, and the ids of equal hashes are looked at."""
    hashes = np.fromiter(
        (id_hash(row["id"]) for path in shards for row in read_rows(path, ["id"])), np.uint64
    )
    hashes.sort()
    twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if not len(twice):
        return
    suspects = set(twice.tolist())
    seen: dict[str, Path] = {}
    for path in shards:
        for row in read_rows(path, ["id"]):
            name = row["id"]
            if id_hash(name) not in suspects:
                continue
            if name in seen:
                raise RunError(f"{name} has a row in {seen[name]} and one in {path}")
            seen[name] = path


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
