# SPDX-License-Identifier: Apache-2.0
"""The run folder: where each file lies, rows in Parquet parts, and how a run goes on after a kill.

``run.json, scores/part-*.parquet, failed.csv, maps/, overlays/, log.jsonl``; eval adds
``metrics.json``. Every file is written under a temporary name and renamed, so a reader never sees
half of one; a kill loses at most the rows of the part that was open.

The parts never hold two rows of one id: an input that is to be scored anew loses its old row, map
and overlay first. A run that replaces another keeps that one aside until rows of its own are on
disk, and gives it back where none come to be.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import time
import zipfile
import zlib
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from .set_aside import OldContent

SCHEMA = 1
PART_ROWS = 1024
PART_SECONDS = 30.0

LOCK = ".lock"

MOST_REGIONS = 10
"""Regions in a row: the worst ones."""


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
            ("path", pa.string()),  # absolute; bytes that are not UTF-8 are written as escapes
            ("status", pa.string()),
            ("error", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("fov_status", pa.string()),
            ("fov_cx", pa.float64()),
            ("fov_cy", pa.float64()),
            ("fov_r", pa.float64()),
            ("fov_box", pa.list_(pa.int32())),  # left, top, right, bottom of the lit part
            ("brightness", pa.float32()),  # mean sample inside the field of view, from 0 to 1
            ("score", pa.float32()),
            ("score_pct", pa.float32()),
            ("pred_label", pa.int8()),
            ("regions", pa.list_(region)),
            ("gt_label", pa.int8()),
            ("class", pa.string()),
            ("group", pa.string()),
            ("patient_id", pa.string()),
            ("laterality", pa.string()),
            ("member", pa.string()),  # of the .tar or .zip that path names
            ("member_offset", pa.int64()),  # where its header lies in there
            ("frame", pa.int32()),  # from 0, of a file with several
            ("sop_instance_uid", pa.string()),
            ("study_instance_uid", pa.string()),
            ("series_instance_uid", pa.string()),
            ("acquired", pa.string()),  # a day, 2024-05-31
            ("mask_path", pa.string()),
            ("map_path", pa.string()),
            ("model_id", pa.string()),
            ("ms_read", pa.float32()),
            ("ms_model", pa.float32()),
            ("bytes", pa.int64()),
            ("mtime_ns", pa.int64()),
            ("mask_bytes", pa.int64()),  # of all masks of the image together
            ("mask_mtime_ns", pa.int64()),  # of the newest of them
        ]
    )


def file_stem(name: str) -> str:
    """A file name for an id: readable, safe on every file system, and different for each id."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[-80:]
    return f"{slug}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"


def overlay_path(run: Path, name: str) -> Path:
    """Where the overlay of an image lies, when one was made."""
    return run / "overlays" / f"{file_stem(name)}.jpg"


def map_path(name: str, volume: bool = False) -> str:
    """Where the map of an image lies, relative to the run folder, when one was made."""
    stem = file_stem(name)
    return f"maps/{stem[-2:]}/{stem}.{'nii.gz' if volume else 'npz'}"


