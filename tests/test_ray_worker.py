# SPDX-License-Identifier: Apache-2.0
"""What runs on a machine of a cluster, tested without one."""

import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import pytest
from cluster_models import load_null, load_other
from null_method import Null, make_images, null_bundle, score_null, table

from fundad_fast import run_folder
from fundad_fast.archive.ray_engine import RayEngine, check_address
from fundad_fast.archive.ray_worker import Done, Job, Worker
from fundad_fast.archive.run import ScoreOptions
from fundad_fast.bundle import BundleError, environment
from fundad_fast.cli.engines import which_engine
from fundad_fast.cli.options import Engine, UsageError
from fundad_fast.data import discover
from fundad_fast.methods import MethodConfig
from fundad_fast.run_folder import RunError, read_run

N = 61


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("worker") / "in", N)


@pytest.fixture
def local(images, tmp_path):
    """A run of the same images, whose folder the worker writes its maps into."""
    score_null(images, tmp_path / "run")
    return tmp_path / "run"


def job_for(run, load=load_null, **changes):
    job = Job(
        load=load,
        out=str(run),
        created=read_run(run)["created"],
        sample=None,
        model_id="null",
        environment=environment(),
        options=ScoreOptions(batch_size=4, threads=2),
    )
    return replace(job, **changes)


def begun(job):
    worker = Worker(job, "cpu", 1)
    assert worker.begin() is None
    return worker


def stored(rows):
    """Rows by id as they are read back, without times and maps."""
    found = pa.Table.from_pylist(rows, schema=run_folder.row_schema()).to_pylist()
    for row in found:
        del row["ms_read"], row["ms_model"]
    return {row["id"]: row for row in found}


def test_blocks_at_the_same_time_get_their_own_rows(images, local):
    want = table(local)
    for row in want.values():
        row.pop("map", None)
    items = discover(images).items
    sizes = [8, 3, 1, 16, 5, 8, 8, 12]
    assert sum(sizes) == N
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    blocks = [list(items[end - size : end]) for size, end in zip(sizes, ends)]
    worker = begun(job_for(local))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(worker.score, blocks))
    for block, done in zip(blocks, found):
        assert len(done.rows) == len(block)
        assert stored(done.rows) == {item.id: want[item.id] for item in block}
    assert sum(done.spent["score"][0] for done in found) > 0
    assert not worker._block_of


def test_blocks_that_wait_are_one_stream(images, local):
    """A batch holds the end of one block and the beginning of the next."""
    sizes = []
    first = threading.Event()

    class Watched(Null):
        def score(self, batch):
            sizes.append(len(batch))
            first.wait(10)
            return super().score(batch)

    def load(device):
        return null_bundle(method=Watched(MethodConfig(image_size=32, fov="none")))

    items = [item for i, item in enumerate(discover(images).items) if i % 7 != 6][:30]
    worker = begun(job_for(local, load))
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(worker.score, items[at : at + 6]) for at in range(0, 30, 6)]
        time.sleep(0.3)
        first.set()
        done = [one.result() for one in asked]
    assert [len(one.rows) for one in done] == [6] * 5
    # One by one, blocks of 6 would be ten batches of 4 and 2.
    assert len(sizes) < 10
    assert sum(sizes) == 30


def test_what_stops_a_local_run_is_handed_back_and_the_next_block_goes_on(images, local):
    items = list(discover(images).items)
    worker = begun(job_for(local))
    saves = worker._maker.run.save_map

    def full(*args):
        raise OSError(28, "No space left on device", "maps")

    worker._maker.run.save_map = full
    for block in (items[:8], items[8:16]):
        said = worker.score(block)
        assert isinstance(said, OSError)
        assert said.errno == 28
    assert not worker._block_of
    worker._maker.run.save_map = saves
    done = worker.score(items[:8])
    assert isinstance(done, Done)
    assert len(done.rows) == 8


def test_a_mistake_in_the_program_is_not_taken_for_a_full_disk(images, local):
    worker = begun(job_for(local))
    worker._maker.run.save_map = None
    with pytest.raises(TypeError):
        worker.score(list(discover(images).items[:8]))


def no_model(device):
    raise BundleError("model/ is not a folder")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"out": "elsewhere"}, "does not see the run folder elsewhere"),
        ({"created": "2020-01-01T00:00:00+0000"}, "has another run at"),
        ({"sample": "in/0000.png"}, "does not see the input in/0000.png"),
        ({"load": load_other}, "finds the model other, not null"),
        ({"load": no_model}, "cannot load the model: model/ is not a folder"),
    ],
)
def test_a_machine_that_cannot_do_it_says_why(local, changes, said):
    assert said in Worker(job_for(local, **changes), "cpu", 1).begin()


def test_other_versions_are_refused(local):
    versions = {**environment(), "torch": "1.0"}
    said = Worker(job_for(local, environment=versions), "cpu", 1).begin()
    assert said.startswith(f"has torch {environment()['torch']}, but 1.0 is where")


def test_without_ray_there_is_one_line_that_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"pip install 'fundad-fast\[ray\]'"):
        RayEngine(load_null)


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_a_single_device_is_not_for_a_cluster(device, tmp_path):
    with pytest.raises(UsageError, match=f"--device {device} with --engine ray"):
        which_engine(Engine.ray, tmp_path, device, None, False)
    with pytest.raises(UsageError, match="--gpu-decode with --engine ray"):
        which_engine(Engine.ray, tmp_path, None, None, True)
    assert which_engine(Engine.local, tmp_path, device, None, False) is None


def test_an_address_at_which_nothing_answers_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_address(address)
    with pytest.raises(RunError, match=f"nothing answers at RAY_ADDRESS={address}"):
        check_address(address)
    for other in ("", "auto", "local", "ray://somewhere:10001"):
        check_address(other)
