# SPDX-License-Identifier: Apache-2.0
"""Shards: every input in exactly one, and all of them together are the whole run again."""

import fcntl
import json
import os
import shutil

import pytest
from cohorts import photograph

from fundad_fast.archive.merge import merge_runs
from fundad_fast.archive.run import ScoreOptions, score_run
from fundad_fast.archive.sharding import Shard, id_hash
from fundad_fast.data import discover
from fundad_fast.run_folder import RunError, overlay_path, read_rows, read_run, replacing


def score(fitted, source, out, **options):
    dataset = discover(source)
    return score_run(
        fitted.bundle_, dataset, dataset.items, out, options=ScoreOptions(threads=1, **options)
    )


def without_times(out):
    found = {row["id"]: row for row in read_rows(out)}
    for row in found.values():
        row["score"] = None if row["score"] is None else pytest.approx(row["score"], rel=1e-5)
        for region in row.pop("regions") or ():
            region.clear()
        del row["ms_read"], row["ms_model"]
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    import cv2

    folder = tmp_path_factory.mktemp("shards") / "in"
    folder.mkdir()
    for i in range(7):
        cv2.imwrite(str(folder / f"{i}.png"), photograph(i)[..., ::-1])
    (folder / "bad.png").write_bytes(b"\x89PNG no")
    return folder


@pytest.fixture(scope="module")
def shards(fitted, images):
    paths = [images.parent / f"shard{i}" for i in (1, 2, 3)]
    for i, path in enumerate(paths, 1):
        score(fitted, images, path, shard=Shard(i, 3))
    return paths


@pytest.fixture
def copies(shards, tmp_path):
    return [shutil.copytree(path, tmp_path / path.name) for path in shards]


def test_the_hash_never_changes():
    # Shards of one archive are scored by different machines, months and versions.
    assert id_hash("a/b.png") == 6081340755068888190
    assert id_hash("\udcff") == 11729288294358392782
    assert [Shard(i, 3).holds("a/b.png") for i in (1, 2, 3)] == [True, False, False]


def test_every_id_is_in_one_shard_and_they_are_of_one_size():
    names = [f"{i:05d}.png" for i in range(3000)]
    for of in (1, 2, 7):
        sizes = [sum(Shard(i, of).holds(name) for name in names) for i in range(1, of + 1)]
        assert sum(sizes) == 3000
        assert max(sizes) < 1.2 * 3000 / of


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/5", ""])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="want i/n"):
        Shard.parse(text)


def test_merged_shards_are_the_whole_run(fitted, images, shards, tmp_path):
    whole, merged = tmp_path / "whole", tmp_path / "new" / "merged"
    counts = score(fitted, images, whole)
    with replacing(overlay_path(shards[1], "x")) as file:
        file.write(b"x")
    assert merge_runs([shards[2], shards[0], shards[1]], merged) == counts
    assert without_times(merged) == without_times(whole)
    assert (merged / "failed.csv").read_text() == (whole / "failed.csv").read_text()
    assert overlay_path(merged, "x").read_bytes() == b"x"
    about, want = read_run(merged), read_run(whole)
    for key in ("counts", "inputs", "left", "settings", "model", "input"):
        assert about[key] == want[key], key
    for row in read_rows(merged):
        assert row["map_path"] is None or (merged / row["map_path"]).is_file()
    # It goes on as the whole would: nothing is scored again.
    before = list(read_rows(merged))
    assert score(fitted, images, merged) == counts
    assert list(read_rows(merged)) == before
    assert sorted(p.name for p in merged.parent.iterdir()) == ["merged"]


def refused(paths, out, says):
    with pytest.raises(RunError, match=says):
        merge_runs(paths, out)
    assert not out.exists()


def change(path, **facts):
    about = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**about, **facts}))


