# SPDX-License-Identifier: Apache-2.0
"""The command line: fit, score, merge, eval, report, export, demo, tasks, dissolve, info.

Exit codes: 0 good, 1 some inputs failed under ``--strict``, 2 usage or unusable input.
"""

from __future__ import annotations

import io
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from ..progress import progress
from .demo import demo
from .dissolve import dissolve
from .engines import which_engine, which_shard
from .export import export
from .fitting import (
    first_of_launched,
    make_detector,
    print_fitted,
    print_plan,
    print_settings,
    replace_model,
    restore_model,
)
from .likeness import print_warnings
from .options import (
    ApChunk,
    BatchSize,
    Compile,
    Config,
    Deidentify,
    Device,
    Engine,
    EngineOption,
    External,
    GpuDecode,
    KeyFile,
    Limit,
    Megapixels,
    MethodName,
    Model,
    NormalClass,
    Overlays,
    Overwrite,
    Pages,
    PagesOption,
    Preset,
    ProgressOption,
    RetryFailed,
    Seed,
    SelectOn,
    Settings,
    ShardOption,
    Show,
    Strict,
    TargetFpr,
    Threads,
    UsageError,
    Weights,
    from_stdin,
    how_many,
)
from .steps import (
    AFRESH,
    GOES_ON,
    alone,
    apart,
    check_labelled,
    compare_two,
    compare_with_truth,
    discover,
    listed,
    print_counts,
    print_info,
    print_score_plan,
    score_into,
    takes_volumes,
    test_images,
    told,
    use_threads,
)
from .tasks import tasks

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Finds what is abnormal in medical images, having learned from healthy ones only.",
)


@app.command()
def fit(
    data: Annotated[list[str], typer.Argument(help="Healthy images: folder, manifest, glob.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model folder to write.")],
    method: MethodName = None,
    preset: Preset = None,
    settings: Settings = None,
    config: Config = None,
    weights: Weights = None,
    seed: Seed = None,
    external: External = None,
    select_on: SelectOn = None,
    normal_class: NormalClass = None,
    folds: Annotated[int, typer.Option(min=0, help="Parts held out for the thresholds.")] = 5,
    target_fpr: TargetFpr = 0.05,
    threads: Threads = None,
    batch_size: BatchSize = 4,
    device: Device = None,
    max_megapixels: Megapixels = 200.0,
    show: ProgressOption = Show.auto,
    strict: Strict = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option(help="Print what it would need, and stop.")] = False,
) -> None:
    """Learn from healthy images and write a model. A killed fit goes on when called again.

    Methods that train use several GPUs under ``accelerate launch`` or ``torchrun``.
    """
    with told():
        leads = first_of_launched()
        if leads:
            restore_model(output)
        if output.exists() and not dry_run:
            if not overwrite:
                raise UsageError(f"{output} exists; give another -o, or --overwrite")
            if not (output / "bundle.json").is_file():
                raise UsageError(f"{output} is not a model (no bundle.json); remove it yourself")
        detector = make_detector(
            method,
            preset,
            settings,
            config,
            weights,
            seed,
            folds=folds,
            target_fpr=target_fpr,
            threads=use_threads(threads),
            batch_size=batch_size,
            device=device,
            max_megapixels=max_megapixels,
            progress=progress(show if leads else Show.none),
        )
        dataset = discover(data, detector.volumes, normal_class)
        judged = discover(select_on, normal_class=normal_class) if select_on else None
        apart(output, [*data, *(external or []), *(select_on or [])], dataset.items)
        scratch = output.with_name(f".{output.name}.work")
        other = external[0] if external and len(external) == 1 else external
        if not leads:
            if not dry_run:
                detector.fit(dataset, external=other, select_on=judged, scratch=scratch)
            return
        print(dataset.describe())
        if dry_run:
            print_plan(detector, dataset)
            return
        began = time.monotonic()
        with alone(scratch, f"fitting into {output}"):
            detector.fit(dataset, external=other, select_on=judged, scratch=scratch)
            replace_model(detector, output)
        print_fitted(detector, output, time.monotonic() - began)
        if strict and detector.failures_:
            raise typer.Exit(1)


@app.command()
def score(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Folders, files, .tar or .zip shards, manifests, globs; or - for a list on "
            "standard input."
        ),
    ],
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder to write.")],
    null: Annotated[bool, typer.Option("-0", help="The list on standard input ends in NULs.")] = (
        False
    ),
    pages: PagesOption = Pages.one,
    maps: Annotated[bool, typer.Option(help="Write anomaly maps.")] = True,
    overlays: Overlays = "100",
    with_report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html.")
    ] = True,
    threads: Threads = None,
    batch_size: BatchSize = 4,
    device: Device = None,
    compile: Compile = None,
    max_megapixels: Megapixels = 200.0,
    show: ProgressOption = Show.auto,
    strict: Strict = False,
    overwrite: Overwrite = False,
    retry_failed: RetryFailed = False,
    limit: Limit = None,
    shard: ShardOption = None,
    gpu_decode: GpuDecode = False,
    deidentify: Deidentify = False,
    key: KeyFile = None,
    engine: EngineOption = Engine.local,
    dry_run: Annotated[bool, typer.Option(help="Print what would be scored, and stop.")] = False,
) -> None:
    """Score images into a run folder. A killed run goes on when called again."""
    with told(goes_on=AFRESH if overwrite else GOES_ON), ExitStack() as stack:
        top = how_many(overlays)
        part = which_shard(shard)
        if deidentify:
            top = 0
        elif key is not None:
            raise UsageError("--key is for --deidentify")
        runs_on = which_engine(engine, model, device, compile, gpu_decode)
        shown = progress(show)
        source = from_stdin(null) if inputs == ["-"] else inputs
        dataset = stack.enter_context(listed(source, pages.value, output, takes_volumes(model)))
        print(dataset.describe())
        apart(output, [model, *source], dataset.items)
        if dry_run:
            print_score_plan(dataset, part, limit, output, overwrite)
            return
        failed = score_into(
            model,
            dataset,
            dataset.items,
            output,
            kind="score",
            folders=[name for name in source if os.path.isdir(name)] if len(source) > 1 else None,
            top=top,
            maps=maps,
            threads=threads,
            batch_size=batch_size,
            device=device,
            compile=compile,
            max_megapixels=max_megapixels,
            shown=shown,
            overwrite=overwrite,
            retry_failed=retry_failed,
            limit=limit,
            shard=part,
            gpu_decode=gpu_decode,
            deidentify=deidentify,
            key=key,
            engine=runs_on,
        )
        if with_report:
            from ..report import write_report

            write_report(
                output, threads=threads or 2, max_megapixels=max_megapixels, progress=shown
            )
        print_warnings(output)
        if strict and failed:
            raise typer.Exit(1)


