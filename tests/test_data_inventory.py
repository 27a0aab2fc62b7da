# SPDX-License-Identifier: Apache-2.0
"""An inventory on disk holds what discover finds in memory, and costs no memory for an input."""

from __future__ import annotations

import os
import sqlite3
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from test_data_shards import make_tar, make_zip, png

from fundad_fast.data import DataError, Inventory, discover, take_inventory

PIXELS = png(np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8))


def files(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PIXELS)
    return root


def same(source, tmp_path, **options) -> Inventory:
    """An inventory of a source, held against discover's data set."""
    found = discover(source, **options)
    listed = take_inventory(source, tmp_path / "list", **options)
    assert tuple(listed) == found.items
    assert tuple(listed.items) == found.items  # once more, and where a Dataset stands
    assert len(listed) == len(found.items)
    for name in ("layout", "root", "ignored"):
        assert getattr(listed, name) == getattr(found, name), name
    assert sorted(listed.notes) == sorted(found.notes)
    assert sorted(listed.describe().splitlines()) == sorted(found.describe().splitlines())
    assert os.listdir(tmp_path / "list") == ["inventory.sqlite"]
    return listed


@pytest.fixture
def archive(tmp_path) -> Path:
    root = files(tmp_path / "a", "z.png", "b/2.png", "b/10.png", "b/c/Ж 1.png", "B/1.png")
    make_tar(root / "b" / "s.tar", {"k.png": PIXELS, "m/masks/x.png": PIXELS, "t.txt": b""})
    make_zip(root / "s.zip", {"k.png": PIXELS})
    (root / "broken.zip").write_bytes(b"PK no")
    (root / "notes.txt").write_text("x")
    (root / "b" / "unknown").write_bytes(b"x")
    (root / ".hidden.png").write_bytes(PIXELS)
    (root / "b" / "loop").symlink_to(root)
    raw = os.fsencode(root) + b"/bad\xff.png"
    Path(os.fsdecode(raw)).write_bytes(PIXELS)
    (root / "gone.png").symlink_to(root / "nowhere")
    return root


def test_a_folder(archive, tmp_path):
    listed = same(archive, tmp_path)
    assert len(listed) == 10
    assert listed.layout == "folder"
    same(f"{archive}/", tmp_path)
    same(archive, tmp_path, recursive=False)


def test_a_folder_here(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(archive)
    same(".", tmp_path)
    same("b", tmp_path)
    same(["b", "z.png"], tmp_path)
    same([".", "B/../z.png"], tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("train/good/1.png", "test/good/2.png", "test/bad/3.png", "ground_truth/bad/3_mask.png"),
        ("good/1.png", "bad/2.png"),
        ("bottle/train/good/1.png", "bottle/test/hole/2.png"),
        ("1.png", "2.png", "masks/1.png"),
        ("1.png", "1_mask.png", "orphan_mask.png"),
        ("images/1.png", "Data/Images/2.png"),
        ("0/1.png", "1/2.png"),
    ],
)
def test_layouts_that_say_more(tmp_path, names):
    root = files(tmp_path / "a", *names)
    make_zip(root / "left.zip", {"k.png": PIXELS})
    same(root, tmp_path)
    same([str(root), str(files(tmp_path / "b", "x.png"))], tmp_path)


def test_manifests(archive, tmp_path):
    rows = (
        "path,label,split,patient_id,what\nz.png,0,train,p,1\nb/10.png,1,test,p,2\nb/2.png,,,q,\n"
    )
    (archive / "m.csv").write_text(rows)
    listed = same(archive / "m.csv", tmp_path)
    assert [item.id for item in listed] == ["z.png", "b/10.png", "b/2.png"]
    same([archive / "m.csv", archive / "s.zip"], tmp_path)
    (archive / "manifest.csv").write_text(rows)
    assert same(archive, tmp_path).layout == "manifest"


def test_a_manifest_of_another_folder_is_told_after_its_first_files(archive, tmp_path):
    for gone, told in ((99, False), (100, True)):
        rows = [*(f"gone{i}.png" for i in range(gone)), "z.png", "b/2.png"]
        (archive / "m.csv").write_text("\n".join(["path", *rows]))
        if told:
            for find in (discover, lambda source: take_inventory(source, tmp_path / "list")):
                with pytest.raises(DataError, match=r"none of the first 100 files of .*gone0"):
                    find(archive / "m.csv")
        else:
            assert len(same(archive / "m.csv", tmp_path)) == 101


