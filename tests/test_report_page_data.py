# SPDX-License-Identifier: Apache-2.0
"""A page of the report, which is written piece by piece."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fundad_fast.report import gallery, html, write_report
from fundad_fast.report.page_data import PIECE, written
from fundad_fast.report.run_files import open_run

make_run = runpy.run_path(str(Path(__file__).with_name("test_report_html.py")))["make_run"]


@pytest.mark.parametrize("n", [0, 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 5])
def test_a_long_list_is_the_same_in_pieces(n: int) -> None:
    content = {"id": [f"</a> & {i}" for i in range(n)], "n": n, "side": {"x": np.arange(n)}}
    pieces = list(written(content))
    said = b"".join(pieces)
    plain = {**content, "side": {"x": list(range(n))}}
    assert json.loads(said) == plain
    # As by one call, but for what could end the element that it stands in.
    want = json.dumps(plain, separators=(",", ":"))
    for sign, escape in (("&", "\\u0026"), ("<", "\\u003c"), (">", "\\u003e")):
        want = want.replace(sign, escape)
    assert said.decode() == want
    assert max(map(len, pieces)) < 40 * PIECE


def test_floats_of_arrays_have_six_digits_and_null() -> None:
    scores = np.array([1 / 3, np.nan, np.inf, -np.inf, 1e9 / 7, -0.0], np.float32)
    table = [{"code": np.array([-1, 0], np.int8), "score": scores[:2], "word": "<eye>"}]
    assert b"".join(written(scores)) == b"[0.333333,null,null,null,142857000.0,-0.0]"
    assert json.loads(b"".join(written(table))) == [
        {"code": [-1, 0], "score": [0.333333, None], "word": "<eye>"}
    ]
    with pytest.raises(ValueError, match="Out of range"):
        list(written({"top": float("nan")}))


def test_cards_are_drawn_while_the_page_is_written(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    drawn = []

    def cards() -> Iterator[str]:
        for k in range(3):
            drawn.append(k)
            yield f"<li>{k}</li>"

    run = open_run(tmp_path / "run")
    _, _, pieces = gallery.section(run, cards(), 3, 0, 3, [], False)
    assert drawn == []
    for piece in pieces:
        if piece.startswith("<li>"):
            assert piece == f"<li>{drawn[-1]}</li>"
    assert drawn == [0, 1, 2]


def test_an_earlier_report_stays_until_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    make_run(run)
    write_report(run, page_size=2)
    before = {path: path.read_bytes() for path in run.rglob("*.html")}
    assert len(before) == 3
    draw, calls = html.draw_all, []

    def fails(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return draw(*args, **options)

    monkeypatch.setattr(html, "draw_all", fails)
    with pytest.raises(OSError, match="No space"):
        write_report(run, page_size=2, threads=1)
    assert {path: path.read_bytes() for path in run.rglob("*.html")} == before
    assert not list(run.glob(".*"))
    (run / ".report.part" / "pages").mkdir(parents=True)  # of one that was killed
    (run / ".report.part" / "pages" / "page-0009.html").touch()
    monkeypatch.setattr(html, "draw_all", draw)
    write_report(run, page_size=2)
    assert {path: path.read_bytes() for path in run.rglob("*.html")} == before
