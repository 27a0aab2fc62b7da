# SPDX-License-Identifier: Apache-2.0
"""The report's parts in words and tables, as HTML. Every string from outside is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from fundad_fast.report import charts
from fundad_fast.report.patients import Patients
from fundad_fast.report.run_files import Run
from fundad_fast.words import count

FAILURES_SHOWN = 200
AGAINST_HEALTHY = (("class",), ("group",))  # kinds of groups in metrics.json

STATUS_MEANING = {
    "ok": "scored",
    "no_fov": "no field of view was found",
    "low_quality": "image quality too low",
    "unreadable": "damaged, cut short or missing",
    "unsupported": "a kind of image that this version does not read, or the model does not take",
    "too_large": "larger than the stated limit",
    "too_small": "smaller than can be scored",
    "non_finite": "NaN or infinite pixels",
    "changed": "changed while the run was going on",
    "failed": "an error while scoring",
}

Rendered = tuple[str, str, str | Iterable[str]]
"""Anchor, name in the menu, and HTML, at once or piece by piece; "" = no such section."""


def number(value: float | None) -> str:
    """A score for reading, with four digits; "–" for none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:#.4g}"


def heading(run: Run) -> str:
    """What this page is: model, data, date."""
    model = run.about["model"]
    kind = "Evaluation" if run.metrics is not None else "Scores"
    name = escape(str(model.get("method", "unknown method")))
    preset = f" · preset {escape(str(model['preset']))}" if model.get("preset") else ""
    facts = [
        ("Input", run.about.get("input")),
        ("Layout", run.about.get("layout")),
        ("Model", model.get("id")),
        ("Fitted on", _fitted_on(model)),
        ("Made", run.about.get("created")),
    ]
    rows = "".join(
        f"<div><dt>{key}</dt><dd>{escape(str(value))}</dd></div>"
        for key, value in facts
        if value not in (None, "", [])
    )
    told = "".join(f'<p class="warning">{escape(text)}</p>' for text in model.get("caveats") or [])
    title = f'<h1>{kind} <span class="soft">by {name}{preset}</span></h1>'
    return f'{title}{told}<dl class="run">{rows}</dl>'


def summary(run: Run, patients: Patients | None) -> Rendered:
    """Counts by status, what flagged means, and the two figures one looks for first."""
    flags = run.flag[run.ranked]
    tiles = [("images", f"{len(run):,}", ""), ("scored", f"{len(run.ranked):,}", "")]
    if (flags >= 0).any():
        count = int(np.count_nonzero(flags > 0))
        tiles.append(("flagged", f"{count:,}", f"{percent(count / len(flags))} of those scored"))
    if patients is not None:
        several = int(np.count_nonzero(patients.flagged))
        note = f"{several:,} with a flagged image" if (flags >= 0).any() else ""
        tiles.append(("patients", f"{len(patients):,}", note))
    tiles.append(("not scored", f"{len(run.failed):,}", ""))
    stored = (run.metrics or {}).get("metrics") or {}
    auroc, alarms = stored.get("image_AUROC") or {}, stored.get("image_FPR_threshold") or {}
    if auroc.get("value") is not None:
        note = f"95 % interval {_interval(auroc)}" if _interval(auroc) else ""
        tiles.append(("image AUROC", f"{auroc['value']:.3f}", note))
    if alarms.get("value") is not None:
        aim = (run.about["model"]["thresholds"].get("image") or {}).get("target_fpr")
        note = "" if aim is None else f"the threshold aims at {percent(aim)}"
        tiles.append(("of the healthy flagged", percent(alarms["value"]), note))
    body = "".join(
        f'<div class="tile"><b>{value}</b><span>{name}</span><small>{note}</small></div>'
        for name, value, note in tiles
    )
    parts = [f'<div class="tiles">{body}</div>']
    sentences = [_threshold_sentence(run, kind) for kind in ("image", "pixel")]
    parts.append("".join(f"<p>{sentence}</p>" for sentence in sentences if sentence))
    statuses = run.rows.names["status"] or ()
    seen = run.rows.codes["status"]
    numbers = np.bincount(seen[seen >= 0], minlength=len(statuses))
    counts = {status: int(n) for status, n in zip(statuses, numbers)}
    if set(counts) - {"ok"}:
        rows = [
            (escape(status), f"{n:,}", percent(n / len(run)), STATUS_MEANING.get(status, ""))
            for status, n in sorted(counts.items(), key=lambda kv: (kv[0] != "ok", -kv[1], kv[0]))
        ]
        parts.append(table(("status", "images", "share", "meaning"), rows, numeric=(1, 2)))
    notes = run.about.get("notes") or []
    notes = [notes] if isinstance(notes, str) else notes
    parts.append("".join(f'<p class="note">{escape(str(note))}</p>' for note in notes))
    return "summary", "Summary", "".join(parts)


