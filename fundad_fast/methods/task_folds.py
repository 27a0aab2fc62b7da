# SPDX-License-Identifier: Apache-2.0
"""Which tasks and images each model of "Many tasks make light work" trains and validates on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ._base import ConfigError

_PARTS_OF_ALL = 5  # where no task is left to validate on


@dataclass(frozen=True)
class TaskFold:
    """One model's share.

    Attributes:
        number: from 0, in lexicographic order of the training tasks.
        train_tasks, val_tasks: by name.
        train, val: numbers of the images, rising.
    """

    number: int
    train_tasks: tuple[str, ...]
    val_tasks: tuple[str, ...]
    train: np.ndarray
    val: np.ndarray


def task_folds(tasks: Sequence[str], train_tasks: int, images: int) -> tuple[TaskFold, ...]:
    """Every way to train on ``train_tasks`` of the tasks and to validate on the others.

    Images are cut, in their order, into as many nearly equal parts as there are tasks, part i
    belonging to task i. A model trains on the parts of its training tasks and validates on the
    parts of the others, but the larger of the two pools always trains. Five tasks make 5, 10, 10
    and 5 models of 1, 2, 3 and 4 training tasks. Source: METHODS.md C.3, after the public code.

    Where a model trains on all tasks, which the paper does not have, it is one model that validates
    on the same tasks with the last of five parts.

    Args:
        tasks: by name.
        train_tasks: how many of them a model trains on, from 1 to all.
        images: how many there are.

    Raises:
        ConfigError: fewer images than parts.
    """
    n = len(tasks)
    parts = n if train_tasks < n else _PARTS_OF_ALL
    if images < parts:
        raise ConfigError(
            f"{images} healthy images to train on, but the scheme of {n} tasks needs at least "
            f"{parts}; add images, or use folds=0 so that none is held out for the thresholds"
        )
    cut = np.array_split(np.arange(images), parts)
    if train_tasks == n:
        every = tuple(tasks)
        return (TaskFold(0, every, every, np.concatenate(cut[:-1]), cut[-1]),)
    found = []
    for number, chosen in enumerate(combinations(range(n), train_tasks)):
        others = [i for i in range(n) if i not in chosen]
        own, rest = (np.concatenate([cut[i] for i in group]) for group in (chosen, others))
        train, val = (own, rest) if len(own) >= len(rest) else (rest, own)
        names = [tuple(tasks[i] for i in group) for group in (chosen, others)]
        found.append(TaskFold(number, names[0], names[1], train, val))
    return tuple(found)
