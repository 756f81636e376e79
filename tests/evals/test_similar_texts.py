"""The fast search for similar texts finds exactly the pairs that comparing all of them finds."""

import random
from itertools import combinations

import pytest

from saeworks.evals.shared.similar_texts import similar_groups

WORDS = [f"w{i}" for i in range(60)]


def near_copies(seed):
    """Random sentences, and copies of some with a few words changed."""
    rng = random.Random(seed)
    texts = [rng.sample(WORDS, rng.randint(3, 12)) for _ in range(60)]
    for original in rng.sample(texts, 25):
        copy = list(original)
        for _ in range(rng.randint(0, 3)):
            copy[rng.randrange(len(copy))] = rng.choice(WORDS)
        texts.append(copy)
    rng.shuffle(texts)
    return [" ".join(words) for words in texts]


def by_all_pairs(texts, similarity):
    group = list(range(len(texts)))
    sets = [set(t.split()) for t in texts]
    for i, j in combinations(range(len(texts)), 2):
        if len(sets[i] & sets[j]) >= similarity * len(sets[i] | sets[j]) - 1e-9:
            old, new = group[j], group[i]
            group = [new if g == old else g for g in group]
    first = {}
    return [first.setdefault(g, len(first)) for g in group]


@pytest.mark.parametrize("similarity", [0.6, 0.7, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_groups_are_those_of_all_pairs(seed, similarity):
    texts = near_copies(seed)
    expected = by_all_pairs(texts, similarity)
    assert 1 < len(set(expected)) < len(texts)
    assert similar_groups(texts, similarity) == (expected, similarity)


def test_a_question_and_its_opposite_are_one_group_and_other_questions_are_not():
    texts = [
        "If the glacier gets larger, is the temperature A. falling B. rising",
        "A quite different sentence about cats",
        "If the glacier gets smaller, is the temperature A. falling B. rising",
        "IF THE GLACIER gets larger, is the temperature? A. rising B. falling",
        "A quite different story about dogs",
        *(f"filler {i} x{i} y{i}" for i in range(20)),
    ]
    assert similar_groups(texts)[0][:5] == [0, 1, 0, 0, 2]
    assert similar_groups(texts, None)[0] == list(range(25))


def test_texts_from_one_template_are_not_all_one_group():
    texts = [f"the name of the person in the picture is {i}" for i in range(200)]
    groups, similarity = similar_groups([*texts, texts[3]])
    assert groups == [*range(200), 3]
    assert similarity == 0.8
    shuffled = [" ".join(random.Random(i).sample(WORDS[:9], 9)) for i in range(200)]
    groups, similarity = similar_groups(shuffled)
    assert (groups, similarity) == (list(range(200)), None)


def test_texts_without_words_are_grouped_when_equal():
    assert similar_groups(["!!", "??", "!!", "", "word", "other", "a", "b", "c", "d"])[0][:4] == [0, 1, 0, 2]
