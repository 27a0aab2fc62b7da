# SPDX-License-Identifier: Apache-2.0
"""Scoring by the command line: what may be named, what goes on, shards and names left out."""

import csv
import fcntl
import hashlib
import io
import json
import os
import shutil
import tarfile

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from commands import call, rows

from fundad_fast.cli import steps


def test_score_takes_folders_lists_and_globs_and_isolates_errors(model, cohort, tmp_path):
    folder = shutil.copytree(cohort / "test" / "good", tmp_path / "in")
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 no")
    said = call("score", folder, "-m", model, "-o", tmp_path / "a", "--overlays", 2)
    assert "4 ok, 1 unreadable" in said
    assert "5 images, " in said
    assert "per second; limited by " in said
    with open(tmp_path / "a/failed.csv", newline="") as file:
        assert [r["id"] for r in csv.DictReader(file)] == ["bad.jpg"]
    assert len(list((tmp_path / "a/overlays").iterdir())) == 2
    by_folder = {r["id"].split("/")[-1]: r["score"] for r in rows(tmp_path / "a")}
    names = [str(folder / f"0{i}.png") for i in range(4)]
    for out, args, stdin in (
        ("b", [folder / "*.png"], None),
        ("c", ["-"], "\n".join(names)),
        ("d", ["-", "-0"], "\0".join(names)),
        ("g", ["-"], "\r\n".join(names)),
        ("e", names, None),
        ("f", [names[0]], None),
    ):
        call("score", *args, "-m", model, "-o", tmp_path / out, stdin=stdin)
        got = {r["id"].split("/")[-1]: r["score"] for r in rows(tmp_path / out)}
        assert got
        for name, value in got.items():
            assert value == pytest.approx(by_folder[name], rel=1e-5)
    call("score", folder, "-m", model, "-o", tmp_path / "s", "--strict", code=1)
    said = call("score", "-", "-m", model, "-o", tmp_path / "n", stdin="\0".join(names), code=2)
    assert "give -0" in said


def test_shards_pages_and_several_folders_are_scored(model, cohort, tmp_path):
    images = [(cohort / "test" / "good" / f"0{i}.png").read_bytes() for i in range(4)]
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for i in range(2):
            info = tarfile.TarInfo(f"{i}.png")
            info.size = len(images[i])
            tar.addfile(info, io.BytesIO(images[i]))
    pixels = [cv2.imdecode(np.frombuffer(data, np.uint8), 1)[..., ::-1] for data in images]
    for name, frames in (("x", pixels[2:]), ("y", pixels[:2])):
        (tmp_path / name).mkdir()
        with tifffile.TiffWriter(tmp_path / name / "t.tif") as tif:
            for frame in frames:
                tif.write(frame, photometric="rgb", metadata=None)
    names = [str(tmp_path / name) for name in ("s.tar", "x", "y")]
    out = tmp_path / "run"
    call("score", "-", "-0", "-m", model, "-o", out, "--pages", "all", stdin="\0".join(names))
    found = {r["id"].removeprefix(f"{tmp_path}/"): r for r in rows(out)}
    order = ["s.tar!/0.png", "s.tar!/1.png", "x/t.tif#0", "x/t.tif#1", "y/t.tif#0", "y/t.tif#1"]
    assert sorted(found) == order
    assert found["s.tar!/1.png"]["member"] == "1.png"
    scores = [found[name]["score"] for name in order]
    assert scores[:2] == pytest.approx(scores[4:], rel=1e-5)  # the same images
    assert len(list((out / "overlays").iterdir())) == 6
    call("score", *names, "-m", model, "-o", tmp_path / "first", "--pages", "first")
    folders = json.loads((tmp_path / "first" / "run.json").read_text())["folders"]
    assert folders == names[1:]  # export writes into none of them
    assert {r["status"] for r in rows(tmp_path / "first")} == {"ok"}
    assert len(rows(tmp_path / "first")) == 4


