# SPDX-License-Identifier: Apache-2.0
"""The static report of a run: one HTML file that works from disk, without server or network."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from functools import lru_cache
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from fundad_fast.progress import Progress, Task
from fundad_fast.report import gallery, sections
from fundad_fast.report.pictures import draw_all
from fundad_fast.report.run_files import Run, open_run
from fundad_fast.run_folder import replacing

TOP = 200
PAGE_SIZE = 200
TABLE_ROWS = 100_000


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
    shown = run.ranked if top is None else run.ranked[:top]
    chunks = [shown[i : i + page_size] for i in range(0, len(shown), page_size)] or [[]]
    pages = run.folder / "report"
    fresh = run.folder / ".report.part"
    shutil.rmtree(fresh, ignore_errors=True)
    first = b""
    try:
        with (progress or Progress()).task("report", len(shown), "images") as task:
            for i, rows in enumerate(chunks):
                cards = list(_cards(run, rows, i * page_size, threads, max_megapixels, task))
                page = _page(run, cards, i, len(chunks), page_size, len(shown))
                if i == 0:
                    first = page
                else:
                    fresh.mkdir(exist_ok=True)
                    (fresh / _page_name(i)).write_bytes(page)
        shutil.rmtree(pages, ignore_errors=True)  # pages of an earlier, longer report
        if fresh.exists():
            fresh.rename(pages)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    path = run.folder / "report.html"
    with replacing(path) as file:
        file.write(first)
    return path


def _cards(
    run: Run, rows: list[int], start: int, threads: int, max_megapixels: float, task: Task
) -> Iterator[str]:
    content = run.picture_rows(rows)
    pictures = draw_all(run, content, threads=threads, max_megapixels=max_megapixels)
    for rank, (place, row, picture) in enumerate(zip(rows, content, pictures), start + 1):
        yield gallery.card(run, rank, row, sections.flagged(run, place), picture)
        task.advance()


def _page(run: Run, cards: list[str], page: int, pages: int, page_size: int, shown: int) -> bytes:
    top = page == 0
    parts: list[sections.Rendered] = []
    if top:
        parts += [sections.summary(run), sections.distribution(run), sections.metrics(run)]
    links = _links(page, pages)
    parts.append(gallery.section(run, cards, page * page_size, shown, links))
    if top:
        parts += [_rows_section(run), sections.failures(run), sections.settings(run)]
    parts = [part for part in parts if part[2]]
    menu = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name, _ in parts)
    if not top:
        menu = '<a href="../report.html">Report</a>' + menu
    body = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-h"><h2 id="{anchor}-h">{escape(name)}'
        f"</h2>{html}</section>"
        for anchor, name, html in parts
    )
    data = _table_data(run, shown, page_size, pages) if top else {}
    script, style = _asset("page.js"), _asset("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    name = escape(run.folder.resolve().name)
    text = Template(_asset("page.html")).substitute(
        title=f"{name} · fundad report" + ("" if top else f" · page {page + 1}"),
        script_hash=f"sha256-{digest}",
        style=style,
        heading=sections.heading(run),
        menu=menu,
        body=body,
        data=_json(data),
        script=script,
    )
    # Ids may hold halves of surrogate pairs (file names that are not UTF-8).
    return text.encode("utf-8", "replace")


def _rows_section(run: Run) -> sections.Rendered:
    if not len(run):
        return "rows", "All images", '<p class="note">This run has no images.</p>'
    cut = ""
    if len(run) > TABLE_ROWS:
        cut = (
            f'<p class="note">The {TABLE_ROWS:,} worst of {len(run):,} images; the rest is in '
            "<code>scores/</code> in the run folder.</p>"
        )
    return "rows", f"All images ({len(run):,})", cut + _asset("rows.html")


def _table_data(run: Run, shown: int, page_size: int, pages: int) -> dict[str, Any]:
    """The rows of the table as columns, worst first and failures last."""
    order = (run.ranked + run.failed)[:TABLE_ROWS]
    statuses = sorted({str(status) for status in run.column("status", order)})
    classes = sorted({str(name) for name in run.column("class", order) if name is not None})
    place = {name: i for i, name in enumerate(classes)}
    flags = [sections.flagged(run, row) for row in order]
    return {
        "id": [str(id_) for id_ in run.column("id", order)],
        "score": [_rounded(score) for score in run.column("score", order)],
        "pct": [_rounded(share) for share in run.column("score_pct", order)],
        "flag": [-1 if flag is None else int(flag) for flag in flags],
        "label": [-1 if label is None else label for label in run.column("gt_label", order)],
        "class": [-1 if c is None else place[str(c)] for c in run.column("class", order)],
        "status": [statuses.index(str(status)) for status in run.column("status", order)],
        "statuses": statuses,
        "classes": classes,
        "ranked": len(run.ranked),
        "shown": shown,
        "pages": [""] + [f"report/{_page_name(i)}" for i in range(1, pages)],
        "page_size": page_size,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or value != value else float(f"{value:.6g}")


def _json(content: dict[str, Any]) -> str:
    """JSON that cannot end the element that it stands in."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


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


@lru_cache(maxsize=8)
def _asset(name: str) -> str:
    return (resources.files("fundad_fast.report") / "assets" / name).read_text(encoding="utf-8")
