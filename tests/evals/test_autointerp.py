"""Latents whose meaning is known are explained and told apart; everything else is not; every judge sees enough."""

import copy
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from judge_server import Server, refused, said, serving

from saeworks.errors import InputError
from saeworks.evals import autointerp
from saeworks.evals.autointerp import Config, Texts
from saeworks.evals.controls import identity
from saeworks.evals.interpretation.latent_sample import is_alive, sample_latents
from saeworks.evals.judges.local_judge import LocalJudge
from saeworks.evals.judges.protocol import Detect, Explain, Question, Rate, SeenText
from saeworks.evals.judges.world_judge import WorldJudge
from saeworks.world.documents import Document, Span

SITE = "layers.0.resid_pre"
WORDS = ["the", "a", "dog", "cat", "runs", "sleeps", "red", "blue", "house", "tree", "sees", "big", "small", "and"]
CONCEPTS = {"dog": "zoo/animal/dog", "cat": "zoo/animal/cat", "house": "zoo/building"}
COUNTS = {
    "n_top_ex_for_generation": 4,
    "n_iw_sampled_ex_for_generation": 3,
    "n_top_ex_for_scoring": 2,
    "n_iw_sampled_ex_for_scoring": 2,
    "n_random_ex_for_scoring": 6,
}
SMALL = Config(**COUNTS, seeds=(0, 1), site=SITE, buffer=2, total_tokens=100_000, resamples=50, batch_size=128)


def texts(count=260, seed=0, spans=True):
    """Random words; "dog", "cat" and "house" carry concepts."""
    draws, out = torch.Generator().manual_seed(seed), []
    for i in range(count):
        words = [WORDS[j] for j in torch.randint(len(WORDS), (14,), generator=draws).tolist()]
        text, found = "", []
        for word in words:
            start = len(text) + bool(text)
            text += (" " if text else "") + word
            if spans and word in CONCEPTS:
                found.append(Span(start, len(text), CONCEPTS[word]))
        out.append(Document(text, spans=tuple(found), id=f"t{i}"))
    return Texts(tuple(out))


class WordReader:
    """Latents that read words off the embeddings: one latent for each group of words."""

    def __init__(self, model, groups, scale=None, order=None, strength=1.0):
        ids = [model.tokenizer.convert_tokens_to_ids(w) for w in WORDS]
        self.words = model.module.get_input_embeddings().weight.detach()[ids].clone()
        order = range(len(groups)) if order is None else order
        groups = [groups[i] for i in order]
        scale = torch.ones(len(groups)) if scale is None else scale
        self.table = torch.tensor([[float(w in g) for g in groups] for w in WORDS]) * scale * strength
        self.W_dec = torch.randn(len(groups), self.words.shape[1], generator=torch.Generator().manual_seed(0))
        self.W_enc, self.b_enc, self.b_dec = self.W_dec.T, torch.zeros(len(groups)), torch.zeros(self.words.shape[1])
        self.cfg = SimpleNamespace(architecture="words", d_in=self.words.shape[1], d_sae=len(groups), metadata={})

    def encode(self, x):
        return self.table[torch.cdist(x, self.words).argmin(-1)]

    def decode(self, f):
        return f @ self.W_dec + self.b_dec


class Noise(WordReader):
    """Latents that fire on one token in six, whatever it is."""

    def encode(self, x):
        draws = torch.Generator().manual_seed(len(x))
        chance = torch.rand(len(x), self.table.shape[1], generator=draws)
        return (chance < 1 / 6).float() * (1 + chance)


GROUPS = [["dog"], ["cat"], ["dog", "cat"], ["house"], ["runs"]]


def explanations(result):
    return [record["explanation"] for record in result.eval_result_unstructured.values()]


@pytest.fixture(scope="module")
def known(model):
    dictionaries = {"words": WordReader(model, GROUPS), "noise": Noise(model, GROUPS)}
    return autointerp.run(dictionaries, model, texts(), SMALL)


def test_known_latents_are_explained_and_told_apart_exactly(known):
    result = known["words"]
    assert result.metric("autointerp", "autointerp_score") == 1.0
    assert result.metric("autointerp", "autointerp_std_dev") == 0.0
    assert result.metric("detection", "balanced_accuracy") == 1.0
    assert result.metric("detection", "f1") == 1.0
    assert result.metric("latents", "n_scored") == result.n == 5
    said = explanations(result)
    assert said[:4] == ["zoo/animal/dog", "zoo/animal/cat", "zoo/animal", "zoo/building"]
    assert said[4] == 'the word "runs"'


