"""The absorption eval on a model whose embedding holds the letters: perfect and absorbing dictionaries, and quirks."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from saeworks.errors import InputError
from saeworks.evals import absorption
from saeworks.evals.absorption import Config, Data, default_data, probe_schedule, read_sites
from saeworks.evals.letters.letter_words import (
    Prompt,
    alphabetical_entries,
    letters_of,
    make_prompts,
    read_words,
    single_token_words,
    split_words,
    word_positions,
)
from saeworks.models.language_model import LanguageModel

INITIALS = "bdkmprst"
WORDS = [a + b + c for a in INITIALS for b in "aeiou" for c in ("n", "lo")]
SITE = "layers.0.resid_pre"
D = 96
# How much of a word's embedding is its letter's coordinate, how much its own, and the length of both.
LETTER, WORD, LENGTH = 12.0, 4.0, 160**0.5
SMALL = Config(
    seeds=(0, 1), test_share=0.5, min_feats_for_eval=6, examples=3, resamples=40, max_k_value=4, context_length=64
)


@pytest.fixture(scope="module")
def speller():
    """Width 96: one coordinate per letter and per word. The layer adds nothing, so every site holds the embedding."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    others = ["<pad>", "<unk>", "has", "the", "first", "letter", "starts", "with", ":", *INITIALS.upper()]
    vocabulary = {token: i for i, token in enumerate([*others, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=D,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    module = LlamaForCausalLM(config)
    embedding = torch.zeros(len(vocabulary), D)
    for i, word in enumerate(WORDS):
        embedding[vocabulary[word], INITIALS.index(word[0])] = LETTER
        embedding[vocabulary[word], 8 + i] = WORD
    with torch.no_grad():
        module.get_input_embeddings().weight.copy_(embedding)
        module.model.layers[0].self_attn.o_proj.weight.zero_()
        module.model.layers[0].mlp.down_proj.weight.zero_()
    return LanguageModel(module, fast, name="speller", head="causal")


class Hand:
    """A dictionary made by hand: ReLU of a linear encoder."""

    def __init__(self, W_enc, W_dec, site=SITE):
        self.W_enc, self.W_dec = W_enc, W_dec
        self.b_enc, self.b_dec = torch.zeros(len(W_dec)), torch.zeros(W_dec.shape[1])
        self.cfg = SimpleNamespace(metadata={"site": site})

    def encode(self, x):
        return torch.relu(x @ self.W_enc)

    def decode(self, f):
        return f @ self.W_dec


def perfect():
    """One latent per letter and one per word."""
    return Hand(torch.eye(D), torch.eye(D))


def absorbing(words):
    """The same, but the letter's latent is silent on ``words``, whose own latents bring the letter along."""
    W_enc, W_dec = torch.eye(D), torch.eye(D)
    for word in words:
        letter, own = INITIALS.index(word[0]), 8 + WORDS.index(word)
        W_enc[own, letter] = -4.0  # 12 - 4 * 4 is below 0
        W_enc[own, own] = LENGTH / WORD
        W_dec[own, letter], W_dec[own, own] = LETTER / LENGTH, WORD / LENGTH
    return Hand(W_enc, W_dec)


def run_one(dictionary, model, config=SMALL, copies=1):
    return absorption.run({"d": dictionary}, model, Data(tuple(WORDS * copies)), config)["d"]


@pytest.mark.parametrize("mode", ["compat", "corrected"])
def test_a_perfect_dictionary_absorbs_nothing(speller, mode):
    config = SMALL.model_copy(update={"mode": mode, "k_sparse_probe_batch_size": 64})
    # 50 epochs over 40 words are too few steps for the published probe, hence copies. It then knows the words of both
    # parts by heart, so that word latents would carry its directions: here compat has letter latents alone.
    letters_only = Hand(torch.eye(D)[:, :8], torch.eye(D)[:8])
    result = run_one(letters_only, speller, config, 8) if mode == "compat" else run_one(perfect(), speller, config)
    assert result.metric("mean", "mean_absorption_fraction_score") == 0
    assert result.metric("mean", "mean_full_absorption_score") == 0
    assert result.metric("context", "num_letters") == 8
    assert result.metric("context", "one_latent_f1") == pytest.approx(1, abs=0.05)
    assert result.ci95["mean.mean_absorption_fraction_score"] == (0, 0)
    assert result.eval_type_id == "absorption_first_letter"


def test_planted_absorption_is_found_word_by_word(speller):
    chosen = ["sen", "solo", "tin"]
    result = run_one(absorbing(chosen), speller)
    rows = [row for row in result.eval_result_details if "first_letter" in row]
    assert len(rows) == 16
    for seed in SMALL.seeds:
        _, test = split_words(WORDS, 0.5, seed, True)
        tested = [WORDS[i] for i in test.tolist()]
        for row in rows:
            if row["seed"] != seed:
                continue
            own = [w for w in tested if w[0] == row["first_letter"]]
            assert row["num_full_absorption"] == sum(w in chosen for w in own)
            assert row["num_probe_true_positives"] == len(own)
            assert row["full_absorption_rate"] == row["mean_absorption_fraction"]
            assert row["main_latents"] == [INITIALS.index(row["first_letter"])]
    found = result.eval_result_unstructured["absorbed_words"]
    assert found
    assert {row["word"] for row in found} <= set(chosen)
    for row in found:
        assert row["latent"] == 8 + WORDS.index(row["word"])
    rates = [values["mean_full_absorption_score"] for values in result.eval_result_unstructured["by_seed"].values()]
    assert result.metric("mean", "mean_full_absorption_score") == pytest.approx(sum(rates) / 2)
    assert result.metric("mean", "mean_absorption_score") == result.metric("mean", "mean_full_absorption_score")
    low, high = result.ci95["mean.mean_full_absorption_score"]
    assert low <= result.metric("mean", "mean_full_absorption_score") <= high
    assert high > low


def test_a_letter_in_two_latents_is_split_not_absorbed(speller):
    """Words with "n" at the end and words with "lo" have a letter latent each."""
    W_enc = torch.cat([torch.eye(D), torch.eye(D)[:, :8]], dim=1)
    for i, word in enumerate(WORDS):
        letter = INITIALS.index(word[0])
        W_enc[8 + i, letter if word.endswith("n") else D + letter] = -4.0
    W_dec = torch.cat([torch.eye(D), torch.eye(D)[:8]])
    result = run_one(Hand(W_enc, W_dec), speller)
    assert result.metric("mean", "mean_num_split_features") == 2
    assert result.metric("mean", "mean_absorption_fraction_score") == 0


def test_corrected_depends_neither_on_scale_nor_on_order_and_compat_on_scale(speller):
    base = absorbing(["sen", "sin", "solo", "tin", "ban"])
    scale = torch.rand(D, generator=torch.Generator().manual_seed(0)) * 9 + 0.2
    order = torch.randperm(D, generator=torch.Generator().manual_seed(1))
    scaled = Hand(base.W_enc / scale, base.W_dec * scale[:, None])
    permuted = Hand(base.W_enc[:, order], base.W_dec[order])
    dictionaries = {"base": base, "scaled": scaled, "permuted": permuted}
    results = absorption.run(dictionaries, speller, Data(tuple(WORDS)), SMALL)
    wanted = results["base"].eval_result_metrics["mean"]
    for name in ("scaled", "permuted"):
        for key, value in results[name].eval_result_metrics["mean"].items():
            assert value == pytest.approx(wanted[key], abs=1e-6), (name, key)
    compat = SMALL.model_copy(update={"mode": "compat", "seeds": (0,)})
    results = absorption.run({"base": base, "scaled": scaled}, speller, Data(tuple(WORDS * 8)), compat)
    shares = [results[name].metric("context", "main_share") for name in ("base", "scaled")]
    assert shares[0] != pytest.approx(shares[1], abs=0.05)


def test_the_seed_decides_everything_in_both_modes(speller):
    for mode in ("compat", "corrected"):
        config = SMALL.model_copy(update={"mode": mode, "seeds": (3,)})
        first, second = (run_one(absorbing(["sen", "tin"]), speller, config) for _ in range(2))
        assert first.eval_result_details == second.eval_result_details


def test_compat_reads_the_layers_output_and_a_fixed_position(speller):
    sites = {"d": "layers.0.mlp_out"}
    dictionary = Hand(torch.eye(D), torch.eye(D), sites["d"])
    assert read_sites({"d": dictionary}, speller, Config(mode="compat")) == {"d": "layers.0.resid_post"}
    assert read_sites({"d": dictionary}, speller, Config()) == sites
    narrow = Hand(torch.eye(16), torch.eye(16), "layers.0.mlp_hidden")
    with pytest.raises(InputError, match="use corrected"):
        read_sites({"d": narrow}, speller, Config(mode="compat"))
    # A template with another number of words behind the word: the fixed position misses it.
    prompts = make_prompts(["sen"], WORDS, "{word} starts with:", 2, 0, True)
    right = read_words({"d": perfect()}, {"d": SITE}, speller, prompts, 64, 4)
    wrong = read_words({"d": perfect()}, {"d": SITE}, speller, prompts, 64, 4, -6)
    assert right.codes["d"].indices.tolist() == [INITIALS.index("s"), 8 + WORDS.index("sen")]
    assert wrong.codes["d"].indices.tolist() != right.codes["d"].indices.tolist()


def test_compat_reads_anew_for_scoring_and_corrected_once(speller, monkeypatch):
    read: list[int] = []

    def counted(dictionaries, sites, model, prompts, *rest):
        read.append(len(prompts))
        return read_words(dictionaries, sites, model, prompts, *rest)

    monkeypatch.setattr(absorption, "read_words", counted)
    run_one(perfect(), speller)
    assert read == [80]
    read.clear()
    run_one(perfect(), speller, SMALL.model_copy(update={"mode": "compat"}))
    assert read == [80, 40, 80, 40]


def test_corrected_trains_the_probe_long_enough_where_words_are_few():
    assert probe_schedule(40, "compat").epochs == 50
    assert probe_schedule(40, "corrected").epochs == 800
    assert probe_schedule(1020, "corrected") == probe_schedule(1020, "compat")
    assert probe_schedule(100_000, "corrected").epochs == 50


def test_too_few_readable_letters_give_a_reason_and_no_number(speller):
    result = run_one(perfect(), speller, SMALL.model_copy(update={"min_feats_for_eval": 9}))
    assert result.metric("mean", "mean_absorption_fraction_score") is None
    assert result.eval_result_details[0]["not_measured"] == [0, 1]
    assert "9 are needed" in result.eval_result_details[0]["reason"]
    assert result.n == 0


def test_words_of_a_vocabulary(speller):
    words = alphabetical_entries(speller.tokenizer)
    assert set(WORDS) <= set(words)
    assert "has" in words
    assert ":" not in words
    assert single_token_words(speller.tokenizer, ["sen", "sen", "nothing"]) == ["sen"]
    assert set(default_data(speller, Config()).words) == set(words)
    strange = SimpleNamespace(
        name="strange", tokenizer=lambda texts, add_special_tokens: {"input_ids": [[1] for _ in texts]}
    )
    strange.tokenizer.unk_token_id = None
    with pytest.raises(InputError, match="no words of the embedded world"):
        default_data(strange, Config(vocabulary="lexicon"))
    assert len(default_data(speller, Config(max_words=10)).words) == 10


def test_entries_with_and_without_a_space_are_one_word_in_corrected():
    class Twice:
        unk_token_id = None

        def get_vocab(self):
            return {"Ġdog": 3, "dog": 1, "▁cat": 2, "d0g": 4, "Ġ": 0, "##s": 5}

        def __call__(self, texts, add_special_tokens):
            rows = [[9, self.get_vocab()["Ġdog"]] if "dog" in t else [9, 0, 2] for t in texts]
            return {"input_ids": [9] if isinstance(texts, str) else rows}

    assert alphabetical_entries(Twice()) == ["dog", "cat", "dog"]
    assert single_token_words(Twice(), alphabetical_entries(Twice())) == ["dog"]


def test_corrected_splits_letter_by_letter_and_keeps_cases_together():
    words = [*WORDS, *(w.upper() for w in WORDS), "x"]
    for seed in range(3):
        train, test = split_words(words, 0.2, seed, True)
        assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(words)))
        assert set(Counter(words[i][0].lower() for i in test.tolist()).values()) == {4}
        assert not {words[i].lower() for i in train.tolist()} & {words[i].lower() for i in test.tolist()}
    counts = {len(split_words(words, 0.2, seed, False)[1]) for seed in range(3)}
    assert counts == {33}
    assert split_words(words, 0.2, 1, True)[1].tolist() == split_words(words, 0.2, 1, True)[1].tolist()


def test_prompts_ask_for_the_word_and_never_tell_it():
    prompts = make_prompts(["sen", "tin"], WORDS, "{word} has the first letter:", 3, 0, True)
    for word, prompt in zip(("sen", "tin"), prompts, strict=True):
        assert prompt.text[prompt.start : prompt.end] == word
        assert prompt.text.endswith(f"\n {word} has the first letter:")
        lines = prompt.text.split("\n")[1:-1]
        assert len(lines) == 3
        for line in lines:
            assert line.split()[0] != word
            assert line.split()[-1] == line.split()[0][0].upper()
    assert make_prompts(["sen"], ["sen", "tin"], "{word}:", 5, 0, False)[0].text == "\ntin: T\nsen:"


def test_the_words_last_token_is_found_by_its_characters():
    prompt = Prompt("\n abc has", 2, 5)
    assert word_positions([[(0, 0), (0, 1), (1, 4), (4, 5), (5, 9)]], [prompt]) == [3]
    assert word_positions([[(0, 0), (0, 1), (1, 4)]], [prompt]) == [-1]


def test_prompts_must_fit(speller):
    with pytest.raises(InputError, match="raise context_length"):
        run_one(perfect(), speller, SMALL.model_copy(update={"context_length": 8}))


@pytest.mark.parametrize("template", ["no word", "{word} {word}", "{word} {letter}"])
def test_templates_have_one_word(template):
    with pytest.raises(ValueError, match="once"):
        Config(prompt_template=template)


def test_letters():
    assert letters_of(["apple", "Zoo"]).tolist() == [0, 25]
    with pytest.raises(InputError, match="does not begin"):
        letters_of(["apple", "élan"])
    assert absorption.data_hashes(Data(("a",)), Config()) != absorption.data_hashes(Data(("a",), False), Config())


def test_masked_models_have_words_too(speller):
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=len(speller.tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    model = LanguageModel(BertForMaskedLM(config), speller.tokenizer, name="masked", head="masked")
    prompts = make_prompts(["sen", "tin"], WORDS, "{word} has the first letter:", 2, 0, True)
    dictionary = Hand(torch.eye(16), torch.eye(16), "layers.0.resid_post")
    reading = read_words({"d": dictionary}, {"d": "layers.0.resid_post"}, model, prompts, 64, 4)
    assert reading.activations["layers.0.resid_post"].shape == (2, 16)
    assert reading.codes["d"].tokens == 2


def test_the_world_has_words_for_every_letter():
    from saeworks.models.language_model import load_language_model

    model = load_language_model("world", device="cpu")
    data = default_data(model, Config())
    assert len(data.words) > 1000
    assert {word[0] for word in data.words} == set("abcdefghijklmnopqrstuvwxyz")
    prompt = make_prompts(data.words[:1], data.words, Config().prompt_template, 10, 0, data.space)
    batch = model.tokenize([prompt[0].text], 128)
    assert word_positions(batch.offsets, prompt)[0] - batch.token_ids.shape[1] == Config().prompt_token_pos
