"""The world's base and chat model over the same tokens: what is paired, what is marked, what is refused."""

import json
import random

import pytest
import torch

from saeworks.activations.streams import StoredStream
from saeworks.activations.texts import ListTexts, open_texts
from saeworks.diffing.model_pair import ModelPair, Turns
from saeworks.diffing.paired_batches import PairedSource, check_alignment
from saeworks.diffing.paired_stream import PairedHarvester, PairedStream, write_paired_store
from saeworks.diffing.transcripts import Transcripts, open_transcripts, render
from saeworks.errors import InputError
from saeworks.models.language_model import load_language_model

SITE = "layers.1.resid_post"
TALK = [
    [{"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": "It is Paris."}],
    [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Tell me about carrots."},
        {"role": "assistant", "content": "Carrots are roots."},
        {"role": "user", "content": "And apples?"},
        {"role": "assistant", "content": "Apples grow on trees."},
    ],
]
TEXTS = ["Paris is a city in France.", "Carrots are roots, and apples grow on trees.", "The ship left the harbour."]


@pytest.fixture(scope="module")
def models():
    return load_language_model("world:base", device="cpu"), load_language_model("world:chat", device="cpu")


def pair(models, texts=TEXTS, talk=TALK, **changes):
    sources = ListTexts(texts) if texts else None, Transcripts(talk) if talk else None
    return ModelPair(*models, SITE, *sources, **{"batch_rows": 2, **changes})


def test_a_row_is_what_each_model_computes_for_the_transcript_alone(models):
    found = {}
    for batch in pair(models, texts=None).batches():
        assert batch.data_set == "chat"
        for row in range(len(batch)):
            found[int(batch.sequence_ids[row]), int(batch.positions[row])] = batch[row : row + 1]
    for number, turns in enumerate(TALK):
        ids, template, _ = render(models[1].tokenizer, turns)
        alone = models[1].batch_from_ids([ids])
        for source, model in enumerate(models):
            expected = model.harvest(alone, [SITE])[SITE][0]
            for position in range(1, len(ids)):
                row = found[number, position]
                assert torch.allclose(row.x[source][0], expected[position], atol=2e-3, rtol=1e-4)
                assert int(row.token_ids) == ids[position]
                assert bool(row.is_template) == template[position]
        assert (number, 0) not in found, "BOS does not count"
        assert ids.count(models[1].tokenizer.bos_token_id) == 1


def test_answers_are_counted_at_the_token_before(models):
    tokenizer = models[1].tokenizer
    ids, template, answers = render(tokenizer, TALK[1])
    said = {}
    for position, k in enumerate(answers):
        if k == 0:
            said[len(said)] = []
        if k >= 0:
            assert k == len(said[len(said) - 1])
            said[len(said) - 1].append(ids[position + 1])
    assert [tokenizer.decode(tokens) for tokens in said.values()] == ["Carrots are roots.", "Apples grow on trees."]
    shown = tokenizer.decode([i for i, marked in zip(ids, template, strict=True) if marked])
    assert shown == "<|system|><|end|>" + "<|user|><|end|><|assistant|><|end|>" * 2


def test_a_template_of_words_is_told_by_where_the_messages_stand(models):
    from copy import deepcopy

    tokenizer = deepcopy(models[1].tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }} says: {{ m['content'] | trim }}\n{% endfor %}"  # no BOS of its own
    )
    turns = [{"role": "user", "content": "  user says: hello "}, {"role": "assistant", "content": "hello"}]
    ids, template, answers = render(tokenizer, turns)
    assert ids[0] == tokenizer.bos_token_id
    assert not template[0]
    content = [i for i, marked in zip(ids[1:], template[1:], strict=True) if not marked]
    assert tokenizer.decode(content).split() == ["user", "says:", "hello", "hello"]
    last = max(position for position, k in enumerate(answers) if k >= 0)
    assert tokenizer.decode(ids[last + 1]).strip() == "hello" or answers[last] > 0


