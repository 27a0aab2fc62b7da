# SPDX-License-Identifier: Apache-2.0
"""The command ``demo``: the whole way once, from images to a report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ..progress import progress
from .fitting import demo_detector
from .options import Overwrite, ProgressOption, Show, Threads, Weights
from .steps import (
    compare_with_truth,
    discover,
    fresh,
    score_into,
    test_images,
    told,
    use_threads,
)

DEMO_MARK = "fundad-demo.txt"


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path(
        "fundad-demo"
    ),
    data: Annotated[
        Path | None, typer.Option(help="Your own folder, with healthy and labelled images.")
    ] = None,
    weights: Weights = None,
    threads: Threads = None,
    show: ProgressOption = Show.auto,
    overwrite: Overwrite = False,
) -> None:
    """The whole way once: images, fit, scores, metrics, pictures; under three minutes."""
    with told(goes_on=""):
        from ..demo import make_cohort
        from ..report import write_report

        fresh(output, overwrite, DEMO_MARK)
        output.mkdir(parents=True, exist_ok=True)
        (output / DEMO_MARK).write_text("made by `fundad demo`; --overwrite may replace it\n")
        began = time.monotonic()
        if data is None:
            print("making a cohort from one real fundus photograph (scikit-image's retina) ...")
            make_cohort(output / "data")
            data = output / "data"
        dataset = discover([str(data)])
        print(dataset.describe())
        shown = progress(show)
        options = {"threads": use_threads(threads), "progress": shown}
        detector = demo_detector(weights, options)
        detector.fit(dataset)
        detector.save(output / "model")
        items = test_images(dataset)
        score_into(
            output / "model",
            dataset,
            items,
            output / "run",
            kind="eval",
            top=100,
            maps=True,
            threads=threads,
            batch_size=4,
            device=None,
            max_megapixels=200.0,
            shown=shown,
            overwrite=False,
        )
        if any(item.label is not None for item in items):
            compare_with_truth(output / "run", items, 1000, None, 0, shown)
        write_report(output / "run", threads=threads or 2, progress=shown)
        print(f"done in {time.monotonic() - began:.0f} s; look at")
        for what in (
            "run/report.html",
            "run/overlays",
            "run/metrics.json",
            "run/scores",
            "model",
            "data",
        ):
            if (output / what).exists():
                print(f"  {output / what}")
