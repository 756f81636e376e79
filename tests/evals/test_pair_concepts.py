"""Concepts of the latents of two models: counts over tokens and exchanges against the same things the slow way."""

from __future__ import annotations

import pytest
import torch

from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.errors import InputError
from saeworks.evals.interpretation.pair_concepts import pair_concepts
from saeworks.models.language_model import load_language_model
from saeworks.world.corpus import documents
from saeworks.world.documents import Document

SITE = "layers.1.resid_post"


@pytest.fixture(scope="module")
def models():
    return load_language_model("world", device="cpu"), load_language_model("world:chat", device="cpu")


@pytest.fixture(scope="module")
def texts():
    return [*documents("chat", "validation", count=12), *documents("facts", "validation", count=4)]


@pytest.fixture(scope="module")
def dictionary():
    draw = torch.Generator().manual_seed(0)
    decoder = torch.randn(20, 512, generator=draw)
    cfg = DictionaryConfig(
        architecture="topk", d_in=512, d_sae=20, k=3, apply_b_dec_to_input=False, sources=("base", "chat")
    )
    return Dictionary(cfg, decoder.T.clone(), decoder, torch.zeros(20), torch.zeros(512))


def slow(models, dictionary, document):
    """Strengths ``[token, latent]`` and concepts of each token of one text, without the token that begins it."""
    batch = models[1].tokenize([document.text], 128)
    x = torch.cat([m.harvest(batch, [SITE])[SITE][0, 1:] for m in models], dim=1)
    places = models[1].tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    concepts = [{s.concept for s in document.spans if s.start < b and a < s.end} for a, b in places]
    return dictionary.encode(x), concepts, places


def test_tokens_and_exchanges_are_counted_exactly(models, dictionary, texts):
    by_token, by_exchange = pair_concepts(models, dictionary, (SITE, SITE), texts, least=4)
    assert by_exchange is not None
    found = [slow(models, dictionary, d) for d in texts]
    f = torch.cat([one[0] for one in found])
    assert by_token.events.token_count == len(f)
    assert by_token.events.counts().tolist() == (f > 0).sum(dim=0).tolist()
    for name in ("chat/template/assistant", "chat/request"):
        inside = sum(any(c == name or c.startswith(name + "/") for c in marks) for one in found for marks in one[1])
        assert int(by_token.members.counts[by_token.names.index(name)]) == inside
    # An exchange is what its concepts span; its strength is the largest of its tokens.
    most: list[float] = []
    for document, (codes, _, places) in zip(texts, found, strict=True):
        extents = {
            (s.start, s.end)
            for s in document.spans
            if s.concept.startswith("chat/") and not s.concept.startswith(("chat/template", "chat/request"))
        }
        for start, end in extents:
            rows = [i for i, (a, b) in enumerate(places) if a < end and start < b]
            most += codes[rows].amax(dim=0)[codes[rows].amax(dim=0) > 0].tolist()
    assert sorted(by_exchange.events.values.tolist()) == pytest.approx(sorted(most), rel=1e-4)
    assert all(name.startswith("chat/") for name in by_exchange.names)
    assert not any(name.startswith(("chat/template", "chat/request")) for name in by_exchange.names)


def test_a_latent_that_is_a_concept_is_found(models, texts):
    """A latent that reads nothing but the assistant's token, whose embedding tells it apart from all others."""
    base, chat = models
    batch = chat.tokenize([texts[0].text], 128)
    ids = batch.token_ids[0].tolist()
    marker = chat.tokenizer.convert_tokens_to_ids("<|assistant|>")
    site = "layers.0.resid_pre"
    x = torch.cat([m.harvest(batch, [site])[site][0] for m in (base, chat)], dim=1)
    direction = torch.nn.functional.normalize(x[ids.index(marker)], dim=0)
    weights = torch.stack([direction, -direction])
    cfg = DictionaryConfig(
        architecture="jumprelu", d_in=512, d_sae=2, apply_b_dec_to_input=False, sources=("base", "chat")
    )
    threshold = torch.full((2,), float(x[ids.index(marker)].norm()) * 0.99)
    made = Dictionary(cfg, weights.T.clone(), weights, torch.zeros(2), torch.zeros(512), threshold)
    by_token, _ = pair_concepts((base, chat), made, (site, site), texts, least=4)
    best, silent = by_token.best()
    assert best is not None
    assert best["concept"] == "chat/template/assistant"
    assert best["f1"] == 1.0
    assert silent is None
    (only, _) = by_token.best(["chat/template/user"])
    assert only is not None
    assert only["concept"] == "chat/template/user"
    assert only["f1"] == 0.0


def test_texts_without_concepts_are_refused(models, dictionary):
    with pytest.raises(InputError, match="documents with spans"):
        pair_concepts(models, dictionary, (SITE, SITE), [Document("The cat.")])
