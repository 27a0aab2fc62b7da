# SPDX-License-Identifier: Apache-2.0
"""The processes that train together: one, or as many as a launcher has started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def launched() -> tuple[int, int]:
    """This process's number and how many there are, as accelerate and torchrun say."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Team:
    """One process of those that train together, on its own device.

    Precision is not accelerate's here but the loop's, and so part of a method's settings: what
    ``accelerate launch --mixed_precision`` says has no effect.

    Args:
        device: where to train; of several GPUs each process has its own.
    """

    def __init__(self, device: torch.device) -> None:
        from accelerate import Accelerator

        together = launched()[1] > 1
        self._accelerator = Accelerator(
            device_placement=False,
            mixed_precision="no",
            cpu=together and device.type == "cpu",
        )
        self.device = self._accelerator.device if together else device
        self.size: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    def share(self, networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """The networks on the device, with gradients averaged over the processes."""
        placed = {}
        for name, net in networks.items():
            placed[name] = net.to(self.device)
            if self.size > 1 and any(p.requires_grad for p in net.parameters()):
                placed[name] = self._accelerator.prepare_model(net, device_placement=False)
        return placed

    def agree(self, networks: Mapping[str, nn.Module]) -> None:
        """Give every process the first one's buffers, such as the means of batch normalisation,
        which each has learned from its own share of a batch."""
        if self.size == 1:
            return
        from accelerate.utils import broadcast

        for net in networks.values():
            for buffer in net.buffers():
                buffer.copy_(broadcast(buffer))

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def gather(self, value: Any) -> list[Any]:
        """What every process gave, in order; small things only."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def wait(self) -> None:
        """Until every process is here."""
        self._accelerator.wait_for_everyone()
