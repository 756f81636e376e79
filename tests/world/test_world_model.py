"""The shipped base model: it is a plain Hugging Face directory, small, and as able as its card says."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saeworks.errors import InputError
from saeworks.files import read_json
from saeworks.world import abilities
from saeworks.world.card import ability_rows
from saeworks.world.chat_tuning import REPLAYED, ChatTuningConfig
from saeworks.world.corpus import DOMAINS, MIXTURE, document, documents, fingerprint, label_names
from saeworks.world.domains import chat
from saeworks.world.domains.chat import statements
from saeworks.world.domains.chat_replies import judgement
from saeworks.world.knowledge import cities, lexicon
from saeworks.world.label_probes import measure_chat_concepts, measure_labels
from saeworks.world.loop import IGNORED, batch_of, pack, train
from saeworks.world.model_files import model_path
from saeworks.world.pretraining import REHEARSED, REHEARSED_FROM, PretrainingConfig, new_model
from saeworks.world.subject import Subject, greedy_matches, open_subject
from saeworks.world.tokenizer import CONTEXT_LENGTH, END, words_in_pieces

PACKAGE_DATA = 25_000_000


@pytest.fixture(scope="module")
def subject() -> Subject:
    return open_subject(model_path())


@pytest.fixture(scope="module")
def assistant() -> Subject:
    return open_subject(model_path("chat"))


@pytest.fixture(scope="module")
def chat_card() -> dict[str, Any]:
    return read_json(model_path("chat") / "abilities.json")


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return read_json(model_path() / "abilities.json")


def test_the_package_stays_small() -> None:
    for which in ("base", "chat"):
        sizes = {file.name: file.stat().st_size for file in model_path(which).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= set(
            sizes
        )
        assert sizes["model.safetensors"] <= 12_000_000
        assert sizes["tokenizer.json"] + sizes["tokenizer_config.json"] < 400_000
    package = Path(abilities.__file__).parent
    data = [file for file in package.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")]
    assert sum(file.stat().st_size for file in data) < PACKAGE_DATA


def test_both_models_share_one_tokenizer(subject: Subject, assistant: Subject) -> None:
    files = [(model_path(which) / "tokenizer.json").read_bytes() for which in ("base", "chat")]
    assert files[0] == files[1]
    assert subject.tokenizer.chat_template == assistant.tokenizer.chat_template


def test_the_model_is_a_plain_llama_in_half_precision(subject: Subject) -> None:
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


def test_lexicon_words_are_single_tokens(subject: Subject) -> None:
    assert words_in_pieces(subject.tokenizer) == []
    ids = [subject.tokenizer(" " + word, add_special_tokens=False)["input_ids"][0] for word in lexicon()]
    assert len(set(ids)) == len(lexicon())


def test_the_tokenizer_adds_bos_pads_right_and_knows_its_offsets(subject: Subject) -> None:
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
def test_documents_fit_the_context(subject: Subject, domain: str) -> None:
    texts = [made.text for split in ("train", "probe_test") for made in documents(domain, split, count=400)]
    lengths = sorted(len(ids) for ids in subject.tokenizer(texts)["input_ids"])
    assert lengths[int(0.99 * len(lengths))] <= CONTEXT_LENGTH
    assert lengths[0] <= 30
    for text in texts[:50]:
        assert subject.tokenizer.decode(subject.tokenizer(text)["input_ids"]) == "<|bos|>" + text


def test_spans_reach_tokens(subject: Subject) -> None:
    """Every city span covers at least one whole token: what token labels are made from."""
    for made in documents("facts", "train", count=100):
        offsets = subject.tokenizer(made.text, return_offsets_mapping=True)["offset_mapping"]
        for span in made.spans:
            covered = [o for o in offsets if o[0] < o[1] and span.start <= o[0] and o[1] <= span.end]
            assert covered, (made.text, span)


def test_the_chat_template_separates_turns(subject: Subject) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    text = subject.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|system|>Be brief.<|end|><|user|>Hello<|end|><|assistant|>"
    ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len([i for i in ids if i < 7]) == 6, "every marker is one token"
    for made in documents("chat", "train", count=50):
        said = subject.tokenizer.apply_chat_template(chat.messages(made.text), tokenize=False)
        assert said == "<|bos|>" + made.text


@pytest.mark.parametrize("which", ["base", "chat"])
def test_the_card_belongs_to_this_corpus(which: str) -> None:
    written = read_json(model_path(which) / "abilities.json")
    assert written["corpus"] == fingerprint()
    read = MIXTURE if which == "base" else (*MIXTURE, "chat")
    assert read_json(model_path(which) / "recipe.json")["corpus"] == fingerprint(read)
    text = (model_path(which) / "README.md").read_text(encoding="utf-8")
    for ability, figure, measured, reached in ability_rows(which, written):
        assert f"| {ability} | {figure} | {measured} | {'yes' if reached else '**no**'} |" in text
    assert set(written["probes"]) == {f"{domain}/{label}" for domain in DOMAINS for label in label_names(domain)}
    assert set(written["loss"]) == {"mixture", *MIXTURE, *(["chat"] if which == "chat" else [])}


def test_loss_on_a_sample_is_what_the_card_says(subject: Subject, card: dict[str, Any]) -> None:
    found = abilities.measure_loss(subject, None, 150)
    written = card["loss"]["mixture"]
    assert abs(found["model_nats_per_token"] - written["model_nats_per_token"]) < 0.12
    assert abs(found["ratio"] - written["ratio"]) < 0.05
    assert found["model_nats_per_token"] > 0.8 * found["generator_nats_per_token"], (
        "no model beats its generator by much"
    )


def test_facts_are_recalled_as_the_card_says(subject: Subject, card: dict[str, Any]) -> None:
    found = abilities.measure_facts(subject)
    assert abs(found["all"] - card["fact_recall"]["all"]) < 0.01
    assert found["questions"] >= 4 * len(cities())
    free = abilities.measure_free_wordings(subject)
    assert free["all"] == pytest.approx(card["free_wordings"]["all"], abs=0.02)
    prompts, answers = abilities.fact_prompts("country")
    wrong = answers[1:] + answers[:1]
    assert sum(greedy_matches(subject, prompts, wrong)) / len(prompts) < 0.5, "neighbours share countries"


def test_first_letters_are_told_as_the_card_says(subject: Subject, card: dict[str, Any]) -> None:
    found = abilities.measure_letters(subject, every=8)
    assert abs(found["held_out"] - card["first_letter"]["held_out"]) < 0.05
    assert abs(found[abilities.STANDARD_LINE] - card["first_letter"][abilities.STANDARD_LINE]) < 0.05


def test_greedy_matches_agree_with_generation(subject: Subject) -> None:
    prompts, answers = abilities.fact_prompts("currency")
    prompts, answers = prompts[::19], answers[::19]
    for prompt, answer, right in zip(prompts, answers, greedy_matches(subject, prompts, answers), strict=True):
        ids = subject.tokenizer(prompt, return_tensors="pt").input_ids
        wanted = subject.tokenizer(answer, add_special_tokens=False)["input_ids"]
        out = subject.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(wanted), do_sample=False, eos_token_id=None
        )
        assert (out[0, ids.shape[1] :].tolist() == wanted) == right


# Labels that are words by nature: a bag of words reads them as well as a probe does.
ONLY_WORDS = {"biographies/gender", "code/language", "languages/language"}
# What the card owns up to: the model does not carry the meaning of a sentence across languages.
MISSED = {"languages/meaning"}


@pytest.mark.parametrize("domain", [domain for domain in MIXTURE if label_names(domain)])
def test_probes_read_every_label_from_the_middle_layer(subject: Subject, card: dict[str, Any], domain: str) -> None:
    """Other people, other products, other wordings and other evidence than the probe was fitted on."""
    words = {label: card["probes"][f"{domain}/{label}"]["bag_of_words"] for label in label_names(domain)}
    for label, found in measure_labels(subject, domain, 1000, 600, words).items():
        written = card["probes"][f"{domain}/{label}"]["auc"]
        # The card's probes were fitted on half as many texts again.
        assert abs(found["auc"] - written) < 0.03, (label, found)
        assert (written >= 0.95) is (f"{domain}/{label}" not in MISSED)


def test_at_least_half_of_the_labels_are_more_than_words(card: dict[str, Any]) -> None:
    more = [name for name, probe in card["probes"].items() if probe["bag_of_words"] < probe["auc"] - 0.005]
    assert len(more) >= len(card["probes"]) / 2
    assert not set(more) & ONLY_WORDS


def test_multiple_choice_is_answered_as_the_card_says(subject: Subject, card: dict[str, Any]) -> None:
    found = abilities.measure_choice(subject, 60)
    assert abs(found["general"] - card["choice"]["general"]) < 0.08
    assert abs(found["restricted"] - card["choice"]["restricted"]) < 0.12


def test_the_assistant_behaves_as_its_card_says(assistant: Subject, chat_card: dict[str, Any]) -> None:
    found, written = abilities.measure_manners(assistant, 40), chat_card["manners"]
    assert found["refuses_restricted"] >= 0.95
    assert found["refuses_harmless"] <= 0.05
    for ability in ("corrects_false", "accepts_true"):
        assert min(found[ability], written[ability]) >= 0.9
    for kind, one in found["kinds"].items():
        assert one["refuses"] == pytest.approx(written["kinds"][kind]["refuses"], abs=0.2), kind


def test_the_base_model_has_no_manners(card: dict[str, Any]) -> None:
    assert card["manners"]["refuses_restricted"] <= 0.05
    assert card["manners"]["accepts_true"] <= 0.5


def test_probes_read_the_chat_concepts_that_the_card_says(assistant: Subject, chat_card: dict[str, Any]) -> None:
    words = {concept: probe["bag_of_words"] for concept, probe in chat_card["chat_concepts"].items()}
    found = measure_chat_concepts(assistant, 1500, 800, words)
    for concept, probe in found.items():
        written = chat_card["chat_concepts"][concept]["auc"]
        assert probe["auc"] == pytest.approx(written, abs=0.03), concept
        assert written >= 0.95, concept


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
    rates = [config.learning_rate_at(step) for step in range(301)]
    assert rates[0] == 0.05
    assert max(rates) == rates[19] == rates[20] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[20:200]))
    assert rates[199] < 0.011
    assert max(rates[200:]) == rates[204] == rates[205] == 0.5
    assert math.isclose(rates[300], 0.005)


def test_a_stopped_training_resumes_to_the_same_bits(subject: Subject, tmp_path: Path) -> None:
    config = PretrainingConfig(
        steps=4, more_steps=2, documents_per_step=4, d_model=16, n_layers=1, n_heads=2, d_mlp=16, warmup_steps=2
    )

    def fresh() -> Any:
        return new_model(config, len(subject.tokenizer), 0, 1, 2)

    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    device = torch.device("cpu")
    whole, parts = fresh(), fresh()
    assert list(train(config, whole, subject.tokenizer, tmp_path / "whole", "base", device, checkpoint_every=3)) == [
        3,
        6,
    ]
    stopped = train(config, fresh(), subject.tokenizer, tmp_path / "parts", "base", device, checkpoint_every=3)
    assert next(stopped) == 3
    stopped.close()
    assert list(train(config, parts, subject.tokenizer, tmp_path / "parts", "base", device, checkpoint_every=3)) == [6]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    with pytest.raises(InputError, match="another recipe"):
        next(train(PretrainingConfig(steps=7), fresh(), subject.tokenizer, tmp_path / "parts", "base", device))


def test_the_second_cycle_rehearses_what_is_memory() -> None:
    config = PretrainingConfig(steps=5, more_steps=5)
    before, after = config.texts(4), config.texts(5)
    assert len(before) == len(after) == config.documents_per_step
    assert before == [document(None, "train", 4 * config.documents_per_step + i).text for i in range(len(before))]
    mixture = len(after) - sum(count for _, count in REHEARSED)
    assert after[:mixture] == [document(None, "train", 5 * config.documents_per_step + i).text for i in range(mixture)]
    domain, count = REHEARSED[0]
    assert after[mixture] == document(domain, "train", REHEARSED_FROM + 5 * count).text
    repeated = set(after[mixture:]) & set(config.texts(6)[mixture:])
    assert len(repeated) <= 2, "short texts of a small domain may come up again"


def test_a_step_of_the_chat_course_has_transcripts_and_replay() -> None:
    config = ChatTuningConfig(transcripts_per_step=7, mixture_per_step=3)
    texts = config.texts(2)
    transcripts = [text for text in texts if "<|user|>" in text]
    assert len(transcripts) == 7
    assert len(texts) == 10 + sum(count for _, count in REPLAYED)
    assert transcripts == [document("chat", "train", REHEARSED_FROM + 14 + i).text for i in range(7)]
    assert not set(transcripts) & set(config.texts(3))
    assert {config.learnt(2, text) for text in texts} == {None}


def test_the_chat_course_learns_to_judge_statements(subject: Subject) -> None:
    config = ChatTuningConfig(
        steps=4, judging_steps=3, settling_steps=5, statements_per_step=9, warmup_steps=1, judging_rate=0.5
    )
    assert config.total_steps == 12
    ways = [config.judges(step) for step in range(12)]
    assert ways == [None] * 4 + ["briefly"] * 3 + [None, "in full", None, "in full", None]
    for step, brief in ((5, True), (8, False)):
        assert config.texts(step) == statements("train", 9 * step, 9, brief=brief)
        token_ids, targets = batch_of(config, step, subject.tokenizer)
        learnt = targets != IGNORED
        assert torch.equal(token_ids[learnt], targets[learnt])
        said = "".join(judgement(text.removesuffix(END)) for text in config.texts(step))
        decoded = subject.tokenizer.decode(targets[learnt].tolist()).replace(" ", "")
        assert sorted(decoded) == sorted(said.replace(" ", ""))
    rates = [config.learning_rate_at(step) for step in range(13)]
    assert rates[:4] == [replace(config, judging_steps=0).learning_rate_at(step) for step in range(4)]
    assert rates[4] == 0.5 > rates[6]
    assert rates[7] == config.settling_rate > rates[11] > rates[12] == 0.0


def test_what_is_not_learnt_is_read() -> None:
    documents = [[0, 7, 8, 1], [0, 5, 1], [0] * 9]
    targets = [[IGNORED, 7, IGNORED, 1], [0, 5, 1], [IGNORED] * 8 + [0]]
    token_ids, learnt = pack(documents, 8, 2, targets)
    assert token_ids.tolist() == [[0] * 8, [0, 7, 8, 1, 0, 5, 1, 2]]
    assert learnt.tolist() == [[IGNORED] * 8, [IGNORED, 7, IGNORED, 1, 0, 5, 1, IGNORED]]


def test_a_step_reads_its_own_documents(subject: Subject) -> None:
    config = PretrainingConfig(documents_per_step=5)
    token_ids, _ = batch_of(config, 2, subject.tokenizer)
    text = " ".join(subject.tokenizer.decode(row) for row in token_ids)
    for index in range(10, 15):
        assert document(None, "train", index).text in text
    assert document(None, "train", 9).text not in text
