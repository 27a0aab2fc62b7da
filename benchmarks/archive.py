# SPDX-License-Identifier: Apache-2.0
"""Scoring an archive with a model that costs nothing: rate from 6-MP JPEGs, and peak memory.

    python benchmarks/archive.py [-o archive.json] [--rounds 4] [--dry] [--data DIR --weights FILE]

The rate is held against decoding and resizing alone, on the same two threads in the same rounds, in
two forms: with the reference resize (float32), and with the 8-bit one that the loader uses, which
is the harder bar. The memory is the peak of a process of its own, for few inputs and for many: of
``fundad score``, with this model and the report, and of going on with a run that is complete. With
data and weights: how long a real model waits for images.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import cv2
import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from environment import environment

from fundad_fast import detector, methods
from fundad_fast.archive.run import ScoreOptions, score_run
from fundad_fast.batch import Batch, Scores
from fundad_fast.bundle import Bundle, save_bundle
from fundad_fast.cli import app
from fundad_fast.data import Dataset, InputSpec, Item, discover, read_image, resize
from fundad_fast.data.readers import PixelBuffer
from fundad_fast.data.resizing import resize_uint8
from fundad_fast.methods import Method, MethodConfig, State
from fundad_fast.run_folder import read_run

SIZE, THREADS = 512, 2
RATE_BAR, MEMORY_BAR, WAITING_BAR = 0.85, 1.10, 0.05
FEW, MANY = 2_000, 200_000


class Null(Method):
    """Mean brightness, and a map of 32 x 32 cells."""

    name = "null"
    Config = MethodConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"default": {}})

    def fit(self, train: Any, **options: Any) -> Null:
        return self

    def score(self, batch: Batch) -> Scores:
        cells = F.adaptive_avg_pool2d(batch.image, min(32, batch.image.shape[-1])).mean(1)
        return Scores(cells.mean((1, 2)), cells)

    def state(self) -> State:
        return State()

    @classmethod
    def from_state(cls, config: MethodConfig, state: State) -> Null:
        return cls(config)

    def plan(self, images: int, folds: int) -> Any:
        raise NotImplementedError("nothing is fitted here")


def bundle(size: int) -> Bundle:
    spec = InputSpec(image_size=size, fov="none", channels="rgb", bit_depth=8)
    return Bundle(
        method=Null(MethodConfig(image_size=max(32, size), fov="none")),
        preset="default",
        input_spec=spec.model_dump(mode="json"),
        thresholds={
            kind: {"value": value, "rule": "none", "target_fpr": 0.05}
            for kind, value in (("image", 0.5), ("pixel", 0.9))
        },
        id="null",
    )


def jpegs(folder: Path, count: int, width: int, height: int) -> list[Path]:
    """Pictures smooth at several scales with some noise, of quality 90: 1.5 bits per pixel."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        path = folder / f"{i:03d}.jpg"
        if i < 8:
            total = rng.normal(120, 4, (height, width, 3)).astype(np.float32)
            for cells in (4, 16, 64):
                noise = rng.normal(0, 30, (cells, cells, 3)).astype(np.float32)
                total += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
            pixels = np.ascontiguousarray(total.clip(0, 255).astype(np.uint8))
            path.write_bytes(simplejpeg.encode_jpeg(pixels, 90))
        else:
            shutil.copy(paths[i % 8], path)
        paths.append(path)
    return paths


def alone(paths: list[Path], form: str) -> None:
    """Decode and resize, and nothing else."""
    local = threading.local()

    def one(path: Path) -> None:
        if not hasattr(local, "buffer"):
            torch.set_num_threads(1)
            local.buffer = PixelBuffer()
        pixels = read_image(path, buffer=local.buffer)
        if form == "reference":
            resize(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, SIZE)
        else:
            resize_uint8(pixels, SIZE).float().div_(255)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, paths))


def whole(paths: list[Path], maps: bool, run: Path) -> None:
    """Score into a new run folder: rows, regions, and maps where wanted."""
    items = tuple(Item(path.name, str(path)) for path in paths)
    options = ScoreOptions(batch_size=4, threads=THREADS, save_maps=maps)
    score_run(bundle(SIZE), Dataset(items, "folder", "."), items, run, options=options)


