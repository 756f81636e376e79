"""SAEBench's own arithmetic for the core eval, for numbers that may stand beside its published files.

Its definitions differ from ours in what is averaged over what, and several are faults (docs/metrics.md lists them). One
batch is what SAEBench reads at once: rows of tokens packed from many documents. Symbols: RSS_t = ||x_t - x_hat_t||²;
N_b the measured tokens of batch b.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saeworks.errors import InputError
from saeworks.evals.shared.batches import DocumentBatch
from saeworks.evals.shared.metrics import double, ratio
from saeworks.results.envelope import Metrics
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel
    from saeworks.models.tokens import TokenBatch

#: Metrics whose definition differs; a compat result holds ours under the category ``corrected``.
DIFFERENT = (
    ("reconstruction_quality", "explained_variance"),
    ("reconstruction_quality", "mse"),
    ("reconstruction_quality", "cossim"),
    ("shrinkage", "relative_reconstruction_bias"),
    ("sparsity", "l1"),
    ("misc_metrics", "frac_alive"),
)
_TEXTS_AT_ONCE = 64


class CompatSums:
    """Reconstruction, shrinkage and sparsity of one dictionary, batch by batch."""

    def __init__(self) -> None:
        self.tokens = 0
        self._of_tokens: dict[str, float] = {}
        self._of_batches: dict[str, list[float]] = {}
        self._positive: Tensor | None = None

    def count_codes(self, codes: Tensor) -> None:
        """Add a part of a batch's latents [token, latent]; only positive values count as firing."""
        fired = double((codes > 0).sum(0))
        self._positive = fired if self._positive is None else self._positive + fired

    def update(self, x: Tensor, x_hat: Tensor, l0: Tensor, l1: Tensor) -> None:
        """Add one whole batch: x, x_hat [token, d]; l0 [token] latents that are not 0; l1 [token] signed sums."""
        if not len(x):
            return
        x, x_hat = double(x), double(x_hat)
        norm_in, norm_out, inner = x.norm(dim=-1), x_hat.norm(dim=-1), (x * x_hat).sum(-1)
        rss = (x - x_hat).square().sum(-1)
        of_tokens = {
            "mse": rss / len(x),
            "explained_variance_legacy": 1 - rss / (x - x.mean(0)).square().sum(-1),
            # Not guarded: one reconstruction of norm 0 makes the whole mean NaN.
            "cossim": inner / (norm_in * norm_out),
            "l2_norm_in": norm_in,
            "l2_norm_out": norm_out,
            "l2_ratio": norm_out / torch.where(norm_in < 1e-4, 1.0, norm_in),
            "l0": l0.double(),
            "l1": l1.double(),
        }
        for name, values in of_tokens.items():
            self._of_tokens[name] = self._of_tokens.get(name, 0.0) + float(values.sum())
        of_batches = {
            "residual": float(rss.mean()),
            "square": float(x.square().sum(-1).mean()),
            "square_of_dimension": float(x.square().mean()),
            "relative_reconstruction_bias": ratio(float(norm_out.square().mean()), float(inner.mean())),
        }
        for name, value in of_batches.items():
            self._of_batches.setdefault(name, []).append(value)
        self.tokens += len(x)

    def result(self) -> dict[str, float]:
        """All scalars by SAEBench's field names; NaN where its arithmetic gives none."""
        out = {name: total / (self.tokens or math.nan) for name, total in self._of_tokens.items()}
        means = {name: sum(values) / len(values) for name, values in self._of_batches.items()}
        # Variance about zero, less the square of the mean square: E[x²] stands where E[x] was meant.
        spread = means["square"] - means["square_of_dimension"] ** 2
        out["explained_variance"] = 1 - ratio(means["residual"], spread)
        out["relative_reconstruction_bias"] = means["relative_reconstruction_bias"]
        return out

    def densities(self) -> Tensor:
        """[latent] float64: share of tokens on which the latent is above 0; negative values do not count."""
        if self._positive is None:
            raise ValueError("No codes were counted yet.")
        return self._positive / self.tokens


def core_compat(x: Tensor, x_hat: Tensor, f: Tensor) -> dict[str, float]:
    """SAEBench's reconstruction, shrinkage and sparsity fields for one batch.

    Args:
        x, x_hat: [token, d] activations and reconstructions; f: [token, latent] codes.
    """
    sums = CompatSums()
    sums.count_codes(f)
    sums.update(x, x_hat, (f != 0).sum(-1), double(f).sum(-1))
    return sums.result()


