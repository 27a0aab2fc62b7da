# SPDX-License-Identifier: Apache-2.0
"""What one image of an archive costs on the processor and on disk: the rates of docs/archives.md.

    python benchmarks/archive_costs.py [-o archive_costs.json] [--dry]

One thread each. Times are of warm files on this machine's disk; a median of rounds where said.
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from archive import bundle, jpegs
from environment import environment

from fundad_fast.archive.model import describe_model
from fundad_fast.archive.ray_worker import Done
from fundad_fast.archive.rows import Naming
from fundad_fast.archive.standing import Standing
from fundad_fast.data import Item, read_image, take_inventory
from fundad_fast.data.readers import PixelBuffer
from fundad_fast.data.resizing import resize_uint8
from fundad_fast.run_folder import RunFolder, map_path, score_parts

SIZES = {"3 MP": (2000, 1500), "6 MP": (3000, 2000)}


def timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def decoding(folder: Path, rounds: int, dry: bool) -> dict[str, Any]:
    """Decode and resize JPEGs as the loader does, for the prepared sizes of the presets."""
    torch.set_num_threads(1)
    found = {}
    for name, (width, height) in SIZES.items():
        place = folder / name
        place.mkdir()
        paths = jpegs(place, 4 if dry else 16, *((200, 150) if dry else (width, height)))
        buffer = PixelBuffer()
        size = 96 if dry else 784

        def walk(paths: list[Path] = paths, buffer: PixelBuffer = buffer, size: int = size) -> None:
            for path in paths:
                resize_uint8(read_image(path, buffer=buffer), size).float().div_(255)

        walk()
        seconds = [timed(walk) / len(paths) for _ in range(rounds)]
        median = statistics.median(seconds)
        mean_bytes = sum(path.stat().st_size for path in paths) / len(paths)
        found[name] = {
            "bytes_per_image": round(mean_bytes),
            "prepared_side": size,
            "ms_per_image": [round(1e3 * s, 2) for s in seconds],
            "images_per_second": round(1 / median, 2),
            "MB_per_second": round(mean_bytes / median / 1e6, 1),
        }
    return found


def about() -> dict[str, Any]:
    return {
        "kind": "score",
        "created": "2026-01-01T00:00:00+0000",
        "input": "archive",
        "layout": "folder",
        "notes": [],
        "model": describe_model(bundle(32)),
        "settings": {},
    }


def row_of(item: Item, rng: np.random.Generator, regions: int) -> dict[str, Any]:
    size, newest, _, _ = Naming().files(item)
    boxes = rng.integers(0, 3000, (regions, 5))
    return {
        "id": item.id,
        "path": Naming().path(item.path),
        "status": "ok",
        "error": None,
        "width": 3000,
        "height": 2000,
        "score": float(rng.random()),
        "score_pct": float(rng.random()),
        "pred_label": 0,
        "regions": [
            {**dict(zip("xywh", box.tolist())), "area": int(box[4]), "score": float(rng.random())}
            for box in boxes
        ],
        "map_path": map_path(item.id),
        "model_id": "null",
        "ms_read": float(rng.random()),
        "ms_model": float(rng.random()),
        "bytes": size,
        "mtime_ns": newest,
    }


def rows(folder: Path, count: int) -> dict[str, Any]:
    """Write rows as the calling process of a Ray run does, and go on with the complete run."""
    rng = np.random.default_rng(0)
    files = []
    for i in range(100):
        files.append(folder / f"file{i}.jpg")
        files[-1].write_bytes(b"x" * 1000)
    items = [Item(f"clinic/2024/{i:08d}.jpg", str(files[i % 100])) for i in range(count)]
    made = [row_of(item, rng, regions=3) for item in items]
    blocks = [pickle.dumps(Done(made[at : at + 64], {})) for at in range(0, count, 64)]
    out = folder / "run"

    def take() -> None:
        with RunFolder(out, about()) as run:
            for block in blocks:
                for row in pickle.loads(block).rows:
                    run.add(row)

    seconds = timed(take)
    disk = sum(part.stat().st_size for part in score_parts(out))
    settled: list[Standing] = []

    def go_on() -> None:
        with RunFolder(out, about()) as run:
            settled.append(Standing(run, Naming()))
            settled[0].settle(items, "folder", limit=None, retry_failed=False)

    again = timed(go_on)
    if settled[0].todo or settled[0].inputs != count:
        raise SystemExit(f"{settled[0].todo} of {settled[0].inputs} rows did not hold")
    return {
        "rows": count,
        "regions_per_row": 3,
        "parquet_bytes_per_row": round(disk / count, 1),
        "ray_bytes_per_row": round(sum(map(len, blocks)) / count, 1),
        "rows_written_per_second": round(count / seconds),
        "resume_seconds_per_million_rows": round(again / count * 1e6, 1),
    }


def maps(folder: Path, count: int) -> dict[str, Any]:
    """Write maps of the grids of 512 and 784 pixels, and look for torn ones among them."""
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    with RunFolder(folder / "maps-run", about()) as run:
        for cells in (64, 98):
            values = rng.random((cells, cells)).astype(np.float32)
            affine = np.zeros((2, 3))
            names = [f"{cells}/{i:07d}.jpg" for i in range(count)]
            seconds = timed(lambda v=values, a=affine, n=names: [run.save_map(i, v, a) for i in n])
            facts = (run.path / map_path(names[0])).stat()
            found[f"{cells} x {cells}"] = {
                "bytes": facts.st_size,
                "bytes_on_disk": 512 * facts.st_blocks,
                "written_per_second": round(count / seconds),
            }
        found["sweep_seconds_per_million_maps"] = round(timed(run.sweep) / (2 * count) * 1e6, 2)
    return found


def listing(folder: Path, count: int) -> dict[str, Any]:
    """Take the inventory of a folder of small files."""
    for i in range(count):
        place = folder / "listing" / f"{i // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:07d}.jpg").write_bytes(b"")
    seconds = timed(lambda: take_inventory(folder / "listing", folder / "inventory"))
    size = (folder / "inventory" / "inventory.sqlite").stat().st_size
    return {
        "files": count,
        "seconds_per_million_files": round(seconds / count * 1e6, 1),
        "bytes_per_file": round(size / count, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dry", action="store_true", help="small sizes: a rehearsal")
    parser.add_argument("-o", "--output", type=Path, default=Path("archive_costs.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = {
            "environment": environment(),
            "decode + 8-bit resize, one thread": decoding(folder, 1 if args.dry else 5, args.dry),
            "rows": rows(folder, 200 if args.dry else 30_000),
            "maps": maps(folder, 20 if args.dry else 500),
            "listing": listing(folder, 200 if args.dry else 20_000),
        }
    args.output.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps({k: v for k, v in content.items() if k != "environment"}, indent=1))


if __name__ == "__main__":
    main()
