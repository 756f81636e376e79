"""The corpus: labelled documents by domain, split and index.

A document is a pure function of ``(seed, split, domain, index)``, so that any part of the corpus can be made again
without the rest, on every platform, to the same bytes.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from functools import cache
from types import ModuleType

from saeworks.errors import InputError, did_you_mean
from saeworks.world.documents import Document
from saeworks.world.domains import (
    biographies,
    chat,
    code,
    comparisons,
    craft,
    facts,
    languages,
    news,
    portraits,
    questions,
    reviews,
    ships,
    spelling,
    taxonomy,
)
from saeworks.world.drawing import Draw, Weighted
from saeworks.world.phrasing import SPLITS

GENERATOR_VERSION = "2"
_MODULES: dict[str, ModuleType] = {
    "biographies": biographies,
    "reviews": reviews,
    "news": news,
    "code": code,
    "languages": languages,
    "taxonomy": taxonomy,
    "spelling": spelling,
    "facts": facts,
    "ships": ships,
    "craft": craft,
    "questions": questions,
    "comparisons": comparisons,
    "portraits": portraits,
    "chat": chat,
}
DOMAINS = tuple(_MODULES)
# What a document of the mixture is about. Facts, ships and spelling are memory and get their share for it. Portraits
# are for probes alone, and chat is what the chat model is made of.
_SHARES = {
    "biographies": 0.13,
    "reviews": 0.11,
    "news": 0.08,
    "code": 0.06,
    "languages": 0.06,
    "taxonomy": 0.13,
    "spelling": 0.10,
    "facts": 0.08,
    "ships": 0.06,
    "craft": 0.05,
    "questions": 0.10,
    "comparisons": 0.04,
}
MIXTURE = tuple(_SHARES)
_MIXTURE = Weighted(MIXTURE, tuple(_SHARES.values()))
# Planted correlations that can be asked for: domain → the label that is made to follow another one.
SPURIOUS = {"biographies": "gender", "portraits": "gender", "reviews": "sentiment"}
SPLIT_NAMES = SPLITS


def _check(domain: str | None, split: str, spurious: tuple[str, float] | None) -> None:
    if domain is not None and domain not in DOMAINS:
        raise InputError(f"The world has no domain '{domain}'.{did_you_mean(domain, DOMAINS)}")
    if split not in SPLITS:
        raise InputError(f"The world has no split '{split}'.{did_you_mean(split, SPLITS)}")
    if spurious is not None and (domain is None or SPURIOUS.get(domain) != spurious[0]):
        known = ", ".join(f"{label} in {name}" for name, label in SPURIOUS.items())
        raise InputError(f"No correlation of '{spurious[0]}' can be planted in domain '{domain}'; there is: {known}.")
    if spurious is not None and not 0.0 <= spurious[1] <= 1.0:
        raise InputError(f"The strength of a planted correlation is a probability, not {spurious[1]}.")


def _write(
    domain: str | None, split: str, index: int, seed: int, spurious: tuple[str, float] | None
) -> tuple[Document, float]:
    """The document and the log-probability of the choices that made it."""
    chosen = 0.0
    if domain is None:
        draw = Draw(seed, "mixture", split, index)
        domain = draw.weighted(_MIXTURE)
        chosen = draw.log_probability
    draw = Draw(seed, domain, split, index)
    made = _MODULES[domain].write(draw, split, f"{domain}/{split}/{seed}/{index}", spurious)
    return made, chosen + draw.log_probability


def document(
    domain: str | None, split: str, index: int, seed: int = 0, spurious: tuple[str, float] | None = None
) -> Document:
    """Document ``index`` of a domain and split; ``domain=None`` is the mixture.

    Args:
        domain: One of ``DOMAINS`` or None.
        split: ``train``, ``validation``, ``probe_train`` or ``probe_test``.
        index: From 0; every index exists.
        seed: Another seed is another corpus of the same world.
        spurious: ``(label, strength)`` from ``SPURIOUS`` plants a correlation between the domain's two labels.

    Raises:
        InputError: Unknown domain, split or correlation, or a negative index.
    """
    _check(domain, split, spurious)
    if index < 0:
        raise InputError(f"A document's index is 0 or more, not {index}.")
    return _write(domain, split, index, seed, spurious)[0]


def surprise(domain: str | None, split: str, index: int, seed: int = 0) -> float:
    """Minus the log-probability (nats) of the choices behind :func:`document`.

    Several paths of choices may give one text, so this is an upper bound of the text's surprise under the generator.
    """
    _check(domain, split, None)
    return -_write(domain, split, index, seed, None)[1]


def documents(
    domain: str | None,
    split: str,
    seed: int = 0,
    count: int | None = None,
    spurious: tuple[str, float] | None = None,
) -> Iterator[Document]:
    """The documents of a domain and split in order of their index; endless when ``count`` is None."""
    _check(domain, split, spurious)
    indices = itertools.count() if count is None else range(count)
    return (_write(domain, split, index, seed, spurious)[0] for index in indices)


def label_names(domain: str) -> tuple[str, ...]:
    """Names of the document labels of a domain, e.g. ``("profession", "gender")``; a document may lack some of them."""
    _check(domain, "train", None)
    names: tuple[str, ...] = _MODULES[domain].LABELS
    return names


@cache
def fingerprint(domains: tuple[str, ...] = DOMAINS) -> str:
    """A hash of the generator: of its version and of what it writes in these domains."""
    h = hashlib.sha256(GENERATOR_VERSION.encode())
    for domain in domains:
        for split in SPLITS:
            for made in documents(domain, split, count=16):
                h.update(repr((made.text, sorted(made.labels.items()), made.spans)).encode("utf-8"))
    return h.hexdigest()