@app.command(name="eval")
def evaluate(
    data: Annotated[
        list[str],
        typer.Argument(
            help="Labelled images: folder or manifest. With --against: or a run folder."
        ),
    ],
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model folder that fit wrote.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder to write.")
    ] = None,
    overlays: Overlays = "100",
    intervals: Annotated[
        int, typer.Option(min=0, help="Bootstrap resamples for 95 % intervals; 0 for none.")
    ] = 1000,
    eval_size: Annotated[
        int | None, typer.Option(min=16, help="Compare maps and masks at this square size.")
    ] = None,
    ap_chunk: ApChunk = False,
    against: Annotated[
        Path | None, typer.Option(help="Another run on the same images, for a paired comparison.")
    ] = None,
    normal_class: NormalClass = None,
    seed: Seed = None,
    threads: Threads = None,
    batch_size: BatchSize = 4,
    device: Device = None,
    compile: Compile = None,
    max_megapixels: Megapixels = 200.0,
    show: ProgressOption = Show.auto,
    strict: Strict = False,
    overwrite: Overwrite = False,
    retry_failed: RetryFailed = False,
) -> None:
    """Score labelled images and compare with labels and masks: a run folder plus metrics.json.

    RUN --against OTHER alone compares two runs that are there, on the images of the first.
    """
    with told(goes_on=AFRESH if overwrite else GOES_ON):
        from ..report import write_report
        from ..run_folder import read_run

        if model is None or output is None:
            if model or output or against is None or len(data) != 1 or ap_chunk:
                raise UsageError(
                    "eval wants data, -m MODEL and -o RUN; to compare two runs that are there, "
                    "give RUN --against OTHER and neither of these, nor --ap-chunk"
                )
            shown = progress(show)
            run = Path(data[0])
            compare_two(run, against, intervals, eval_size, seed or 0, shown, normal_class)
            return
        top = how_many(overlays)
        dataset = discover(data, takes_volumes(model), normal_class)
        print(dataset.describe())
        items = test_images(dataset)
        apart(output, [model, *data], dataset.items)
        if against is not None:
            read_run(against)
        check_labelled(dataset, items)
        shown = progress(show)
        failed = score_into(
            model,
            dataset,
            items,
            output,
            kind="eval",
            top=top,
            maps=True,
            threads=threads,
            batch_size=batch_size,
            device=device,
            compile=compile,
            max_megapixels=max_megapixels,
            shown=shown,
            overwrite=overwrite,
            retry_failed=retry_failed,
        )
        compare_with_truth(
            output,
            items,
            intervals,
            eval_size,
            seed or 0,
            shown,
            ap_chunk=ap_chunk,
            max_megapixels=max_megapixels,
            against=against,
        )
        write_report(output, threads=threads or 2, max_megapixels=max_megapixels, progress=shown)
        if strict and failed:
            raise typer.Exit(1)


@app.command()
def merge(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of score --shard, all of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder to write.")],
    with_report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html.")
    ] = True,
    threads: Threads = None,
    max_megapixels: Megapixels = 200.0,
    show: ProgressOption = Show.auto,
    overwrite: Overwrite = False,
) -> None:
    """Join the shards of one run, after checking that they are all there and of one run."""
    with told(goes_on=""):
        from ..archive.merge import merge_runs
        from ..report import write_report

        shown = progress(show)
        apart(output, runs)
        print_counts(merge_runs(runs, output, overwrite=overwrite, progress=shown), output)
        if with_report:
            write_report(
                output, threads=threads or 2, max_megapixels=max_megapixels, progress=shown
            )
        print_warnings(output)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder of score or eval.")],
    top: Annotated[str, typer.Option(help="Gallery images, worst first: a number or all.")] = "200",
    threads: Threads = None,
    max_megapixels: Megapixels = 200.0,
    show: ProgressOption = Show.auto,
) -> None:
    """Write report.html into a run folder: a page to read from disk, worst images first."""
    with told(goes_on=""):
        from ..report import write_report

        path = write_report(
            run,
            top=how_many(top, "--top"),
            threads=threads or 2,
            max_megapixels=max_megapixels,
            progress=progress(show),
        )
        print(f"report written to {path}")


app.command()(export)


app.command()(demo)
app.command()(tasks)
app.command()(dissolve)


@app.command()
def info(
    settings: Annotated[
        str | None, typer.Option(help="List the settings of this method and their sources.")
    ] = None,
) -> None:
    """What is installed and in force: build, instruction sets, backends, versions, weights."""
    with told(goes_on=""):
        if settings is not None:
            print_settings(settings)
            return
        print_info()


def main() -> None:
    """Entry point of the console command."""
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show stops nothing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
