# SPDX-License-Identifier: Apache-2.0
"""Shards are listed and read in place; what is hostile or damaged in them becomes rows."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from fundad_fast.data import DataError, Item, ReadError, discover, item_of_row, read_image
from fundad_fast.data.parts import Part
from fundad_fast.data.zips import MAX_RATIO, RATIO_COUNTS_FROM


@pytest.fixture
def rgb() -> np.ndarray:
    y, x = np.mgrid[:40, :60]
    return np.stack([x * 4, y * 6, 255 - x * 3], -1).astype(np.uint8)


def png(pixels: np.ndarray, extension: str = ".png") -> bytes:
    return cv2.imencode(extension, pixels[:, :, ::-1])[1].tobytes()


def make_tar(path: Path, files: dict[str, bytes | tarfile.TarInfo], **options) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for name, data in files.items():
            if isinstance(data, tarfile.TarInfo):
                tar.addfile(data)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as shard:
        for name, data in files.items():
            shard.writestr(name, data)
    return path


def refused(item, status, *words, **options) -> None:
    with pytest.raises(ReadError) as caught:
        read_image(item, **options)
    assert caught.value.status == status, caught.value
    for word in words:
        assert word in caught.value.reason, caught.value


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


MAKERS = {
    "s.tar": make_tar,
    "pax.tar": lambda path, files: make_tar(path, files, format=tarfile.PAX_FORMAT),
    "gnu.tar": lambda path, files: make_tar(path, files, format=tarfile.GNU_FORMAT),
    "s.zip": make_zip,
    "stored.zip": lambda path, files: make_zip(path, files, zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("name", MAKERS)
def test_members_are_items_and_nothing_is_extracted(tmp_path, rgb, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    long = "d" * 120 + "/" + "ж" * 60 + " \U0001f441.png"
    files = {
        "./b/two.png": png(255 - rgb),
        long: png(rgb // 2),
        "a.png": png(rgb),
        "noextension": png(rgb // 3),
        "notes.txt": b"text",
        "neither": b"what is this",
        ".hidden.png": png(rgb),
        "__MACOSX/a.png": b"resource",
        "masks/a.png": png(rgb),
        "c_mask.png": png(rgb),
        "c.png": png(rgb // 4),
        "lonely_mask.png": png(rgb // 5),
    }
    path = MAKERS[name](tmp_path / name, files)
    dataset = discover(path)
    wanted = ["a.png", "b/two.png", "c.png", long, "lonely_mask.png", "noextension"]
    assert [item.id for item in dataset.items] == [f"{name}!/{member}" for member in wanted]
    assert (dataset.layout, dataset.ignored) == ("shard", 2)
    assert "2 masks in shards" in dataset.describe()
    expected = [rgb, 255 - rgb, rgb // 4, rgb // 2, rgb // 5, rgb // 3]
    for item, pixels in zip(dataset.items, expected):
        np.testing.assert_array_equal(read_image(item), pixels)
        row = {"id": item.id, "path": item.path, "member": item.member, "frame": None}
        np.testing.assert_array_equal(read_image(item_of_row(row)), pixels)
        row["member_offset"] = item.offset
        np.testing.assert_array_equal(read_image(item_of_row(row)), pixels)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("make, name", [(make_tar, "s.tar"), (make_zip, "s.zip")])
def test_names_that_lead_elsewhere_are_rows(tmp_path, rgb, make, name):
    (tmp_path / "outside.png").write_bytes(png(rgb))
    bad = {
        "../outside.png": ("leads out", ".."),
        "a/../../outside.png": ("leads out",),
        f"{tmp_path}/outside.png": ("absolute",),
        "C:/outside.png": ("absolute",),
        "a\\..\\outside.png": ("leads out",),
    }
    path = make(tmp_path / name, {**dict.fromkeys(bad, png(rgb)), "good..png": png(rgb)})
    items = {item.member: item for item in discover(path).items}
    assert items.keys() == {*bad, "good..png"}
    for member, words in bad.items():
        refused(items[member], "unsupported", *words)
    np.testing.assert_array_equal(read_image(items["good..png"]), rgb)


def test_links_and_devices_in_a_tar_are_rows(tmp_path, rgb):
    (tmp_path / "outside.png").write_bytes(png(rgb))
    path = make_tar(
        tmp_path / "s.tar",
        {
            "a.png": png(rgb),
            "hard.png": special("hard.png", tarfile.LNKTYPE, "a.png"),
            "soft.png": special("soft.png", tarfile.SYMTYPE, str(tmp_path / "outside.png")),
            "pipe.png": special("pipe.png", tarfile.FIFOTYPE),
            "disk.png": special("disk.png", tarfile.BLKTYPE),
            "folder": special("folder.png", tarfile.DIRTYPE),
            "tty": special("tty", tarfile.CHRTYPE),
        },
    )
    items = {item.member: item for item in discover(path).items}
    assert items.keys() == {"a.png", "hard.png", "soft.png", "pipe.png", "disk.png"}
    for name, word in (("hard", "link"), ("soft", "link"), ("pipe", "pipe"), ("disk", "device")):
        refused(items[f"{name}.png"], "unsupported", word)


def test_a_link_in_a_zip_is_a_row(tmp_path, rgb):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as shard:
        info = zipfile.ZipInfo("soft.png")
        info.external_attr = 0o120777 << 16
        shard.writestr(info, "/etc/passwd")
    (item,) = discover(tmp_path / "s.zip").items
    refused(item, "unsupported", "link")


def test_zip_bombs(tmp_path, rgb):
    blank = np.zeros((2000, 2800, 3), np.uint8)
    allowed, bomb = bytes(RATIO_COUNTS_FROM - 9), bytes(RATIO_COUNTS_FROM + 1)
    assert len(zlib.compress(bomb)) * MAX_RATIO < len(bomb)
    files = {"a.png": png(rgb), "bomb.png": bomb, "dark.bmp": png(blank, ".bmp"), "z.png": allowed}
    a, bomb_item, dark, z = discover(make_zip(tmp_path / "s.zip", files)).items
    np.testing.assert_array_equal(read_image(a), rgb)
    refused(bomb_item, "too_large", "zip bomb", "200 to 1")
    refused(dark, "too_large", "zip bomb")
    refused(z, "unreadable", "no image format")
    refused(z, "too_large", "17 MB", max_megapixels=0.1)


def test_a_bomb_that_declares_little_costs_little(tmp_path):
    def little(raw, entry):
        struct.pack_into("<L", raw, entry + 24, 1000)

    path = patched(make_zip(tmp_path / "s.zip", {"a.png": bytes(50_000_000)}), little)
    (item,) = discover(path).items
    tracemalloc.start()
    refused(item, "unreadable", "more than the 1000 bytes")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_a_large_member_that_does_not_compress(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2400, 2400, 3)).astype(np.uint8)
    data = png(noise, ".bmp")
    assert len(data) > RATIO_COUNTS_FROM
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as shard:
        shard.writestr("a.bmp", data)
    (item,) = discover(tmp_path / "s.zip").items
    np.testing.assert_array_equal(read_image(item), noise)


def patched(path: Path, change) -> Path:
    data = bytearray(path.read_bytes())
    change(data, data.rindex(b"PK\x01\x02"))
    path.write_bytes(data)
    return path


def test_a_member_that_lies_about_its_size(tmp_path, rgb):
    data = png(rgb)

    def smaller(raw, entry):
        struct.pack_into("<L", raw, entry + 24, len(data) - 50)

    (item,) = discover(patched(make_zip(tmp_path / "a.zip", {"a.png": data}), smaller)).items
    refused(item, "unreadable", "more than the")

    def larger(raw, entry):
        struct.pack_into("<L", raw, entry + 24, len(data) + 50)

    (item,) = discover(patched(make_zip(tmp_path / "b.zip", {"a.png": data}), larger)).items
    refused(item, "unreadable", "checksum")

    def stored(raw, entry):
        struct.pack_into("<L", raw, entry + 24, 10**9)

    path = make_zip(tmp_path / "c.zip", {"a.png": data}, zipfile.ZIP_STORED)
    (item,) = discover(patched(path, stored)).items
    refused(item, "unreadable", "two sizes")

    def packed(raw, entry):
        struct.pack_into("<L", raw, entry + 20, 10**6)

    path = patched(make_zip(tmp_path / "e.zip", {"a.png": data}), packed)
    (item,) = discover(path).items
    refused(item, "unreadable", "cut short within")

    def far(raw, entry):
        struct.pack_into("<L", raw, entry + 42, 10**9)

    (item,) = discover(patched(make_zip(tmp_path / "d.zip", {"a.png": data}), far)).items
    refused(item, "unreadable", "header is missing")


def test_damaged_and_unread_members_of_a_zip(tmp_path, rgb):
    data = png(rgb)
    path = make_zip(tmp_path / "a.zip", {"a.png": data, "empty.png": b""})
    raw = bytearray(path.read_bytes())
    raw[60] ^= 0xFF
    path.write_bytes(raw)
    a, empty = discover(path).items
    refused(a, "unreadable", "damaged zip")
    refused(empty, "unreadable", "empty")
    (item,) = discover(make_zip(tmp_path / "b.zip", {"a.png": data}, zipfile.ZIP_LZMA)).items
    refused(item, "unsupported", "compression 14")

    def locked(raw, entry):
        raw[entry + 8] |= 1

    (item,) = discover(patched(make_zip(tmp_path / "c.zip", {"a.png": data}), locked)).items
    refused(item, "unsupported", "encrypted")


@pytest.mark.parametrize("name", ["s.tar", "s.zip", "stored.zip"])
def test_every_cut_of_a_shard_is_told(tmp_path, rgb, name):
    small = png(rgb[::4, ::4])
    whole = MAKERS[name](tmp_path / name, {f"{i}.png": small for i in range(3)}).read_bytes()
    cuts = range(10, len(whole) - (1024 if name == "s.tar" else 0), 97)
    end = whole.rindex(small) + len(small) if name == "s.tar" else len(whole)
    for cut in cuts:
        path = tmp_path / f"cut-{name}"
        path.write_bytes(whole[:cut])
        bad, good = [], 0
        for item in discover(path).items:
            try:
                read_image(item)
                good += 1
            except ReadError as error:
                bad.append(item.id if error.status == "unreadable" else error)
        assert f"cut-{name}" in bad or cut >= end, cut
        assert good < 3 or cut >= end


def test_a_tar_without_its_end_mark_and_one_with_a_broken_header(tmp_path, rgb):
    path = make_tar(tmp_path / "a.tar", {"a.png": png(rgb), "b.png": png(rgb)})
    with tarfile.open(path) as tar:
        second = tar.getmember("b.png").offset
    raw = bytearray(path.read_bytes())
    (tmp_path / "b.tar").write_bytes(raw[:second])
    (tmp_path / "d.tar").write_bytes(raw[: second + 600])
    refused(discover(tmp_path / "d.tar").items[2], "unreadable", "cut short within")
    raw[second + 3] ^= 0xFF
    (tmp_path / "c.tar").write_bytes(raw)
    for name in ("b.tar", "c.tar"):
        whole, first = discover(tmp_path / name).items
        np.testing.assert_array_equal(read_image(first), rgb)
        refused(whole, "unreadable", "members before the damage: 1")


def test_shards_that_are_none_or_hold_nothing(tmp_path, rgb):
    (tmp_path / "text.zip").write_bytes(b"this is no zip")
    (tmp_path / "text.tar").write_bytes(b"this is no tar" * 99)
    (tmp_path / "empty.tar").write_bytes(b"")
    make_zip(tmp_path / "notes.zip", {"notes.txt": b"x"})
    make_tar(tmp_path / "none.tar", {})
    (tmp_path / "really.zip").write_bytes(png(rgb))
    for name, status, word in (
        ("text.zip", "unreadable", "no zip at all"),
        ("text.tar", "unreadable", "damaged tar"),
        ("empty.tar", "unreadable", "0 bytes"),
        ("notes.zip", "unsupported", "without an image"),
        ("none.tar", "unsupported", "without an image"),
    ):
        (item,) = discover(tmp_path / name).items
        assert item.id == name
        refused(item, status, word)
    (item,) = discover(tmp_path / "really.zip").items
    np.testing.assert_array_equal(read_image(item), rgb)


def test_a_zip64(tmp_path, rgb, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    path = make_zip(tmp_path / "s.zip", {f"{i}.png": png(rgb // (i + 1)) for i in range(4)})
    assert b"PK\x06\x07" in path.read_bytes()
    items = discover(path).items
    assert len(items) == 4
    for i, item in enumerate(items):
        np.testing.assert_array_equal(read_image(item), rgb // (i + 1))


@pytest.mark.parametrize("make, name", [(make_tar, "s.tar"), (make_zip, "s.zip")])
def test_a_shard_that_was_written_anew(tmp_path, rgb, make, name):
    path = make(tmp_path / name, {"a.png": png(rgb), "b.png": png(rgb)})
    items = discover(path).items
    make(path, {"a.png": png(rgb), "c.png": png(rgb)})
    np.testing.assert_array_equal(read_image(items[0]), rgb)
    refused(items[1], "changed", "no longer")
    refused(Item("x", str(path), member="b.png"), "unreadable", "no such member")


def test_compressed_tars_are_not_read(tmp_path, rgb):
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(DataError, match=r"s.tar.gz: a compressed tar .*gunzip"):
        discover(tmp_path / "s.tar.gz")
    (tmp_path / "a.png").write_bytes(png(rgb))
    a, packed = discover(tmp_path).items
    assert (a.id, packed.id) == ("a.png", "s.tar.gz")
    refused(packed, "unsupported", "gunzip")


def test_shards_in_folders(tmp_path, rgb):
    make_tar(tmp_path / "b.tar", {"x.png": png(rgb)})
    (tmp_path / "d").mkdir()
    make_zip(tmp_path / "d" / "c.zip", {"y.png": png(rgb)})
    dataset = discover(tmp_path)
    assert [item.id for item in dataset.items] == ["b.tar!/x.png", "d/c.zip!/y.png"]
    (tmp_path / "c.png").write_bytes(png(rgb))
    dataset = discover(tmp_path)
    assert [item.id for item in dataset.items] == ["b.tar!/x.png", "c.png", "d/c.zip!/y.png"]
    assert "2 images in 2 shards" in dataset.describe()
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "g.png").write_bytes(png(rgb))
    dataset = discover(tmp_path)
    assert [item.id for item in dataset.items] == ["c.png", "good/g.png"]
    assert dataset.ignored == 2
    assert "2 shards (.tar, .zip), such as b.tar, not opened" in dataset.describe()


def test_two_members_of_one_name(tmp_path, rgb):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for pixels in (rgb, 255 - rgb):
            info = tarfile.TarInfo("a.png")
            info.size = len(png(pixels))
            tar.addfile(info, io.BytesIO(png(pixels)))
    with pytest.raises(DataError, match=r"the id s.tar!/a.png is listed twice"):
        discover(tmp_path / "s.tar")


def test_names_that_are_no_unicode(tmp_path, rgb):
    name = b"a\xff.png".decode("utf-8", "surrogateescape")
    (item,) = discover(make_tar(tmp_path / "s.tar", {name: png(rgb)})).items
    assert item.id == r"s.tar!/a\xff.png"
    np.testing.assert_array_equal(read_image(item), rgb)
    latin = "größe.png"
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as shard:
        shard.writestr("gr__e.png", png(rgb))
    raw = (tmp_path / "s.zip").read_bytes().replace(b"gr__e", latin[:5].encode("cp437"))
    (tmp_path / "s.zip").write_bytes(raw)
    (item,) = discover(tmp_path / "s.zip").items
    assert item.id == f"s.zip!/{latin}"
    np.testing.assert_array_equal(read_image(item), rgb)


def test_frames_inside_a_shard(tmp_path, rgb):
    dicoms = pytest.importorskip("dicoms")
    data = dicoms.write_dicom(tmp_path / "x.dcm", np.stack([rgb, 255 - rgb])).read_bytes()
    for make, name in ((make_tar, "s.tar"), (make_zip, "s.zip")):
        items = discover(make(tmp_path / name, {"x.dcm": data})).items
        assert [item.id for item in items] == [f"{name}!/x.dcm#0", f"{name}!/x.dcm#1"]
        np.testing.assert_array_equal(read_image(items[1]), 255 - rgb)
        np.testing.assert_array_equal(read_image(items[0]), rgb)


def test_a_part_is_a_file():
    part = io.BufferedReader(Part(io.BytesIO(b"0123456789"), 3, 4))
    assert part.read() == b"3456"
    assert part.seek(-2, os.SEEK_END) == 2
    assert part.read(99) == b"56"
    assert part.seek(1) == 1
    assert part.read(2) == b"45"
    assert part.seek(1, os.SEEK_CUR) == 4
    assert part.read(1) == b""
    with pytest.raises(ValueError, match="before the start"):
        part.seek(-1)
