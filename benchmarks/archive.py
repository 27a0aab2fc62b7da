# SPDX-License-Identifier: Apache-2.0
"""Scoring an archive with a model that costs nothing: rate from 6-MP JPEGs, and peak memory.

    python benchmarks/archive.py [-o archive.json] [--rounds 4] [--dry]

The rate is held against decoding and resizing alone, on the same two threads in the same rounds, in
two forms: with the reference resize (float32), and with the 8-bit one that the loader uses, which
is the harder bar. The memory is the peak of a process of its own, for few inputs and for many.
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
from collections.abc import Callable, Iterator, Mapping
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

from fundad_fast.archive.run import ScoreOptions, score_run
from fundad_fast.batch import Batch, Scores
from fundad_fast.bundle import Bundle
from fundad_fast.data import Dataset, InputSpec, Item, read_image, resize
from fundad_fast.data.readers import PixelBuffer
from fundad_fast.data.resizing import resize_uint8
from fundad_fast.methods import Method, MethodConfig, State
from fundad_fast.run_folder import read_run

SIZE, THREADS = 512, 2
RATE_BAR, MEMORY_BAR = 0.85, 1.10
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
        thresholds={"image": {"value": 0.5}, "pixel": {"value": 0.9}},
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


class Inputs:
    """Many ids of few files, made when they are walked."""

    def __init__(self, paths: list[Path], count: int) -> None:
        self.paths, self.count = paths, count

    def __iter__(self) -> Iterator[Item]:
        for i in range(self.count):
            path = self.paths[i % len(self.paths)]
            yield Item(f"folder{i // 1000:05d}/image{i:08d}.jpg", str(path))


def peak_mib() -> float:
    """Most memory that this process has held: not getrusage's, which counts its parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def remember(count: int) -> None:
    """Score so many small inputs; prints what the process needed, before and at its peak."""
    with tempfile.TemporaryDirectory() as folder:
        paths = jpegs(Path(folder), 64, 32, 32)
        out = Path(folder) / "run"
        dataset = Dataset((), "folder", ".")
        options = ScoreOptions(batch_size=64, threads=THREADS, save_maps=False)
        began = time.perf_counter()
        counts = score_run(bundle(32), dataset, Inputs(paths, count), out, options=options)
        seconds = time.perf_counter() - began
        fresh = peak_mib()
        # Going on with a run that is complete: every row against every input.
        score_run(bundle(32), dataset, Inputs(paths, count), out, options=options)
        again = peak_mib()
    rows = {"counts": counts, "seconds": seconds}
    print(json.dumps({**rows, "peak_mib": fresh, "peak_resumed_mib": again}))


def memory(args: argparse.Namespace) -> dict[str, Any]:
    few, many = (200, 2000) if args.dry else (FEW, MANY)
    found = {}
    for count in (few, many):
        command = [sys.executable, __file__, "--remember", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[str(count)] = json.loads(done.stdout.splitlines()[-1])
    ratio = {
        name: found[str(many)][name] / found[str(few)][name]
        for name in ("peak_mib", "peak_resumed_mib")
    }
    return {"inputs": found, "ratio": ratio, "bar": MEMORY_BAR}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("archive.json"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--images", type=int, default=96, help="of the rate")
    parser.add_argument("--only", choices=["rate", "memory"])
    parser.add_argument("--dry", action="store_true", help="small sizes: a rehearsal")
    parser.add_argument("--remember", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.remember:
        remember(args.remember)
        return
    result: dict[str, Any] = {"environment": environment()}
    if args.only != "memory":
        result["rate"] = rates(args)
    if args.only != "rate":
        result["memory"] = memory(args)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "environment"}, indent=1))


if __name__ == "__main__":
    main()
