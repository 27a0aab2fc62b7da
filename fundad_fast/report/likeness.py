# SPDX-License-Identifier: Apache-2.0
"""Whether an archive looks unlike the images that the model was fitted on, in plain words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fundad_fast.evaluation.likeness import (
    MIN_IMAGES,
    OUTSIDE,
    SIGMAS,
    TOO_LOW,
    Likeness,
    Looks,
    compare_looks,
    like_healthy,
)
from fundad_fast.report.run_files import Run, not_abnormal, open_run, plausible_prevalence
from fundad_fast.report.sections import STATUS_MEANING, Rendered, percent, sentence, table

ADVICE = (
    "Scores, percentiles and the threshold may mean little here: look at the images, and consider "
    "fitting on healthy images of this archive."
)
_WORDS = {
    "short_side": ("shorter side", "pixels"),
    "aspect": ("aspect (width / height)", ""),
    "fov_radius": ("radius of the field of view", "of the shorter side"),
    "brightness": ("brightness", "of white"),
}


def archive_warnings(run_dir: str | os.PathLike[str]) -> list[str]:
    """In what a scored archive looks unlike the images that its model was fitted on.

    Returns:
        one sentence for each sign; empty where there is none, or where too little is known.

    Raises:
        RunError: ``run_dir`` is no run folder, or is damaged.
    """
    run = open_run(Path(run_dir))
    return signs(run, of_scores(run), of_looks(run))


def of_scores(run: Run) -> Likeness:
    """The run's scores against held-out healthy images; known abnormal images are left out."""
    rows = not_abnormal(run)
    return like_healthy(
        run.score[rows],
        run.normal,
        threshold=run.threshold("image"),
        target_fpr=run.target_fpr(),
        patients=run.rows.patient[rows],
        prevalence=plausible_prevalence(run, rows),
    )


def of_looks(run: Run) -> list[Looks] | None:
    """Sizes, field of view and brightness against the training images; ``None``: not stored."""
    census = (run.about["model"].get("trained_on") or {}).get("census")
    if not isinstance(census, dict):
        return None
    return compare_looks(census, _features(run))


def _features(run: Run) -> dict[str, NDArray[np.float64]]:
    width, height, radius, bright = (
        run.rows.numbers[name][run.ranked].astype(np.float64)
        for name in ("width", "height", "fov_r", "brightness")
    )
    short = np.minimum(width, height)
    return {
        "short_side": short,
        "aspect": width / height,
        "fov_radius": radius / short,
        "brightness": bright,
    }


def signs(run: Run, scores: Likeness, looks: Sequence[Looks] | None) -> list[str]:
    """The sentences of ``archive_warnings``."""
    found = []
    tail = (
        f" even if {_whole(scores.prevalence)} of them were abnormal" if scores.prevalence else ""
    )
    if "too_many_above" in scores.signs:
        found.append(
            f"{_whole(scores.above_threshold)} of the images are above the threshold, where at "
            f"most {_whole(scores.most_above)} would be{tail}."
        )
    if "too_few_low" in scores.signs:
        middle = _median_percentile(run)
        found.append(
            f"{_whole(scores.below_median)} of the images score below the median of held-out "
            f"healthy images, where at least {_whole(scores.least_below)} would{tail}"
            f"{'' if middle is None else f' (the median percentile is {middle:.0f})'}."
        )
    if "too_low" in scores.signs:
        found.append(
            f"{_whole(scores.below_median)} of the images score below the median of held-out "
            "healthy images, where about half or fewer should: was the model fitted on them, or "
            "are they blank or blurred?"
        )
    for look in looks or ():
        if look.unlike:
            name, unit = _WORDS[look.name]
            known = run.about["model"]["trained_on"]["census"][look.name]
            found.append(
                f"{_whole(look.outside)} of the images have another {name} than the training "
                f"images (median {_plain(look.quantiles[1])} {unit}".rstrip()
                + f", training images {_range(known['min'], known['max'])})."
            )
    return found + _unscored(run)


def _unscored(run: Run) -> list[str]:
    n = len(run)
    if n < MIN_IMAGES or len(run.failed) <= OUTSIDE * n:
        return []
    words = run.rows.names["status"] or ()
    codes = run.rows.codes["status"][run.failed]
    counts = np.bincount(codes[codes >= 0], minlength=len(words))
    worst = words[int(counts.argmax())]
    why = f"{worst}: {STATUS_MEANING[worst]}" if worst in STATUS_MEANING else worst
    return [f"{_whole(len(run.failed) / n)} of the images have no score, most often {why}."]