def test_latents_without_a_meaning_stay_near_the_floor(known):
    words, noise = known["words"], known["noise"]
    assert noise.metric("detection", "balanced_accuracy") < 0.7
    floor = words.metric("control", "swapped_balanced_accuracy")
    assert floor < 0.7
    low, high = noise.ci95["detection.balanced_accuracy"]
    assert low <= noise.metric("detection", "balanced_accuracy") <= high < 1.0


def test_the_result_has_saebench_s_form_and_every_seed(known):
    result = known["words"]
    assert set(result.eval_result_metrics["autointerp"]) == {"autointerp_score", "autointerp_std_dev"}
    record = result.eval_result_unstructured["0"]
    assert {"latent", "explanation", "predictions", "correct seqs", "score", "logs"} <= set(record)
    assert record["predictions"] == record["correct seqs"]
    assert "<<" in record["logs"]
    assert [row["seed"] for row in result.eval_result_details if "seed" in row] == [0, 1]
    assert result.arrays()["accuracy"].shape == (5, 2)
    none = result.metric("detection", "accuracy_of_none")
    assert 0 < none < 1
    assert result.provenance["hashes"]["data:texts"]


def test_neither_order_nor_scale_of_latents_changes_a_score(model, known):
    order = [3, 0, 4, 2, 1]
    other = WordReader(model, GROUPS, scale=torch.tensor([1e-3, 7.0, 40.0, 0.5, 3.0]), order=order)
    result = autointerp.run({"d": other}, model, texts(), SMALL)["d"]
    first = known["words"].eval_result_unstructured
    for place, i in enumerate(order):
        mine, theirs = result.eval_result_unstructured[str(place)], first[str(i)]
        assert {k: mine[k] for k in ("explanation", "predictions", "correct seqs")} == {
            k: theirs[k] for k in ("explanation", "predictions", "correct seqs")
        }


def test_the_same_run_gives_the_same_numbers(model, known):
    again = autointerp.run({"noise": Noise(model, GROUPS)}, model, texts(), SMALL)["noise"]
    assert again.eval_result_metrics == known["noise"].eval_result_metrics
    assert again.ci95 == known["noise"].ci95


def test_without_spans_the_world_s_judge_knows_words_alone(model):
    result = autointerp.run({"d": WordReader(model, GROUPS)}, model, texts(spans=False), SMALL)["d"]
    said = explanations(result)
    assert said[0] == 'the word "dog"'
    # No single word is "dog or cat", so this latent is explained half.
    assert result.eval_result_unstructured["2"]["score"] < 1.0


def test_compat_reads_one_stream_and_gives_a_dense_latent_wrong_labels(model):
    config = SMALL.model_copy(update={"mode": "compat", "context_length": 16, "seeds": (0,)})
    groups = [["dog"], WORDS[:10]]
    dictionaries = {"d": WordReader(model, groups)}
    # Ties all over: without a weaker firing there is nothing to draw by strength, and both latents are left out.
    tied = autointerp.run(dictionaries, model, texts(), config)["d"]
    assert tied.metric("latents", "n_scored") == 0
    assert tied.metric("autointerp", "autointerp_score") is None
    graded = Graded(model, groups)
    faulty = autointerp.run({"d": graded}, model, texts(), config)["d"]
    mended = autointerp.run({"d": graded}, model, texts(), config.model_copy(update={"mode": "corrected"}))["d"]
    dense, sparse = faulty.eval_result_unstructured["1"], mended.eval_result_unstructured["1"]
    assert len(dense["correct seqs"]) == 4
    assert len(sparse["correct seqs"]) > 8
    rows = autointerp.read_rows(model, texts().documents, config)
    assert set(rows.token_ids[:, 0].tolist()) == {model.tokenizer.bos_token_id}
    assert not rows.valid[:, 0].any()
    ends = (rows.token_ids == model.tokenizer.eos_token_id).sum()
    assert int(ends) > len(rows.token_ids) // 2
    assert not rows.valid[rows.token_ids == model.tokenizer.eos_token_id].any()


