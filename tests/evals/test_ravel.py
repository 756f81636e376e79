"""RAVEL: the check of completions, pairs, the upper layers of a model, and masks on models whose facts are planted."""

import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from saeworks.errors import InputError
from saeworks.evals import ravel
from saeworks.evals.entities.aligned_axes import along_axes, nearest_rows, train_axes
from saeworks.evals.entities.ravel_cache import (
    Asked,
    BaseRows,
    Reading,
    entity_positions,
    read_entities,
    subset,
    tokenize_answered,
)
from saeworks.evals.entities.ravel_masks import (
    Items,
    MaskTraining,
    answered,
    disentanglement,
    exchanged,
    greedy_matches,
    patched_logits,
    train_mask,
)
from saeworks.evals.entities.ravel_prompts import (
    EntitySet,
    Pair,
    best_entities,
    completion_matches,
    draw_pairs,
    make_prompts,
    split_entities,
    world_entities,
)
from saeworks.evals.entities.ravel_results import AttributeScores, Knowledge, SiteScores, make_result, over_entities
from saeworks.evals.entities.read_sites import SiteLadder, deepest_read, spread
from saeworks.evals.ravel import Config, draw_parts
from saeworks.models.language_model import LanguageModel
from saeworks.models.tokens import TokenBatch
from saeworks.models.upper_layers import UpperLayers

READING = {mode: Reading(mode, tokens, 16, 8, 6) for mode, tokens in (("compat", "last"), ("corrected", "all"))}
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
    places = torch.zeros(count, 1, dtype=torch.int64)
    return Items(TokenBatch(ids, ones, ones), hidden, base[:, None], source[:, None], places, [[2]] * count, cause)


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
    train, test = planted_items(80, 0), planted_items(40, 1)
    order = torch.Generator().manual_seed(0)
    mask = train_mask(dictionary, Linear(), train, MaskTraining(**changes), order)
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


def test_scores_do_not_depend_on_the_order_of_latents():
    order = [2, 0, 3, 1]
    mask, scores = mask_and_scores(Rotated(torch.eye(4)[order]))
    assert (mask > 0).tolist() == [i < 2 for i in order]
    assert scores == (1.0, 1.0, 1.0)


def test_latents_that_are_silent_on_both_sides_keep_their_mask():
    wide = Rotated(torch.cat([torch.eye(4), torch.zeros(2, 4)]))
    mask, _ = mask_and_scores(wide)
    assert mask[4:].tolist() == [0, 0]


def test_incomplete_batches_are_dropped_in_compat():
    train = planted_items(7, 0)
    order = torch.Generator().manual_seed(0)
    dictionary = Rotated(torch.eye(4))
    assert train_mask(dictionary, Linear(), train, MaskTraining(drop_incomplete=True), order).abs().max() == 0
    assert train_mask(dictionary, Linear(), train, MaskTraining(), order).abs().max() > 0


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
    assert entity_positions(model, batch, prompts, READING["corrected"]).tolist() == [[3, 2], [3, 2]]
    last = replace(READING["corrected"], entity_tokens="last")
    assert entity_positions(model, batch, prompts, last).tolist() == [[3], [3]]
    # The tokenizer adds a BOS token to the text after the entity, which makes the count right ...
    assert entity_positions(model, batch, prompts, READING["compat"]).tolist() == [[3], [3]]
    # ... and without one it is one token too late.
    bare = SimpleNamespace(
        name="bare", tokenizer=lambda text: {"input_ids": model.tokenizer(text, add_special_tokens=False)["input_ids"]}
    )
    assert entity_positions(bare, batch, prompts[:1], READING["compat"]).tolist()[0] == [4]
    with pytest.raises(InputError, match="raise context_length"):
        entity_positions(model, model.tokenize(["the red dog"], 3), prompts[:1], READING["corrected"])
    _, places = tokenize_answered(model, [("the red", " dog runs")], READING["corrected"])
    assert places == [[3, 4]]


def test_names_of_different_length_are_laid_upon_each_other_at_their_ends(model):
    prompts = make_prompts(EntitySet({"a": ["the %s sees a"]}, {"red dog": {"a": "cat"}, "house": {"a": "tree"}}))
    prompts = [replace(p, text=p.text.lower()) for p in prompts]
    site = "layers.0.resid_post"
    asked = read_entities(model, prompts, [p.answer for p in prompts], [site], READING["corrected"])
    assert asked.entity.tolist() == [[3, 2], [2, -1]]
    alone = model.harvest(model.tokenize([prompts[0].text], 16), [site])[site][0]
    assert torch.allclose(asked.at_entity[site][0], alone[[3, 2]], atol=1e-5)
    assert asked.at_entity[site][1, 1].abs().max() == 0
    pairs = [Pair(0, 1, True), Pair(1, 0, True), Pair(0, 0, False)]
    upper = UpperLayers(model, site)
    items = BaseRows(model, asked, pairs, [upper], READING["corrected"]).items(upper, pairs)
    assert items.entity.tolist() == [[3, -1], [2, -1], [3, 2]]
    with torch.no_grad():
        whole = patched_logits(upper, items, items.base)
        assert torch.allclose(whole, upper.logits(items.hidden, items.tokens), atol=1e-5)


