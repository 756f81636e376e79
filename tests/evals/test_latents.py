"""The latents eval on texts whose concepts are known."""

import torch

from saeworks.evals import latents
from saeworks.evals.shared.batches import DocumentBatch
from saeworks.models.tokens import TokenBatch
from saeworks.world.documents import Document, Span

SMALL = latents.Config(tokens=400, batch_size=8, context_length=32, show=6, examples=3, window=5, min_concept_tokens=3)


def marked(make_sentences):
    out = []
    for d in make_sentences(80, 3):
        spans, at = [], 0
        for word in d.text.split():
            if word in ("dog", "cat"):
                spans.append(Span(at, at + len(word), f"taxonomy/animal/{word}"))
            at += len(word) + 1
        out.append(Document(text=d.text, spans=tuple(spans), id=d.id))
    return out


def word_dictionary(model, make_dictionary, words=("dog", "cat")):
    """Latent i fires on words[i] and nothing else: dual vectors of the embedding table, a bias below zero."""
    table = model.module.get_input_embeddings().weight.float()
    dual = torch.linalg.pinv(torch.cat([table[4:], torch.ones(len(table) - 4, 1)], 1))[:-1]
    ids = [model.tokenizer.convert_tokens_to_ids(w) - 4 for w in words]
    dictionary = make_dictionary(width=8, k=1)
    W_enc = torch.zeros(16, 8)
    for i, token in enumerate(ids):
        W_enc[:, i] = dual[:, token]
    return dictionary.replace(W_enc=W_enc, metadata={"site": "layers.0.resid_pre"})


def test_the_latent_of_a_word_is_matched_to_its_concept(model, make_dictionary, make_source, make_sentences):
    dictionary = word_dictionary(model, make_dictionary)
    result = latents.run({"d": dictionary}, model, make_source(marked(make_sentences)), SMALL)["d"]
    names, arrays = result.eval_result_unstructured["concepts"], result.arrays()
    assert names[arrays["concept"][0]] == "taxonomy/animal/dog"
    assert names[arrays["concept"][1]] == "taxonomy/animal/cat"
    assert arrays["f1"][0] > 0.9
    assert result.metric("concepts", "mean_best_latent_f1") > 0.5
    low, high = result.ci95["concepts.mean_best_latent_f1"]
    assert low <= result.metric("concepts", "mean_best_latent_f1") <= high
    first = result.eval_result_unstructured["shown"][0]
    for context in first["contexts"]:
        peak = context["peak"]
        assert context["tokens"][peak].strip() in ("dog", "cat")
        assert context["activations"][peak] == max(context["activations"])
        assert len(context["tokens"]) <= 5
    row = next(r for r in result.eval_result_unstructured["hierarchy"] if r["parent"] == "taxonomy/animal")
    assert {c["child"] for c in row["children"]} == {"taxonomy/animal/dog", "taxonomy/animal/cat"}
    assert sum(c["hole"] for c in row["children"]) == 1
    assert sum(c["absorbed"] for c in row["children"]) == 1


def test_density_counts_tokens_exactly(model, make_dictionary, make_source, make_sentences):
    dictionary, documents = make_dictionary(k=4), make_sentences(20)
    config = SMALL.model_copy(update={"tokens": 10_000})
    result = latents.run({"d": dictionary}, model, make_source(documents), config)["d"]
    batch = model.tokenize([d.text for d in documents], 32)
    x = model.harvest(batch, ["layers.0.resid_post"])["layers.0.resid_post"][batch.keep]
    f = dictionary.encode(x)
    assert result.n == len(x)
    assert torch.allclose(torch.tensor(result.arrays()["density"]), (f > 0).float().mean(0), atol=1e-6)
    assert torch.allclose(torch.tensor(result.arrays()["max_activation"]), f.amax(0), atol=1e-4)


def test_texts_without_spans_have_no_concepts_but_contexts(model, make_dictionary, make_source, make_sentences):
    result = latents.run({"d": make_dictionary()}, model, make_source(make_sentences(30)), SMALL)["d"]
    assert result.metric("concepts", "mean_best_latent_f1") is None
    assert len(result.eval_result_unstructured["shown"]) == 6
    assert all(s["concept"] is None and s["contexts"] for s in result.eval_result_unstructured["shown"])


def test_tokens_that_share_a_character_show_it_once(model):
    # Byte-level tokenizers give every piece of a character the span of the whole character.
    spans = [(0, 0), (0, 1), (1, 2), (1, 2), (1, 2), (3, 5)]
    keep = torch.tensor([[False] + [True] * 5])
    tokens = TokenBatch(torch.arange(6)[None], torch.ones(1, 6, dtype=torch.bool), keep, [spans])
    sample = latents._Sample()
    sample.add(DocumentBatch(tokens, [Document(text="a🐕 is")], [0]), model)
    assert sample.words == ["a", "🐕", "", "", " is"]
