"""What every eval shares: documents in batches, one harvest for all dictionaries, checks that speak in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from saeworks.dictionaries.codes import Codes
from saeworks.errors import InputError
from saeworks.files import sha256_bytes, sha256_json
from saeworks.runtime import generator
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel
    from saeworks.models.tokens import TokenBatch


class DictionaryLike(Protocol):
    """What an eval needs of a dictionary: a ``saeworks`` Dictionary, a control, or your own class."""

    @property
    def cfg(self) -> Any: ...
    @property
    def W_enc(self) -> Tensor: ...
    @property
    def W_dec(self) -> Tensor: ...
    @property
    def b_enc(self) -> Tensor: ...
    @property
    def b_dec(self) -> Tensor: ...
    def encode(self, x: Tensor) -> Tensor: ...
    def decode(self, f: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class DocumentBatch:
    """Rows of one forward pass. ``documents[r]`` is row r's text, ``index[r]`` its place in the sample."""

    tokens: TokenBatch
    documents: list[Document]
    index: list[int]

    def kept(self, exclude_special_tokens: bool = True) -> Tensor:
        """[row, position] bool: which tokens are measured."""
        return self.tokens.keep if exclude_special_tokens else self.tokens.attention_mask


@dataclass(frozen=True)
class KeptActivations:
    """The measured tokens of one batch at one site: x [token, d] float32, and where each came from."""

    x: Tensor
    rows: Tensor
    positions: Tensor


def document_batches(
    model: LanguageModel,
    documents: Iterable[Document],
    context_length: int,
    batch_size: int,
    tokens: int | None = None,
) -> Iterator[DocumentBatch]:
    """Tokenise documents into batches of ``batch_size`` rows of similar length.

    Each document is cut at ``context_length`` tokens, or at the model's limit where that is smaller.

    With ``tokens``, the documents are those from the first to the one that completes this many kept tokens. Raises
    ``InputError`` when no document has a token to measure.
    """
    longest: int | None = getattr(model, "max_context", None)
    context_length = min(context_length, longest) if longest else context_length
    seen, count, remaining = 0, 0, iter(documents)
    while (tokens is None or count < tokens) and (window := list(islice(remaining, batch_size * 8))):
        if tokens is not None:
            # Cut in the order of the source: stopping among batches sorted by length would favour one length.
            reached = model.tokenize([d.text for d in window], context_length).keep.sum(-1).cumsum(0).cpu()
            window = window[: int((count + reached < tokens).sum()) + 1]
        # Similar lengths side by side: the forward pass then spends little on padding. The batches come in random
        # order, so that every n-th of them is a fair sample too.
        order = sorted(range(len(window)), key=lambda i: len(window[i].text))
        starts = range(0, len(order), batch_size)
        for i in torch.randperm(len(starts), generator=generator(0, "order of batches", seen)).tolist():
            chosen = order[starts[i] : starts[i] + batch_size]
            rows = [window[i] for i in chosen]
            batch = model.tokenize([d.text for d in rows], context_length)
            kept = int(batch.keep.sum())
            if kept:
                yield DocumentBatch(batch, rows, [seen + i for i in chosen])
            count += kept
        seen += len(window)
    if not count:
        raise InputError(
            "The data hold no text with a token to measure (every document is empty); check --data and --text-column."
        )


def harvest(model: LanguageModel, batch: DocumentBatch, sites: Sequence[str]) -> dict[str, Tensor]:
    """Activations [row, position, width] float32 at every site; ``InputError`` names document and token of a NaN."""
    out = {site: a.float() for site, a in model.harvest(batch.tokens, list(sites)).items()}
    mask = batch.tokens.attention_mask
    for site, activations in out.items():
        # A sum is finite only if every term is: one pass on the fast path, the search only when it fails.
        per_token = activations.sum(-1)
        if bool(torch.isfinite(per_token[mask.to(per_token.device)]).all()):
            continue
        bad = (~torch.isfinite(activations).all(-1) & mask.to(activations.device)).nonzero()
        if not len(bad):
            continue
        row, position = (int(v) for v in bad[0])
        name = batch.documents[row].id or f"number {batch.index[row]}"
        raise InputError(
            f"The activation at site '{site}' is not finite (NaN or infinity) for document {name}, token {position}, "
            f"where numbers were expected; run the model in float32 or leave this document out."
        )
    return out


def kept_activations(activations: Tensor, batch: DocumentBatch, exclude_special_tokens: bool = True) -> KeptActivations:
    """The measured tokens of ``activations`` [row, position, d], in row order."""
    mask = batch.kept(exclude_special_tokens).to(activations.device)
    where = mask.nonzero()
    return KeptActivations(activations[mask], where[:, 0], where[:, 1])


def metadata_of(dictionary: DictionaryLike) -> dict[str, Any]:
    """``cfg.metadata`` (empty where the config has none)."""
    return dict(getattr(dictionary.cfg, "metadata", None) or {})


