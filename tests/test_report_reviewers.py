# SPDX-License-Identifier: Apache-2.0
"""The report of an archive: patients, drift, and whether it is like the training images."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cohorts import photograph
from typer.testing import CliRunner

from fundad_fast.cli import app
from fundad_fast.cli.likeness import print_warnings
from fundad_fast.report import archive_warnings, tables, write_report
from fundad_fast.report import columns as report_columns
from fundad_fast.report.drift import divisions
from fundad_fast.report.patients import by_patient
from fundad_fast.report.run_files import open_run
from fundad_fast.run_folder import row_schema

shared = runpy.run_path(str(Path(__file__).with_name("test_report_html.py")))
make_run, report, Page = shared["make_run"], shared["report"], shared["Page"]

HEALTHY = np.random.default_rng(9).gamma(20, 1, 200)
THRESHOLD = float(np.quantile(HEALTHY, 0.95))


def figures(low: float, high: float, n: int = 100) -> dict[str, float]:
    middle = (low + high) / 2
    return {"n": n, "min": low, "q05": low, "median": middle, "q95": high, "max": high}


CENSUS = {
    "short_side": figures(1000, 1000), "aspect": figures(1.5, 1.5),
    "fov_radius": figures(0.48, 0.5), "brightness": figures(0.2, 0.5), "sizes": {"1500 x 1000": 9},
}  # fmt: skip


def archive(
    run: Path, rows: list[dict[str, Any]], *, census: Any = CENSUS, healthy: Any = HEALTHY
) -> Path:
    """A run folder of these rows, in two parts; what a row does not say is as in training."""
    make_run(run, 0, failed=0, labels=False)
    usual = {"width": 1500, "height": 1000, "fov_r": 490.0, "brightness": 0.3}
    whole = []
    for i, row in enumerate(rows):
        scored = row.get("score") is not None
        more = {**usual, "pred_label": int(row["score"] > THRESHOLD)} if scored else {}
        status = "ok" if scored else "no_fov"
        whole.append({"id": f"image {i:04d}", "path": "", "status": status, **more, **row})
    for k in range(2):
        table = pa.Table.from_pylist(whole[k::2], schema=row_schema())
        pq.write_table(table, run / "scores" / f"part-{k:05d}.parquet")
    about = json.loads((run / "run.json").read_text())
    about["model"]["normal_scores"] = sorted(float(value) for value in healthy)
    about["model"]["thresholds"] = {"image": {"value": THRESHOLD, "target_fpr": 0.05}}
    if census is not None:
        about["model"]["trained_on"]["census"] = census
    (run / "run.json").write_text(json.dumps(about))
    return run


def scores(n: int, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).gamma(20, 1, n).tolist()


def patient(name: str, side: str | None, score: float | None, **more: Any) -> dict[str, Any]:
    return {"patient_id": name, "laterality": side, "score": score, **more}


EYES = [
    patient("b", "R", 20.0), patient("a", "OS", 50.0, id="a left"), patient("c", None, None),
    patient("b", "L", 45.0, id="b left"), patient("a", "right", 22.0), patient("b", "L", None),
    patient("d", "B", 21.0), {"score": 60.0, "id": "nobody"}, patient("b", "L", 20.0),
]  # fmt: skip


def test_a_patient_counts_as_the_worst_eye(tmp_path: Path) -> None:
    page = report(archive(tmp_path / "run", EYES))
    data = page.data()
    found = data["patients"]
    assert found["name"] == ["a", "b", "d", "c"]  # c has no score
    assert [data["id"][k] for k in found["worst"][:2]] == ["a left", "b left"]
    assert data["score"][found["worst"][2]] == 21.0
    assert found["images"] == [2, 4, 1, 1]
    assert found["scored"] == [2, 3, 1, 0]
    assert found["flagged"] == [1, 1, 0, 0]
    assert found["sides"] == {"R": [22.0, 20.0, None, None], "L": [50.0, 45.0, None, None]}
    assert data["id"][0] == "nobody"
    assert data["patient"][0] == -1
    names = [found["name"][code] for code in data["patient"] if code >= 0]
    assert names == ["a", "b", "a", "d", "b", "b", "c", "b"]
    for words in (
        "Patients (4)", "2 with a flagged image", "worst image of either eye (our design)",
        "Of 1 image the patient is not known", "With 2 images each, up to 9.8 % of the healthy",
        "right eye", "left eye", "the worst of each patient",
    ):  # fmt: skip
        assert words in page.text, words


def test_the_gallery_marks_the_worst_of_each_patient(tmp_path: Path) -> None:
    page = report(archive(tmp_path / "run", EYES))
    cards = [(c["id"], c["data-first"]) for c in page.with_class("card")]
    firsts = ["1", "1", "1", "0", "1", "0", "0"]  # nobody, a, b, a, d, b, b
    assert cards == [(f"image-{k + 1}", first) for k, first in enumerate(firsts)]


def test_without_patients_there_is_no_table_of_them(tmp_path: Path) -> None:
    page = report(archive(tmp_path / "run", [{"score": s} for s in scores(3)]))
    assert "Patients" not in page.text
    assert "eye" not in page.text
    assert "patients" not in page.data()


def test_two_names_of_one_hash_value_would_be_needed_to_mix_patients(tmp_path: Path) -> None:
    rows = [patient(f"p{i}", None, 1.0 + i) for i in range(2000)]
    patients = by_patient(open_run(archive(tmp_path / "run", rows)))
    assert patients is not None
    assert len(patients) == 2000


def test_long_tables_keep_the_worst_patients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tables, tables.by_patients):
        monkeypatch.setattr(module, "TABLE_ROWS", 2)
    page = report(archive(tmp_path / "run", EYES))
    data = page.data()
    assert data["patients"]["name"] == ["a", "b"]
    assert data["patients"]["images"] == [2, 4]
    assert (data["id"], data["patient"]) == (["nobody", "a left"], [-1, 0])
    assert data["patients"]["worst"] == [1, -1]  # the worst image of b is not in the table
    assert "The table shows the 2 worst of 4 patients." in page.text


def by_month(shift: float = 0.0, n: int = 60) -> list[dict[str, Any]]:
    """Twelve months, of which May to July score higher."""
    found = []
    for month in range(12):
        higher = shift if month in (4, 5, 6) else 0.0
        day = f"2024-{month + 1:02d}-15"
        found += [{"score": s + higher, "acquired": day} for s in scores(n, month)]
    return found


def test_months_that_differ_are_named(tmp_path: Path) -> None:
    page = report(archive(tmp_path / "run", by_month(6.0)))
    text = page.text.replace("\u00a0", " ")
    found = re.search(r"2024-05 to 2024-07 \(3 months\) score higher than the other months: in "
                      r"(\d+) % to (\d+) % of random pairs", text)  # fmt: skip
    assert found
    assert 64 < int(found[1]) <= int(found[2]) < 100
    assert "2024-05 to 2024-07 (3 months): higher than can be explained" in text
    assert len(page.with_class("unlike")) == 3
    rows = re.findall(r"<tr><td>(2024-\d\d)</td><td class=\"num\">(\d+)</td>", page.source)
    assert rows == [(f"2024-{k + 1:02d}", "60") for k in range(12)]
    assert "others (higher), healthy" in page.text
    assert "This archive looks unlike" not in page.text


def test_months_that_are_alike_are_said_to_be(tmp_path: Path) -> None:
    page = report(archive(tmp_path / "run", by_month()))
    assert "No month is clearly unlike the others." in page.text
    assert "No month is clearly unlike held-out healthy images." in page.text
    assert page.with_class("unlike") == []
    few = report(archive(tmp_path / "few" / "run", by_month(n=5)))
    assert "Too few images to compare: a month needs 20." in few.text


@pytest.mark.parametrize(
    ("days", "word", "names"),
    [
        (["2024-01-31", "2024-03", None, "no day", "2024-13-01"], "month", ("2024-01", "2024-03")),
        ([f"{2000 + k // 12}-{k % 12 + 1:02d}-01" for k in range(61)], "quarter",
         tuple(f"{2000 + k // 4} Q{k % 4 + 1}" for k in range(21))),
        ([f"{1900 + k}-06-01" for k in range(70)], "year", tuple(str(1900 + k) for k in range(70))),
    ],
)  # fmt: skip
def test_months_become_quarters_and_years(
    tmp_path: Path, days: list[str | None], word: str, names: tuple[str, ...]
) -> None:
    rows = [{"score": 1.0, "acquired": day} for day in days]
    (found,) = divisions(open_run(archive(tmp_path / "run", rows)))
    assert (found.word, found.names, found.ordered) == (word, names, True)
    assert sorted(set(found.code.tolist()) - {-1}) == list(range(len(names)))


def test_groups_come_before_folders_and_one_is_none(tmp_path: Path) -> None:
    def of(name: str, rows: list[dict[str, Any]]) -> list[Any]:
        found = divisions(open_run(archive(tmp_path / name / "run", rows)))
        return [(d.word, d.names, d.code.tolist()) for d in found]

    ids = ["y/1.jpg", "x.tar!/2.jpg", "3.jpg", "y/z/4.jpg"]  # in two parts: y and 3, then the rest
    rows = [{"score": 1.0, "id": name} for name in ids]
    assert of("folders", rows) == [("folder", ("x.tar", "y"), [1, -1, 0, 1])]
    grouped = [{**row, "group": group} for row, group in zip(rows, "BABA")]
    assert of("groups", grouped) == [("group", ("A", "B"), [1, 1, 0, 0])]
    assert of("classes", [{**row, "class": "dr"} for row in rows]) == []
    assert of("one", [{**row, "id": f"a/{i}"} for i, row in enumerate(rows)]) == []
    assert of("many", [{"score": 1.0, "id": f"{i}/a"} for i in range(61)]) == []


def test_words_beyond_a_limit_are_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_columns, "MAX_NAMES", 3)
    rows = [{"score": 1.0, "id": f"{i % 4}/{i}", "group": str(i % 3)} for i in range(12)]
    held = open_run(archive(tmp_path / "run", rows)).rows
    assert held.names["folder"] is None
    assert set(held.codes["folder"]) == {-1}
    assert sorted(held.names["group"] or ()) == ["0", "1", "2"]


def test_known_abnormal_images_do_not_drift(tmp_path: Path) -> None:
    rows = [{"score": s, "gt_label": 0, "group": "A"} for s in scores(100, 1)]
    rows += [{"score": s, "gt_label": 0, "group": "B"} for s in scores(100, 2)]
    rows += [{"score": s + 30, "gt_label": 1, "group": "B"} for s in scores(300, 3)]
    page = report(archive(tmp_path / "run", rows))
    assert "No group is clearly unlike the others." in page.text
    assert "known to be abnormal are left out" in page.text
    assert archive_warnings(tmp_path / "run") == []


def test_an_archive_like_the_training_images_raises_no_alarm(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"score": s} for s in scores(300)]
    rows += [{"score": s + 30} for s in scores(200, 1)] + [{"score": None}] * 30
    run = archive(tmp_path / "run", rows)
    assert archive_warnings(run) == []
    page = report(run)
    assert "No sign that they are not." in page.text
    assert page.with_class("alarm") == []


def test_scores_that_no_prevalence_explains_raise_one(tmp_path: Path) -> None:
    run = archive(tmp_path / "run", [{"score": s + 15, "score_pct": 97.0} for s in scores(300)])
    above, below = archive_warnings(run)
    assert re.search(r"of the images are above the threshold, where at most 52 % would be", above)
    assert "0 % of the images score below the median of held-out healthy images" in below
    assert "(the median percentile is 97)" in below
    page = report(run)
    assert len(page.with_class("alarm")) == 1
    text = page.text.replace("\u00a0", " ")
    assert text.count(above) == 2  # at the top, and where it is explained
    assert "The limits are our design." in text


def test_scores_as_of_the_training_images_raise_one(tmp_path: Path) -> None:
    run = archive(tmp_path / "run", [{"score": 0.5 * s} for s in scores(300)])
    (low,) = archive_warnings(run)
    assert "was the model fitted on them" in low


@pytest.mark.parametrize(
    ("looks", "says"),
    [
        ({"width": 600, "height": 400, "fov_r": 196.0}, "another shorter side than the training"),
        ({"width": 1000}, "another aspect (width / height) than"),
        ({"fov_r": 350.0}, "another radius of the field of view than"),
        ({"brightness": 0.1}, "another brightness than"),
    ],
)
def test_another_look_raises_one(tmp_path: Path, looks: dict[str, Any], says: str) -> None:
    rows = [{"score": s, **looks} for s in scores(60)] + [{"score": s} for s in scores(40)]
    (found,) = archive_warnings(archive(tmp_path / "run", rows))
    assert found.startswith(f"60 % of the images have {says}")
    rows = [{"score": s, **looks} for s in scores(20)] + [{"score": s} for s in scores(80)]
    assert archive_warnings(archive(tmp_path / "few" / "run", rows)) == []


def test_an_archive_of_which_most_cannot_be_scored(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"score": None}] * 40 + [{"score": s} for s in scores(60)]
    (found,) = archive_warnings(archive(tmp_path / "run", rows))
    assert found.startswith("40 % of the images have no score, most often no_fov: no field of view")


def test_what_older_models_and_runs_lack_is_said(tmp_path: Path) -> None:
    rows = [{"score": s, "brightness": None} for s in scores(60)]
    page = report(archive(tmp_path / "old model" / "run", rows, census=None))
    assert "fitted by a version that did not store it" in page.text
    page = report(archive(tmp_path / "old run" / "run", rows))
    assert "Not known of this run: brightness." in page.text
    assert page.with_class("alarm") == []
    page = report(archive(tmp_path / "nothing held out" / "run", rows, healthy=()))
    assert "Scores of held-out healthy images are not stored" in page.text
    page = report(archive(tmp_path / "few" / "run", rows[:9]))
    assert "9 images and 200 held-out healthy ones are there, 20 of each are needed." in page.text
    assert "No sign that they are not." not in page.text


def test_names_of_months_groups_and_patients_stay_text(tmp_path: Path) -> None:
    nasty = "</script><q>&'\""
    rows = [
        patient(nasty + str(k), nasty, s + 30 * (k % 2), group=nasty + str(k % 2))
        for k, s in enumerate(scores(60))
    ]
    page = report(archive(tmp_path / "run", rows))
    assert not [tag for tag, _ in page.elements if tag == "q"]
    assert f"{nasty}0 scores lower than the other groups" in page.text
    assert page.data()["divisions"][0]["names"] == [nasty + "0", nasty + "1"]
    assert set(page.data()["patients"]["name"]) == {nasty + str(k) for k in range(60)}
    assert page.data()["sides"] == [nasty]


def test_equal_scores_are_in_order_of_name_whatever_the_parts(tmp_path: Path) -> None:
    rows = [{"score": 2.0, "id": name} for name in "dbca"] + [{"score": 3.0, "id": "z"}]
    page = report(archive(tmp_path / "run", rows))
    assert page.data()["id"] == ["z", "a", "b", "c", "d"]


def test_what_is_held_of_a_row_is_small(tmp_path: Path) -> None:
    rows = [patient("name " * 30 + str(i), "L", 1.0, id="x" * 300 + str(i)) for i in range(400)]
    held = open_run(archive(tmp_path / "run", rows)).rows
    arrays = [*held.numbers.values(), *held.small.values(), *held.codes.values()]
    assert sum(a.nbytes for a in [*arrays, held.patient, held.month]) <= 64 * 400
    assert write_report(tmp_path / "run", top=0).stat().st_size < 1e6


def test_the_terminal_says_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_warnings(archive(tmp_path / "like" / "run", [{"score": s} for s in scores(60)]))
    assert capsys.readouterr().out == ""
    print_warnings(archive(tmp_path / "run", [{"score": s + 15} for s in scores(60)]))
    first, *sentences = capsys.readouterr().out.splitlines()
    assert first.startswith("warning: this archive looks unlike the images that the model was")
    assert [line.strip() for line in sentences] == archive_warnings(tmp_path / "run")


def test_scoring_ends_with_the_warning(tmp_path: Path, fitted: Any) -> None:
    """The command itself, on photographs of half the size of those that the model has seen."""
    (tmp_path / "in").mkdir()
    for i in range(24):
        cv2.imwrite(str(tmp_path / "in" / f"{i}.png"), photograph(i, 48)[..., ::-1])
    fitted.save(tmp_path / "model")
    paths = [tmp_path / "in", "-m", tmp_path / "model", "-o", tmp_path / "run"]
    result = CliRunner().invoke(app, ["score", *map(str, paths), "--overlays", "none"])
    assert result.exit_code == 0, result.output
    assert "warning: this archive looks unlike the images" in result.output
    assert "100 % of the images have another shorter side than the training" in result.output
    assert "(median 48 pixels, training images 96)" in result.output
    assert "Scores were not judged: 24 images and 12 held-out" in report(tmp_path / "run").text


def test_of_images_that_are_known_to_be_healthy_none_are_abnormal(tmp_path: Path) -> None:
    rows = [{"score": 1.12 * s} for s in scores(500)]
    assert archive_warnings(archive(tmp_path / "unknown" / "run", rows)) == []
    known = [{**row, "gt_label": 0} for row in rows]
    above, below = archive_warnings(archive(tmp_path / "run", known))
    assert re.search(r"above the threshold, where at most 5 % would be\.$", above)
    assert re.search(r"where at least 50 % would\.$", below)
    known += [{"score": 90.0, "gt_label": 1}]
    text = report(archive(tmp_path / "more" / "run", known)).text.replace("\u00a0", " ")
    assert re.search(r"% of the images that are not known to be abnormal are above", text)
    assert "Known abnormal images are left out. We call scores remarkable that images like" in text


def test_some_failures_are_no_sign(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"score": None}] * 20 + [{"score": s} for s in scores(80)]
    assert archive_warnings(archive(tmp_path / "run", rows)) == []
