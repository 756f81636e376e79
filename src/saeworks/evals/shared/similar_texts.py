"""Which texts are nearly the same, so that a split into training and test can keep them on one side.

Labelled files often hold one sentence in several wordings, or a question twice with one word and the answer changed.
Split at random, such texts lie on both sides: a probe is then rewarded for remembering texts where the copies agree,
and is wrong below chance where they disagree. Neither says what a model knows.

Two texts are similar when the sets of their words overlap by a Jaccard index of at least ``similarity``; groups are
what similarity connects, directly or through others. The search is exact: texts as similar as that share one of their
rarest words (prefix filtering as in AllPairs and PPJoin: Bayardo et al. 2007, Xiao et al. 2008), so that few pairs are
compared.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"\w+")
SIMILARITY = 0.7
#: Above this share of the texts a group is not a handful of copies but a template that all texts follow.
LARGEST_SHARE = 0.2
#: Pairs looked at per text before the same is concluded; labelled files of sentences need a few tens.
PAIRS_PER_TEXT = 100
_STEPS = (0.8, 0.9, 1.0)


def similar_groups(texts: Sequence[str], similarity: float | None = SIMILARITY) -> tuple[list[int], float | None]:
    """The group of every text, numbered by first appearance, and the similarity that made the groups.

    Where texts follow a template, similarity connects them all and nothing could be split. If a group would hold more
    than a fifth of the different texts, or too many pairs would have to be compared, the next higher of 0.8, 0.9 and 1
    is tried; in the end (None) only equal texts are grouped.

    Args:
        texts: texts in any order; equal texts are always in one group.
        similarity: Jaccard index in (0, 1] from which on two texts are similar; None groups equal texts only.
    """
    distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    if similarity is None:
        return _numbered([distinct[text] for text in texts]), None
    words = [frozenset(WORD.findall(text.casefold())) for text in distinct]
    most = max(2, int(LARGEST_SHARE * len(distinct)))
    for threshold in (similarity, *(step for step in _STEPS if step > similarity)):
        groups = _connected(words, threshold, most)
        if groups is not None:
            return _numbered([groups[distinct[text]] for text in texts]), threshold
    return _numbered([distinct[text] for text in texts]), None


def _numbered(groups: list[int]) -> list[int]:
    first: dict[int, int] = {}
    return [first.setdefault(group, len(first)) for group in groups]


def _connected(words: Sequence[frozenset[str]], similarity: float, most: int) -> list[int] | None:
    """A root per set of words; None as soon as more than ``most`` sets are connected or the pairs are too many."""
    frequency = Counter(word for of_text in words for word in of_text)
    parent, size = list(range(len(words))), [1] * len(words)
    pairs, allowed = 0, PAIRS_PER_TEXT * len(words)
    # Rarest word → texts that have it among their rarest, with its place there. Shorter texts come first.
    index: dict[str, list[tuple[int, int]]] = {}
    for i in sorted(range(len(words)), key=lambda i: len(words[i])):
        count = len(words[i])
        rarest = sorted(words[i], key=lambda word: (frequency[word], word))
        compared = {i}
        for place, word in enumerate(rarest[: count - math.ceil(similarity * count - 1e-9) + 1]):
            holders = index.setdefault(word, [])
            pairs += len(holders)
            for j, other_place in holders:
                if j in compared:
                    continue
                compared.add(j)
                other = len(words[j])
                needed = math.ceil(similarity / (1 + similarity) * (count + other) - 1e-9)
                # This is the first word in common, so all others in common come later in both.
                if min(count - place, other - other_place) < needed:
                    continue
                a, b = _root(parent, i), _root(parent, j)
                if a != b and len(words[i] & words[j]) >= needed:
                    parent[max(a, b)] = min(a, b)
                    size[min(a, b)] += size[max(a, b)]
                    if size[min(a, b)] > most:
                        return None
            holders.append((i, place))
        if pairs > allowed:
            return None
    return [_root(parent, i) for i in range(len(words))]


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i
