# SPDX-License-Identifier: Apache-2.0
"""The command line: fit, score, eval, report, demo, info.

Exit codes: 0 good, 1 some inputs failed under ``--strict``, 2 usage or unusable input.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .progress import Progress, progress

if TYPE_CHECKING:
    from .data import Dataset
    from .detector import Detector

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Finds what is abnormal in medical images, having learned from healthy ones only.",
)


class Show(StrEnum):
    auto = "auto"
    none = "none"
    json = "json"


Model = Annotated[Path, typer.Option("--model", "-m", help="Model folder that fit wrote.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads; default: all.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images scored at a time.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if any.")]
Megapixels = Annotated[
    float, typer.Option(min=0.01, help="Larger images are refused (too_large) before decoding.")
]
ProgressOption = Annotated[Show, typer.Option("--progress", help="On standard error.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 when any input failed.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Weights = Annotated[
    str | None,
    typer.Option(help="Backbone weights: FILE.safetensors, or 'untrained'; default: timm's."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method; may be repeated."),
]
Preset = Annotated[str | None, typer.Option(help="paper, default or quick.")]
Config = Annotated[
    Path | None, typer.Option(help="YAML file with method, preset, weights and settings.")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Of everything random.")]
TargetFpr = Annotated[
    float, typer.Option(help="Share of healthy images that may be called abnormal.")
]
Overlays = Annotated[
    str, typer.Option(help="Overlays to draw, worst first: a number, all or none.")
]


@app.command()
def fit(
    data: Annotated[list[str], typer.Argument(help="Healthy images: folder, manifest, glob.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model folder to write.")],
    method: Annotated[str | None, typer.Option("--method", "-m", help="resad, patchcore")] = None,
    preset: Preset = None,
    settings: Settings = None,
    config: Config = None,
    weights: Weights = None,
    seed: Seed = None,
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
    """Learn from healthy images and write a model. A killed fit goes on when called again."""
    with _told():
        if output.exists() and not overwrite and not dry_run:
            raise _Usage(f"{output} exists; give another -o, or --overwrite")
        dataset = _discover(data)
        detector = _detector(
            method,
            preset,
            settings,
            config,
            weights,
            seed,
            folds=folds,
            target_fpr=target_fpr,
            threads=_use_threads(threads),
            batch_size=batch_size,
            device=device,
            max_megapixels=max_megapixels,
            progress=progress(show),
        )
        print(dataset.describe())
        if dry_run:
            _print_plan(detector, dataset)
            return
        scratch = output.with_name(f".{output.name}.work")
        began = time.monotonic()
        detector.fit(dataset, scratch=scratch)
        _replace(detector, output)
        shutil.rmtree(scratch)
        _print_fitted(detector, output, time.monotonic() - began)
        if strict and detector.failures_:
            raise typer.Exit(1)


@app.command()
def score(
    inputs: Annotated[
        list[str],
        typer.Argument(help="Folder, file, manifest, glob, or - for a list on standard input."),
    ],
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder to write.")],
    null: Annotated[bool, typer.Option("-0", help="The list on standard input ends in NULs.")] = (
        False
    ),
    maps: Annotated[bool, typer.Option(help="Write anomaly maps.")] = True,
    overlays: Overlays = "100",
    threads: Threads = None,
    batch_size: BatchSize = 4,
    device: Device = None,
    max_megapixels: Megapixels = 200.0,
    show: ProgressOption = Show.auto,
    strict: Strict = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option(help="Print what would be scored, and stop.")] = False,
) -> None:
    """Score images into a run folder. A killed run goes on when called again."""
    with _told():
        top = _how_many(overlays)
        source = _from_stdin(null) if inputs == ["-"] else inputs
        dataset = _discover(source)
        print(dataset.describe())
        if dry_run:
            print(f"would score {len(dataset.items)} images into {output}")
            return
        _run(
            model,
            dataset,
            dataset.items,
            output,
            kind="score",
            top=top,
            maps=maps,
            threads=threads,
            batch_size=batch_size,
            device=device,
            max_megapixels=max_megapixels,
            shown=progress(show),
            strict=strict,
            overwrite=overwrite,
        )


@app.command(name="eval")
def evaluate(
    data: Annotated[list[str], typer.Argument(help="Labelled images: folder or manifest.")],
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder to write.")],
    overlays: Overlays = "100",
    intervals: Annotated[
        int, typer.Option(min=0, help="Bootstrap resamples for 95 % intervals; 0 for none.")
    ] = 1000,
    eval_size: Annotated[
        int | None, typer.Option(min=16, help="Compare maps and masks at this square size.")
    ] = None,
    seed: Seed = None,
    threads: Threads = None,
    batch_size: BatchSize = 4,
    device: Device = None,
    max_megapixels: Megapixels = 200.0,
    show: ProgressOption = Show.auto,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Score labelled images and compare with labels and masks: a run folder plus metrics.json."""
    with _told():
        top = _how_many(overlays)
        dataset = _discover(data)
        print(dataset.describe())
        items = dataset.select(split="test") or dataset.items
        if all(item.label is None for item in items):
            raise _Usage(
                f"nothing is labelled in {dataset.root}: use test/good and test/<class> folders, "
                "or a manifest with a label column"
            )
        shown = progress(show)
        failed = _run(
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
            max_megapixels=max_megapixels,
            shown=shown,
            strict=False,
            overwrite=overwrite,
        )
        _evaluate(output, items, intervals, eval_size, seed or 0, shown)
        if strict and failed:
            raise typer.Exit(1)


