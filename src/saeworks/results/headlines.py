"""The main number of every eval, as SAEBench's result files name it, and which way is better."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from saeworks.errors import InputError, did_you_mean
from saeworks.results.envelope import Result


@dataclass(frozen=True)
class Headline:
    """Column of a table: ``eval``, ``category`` and ``metric`` say where it stands in a result file.

    ``better`` is 1 when more is better, -1 when less is, and 0 for what only describes (L0).
    """

    column: str
    eval: str
    category: str
    metric: str
    better: int = 1


HEADLINES = (
    Headline("l0", "core", "sparsity", "l0", 0),
    Headline("explained_variance", "core", "reconstruction_quality", "explained_variance"),
    Headline("ce_loss_score", "core", "model_performance_preservation", "ce_loss_score"),
    Headline("kl_div_score", "core", "model_behavior_preservation", "kl_div_score"),
    Headline("frac_alive", "core", "misc_metrics", "frac_alive", 0),
    Headline("probe_k1", "sparse_probing", "sae", "sae_top_1_test_accuracy"),
    Headline("probe_k5", "sparse_probing", "sae", "sae_top_5_test_accuracy"),
    Headline("probe_all", "sparse_probing", "sae", "sae_test_accuracy"),
    Headline("probe_dense", "sparse_probing", "llm", "llm_test_accuracy", 0),
    Headline("sae_probes_k1_auc", "sparse_probing_sae_probes", "sae", "sae_top_1_test_auc"),
    Headline("scr_20", "scr", "scr_metrics", "scr_metric_threshold_20"),
    Headline("tpp_20", "tpp", "tpp_metrics", "tpp_threshold_20_total_metric"),
    Headline("absorption", "absorption_first_letter", "mean", "mean_absorption_fraction_score", -1),
    Headline("full_absorption", "absorption_first_letter", "mean", "mean_full_absorption_score", -1),
    Headline("autointerp", "autointerp", "autointerp", "autointerp_score"),
    Headline("autointerp_balanced", "autointerp", "detection", "balanced_accuracy"),
    Headline("ravel", "ravel", "ravel", "disentanglement_score"),
    Headline("unlearning", "unlearning", "unlearning", "unlearning_score"),
    Headline(
        "meta_structure", "meta_structure_decoder_variance", "meta_structure", "decoder_fraction_variance_explained", -1
    ),
    Headline(
        "meta_structure_excess",
        "meta_structure_decoder_variance",
        "meta_structure",
        "excess_fraction_variance_explained",
        -1,
    ),
    Headline("shift_20", "shift", "shift_metrics", "shift_metric_threshold_20"),
    Headline("latent_bits", "mdl", "mdl", "description_length", 0),
    Headline("bits_per_token", "mdl", "mdl", "description_length_with_residual", -1),
    Headline("concept_f1", "latents", "concepts", "mean_best_latent_f1"),
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
