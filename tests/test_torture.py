# SPDX-License-Identifier: Apache-2.0
"""The torture archive by the command line: as documented, killed, and with errors of the system."""

import csv
import errno
import json
import os
import random
import shutil
import signal
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
import torture
from null_method import fundad, null_bundle, table
from pictures import png, rgb
from torture_runs import (
    NO_SUCH_USER,
    score_archive,
    score_as_nobody,
    score_from_a_bad_disk,
    score_on_a_full_disk,
)

from fundad_fast.bundle import save_bundle
from fundad_fast.run_folder import read_run

KILLS, ROUNDS = {200: 3, 2000: 20}, {200: 1, 2000: 3}
ROOT = os.geteuid() == 0
NOBODY = 65534


@pytest.fixture(scope="module")
def place():
    """A folder that every user may enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=[200, pytest.param(2000, marks=pytest.mark.slow)])
def archive(place, request):
    return torture.build(place / f"archive{request.param}", request.param)


@pytest.fixture(scope="module")
def model(place):
    bundle = null_bundle(mixed_inputs="convert")
    for fact in bundle.thresholds.values():
        fact |= {"rule": "none", "target_fpr": 0.05}
    bundle.colour_scale = {"lo": 0.0, "hi": 1.0, "rule": "none"}
    return save_bundle(bundle, place / "model")


@pytest.fixture
def out(place):
    """Where a run goes; also another user may write there."""
    folder = Path(tempfile.mkdtemp(dir=place))
    folder.chmod(0o777)
    yield folder / "run"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def undisturbed(forks, archive, model, place):
    """The run folder of a whole run, with pictures and a report."""
    out = place / f"undisturbed{archive.wanted}"
    more = ("--overlays", 20, "--report")
    run(forks, score_archive, archive.root, model, out, *more)
    return out


def run(forks, work, *arguments, code=0) -> str:
    """Let a child score, which is to end with this exit code; what it said last."""
    child = forks.Process(target=work, args=arguments)
    child.start()
    child.join(300)
    out = next(a for a in reversed(arguments) if isinstance(a, Path))
    said = out.with_name(f"{out.name}.txt").read_text(errors="replace")
    if child.exitcode == NO_SUCH_USER:
        pytest.skip("this system does not let root become another user")
    assert child.exitcode == code, said
    return said.splitlines()[-1]


def test_every_file_has_the_rows_that_are_documented(archive, undisturbed):
    rows = table(undisturbed)
    assert rows.keys() == archive.rows.keys()
    assert len(archive.rows) > archive.files >= archive.wanted
    assert set(archive.ways.values()) == set(torture.WAYS)
    denied = set() if ROOT else archive.denied
    said = {name: (row["status"], row["error"] or "") for name, row in rows.items()}
    wrong = {
        name: (archive.ways.get(name), said[name])
        for name, (status, words) in archive.said(denied).items()
        if said[name][0] != status or words not in said[name][1]
    }
    assert wrong == {}
    for row in rows.values():
        ok = row["status"] == "ok"
        assert ok == (row["error"] is None) == (row["score"] is not None), row
        assert ok == (row["map_path"] is not None), row
    about = read_run(undisturbed)
    assert about["inputs"] == len(rows)
    assert about["left"] == 0
    assert about["counts"] == Counter(row["status"] for row in rows.values())
    with open(undisturbed / "failed.csv", newline="") as file:
        failed = {row["id"]: (row["status"], row["error"]) for row in csv.DictReader(file)}
    assert failed == {n: (r["status"], r["error"]) for n, r in rows.items() if r["status"] != "ok"}
    assert len(list((undisturbed / "overlays").glob("*.jpg"))) == 20
    assert (undisturbed / "report.html").stat().st_size > 10_000
    assert not list(undisturbed.rglob("*.part"))
    said = (undisturbed.parent / f"{undisturbed.name}.txt").read_text(errors="replace")
    assert f"ignored: {archive.ignored} other files" in said
    assert f"{len(rows)} rows in" in said
    assert "Traceback" not in said


def test_strict_tells_by_its_exit_code(forks, archive, model, undisturbed, out):
    shutil.copytree(undisturbed, out)
    run(forks, score_archive, archive.root, model, out, "--strict", code=1)
    assert table(out) == table(undisturbed)


def listed_twice(folder):
    return [folder / "a.png", folder / "a.png"]


def manifest_of_one_id(folder):
    (folder / "m.csv").write_text("path,id\na.png,x\nb.png,x\n")
    return [folder / "m.csv"]


def tar_with_two_of_one_name(folder):
    with tarfile.open(folder / "s.tar", "w") as tar:
        for name in ("a.png", "b.png"):
            tar.add(folder / name, "same.png")
    return [folder / "s.tar"]


@pytest.mark.parametrize(
    "make, words",
    [
        (listed_twice, "a.png is listed twice"),
        (manifest_of_one_id, "the id x names two images"),
        (tar_with_two_of_one_name, "the id s.tar!/same.png is listed twice"),
    ],
)
def test_duplicate_ids_are_refused_before_any_work(model, tmp_path, capsys, make, words):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(rgb(len(name))))
    out = tmp_path / "run"
    assert fundad("score", *make(tmp_path), "-m", model, "-o", out) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not out.exists()


@pytest.mark.skipif(not ROOT, reason="only root may become another user")
def test_what_another_user_may_not_read_is_read_when_root_goes_on(
    forks, archive, model, undisturbed, out
):
    run(forks, score_as_nobody, NOBODY, archive.root, model, out)
    rows, whole = table(out), table(undisturbed)
    denied = ("unreadable", "the file cannot be read: Permission denied")
    assert {(rows[n]["status"], rows[n]["error"]) for n in archive.denied} == {denied}
    assert without(rows, archive.denied) == without(whole, archive.denied)
    run(forks, score_archive, archive.root, model, out)
    assert table(out) == whole


def without(rows, names):
    return {name: row for name, row in rows.items() if name not in names}


def test_killed_at_random_moments(forks, archive, model, undisturbed, out):
    rng, whole, kills = random.Random(archive.wanted), table(undisturbed), 0
    total = sum(row["map_path"] is not None for row in whole.values())
    # From listing on, then all over the run.
    moments = sorted(rng.uniform(-0.1, 1.0) * total for _ in range(KILLS[archive.wanted]))
    for wanted in moments:
        child = forks.Process(target=score_archive, args=(archive.root, model, out))
        child.start()
        deadline = time.monotonic() + 60
        while child.is_alive() and time.monotonic() < deadline:
            if len(list(out.glob("maps/*/*.npz"))) >= wanted:
                break
            time.sleep(0.005)
        time.sleep(rng.random() * (0.5 if wanted <= 0 else 0.02))
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        if (out / "scores").exists():
            found = table(out)  # none twice, none torn
            assert found == {name: whole[name] for name in found}
    assert kills >= len(moments) - 1  # one may have come too late
    finished(forks, archive, model, undisturbed, out)


def finished(forks, archive, model, undisturbed, out):
    """Let the run go on undisturbed: then it is as if nothing had been."""
    run(forks, score_archive, archive.root, model, out)
    assert table(out) == table(undisturbed)
    assert not list(out.rglob("*.part"))
    assert read_run(out)["counts"] == read_run(undisturbed)["counts"]
    failed = [Path(at, "failed.csv").read_text().splitlines() for at in (out, undisturbed)]
    assert sorted(failed[0]) == sorted(failed[1])
    for line in (out / "log.jsonl").read_text().splitlines():
        json.loads(line)
    assert [path.name for path in out.parent.glob(".*")] == []


@pytest.mark.parametrize("code", [errno.ENOSPC, pytest.param(errno.EIO, marks=pytest.mark.slow)])
def test_a_disk_that_takes_no_more_in_the_middle_of_a_file(
    forks, archive, model, undisturbed, out, code
):
    size = sum(path.stat().st_size for path in undisturbed.rglob("*.npz"))
    rng = random.Random(code)
    for _ in range(ROUNDS[archive.wanted]):
        room = rng.randrange(size // 2)
        work = (score_on_a_full_disk, code, room, archive.root, model, out)
        assert os.strerror(code) in run(forks, *work, code=2)
        if (out / "scores").exists():
            found, whole = table(out), table(undisturbed)
            assert found == {name: whole[name] for name in found}
    finished(forks, archive, model, undisturbed, out)


@pytest.mark.parametrize("code", [errno.EIO, pytest.param(errno.ENOSPC, marks=pytest.mark.slow)])
def test_a_disk_that_cannot_read_some_files(forks, archive, model, undisturbed, out, code):
    whole = table(undisturbed)
    for seed in range(ROUNDS[archive.wanted]):
        run(forks, score_from_a_bad_disk, code, 0.2, seed, archive.root, model, out)
        found = table(out)
        bad = [name for name, row in found.items() if os.strerror(code) in (row["error"] or "")]
        assert len(bad) > archive.wanted // 50
        good = {name for name, row in found.items() if row["status"] == "ok"}
        assert {n: found[n] for n in good} == {n: whole[n] for n in good}
    finished(forks, archive, model, undisturbed, out)
