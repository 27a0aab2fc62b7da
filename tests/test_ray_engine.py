# SPDX-License-Identifier: Apache-2.0
"""Scoring on a cluster of Ray: the table of a local run, whatever dies."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cluster_models import load_deadly, load_null, load_other, load_slow
from null_method import make_images, null_bundle, score_null, table
from typer.testing import CliRunner

import fundad_fast
from fundad_fast import run_folder
from fundad_fast.archive import ray_engine
from fundad_fast.archive.ray_engine import RayEngine
from fundad_fast.archive.run import ScoreOptions, score_run
from fundad_fast.cli import app
from fundad_fast.data import discover
from fundad_fast.run_folder import RunError, read_run

pytest.importorskip("ray", reason="Ray is not installed: pip install 'fundad-fast[ray]'")

pytestmark = pytest.mark.slow  # Ray takes some seconds to start

N = 300
TESTS = str(Path(__file__).parent)


@pytest.fixture(scope="module", autouse=True)
def importable():
    """Workers find the models of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        root = str(Path(fundad_fast.__file__).parents[1])
        patch.setenv("PYTHONPATH", os.pathsep.join([TESTS, root]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(run_folder, "PART_ROWS", 8)
    monkeypatch.setattr(ray_engine, "BLOCK", 8)
    monkeypatch.setattr(ray_engine, "_BATCHES", 1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("ray") / "in", N)


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    score_null(images, out)
    return table(out)


@pytest.fixture
def three_nodes():
    """A head and two more nodes of one processor each, all on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    sizes = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**sizes, "include_dashboard": False})
    nodes = [cluster.add_node(**sizes) for _ in range(2)]
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


def score_on_ray(images, out, load=load_null, **options):
    dataset = discover(images)
    chosen = ScoreOptions(**{"batch_size": 4, "threads": 1, **options})
    return score_run(
        null_bundle(), dataset, dataset.items, out, options=chosen, engine=RayEngine(load)
    )


def test_one_node_gives_the_rows_of_a_local_run(images, undisturbed, tmp_path, capfd):
    out = tmp_path / "run"
    assert score_on_ray(images, out, limit=50) == {"ok": 43, "unreadable": 7}
    assert table(out) == dict(list(undisturbed.items())[:48]) | {
        name: undisturbed[name] for name in ("0048.png", "0049.png")
    }
    said = read_run(out)
    assert said["left"] == N - 50
    assert said["profile"]["stages"]["score"]["busy"] > 0
    assert not any(capfd.readouterr())


def events(out):
    """The lines of the log; none before there is one."""
    log = out / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for(what):
    deadline = time.monotonic() + 60
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)


def killed_at_work(cluster, node, out):
    """Kill a node once its worker has begun, and some more maps are there."""
    wait_for(lambda: any(e.get("node_id") == node.node_id for e in events(out)))
    before = len(list(out.glob("maps/*/*.npz")))
    wait_for(lambda: len(list(out.glob("maps/*/*.npz"))) >= before + 6)
    cluster.remove_node(node, allow_graceful=False)


def test_a_node_dies_in_the_middle_and_nothing_is_lost(images, undisturbed, tmp_path, three_nodes):
    cluster, nodes = three_nodes
    out = tmp_path / "run"
    killer = threading.Thread(target=killed_at_work, args=(cluster, nodes[0], out))
    killer.start()
    assert score_on_ray(images, out, load_slow) == {"ok": 258, "unreadable": 42}
    killer.join()
    assert table(out) == undisturbed
    assert not list(out.rglob("*.part"))
    said = events(out)
    began = {e["node_id"] for e in said if e["event"] == "worker"}
    assert nodes[0].node_id in began
    assert len(began) == 3
    assert next(e["node_id"] for e in said if e["event"] == "worker lost") == nodes[0].node_id


def test_the_process_that_was_started_dies_and_the_next_call_goes_on(
    images, undisturbed, tmp_path, three_nodes
):
    cluster, _ = three_nodes
    out = tmp_path / "run"
    child = subprocess.Popen(
        [sys.executable, "-m", "cluster_models", str(images), str(out)],
        env={**os.environ, "RAY_ADDRESS": cluster.address},
    )
    wait_for(lambda: len(list(out.glob("scores/part-*.parquet"))) >= 3)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = len(table(out))
    assert 24 <= kept < N
    assert score_on_ray(images, out) == {"ok": 258, "unreadable": 42}
    assert table(out) == undisturbed
    assert not list(out.rglob("*.part"))


def test_an_image_that_kills_its_process_is_a_row_that_says_so(images, undisturbed, tmp_path):
    out = tmp_path / "run"
    counts = score_on_ray(images, out, load_deadly, limit=40)
    assert counts == {"ok": 34, "unreadable": 5, "failed": 1}
    found = table(out)
    bad = found.pop("0010.png")
    assert bad["error"].startswith("every process that it was given to died")
    assert bad["bytes"] is None  # so that the next call tries again
    assert found == {name: undisturbed[name] for name in found}
    assert score_on_ray(images, out, limit=40) == {"ok": 35, "unreadable": 5}
    assert table(out)["0010.png"] == undisturbed["0010.png"]


def test_a_model_that_is_not_there_is_one_line(images, tmp_path):
    with pytest.raises(RunError, match="^node .* finds the model other, not null"):
        score_on_ray(images, tmp_path / "run", load_other)


def test_the_command_gives_the_rows_of_a_local_one(fitted, cohort, tmp_path, monkeypatch, capfd):
    """Paths relative to where it was called; names hidden; two shards."""
    monkeypatch.chdir(cohort.parent)
    fitted.save(tmp_path / "model")

    def score(out, *options):
        command = ["score", cohort.name, "-m", str(tmp_path / "model"), "-o", str(tmp_path / out)]
        shown = CliRunner().invoke(app, [*command, "--deidentify", "--no-report", *options])
        assert shown.exit_code == 0, shown.output
        return shown.output

    score("local")
    key = str(tmp_path / "local.key")
    for part in ("1/2", "2/2"):
        score(f"ray{part[0]}", "--engine", "ray", "--shard", part, "--key", key)
    want = table(tmp_path / "local")
    found = {**table(tmp_path / "ray1"), **table(tmp_path / "ray2")}
    assert len(want) == len(found) == 20
    for name, row in found.items():
        assert row.pop("score") == pytest.approx(want[name].pop("score"), rel=1e-5)
        for key in ("score_pct", "regions", "map"):
            del row[key], want[name][key]
        assert row == want[name]
    assert "ray" not in capfd.readouterr().err.lower()
