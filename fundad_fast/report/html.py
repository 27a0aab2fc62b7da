# SPDX-License-Identifier: Apache-2.0
"""The static report of a run: one HTML file that works from disk, without server or network."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from fundad_fast.progress import Progress, Task
from fundad_fast.report import drift, gallery, likeness, sections, tables
from fundad_fast.report.asset_files import asset
from fundad_fast.report.page_data import written
from fundad_fast.report.patients import Patients, by_patient
from fundad_fast.report.pictures import Picture, draw_all
from fundad_fast.report.run_files import Rows, Run, open_run
from fundad_fast.run_folder import replacing

TOP = 200
PAGE_SIZE = 200


def write_report(
    run_dir: str | os.PathLike[str],
    *,
    top: int | None = TOP,
    page_size: int = PAGE_SIZE,
    threads: int = 2,
    max_megapixels: float = 200.0,
    progress: Progress | None = None,
) -> Path:
    """Writes ``report.html`` into a run folder, and ``report/page-0002.html`` and on when needed.

    Images are drawn again, small, from the files that the rows name and from the stored maps; where
    a file is gone the card says so. The same run gives the same bytes: the only time in the report
    is the run's own.

    Args:
        run_dir: what score or eval wrote.
        top: how many images the gallery shows, worst first; ``None`` for all.
        page_size: gallery images per file; about 100 kB each.
        threads: that draw images.
        max_megapixels: larger photographs and masks are not decoded for the gallery.
        progress: shown while images are drawn.

    Returns:
        Path of ``report.html``.

    Raises:
        RunError: ``run_dir`` is no run folder, or is damaged.
        ValueError: ``top`` is negative, or ``page_size`` or ``threads`` below 1.
    """
    if (top is not None and top < 0) or page_size < 1 or threads < 1:
        raise ValueError(
            f"report: top={top}, page_size={page_size}, threads={threads}; wanted top >= 0 and the "
            "others >= 1"
        )
    run = open_run(Path(run_dir))
    patients = by_patient(run)
    shown = run.ranked if top is None else run.ranked[:top]
    chunks = [shown[i : i + page_size] for i in range(0, len(shown), page_size)] or [shown]
    pages = run.folder / "report"
    fresh = run.folder / ".report.part"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with (progress or Progress()).task("report", len(shown), "images") as task:
            for i, rows in enumerate(chunks):
                start, content = i * page_size, run.picture_rows(rows)
                pictures = draw_all(run, content, threads=threads, max_megapixels=max_megapixels)
                cards = _cards(run, patients, rows, content, pictures, start, task)
                page = _page(run, patients, cards, content, i, len(chunks), page_size, len(shown))
                with replacing(fresh / "pages" / _page_name(i)) as file:
                    file.writelines(page)
        (fresh / "pages" / _page_name(0)).rename(fresh / "report.html")
        shutil.rmtree(pages, ignore_errors=True)  # pages of an earlier, longer report
        if len(chunks) > 1:
            (fresh / "pages").rename(pages)
        return (fresh / "report.html").replace(run.folder / "report.html")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _cards(
    run: Run,
    patients: Patients | None,
    rows: Rows,
    content: list[dict[str, Any]],
    pictures: Iterable[Picture],
    start: int,
    task: Task,
) -> Iterator[str]:
    flags: list[bool | None] = [None if flag < 0 else bool(flag) for flag in run.flag[rows]]
    first = [True] * len(rows) if patients is None else patients.first()[rows].tolist()
    for k, picture in enumerate(pictures):
        yield gallery.card(start + k + 1, content[k], flags[k], first[k], picture)
        task.advance()


def _page(
    run: Run,
    patients: Patients | None,
    cards: Iterator[str],
    content: list[dict[str, Any]],
    page: int,
    pages: int,
    page_size: int,
    shown: int,
) -> Iterator[bytes]:
    """A page piece by piece: with pictures and 100,000 rows it is long."""
    top = page == 0
    parts: list[sections.Rendered] = []
    if top:
        parts += [sections.summary(run, patients), sections.distribution(run)]
        parts += [sections.metrics(run), drift.section(run), likeness.section(run)]
    links = _links(page, pages)
    start = page * page_size
    maps = run.colour_scale() is not None and any(row["map_path"] for row in content)
    known = patients is not None
    parts.append(gallery.section(run, cards, len(content), start, shown, links, known, maps))
    if top:
        parts += [tables.patients_section(run, patients), tables.rows_section(run, patients)]
        parts += [sections.failures(run), sections.settings(run)]
    parts = [part for part in parts if part[2]]
    menu = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name, _ in parts)
    if not top:
        menu = '<a href="../report.html">Report</a>' + menu
    script, style = asset("page.js") + asset("tables.js"), asset("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    name = escape(run.folder.resolve().name)
    frame = {
        "title": f"{name} · fundad report" + ("" if top else f" · page {page + 1}"),
        "script_hash": f"sha256-{digest}",
        "style": style,
        "heading": sections.heading(run),
        "alarm": likeness.warning(run) if top else "",
        "menu": menu,
        "script": script,
    }
    head, middle, foot = (Template(part).substitute(frame) for part in _frame())
    yield _encoded(head)
    for anchor, name, html in parts:
        yield _encoded(
            f'<section id="{anchor}" aria-labelledby="{anchor}-h">'
            f'<h2 id="{anchor}-h">{escape(name)}</h2>'
        )
        yield from map(_encoded, [html] if isinstance(html, str) else html)
        yield b"</section>"
    yield _encoded(middle)
    targets = [""] + [f"report/{_page_name(i)}" for i in range(1, pages)]
    gallery_of = {"shown": shown, "pages": targets, "page_size": page_size}
    yield from written({**tables.data(run, patients), **gallery_of} if top else {})
    yield _encoded(foot)


def _frame() -> list[str]:
    """What stands before the sections, between them and the data, and after those."""
    head, rest = asset("page.html").split("$body")
    return [head, *rest.split("$data")]


def _encoded(text: str) -> bytes:
    # Ids may hold halves of surrogate pairs (file names that are not UTF-8).
    return text.encode("utf-8", "replace")


def _page_name(page: int) -> str:
    return f"page-{page + 1:04d}.html"


def _links(page: int, pages: int) -> list[tuple[str, str | None]]:
    """(name, target) of the gallery's pages; no target for the page itself."""

    def target(other: int) -> str:
        if other == 0:
            return "../report.html#images"
        return f"{'report/' if page == 0 else ''}{_page_name(other)}"

    if pages == 1:
        return []
    return [(str(i + 1), None if i == page else target(i)) for i in range(pages)]
