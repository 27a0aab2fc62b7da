# SPDX-License-Identifier: Apache-2.0
"""The gallery of the report: one card per image, worst first, and what the marks mean."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from itertools import chain
from typing import Any

from fundad_fast.report.overlay import distinct_numbers, turbo_stops
from fundad_fast.report.pictures import Picture
from fundad_fast.report.run_files import Run
from fundad_fast.report.sections import Rendered, number
from fundad_fast.run_folder import MOST_REGIONS

ENLARGE = '<button type="button" class="enlarge">Enlarge</button>'


def section(
    run: Run,
    cards: Iterable[str],
    count: int,
    start: int,
    shown: int,
    links: list[tuple[str, str | None]],
    has_patients: bool,
    has_maps: bool = True,
) -> Rendered:
    """The gallery with its controls, and ``count`` cards, which are taken as they are written.

    Args:
        run: whose images they are.
        cards, count: those of this page.
        start, shown: images on earlier pages, and on all of them.
        links: (name, target) of the pages.
        has_patients: whether the images can be told apart by patient.
        has_maps: whether any of these images has a map, beside or over which it can be shown.
    """
    total = len(run.ranked)
    if not count:
        why = "No image was scored." if total == 0 else "The gallery was left out."
        return "images", "Images", f'<p class="note">{why}</p>'
    order = f"Worst first: {start + 1:,} to {start + count:,} of {total:,} scored images."
    if shown < total:
        order += f" The gallery shows the {shown:,} worst; all are in the table of the report."
    pager = _pager(links)
    has_labels = bool((run.label >= 0).any())
    head = (
        f'<p class="note">{order}</p>{_controls(run, has_labels, has_patients, has_maps)}{pager}'
        f'<p class="note" id="none-left" hidden>No image on this page is of that kind.</p>'
        f'<ol class="gallery" start="{start + 1}">'
    )
    return "images", "Images", chain([head], cards, [f"</ol>{pager}"])


def card(rank: int, row: dict[str, Any], flag: bool | None, first: bool, picture: Picture) -> str:
    """One image: pictures, score, percentile, labels, regions; ``first``: its patient's worst."""
    name = escape(str(row["id"]))
    truth = row.get("gt_label")
    outcome = ""
    if flag is not None and truth is not None and flag != (truth == 1):
        outcome = "alarm" if flag else "missed"
    badges = []
    if flag is not None:
        badges.append(
            '<span class="badge flagged">flagged</span>'
            if flag
            else '<span class="badge">not flagged</span>'
        )
    if outcome:
        words = {"alarm": "false alarm", "missed": "missed"}[outcome]
        badges.append(f'<span class="badge outcome">{words}</span>')
    facts = [("score", number(row["score"]))]
    if row.get("score_pct") is not None:
        facts.append(("percentile", f"{row['score_pct']:.1f} among held-out healthy"))
    if truth is not None or row.get("class"):
        told = "unknown" if truth is None else ("healthy", "abnormal")[truth]
        group = f" ({escape(str(row['class']))})" if row.get("class") else ""
        facts.append(("label", told + group))
    for key, column in (("patient", "patient_id"), ("side", "laterality")):
        if row.get(column):
            facts.append((key, escape(str(row[column]))))
    if row.get("regions") is not None:  # no map has none
        facts.append(("regions", _regions(row)))
    listed = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in facts)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in picture.notes)
    return (
        f'<li class="card" id="image-{rank}" data-flag="{"" if flag is None else int(flag)}" '
        f'data-first="{int(first)}" '
        f'data-outcome="{outcome}"><div class="card-head"><span class="rank">{rank}</span>'
        f'<h3 class="id">{name}</h3>{"".join(badges)}</div>{_stage(row, picture, name)}'
        f'<dl class="facts">{listed}</dl>{notes}</li>'
    )


def _stage(row: dict[str, Any], picture: Picture, name: str) -> str:
    if picture.photo is None:
        return '<div class="stage empty"><p>No picture</p></div>'
    size = f'width="{picture.width}" height="{picture.height}" decoding="async"'
    if picture.painted is None:
        return (
            f'<div class="stage single"><div class="pane"><img {size} src="{picture.photo}" '
            f'alt="{name}"></div>{ENLARGE}</div>'
        )
    lesions = ""
    if picture.lesions is not None:
        lesions = f'<path class="lesions" d="{picture.lesions}"/>'
    told = f"Anomaly map of {name}, score {number(row['score'])}"
    return (
        '<div class="stage">'
        f'<div class="pane photo"><img {size} src="{picture.photo}" alt="Photograph {name}"></div>'
        f'<div class="pane map"><img {size} src="{picture.painted}" alt="{told}">'
        f'<svg class="lines" viewBox="0 0 {picture.width} {picture.height}" aria-hidden="true">'
        f'<g transform="translate(.5 .5)"><path class="hot-under" d="{picture.hot}"/>'
        f'<path class="hot" d="{picture.hot}"/>{lesions}</g>{_boxes(row, picture)}</svg></div>'
        f"{ENLARGE}</div>"
        '<label class="wipe"><span>photograph</span>'
        '<input type="range" min="0" max="100" value="50" aria-label="share of the map shown">'
        "<span>map</span></label>"
    )


