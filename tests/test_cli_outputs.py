# SPDX-License-Identifier: Apache-2.0
"""What commands may write over, and what they never touch."""

import errno
import json
import os
import shutil

import pytest
from commands import SETTINGS, call, rows

from fundad_fast.cli import steps


def test_a_folder_that_cannot_be_removed_is_emptied(tmp_path, monkeypatch):
    rmdir = os.rmdir

    def refuse(path, **at):
        if path == tmp_path:
            raise OSError(errno.EBUSY, "it is mounted")
        rmdir(path, **at)

    monkeypatch.setattr(os, "rmdir", refuse)
    (tmp_path / "maps").mkdir()
    (tmp_path / "run.json").touch()
    steps.fresh(tmp_path, True, "run.json")
    assert not list(tmp_path.iterdir())
    (tmp_path / "run.json").touch()

    def stays(path, **at):
        raise PermissionError(errno.EACCES, "it stays")

    monkeypatch.setattr(os, "unlink", stays)
    with pytest.raises(PermissionError, match="it stays"):
        steps.fresh(tmp_path, True, "run.json")


def test_dry_runs_write_nothing(model, cohort, tmp_path):
    said = call("fit", cohort, "-o", tmp_path / "x", *SETTINGS, "--dry-run")
    assert "12 images x 256 patches" in said
    assert "memory" in said
    said = call("score", cohort, "-m", model, "-o", tmp_path / "y", "--dry-run")
    assert "would score 20 images" in said
    assert list(tmp_path.iterdir()) == []


def test_overwrite_replaces_and_nothing_else_does(model, cohort, tmp_path):
    copy = shutil.copytree(model, tmp_path / "model")
    said = call("fit", cohort, "-o", copy, *SETTINGS, code=2)
    assert "exists; give another -o, or --overwrite" in said
    call("fit", cohort, "-o", copy, *SETTINGS, "--set", "radius=2", "--overwrite")
    assert json.loads((copy / "bundle.json").read_text())["config"]["radius"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    call("score", cohort / "test", "-m", model, "-o", tmp_path / "run")
    said = call("score", cohort / "test", "-m", copy, "-o", tmp_path / "run", code=2)
    assert "was scored by model" in said
    inside = tmp_path / "run" / "x"
    for command in ("score", "eval"):
        said = call(command, cohort, "-m", model, "-o", inside, code=2)
        assert f"lies in the run folder {tmp_path / 'run'}" in said
    call("score", cohort / "test", "-m", copy, "-o", tmp_path / "run", "--overwrite", "--no-maps")
    said = call("score", cohort / "test", "-m", copy, "-o", tmp_path / "run", code=2)
    assert "was made with --no-maps, not --maps" in said
    assert len(rows(tmp_path / "run")) == 8


def test_overwrite_never_touches_what_is_not_its_own(model, cohort, tmp_path):
    data = shutil.copytree(cohort, tmp_path / "data")
    before = sorted(str(p) for p in data.rglob("*"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("mine")
    for args, says in (
        (["score", data, "-m", model, "-o", data], "lie in each other"),
        (["score", data, "-m", model, "-o", data / "run"], "lie in each other"),
        (["score", data / "test", "-m", model, "-o", data], "lie in each other"),
        (["score", data / "test/good/*.png", "-m", model, "-o", data / "test"], "holds an input"),
        (["eval", data, "-m", model, "-o", model], "lie in each other"),
        (["score", data, "-m", model, "-o", tmp_path / "thesis"], "remove it yourself"),
        (["fit", data, "-o", data, *SETTINGS], "is not a model"),
        (["fit", data, "-o", tmp_path / "thesis", *SETTINGS], "is not a model"),
        (["demo", "-o", tmp_path / "thesis"], "remove it yourself"),
        (["score", data, "-m", tmp_path / "typo", "-o", tmp_path / "thesis"], "is not a folder"),
    ):
        said = call(*args, "--overwrite", code=2)
        assert says in said, args
    assert sorted(str(p) for p in data.rglob("*")) == before
    assert (tmp_path / "thesis" / "text").read_text() == "mine"
    assert (model / "bundle.json").exists()


def test_an_overwrite_that_fails_gives_the_old_run_back(model, cohort, tmp_path, monkeypatch):
    run = tmp_path / "run"
    call("score", cohort / "test/good", "-m", model, "-o", run, "--no-report")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def fails(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fundad_fast.archive.run.Scorer", fails)
    call("score", cohort / "test/spot", "-m", model, "-o", run, "--overwrite", code=2)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
