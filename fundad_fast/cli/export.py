# SPDX-License-Identifier: Apache-2.0
"""The command ``export``: a run as DICOM objects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..progress import progress
from .options import Megapixels, ProgressOption, Show, Strict, UsageError, how_many
from .steps import apart, told

_NAMED = ("list", "several", "file", "shard", "manifest")
"""Layouts whose inputs were named: what is added to the folder where that was is none of them."""


def export(
    run: Annotated[Path, typer.Argument(help="Run folder of score or eval.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")],
    dicom: Annotated[
        bool,
        typer.Option("--dicom", help="Overlays as Secondary Capture, regions as Segmentation."),
    ] = False,
    top: Annotated[str, typer.Option(help="Rows, worst first: a number or all.")] = "100",
    above_threshold: Annotated[
        bool, typer.Option("--above-threshold", help="Only rows above the image threshold.")
    ] = False,
    max_megapixels: Megapixels = 200.0,
    show: ProgressOption = Show.auto,
    strict: Strict = False,
) -> None:
    """Write a run for other systems: --dicom adds objects to the studies that were scored.

    They refer to their source images, which must be DICOM. Called again, it goes on.
    """
    with told():
        from ..export import export_dicom
        from ..run_folder import read_run

        if not dicom:
            raise UsageError("say what to write: export RUN --dicom -o OUT")
        about = read_run(run)
        walked = about.get("input") and about.get("layout") not in _NAMED
        apart(output, [run, *about.get("folders", ()), *([about["input"]] if walked else [])])
        done = export_dicom(
            run,
            output,
            top=how_many(top, "--top"),
            above_threshold=above_threshold,
            progress=progress(show),
            max_megapixels=max_megapixels,
        )
        for line in done.lines():
            print(line)
        if done.left_out and not (done.written or done.kept):
            raise UsageError("nothing was exported; the reasons stand above")
        print(f"written to {output}; which row is where: {output / 'export.csv'}")
        if strict and done.left_out:
            raise typer.Exit(1)
