"""One dictionary in training: parameters, optimiser, and the state that training steps alone may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saeworks.activations.batches import Layout
from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.dictionaries.input_ops import apply_input_op
from saeworks.dictionaries.kernels.rows import normalise_, remove_parallel_
from saeworks.runtime import generator
from saeworks.training import dense, paths
from saeworks.training.cells import MemberConfig, sampled_sizes
from saeworks.training.controllers import PenaltyState
from saeworks.training.counting import Smallest, fired, follow, mean_l0, order_by_strength
from saeworks.training.division import PER_LATENT, UNDIVIDED, Division
from saeworks.training.initialisation import draw_weights, fit_biases, fit_scale, geometric_median
from saeworks.training.moment import Moment, sets_of
from saeworks.training.objectives import score_norms, variance
from saeworks.training.optimizers import ScheduleFreeSign, make_optimizer
from saeworks.training.partitions import Partitions
from saeworks.training.resampling import resample
from saeworks.training.schedules import Schedule

__all__ = ["Member", "MemberConfig", "geometric_median"]

HINT_FACTOR = 0.95
# Decay of the average by which latents are kept in order (toy model of arXiv 2503.17547).
ORDER_DECAY = 0.95


class Member:
    """A dictionary being trained on inputs ``scale * x``.

    Args:
        config: the grid cell.
        layout: what a row of activations consists of, or just its width.
        dead_after: tokens without firing that make a latent dead, unless the recipe has a rule of its own.
        device: where it is trained. Initial weights are drawn on the CPU, so a seed means the same everywhere.

    Attributes:
        parameters: the trained tensors by name: ``encoder [width, d_in]``, ``decoder [width, d_out]``, ``b_enc``,
            ``b_dec``; by recipe ``tied [tied, d]`` (not in decoder), ``b_gate``, ``r_mag``, ``threshold``, ``W_skip``.
        division: how its steps are divided over ranks; see :meth:`divide`.
    """

    def __init__(self, config: MemberConfig, layout: Layout | int, dead_after: int, device: torch.device) -> None:
        layout = Layout(layout) if isinstance(layout, int) else layout
        recipe, layout = config.recipe, config.layout(layout)
        self.config, self.layout, self.device = config, layout, device
        self.dead_after = recipe.dead_after or dead_after
        self.d_in = layout.d_in
        d_out = layout.d_in if layout.d_out is None else layout.d_out
        self.widths = layout.widths if layout.d_out is None else (d_out,)
        self.group_sizes = recipe.group_sizes(config.width)
        encoder, decoder = draw_weights(recipe.initialisation, layout, config.width, config.seed)
        self.partitions = Partitions.of(recipe.across, config.width, self.widths)
        drawn = {
            "encoder": encoder,
            "b_enc": torch.zeros(config.width),
            **self.partitions.split(decoder),
            "b_dec": torch.zeros(d_out),
        }
        if recipe.selection == "gated":
            drawn |= {"b_gate": torch.zeros(config.width), "r_mag": torch.zeros(config.width)}
        if recipe.selection == "jumprelu":
            drawn["threshold"] = torch.full((config.width,), 0.0 if recipe.jump.relative else recipe.jump.threshold)
        if recipe.skip:
            drawn["W_skip"] = torch.zeros(layout.d_in, d_out)
        self.parameters = {name: value.to(device, copy=True).requires_grad_() for name, value in drawn.items()}
        self.optimizer = make_optimizer(recipe, self.parameters, config.learning_rate, device)
        self.tokens_since_fired = torch.zeros(config.width, dtype=torch.int64, device=device)
        self.smallest = [Smallest() for _ in self.partitions.budgets or (0,)]  # one for each set that is selected from
        self.bandwidth = recipe.jump.bandwidth
        self.penalty = PenaltyState()
        self.averages: dict[str, Tensor] | None = None
        self.strengths = torch.zeros(config.width, device=device) if recipe.reorder else None
        self.failure: str | None = None
        self.division = UNDIVIDED

    def divide(self, division: Division, device: torch.device) -> None:
        """From now on take this rank's part in every step, on ``device``; before the first one.

        Divided by latents, this member then holds its range of them only, with all that belongs to them.
        """
        if division.by is None or division is self.division:
            return
        for name, parameter in self.parameters.items():
            if division.cut(name, parameter) is parameter:  # all ranks hold it, and start from the same bits
                division.ranks.from_lead(parameter.detach())
        self.division, self.device = division, device
        cut = {name: division.cut(name, p.detach()).to(device, copy=True) for name, p in self.parameters.items()}
        self.parameters = {name: p.requires_grad_() for name, p in cut.items()}
        self.optimizer = make_optimizer(self.config.recipe, self.parameters, self.config.learning_rate, device)
        self.tokens_since_fired = division.cut("tokens_since_fired", self.tokens_since_fired).to(device, copy=True)
        if self.averages is not None:
            self.averages = {n: division.cut(n, t).to(device, copy=True) for n, t in self.averages.items()}
        if self.strengths is not None:
            self.strengths = division.cut("strengths", self.strengths).to(device, copy=True)

    @property
    def name(self) -> str:
        """Name of the grid cell."""
        return self.config.name

    @property
    def encoder(self) -> Tensor:
        """``[width, d_in]`` encoder, latent-major."""
        return self.parameters["encoder"]

    @property
    def decoder(self) -> Tensor:
        """``[width, d_out]`` decoder, tied rows included."""
        return self.partitions.joined(self.parameters)["decoder"]

    @property
    def b_enc(self) -> Tensor:
        """``[width]``."""
        return self.parameters["b_enc"]

    @property
    def b_dec(self) -> Tensor:
        """``[d_out]``."""
        return self.parameters["b_dec"]

    @property
    def threshold(self) -> float:
        """Bias-corrected moving average of the smallest selected score, of the first set; 0 before the first step."""
        return self.smallest[0].value

    @torch.no_grad()
    def initialise(self, x: Tensor, targets: Tensor | None = None) -> None:
        """Fit biases, scale and thresholds to the first activations; see ``Initialisation`` for the rules.

        Args:
            x: ``[token, d_in]``, normalised; with several sources also ``[token, source, d]``.
            targets: ``[token, d_out]``, for a transcoder.
        """
        recipe, start = self.config.recipe, self.config.recipe.initialisation
        x, y = self._prepared(x, targets)
        fit_biases(start, self.parameters, x, y, recipe.pre_bias, recipe.jump.threshold)
        whole = self.partitions.joined(self.parameters)
        fit_scale(start, whole, x, y, lambda rows: self._select(rows, self.moment()).dense())
        if recipe.selection == "jumprelu" and recipe.jump.relative:
            rows = x[: max(2**24 // self.config.width, 1)]
            z = dense.forward(recipe, whole, rows, self.moment(), self.widths, 0.0).z
            rms = float(z.square().mean().sqrt())
            self.bandwidth = recipe.jump.bandwidth * rms
            self.parameters["threshold"].fill_(recipe.jump.threshold * rms)
        if recipe.weight_average is not None:
            self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}

    def moment(self, schedule: Schedule | None = None, step: int = 0) -> Moment:
        """What schedules and controllers say at ``step``; without a schedule, what they say once warmed up."""
        config, recipe = self.config, self.config.recipe
        warm = schedule.sparsity(step) if schedule else 1.0
        coefficient = recipe.control.initial if recipe.control else config.sparsity
        k = config.sparsity
        if recipe.k_anneal is not None and schedule is not None:
            k = recipe.k_anneal.k(k, config.width, self.d_in, step, schedule.steps)
        sizes, lp = self.group_sizes, recipe.lp
        if recipe.prefixes is not None:
            sizes = sampled_sizes(config.width, recipe.prefixes, generator(config.seed, "prefixes", step))
        dead = self.dead()
        guess = self.threshold if len(self.smallest) == 1 else 0.0  # of several sets each ends elsewhere
        return Moment(
            sizes=sizes,
            dead=dead,
            k=k,
            hint=HINT_FACTOR * guess if guess and k == config.sparsity else None,
            target=config.sparsity,
            penalty=coefficient * self.penalty.scale * warm,
            warm=warm,
            p=lp.exponent(self.penalty.falls) if lp else 1.0,
            next_p=lp.exponent(self.penalty.falls + 1) if lp else 1.0,
            bandwidth=self.bandwidth,
            discounts=self.partitions.discounts(recipe.across.discount) if recipe.across else None,
            budgets=self.partitions.budgets,
            division=self.division,
            all_dead=self.dead_count() if self.division.by == "latents" else None,
        )

    def select(self, x: Tensor) -> Codes:
        """Latents of ``x [token, d_in]`` (normalised) by the selection of training."""
        return self._select(self._prepared(x, None)[0], self.moment())

    def losses(
        self, x: Tensor, targets: Tensor | None = None, moment: Moment | None = None
    ) -> tuple[dict[str, Tensor], Codes]:
        """Loss terms on ``x [token, d_in]`` (normalised) and the codes. Changes nothing."""
        x, y = self._prepared(x, targets)
        return self._losses(x, y, moment or self.moment())

    def is_finite(self) -> bool:
        """Whether no parameter holds NaN or infinity, on any rank."""
        return not self.division.ranks.agreed(any(not bool(p.isfinite().all()) for p in self.parameters.values()))

    def dead(self) -> Tensor:
        """``[dead]`` latents, of those held here, that have not fired for ``dead_after`` tokens."""
        return (self.tokens_since_fired >= self.dead_after).nonzero().squeeze(1)

    def dead_count(self) -> int:
        """Number of dead latents, wherever they are held."""
        own = self.dead().numel()
        return self.division.count(own) if self.division.by == "latents" else own

    def step(self, x: Tensor, schedule: Schedule, step: int, targets: Tensor | None = None) -> dict[str, Tensor]:
        """One training step; returns detached statistics.

        Args:
            x: ``[token, d_in]``, normalised; with several sources also ``[token, source, d]``.
            schedule: of the run; step: number of this one, from 0.
            targets: ``[token, d_out]``, normalised, for a transcoder.
        """
        recipe = self.config.recipe
        x, y = self._prepared(x, targets)
        if recipe.resampling is not None and recipe.resampling.due(step, schedule.steps):
            self._resample(x, y, recipe.resampling.events(schedule.steps)[0], step)
        losses, codes = self._losses(x, y, self.moment(schedule, step))
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        self.division.add_gradients(self.parameters)
        with torch.no_grad():
            norm = self._prepare_gradients()
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate * schedule.multiplier(step) * group["scale"]
            self.optimizer.step()
            self._constrain()
            self._after_step(losses, codes, schedule, step)
        stats = {name: loss.detach() for name, loss in losses.items()}
        stats["l0"] = torch.tensor(mean_l0(codes, self.division))
        stats["grad_norm"] = norm
        stats["mse"] = stats["full"] * variance(y, self.division) / self.division.tokens(y.shape[0])
        return stats

    def report(self) -> dict[str, float]:
        """What the log says beside losses: the state of controllers and thresholds."""
        from saeworks.training.metrics import report

        return report(self)

    def _prepared(self, x: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """``[token, d_in]`` inputs and ``[token, d_out]`` targets, after the operation on single tokens."""
        x = apply_input_op(x.flatten(1), self.config.recipe.input_op)[0]
        if self.layout.d_out is None:
            return x, x
        return x, x.new_zeros(x.shape[0], self.layout.d_out) if targets is None else targets

    def _select(self, x: Tensor, moment: Moment) -> Codes:
        return paths.select(self.config.recipe, self.partitions.joined(self.parameters), x, moment, self.widths)

    def _losses(self, x: Tensor, y: Tensor, moment: Moment) -> tuple[dict[str, Tensor], Codes]:
        return paths.losses(self.config.recipe, self.partitions.joined(self.parameters), x, y, moment, self.widths)

    def _prepare_gradients(self) -> Tensor:
        """Remove the gradient along the decoder rows, then clip: the order of the TopK reference trainers."""
        recipe, decoder = self.config.recipe, self.parameters["decoder"]
        if decoder.grad is not None:
            self.partitions.clear_(decoder.grad)
            if recipe.constraint == "unit":
                remove_parallel_(decoder.grad, decoder)
        grads = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        norm = self.division.gradient_norm(grads)
        if recipe.clip_norm is not None:
            scale = (recipe.clip_norm / norm.clamp_min(1e-12)).clamp_max(1.0)
            for g in grads.values():
                g.mul_(scale)
        return norm

    def _constrain(self) -> None:
        if self.config.recipe.constraint == "unit":
            normalise_(self.parameters["decoder"])
        if "threshold" in self.parameters:
            self.parameters["threshold"].clamp_min_(0)

    def _after_step(self, losses: Mapping[str, Tensor], codes: Codes, schedule: Schedule, step: int) -> None:
        """Everything but parameters and moments that a training step changes."""
        recipe = self.config.recipe
        self.tokens_since_fired += self.division.tokens(codes.tokens)
        self.tokens_since_fired[fired(codes, self.division)] = 0
        if self.averages is not None and recipe.weight_average is not None:
            for name, average in self.averages.items():
                average.lerp_(self.parameters[name], 1 - recipe.weight_average)
        if recipe.lp is not None:
            now, following = float(losses["lp"]), float(losses["lp_next"])
            self.penalty.follow_exponent(recipe.lp, now, following, step, schedule.steps)
        if recipe.control is not None and step >= schedule.warm_up:
            l0 = mean_l0(codes, self.division)
            self.penalty.scale *= recipe.control.factor(l0, self.config.sparsity, schedule.steps)
        if self.strengths is not None:
            self._reorder(codes)
        if recipe.selection in ("topk", "batch_topk"):
            self._follow_threshold(codes)

    def _follow_threshold(self, codes: Codes) -> None:
        scores = codes.values.detach()
        norms = score_norms(self.config.recipe, self.decoder, self.widths)
        if norms is not None:
            scores = scores * norms[codes.indices]
        whole_batch = self.config.recipe.selection == "batch_topk"
        follow(self.smallest, codes, scores, sets_of(self.partitions.budgets), whole_batch, self.division)

    def _moments(self) -> dict[str, dict[str, Tensor]]:
        """The optimiser's state by the names of the parameters."""
        return {name: self.optimizer.state.get(p, {}) for name, p in self.parameters.items()}

    @torch.no_grad()
    def _resample(self, x: Tensor, y: Tensor, every: int, step: int) -> None:
        """Replace the latents that did not fire in the second half of the time since the last resampling."""
        recipe, division, width = self.config.recipe, self.division, self.config.width
        assert recipe.resampling is not None
        unfired = self.tokens_since_fired >= every // 2 * division.tokens(x.shape[0])
        dead = division.everyones("tokens_since_fired", unfired, width).nonzero().squeeze(1)
        dead = dead[: int(recipe.resampling.largest * width)]
        explained = division.over_latents(self._select(x, self.moment()).dense() @ self.decoder)
        errors = (explained + self.b_dec - y).square().sum(dim=1)
        draw = generator(self.config.seed, "resampling", step)
        whole = division.all_tokens(x - self.b_dec), division.all_tokens(errors)
        replaced = resample(self.parameters, self._moments(), dead, *whole, draw, division, width)
        self.tokens_since_fired[replaced] = 0

    def _reorder(self, codes: Codes) -> None:
        """Keep latents in the order of how much they write, with everything that belongs to them."""
        assert self.strengths is not None
        states = [t for name, s in self._moments().items() if name in PER_LATENT for t in s.values() if t.dim() > 0]
        averages = [t for name, t in (self.averages or {}).items() if name in PER_LATENT]
        own = [p.data for name, p in self.parameters.items() if name in PER_LATENT]
        tensors = (*own, *states, *averages, self.tokens_since_fired)
        order_by_strength(codes, self.decoder, self.strengths, ORDER_DECAY, tensors, self.division)

    def export(
        self,
        scale: float | Sequence[float],
        metadata: Mapping[str, Any],
        target_scale: float | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Dictionary:
        """A dictionary for raw activations; see :func:`saeworks.training.export.exported`."""
        from saeworks.training.export import exported

        return exported(self, scale, metadata, target_scale, weights)

    def exported_parameters(self) -> dict[str, Tensor]:
        """Copies of the weights to hand out: those of the last step, or their average where the recipe keeps one."""
        found = self.averages or self.parameters
        if isinstance(self.optimizer, ScheduleFreeSign):
            found = {name: self.optimizer.averaged(p) for name, p in self.parameters.items()}
        copies = {name: tensor.detach().clone() for name, tensor in self.partitions.joined(found).items()}
        if self.config.recipe.constraint == "unit" and found is not self.parameters:
            copies["decoder"] /= copies["decoder"].norm(dim=1, keepdim=True).clamp_min(1e-8)
        return copies

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to continue with the same bits."""
        state: dict[str, Any] = {name: p.detach() for name, p in self.parameters.items()}
        for name, values in self._moments().items():
            for key, value in values.items():
                state[f"{self.config.recipe.optimizer}.{key}.{name}"] = value
        for name, average in (self.averages or {}).items():
            state[f"average.{name}"] = average
        if self.strengths is not None:
            state["strengths"] = self.strengths
        state["tokens_since_fired"] = self.tokens_since_fired
        state |= {"threshold_sum": self.smallest[0].total, "threshold_weight": self.smallest[0].weight}
        state["more_thresholds"] = [[one.total, one.weight] for one in self.smallest[1:]]
        state |= {"bandwidth": self.bandwidth, "penalty": self.penalty.state_dict(), "failure": self.failure}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; one of an earlier version lacks what its recipes had no use for."""
        self.optimizer.state.clear()  # a state from before the first step holds no moments
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])
            first = f"{self.config.recipe.optimizer}."
            saved = {k.split(".")[1]: v for k, v in state.items() if k.startswith(first) and k.endswith("." + name)}
            if saved:
                # Adam's step counter lies beside its parameter when the kernel is fused, else on the CPU.
                step_device = parameter.device if self.optimizer.defaults.get("fused") else torch.device("cpu")
                self.optimizer.state[parameter] = {
                    key: value.to(step_device if key == "step" else parameter.device, copy=True)
                    for key, value in saved.items()
                }
        if any(key.startswith("average.") for key in state):
            self.averages = {n: state[f"average.{n}"].to(self.device, copy=True) for n in self.parameters}
        if self.strengths is not None:
            self.strengths.copy_(state["strengths"])
        self.tokens_since_fired.copy_(state["tokens_since_fired"])
        first = (state["threshold_sum"], state["threshold_weight"])
        self.smallest = [Smallest(*one) for one in (first, *state.get("more_thresholds", ()))]
        self.bandwidth = state.get("bandwidth", self.bandwidth)
        if "penalty" in state:
            self.penalty.load_state_dict(state["penalty"])
        self.failure = state["failure"]