@contextmanager
def replacing(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing that appears under ``path`` only when it is complete.

    Folders above it are made when missing. Writers of one file do not disturb each other: the last
    one to finish wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of no two writers the same, also where they are processes of several machines.
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(part, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


class RunFolder:
    """A run on disk, open for more rows. Use as a context manager: it holds the folder's lock.

    Args:
        path: the folder; made when missing.
        about: what ``run.json`` says of this run. An existing run goes on only when its kind,
            model, settings, layout and input (except for a list, which has no folder of its own)
            are the same.
        replace: a run that is there is not gone on with but gives way, whatever it holds.

    Attributes:
        about: the same, with ``created`` and ``seconds`` of the run that goes on.

    Raises:
        RunError: another process has it open, it holds another run, or it is no run folder.
    """

    def __init__(self, path: Path, about: dict[str, Any], *, replace: bool = False) -> None:
        self.path, self.about = path, {"schema": SCHEMA, **about}
        self._replace = replace
        self._old = OldContent(path, "run.json", frozenset({LOCK}))
        self._rows: list[dict[str, Any]] = []
        self._opened = time.monotonic()
        self._lock: IO[str] | None = None

    def __enter__(self) -> RunFolder:
        self._check_ours()
        self.path.mkdir(parents=True, exist_ok=True)
        # Never unlinked: who waits at a file that is gone would hold a lock that nobody sees.
        lock = open(self.path / LOCK, "a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            going_on = self._begin()
        except BlockingIOError as error:
            lock.close()
            raise RunError(f"another process is writing to {self.path}; wait for it") from error
        except OSError as error:
            lock.close()
            raise RunError(f"{self.path} cannot be used: {error.strerror or error}") from error
        except BaseException:
            lock.close()
            raise
        self._lock = lock
        self.log("resume" if going_on else "start")
        return self

    def _begin(self) -> bool:
        """What is done under the lock before any row; whether the run goes on."""
        self._check_ours()
        self._settle_old()
        going_on = (self.path / "run.json").exists()
        if going_on:
            before = read_run(self.path)
            self._check_same(before)
            self.about |= {key: before[key] for key in ("created", "seconds") if key in before}
        (self.path / "scores").mkdir(exist_ok=True)
        self.sweep()
        self._mend_log()
        self.write_json("run.json", self.about)
        return going_on

    def _settle_old(self) -> None:
        """See to a run that gives way, also where a kill came in between."""
        begun = (self.path / "run.json").exists()
        if self._old and (not begun or (self._replace and not score_parts(self.path))):
            self._old.bring_back()
            begun = True
        if self._replace and begun:
            self._old.put()
        elif score_parts(self.path):
            self._old.let_go()

    def sweep(self) -> None:
        """Remove what writers that were killed have left half done."""
        for place in (".run.json.*", ".failed.csv.*", "scores/.*", "maps/*/.*"):
            for torn in self.path.glob(f"{place}.part"):
                torn.unlink(missing_ok=True)

    def _mend_log(self) -> None:
        """Cut off a last line that a kill or a full disk has left without its end."""
        log = self.path / "log.jsonl"
        if not log.exists():
            return
        with open(log, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            back = min(size, 1 << 20)
            file.seek(size - back)
            tail = file.read()
            if not tail.endswith(b"\n"):
                file.truncate(size - back + tail.rfind(b"\n") + 1)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        assert self._lock is not None
        good = False
        try:
            self.flush()
            self._write_failed()
            good = kind is None
        finally:
            try:
                if self._old and not (good or score_parts(self.path)):
                    self._old.bring_back()
                else:
                    self._old.let_go()
            finally:
                self._lock.close()

    def _check_ours(self) -> None:
        """Refuse a folder of something else; what a kill left before ``run.json`` is ours."""
        if not self.path.exists() or (self.path / "run.json").exists() or self._old:
            return
        if not self.path.is_dir():
            raise RunError(f"{self.path} is a file; give another -o")
        for entry in self.path.iterdir():
            torn = entry.name.startswith(".run.json.") and entry.name.endswith(".part")
            unused = entry.name == "scores" and entry.is_dir() and not score_parts(self.path)
            if not (entry.name == LOCK or torn or unused):
                raise RunError(
                    f"{self.path} exists and is not a run folder (no run.json); give another -o, "
                    "or remove it yourself"
                )

    def _check_same(self, before: dict[str, Any]) -> None:
        other = "give another -o, or --overwrite"
        was, now = before["model"].get("id"), self.about["model"]["id"]
        if was != now:
            raise RunError(f"{self.path} was scored by model {was}, not {now}; {other}")
        was, now = before.get("settings") or {}, self.about.get("settings") or {}
        for key in sorted({*was, *now}):
            if was.get(key) != now.get(key):
                a, b = (_said(key, settings.get(key)) for settings in (was, now))
                raise RunError(f"{self.path} was made with {a}, not {b}; {other}")
        keys = ["kind", "layout"]
        if self.about.get("layout") not in ("list", "several"):
            keys.append("input")
        for key in keys:
            was, now = before.get(key), self.about.get(key)
            if was != now:
                raise RunError(f"{self.path} holds a run of {key} {was}, not {now}; {other}")

    def drop(self, ids: Container[str]) -> None:
        """Remove rows with their maps and overlays, so that their inputs can be scored anew.

        After a kill in between, what is left of them is dropped again: rows go last.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        for part in score_parts(self.path):
            table = read_part(part)
            names = table.column("id").to_pylist()
            gone = {name for name in names if name in ids}
            if not gone:
                continue
            for name in gone:
                overlay_path(self.path, name).unlink(missing_ok=True)
                for volume in (False, True):
                    (self.path / map_path(name, volume)).unlink(missing_ok=True)
            rest = table.filter(pa.array([name not in gone for name in names]))
            if rest.num_rows:
                with replacing(part) as file:
                    pq.write_table(rest, file)
            else:
                part.unlink()

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

            table = pa.Table.from_pylist(self._rows, schema=row_schema())
            with replacing(self.next_part()) as file:
                pq.write_table(table, file)
            self._rows = []
            self._old.let_go()
        self._opened = time.monotonic()

    def next_part(self) -> Path:
        """Where the next file of rows belongs."""
        parts = score_parts(self.path)
        number = 1 + int(parts[-1].stem.split("-")[1]) if parts else 0
        return self.path / "scores" / f"part-{number:05d}.parquet"

    def save_map(self, name: str, values: np.ndarray, affine: np.ndarray) -> str:
        """Write a map ``[h', w']`` with its affine to original pixels; returns its relative path.

        Stored in float16 (relative error 2⁻¹¹), or in float32 where that would overflow.
        """
        relative = map_path(name)
        kind = np.float16 if np.abs(values).max(initial=0) < 65_504 else np.float32
        whole = io.BytesIO()  # one write: zipfile's many cost more than the rest
        np.savez(whole, map=values.astype(kind), affine=affine.astype(np.float64))
        with replacing(self.path / relative) as file:
            file.write(whole.getbuffer())
        return relative

    def save_volume_map(self, name: str, content: bytes) -> str:
        """Write the map of a volume, a ``.nii.gz`` file's content; returns its relative path."""
        relative = map_path(name, volume=True)
        with replacing(self.path / relative) as file:
            file.write(content)
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


def _said(key: str, value: Any) -> str:
    """A setting as the command line says it."""
    if key == "save_maps":
        return "--no-maps" if value is False else "--maps"
    return f"{key}={value}"


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """A JSON file of a run folder.

    Raises:
        RunError: it is missing or damaged; the message ends in ``advice``.
    """
    if not path.is_file():
        raise RunError(f"{path.parent} is not a run folder (no {path.name}); {advice}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged ({error}); {advice}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged (no JSON object); {advice}")
    return content


def read_run(path: Path) -> dict[str, Any]:
    """``run.json`` of a run folder.

    Raises:
        RunError: it is missing, damaged or of another version.
    """
    content = read_json(path / "run.json", "give a folder that score or eval made")
    if content.get("schema") != SCHEMA:
        found = content.get("schema")
        raise RunError(f"{path / 'run.json'} has schema {found!r}; this version reads {SCHEMA}")
    if not isinstance(content.get("model"), dict):
        raise RunError(f"{path / 'run.json'} does not say which model made the scores")
    return content


def score_parts(path: Path) -> list[Path]:
    """The files of rows, in the order in which they were written."""
    return sorted((path / "scores").glob("part-*.parquet"), key=lambda p: (len(p.name), p.name))


def read_part(part: Path, columns: Sequence[str] | None = None) -> Any:
    """One file of rows as a pyarrow table; columns that it lacks are null.

    Raises:
        RunError: it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Opened here: pyarrow takes no path that is not UTF-8.
        with open(part, "rb") as opened, pq.ParquetFile(opened) as file:
            names = set(file.schema_arrow.names)
            if not {"id", "status", "score"} <= names:
                raise RunError(f"{part} lacks the columns id, status and score; score again")
            wanted = None if columns is None else [name for name in columns if name in names]
            table = file.read(columns=wanted)
    except (pa.ArrowInvalid, OSError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{part} is damaged ({reason}); remove it and score again: only its rows are made anew"
        ) from error
    for name in columns or ():
        if name not in names:
            table = table.append_column(name, pa.nulls(table.num_rows))
    return table


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a run, one per id, part by part, in the order in which they were scored."""
    for part in score_parts(path):
        yield from read_part(part, columns).to_pylist()


def read_map(path: Path, relative: str) -> tuple[np.ndarray, np.ndarray]:
    """A map as float32 ``[h', w']`` and its affine ``[2, 3]`` to original pixels.

    Raises:
        RunError: it is missing, damaged or not finite.
    """
    try:
        with np.load(path / relative, allow_pickle=False) as stored:
            values = stored["map"].astype(np.float32)
            affine = stored["affine"].astype(np.float64)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"the map {relative} cannot be read ({type(error).__name__})") from error
    if values.ndim != 2 or affine.shape != (2, 3) or not np.isfinite(values).all():
        raise RunError(f"the map {relative} is damaged")
    return values, affine


def read_volume_map(path: Path, relative: str) -> tuple[np.ndarray, np.ndarray]:
    """The map of a volume as float32 ``[d', h', w']`` and its affine ``[3, 4]`` to millimetres.

    Raises:
        RunError: it is missing, damaged or not finite.
    """
    import nibabel

    try:
        image: Any = nibabel.load(path / relative)
        values = np.asarray(image.dataobj, np.float32).transpose(2, 1, 0)
        affine = np.asarray(image.affine, np.float64)[:3]
    except (OSError, ValueError, EOFError, zlib.error, nibabel.filebasedimages.ImageFileError) as e:
        raise RunError(f"the map {relative} cannot be read ({type(e).__name__})") from e
    if not (np.isfinite(values).all() and np.isfinite(affine).all()):
        raise RunError(f"the map {relative} is damaged")
    return np.ascontiguousarray(values), affine
