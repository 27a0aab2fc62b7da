# SPDX-License-Identifier: Apache-2.0
"""Runs as DICOM objects: what is in them, what they refer to, and why a row has none."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from null_method import null_bundle
from typer.testing import CliRunner

pytest.importorskip("highdicom", reason="highdicom is not installed: pip install '.[dicom-out]'")
from dicoms import BASELINE, H, W, pydicom, uid, write_dicom

from fundad_fast.archive.deidentify import Hidden
from fundad_fast.archive.run import ScoreOptions, score_run
from fundad_fast.cli import app
from fundad_fast.data import InputSpec, discover
from fundad_fast.export import clinic, export_dicom
from fundad_fast.export.objects import MAX_REGIONS, regions_of
from fundad_fast.run_folder import RunError, read_rows

OP = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
NAME = "Müller^Jürgen"
PATIENT = {
    "PatientName": NAME, "PatientBirthDate": "19600101", "PatientSex": "M", "StudyID": "7",
    "SpecificCharacterSet": "ISO_IR 100", "StudyDate": "20240531", "StudyTime": "101500",
    "AccessionNumber": "A1", "ReferringPhysicianName": "Meyer^A", "SeriesNumber": 3,
    "InstanceNumber": 2, "Modality": "OP", "BurnedInAnnotation": "YES",
}  # fmt: skip


def spotted(*spots: tuple[int, int]) -> np.ndarray:
    """A dark picture with bright squares of 8 x 8 pixels at (top, left); ``[H, W, 3]`` uint8."""
    picture = np.full((H, W, 3), 40, np.uint8)
    for k, (top, left) in enumerate(spots):
        picture[top : top + 8, left : left + 8] = 250 - 20 * k
    return picture


def write_source(folder: Path, n: int = 1, *spots: tuple[int, int], **tags: Any) -> Path:
    """A file as fundus cameras write them: Ophthalmic Photography, JPEG, one frame that says so."""
    picture = spotted(*(spots or ((8, 16), (20, 36))))
    frame = simplejpeg.encode_jpeg(picture, 95, colorspace="RGB", colorsubsampling="422")
    frame += b"\0" * (len(frame) % 2)
    said = {
        "SOPClassUID": OP, "SOPInstanceUID": f"1.2.3.{n}", "NumberOfFrames": 1,
        "FrameOfReferenceUID": "1.2.77", "PhotometricInterpretation": "YBR_FULL_422",
        **PATIENT, **tags,
    }  # fmt: skip
    for name in [name for name in PATIENT if said[name] is None]:
        del said[name]
    return write_dicom(folder / f"{n}.dcm", picture, [frame], syntax=BASELINE, **said)


def write_frames(path: Path, frames: np.ndarray) -> None:
    write_dicom(path, frames, SOPClassUID=OP, SOPInstanceUID="1.2.3.4", **PATIENT)


def score(source: Path, run: Path, *, scale: bool = True, **options: Any) -> Path:
    """Score a folder by brightness; regions are where it is above a half."""
    spec = InputSpec(image_size=32, fov="none", mixed_inputs="convert")
    bundle = dataclasses.replace(
        null_bundle(),
        input_spec=spec.model_dump(mode="json"),
        thresholds={"image": {"value": 0.2}, "pixel": {"value": 0.5}},
        colour_scale={"lo": 0.2, "hi": 0.9} if scale else None,
    )
    dataset = discover(source)
    score_run(bundle, dataset, dataset.items, run, options=ScoreOptions(threads=1, **options))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_source(tmp_path / "source")
    return score(tmp_path / "source", tmp_path / "run")


def table(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "export.csv", encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def objects(out: Path, name: str = "1.dcm") -> tuple[Any, Any]:
    """The Secondary Capture and the Segmentation of a row."""
    row = table(out)[name]
    return tuple(pydicom.dcmread(out / row[kind]) for kind in ("overlay", "regions"))


def changed(run: Path, **model: Any) -> None:
    """Change what ``run.json`` says of the model."""
    about = json.loads((run / "run.json").read_text())
    about["model"] |= model
    (run / "run.json").write_text(json.dumps(about))


def test_they_join_the_study_and_refer_to_the_source(run: Path, tmp_path: Path) -> None:
    done = export_dicom(run, tmp_path / "out")
    assert (dict(done.written), dict(done.kept)) == ({"overlay": 1, "regions": 1}, {})
    assert not done.left_out
    assert not done.without
    capture, segmentation = objects(tmp_path / "out")
    assert capture.SOPClassUID == uid.SecondaryCaptureImageStorage
    assert segmentation.SOPClassUID == uid.SegmentationStorage
    for one in (capture, segmentation):
        assert (one.PatientName, one.PatientID) == (NAME, "P-7")
        assert (one.StudyInstanceUID, one.StudyDate, one.AccessionNumber) == (
            "1.2",
            "20240531",
            "A1",
        )
        assert one.SeriesInstanceUID != "1.2.9"
        assert one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID
        series = one.ReferencedSeriesSequence[0]
        assert series.SeriesInstanceUID == "1.2.9"
        for item in (series.ReferencedInstanceSequence[0], one.SourceImageSequence[0]):
            assert item.ReferencedSOPClassUID == OP
            assert item.ReferencedSOPInstanceUID == "1.2.3.1"
            assert "ReferencedFrameNumber" not in item
    frame = segmentation.PerFrameFunctionalGroupsSequence[0]
    derived = frame.DerivationImageSequence[0].SourceImageSequence[0]
    assert (derived.ReferencedSOPClassUID, derived.ReferencedSOPInstanceUID) == (OP, "1.2.3.1")
    assert capture.SeriesInstanceUID != segmentation.SeriesInstanceUID
    assert capture.BurnedInAnnotation == "YES"  # the source says so, and its pixels are shown
    assert (capture.Laterality, capture.Manufacturer) == ("L", "fundad_fast")
    assert "not for diagnosis" in capture.DerivationDescription


def test_segments_are_the_regions_worst_first(run: Path, tmp_path: Path) -> None:
    from highdicom.seg import segread

    export_dicom(run, tmp_path / "out")
    path = tmp_path / "out" / table(tmp_path / "out")["1.dcm"]["regions"]
    masks = segread(path).get_pixels_by_source_instance(["1.2.3.1"])[0]
    assert masks.shape == (H, W, 2)
    row = next(iter(read_rows(run)))
    for k, region in enumerate(row["regions"]):
        ys, xs = np.nonzero(masks[..., k])
        x, y, w, h = (region[name] for name in "xywh")
        # The row's boxes are those of the prepared image, 32 x 32.
        assert abs(xs.min() - x) <= 2
        assert abs(ys.min() - y) <= 2
        assert abs(np.ptp(xs) + 1 - w) <= 3
        assert abs(np.ptp(ys) + 1 - h) <= 3
        label = segread(path).SegmentSequence[k].SegmentLabel
        assert label.startswith(f"Region {k + 1}, score 0.")
        assert abs(float(label.split()[-1]) - region["score"]) < 0.1


def test_the_picture_is_the_overlay_without_a_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[np.ndarray, str]] = []

    def draw(*args: Any, **more: Any) -> np.ndarray:
        drawn.append((original(*args, **more), more["title"]))
        return drawn[-1][0]

    original = clinic.overlay
    monkeypatch.setattr(clinic, "overlay", draw)
    export_dicom(run, tmp_path / "out")
    capture, _ = objects(tmp_path / "out")
    picture, title = drawn[0]
    assert title.startswith("null   score 0.2")
    assert "research use only" in title
    assert "dcm" not in title
    shown = pydicom.pixels.pixel_array(capture).astype(float)
    assert shown.shape == picture.shape
    assert np.abs(shown - picture).mean() < 4  # JPEG, half the chroma


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    export_dicom(run, tmp_path / "a")
    export_dicom(run, tmp_path / "b")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.dcm"))
    assert len(files) == 2
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    about = json.loads((run / "run.json").read_text()) | {"created": "2020-01-02T03:04:05+0000"}
    (run / "run.json").write_text(json.dumps(about))
    export_dicom(run, tmp_path / "b")  # another run: other objects, beside the first
    assert len(list((tmp_path / "b").rglob("*.dcm"))) == 4
    assert objects(tmp_path / "b")[0].ContentDate == "20200102"


def test_an_image_that_is_scored_anew_gives_other_objects(run: Path, tmp_path: Path) -> None:
    export_dicom(run, tmp_path / "out")
    before = table(tmp_path / "out")["1.dcm"]
    write_source(tmp_path / "source", 1, (0, 0), (20, 0), (20, 30))
    export_dicom(score(tmp_path / "source", run), tmp_path / "out")
    after = table(tmp_path / "out")["1.dcm"]
    assert before["overlay"] != after["overlay"]
    assert before["regions"] != after["regions"]


def test_what_is_there_is_kept_and_a_kill_leaves_nothing_torn(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(file: Any, *args: Any, **more: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pydicom, "dcmwrite", killed)
        with pytest.raises(KeyboardInterrupt):
            export_dicom(run, tmp_path / "out")
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []
    export_dicom(run, tmp_path / "out")
    row = table(tmp_path / "out")["1.dcm"]
    (tmp_path / "out" / row["regions"]).unlink()
    (tmp_path / "out" / row["overlay"]).write_bytes(b"mine")
    done = export_dicom(run, tmp_path / "out")
    assert (dict(done.written), dict(done.kept)) == ({"regions": 1}, {"overlay": 1})
    assert done.lines() == ["1 overlay (1 already there), 1 segmentation"]
    assert (tmp_path / "out" / row["overlay"]).read_bytes() == b"mine"


def test_what_is_complete_wants_no_source(tmp_path: Path) -> None:
    write_source(tmp_path / "source")
    write_dicom(tmp_path / "source" / "2.dcm", spotted(), SOPInstanceUID="1.2.3.9", **PATIENT)
    run = score(tmp_path / "source", tmp_path / "run")
    export_dicom(run, tmp_path / "out")
    shutil.rmtree(tmp_path / "source")
    done = export_dicom(run, tmp_path / "out")
    assert (dict(done.written), dict(done.kept)) == ({}, {"overlay": 2, "regions": 1})
    assert not done.left_out


def test_why_there_is_none_is_told(tmp_path: Path) -> None:
    source, run, out = tmp_path / "source", tmp_path / "run", tmp_path / "out"
    for n in range(1, 6):
        write_source(source, n)
    write_source(source, 6, SOPInstanceUID="1.2..6")
    write_source(source, 7, StudyInstanceUID=None)
    (source / "8.jpg").write_bytes(simplejpeg.encode_jpeg(spotted((8, 8)), 90))
    write_dicom(source / "9.dcm", spotted(), SOPInstanceUID="1.2.3.9", **PATIENT)
    (source / "10.dcm").write_bytes(b"no image, and so not among what can be exported")
    score(source, run)
    (source / "2.dcm").unlink()
    write_source(source, 3, SOPInstanceUID="1.2.3.77")
    (source / "4.dcm").write_bytes((source / "4.dcm").read_bytes() + b"\0\0")
    rows = {row["id"]: row for row in read_rows(run)}
    (run / rows["5.dcm"]["map_path"]).write_bytes(b"PK\3\4")
    done = export_dicom(run, out)
    assert dict(done.written) == {"overlay": 2, "regions": 1}
    said = {name: row["left_out"] for name, row in table(out).items()}
    orphan = "no DICOM image with valid identifiers, so no study to belong to"
    assert said == {
        "1.dcm": "",
        "2.dcm": "an image that cannot be used (unreadable): the file is not there any more",
        "3.dcm": "an image that cannot be used (changed): the file holds another instance by now",
        "4.dcm": "an image that has changed since it was scored",
        "5.dcm": "a map that is gone or damaged",
        "6.dcm": orphan,
        "7.dcm": orphan,
        "8.jpg": orphan,
        "9.dcm": "no region above the pixel threshold",
    }
    assert done.left_out[orphan] == 3
    assert sum(done.left_out.values()) == 7
    assert dict(done.without) == {"no region above the pixel threshold": 1}
    assert f"rows with {orphan}: 3" in done.lines()


def test_models_without_scale_or_thresholds(run: Path, tmp_path: Path) -> None:
    changed(run, colour_scale=None)
    done = export_dicom(run, tmp_path / "a")
    assert (dict(done.written), done.without.total()) == ({"regions": 1}, 1)
    assert "colour scale" in next(iter(done.without))
    changed(run, thresholds={"image": None, "pixel": None})
    done = export_dicom(run, tmp_path / "b")
    assert (dict(done.written), done.without.total()) == ({}, 2)
    with pytest.raises(RunError, match="no image threshold"):
        export_dicom(run, tmp_path / "b", above_threshold=True)


def test_the_worst_and_those_above_the_threshold(tmp_path: Path) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    for n, spots in enumerate([((0, 0),), ((0, 0), (0, 20)), ((0, 0), (0, 20), (20, 0))], 1):
        write_source(source, n, *spots)
    score(source, run)
    rows = {row["id"]: row for row in read_rows(run)}
    assert [rows[f"{n}.dcm"]["pred_label"] for n in (1, 2, 3)] == [0, 1, 1]
    export_dicom(run, tmp_path / "a", top=1)
    assert list(table(tmp_path / "a")) == ["3.dcm"]
    export_dicom(run, tmp_path / "b", above_threshold=True)
    assert set(table(tmp_path / "b")) == {"2.dcm", "3.dcm"}
    export_dicom(run, tmp_path / "c")
    assert set(table(tmp_path / "c")) == {"1.dcm", "2.dcm", "3.dcm"}
    series = {objects(tmp_path / "c", f"{n}.dcm")[0].SeriesInstanceUID for n in (1, 2, 3)}
    assert len(series) == 1


def test_a_frame_of_several_is_named(tmp_path: Path) -> None:
    frames = np.stack([spotted((8, 8)), spotted((8, 8), (20, 36)), spotted()])
    write_frames(tmp_path / "source" / "m.dcm", frames)
    export_dicom(score(tmp_path / "source", tmp_path / "run"), tmp_path / "out")
    for k in (0, 1):
        for one in objects(tmp_path / "out", f"m.dcm#{k}"):
            assert one.SourceImageSequence[0].ReferencedFrameNumber == k + 1
            assert one.InstanceNumber == k + 1
    frame = objects(tmp_path / "out", "m.dcm#1")[1].PerFrameFunctionalGroupsSequence[0]
    assert frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber == 2
    assert len({row["overlay"] for row in table(tmp_path / "out").values()}) == 3


def test_a_slice_keeps_its_place(tmp_path: Path) -> None:
    place = {
        "FrameOfReferenceUID": "1.2.77", "ImagePositionPatient": [1, 2, 3], "SliceThickness": 5,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [0.5, 0.5],
        "SOPClassUID": CT, "SOPInstanceUID": "1.2.3.5",
    }  # fmt: skip
    grey = spotted((8, 8), (20, 36))[..., 0]
    write_dicom(tmp_path / "source" / "ct.dcm", grey, **{**PATIENT, **place})
    export_dicom(score(tmp_path / "source", tmp_path / "run"), tmp_path / "out")
    _, segmentation = objects(tmp_path / "out", "ct.dcm")
    assert segmentation.FrameOfReferenceUID == "1.2.77"
    groups = segmentation.PerFrameFunctionalGroupsSequence[0]
    assert groups.PlanePositionSequence[0].ImagePositionPatient == [1, 2, 3]
    assert segmentation.SourceImageSequence[0].ReferencedSOPClassUID == CT
    # One place for several frames would be wrong for all but one of them.
    both = np.stack([grey[..., None]] * 2)
    write_dicom(tmp_path / "two" / "ct.dcm", both, **{**PATIENT, **place})
    export_dicom(score(tmp_path / "two", tmp_path / "run2"), tmp_path / "out")
    assert "FrameOfReferenceUID" not in objects(tmp_path / "out", "ct.dcm#1")[1]


def test_a_deidentified_run_is_refused(tmp_path: Path) -> None:
    write_source(tmp_path / "source")
    score(tmp_path / "source", tmp_path / "run", naming=Hidden(b"0" * 32))
    with pytest.raises(RunError, match="is de-identified: its rows name no patient"):
        export_dicom(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_odd_patients_are_taken_over_without_a_word(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "source"
    write_source(source, 1, PatientName="Solo", PatientSex=None, StudyID=None)
    write_source(
        source, 2, PatientName="山田^太郎", SpecificCharacterSet="ISO_IR 192", InstanceNumber=0
    )
    export_dicom(score(source, tmp_path / "run"), tmp_path / "out")
    assert [str(one.PatientName) for one in objects(tmp_path / "out")] == ["Solo", "Solo"]
    assert objects(tmp_path / "out")[0].PatientSex == ""
    for one in objects(tmp_path / "out", "2.dcm"):
        assert (str(one.PatientName), one.InstanceNumber) == ("山田^太郎", 1)
    assert not [w for w in recwarn if "Solo" in str(w.message)]
    assert "Solo" not in caplog.text


def test_without_highdicom_it_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clinic, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"pip install 'fundad-fast\[dicom-out\]'"):
        export_dicom(run, tmp_path / "out")


def test_more_regions_than_segments_share_the_last() -> None:
    scores = np.zeros((9, 60), np.float32)
    for k in range(14):
        scores[3:5, 4 * k : 4 * k + 2] = 1 + k
    inside = np.ones((9, 60), bool)
    inside[:, :4] = False  # the first is out of the field of view
    regions = regions_of(scores, inside, 0.5)
    assert regions is not None
    assert len(regions.names) == MAX_REGIONS + 1
    assert regions.names[0] == "Region 1, score 14"
    assert regions.names[-1] == "3 regions more"
    assert [int(regions.labels[3, 4 * k]) for k in (0, 1, 3, 4, 13)] == [0, 11, 11, 10, 1]
    assert regions_of(scores, inside, 14) is None
    diagonal = np.eye(3, dtype=np.float32)
    assert regions_of(diagonal, None, 0.5).names == ("Region 1, score 1",)  # type: ignore[union-attr]


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is missing")
def test_dciodvfy_finds_no_error(tmp_path: Path) -> None:
    write_source(tmp_path / "source")
    frames = np.stack([spotted((8, 8)), spotted((8, 8), (20, 36))])
    write_frames(tmp_path / "source" / "m.dcm", frames)
    export_dicom(score(tmp_path / "source", tmp_path / "run"), tmp_path / "out")
    files = sorted((tmp_path / "out").rglob("*.dcm"))
    assert len(files) == 6
    for path in files:
        done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True)
        said = done.stdout + done.stderr
        assert "Error" not in said
        assert "Warning" not in said


def test_the_command(run: Path, tmp_path: Path) -> None:
    def call(*args: object) -> Any:
        return CliRunner().invoke(app, ["export", *map(str, args)])

    done = call(run, "--dicom", "-o", tmp_path / "out", "--progress", "none")
    assert done.exit_code == 0, done.output
    assert "1 overlay, 1 segmentation\n" in done.output
    for args, words in (
        ((run, "-o", tmp_path / "out"), "say what to write: export RUN --dicom"),
        ((run, "--dicom", "-o", tmp_path / "source" / "x"), "lie in each other"),
        ((run, "--dicom", "-o", run / "dicom"), "lie in each other"),
        ((run, "--dicom", "-o", tmp_path / "out", "--top", "x"), "--top x: use a number"),
        ((tmp_path, "--dicom", "-o", tmp_path / "out"), "is not a run folder"),
    ):
        done = call(*args)
        assert done.exit_code == 2, done.output
        assert words in done.output
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "layout": "list"}))
    done = call(run, "--dicom", "-o", tmp_path / "source" / "x", "--progress", "none")
    assert done.exit_code == 0, done.output  # the folder is only where a list was given
    several = {**about, "layout": "several", "folders": [str(tmp_path / "source")]}
    (run / "run.json").write_text(json.dumps(several))
    done = call(run, "--dicom", "-o", tmp_path / "source" / "y", "--progress", "none")
    assert done.exit_code == 2
    assert "lie in each other" in done.output
    (run / "run.json").write_text(json.dumps({**about, "layout": "list"}))
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "source").mkdir()
    strict = call(run, "--dicom", "-o", tmp_path / "new", "--strict", "--progress", "none")
    assert strict.exit_code == 2
    assert "nothing was exported" in strict.output
