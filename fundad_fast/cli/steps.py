# SPDX-License-Identifier: Apache-2.0
"""What commands are made of: discover, run, compare, print."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..progress import Progress
from ..words import count
from .options import UsageError

if TYPE_CHECKING:
    from ..archive.run import Engine
    from ..archive.sharding import Shard
    from ..data import Dataset, Inventory, Item


SUMMARY = (
    "image_AUROC",
    "image_AP",
    "image_balanced_accuracy_youden",
    "image_balanced_accuracy_threshold",
    "image_sensitivity_at_specificity_95",
    "image_FPR_threshold",
    "pixel_AUROC",
    "pixel_AP",
    "pixel_AUPRO",
    "pixel_AUROC_fov",
    "pixel_AP_fov",
    "pixel_AP_chunk20",
    "slice_AUROC",
    "slice_AP",
)


GOES_ON = "; the same command goes on from here"
AFRESH = "; the same command without --overwrite goes on from here"
"""Where a run is replaced; with --overwrite it would begin again."""


@contextmanager
def told(goes_on: str = GOES_ON) -> Iterator[None]:
    """Errors that a user can act on become one line and exit code 2, Ctrl-C one and 130."""
    try:
        with _in_one_line():
            yield
    except KeyboardInterrupt:
        print(f"interrupted{goes_on}", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def _in_one_line() -> Iterator[None]:
    from pydantic import ValidationError

    from ..backbones import BackboneError
    from ..bundle import BundleError
    from ..data import DataError
    from ..methods import ConfigError
    from ..run_folder import RunError
    from ..training import CheckpointError, TrainingError

    known: tuple[type[Exception], ...] = (
        UsageError,
        DataError,
        ConfigError,
        BackboneError,
        BundleError,
        RunError,
    )
    known += (CheckpointError, TrainingError)
    try:
        _check_environment()
        yield
    except known as error:
        _fail(error)
    except ValidationError as error:
        first = error.errors()[0]
        _fail(UsageError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}"))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        on = "; free some space and call again: it goes on" if error.errno == errno.ENOSPC else ""
        _fail(UsageError(f"{where}{error.strerror or error}{on}"))


def _check_environment() -> None:
    """FUNDAD_BACKEND and FUNDAD_ISA are read deep below; a mistake in them is told here."""
    if "FUNDAD_BACKEND" in os.environ or "FUNDAD_ISA" in os.environ:
        from .. import ops

        try:
            ops.status()
        except ValueError as error:
            raise UsageError(str(error)) from error


def _fail(error: Exception) -> None:
    print(f"fundad: {error}", file=sys.stderr)
    raise typer.Exit(2) from error


def use_threads(threads: int | None) -> int | None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return threads


def print_score_plan(
    dataset: Inventory, shard: Shard | None, limit: int | None, output: Path, overwrite: bool
) -> None:
    from ..run_folder import read_rows

    mine = sum(shard is None or shard.holds(item.id) for item in dataset.items)
    of = "" if shard is None else f" of shard {shard}"
    there = 0 if overwrite else sum(1 for _ in read_rows(output, ["id"]))
    rows = f"{count(there, 'row')} {'is' if there == 1 else 'are'}"
    but = f", where {rows}: those whose inputs are the same stay" if there else ""
    print(f"would score {count(min(mine, limit or mine), 'image')}{of} into {output}{but}")


def discover(source: list[str], volumes: bool = False, normal_class: str | None = None) -> Dataset:
    """What a fit or an evaluation was given; one that is not there is no image among the others."""
    from ..data import discover

    for name in source:
        if os.path.lexists(os.path.expanduser(name)):
            continue
        if "=" in name:
            raise UsageError(f"{name} is no file; a setting has a --set of its own: --set {name}")
        discover(name)  # refuses all but a pattern, and tells of names that are like it
    dataset = discover(source[0] if len(source) == 1 else source, volumes=volumes)
    return dataset if normal_class is None else dataset.with_normal_class(normal_class)


def takes_volumes(model: Path) -> bool:
    """Whether a model scores whole volumes, as its bundle says."""
    from ..bundle import read_facts

    return read_facts(model)["input_spec"].get("volume") is not None


@contextmanager
def listed(
    source: list[str], pages: Any, output: Path, volumes: bool = False
) -> Iterator[Inventory]:
    """The inputs of a run in a file beside it, as they may be more than memory holds.

    The folder of the file is hidden, lies in the nearest folder that exists, or that of temporary
    files where that one may not be written (as above a mounted volume), and is removed at the end;
    what a kill has left of it is used by the next call for the same output.
    """
    from ..data import take_inventory

    output = output.absolute()
    there = next(folder for folder in output.parents if folder.is_dir())
    mark = hashlib.sha256(os.fsencode(output)).hexdigest()[:8]  # of outputs of one name
    if output.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        there = Path(tempfile.gettempdir())
    place = there / f".{output.name}-{mark}.inputs"
    with alone(place, f"scoring into {output}", keep=False) as at:
        yield take_inventory(
            source[0] if len(source) == 1 else source, at, pages=pages, volumes=volumes
        )


def test_images(dataset: Dataset) -> tuple[Item, ...]:
    """The split ``test``, or everything where nothing is split; never images to learn from."""
    items = dataset.select(split="test")
    if items or all(item.split is None for item in dataset.items):
        return items or dataset.items
    raise UsageError(
        f"nothing of {dataset.root} is in the split test: put images to judge by into "
        "test/good and test/<class>, or give them split=test in the manifest"
    )


def check_labelled(dataset: Dataset, items: Iterable[Item]) -> None:
    """Refuse images to judge by of which none has a label."""
    if any(item.label is not None for item in items):
        return
    of = f" (its classes are {dataset.classes()})" if dataset.classes() else ""
    raise UsageError(
        f"nothing is labelled in {dataset.root}{of}: name the healthy class with --normal-class, "
        "or use test/good and test/<class> folders, or a manifest with a label column"
    )


def apart(output: Path, folders: Iterable[str | Path], items: Iterable[Item] = ()) -> None:
    """Refuse an output that is, holds or lies in what is read: it would be lost or scored.

    So would one in the folder of a run be lost, with the run.
    """
    from ..run_folder import RunError, read_run

    here = output.resolve()
    for name in folders:
        if not os.path.isdir(name):  # most of a long list of files: resolving them all takes long
            continue
        there = Path(name).resolve()
        if here == there or here in there.parents or there in here.parents:
            raise UsageError(f"-o {output} and {name} lie in each other; give another -o")
    inside = f"{here}{os.sep}"
    for item in items:
        if os.path.abspath(item.path).startswith(inside):
            raise UsageError(f"-o {output} holds an input, {item.path}; give another -o")
    for above in here.parents:
        with suppress(RunError):
            read_run(above)
            raise UsageError(f"-o {output} lies in the run folder {above}; give another -o")


def fresh(output: Path, overwrite: bool, mark: str) -> None:
    """Make way for an output: only a folder that holds ``mark``, so one of ours, is removed."""
    if not output.exists():
        return
    if not overwrite:
        raise UsageError(f"{output} exists; give another -o, or --overwrite")
    if not (output / mark).is_file():
        raise UsageError(
            f"{output} was not written by this command (no {mark}); remove it yourself"
        )
    try:
        shutil.rmtree(output)
    except OSError:
        if list(output.iterdir()):
            raise
        # Empty, but the folder itself stays: a mounted volume, or in a folder not to be written.


@contextmanager
def alone(scratch: Path, what: str, *, keep: bool = True) -> Iterator[Path]:
    """Hold a folder for work in progress against other processes; it is removed at the end.

    After an error, the folder stays to go on from, but for ``keep=False``. It is its owner's alone:
    names of files may be names of patients. ``what`` is what another process would be doing.
    """
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(scratch, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"another process is {what}; wait for it") from error
        done = False
        try:
            yield scratch
            done = True
        finally:
            if done or not keep:
                shutil.rmtree(scratch)
    finally:
        os.close(handle)


def score_into(
    model: Path,
    dataset: Dataset | Inventory,
    items: Any,
    output: Path,
    *,
    kind: str,
    folders: list[str] | None = None,
    top: int | None,
    maps: bool,
    threads: int | None,
    batch_size: int,
    device: str | None,
    compile: str | None = None,
    max_megapixels: float,
    shown: Progress,
    overwrite: bool,
    retry_failed: bool = False,
    limit: int | None = None,
    shard: Shard | None = None,
    gpu_decode: bool = False,
    deidentify: bool = False,
    key: Path | None = None,
    engine: Engine | None = None,
) -> int:
    """Score into a run folder and draw overlays; returns the number of failed rows."""
    from ..archive.deidentify import Hidden, key_of
    from ..archive.rows import Naming
    from ..archive.run import ScoreOptions, score_run
    from ..archive.truth import check_mask
    from ..detector import load
    from ..report.overlays import make_overlays

    # With another engine, the model here only says what it is.
    detector = load(model, device="cpu" if engine else device, compile=None if engine else compile)
    assert detector.bundle_ is not None
    options = ScoreOptions(
        batch_size=batch_size,
        threads=use_threads(threads),
        max_megapixels=max_megapixels,
        save_maps=maps,
        retry_failed=retry_failed,
        limit=limit,
        shard=shard,
        gpu_decode=gpu_decode,
        naming=Hidden(key_of(output, key, anew=overwrite)) if deidentify else Naming(),
    )
    began = time.monotonic()
    counts = score_run(
        detector.bundle_,
        dataset,
        items,
        output,
        kind=kind,
        overwrite=overwrite,
        folders=folders or (),
        options=options,
        check=partial(check_mask, max_megapixels=max_megapixels) if kind == "eval" else None,
        engine=engine,
        progress=shown,
    )
    seconds = time.monotonic() - began
    print_profile(output)
    for text in detector.bundle_.method.caveats:
        print(text)
    if maps and top != 0:
        drawn = make_overlays(output, top, progress=shown, max_megapixels=max_megapixels)
        for reason, n in drawn.left_out.items():
            print(f"{count(n, 'overlay')} not drawn: {reason}")
    return print_counts(counts, output, seconds)


def print_profile(run: Path) -> None:
    """Say how fast a run was, how busy its stages were, and which one limits it."""
    from ..run_folder import read_run

    profile = read_run(run)["profile"]
    if not profile["images"]:
        return
    busy = ", ".join(
        f"{name} {100 * stage['busy_share']:.0f} %" for name, stage in profile["stages"].items()
    )
    print(
        f"{count(profile['images'], 'image')}, {profile['images_per_second']:.3g} per second; "
        f"limited by {profile['limits']} (busy: {busy}); JPEGs by {profile['jpeg']}"
    )


def print_counts(counts: dict[str, int], output: Path, seconds: float | None = None) -> int:
    """Say how many rows there are; returns how many failed."""
    said = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    after = "" if seconds is None else f" after {seconds:.1f} s"
    print(f"{count(sum(counts.values()), 'row')} in {output} ({said}){after}")
    failed = sum(counts.values()) - counts.get("ok", 0)
    if failed:
        print(f"{count(failed, 'input')} failed; the reasons are in {output / 'failed.csv'}")
    return failed


def compare_with_truth(
    run: Path,
    items: Any,
    intervals: int,
    eval_size: int | None,
    seed: int,
    shown: Progress,
    *,
    ap_chunk: bool = False,
    max_megapixels: float = 200.0,
    against: Path | None = None,
) -> None:
    """Write ``metrics.json`` and print the figures that one looks for first."""
    from ..archive.truth import evaluate_run, save_metrics
    from ..evaluation.evaluate import markdown_table

    metrics = evaluate_run(
        run,
        items,
        n_boot=intervals,
        seed=seed,
        eval_size=eval_size,
        ap_chunk=ap_chunk,
        max_megapixels=max_megapixels,
        progress=shown,
    )
    file = save_metrics(run, metrics)
    short = {name: metrics["metrics"][name] for name in SUMMARY if name in metrics["metrics"]}
    print()
    print(markdown_table({"metrics": short, "groups": {}}))
    if ap_chunk and "pixel_AP_chunk20" not in short:
        print("--ap-chunk: no pixels were compared, for want of masks or maps")
    if against is not None:
        _compare_runs(run, against, items, intervals, eval_size, seed, shown)
    print(f"all metrics, by class and lesion type, with their definitions: {file}")


def compare_two(
    run: Path,
    against: Path,
    intervals: int,
    eval_size: int | None,
    seed: int,
    shown: Progress,
    normal_class: str | None = None,
) -> None:
    """Compare two runs on the labelled test images that the first was made of."""
    from ..data import DataError
    from ..run_folder import read_run

    about = read_run(run)
    read_run(against)
    try:
        volumes = about["model"]["input_spec"].get("volume") is not None
        dataset = discover([about["input"]], volumes, normal_class)
    except DataError as error:
        raise UsageError(
            f"{run} was made of {about['input']}, which cannot be read again ({error}); call eval "
            "with the data, -m MODEL, -o RUN and --against"
        ) from error
    items = test_images(dataset)
    check_labelled(dataset, items)
    _compare_runs(run, against, items, intervals, eval_size, seed, shown)


def _compare_runs(
    run: Path,
    against: Path,
    items: Any,
    intervals: int,
    eval_size: int | None,
    seed: int,
    shown: Progress,
) -> None:
    from ..archive.truth import collect_run
    from ..evaluation.compare import compare, markdown_comparison
    from ..run_folder import replacing

    pair = [collect_run(r, items, eval_size=eval_size, progress=shown) for r in (run, against)]
    result = compare(*pair, n_boot=intervals, seed=seed)
    with replacing(run / "comparison.json", "w") as file:
        json.dump({"a": str(run), "b": str(against), **result}, file, indent=1, allow_nan=False)
    short = {name: result["metrics"][name] for name in SUMMARY if name in result["metrics"]}
    print(f"a = {run}, b = {against}")
    print(markdown_comparison({**result, "metrics": short, "groups": {"lesion_type": {}}}))


def print_info() -> None:
    """Say what is installed and in force."""
    from .. import ops
    from ..backbones import cached_file
    from ..bundle import environment

    print("versions")
    for name, value in environment().items():
        print(f"  {name} {value}")
    status = ops.status()
    print("build")
    build: Any = status["build"]
    for name, value in build.items():
        print(f"  {name}: {value}")
    print("operators (backend in use, and why not the ones before it)")
    choices: Any = status["ops"]
    for choice in choices:
        refusals = "; ".join(f"{name}: {why}" for name, why in choice.refusals.items())
        refusals = f"   ({refusals})" if refusals else ""
        print(f"  {choice.op} on {choice.device}: {choice.chosen}{refusals}")
    print("pretrained weights in the local cache")
    for name in ("wide_resnet50_2.tv_in1k", "resnet18.tv_in1k"):
        found = cached_file(name)
        print(f"  {name}: {found or 'none; give --weights FILE.safetensors when offline'}")