def test_passes_are_the_same_every_time_and_data_sets_take_turns(models):
    source = ModelPair(*models, SITE, open_texts(("world",)), open_transcripts("world"), batch_rows=4)
    assert isinstance(source, PairedSource)
    first, again = (list(source.batches(1500)) for _ in range(2))
    assert sum(map(len, first)) == 1500
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.x, other.x, strict=True))
        assert torch.equal(one.token_ids, other.token_ids)
        assert one.data_set == other.data_set
    given = {name: sum(len(b) for b in first if b.data_set == name) for name in ("texts", "chat")}
    assert abs(given["texts"] - given["chat"]) <= 2 * max(map(len, first))
    assert not {i for b in first if b.data_set == "chat" for i in b.sequence_ids.tolist()} & {
        i for b in first if b.data_set == "texts" for i in b.sequence_ids.tolist()
    }
    assert not any(bool(b.is_template.any()) for b in first if b.data_set == "texts")
    with pytest.raises(InputError, match="never ends"):
        next(source.batches())


def test_one_model_twice_runs_once_and_is_equal(models, monkeypatch):
    chat, calls = models[1], []
    kept = chat.harvest
    monkeypatch.setattr(chat, "harvest", lambda *a: calls.append(a) or kept(*a))
    batches = list(pair((chat, chat)).batches())
    assert len(calls) == len(batches)
    assert all(torch.equal(*batch.x) for batch in batches)


def test_the_base_reads_other_tokens_where_they_are_replaced(models):
    tokenizer = models[1].tokenizer
    old, new = (tokenizer.convert_tokens_to_ids(t) for t in ("<|assistant|>", "<|user|>"))
    plain, changed = (
        next(pair(models, texts=None, token_replacement=r, batch_rows=1).batches()) for r in ({}, {old: new})
    )
    assert torch.equal(plain.token_ids, changed.token_ids), "the original ids are reported"
    assert torch.equal(plain.x[1], changed.x[1])
    at = int((plain.token_ids == old).nonzero()[0])
    assert torch.equal(plain.x[0][:at], changed.x[0][:at])
    assert not torch.allclose(plain.x[0][at], changed.x[0][at])


def test_what_does_not_count_is_left_out_and_counted(models):
    source = pair(models)
    count = sum(map(len, source.batches()))
    seen = source.statistics
    assert seen.tokens == count == seen.positions - seen.padding - seen.special
    shorter = pair(models, skip_first=4)
    assert all(int(b.positions.min()) >= 4 for b in shorter.batches())
    strict = pair(models, max_norm_ratio=1.2)
    kept = list(strict.batches())
    assert strict.statistics.outliers == count - sum(map(len, kept)) > 0


def test_data_of_which_nothing_counts_keeps_nobody_waiting(models):
    """Turns go by what was given; one that gives nothing would have them all, for ever."""
    short = pair(models, texts=["One two."] * 8, skip_first=12)
    turns = Turns(short, epochs=None).contexts()
    seen = [next(turns) for _ in range(40)]
    assert not any(bool(c.keep.any()) for c in seen if c.data_set == "texts")
    assert any(bool(c.keep.any()) for c in seen if c.data_set == "chat")
    nothing = pair(models, skip_first=120)
    with pytest.raises(InputError, match="no usable token in a whole pass"):
        next(PairedHarvester(nothing).batches())


@pytest.mark.parametrize("seed", range(6))
def test_a_token_dropped_from_one_source_is_detected(models, seed):
    """Rows of the two models as two stores would hand them out, one of them with a slip."""
    draw = random.Random(seed)
    whole = {"token_ids": [], "sequence_ids": [], "positions": []}
    for batch in pair(models).batches():
        for name, parts in whole.items():
            parts.append(getattr(batch, name))
    whole = {name: torch.cat(parts) for name, parts in whole.items()}
    check_alignment(whole, whole)
    at, size = draw.randrange(len(whole["token_ids"])), len(whole["token_ids"])
    rest = torch.tensor([i for i in range(size) if i != at])
    dropped = {name: t[rest] for name, t in whole.items()}
    with pytest.raises(InputError, match=f"{size} rows came from the base and {size - 1}"):
        check_alignment(whole, dropped)
    # Of equal length, because both end somewhere: the row is named.
    cut = {name: t[: size - 1] for name, t in whole.items()}
    if at < size - 1:
        with pytest.raises(InputError, match=r"part at row \d+"):
            check_alignment(cut, dropped)