@pytest.mark.parametrize("site", ["layers.0.resid_post", "layers.1.mlp_out"])
def test_an_exchange_above_cached_layers_is_that_of_the_whole_model(model, site):
    """What the upper layers say of cached rows is what the model says when it is run from its first layer and the
    entity's tokens are replaced on the way."""
    from saeworks.models.interventions import Splice

    prompts = make_prompts(EntitySet({"a": ["the %s sees a"]}, {"red dog": {"a": "cat"}, "big house": {"a": "tree"}}))
    prompts = [replace(p, text=p.text.lower()) for p in prompts]
    asked = read_entities(model, prompts, [p.answer for p in prompts], [site], READING["corrected"])
    pairs = [Pair(0, 1, True), Pair(1, 0, False)]
    upper = UpperLayers(model, site)
    items = BaseRows(model, asked, pairs, [upper], READING["corrected"]).items(upper, pairs)

    def replaced(x):
        out = x.clone()
        for row, places in enumerate(items.entity.tolist()):
            for place, position in enumerate(places):
                out[row, position] = items.source[row, place]
        return out

    with torch.no_grad():
        found = patched_logits(upper, items, items.source)
        whole = model.logits(items.tokens, [Splice(site, replaced, where="all")])
        assert torch.allclose(found, whole, atol=1e-5)
        assert not torch.allclose(whole, model.logits(items.tokens), atol=1e-2)


def test_compat_reads_the_layers_output_whatever_the_dictionary_reads(model, make_dictionary):
    dictionaries = {"d": make_dictionary(site="layers.1.mlp_out")}
    assert ravel.read_sites(dictionaries, model, Config()) == {"d": "layers.1.mlp_out"}
    assert ravel.read_sites(dictionaries, model, Config(mode="compat")) == {"d": "layers.1.resid_post"}


def test_base_rows_are_those_of_each_pair_by_itself(model):
    """What is shared between pairs, attributes and seeds is what each would have had alone."""
    words = ["dog", "cat", "house", "tree"]
    prompts = make_prompts(EntitySet({"a": ["the %s sees a", "big %s"]}, {w: {"a": w} for w in words}))
    prompts = [replace(p, text=p.text.lower()) for p in prompts]
    site = "layers.1.mlp_out"
    asked = read_entities(model, prompts, [p.answer for p in prompts], [site], READING["corrected"])
    pairs = [Pair(0, 1, True), Pair(0, 2, False), Pair(5, 1, True), Pair(0, 3, False), Pair(0, 1, True)]
    upper = UpperLayers(model, site)
    rows = BaseRows(model, asked, pairs, [upper], READING["corrected"])
    assert len(rows._hidden[upper.cached_site]) == 3  # the second, fourth and fifth repeat earlier rows in part
    together = rows.items(upper, pairs)
    for i, pair in enumerate(pairs):
        alone = BaseRows(model, asked, [pair], [upper], READING["corrected"]).items(upper, [pair])
        row = together.part(torch.tensor([i]))
        assert row.tokens.token_ids.tolist() == alone.tokens.token_ids.tolist()
        assert torch.allclose(row.hidden, alone.hidden, atol=1e-5)
        assert row.answer == alone.answer
        assert torch.equal(row.source, alone.source)
    prompts_left, answers, renamed = subset(asked, pairs[2:3])
    assert [prompts_left[renamed[0].base], prompts_left[renamed[0].source]] == [prompts[5], prompts[1]]
    assert answers[renamed[0].source] == asked.answers[1]


def test_axes_find_a_subspace_that_no_coordinate_is():
    """Attributes lie along mixed coordinates: a mask over coordinates cannot part them, trained axes can."""
    half = 0.5**0.5
    mixed = torch.tensor([[half, 0, half, 0], [0, half, 0, half], [half, 0, -half, 0], [0, half, 0, -half]])

    class Turned(Linear):
        def logits(self, hidden, batch, edit):
            return Linear().logits(None, batch, lambda _: edit(hidden) @ mixed)

    def turned(items):
        return replace(items, **{name: getattr(items, name) @ mixed.T for name in ("hidden", "base", "source")})

    train, test = turned(planted_items(160, 0)), turned(planted_items(40, 1))
    order = torch.Generator().manual_seed(0)
    training = MaskTraining(epochs=10, batch_size=8, rate=1e-2)
    aligned = train_axes(Turned(), train, training, order)
    assert torch.allclose(aligned.axes @ aligned.axes.T, torch.eye(4), atol=1e-5)
    assert 0 < aligned.count < 4
    assert disentanglement(answered(Turned(), test, aligned.exchange, 16), test.cause)[2] > 0.9
    plain = train_mask(Rotated(torch.eye(4)), Turned(), train, training, order)
    gate = (plain > 0).float()
    right = answered(Turned(), test, lambda part: exchanged(Rotated(torch.eye(4)), part.base, part.source, gate), 16)
    assert disentanglement(right, test.cause)[2] < 0.9


