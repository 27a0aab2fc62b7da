# SPDX-License-Identifier: Apache-2.0
"""The command line as a user meets it: exit codes, progress, one clear line for each mistake."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from commands import SETTINGS, call


def test_a_number_that_is_none_is_named_by_its_option(tmp_path):
    assert "--top x: use a number" in call("report", tmp_path, "--top", "x", code=2)


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


def test_an_interrupt_while_torch_is_imported_is_one_line():
    code = """
import sys
class Interrupts:
    def find_spec(self, name, *rest):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
from fundad_fast.cli import main
main()
"""
    command = [sys.executable, "-c", code, "info"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_an_interrupt_later_says_that_it_goes_on(model, cohort, tmp_path, monkeypatch):
    def interrupts(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fundad_fast.archive.run.score_run", interrupts)
    said = call("score", cohort / "test", "-m", model, "-o", tmp_path / "run", code=130)
    assert said.endswith("interrupted; the same command goes on from here\n")
    said = call("score", cohort, "-m", model, "-o", tmp_path / "run", "--overwrite", code=130)
    assert "the same command without --overwrite goes on" in said
    monkeypatch.setattr("fundad_fast.report.write_report", interrupts)
    assert call("report", tmp_path, code=130) == "interrupted\n"  # it begins again


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
