# SPDX-License-Identifier: Apache-2.0
"""MedMNIST's `.npz` files: arrays of small images and their labels, split by split.

An image is a frame of the member that holds its split, ``test_images.npy`` say, so that it is found
again as any other. What is stored is mapped; what is deflated can only be read from its start, so
that it is inflated once, and put into a temporary file where it is large. Nothing pickled is read.
"""

from __future__ import annotations

import os
import struct
import tempfile
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Literal, TypeGuard

import numpy as np

from fundad_fast.data.items import DataError, Dataset, Item, ReadError, show
from fundad_fast.data.zips import MAX_RATIO, RATIO_COUNTS_FROM

_SPLITS = ("train", "val", "test")
_WANTED = (
    "wanted are MedMNIST's: train_images [n, h, w] or [n, h, w, 3], train_labels, val_…, test_…"
)
_IN_MEMORY = 2**28  # bytes of an array that is inflated; larger ones go to a temporary file
_KEPT = 6  # arrays, the splits of two files
_CLASSES = {
    "breastmnist": ("malignant", "normal and benign"),
    "octmnist": ("choroidal neovascularisation", "diabetic macular oedema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("no retinopathy", "grade 1", "grade 2", "grade 3", "grade 4"),
}
"""What MedMNIST's labels mean. That 0 is not always the healthy one is why nothing is guessed."""


class _Damaged(Exception):
    """An array that cannot be read; the message is one line."""


@dataclass(frozen=True)
class _Header:
    """What is said of an array before its values.

    Attributes:
        shape, dtype: as stored.
        order: ``C`` or ``F``.
        start: bytes of the member before the values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    order: Literal["C", "F"]
    start: int


def is_npz(path: str) -> bool:
    """Whether a file is an ``.npz`` by its name."""
    return path.lower().endswith(".npz")


def of_npz(source: object) -> TypeGuard[Item]:
    """Whether a source of pixels is an image of :func:`dataset_of_npz`."""
    return isinstance(source, Item) and source.member is not None and is_npz(source.path)


def dataset_of_npz(path: str) -> Dataset:
    """The images of a file, ``test/000123``, with their classes by number; none is called healthy.

    Raises:
        DataError: no ``.npz``, damaged, or not arrays of 2-D images with one label each.
    """
    items: list[Item] = []
    try:
        with _opened(path) as file:
            names = {info.filename.removesuffix(".npy") for info in file.infolist()}
            splits = [split for split in _SPLITS if f"{split}_images" in names]
            if not splits:
                there = ", ".join(show(name) for name in sorted(names)[:5]) or "nothing"
                raise DataError(f"{show(path)} holds {there}; {_WANTED}")
            sizes = set()
            for split in splits:
                shape = _checked(path, f"{split}_images", _header(file, f"{split}_images.npy"))
                sizes.add(shape[1:])
                labels = None
                if f"{split}_labels" in names:
                    labels = _labels(path, f"{split}_labels", file, shape[0])
                items += [
                    Item(
                        f"{split}/{i:06d}",
                        path,
                        class_name=None if labels is None else str(int(labels[i])),
                        split=split,
                        member=f"{split}_images.npy",
                        frame=i,
                    )
                    for i in range(shape[0])
                ]
    except _Damaged as error:
        raise DataError(f"{show(path)}: {error}") from error
    if not items:
        raise DataError(f"{show(path)} holds no image: its arrays are empty")
    name = os.path.basename(path)
    notes = [f"arrays of {' and '.join(_said(size) for size in sorted(sizes))} pixels"]
    known = _CLASSES.get(name.lower().removesuffix(".npz").split("_")[0])
    if known:
        meaning = ", ".join(f"{label} {words}" for label, words in enumerate(known))
        notes.append(f"labels, if it is MedMNIST's {name.split('.')[0]}: {meaning}")
    return Dataset(tuple(items), "npz", path, notes=tuple(notes))


def _said(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size[:2])) + (" RGB" if size[2:] == (3,) else " grey")


def _checked(path: str, name: str, header: _Header) -> tuple[int, ...]:
    """The shape of an array of images that can be read."""
    shape, dtype = header.shape, header.dtype
    if dtype.name not in ("uint8", "uint16"):
        raise DataError(f"{show(path)}: {name} is of type {dtype.name}; wanted is uint8 or uint16")
    if len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3)):
        return shape
    said = f"{show(path)}: {name} is of shape {list(shape)}"
    if len(shape) in (4, 5):
        raise DataError(f"{said}: volumes, and only 2-D sets are read; write volumes as NIfTI")
    raise DataError(f"{said}; {_WANTED}")


def _labels(path: str, name: str, file: zipfile.ZipFile, n: int) -> np.ndarray:
    labels = _inflated(file, f"{name}.npy", _header(file, f"{name}.npy"))
    if labels.dtype.kind not in "iu":
        raise DataError(f"{show(path)}: {name} is of type {labels.dtype}; wanted are integers")
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(
            f"{show(path)}: {name} has {labels.shape[1]} labels for each image; wanted is one class"
        )
    if labels.size != n or len(labels) != n:
        raise DataError(f"{show(path)}: {name} has {len(labels)} rows for {n} images")
    return labels.reshape(n)


# -- pixels --------------------------------------------------------------------------------------


def npz_pixels(item: Item, max_megapixels: float) -> np.ndarray:
    """The image of an item of :func:`dataset_of_npz`.

    Returns:
        ``[h, w, c]`` uint8 or uint16.

    Raises:
        ReadError: ``unreadable``, ``too_large``, or ``changed`` where the file has other arrays.
    """
    array = _arrays.get(item)
    frame = item.frame or 0
    if frame >= len(array):
        raise ReadError("changed", f"the array has {len(array)} images by now")
    megapixels = array.shape[1] * array.shape[2] / 1e6
    if megapixels > max_megapixels:
        raise ReadError(
            "too_large", f"{megapixels:.1f} megapixels; the limit is {max_megapixels:g}"
        )
    return np.ascontiguousarray(array[frame].reshape(*array.shape[1:3], -1))


class _Arrays:
    """The arrays that were read last, by file, version of it, and member."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, ...], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, item: Item) -> np.ndarray:
        assert item.member is not None
        try:
            facts = os.stat(item.path)
        except OSError as error:
            raise ReadError("unreadable", f"the file cannot be read: {error.strerror}") from error
        key = (item.path, facts.st_ino, facts.st_size, facts.st_mtime_ns, item.member)
        with self._lock:  # other threads would have to wait for the same array
            if key not in self._kept:
                self._kept[key] = _read(item.path, item.member)
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]


