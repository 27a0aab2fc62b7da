# SPDX-License-Identifier: Apache-2.0
"""The one training loop, for every method that trains."""

from .checkpoint import CheckpointError
from .curves import draw_curves
from .lars import LARS
from .loop import LoopSettings, Outcome, Recipe, TrainingError, Turn, train
from .records import History, as_csv
from .schedules import multi_step, warm_up_and_cosine, warm_up_and_decay
from .seeds import seed_of
from .team import Team, launched

__all__ = [
    "LARS",
    "CheckpointError",
    "History",
    "LoopSettings",
    "Outcome",
    "Recipe",
    "Team",
    "TrainingError",
    "Turn",
    "as_csv",
    "draw_curves",
    "launched",
    "multi_step",
    "seed_of",
    "train",
    "warm_up_and_cosine",
    "warm_up_and_decay",
]