@app.command()
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
    with _told():
        from .demo import make_cohort

        _fresh(output, overwrite)
        began = time.monotonic()
        if data is None:
            print("making a cohort from one real fundus photograph (scikit-image's retina) ...")
            make_cohort(output / "data")
            data = output / "data"
        dataset = _discover([str(data)])
        print(dataset.describe())
        shown = progress(show)
        options = {"threads": _use_threads(threads), "progress": shown}
        detector = _demo_detector(weights, options)
        detector.fit(dataset)
        detector.save(output / "model")
        items = dataset.select(split="test") or dataset.items
        _run(
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
            strict=False,
            overwrite=False,
        )
        if any(item.label is not None for item in items):
            _evaluate(output / "run", items, 1000, None, 0, shown)
        print(f"done in {time.monotonic() - began:.0f} s; look at")
        for what in ("data", "model", "run/overlays", "run/metrics.json", "run/scores"):
            if (output / what).exists():
                print(f"  {output / what}")


@app.command()
def info(
    settings: Annotated[
        str | None, typer.Option(help="List the settings of this method and their sources.")
    ] = None,
) -> None:
    """What is installed and in force: build, instruction sets, backends, versions, weights."""
    with _told():
        if settings is not None:
            _print_settings(settings)
            return
        from . import ops
        from .backbones import cached_file
        from .bundle import environment

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


def main() -> None:
    """Entry point of the console command."""
    app()


# -- between the commands and the rooms below ------------------------------------------------------


class _Usage(Exception):
    """A call that cannot be carried out as it was given."""


@contextmanager
def _told() -> Iterator[None]:
    """Errors that a user can act on become one line and exit code 2."""
    from .backbones import BackboneError
    from .bundle import BundleError
    from .data import DataError
    from .methods import ConfigError

    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    except (_Usage, DataError, ConfigError, BackboneError, BundleError) as error:
        _fail(error)
    except RuntimeError as error:
        from .archive.folder import RunError

        if not isinstance(error, RunError):
            raise
        _fail(error)


def _fail(error: Exception) -> None:
    print(f"fundad: {error}", file=sys.stderr)
    raise typer.Exit(2) from error


def _use_threads(threads: int | None) -> int | None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return threads


def _discover(source: list[str]) -> Dataset:
    from .data import discover

    return discover(source[0] if len(source) == 1 else source)


def _from_stdin(null: bool) -> list[str]:
    raw = sys.stdin.buffer.read()
    names = [name for name in raw.split(b"\0" if null else b"\n") if name]
    if not names:
        raise _Usage("the list on standard input is empty")
    return [name.decode("utf-8", "surrogateescape") for name in names]


def _how_many(overlays: str) -> int | None:
    if overlays == "all":
        return None
    if overlays == "none":
        return 0
    if not overlays.isdecimal():
        raise _Usage(f"--overlays {overlays}: use a number, all or none")
    return int(overlays)


def _fresh(output: Path, overwrite: bool) -> None:
    if output.exists():
        if not overwrite:
            raise _Usage(f"{output} exists; give another -o, or --overwrite")
        shutil.rmtree(output)


def _detector(
    method: str | None,
    preset: str | None,
    settings: list[str] | None,
    config: Path | None,
    weights: str | None,
    seed: int | None,
    **options: Any,
) -> Detector:
    from .detector import DETECTORS

    said = _read_config(config) if config else {}
    name = method or said.get("method", "resad")
    if name not in DETECTORS:
        raise _Usage(f"no method {name!r}; there are {', '.join(DETECTORS)}")
    values = {**said.get("settings", {}), **_parse_settings(settings or [])}
    if seed is not None:
        values["seed"] = seed
    reserved = set(options) & set(values)
    if reserved:
        raise _Usage(f"{', '.join(sorted(reserved))} is an option of its own, not for --set")
    return DETECTORS[name](
        preset or said.get("preset", "default"),
        weights=weights or said.get("weights"),
        **options,
        **values,
    )


