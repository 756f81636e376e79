"""The core eval: does the language model behave the same through the dictionary, how well and how sparsely are its
activations rebuilt, and how often do the latents fire?

One pass over the token batches serves all dictionaries: activations are harvested once, the logits of the clean
model and of the zero and mean ablations are computed once per site, and only the spliced logits once per dictionary.
Metric names and categories are SAEBench's; docs/metrics.md says where a definition differs from the published one, and
mode ``compat`` gives SAEBench's own numbers (:mod:`saeworks.evals.compat.core_compat`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from saeworks.evals.compat.core_compat import DIFFERENT, CompatSums, compat_table, latent_records, packed_batches
from saeworks.evals.shared import metrics
from saeworks.evals.shared.batches import (
    DictionaryLike,
    DocumentBatch,
    chunks,
    decode_rows,
    document_batches,
    fingerprint_of_model,
    harvest,
    kept_activations,
    metadata_of,
    sites_of,
    to_dictionary,
)
from saeworks.evals.shared.behaviour import Behaviour
from saeworks.evals.shared.bootstrap import Resampling, intervals
from saeworks.evals.shared.described import result_of
from saeworks.progress import progress
from saeworks.results.envelope import Metrics, Result

if TYPE_CHECKING:
    from saeworks.activations.texts import TextSource
    from saeworks.models.language_model import LanguageModel

EVAL_TYPE = "core"
DEFINITION = "saeworks/core/2"
_SIDES = ("encoder", "decoder")


class Config(BaseModel):
    """``tokens`` kept tokens are measured (the last document is finished); documents are cut at ``context_length``.

    Loss and KL divergence need a whole forward pass per dictionary, so they are measured on about
    ``behaviour_tokens`` of them (batches spread over the sample; None: on all).
    ``exclude_special_tokens`` leaves BOS, EOS and padding out of every average and keeps their activations when a
    reconstruction is spliced in. ``mean_batches`` batches, spread over the sample, give the mean of mean-ablation.
    ``resamples`` bootstrap samples of documents give the intervals.

    ``mode`` compat: rows of ``context_length`` tokens packed from many documents; ``tokens`` and ``behaviour_tokens``
    are rounded up to whole batches of ``batch_size`` rows, special tokens counted, and behaviour is measured on the
    first of them. There ``exclude_special_tokens`` is about behaviour alone: all else leaves them out in any case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["compat", "corrected"] = "corrected"
    tokens: int = Field(default=16_384, gt=0)
    behaviour_tokens: int | None = Field(default=8192, gt=0)
    batch_size: int = Field(default=16, gt=0)
    context_length: int = Field(default=128, gt=1)
    seed: int = 0
    exclude_special_tokens: bool = True
    site: str | None = None
    mean_batches: int = Field(default=8, gt=0)
    resamples: int = Field(default=1000, gt=0)


def run(
    dictionaries: Mapping[str, DictionaryLike], model: LanguageModel, source: TextSource, config: Config
) -> dict[str, Result]:
    """Measure every dictionary on the same tokens; returns name → result.

    Raises:
        InputError: a site whose width differs from the dictionary's, activations that are not finite (names document
            and token), or data without a token to measure.
    """
    sites = sites_of(dictionaries, model, config.site)
    batches = _batches(model, source, config)
    documents = sum(len(batch.documents) for batch in batches)
    unique_sites = sorted(set(sites.values()))
    behaviour = Behaviour(model, unique_sites, documents, config.exclude_special_tokens, config.mode == "compat")
    behaviour.means = _site_means(model, batches, unique_sites, config)
    states = {name: _State(d, documents, behaviour.means[sites[name]], config) for name, d in dictionaries.items()}
    spliced = _spliced(batches, config)
    first = 0
    bar = progress(len(batches), "core", unit="batch")
    with torch.no_grad():
        for number, batch in enumerate(batches):
            activations = harvest(model, batch, unique_sites)
            if number in spliced:
                behaviour.begin(batch, first)
            for name, state in states.items():
                x_hat = state.update(activations[sites[name]], batch, first, config)
                if number in spliced:
                    behaviour.splice(name, sites[name], x_hat)
            first += len(batch.documents)
            bar.update()
    bar.close()
    resampling = Resampling(documents, config.resamples, config.seed)
    hashes = {"model": fingerprint_of_model(model), "data": source.fingerprint()}
    sizes = [batch.tokens.token_ids.numel() for batch in batches]
    read = {
        "total_tokens_eval_reconstruction": sum(sizes[i] for i in spliced),
        "total_tokens_eval_sparsity_variance": sum(sizes),
    }
    return {
        name: _result(name, state, behaviour, sites[name], config, resampling, hashes, read)
        for name, state in states.items()
    }