class Graded(WordReader):
    """The same latents, each firing with another strength wherever it does."""

    def encode(self, x):
        return super().encode(x) * torch.linspace(1, 2, len(x))[:, None]


def test_dead_latents_are_not_drawn_and_rare_dictionaries_are_read_twice(model):
    groups = [[]] * 20 + [["dog"], ["cat"]]
    dictionary = WordReader(model, groups)
    config = SMALL.model_copy(update={"n_latents": 2})
    rows = autointerp.read_rows(model, texts(60).documents, config)
    sample = sample_latents({"d": dictionary}, model, rows, {"d": SITE}, config)["d"]
    assert sorted(sample.found) == [20, 21]
    assert sample.alive.nonzero().squeeze(1).tolist() == [20, 21]
    assert [len(sample.found[i].tokens) for i in (20, 21)] == sample.fired[20:].tolist()
    chosen = config.model_copy(update={"override_latents": (3, 20)})
    assert sorted(sample_latents({"d": dictionary}, model, rows, {"d": SITE}, chosen)["d"].found) == [3, 20]
    with pytest.raises(InputError, match="22 latents"):
        sample_latents(
            {"d": dictionary}, model, rows, {"d": SITE}, config.model_copy(update={"override_latents": (22,)})
        )


def test_firings_are_those_of_every_row_encoded_whole(model):
    """One pass over batches of rows keeps what a dense encoding of each text by itself says."""
    dictionary = WordReader(model, [["dog"], ["the", "cat"], WORDS[:9]], strength=2.0)
    for mode in ("corrected", "compat"):
        config = SMALL.model_copy(update={"mode": mode, "context_length": 16, "batch_size": 7})
        rows = autointerp.read_rows(model, texts(40).documents, config)
        sample = sample_latents({"d": dictionary}, model, rows, {"d": SITE}, config)["d"]
        dense = torch.zeros(*rows.valid.shape, 3)
        for r, ids in enumerate(rows.token_ids):
            length = int(rows.lengths[r])
            x = model.harvest(model.batch_from_ids([ids[:length].tolist()]), [SITE])[SITE][0]
            dense[r, :length] = dictionary.encode(x)
        dense *= rows.valid[:, :, None]
        assert sample.fired.tolist() == (dense > 0).sum((0, 1)).tolist()
        for i, found in sample.found.items():
            values = dense[:, :, i].flatten()
            assert torch.equal(found.tokens.sort().values, (values > 0).nonzero().squeeze(1))
            assert torch.allclose(found.values, values[found.tokens])


def test_a_latent_is_alive_by_its_firings_and_in_compat_by_what_they_would_be():
    """8 firings on 50 tokens, where 100 were asked for and more than 15 firings are wanted."""
    config = SMALL.model_copy(update={"total_tokens": 100, "dead_latent_threshold": 15})
    fired = torch.tensor([8, 16, 7])
    assert is_alive(fired, 50, config).tolist() == [False, True, False]
    assert is_alive(fired, 50, config.model_copy(update={"mode": "compat"})).tolist() == [True, True, False]


def test_windows_of_one_token(model):
    """A ``buffer`` of 0, at which SAEBench's slices are empty: every window is its centre."""
    for mode in ("corrected", "compat"):
        config = SMALL.model_copy(update={"mode": mode, "buffer": 0, "context_length": 16, "seeds": (0,)})
        groups = [["dog"], WORDS[:3]]
        result = autointerp.run({"d": Graded(model, groups)}, model, texts(), config)["d"]
        shown = [line for r in result.eval_result_unstructured.values() for line in r["logs"].splitlines()]
        windows = [line[20:].replace("<<", "").replace(">>", "").split() for line in shown if "top " in line]
        assert windows
        assert {len(words) for words in windows} == {1}


def test_the_end_of_a_text_vanishes_where_it_is_the_padding_too(model, monkeypatch):
    """As in SAEBench: tokenizers whose padding is their end token leave nothing between two texts of a stream."""
    config = SMALL.model_copy(update={"mode": "compat", "context_length": 16})
    end = model.tokenizer.eos_token_id
    assert bool((autointerp.read_rows(model, texts(30).documents, config).token_ids == end).any())
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    monkeypatch.setattr(model, "tokenizer", tokenizer)
    rows = autointerp.read_rows(model, texts(30).documents, config)
    assert not bool((rows.token_ids == end).any())


