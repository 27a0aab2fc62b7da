# SPDX-License-Identifier: Apache-2.0
"""An archive scored by ``fundad score`` and by anomalib's ``Engine.predict``: rate and memory.

    pip install '.[peers]' && python benchmarks/peers_archive.py --data DIR --weights FILE -o FILE

PatchCore with one bank for both, on the same image files. Each turn is a process of its own that
tells the most memory it has held:

* ours: the command line as it is, from listing to rows, maps, 100 overlays and the report;
* shipped: anomalib's ``predict`` with its own defaults: one by one, a picture drawn of each;
* tuned: batches of 8 read by two more processes, no pictures, predictions not kept.

``--memory`` compares ours with itself instead, for 500 and 5,000 images.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import environment
from peers import bank, engine_of_anomalib, patchcore_of_anomalib

BAR = 1.0
"""Memory of ours for many images, as a share of that for few."""


def peak_mib(pid: int | str = "self") -> float:
    """Most memory that a process has held."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def now() -> tuple[float, float]:
    """Seconds on the clock, and of processors, with those of processes that have ended."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(one.ru_utime + one.ru_stime for one in used)


def since(began: tuple[float, float]) -> dict[str, float]:
    return dict(zip(("seconds", "processor_seconds"), (b - a for a, b in zip(began, now()))))


def archive(source: Path, folder: Path, count: int) -> None:
    """So many images under names of their own, as copies of those of a pack."""
    paths = sorted(path for part in ("train", "test") for path in (source / part).rglob("*.jpg"))
    folder.mkdir()
    for i in range(count):
        here = folder / f"{i:06d}.jpg"
        if i < len(paths):
            shutil.copy(paths[i], here)
        else:
            here.hardlink_to(folder / f"{i % len(paths):06d}.jpg")


def ours(args: argparse.Namespace) -> dict[str, Any]:
    from fundad_fast.cli import app
    from fundad_fast.run_folder import read_run

    run = args.archive.with_name("run")
    command = ["score", args.archive, "-m", args.bank, "-o", run, "--progress", "none"]
    command += ["--threads", args.threads, "--batch-size", args.batch_size]
    began = now()
    code = app([str(part) for part in command], standalone_mode=False)
    found: dict[str, Any] = since(began)
    if code:
        raise SystemExit(f"fundad score ended with {code}")
    about = read_run(run)
    stages = about["profile"]["stages"]
    shutil.rmtree(run)
    waiting = stages["score"]["starved"] / about["profile"]["seconds"]
    return {**found, "counts": about["counts"], "waiting_share": waiting}


def predict(args: argparse.Namespace, tuned: bool) -> dict[str, Any]:
    from anomalib.data import PredictDataset
    from torch.utils.data import DataLoader

    model, engine = patchcore_of_anomalib(args, visualizer=not tuned), engine_of_anomalib()
    began = now()
    if tuned:
        data = PredictDataset(path=args.archive)
        loader = DataLoader(
            data, batch_size=args.batch_size, num_workers=args.threads, collate_fn=data.collate_fn
        )
        engine.predict(model=model, dataloaders=loader, return_predictions=False)
    else:
        kept = engine.predict(model=model, data_path=args.archive)
        assert kept is not None
        assert sum(len(batch.image_path) for batch in kept) == args.images
    found: dict[str, Any] = since(began)
    pictures = len(list(Path(engine.trainer.default_root_dir).rglob("*.jpg")))
    found["pictures"] = pictures
    if tuned:  # what it shares with the first process is counted in both
        readers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        found["peak_of_a_reader_mib"] = readers
    return found


ROLES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "ours": ours,
    "shipped": lambda args: predict(args, tuned=False),
    "tuned": lambda args: predict(args, tuned=True),
}


def turn(args: argparse.Namespace, role: str, folder: Path, model: Path) -> dict[str, Any]:
    """One part in a process of its own."""
    here = {"--archive": folder, "--bank": model, "--images": args.images}
    more = [str(part) for pair in here.items() for part in pair]
    command = [sys.executable, __file__, *sys.argv[1:], "--role", role, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{role} failed:\n{done.stderr[-3000:]}")
    line = next(s for s in done.stdout.splitlines() if s.startswith("RESULT "))
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    print(role, args.images, found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of data packs")
    parser.add_argument("--weights", required=True)
    parser.add_argument("-o", "--output", type=Path, default=Path("peers-archive.json"))
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--many", type=int, default=5000, help="of --memory")
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="ours for few and many images")
    parser.add_argument("--only", choices=tuple(ROLES), help="one of the three")
    parser.add_argument("--role", choices=("bank", *ROLES), help=argparse.SUPPRESS)
    parser.add_argument("--archive", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--bank", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.ratio, args.fov, args.seed = 0.01, "none", 0
    if args.role:
        torch.set_num_threads(args.threads)
        if args.role == "bank":
            from fundad_fast.data import discover

            found = bank(args, discover(args.data / "idrid_512"), None)
        else:
            found = ROLES[args.role](args)
            found |= {"images_per_second": args.images / found["seconds"], "peak_mib": peak_mib()}
        print("RESULT " + json.dumps(found), flush=True)
        return
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model"
        turn(args, "bank", Path(name), model)
        turns: list[tuple[str, int]] = [(role, args.images) for role in ROLES]
        if args.memory:
            turns = [("ours", args.images), ("ours", args.many)]
        result: dict[str, Any] = {"environment": environment(), "size": args.image_size}
        for role, count in turns:
            if args.only not in (None, role):
                continue
            args.images = count
            folder = Path(name) / f"archive{count}"
            if not folder.exists():
                archive(args.data / "idrid_512", folder, count)
            key = f"ours, {count} images" if args.memory else role
            result[key] = turn(args, role, folder, model)
        if args.memory:
            peaks = [found["peak_mib"] for key, found in result.items() if key.startswith("ours")]
            result |= {"ratio": peaks[1] / peaks[0], "bar": BAR}
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
