# SPDX-License-Identifier: Apache-2.0
"""The run folder: rows, maps and what a kill, a second process or another model does to them."""

import csv
import fcntl
import json
import multiprocessing
import os
import shutil
import threading

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from cohorts import photograph

from fundad_fast import run_folder
from fundad_fast.archive.model import thinned
from fundad_fast.archive.regions import map_affine, top_regions
from fundad_fast.archive.run import ScoreOptions, score_run
from fundad_fast.data import discover
from fundad_fast.run_folder import (
    RunError,
    RunFolder,
    file_stem,
    overlay_path,
    read_map,
    read_rows,
    read_run,
    replacing,
)


def about(model="m1", **more):
    said = {"kind": "score", "model": {"id": model}, "settings": {"a": 1}}
    return {**said, "input": "/x", "layout": "folder", "created": "now", **more}


def row(name, status="ok", error=None):
    return {"id": name, "path": f"/x/{name}", "status": status, "error": error, "model_id": "m1"}


def test_rows_come_back_in_parts_and_failures_are_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "PART_ROWS", 2)
    with RunFolder(tmp_path / "run", about()) as run:
        for name in "abc":
            run.add(row(name))
        run.add(row("d,\n", "unreadable", 'says "no"'))
        run.add(row("e"))
    parts = sorted(p.name for p in (tmp_path / "run/scores").iterdir())
    assert parts == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert [r["id"] for r in read_rows(tmp_path / "run")] == ["a", "b", "c", "d,\n", "e"]
    with open(tmp_path / "run/failed.csv", newline="") as file:
        failed = list(csv.DictReader(file))
    assert [(r["id"], r["status"], r["error"]) for r in failed] == [
        ("d,\n", "unreadable", 'says "no"')
    ]
    events = [json.loads(line)["event"] for line in (tmp_path / "run/log.jsonl").open()]
    assert events == ["start", "failed"]


def test_a_run_goes_on_where_it_was_left(tmp_path):
    with RunFolder(tmp_path, about()) as run:
        run.add(row("a"))
    (tmp_path / "scores/.part-00001.parquet.part").write_bytes(b"torn")
    with RunFolder(tmp_path, about()) as run:
        run.add(row("b"))
    assert [r["id"] for r in read_rows(tmp_path)] == ["a", "b"]
    assert not list(tmp_path.glob("scores/.*"))


def test_a_run_that_goes_on_keeps_its_beginning(tmp_path):
    with RunFolder(tmp_path, about(created="then")) as run:
        run.write_json("run.json", {**run.about, "seconds": 7.0, "counts": {"ok": 3}})
    with RunFolder(tmp_path, about(notes=["new"])) as run:
        pass
    facts = read_run(tmp_path)
    assert (facts["created"], facts["seconds"], facts["notes"]) == ("then", 7.0, ["new"])
    assert "counts" not in facts  # they are those of the end


def test_dropped_rows_take_their_pictures_along(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "PART_ROWS", 2)
    with RunFolder(tmp_path, about()) as run:
        for name in "abcde":
            run.add({**row(name), "map_path": run.save_map(name, np.ones((2, 2)), np.eye(3)[:2])})
            with replacing(overlay_path(tmp_path, name)) as file:
                file.write(b"x")
    with RunFolder(tmp_path, about()) as run:
        run.drop({"b", "c", "d", "z"})
        assert [p.name for p in run_folder.score_parts(tmp_path)] == [
            "part-00000.parquet", "part-00002.parquet",
        ]  # fmt: skip
        run.add(row("c"))
    found = list(read_rows(tmp_path))
    assert [r["id"] for r in found] == ["a", "e", "c"]
    assert found[0]["map_path"] is not None
    stems = {file_stem(name) for name in "ae"}
    assert {p.stem for p in tmp_path.glob("maps/*/*")} == stems
    assert {p.stem for p in tmp_path.glob("overlays/*")} == stems


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"id": "m2"}}, "scored by model m1, not m2"),
        ({"kind": "eval"}, "a run of kind score, not eval"),
        ({"settings": {"a": 2}}, "made with a=1, not a=2"),
        ({"settings": {"a": 1, "b": 2}}, "made with b=None, not b=2"),
        ({"settings": {"a": 1, "save_maps": False}}, "not --no-maps"),
        ({"input": "/y"}, "a run of input /x, not /y"),
        ({"layout": "classes"}, "a run of layout folder, not classes"),
    ],
)
def test_another_run_in_the_folder_is_refused(tmp_path, change, says):
    with RunFolder(tmp_path, about()):
        pass
    with pytest.raises(RunError, match=says), RunFolder(tmp_path, {**about(), **change}):
        pass


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    for path, says in ((tmp_path, "not a run folder"), (tmp_path / "file", "is a file")):
        with pytest.raises(RunError, match=says), RunFolder(path, about()):
            pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "thesis.txt"]