def kl_of_softmaxes(p: Tensor, q: Tensor) -> Tensor:
    """[token] Σ p (log p - log q) of probabilities [token, vocabulary], logarithms taken after the softmax.

    Where a probability has been rounded to 0, as happens in half precision, the value is NaN or infinite.
    """
    return (p * (p.log() - q.log())).sum(-1).float()


def special_free(tokens: TokenBatch, tokenizer: Any) -> TokenBatch:
    """The same batch with every token kept but padding, EOS and BOS (unknown tokens and chat markers count)."""
    ids = [getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "eos", "bos")]
    special = torch.tensor([i for i in ids if i is not None], dtype=torch.int64, device=tokens.token_ids.device)
    return replace(tokens, keep=tokens.attention_mask & ~torch.isin(tokens.token_ids, special))


def packed_batches(
    model: LanguageModel, documents: Iterable[Document], context_length: int, batch_size: int, batches: int
) -> list[DocumentBatch]:
    """The first ``batches`` batches of rows of exactly ``context_length`` tokens, documents one after another.

    Documents are joined with BOS between them and cut into rows that begin with BOS. What is left at the end of the
    data and fills no row is dropped, unless it is all there is.

    Raises ``InputError`` when the documents hold no token.
    """
    longest: int | None = getattr(model, "max_context", None)
    context_length = min(context_length, longest) if longest else context_length
    rows = list(islice(_packed_rows(model, documents, context_length), batches * batch_size))
    if not rows:
        raise InputError(
            "The data hold no text with a token to measure (every document is empty); check --data and --text-column."
        )
    out: list[DocumentBatch] = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        tokens = special_free(model.batch_from_ids(part), model.tokenizer)
        # A row holds many documents or a part of one: it stands in for a document in the intervals.
        names = [Document(text="", id=f"row {start + i}") for i in range(len(part))]
        out.append(DocumentBatch(tokens, names, list(range(start, start + len(part)))))
    return out


def _packed_rows(model: LanguageModel, documents: Iterable[Document], length: int) -> Iterator[list[int]]:
    begin = [model.tokenizer.bos_token_id] if model.tokenizer.bos_token_id is not None else []
    waiting: list[int] = []
    complete = False
    for document in _token_ids(model, documents):
        if document:
            waiting += (begin if waiting else []) + document
        while len(waiting) >= length - len(begin):
            if waiting[: len(begin)] == begin and begin:
                waiting = waiting[len(begin) :]  # the row begins with one BOS anyway
                continue
            yield begin + waiting[: length - len(begin)]
            complete, waiting = True, waiting[length - len(begin) :]
    if waiting and not complete:
        yield begin + waiting


def _token_ids(model: LanguageModel, documents: Iterable[Document]) -> Iterator[list[int]]:
    remaining = iter(documents)
    while window := list(islice(remaining, _TEXTS_AT_ONCE)):
        encoded = model.tokenizer([d.text for d in window], add_special_tokens=False, verbose=False)
        for ids in encoded["input_ids"]:
            yield list(ids)


def compat_table(table: Metrics, values: Mapping[str, float], shares: Mapping[str, float]) -> Metrics:
    """``table`` of corrected metrics with SAEBench's numbers in their place, and the differing ones kept apart.

    Args:
        values: :meth:`CompatSums.result`; shares: ``density_shares`` of its densities.
    """
    corrected = {name: table[category][name] for category, name in DIFFERENT}
    out: Metrics = {category: dict(record) for category, record in table.items()}
    for category in ("reconstruction_quality", "shrinkage", "sparsity"):
        out[category].update({name: values[name] for name in out[category] if name in values})
    out["misc_metrics"].update(shares)
    out["corrected"] = corrected
    # What could not be computed is -1 in SAEBench's files; what does not exist for a model stays null.
    return {
        category: {name: -1.0 if value is not None and math.isnan(value) else value for name, value in record.items()}
        for category, record in out.items()
    }


def latent_records(per_latent: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """SAEBench's details: one record per latent, rounded to 10 digits, -1 for NaN. Tens of MB for wide dictionaries."""
    names = [
        "feature_density",
        "consistent_activation_heuristic",
        "encoder_bias",
        "encoder_norm",
        "encoder_decoder_cosine_sim",
        "max_decoder_cosine_sim",
        "max_encoder_cosine_sim",
    ]
    columns = [per_latent[name].double().nan_to_num(-1.0).tolist() for name in names]
    return [
        {"index": i, **{name: round(value, 10) for name, value in zip(names, row, strict=True)}}
        for i, row in enumerate(zip(*columns, strict=True))
    ]
