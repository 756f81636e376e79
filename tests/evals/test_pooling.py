"""Pooled texts are shared when, and only when, everything that they depend on is the same."""

import copy
import gc
import weakref

import pytest
import torch

from saeworks.errors import InputError
from saeworks.evals import absorption, controls, scr, sparse_probing, tpp
from saeworks.evals.removal.ablatable_texts import in_units_of_activations
from saeworks.evals.removal.spurious_texts import SpuriousSet
from saeworks.evals.runner import Data, run_evals
from saeworks.evals.shared.pooling import TextPool
from saeworks.evals.shared.pooling_pass import TokenMask
from saeworks.evals.sparse_probing import LabelledSet
from saeworks.models.language_model import LanguageModel
from saeworks.world.documents import Document

SITE = "layers.0.resid_post"
ALL = TokenMask("all", lambda model, batch, activations: batch.tokens.attention_mask.to(activations.device))


def equal(a, b, exactly=False):
    """Two outcomes of pooling the same texts."""
    close = torch.equal if exactly else lambda x, y: torch.allclose(x, y, atol=1e-6)
    assert a.latents.keys() == b.latents.keys()
    return (
        torch.equal(a.tokens, b.tokens)
        and all(close(a.activations[s], b.activations[s]) for s in b.activations)
        and all(close(a.latents[name], b.latents[name]) for name in b.latents)
    )


def test_texts_are_read_once_and_what_is_shared_is_what_would_be_computed(model, make_sentences, make_dictionary):
    a, b = make_dictionary(), make_dictionary(width=64, k=2, seed=1)
    rows = [*make_sentences(40), *make_sentences(3)]  # three texts come twice
    pool = TextPool()
    first = pool.pool({"a": a}, model, rows[:30], 32, 8)
    distinct = len({d.text for d in rows[:30]})
    assert (pool.texts_read, pool.texts_encoded) == (distinct, distinct)
    assert equal(first, TextPool().pool({"a": a}, model, rows[:30], 32, 8), exactly=True)
    every = pool.pool({"a": a, "b": b}, model, rows[::-1], 32, 16)
    alone = {name: TextPool().pool({name: d}, model, rows[::-1], 32, 5) for name, d in {"a": a, "b": b}.items()}
    assert torch.allclose(every.activations[SITE], alone["a"].activations[SITE], atol=1e-6)
    assert all(torch.allclose(every.latents[n], alone[n].latents[n], atol=1e-6) for n in "ab")
    both = len({d.text for d in rows})
    # The thirty had to be read again for b, but a encoded only those that it had not seen.
    assert (pool.texts_read, pool.texts_encoded) == (distinct + both, both + both)
    pool.pool({"b": b, "a": a}, model, rows, 32, 8)
    assert pool.texts_read == distinct + both
    pool.clear()
    assert pool.nbytes == 0
    pool.pool({"a": a}, model, rows[:30], 32, 8)
    assert pool.texts_read == distinct + both + distinct


def twin(model, change):
    """The same model made again, but for ``change`` in one of its weights."""
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        module.get_input_embeddings().weight[7, 0] += change
    return LanguageModel(module, model.tokenizer, name="tiny", head="causal")


@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_whatever_changes_is_a_miss(model, make_sentences, make_dictionary, tmp_path, kept):
    dictionary, rows, other, model = make_dictionary(), make_sentences(12), twin(model, 1e-3), twin(model, 0.0)
    distinct = len({d.text for d in rows})
    pool = TextPool(tmp_path if kept == "disk" else None)

    def read(expected, dictionary=dictionary, model=model, rows=rows, exactly=False, **settings):
        """How many texts go through the model, against what is expected; the outcome is that of an empty pool."""
        used = TextPool(tmp_path) if kept == "disk" else pool
        before = used.texts_read
        found = used.pool({"d": dictionary}, model, rows, 16, 8, **settings)
        assert used.texts_read - before == expected
        assert equal(found, TextPool().pool({"d": dictionary}, model, rows, 16, 8, **settings), exactly)

    read(distinct, exactly=True)
    read(0, exactly=True)
    changed = [Document(rows[0].text + " dog"), *rows[1:]]
    read(1, rows=changed)
    read(distinct, site="layers.0.resid_pre")
    read(distinct, mask=ALL)
    read(distinct, dictionary=dictionary.replace(b_enc=dictionary.b_enc + 1e-3))
    read(distinct, dictionary=dictionary.replace({"k": 3}))
    read(distinct, dictionary=dictionary.replace(W_dec=dictionary.W_dec * 1.5))
    read(distinct, model=other)
    read(0, model=twin(model, 0.0))
    read(0)