def test_a_second_writer_is_refused_and_the_lock_stays_one(tmp_path):
    with RunFolder(tmp_path, about()):
        inode = (tmp_path / ".lock").stat().st_ino
        with pytest.raises(RunError, match="another process"), RunFolder(tmp_path, about()):
            pass
        with pytest.raises(RunError, match="another process"), RunFolder(tmp_path, about("m2")):
            pass
    # Who opened the file before it was released must not get a lock that nobody else sees.
    assert (tmp_path / ".lock").stat().st_ino == inode
    with RunFolder(tmp_path, about()):
        pass


def test_what_the_run_is_is_read_under_the_lock(tmp_path, monkeypatch):
    """Another process makes the folder its own while this one waits for the lock."""
    lock = fcntl.flock

    def after_another(file, how):
        monkeypatch.setattr(fcntl, "flock", lock)
        (tmp_path / "run.json").write_text(json.dumps({"schema": 1, **about("m2")}))
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", after_another)
    with pytest.raises(RunError, match="scored by model m2"), RunFolder(tmp_path, about()):
        pass
    with RunFolder(tmp_path, about("m2")):  # and the lock was given back
        pass


def test_a_kill_before_run_json_is_no_obstacle(tmp_path):
    (tmp_path / "scores").mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.json.1-2.part").write_text("{")
    with RunFolder(tmp_path, about()) as run:
        run.add(row("a"))
    assert not list(tmp_path.glob(".run*"))
    (tmp_path / "run.json").unlink()
    with pytest.raises(RunError, match="not a run folder"), RunFolder(tmp_path, about()):
        pass


def test_a_kill_leaves_rows_and_no_lock(tmp_path):
    def die():
        with RunFolder(tmp_path, about()) as run:
            run.add(row("a"))
            run.flush()
            run.add(row("b"))
            os._exit(1)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    with RunFolder(tmp_path, about()) as run:
        run.add(row("c"))
    assert [r["id"] for r in read_rows(tmp_path)] == ["a", "c"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("run.json", b"{", "is damaged"),
        ("run.json", b"\xff", "is damaged"),
        ("run.json", b"[]", "no JSON object"),
        ("run.json", b'{"schema": 2}', "schema 2"),
        ("run.json", b'{"schema": 1}', "which model"),
        ("scores/part-00000.parquet", b"PAR1", "is damaged"),
    ],
)
def test_damage_is_told_in_one_line(tmp_path, name, content, says):
    with RunFolder(tmp_path, about()) as run:
        run.add(row("a"))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=says):
        assert [read_run(tmp_path), *read_rows(tmp_path)] == []
    with pytest.raises(RunError, match=says), RunFolder(tmp_path, about()):
        pass


def test_a_damaged_file_of_rows_may_be_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "PART_ROWS", 1)
    with RunFolder(tmp_path, about()) as run:
        run.add(row("a"))
        run.add(row("b"))
    part = tmp_path / "scores/part-00000.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:4] + b"g" * 60 + content[64:])
    with pytest.raises(
        RunError, match=r"^[^\n]* is damaged [^\n]*remove it and score again"
    ) as told:
        list(read_rows(tmp_path))
    assert "\n" not in str(told.value)
    part.unlink()
    with RunFolder(tmp_path, about()) as run:
        run.add(row("a"))
    assert sorted(r["id"] for r in read_rows(tmp_path)) == ["a", "b"]


