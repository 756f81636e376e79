"""Steering: what is added where, and that the texts side by side are those of the model with and without it."""

from __future__ import annotations

import pytest
import torch
from tiny_pair import SITE, crosscoder, model, transcripts  # pyright: ignore

from saeworks.diffing.conversations import turn_end
from saeworks.diffing.steering import Project, Push, replies, steer, vector_of
from saeworks.errors import InputError


@pytest.fixture(scope="module")
def chat():
    return model(1)


def requests(count: int = 5):
    return [turns[:1] for turns in transcripts(count)]


def test_push_leaves_the_first_token_alone():
    x = torch.zeros(2, 4, 3)
    vector = torch.tensor([1.0, 2.0, 3.0])
    pushed = Push(SITE, vector).edit(x)
    assert pushed[:, 0].abs().sum() == 0
    assert torch.equal(pushed[:, 1:], vector.expand(2, 3, 3))
    one = torch.zeros(2, 1, 3)
    assert torch.equal(Push(SITE, vector).edit(one), vector.expand(2, 1, 3))
    assert torch.equal(Push(SITE, vector, "prompt").edit(one), one)


def test_a_push_at_the_last_token_leaves_all_others_alone():
    x, vector = torch.zeros(2, 4, 3), torch.tensor([1.0, 2.0, 3.0])
    pushed = Push(SITE, vector, "last").edit(x)
    assert pushed[:, :3].abs().sum() == 0
    assert torch.equal(pushed[:, 3], vector.expand(2, 3))
    one = torch.zeros(2, 1, 3)
    assert torch.equal(Push(SITE, vector, "last").edit(one), one)


def test_project_sets_the_level_along_the_direction():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 8, generator=draw)
    unit = torch.nn.functional.normalize(torch.randn(8, generator=draw), dim=0)
    out = Project(SITE, unit, 0.25).edit(x)
    assert torch.equal(out[:, 0], x[:, 0])
    assert torch.allclose(out[:, 1:] @ unit, torch.full((2, 4), 0.25), atol=1e-5)
    across = torch.eye(8) - unit[:, None] @ unit[None]
    assert torch.allclose(out @ across, x @ across, atol=1e-5)


def test_the_vector_is_what_the_latent_writes_at_its_strongest():
    dictionary = crosscoder()
    f, latent = 2.5, 4
    largest = f * float(dictionary.decoder_norms()[:, latent].sum())
    assert torch.allclose(vector_of(dictionary, latent, largest), f * dictionary.W_dec[latent, 16:], atol=1e-5)
    assert torch.allclose(vector_of(dictionary, latent, largest, 0), f * dictionary.W_dec[latent, :16], atol=1e-5)


def test_texts_stand_side_by_side(chat):
    vector = torch.randn(16, generator=torch.Generator().manual_seed(0)) * 20
    asked = requests()
    found = steer(chat, SITE, vector, asked, (0.0, 1.0), max_new_tokens=5)
    assert [one.request for one in found] == [turns[-1]["content"] for turns in asked]
    assert all(one.by_strength[0.0] == one.plain for one in found)
    assert any(one.by_strength[1.0] != one.plain for one in found)
    for one, turns in zip(found, asked, strict=True):
        (alone,) = chat.generate([chat.chat_prompt(turns)], 5, [Push(SITE, vector)], stop=turn_end(chat))
        assert one.by_strength[1.0] == alone.strip()


def test_requests_of_different_length_are_answered_as_if_alone(chat):
    asked = requests(6)
    assert replies(chat, asked, max_new_tokens=4) == [replies(chat, [one], max_new_tokens=4)[0] for one in asked]
    assert replies(chat, []) == []


def test_bad_input_is_a_sentence(chat):
    with pytest.raises(InputError, match="none was given"):
        steer(chat, SITE, torch.zeros(16), [])
    with pytest.raises(InputError, match="of width 16"):
        steer(chat, SITE, torch.zeros(8), requests(1))
