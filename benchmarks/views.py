# SPDX-License-Identifier: Apache-2.0
"""DIA's 40 views of an image: batched, beside one view at a time and one image at a time.

"A view at a time, channels first" is what a plain loop over a plain network takes.

python benchmarks/views.py [--side 64] [--images 16] [--width 64] [--rounds 3]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch

from fundad_fast.methods.shift_scores import scoring_views, view_features
from fundad_fast.nets import ContrastNet
from fundad_fast.synthetic import augmented, mirrored, shifted


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    for name, value in (
        ("side", 64),
        ("images", 16),
        ("width", 64),
        ("rounds", 3),
        ("channels", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    said = parser.parse_args()
    net = ContrastNet(said.channels, width=said.width).eval()
    image = torch.rand(said.images, said.channels, said.side, said.side)
    views = scoring_views(10, (0.54, 0.54))

    def batched() -> None:
        view_features(net, image, views, "rotation")

    def by_image() -> None:
        for one in image.split(1):
            view_features(net, one, views, "rotation")

    first = ContrastNet(said.channels, width=said.width).eval()
    first.load_state_dict(net.state_dict())
    first.to(memory_format=torch.contiguous_format)

    def as_plain(x: torch.Tensor) -> None:
        features = first.blocks(first.stem((x - 0.5) / 0.5)).mean((-2, -1))
        first.projection(features), first.shift(features)

    def loop(net: Callable[[torch.Tensor], object]) -> None:
        for one in image.split(1):
            for v in range(len(views)):
                own = views[v : v + 1]
                net(augmented(shifted(mirrored(one, own.flip), v % 4), own))

    forms = {
        "batched": batched,
        "an image at a time": by_image,
        "a view at a time": lambda: loop(net),
        "a view at a time, channels first": lambda: loop(as_plain),
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    batched()
    for _ in range(said.rounds):
        for name, call in forms.items():
            times[name].append(seconds(call))
    print(f"{said.images} images of {said.side}, {torch.get_num_threads()} threads")
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(taken, times["batched"])]
        each = statistics.median(taken) / said.images * 1e3
        print(f"{name:33} {each:8.1f} ms an image, {statistics.median(ratios):5.2f} x batched")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"peak memory of the process {peak:.0f} MiB")


if __name__ == "__main__":
    main()
