# SPDX-License-Identifier: Apache-2.0
"""A run that replaces another: the old one stays until the new one has rows, whatever happens."""

import os

import numpy as np
import pytest

from fundad_fast import run_folder
from fundad_fast.run_folder import RunFolder, read_rows, read_run
from fundad_fast.set_aside import OldContent


def about(model="m1", **more):
    said = {"kind": "score", "model": {"id": model}, "settings": {"a": 1}}
    return {**said, "input": "/x", "layout": "folder", "created": "now", **more}


def row(name, status="ok", error=None):
    return {"id": name, "path": f"/x/{name}", "status": status, "error": error, "model_id": "m1"}


def shown(folder):
    """Relative names and contents of all files but the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def old_run(folder):
    with RunFolder(folder, about("m1")) as run:
        run.add({**row("a"), "map_path": run.save_map("a", np.ones((2, 2)), np.eye(3)[:2])})
    (folder / "report.html").write_text("of m1")
    return shown(folder)


def test_a_run_that_is_replaced_goes_when_the_new_one_has_rows(tmp_path, monkeypatch):
    before = old_run(tmp_path)
    monkeypatch.setattr(run_folder, "PART_ROWS", 2)
    with RunFolder(tmp_path, about("m2"), replace=True) as run:
        assert read_run(tmp_path)["model"]["id"] == "m2"
        run.add(row("b"))
        kept = tmp_path / ".replaced"
        assert shown(kept) == before
        run.add(row("c"))
        assert not kept.exists()
    assert [r["id"] for r in read_rows(tmp_path)] == ["b", "c"]
    assert not (tmp_path / "report.html").exists()
    assert not (tmp_path / "maps").exists()


def test_a_run_is_given_back_where_its_successor_gets_no_row(tmp_path):
    before = old_run(tmp_path)
    with (
        pytest.raises(KeyboardInterrupt),
        RunFolder(tmp_path, about("m2"), replace=True) as run,
    ):
        run.save_map("b", np.ones((2, 2)), np.eye(3)[:2])
        raise KeyboardInterrupt
    assert shown(tmp_path) == before
    with pytest.raises(ValueError), RunFolder(tmp_path, about("m2"), replace=True) as run:
        run.add(row("b"))
        raise ValueError
    assert [r["id"] for r in read_rows(tmp_path)] == ["b"]  # what was scored is kept
    with RunFolder(tmp_path, about("m3"), replace=True):
        pass
    assert [*read_rows(tmp_path)] == []  # nothing was to be scored


def killed_at(monkeypatch, n):
    """Lets the n-th change of the file system, and all later ones, fail as if the process died."""
    count = iter(range(10_000))

    def dying(real):
        def change(*args, **options):
            if next(count) >= n:
                raise SystemExit("killed")
            return real(*args, **options)

        return change

    for name in ("rename", "mkdir", "unlink", "rmdir"):
        monkeypatch.setattr(run_folder.Path, name, dying(getattr(run_folder.Path, name)))
    monkeypatch.setattr(run_folder.os, "replace", dying(os.replace))
    monkeypatch.setattr(run_folder.os, "unlink", dying(os.unlink))
    monkeypatch.setattr(run_folder.os, "rmdir", dying(os.rmdir))


@pytest.mark.parametrize("then", ["goes on", "replaces", "the old one"])
def test_a_kill_at_any_point_leaves_one_run_or_the_other(tmp_path, monkeypatch, then):
    """Of the new run row b; of the old one row a, its map and its report, or nothing at all."""
    seen = set()
    for n in range(40):
        folder = tmp_path / str(n)
        before = old_run(folder)
        with monkeypatch.context() as patch:
            killed_at(patch, n)
            try:
                with RunFolder(folder, about("m2"), replace=True) as run:
                    run.add(row("b"))
                done = True
            except SystemExit:
                done = False
        new = (folder / "run.json").exists() and read_run(folder)["model"]["id"] == "m2"
        if then == "goes on" and new:
            with RunFolder(folder, about("m2")) as run:
                if not [*read_rows(folder)]:
                    run.add(row("b"))
            want = "new"
        elif then == "replaces":
            with RunFolder(folder, about("m2"), replace=True) as run:
                run.add(row("b"))
            want = "new"
        elif new:
            want = "new" if [*read_rows(folder)] else None
        else:
            with RunFolder(folder, about("m1")):
                pass
            want = "old"
        seen.add((want, new))
        if want == "new":
            assert [r["id"] for r in read_rows(folder)] == ["b"]
            assert read_run(folder)["model"]["id"] == "m2"
            assert not (folder / "report.html").exists()
            if then != "the old one":
                assert not (folder / ".replaced").exists()
        elif want == "old":
            found = shown(folder)
            assert [r["id"] for r in read_rows(folder)] == ["a"]
            assert (folder / next(iter(read_rows(folder)))["map_path"]).exists()
            assert found["report.html"] == before["report.html"]
            assert not (folder / ".replaced").exists()
        if done:
            break
    assert done
    assert n > 8
    assert len(seen) >= 2


def test_the_old_run_outlives_several_successors_without_rows(tmp_path):
    before = old_run(tmp_path)
    old = OldContent(tmp_path, "run.json", frozenset({".lock"}))
    old.put()
    (tmp_path / "run.json").write_text('{"schema": 1, "model": {"id": "m2"}}')  # killed here
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path, about("m3"), replace=True):
        raise KeyboardInterrupt
    assert shown(tmp_path) == before


@pytest.mark.parametrize("step", ["put", "bring_back", "let_go"])
def test_each_step_can_be_killed_and_done_again(tmp_path, monkeypatch, step):
    for n in range(60):
        folder = tmp_path / str(n)
        before = old_run(folder)
        old = OldContent(folder, "run.json", frozenset({".lock"}))
        if step != "put":
            old.put()
            for name in ("run.json", "maps/new.npz", "overlays/new.jpg"):
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text("new")
        with monkeypatch.context() as patch:
            killed_at(patch, n)
            try:
                getattr(old, step)()
                done = True
            except SystemExit:
                done = False
        if step == "let_go" and done:
            assert not (folder / ".replaced").exists()
        elif old:
            old.bring_back()
        if step != "let_go" or (folder / "run.json").read_text() != "new":
            assert shown(folder) == before  # the old run, whole, and nothing of the new one
            assert not (folder / "overlays").exists()
        if done:
            break
    assert done
    assert n > 3