def _boxes(row: dict[str, Any], picture: Picture) -> str:
    regions = row.get("regions") or []
    if not regions:
        return ""
    kx, ky = picture.width / row["width"], picture.height / row["height"]
    boxes = "".join(
        f'<rect x="{r["x"] * kx:.1f}" y="{r["y"] * ky:.1f}" width="{r["w"] * kx:.1f}" '
        f'height="{r["h"] * ky:.1f}"/>'
        for r in regions
    )
    return f'<g class="regions">{boxes}</g>'


def _regions(row: dict[str, Any]) -> str:
    regions = row["regions"]
    if not regions:
        return "none above the pixel threshold"
    items = "".join(
        f"<li>{number(r['score'])} at x {r['x']}, y {r['y']}, {r['w']} × {r['h']} px</li>"
        for r in regions
    )
    # Rows keep the worst ones alone: where they are full, there may be more.
    which = "the worst " if len(regions) == MOST_REGIONS else ""
    head = f"{which}{len(regions)} above the pixel threshold"
    return f"<details><summary>{head}</summary><ol>{items}</ol></details>"


def _controls(run: Run, has_labels: bool, has_patients: bool, has_maps: bool) -> str:
    kinds = [("", "all"), ("flag-1", "flagged"), ("flag-0", "not flagged")]
    if has_patients:
        kinds.append(("first-1", "the worst of each patient"))
    if has_labels:
        kinds += [("outcome-missed", "missed"), ("outcome-alarm", "false alarms")]
    options = "".join(f'<option value="{value}">{name}</option>' for value, name in kinds)
    show = f'<label class="pick">Show <select id="kind">{options}</select></label>'
    head = '<div class="controls" role="group" aria-label="How the images are shown">'
    if not has_maps:
        return f"{head}{show}</div>"
    return (
        f'{head}<fieldset class="switch"><legend>View</legend>'
        '<label><input type="radio" name="view" value="side" checked><span>side by side</span>'
        '</label><label><input type="radio" name="view" value="wipe"><span>slider</span></label>'
        "</fieldset>"
        '<label class="check"><input type="checkbox" data-layer="hot" checked>threshold outline'
        '<i class="swatch hot"></i></label>'
        '<label class="check"><input type="checkbox" data-layer="lesions" checked>known lesions'
        '<i class="swatch lesions"></i></label>'
        '<label class="check"><input type="checkbox" data-layer="regions">regions'
        '<i class="swatch regions"></i></label>'
        f"{show}{_colour_key(run)}</div>"
    )


def _colour_key(run: Run) -> str:
    scale, threshold = run.colour_scale(), run.threshold("pixel")
    if scale is None:
        return ""
    lo, hi = scale
    texts = distinct_numbers([lo, hi] if threshold is None else [lo, hi, threshold])
    stops = "".join(
        f'<stop offset="{i / 16:g}" stop-color="rgb({r},{g},{b})"/>'
        for i, (r, g, b) in enumerate(turbo_stops(17))
    )
    mark = ""
    if threshold is not None:
        at = 4 + 152 * min(1.0, max(0.0, (threshold - lo) / (hi - lo)))
        side = " (above the scale)" if threshold > hi else " (below)" if threshold < lo else ""
        mark = (
            f'<path class="key-mark" d="M{at:.1f} 0V14"/>'
            f'<text x="80" y="26" text-anchor="middle">threshold {texts[2]}{side}</text>'
        )
    return (
        '<svg class="colour-key" viewBox="-34 -2 228 32" role="img" '
        f'aria-label="Colours of the maps: from {texts[0]} to {texts[1]}">'
        f'<defs><linearGradient id="turbo">{stops}</linearGradient></defs>'
        '<rect x="4" y="2" width="152" height="10" rx="2" fill="url(#turbo)"/>'
        f'<text x="0" y="11" text-anchor="end">{texts[0]}</text>'
        f'<text x="160" y="11">{texts[1]}</text>{mark}</svg>'
    )


def _pager(links: list[tuple[str, str | None]]) -> str:
    if not links:
        return ""
    items = "".join(
        f'<b aria-current="page">{name}</b>' if target is None else f'<a href="{target}">{name}</a>'
        for name, target in links
    )
    return f'<nav class="pages" aria-label="Pages of the gallery">Page {items}</nav>'
