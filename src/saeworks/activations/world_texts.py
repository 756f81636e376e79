"""The embedded world as texts: ``world``, ``world:DOMAIN`` and ``world:DOMAIN?spurious=LABEL:STRENGTH``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from saeworks.activations.texts import TextSource
from saeworks.errors import InputError, did_you_mean
from saeworks.files import sha256_json
from saeworks.world.documents import Document

Spurious = tuple[str, float]


@dataclass(frozen=True, slots=True)
class WorldPart:
    """What one name stands for: a domain (None: the mixture) and the correlation that is planted in it, if any."""

    domain: str | None
    spurious: Spurious | None


def parse_world(item: str) -> WorldPart:
    """Read a name such as ``world:biographies?spurious=gender:0.95``.

    Raises:
        InputError: unknown domain or option, or a correlation that the domain cannot have.
    """
    from saeworks.world import corpus

    name, asked, options = item.partition("?")
    domain = name.partition(":")[2] or None
    if domain is not None and domain not in corpus.DOMAINS:
        raise InputError(f"The world has no domain '{domain}' (from '{item}').{did_you_mean(domain, corpus.DOMAINS)}")
    if not asked:
        return WorldPart(domain, None)
    option, _, value = options.partition("=")
    if option != "spurious":
        raise InputError(f"'{item}' has the unknown option '{option}'.{did_you_mean(option, ('spurious',))}")
    spurious = parse_spurious(value)
    corpus.documents(domain, "train", spurious=spurious)  # refuses what cannot be planted; writes nothing yet
    return WorldPart(domain, spurious)


def parse_spurious(text: str) -> Spurious:
    """``"gender:0.95"`` as ``("gender", 0.95)``; ``InputError`` when it is not LABEL:STRENGTH."""
    label, _, strength = text.partition(":")
    try:
        return label, float(strength)
    except ValueError:
        raise InputError(
            f"A planted correlation is written LABEL:STRENGTH, for example gender:0.95, but '{text}' came."
        ) from None


class WorldTexts(TextSource):
    """Documents of the embedded world. Every document is a pure function of its index, so any start costs the same."""

    def __init__(
        self,
        items: Sequence[str],
        split: str,
        seed: int,
        label_column: str | None = None,
        spurious_label_column: str | None = None,
    ) -> None:
        from saeworks.world import corpus

        self.name = " + ".join(items)
        self._parts = [parse_world(item) for item in items]
        self._split, self._seed, self._label, self._spurious = split, seed, label_column, spurious_label_column
        domains = {one for part in self._parts for one in ((part.domain,) if part.domain else corpus.MIXTURE)}
        known = sorted({name for domain in domains for name in corpus.label_names(domain)})
        for column in (label_column, spurious_label_column):
            if column is not None and column not in known:
                raise InputError(f"Documents of '{self.name}' have no label '{column}'.{did_you_mean(column, known)}")

    @property
    def size(self) -> int | None:
        """None: the world writes as many documents as are asked for."""
        return None

    def fingerprint(self) -> str:
        """Digest of the generator's version and of what was asked of it."""
        from saeworks.world import corpus

        domains = [part.domain for part in self._parts]
        asked: list[object] = ["world", corpus.fingerprint(), domains, self._split, self._seed, self._label]
        planted = [part.spurious for part in self._parts]
        if any(planted) or self._spurious is not None:
            asked += [planted, self._spurious]
        return sha256_json(asked)

    def documents(self, start: int = 0, limit: int | None = None) -> Iterator[Document]:
        """Endless unless ``limit`` is given. Several domains take turns: document ``i`` is of domain ``i % n``."""
        stop = None if limit is None else start + limit
        index = start
        while stop is None or index < stop:
            yield self._document(index)
            index += 1

    def _document(self, index: int) -> Document:
        from saeworks.world import corpus

        turn, which = divmod(index, len(self._parts))
        part = self._parts[which]
        found = corpus.document(part.domain, self._split, turn, seed=self._seed, spurious=part.spurious)
        planted = part.spurious[0] if part.spurious and part.spurious[0] != self._label else None
        columns = {"label": self._label, "spurious_label": self._spurious or planted}
        added = {key: found.labels[name] for key, name in columns.items() if name is not None and name in found.labels}
        return replace(found, labels={**found.labels, **added}) if added else found
