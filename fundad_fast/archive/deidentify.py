# SPDX-License-Identifier: Apache-2.0
"""Rows that do not say who the patient is, and that still go on after a kill.

Left out of rows, and so of ``failed.csv``, log and report: file, member and mask paths; class and
group (folders are often named after patients); DICOM identifiers and the day of acquisition. An id
becomes a keyed hash of itself, the patient's id one of its own, so that images of one patient stay
together; the time of the file becomes a keyed hash too, by which a change is still noticed. Of
``run.json``, the input becomes a keyed hash, and notes go. Names and the like are taken out of
errors; of an unforeseen one only its kind stays.

Kept: healthy or abnormal, side of the eye, number of the frame, size and brightness of the image,
size of the file, scores, regions, maps. Whoever has the key and the archive can tell which row is
of which file: the key lies beside the run folder, not in it. Overlays and the report's pictures are
not drawn: names may be burned into a photograph, which is not looked at.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path
from typing import Any

from ..data import Item
from ..run_folder import RunError
from .rows import Files, Naming

_KEY_BYTES = 32
_SHORTEST = 3  # parts of names below this are ordinary letters of a message


class Hidden(Naming):
    """How rows name inputs without saying whose they are.

    Args:
        key: secret; the same key gives the same ids.

    Attributes:
        check: tells one key from another, and nothing more.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.check = self._hash("check", "")

    def id(self, item: Item) -> str:
        """24 hexadecimal digits."""
        return self._hash("id", item.id)

    def path(self, path: str) -> str:
        """Nothing."""
        return ""

    def same_file(self, stored: str, path: str) -> bool:
        """Not known, and so not denied: a file of another size or time is noticed anyway."""
        return True

    def files(self, item: Item) -> Files:
        """Sizes as they are, times as keyed hashes."""
        size, newest, mask_size, mask_newest = super().files(item)
        return size, self._time(newest), mask_size, self._time(mask_newest)

    def labels(self, item: Item) -> dict[str, Any]:
        """The label and the side; the patient as a keyed hash."""
        said = {**super().labels(item), "class": None, "group": None}
        if said["patient_id"] is not None:
            said["patient_id"] = self._hash("patient", said["patient_id"])
        return said

    def origin(self, item: Item) -> dict[str, Any]:
        """The frame."""
        return dict.fromkeys(super().origin(item)) | {"frame": item.frame}

    def error(self, item: Item, status: str, error: str | None) -> str | None:
        """The reason without names of files and patients."""
        if error is None:
            return None
        if status == "failed":  # the words of whoever raised it, which may repeat anything
            return error.split(":")[0] if re.match(r"\w+(:|$)", error) else "failed"
        names = {item.id, item.path, os.path.abspath(item.path), item.patient_id, item.member}
        for name in list(names):
            if name is not None:
                parts = re.split(r"[/\\!#]+", name)
                names.update(parts, (os.path.splitext(part)[0] for part in parts))
        telling = sorted((n for n in names if n and len(n) >= _SHORTEST), key=len, reverse=True)
        for name in telling:
            error = re.sub(re.escape(name), "…", error, flags=re.IGNORECASE)
        return error

    def about(self, about: dict[str, Any]) -> dict[str, Any]:
        """What ``run.json`` says, without where the images lie."""
        settings = {**about["settings"], "deidentify": self.check}
        hidden = {"input": self._hash("input", about["input"]), "notes": [], "folders": []}
        return {**about, **hidden, "settings": settings}

    def _hash(self, kind: str, text: str) -> str:
        data = f"{kind}\0{text}".encode("utf-8", "surrogatepass")
        return hmac.new(self._key, data, hashlib.sha256).hexdigest()[:24]

    def _time(self, time: int | None) -> int | None:
        return None if time is None else int(self._hash("time", str(time))[:15], 16)


def key_of(out: Path, file: Path | None = None, *, anew: bool = False) -> bytes:
    """The key of a run, made where there is none yet.

    Args:
        out: the run folder.
        file: where the key lies; by default beside the run folder, as ``<out>.key``. Shards of one
            run need the same.
        anew: the run that is there gives way, so that its key need not be there.

    Raises:
        RunError: the run has begun and its key is missing, or what is there is no key.
    """
    path = file or out.with_name(f"{out.name}.key")
    if not path.exists():
        if (out / "run.json").exists() and not anew:
            raise RunError(f"the key of {out} is missing: put {path} back, or --overwrite")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="ascii") as new:
            new.write(f"{secrets.token_hex(_KEY_BYTES)}\n")
            new.flush()
            os.fsync(new.fileno())
    text = path.read_bytes().strip()
    if not re.fullmatch(rb"[0-9a-f]{%d}" % (2 * _KEY_BYTES), text):
        raise RunError(f"{path} is no key: want {2 * _KEY_BYTES} hexadecimal digits")
    return bytes.fromhex(text.decode())
