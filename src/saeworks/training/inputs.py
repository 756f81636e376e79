"""What every member of a grid sees of a stream's rows: its sources, scaled by its convention, and its targets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from saeworks.activations.batches import ActivationBatch, Layout
from saeworks.activations.normalization import Normalization, estimate_normalization
from saeworks.training.cells import MemberConfig

TARGET, SHARED = "target", "shared"


@dataclass
class Inputs:
    """Scales by convention and part of a row.

    Every source has a scale of its own, and so have the targets: sites and models differ in size, and a common scale
    would leave the small ones unexplained. Only the convention ``shared`` gives all sources one scale.

    Attributes:
        layout: of the stream.
        normalizations: ``convention`` for a single source, ``convention/source`` and ``convention/target`` for others,
            ``convention/target:NAME`` for one of several targets.
    """

    layout: Layout
    normalizations: dict[str, Normalization] = field(default_factory=dict[str, Normalization])

    def estimate(self, batch: ActivationBatch, convention: str) -> None:
        """Estimate the scales of a convention from rows on the CPU."""
        if convention == SHARED:
            self._estimate_shared(batch)
            return
        for part, rows in self._parts(batch).items():
            key = _key(convention, part)
            if key not in self.normalizations:
                self.normalizations[key] = estimate_normalization(rows, convention)

    def _estimate_shared(self, batch: ActivationBatch) -> None:
        """One scale for all sources, so that their norms stay comparable; a single source has that of ``unit_msn``."""
        parts = self._parts(batch)
        sources = {part: rows for part, rows in parts.items() if part is None or not part.startswith(TARGET)}
        joint = estimate_normalization(torch.cat(list(sources.values()), dim=1), "unit_msn")
        factor = len(sources) ** 0.5
        common = replace(joint, scale=joint.scale * factor, standard_error=joint.standard_error * factor)
        for part, rows in parts.items():
            found = common if part in sources else estimate_normalization(rows, "unit_msn")
            self.normalizations.setdefault(_key(SHARED, part), found)

    def scale(self, member: MemberConfig) -> float | list[float]:
        """Scale of the member's input; one per source when it reads several."""
        sources = self.layout.sources
        if sources is None or member.source is not None:
            return self._scale(member, member.source)
        return [self._scale(member, source) for source in sources]

    def target_scale(self, member: MemberConfig) -> float | None:
        """Scale of the member's targets, None for one that reconstructs its input."""
        return self._scale(member, self._target(member)) if member.recipe.inputs == "target" else None

    def rows(self, batch: ActivationBatch, member: MemberConfig) -> tuple[Tensor, Tensor | None]:
        """Scaled inputs ``[token, d_in]`` of a member and, for a transcoder, scaled targets ``[token, d_out]``."""
        raw, targets = self.raw(batch, member)
        scale = self.scale(member)
        if isinstance(scale, list):
            factors = raw.new_tensor(scale).repeat_interleave(torch.tensor(self.layout.widths, device=raw.device))
            return raw * factors, None
        output = self.target_scale(member)
        return raw * scale, None if targets is None or output is None else targets * output

    def raw(self, batch: ActivationBatch, member: MemberConfig) -> tuple[Tensor, Tensor | None]:
        """What :meth:`rows` scales, in float32."""
        parts = self._parts(batch)
        targets = parts[self._target(member)] if member.recipe.inputs == "target" else None
        return batch.activations.flatten(1).float() if member.source is None else parts[member.source], targets

    def _target(self, member: MemberConfig) -> str:
        return TARGET if self.layout.targets is None else f"{TARGET}:{member.target}"

    def _scale(self, member: MemberConfig, part: str | None) -> float:
        return self.normalizations[_key(member.recipe.normalization, part)].scale

    def _parts(self, batch: ActivationBatch) -> dict[str | None, Tensor]:
        flat, sources = batch.activations.flatten(1).float(), self.layout.sources
        parts: dict[str | None, Tensor] = {}
        if sources is None:
            parts[None] = flat
        else:
            parts |= dict(zip(sources, flat.split(list(self.layout.widths), dim=1), strict=True))
        targets, layout = batch.targets, self.layout
        if targets is not None and layout.targets is not None and layout.target_widths is not None:
            named = zip(layout.targets, targets.float().split(list(layout.target_widths), dim=1), strict=True)
            parts |= {f"{TARGET}:{name}": rows for name, rows in named}
        elif targets is not None:
            parts[TARGET] = targets.float()
        return parts


def _key(convention: str, part: str | None) -> str:
    return convention if part is None else f"{convention}/{part}"