def config_of(dictionary: DictionaryLike) -> dict[str, Any]:
    """The dictionary's config as plain values, whatever kind of object it is."""
    cfg = dictionary.cfg
    for method in ("model_dump", "to_dict"):
        if hasattr(cfg, method):
            return dict(getattr(cfg, method)())
    return dict(cast("Mapping[str, Any]", cfg)) if isinstance(cfg, Mapping) else dict(vars(cfg))


def sites_of(dictionaries: Mapping[str, DictionaryLike], model: LanguageModel, site: str | None) -> dict[str, str]:
    """Dictionary name → site: ``site`` if given, else the one in the dictionary's metadata. Checks the widths."""
    if not dictionaries:
        raise InputError("No dictionary was given to evaluate; pass at least one with --dictionary.")
    out: dict[str, str] = {}
    for name, dictionary in dictionaries.items():
        chosen = site or metadata_of(dictionary).get("site")
        if not chosen:
            raise InputError(f"Dictionary '{name}' does not say which site it reads; give one with --site.")
        if reason := why_not_one_site(dictionary):
            raise InputError(f"Dictionary '{name}' cannot be measured: {reason}; leave it out.")
        width, d_in = model.site(chosen).width, int(dictionary.W_dec.shape[-1])
        if width != d_in:
            raise InputError(
                f"Site '{chosen}' of model '{model.name}' has width {width}, but dictionary '{name}' was made for "
                f"width {d_in}; choose the site and model it was trained on."
            )
        out[name] = chosen
    return out


def why_not_one_site(dictionary: DictionaryLike) -> str | None:
    """Why a dictionary cannot be measured by what it reconstructs at one site; None where it can."""
    if getattr(dictionary.cfg, "d_out", None) is not None:
        return "it is a transcoder, which predicts another site than it reads, and the evals measure one site"
    if getattr(dictionary.cfg, "sources", None) is not None:
        return "it is a crosscoder, which reads several sites, and the evals measure one"
    return None


def to_dictionary(x: Tensor, dictionary: DictionaryLike) -> Tensor:
    """``x`` on the device and in the dtype of the dictionary."""
    return x.to(device=dictionary.W_dec.device, dtype=dictionary.W_dec.dtype)


def encode_codes(dictionary: DictionaryLike, x: Tensor) -> Codes:
    """The positive latents of ``x`` [token, d] as sparse codes."""
    x = to_dictionary(x, dictionary)
    if hasattr(dictionary, "encode_sparse"):
        return cast("Codes", dictionary.encode_sparse(x))  # pyright: ignore[reportAttributeAccessIssue]
    return Codes.from_dense(dictionary.encode(x))


def decode_rows(dictionary: DictionaryLike, f: Tensor, x: Tensor) -> Tensor:
    """Reconstruction [token, d] from latents ``f``; one that depends on more than the latents is given ``x`` too."""
    if getattr(dictionary.cfg, "input_op", "none") != "none" or getattr(dictionary.cfg, "skip", False):
        return cast("Any", dictionary).decode(f, x)
    return dictionary.decode(f)


def chunks(rows: Tensor, width: int, budget: int = 1 << 24) -> list[slice]:
    """Slices of the token axis that never cut a row and hold about ``budget`` latent values each."""
    if not len(rows):
        return []
    ends = torch.cat([(rows[1:] != rows[:-1]).nonzero().squeeze(1) + 1, rows.new_tensor([len(rows)])]).tolist()
    limit, out, start, previous = max(1, budget // width), list[slice](), 0, 0
    for end in cast("list[int]", ends):
        if end - start > limit and previous > start:
            out.append(slice(start, previous))
            start = previous
        previous = end
    return [*out, slice(start, previous)]


def fingerprint_of(dictionary: DictionaryLike) -> str:
    """Content hash of a dictionary; from its tensors where it has no ``fingerprint`` of its own."""
    if hasattr(dictionary, "fingerprint"):
        return str(dictionary.fingerprint())  # pyright: ignore[reportAttributeAccessIssue]
    parts = [sha256_json(config_of(dictionary)).encode()]
    for tensor in (dictionary.W_enc, dictionary.W_dec, dictionary.b_enc, dictionary.b_dec):
        parts.append(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return sha256_bytes(*parts)


def fingerprint_of_model(model: LanguageModel) -> str:
    """Content hash of a language model, with its number type where that is not float32: rounding changes results."""
    name = str(model.dtype).removeprefix("torch.")
    return model.fingerprint() if name == "float32" else f"{model.fingerprint()}+{name}"


def fingerprint_documents(documents: Iterable[Document]) -> str:
    """Content hash of documents: texts, labels and spans in order."""
    return sha256_bytes(
        *(
            part
            for d in documents
            for part in (
                d.text.encode("utf-8", "surrogatepass"),
                sha256_json(dict(d.labels)).encode(),
                sha256_json([[s.start, s.end, s.concept] for s in d.spans]).encode(),
            )
        )
    )
