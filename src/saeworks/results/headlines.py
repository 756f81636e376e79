"""The main number of every eval, as SAEBench's result files name it, and which way is better."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saeworks.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from saeworks.results.envelope import Result


@dataclass(frozen=True)
class Headline:
    """Column of a table: ``eval``, ``category`` and ``metric`` say where it stands in a result file.

    ``better`` is 1 when more is better, -1 when less is, and 0 for what only describes (L0). ``meaning`` is what the
    number says, with its range.
    """

    column: str
    eval: str
    category: str
    metric: str
    better: int
    meaning: str

    @property
    def direction(self) -> str:
        """Which way is better, in words."""
        return {1: "more is better", -1: "less is better"}.get(self.better, "describes")


_PROBING, _PROBES = "sparse_probing", "sparse_probing_sae_probes"
_BEHAVIOUR, _PERFORMANCE = "model_behavior_preservation", "model_performance_preservation"
_META, _STRUCTURE = "meta_structure_decoder_variance", "meta_structure"

HEADLINES = (
    Headline("l0", "core", "sparsity", "l0", 0, "active latents per token"),
    Headline(
        *("explained_variance", "core", "reconstruction_quality", "explained_variance", 1),
        "share of the activations' variance that is rebuilt; 1 is all, 0 no better than their mean",
    ),
    Headline(
        *("ce_loss_score", "core", _PERFORMANCE, "ce_loss_score", 1),
        "share of the loss that removing the activations costs and the reconstruction wins back; 1 is all",
    ),
    Headline(
        *("kl_div_score", "core", _BEHAVIOUR, "kl_div_score", 1),
        "share of the divergence that removing the activations causes and the reconstruction undoes; 1 is all",
    ),
    Headline("frac_alive", "core", "misc_metrics", "frac_alive", 0, "share of latents that fired at all"),
    Headline(
        *("probe_k1", _PROBING, "sae", "sae_top_1_test_accuracy", 1),
        "accuracy of a probe on the one latent that tells a class best; 0.5 is chance",
    ),
    Headline(
        *("probe_k5", _PROBING, "sae", "sae_top_5_test_accuracy", 1),
        "accuracy of a probe on the five latents that tell a class best; 0.5 is chance",
    ),
    Headline("probe_all", _PROBING, "sae", "sae_test_accuracy", 1, "accuracy of a probe on all latents; 0.5 is chance"),
    Headline(
        *("probe_dense", _PROBING, "llm", "llm_test_accuracy", 0),
        "accuracy of a probe on the raw activations, whatever the dictionary",
    ),
    Headline(
        *("sae_probes_k1_auc", _PROBES, "sae", "sae_top_1_test_auc", 1),
        "area under the ROC curve of a probe on one latent of the last token; 0.5 is chance",
    ),
    Headline(
        *("scr_20", "scr", "scr_metrics", "scr_metric_threshold_20", 1),
        "share of the accuracy that a spurious cue costs a probe and removing 20 latents wins back; 1 is all",
    ),
    Headline(
        *("tpp_20", "tpp", "tpp_metrics", "tpp_threshold_20_total_metric", 1),
        "accuracy that removing 20 latents of a class takes from its probe, less what others lose",
    ),
    Headline(
        *("absorption", "absorption_first_letter", "mean", "mean_absorption_fraction_score", -1),
        "share of a letter's direction that other latents have taken over where its own latents fall silent; 0 is none",
    ),
    Headline(
        *("full_absorption", "absorption_first_letter", "mean", "mean_full_absorption_score", -1),
        "share of a letter's words where its own latents are silent and one other latent stands in; 0 is none",
    ),
    Headline(
        *("autointerp", "autointerp", "autointerp", "autointerp_score", 1),
        "share of texts where a judge who reads a latent's explanation says rightly whether it fires",
    ),
    Headline(
        *("autointerp_balanced", "autointerp", "detection", "balanced_accuracy", 1),
        "as autointerp, firing and silent texts counting alike; 0.5 is chance",
    ),
    Headline(
        *("ravel", "ravel", "ravel", "disentanglement_score", 1),
        "mean of how often one attribute of an entity is swapped and how often the others stay; 1 is always",
    ),
    Headline(
        *("unlearning", "unlearning", "unlearning", "unlearning_score", 1),
        "1 minus the accuracy left on what is to be forgotten, where all other knowledge is kept",
    ),
    Headline(
        *("meta_structure", _META, _STRUCTURE, "decoder_fraction_variance_explained", -1),
        "share of the decoder rows' variance that a small dictionary of them explains; less: more atomic latents",
    ),
    Headline(
        *("meta_structure_excess", _META, _STRUCTURE, "excess_fraction_variance_explained", -1),
        "as meta_structure, less what is explained of random directions",
    ),
    Headline(
        *("shift_20", "shift", "shift_metrics", "shift_metric_threshold_20", 1),
        "as scr_20, the 20 latents chosen by a judge that reads what they say; 1 is all",
    ),
    Headline("latent_bits", "mdl", "mdl", "description_length", 0, "bits per token that the latents take"),
    Headline(
        *("bits_per_token", "mdl", "mdl", "description_length_with_residual", -1),
        "bits per token that latents and what they leave take together",
    ),
    Headline(
        *("concept_f1", "latents", "concepts", "mean_best_latent_f1", 1),
        "F1 of the latent that finds a known concept's tokens best, mean over concepts; 1 is perfect",
    ),
)


def headline(column: str) -> Headline:
    """The headline of a column; ``InputError`` with a suggestion for an unknown one."""
    by_name = {h.column: h for h in HEADLINES}
    if column not in by_name:
        raise InputError(f"There is no column '{column}'.{did_you_mean(column, by_name)}")
    return by_name[column]


def headline_values(results: Iterable[Result]) -> dict[str, float | None]:
    """Column → value, of the columns that these results (of one dictionary) have."""
    by_eval = {result.eval_type_id: result for result in results}
    return {
        h.column: by_eval[h.eval].metric(h.category, h.metric)
        for h in HEADLINES
        if h.eval in by_eval and h.metric in by_eval[h.eval].eval_result_metrics.get(h.category, {})
    }


def headline_intervals(results: Iterable[Result]) -> dict[str, float | None]:
    """``COLUMN_low`` and ``COLUMN_high``: the ends of the 95 % intervals of these results of one dictionary."""
    by_eval = {result.eval_type_id: result for result in results}
    out: dict[str, float | None] = {}
    for h in HEADLINES:
        ends = by_eval[h.eval].ci95.get(f"{h.category}.{h.metric}") if h.eval in by_eval else None
        if ends is not None:
            out[f"{h.column}_low"], out[f"{h.column}_high"] = ends
    return out