def _read_config(path: Path) -> dict[str, Any]:
    import yaml

    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise _Usage(f"--config {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise _Usage(f"--config {path} is not YAML: {str(error).splitlines()[0]}") from error
    known = {"method", "preset", "weights", "settings"}
    if not isinstance(said, dict) or set(said) - known:
        raise _Usage(f"--config {path}: want {', '.join(sorted(known))}, got {said!r:.80}")
    return said


def _parse_settings(pairs: list[str]) -> dict[str, Any]:
    import yaml

    found = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise _Usage(f"--set {pair}: want KEY=VALUE")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if isinstance(value, str) and "," in value:
            value = [part.strip() for part in value.split(",")]
        elif key in ("layers", "combination") and isinstance(value, str):
            value = [value]
        found[key] = value
    return found


def _print_plan(detector: Detector, dataset: Dataset) -> None:
    plan = detector.plan(dataset)
    for line in plan.lines:
        print(line)
    print(f"memory  about {_size(plan.memory)}")
    print(f"disk    about {_size(plan.disk)} while fitting, {_size(plan.bundle)} for the model")
    print(f"time    about {plan.seconds:.0f} s on this machine (a rough estimate)")


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def _replace(detector: Detector, output: Path) -> None:
    """Save the model; an old one gives way only when the new one is complete."""
    if not output.exists():
        detector.save(output)
        return
    new = output.with_name(f".{output.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    detector.save(new)
    old = output.with_name(f".{output.name}.old")
    output.rename(old)
    new.rename(output)
    shutil.rmtree(old)


def _print_fitted(detector: Detector, output: Path, seconds: float) -> None:
    bundle = detector.bundle_
    assert bundle is not None
    for failure in list(detector.failures_.values())[:10]:
        print(f"left out {failure.item.id}: {failure.status}, {failure.error}")
    if len(detector.failures_) > 10:
        print(f"left out {len(detector.failures_) - 10} more")
    facts = getattr(bundle.method, "facts", {})
    backbone = facts.get("backbone", {})
    if backbone.get("source") == "untrained":
        print("the backbone is untrained (random weights): scores mean little")
    print(
        f"{bundle.method.name} ({bundle.preset}) fitted on {bundle.trained_on['images']} images "
        f"in {seconds:.1f} s: {facts.get('bank_rows')} of {facts.get('rows')} rows kept"
    )
    for kind, fact in bundle.thresholds.items():
        if fact is None:
            print(f"no {kind} threshold: nothing was held out")
        else:
            print(f"{kind} threshold {fact['value']:.5g}: {fact['rule']}")
    print(f"model {bundle.id} written to {output}")


def _run(
    model: Path,
    dataset: Dataset,
    items: Any,
    output: Path,
    *,
    kind: str,
    top: int | None,
    maps: bool,
    threads: int | None,
    batch_size: int,
    device: str | None,
    max_megapixels: float,
    shown: Progress,
    strict: bool,
    overwrite: bool,
) -> int:
    """Score into a run folder and draw overlays; returns the number of failed rows."""
    from .archive.pictures import make_overlays
    from .archive.run import ScoreOptions, score_run
    from .archive.truth import check_mask
    from .detector import load

    if overwrite:
        _fresh(output, overwrite)
    detector = load(model, device=device)
    assert detector.bundle_ is not None
    options = ScoreOptions(batch_size, _use_threads(threads), max_megapixels, maps)
    began = time.monotonic()
    counts = score_run(
        detector.bundle_,
        dataset,
        items,
        output,
        kind=kind,
        options=options,
        check=check_mask if kind == "eval" else None,
        progress=shown,
    )
    seconds = time.monotonic() - began
    if maps and top != 0:
        make_overlays(output, top, progress=shown)
    said = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    print(f"{sum(counts.values())} rows in {output} ({said}) after {seconds:.1f} s")
    failed = sum(counts.values()) - counts.get("ok", 0)
    if failed:
        print(f"{failed} inputs failed; the reasons are in {output / 'failed.csv'}")
    if strict and failed:
        raise typer.Exit(1)
    return failed


def _evaluate(
    run: Path, items: Any, intervals: int, eval_size: int | None, seed: int, shown: Progress
) -> None:
    from .archive.truth import evaluate_run, save_metrics
    from .evaluation.evaluate import markdown_table

    metrics = evaluate_run(
        run, items, n_boot=intervals, seed=seed, eval_size=eval_size, progress=shown
    )
    file = save_metrics(run, metrics)
    print()
    print(markdown_table(metrics))
    print(f"metrics with their definitions: {file}")


def _demo_detector(weights: str | None, options: dict[str, Any]) -> Detector:
    from .backbones import WeightsError, load_backbone
    from .detector import ReSAD

    detector = ReSAD("quick", weights=weights, **options)
    config: Any = detector.config
    try:
        load_backbone(config.backbone, config.layers, weights)
    except WeightsError as error:
        if weights is not None:
            raise
        print(f"using an untrained backbone, so scores mean little: {error}")
        detector = ReSAD("quick", weights="untrained", **options)
    return detector


def _print_settings(name: str) -> None:
    from .methods import METHODS

    if name not in METHODS:
        raise _Usage(f"no method {name!r}; there are {', '.join(METHODS)}")
    method = METHODS[name]
    for key, field in method.Config.model_fields.items():
        print(f"{key} = {field.default!r}\n    {field.description}")
    for preset, values in method.presets.items():
        changed = ", ".join(f"{key}={value!r}" for key, value in values.items())
        print(f"preset {preset}: {changed or 'the values above'}")