def distribution(run: Run) -> Rendered:
    """Score histogram against held-out healthy images, and the curves where labels are known."""
    scores = run.score[run.ranked].astype(np.float64)
    truth = run.label[run.ranked]
    known, label = truth >= 0, truth == 1
    groups = [charts.Series("held-out healthy", "s-normal", run.normal)]
    if known.any():
        groups.append(charts.Series("healthy in this run", "s-healthy", scores[known & ~label]))
        groups.append(charts.Series("abnormal in this run", "s-abnormal", scores[known & label]))
        groups.append(charts.Series("unlabelled in this run", "s-run", scores[~known]))
    else:
        groups.append(charts.Series("this run", "s-run", scores))
    threshold = run.threshold("image")
    picture = charts.histogram(groups, threshold)
    if not picture:
        return "scores", "Scores", ""
    key = "".join(
        f'<li class="{s.style}"><i></i>{s.name} ({len(s.scores):,})</li>'
        for s in groups
        if len(s.scores)
    )
    parts = [
        f'<figure class="wide"><figcaption>Share of images per score</figcaption>'
        f'<ul class="key">{key}</ul>{picture}</figure>'
    ]
    scores, label = scores[known], label[known]
    curves = [
        ("ROC curve", charts.roc(scores, label, threshold), "image_AUROC"),
        ("Precision and recall", charts.precision_recall(scores, label, threshold), "image_AP"),
    ]
    parts += [
        f"<figure><figcaption>{name}{_figure_of(run, key)}</figcaption>{svg}</figure>"
        for name, svg, key in curves
        if svg
    ]
    notes = []
    if not len(run.normal):
        notes.append("The scores of held-out healthy images are not stored.")
    if len(parts) > 1:
        dot = "" if threshold is None else " The dot is the model's threshold."
        notes.append(f"Curves over images.{dot} The thin line is chance.")
    told = "".join(f'<p class="note">{note}</p>' for note in notes)
    return "scores", "Scores", f'<div class="charts">{"".join(parts)}</div>{told}'


def metrics(run: Run) -> Rendered:
    """Every figure with its interval and definition; groups below."""
    stored = (run.metrics or {}).get("metrics") or {}
    groups = list(_leaves((run.metrics or {}).get("groups") or {}))
    if not stored and not groups:
        return "metrics", "Metrics", ""
    parts = []
    if stored:
        rows = "".join(_metric_row(name, metric) for name, metric in stored.items())
        parts.append(
            '<table class="metrics"><thead><tr><th scope="col">figure</th><th scope="col" '
            'class="num">value</th><th scope="col" class="num">95 % interval</th><th scope="col" '
            'class="num">images</th></tr></thead>'
            f"<tbody>{rows}</tbody></table>"
        )
    for word in dict.fromkeys(path[:-1] for path, _ in groups):
        of_word = [(path[-1], found) for path, found in groups if path[:-1] == word]
        names = list(dict.fromkeys(name for _, found in of_word for name in found))
        names = [n for n in names if any(found.get(n, {}).get("value") for _, found in of_word)]
        title = escape(" · ".join(word).replace("_", " ")) or "group"
        head = (title, *(name.replace("_", " ") for name in names))
        cells = [(escape(name), *(_cell(found.get(n)) for n in names)) for name, found in of_word]
        against = ", each against all healthy images" if word in AGAINST_HEALTHY else ""
        parts.append(f"<h3>By {title}{against}</h3>")
        parts.append(table(head, cells, numeric=tuple(range(1, len(head)))))
    return "metrics", "Metrics", "".join(parts)


def failures(run: Run) -> Rendered:
    """The rows without a score, each with its reason."""
    if not len(run.failed):
        return "failures", "Failures", ""
    shown = run.failed[:FAILURES_SHOWN]
    columns = run.rows.text(("id", "status", "error"), shown).values()
    rows = [
        (f'<span class="id">{escape(str(id_))}</span>', escape(str(status)), escape(str(error)))
        for id_, status, error in zip(*columns)
    ]
    parts = [table(("image", "status", "reason"), rows)]
    if len(shown) < len(run.failed):
        parts.append(
            f'<p class="note">The first {len(shown)} of {len(run.failed):,}; '
            "<code>failed.csv</code> in the run folder has them all.</p>"
        )
    return "failures", f"Failures ({len(run.failed):,})", "".join(parts)