def rates(args: argparse.Namespace) -> dict[str, Any]:
    count, width, height = (8, 300, 200) if args.dry else (args.images, 3000, 2000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = jpegs(folder, count, width, height)
        few = paths[: max(8, count // 4)]  # of the slow one
        runs = (folder / f"run{i}" for i in itertools.count())
        arms: dict[str, tuple[int, Callable[[], None]]] = {
            "decode + reference resize": (len(few), lambda: alone(few, "reference")),
            "decode + 8-bit resize": (count, lambda: alone(paths, "uint8")),
            "score, without maps": (count, lambda: whole(paths, False, next(runs))),
            "score, with maps": (count, lambda: whole(paths, True, folder / "last")),
        }
        found: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(-1, args.rounds):  # the first round warms caches, imports and files
            shutil.rmtree(folder / "last", ignore_errors=True)
            for name, (images, work) in arms.items():
                began = time.perf_counter()
                work()
                if number >= 0:
                    found[name].append(images / (time.perf_counter() - began))
        profile = read_run(folder / "last")["profile"]
        size = sum(path.stat().st_size for path in paths) / count
    shares = {}
    for base in list(arms)[:2]:
        for ours in list(arms)[2:]:
            ratios = [a / b for a, b in zip(found[ours], found[base])]
            shares[f"{ours} / {base}"] = [float(np.median(ratios)), min(ratios), max(ratios)]
    return {
        "images": count, "pixels": [width, height], "bytes_per_image": size, "size": SIZE,
        "threads": THREADS, "images_per_second": found, "bar": RATE_BAR,
        "share_median_min_max": shares, "profile": profile,
    }  # fmt: skip


def peak_mib() -> float:
    """Most memory that this process has held: not getrusage's, which counts its parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def waiting(args: argparse.Namespace) -> dict[str, Any]:
    """The share of the time that a real ReSAD waits for images, which are scored by their files."""
    import fundad_fast

    source = discover(args.data / "idrid_512")
    detector = fundad_fast.ReSAD(
        weights=args.weights,
        backbone="resnet18",
        image_size=SIZE,
        coreset_sampling_ratio=0.01,
        folds=0,
        threads=THREADS,
    )
    torch.set_num_threads(THREADS)
    detector.fit(list(source.select("train", 0))[: 4 if args.dry else None])
    assert detector.bundle_ is not None
    paths = [item.path for item in source.items]
    count = 8 if args.dry else args.images
    items = tuple(Item(f"{i}", paths[i % len(paths)]) for i in range(count))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        options = ScoreOptions(batch_size=4, threads=THREADS)
        score_run(detector.bundle_, Dataset(items, "folder", "."), items, out, options=options)
        profile = read_run(out)["profile"]
    torch.set_num_threads(1)
    share = profile["stages"]["score"]["starved"] / profile["seconds"]
    return {"model": "ReSAD default, resnet18, bank 1 %", "size": SIZE, "threads": THREADS,
            "waiting_share": share, "bar": WAITING_BAR, "profile": profile}  # fmt: skip


def remember(count: int) -> None:
    """``fundad score`` on so many small files; prints what the process needed, also to go on."""
    methods.METHODS["null"] = Null
    detector.DETECTORS["null"] = type("NullDetector", (detector.Detector,), {"method": Null})  # type: ignore[index]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = jpegs(folder, 64, 32, 32)
        for i in range(count):
            place = folder / "in" / f"folder{i // 1000:05d}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"image{i:08d}.jpg").hardlink_to(paths[i % len(paths)])
        save_bundle(bundle(32), folder / "model")
        command = ["score", folder / "in", "-m", folder / "model", "-o", folder / "run"]
        options = ["--no-maps", "--threads", THREADS, "--batch-size", 64, "--progress", "none"]
        found: dict[str, Any] = {"rows": count, "before_mib": peak_mib()}
        # Going on with a run that is complete holds every row against every input.
        for what in ("", "_resumed", "_with_report"):
            began = time.perf_counter()
            said = [*command, *options, "--report" if "report" in what else "--no-report"]
            code = app([str(part) for part in said], standalone_mode=False)
            if code:
                raise SystemExit(f"fundad score ended with {code}")
            found[f"seconds{what}"] = time.perf_counter() - began
            found[f"peak_mib{what}"] = peak_mib()
        counts = read_run(folder / "run")["counts"]
    print(json.dumps({"counts": counts, **found}))


def memory(args: argparse.Namespace) -> dict[str, Any]:
    few, many = (200, 2000) if args.dry else (FEW, MANY)
    found = {}
    for count in (few, many):
        command = [sys.executable, __file__, "--remember", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[str(count)] = json.loads(done.stdout.splitlines()[-1])
    ratio = {
        name: found[str(many)][name] / found[str(few)][name]
        for name in found[str(few)]
        if name.startswith("peak")
    }
    return {"inputs": found, "ratio": ratio, "bar": MEMORY_BAR}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("archive.json"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--images", type=int, default=96, help="of the rate")
    parser.add_argument("--data", type=Path, help="folder of data packs")
    parser.add_argument("--weights", help="of ResNet-18")
    parser.add_argument("--only", choices=["rate", "waiting", "memory"])
    parser.add_argument("--dry", action="store_true", help="small sizes: a rehearsal")
    parser.add_argument("--remember", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.remember:
        remember(args.remember)
        return
    result: dict[str, Any] = {"environment": environment()}
    if args.only in (None, "rate"):
        result["rate"] = rates(args)
    if args.only in (None, "waiting") and args.data:
        result["waiting"] = waiting(args)
    if args.only in (None, "memory"):
        result["memory"] = memory(args)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "environment"}, indent=1))


if __name__ == "__main__":
    main()