def test_exchange_along_axes():
    draw = torch.Generator().manual_seed(0)
    base, source = torch.randn(2, 3, 2, 5, generator=draw)
    axes = nearest_rows(torch.randn(5, 5, generator=draw))
    assert torch.allclose(axes @ axes.T, torch.eye(5), atol=1e-5)
    assert torch.allclose(along_axes(base, source, axes, torch.ones(5)), source, atol=1e-5)
    assert torch.equal(along_axes(base, source, axes, torch.zeros(5)), base)
    flipped = axes * torch.tensor([1.0, -1, 1, -1, -1])[:, None]
    gate = torch.tensor([1.0, 1, 0, 1, 0])
    assert torch.allclose(along_axes(base, source, axes, gate), along_axes(base, source, flipped, gate), atol=1e-5)
    near = torch.eye(5) + 0.01 * torch.randn(5, 5, generator=draw)
    assert (nearest_rows(near).diagonal() > 0.9).all()


def scores_of(kind, attribute, seed, right):
    cause, everything, nothing = torch.tensor([True, True, False, False]), torch.ones(4).bool(), torch.zeros(4).bool()
    bounds = SiteScores(cause.clone(), ~cause, everything, 5)
    return AttributeScores(
        kind, attribute, seed, torch.stack([torch.tensor(right), everything, nothing]), cause, 3, list("abcd"), bounds
    )


def test_means_go_over_seeds_attributes_and_entities(make_dictionary):
    scores = [
        scores_of("ship", "colour", 0, [True, True, True, True]),
        scores_of("ship", "cargo", 0, [False, False, True, True]),
        scores_of("city", "country", 0, [True, False, True, False]),
    ]
    records = [s.record() for s in scores]
    assert over_entities(records, "cause_score") == pytest.approx((0.5 + 0.5) / 2)
    assert over_entities(records, "isolation_score") == pytest.approx((1 + 0.5) / 2)
    assert over_entities([records[0], {"entity": "ship", "attribute": "cargo"}], "cause_score") == 1.0
    result = make_result(
        "d", make_dictionary(), scores, Knowledge({"ship": 1.0}, ["x"]), {}, "ravel", "x/1", Config(), {}
    )
    assert result.metric("ravel", "disentanglement_score") == pytest.approx(0.625)
    context = {"all_exchanged_cause": 1, "full_patch_cause": 1, "full_patch_isolation": 0, "mdas_axes_exchanged": 5}
    context |= {"no_patch_cause": 0, "no_patch_isolation": 1, "mdas_disentanglement_score": 1}
    assert {name: result.metric("context", name) for name in context} == context
    assert result.eval_result_unstructured["ship_results"]["ship_cargo"]["cause_score"] == 0
    low, high = result.ci95["ravel.disentanglement_score"]
    assert low <= 0.625 <= high
    assert {"skipped": ["x"]} in result.eval_result_details
    assert not any("note" in row for row in result.eval_result_details)


def test_a_site_that_is_no_longer_read_is_said(make_dictionary):
    def note(full, all_latents):
        scores = scores_of("ship", "colour", 0, [False, False, True, True])
        scores.right[1, :2] = all_latents
        scores.bounds.full[:2] = full
        ladder = SiteLadder({"layers.0.resid_post": [0.9], "layers.1.resid_post": [0.1]})
        unread = ladder.record("layers.1.resid_post", 0.0)
        result = make_result("d", make_dictionary(), [scores], Knowledge({}), unread, "ravel", "x/1", Config(), {})
        return result.eval_result_details[-1]

    assert "At 'layers.0.resid_post' it is 90%" in note(False, False)["note"]
    assert note(False, False)["best_site"] == "layers.0.resid_post"
    assert "does not rebuild" in note(True, False)["note"]
    assert "note" not in note(True, True)


