# SPDX-License-Identifier: Apache-2.0
"""An archive of every kind of file that is read, a tenth of it broken, and what each row must say.

``WAYS`` is the table: in how many ways a file is broken, and which status and words each one's rows
have. Duplicate ids are not in it: an archive with them is refused before any work.
"""

from __future__ import annotations

import io
import itertools
import os
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pictures
from pictures import KINDS, Kind, cmyk, dicom, pillow, png, rgb, tiff

from fundad_fast.data.zips import RATIO_COUNTS_FROM

OK = ("ok", "")
FOLDER = 100
"""Files in one folder."""
IN_A_SHARD = 10
"""Pictures in one shard; about a third of all lie in shards."""


@dataclass
class Archive:
    """The archive, on disk.

    Attributes:
        root: its folder.
        wanted: how many files it was to have.
        rows: status and words of each row, by id.
        ways: by id, of those that were broken, in which way.
        denied: ids of those that only root may read.
        files: how many there are, members of shards for one each.
        ignored: how many are no images.
    """

    root: Path
    wanted: int
    rows: dict[str, tuple[str, str]] = field(default_factory=dict)
    ways: dict[str, str] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)
    files: int = 0
    ignored: int = 0

    def said(self, denied: Collection[str] = ()) -> dict[str, tuple[str, str]]:
        """The rows, where some files may not be read."""
        return {**self.rows, **dict.fromkeys(denied, ("unreadable", "Permission denied"))}

    def add(self, name: str, data: bytes | None, *said: tuple[str, str], frames: int = 0) -> None:
        """A file and its rows: one, or one for each frame. ``None``: it is there already."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is not None:
            path.write_bytes(data)
        self.files += 1
        self.expect(name, *said, frames=frames)

    def expect(self, name: str, *said: tuple[str, str], frames: int = 0) -> None:
        """The rows of a file or member; its last words are those of all further frames."""
        for k in range(frames or 1):
            name_k = f"{name}#{k}" if frames else name
            self.rows[name_k] = said[min(k, len(said) - 1)] if said else OK


Way = Callable[[Archive, str, int], None]
"""Puts one broken file under a name (a path without extension), from a seed."""


def file(extension: str, make: Callable[[int], bytes], *said: tuple[str, str], frames=0) -> Way:
    return lambda a, name, s: a.add(name + extension, make(s), *said, frames=frames)


def cut(kind: str, words: str, share: float = 0.7) -> Way:
    """A file that ends early; of several frames each says so."""
    one = KINDS[kind]

    def make(seed: int) -> bytes:
        data = one.make(seed)
        return data[: int(len(data) * share)]

    return file(one.extension, make, ("unreadable", words), frames=one.frames)


def huge_png(seed: int) -> bytes:
    """A small file whose header declares 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@cache
def wide_jpeg(seed: int) -> bytes:
    return pillow(np.tile(rgb(seed), (1, 1154, 1))[:, :30_000], "JPEG")


def with_nan(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float32) / 255
    values[3, 4] = np.nan
    return values


def transparent(dtype: type) -> Callable[[int], np.ndarray]:
    def make(seed: int) -> np.ndarray:
        top = np.iinfo(dtype).max
        alpha = np.full((pictures.H, pictures.W), top, dtype)
        alpha[5:9] = top // 2
        return np.dstack([rgb(seed).astype(dtype), alpha])

    return make


def frame_missing(seed: int) -> bytes:
    two = np.stack([rgb(seed), 255 - rgb(seed)])
    return dicom(two, NumberOfFrames=3)


def jpeg_missing(seed: int) -> bytes:
    data = KINDS["DICOM of JPEGs"].make(seed)
    at = data.rindex(b"\xfe\xff\x00\xe0")  # the last frame's item
    return data[:at] + b"\xfe\xff\xdd\xe0\0\0\0\0"


def unreadable(a: Archive, name: str, seed: int) -> None:
    """One known by its name, and one of which nobody can say that it is an image."""
    for file, data in ((f"{name}.png", png(rgb(seed))), (name, KINDS["DICOM"].make(seed))):
        a.add(file, data)
        (a.root / file).chmod(0)
        a.denied.add(file)


def loop(a: Archive, name: str, seed: int) -> None:
    path = a.root / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path.name)
    a.add(f"{name}.png", None, ("unreadable", "Too many levels of symbolic links"))


def loop_of_two(a: Archive, name: str, seed: int) -> None:
    path = a.root / f"{name}.dcm"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(f"{path.name}.jpg")
    path.with_name(f"{path.name}.jpg").symlink_to(path.name)
    for end in (".dcm", ".dcm.jpg"):
        a.add(name + end, None, ("unreadable", "Too many levels of symbolic links"))


