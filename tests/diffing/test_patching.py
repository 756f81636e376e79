"""Patching: the identity, every condition against a formula written out, groups of tokens, intervals, bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_pair import SITE, crosscoder, model, pair, transcripts  # pyright: ignore

from saeworks.diffing.conversations import answered, conversation_batches, turn_end
from saeworks.diffing.patching import Condition, PatchedKL, conditions, nothing, patch_kl
from saeworks.errors import InputError
from saeworks.models.interventions import Splice
from saeworks.models.scores import kl_divergence


@pytest.fixture(scope="module")
def models():
    return pair()


@pytest.fixture(scope="module")
def dictionary():
    return crosscoder()


def wanted(dictionary):
    half = torch.arange(0, dictionary.cfg.d_sae, 2)
    return [
        *conditions({"half": ("Every second latent.", half)}, half, 3, random_groups=2),
        Condition("every latent by number, bias, error", "All.", torch.arange(dictionary.cfg.d_sae), True, True),
    ]


def measured(models, dictionary, talks, batch_size=4, **more) -> PatchedKL:
    base, chat = models
    batches = conversation_batches(chat, talks, batch_size)
    return patch_kl(base, chat, dictionary, SITE, batches, wanted(dictionary), **more)


def test_everything_together_is_the_chat_model(models, dictionary):
    found = measured(models, dictionary, transcripts())
    for name in ("full", "every latent by number, bias, error"):
        assert abs(found.mean(name)) < 1e-6
    assert found.mean("none") > 1e-2
    assert found.mean("chat into base") > 1e-2


def test_conditions_are_their_formulas(models, dictionary):
    base, chat = models
    talk = transcripts(1)
    found = measured(models, dictionary, talk)
    (batch,) = conversation_batches(chat, talk)
    h0, h1 = (m.harvest(batch.tokens, [SITE])[SITE] for m in models)
    f = dictionary.encode(torch.cat([h0, h1], dim=-1)) * batch.inside[..., None]
    d0, d1 = dictionary.W_dec[:, :16], dictionary.W_dec[:, 16:]
    own = f @ (d1 - d0)
    bias = (dictionary.b_dec[16:] - dictionary.b_dec[:16]) * batch.inside[..., None]
    half = f.clone()
    half[..., 1::2] = 0.0
    template = batch.is_template[..., None]
    expected = {
        "none": h0,
        "all": h0 + own,
        "all and bias": h0 + own + bias,
        "bias": h0 + bias,
        "error": h1 - own,
        "half": h0 + half @ (d1 - d0),
        "template": torch.where(template, h1, h0),
    }
    at = batch.answer_index >= 0
    reference = chat.logits(batch.tokens)
    for name, hidden in expected.items():
        patched = chat.logits(batch.tokens, [Splice(SITE, lambda _x, h=hidden: h, where="all")])
        kl = kl_divergence(reference, patched)[at].mean()
        assert found.mean(name) == pytest.approx(float(kl), abs=1e-5), name
    assert found.mean("base") == pytest.approx(
        float(kl_divergence(reference, base.logits(batch.tokens))[at].mean()), abs=1e-5
    )
    into_base = base.logits(batch.tokens, [Splice(SITE, lambda _x: h1, where="all")])
    assert found.mean("chat into base") == pytest.approx(
        float(kl_divergence(reference, into_base)[at].mean()), abs=1e-5
    )


def test_groups_of_tokens_add_up_whatever_the_batches(models, dictionary):
    talks = transcripts(7, turns=2)
    found = measured(models, dictionary, talks, first=(2,))
    again = measured(models, dictionary, talks, batch_size=3, first=(2,))
    assert found.groups == ("all", "first 2", "rest")
    assert torch.allclose(found.kl[..., 1] + found.kl[..., 2], found.kl[..., 0], atol=1e-9)
    assert torch.equal(found.tokens[:, 1] + found.tokens[:, 2], found.tokens[:, 0])
    # Two answers per transcript, of two tokens or more: each has its own first tokens.
    assert found.tokens[:, 1].tolist() == [4.0] * 7
    order = [torch.argsort(one.tokens[:, 0], stable=True) for one in (found, again)]
    assert found.kl.sum() == pytest.approx(float(again.kl.sum()), rel=1e-4)
    assert found.tokens[order[0], 0].tolist() == again.tokens[order[1], 0].tolist()


def test_nll_is_of_the_words_that_follow(models, dictionary):
    _, chat = models
    talk = transcripts(1)
    found = measured(models, dictionary, talk)
    (batch,) = conversation_batches(chat, talk)
    at = (batch.answer_index >= 0).nonzero()
    probabilities = chat.logits(batch.tokens).log_softmax(-1)
    loss = [-float(probabilities[r, p, batch.tokens.token_ids[r, p + 1]]) for r, p in at.tolist()]
    row = next(r for r in found.table(10) if r["condition"] == "full" and r["group"] == "all")
    assert row["nll"] == pytest.approx(sum(loss) / len(loss), abs=1e-5)


def by_hand(kl: list[list[float]], tokens: list[float]) -> PatchedKL:
    """One group; one row of sums per conversation, for the conditions none and half."""
    names = [Condition(name, "", nothing()) for name in ("none", "half")]
    sums = torch.tensor(kl, dtype=torch.float64)[..., None]
    return PatchedKL(tuple(names), ("all",), sums, sums, torch.tensor(tokens, dtype=torch.float64)[:, None])


def test_intervals_draw_conversations_and_differences_are_paired():
    # The conversations differ widely, but in every one of them half of the divergence is gone.
    found = by_hand([[2.0 * i, 1.0 * i] for i in range(1, 21)], [10.0] * 20)
    none, half = found.table(500)
    assert none["kl"] == pytest.approx(2.1)
    assert none["kl_low"] < 1.8
    assert none["kl_high"] > 2.4
    assert half["recovered"] == pytest.approx(0.5)
    assert half["recovered_low"] == pytest.approx(0.5)
    assert half["recovered_high"] == pytest.approx(0.5)
    value, low, high = found.difference("none", "half", resamples=500)
    assert value == pytest.approx(1.05)
    assert low < value < high
    # Tokens of one long conversation are one observation: the interval is as wide as if it were short.
    doubled = by_hand([[20.0 * i, 10.0 * i] for i in range(1, 21)], [100.0] * 20).table(500)
    assert doubled[0]["kl_low"] == pytest.approx(none["kl_low"])


def test_random_groups_are_drawn_from_the_candidates():
    candidates = torch.tensor([3, 5, 8, 13])
    made = {c.name: c for c in conditions({}, candidates, 2, random_groups=3)}
    groups = [made[f"random {i}"].latents for i in (1, 2, 3)]
    assert all(set(group.tolist()) <= set(candidates.tolist()) and len(group) == 2 for group in groups)
    again = {c.name: c for c in conditions({}, candidates, 2, random_groups=3)}
    assert all(torch.equal(again[f"random {i + 1}"].latents, group) for i, group in enumerate(groups))


def test_bad_input_is_a_sentence(models, dictionary):
    base, chat = models
    batches = list(conversation_batches(chat, transcripts(2)))
    with pytest.raises(InputError, match="'none' among them"):
        patch_kl(base, chat, dictionary, SITE, batches, [Condition("x", "", None)])
    with pytest.raises(InputError, match="inside a layer"):
        patch_kl(base, chat, dictionary, "layers.0.mlp_out", batches, wanted(dictionary))
    wrong = dictionary.replace({"sources": ("base", "chat", "third"), "source_widths": (8, 8, 16)})
    with pytest.raises(InputError, match="crosscoder over these two models"):
        patch_kl(base, chat, wrong, SITE, batches, wanted(dictionary))
    beyond = [Condition("none", "", nothing()), Condition("far", "", torch.tensor([99]))]
    with pytest.raises(InputError, match="beyond the 24"):
        patch_kl(base, chat, dictionary, SITE, batches, beyond)
    with pytest.raises(InputError, match="No conversation"):
        patch_kl(base, chat, dictionary, SITE, [], wanted(dictionary))
    with pytest.raises(InputError, match="chat template"):
        list(conversation_batches(model(0, template=None), transcripts(1)))
    with pytest.raises(InputError, match="not one has an answer"):
        list(conversation_batches(chat, [[{"role": "user", "content": "no"}]]))


def test_answers_are_the_models_own(models):
    _, chat = models
    assert turn_end(chat) == ("<|end|>",)
    talks = transcripts(5)
    own = answered(chat, talks, max_new_tokens=6, batch_size=2)
    assert 0 < len(own) <= 5
    asked = {turns[0]["content"] for turns in talks}
    for turns in own:
        assert [turn["role"] for turn in turns] == ["user", "assistant"]
        assert turns[0]["content"] in asked
        prompt = chat.chat_prompt(turns[:1])
        (reply,) = chat.generate([prompt], 6, stop=("<|end|>",))
        assert turns[1]["content"] == reply.strip()
    assert answered(chat, [[{"role": "user", "content": " ".join(["dog"] * 60)}]], max_new_tokens=6) == []


def test_a_cut_transcript_does_not_answer_beyond_its_end(models):
    _, chat = models
    talk = [[{"role": "user", "content": "the dog"}, {"role": "assistant", "content": " ".join(["yes"] * 20)}]]
    (batch,) = conversation_batches(chat, talk, context_length=12)
    assert batch.tokens.token_ids.shape[1] == 12
    assert int(batch.answer_index[0, -1]) == -1
    assert int(batch.answer_index.max()) == int((batch.answer_index >= 0).sum()) - 1
    assert not bool(batch.inside[0, 0])
    assert replace(batch).numbers.tolist() == [0]
