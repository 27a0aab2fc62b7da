# SPDX-License-Identifier: Apache-2.0
"""A training's state as one safetensors file with JSON in its header; nothing is pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or is of another training."""


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write all of it or nothing: under a temporary name, to the disk, then renamed.

    Args:
        path: the file.
        tensors: by name.
        facts: what JSON can hold.
    """
    from safetensors.torch import save_file

    part = path.with_name(f".{path.name}.writing")
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, part, metadata={"facts": json.dumps(facts)})
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save_checkpoint` wrote.

    Raises:
        CheckpointError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read ({error}); remove it, and training starts again"
        ) from error


def optimizer_state(name: str, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors by name and as JSON."""
    state = optimizer.state_dict()
    tensors, facts = {}, dict[str, Any]()
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{index}/{key}"] = value
            else:
                facts.setdefault(str(index), {})[key] = value
    return tensors, {"state": facts, "param_groups": state["param_groups"]}


def restore_optimizer(
    name: str, optimizer: Optimizer, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Put back what :func:`optimizer_state` took."""
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in facts["state"].items()}
    for full, tensor in tensors.items():
        owner, slash, rest = full.rpartition("/")[0].rpartition("/")
        if slash and owner == name:
            state.setdefault(int(rest), {})[full.rpartition("/")[2]] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": facts["param_groups"]})
