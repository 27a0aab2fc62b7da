# SPDX-License-Identifier: Apache-2.0
"""Scoring in stages: kills, full disks and vanished mounts lose nothing and repeat nothing."""

import errno
import json
import os
import random
import signal
import threading
import time

import numpy as np
import pytest
import torch
from null_method import (
    Null,
    make_images,
    null_bundle,
    score_null,
    score_until_interrupted,
    table,
)

from fundad_fast import run_folder
from fundad_fast.archive import standing
from fundad_fast.archive.model import Scorer
from fundad_fast.archive.regions import top_regions
from fundad_fast.archive.rows import Naming, RowMaker
from fundad_fast.archive.run import ScoreOptions, score_run
from fundad_fast.archive.stages import Stages
from fundad_fast.batch import Batch
from fundad_fast.data import FileStream, InputSpec, Item, Loader, Prepared, ReadError, discover
from fundad_fast.data.parts import ShardError
from fundad_fast.methods import MethodConfig
from fundad_fast.progress import Progress
from fundad_fast.run_folder import RunError, read_rows, read_run


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(run_folder, "PART_ROWS", 8)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("pipeline") / "in", 60)


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert score_null(images, out) == {"ok": 52, "unreadable": 8}
    return table(out)


def test_rows_come_in_the_order_of_the_batches(images, undisturbed):
    names = sorted(p.name for p in images.iterdir())
    bad = {name for i, name in enumerate(names) if i % 7 == 6}
    want = [
        n for at in range(0, 60, 4) for n in sorted(names[at : at + 4], key=lambda n: n not in bad)
    ]
    assert list(undisturbed) == want
    row = undisturbed["0000.png"]
    assert row["regions"]
    assert row["pred_label"] in (0, 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_table_is_the_same_for_any_number_of_threads(images, undisturbed, tmp_path, threads):
    score_null(images, tmp_path / "run", threads=threads)
    again = table(tmp_path / "run")
    assert again == undisturbed
    assert list(again) == list(undisturbed)


def killed_somewhere(forks, images, undisturbed, out, seed):
    rng = random.Random(seed)
    kills = 0
    while kills < 3:
        child = forks.Process(target=score_null, args=(images, out))
        child.start()
        # From a child that has hardly begun to one that is about to end.
        deadline = time.monotonic() + 30
        wanted = rng.randrange(0, 60)
        while child.is_alive() and time.monotonic() < deadline:
            if len(list(out.glob("maps/*/*.npz"))) >= wanted:
                break
            time.sleep(0.001)
        time.sleep(rng.random() * 0.01)
        child.kill()
        child.join()
        kills += 1
    assert score_null(images, out) == {"ok": 52, "unreadable": 8}
    assert table(out) == undisturbed
    assert not list(out.rglob("*.part"))
    for line in (out / "log.jsonl").read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_nothing_is_lost(forks, images, undisturbed, tmp_path, seed):
    killed_somewhere(forks, images, undisturbed, tmp_path / "run", seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 9))
def test_killed_at_twenty_more_moments(forks, images, undisturbed, tmp_path, seed):
    killed_somewhere(forks, images, undisturbed, tmp_path / "run", seed)