def test_weights_changed_in_place_and_another_context_length_are_a_miss(model, make_sentences, make_dictionary):
    model, dictionary, rows = twin(model, 0.0), make_dictionary(), make_sentences(6)
    pool = TextPool()
    before = pool.pool({"d": dictionary}, model, rows, 16)
    with torch.no_grad():
        model.module.get_input_embeddings().weight.mul_(1.1)
    assert not equal(pool.pool({"d": dictionary}, model, rows, 16), before)
    assert pool.texts_read == 12
    short = pool.pool({"d": dictionary}, model, rows, 4)
    assert pool.texts_read == 18
    assert int(short.tokens.max()) == 3


def test_two_models_changed_equally_often_are_not_taken_for_one(model, make_sentences, make_dictionary, tmp_path):
    """What is on disk outlives the process, and with it every count of changes."""
    dictionary, rows, found = make_dictionary(), make_sentences(6), []
    for factor in (1.1, 1.2):
        same = twin(model, 0.0)
        same.fingerprint()
        with torch.no_grad():
            same.module.get_input_embeddings().weight.mul_(factor)
        found.append(TextPool(tmp_path).pool({"d": dictionary}, same, rows, 16))
        assert equal(found[-1], TextPool().pool({"d": dictionary}, same, rows, 16), exactly=True)
    assert not equal(*found)


def test_a_dictionary_without_a_fingerprint_is_known_by_being_the_same_object(model, make_sentences, tmp_path):
    one, other, rows = controls.identity(16, SITE), controls.identity(16, SITE), make_sentences(6)
    other.b_dec = other.b_dec + 1.0
    pool = TextPool(tmp_path)
    pool.pool({"d": one}, model, rows)
    assert pool.texts_read == 6
    pool.pool({"d": one}, model, rows)
    assert pool.texts_read == 6
    assert equal(pool.pool({"d": other}, model, rows), TextPool().pool({"d": other}, model, rows))
    assert pool.texts_read == 12
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1, "its latents are not on disk, the activations are"


def test_units_of_activations_are_another_dictionary(model, make_sentences, make_dictionary):
    raw = make_dictionary().replace({"input_op": "layer_norm"})
    inner = in_units_of_activations({"d": raw})
    rows, pool = make_sentences(6), TextPool()
    plain, scaled = pool.pool({"d": raw}, model, rows), pool.pool(inner, model, rows)
    assert not torch.allclose(plain.latents["d"], scaled.latents["d"])
    again = pool.pool(in_units_of_activations({"d": raw}), model, rows)
    assert pool.texts_read == 12
    assert torch.equal(again.latents["d"], scaled.latents["d"])


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_is_bounded_and_let_go(model, make_sentences, make_dictionary):
    dictionary, groups = make_dictionary(), [make_sentences(20, seed=i) for i in range(4)]
    free = TextPool()
    free.pool({"d": dictionary}, model, groups[0])
    each = free.nbytes
    bounded = TextPool(memory=2 * each)
    for group in groups:
        found = bounded.pool({"d": dictionary}, model, group)
        assert equal(found, TextPool().pool({"d": dictionary}, model, group))
        assert bounded.nbytes <= 2 * each


# --- evals ----------------------------------------------------------------------------------------------------------

WORDS = ["dog", "cat", "house", "tree"]
PROBING = sparse_probing.Config(train_texts=80, test_texts=40, k_values=(1, 2), seeds=(0,), full_seeds=1, resamples=10)
SETTINGS = {"train_set_size": 60, "test_set_size": 40, "seeds": (0, 1), "n_values": (1, 4), "resamples": 10}
CONFIGS = {
    "sparse_probing": PROBING,
    "scr": scr.Config(**SETTINGS, min_gap=1e-6, probe_lr=0.01),
    "tpp": tpp.Config(**SETTINGS, probe_lr=0.01),
}


