"""What must be equal for a checkpoint to belong to a run, also across versions of the package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from saeworks.activations.streams import Stream
from saeworks.training.member import Member
from saeworks.training.partitions import Across
from saeworks.training.recipes import Recipe

if TYPE_CHECKING:
    from saeworks.training.trainer import TrainerConfig


def identity(members: Sequence[Member], config: TrainerConfig, stream: Stream) -> dict[str, Any]:
    """Members, tokens and stream as plain JSON values."""
    return json.loads(
        json.dumps(
            {
                "members": {m.name: {**asdict(m.config), "dead_after": m.dead_after} for m in members},
                "tokens": config.tokens,
                "batch_size": config.batch_size,
                "normalization_tokens": config.normalization_tokens,
                "calibration_tokens": config.calibration_tokens,
                "stream": stream.fingerprint(),
            }
        )
    )


def same_run(mine: Mapping[str, Any], saved: Mapping[str, Any]) -> str | None:
    """None when ``saved`` is the identity of this run, otherwise the first key that differs."""
    theirs = {**saved, "members": {name: _completed(value) for name, value in saved["members"].items()}}
    return next((key for key in mine if mine[key] != theirs.get(key)), None)


def _completed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A member as this version would describe it: what an earlier one did not know, it did as the defaults say."""
    recipe = dict(saved["recipe"])
    if recipe.get("across") is not None:
        recipe["across"] = {**asdict(Across()), **recipe["across"]}
    defaults = json.loads(json.dumps(asdict(Recipe(recipe["name"], recipe["selection"]))))
    renamed = {("sparsity" if key == "k" else key): value for key, value in saved.items()}
    return {"source": None, "target": None, **renamed, "recipe": _filled(defaults, recipe)}


def _filled(defaults: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    out = {**defaults, **saved}
    for key, value in saved.items():
        if isinstance(value, Mapping) and isinstance(defaults.get(key), Mapping):
            out[key] = _filled(defaults[key], cast("Mapping[str, Any]", value))
    return out
