# SPDX-License-Identifier: Apache-2.0
"""Where the time of ReSAD goes, stage by stage, with torch's forms and with the native ones.

    python benchmarks/stages.py --data DIR -o stages/ [--preset paper]

fits ReSAD on the 60 healthy training images of ``idrid_512`` (ResNet-18, 784 pixels, 10 % bank),
then scores test images one by one, from files to maps, every image in turn with both: "before" is
what the operators were without C++, ``FUNDAD_BACKEND=torch``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cases import WEIGHTS
from environment import environment

import fundad_fast
from fundad_fast import ops
from fundad_fast.batch import Batch
from fundad_fast.data import InputSpec, discover, prepare, read_image
from fundad_fast.methods.memory_bank import MemoryBank

OPERATORS = ("distance_filter", "self_attention", "nearest")
STAGES = ("decode", "prepare", "backbone", *OPERATORS, "rest", "all")


class Stopwatch:
    """Seconds by stage of the image under way."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def timed(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **more: Any) -> Any:
            began = time.perf_counter()
            try:
                return run(*args, **more)
            finally:
                self.seconds[name] += time.perf_counter() - began

        return wrapped


@contextlib.contextmanager
def watched(method: MemoryBank, watch: Stopwatch, backend: str | None) -> Iterator[None]:
    """The method with its stages timed, its operators forced to a backend if one is given."""
    net = method.features.backbone
    with contextlib.ExitStack() as stack:
        if backend is not None:
            for name in OPERATORS:
                stack.enter_context(ops.OPS[name].using(backend))
        for name in OPERATORS:
            stack.callback(setattr, ops, name, getattr(ops, name))
            setattr(ops, name, watch.timed(name, getattr(ops, name)))
        stack.callback(setattr, net, "forward", net.forward)
        net.forward = watch.timed("backbone", net.forward)  # type: ignore[method-assign]
        yield


def one(method: MemoryBank, path: str, spec: InputSpec, backend: str | None) -> dict[str, float]:
    watch = Stopwatch()
    began = time.perf_counter()
    pixels = watch.timed("decode", read_image)(path)
    ready = watch.timed("prepare", prepare)(pixels, spec)
    mask = None if ready.mask is None else ready.mask[None]
    with watched(method, watch, backend):
        method.score(Batch(ready.image[None], (path,), mask))
    seconds = {**watch.seconds, "all": time.perf_counter() - began}
    known = sum(value for name, value in seconds.items() if name not in ("rest", "all"))
    return {**seconds, "rest": seconds["all"] - known}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of data packs")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--preset", default="paper", choices=("paper", "default"))
    parser.add_argument("--image-size", type=int, default=784)
    parser.add_argument("--images", type=int, default=8)
    args = parser.parse_args()
    dataset = discover(args.data / "idrid_512")
    model = args.output / f"model-{args.preset}-{args.image_size}"
    if not model.exists():
        detector = fundad_fast.ReSAD(
            args.preset,
            weights=args.data / WEIGHTS,
            backbone="resnet18",
            image_size=args.image_size,
            coreset_sampling_ratio=0.1,
            folds=0,
        )
        detector.fit(list(dataset.select("train", 0))).save(model)
    bundle = fundad_fast.load(model).bundle_
    assert bundle is not None
    method, spec = bundle.method, InputSpec(**bundle.input_spec)
    assert isinstance(method, MemoryBank)
    found: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    items = dataset.select("test")[: args.images + 1]
    for number, item in enumerate(items):
        for name, backend in (("before", "torch"), ("after", None)):
            seconds = one(method, item.path, spec, backend)
            if number:  # the first image warms up
                found[name].append(seconds)
    rows = method.state().bank["rows"]
    lines = [
        f"ReSAD `{args.preset}`, {args.image_size} px, ResNet-18, bank {len(rows)} x "
        f"{rows.shape[1]}, {args.images} images one by one, median milliseconds",
        "",
        "| stage | torch | native | ratio |",
        "|---|---|---|---|",
    ]
    for stage in STAGES:
        a, b = (1000 * statistics.median(s[stage] for s in found[name]) for name in found)
        lines.append(f"| {stage} | {a:.1f} | {b:.1f} | {a / b:.1f}x |")
    settings = {k: v for k, v in vars(args).items() if k not in ("data", "output")}
    result = {"settings": settings, "seconds": found, "environment": environment()}
    stem = args.output / f"stages-{args.preset}"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1))
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
