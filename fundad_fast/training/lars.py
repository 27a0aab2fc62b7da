# SPDX-License-Identifier: Apache-2.0
"""LARS: momentum whose step in every tensor is a share of the tensor's own size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """Stochastic gradient descent with momentum and layer-wise rates.

    Each tensor's gradient g, with the decay λ of its weights w added, is multiplied by
    trust · ‖w‖ / (‖g‖ + λ‖w‖ + ε), or by 1 where a norm is 0; momentum and rate follow.
    Source: You, Gitman, Ginsburg 2017, eq. 6; ε and the case of 0 as in torchlars, which the public
    code of "Dissolving is amplifying" uses (METHODS.md D.5).

    Args:
        params: to train.
        lr: rate, above 0.
        momentum: in [0, 1).
        weight_decay: λ.
        trust: the share of a tensor's norm that a step at rate 1 may be.
        eps: keeps the quotient finite.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.1,
        *,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = 0.001,
        eps: float = 1e-8,
    ) -> None:
        if lr <= 0 or not 0 <= momentum < 1 or trust <= 0:
            raise ValueError(
                f"LARS: want lr > 0, 0 <= momentum < 1 and trust > 0, got {lr}, {momentum}, {trust}"
            )
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "trust": trust, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` makes the gradients anew where it is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # Grouped calls: ResNet-18 has 62 small tensors, on a GPU a launch each for everything.
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            wide, deep = (torch.stack(torch._foreach_norm(v)) for v in (params, grads))
            rate = group["trust"] * wide / (deep + group["weight_decay"] * wide + group["eps"])
            rate = torch.where((wide > 0) & (deep > 0), rate, 1.0)
            scaled = torch._foreach_add(grads, params, alpha=group["weight_decay"])
            torch._foreach_mul_(scaled, list(rate.to(params[0].dtype).unbind()))
            for p, step in zip(params, scaled):
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = step
                else:
                    state["momentum"].mul_(group["momentum"]).add_(step)
            torch._foreach_add_(
                params, [self.state[p]["momentum"] for p in params], alpha=-group["lr"]
            )
        return loss
