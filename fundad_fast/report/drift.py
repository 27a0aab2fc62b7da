# SPDX-License-Identifier: Apache-2.0
"""Score drift over an archive: by month, by group or folder, in a chart, a table and sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from fundad_fast.evaluation.drift import EFFECT, LEVEL, QUANTILES, Period, drift
from fundad_fast.evaluation.likeness import MIN_IMAGES
from fundad_fast.report.drift_chart import all_unlike, chart
from fundad_fast.report.run_files import Run, not_abnormal, plausible_prevalence
from fundad_fast.report.sections import Rendered, number, percent, sentence, table

MAX_PERIODS = 60
SENTENCES = 6

Ints = NDArray[np.intp]


@dataclass(frozen=True)
class Division:
    """A way to divide the rows of a run.

    Attributes:
        word: what one part is called, such as ``month``.
        names: of the parts, in the order of the chart.
        code: ``[n]`` the part of each row; -1 for none.
        ordered: the parts follow each other in time.
    """

    word: str
    names: tuple[str, ...]
    code: Ints
    ordered: bool


def divisions(run: Run) -> list[Division]:
    """By time where days of acquisition are known; by group, else by the first folder of the ids.

    Months become quarters, then years, where there are more than `MAX_PERIODS`. Groups or folders
    are left out where there is one, or more than that many: they may be one for each patient.
    Folders that name classes are none of the archive's own.
    """
    found = [] if (by_time := _by_time(run.rows.month)) is None else [by_time]
    for name in ("group", "folder"):
        words, code = run.rows.names[name], run.rows.codes[name].astype(np.intp)
        if words is None or not 2 <= len(words) <= MAX_PERIODS:
            continue
        if name == "folder" and (run.rows.codes["class"] >= 0).any():
            continue
        order = sorted(range(len(words)), key=lambda k: words[k])
        place = np.empty(len(words) + 1, np.intp)
        place[order] = np.arange(len(words))
        place[-1] = -1
        found.append(Division(name, tuple(words[k] for k in order), place[code], False))
        break
    return found


def _by_time(month: NDArray[np.int32]) -> Division | None:
    known = month >= 0
    if not known.any():
        return None
    word, months, name = "month", 1, _month_name
    parts = np.unique(month[known])
    if len(parts) > MAX_PERIODS:
        word, months, name = "quarter", 3, _quarter_name
        parts = np.unique(month[known] // months)
    if len(parts) > MAX_PERIODS:
        word, months, name = "year", 12, _year_name
        parts = np.unique(month[known] // months)
    if len(parts) < 2:
        return None
    code = np.where(known, np.searchsorted(parts, month // months), -1)
    return Division(word, tuple(name(int(k)) for k in parts), code.astype(np.intp), True)


def _month_name(k: int) -> str:
    return f"{k // 12}-{k % 12 + 1:02d}"


def _quarter_name(k: int) -> str:
    return f"{k // 4} Q{k % 4 + 1}"


def _year_name(k: int) -> str:
    return str(k)


def section(run: Run) -> Rendered:
    """Each division of the run: what is clear in sentences, a chart, a table."""
    rows = not_abnormal(run)
    parts = [_division(run, division, rows) for division in divisions(run)]
    if not any(parts):
        return "drift", "Drift", ""
    if len(rows) < len(run.ranked):
        parts.append('<p class="note">Images that are known to be abnormal are left out here.</p>')
    parts.append(f'<p class="note">{_rules()}</p>')
    return "drift", "Drift", "".join(parts)


def _division(run: Run, division: Division, rows: Ints) -> str:
    code = division.code[rows]
    known = code >= 0
    if not known.any():
        return ""
    threshold = run.threshold("image")
    periods = drift(
        run.score[rows[known]],
        code[known],
        division.names,
        healthy=run.normal,
        threshold=threshold,
        target_fpr=run.target_fpr(),
        patients=run.rows.patient[rows[known]],
        prevalence=plausible_prevalence(run, rows[known]),
    )
    failed = run.failed[division.code[run.failed] >= 0]
    unscored = np.bincount(division.code[failed], minlength=len(periods)).tolist()
    parts = [
        f'<li class="{style}">{sentence(text)}</li>' for style, text in told(periods, division)
    ]
    picture = chart(periods, run.normal, threshold, ordered=division.ordered)
    missing = len(rows) - int(known.sum())
    if missing:
        what = "day of acquisition" if division.ordered else division.word
        parts.append(f'<li class="soft">Of {missing:,} scored images the {what} is not known.</li>')
    return (
        f'<h3>By {division.word}</h3><ul class="signs">{"".join(parts)}</ul>'
        f'<figure class="long"><figcaption>Image scores: boxes 25 % to 75 % with the median, lines '
        "5 % to 95 %; grey bands: the same of held-out healthy images</figcaption>"
        f'<div class="scroll" tabindex="0" role="group" aria-label="chart">{picture}</div></figure>'
        f"<details><summary>Table by {division.word}</summary>"
        f"{_table(periods, division.word, unscored)}</details>"
    )


def told(periods: Sequence[Period], division: Division) -> list[tuple[str, str]]:
    """Sentences in plain words as (style, text): which parts are clearly unlike, and how."""
    word = division.word
    if sum(p.n >= MIN_IMAGES for p in periods) < 2:
        return [("soft", f"Too few images to compare: a {word} needs {MIN_IMAGES}.")]
    found = []
    for way in ("higher", "lower"):
        for run in _runs(periods, [p.unlike == way for p in periods], division.ordered):
            than = f"{way} than the other {word}s"
            found.append(("sign", f"{_named(run, word)} {than}: {_how(run)}."))
    if not found:
        found.append(("fine", f"No {word} is clearly unlike the others."))
    beyond = []
    for sign, words in (
        ("too_many_above", "flagged more than can be explained"),
        ("too_few_low", "higher than can be explained"),
        ("too_low", "lower than held-out healthy images"),
    ):
        holds = [sign in p.healthy.signs for p in periods]
        together = division.ordered or all_unlike(periods, sign)
        for run in _runs(periods, holds, together):
            beyond.append(("sign", _against_healthy(run, sign, words, word)))
    if not beyond and any(p.healthy.below_median is not None for p in periods):
        beyond.append(("fine", f"No {word} is clearly unlike held-out healthy images."))
    return _shortened(found, word) + _shortened(beyond, word)


def _shortened(found: list[tuple[str, str]], word: str) -> list[tuple[str, str]]:
    if len(found) <= SENTENCES:
        return found
    rest = len(found) - SENTENCES + 1
    return [*found[: SENTENCES - 1], ("sign", f"And {rest} more; the table marks each {word}.")]


def _runs(periods: Sequence[Period], holds: list[bool], together: bool) -> list[list[Period]]:
    """The periods for which something holds; those that follow each other in one list.

    A period of too few images to tell does not come between two others.
    """
    found: list[list[Period]] = []
    going_on = False
    for period, held in zip(periods, holds):
        if period.n < MIN_IMAGES:
            continue
        if held and together and going_on:
            found[-1].append(period)
        elif held:
            found.append([period])
        going_on = held
    return found


def _named(run: list[Period], word: str) -> str:
    if len(run) == 1:
        return f"{run[0].name} scores"
    return f"{run[0].name} to {run[-1].name} ({len(run)} {word}s) score"


def _how(run: list[Period]) -> str:
    chances = [p.above_others or 0.0 for p in run]
    medians = [p.quantiles[2] for p in run]
    images = sum(p.n for p in run)
    return (
        f"in {_span(chances, _whole)} of random pairs the image from there has the higher score "
        f"(median {_span(medians, number)}; {images:,} images)"
    )


def _against_healthy(run: list[Period], sign: str, words: str, word: str) -> str:
    name = run[0].name
    if len(run) > 1:
        name = f"{name} to {run[-1].name} ({len(run)} {word}s)"
    below = _span([p.healthy.below_median or 0.0 for p in run], _whole)
    likeness = run[0].healthy
    if sign == "too_many_above":
        above = _span([p.healthy.above_threshold or 0.0 for p in run], _whole)
        tail = f"{above} are flagged, where at most {_whole(likeness.most_above)} would be"
    elif sign == "too_few_low":
        tail = (
            f"{below} lie below the median of held-out healthy images, where at least "
            f"{_whole(likeness.least_below)} would"
        )
    else:
        return f"{name}: {words}: {below} lie below their median, where half are expected."
    if likeness.prevalence:
        tail += f" if {_whole(likeness.prevalence)} of the images were abnormal"
    return f"{name}: {words}: {tail}."


def _span(values: list[float], show: Callable[[float], str]) -> str:
    low, high = show(min(values)), show(max(values))
    return low if low == high else f"{low} to {high}"


def _whole(share: float) -> str:
    return f"{100 * share:.0f} %"


def _table(periods: Sequence[Period], word: str, unscored: list[int]) -> str:
    head = (
        word, "images", "not scored", *(f"{100 * q:g} %" for q in QUANTILES), "flagged",
        "pairs higher", "unlike",
    )  # fmt: skip
    rows = []
    for period, lost in zip(periods, unscored):
        quantiles = period.quantiles or (None,) * len(QUANTILES)
        unlike = [f"others ({period.unlike})"] if period.unlike else []
        unlike += ["healthy"] if period.healthy.signs else []
        rows.append(
            (
                escape(period.name),
                f"{period.n:,}",
                f"{lost:,}",
                *(number(q) for q in quantiles),
                "–" if period.flagged is None else percent(period.flagged),
                "–" if period.above_others is None else percent(period.above_others),
                f'<b class="sign">{", ".join(unlike)}</b>' if unlike else "",
            )
        )
    return table(head, rows, numeric=tuple(range(1, len(head) - 1)))


def _rules() -> str:
    return sentence(
        "What is called unlike is our design. Unlike the others: at least "
        f"{MIN_IMAGES} images, the image from there has the higher score in more than "
        f"{100 * EFFECT:.0f} % or less than {100 - 100 * EFFECT:.0f} % of random pairs with the "
        f"others, and the rank test of Mann and Whitney rejects at {100 * LEVEL:g} % divided by "
        "the number of comparisons (images of a patient count as one piece of evidence); the "
        "others are those that are not unlike themselves. Unlike "
        "held-out healthy images: as for the whole archive, below. Patients, cameras and image "
        "quality may all be the reason: look at the images."
    )
