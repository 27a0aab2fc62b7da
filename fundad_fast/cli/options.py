# SPDX-License-Identifier: Apache-2.0
"""The options that commands share, and how their texts are understood."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class UsageError(Exception):
    """A call that cannot be carried out as it was given."""


class Show(StrEnum):
    auto = "auto"
    none = "none"
    json = "json"


class Pages(StrEnum):
    one = "one"
    first = "first"
    all = "all"


class CompileMode(StrEnum):
    default = "default"
    reduce_overhead = "reduce-overhead"
    max_autotune = "max-autotune"


class Engine(StrEnum):
    local = "local"
    ray = "ray"


MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        "-m",
        help="resad, patchcore, manytasks, resynth, proxyano, autoencoder, dia; default: resad.",
    ),
]
External = Annotated[
    list[str] | None,
    typer.Option(
        help="Images of another kind, for manytasks' task inter and resynth's textures=external; "
        "may be repeated."
    ),
]
Model = Annotated[Path, typer.Option("--model", "-m", help="Model folder that fit wrote.")]
SelectOn = Annotated[
    list[str] | None,
    typer.Option(
        "--select-on",
        help="Labelled images that weights are chosen by, for dia with select=labelled alone. A "
        "leak: figures on these images, or on their like, are too high.",
    ),
]
NormalClass = Annotated[
    str | None,
    typer.Option(
        "--normal-class",
        help="The class that is healthy, as in 0 of an .npz, or a folder's name; all others are "
        "abnormal. Needed where names do not tell.",
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Processor threads; default: all.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images scored at a time.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if any.")]
Megapixels = Annotated[
    float, typer.Option(min=0.01, help="Larger images are refused (too_large) before decoding.")
]
PagesOption = Annotated[
    Pages, typer.Option("--pages", help="Of TIFFs with several: first, all (an image each) or one.")
]
ProgressOption = Annotated[
    Show,
    typer.Option(
        "--progress",
        help="On standard error. auto: bars in a terminal, elsewhere a line every half minute.",
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 when any input failed.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Score what failed again, when going on.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Backbone weights: FILE.safetensors, or 'untrained'; default: timm's. For dia a DDPM "
        "folder of diffusers; default: trained here."
    ),
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
Compile = Annotated[
    CompileMode | None,
    typer.Option(
        "--compile",
        help="With torch.compile: starts a minute later, then faster; reduce-overhead uses CUDA "
        "graphs.",
    ),
]
Overlays = Annotated[
    str, typer.Option(help="Overlays to draw, worst first: a number, all or none.")
]

ApChunk = Annotated[
    bool,
    typer.Option(
        "--ap-chunk",
        help="Add pixel_AP_chunk20, a mean over shuffled chunks of 20 images (Baugh et al. 2023).",
    ),
]
GpuDecode = Annotated[
    bool,
    typer.Option(
        "--gpu-decode", help="Decode JPEGs on the GPU by nvImageCodec, if it proves to be right."
    ),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Only the first so many inputs; raise it to go on.")
]
Deidentify = Annotated[
    bool,
    typer.Option(
        "--deidentify", help="Leave patients, paths and DICOM identifiers out; no overlays then."
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key", help="Key of --deidentify; default: made beside OUTPUT, as OUTPUT.key."),
]
EngineOption = Annotated[
    Engine,
    typer.Option(
        "--engine", help="Where the work is done: local, or ray (on all nodes of a Ray cluster)."
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="I/N", help="Only part I of N (from 1), by a hash of the id; see merge."
    ),
]


def from_stdin(null: bool) -> list[str]:
    raw = sys.stdin.buffer.read()
    if not null and b"\0" in raw:
        raise UsageError(
            "the list on standard input has NUL characters: give -0, as it ends in them"
        )
    names = raw.split(b"\0") if null else [line.rstrip(b"\r") for line in raw.split(b"\n")]
    names = [name for name in names if name]
    if not names:
        raise UsageError("the list on standard input is empty")
    return [name.decode("utf-8", "surrogateescape") for name in names]


def how_many(text: str, option: str = "--overlays") -> int | None:
    if text == "all":
        return None
    if text == "none":
        return 0
    if not text.isdecimal():
        raise UsageError(f"{option} {text}: use a number, all or none")
    return int(text)


def read_config(path: Path) -> dict[str, Any]:
    import yaml

    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path} is not YAML: {str(error).splitlines()[0]}") from error
    known = {"method", "preset", "weights", "settings"}
    if not isinstance(said, dict) or set(said) - known:
        raise UsageError(f"--config {path}: want {', '.join(sorted(known))}, got {said!r:.80}")
    return said


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    import yaml

    found = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair}: want KEY=VALUE")
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