def loop_of_folders(a: Archive, name: str, seed: int) -> None:
    path = a.root / name
    path.mkdir(parents=True)
    (path / "back").symlink_to("..", target_is_directory=True)
    a.add(f"{name}/in.png", png(rgb(seed)))


def named(end: str) -> Way:
    return lambda a, name, s: a.add(f"{name}{end}.png", png(rgb(s)))


def not_unicode(a: Archive, name: str, seed: int) -> None:
    path = os.fsencode(a.root / name) + b"\xff\xe9.png"
    Path(os.fsdecode(path)).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as stream:
        stream.write(png(rgb(seed)))
    a.add(f"{name}\\xff\\xe9.png", None)


def zip_of(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as shard:
        for name, data in files.items():
            shard.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def tar_of(files: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in files.items():
            if isinstance(data, tarfile.TarInfo):
                tar.addfile(data)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def members(a: Archive, name: str, data: bytes, said: dict[str, tuple[str, str]]) -> None:
    (a.root / name).parent.mkdir(parents=True, exist_ok=True)
    (a.root / name).write_bytes(data)
    for member, words in said.items():
        a.files += 1
        a.expect(f"{name}!/{member}" if member else name, words)


@cache
def bomb() -> bytes:
    return zip_of({"bomb.png": bytes(RATIO_COUNTS_FROM + 1), "fine.png": png(rgb(1))})


def zip_bomb(a: Archive, name: str, seed: int) -> None:
    said = {"bomb.png": ("too_large", "zip bomb"), "fine.png": OK}
    members(a, f"{name}.zip", bomb(), said)


def leads_out(a: Archive, name: str, seed: int) -> None:
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "../../outside.png"
    files = {
        "../../outside.png": png(rgb(seed)),
        "/absolute.png": png(rgb(seed)),
        "link.png": link,
        "fine.png": png(rgb(seed)),
    }
    said = {
        "../../outside.png": ("unsupported", "leads out of the shard"),
        "/absolute.png": ("unsupported", "absolute"),
        "link.png": ("unsupported", "a link inside a shard"),
        "fine.png": OK,
    }
    members(a, f"{name}.tar", tar_of(files), said)


def cut_tar(a: Archive, name: str, seed: int) -> None:
    files: dict[str, bytes | tarfile.TarInfo] = dict.fromkeys(
        ("a.bmp", "b.bmp", "c.bmp"), pillow(rgb(seed), "BMP")
    )
    data = tar_of(files)[:6500]  # within c
    said = {"a.bmp": OK, "b.bmp": OK, "c.bmp": ("unreadable", "cut short within this member")}
    itself = ("unreadable", "damaged tar: unexpected end of data; members before the damage: 3")
    members(a, f"{name}.tar", data, {**said, "": itself})


def cut_zip(a: Archive, name: str, seed: int) -> None:
    data = zip_of({"a.png": png(rgb(seed))})[:-9]
    members(a, f"{name}.zip", data, {"": ("unreadable", "damaged zip: its end is missing")})


EMPTY = ("unreadable", "the file is empty (0 bytes)")
NO_IMAGE = ("unreadable", "no image format is recognised")
CMYK = ("unsupported", "a CMYK image")
SMALL = ("too_small", "1 x 1 pixels; the shorter side must have 16")
NAN = ("non_finite", "are NaN or infinite")
ALPHA = ("unsupported", "an image with transparency")
MISSING = ("unreadable", "frame 2 of 3 is missing or cut short")


WAYS: dict[str, tuple[Way, ...]] = {
    "truncated": (
        cut("JPEG", "damaged JPEG"),
        cut("PNG", "ends early"),
        cut("WebP", "ends early"),
        cut("BMP", "ends early"),
        cut("LZW TIFF", "ends early"),
        cut("DICOM", "missing or cut short"),
        cut("DICOM, JPEG", "damaged JPEG frame: it ends early"),
        cut("NIfTI", "cut short"),
        cut("packed NIfTI", "cut short"),
        cut_tar,
        cut_zip,
    ),
    "zero bytes": (
        file(".jpg", lambda s: b"", EMPTY),
        file(".dcm", lambda s: b"", EMPTY),
        file(".nii.gz", lambda s: b"", EMPTY),
        file(".tar", lambda s: b"", EMPTY),
        lambda a, n, s: members(a, f"{n}.zip", zip_of({"a.png": b""}), {"a.png": EMPTY}),
    ),
    "wrong extension": (
        file(".jpg", KINDS["PNG"].make),
        file(".png", lambda s: b"this is no image" * 20, NO_IMAGE),
        file(".tif", KINDS["DICOM"].make),
        file(".dcm", KINDS["JPEG"].make),
        file(".webp", KINDS["TIFF"].make),
        file(".nii", lambda s: b"\0" * 400, NO_IMAGE),
        file(".zip", lambda s: tar_of({"a.png": png(rgb(s))}), ("unreadable", "damaged zip")),
    ),
    "CMYK": (
        file(".jpg", lambda s: pillow(cmyk(s), "JPEG"), CMYK),
        file(".tif", lambda s: tiff(np.asarray(cmyk(s)), photometric="separated"), CMYK),
    ),
    "1 x 1": (
        file(".png", lambda s: png(rgb(s)[:1, :1]), SMALL),
        file(".jpg", lambda s: pillow(rgb(s)[:1, :1], "JPEG"), SMALL),
        file(".dcm", lambda s: dicom(rgb(s)[:1, :1]), SMALL),
    ),
    "30,000 pixels wide": (
        file(".png", huge_png, ("too_large", "30000 x 30000 = 900.0 megapixels; the limit is 200")),
        file(".jpg", lambda s: wide_jpeg(s % 3)),
    ),
    "NaN": (
        file(".tif", lambda s: tiff(with_nan(rgb(s))), NAN),
        file(
            ".nii",
            lambda s: pictures.nifti(with_nan(pictures.volume(s))),
            *(NAN,) * 3,
            frames=3,
        ),
    ),
    "deep alpha": (
        file(".png", lambda s: png(transparent(np.uint16)(s)), ALPHA),
        file(".tif", lambda s: tiff(transparent(np.uint16)(s), extrasamples=["unassalpha"]), ALPHA),
        file(".webp", lambda s: pillow(transparent(np.uint8)(s), "WEBP", lossless=True), ALPHA),
    ),
    "missing frames": (
        file(".dcm", frame_missing, OK, OK, MISSING, frames=3),
        file(".dcm", jpeg_missing, OK, OK, ("unreadable", "frame 2 of 3 is empty"), frames=3),
        file(
            ".dcm",
            lambda s: dicom(rgb(s), NumberOfFrames=10**6),
            ("unreadable", "it declares 1000000 frames"),
        ),
    ),
    "unreadable": (unreadable,),
    "symlink loop": (loop, loop_of_two, loop_of_folders),
    "odd name": (
        named("a\nb\r\n"),
        named(" \U0001f441\N{VARIATION SELECTOR-16} Auge"),
        not_unicode,
        named("'\"`$(x);#0 %s{}"),
        named("\u202e\x1b[31m"),
        named("x" * 200),
    ),
    "zip bomb": (zip_bomb,),
    "leads out": (leads_out,),
}


def build(root: Path, files: int, seed: int = 0) -> Archive:
    """An archive of so many files, or a few more; a tenth of them broken."""
    a, rng = Archive(root, files), random.Random(seed)
    root.mkdir()
    every = [(way, make) for way, makers in WAYS.items() for make in makers]
    first = [(way, makers[0]) for way, makers in WAYS.items()]  # each way at least once
    broken = itertools.chain(first, itertools.cycle(every))
    kinds = itertools.cycle(KINDS.values())
    shard: dict[str, tuple[Kind, bytes]] = {}
    for number in itertools.count():
        if a.files + len(shard) >= files and not shard:
            break
        name, own = f"{number // FOLDER:03d} é/{number:05d}", 10**6 * seed + number
        if number % 10 == 9:
            way, make = next(broken)
            before = set(a.rows)
            make(a, name, own)
            a.ways.update(dict.fromkeys(a.rows.keys() - before, way))
        else:
            kind = next(kinds)
            if shard or rng.random() < 1 / IN_A_SHARD / 2:
                shard[f"d/{number:05d}{kind.extension}"] = (kind, kind.make(own))
            else:
                a.add(name + kind.extension, kind.make(own), frames=kind.frames)
        if len(shard) == IN_A_SHARD:
            pack, end = rng.choice(((zip_of, ".zip"), (tar_of, ".tar")))
            data = pack({member: data for member, (_, data) in shard.items()})
            members(a, name + end, data, {})
            a.files += len(shard)
            for member, (kind, _) in shard.items():
                a.expect(f"{name}{end}!/{member}", frames=kind.frames)
            shard.clear()
    for name in ("notes.txt", "list.csv", "000 é/nothing"):
        (root / name).write_bytes(b"no image")
        a.ignored += 1
    (root / ".hidden.png").write_bytes(png(rgb(0)))
    return a