def labelled(count, seed):
    """Texts with a class word and a colour, every combination equally often."""
    g = torch.Generator().manual_seed(seed)
    fill = ["the", "runs", "sees", "big", "and", "small"]
    out = []
    for i in range(count):
        words = [fill[j] for j in torch.randint(len(fill), (8,), generator=g).tolist()]
        words[i % 7], colour = WORDS[i % 4], ("red", "blue")[i // 4 % 2]
        words[7] = colour
        out.append(Document(" ".join(words), {"thing": WORDS[i % 4], "colour": colour}, id=str(i)))
    return out


def data():
    train, test = labelled(240, 0), labelled(120, 1)
    own = {
        "scr": {"toy": SpuriousSet(train, test, "thing", "colour", (("dog", "cat"),), ("red", "blue"))},
        "tpp": {"toy": LabelledSet(train, test, ("thing",))},
    }
    return Data(labelled={"toy": LabelledSet(train, test, ("thing",))}, own=own)


def scores(done):
    return {
        (name, key, category, field): value
        for name, results in done.items()
        for key, result in results.items()
        for category, fields in result.eval_result_metrics.items()
        for field, value in fields.items()
    }


@pytest.mark.parametrize("mode", ["corrected", "compat"])
def test_evals_that_share_their_texts_find_what_each_finds_alone(model, make_dictionary, tmp_path, monkeypatch, mode):
    names = {"a": make_dictionary(), "b": make_dictionary(width=48, seed=2)}
    configs = {name: config.model_copy(update={"mode": mode}) for name, config in CONFIGS.items()}
    read: list[int] = []
    harvest = model.harvest

    def counted(batch, sites):
        read.append(len(batch))
        return harvest(batch, sites)

    monkeypatch.setattr(model, "harvest", counted)
    given, pool = data(), TextPool(tmp_path / "pool")
    together = run_evals(list(configs), names, model, given, tmp_path / "together", configs, pool=pool)
    shared = sum(read)
    assert shared == pool.texts_read == len({d.text for d in [*labelled(240, 0), *labelled(120, 1)]})
    alone = {
        name: {key: run_evals([name], {key: d}, model, given, tmp_path / key / name, configs)[name][key]}
        for name in configs
        for key, d in names.items()
        if key == "b"
    }
    assert sum(read) - shared > 1.5 * shared
    expected = scores(alone)
    assert sum(value is not None and value == value for value in expected.values()) > 15
    for place, value in expected.items():
        found = scores(together)[place]
        assert (found is None) == (value is None), place
        assert value is None or found == pytest.approx(value, abs=1e-9, nan_ok=True), place
    later = TextPool(tmp_path / "pool")
    again = run_evals(["tpp"], names, model, given, tmp_path / "again", configs, pool=later)
    assert later.texts_read == 0
    assert scores(again) == {place: v for place, v in scores(together).items() if place[0] == "tpp"}


def test_nothing_is_held_after_the_evals(model, make_dictionary, tmp_path, monkeypatch):
    made: list[weakref.ref] = []
    pooled = TextPool.pool

    def watched(self, *given, **named):
        out = pooled(self, *given, **named)
        made.extend([weakref.ref(self), weakref.ref(out), *(weakref.ref(x) for x in out.activations.values())])
        return out

    monkeypatch.setattr(TextPool, "pool", watched)
    run_evals(list(CONFIGS), {"a": make_dictionary()}, model, data(), tmp_path, CONFIGS)
    gc.collect()
    assert len(made) >= 9
    assert [ref() for ref in made] == [None] * len(made)


def test_texts_without_a_token_are_a_sentence(model, make_dictionary):
    with pytest.raises(InputError, match="no text with a token"):
        TextPool().pool({"d": make_dictionary()}, model, [Document(""), Document("")])
    some = TextPool().pool({"d": make_dictionary()}, model, [Document(""), Document("dog"), Document("")])
    assert some.tokens.tolist() == [0, 1, 0]
    assert not bool(some.latents["d"][[0, 2]].any())
    assert bool(some.latents["d"][1].any())


def test_absorption_encodes_every_word_once(model, make_dictionary, monkeypatch):
    """Whatever the number of seeds; the splits are drawn over words that were encoded before."""
    dictionary = make_dictionary(site="layers.0.resid_post")
    encoded: list[int] = []
    encode = dictionary.encode_sparse

    def counted(x):
        encoded.append(len(x))
        return encode(x)

    monkeypatch.setattr(dictionary, "encode_sparse", counted)
    words = ("the", "a", "dog", "cat", "runs", "sleeps", "red", "blue", "house", "tree", "sees", "big", "small", "and")
    config = absorption.Config(examples=1, min_feats_for_eval=27, seeds=(0, 1, 2), resamples=5)
    absorption.run({"d": dictionary}, model, absorption.Data(words), config)
    assert sum(encoded) == len(words)