def test_a_model_that_swallows_a_position_is_detected(models, monkeypatch):
    chat = models[1]
    kept = chat.harvest
    monkeypatch.setattr(chat, "harvest", lambda *a: {name: rows[:, 1:] for name, rows in kept(*a).items()})
    with pytest.raises(InputError, match="slip against each other"):
        list(pair(models).batches())


def test_a_stream_resumes_to_the_same_bits_and_its_rows_are_pairs(models):
    def stream():
        return PairedStream(pair(models), buffer_tokens=64, seed=3)

    whole, first = stream(), stream()
    for _ in range(3):
        whole.next_batch(16)
        first.next_batch(16)
    state = first.state_dict()
    again = stream()
    again.load_state_dict(json_roundtrip(state))
    known = {}
    for batch in pair(models).batches():
        for row in range(len(batch)):
            known[int(batch.sequence_ids[row]), int(batch.positions[row])] = [part[row] for part in batch.x]
    for _ in range(6):
        one, other = whole.next_batch(16), again.next_batch(16)
        assert torch.equal(one.activations, other.activations)
        assert torch.equal(one.document_ids, other.document_ids)
        assert one.activations.shape == (16, 2, 256)
        for row in range(16):
            expected = known[int(one.document_ids[row]), int(one.positions[row])]
            assert torch.allclose(one.activations[row], torch.stack(expected), atol=2e-3, rtol=1e-4)
    assert whole.statistics == again.statistics
    assert whole.layout.sources == ("base", "chat")
    with pytest.raises(InputError, match="another model, text or setting"):
        PairedStream(pair(models, skip_first=1), buffer_tokens=64, seed=3).load_state_dict(state)


def json_roundtrip(state):
    """Numbers through JSON as a checkpoint does; tensors as they are."""
    return {
        k: json_roundtrip(v) if isinstance(v, dict) else (v if torch.is_tensor(v) else json.loads(json.dumps(v)))
        for k, v in state.items()
    }


def test_a_stored_pair_streams_the_same_pairs(models, tmp_path):
    source = pair(models)
    total = sum(map(len, source.batches()))
    write_paired_store(source, total, tmp_path / "store", dtype="float32", shard_rows=16)
    stream = StoredStream(tmp_path / "store")
    assert stream.layout.sources == ("base", "chat")
    batch = stream.next_batch(total)
    assert batch.activations.shape == (total, 2, 256)
    rows = {}
    for one in source.batches():
        for row in range(len(one)):
            rows[int(one.sequence_ids[row]), int(one.positions[row])] = torch.stack([part[row] for part in one.x])
    assert len(rows) == total
    for row in range(total):
        expected = rows.pop((int(batch.document_ids[row]), int(batch.positions[row])))
        assert torch.equal(batch.activations[row], expected)
    with pytest.raises(InputError, match="finished activation store"):
        write_paired_store(source, total, tmp_path / "store")


class Other:
    """A model with something else about it."""

    def __init__(self, model, **changes):
        self.__dict__.update(model.__dict__, **changes)
        self.__class__ = type("Other", (type(model),), {})


class Tokens:
    """A tokenizer with another vocabulary."""

    def __init__(self, tokenizer, vocabulary, template=True):
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self.chat_template = tokenizer.chat_template if template else None

    def get_vocab(self):
        return self._vocabulary

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, *a, **k):
        return self._tokenizer(*a, **k)


