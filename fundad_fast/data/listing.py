# SPDX-License-Identifier: Apache-2.0
"""Lists the image files of a folder, in a fixed order, without decoding any."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from fundad_fast.data.headers import SNIFF_BYTES, sniff
from fundad_fast.data.items import show
from fundad_fast.data.parts import is_packed_shard, is_shard

_IMAGE_EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp")
    + (".dcm", ".dicom", ".nii")
)
"""Taken for images by their name: one that is none becomes a row that says so."""

_WITH_FRAMES = frozenset((".dcm", ".dicom", ".nii"))

_OTHER_EXTENSIONS = frozenset(
    (".csv", ".tsv", ".parquet", ".json", ".jsonl", ".yaml", ".yml", ".txt", ".md", ".html")
    + (".xml", ".pdf", ".zip", ".tar", ".gz", ".7z", ".py", ".ipynb", ".npy", ".npz", ".mat")
    + (".safetensors", ".pt", ".pth", ".xlsx", ".xls", ".docx", ".log", ".db", ".ini")
)
"""Never images: not opened to find out."""


def may_have_frames(name: str) -> bool:
    """Whether a file of this name can be one of many images: DICOM, or of unknown extension."""
    extension = os.path.splitext(name)[1].lower()
    return extension not in _IMAGE_EXTENSIONS or extension in _WITH_FRAMES


@dataclass
class Listing:
    """The files under a folder.

    Attributes:
        images: paths relative to the folder, with ``/``, in order.
        shards: `.tar` and `.zip` files, and compressed tars, in order.
        ignored: files that are neither.
        notes: folders that could not be read or that lead back to themselves.
    """

    images: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    ignored: int = 0
    notes: list[str] = field(default_factory=list)


def is_image_file(path: str) -> bool:
    """Whether a file is an image by its extension, or by its first bytes where that says nothing.

    Formats that are recognised but not read (GIF, HEIF ...) count: they become rows that say so.
    So does a file that the system does not let be opened to find out.
    """
    said = by_name(os.path.basename(path))
    if said is not None:
        return said
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            return sniff(file.read(SNIFF_BYTES)) is not None
    except OSError:  # nobody knows: better a row that says so than an image that is lost
        return True


def by_name(name: str) -> bool | None:
    """Whether a file of this name is an image; ``None`` where only its content can tell."""
    if name.upper() == "DICOMDIR":  # lists the files beside it
        return False
    extension = os.path.splitext(name)[1].lower()
    if extension in _IMAGE_EXTENSIONS or name.lower().endswith(".nii.gz"):
        return True
    return False if extension in _OTHER_EXTENSIONS else None


def list_images(root: str, *, recursive: bool = True) -> Listing:
    """The images under a folder, sorted; hidden files and folders are left out.

    Links to folders are followed, except where they lead back to a folder they lie in.
    """
    listing = Listing()
    for path in walk(root, "", recursive, (), listing.notes):
        if is_image_file(os.path.join(root, path)):
            listing.images.append(path)
        elif is_shard(path) or is_packed_shard(path):
            listing.shards.append(path)
        else:
            listing.ignored += 1
    listing.images.sort()
    listing.shards.sort()
    return listing


def walk(
    root: str,
    below: str,
    recursive: bool,
    above: tuple[tuple[int, int], ...],
    notes: list[str],
) -> Iterator[str]:
    """The files under a folder, relative to ``root``, in no order; notes on what cannot be read."""
    folder = os.path.join(root, below) if below else root
    folders = []
    try:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            notes.append(f"the link {show(below)} leads back to a folder above it; not followed")
            return
        # A folder may hold millions of files, which are not held; its folders are looked into
        # when it is closed again.
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                path = f"{below}/{entry.name}" if below else entry.name
                if not _is_folder(entry):
                    yield path
                elif recursive:
                    folders.append(path)
    except OSError as error:
        notes.append(f"the folder {show(below or root)} cannot be read: {error.strerror}")
        return
    for path in sorted(folders):
        yield from walk(root, path, recursive, (*above, here), notes)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links: a file that cannot be opened
        return False


def count_extensions(root: str, *, recursive: bool = True, limit: int = 3) -> str:
    """The commonest extensions under a folder, for a message: ``12 .nii.gz, 3 .csv``."""
    counts: Counter[str] = Counter()
    for path in walk(root, "", recursive, (), []):
        name = os.path.basename(path)
        counts["." + name.split(".", 1)[1].lower() if "." in name else "without extension"] += 1
    return ", ".join(f"{n} {show(kind, 30)}" for kind, n in counts.most_common(limit))
