"""SHIFT with a judge: evidence, ratings and what follows from them, and a planted cue that the world's judge finds."""

import copy
import json
import re
from dataclasses import replace

import pytest
import torch
from judge_server import Server, raw, refused, said, serving

from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.errors import InputError
from saeworks.evals import shift
from saeworks.evals.interpretation.latent_evidence import (
    Concept,
    promoted_tokens,
    rating_question,
    read_ratings,
    strongest_texts,
    strongest_texts_by_kind,
)
from saeworks.evals.judges.protocol import Answer
from saeworks.evals.judges.world_judge import WorldJudge
from saeworks.evals.removal.spurious_texts import SpuriousSet
from saeworks.evals.shared.token_rows import document_rows
from saeworks.evals.shift import Data, Named, Verdicts
from saeworks.world.documents import Document, Span

SITE = "layers.0.resid_pre"
ANIMALS = {"dog": Concept("animal/dog", "the word dog"), "cat": Concept("animal/cat", "the word cat")}
NAMED = Named(ANIMALS, Concept("colour", "a colour"))
CONFIG = shift.Config(
    train_set_size=120, test_set_size=120, seeds=(0, 1), n_values=(1, 2, 4), resamples=40, probe_lr=0.01, top_k=6
)


@pytest.fixture(scope="module")
def plain(model):
    """The tiny model with words at right angles to each other."""
    copied = copy.deepcopy(model)
    weight = copied.module.get_input_embeddings().weight
    square = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).Q
    with torch.no_grad():
        weight[4:] = square[: len(weight) - 4] * 3
    return copied