def test_models_that_cannot_be_paired_are_refused(models):
    base, chat = models
    vocabulary = dict(chat.tokenizer.get_vocab())
    token, number = "carrots", None
    token = next(t for t in vocabulary if t.isalpha())
    number = vocabulary[token]
    swapped = Tokens(chat.tokenizer, {**vocabulary, token: number + 1})
    with pytest.raises(InputError, match=rf"'{token}' is token {number} of the base .* and {number + 1} of the chat"):
        pair((base, Other(chat, tokenizer=swapped)))
    smaller = Tokens(chat.tokenizer, {t: i for t, i in vocabulary.items() if t != token})
    with pytest.raises(InputError, match=r"1 tokens that the chat model .* lacks"):
        pair((base, Other(chat, tokenizer=smaller)))
    larger = Other(chat, tokenizer=Tokens(chat.tokenizer, {**vocabulary, "<|tool|>": 5120}))
    with pytest.raises(InputError, match=r"the base .* has 5120 embeddings, and 1 tokens .* '<\|tool\|>' \(5120\)"):
        pair((base, larger))
    pair((base, larger), token_replacement={5120: 4})
    with pytest.raises(InputError, match="which has 5120 tokens"):
        pair(models, token_replacement={4: 6000})
    with pytest.raises(InputError, match="rounding would look like a difference"):
        pair((Other(base, dtype=torch.bfloat16), chat))
    with pytest.raises(InputError, match="no chat template"):
        pair((base, Other(chat, tokenizer=Tokens(chat.tokenizer, vocabulary, template=False))))
    with pytest.raises(InputError, match="nothing to read"):
        pair(models, texts=None, talk=None)
    with pytest.raises(InputError, match="above 1"):
        pair(models, max_norm_ratio=0.5)


def test_transcripts_that_are_none_are_refused(tmp_path, models):
    with pytest.raises(InputError, match="a list of messages"):
        Transcripts([[{"role": "user"}]])
    with pytest.raises(InputError, match="no file of transcripts"):
        open_transcripts(str(tmp_path / "missing.jsonl"))
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps({"messages": TALK[0]}) + "\n\n" + json.dumps({"messages": TALK[1]}) + "\n")
    source = open_transcripts(str(file), split="all")
    assert [json.loads(d.text) for d in source.documents()] == TALK
    assert [json.loads(d.text) for d in source.documents(1)] == TALK[1:]
    file.write_text(json.dumps({"text": "hello"}) + "\n")
    with pytest.raises(InputError, match="line 1 has no 'messages', only text"):
        list(source.documents())
    strict = pair(models, texts=None)
    tokenizer = strict.models[1].tokenizer
    kept = tokenizer.chat_template
    try:
        tokenizer.chat_template = "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}" + kept
        ids = {i for batch in strict.batches() for i in batch.sequence_ids.tolist()}
    finally:
        tokenizer.chat_template = kept
    assert ids == {0}, "what the template refuses is left out"


def test_a_message_that_also_stands_in_the_template_is_found_where_it_was_said():
    from tiny_pair import tokenizer

    template = (
        "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ 'a cat' if m['role'] == 'user' else 'the dog' }} "
        "{{ m['content'] }} <|end|> {% endfor %}"
    )
    made = tokenizer(template)
    ids, is_template, answers = render(
        made, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "dog"}]
    )
    words = made.convert_ids_to_tokens(ids)
    assert [w for w, marked in zip(words, is_template, strict=True) if not marked] == ["<bos>", "a", "dog"]
    # Both messages stand behind the template's own "a cat" and "the dog"; that "dog" predicts the answer's.
    assert [i for i, marked in enumerate(is_template) if not marked] == [0, 4, 9]
    assert [(i, k) for i, k in enumerate(answers) if k >= 0] == [(8, 0)]


def test_a_file_of_transcripts_holds_out_some(tmp_path):
    file = tmp_path / "talks.jsonl"
    talks = [[{"role": "user", "content": f"question {i}"}] for i in range(400)]
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    parts = {
        split: [d.text for d in open_transcripts(str(file), split=split).documents()]
        for split in ("train", "validation", "all")
    }
    assert not set(parts["train"]) & set(parts["validation"])
    assert set(parts["train"]) | set(parts["validation"]) == set(parts["all"])
    assert 5 <= len(parts["validation"]) <= 40
    validation = open_transcripts(str(file), split="validation")
    assert [d.text for d in validation.documents(2, 3)] == parts["validation"][2:5]
    assert validation.fingerprint() != open_transcripts(str(file), split="train").fingerprint()
    with pytest.raises(InputError, match="no split 'test'"):
        open_transcripts(str(file), split="test")