def test_the_list_of_inputs_is_gone_afterwards(model, cohort, tmp_path):
    out = tmp_path / "deep" / "run"
    call("score", cohort / "test", "-m", model, "-o", out)
    assert os.listdir(tmp_path) == ["deep"]
    (tmp_path / "empty").mkdir()
    call("score", tmp_path / "empty", "-m", model, "-o", out, code=2)
    call("score", cohort / "train", "-m", model, "-o", out, code=2)  # another input
    assert os.listdir(tmp_path / "deep") == ["run"]
    mark = hashlib.sha256(os.fsencode(out)).hexdigest()[:8]
    left = tmp_path / "deep" / f".run-{mark}.inputs"
    left.mkdir()
    (left / ".inventory.sqlite.1.part").write_bytes(b"of a process that was killed")
    handle = os.open(left, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    said = call("score", cohort / "test", "-m", model, "-o", out, code=2)
    assert f"another process is scoring into {out}; wait" in said
    os.close(handle)
    call("score", cohort / "test", "-m", model, "-o", out)
    assert os.listdir(tmp_path / "deep") == ["run"]


def test_a_run_folder_in_one_that_may_not_be_written_is_used(model, cohort, tmp_path, monkeypatch):
    # As a mounted volume is; root may write everywhere, so that the system is asked in its place.
    out, temporary = tmp_path / "run", tmp_path / "temporary"
    out.mkdir()
    monkeypatch.setattr(steps.os, "access", lambda path, mode: path != tmp_path)
    monkeypatch.setattr(steps.tempfile, "tempdir", str(temporary))
    mark = hashlib.sha256(os.fsencode(out)).hexdigest()[:8]
    place = temporary / f".run-{mark}.inputs"
    place.mkdir(parents=True)
    handle = os.open(place, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    said = call("score", cohort / "test", "-m", model, "-o", out, code=2)
    assert "another process is scoring" in said
    os.close(handle)
    call("score", cohort / "test", "-m", model, "-o", out)
    assert len(rows(out)) == 8
    assert not list(temporary.iterdir())


def test_an_interrupted_run_goes_on_and_repeats_nothing(model, cohort, tmp_path):
    call("score", cohort / "test", "-m", model, "-o", tmp_path / "run")
    part = tmp_path / "run/scores/part-00000.parquet"
    table = pq.read_table(part)
    pq.write_table(table.slice(0, 3), part)
    call("score", cohort / "test", "-m", model, "-o", tmp_path / "run")
    again = rows(tmp_path / "run")
    assert sorted(r["id"] for r in again) == sorted(table["id"].to_pylist())
    want = {r["id"]: r["score"] for r in table.to_pylist()}
    assert all(r["score"] == pytest.approx(want[r["id"]], rel=1e-5) for r in again)


def test_what_failed_is_tried_again_when_asked(model, cohort, tmp_path):
    folder = shutil.copytree(cohort / "test" / "good", tmp_path / "in")
    whole = (folder / "02.png").read_bytes()
    (folder / "02.png").write_bytes(whole[:100])
    assert "3 ok, 1 unreadable" in call("score", folder, "-m", model, "-o", tmp_path / "run")
    assert "3 ok, 1 unreadable" in call(
        "score", folder, "-m", model, "-o", tmp_path / "run", "--retry-failed"
    )
    (folder / "02.png").write_bytes(whole)
    assert "4 ok" in call("score", folder, "-m", model, "-o", tmp_path / "run")
    assert sorted(r["id"] for r in rows(tmp_path / "run")) == [f"0{i}.png" for i in range(4)]
    other = shutil.copytree(cohort / "test" / "spot", tmp_path / "other")
    said = call("score", other, "-m", model, "-o", tmp_path / "run", code=2)
    assert "another" in said.strip().splitlines()[-1]


def test_shards_are_scored_and_merged(model, cohort, tmp_path):
    data = cohort / "test"
    for i in (1, 2):
        call(
            *("score", data, "-m", model, "-o", tmp_path / f"s{i}", "--shard", f"{i}/2"),
            *("--overlays", "all"),
        )
    said = call("merge", tmp_path / "s1", "-o", tmp_path / "all", code=2)
    assert "of 2 shards, 1 missing: 2" in said
    assert "8 ok" in call("merge", tmp_path / "s2", tmp_path / "s1", "-o", tmp_path / "all")
    assert len({r["id"] for r in rows(tmp_path / "all")}) == 8
    assert len(list((tmp_path / "all/overlays").iterdir())) == 8
    assert (tmp_path / "all/report.html").is_file()
    both = (tmp_path / "s1", tmp_path / "s2")
    assert "exists" in call("merge", *both, "-o", tmp_path / "all", code=2)
    call("merge", *both, "-o", tmp_path / "all", "--overwrite", "--no-report")
    assert not (tmp_path / "all/report.html").exists()
    said = call("score", data, "-m", model, "-o", tmp_path / "x", "--shard", "3/2", code=2)
    assert "shard '3/2': want i/n" in said
    said = call("score", data, "-m", model, "-o", tmp_path / "x", "--limit", 3, "--dry-run")
    assert "would score 3 images into" in said
    said = call("score", data, "-m", model, "-o", tmp_path / "all", "--dry-run")
    assert "where 8 rows are" in said
    said = call("score", data, "-m", model, "-o", tmp_path / "all", "--dry-run", "--overwrite")
    assert "rows" not in said
    said = call("score", data, "-m", model, "-o", data / "run", "--dry-run", code=2)
    assert "lie in each other" in said


def test_names_are_left_out_when_asked(model, cohort, tmp_path):
    args = ("score", cohort / "test", "-m", model, "-o", tmp_path / "run")
    assert "--key is for --deidentify" in call(*args, "--key", tmp_path / "k", code=2)
    call(*args, "--deidentify")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.key"]
    assert not (tmp_path / "run/overlays").exists()
    table = rows(tmp_path / "run")
    assert {row["path"] for row in table} == {""}
    assert all(len(row["id"]) == 24 for row in table)
    call(*args, "--deidentify", "--key", tmp_path / "run.key")
    assert rows(tmp_path / "run") == table
    assert "deidentify" in call(*args, code=2)
