"""Contexts and template counts against the same things computed the slow way, in any division into batches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_pair import crosscoder  # pyright: ignore

from saeworks.diffing.examples import Examples, collect
from saeworks.diffing.paired_batches import PairedBatch
from saeworks.errors import InputError

LENGTH = 10


def batches(sizes: list[int], seed: int = 3) -> list[PairedBatch]:
    """Texts of ten tokens in batches of so many texts, every second text a chat."""
    draw = torch.Generator().manual_seed(seed)
    total = sum(sizes) * LENGTH
    x = torch.randn(total, 32, generator=draw)
    ids = torch.randint(4, 20, (total,), generator=draw)
    template = torch.zeros(total, dtype=torch.bool)
    answers = torch.full((total,), -1)
    for text in range(0, sum(sizes), 2):
        at = text * LENGTH
        template[at] = template[at + 5] = True
        answers[at + 5 : at + 8] = torch.arange(3)
        ids[at], ids[at + 5] = 1, 2
    numbers = torch.arange(total)
    whole = PairedBatch((x[:, :16], x[:, 16:]), ids, numbers // LENGTH, numbers % LENGTH, template, answers, "mixed")
    ends = (torch.tensor(sizes).cumsum(0) * LENGTH).tolist()
    return [whole[slice(end - size * LENGTH, end)] for size, end in zip(sizes, ends, strict=True)]


def slow(dictionary, found: list[PairedBatch]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Strengths ``[token, latent]``, token ids and texts of everything."""
    x = torch.cat([b.flat() for b in found])
    v = dictionary.encode(x) * dictionary.decoder_norms().sum(dim=0)
    return v, torch.cat([b.token_ids for b in found]), torch.cat([b.sequence_ids for b in found])


@pytest.mark.parametrize("sizes", [[12], [1] * 12, [5, 1, 6]])
def test_contexts_are_the_strongest_of_different_texts(sizes):
    dictionary = crosscoder()
    given = batches(sizes)
    found = collect(dictionary, given, contexts=3, before=4, after=2)
    v, ids, texts = slow(dictionary, given)
    for latent in range(dictionary.cfg.d_sae):
        best = sorted(((float(v[texts == t, latent].max()), t) for t in range(12)), reverse=True)
        best = [(value, t) for value, t in best if value > 0][:3]
        contexts = found.contexts(latent)
        assert [c.sequence for c in contexts] == [t for _, t in best]
        for context, (value, text) in zip(contexts, best, strict=True):
            assert context.strengths[context.peak] == pytest.approx(value, rel=1e-5)
            peak = int(v[:, latent].where(texts == text, -1.0).argmax())
            start = max(text * LENGTH, peak - 4)
            stop = min((text + 1) * LENGTH, peak + 3)
            assert context.token_ids == tuple(ids[start:stop].tolist())
            assert context.strengths == pytest.approx(v[start:stop, latent].tolist(), rel=1e-5, abs=1e-6)
            assert context.data_set == "mixed"


def test_reach_is_along_the_chat_direction():
    dictionary = crosscoder()
    given = batches([8])
    found = collect(dictionary, given, contexts=1)
    v, _, _ = slow(dictionary, given)
    latent = int(v.amax(dim=0).argmax())
    peak = int(v[:, latent].argmax())
    unit = dictionary.W_dec[latent, 16:] / dictionary.W_dec[latent, 16:].norm()
    expected = [float((given[0].x[m][peak] - dictionary.b_dec[16 * m : 16 * m + 16]) @ unit) for m in (0, 1)]
    assert found.contexts(latent)[0].reach == pytest.approx(expected, abs=1e-5)


def test_template_counts_are_exact():
    dictionary = crosscoder()
    given = batches([7, 5])
    found = collect(dictionary, given, template_ids=(1, 2))
    v, ids, _ = slow(dictionary, given)
    template = torch.cat([b.is_template for b in given])
    answer = torch.cat([b.answer_index >= 0 for b in given]) & ~template
    fires = (v > 0).double()
    shown = found.template()
    assert torch.allclose(shown["template_share"], fires[template].sum(0) / fires.sum(0), equal_nan=True)
    assert torch.allclose(shown["frequency_template"], fires[template].mean(0))
    assert torch.allclose(shown["frequency_answer"], fires[answer].mean(0))
    expected = (v * template[:, None]).double().sum(0) / fires[template].sum(0)
    assert torch.allclose(shown["mean_template"], expected, rtol=1e-5, equal_nan=True)
    latent = int(fires[template].sum(0).argmax())
    shares = found.template_tokens(latent)
    every = fires[:, latent].sum()
    assert shares == {
        t: pytest.approx(float(fires[(ids == t) & template, latent].sum() / every))
        for t in (1, 2)
        if fires[(ids == t) & template, latent].sum() > 0
    }
    # Strong firings alone: the histogram is exact to a quarter of an octave, so ask where no value is near an edge.
    top = v[:, latent].max()
    strong = v[:, latent] > 0.9 * top
    if not bool(((v[:, latent] > 0.5 * top) & ~strong).any()):
        wanted = (strong & template).double().sum() / strong.double().sum()
        assert float(shown["template_share_top"][latent]) == pytest.approx(float(wanted))


def test_the_buckets_of_strength_hold_every_firing():
    dictionary = crosscoder()
    given = batches([12])
    found = collect(dictionary, given)
    v, _, _ = slow(dictionary, given)
    assert torch.equal(found.histogram.sum(dim=(0, 2)).long(), (v > 0).sum(dim=0))


def test_memory_does_not_grow():
    def size(examples: Examples) -> int:
        return sum(t.numel() for t in vars(examples).values() if isinstance(t, torch.Tensor))

    def several() -> Iterator[PairedBatch]:
        for seed in range(5):
            yield from batches([4], seed)

    dictionary = crosscoder()
    assert size(collect(dictionary, several())) == size(Examples(dictionary))


def test_bad_input_is_a_sentence():
    with pytest.raises(InputError, match="at least one"):
        Examples(crosscoder(), contexts=0)