def texts(count, seed, spans=True):
    g = torch.Generator().manual_seed(seed)
    fill, out = ["the", "runs", "house", "sees", "big", "and", "tree", "small"], []
    for i in range(count):
        words = [fill[j] for j in torch.randint(len(fill), (8,), generator=g).tolist()]
        animal, colour = ["dog", "cat"][i % 2], ["red", "blue"][i // 2 % 2]
        words[i % 4], words[4 + i % 3] = animal, colour
        text, marks = " ".join(words), []
        for word, concept in ((animal, f"animal/{animal}"), (colour, f"colour/{colour}")):
            start = text.index(word)
            marks.append(Span(start, start + len(word), concept))
        out.append(Document(text, {"animal": animal, "colour": colour}, tuple(marks) if spans else (), str(i)))
    return out


def data(spans=True, evidence=None):
    one = SpuriousSet(texts(500, 0), texts(240, 1), "animal", "colour", (("dog", "cat"),), ("red", "blue"))
    general = tuple(texts(60, 2, spans)) if evidence is None else evidence
    return Data({"toy": one}, {"toy": NAMED}, general, {"toy": tuple(texts(40, 7, spans))})


def word_dictionary(model, words):
    known = model.module.get_input_embeddings().weight.detach().float()[4:]
    ids = [model.tokenizer.convert_tokens_to_ids(w) - 4 for w in words]
    rows = known[ids].clone()
    for i, j in ((0, 1), (2, 3)):
        rows[i], rows[j] = (rows[i] - rows[j]) / 2, (rows[j] - rows[i]) / 2
    cfg = DictionaryConfig(architecture="relu", d_in=16, d_sae=len(ids), metadata={"site": SITE})
    return Dictionary(cfg, torch.linalg.pinv(known)[:, ids], rows, torch.full((len(ids),), -0.01), torch.zeros(16))


def test_evidence_is_the_strongest_texts_with_their_activations(plain):
    documents = texts(30, 3)
    rows = document_rows(plain, documents, 128)
    dictionary = word_dictionary(plain, ["dog", "cat", "red", "blue", "the"])
    for batch_size in (4, 64):
        found = strongest_texts({"d": dictionary}, plain, rows, {"d": SITE}, {"d": [2, 4]}, 3, batch_size)["d"]
        assert len(found[2].texts) == 3
        for row, values in found[2].texts:
            assert [v > 0.5 for v in values] == [word == "red" for word in documents[row].text.split()]
        assert all(max(values) == pytest.approx(0.99, abs=1e-4) for _, values in found[4].texts)
    empty = dictionary.replace(b_enc=torch.full((5,), -5.0))
    assert strongest_texts({"d": empty}, plain, rows, {"d": SITE}, {"d": [0]}, 3, 8)["d"][0].texts == ()


def test_evidence_of_each_kind_of_text_by_itself(plain):
    documents = texts(30, 3)
    rows = document_rows(plain, documents, 128)
    dictionary = word_dictionary(plain, ["dog", "cat", "red", "blue", "the"])
    kinds = (torch.arange(30) % 3 == 0).long()
    shared = ({"d": dictionary}, plain, rows, {"d": SITE}, {"d": [2, 4]})
    few, many = strongest_texts_by_kind(*shared, kinds, [2, 4], 8)
    assert [len(found["d"][2].texts) for found in (few, many)] == [2, 4]
    for kind, found in enumerate((few, many)):
        assert all(int(kinds[row]) == kind for evidence in found["d"].values() for row, _ in evidence.texts)
    # Kinds of which nothing is kept take nothing from the others.
    nothing, same = strongest_texts_by_kind(*shared, kinds, [0, 4], 8)
    assert nothing["d"][2].texts == ()
    assert same == many
    assert few["d"][2].joined(many["d"][2]).texts == few["d"][2].texts + many["d"][2].texts


def test_a_cue_that_general_texts_lack_is_seen_in_the_set_s_own(plain):
    """General texts without colours show the latents of colours nowhere; texts of the set's kind do."""
    dictionaries = {"truth": word_dictionary(plain, ["dog", "cat", "red", "blue", "the", "runs"])}
    colourless = tuple(
        Document(" ".join(w for w in d.text.split() if w not in ("red", "blue")), d.labels, (), d.id)
        for d in texts(60, 2)
    )
    removed = {}
    for own_examples in (0, 3):
        config = CONFIG.model_copy(update={"own_examples": own_examples})
        result = shift.run(dictionaries, plain, data(evidence=colourless), config)["truth"]
        removed[own_examples] = set(result.eval_result_details[0]["latents_removed_dir1"])
    assert removed == {0: set(), 3: {2, 3}}
    with pytest.raises(InputError, match="at least one text"):
        shift.run(dictionaries, plain, data(), CONFIG.model_copy(update={"own_examples": 0, "examples": 0}))


def test_promoted_tokens_are_those_with_the_largest_cosine(plain):
    weight = plain.module.get_output_embeddings().weight.detach()
    cat = plain.tokenizer.convert_tokens_to_ids("cat")
    assert promoted_tokens(plain, weight[[cat]] * 0.1, 2)[0][0].strip() == "cat"
    assert promoted_tokens(plain, torch.ones(1, 5)) == [()]


def test_the_question_marks_the_strongest_tokens_and_names_every_concept(plain):
    rows = document_rows(plain, texts(8, 3), 128)
    dictionary = word_dictionary(plain, ["dog", "cat", "red", "blue", "the"])
    evidence = strongest_texts({"d": dictionary}, plain, rows, {"d": SITE}, {"d": [2]}, 2, 8)["d"][2]
    question = rating_question(evidence, [*ANIMALS.values(), NAMED.cue], rows, 1)
    assert question.user.count("<<") == 2
    assert "red>>(1.0)" in question.user.replace(" ", "")
    assert '"colour": a colour' in question.user
    rated = read_ratings(WorldJudge().answer(question), ["animal/dog", "animal/cat", "colour"])
    assert rated is not None
    assert rated["colour"] == 4
    assert rated["animal/dog"] == rated["animal/cat"] == 0


def test_reading_ratings():
    names = ["a", "b"]
    good = 'One {note}. Two.\n```json\n{"a": 3, "b": 1}\n```'
    assert read_ratings(Answer(good), names) == {"a": 3, "b": 0}
    assert read_ratings(Answer('{"a": 2, "b": 2}'), names) == {"a": 2, "b": 2}
    assert read_ratings(Answer('{"a": 0, "b": 0}'), names) == {"a": 0, "b": 0}
    for bad in (
        '{"a": 5, "b": 0}',
        '{"a": 1}',
        '{"a": 1, "b": 2.5}',
        '{"a": true, "b": 1}',
        '{"a": 1, "b": 1, "c": 1}',
    ):
        assert read_ratings(Answer(bad), names) is None, bad
    assert read_ratings(Answer("no object"), names) is None
    assert read_ratings(Answer('{"a": 1, "b": }'), names) is None
    assert read_ratings(Answer(good, "cut_off"), names) is None


def test_which_latents_go_by_either_rule():
    pair = ("dog", "cat")
    verdicts = Verdicts({("t", pair, 0): (0, 3), ("t", pair, 1): (2, 0), ("t", pair, 2): (0, 0)}, [("t", pair, 9)])

    def gone(direction, rule):
        return [i for i in (0, 1, 2, 9) if verdicts.removable(("t", pair, i), direction, rule)]

    assert gone(0, "unwanted") == [0]
    assert gone(1, "unwanted") == [1]
    assert gone(0, "not_intended") == [0, 2]
    assert gone(1, "not_intended") == [1, 2]


def test_the_worlds_judge_restores_the_class(plain):
    dictionaries = {"truth": word_dictionary(plain, ["dog", "cat", "red", "blue", "the", "runs", "house"])}
    for candidates in ("biased", "removed"):
        config = CONFIG.model_copy(update={"candidates": candidates})
        result = shift.run(dictionaries, plain, data(), config)["truth"]
        record = result.eval_result_details[0]
        assert record["dataset_name"] == "toy_shift_dog_cat_results"
        assert set(record["latents_removed_dir1"]) == {2, 3}
        assert set(record["latents_removed_dir2"]) == {0, 1}
        assert result.metric("shift_metrics", "shift_dir1_threshold_2") > 0.8
        same = result.metric("shift_metrics", "shift_dir1_threshold_2")
        assert result.metric("shift_metrics", "shift_dir1_threshold_4") == pytest.approx(same)
    assert result.eval_result_unstructured["toy_shift_dog_cat_results"]["2"] == {"class": 0, "cue": 4}


class Liar(WorldJudge):
    """Says of every latent that it is about the classes."""

    name = "liar"

    def answer(self, question):
        a, b, cue = question.evidence.concepts
        return Answer(json.dumps({a: 4, b: 4, cue: 0}))


def test_another_judge_decides_otherwise(plain, monkeypatch):
    monkeypatch.setattr("saeworks.evals.judges.opening.WorldJudge", Liar)
    dictionaries = {"truth": word_dictionary(plain, ["dog", "cat", "red", "blue", "the", "runs"])}
    result = shift.run(dictionaries, plain, data(), CONFIG)["truth"]
    assert result.eval_result_details[0]["latents_removed_dir1"] == []
    assert result.metric("shift_metrics", "shift_dir1_threshold_2") == 0
    assert result.eval_result_metrics["judge"]["frac_about_class"] == 1
    assert result.eval_result_details[-1]["judge"] == "liar"


def rated(question):
    """A judge that reads the prompt alone: the word that is marked most often."""
    marked = re.findall(r"<<\s*(\w+)>>", question["messages"][1]["content"])
    word = max(sorted(set(marked)), key=marked.count)
    told = {
        "animal/dog": 4 * (word == "dog"),
        "animal/cat": 4 * (word == "cat"),
        "colour": 4 * (word in ("red", "blue")),
    }
    return said(f"They are about {word}. So are the others.\n```json\n{json.dumps(told)}\n```")


@pytest.fixture
def asked_of(tmp_path, monkeypatch):
    monkeypatch.setattr("saeworks.evals.judges.http_judge.FIRST_PAUSE", 0.01)

    def config(server, **changes):
        given = {"judge": server.url, "judge_model": "m", "judge_cache": str(tmp_path), "judge_timeout": 0.4}
        return CONFIG.model_copy(update=given | changes)

    return config


def test_a_judge_behind_a_server_that_misbehaves_restores_the_class(plain, asked_of):
    dictionaries = {"truth": word_dictionary(plain, ["dog", "cat", "red", "blue", "the", "runs", "house"])}
    whole = said("1")[2]
    troubles = [
        refused(429, Retry_After="0"),
        refused(500),
        raw(b'{"choices": [{'),
        raw(whole, "cut"),
        raw(whole, "slow"),
    ]
    with serving(Server(*troubles, otherwise=rated)) as server:
        result = shift.run(dictionaries, plain, data(spans=False), asked_of(server))["truth"]
        record, latents = result.eval_result_details[0], result.eval_result_metrics["judge"]["n_rated"]
        assert (set(record["latents_removed_dir1"]), set(record["latents_removed_dir2"])) == ({2, 3}, {0, 1})
        assert result.metric("shift_metrics", "shift_dir1_threshold_2") > 0.8
        low, high = result.ci95["shift_metrics.shift_metric_threshold_2"]
        assert low <= result.metric("shift_metrics", "shift_metric_threshold_2") <= high
        assert result.eval_result_metrics["judge"]["n_unread"] == 0
        assert len(server.asked) == latents + len(troubles)
        again = shift.run(dictionaries, plain, data(spans=False), asked_of(server))["truth"]
        assert len(server.asked) == latents + len(troubles), "everything was answered before"
        assert again.eval_result_metrics == result.eval_result_metrics
        poor = asked_of(server, judge_budget_requests=1, judge_model="other")
        with pytest.raises(InputError, match="its budget has 1 requests left"):
            shift.run(dictionaries, plain, data(spans=False), poor)


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        ("1, 2", "no answer of the judge could be used"),
        ('{"animal/dog": 4, "animal/cat": 4, "colour": 0}', "alike, 4 for the classes and 0 for the cue"),
    ],
)
def test_a_judge_that_always_says_the_same_is_told(plain, asked_of, answer, note):
    dictionaries = {"truth": word_dictionary(plain, ["dog", "cat", "red", "blue", "the", "runs"])}
    with serving(Server(otherwise=lambda _: said(answer))) as server:
        result = shift.run(dictionaries, plain, data(spans=False), asked_of(server))["truth"]
    assert result.metric("shift_metrics", "shift_dir1_threshold_2") == 0
    (told,) = (row["note"] for row in result.eval_result_details if "note" in row)
    assert note in told


