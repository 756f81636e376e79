"""Resampling of dead latents ("Towards Monosemanticity", appendix on the autoencoder's training)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from saeworks.training.division import PER_LATENT, UNDIVIDED, Division
from saeworks.training.schedules import Span

ENCODER_SHARE = 0.2


@dataclass(frozen=True)
class Resampling:
    """Give dead latents the direction of inputs that are reconstructed badly.

    Attributes:
        every: steps between resamplings. until: share of the run after which there are none.
        largest: share of the latents that one resampling may replace.
    """

    every: Span = field(default_factory=lambda: Span(25_000, 1 / 8))
    until: float = 0.5
    largest: float = 0.5

    def events(self, steps: int) -> tuple[int, int]:
        """Steps between resamplings in a run of ``steps``, and how many there are."""
        every = max(self.every.of(steps), 1)
        return every, int(self.until * steps + 1e-9) // every

    def due(self, step: int, steps: int) -> bool:
        """Whether dead latents are replaced before the step ``step`` (0-based)."""
        every, count = self.events(steps)
        return step > 0 and step % every == 0 and step // every <= count


@torch.no_grad()
def resample(
    parameters: Mapping[str, Tensor],
    moments: Mapping[str, Mapping[str, Tensor]],
    dead: Tensor,
    centred: Tensor,
    errors: Tensor,
    draw: torch.Generator,
    division: Division = UNDIVIDED,
    width: int | None = None,
) -> Tensor:
    """Replace dead latents in place and return those that were and are held here.

    Tokens are drawn without replacement, with probabilities proportional to the square of their squared error. Decoder
    row and encoder column take the direction of the drawn token; the column has 0.2 of the mean norm of those alive.
    Biases and the optimiser's averages of these latents become 0.

    Args:
        parameters: tensors by name, those of :data:`PER_LATENT` with latents along the first dimension.
        moments: the optimiser's state by the same names.
        dead: ``[dead]`` latents; the first of them, when there are more than tokens with an error.
        centred: ``[token, d]`` inputs without ``b_dec``. errors: ``[token]`` their squared errors.
        draw: CPU generator.
        division: which of the ``width`` latents ``parameters`` hold; ``dead`` counts through all of them.
    """
    weights = (errors / errors.max().clamp_min(torch.finfo(errors.dtype).tiny)).square().cpu()
    dead = dead[: int((weights > 0).sum())]
    if dead.numel() == 0:
        return dead
    chosen = torch.multinomial(weights, dead.numel(), generator=draw).to(centred.device)
    encoder = parameters["encoder"]
    rows = division.rows(width or encoder.shape[0])
    held = (dead >= rows.start) & (dead < rows.stop)
    dead = dead[held] - rows.start
    directions = torch.nn.functional.normalize(centred[chosen[held]], dim=1)
    alive = torch.ones(encoder.shape[0], dtype=torch.bool, device=encoder.device)
    alive[dead] = False
    living = division.count(int(alive.sum())) if division.by == "latents" else int(alive.sum())
    norm = division.over_latents(encoder[alive].norm(dim=1).sum()) / living if living else encoder.new_tensor(1.0)
    parameters["decoder"][dead] = directions
    encoder[dead] = ENCODER_SHARE * norm * directions
    for name in ("b_enc", "b_gate", "r_mag"):
        if name in parameters:
            parameters[name][dead] = 0
    for name, state in moments.items():
        for value in state.values():
            if name in PER_LATENT and value.dim() > 0:
                value[dead] = 0
    return dead
