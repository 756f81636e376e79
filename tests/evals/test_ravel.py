"""RAVEL: the check of completions, pairs, the upper layers of a model, and masks on models whose facts are planted."""

import math
import random
from types import SimpleNamespace

import pytest
import torch

from saeworks.errors import InputError
from saeworks.evals import ravel
from saeworks.evals.entities.ravel_masks import Items, answered, disentanglement, exchanged, greedy_matches, train_mask
from saeworks.evals.entities.ravel_prompts import (
    EntitySet,
    best_entities,
    completion_matches,
    draw_pairs,
    make_prompts,
    split_entities,
    world_entities,
)
from saeworks.evals.entities.ravel_results import Asked, AttributeScores, make_result, over_entities
from saeworks.evals.ravel import Config, draw_parts, entity_positions, tokenize_answered
from saeworks.models.language_model import LanguageModel
from saeworks.models.tokens import TokenBatch
from saeworks.models.upper_layers import UpperLayers

COLOURS, CARGOS = ["red", "blue"], ["tea", "salt"]
SHIPS = EntitySet(
    {"colour": ["the %s is"], "cargo": ["the %s has", "on the %s is"]},
    {f"ship{i}": {"colour": COLOURS[i % 2], "cargo": CARGOS[i // 2 % 2]} for i in range(16)},
)


@pytest.mark.parametrize(
    ("label", "completion", "good"),
    [
        ("France", " France. The", True),
        ("France", " Fran", True),
        ("France", "", False),
        ("France", ' "France"', False),
        ("France", " Germany", False),
        ("United Kingdom", " England and", True),
        ("United States", " the United States", True),
        ("South Korea", " Korea, a", True),
        ("North America", " the continent of North America", True),
        ("Mandarin", " Chinese", True),
        ("English, French", " english and", True),
        ("English, French", " french and", False),
    ],
)
def test_completions_are_checked_as_published(label, completion, good):
    assert completion_matches(label, completion) is good


def test_prompts_have_the_entity_at_its_place():
    prompts = make_prompts(EntitySet({"a": ["%s is in", "where is %s? In"]}, {"oslo": {"a": "Norway, Europe"}}))
    assert [p.text for p in prompts] == ["Oslo is in", "Where is oslo? In"]
    assert [p.text[p.start : p.end] for p in prompts] == ["Oslo", "oslo"]
    assert prompts[0].answer == " Norway"
    with pytest.raises(InputError, match="once"):
        make_prompts(EntitySet({"a": ["no slot"]}, {"x": {"a": "y"}}))
    with pytest.raises(InputError, match="no value"):
        make_prompts(EntitySet({"a": ["%s"]}, {"x": {}}))


def test_pairs_differ_in_the_value_and_kinds_are_as_many():
    prompts = make_prompts(SHIPS)
    pairs = draw_pairs(prompts, range(len(prompts)), "cargo", 6, random.Random(0))
    assert sum(p.cause for p in pairs) == 6 == sum(not p.cause for p in pairs)
    for pair in pairs:
        base, source = prompts[pair.base], prompts[pair.source]
        assert base.attribute == source.attribute
        assert base.value != source.value
        assert pair.cause == (base.attribute == "cargo")


def test_corrected_keeps_entities_apart_and_compat_does_not():
    prompts = make_prompts(SHIPS)
    overlaps = {"compat": 0, "corrected": 0}
    for mode in overlaps:
        for seed in range(3):
            config = Config(mode=mode, num_pairs_per_attribute=16, llm_batch_size=4)
            train, test = draw_parts(prompts, "cargo", seed, config)
            assert train
            assert test
            sides = [{prompts[i].entity for pair in part for i in (pair.base, pair.source)} for part in (train, test)]
            overlaps[mode] += len(sides[0] & sides[1])
            if mode == "compat":
                assert len(test) % 4 == 0
    assert overlaps["corrected"] == 0
    assert overlaps["compat"] > 0
    first, second = split_entities(prompts, 0.7, 0)
    assert len(first) == 11
    assert first | second == set(SHIPS.entities)


def test_the_best_known_entities_are_kept():
    prompts = make_prompts(SHIPS)
    right = [p.entity != "ship0" and not (p.entity == "ship1" and p.attribute == "cargo") for p in prompts]
    kept = {prompts[i].entity for i in best_entities(prompts, right, 14)}
    assert kept == {f"ship{i}" for i in range(2, 16)}


def test_the_world_has_two_types_of_entities():
    found = world_entities(("ship", "city"))
    assert set(found) == {"ship", "city"}
    for entities in found.values():
        assert len(entities.templates) == 4
        assert all(len(t) >= 3 for t in entities.templates.values())
    assert len(found["ship"].entities) == 64


@pytest.mark.parametrize(
    "site", ["layers.0.resid_pre", "layers.0.resid_post", "layers.1.resid_post", "layers.1.mlp_out"]
)
def test_upper_layers_continue_to_the_same_bits(model, site):
    upper = UpperLayers(model, site)
    batch = model.tokenize(["the dog runs", "a red house sees the cat"], 16)
    hidden = model.harvest(batch, [upper.cached_site])[upper.cached_site]
    with torch.no_grad():
        assert torch.equal(upper.logits(hidden, batch), model.logits(batch))
        changed = upper.logits(hidden, batch, lambda x: x + 1)
    assert not torch.allclose(changed, model.logits(batch))
    assert torch.equal(upper.logits(hidden, batch), model.logits(batch))  # nothing of it stays behind


def test_upper_layers_of_another_architecture(model):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=len(model.tokenizer), n_embd=16, n_layer=3, n_head=2, n_positions=32)
    other = LanguageModel(GPT2LMHeadModel(config), model.tokenizer, name="gpt2", head="causal")
    batch = other.tokenize(["the dog runs", "a red house sees the cat"], 16)
    for site in ("layers.0.resid_pre", "layers.1.resid_post", "layers.2.attn_out"):
        upper = UpperLayers(other, site)
        hidden = other.harvest(batch, [upper.cached_site])[upper.cached_site]
        with torch.no_grad():
            assert torch.equal(upper.logits(hidden, batch), other.logits(batch))


class Linear:
    """The hand-made upper part: logits of the answer read linearly from what stands at position 0.

    Coordinates 0-1 hold the colour, 2-3 the cargo; tokens 0-3 are the four values. Token 9 asks for the colour,
    token 8 for the cargo, at position 1; the answer follows at position 2.
    """

    model = SimpleNamespace(device=torch.device("cpu"))

    def logits(self, hidden, batch, edit):
        x = edit(hidden)[:, 0]
        colour = (batch.token_ids[:, 1] == 9).float()[:, None]
        allowed = torch.cat([colour, colour, 1 - colour, 1 - colour], dim=1)
        answer = 5 * x[:, :4] - 100 * (1 - allowed)
        out = torch.full((len(x), 3, 10), -1e3)
        out[:, 1, :4] = answer
        return out


def planted_items(count, seed):
    """Cause: the colour asked; isolation: the cargo asked."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(2, (2, 2, count), generator=g)  # base or source, colour or cargo
    values[1] = 1 - values[0]
    x = torch.cat([torch.nn.functional.one_hot(v, 2).float() for v in values.flatten(0, 1)], dim=1)
    base, source = x[:, :4], x[:, 4:]
    cause = torch.arange(count) % 2 == 0
    wanted = torch.where(cause, values[1, 0], 2 + values[0, 1])
    ids = torch.stack([torch.zeros(count, dtype=torch.int64), torch.where(cause, 9, 8), wanted], dim=1)
    ones = torch.ones_like(ids, dtype=torch.bool)
    hidden = torch.zeros(count, 3, 4)
    hidden[:, 0] = base
    return Items(TokenBatch(ids, ones, ones), hidden, base, source, torch.zeros(count).long(), [[2]] * count, cause)


class Rotated:
    """A dictionary with orthonormal rows and no error; ``scale`` moves length from latents to rows."""

    def __init__(self, rotation, scale=1.0):
        self.W_enc, self.W_dec = rotation.T / scale, rotation * scale
        self.b_enc, self.b_dec = torch.zeros(len(rotation)), torch.zeros(4)
        self.cfg = SimpleNamespace(metadata={})

    def encode(self, x):
        return x @ self.W_enc

    def decode(self, f):
        return f @ self.W_dec


def mask_and_scores(dictionary, **changes):
    settings = {"epochs": 2, "batch_size": 8, "rate": 1e-3, "drop_incomplete": False} | changes
    train, test = planted_items(80, 0), planted_items(40, 1)
    order = torch.Generator().manual_seed(0)
    mask = train_mask(dictionary, Linear(), train, order=order, **settings)
    gate = (mask > 0).float()
    right = answered(Linear(), test, lambda part: exchanged(dictionary, part.base, part.source, gate), 16)
    return mask, disentanglement(right, test.cause)


def test_latents_that_are_the_attributes_are_told_apart():
    mask, scores = mask_and_scores(Rotated(torch.eye(4)))
    assert (mask > 0).tolist() == [True, True, False, False]
    assert scores == (1.0, 1.0, 1.0)


def test_latents_that_mix_the_attributes_cannot_be():
    half = 0.5**0.5
    mixed = torch.tensor([[half, 0, half, 0], [0, half, 0, half], [half, 0, -half, 0], [0, half, 0, -half]])
    _, scores = mask_and_scores(Rotated(mixed))
    assert scores[2] < 0.8


def test_scores_do_not_depend_on_how_scale_is_divided():
    for scale in (0.2, 5.0):
        mask, scores = mask_and_scores(Rotated(torch.eye(4), scale))
        assert (mask > 0).tolist() == [True, True, False, False]
        assert scores == (1.0, 1.0, 1.0)


def test_latents_that_are_silent_on_both_sides_keep_their_mask():
    wide = Rotated(torch.cat([torch.eye(4), torch.zeros(2, 4)]))
    mask, _ = mask_and_scores(wide)
    assert mask[4:].tolist() == [0, 0]


def test_incomplete_batches_are_dropped_in_compat():
    train = planted_items(7, 0)
    order = torch.Generator().manual_seed(0)
    dictionary = Rotated(torch.eye(4))
    assert train_mask(dictionary, Linear(), train, 2, 8, 1e-3, order, True).abs().max() == 0
    assert train_mask(dictionary, Linear(), train, 2, 8, 1e-3, order, False).abs().max() > 0


def test_exchange_takes_all_none_or_some():
    base, source = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    dictionary = Rotated(torch.eye(4))
    assert torch.equal(exchanged(dictionary, base, source, torch.zeros(4)), base)
    assert torch.allclose(exchanged(dictionary, base, source, torch.ones(4)), source)
    some = exchanged(dictionary, base, source, torch.tensor([1.0, 0, 0, 1]))
    assert torch.allclose(some, torch.stack([source[:, 0], base[:, 1], base[:, 2], source[:, 3]], dim=1))


def test_every_token_of_the_answer_must_be_the_likeliest():
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]])
    logits = torch.zeros(2, 4, 6)
    logits[:, 1, 3] = logits[:, 2, 4] = 1.0
    ones = torch.ones_like(ids, dtype=torch.bool)
    assert greedy_matches(logits, TokenBatch(ids, ones, ones), [[2, 3], [2, 3]]).tolist() == [True, False]
    assert greedy_matches(logits, TokenBatch(ids, ones, ones), [[2], [2]]).tolist() == [True, True]


def test_disentanglement_is_the_mean_of_both():
    right = torch.tensor([True, True, False, True])
    assert disentanglement(right, torch.tensor([True, True, True, False])) == pytest.approx((2 / 3, 1, 5 / 6))
    assert math.isnan(disentanglement(right, torch.ones(4, dtype=torch.bool))[1])


def test_the_entity_is_found_by_characters_and_in_compat_by_counting(model):
    prompts = make_prompts(EntitySet({"a": ["the %s sees a", "big %s"]}, {"red dog": {"a": "cat"}}))
    batch = model.tokenize([p.text.lower() for p in prompts], 16)
    assert entity_positions(model, batch, prompts, "corrected").tolist() == [3, 3]
    # The tokenizer adds a BOS token to the text after the entity, which makes the count right ...
    assert entity_positions(model, batch, prompts, "compat").tolist() == [3, 3]
    # ... and without one it is one token too late.
    bare = SimpleNamespace(
        name="bare", tokenizer=lambda text: {"input_ids": model.tokenizer(text, add_special_tokens=False)["input_ids"]}
    )
    assert entity_positions(bare, batch, prompts[:1], "compat").tolist()[0] == 4
    with pytest.raises(InputError, match="raise context_length"):
        entity_positions(model, model.tokenize(["the red dog"], 3), prompts[:1], "corrected")
    _, places = tokenize_answered(model, [("the red", " dog runs")], 16)
    assert places == [[3, 4]]


def scores_of(kind, attribute, seed, right):
    right = torch.tensor([right, [True] * 4, [False] * 4])
    return AttributeScores(kind, attribute, seed, right, torch.tensor([True, True, False, False]), 3, list("abcd"))


def test_means_go_over_seeds_attributes_and_entities(make_dictionary):
    scores = [
        scores_of("ship", "colour", 0, [True, True, True, True]),
        scores_of("ship", "cargo", 0, [False, False, True, True]),
        scores_of("city", "country", 0, [True, False, True, False]),
    ]
    records = [s.record() for s in scores]
    assert over_entities(records, "cause_score") == pytest.approx((0.5 + 0.5) / 2)
    assert over_entities(records, "isolation_score") == pytest.approx((1 + 0.5) / 2)
    result = make_result("d", make_dictionary(), scores, Asked({"ship": 1.0}, ["x"]), "ravel", "x/1", Config(), {})
    assert result.metric("ravel", "disentanglement_score") == pytest.approx(0.625)
    assert result.metric("context", "all_exchanged_cause") == 1
    assert result.eval_result_unstructured["ship_results"]["ship_cargo"]["cause_score"] == 0
    low, high = result.ci95["ravel.disentanglement_score"]
    assert low <= 0.625 <= high
    assert {"skipped": ["x"]} in result.eval_result_details
    assert not any("note" in row for row in result.eval_result_details)


def test_a_site_that_is_no_longer_read_is_said(make_dictionary):
    scores = scores_of("ship", "colour", 0, [False, False, True, True])
    scores.right[1, :2] = False
    result = make_result("d", make_dictionary(), [scores], Asked({}), "ravel", "x/1", Config(), {})
    assert "earlier layer" in result.eval_result_details[-1]["note"]


@pytest.fixture(scope="module")
def sailor():
    """A model that answers from the ship's own token: two heads find the ship, one coordinate per value."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "The", "On", "the", "is", "has", *SHIPS.entities, *COLOURS, *CARGOS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    return LanguageModel(trained(fast), fast, name="sailor", head="causal")


def trained(tokenizer):
    """A small Llama taught the ships by heart."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    module = LlamaForCausalLM(config)
    texts = [p.text + p.answer for p in make_prompts(SHIPS)]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    for _ in range(120):
        last = batch["attention_mask"].sum(1) - 1
        logits = module(**batch).logits[torch.arange(len(texts)), last - 1]
        loss = torch.nn.functional.cross_entropy(logits, batch["input_ids"][torch.arange(len(texts)), last])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module


@pytest.mark.parametrize("mode", ["compat", "corrected"])
def test_patching_every_coordinate_of_the_embedding_exchanges_every_attribute(sailor, mode):
    """At the embedding a ship is one vector: exchanging all of it changes all answers, exchanging nothing none."""
    from saeworks.evals.controls import identity

    config = Config(mode=mode, seeds=(0, 1), num_pairs_per_attribute=16, llm_batch_size=4, resamples=40)
    site = "layers.0.resid_pre" if mode == "corrected" else "layers.0.resid_post"
    dictionaries = {"identity": identity(32, site)}
    result = ravel.run(dictionaries, sailor, {"ship": SHIPS}, config)["identity"]
    assert result.metric("context", "ship_prompts_answered") == 1
    assert result.metric("context", "none_exchanged_isolation") == 1
    assert result.metric("context", "none_exchanged_cause") == 0
    if mode == "corrected":
        assert result.metric("context", "all_exchanged_cause") == 1
    assert 0 <= result.metric("ravel", "disentanglement_score") <= 1
    again = ravel.run(dictionaries, sailor, {"ship": SHIPS}, config)["identity"]
    assert again.eval_result_details == result.eval_result_details


def test_compat_counts_pairs_with_equal_first_tokens_as_isolation(sailor):
    """Both cargoes begin with the same word: nothing in the first token tells a cause pair from an isolation pair."""
    same = EntitySet({"cargo": ["the %s has"]}, {e: {"cargo": v["cargo"]} for e, v in SHIPS.entities.items()})
    prompts = make_prompts(same)
    asked = ravel._Asked(
        prompts,
        [p.answer for p in prompts],
        torch.zeros(len(prompts), dtype=torch.int64),
        torch.ones(len(prompts), dtype=torch.int64),
        torch.ones(len(prompts), dtype=torch.int64),
        {"layers.0.resid_pre": torch.zeros(len(prompts), 32)},
    )
    pairs = draw_pairs(prompts, range(len(prompts)), "cargo", 4, random.Random(0))
    upper = UpperLayers(sailor, "layers.0.resid_pre")
    counted = {
        mode: int(ravel._items(upper, asked, pairs, Config(mode=mode)).cause.sum()) for mode in ("compat", "corrected")
    }
    assert counted == {"compat": 0, "corrected": 4}


def test_a_model_that_knows_nothing_is_refused(sailor):
    wrong = EntitySet(SHIPS.templates, {e: {"colour": "tea", "cargo": "red"} for e in SHIPS.entities})
    from saeworks.evals.controls import identity

    with pytest.raises(InputError, match="knows 0 attributes"):
        ravel.run({"d": identity(32, "layers.0.resid_pre")}, sailor, {"ship": wrong}, Config())


def test_a_model_without_a_next_token_is_refused(headless_model):
    if not headless_model.is_causal:
        with pytest.raises(InputError, match="next token"):
            ravel.default_data(headless_model, Config())
    with pytest.raises(InputError, match="belongs to no layer"):
        UpperLayers(headless_model, "embed_tokens")
    assert ravel.data_hashes({"ship": SHIPS}, Config()) == ravel.data_hashes({"ship": SHIPS}, Config(seeds=(5,)))
