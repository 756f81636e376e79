"""One vector per text: activations and latents averaged over tokens, read once for all evals and dictionaries.

Several evals ask for the same texts, and every eval for the same texts again with other dictionaries or settings. A
:class:`TextPool` that is handed from one to the next reads a text through the model, and encodes it by a dictionary,
when that was not done before with the same bytes of everything that the outcome depends on: the model's weights and
configuration, the site, the tokens of the text and which of them are kept, the context length, the rule by which tokens
are chosen, the dictionary, and the versions of the programs that computed it. What is reused can differ from what would
be computed anew by rounding alone, since a forward pass rounds a little differently beside other texts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saeworks.evals.shared.batches import DictionaryLike, fingerprint_of_model, sites_of
from saeworks.evals.shared.pooled_files import FORM, Part, PooledFiles
from saeworks.evals.shared.pooled_rows import Rows, Tables
from saeworks.evals.shared.pooling_pass import KEPT, TokenizedText, TokenMask, Wanted, read_texts, tokenized
from saeworks.files import sha256_json
from saeworks.version import __version__
from saeworks.world.documents import Document

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel

#: Bytes kept in memory and on disk, unless other limits are given.
MEMORY, DISK = 1 << 30, 4 << 30


@dataclass(frozen=True)
class PooledTexts:
    """Means over the chosen tokens, float32 on the CPU.

    ``activations``: site → [text, d]; ``latents``: dictionary → [text, latent]; ``tokens`` [text] int64 counts the
    tokens (the fewest of any site); ``sites``: dictionary → site. A text without any has 0 tokens and rows of zeros:
    leave it out. Latents are held as nonzeros where that is smaller, and each table is spread out when asked for.
    """

    activations: dict[str, Tensor]
    latents: Mapping[str, Tensor]
    tokens: Tensor
    sites: dict[str, str] = field(default_factory=dict[str, str])


@dataclass
class _Shelf:
    """What is known of texts read in one way. ``owner`` is kept alive where the shelf's name is its identity."""

    width: int
    owner: Any = None
    parts: list[Part] = field(default_factory=list[Part])
    places: dict[bytes, tuple[int, int]] = field(default_factory=dict[bytes, tuple[int, int]])

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def add(self, part: Part) -> None:
        """Take in the texts that are new; those that are there already stay as they are."""
        new = [i for i, key in enumerate(part.keys) if key not in self.places]
        if not new:
            return
        rows = torch.tensor(new)
        self.parts.append(Part([part.keys[i] for i in new], part.tokens[rows], part.rows.take(rows)))
        self.places |= {key: (len(self.parts) - 1, i) for i, key in enumerate(self.parts[-1].keys)}

    def of(self, keys: Sequence[bytes]) -> tuple[Rows, Tensor]:
        """The rows of some texts, and the number of tokens [text] of each."""
        wanted = torch.tensor([self.places[key] for key in keys], dtype=torch.int64).view(-1, 2)
        blocks, counts, order = list[Rows](), list[Tensor](), list[Tensor]()
        for number, part in enumerate(self.parts):
            here = (wanted[:, 0] == number).nonzero().squeeze(1)
            if len(here):
                rows = wanted[here, 1]
                blocks.append(part.rows.take(rows))
                counts.append(part.tokens[rows])
                order.append(here)
        if not order:
            return Rows(self.width, torch.zeros(0, self.width)), torch.zeros(0, dtype=torch.int64)
        back = torch.cat(order).argsort()
        return Rows.joined(blocks, self.width).take(back), torch.cat(counts)[back]