def test_texts_without_spans_need_another_judge(plain):
    dictionaries = {"truth": word_dictionary(plain, ["dog", "cat", "red", "blue"])}
    with pytest.raises(InputError, match="has a span of"):
        shift.run(dictionaries, plain, data(spans=False), CONFIG)


def test_concepts_of_somebodys_texts_and_of_the_world(plain):
    mine = shift.from_documents({"mine": texts(80, 4)}, "animal", plain, CONFIG)
    assert set(mine.named["mine"].classes) == {"dog", "cat"}
    assert mine.named["mine"].cue.name == "blue or red"
    assert len(mine.own["mine"]) == 80
    assert not mine.evidence
    config = CONFIG.model_copy(update={"train_set_size": 16, "test_set_size": 16, "evidence_texts": 60})
    world = shift.default_data(plain, config)
    assert world.named["biographies"].classes["nurse"].name == "biographies/profession/nurse"
    assert world.named["reviews"].cue.name == "reviews/sentiment"
    hashes = shift.data_hashes(world, config)
    other = replace(world, evidence=world.evidence[1:])
    assert shift.data_hashes(other, config)["data:evidence"] != hashes["data:evidence"]
    assert set(world.own) == {"biographies", "reviews"}
    assert all("gender" in d.labels for d in world.own["biographies"])
    fewer = replace(world, own={**world.own, "reviews": world.own["reviews"][1:]})
    assert shift.data_hashes(fewer, config)["data:evidence"] != hashes["data:evidence"]
    assert {"data:biographies", "data:reviews", "judge"} < set(hashes)
