"""The shipped base model: it is a plain Hugging Face directory, small, and as able as its card says."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from saeworks.errors import InputError
from saeworks.files import read_json
from saeworks.world import abilities
from saeworks.world.corpus import DOMAINS, document, documents, fingerprint, label_names
from saeworks.world.knowledge import cities, lexicon
from saeworks.world.model_files import model_path
from saeworks.world.pretraining import (
    IGNORED,
    REHEARSED,
    REHEARSED_FROM,
    PretrainingConfig,
    batch_of,
    learning_rate_at,
    pack,
    texts_of,
    train,
)
from saeworks.world.tokenizer import CONTEXT_LENGTH, words_in_pieces


@pytest.fixture(scope="module")
def subject() -> abilities.Subject:
    return abilities.open_subject(model_path())


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return read_json(model_path() / "abilities.json")


def test_the_package_stays_small() -> None:
    sizes = {file.name: file.stat().st_size for file in model_path().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= set(sizes)
    assert sizes["model.safetensors"] <= 12_000_000
    assert sizes["tokenizer.json"] + sizes["tokenizer_config.json"] < 400_000
    assert sum(sizes.values()) < 13_000_000


def test_the_model_is_a_plain_llama_in_half_precision(subject: abilities.Subject) -> None:
    from safetensors import safe_open
    from transformers import LlamaForCausalLM

    config = read_json(model_path() / "config.json")
    assert isinstance(subject.model, LlamaForCausalLM)
    assert "auto_map" not in config, "no custom code"
    assert (config["num_hidden_layers"], config["hidden_size"]) == (4, 256)
    assert config["max_position_embeddings"] == CONTEXT_LENGTH
    assert 3e6 <= sum(p.numel() for p in subject.model.parameters()) <= 6e6
    with safe_open(model_path() / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118
    assert config["vocab_size"] == len(subject.tokenizer)
    for name in ("bos", "eos", "pad"):
        assert config[f"{name}_token_id"] == getattr(subject.tokenizer, f"{name}_token_id")


def test_lexicon_words_are_single_tokens(subject: abilities.Subject) -> None:
    assert words_in_pieces(subject.tokenizer) == []
    ids = [subject.tokenizer(" " + word, add_special_tokens=False)["input_ids"][0] for word in lexicon()]
    assert len(set(ids)) == len(lexicon())


def test_the_tokenizer_adds_bos_pads_right_and_knows_its_offsets(subject: abilities.Subject) -> None:
    tokenizer = subject.tokenizer
    texts = ["The beagle barks.", "A much longer sentence about Paris, the euro and \n bridge: B."]
    batch = tokenizer(texts, padding=True, return_offsets_mapping=True)
    for text, ids, mask, offsets in zip(
        texts, *(batch[k] for k in ("input_ids", "attention_mask", "offset_mapping")), strict=True
    ):
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
        length = sum(mask)
        assert mask == [1] * length + [0] * (len(mask) - length)
        assert all(i == tokenizer.pad_token_id for i in ids[length:])
        for token, (start, end) in zip(ids[1:length], offsets[1:length], strict=True):
            assert tokenizer.decode([token]).strip() == text[start:end].strip()
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer("word " * 500, truncation=True)["input_ids"]) == CONTEXT_LENGTH


@pytest.mark.parametrize("domain", DOMAINS)
def test_documents_fit_the_context(subject: abilities.Subject, domain: str) -> None:
    texts = [made.text for split in ("train", "probe_test") for made in documents(domain, split, count=400)]
    lengths = sorted(len(ids) for ids in subject.tokenizer(texts)["input_ids"])
    assert lengths[int(0.99 * len(lengths))] <= CONTEXT_LENGTH
    assert lengths[0] <= 25
    assert all(
        subject.tokenizer.decode(subject.tokenizer(t)["input_ids"], skip_special_tokens=True) == t for t in texts[:50]
    )


def test_spans_reach_tokens(subject: abilities.Subject) -> None:
    """Every city span covers at least one whole token: what token labels are made from."""
    for made in documents("facts", "train", count=100):
        offsets = subject.tokenizer(made.text, return_offsets_mapping=True)["offset_mapping"]
        for span in made.spans:
            covered = [o for o in offsets if o[0] < o[1] and span.start <= o[0] and o[1] <= span.end]
            assert covered, (made.text, span)


def test_the_chat_template_separates_turns(subject: abilities.Subject) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    text = subject.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|system|>Be brief.<|end|><|user|>Hello<|end|><|assistant|>"
    ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len([i for i in ids if i < 7]) == 6, "every marker is one token"


def test_the_card_belongs_to_this_corpus(card: dict[str, Any]) -> None:
    assert card["corpus"] == fingerprint()
    text = (model_path() / "README.md").read_text(encoding="utf-8")
    for ability, figure, measured, reached in abilities.ability_rows(card):
        assert f"| {ability} | {figure} | {measured} | {'yes' if reached else '**no**'} |" in text
    assert set(card["probes"]) == {f"{domain}/{label}" for domain in DOMAINS for label in label_names(domain)}


def test_loss_on_a_sample_is_what_the_card_says(subject: abilities.Subject, card: dict[str, Any]) -> None:
    found = abilities.measure_loss(subject, None, 150)
    written = card["loss"]["mixture"]
    assert abs(found["model_nats_per_token"] - written["model_nats_per_token"]) < 0.12
    assert abs(found["ratio"] - written["ratio"]) < 0.05
    assert found["model_nats_per_token"] > 0.8 * found["generator_nats_per_token"], (
        "no model beats its generator by much"
    )


def test_facts_are_recalled_as_the_card_says(subject: abilities.Subject, card: dict[str, Any]) -> None:
    found = abilities.measure_facts(subject)
    assert abs(found["all"] - card["fact_recall"]["all"]) < 0.01
    assert found["questions"] >= 4 * len(cities())
    free = abilities.measure_free_wordings(subject)
    assert free["all"] == pytest.approx(card["free_wordings"]["all"], abs=0.02)
    prompts, answers = abilities.fact_prompts("country")
    wrong = answers[1:] + answers[:1]
    assert sum(abilities.greedy_matches(subject, prompts, wrong)) / len(prompts) < 0.5, "neighbours share countries"


def test_first_letters_are_told_as_the_card_says(subject: abilities.Subject, card: dict[str, Any]) -> None:
    found = abilities.measure_letters(subject, every=8)
    assert abs(found["held_out"] - card["first_letter"]["held_out"]) < 0.05
    assert abs(found[abilities.STANDARD_LINE] - card["first_letter"][abilities.STANDARD_LINE]) < 0.05


def test_greedy_matches_agree_with_generation(subject: abilities.Subject) -> None:
    prompts, answers = abilities.fact_prompts("currency")
    prompts, answers = prompts[::19], answers[::19]
    for prompt, answer, right in zip(
        prompts, answers, abilities.greedy_matches(subject, prompts, answers), strict=True
    ):
        ids = subject.tokenizer(prompt, return_tensors="pt").input_ids
        wanted = subject.tokenizer(answer, add_special_tokens=False)["input_ids"]
        out = subject.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(wanted), do_sample=False, eos_token_id=None
        )
        assert (out[0, ids.shape[1] :].tolist() == wanted) == right


def test_a_probe_reads_the_topic_from_the_middle_layer(subject: abilities.Subject, card: dict[str, Any]) -> None:
    found = abilities.measure_probes(subject, "news", train=250, test=150)["topic"]
    assert found["classes"] == 5
    assert abs(found["auc"] - card["probes"]["news/topic"]["auc"]) < 0.06


def test_packing_keeps_documents_whole() -> None:
    made = [[0, *range(10, 10 + n), 1] for n in (60, 3, 126, 90, 40, 21)]
    token_ids, targets = pack(made, 128, pad=2)
    assert token_ids.shape == (3, 128)
    assert (token_ids[:, 0] == 0).all(), "every row begins with a document"
    assert int((token_ids != 2).sum()) == sum(map(len, made))
    assert torch.equal(targets[token_ids != 2], token_ids[token_ids != 2])
    assert (targets[token_ids == 2] == IGNORED).all()
    flat = [row[row != 2].tolist() for row in token_ids]
    rebuilt = sorted(part for row in flat for part in split_documents(row))
    assert rebuilt == sorted(made)
    cut, _ = pack([[0] * 300], 128, pad=2)
    assert cut.shape == (1, 128)


def split_documents(row: list[int]) -> list[list[int]]:
    ends = [i + 1 for i, token in enumerate(row) if token == 1]
    return [row[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def test_the_schedule_rises_and_falls() -> None:
    config = PretrainingConfig(steps=200, warmup_steps=20, learning_rate=1.0, more_steps=100, more_learning_rate=0.5)
    rates = [learning_rate_at(step, config) for step in range(301)]
    assert rates[0] == 0.05
    assert max(rates) == rates[19] == rates[20] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[20:200]))
    assert rates[199] < 0.011
    assert max(rates[200:]) == rates[204] == rates[205] == 0.5
    assert math.isclose(rates[300], 0.005)


def test_a_stopped_training_resumes_to_the_same_bits(subject: abilities.Subject, tmp_path: Path) -> None:
    config = PretrainingConfig(
        steps=4, more_steps=2, documents_per_step=4, d_model=16, n_layers=1, n_heads=2, d_mlp=16, warmup_steps=2
    )
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    device = torch.device("cpu")
    *_, (_, whole) = train(config, subject.tokenizer, tmp_path / "whole", device, checkpoint_every=3)
    stopped = train(config, subject.tokenizer, tmp_path / "parts", device, checkpoint_every=3)
    assert next(stopped)[0] == 3
    stopped.close()
    *_, (step, parts) = train(config, subject.tokenizer, tmp_path / "parts", device, checkpoint_every=3)
    assert step == 6
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    with pytest.raises(InputError, match="another recipe"):
        next(train(PretrainingConfig(steps=7), subject.tokenizer, tmp_path / "parts", device))


def test_the_second_cycle_rehearses_what_is_memory() -> None:
    config = PretrainingConfig(steps=5, more_steps=5)
    before, after = texts_of(4, config), texts_of(5, config)
    assert len(before) == len(after) == config.documents_per_step
    assert before == [document(None, "train", 4 * config.documents_per_step + i).text for i in range(len(before))]
    mixture = len(after) - sum(count for _, count in REHEARSED)
    assert after[:mixture] == [document(None, "train", 5 * config.documents_per_step + i).text for i in range(mixture)]
    domain, count = REHEARSED[0]
    assert after[mixture] == document(domain, "train", REHEARSED_FROM + 5 * count).text
    assert not set(after[mixture:]) & set(texts_of(6, config)[mixture:])


def test_a_step_reads_its_own_documents(subject: abilities.Subject) -> None:
    config = PretrainingConfig(documents_per_step=5)
    token_ids, _ = batch_of(2, config, subject.tokenizer)
    text = " ".join(subject.tokenizer.decode(row) for row in token_ids)
    for index in range(10, 15):
        assert document(None, "train", index).text in text
    assert document(None, "train", 9).text not in text
