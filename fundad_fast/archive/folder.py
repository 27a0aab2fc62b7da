# SPDX-License-Identifier: Apache-2.0
"""The run folder: where each file lies, rows in Parquet parts, and how a run goes on after a kill.

``run.json, scores/part-*.parquet, failed.csv, maps/, overlays/, log.jsonl``; eval adds
``metrics.json``. Every file is written under a temporary name and renamed, so a reader never sees
half of one; a kill loses at most the rows of the part that was open.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

SCHEMA = 1
PART_ROWS = 1024
PART_SECONDS = 30.0


class RunError(RuntimeError):
    """A run folder that cannot be used for what was asked; the message says what to do."""


def row_schema() -> Any:
    """The columns of a row, as a pyarrow schema. Every input has one row, whatever happened."""
    import pyarrow as pa

    region = pa.struct(
        [(name, pa.int32()) for name in ("x", "y", "w", "h", "area")] + [("score", pa.float32())]
    )
    return pa.schema(
        [
            ("id", pa.string()),
            ("path", pa.string()),
            ("status", pa.string()),
            ("error", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("fov_status", pa.string()),
            ("fov_cx", pa.float64()),
            ("fov_cy", pa.float64()),
            ("fov_r", pa.float64()),
            ("fov_box", pa.list_(pa.int32())),  # left, top, right, bottom of the lit part
            ("score", pa.float32()),
            ("score_pct", pa.float32()),
            ("pred_label", pa.int8()),
            ("regions", pa.list_(region)),
            ("gt_label", pa.int8()),
            ("class", pa.string()),
            ("group", pa.string()),
            ("patient_id", pa.string()),
            ("laterality", pa.string()),
            ("mask_path", pa.string()),
            ("map_path", pa.string()),
            ("model_id", pa.string()),
            ("ms_read", pa.float32()),
            ("ms_model", pa.float32()),
            ("bytes", pa.int64()),
            ("mtime_ns", pa.int64()),
        ]
    )


def file_stem(name: str) -> str:
    """A file name for an id: readable, safe on every file system, and different for each id."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[-80:]
    return f"{slug}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"


@contextmanager
def replacing(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing that appears under ``path`` only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(part, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


class RunFolder:
    """A run on disk, open for more rows. Use as a context manager: it holds the folder's lock.

    Args:
        path: the folder; made when missing.
        about: what ``run.json`` says of this run. An existing run goes on only when its model,
            kind and settings are the same.

    Raises:
        RunError: another process has it open, it holds another run, or it is no run folder.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.about = path, {"schema": SCHEMA, **about}
        self._rows: list[dict[str, Any]] = []
        self._opened = time.monotonic()
        self._lock: IO[str] | None = None

    def __enter__(self) -> RunFolder:
        before = read_run(self.path) if (self.path / "run.json").exists() else None
        if before is None and self.path.exists() and any(self.path.iterdir()):
            raise RunError(
                f"{self.path} exists and is not a run folder; give another -o, or --overwrite"
            )
        if before is not None:
            self._check_same(before)
        (self.path / "scores").mkdir(parents=True, exist_ok=True)
        lock = open(self.path / ".lock", "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise RunError(f"another process is writing to {self.path}; wait for it") from error
        self._lock = lock
        for torn in self.path.glob("scores/.*.part"):
            torn.unlink()
        if before is None:
            self.write_json("run.json", self.about)
        self.log("resume" if before else "start")
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()
        self._write_failed()
        assert self._lock is not None
        self._lock.close()
        (self.path / ".lock").unlink(missing_ok=True)

    def _check_same(self, before: dict[str, Any]) -> None:
        for key, what in (("kind", "kind of run"), ("settings", "settings")):
            if before.get(key) != self.about.get(key):
                raise RunError(
                    f"{self.path} holds a run with another {what}; give another -o, or --overwrite"
                )
        was, now = before["model"]["id"], self.about["model"]["id"]
        if was != now:
            raise RunError(
                f"{self.path} was scored by model {was}, not {now}; give another -o, or --overwrite"
            )

    def done(self) -> set[str]:
        """Ids that have a row already."""
        return {row["id"] for row in read_rows(self.path, columns=["id"])}

    def add(self, row: dict[str, Any]) -> None:
        """Add a row; it is on disk after at most ``PART_ROWS`` rows or ``PART_SECONDS``."""
        self._rows.append(row)
        if row["status"] != "ok":
            self.log("failed", id=row["id"], status=row["status"], error=row["error"])
        if len(self._rows) >= PART_ROWS or time.monotonic() - self._opened > PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the open part."""
        if self._rows:
            import pyarrow as pa
            import pyarrow.parquet as pq

            parts = sorted((self.path / "scores").glob("part-*.parquet"))
            number = 1 + int(parts[-1].stem.split("-")[1]) if parts else 0
            table = pa.Table.from_pylist(self._rows, schema=row_schema())
            with replacing(self.path / "scores" / f"part-{number:05d}.parquet") as file:
                pq.write_table(table, file)
            self._rows = []
        self._opened = time.monotonic()

    def save_map(self, name: str, values: np.ndarray, affine: np.ndarray) -> str:
        """Write a map ``[h', w']`` with its affine to original pixels; returns its relative path.

        Stored in float16 (relative error 2⁻¹¹), or in float32 where that would overflow.
        """
        stem = file_stem(name)
        relative = f"maps/{stem[-2:]}/{stem}.npz"
        kind = np.float16 if np.abs(values).max(initial=0) < 65_504 else np.float32
        with replacing(self.path / relative) as file:
            np.savez(file, map=values.astype(kind), affine=affine.astype(np.float64))
        return relative

    def log(self, event: str, **facts: Any) -> None:
        """Append an event to ``log.jsonl``."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **facts}
        with open(self.path / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file of the run."""
        with replacing(self.path / name, "w") as file:
            json.dump(content, file, indent=1, allow_nan=False)
            file.write("\n")

    def _write_failed(self) -> None:
        columns = ["id", "path", "status", "error"]
        with replacing(self.path / "failed.csv", "w") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for row in read_rows(self.path, columns=columns):
                if row["status"] != "ok":
                    writer.writerow(row)


def overlay_path(run: Path, name: str) -> Path:
    """Where the overlay of an image lies, when one was made."""
    return run / "overlays" / f"{file_stem(name)}.jpg"


def read_run(path: Path) -> dict[str, Any]:
    """``run.json`` of a run folder.

    Raises:
        RunError: it is missing or not understood.
    """
    file = path / "run.json"
    if not file.is_file():
        raise RunError(
            f"{path} is not a run folder (no run.json); give one that score or eval made"
        )
    content = json.loads(file.read_text(encoding="utf-8"))
    if content.get("schema") != SCHEMA:
        raise RunError(f"{file} has schema {content.get('schema')!r}; this version reads {SCHEMA}")
    return content


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a run, part by part, in the order in which they were scored."""
    import pyarrow.parquet as pq

    for part in sorted((path / "scores").glob("part-*.parquet")):
        yield from pq.read_table(part, columns=columns).to_pylist()


def read_map(path: Path, relative: str) -> tuple[np.ndarray, np.ndarray]:
    """A map as float32 ``[h', w']`` and its affine ``[2, 3]`` to original pixels."""
    with np.load(path / relative) as stored:
        return stored["map"].astype(np.float32), stored["affine"]