def test_signed_latents_are_read_where_they_are_positive(model):
    result = autointerp.run({"i": identity(16, SITE)}, model, texts(120), SMALL.model_copy(update={"seeds": (0,)}))["i"]
    assert result.metric("latents", "n_scored") == 16
    assert 0 <= result.metric("autointerp", "autointerp_score") <= 1


def reading(question):
    """A judge that reads the prompt alone: the word marked most often, then the passages that have it."""
    user = question["messages"][1]["content"]
    lines = re.findall(r"^(\d+)\. (.*)$", user, re.MULTILINE)
    marked = re.findall(r"<<\s*(.*?)>>", user)
    if marked:
        return said(f"This unit activates on {max(sorted(set(marked)), key=marked.count)}.")
    word = re.search(r"activates on (.*)\.\n", user).group(1)
    found = [number for number, line in lines if word in line.split()]
    return said(", ".join(found) or "None")


def test_a_judge_over_http_needs_nothing_but_the_prompt(model, tmp_path):
    with serving(Server(otherwise=reading)) as server:
        config = SMALL.model_copy(update={"judge": server.url, "judge_model": "m", "judge_cache": str(tmp_path)})
        dictionary = WordReader(model, [["dog"], ["cat"], ["runs"]])
        result = autointerp.run({"d": dictionary}, model, texts(), config)["d"]
        assert result.metric("autointerp", "autointerp_score") == 1.0
        assert explanations(result) == ["dog", "cat", "runs"]
        assert len(server.asked) == 3 * 2 * 2
        again = autointerp.run({"d": dictionary}, model, texts(), config)["d"]
        assert len(server.asked) == 12
        assert again.eval_result_metrics == result.eval_result_metrics
        small = config.model_copy(update={"judge_budget_requests": 5, "judge_cache": str(tmp_path / "other")})
        with pytest.raises(InputError, match="12 questions"):
            autointerp.run({"d": dictionary}, model, texts(), small)
        assert len(server.asked) == 12


def test_bad_answers_are_counted_as_what_they_are(model, tmp_path):
    def moody(question):
        user = question["messages"][1]["content"]
        if "<<" in user:
            return reading(question)
        if "on dog." in user:
            return said("1, 2, 1", finish="length")
        if "on cat." in user:
            return said("I'm sorry, I can't do that.")
        return said("Passages one and two") if "on runs." in user else refused(400, "too long")

    with serving(Server(otherwise=moody)) as server:
        given = {"judge": server.url, "judge_model": "m", "judge_cache": str(tmp_path), "seeds": (0,)}
        dictionary = WordReader(model, [["dog"], ["cat"], ["runs"], ["tree"]])
        mended = autointerp.run({"d": dictionary}, model, texts(), SMALL.model_copy(update=given))["d"]
    judge = mended.eval_result_metrics["judge"]
    assert judge["explanation_answered"] == 4
    for outcome in ("cut_off", "refused", "unreadable", "failed"):
        assert judge[f"detection_{outcome}"] == 1
    assert judge["detection_answered"] == 1
    assert judge["frac_scored"] == 0
    assert mended.metric("autointerp", "autointerp_score") is None
    reasons = [record["why_not"] for record in mended.eval_result_unstructured.values()]
    assert reasons == ["detection cut_off", "detection refused", "detection unreadable", "detection failed"]
    (note,) = (row["note"] for row in mended.eval_result_details if "note" in row)
    assert note.startswith("no latent has a score: detection cut_off (1), ")


@pytest.mark.parametrize("answer", ["None", "all"])
def test_a_judge_that_always_says_the_same_is_no_better_than_chance(model, tmp_path, answer):
    def stubborn(question):
        user = question["messages"][1]["content"]
        if "<<" in user:
            return reading(question)
        shown = re.findall(r"^(\d+)\. ", user, re.MULTILINE)
        return said(", ".join(shown) if answer == "all" else answer)

    with serving(Server(otherwise=stubborn)) as server:
        given = {"judge": server.url, "judge_model": "m", "judge_cache": str(tmp_path), "seeds": (0,)}
        dictionary = WordReader(model, [["dog"], ["cat"], ["runs"]])
        result = autointerp.run({"d": dictionary}, model, texts(), SMALL.model_copy(update=given))["d"]
    (note,) = (row["note"] for row in result.eval_result_details if "note" in row)
    assert f"named {'no window' if answer == 'None' else 'all windows'} in each of 3 answers" in note
    none = result.metric("detection", "accuracy_of_none")
    assert result.metric("detection", "balanced_accuracy") == 0.5
    assert result.metric("autointerp", "autointerp_score") == pytest.approx(none if answer == "None" else 1 - none)


