# SPDX-License-Identifier: Apache-2.0
"""Small trainings that tests and their child processes share."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from fundad_fast.training import LoopSettings, Outcome, Recipe, Team, train


class Line(Recipe):
    """Two networks with optimisers of their own, a moving average, dropout and random noise."""

    def __init__(
        self,
        images: int = 10,
        val_images: int = 4,
        kill_at: int | None = None,
        random: bool = True,
        norm: bool = False,
    ) -> None:
        self.noise = 0.01 * random
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(images + val_images, 3, generator=generator)
        self.y = self.x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3
        with torch.random.fork_rng([]):
            torch.manual_seed(1)
            a = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2 * random), nn.Linear(8, 1))
            b, mean = nn.Linear(1, 1), nn.Linear(1, 1)
        mean.load_state_dict(b.state_dict())
        self.networks = {"a": a, "b": b, "mean": mean.requires_grad_(False)}
        if norm:  # whose running means follow the images, and change nothing else
            self.networks["norm"] = nn.BatchNorm1d(3, affine=False)
        self.optimizers = {
            "a": torch.optim.AdamW(a.parameters(), 0.05),
            "b": torch.optim.SGD(b.parameters(), 0.01, momentum=0.9),
        }
        self.images, self.val_images, self.kill_at = images, val_images, kill_at
        self.seen: list[tuple[int, ...]] = []
        self.seeds: list[tuple[int, ...]] = []
        self.rates: list[float] = []
        self.drawn: list[float] = []

    def rate(self, step):
        return 1.0 if step < 5 else 0.5

    def step(self, turn):
        if turn.step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append(turn.index)
        self.seeds.append(turn.seeds)
        self.rates.append(self.optimizers["a"].param_groups[0]["lr"])
        at = list(turn.index)
        noise = torch.randn(len(at), 3)
        self.drawn.append(noise[0, 0].item())
        x, y = self.x[at] + self.noise * noise, self.y[at]
        if "norm" in self.networks:
            self.networks["norm"](x)
        with turn.autocast():
            out = turn.networks["a"](x)
            loss = (out.float() - y).square().mean()
        turn.descend(loss, "a")
        with turn.autocast():
            second = (turn.networks["b"](out.detach()).float() - y).square().mean()
        turn.descend(second, "b")
        with torch.no_grad():
            for kept, now in zip(
                self.networks["mean"].parameters(), self.networks["b"].parameters()
            ):
                kept.lerp_(now, 0.1)
        return {"loss": loss, "second": second}

    def validate(self, turn):
        at = [self.images + i for i in turn.index]
        out = turn.networks["a"](self.x[at])
        return {"loss": (out - self.y[at]).square().sum(), "size": out.abs().sum()}


def run(recipe: Recipe, folder: Path | None = None, **settings) -> Outcome:
    chosen = {"batch_size": 4, "max_steps": 12, "log_every": 3, "save_every": 0.0, **settings}
    return train(recipe, LoopSettings(**chosen), Team(torch.device("cpu")), folder=folder)


def flat(outcome: Outcome) -> dict[str, torch.Tensor]:
    return {f"{n}/{k}": v for n, net in outcome.weights.items() for k, v in net.items()}


if __name__ == "__main__":  # trainings.py FOLDER RESULT {"kill_at": 7, ...}
    torch.set_num_threads(1)
    where, result, options = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    of_line = {"kill_at", "random", "val_images", "norm"} & options.keys()
    line = Line(**{key: options.pop(key) for key in of_line})
    outcome = run(line, where, **options)
    rank = os.environ.get("RANK", "0")
    print(f"{rank}/{os.environ.get('WORLD_SIZE', '1')}")
    save_file(flat(outcome), result.with_suffix(f".{rank}"))
