"""Windows around firings: the strongest, a sample by strength, and what either mode makes of them."""

import pytest
import torch

from saeworks.evals.interpretation.latent_examples import ExamplePlan, draw_examples, in_bfloat16
from saeworks.evals.interpretation.windows import by_strength, firings, spaced
from saeworks.evals.shared.token_rows import TokenRows
from saeworks.world.documents import Document, Span

SMALL = ExamplePlan(buffer=2, top_to_explain=3, weighted_to_explain=2, top_to_score=1, weighted_to_score=1)


def dense(x):
    """Firings of one latent from activations [row, position]."""
    return firings(torch.arange(x.numel()), x.flatten(), x.shape[1])


def word_rows(count, length, seed=0, words=50):
    """Rows of different words, one text a row, "w<number>" for each token."""
    ids = torch.randint(words, (count, length), generator=torch.Generator().manual_seed(seed))
    documents, offsets = [], torch.zeros(count, length, 2, dtype=torch.int32)
    for r in range(count):
        text, spans = "", []
        for c, i in enumerate(ids[r].tolist()):
            start = len(text) + (c > 0)
            text += (" " if c else "") + f"w{i}"
            offsets[r, c, 0], offsets[r, c, 1] = start, len(text)
            if i == 7:
                spans.append(Span(start, len(text), "numbers/small/seven"))
        documents.append(Document(text, spans=tuple(spans)))
    valid = torch.ones(count, length, dtype=torch.bool)
    number = torch.arange(count, dtype=torch.int32)[:, None].expand(count, length)
    return TokenRows(documents, ids, valid, number, offsets, torch.full((count,), length), None)


def on_word(rows, word, strength=1.0):
    """A latent that fires on one word, more strongly the later in the data."""
    hit = (rows.token_ids == word).float()
    return dense(hit * torch.linspace(strength, 2 * strength, hit.numel()).view_as(hit))


def test_the_strongest_places_of_saebench_s_fixture():
    x = torch.arange(40.0).view(2, 20)
    x[0, 10] += 50
    x[0, 11] += 100
    x[1, 1] += 150
    found = dense(x)
    inside = found.among((found.tokens % 20 >= 3) & (found.tokens % 20 < 17))
    assert spaced(inside.places(), 2, 0) == [(0, 11), (0, 10)]
    assert spaced(inside.places(), 2, 3) == [(0, 11), (1, 16)]
    # Window around the first place, as in the fixture.
    assert x[0, 8:15].tolist() == [8, 9, 60, 111, 12, 13, 14]


def test_ties_go_by_place_in_whatever_order_they_come():
    values = torch.tensor([1.0, 2.0, 2.0, 1.0, 0.0])
    tokens = torch.tensor([9, 4, 2, 1, 0])
    order = torch.tensor([3, 0, 4, 2, 1])
    for found in (firings(tokens, values, 10), firings(tokens[order], values[order], 10)):
        assert found.tokens.tolist() == [2, 4, 1, 9]


def test_draws_follow_the_square_of_the_activation():
    found = firings(torch.arange(3), torch.tensor([1.0, 2.0, 3.0]), 10)
    draws = torch.Generator().manual_seed(0)
    first = [next(iter(by_strength(found, draws)))[1] for _ in range(1500)]
    shares = [first.count(i) / 1500 for i in range(3)]
    assert shares == pytest.approx([1 / 14, 4 / 14, 9 / 14], abs=0.05)
    assert sorted(by_strength(found, draws)) == [(0, 0), (0, 1), (0, 2)]


def test_words_and_concepts_of_a_window():
    rows = word_rows(40, 12)
    row, position = (rows.token_ids == 7).nonzero()[0].tolist()
    assert "".join(rows.words(row, 0, 12)) == rows.documents[row].text
    concepts = rows.concepts(row, 0, 12)
    assert concepts[position] == {"numbers", "numbers/small", "numbers/small/seven"}
    others = [i for i in range(12) if int(rows.token_ids[row, i]) != 7]
    assert all(not concepts[i] for i in others)


def test_corrected_examples_share_no_token_and_no_text():
    rows = word_rows(400, 16)
    examples = draw_examples(on_word(rows, 7), rows, SMALL, seed=0)
    both = examples.explain + examples.score
    texts = ["".join(e.tokens) for e in both]
    assert len(set(texts)) == len(texts) == 7 + SMALL.random_to_score
    for e in both:
        assert e.active == any(t.strip() == "w7" for t in e.tokens)
    peaks = [max(e.activations) for e in examples.explain]
    assert peaks == sorted(peaks, reverse=True)
    assert {e.kind for e in examples.score} == {"top", "weighted", "random"}


def test_random_windows_have_true_labels_but_in_compat():
    rows = word_rows(300, 16, words=4)
    latent = dense((rows.token_ids < 3).float() * torch.rand(300, 16, generator=torch.Generator().manual_seed(1)))
    mended = draw_examples(latent, rows, SMALL, 0)
    assert all(e.active for e in mended.score if e.kind == "random")
    faulty = draw_examples(latent, rows, ExamplePlan(**{**vars(SMALL), "compat": True}), 0)
    random = [e for e in faulty.score if e.kind == "random"]
    assert len(random) == 10
    assert not any(e.active for e in random)
    assert any(int(t.strip()[1:]) < 3 for e in random for t in e.tokens)  # though the latent fires there


def test_a_rare_latent_keeps_what_it_has_but_in_compat():
    rows = word_rows(300, 16, words=400)
    latent = on_word(rows, 7)
    assert 3 <= len(latent.tokens) < 20
    compat = ExamplePlan(**{**vars(SMALL), "compat": True, "weighted_to_explain": 20})
    assert draw_examples(latent, rows, compat, 0) is None
    kept = draw_examples(latent, rows, ExamplePlan(**{**vars(SMALL), "weighted_to_explain": 20}), 0)
    assert kept is not None
    assert any(e.active for e in kept.score)
    none = firings(torch.tensor([5]), torch.tensor([0.0]), rows.columns)
    assert draw_examples(none, rows, SMALL, 0) is None


def test_compat_centres_keep_away_from_the_ends():
    x = torch.zeros(60, 9)
    x[:, 0], x[:, 4] = 5.0, torch.linspace(1, 2, 60)
    rows = word_rows(60, 9)
    found = draw_examples(dense(x), rows, ExamplePlan(**{**vars(SMALL), "compat": True}), 0)
    assert all(len(e.tokens) == 5 for e in found.explain + found.score)
    assert max(max(e.activations) for e in found.explain) < 5.0
    mended = draw_examples(dense(x), rows, SMALL, 0)
    assert max(max(e.activations) for e in mended.explain) == 5.0
    assert min(len(e.tokens) for e in mended.explain) == 3


def test_examples_depend_on_the_seed_and_on_nothing_that_scales():
    rows = word_rows(400, 16)
    first = draw_examples(on_word(rows, 7), rows, SMALL, 0)
    again = draw_examples(on_word(rows, 7), rows, SMALL, 0)
    assert first == again
    assert draw_examples(on_word(rows, 7), rows, SMALL, 1) != first
    scaled = draw_examples(on_word(rows, 7, strength=4.0), rows, SMALL, 0)
    assert [e.tokens for e in scaled.score] == [e.tokens for e in first.score]
    assert [e.active for e in scaled.score] == [e.active for e in first.score]


def test_compat_rounds_to_bfloat16_and_breaks_ties_by_place():
    found = firings(torch.tensor([3, 8]), torch.tensor([1.0, 1.001]), 10)
    assert found.tokens.tolist() == [8, 3]
    assert in_bfloat16(found).tokens.tolist() == [3, 8]
