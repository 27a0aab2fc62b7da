# SPDX-License-Identifier: Apache-2.0
"""ReSAD from decoded images on the device to anomaly maps: images per second and peak memory.

    python benchmarks/end_to_end.py [--device cuda] [-o end_to_end.json] [--dry]

The paper's configuration: 784 x 784, WideResNet-50 layers 2 and 3, C = P + R, a bank of 128,693
rows of 1536 features, exact distances. The weights are random, of the right shape; the bank is
drawn from the features that they give for other images, so it is correlated as a bank is. Its rows
are drawn at random, not by k-centre, so more of it may lie near a query than in a real bank.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from environment import environment
from torch import Tensor

from fundad_fast import ops
from fundad_fast.backbones import Backbone
from fundad_fast.batch import Batch
from fundad_fast.methods._base import State, make_config
from fundad_fast.methods.resad import ReSAD

BAR = 150  # images per second on an H200
PAPER: dict[str, Any] = {"backbone": "wide_resnet50_2.tv_in1k", "image_size": 784}
DRY: dict[str, Any] = {"backbone": "resnet18.tv_in1k", "image_size": 96, "radius": 3}
PAPER_ROWS, DRY_ROWS = 128_693, 500


class Figures:
    """What was measured, for JSON and table."""

    def __init__(self) -> None:
        self.figures: list[dict[str, Any]] = []

    def add(self, name: str, value: float, unit: str, bar: str = "", note: str = "") -> None:
        self.figures.append({"name": name, "value": value, "unit": unit, "bar": bar, "note": note})
        print(f"{name}: {value:.4g} {unit} {note}", flush=True)


def pictures(count: int, size: int, device: str, seed: int) -> Tensor:
    """``[count, 3, size, size]`` uint8: smooth at several scales, each image another."""
    g = torch.Generator(device).manual_seed(seed)
    total = torch.zeros(count, 3, size, size, device=device)
    for cells in (4, 12, 40, 120):
        noise = torch.randn(count, 3, cells, cells, generator=g, device=device)
        total += F.interpolate(noise, (size, size), mode="bilinear") * cells**-0.5
    return (total * 60 + 120).clamp(0, 255).byte()


def as_batch(images: Tensor) -> Batch:
    return Batch(images.float() / 255, tuple(str(i) for i in range(len(images))))


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], device: str, least: float) -> float:
    """Per call, over at least two calls and ``least`` seconds, after one to warm up."""
    run()
    synchronize(device)
    began, calls = time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - began < least:
        run()
        synchronize(device)
        calls += 1
    return (time.perf_counter() - began) / calls


def fitted(settings: dict[str, Any], rows: int, device: str, figures: Figures) -> ReSAD:
    """The method with random weights and a bank of made rows."""
    config = make_config(ReSAD, "paper", settings)
    torch.manual_seed(0)
    net = Backbone(settings["backbone"], config.layers)
    facts = {"backbone": vars(net.info)}
    stand_in = ops.nearest_prepare(torch.zeros(1, sum(net.channels))).tensors()
    state = State(net.net.state_dict(), stand_in, facts)
    extractor = ReSAD.from_state(config, state).to(device).features
    cells = extractor.grid(settings["image_size"]) ** 2
    share = max(1, cells // 2)  # rows of one image: the bank comes from several
    parts: list[Tensor] = []
    while sum(map(len, parts)) < rows:
        image = as_batch(pictures(1, settings["image_size"], device, 1000 + len(parts))).image
        found = extractor(image).flatten(0, 2)
        parts.append(found[torch.randperm(len(found), device=device)[:share]])
    bank = torch.cat(parts)[:rows].contiguous()
    synchronize(device)
    began = time.perf_counter()
    prepared = ops.nearest_prepare(bank)
    synchronize(device)
    shape = " x ".join(str(n) for n in bank.shape)
    figures.add("preparing the bank", time.perf_counter() - began, "s", note=shape)
    state = State(net.net.state_dict(), prepared.tensors(), facts)
    return ReSAD.from_state(config, state).to(device)


def exactness(method: ReSAD, images: Tensor, figures: Figures) -> None:
    """Distances of some cells beside float64 over the whole bank."""
    rows = method.features(as_batch(images[:1]).image).flatten(0, 2)
    some = rows[:: max(1, len(rows) // 64)][:64].contiguous()
    bank = method._bank.rows
    dist2, _ = ops.nearest(some, bank, prepared=method._bank)
    least = torch.full((len(some),), float("inf"), dtype=torch.float64, device=some.device)
    for part in bank.split(4096):  # differences, not products: float64 of what is asked for
        for i in range(0, len(some), 8):
            gap = some[i : i + 8, None].double() - part.double()
            least[i : i + 8] = least[i : i + 8].minimum(gap.square().sum(-1).min(1).values)
    off = ((dist2[:, 0].double() - least).abs() / least.clamp_min(1e-30)).max()
    figures.add("nearest distance, largest relative error", float(off), "", "≤ 1e-5", "64 cells")
    if not off <= 1e-5:
        raise SystemExit(f"distances are not exact: off by {float(off):.1e}")


def stages(
    method: ReSAD, images: Tensor, device: str, least: float, figures: Figures, label: str
) -> None:
    """Milliseconds per image of each part, one image at a time."""
    extractor, config = method.features, method.config
    image = as_batch(images[:1]).image
    kind = getattr(torch, config.backbone_dtype)

    def backbone() -> list[Tensor]:
        with torch.autocast(device, kind, enabled=kind != torch.float32):
            return [level.float() for level in extractor.backbone(image)]

    levels = backbone()
    f = extractor.multilevel(levels)
    flat = f.permute(0, 2, 3, 1).flatten(1, 2)
    rows = extractor(image).flatten(0, 2)
    bank = method._bank
    parts: dict[str, Callable[[], Any]] = {
        "backbone": backbone,
        "levels together": lambda: extractor.multilevel(levels),
        "distance_filter": lambda: ops.distance_filter(f, extractor.radius(f.shape[-1])),
        "self_attention": lambda: ops.self_attention(flat, 1.0, config.attn_norm),
        "nearest": lambda: ops.nearest(rows, bank.rows, prepared=bank),
        "all": lambda: method.score(as_batch(images[:1])),
    }
    for name, run in parts.items():
        figures.add(f"{label}: {name}", seconds(run, device, least) * 1e3, "ms per image")


def rate(method: ReSAD, images: Tensor, size: int, device: str, least: float) -> float:
    """Images per second in batches of ``size``."""
    turn = itertools.cycle(images.split(size))
    return size / seconds(lambda: method.score(as_batch(next(turn))), device, least)


def throughput(
    method: ReSAD, images: Tensor, device: str, least: float, figures: Figures, label: str
) -> int:
    """The batch size that was best; peak memory is that of scoring, with the bank."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    found = {}
    for size in (1, 4, 16):
        if size <= len(images):
            found[size] = rate(method, images, size, device, least)
            figures.add(f"{label}: images per second, batches of {size}", found[size], "1/s")
            if device == "cuda":
                peak = torch.cuda.max_memory_allocated() / 2**30
                figures.add(f"{label}: peak memory, batches of {size}", peak, "GiB")
    return max(found, key=lambda size: found[size])