def section(run: Run) -> Rendered:
    """What was compared with the training images, and what was found."""
    if not len(run):
        return "likeness", "Like the training images?", ""
    scores, looks = of_scores(run), of_looks(run)
    found = signs(run, scores, looks)
    items = [f'<li class="sign">{sentence(text)}</li>' for text in found]
    if not found and scores.n >= MIN_IMAGES and len(run.normal) >= MIN_IMAGES:
        items.append('<li class="fine">No sign that they are not.</li>')
    parts = [f'<ul class="signs">{"".join(items)}</ul>' if items else ""]
    missing = _not_known(run, scores, looks)
    parts += [f'<p class="note">{sentence(text)}</p>' for text in missing]
    parts.append(f"<p>{sentence(_of_scores_told(scores))}</p>")
    rows = _look_rows(run, looks or [])
    if rows:
        head = ("", "training images", "this run", "outside their range", "remarkable above")
        parts.append(table(head, rows, numeric=(1, 2, 3, 4)))
    parts.append(f'<p class="note">{sentence(_rules(scores))}</p>')
    return "likeness", "Like the training images?", "".join(parts)


def warning(run: Run) -> str:
    """The box at the top of the report; "" where there is no sign."""
    found = signs(run, of_scores(run), of_looks(run))
    if not found:
        return ""
    items = "".join(f"<li>{sentence(text)}</li>" for text in found)
    return (
        '<div class="alarm" role="note"><strong>This archive looks unlike the images that the '
        f'model was fitted on.</strong><ul>{items}</ul><p>{ADVICE} <a href="#likeness">How '
        "this was decided</a></p></div>"
    )


def _not_known(run: Run, scores: Likeness, looks: Sequence[Looks] | None) -> list[str]:
    found = []
    if not len(run.normal):
        found.append("Scores of held-out healthy images are not stored, so none were compared.")
    elif min(len(run.normal), scores.n) < MIN_IMAGES:
        found.append(
            f"Scores were not judged: {scores.n:,} images and {len(run.normal):,} held-out healthy "
            f"ones are there, {MIN_IMAGES} of each are needed."
        )
    if looks is None:
        found.append(
            "What the training images look like is not known: the model was fitted by a version "
            "that did not store it. Sizes, field of view and brightness were not compared."
        )
    else:
        unknown = [_WORDS[look.name][0] for look in looks if not look.n]
        if unknown:
            found.append(f"Not known of this run: {', '.join(unknown)}.")
    return found


def _of_scores_told(scores: Likeness) -> str:
    """The two shares that are looked at, and their limits."""
    whose = "images" if scores.prevalence else "images that are not known to be abnormal"
    parts = []
    if scores.above_threshold is not None:
        parts.append(
            f"{_tenth(scores.above_threshold)} of the {whose} are above the threshold; more than "
            f"{_tenth(scores.most_above)} would be remarkable."
        )
    if scores.below_median is not None:
        parts.append(
            f"{_tenth(scores.below_median)} score below the median of held-out healthy images; "
            f"less than {_tenth(scores.least_below)} or more than {_tenth(TOO_LOW)} would be "
            "remarkable."
        )
    return " ".join(parts)


def _look_rows(run: Run, looks: Sequence[Looks]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for look in looks:
        known = run.about["model"]["trained_on"]["census"][look.name]
        here = "–"
        if look.n:
            low, middle, high = look.quantiles
            here = f"{_plain(middle)}<small>{_range(low, high)}</small>"
        there = f"{_plain(known['median'])}<small>{_range(known['q05'], known['q95'])}</small>"
        outside = "–" if look.outside is None else percent(look.outside)
        rows.append((_WORDS[look.name][0], there, here, outside, percent(look.limit)))
    return rows


def _median_percentile(run: Run) -> float | None:
    shares = run.rows.numbers["score_pct"][run.ranked]
    shares = shares[np.isfinite(shares)]
    return float(np.median(shares)) if len(shares) else None


def _rules(scores: Likeness) -> str:
    others = (
        "An unknown share of an archive is abnormal. We call scores remarkable that "
        f"{_whole(scores.prevalence)} abnormal images among others like the"
    )
    if not scores.prevalence:
        others = (
            "Known abnormal images are left out. We call scores remarkable that images like the"
        )
    return (
        f"The limits are our design. {others} "
        f"held-out healthy ones cannot explain, by {SIGMAS:g} standard errors. In the table stand "
        "the median and, below it, the 5 % and 95 % quantiles; outside their range is an image "
        "beyond the smallest or largest training image, with some slack; remarkable are more than "
        f"{_whole(OUTSIDE)} of them, or more than chance allows with few training images. No sign "
        "is no proof: only what most of an archive shows is seen here."
    )


def _tenth(share: float) -> str:
    return f"{100 * share:.1f} %"


def _plain(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _whole(share: float | None) -> str:
    assert share is not None
    return f"{100 * share:.0f} %" if 0.01 <= share <= 0.99 or share in (0, 1) else _tenth(share)


def _range(low: float, high: float) -> str:
    a, b = _plain(low), _plain(high)
    return a if a == b else f"{a} to {b}"
