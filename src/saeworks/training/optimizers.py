"""Optimisers of the recipes: Adam from torch, and sign descent with schedule-free averaging."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from saeworks.training.recipes import Recipe


class ScheduleFreeSign(torch.optim.Optimizer):
    """Steps of fixed length along the sign of the gradient, averaged so that no decay of the rate is needed.

    Three sequences (arXiv 2405.15682): ``z`` takes the steps, ``x`` is its running mean, and the gradient is taken at
    ``y = momentum · x + (1 - momentum) · z``, which is what the parameters hold. :meth:`averaged` gives ``x``, the
    weights to export. sparsify trains so, with momentum 0.95.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step with the gradients at hand."""
        for group in self.param_groups:
            for y in group["params"]:
                if y.grad is None:
                    continue
                state = self.state[y]
                if not state:
                    state["z"], state["step"] = y.detach().clone(), torch.zeros(())
                x, z = self.averaged(y), state["z"]
                z.sub_(y.grad.sign(), alpha=group["lr"])
                state["step"] += 1
                x.lerp_(z, 1 / float(state["step"]))
                y.copy_(torch.lerp(z, x, group["momentum"]))

    def averaged(self, y: Tensor) -> Tensor:
        """The running mean behind the parameter ``y``, a new tensor."""
        state = self.state.get(y)
        if not state:
            return y.detach().clone()
        momentum = self.defaults["momentum"]
        return (y.detach() - (1 - momentum) * state["z"]) / momentum


def make_optimizer(
    recipe: Recipe, parameters: Mapping[str, Tensor], learning_rate: float, device: torch.device
) -> torch.optim.Adam | ScheduleFreeSign:
    """The recipe's optimiser. The threshold of a JumpReLU has a group of its own when its rate differs.

    Every group has a ``scale``: the factor of its rate over the common one.
    """
    apart = [parameters["threshold"]] if "threshold" in parameters and recipe.jump.rate != 1.0 else []
    rest = [p for p in parameters.values() if all(p is not other for other in apart)]
    groups: list[dict[str, Any]] = [{"params": rest, "scale": 1.0}]
    if apart:
        groups.append({"params": apart, "scale": recipe.jump.rate})
    if recipe.optimizer == "signum":
        return ScheduleFreeSign(groups, learning_rate)
    return torch.optim.Adam(
        groups, lr=learning_rate, betas=recipe.betas, eps=recipe.epsilon, fused=device.type in ("cpu", "cuda")
    )