def test_the_folders_own_name_need_not_be_utf8(tmp_path):
    out = tmp_path / os.fsdecode(b"r\xff")
    with RunFolder(out, about()) as run:
        run.add(row("a"))
    assert [r["id"] for r in read_rows(out)] == ["a"]


def test_columns_that_an_older_part_lacks_are_null(tmp_path):
    with RunFolder(tmp_path, about()) as run:
        run.add(row("a"))
    part = tmp_path / "scores/part-00000.parquet"
    pq.write_table(pq.read_table(part).drop(["mask_bytes"]), part)
    assert list(read_rows(tmp_path, ["mask_bytes", "id"])) == [{"mask_bytes": None, "id": "a"}]


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    def write(text):
        with replacing(tmp_path / "f", "w") as file:
            file.write(text)

    with replacing(tmp_path / "f", "w") as file:
        file.write("first")
        other = threading.Thread(target=write, args=("second",))
        other.start()
        other.join()
        assert (tmp_path / "f").read_text() == "second"
    assert (tmp_path / "f").read_text() == "first"


def test_what_fails_half_way_leaves_the_old_file(tmp_path):
    file = tmp_path / "f"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(file, "w") as out:
        out.write("new")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_maps_keep_eleven_bits_and_large_ones_all(tmp_path):
    affine = np.array([[2.0, 0, 0.5], [0, 2.0, 0.5]])
    with RunFolder(tmp_path, about()) as run:
        values = np.linspace(1, 3, 35, dtype=np.float32).reshape(5, 7)
        small = run.save_map("a/b é\n", values, affine)
        large = run.save_map("c", values * 1e5, affine)
    got, back = read_map(tmp_path, small)
    assert np.array_equal(back, affine)
    assert 0 < np.abs(got / values - 1).max() <= 2**-11
    assert np.array_equal(read_map(tmp_path, large)[0], values * np.float32(1e5))


@pytest.mark.parametrize("content", [b"", b"no map", b"PK\x03\x04 cut short"])
def test_a_damaged_map_is_told(tmp_path, content):
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(RunError, match="the map m.npz cannot be read"):
        read_map(tmp_path, "m.npz")


def test_file_names_are_safe_and_distinct():
    names = ["a/b.png", "a_b.png", "../../etc", "", "ä" * 300, "x\ny", "\udcff", "A", "a"]
    stems = [file_stem(name) for name in names]
    assert len({stem.lower() for stem in stems}) == len(names)
    assert all("/" not in s and not s.startswith(".") and len(s) <= 100 for s in stems)


def test_map_affine_maps_cell_centres():
    prepared = np.array([[10.0, 0, 4.5], [0, 5.0, 2.0]])  # 640 x 320 to 64 x 64
    a = map_affine(prepared, 64, (8, 16))
    # The first cell of 16 across covers prepared pixels 0..3, centre 1.5; of 8 down 0..7, 3.5.
    assert np.allclose(a @ [0, 0, 1], [10 * 1.5 + 4.5, 5 * 3.5 + 2.0])
    assert np.allclose(a @ [15, 7, 1], [10 * 61.5 + 4.5, 5 * 59.5 + 2.0])


def test_regions_are_boxes_in_original_pixels_worst_first():
    full = np.zeros((8, 8), np.float32)
    full[1, 1:3] = 5
    full[2, 3] = 6  # touches by a corner: the same region
    full[6, 6] = 9
    full[0, 7] = 1.0  # at the threshold is not above it
    affine = np.array([[2.0, 0, 0.5], [0, 3.0, 1.0]])  # 16 x 24 original
    regions = top_regions(full, 1.0, affine, 24, 16)
    assert regions == [
        {"x": 12, "y": 18, "w": 2, "h": 3, "area": 6, "score": 9.0},
        {"x": 2, "y": 3, "w": 6, "h": 6, "area": 18, "score": 6.0},
    ]
    assert top_regions(full, 9.0, affine, 24, 16) == []