def test_hashes_follow_texts_spans_and_judge(model):
    base = autointerp.data_hashes(texts(20), SMALL)
    assert base == autointerp.data_hashes(texts(20), SMALL)
    assert base["data:texts"] != autointerp.data_hashes(texts(20, spans=False), SMALL)["data:texts"]
    server = SMALL.model_copy(update={"judge": "http://localhost:1/v1", "judge_model": "m"})
    assert base["judge"] != autointerp.data_hashes(texts(20), server)["judge"]


def test_bad_input_is_a_sentence(model):
    dictionary = WordReader(model, GROUPS)
    with pytest.raises(InputError, match="no token"):
        autointerp.from_documents({"a": [Document("Zürich Bonn")]}, "label", model, SMALL)
    wide = SMALL.model_copy(update={"mode": "compat", "context_length": 16, "buffer": 10})
    with pytest.raises(InputError, match="10 tokens from both ends"):
        autointerp.run({"d": dictionary}, model, texts(), wide)
    taken = autointerp.from_documents({"a": texts(30).documents, "b": texts(30, 1).documents}, "x", model, SMALL)
    assert len(taken.documents) == 60
    few = SMALL.model_copy(update={"total_tokens": 100})
    assert len(autointerp.from_documents({"a": texts(30).documents}, "x", model, few).documents) == 8


def seen(text, concepts, active=None):
    return SeenText(tuple(text.split()), tuple(frozenset(c) for c in concepts), active)


def test_the_world_s_judge_chooses_the_best_and_the_deepest():
    judge = WorldJudge()
    shown = (
        seen("a big dog", [(), (), ("z", "z/dog")], (False, False, True)),
        seen("the dog and", [(), ("z", "z/dog"), ("z",)], (False, True, False)),
    )
    assert judge.answer(Question("", "", 9, Explain(shown))).text == "This unit activates on z/dog."
    asked = Detect("z/dog: a dog", (replace(shown[0], active=None), seen("x", [()])))
    assert judge.answer(Question("", "", 9, asked)).text == "1"
    assert judge.answer(Question("", "", 9, Detect("nothing that I know", shown))).text == "None"
    rated = judge.answer(Question("", "", 9, Rate(("z/dog", "z", "other"), shown))).text
    assert '"z/dog": 4' in rated
    assert '"other": 0' in rated
    assert judge.answer(Question("", "prose", 9)).outcome == "malformed"


def planted_model(tokenizer, ends):
    """A model that says "big" and then ends, or never ends."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from saeworks.models.language_model import LanguageModel

    config = LlamaConfig(
        vocab_size=4 + len(WORDS),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    module = LlamaForCausalLM(config)
    big = tokenizer.convert_tokens_to_ids("big")
    for weight in module.parameters():
        torch.nn.init.zeros_(weight)
    module.model.norm.weight.data.fill_(1.0)
    module.model.embed_tokens.weight.data[:, 0] = 1.0
    module.lm_head.weight.data[big, 0] = 1.0
    if ends:
        module.model.embed_tokens.weight.data[big, 0] = -1.0
        module.lm_head.weight.data[2, 0] = -1.0
    return LanguageModel(module, tokenizer, name="planted", head="causal")


def test_a_local_model_is_asked_greedily_and_knows_when_it_was_cut_off(model):
    answer = LocalJudge(planted_model(model.tokenizer, ends=True)).answer(Question("the", "dog runs", 5))
    assert (answer.text, answer.outcome, answer.answer_tokens) == ("big", "answered", 1)
    judge = LocalJudge(planted_model(model.tokenizer, ends=False))
    endless = judge.answer(Question("the", "dog runs", 5))
    assert (endless.text, endless.outcome) == ("big big big big big", "cut_off")
    assert judge.usage()["requests"] == 1
    with pytest.raises(InputError, match="cannot be asked"):
        judge.answer(Question("the", "dog " * 80, 5))
