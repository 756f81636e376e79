"""The ceiling: a dictionary that nobody trained, with one latent per known concept.

Where the spans of texts say which tokens belong to which concept, every concept gets a linear detector of its tokens
and the direction that its presence adds to the activations. What an eval gives this dictionary is what the right
latents would reach at this site, as far as latents that read one token linearly can. Only what is about the annotated
concepts has its ceiling here: a reconstruction from them alone is poor, and what a text is about may also stand in
tokens that no span covers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.errors import InputError
from saeworks.evals.shared.batches import document_batches, fingerprint_of_model, harvest, kept_activations
from saeworks.evals.shared.splits import class_of
from saeworks.progress import progress
from saeworks.world.documents import Document, Span

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

Reading = Literal["lda", "difference"]
Writing = Literal["regression", "difference"]
#: Thresholds are looked for among this many times as many strongest tokens as the concept has.
CANDIDATES = 8
#: A token of the concept that is missed costs this much more than a token that is wrongly taken (β of F-beta). Most
#: evals average over a text or look at the strongest tokens, which faint false alarms hardly disturb.
RECALL_WEIGHT = 2.0
_CONCEPTS_AT_ONCE = 64
_TOKENS_AT_ONCE = 8192


@dataclass(frozen=True)
class AnnotatedTokens:
    """Activations x [token, d] float32 on the CPU, the number of each token's document [token], and for every concept
    its tokens, ascending."""

    x: Tensor
    documents: Tensor
    concepts: dict[str, Tensor]


def oracle(
    model: LanguageModel,
    site: str,
    documents: Iterable[Document] | None = None,
    *,
    count: int = 3000,
    seed: int = 0,
    min_tokens: int = 20,
    context_length: int = 128,
    batch_size: int = 64,
    labels: bool = False,
    reading: Reading = "lda",
    writing: Writing = "regression",
) -> Dictionary:
    """A JumpReLU dictionary with a latent for every concept that has ``min_tokens`` tokens in the documents.

    Args:
        documents: texts with spans; None: the first ``count`` training documents of the embedded world's mixture,
            which share no wording with its probe and validation parts.
        seed: of the embedded world.
        labels: whether labels of texts are concepts of all their tokens too (``label/profession/chef``). Removal then
            also reaches what the annotated tokens leave in the others; single latents are found less reliably.
        reading, writing: see :func:`dictionary_of_concepts`.

    Raises:
        InputError: documents without spans, a tokenizer without character offsets, no concept with enough tokens.
    """
    if documents is None:
        from saeworks.world import corpus

        documents = corpus.documents(None, "train", seed=seed, count=count)
    tokens = annotated_tokens(model, site, documents, context_length, batch_size, labels)
    dictionary = dictionary_of_concepts(tokens, min_tokens, reading, writing)
    metadata = {"site": site, "model_name": model.name, "model_fingerprint": fingerprint_of_model(model), "seed": seed}
    return dictionary.replace(metadata=metadata)


def annotated_tokens(
    model: LanguageModel,
    site: str,
    documents: Iterable[Document],
    context_length: int = 128,
    batch_size: int = 64,
    labels: bool = False,
) -> AnnotatedTokens:
    """Read the documents once. A token of a concept is also one of each of its ancestors (``a/b`` of ``a``).

    With ``labels``, it is also one of ``label/NAME/VALUE`` for every label of its text; quantities and empty labels are
    left out.
    """
    parts: list[Tensor] = []
    numbers: list[int] = []
    found: dict[str, list[int]] = {}
    first = 0
    bar = progress(None, "oracle", unit="tok")
    with torch.no_grad():
        for batch in document_batches(model, documents, context_length, batch_size):
            if batch.tokens.offsets is None:
                raise InputError(
                    f"The tokenizer of model '{model.name}' does not say which characters a token covers, so spans "
                    "cannot be placed; use a model with a fast tokenizer."
                )
            kept = kept_activations(harvest(model, batch, [site])[site], batch)
            parts.append(kept.x.cpu())
            places = zip(kept.rows.tolist(), batch.tokens.keep.nonzero()[:, 1].tolist(), strict=True)
            for i, (row, position) in enumerate(places):
                numbers.append(batch.index[row])
                document = batch.documents[row]
                for concept in _concepts_at(document.spans, *batch.tokens.offsets[row][position]):
                    found.setdefault(concept, []).append(first + i)
                for name in document.labels if labels else ():
                    value = class_of(document, name)
                    if value is not None and not isinstance(value, float):
                        found.setdefault(f"label/{name}", []).append(first + i)
                        found.setdefault(f"label/{name}/{value}", []).append(first + i)
            first += len(kept.x)
            bar.update(len(kept.x))
    bar.close()
    concepts = {name: torch.tensor(tokens) for name, tokens in sorted(found.items())}
    return AnnotatedTokens(torch.cat(parts), torch.tensor(numbers), concepts)


def _concepts_at(spans: Iterable[Span], start: int, stop: int) -> set[str]:
    out: set[str] = set()
    for span in spans:
        path = span.concept if span.start < stop and start < span.end else ""
        while path:
            out.add(path)
            path = path.rpartition("/")[0]
    return out


def dictionary_of_concepts(
    tokens: AnnotatedTokens, min_tokens: int = 20, reading: Reading = "lda", writing: Writing = "regression"
) -> Dictionary:
    """The dictionary itself, from activations whose concepts are known.

    A latent is measured in units of its noise: on what the concept is told from its pre-activation has the mean 0 and
    the standard deviation 1. It fires above the threshold with the best F-beta, which is found on documents that
    its direction was not learned from (two halves take turns). Decoder rows have the norms that go with that.

    Args:
        tokens: what to learn from.
        min_tokens: concepts with fewer tokens, or fewer others, are left out.
        reading: encoder columns. ``lda``: linear discriminant analysis of the concept's tokens against two groups that
            count the same, the other tokens of its parent (of a woman's name: names of men) and those of none of them.
            ``difference``: the difference of the means of the same.
        writing: decoder rows. ``regression``: x is rebuilt from all latents at once by least squares, so that a
            concept carries only what its ancestors and companions do not. ``difference``: the difference of the means
            of the concept's tokens and its siblings', or all others' where it has none, per unit of the latent.

    Raises:
        InputError: no concept with enough tokens.
    """
    x, total = tokens.x, len(tokens.x)
    names = [name for name, rows in tokens.concepts.items() if min_tokens <= len(rows) <= total - min_tokens]
    if not names:
        what = (
            f"none of the {len(tokens.concepts)} concepts"
            if tokens.concepts
            else "the texts have neither spans nor labels: none"
        )
        raise InputError(
            f"An oracle needs concepts with at least {min_tokens} tokens, but {what} has so many; give more documents "
            "with spans or labels."
        )
    weights, bias, threshold = _read(tokens, names, reading)
    if writing == "regression":
        decoder, intercept = _regressed(x, weights, bias, threshold)
    else:
        difference = torch.stack([_difference(tokens, name) for name in names])
        decoder = difference / (weights * difference).sum(1, keepdim=True).clamp_min(1e-12)
        intercept = x.double().mean(0) - _mean_codes(x, weights, bias, threshold) @ decoder
    cfg = DictionaryConfig(
        architecture="jumprelu",
        d_in=x.shape[1],
        d_sae=len(names),
        apply_b_dec_to_input=False,
        metadata={
            "recipe": "control_oracle",
            "control": "oracle",
            "concepts": names,
            "reading": reading,
            "writing": writing,
        },
    )
    return Dictionary(cfg, *(part.float() for part in (weights.T, decoder, bias, intercept, threshold)))


@dataclass(frozen=True)
class _Moments:
    """Count, sum [d] and sum of outer products [d, d] of a set of tokens, float64."""

    count: int
    total: Tensor
    square: Tensor

    @staticmethod
    def of(x: Tensor) -> _Moments:
        total = torch.zeros(x.shape[1], dtype=torch.float64)
        square = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
        for part in x.split(_TOKENS_AT_ONCE):
            total += part.double().sum(0)
            square += part.double().T @ part.double()
        return _Moments(len(x), total, square)

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(self.count + other.count, self.total + other.total, self.square + other.square)

    def __sub__(self, other: _Moments) -> _Moments:
        return _Moments(self.count - other.count, self.total - other.total, self.square - other.square)

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    def covariance(self) -> Tensor:
        return self.square / self.count - self.mean.outer(self.mean)


def _read(tokens: AnnotatedTokens, names: list[str], reading: Reading) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [concept, d] and bias [concept] of the pre-activations, and thresholds [concept]."""
    x, first = tokens.x, tokens.documents % 2 == 0
    if not 0 < int(first.sum()) < len(x):
        first = torch.arange(len(x)) % 2 == 0  # one document alone: every other token

    def halves(rows: Tensor) -> tuple[_Moments, _Moments]:
        return _Moments.of(x[rows[first[rows]]]), _Moments.of(x[rows[~first[rows]]])

    everything = halves(torch.arange(len(x)))
    parents = {name: parent for name in names if (parent := name.rpartition("/")[0]) in tokens.concepts}
    of_parent = {name: halves(tokens.concepts[name]) for name in sorted(set(parents.values()))}
    weights, bias, thresholds = list[Tensor](), list[Tensor](), list[Tensor]()
    for start in range(0, len(names), _CONCEPTS_AT_ONCE):
        some = names[start : start + _CONCEPTS_AT_ONCE]
        fitted = [
            _fit_halves(halves(tokens.concepts[n]), of_parent.get(parents.get(n, "")), everything, reading)
            for n in some
        ]
        # [concept, fit, d] and [concept, fit]; the fits are those of the first half, of the second, and of both.
        w, b, units = (torch.stack([fit[i] for fit in fitted]) for i in (0, 1, 2))
        scores = torch.empty(len(x), len(some))
        for fit, judged in ((0, ~first), (1, first)):
            scores[judged] = x[judged] @ w[:, fit].float().T + b[:, fit].float()
        thresholds.append(best_thresholds(scores, [tokens.concepts[name] for name in some]) * units[:, 2])
        weights.append(w[:, 2] * units[:, 2:])
        bias.append(b[:, 2] * units[:, 2])
    return torch.cat(weights), torch.cat(bias), torch.cat(thresholds)


def _fit_halves(
    own: tuple[_Moments, _Moments],
    parent: tuple[_Moments, _Moments] | None,
    everything: tuple[_Moments, _Moments],
    reading: Reading,
) -> tuple[Tensor, Tensor, Tensor]:
    """Detectors of one concept learned from the first half, the second, and both: [fit, d], [fit] and units [fit]."""
    whole = (own[0] + own[1], None if parent is None else parent[0] + parent[1], everything[0] + everything[1])
    sets = [(own[h], None if parent is None else parent[h], everything[h]) for h in (0, 1)]
    # A half without the concept, or with nothing else, teaches nothing: both halves then stand in for it.
    fits = [_detector(*(s if 0 < s[0].count < s[2].count else whole), reading) for s in (*sets, whole)]
    w, b, unit = zip(*fits, strict=True)
    return torch.stack(w), torch.stack(b), torch.stack(unit)


def _detector(
    own: _Moments, parent: _Moments | None, everything: _Moments, reading: Reading
) -> tuple[Tensor, Tensor, Tensor]:
    """w [d], b and a unit: w·x + b has the mean 1 over the concept and 0 over what it is told from, where its standard
    deviation is one over the unit. Halves agree in the first scale: there the noise looks smaller than it is, the more
    so the fewer the tokens.
    """
    others = _others(own, parent, everything)
    away = torch.stack([group.mean for group in others]).mean(0)
    w = difference = own.mean - away
    between = sum(((g.mean - away).outer(g.mean - away) for g in others), everything.square * 0) / len(others)
    elsewhere = sum((group.covariance() for group in others), everything.square * 0) / len(others) + between
    if reading == "lda":
        # A covariance counts by what its group can say of so many dimensions: a handful of tokens says little.
        groups = [(0.5, own), *((0.5 / len(others), group) for group in others)]
        shares = [share * group.count / (group.count + len(away)) for share, group in groups]
        within = sum((s * g.covariance() for s, (_, g) in zip(shares, groups, strict=True)), everything.square * 0)
        spread = within / sum(shares) + 0.5 * between
        ridge = 1e-3 * spread.diagonal().mean().clamp_min(1e-12)
        w = torch.linalg.solve(spread + ridge * torch.eye(len(away), dtype=torch.float64), difference)
    w = w / (w @ difference).clamp_min(1e-12)
    return w, -(w @ away), 1 / (w @ elsewhere @ w).clamp_min(1e-12).sqrt()


def _others(own: _Moments, parent: _Moments | None, everything: _Moments) -> list[_Moments]:
    """What a concept is told from: its siblings, where there are any, and the tokens of neither."""
    if parent is None or parent.count == own.count:
        return [everything - own]
    return [parent - own] + ([everything - parent] if everything.count > parent.count else [])


def _difference(tokens: AnnotatedTokens, name: str) -> Tensor:
    own = torch.zeros(len(tokens.x), dtype=torch.bool)
    own[tokens.concepts[name]] = True
    others = ~own
    parent = tokens.concepts.get(name.rpartition("/")[0])
    if parent is not None and len(parent) > len(tokens.concepts[name]):
        others = torch.zeros_like(own)
        others[parent] = True
        others &= ~own
    return tokens.x[own].double().mean(0) - tokens.x[others].double().mean(0)


def best_thresholds(scores: Tensor, members: list[Tensor]) -> Tensor:
    """[concept]: the threshold, at least 0, above which tokens are taken for the concept's with the best F-beta.

    Args:
        scores: [token, concept]; members: the tokens of each concept. β is :data:`RECALL_WEIGHT`.
    """
    beta = RECALL_WEIGHT**2
    out = torch.zeros(len(members), dtype=torch.float64)
    for i, own in enumerate(members):
        kept = min(len(scores), CANDIDATES * len(own) + 1)
        values, order = scores[:, i].topk(kept)
        is_own = torch.zeros(len(scores), dtype=torch.bool)
        is_own[own] = True
        hits = is_own[order].double().cumsum(0)
        f = (1 + beta) * hits / (torch.arange(1, kept + 1) + beta * len(own))
        below = torch.cat([values[1:], values[-1:]])
        # Between two equal scores there is no threshold, and none below 0: latents are not negative.
        f = torch.where((below < values) & (values > 0), f, -1.0)
        f[-1] = -1.0
        best = int(f.argmax())
        out[i] = float(((values[best] + below[best]) / 2).clamp_min(0))
    return out


def _codes(x: Tensor, weights: Tensor, bias: Tensor, threshold: Tensor) -> Tensor:
    """[token, concept] float64."""
    z = x.double() @ weights.T + bias
    return torch.where(z > threshold, z, 0.0)


def _mean_codes(x: Tensor, weights: Tensor, bias: Tensor, threshold: Tensor) -> Tensor:
    total = torch.zeros_like(bias)
    for part in x.split(_TOKENS_AT_ONCE):
        total += _codes(part, weights, bias, threshold).sum(0)
    return total / len(x)


def _regressed(x: Tensor, weights: Tensor, bias: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [concept, d] and intercept [d] of the least-squares fit of x on the codes; one token's worth of ridge."""
    codes, mean = _mean_codes(x, weights, bias, threshold), x.double().mean(0)
    gram, cross = torch.zeros(len(weights), len(weights), dtype=torch.float64), torch.zeros_like(weights)
    for part in x.split(_TOKENS_AT_ONCE):
        f = _codes(part, weights, bias, threshold) - codes
        gram += f.T @ f
        cross += f.T @ (part.double() - mean)
    rows = torch.linalg.solve(gram + torch.eye(len(gram), dtype=torch.float64), cross)
    return rows, mean - codes @ rows