def test_thinning_keeps_the_distribution():
    scores = np.random.default_rng(0).lognormal(size=20_000) * 1e-9
    few = thinned(scores, 101)
    wanted = np.quantile(scores, np.linspace(0, 1, 101))
    np.testing.assert_allclose(few, wanted, rtol=0.01)
    assert len(thinned(scores)) == 5000
    assert thinned(np.array([2.0, 1.0, 3.0])) == [1, 2, 3]


@pytest.fixture
def images(cohort, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(cohort / "test" / "good", folder)
    (folder / "bad.png").write_bytes(b"\x89PNG no")
    return folder


def score(fitted, source, out, **options):
    dataset = discover(source)
    return score_run(
        fitted.bundle_, dataset, dataset.items, out, options=ScoreOptions(threads=1, **options)
    )


def table(out):
    found = list(read_rows(out))
    assert len({r["id"] for r in found}) == len(found)
    return {r["id"]: r for r in found}


def events(out):
    return [json.loads(line) for line in (out / "log.jsonl").open()]


def test_a_growing_folder_goes_on_and_another_one_does_not(fitted, images, tmp_path):
    out = tmp_path / "run"
    assert score(fitted, images, out) == {"ok": 4, "unreadable": 1}
    first = table(out)
    shutil.copy(images / "00.png", images / "04.png")
    (images / "01.png").unlink()
    assert score(fitted, f"{tmp_path}/./in", out) == {"ok": 5, "unreadable": 1}
    assert {k: v for k, v in table(out).items() if k in first} == first
    assert read_run(out)["input"] == str(images.resolve())
    other = shutil.copytree(images, tmp_path / "other")
    with pytest.raises(RunError, match=r"holds a run of input .*in, not .*other"):
        score(fitted, other, out)
    (tmp_path / "link").symlink_to(images)
    assert score(fitted, tmp_path / "link", out) == {"ok": 5, "unreadable": 1}
    assert "anew" not in [event["event"] for event in events(out)]


def test_a_list_may_grow_but_not_change(fitted, images, tmp_path, monkeypatch):
    out, names = tmp_path / "run", [str(images / f"0{i}.png") for i in range(4)]
    assert score(fitted, names[:2], out) == {"ok": 2}
    monkeypatch.chdir(tmp_path)  # a list of absolute paths means the same everywhere
    assert score(fitted, names[:3], out) == {"ok": 3}
    with pytest.raises(RunError, match=r"holds .*00.png, which this list does not name"):
        score(fitted, names[1:], out)


def test_one_id_of_two_files_is_refused(fitted, images, tmp_path):
    out = tmp_path / "run"
    for folder in "ab":
        (images / folder).mkdir()
        shutil.copy(images / "00.png", images / folder)
    manifest = tmp_path / "m.csv"
    manifest.write_text("id,path\nx,in/a/00.png\n")
    assert score(fitted, manifest, out) == {"ok": 1}
    manifest.write_text("id,path\nx,in/b/00.png\n")
    with pytest.raises(RunError, match=r"holds x of .*a/00.png, which is now .*b/00.png"):
        score(fitted, manifest, out)


def test_what_changed_is_scored_anew_in_one_row(fitted, images, tmp_path):
    out = tmp_path / "run"
    score(fitted, images, out)
    first = table(out)
    overlay = overlay_path(out, "01.png")
    overlay.parent.mkdir()
    overlay.write_bytes(b"old")
    cv2.imwrite(str(images / "01.png"), photograph(99, lesion=True))
    cv2.imwrite(str(images / "bad.png"), photograph(98))
    (images / "02.png").unlink()
    facts = (images / "03.png").stat()
    os.utime(images / "03.png", ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert score(fitted, images, out) == {"ok": 5}
    second = table(out)
    assert second["01.png"]["score"] > first["01.png"]["score"]
    assert second["00.png"] == first["00.png"]
    assert second["02.png"] == first["02.png"]  # it has gone: its row stays
    assert second["03.png"]["mtime_ns"] == facts.st_mtime_ns + 1
    assert not overlay.exists()
    anew = [event for event in events(out) if event["event"] == "anew"]
    assert [(event["changed"], event["failed"]) for event in anew] == [(3, 0)]


def test_what_a_dicom_file_says_is_in_its_row_and_is_no_change(fitted, tmp_path):
    dicoms = pytest.importorskip("dicoms")
    frames = np.stack([photograph(1), photograph(2)])
    path = dicoms.write_dicom(tmp_path / "in" / "a.dcm", frames)
    out = tmp_path / "run"
    assert score(fitted, path.parent, out) == {"ok": 2}
    first = table(out)
    row = first["a.dcm#1"]
    assert (row["patient_id"], row["laterality"], row["acquired"]) == ("P-7", "L", "2024-05-31")
    assert (row["sop_instance_uid"], row["study_instance_uid"]) == ("1.2.3", "1.2")
    assert (row["frame"], row["member"], row["path"]) == (1, None, str(path))
    assert score(fitted, path.parent, out) == {"ok": 2}
    assert table(out) == first
    assert "anew" not in [event["event"] for event in events(out)]


def test_a_listed_file_that_is_gone_keeps_its_row(fitted, images, tmp_path):
    out, names = tmp_path / "run", [str(images / f"0{i}.png") for i in range(2)]
    score(fitted, names, out)
    first = table(out)
    (images / "00.png").unlink()
    assert score(fitted, names, out) == {"ok": 2}
    assert table(out) == first


def test_failed_rows_are_tried_again_when_asked(fitted, images, tmp_path):
    out = tmp_path / "run"
    score(fitted, images, out)
    for retry in (False, True):
        assert score(fitted, images, out, retry_failed=retry) == {"ok": 4, "unreadable": 1}
        assert len(table(out)) == 5
        tried = [e["id"] for e in events(out) if e["event"] == "failed"]
        assert tried == ["bad.png"] * (1 + retry)
    assert [(e["changed"], e["failed"]) for e in events(out) if e["event"] == "anew"] == [(0, 1)]
    with open(out / "failed.csv", newline="") as file:
        assert [r["id"] for r in csv.DictReader(file)] == ["bad.png"]


def test_a_repaired_mask_is_noticed(fitted, cohort, tmp_path):
    data, out, calls = shutil.copytree(cohort, tmp_path / "data"), tmp_path / "run", []

    def check(item, prepared):
        calls.append(item.id)
        return ("unsupported", "its mask") if item.id == "test/spot/01.png" else None

    def run():
        calls.clear()
        dataset = discover(data)
        score_run(fitted.bundle_, dataset, dataset.select(split="test"), out, check=check)
        return list(calls)

    assert len(run()) == 8
    assert run() == []
    mask = data / "ground_truth/spot/01_mask.png"
    mask.write_bytes(mask.read_bytes() + b" ")
    assert run() == ["test/spot/01.png"]
    assert table(out)["test/spot/01.png"]["mask_path"] == str(mask)


def test_a_corrected_label_is_noticed(fitted, images, tmp_path):
    out, manifest = tmp_path / "run", tmp_path / "m.csv"
    manifest.write_text("path,label\nin/00.png,0\nin/01.png,0\n")
    score(fitted, manifest, out)
    manifest.write_text("path,label\nin/00.png,1\nin/01.png,0\n")
    assert score(fitted, manifest, out) == {"ok": 2}
    assert {k: r["gt_label"] for k, r in table(out).items()} == {"in/00.png": 1, "in/01.png": 0}
    assert [e["changed"] for e in events(out) if e["event"] == "anew"] == [1]


def test_names_that_are_not_utf8_get_a_row(fitted, images, tmp_path):
    os.rename(images / "00.png", os.fsencode(images) + b"/\xff.png")
    assert score(fitted, images, tmp_path / "run") == {"ok": 4, "unreadable": 1}
    assert score(fitted, images, tmp_path / "run") == {"ok": 4, "unreadable": 1}
    assert table(tmp_path / "run")["\\xff.png"]["path"] == f"{images}/\\xff.png"