def _batches(model: LanguageModel, source: TextSource, config: Config) -> list[DocumentBatch]:
    length, rows = config.context_length, config.batch_size
    if config.mode == "compat":
        return packed_batches(model, source.documents(), length, rows, math.ceil(config.tokens / (length * rows)))
    return list(document_batches(model, source.documents(), length, rows, config.tokens))


def _spliced(batches: list[DocumentBatch], config: Config) -> set[int]:
    """The numbers of the batches on which behaviour is measured."""
    if config.mode == "compat":
        size = config.context_length * config.batch_size
        wanted = len(batches) if config.behaviour_tokens is None else math.ceil(config.behaviour_tokens / size)
        return set(range(min(wanted, len(batches))))
    kept = sum(int(batch.kept(config.exclude_special_tokens).sum()) for batch in batches)
    chosen = max(1, round(min(kept, config.behaviour_tokens or kept) / kept * len(batches)))
    count = len(batches)
    return {i for i in range(count) if (i + 1) * chosen // count > i * chosen // count}


class _State:
    """Sums of one dictionary; ``compat`` is None in the corrected mode."""

    def __init__(self, dictionary: DictionaryLike, documents: int, reference: Tensor, config: Config) -> None:
        self.compat = CompatSums() if config.mode == "compat" else None
        self.dictionary = dictionary
        self.width = int(dictionary.W_dec.shape[0])
        self.totals = metrics.ReconstructionAccumulator()
        self.boundaries = prefix_boundaries(metadata_of(dictionary).get("group_sizes"), self.width)
        self.prefixes = {m: metrics.ReconstructionAccumulator() for m in self.boundaries[:-1]}
        names = ("n", "rss", "tss", "l0", "l1", "cossim", "l2_ratio")
        self.sums = {name: torch.zeros(documents, dtype=torch.float64) for name in names}
        self.rows_fired = torch.zeros(self.width, dtype=torch.float64)
        self.reference = metrics.double(reference)

    def update(self, activations: Tensor, batch: DocumentBatch, first: int, config: Config) -> Tensor:
        """Add one batch; returns the reconstruction [row, position, d], 0 at tokens that are not measured."""
        kept = kept_activations(activations, batch, config.exclude_special_tokens or self.compat is not None)
        x_hat = torch.zeros_like(activations)
        codes: list[Tensor] = []
        for part in chunks(kept.rows, self.width):
            rows, x = kept.rows[part], kept.x[part]
            given = to_dictionary(x, self.dictionary)
            f = self.dictionary.encode(given)
            out = decode_rows(self.dictionary, f, given).float().to(x.device)
            x_hat[rows, kept.positions[part]] = out
            self.totals.update(x, out, f)
            self._add_documents(x, out, f, rows.cpu() + first)
            fired = torch.zeros(len(batch.documents), self.width, device=f.device)
            fires = f != 0 if self.compat is None else f > 0
            fired.index_add_(0, rows.to(f.device), fires.float())
            self.rows_fired += (fired > 0).sum(0).cpu()
            if self.compat is not None:
                self.compat.count_codes(f)
                codes.append(torch.stack([metrics.double((f != 0).sum(-1)), metrics.double(f).sum(-1)]).cpu())
            # From the longest prefix to the shortest, zeroing in place: the nested codes need no copy.
            for m in reversed(self.boundaries[:-1]):
                f[:, m:] = 0
                self.prefixes[m].update(x, decode_rows(self.dictionary, f, given).float().to(x.device))
        if self.compat is not None and codes:
            l0, l1 = torch.cat(codes, dim=1)
            self.compat.update(kept.x, x_hat[kept.rows, kept.positions], l0, l1)
            if not config.exclude_special_tokens:
                rest = batch.tokens.attention_mask & ~batch.tokens.keep
                given = to_dictionary(activations[rest.to(activations.device)], self.dictionary)
                out = decode_rows(self.dictionary, self.dictionary.encode(given), given)
                x_hat[rest.to(x_hat.device)] = out.float().to(x_hat.device)
        return x_hat

    def _add_documents(self, x: Tensor, x_hat: Tensor, f: Tensor, document: Tensor) -> None:
        x, x_hat = metrics.double(x), metrics.double(x_hat)
        norm_in, norm_out = x.norm(dim=-1), x_hat.norm(dim=-1)
        per_token = {
            "n": torch.ones(len(x)),
            "rss": (x - x_hat).square().sum(-1),
            "tss": (x - self.reference).square().sum(-1),
            "l0": (f != 0).sum(-1),
            "l1": f.abs().sum(-1),
            "cossim": (x * x_hat).sum(-1) / (norm_in * norm_out).clamp_min(1e-30),
            "l2_ratio": norm_out / torch.where(norm_in < 1e-4, 1.0, norm_in),
        }
        for name, values in per_token.items():
            self.sums[name].index_add_(0, document, values.cpu().double())


def prefix_boundaries(group_sizes: Any, width: int) -> list[int]:
    """Cumulative ends of the nested groups; ``[width]`` when there are none or they do not add up to the width."""
    sizes = [int(size) for size in group_sizes or ()]
    if not sizes or sum(sizes) != width:
        return [width]
    return torch.tensor(sizes).cumsum(0).tolist()


def _site_means(
    model: LanguageModel, batches: list[DocumentBatch], sites: list[str], config: Config
) -> dict[str, Tensor]:
    count = min(config.mean_batches, len(batches))
    chosen = [batches[i * len(batches) // count] for i in range(count)]
    totals: dict[str, Tensor] = {}
    tokens = 0
    with torch.no_grad():
        for batch in chosen:
            for site, activations in harvest(model, batch, sites).items():
                kept = kept_activations(activations, batch, config.exclude_special_tokens).x
                totals[site] = totals.get(site, 0) + kept.sum(0)
            tokens += int(batch.kept(config.exclude_special_tokens).sum())
    return {site: total / tokens for site, total in totals.items()}


def _result(
    name: str,
    state: _State,
    behaviour: Behaviour,
    site: str,
    config: Config,
    resampling: Resampling,
    hashes: dict[str, str],
    read: Mapping[str, int],
) -> Result:
    density = (state.totals if state.compat is None else state.compat).densities().cpu()
    per_latent = _per_latent(state, density)
    table = _metric_table(name, state, behaviour, site, per_latent)
    sums = {f"doc_{key}": value for key, value in state.sums.items()} | behaviour.sums
    # The mean of all tokens is not known before the end; this brings the sums about its estimate to the exact total.
    sums["doc_tss"] = sums["doc_tss"] * metrics.ratio(state.totals.sums.tss, float(sums["doc_tss"].sum()))
    edges, counts, dead = metrics.density_histogram(density)
    ci95 = intervals(sums, _statistics(name, site, behaviour.reason is None), resampling)
    details: list[dict[str, Any]] = [{"site": site, "arrays": "one entry per latent in details_file"}]
    if behaviour.reason is not None:
        details.append(
            {
                "not_measured": ["model_behavior_preservation", "model_performance_preservation"],
                "reason": behaviour.reason,
            }
        )
    if state.compat is not None:
        table = compat_table(table, state.compat.result(), metrics.density_shares(density))
        table["token_stats"].update(read)
        details = [*latent_records(per_latent), *details[1:]]
        apart = {f"{category}.{metric}": f"corrected.{metric}" for category, metric in DIFFERENT}
        ci95 = {apart.get(key, key): value for key, value in ci95.items()}
    result = result_of(
        name,
        state.dictionary,
        config,
        hashes,
        eval_type=EVAL_TYPE,
        definition=DEFINITION,
        metrics=table,
        details=details,
        n=state.totals.sums.tokens,
        ci95=ci95,
        unstructured={"density_histogram": {"log10_edges": edges, "counts": counts, "dead": dead}},
    )
    return result.attach({key: value.float().cpu().numpy() for key, value in per_latent.items()})


def _metric_table(
    name: str, state: _State, behaviour: Behaviour, site: str, per_latent: Mapping[str, Tensor]
) -> Metrics:
    values = state.totals.result()
    density = state.totals.densities().cpu()
    tokens = state.totals.sums.tokens
    cosines = {f"average_max_{s}_cosine_sim": float(per_latent[f"max_{s}_cosine_sim"].mean()) for s in _SIDES}
    table: Metrics = {
        "model_behavior_preservation": _kl_metrics(name, site, behaviour),
        "model_performance_preservation": _ce_metrics(name, site, behaviour),
        "reconstruction_quality": {
            key: values[key]
            for key in (
                "explained_variance",
                "explained_variance_dimension_mean",
                "explained_variance_dimension_median",
                "explained_variance_legacy",
                "mse",
                "cossim",
                "mse_per_dimension",
                "normalised_mse",
            )
        },
        "shrinkage": {
            key: values[key] for key in ("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias")
        },
        "sparsity": {"l0": values["l0"], "l1": values["l1"]},
        "token_stats": {
            "total_tokens_eval_reconstruction": int(behaviour.sums["kl_tokens"].sum()) if behaviour.sums else 0,
            "total_tokens_eval_sparsity_variance": tokens,
        },
        "misc_metrics": {**metrics.density_shares(density), **cosines},
    }
    if state.prefixes:
        full: dict[str, float | int | None] = {
            f"explained_variance_prefix_{state.width}": state.totals.explained_variance()
        }
        nested = {f"explained_variance_prefix_{m}": a.explained_variance() for m, a in state.prefixes.items()}
        table["prefix"] = nested | full
    return table


def _kl_metrics(name: str, site: str, behaviour: Behaviour) -> dict[str, float | int | None]:
    names = ("kl_div_score", "kl_div_with_ablation", "kl_div_with_sae", "kl_div_with_mean_ablation")
    if behaviour.reason is not None:
        return dict.fromkeys(names)
    mean = _per_token(behaviour.sums, "kl", "kl_tokens")
    sae, zero = mean(f"sae@{name}"), mean(f"zero@{site}")
    return dict(zip(names, (metrics.score(0.0, sae, zero), zero, sae, mean(f"mean@{site}")), strict=True))


def _ce_metrics(name: str, site: str, behaviour: Behaviour) -> dict[str, float | int | None]:
    names = (
        "ce_loss_score",
        "ce_loss_with_ablation",
        "ce_loss_with_sae",
        "ce_loss_without_sae",
        "ce_loss_with_mean_ablation",
        "ce_loss_score_mean_ablation",
    )
    if behaviour.reason is not None:
        return dict.fromkeys(names)
    mean = _per_token(behaviour.sums, "ce", "ce_tokens")
    clean, sae, zero, mean_ablated = mean("clean"), mean(f"sae@{name}"), mean(f"zero@{site}"), mean(f"mean@{site}")
    scores = metrics.score(clean, sae, zero), metrics.score(clean, sae, mean_ablated)
    return dict(zip(names, (scores[0], zero, sae, clean, mean_ablated, scores[1]), strict=True))


def _per_token(sums: Mapping[str, Tensor], kind: str, count: str) -> Callable[[str], float]:
    return lambda name: metrics.ratio(float(sums[f"{kind}_{name}"].sum()), float(sums[count].sum()))


def _statistics(name: str, site: str, with_behaviour: bool) -> dict[str, Callable[[Mapping[str, Tensor]], Tensor]]:
    def mean(key: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
        return lambda s: s[f"doc_{key}"] / s["doc_n"]

    # The variance is taken about one mean in every resample: the shift of the mean itself is of second order.
    out: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
        "reconstruction_quality.explained_variance": lambda s: 1 - s["doc_rss"] / s["doc_tss"],
        "reconstruction_quality.mse": mean("rss"),
        "reconstruction_quality.cossim": mean("cossim"),
        "shrinkage.l2_ratio": mean("l2_ratio"),
        "sparsity.l0": mean("l0"),
        "sparsity.l1": mean("l1"),
    }
    if with_behaviour:
        sae, zero = f"sae@{name}", f"zero@{site}"
        performance, behavior = "model_performance_preservation", "model_behavior_preservation"
        out |= {
            f"{performance}.ce_loss_score": lambda s: (
                (s[f"ce_{zero}"] - s[f"ce_{sae}"]) / (s[f"ce_{zero}"] - s["ce_clean"])
            ),
            f"{performance}.ce_loss_with_sae": lambda s: s[f"ce_{sae}"] / s["ce_tokens"],
            f"{performance}.ce_loss_without_sae": lambda s: s["ce_clean"] / s["ce_tokens"],
            f"{behavior}.kl_div_score": lambda s: 1 - s[f"kl_{sae}"] / s[f"kl_{zero}"],
            f"{behavior}.kl_div_with_sae": lambda s: s[f"kl_{sae}"] / s["kl_tokens"],
        }
    return out


def _per_latent(state: _State, density: Tensor) -> dict[str, Tensor]:
    """SAEBench's per-latent details, as arrays [latent]."""
    dictionary = state.dictionary
    encoder, decoder = dictionary.W_enc.T.float(), dictionary.W_dec.float()
    firing = density * state.totals.sums.tokens
    return {
        "feature_density": density,
        "consistent_activation_heuristic": firing / state.rows_fired,
        "encoder_bias": dictionary.b_enc,
        "encoder_norm": encoder.norm(dim=-1),
        "decoder_norm": decoder.norm(dim=-1),
        "encoder_decoder_cosine_sim": torch.nn.functional.cosine_similarity(encoder, decoder, dim=-1),
        "max_decoder_cosine_sim": metrics.max_cosine(decoder),
        "max_encoder_cosine_sim": metrics.max_cosine(encoder),
    }
