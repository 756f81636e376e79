"""One dictionary in training: parameters, optimiser, and the state that training steps alone may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saeworks.dictionaries.activation import BatchTopK
from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.dictionaries.folding import fold_normalization
from saeworks.dictionaries.kernels.sparse import encode_selected
from saeworks.errors import InputError
from saeworks.runtime import generator
from saeworks.training.objectives import aux_k_loss, prefix_reconstructions, reconstruction_errors, variance
from saeworks.training.recipes import Recipe
from saeworks.training.schedules import Schedule

THRESHOLD_DECAY = 0.99
HINT_FACTOR = 0.95
# Pre-activations that the scale of the initial encoder is judged by: bounds its memory at large widths.
INITIAL_ENTRIES = 2**24


@dataclass(frozen=True)
class MemberConfig:
    """One cell of a grid: recipe, number of latents, mean latents per token, seed of the weights, learning rate."""

    recipe: Recipe
    width: int
    k: float
    seed: int
    learning_rate: float

    @property
    def name(self) -> str:
        """Directory name of the dictionary."""
        return f"{self.recipe.name}_n{self.width}_k{self.k:g}_s{self.seed}"


class Member:
    """A dictionary being trained on inputs ``scale * x``.

    Args:
        config: the grid cell.
        d_in: width of the activations.
        dead_after: tokens without firing that make a latent dead.
        device: where it is trained. Initial weights are drawn on the CPU, so a seed means the same everywhere.
    """

    def __init__(self, config: MemberConfig, d_in: int, dead_after: int, device: torch.device) -> None:
        _check(config, d_in)
        self.config, self.d_in, self.dead_after = config, d_in, dead_after
        self.group_sizes = config.recipe.group_sizes(config.width)
        self.activation = config.recipe.activation(config.k)
        decoder = torch.randn(config.width, d_in, generator=generator(config.seed, "decoder"))
        decoder /= decoder.norm(dim=1, keepdim=True)
        self.decoder = decoder.to(device, copy=True).requires_grad_()
        self.encoder = decoder.to(device, copy=True).requires_grad_()
        self.b_enc = torch.zeros(config.width, device=device, requires_grad=True)
        self.b_dec = torch.zeros(d_in, device=device, requires_grad=True)
        self.optimizer = torch.optim.Adam(
            self.parameters.values(),
            lr=config.learning_rate,
            betas=config.recipe.betas,
            fused=device.type in ("cpu", "cuda"),
        )
        self.tokens_since_fired = torch.zeros(config.width, dtype=torch.int64, device=device)
        self.threshold_sum = 0.0  # exponential moving sum of the smallest selected value, and its weight
        self.threshold_weight = 0.0
        self.failure: str | None = None

    @property
    def name(self) -> str:
        """Name of the grid cell."""
        return self.config.name

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trained tensors; both weight matrices are latent-major ``[width, d_in]``."""
        return {"encoder": self.encoder, "b_enc": self.b_enc, "decoder": self.decoder, "b_dec": self.b_dec}

    @property
    def threshold(self) -> float:
        """Bias-corrected moving average of the smallest selected value; 0 before the first step."""
        return self.threshold_sum / self.threshold_weight if self.threshold_weight else 0.0

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Set ``b_dec`` to the geometric median of ``x [token, d_in]`` and scale the encoder to its norms.

        With tied unit rows the first reconstructions would be far too small or large; one scalar on the encoder
        makes their mean square equal that of the centred input (arXiv 2406.04093, appendix A.1).
        """
        self.b_dec.copy_(geometric_median(x))
        x = x[: max(INITIAL_ENTRIES // self.config.width, 1)]
        target = (x - self.b_dec).square().sum()
        codes = self.activation(torch.addmm(self.b_enc, x - self.b_dec, self.encoder.T))
        reached = prefix_reconstructions(codes, self.decoder, torch.zeros_like(self.b_dec), (self.config.width,))
        reached = reached.square().sum()
        if reached > 0 and target > 0:
            self.encoder.mul_((target / reached).sqrt())

    def select(self, x: Tensor) -> Codes:
        """Latents of ``x [token, d_in]`` (normalised) by the selection of training, with gradients."""
        with torch.no_grad():
            bias = self.b_enc - self.encoder @ self.b_dec
            z = torch.addmm(bias, x, self.encoder.T)
            hint = HINT_FACTOR * self.threshold if self.threshold_weight else None
            codes = self.activation(z, hint) if isinstance(self.activation, BatchTopK) else self.activation(z)
        return encode_selected(x, self.encoder, self.b_enc, self.b_dec, codes, pre_bias=True)

    def losses(self, x: Tensor) -> tuple[dict[str, Tensor], Codes]:
        """Loss terms on ``x [token, d_in]`` (normalised) and the codes. Changes nothing."""
        codes = self.select(x)
        prefixes = prefix_reconstructions(codes, self.decoder, self.b_dec, self.group_sizes)
        errors = reconstruction_errors(x, prefixes)
        losses = {"reconstruction": errors.mean(), "full": errors[-1].detach(), "prefixes": errors.detach()}
        total = losses["reconstruction"]
        aux, dead = self.config.recipe.aux_k, self.dead()
        if aux is not None and dead.numel() > 0:
            k = min(aux.k or self.d_in // 2, dead.numel())
            residual = x - prefixes[:, -1]
            losses["aux"] = aux_k_loss(x, residual, dead, self.encoder, self.b_enc, self.b_dec, self.decoder, max(k, 1))
            total = total + aux.coefficient * losses["aux"]
        losses["total"] = total
        return losses, codes

    def is_finite(self) -> bool:
        """Whether no parameter holds NaN or infinity."""
        return all(bool(p.isfinite().all()) for p in self.parameters.values())

    def dead(self) -> Tensor:
        """``[dead]`` latents that have not fired for ``dead_after`` tokens."""
        return (self.tokens_since_fired >= self.dead_after).nonzero().squeeze(1)

    def step(self, x: Tensor, schedule: Schedule, step: int) -> dict[str, Tensor]:
        """One training step on ``x [token, d_in]`` (normalised); returns detached statistics."""
        losses, codes = self.losses(x)
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        with torch.no_grad():
            norm = self._prepare_gradients()
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate * schedule.multiplier(step)
            self.optimizer.step()
            self.decoder.div_(self.decoder.norm(dim=1, keepdim=True).clamp_min(1e-8))
            self._after_step(codes)
        stats = {name: loss.detach() for name, loss in losses.items()}
        stats["l0"] = codes.counts().float().mean()  # no float64 on Apple GPUs
        stats["grad_norm"] = norm
        stats["mse"] = stats["full"] * variance(x) / x.shape[0]
        return stats

    def _prepare_gradients(self) -> Tensor:
        """Remove the gradient along the decoder rows, then clip: the order of the TopK reference trainers."""
        grad = self.decoder.grad
        assert grad is not None
        grad.sub_((grad * self.decoder).sum(dim=1, keepdim=True) * self.decoder)
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        scale = (self.config.recipe.clip_norm / norm.clamp_min(1e-12)).clamp_max(1.0)
        for g in grads:
            g.mul_(scale)
        return norm

    def _after_step(self, codes: Codes) -> None:
        self.tokens_since_fired += codes.tokens
        self.tokens_since_fired[codes.indices] = 0
        if codes.values.numel() == 0:
            return
        if isinstance(self.activation, BatchTopK):
            smallest = float(codes.values.min())
        else:  # the mean over tokens of each token's smallest selected value
            lowest = codes.values.new_full((codes.tokens,), torch.inf)
            lowest = lowest.scatter_reduce(0, codes.rows(), codes.values.detach(), "amin")
            smallest = float(lowest[lowest.isfinite()].mean())
        self.threshold_sum = THRESHOLD_DECAY * self.threshold_sum + (1 - THRESHOLD_DECAY) * smallest
        self.threshold_weight = THRESHOLD_DECAY * self.threshold_weight + (1 - THRESHOLD_DECAY)

    def export(self, scale: float, metadata: Mapping[str, Any]) -> Dictionary:
        """A dictionary for raw activations: normalisation folded in, decoder rows of norm 1, threshold of inference.

        BatchTopK members use their moving average as threshold until it is calibrated (see ``calibrate``).
        """
        is_batch = isinstance(self.activation, BatchTopK)
        own: dict[str, Any] = {
            "recipe": self.config.recipe.name,
            "k": self.config.k,
            "seed": self.config.seed,
            "learning_rate": self.config.learning_rate,
            "normalization": {"convention": self.config.recipe.normalization, "scale": scale, "folded": True},
            "threshold_source": "moving_average" if is_batch else None,
        }
        if len(self.group_sizes) > 1:
            own["group_sizes"] = list(self.group_sizes)
        cfg = DictionaryConfig(
            architecture="jumprelu" if is_batch else "topk",
            d_in=self.d_in,
            d_sae=self.config.width,
            k=None if is_batch else int(self.config.k),
            metadata={**metadata, **own},
        )
        threshold = torch.full_like(self.b_enc, self.threshold).detach() if is_batch else None
        # Copies: the next training step must not reach what was handed out.
        encoder, decoder = self.encoder.detach().clone(), self.decoder.detach().clone()
        trained = Dictionary(cfg, encoder.T, decoder, self.b_enc, self.b_dec, threshold)
        return fold_normalization(trained, scale, units="raw")

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to continue with the same bits."""
        state: dict[str, Any] = {name: p.detach() for name, p in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"adam.{key}.{name}"] = value
        state["tokens_since_fired"] = self.tokens_since_fired
        state |= {"threshold_sum": self.threshold_sum, "threshold_weight": self.threshold_weight}
        state["failure"] = self.failure
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.optimizer.state.clear()  # a state from before the first step holds no moments
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])
            saved = {k.split(".")[1]: v for k, v in state.items() if k.startswith("adam.") and k.endswith("." + name)}
            if saved:
                # Adam's step counter lies beside its parameter when the kernel is fused, else on the CPU.
                step_device = parameter.device if self.optimizer.defaults["fused"] else torch.device("cpu")
                self.optimizer.state[parameter] = {
                    key: value.to(step_device if key == "step" else parameter.device, copy=True)
                    for key, value in saved.items()
                }
        self.tokens_since_fired.copy_(state["tokens_since_fired"])
        self.threshold_sum, self.threshold_weight = state["threshold_sum"], state["threshold_weight"]
        self.failure = state["failure"]


def geometric_median(x: Tensor, iterations: int = 100, tolerance: float = 1e-5) -> Tensor:
    """``[d]`` point with the least sum of distances to the rows of ``x [token, d]`` (Weiszfeld's iteration)."""
    point = x.mean(dim=0)
    for _ in range(iterations):
        weights = 1.0 / (x - point).norm(dim=1).clamp_min(1e-8)
        following = (x * (weights / weights.sum())[:, None]).sum(dim=0)
        moved = float((following - point).norm())
        point = following
        if moved < tolerance:
            break
    return point


def _check(config: MemberConfig, d_in: int) -> None:
    if not 0 < config.k < config.width:
        raise InputError(
            f"k must lie between 0 and the width, but k is {config.k:g} and the width {config.width}; "
            "lower --k or raise --width."
        )
    if d_in < 1:
        raise InputError(f"Activations must have a positive width, but {d_in} was given.")