def test_what_is_not_all_of_one_run_is_refused(fitted, images, copies, tmp_path):
    a, b, c = copies
    out = tmp_path / "out"
    refused([a, c], out, r"of 3 shards, 1 missing: 2$")
    refused([a, b], out, r"of 3 shards, 1 missing: 3$")
    refused([a, b, c, b], out, "are both shard 2/3")
    refused([a, b, tmp_path], out, "not a run folder")
    change(b, settings={"save_maps": True, "shard": "2/4"})
    refused([a, b, c], out, "shard2 is shard 2/4, but .*shard1 is one of 3")
    change(b, settings={"save_maps": True})
    refused([a, b, c], out, "is no shard")
    change(b, settings={"save_maps": False, "shard": "2/3"})
    refused([a, b, c], out, "differ in setting save_maps: True and False")
    change(b, settings={"save_maps": True, "shard": "2/3"}, input="/elsewhere")
    refused([a, b, c], out, "differ in input")
    change(b, input=str(images), model={"id": "m2"})
    refused([a, b, c], out, "differ in model: .* and m2")


def test_a_shard_that_is_not_finished_is_refused(fitted, images, copies, tmp_path):
    a, b, c = copies
    about = read_run(b)
    lacking = {k: v for k, v in about.items() if k != "counts"}
    (b / "run.json").write_text(json.dumps(lacking))
    refused([a, b, c], tmp_path / "out", r"\(shard 2/3\) is not finished")
    shutil.rmtree(b)
    score(fitted, images, b, shard=Shard(2, 3), limit=1)
    refused([a, b, c], tmp_path / "out", r"lacks \d of its \d inputs; .*without --limit")
    score(fitted, images, b, shard=Shard(2, 3))
    assert sum(merge_runs(copies, tmp_path / "out").values()) == 8


def test_an_id_in_two_shards_is_refused(copies, tmp_path):
    a, b, _ = copies
    shutil.copy(a / "scores/part-00000.parquet", b / "scores/part-00001.parquet")
    refused(copies, tmp_path / "out", "has a row in .*shard1 and one in .*shard2")


def test_a_shard_that_lost_a_file_of_rows_is_refused(copies, tmp_path):
    next((copies[1] / "scores").iterdir()).unlink()
    refused(copies, tmp_path / "out", r"shard2 holds 0 rows, where \d were scored")


def test_what_is_overwritten_goes_when_the_new_one_is_complete(copies, tmp_path):
    out = tmp_path / "out"
    merge_runs(copies, out)
    (out / "mine").touch()
    with pytest.raises(RunError, match="missing"):
        merge_runs(copies[:2], out, overwrite=True)
    assert (out / "mine").exists()
    assert sum(merge_runs(copies, out, overwrite=True).values()) == 8
    assert not (out / "mine").exists()
    (out / "run.json").unlink()
    with pytest.raises(RunError, match="not a run folder"):
        merge_runs(copies, out, overwrite=True)
    assert (out / "scores").exists()


def test_a_shard_that_is_being_written_is_refused(copies, tmp_path):
    with open(copies[1] / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(copies, tmp_path / "out", "another process is writing to .*shard2")
    assert merge_runs(copies, tmp_path / "out")
    with pytest.raises(RunError, match="exists"):
        merge_runs(copies, tmp_path / "out")


def test_a_killed_merge_is_no_obstacle(copies, tmp_path):
    (tmp_path / ".out.merging").mkdir()
    (tmp_path / ".out.merging" / "half").touch()
    merge_runs(copies, tmp_path / "out")
    assert not (tmp_path / "out" / "half").exists()


def test_a_limit_is_the_first_inputs_and_may_grow(fitted, images, tmp_path):
    out = tmp_path / "run"
    names = [p.name for p in sorted(images.iterdir())]
    for limit, rows in ((2, 2), (2, 2), (5, 5), (3, 5), (None, 8)):
        score(fitted, [str(images / name) for name in names], out, limit=limit)
        about = read_run(out)
        got = sorted(os.path.basename(row["path"]) for row in read_rows(out))
        assert got == names[:rows]
        assert (about["inputs"], about["left"]) == (8, 8 - rows)


def test_another_shard_in_the_folder_is_refused(fitted, images, shards):
    with pytest.raises(RunError, match="made with shard=1/3, not shard=2/3"):
        score(fitted, images, shards[0], shard=Shard(2, 3))