def settings(run: Run) -> Rendered:
    """All that decided the scores: settings of the run, of the model, versions."""
    model = run.about["model"]
    blocks = [
        ("Versions", run.about.get("environment")),
        ("Run", {"seconds": run.about.get("seconds"), **(run.about.get("settings") or {})}),
        ("Evaluation", (run.metrics or {}).get("settings")),
        ("Thresholds", model.get("thresholds")),
        ("Colours of the maps", model.get("colour_scale")),
        ("Model", model.get("config")),
        ("Input of the model", model.get("input_spec")),
        ("Fitted on", model.get("trained_on")),
    ]
    parts = []
    for name, content in blocks:
        rows = [
            (escape(key), f"<code>{escape(_plain(value))}</code>")
            for key, value in _flat(content or {})
            if value is not None
        ]
        if rows:
            opened = " open" if name == "Versions" else ""
            parts.append(
                f"<details{opened}><summary>{name}</summary>{table(('name', 'value'), rows)}"
                "</details>"
            )
    return "settings", "Settings", "".join(parts)


def table(
    head: tuple[str, ...], rows: Sequence[tuple[str, ...]], numeric: tuple[int, ...] = ()
) -> str:
    """A table of cells that are HTML already; the heads are plain text."""

    def style(i: int) -> str:
        return ' class="num"' if i in numeric else ""

    top = "".join(f'<th scope="col"{style(i)}>{escape(h)}</th>' for i, h in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{style(i)}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return (
        '<div class="scroll" tabindex="0" role="group" aria-label="table">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def percent(share: float) -> str:
    """A share for reading, with three digits."""
    return f"{100 * share:.3g}\u00a0%"


def sentence(text: str) -> str:
    """Plain words as HTML; a per cent sign stays with its number."""
    return escape(text).replace(" %", "\u00a0%")


def _fitted_on(model: Mapping[str, Any]) -> str | None:
    facts = model.get("trained_on") or {}
    n = facts.get("images", facts.get("n"))
    return None if n is None else count(n, "healthy image")


def _threshold_sentence(run: Run, kind: str) -> str:
    stored = (run.about["model"].get("thresholds") or {}).get(kind) or {}
    if stored.get("value") is None:
        return ""
    what = {
        "image": "An image is <b>flagged</b> when its score is above",
        "pixel": "White outlines enclose pixels whose score is above",
    }[kind]
    aim = stored.get("target_fpr")
    tail = "" if aim is None else f", which aims at {percent(aim)} false positives"
    rule = f"<small>Rule: {escape(str(stored['rule']))}.</small>" if stored.get("rule") else ""
    return f"{what} <b>{number(stored['value'])}</b>{tail}. {rule}"


def _figure_of(run: Run, key: str) -> str:
    metric = ((run.metrics or {}).get("metrics") or {}).get(key) or {}
    if metric.get("value") is None:
        return ""
    name = key.removeprefix("image_")
    interval = f" ({_interval(metric)})" if _interval(metric) else ""
    return f" · {name} {metric['value']:.3f}{interval}"


def _interval(metric: Mapping[str, Any]) -> str:
    if metric.get("lo") is None or metric.get("hi") is None:
        return ""
    return f'<span class="as-one">{metric["lo"]:.3f}–{metric["hi"]:.3f}</span>'


def _metric_row(name: str, metric: Mapping[str, Any]) -> str:
    value = "–" if metric.get("value") is None else f"{metric['value']:.3f}"
    why = f" <em>{escape(str(metric['reason']))}.</em>" if metric.get("reason") else ""
    told = escape(str(metric.get("definition", "")))
    return (
        f'<tr><th scope="row"><b>{escape(name.replace("_", " "))}</b>'
        f"<small>{told}{why}</small></th>"
        f'<td class="num">{value}</td><td class="num">{_interval(metric) or "–"}</td>'
        f'<td class="num">{escape(str(metric.get("n", "–")))}</td></tr>'
    )


def _cell(metric: Mapping[str, Any] | None) -> str:
    if metric is None or metric.get("value") is None:
        return "–"
    interval = _interval(metric)
    small = f"<small>{interval}</small>" if interval else ""
    return f"{metric['value']:.3f}{small}"


def _leaves(
    groups: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """(path of names, metrics) of every group, however deep they are nested."""
    found = {k: v for k, v in groups.items() if isinstance(v, Mapping) and "value" in v}
    if found:
        yield path or ("all",), found
    for key, value in groups.items():
        if key not in found and isinstance(value, Mapping):
            yield from _leaves(value, (*path, str(key)))


def _flat(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as pairs of a dotted name and a value."""
    if isinstance(content, Mapping):
        for key in sorted(content, key=str):
            yield from _flat(content[key], f"{path}.{key}" if path else str(key))
    else:
        yield path, content


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(v) for v in value) or "(none)"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
