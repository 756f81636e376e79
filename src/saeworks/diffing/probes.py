"""Probe directions of Latent Scaling: the decoders of the sources, and directions that mean nothing as controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from saeworks.diffing.pairs import SOURCES
from saeworks.diffing.scaling_estimates import Fixed
from saeworks.errors import InputError
from saeworks.runtime import generator

Rows = Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class Probe:
    """A direction per latent as it stands in every source.

    Attributes:
        name: of the source it was taken from, or of what it is.
        directions: ``[latent, d_m]`` for every source m; None where the probe has no counterpart there, as between
            models of different widths without a map.
    """

    name: str
    directions: tuple[Tensor | None, ...]


def source_probes(decoders: Rows, names: Sequence[str] = SOURCES) -> tuple[Probe, ...]:
    """One probe per source: its own decoder, used as it is in every source of the same width."""
    probes: list[Probe] = []
    for p, direction in enumerate(decoders):
        name = names[p] if p < len(names) else f"source{p}"
        probes.append(Probe(name, tuple(direction if d.shape[1] == direction.shape[1] else None for d in decoders)))
    return tuple(probes)


def control_probe(decoder: Tensor, kind: Literal["random", "permuted"], sources: int = 2, seed: int = 0) -> Probe:
    """Directions that mean nothing, with the norms of ``decoder [latent, d]``: what a beta of no interest looks like.

    ``random`` directions are drawn anew, ``permuted`` ones are those of other latents.
    """
    draw = generator(seed, "control probe", kind)
    if kind == "random":
        rows = torch.randn(decoder.shape, generator=draw).to(decoder)
    else:
        rows = decoder[torch.randperm(decoder.shape[0], generator=draw).to(decoder.device)]
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return Probe(f"{kind} control", (unit * decoder.norm(dim=1, keepdim=True),) * sources)


def shape_of(probes: Sequence[Probe]) -> tuple[int, tuple[int, ...]]:
    """Latents, and width of every source; InputError for probes that do not belong together."""
    if not probes:
        raise InputError("Latent Scaling needs at least one probe direction per latent, but none was given.")
    widths: dict[int, int] = {}
    latents: set[int] = set()
    for probe in probes:
        for m, direction in enumerate(probe.directions):
            if direction is None:
                continue
            latents.add(direction.shape[0])
            if widths.setdefault(m, direction.shape[1]) != direction.shape[1]:
                raise InputError(f"Probe '{probe.name}' has width {direction.shape[1]} in source {m}, not {widths[m]}.")
    sources = {len(probe.directions) for probe in probes}
    if len(latents) != 1 or len(sources) != 1 or len(widths) != sources.pop():
        raise InputError("The probes differ in their latents or sources, or no probe stands in some source.")
    return latents.pop(), tuple(widths[m] for m in sorted(widths))


def fixed_products(probes: Sequence[Probe], decoders: Rows | None, biases: Rows | None) -> Fixed:
    """Products of probes with themselves, with decoders and with biases; 0 where a probe does not stand."""

    def products(others: Sequence[Tensor | None] | None) -> Tensor:
        table: list[Tensor] = []
        for probe in probes:
            row: list[Tensor] = []
            for m, u in enumerate(probe.directions):
                other = u if others is None else others[m]
                known = [v for v in probe.directions if v is not None]
                if u is None or other is None:
                    row.append(known[0].new_zeros(known[0].shape[0], dtype=torch.float64))
                else:
                    row.append((u.double() * other.double()).sum(dim=-1))
            table.append(torch.stack(row))
        return torch.stack(table).detach()

    return Fixed(
        products(None),
        None if decoders is None else products(list(decoders)),
        None if biases is None else products(list(biases)),
    )
