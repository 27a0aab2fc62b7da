# SPDX-License-Identifier: Apache-2.0
"""Long runs in several files, and folders and options that no report can be made of."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from fundad_fast.report import tables, write_report
from fundad_fast.run_folder import RunError

shared = runpy.run_path(str(Path(__file__).with_name("test_report_html.py")))
make_run, report, Page = shared["make_run"], shared["report"], shared["Page"]


def test_many_images_make_pages(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 500, failed=0, labels=False, images=3)
    page = report(tmp_path / "run", top=None, page_size=200)
    pages = sorted(path.name for path in (tmp_path / "run" / "report").iterdir())
    assert pages == ["page-0002.html", "page-0003.html"]
    second = Page(tmp_path / "run" / "report" / "page-0002.html")
    third = Page(tmp_path / "run" / "report" / "page-0003.html")
    for part, first, last in ((page, 1, 200), (second, 201, 400), (third, 401, 500)):
        ids = [card["id"] for card in part.with_class("card")]
        assert (ids[0], ids[-1], len(ids)) == (f"image-{first}", f"image-{last}", last - first + 1)
        assert f"Worst first: {first} to {last} of 500" in part.text
    links = {a["href"] for tag, a in page.elements if tag == "a"}
    assert {"report/page-0002.html", "report/page-0003.html"} <= links
    assert all((tmp_path / "run" / link).exists() for link in links if link[0] != "#")  # type: ignore[index,operator]
    links = {a["href"] for tag, a in second.elements if tag == "a"}
    assert {"../report.html", "../report.html#images", "page-0003.html"} <= links
    data = page.data()
    assert len(data["id"]) == 500
    assert data["pages"] == ["", "report/page-0002.html", "report/page-0003.html"]
    report(tmp_path / "run", top=100)
    assert not (tmp_path / "run" / "report").exists()  # no stale pages
    assert [p.name for p in (tmp_path / "run").glob(".*")] == []


def test_the_gallery_can_be_cut_and_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    page = report(tmp_path / "run", top=2)
    assert len(page.with_class("card")) == 2
    assert "The gallery shows the 2 worst" in page.text
    assert page.data()["shown"] == 2
    assert len(page.data()["id"]) == 8
    assert "The gallery was left out." in report(tmp_path / "run", top=0).text


def test_a_very_long_run_keeps_its_worst_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run")
    monkeypatch.setattr(tables, "TABLE_ROWS", 3)
    page = report(tmp_path / "run")
    assert page.data()["id"] == ["image 5", "image 4", "image 3"]
    assert "The 3 worst of 8 images" in page.text


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda run: (run / "run.json").unlink(), "not a run folder"),
        (lambda run: (run / "run.json").write_text("{"), "damaged"),
        (lambda run: (run / "run.json").write_text('{"schema": 99}'), "schema 99"),
        (lambda run: (run / "run.json").write_text('{"schema": 1}'), "which model"),
        (lambda run: (run / "metrics.json").write_text("[]"), "no JSON object"),
        (lambda run: (run / "scores" / "part-00000.parquet").write_bytes(b"x" * 99), "damaged"),
    ],
)
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, break_it: Any, says: str) -> None:
    make_run(tmp_path / "run")
    break_it(tmp_path / "run")
    with pytest.raises(RunError, match=says):
        write_report(tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("options", [{"top": -1}, {"page_size": 0}, {"threads": 0}])
def test_options_are_checked(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        write_report(tmp_path, **options)  # type: ignore[arg-type]