_arrays = _Arrays()


def _read(path: str, member: str) -> np.ndarray:
    try:
        with _opened(path) as file:
            header = _header(file, member)
            _checked(path, member, header)
            info = file.getinfo(member)
            if info.compress_type == zipfile.ZIP_STORED:
                return _mapped(path, info, header)
            return _inflated(file, member, header)
    except (_Damaged, DataError) as error:
        raise ReadError("unreadable", str(error)) from error


@contextmanager
def _opened(path: str) -> Iterator[zipfile.ZipFile]:
    """The zip that an ``.npz`` is; what is wrong with it becomes one line."""
    try:
        with zipfile.ZipFile(path) as file:
            yield file
    except zipfile.BadZipFile as error:
        raise _Damaged(f"no .npz, or a damaged one ({error})") from error
    except (EOFError, zlib.error, struct.error) as error:
        raise _Damaged(f"a damaged .npz ({error})") from error
    except (RuntimeError, NotImplementedError) as error:  # a password, another compression
        raise _Damaged(f"an .npz that numpy did not write ({error})") from error
    except OSError as error:
        raise _Damaged(f"it cannot be read ({error.strerror or error})") from error


def _header(file: zipfile.ZipFile, member: str) -> _Header:
    """What is said of an array; its values are neither read nor inflated."""
    try:
        info = file.getinfo(member)
    except KeyError as error:
        raise _Damaged(f"it has no {member} any more") from error
    with file.open(info) as data:
        try:
            version = np.lib.format.read_magic(data)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read(data)
        except (ValueError, KeyError) as error:
            raise _Damaged(f"{member} is no array ({' '.join(str(error).split())})") from error
        start = data.tell()
    if dtype.hasobject:
        raise _Damaged(f"{member} holds pickled objects, which are not read")
    if start + int(np.prod(shape, dtype=object)) * dtype.itemsize != info.file_size:
        raise _Damaged(f"{member} is not as long as its shape {list(shape)} says")
    if info.file_size > max(RATIO_COUNTS_FROM, MAX_RATIO * info.compress_size):
        raise _Damaged(f"{member} unpacks to more than {MAX_RATIO} times its bytes: a zip bomb?")
    return _Header(shape, dtype, "F" if fortran else "C", start)


def _mapped(path: str, info: zipfile.ZipInfo, header: _Header) -> np.ndarray:
    """A stored array where it lies, read image by image as it is asked for."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        name, extra = struct.unpack("<26x2H", file.read(30))
    start = info.header_offset + 30 + name + extra + header.start
    return np.memmap(path, header.dtype, "r", start, header.shape, header.order)


def _inflated(file: zipfile.ZipFile, member: str, header: _Header) -> np.ndarray:
    """All values of an array, which zipfile checks against their sum on the way."""
    size = file.getinfo(member).file_size - header.start
    if size > _IN_MEMORY:
        # Unlinked from the start: it goes with the mapping, also after a kill.
        with tempfile.TemporaryFile(prefix="fundad-") as place:
            flat: np.ndarray = np.memmap(place, np.uint8, "w+", shape=(size,))
            _fill(file, member, header.start, flat)
    else:
        flat = np.empty(size, np.uint8)
        _fill(file, member, header.start, flat)
    return flat.view(header.dtype).reshape(header.shape, order=header.order)


def _fill(file: zipfile.ZipFile, member: str, start: int, flat: np.ndarray) -> None:
    with file.open(member) as data:  # with its last byte, zipfile compares the sum
        _read_into(data, memoryview(bytearray(start)))
        _read_into(data, flat.data)


def _read_into(data: IO[bytes], into: memoryview) -> None:
    done = 0
    while done < len(into):
        part = data.read(min(2**20, len(into) - done))
        if not part:
            raise EOFError("an array is cut short")
        into[done : done + len(part)] = part
        done += len(part)
