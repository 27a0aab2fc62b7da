# SPDX-License-Identifier: Apache-2.0
"""The run folder: rows, maps and what a kill, a second process or another model does to them."""

import json

import numpy as np
import pytest

from fundad_fast.archive import folder as run_folder
from fundad_fast.archive.folder import (
    RunError,
    RunFolder,
    file_stem,
    read_map,
    read_rows,
    replacing,
)
from fundad_fast.archive.regions import map_affine, top_regions


def about(model="m1", **more):
    return {"kind": "score", "model": {"id": model}, "settings": {"a": 1}, **more}


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
    import csv

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
        assert run.done() == {"a"}
        run.add(row("b"))
    assert [r["id"] for r in read_rows(tmp_path)] == ["a", "b"]
    assert not list(tmp_path.glob("scores/.*"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"id": "m2"}}, "scored by model m1, not m2"),
        ({"kind": "eval"}, "another kind of run"),
        ({"settings": {"a": 2}}, "another settings"),
    ],
)
def test_another_run_in_the_folder_is_refused(tmp_path, change, says):
    with RunFolder(tmp_path, about()):
        pass
    with pytest.raises(RunError, match=says), RunFolder(tmp_path, {**about(), **change}):
        pass


def test_a_folder_of_something_else_and_a_second_process_are_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not a run folder"), RunFolder(tmp_path, about()):
        pass
    with (
        RunFolder(tmp_path / "run", about()), pytest.raises(RunError, match="another process"),
        RunFolder(tmp_path / "run", about()),
    ):
        pass


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