def test_an_interrupt_keeps_what_was_scored(forks, images, undisturbed, tmp_path):
    out = tmp_path / "run"
    child = forks.Process(target=score_until_interrupted, args=(images, out))
    child.start()
    deadline = time.monotonic() + 30
    while len(list(out.glob("maps/*/*.npz"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(child.pid, signal.SIGINT)
    child.join(30)
    assert child.exitcode == 7
    kept = len(table(out))
    assert 0 < kept < 60
    assert score_null(images, out) == {"ok": 52, "unreadable": 8}
    assert len(table(out)) == 60


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("at", [0, 1, 5, 20, 40, 58])
def test_a_disk_that_fails_stops_the_run_and_it_goes_on(
    images, undisturbed, tmp_path, monkeypatch, code, name, at
):
    out, calls, works = tmp_path / "run", [], getattr(os, name)

    def fails(*args):
        calls.append(args)
        if len(calls) > at:
            raise OSError(code, os.strerror(code), "somewhere")
        return works(*args)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.os, name, fails)
        with pytest.raises((OSError, RunError), match=os.strerror(code)):
            score_null(images, out)
        if out.exists():
            assert table(out).keys() <= undisturbed.keys()  # nothing torn, nothing twice
    assert not [t for t in threading.enumerate() if t.name.startswith("fundad")]
    assert score_null(images, out) == {"ok": 52, "unreadable": 8}
    assert table(out) == undisturbed


def test_a_log_line_that_was_cut_short_goes(images, tmp_path):
    out = tmp_path / "run"
    score_null(images, out, limit=8)
    with open(out / "log.jsonl", "a") as log:
        log.write('{"time": "2024')
    score_null(images, out, limit=8)
    events = [json.loads(line)["event"] for line in (out / "log.jsonl").open()]
    assert events == ["start", "failed", "end", "resume", "end"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_what_the_system_refused_is_tried_again(images, undisturbed, tmp_path, monkeypatch, code):
    out, reads, opens = tmp_path / "run", [], FileStream.read

    def fails(self, index, *args):
        reads.append(index)
        if 10 <= index < 20:
            try:
                raise OSError(code, os.strerror(code))
            except OSError as error:
                between = ShardError("damaged")
                between.__cause__ = error if index % 2 else None
                cause = between if index % 2 else error
                raise ReadError("unreadable", "the file cannot be read") from cause
        return opens(self, index, *args)

    with monkeypatch.context() as patch:
        patch.setattr(FileStream, "read", fails)
        assert score_null(images, out)["unreadable"] == 17
    reads.clear()
    assert score_null(images, out) == {"ok": 52, "unreadable": 8}
    assert table(out) == undisturbed
    monkeypatch.setattr(FileStream, "read", fails)
    score_null(images, out)
    assert reads == []  # what is damaged itself is not


def test_a_vanished_folder_is_tried_again(images, undisturbed, tmp_path):
    out, hidden = tmp_path / "run", images.with_name("hidden")
    dataset = discover(images)
    images.rename(hidden)
    try:
        counts = score_run(null_bundle(), dataset, dataset.items, out)
    finally:
        hidden.rename(images)
    assert counts == {"unreadable": 60}
    assert score_null(images, out) == {"ok": 52, "unreadable": 8}
    assert table(out) == undisturbed


class Greedy(Null):
    """Takes two images at a time."""

    def __init__(self, config, error):
        super().__init__(config)
        self.error, self.sizes = error, []

    def score(self, batch):
        self.sizes.append(len(batch))
        if len(batch) > 2:
            raise self.error
        return super().score(batch)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("no"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_batches_halve_where_memory_runs_out(images, undisturbed, tmp_path, error):
    method = Greedy(MethodConfig(image_size=32, fov="none"), error)
    dataset = discover(images)
    with pytest.warns(RuntimeWarning, match="ran out"):
        score_run(
            null_bundle(method=method),
            dataset,
            dataset.items,
            tmp_path / "run",
            options=ScoreOptions(batch_size=8),
        )
    assert max(method.sizes[3:]) <= 2
    again = table(tmp_path / "run")
    assert {k: r["score"] for k, r in again.items()} == pytest.approx(
        {k: r["score"] for k, r in undisturbed.items()}
    )


def test_an_image_that_fits_in_no_memory_is_told(images, tmp_path):
    class Hungry(Null):
        def score(self, batch):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    method = Hungry(MethodConfig(image_size=32, fov="none"))
    dataset = discover(images)
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(RunError, match="memory runs out with a single image of 32 pixels"),
    ):
        score_run(null_bundle(method=method), dataset, dataset.items, tmp_path / "run")


def test_other_errors_of_a_method_are_no_lack_of_memory():
    class Broken(Null):
        def score(self, batch):
            raise RuntimeError("shapes differ")

    scorer = Scorer(null_bundle(method=Broken(MethodConfig(image_size=32, fov="none"))))
    with pytest.raises(RuntimeError, match="shapes differ"):
        scorer(Batch(torch.zeros(4, 3, 32, 32), tuple("abcd")))


def test_an_error_of_the_method_ends_the_run_with_its_rows(images, tmp_path):
    class Late(Null):
        calls = 0

        def score(self, batch):
            self.calls += 1
            if self.calls == 9:
                raise ArithmeticError("late")
            return super().score(batch)

    method = Late(MethodConfig(image_size=32, fov="none"))
    dataset = discover(images)
    with pytest.raises(ArithmeticError, match="late"):
        score_run(
            null_bundle(method=method),
            dataset,
            dataset.items,
            tmp_path / "run",
            options=ScoreOptions(batch_size=4),
        )
    assert not [t for t in threading.enumerate() if t.name.startswith("fundad")]
    score_null(images, tmp_path / "run")
    assert len(table(tmp_path / "run")) == 60


def test_the_profile_adds_up_and_names_what_limits(images, tmp_path):
    class Slow(Null):
        def score(self, batch):
            time.sleep(0.02)
            return super().score(batch)

    method = Slow(MethodConfig(image_size=32, fov="none"))
    dataset = discover(images)
    score_run(
        null_bundle(method=method),
        dataset,
        dataset.items,
        tmp_path / "run",
        options=ScoreOptions(batch_size=4),
    )
    profile = read_run(tmp_path / "run")["profile"]
    assert profile["images"] == 60
    assert list(profile["stages"]) == ["read", "score", "regions", "write"]
    shares = {name: stage["busy_share"] for name, stage in profile["stages"].items()}
    assert shares[profile["limits"]] == max(shares.values())
    score = profile["stages"]["score"]
    assert 15 * 0.02 <= score["busy"] <= profile["seconds"]
    assert score["busy"] + score["starved"] + score["blocked"] <= profile["seconds"] + 0.01
    assert profile["images_per_second"] == pytest.approx(60 / profile["seconds"], rel=0.01)


@pytest.mark.parametrize("sign", [1, -1])
def test_no_region_is_missed_by_looking_at_the_cells_first(tmp_path, sign):
    bundle = null_bundle(size=64)
    maker = RowMaker(bundle, tmp_path, Naming(), save_maps=False)
    prepared = Prepared(None, None, np.eye(3)[:2], 64, 64, None)
    found = 0
    for seed in range(40):
        values = torch.rand(8, 8, generator=torch.Generator().manual_seed(seed))
        values = values if sign == 1 else values - 2
        full = torch.nn.functional.interpolate(values[None, None], (64, 64), mode="bilinear")[0, 0]
        for threshold in (full.max(), full.max().nextafter(torch.tensor(-9.0)), full.max() + 1e-3):
            bundle.thresholds["pixel"] = {"value": float(threshold)}
            row = {"id": "a"}
            maker._add_map(row, values, prepared)
            want = top_regions(full.numpy(), float(threshold), prepared.affine, 64, 64)
            assert row["regions"] == want
            found += len(want)
    assert found >= 40


def test_progress_tells_rate_rest_and_limit(images, tmp_path):
    told = []

    class Told(Progress):
        def task(self, name, total, unit="it"):
            from contextlib import nullcontext

            class Task:
                def advance(self, n=1, **info):
                    told.append((n, info))

            return nullcontext(Task())

    dataset = discover(images)
    score_run(null_bundle(), dataset, dataset.items, tmp_path / "run", progress=Told())
    assert sum(n for n, _ in told) == 60
    last = told[-1][1]
    assert last["eta_seconds"] == 0
    assert last["images_per_second"] > 0
    assert last["limits"] in ("read", "score", "regions", "write")


def test_the_stage_that_limits_has_the_busiest_workers():
    stages = Stages(read=1, score=1, regions=4)
    stages.times["read"].busy, stages.times["score"].busy = 1.0, 2.0
    stages.times["regions"].busy = 7.0
    assert stages.limiting() == "score"
    stages.times["regions"].busy = 9.0
    assert stages.limiting() == "regions"


def test_stages_hold_no_more_than_their_room():
    stages, made, taken = Stages(a=1, b=1), [], []
    channel = stages.channel(2, "a", "b")

    def make():
        for i in range(20):
            channel.put(i)
            made.append(i)
        channel.close()

    with stages.running():
        stages.start("a", make)
        for i in channel:
            time.sleep(0.002)
            assert len(made) <= i + 3  # one taken, two in the channel
            taken.append(i)
    assert taken == list(range(20))
    assert stages.times["a"].blocked > 0


def test_a_stream_of_items_is_not_held(images):
    asked = []

    def items():
        for i in range(500):
            asked.append(i)
            yield Item(str(i), str(images / "0000.png"))

    source = FileStream(items())
    spec = InputSpec(image_size=16, fov="none", channels="rgb", bit_depth=8)
    seen = 0
    for chunk in Loader(source, spec, batch_size=8, threads=2):
        seen += len(chunk)
        assert len(chunk.batch.image) == len(chunk.items) == min(8, 500 - seen + len(chunk))
        assert len(source.items._held) <= 24
        assert len(asked) <= seen + 24
    assert seen == 500
    assert not source.items._held


class Many:
    """Items that are made when they are walked."""

    def __init__(self, path, n):
        self.path, self.n = path, n

    def __iter__(self):
        return (Item(f"{i}.png", str(self.path)) for i in range(self.n))


def test_a_long_archive_goes_on_without_holding_it(images, tmp_path, monkeypatch):
    monkeypatch.setattr(standing, "_AT_A_TIME", 32)
    monkeypatch.setattr(standing, "_LOOKED_AT", 10)
    dataset, path = discover(images), tmp_path / "x.png"
    path.write_bytes((images / "0000.png").read_bytes())

    def run(n, **options):
        return score_run(
            null_bundle(), dataset, Many(path, n), tmp_path / "run", options=ScoreOptions(**options)
        )

    assert run(100) == {"ok": 100}
    assert run(150) == {"ok": 150}
    assert run(90) == {"ok": 150}
    os.utime(path, ns=(1, 1))
    assert run(150, limit=120) == {"ok": 120}
    assert read_run(tmp_path / "run")["left"] == 30
    assert run(150) == {"ok": 150}
    assert {row["mtime_ns"] for row in read_rows(tmp_path / "run")} == {1}
    assert len(table(tmp_path / "run")) == 150


def test_two_ids_of_one_hash_both_have_their_row(images, tmp_path, monkeypatch):
    monkeypatch.setattr(standing, "id_hash", lambda name: len(name))
    names = ["0000.png", "0001.png"]
    dataset = discover(images)
    items = [item for item in dataset.items if item.id in names]
    for several in (items[:1], items, items):
        score_run(null_bundle(), dataset, several, tmp_path / "run")
    assert sorted(table(tmp_path / "run")) == names
    assert np.isfinite([row["score"] for row in read_rows(tmp_path / "run")]).all()