def measure(settings: dict[str, Any], rows: int, args: argparse.Namespace, least: float) -> None:
    device, figures = args.device, Figures()
    images = pictures(4 if args.dry else 16, settings["image_size"], device, 0)
    bar = "" if args.dry or device == "cpu" else f"≥ {BAR}"

    def keep() -> None:  # after each part: a run that is stopped keeps what it has
        title = "ReSAD end to end" + (", rehearsal" if args.dry else "")
        facts = {**settings, "bank_rows": rows, "device": device}
        content = {"title": title, "settings": facts, "environment": environment()}
        value = max(f["value"] for f in figures.figures if f["unit"] == "1/s")
        best = {"name": "images per second, best", "value": value, "unit": "1/s", "bar": bar}
        shown = [*figures.figures, {**best, "note": ""}]
        args.output.write_text(json.dumps({**content, "figures": shown}, indent=1))

    for kind in ("float32", "bfloat16"):
        label = f"{kind} backbone"
        method = fitted({**settings, "backbone_dtype": kind}, rows, device, figures)
        exactness(method, images, figures)
        stages(method, images, device, least / 4, figures, label)
        size = throughput(method, images, device, least, figures, label)
        keep()
    if args.compile:
        label = "bfloat16 backbone, compiled"
        value = rate(method.compile(), images, size, device, least)
        figures.add(f"{label}: images per second, batches of {size}", value, "1/s")
        keep()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, choices=["cpu", "cuda"])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--dry", action="store_true", help="small sizes: a rehearsal")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("-o", "--output", type=Path, default=Path("end_to_end.json"))
    args = parser.parse_args()
    settings, rows = (DRY, DRY_ROWS) if args.dry else (PAPER, PAPER_ROWS)
    with torch.no_grad():
        measure(settings, rows, args, 0.05 if args.dry else args.seconds)


if __name__ == "__main__":
    main()
