"""Where latents fire: the strongest contexts of each, and how much of its firing is on the template's tokens.

Both come out of one pass over paired activations, with memory that does not grow with its length: a table of the best
contexts so far, ``[latent, context, token]``, and counts. Strengths are scaled activations ``v_j = f_j Σ_m |d_j^m|``,
which do not change when a latent's decoder is multiplied and its encoder divided by a number.

A latent has one activation for both models. What tells them apart is shown beside it: how far each model's activation
at the strongest token reaches along the latent's direction in the chat model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saeworks.errors import InputError

if TYPE_CHECKING:
    from saeworks.dictionaries.codes import Codes
    from saeworks.dictionaries.dictionary import Dictionary
    from saeworks.diffing.paired_batches import PairedBatch

#: Kinds of tokens whose firings are counted apart; a token is of the first kind that fits.
KINDS = ("template", "answer", "chat", "text")
# Strengths are counted in bins a quarter of an octave wide, from 2^-16 to 2^16.
BINS, PER_OCTAVE, LOWEST = 128, 4, -16.0
#: Edges of the buckets by share of a latent's largest strength (arXiv 2504.02922).
EDGES = (0.1, 0.4, 0.7)


@dataclass(frozen=True, slots=True)
class Context:
    """One place where a latent fires.

    Attributes:
        token_ids: of the window; −1 outside the text. strengths: of the same tokens, 0 where the latent is silent.
        peak: index of the strongest token in the window.
        data_set: which data set of the mix. sequence: number of the text.
        reach: of base and chat model: how far the activation at the peak, without the decoder bias, goes along the
            latent's direction in the chat model (in the base model for latents without one there).
    """

    token_ids: tuple[int, ...]
    strengths: tuple[float, ...]
    peak: int
    data_set: str
    sequence: int
    reach: tuple[float, float]

    def as_json(self, words: Sequence[str]) -> dict[str, Any]:
        """Plain values, with the text of each token in place of its id."""
        return {
            "tokens": list(words),
            "activations": [round(v, 4) for v in self.strengths],
            "peak": self.peak,
            "data_set": self.data_set,
            "reach_base": self.reach[0],
            "reach_chat": self.reach[1],
        }


class Examples:
    """Collects contexts and counts of firings, batch after batch.

    Args:
        dictionary: a crosscoder over two models, base first.
        contexts: kept of each latent, from different texts. before, after: tokens shown on either side of the peak.
        template_ids: tokens of the template that are counted one by one; others of the template count together.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        contexts: int = 8,
        before: int = 18,
        after: int = 8,
        template_ids: Sequence[int] = (),
    ) -> None:
        if contexts < 1 or before < 0 or after < 0:
            raise InputError(f"{contexts} contexts of {before} + 1 + {after} tokens were asked for; give at least one.")
        width, window = dictionary.cfg.d_sae, before + 1 + after
        self.dictionary, self.before, self.after = dictionary, before, after
        self.norms = dictionary.decoder_norms().sum(dim=0).cpu()
        base, chat = dictionary.source(0)[1].float().cpu(), dictionary.source(1)[1].float().cpu()
        mine = base.norm(dim=1) > chat.norm(dim=1) * 20
        self.units = torch.where(mine[:, None], base, chat) if base.shape == chat.shape else None
        if self.units is not None:
            self.units = self.units / self.units.norm(dim=1, keepdim=True).clamp_min(1e-12)
        self.biases = tuple(dictionary.source(m)[2].float().cpu() for m in (0, 1))
        self.best = torch.zeros(width, contexts)
        self.places = torch.full((width, contexts, window), -1, dtype=torch.int64)
        self.strengths = torch.zeros(width, contexts, window)
        self.facts = torch.zeros(width, contexts, 2, dtype=torch.int64)
        self.reach = torch.zeros(width, contexts, 2)
        self.data_sets: list[str] = []
        self.template_ids = torch.tensor(sorted(set(template_ids)), dtype=torch.int64)
        self.fired = torch.zeros(len(KINDS), width, dtype=torch.int64)
        self.total = torch.zeros(len(KINDS), width, dtype=torch.float64)
        self.tokens = torch.zeros(len(KINDS), dtype=torch.int64)
        self.by_token = torch.zeros(len(self.template_ids), width, dtype=torch.int64)
        self.histogram = torch.zeros(2, width, BINS, dtype=torch.int32)

    @torch.no_grad()
    def add(self, batch: PairedBatch, codes: Codes | None = None) -> None:
        """One batch of paired activations, texts as wholes, token after token; ``codes`` where they are known."""
        if codes is None:
            codes = self.dictionary.encode_sparse(batch.flat().to(self.dictionary.device))
        latents, rows = codes.indices.cpu(), codes.rows().cpu()
        strengths = codes.values.float().cpu() * self.norms[latents]
        self._count(batch, latents, rows, strengths)
        self._keep(batch, codes, latents, rows, strengths)

    def contexts(self, latent: int) -> list[Context]:
        """The strongest contexts of a latent, strongest first."""
        found: list[Context] = []
        for c in self.best[latent].argsort(descending=True, stable=True).tolist():
            if self.best[latent, c] <= 0:
                break
            inside = self.places[latent, c] >= 0
            sequence, data_set = self.facts[latent, c].tolist()
            found.append(
                Context(
                    tuple(self.places[latent, c][inside].tolist()),
                    tuple(self.strengths[latent, c][inside].tolist()),
                    int(inside[: self.before].sum()),
                    self.data_sets[data_set],
                    sequence,
                    (float(self.reach[latent, c, 0]), float(self.reach[latent, c, 1])),
                )
            )
        return found

    def template(self) -> dict[str, Tensor]:
        """What the latents do on the template's tokens, ``[latent]`` each.

        ``template_share``: share of the firings that lie there; ``template_lift``: over the share of all tokens.
        ``template_share_weak``, ``…_medium``, ``…_strong``, ``…_top``: of the firings up to 0.1, 0.4, 0.7 and 1 times
        the largest strength (to a quarter of an octave). ``frequency_KIND``: share of the tokens of a kind on which
        the latent fires; ``mean_KIND``: its mean strength there when it does. NaN where nothing was counted.
        """
        fired, every = self.fired.double(), self.fired.sum(dim=0).double()
        share = fired[0] / every
        found = {"template_share": share, "template_lift": share / (self.tokens[0] / self.tokens.sum())}
        top = self.best.amax(dim=1).clamp_min(1e-12)
        centres = 2 ** (LOWEST + (torch.arange(BINS) + 0.5) / PER_OCTAVE)
        bucket = torch.bucketize(centres[None] / top[:, None], torch.tensor(EDGES))
        for i, name in enumerate(("weak", "medium", "strong", "top")):
            inside = (self.histogram * (bucket == i)).sum(dim=2).double()
            found[f"template_share_{name}"] = inside[0] / inside.sum(dim=0)
        for i, kind in enumerate(KINDS):
            found[f"frequency_{kind}"] = fired[i] / self.tokens[i]
            found[f"mean_{kind}"] = self.total[i] / fired[i]
        return found

    def template_tokens(self, latent: int) -> dict[int, float]:
        """Token of the template → share of the latent's firings that lie on it, the largest first."""
        every = max(int(self.fired[:, latent].sum()), 1)
        shares = {int(t): int(n) / every for t, n in zip(self.template_ids, self.by_token[:, latent], strict=True)}
        return dict(sorted(((t, n) for t, n in shares.items() if n > 0), key=lambda item: -item[1]))

    # --- inside -------------------------------------------------------------------------------------------------

    def _count(self, batch: PairedBatch, latents: Tensor, rows: Tensor, strengths: Tensor) -> None:
        kind = kinds_of(batch)
        self.tokens += torch.bincount(kind, minlength=len(KINDS))
        width = self.best.shape[0]
        flat = kind[rows] * width + latents
        self.fired += torch.bincount(flat, minlength=len(KINDS) * width).view(len(KINDS), width)
        self.total += torch.bincount(flat, strengths.double(), len(KINDS) * width).view(len(KINDS), width)
        if len(self.template_ids):
            which = torch.searchsorted(self.template_ids, batch.token_ids).clamp_max(len(self.template_ids) - 1)
            named = (self.template_ids[which] == batch.token_ids)[rows] & (kind == 0)[rows]
            count = torch.bincount(which[rows][named] * width + latents[named], minlength=self.by_token.numel())
            self.by_token += count.view_as(self.by_token)
        bin_ = ((strengths.log2() - LOWEST) * PER_OCTAVE).long().clamp(0, BINS - 1)
        place = ((kind != 0)[rows].long() * width + latents) * BINS + bin_
        self.histogram.view(-1).index_add_(0, place, torch.ones(len(place), dtype=torch.int32))

    def _keep(self, batch: PairedBatch, codes: Codes, latents: Tensor, rows: Tensor, strengths: Tensor) -> None:
        """Merge the best contexts of the batch into the table."""
        latents_, rows_, strengths_ = self._candidates(batch, latents, rows, strengths)
        if not len(latents_):
            return
        width, contexts = self.best.shape
        if batch.data_set not in self.data_sets:
            self.data_sets.append(batch.data_set)
        # Grouped by latent, falling in strength: the rank within its group is the column of a new entry.
        starts = torch.searchsorted(latents_, torch.arange(width))
        column = torch.arange(len(latents_)) - starts[latents_]
        shape = (width, contexts)
        new = torch.zeros(shape)
        new[latents_, column] = strengths_
        source = torch.full(shape, -1, dtype=torch.int64)
        source[latents_, column] = torch.arange(len(latents_))
        both = torch.cat([self.best, new], dim=1)
        merged = both.topk(contexts, dim=1)
        changed = (merged.indices >= contexts).any(dim=1).nonzero().squeeze(1)
        picks = merged.indices[changed]
        old = picks.clamp_max(contexts - 1)
        for table in (self.places, self.strengths, self.facts, self.reach):
            index = old.view(*old.shape, *[1] * (table.dim() - 2)).expand(-1, -1, *table.shape[2:])
            table[changed] = table[changed].gather(1, index)
        self.best[changed] = merged.values[changed]
        at = (picks >= contexts).nonzero()
        chosen = source[changed[at[:, 0]], picks[at[:, 0], at[:, 1]] - contexts]
        where = (changed[at[:, 0]], at[:, 1])
        tokens, values = self._windows(batch, codes, latents_[chosen], rows_[chosen])
        self.places[where], self.strengths[where] = tokens, values
        number = self.data_sets.index(batch.data_set)
        self.facts[where] = torch.stack([batch.sequence_ids[rows_[chosen]], torch.full((len(chosen),), number)], dim=1)
        self.reach[where] = self._reach(batch, latents_[chosen], rows_[chosen])

    def _candidates(
        self, batch: PairedBatch, latents: Tensor, rows: Tensor, strengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Latent, row and strength of what may enter the table: one per latent and text, as many as it has columns."""
        order = strengths.argsort(descending=True, stable=True)
        order = order[latents[order].argsort(stable=True)]
        order = order[strengths[order] > self.best.amin(dim=1)[latents[order]]]
        texts, width = batch.sequence_ids[rows[order]].unique(return_inverse=True)[1], len(batch)
        key = latents[order] * (width + 1) + texts
        _, inverse = key.unique(return_inverse=True)
        first = torch.full((int(inverse.max()) + 1 if len(inverse) else 0,), len(order), dtype=torch.int64)
        first.scatter_reduce_(0, inverse, torch.arange(len(order)), "amin")
        order = order[first.sort().values]
        starts = torch.searchsorted(latents[order], torch.arange(self.best.shape[0]))
        rank = torch.arange(len(order)) - starts[latents[order]]
        order = order[rank < self.best.shape[1]]
        return latents[order], rows[order], strengths[order]

    def _windows(self, batch: PairedBatch, codes: Codes, latents: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and strengths ``[context, token]`` around the peaks; −1 and 0 outside their text."""
        at = rows[:, None] + torch.arange(-self.before, self.after + 1)
        inside = (at >= 0) & (at < len(batch))
        at = at.clamp(0, len(batch) - 1)
        inside &= batch.sequence_ids[at] == batch.sequence_ids[rows][:, None]
        keys = codes.rows().cpu() * codes.width + codes.indices.cpu()
        wanted = at * codes.width + latents[:, None]
        place = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
        values = codes.values.float().cpu()[place] * self.norms[latents][:, None]
        active = (keys[place] == wanted) & inside
        return torch.where(inside, batch.token_ids[at], -1), torch.where(active, values, 0.0)

    def _reach(self, batch: PairedBatch, latents: Tensor, rows: Tensor) -> Tensor:
        """``[context, model]``; NaN for models of different width, in which no direction is the same."""
        if self.units is None:
            return torch.full((len(rows), 2), torch.nan)
        units = self.units[latents]
        chosen = [x[rows.to(x.device)].cpu() - b for x, b in zip(batch.x, self.biases, strict=True)]
        return torch.stack([(part * units).sum(dim=1) for part in chosen], dim=1)


def kinds_of(batch: PairedBatch) -> Tensor:
    """``[token]`` index into ``KINDS``: template; tokens that predict an answer's; others of a chat; other texts."""
    chat = bool(batch.is_template.any()) or bool((batch.answer_index >= 0).any())
    kind = torch.full((len(batch),), KINDS.index("chat" if chat else "text"))
    kind[batch.answer_index >= 0] = KINDS.index("answer")
    kind[batch.is_template] = KINDS.index("template")
    return kind


def collect(dictionary: Dictionary, batches: Iterable[PairedBatch], **settings: Any) -> Examples:
    """:class:`Examples` of all batches; ``settings`` are its other arguments."""
    found = Examples(dictionary, **settings)
    for batch in batches:
        found.add(batch)
    return found


def words_of(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """The text of each token; bytes that only continue a character are shown as they decode alone."""
    return [str(tokenizer.decode([token])) for token in token_ids]
