# SPDX-License-Identifier: Apache-2.0
"""What stands when a run goes on whose inputs could not be listed, or changed after that."""

from __future__ import annotations

import builtins
import errno
import os
from pathlib import Path

import numpy as np
import pytest
from null_method import null_bundle, table
from pictures import KINDS, png, rgb
from torture import tar_of

from fundad_fast.archive.deidentify import Hidden
from fundad_fast.archive.rows import Naming
from fundad_fast.archive.run import ScoreOptions, score_run
from fundad_fast.data import Item, discover, headers, listing
from fundad_fast.data.shards import ids_of_files
from fundad_fast.run_folder import read_run

FRAMES = [f"many.dcm#{k}" for k in range(3)]
MEMBERS = ["s.tar!/a.png", "s.tar!/b.nii#0", "s.tar!/b.nii#1", "s.tar!/b.nii#2"]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "in"
    place.mkdir()
    (place / "many.dcm").write_bytes(KINDS["DICOM of JPEGs"].make(1))
    volume = {"a.png": png(rgb(2)), "b.nii": KINDS["NIfTI"].make(3)}
    (place / "s.tar").write_bytes(tar_of(volume))
    (place / "x.png").write_bytes(png(rgb(4)))
    return place


def refuse(monkeypatch, *names):
    """The system does not let these files be opened."""

    def opened(path, *args, **options):
        if Path(path).name in names:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return builtins.open(path, *args, **options)

    for module in (headers, listing):
        monkeypatch.setattr(module, "open", opened, raising=False)


def score(dataset, out, **options):
    bundle = null_bundle(mixed_inputs="convert")
    return score_run(bundle, dataset, dataset.items, out, options=ScoreOptions(**options))


@pytest.mark.parametrize("naming", [Naming(), Hidden(b"key")], ids=["as they are", "hidden"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_file_has_no_row_of_its_own_once_its_parts_have(
    folder, tmp_path, monkeypatch, naming, whole
):
    source = folder if whole else [folder / name for name in ("many.dcm", "s.tar", "x.png")]
    score(discover(source), tmp_path / "whole", naming=naming)
    with monkeypatch.context() as patch:
        refuse(patch, "many.dcm", "s.tar")
        dataset = discover(source)
        assert len(dataset.items) == 3
        assert score(dataset, tmp_path / "run", naming=naming) == {"ok": 1, "unreadable": 2}
    assert score(discover(source), tmp_path / "run", naming=naming, limit=9) == {"ok": 8}
    assert table(tmp_path / "run") == table(tmp_path / "whole")
    assert read_run(tmp_path / "run")["left"] == 0


def test_a_file_that_could_not_be_listed_and_can_be_read_waits_for_the_next_call(
    folder, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        refuse(patch, "many.dcm", "s.tar")
        dataset = discover(folder)
    score(dataset, tmp_path / "run")
    rows = table(tmp_path / "run")
    assert rows["many.dcm"]["status"] == "unsupported"
    assert rows["s.tar"]["status"] == "changed"
    assert "call again" in rows["s.tar"]["error"]
    assert score(discover(folder), tmp_path / "run") == {"ok": 8}
    assert sorted(table(tmp_path / "run")) == [*FRAMES, *MEMBERS, "x.png"]


def test_rows_of_parts_stay_while_the_file_cannot_be_listed(folder, tmp_path, monkeypatch):
    score(discover(folder), tmp_path / "run")
    before = table(tmp_path / "run")
    with monkeypatch.context() as patch:
        refuse(patch, "many.dcm", "s.tar")
        counts = score(discover(folder), tmp_path / "run")
        assert counts == {"ok": 8, "unreadable": 2}
    assert score(discover(folder), tmp_path / "run") == {"ok": 8}
    assert table(tmp_path / "run") == before


def test_a_damaged_shard_has_a_row_beside_those_of_its_members(folder, tmp_path):
    data = (folder / "s.tar").read_bytes()
    (folder / "s.tar").write_bytes(data[: data.index(b"b.nii") + 700])
    assert score(discover(folder), tmp_path / "run") == {"ok": 5, "unreadable": 2}
    score(discover(folder), tmp_path / "run")
    assert read_run(tmp_path / "run")["profile"]["images"] == 0


def test_a_row_that_was_scored_stays_though_its_pages_are_named_now(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tif").write_bytes(KINDS["TIFF of pages"].make(1))
    score(discover(tmp_path / "in", pages="first"), tmp_path / "run")
    score(discover(tmp_path / "in", pages="all"), tmp_path / "run")
    assert sorted(table(tmp_path / "run")) == ["a.tif", "a.tif#0", "a.tif#1"]
    score(discover(tmp_path / "in", pages="one"), tmp_path / "other")
    assert table(tmp_path / "other")["a.tif"]["status"] == "unsupported"
    score(discover(tmp_path / "in", pages="all"), tmp_path / "other")
    assert sorted(table(tmp_path / "other")) == ["a.tif#0", "a.tif#1"]


def test_a_shard_that_was_replaced_after_it_was_listed_is_read_by_the_next_call(folder, tmp_path):
    dataset = discover(folder)
    (folder / "s.tar").write_bytes(tar_of({"0.png": png(rgb(5)), "a.png": png(rgb(6))}))
    assert score(dataset, tmp_path / "run") == {"ok": 4, "changed": 4}
    found = discover(folder)
    score(found, tmp_path / "run")
    rows = table(tmp_path / "run")
    assert {rows[item.id]["status"] for item in found.items} == {"ok"}
    assert rows["s.tar!/a.png"]["score"] == pytest.approx(float(np.mean(rgb(6))) / 255, abs=0.01)


def test_what_may_not_be_opened_is_not_ignored(folder, monkeypatch):
    (folder / "neither").write_bytes(b"no image")
    assert discover(folder).ignored == 1
    refuse(monkeypatch, "neither")
    dataset = discover(folder)
    assert dataset.ignored == 0
    assert "neither" in [item.id for item in dataset.items]


def test_the_ids_of_files_by_their_parts():
    assert ids_of_files(Item("d/a.png", "d/a.png")) == []
    assert ids_of_files(Item("d/a.dcm#12", "d/a.dcm", frame=12)) == ["d/a.dcm"]
    member = Item("s.tar!/x!/a#0.png#3", "s.tar", member="./x!/a#0.png", frame=3)
    assert ids_of_files(member) == ["s.tar!/x!/a#0.png", "s.tar"]
    assert ids_of_files(Item("mine", "s.tar", member="a.png", frame=0)) == []
    assert ids_of_files(Item("mine#0", "s.tar", member="a.png", frame=0)) == ["mine"]
