# SPDX-License-Identifier: Apache-2.0
"""A bank of the size of ReSAD's on IDRiD (1.3 million rows, 10 % kept), chosen exactly.

    python benchmarks/large_bank.py --data DIR -o large_bank/

ReSAD's features (P + R) of the 104 healthy images of ``idrid_512`` and ``hrf_1024`` at 896 pixels
are kept in the output folder and the bank is chosen as ``fit`` does it, with progress. Killed at
any point, the same call goes on, and the seconds of all calls are added. At the end the unpruned
loop runs for a few picks and is extrapolated: each of its picks costs the same.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rivals
import torch
from cases import WEIGHTS

from fundad_fast.backbones import load_backbone
from fundad_fast.data import InputSpec, Loader, discover
from fundad_fast.methods import ReSAD, make_config
from fundad_fast.methods.config import MemoryBankConfig
from fundad_fast.methods.coreset import bank_size, choose, projection_matrix
from fundad_fast.methods.features import CombinedFeatures
from fundad_fast.progress import Bars, Task
from fundad_fast.spill import RowStore

UNPRUNED_PICKS = 8


class Timed(Bars):
    """Bars, and a file that holds the seconds of this call and its picks so far, kill or not."""

    def __init__(self, file: Path, earlier: list[dict[str, float]]) -> None:
        self.file, self.earlier, self.picks = file, earlier, 0
        self.began = time.perf_counter()

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "it") -> Iterator[Task]:
        with super().task(name, total, unit) as bar:
            self.bar = bar
            yield self

    def advance(self, n: int = 1, **info: Any) -> None:
        self.bar.advance(n, **info)
        self.picks += n
        self.note()

    def note(self) -> None:
        mine = {"seconds": time.perf_counter() - self.began, "picks_at_its_end": self.picks}
        self.file.write_text(json.dumps([*self.earlier, mine]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of data packs")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--image-size", type=int, default=896)
    args = parser.parse_args()

    settings = {"backbone": "resnet18", "image_size": args.image_size, "memory_budget": 16 * 2**30}
    config = make_config(ReSAD, "paper", settings)
    assert isinstance(config, MemoryBankConfig)
    net = load_backbone(config.backbone, config.layers, args.data / WEIGHTS)
    features = CombinedFeatures(net, config)
    store = RowStore(features.dim, folder=args.output / "rows")
    items = [
        item
        for pack in ("idrid_512", "hrf_1024")
        for item in discover(args.data / pack).items
        if item.label == 0
    ]
    done = set(store.ids)
    rest = [item for item in items if item.path not in done]
    spec = InputSpec(image_size=args.image_size, fov="none", mixed_inputs="convert")
    with Bars().task("features", len(rest), "images") as task:
        for chunk in Loader(rest, spec, batch_size=1):
            for item, rows in zip(chunk.items, features(chunk.batch.image)):
                store.append(item.path, rows.reshape(-1, features.dim))
                task.advance()

    clock = args.output / "seconds.json"
    spent = json.loads(clock.read_text()) if clock.exists() else []
    timed = Timed(clock, spent)
    chosen = choose(store, range(len(store.ids)), config, name="bank", progress=timed)
    timed.note()

    matrix = projection_matrix(len(store), store.d, config.projection_eps, config.seed)
    x = store.all() if matrix is None else store.all() @ matrix
    k = bank_size(len(store), store.d, config)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        rivals.kcenter_unpruned(x.contiguous(), UNPRUNED_PICKS)
        times.append(time.perf_counter() - began)
    unpruned = float(np.median(times)) / UNPRUNED_PICKS * k
    result = {
        "rows": len(store),
        "dimension": chosen.projected,
        "picks": k,
        "covering_radius": chosen.radius,
        "shards": chosen.shards,
        "calls": json.loads(clock.read_text()),
        "unpruned_s_extrapolated": unpruned,
        "threads": torch.get_num_threads(),
    }
    (args.output / "large_bank.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