class TextPool:
    """Pooled texts for as many evals and dictionaries as it is handed to.

    Args:
        directory: where they are kept beyond this object's life; None: in memory alone.
        memory, disk: bytes. Beyond them goes first what was not used for longest.

    A dictionary without a ``fingerprint()`` of its own is known by being the same object; it is not written to disk.

    Attributes:
        texts_read: texts that went through the model. texts_encoded: texts times dictionaries that were encoded.
    """

    def __init__(self, directory: Path | None = None, memory: int = MEMORY, disk: int = DISK) -> None:
        self._files = PooledFiles(directory, disk) if directory is not None else None
        self._memory = memory
        self._shelves: OrderedDict[str, _Shelf] = OrderedDict()
        self.texts_read = self.texts_encoded = 0

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return sum(shelf.nbytes for shelf in self._shelves.values())

    def pool(
        self,
        dictionaries: Mapping[str, DictionaryLike],
        model: LanguageModel,
        documents: Sequence[Document],
        context_length: int = 128,
        batch_size: int = 64,
        site: str | None = None,
        description: str = "pooling",
        mask: TokenMask = KEPT,
    ) -> PooledTexts:
        """The means of every document, of activations at the site of every dictionary and of its latents.

        Latents are means of codes, not codes of means. ``mask`` says which tokens are averaged. Raises ``InputError``
        for widths that do not fit, activations that are not finite, and documents without a token to measure.
        """
        sites = sites_of(dictionaries, model, site)
        longest = getattr(model, "max_context", None) or context_length
        texts = tokenized(model, documents, min(context_length, longest))
        unique = {text.key: text for text in texts}
        base = _way(model, min(context_length, longest), mask)
        of_site = {s: self._shelf({**base, "site": model.site(s).name}, model.site(s).width) for s in sites.values()}
        of_name = {name: self._dictionary_shelf(base, model, d, sites[name]) for name, d in dictionaries.items()}
        names = {*of_site.values(), *of_name.values()}
        for name in names:
            self._look_up(name, unique)
        missing = [text for text in unique.values() if any(text.key not in self._shelves[n].places for n in names)]
        if missing:
            wanted = {
                name: Wanted(dictionaries[name], sites[name], self._absent(shelf, missing))
                for name, shelf in of_name.items()
            }
            read = read_texts(model, missing, sorted(of_site), wanted, batch_size, mask, description)
            self.texts_read += len(missing)
            for s, name in of_site.items():
                self._take_in(name, missing, read.tokens[s], Rows(read.activations[s].shape[1], read.activations[s]))
            for key, name in of_name.items():
                rows = wanted[key].texts.nonzero().squeeze(1).tolist()
                self.texts_encoded += len(rows)
                tokens = read.tokens[sites[key]][rows]
                self._take_in(name, [missing[i] for i in rows], tokens, read.latents[key])
        keys = [text.key for text in texts]
        means = {s: self._shelves[name].of(keys) for s, name in of_site.items()}
        latents = {key: self._shelves[name].of(keys)[0] for key, name in of_name.items()}
        self._make_room()
        return PooledTexts(
            {s: means[s][0].dense() for s in sorted(means)},
            Tables({name: rows.dense for name, rows in latents.items()}),
            torch.stack([tokens for _, tokens in means.values()]).amin(0),
            sites,
        )

    def clear(self) -> None:
        """Let go of everything in memory; what is on disk stays."""
        self._shelves.clear()

    def _dictionary_shelf(
        self, base: Mapping[str, Any], model: LanguageModel, dictionary: DictionaryLike, site: str
    ) -> str:
        known = getattr(dictionary, "fingerprint", None)
        print_ = str(known()) if callable(known) else f"object {id(dictionary)}"
        named = {**base, "site": model.site(site).name, "dictionary": print_}
        return self._shelf(named, int(dictionary.W_dec.shape[0]), None if callable(known) else dictionary)

    def _shelf(self, named: Mapping[str, Any], width: int, owner: Any = None) -> str:
        key = sha256_json(dict(named))
        self._shelves.setdefault(key, _Shelf(width, owner))
        self._shelves.move_to_end(key)
        return key

    def _look_up(self, name: str, texts: Mapping[bytes, TokenizedText]) -> None:
        """Bring in what the disk holds of these texts."""
        shelf = self._shelves[name]
        absent = {key for key in texts if key not in shelf.places}
        if self._files is None or shelf.owner is not None or not absent:
            return
        for part in self._files.find(name, shelf.width, absent):
            rows = [i for i, key in enumerate(part.keys) if key in absent]
            shelf.add(Part([part.keys[i] for i in rows], part.tokens[rows], part.rows.take(torch.tensor(rows))))

    def _absent(self, name: str, texts: Sequence[TokenizedText]) -> Tensor:
        places = self._shelves[name].places
        return torch.tensor([text.key not in places for text in texts])

    def _take_in(self, name: str, texts: Sequence[TokenizedText], tokens: Tensor, rows: Rows) -> None:
        shelf = self._shelves[name]
        new = [i for i, text in enumerate(texts) if text.key not in shelf.places]
        if not new:
            return
        part = Part([texts[i].key for i in new], tokens[new], rows.take(torch.tensor(new)))
        shelf.add(part)
        if self._files is not None and shelf.owner is None:
            self._files.add(name, part)

    def _make_room(self) -> None:
        while self._shelves and self.nbytes > self._memory:
            self._shelves.popitem(last=False)


def _way(model: LanguageModel, context_length: int, mask: TokenMask) -> dict[str, Any]:
    """What pooled activations depend on beside site and text."""
    config = getattr(model.module, "config", None)
    settings = {} if config is None else {k: v for k, v in config.to_dict().items() if k not in _NO_SETTINGS}
    return {
        "form": FORM,
        "model": fingerprint_of_model(model),
        "settings": sha256_json(settings),
        "tokenizer": [getattr(model.tokenizer, f"{name}_token_id", None) for name in ("pad", "bos", "eos")],
        "context_length": context_length,
        "mask": mask.name,
        "device": model.device.type,
        "programs": _programs(),
    }


#: What a model's configuration says of where it came from.
_NO_SETTINGS = ("_name_or_path", "transformers_version")


@cache
def _programs() -> dict[str, str]:
    try:
        transformers = version("transformers")
    except PackageNotFoundError:
        transformers = ""
    return {"saeworks": __version__, "torch": str(torch.__version__), "transformers": transformers}


def without_repeats(train: Iterable[Document], test: Iterable[Document]) -> tuple[list[Document], list[Document], int]:
    """Drop test documents whose text is also a training text; returns (train, test, number dropped)."""
    train, test = list(train), list(test)
    known = {d.text for d in train}
    kept = [d for d in test if d.text not in known]
    return train, kept, len(test) - len(kept)
