"""Where a model still reads the entities: the ceiling and the floor of RAVEL at a site, whatever the dictionary.

Taking the whole activation from the other prompt is the most that any mask over latents can do. Above the layer that
has read the name, even that changes no answer, and a score of isolation alone says nothing of a dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saeworks.evals.entities.ravel_cache import Asked, BaseRows, Reading, read_entities, subset
from saeworks.evals.entities.ravel_masks import answered
from saeworks.evals.entities.ravel_prompts import Pair
from saeworks.models.upper_layers import UpperLayers

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

#: A site is read where the full exchange gives the other answer in this share of the cause pairs.
READ = 0.5
#: Layers that are looked at where a dictionary's site is not read, and cause pairs of each type of entity.
MOST_LAYERS = 8
MOST_PAIRS = 96


@dataclass
class SiteLadder:
    """Site → share of cause pairs answered otherwise with the whole activation exchanged, a list entry per type of
    entity. Filled only where somebody asks."""

    shares: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def add(self, model: LanguageModel, asked: Asked, pairs: Sequence[Pair], reading: Reading) -> None:
        """Measure the residual stream after (at most eight of) the layers on some of the cause ``pairs``."""
        cause = [pair for pair in pairs if pair.cause]
        prompts, answers, some = subset(asked, cause[:: max(1, len(cause) // MOST_PAIRS)])
        sites = [f"layers.{layer}.resid_post" for layer in spread(model.n_layers, MOST_LAYERS)]
        uppers = [UpperLayers(model, site) for site in sites]
        read = read_entities(model, prompts, answers, sites, reading)
        rows = BaseRows(model, read, some, uppers, reading)
        for site, upper in zip(sites, uppers, strict=True):
            right = answered(upper, rows.items(upper, some), lambda part: part.source, reading.batch_size)
            self.shares.setdefault(site, []).append(float(right.double().mean()))

    def means(self) -> dict[str, float]:
        """Site → mean over types of entities."""
        return {site: sum(shares) / len(shares) for site, shares in self.shares.items()}

    def record(self, site: str, full_patch: float) -> dict[str, Any]:
        """What the details of a result say about a site where the full exchange reaches ``full_patch``."""
        means = self.means()
        best = deepest_read(means)
        text = (
            f"At '{site}' exchanging the whole activation gives the other answer in {full_patch:.0%} of the cause "
            "pairs, which bounds what any dictionary can reach there: the model has read the entity before. "
        )
        if best is not None:
            text += f"At '{best}' it is {means[best]:.0%}: measure a dictionary of that site."
        else:
            text += "No layer is read at these tokens; the attributes are not held there."
        return {"note": text, "site_is_read": False, "full_patch_cause_by_site": means, "best_site": best}


def deepest_read(means: Mapping[str, float]) -> str | None:
    """The deepest site that is read nearly as much as any: there the model has gathered most about the entity."""
    most = max(means.values(), default=0.0)
    found = [site for site, share in means.items() if share >= max(READ, 0.9 * most)]
    return found[-1] if found else None


def spread(count: int, most: int) -> list[int]:
    """At most so many of ``range(count)``, evenly spread, the first one among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})
