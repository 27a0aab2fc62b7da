# SPDX-License-Identifier: Apache-2.0
"""The command line as a user meets it: exit codes, files, and one clear line for each mistake."""

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from typer.testing import CliRunner

from fundad_fast.cli import app, steps

SETTINGS = [
    *("--weights", "untrained", "--folds", "3"),
    *("--set", "backbone=resnet18", "--set", "layers=layer1,layer2"),
    *("--set", "image_size=64", "--set", "coreset_sampling_ratio=0.1"),
]


def call(*args, code=0, stdin=None):
    result = CliRunner().invoke(app, [str(a) for a in args], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def rows(run):
    return [r for p in sorted(run.glob("scores/*.parquet")) for r in pq.read_table(p).to_pylist()]


@pytest.fixture(scope="module")
def model(cohort, tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "model"
    said = call("fit", cohort, "-o", path, *SETTINGS)
    assert "12 healthy (good)" in said
    assert "the backbone is untrained" in said
    assert "image threshold" in said
    return path


def test_fit_leaves_a_model_and_no_scratch(model):
    assert sorted(p.name for p in model.iterdir()) == [
        "MODEL_CARD.md",
        "bank.safetensors",
        "bundle.json",
        "normal_scores.parquet",
        "weights.safetensors",
    ]
    assert [p.name for p in model.parent.iterdir()] == ["model"]


def test_eval_writes_rows_maps_overlays_and_metrics(model, cohort, tmp_path):
    said = call("eval", cohort, "-m", model, "-o", tmp_path / "run", "--intervals", 50)
    assert "image_AUROC" in said
    assert "image_FPR_threshold" in said
    run = tmp_path / "run"
    table = {row["id"]: row for row in rows(run)}
    assert len(table) == 8
    spot = table["test/spot/01.png"]
    assert (spot["status"], spot["gt_label"], spot["class"]) == ("ok", 1, "spot")
    assert (spot["width"], spot["height"], spot["fov_status"]) == (96, 96, "ok")
    assert spot["score_pct"] == 100
    with np.load(run / spot["map_path"]) as stored:
        assert stored["map"].dtype == np.float16
        assert stored["map"].shape == (16, 16)
        assert np.allclose(stored["affine"], [[6, 0, 2.5], [0, 6, 2.5]])
    mask = cv2.imread(str(cohort / "ground_truth/spot/01_mask.png"), 0) > 0
    region = spot["regions"][0]
    y, x = np.argwhere(mask).mean(0)
    assert region["x"] - 6 <= x <= region["x"] + region["w"] + 6
    assert region["y"] - 6 <= y <= region["y"] + region["h"] + 6
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    assert metrics["image_AUROC"]["value"] == 1.0
    assert metrics["pixel_AUROC"]["value"] > 0.9
    assert metrics["image_AUROC"]["definition"]
    assert len(list((run / "overlays").iterdir())) == 8
    facts = json.loads((run / "run.json").read_text())
    assert facts["counts"] == {"ok": 8}
    assert facts["model"]["id"] == spot["model_id"]


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


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["features", "coreset fold1", "coreset all"])
def test_a_killed_fit_goes_on_and_gives_the_same_model(model, cohort, tmp_path, stage):
    out = tmp_path / "killed"
    command = [sys.executable, "-c", "from fundad_fast.cli import main; main()", "fit"]
    command += [str(cohort), "-o", str(out), *SETTINGS, "--progress", "json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("{"):
                said = json.loads(line)
                if said["stage"] == stage and (stage != "features" or said["done"] >= 4):
                    process.send_signal(signal.SIGKILL)
                    break
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    assert list(tmp_path.glob(".killed.work/*/*/rows.jsonl"))
    subprocess.run(command, check=True, capture_output=True)
    ids = [json.loads((p / "bundle.json").read_text())["id"] for p in (model, out)]
    assert ids[0] == ids[1]
    assert [p.name for p in tmp_path.iterdir()] == ["killed"]


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
    call("score", cohort / "test", "-m", copy, "-o", tmp_path / "run", "--overwrite")
    assert len(rows(tmp_path / "run")) == 8


def test_a_number_that_is_none_is_named_by_its_option(tmp_path):
    assert "--top x: use a number" in call("report", tmp_path, "--top", "x", code=2)


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


def test_a_model_lost_between_two_renames_comes_back(model, cohort, tmp_path):
    shutil.copytree(model, tmp_path / ".m.old")
    said = call("fit", cohort, "-o", tmp_path / "m", *SETTINGS, code=2)
    assert "exists; give another -o" in said
    assert (tmp_path / "m/bundle.json").exists()
    shutil.copytree(model, tmp_path / ".m.old")
    call("fit", cohort, "-o", tmp_path / "m", *SETTINGS, "--overwrite")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_images_to_learn_from_never_judge(model, cohort, tmp_path):
    shutil.copytree(cohort / "train", tmp_path / "data/train")
    shutil.copytree(cohort / "test/spot", tmp_path / "data/train/dr")
    said = call("eval", tmp_path / "data", "-m", model, "-o", tmp_path / "run", code=2)
    assert "in the split test" in said


def test_a_mask_of_another_aspect_is_that_rows_error(model, cohort, tmp_path):
    data = shutil.copytree(cohort, tmp_path / "data")
    wrong = data / "ground_truth/spot/02_mask.png"
    cv2.imwrite(str(wrong), np.full((96, 60), 255, np.uint8))
    half = data / "ground_truth/spot/03_mask.png"
    mask = cv2.imread(str(half), 0)
    cv2.imwrite(str(half), cv2.resize(mask, (48, 48), interpolation=cv2.INTER_NEAREST))
    said = call("eval", data, "-m", model, "-o", tmp_path / "run", "--intervals", 0)
    assert "7 ok, 1 unsupported" in said
    bad = next(r for r in rows(tmp_path / "run") if r["status"] != "ok")
    assert bad["id"] == "test/spot/02.png"
    assert "the mask has 60 x 96 pixels, the image 96 x 96" in bad["error"]
    call("eval", data, "-m", model, "-o", tmp_path / "r2", "--strict", "--intervals", 0, code=1)


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


def test_two_runs_are_compared_on_the_same_images(model, cohort, tmp_path):
    call("fit", cohort, "-o", tmp_path / "m", *SETTINGS, "--set", "combination=F")
    call("eval", cohort, "-m", tmp_path / "m", "-o", tmp_path / "a", "--intervals", 20)
    said = call(
        *("eval", cohort, "-m", model, "-o", tmp_path / "b", "--intervals", 20),
        *("--against", tmp_path / "a"),
    )
    assert "a − b" in said
    compared = json.loads((tmp_path / "b/comparison.json").read_text())
    assert compared["metrics"]["pixel_AUROC"]["difference"] is not None
    (tmp_path / "b/comparison.json").unlink()
    again = call("eval", tmp_path / "b", "--against", tmp_path / "a", "--intervals", 20)
    assert "a − b" in again
    assert json.loads((tmp_path / "b/comparison.json").read_text()) == compared
    assert "RUN --against OTHER" in call("eval", tmp_path / "b", code=2)
    said = call("report", tmp_path / "b", "--top", 3)
    assert "report written" in said


def test_a_config_file_says_what_flags_say(model, cohort, tmp_path):
    (tmp_path / "c.yaml").write_text(
        "method: resad\nweights: untrained\nsettings:\n  backbone: resnet18\n"
        "  layers: [layer1, layer2]\n  image_size: 64\n  coreset_sampling_ratio: 0.5\n"
    )
    call(
        *("fit", cohort, "-o", tmp_path / "m", "--config", tmp_path / "c.yaml", "--folds", 3),
        *("--set", "coreset_sampling_ratio=0.1"),
    )
    ids = [json.loads((p / "bundle.json").read_text())["id"] for p in (model, tmp_path / "m")]
    assert ids[0] == ids[1]


def test_progress_as_json_lines(cohort, tmp_path):
    command = [sys.executable, "-c", "from fundad_fast.cli import main; main()", "fit"]
    command += [str(cohort), "-o", str(tmp_path / "m"), *SETTINGS, "--progress", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    last = {line["stage"]: line for line in lines}
    assert last["features"]["done"] == last["features"]["total"] == 12
    assert last["coreset all"]["done"] == last["coreset all"]["total"]
    command = [sys.executable, "-c", "from fundad_fast.cli import main; main()", "score"]
    command += [str(cohort / "test"), "-m", str(tmp_path / "m"), "-o", str(tmp_path / "run")]
    command += ["--no-report", "--overlays", "none", "--progress", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert (lines[-1]["stage"], lines[-1]["done"], lines[-1]["total"]) == ("score", 8, 8)
    assert {"images_per_second", "eta_seconds", "limits", "failed"} <= lines[-1].keys()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["fit", "{empty}", "-o", "{out}"], "{empty}"),
        (["fit", "{tmp}/absent", "-o", "{out}"], "absent"),
        (["fit", "{sick}", "-o", "{out}"], "no healthy images"),
        (["fit", "{cohort}", "-o", "{out}", "--set", "radious=3"], "did you mean radius"),
        (["fit", "{cohort}", "-o", "{out}", "--set", "radius"], "want KEY=VALUE"),
        (["fit", "{cohort}", "-o", "{out}", "-m", "rasad"], "there are resad, patchcore"),
        (["fit", "{cohort}", "-o", "{out}", "--preset", "best"], "paper, default, quick"),
        (["fit", "{cohort}", "-o", "{out}", "--weights", "{tmp}/w"], "no such file"),
        (["fit", "{cohort}", "-o", "{out}", "--config", "{tmp}/c"], "--config"),
        (["fit", "{cohort}", "-o", "{out}", "--set", "folds=3"], "option of its own"),
        (["fit", "{cohort}", "-o", "{out}", "--set", "backbone=resnet17"], "no model 'resnet17'"),
        (["score", "{cohort}", "-m", "{empty}", "-o", "{out}"], "holds no bundle.json"),
        (["score", "{cohort}", "-m", "{model}", "-o", "{sick}"], "not a run folder"),
        (["fit", "{cohort}", "-o", "{out}", "--set", "weights=x"], "option of its own"),
        (["fit", "{cohort}", "-o", "{out}", "--set", "white_level=.inf"], "white_level"),
        (["fit", "{cohort}", "-o", "{out}", "--device", "foo"], "device=foo"),
        (["fit", "{cohort}", "-o", "/dev/null/x"], "/dev/null"),
        (["fit", "{cohort}", "-o", "{out}", "--set", "layers=layer2,layer2"], "at most once"),
        (["fit", "{cohort}", "-o", "{out}", "--seed", "99999999999"], "seed"),
        (["score", "{cohort}", "{empty}", "-m", "{model}", "-o", "{out}"], "no images in"),
        (["eval", "{cohort}", "-m", "{model}", "-o", "{out}", "--against", "{tmp}"], "run.json"),
        (["eval", "{cohort}", "--against", "{tmp}"], "run.json"),
        (["score", "-", "-m", "{model}", "-o", "{out}"], "standard input is empty"),
        (["score", "{cohort}", "-m", "{model}", "-o", "{out}", "--overlays", "x"], "--overlays x"),
        (["eval", "{cohort}/test/good", "-m", "{model}", "-o", "{out}"], "nothing is labelled"),
        (["info", "--settings", "oracle"], "there are resad, patchcore"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_mistakes_get_one_line_and_exit_code_2(args, says, model, cohort, tmp_path):
    (tmp_path / "empty").mkdir()
    sick = tmp_path / "sick" / "train" / "dr"
    sick.mkdir(parents=True)
    shutil.copy(cohort / "test/spot/00.png", sick)
    names = {
        "empty": tmp_path / "empty",
        "sick": tmp_path / "sick",
        "tmp": tmp_path,
        "cohort": cohort,
        "model": model,
        "out": tmp_path / "out",
    }
    if args[0] == "fit" and "--weights" not in args:
        args = [*args, "--weights", "untrained", "--set", "image_size=64"]
    said = call(*(str(a).format(**names) for a in args), code=2)
    line = said.strip().splitlines()[-1]
    assert line.startswith("fundad: ")
    assert says.format(**names) in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["FUNDAD_ISA", "FUNDAD_BACKEND"])
def test_a_wrong_environment_is_told(name, model, cohort, tmp_path, monkeypatch):
    monkeypatch.setenv(name, "bogus")
    said = call("score", cohort, "-m", model, "-o", tmp_path / "run", code=2)
    assert said.strip().splitlines()[-1].startswith(f"fundad: {name}='bogus'")


def test_info_says_what_is_in_force():
    said = call("info")
    for word in ("torch", "instruction set in force", "kcenter on cpu", "nearest on cpu"):
        assert word in said
    said = call("info", "--settings", "resad")
    assert "coreset_sampling_ratio = 0.1" in said
    assert "preset quick" in said


@pytest.mark.slow
def test_the_demo_goes_the_whole_way(tmp_path):
    said = call("demo", "-o", tmp_path / "demo", "--weights", "untrained")
    assert "image_AUROC" in said
    assert (tmp_path / "demo/model/bundle.json").exists()
    assert list((tmp_path / "demo/run/overlays").glob("*.jpg"))
    assert "exists" in call("demo", "-o", tmp_path / "demo", code=2)


def test_exit_codes_reach_the_shell(tmp_path):
    command = [sys.executable, "-c", "from fundad_fast.cli import main; main()"]
    done = subprocess.run(
        [*command, "score", "x", "-m", str(tmp_path), "-o", str(tmp_path / "o")],
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("fundad: ")
    assert "Traceback" not in done.stderr