def test_the_deepest_site_that_is_read():
    assert deepest_read({"a": 1.0, "b": 0.95, "c": 0.6, "d": 0.0}) == "b"
    assert deepest_read({"a": 0.4, "b": 0.3}) is None
    assert deepest_read({}) is None
    assert spread(4, 8) == [0, 1, 2, 3]
    assert spread(26, 8) == [0, 4, 7, 11, 14, 18, 21, 25]


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

    config = Config(mode=mode, seeds=(0, 1), num_pairs_per_attribute=16, llm_batch_size=4, resamples=40, mdas_epochs=2)
    site = "layers.0.resid_pre" if mode == "corrected" else "layers.0.resid_post"
    dictionaries = {"identity": identity(32, site)}
    result = ravel.run(dictionaries, sailor, {"ship": SHIPS}, config)["identity"]
    assert result.metric("context", "ship_prompts_answered") == 1
    assert result.metric("context", "none_exchanged_isolation") == 1
    assert result.metric("context", "none_exchanged_cause") == 0
    assert result.metric("context", "no_patch_isolation") == 1
    assert result.metric("context", "full_patch_cause") == result.metric("context", "all_exchanged_cause")
    assert 0 <= result.metric("context", "mdas_disentanglement_score") <= 1
    if mode == "corrected":
        assert result.metric("context", "all_exchanged_cause") == 1
        # The skyline is trained in the first seed alone.
        assert ["mdas_axes_exchanged" in row for row in result.eval_result_details] == [True, True, False, False]
    assert 0 <= result.metric("ravel", "disentanglement_score") <= 1
    again = ravel.run(dictionaries, sailor, {"ship": SHIPS}, config)["identity"]
    assert again.eval_result_details == result.eval_result_details


def test_after_the_last_layer_nothing_is_read_and_the_result_says_where_it_would_be(sailor):
    from saeworks.evals.controls import identity

    config = Config(seeds=(0,), num_pairs_per_attribute=16, resamples=20, train_mdas=False)
    dictionaries = {"late": identity(32, "layers.1.resid_post"), "early": identity(32, "layers.0.resid_pre")}
    found = ravel.run(dictionaries, sailor, {"ship": SHIPS}, config)
    late, early = found["late"], found["early"]
    assert late.metric("context", "full_patch_cause") == 0
    assert early.metric("context", "full_patch_cause") == 1
    assert not any("note" in row for row in early.eval_result_details)
    note = late.eval_result_details[-1]
    assert note["site_is_read"] is False
    assert set(note["full_patch_cause_by_site"]) == {"layers.0.resid_post", "layers.1.resid_post"}
    assert note["full_patch_cause_by_site"]["layers.1.resid_post"] == 0
    assert "mdas_disentanglement_score" not in late.eval_result_metrics["context"]
    # What is cached for several sites at once is what each would have had alone.
    alone = ravel.run({"early": dictionaries["early"]}, sailor, {"ship": SHIPS}, config)["early"]
    assert alone.eval_result_details == early.eval_result_details


def test_compat_counts_pairs_with_equal_first_tokens_as_isolation(sailor):
    """Both cargoes begin with the same word: nothing in the first token tells a cause pair from an isolation pair."""
    same = EntitySet({"cargo": ["the %s has"]}, {e: {"cargo": v["cargo"]} for e, v in SHIPS.entities.items()})
    prompts = make_prompts(same)
    asked = Asked(
        prompts,
        [p.answer for p in prompts],
        torch.zeros(len(prompts), dtype=torch.int64),
        torch.ones(len(prompts), 1, dtype=torch.int64),
        torch.ones(len(prompts), dtype=torch.int64),
        {"layers.0.resid_pre": torch.zeros(len(prompts), 1, 32)},
    )
    pairs = draw_pairs(prompts, range(len(prompts)), "cargo", 4, random.Random(0))
    upper = UpperLayers(sailor, "layers.0.resid_pre")
    counted = {
        mode: int(BaseRows(sailor, asked, pairs, [upper], reading).items(upper, pairs).cause.sum())
        for mode, reading in READING.items()
    }
    assert counted == {"compat": 0, "corrected": 4}


def test_a_model_that_knows_nothing_is_refused(sailor):
    wrong = EntitySet(SHIPS.templates, {e: {"colour": "tea", "cargo": "red"} for e in SHIPS.entities})
    from saeworks.evals.controls import identity

    with pytest.raises(InputError, match="knows 0 attributes"):
        ravel.run({"d": identity(32, "layers.0.resid_pre")}, sailor, {"ship": wrong}, Config())


def test_a_model_without_a_next_token_is_refused(headless_model):
    from saeworks.evals.controls import identity

    with pytest.raises(InputError, match="does not predict the next token"):
        ravel.default_data(headless_model, Config())
    with pytest.raises(InputError, match="does not predict the next token"):
        ravel.run({"d": identity(16, "layers.0.resid_pre")}, headless_model, {"ship": SHIPS}, Config())
    with pytest.raises(InputError, match="belongs to no layer"):
        UpperLayers(headless_model, "embed_tokens")
    assert ravel.data_hashes({"ship": SHIPS}, Config()) == ravel.data_hashes({"ship": SHIPS}, Config(seeds=(5,)))
