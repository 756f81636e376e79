"""What has a name, described: every recipe with its formula and source, and every setting with where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, cast

from saeworks.errors import InputError, did_you_mean
from saeworks.training.presets import PRESETS, Preset
from saeworks.training.recipes import Recipe, recipe
from saeworks.training.schedules import Span

HOUSE = "saeworks"


@dataclass(frozen=True)
class Note:
    """A recipe in one line each.

    Attributes:
        latents: how latents arise in training. loss: what is minimised. source: where both come from.

    In formulas ``e`` is the squared error over the variance of the batch, ``aux`` what the dead latents leave of the
    residual, over its variance; ``f`` are latents, ``‖W_i‖`` norms of decoder rows, ``λ`` the penalty and ``λ_t`` one
    that adapts.
    """

    latents: str
    loss: str
    source: str


_BY_TOKEN, _BY_BATCH = "the k largest of each token", "the k·B largest of a batch of B tokens"
_RELU, _AUX = "ReLU(z)", "e + aux / 32"
_APRIL = "‖x − x̂‖² + λ Σ f_i ‖W_i‖"

NOTES: dict[str, Note] = {
    "topk": Note(_BY_TOKEN, _AUX, "arXiv 2406.04093"),
    "batch_topk": Note(_BY_BATCH, _AUX, "arXiv 2412.06410"),
    "matryoshka_batch_topk": Note(_BY_BATCH, "mean of e over 5 fixed prefixes + aux / 32", "arXiv 2503.17547"),
    "matryoshka_batch_topk_sampled": Note(
        _BY_BATCH, "mean of e over 10 prefixes drawn at every step + aux / 32", "arXiv 2503.17547, random prefixes"
    ),
    "relu": Note(_RELU, "‖x − x̂‖² + λ Σ f_i, dead latents resampled", "Towards Monosemanticity (2023)"),
    "relu_april": Note(_RELU, _APRIL, "Anthropic, April 2024"),
    "gated": Note(
        "ReLU(e^r u + b) where u + b_gate > 0, of u = (x − b_dec) W_enc",
        "‖x − x̂‖² + λ Σ g_i + ‖x − g W − b_dec‖² with g = ReLU(u + b_gate) and W, b_dec held still",
        "arXiv 2404.16014",
    ),
    "jumprelu": Note(
        "z where z > θ, with pseudo-derivatives for θ", "‖x − x̂‖² + (L0 / L0* − 1)²", "arXiv 2407.14435, 2503.09532"
    ),
    "p_anneal": Note(_RELU, "‖x − x̂‖² + λ_t Σ f_i^p, p from 1 to 0.2", "arXiv 2408.00113"),
    "matryoshka_relu": Note(
        _RELU,
        "mean over 5 fixed prefixes of ‖x − x̂‖² + λ_t Σ f_i ‖W_i‖, λ_t steered to the L0",
        "arXiv 2503.17547, toy model",
    ),
    "matryoshka_relu_sampled": Note(
        _RELU,
        "the same over 10 prefixes drawn at every step, latents kept in order of what they write",
        "arXiv 2503.17547, toy model",
    ),
    "groupmax": Note("the largest of each of k blocks of latents", _AUX, "sparsify"),
    "transcoder": Note(_BY_TOKEN, "e of another site + aux / 32", "sparsify, arXiv 2406.11944"),
    "skip_transcoder": Note(_BY_TOKEN, "e of another site, with x W_skip added, + aux / 32", "arXiv 2501.18823"),
    "crosscoder_l1": Note(_RELU, "‖x − x̂‖² + λ Σ f_i Σ_s ‖W_i,s‖ over the sources s", "Lindsey et al. (2024)"),
    "crosscoder_batch_topk": Note(_BY_BATCH + ", by z_i Σ_s ‖W_i,s‖", _AUX, "arXiv 2504.02922"),
    "crosscoder_jumprelu": Note(
        "z where z > θ", "‖x − x̂‖² + (L0 / L0* − 1)² over all sources", "arXiv 2407.14435, Lindsey et al. (2024)"
    ),
}

NUMBERS = {"k": "k latents per token", "l0": "mean L0 aimed at", "coefficient": "weight of the penalty"}
# Where the defaults of the recipes come from; what is not here is a choice of this package.
DEFAULTS: dict[str, str] = {
    "aux_k": "arXiv 2406.04093, appendix A.2",
    "betas": "Adam's own; 0, 0.999 with gates and jumps: arXiv 2404.16014, 2407.14435",
    "clip_norm": "dictionary_learning",
    "normalization": "dictionary_learning, Gemma Scope",
    "grid": "arXiv 2503.09532",
    "initialisation": "arXiv 2406.04093, appendix A.1; the bias from dictionary_learning",
    "constraint": "Towards Monosemanticity; free rows: Anthropic, April 2024",
    "learning_rate": "the rule of sparsify and dictionary_learning",
    "jump": "arXiv 2407.14435",
    "resampling": "Towards Monosemanticity",
    "dead_after": "arXiv 2406.04093",
}
# Fields that make a recipe what its source describes.
OF_THE_SOURCE = ("selection", "penalties", "reconstruction", "inputs", "sparsity", "pre_bias", "skip", "prefixes")
# What None means where it is not "none".
ALWAYS = {
    "learning_rate": "by width and length of the run",
    "dead_after": "10,000,000 tokens, or 2 % of a shorter run",
}


def preset(name: str) -> Preset:
    """The preset called ``name``; ``InputError`` with the nearest name when there is none."""
    if name not in PRESETS:
        raise InputError(f"There is no preset '{name}'.{did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def preset_recipes() -> dict[str, Recipe]:
    """The recipes of all presets by name."""
    return {recipe.name: recipe for preset in PRESETS.values() for recipe in preset.recipes}


def settings_of(name: str) -> list[dict[str, str]]:
    """``{"setting", "value", "source"}`` for the fields of the recipe or preset's recipe called ``name``.

    What is switched off without a source that says so is left out.
    """
    chosen = recipe(name)
    preset = next((p for p in PRESETS.values() if chosen in p.recipes), None)
    rows: list[dict[str, str]] = []
    for field in fields(Recipe):
        value = getattr(chosen, field.name)
        if preset is not None:
            source = preset.sources.get(field.name)
        elif field.name in OF_THE_SOURCE and name in NOTES:
            source = NOTES[name].source
        else:
            source = DEFAULTS.get(field.name)
        off = value in (None, False, (), (1.0,), "none") and (preset is None or source is None)
        unused = field.name == "jump" and chosen.selection != "jumprelu"
        if field.name == "name" or unused or (off and field.name not in ALWAYS):
            continue
        rows += [
            {
                "setting": key,
                "value": shown(part) if part is not None else ALWAYS.get(key, "–"),
                "source": source or HOUSE,
            }
            for key, part in _parts(field.name, value)
        ]
    return rows


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A value by its own name, or the parts of a composed one by dotted names."""
    if is_dataclass(value) and not isinstance(value, (type, Span)):
        for field in fields(value):
            yield f"{name}.{field.name}", getattr(value, field.name)
    else:
        yield name, value


def shown(value: Any) -> str:
    """A setting as a person reads it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Span):
        most = f"{100 * value.share:g} % of the run"
        if value.steps == 0 or value.share == 0:
            return "–"
        return most if value.steps is None else f"{value.steps:,} steps, at most {most}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(part)}" for key, part in cast("Mapping[str, Any]", value).items())
    if isinstance(value, (tuple, list)):
        parts = [shown(part) for part in cast("tuple[Any, ...]", tuple(value))]
        return ", ".join(parts) if parts else "–"
    if is_dataclass(value) and not isinstance(value, type):
        inside = [(f.name, getattr(value, f.name)) for f in fields(value) if f.name != "kind"]
        return f"{type(value).__name__}({', '.join(f'{key} {shown(part)}' for key, part in inside)})"
    return str(value)