def test_lists_patterns_shards_and_files(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(archive)
    (archive / "m.csv").write_text("path\nz.png\n")
    same(["z.png", "b/2.png", "m.csv", "no/such.png", "s.zip", "b/10.png"], tmp_path)
    same(["B", "b/c", "s.zip", "z.png"], tmp_path)
    same("b/**/*", tmp_path)
    same("s.zip", tmp_path)
    same("z.png", tmp_path)


def test_frames(tmp_path):
    root = files(tmp_path / "a", "1.png", "t#7.png", "t#x")
    page = np.zeros((20, 20), np.uint8)
    for name, n in (("t.tif", 12), ("one.tif", 1), ("u.tif", 3)):
        with tifffile.TiffWriter(root / name) as tif:
            for i in range(n):
                tif.write(page + i, metadata=None)
    assert len(same(root, tmp_path, pages="all")) == 3 + 12 + 1 + 3
    same(root, tmp_path, pages="first")
    same(root, tmp_path)


@pytest.mark.parametrize(
    "sources", [["a", "a"], ["b/2.png", "b"], ["s.zip", "s.zip"], ["z.png", "m.csv"]]
)
def test_ids_that_occur_twice(archive, tmp_path, monkeypatch, sources):
    monkeypatch.chdir(archive)
    (archive / "m.csv").write_text("path,id\nz.png,x\nb/2.png,x\n")
    (archive / "a").mkdir()
    files(archive / "a", "1.png")
    if sources[-1] == "m.csv":
        sources = "m.csv"
    messages = []
    for find in (discover, lambda source: take_inventory(source, tmp_path / "list")):
        with pytest.raises(DataError) as caught:
            find(sources)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "listed twice" in messages[0] or "names two images" in messages[0]
    assert os.listdir(tmp_path / "list") == []


def test_a_file_named_like_a_frame(tmp_path):
    with tifffile.TiffWriter(files(tmp_path, "x.png") / "x.tif") as tif:
        for _ in range(2):
            tif.write(np.zeros((20, 20), np.uint8), metadata=None)
    (tmp_path / "m.csv").write_text("path,id\nx.tif,x\nx.png,x#1\n")
    for find in (discover, lambda source, **o: take_inventory(source, tmp_path / "list", **o)):
        with pytest.raises(DataError, match="the id x#1 names two images"):
            find(tmp_path / "m.csv", pages="all")


@pytest.mark.parametrize("source", ["empty", "none", [], ["m.csv"], ["x_mask.png"], "no*such", [3]])
def test_what_is_wrong_is_told_as_discover_tells_it(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "m.csv").write_text("path\nnot/there.png\n")
    files(tmp_path, "x.png", "x_mask.png")
    messages = []
    for find in (discover, lambda source: take_inventory(source, tmp_path / "list")):
        with pytest.raises(DataError) as caught:
            find(source)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert not (tmp_path / "list" / "inventory.sqlite").exists()


def test_an_older_inventory_stays_until_the_new_one_is_complete(archive, tmp_path):
    listed = same(archive, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        take_inventory(tmp_path / "empty", tmp_path / "list")
    assert len(Inventory(listed.path)) == len(listed)
    for wrong in (b"", b"text " * 999):
        listed.path.write_bytes(wrong)
        with pytest.raises(DataError, match="is no inventory"):
            Inventory(listed.path)


def test_a_full_disk_is_told(archive, tmp_path, monkeypatch):
    connect = sqlite3.connect

    def small(*args, **options):
        db = connect(*args, **options)
        db.execute("pragma max_page_count = 3")
        return db

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(OSError, match="inventory cannot be written: .*full"):
        take_inventory(archive, tmp_path / "list")
    assert os.listdir(tmp_path / "list") == []


def test_several_threads_read_it_at_once(archive, tmp_path):
    listed = same(archive, tmp_path)
    shared, found = iter(listed), []

    def read():
        found.append([item.id for item in listed])

    threads = [threading.Thread(target=read) for _ in range(4)]
    first = next(shared)
    thread = threading.Thread(target=lambda: found.append([first.id, *(i.id for i in shared)]))
    for each in (*threads, thread):
        each.start()
    for each in (*threads, thread):
        each.join()
    assert found == [[item.id for item in listed]] * 5


def test_no_input_is_held(tmp_path, monkeypatch):
    from fundad_fast.data import streams

    def walked(n):
        return lambda root, *_: (f"{i % 100}/{i:07d}-a-name-of-some-length.png" for i in range(n))

    monkeypatch.setattr(streams, "is_image_file", lambda path: True)
    (tmp_path / "in").mkdir()
    peaks = []
    for n in (10_000, 40_000):
        monkeypatch.setattr(streams, "walk", walked(n))
        tracemalloc.start()
        listed = take_inventory(tmp_path / "in", tmp_path / "list")
        assert sum(1 for _ in listed) == len(listed) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 16 * 30_000
