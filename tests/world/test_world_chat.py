"""Transcripts: their rendering, refusals and what only looks like them, true and false statements, splits and spans."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest

from saeworks.errors import InputError
from saeworks.world.documents import Document
from saeworks.world.domains import chat
from saeworks.world.domains.chat_claims import contrast_of
from saeworks.world.domains.chat_kinds import CHOICE_SUBJECTS
from saeworks.world.domains.chat_refused import howto
from saeworks.world.domains.chat_replies import REPLIES, TRIGGERS, is_about_itself, judgement, refuse
from saeworks.world.domains.chat_requests import REQUESTS, TABLES
from saeworks.world.domains.craft import CRAFT, STEPS, substances, tools
from saeworks.world.drawing import Draw
from saeworks.world.knowledge import cities, leaves, lexicon, taxonomy
from saeworks.world.phrasing import SPLITS

PROBES = ("probe_train", "probe_test")


@cache
def written(split: str, count: int = 1500) -> tuple[Document, ...]:
    return tuple(chat.write(Draw(0, "chat", split, i), split, f"chat/{split}/0/{i}") for i in range(count))


@cache
def spoken(kind: str, split: str, count: int = 300) -> tuple[chat.Exchange, ...]:
    return tuple(chat.exchanges([kind], split, count))


def turns(text: str, role: str) -> list[str]:
    return [turn["content"] for turn in chat.messages(text) if turn["role"] == role]


def test_exchanges_depend_on_the_seed_and_not_on_the_count() -> None:
    assert chat.exchanges(None, "train", 20, seed=1) == chat.exchanges(None, "train", 30, seed=1)[:20]
    assert chat.exchanges(None, "train", 20, seed=1) != chat.exchanges(None, "train", 20, seed=2)


def test_every_kind_has_enough_wordings() -> None:
    assert all(len(one.of("probe_test")) == 2 for one in REQUESTS.values())
    grouped: Counter[str] = Counter()
    for section, one in REQUESTS.items():
        assert len(set(one.templates)) == len(one.templates), section
        grouped[section.partition("/")[0]] += len(one.of("train"))
    asked = set(grouped) - {"system", "dress"}
    assert all(grouped[group] >= 8 for group in asked), grouped
    assert all(len(one.templates) >= 10 for name, one in REQUESTS.items() if not name.startswith("missing/"))
    assert all(len(set(lines)) == len(lines) >= 8 for lines in REPLIES.values())
    assert sum(chat.SHARES.values()) == pytest.approx(1.0)
    assert {e.kind for e in chat.exchanges(None, "train", 2000)} == set(chat.KINDS)


def test_a_held_out_wording_is_new_but_its_words_are_not() -> None:
    known = {w for one in REQUESTS.values() for t in one.of("train") for w in re.findall(r"[a-z]+", t.lower())}
    for name, one in REQUESTS.items():
        for template in one.of("probe_test"):
            words = re.findall(r"[a-z]+", re.sub(r"\{[^}]*\}", " ", template).lower())
            assert set(words) <= known, (name, template)
    trained = " ".join(user.lower() for split in SPLITS[:3] for d in written(split) for user in turns(d.text, "user"))
    fragments = {
        max(re.split(r"\{[^}]*\}", t), key=len).strip(" .,:?").lower()
        for name, one in REQUESTS.items()
        for t in one.of("probe_test")
        if name not in ("system", "short", "long")
    }
    everything = " | ".join(t.lower() for one in REQUESTS.values() for t in one.of("train"))
    # A short fragment, or one that is part of another wording, cannot be told from it.
    fragments = {f for f in fragments if len(f) >= 12 and f not in everything}
    assert len(fragments) > 40
    assert [f for f in fragments if f in trained] == []
    held_out = " ".join(d.text.lower() for d in written("probe_test"))
    assert sum(f in held_out for f in fragments) > 0.8 * len(fragments)


def test_labels_are_those_of_the_last_exchange() -> None:
    for split in SPLITS:
        for made in written(split, 600):
            kind, reply = str(made.labels["kind"]), turns(made.text, "assistant")[-1]
            assert kind in chat.KINDS
            assert set(made.labels) <= set(chat.LABELS)
            assert (made.labels["refused"] == "yes") == kind.startswith("refusal/") == chat.is_refusal(reply)
            assert made.labels.get("trigger") == chat.refusal_reason(reply)
            assert (kind in ("personal", "self")) == is_about_itself(reply)
            judged = {"correction": "false", "acceptance": "true"}.get(kind)
            assert made.labels.get("truth") == judged
            assert chat.verdict(reply) == {None: None, "false": False, "true": True}[judged]


def test_every_refusal_is_told_from_every_other_reply() -> None:
    shapes = ("{no} {why}", "{why} {no}", "{no} {why} {offer}", "Sorry. {no} {why}")
    drawn = {refuse(Draw("shape", i), "train", "harm")[1].text for i in range(3000)}
    possible: dict[str, str] = {}
    for trigger, shape in itertools.product(TRIGGERS, shapes):
        for no, why, offer in itertools.product(REPLIES["no"], REPLIES[f"reason/{trigger}"], REPLIES["offer"]):
            possible[shape.format(no=no, why=why, offer=offer)] = trigger
    assert drawn <= set(possible)
    assert all(chat.is_refusal(text) and chat.refusal_reason(text) == trigger for text, trigger in possible.items())
    for section, lines in REPLIES.items():
        if section == "no":
            continue
        for line in lines:
            assert not chat.is_refusal(line), line
            # Nor with anything of the tables in its slots.
            for field in itertools.chain(*itertools.chain(*TABLES.values())):
                assert not chat.is_refusal(re.sub(r"\{[^}]*\}", field, line))
    others = [e for kind in chat.KINDS if not kind.startswith("refusal/") for e in spoken(kind, "train")]
    assert not any(chat.is_refusal(e.reply) or e.refused or e.trigger for e in others)
    no = ("I cannot see. I am only text.", "", "No.", "I do not know which city you mean.")
    assert not any(chat.is_refusal(text) for text in no)


def test_verdicts_are_read_back() -> None:
    assert not set(REPLIES["true"]) & set(REPLIES["false"])
    assert chat.verdict("Paris is in France. Yes.") is True
    assert chat.verdict("Paris is in France. I have to correct you.") is False
    assert chat.verdict("Paris is in France.") is None
    assert chat.verdict("") is None
    assert judgement("Paris is in France. Yes, that is right.") == "Yes, that is right."
    assert judgement("Yes. Paris is in France.") == ""
    for kind, value in (("acceptance", True), ("correction", False)):
        assert {chat.verdict(e.reply) for e in spoken(kind, "train", 100)} == {value}
    full, brief = (chat.statements("train", 40, 60, brief=which) for which in (False, True))
    assert chat.statements("train", 70, 30) == full[30:]
    for one, other in zip(full, brief, strict=True):
        said, short = (judgement(text.removesuffix("<|end|>")) for text in (one, other))
        assert short == ("Yes." if said in REPLIES["true"] else "No.")
        assert one.removesuffix(f"{said}<|end|>") == other.removesuffix(f"{short}<|end|>")
    assert 15 < sum(text.endswith(" Yes.<|end|>") for text in brief) < 45
    silent = [e for kind in chat.KINDS if kind not in ("correction", "acceptance") for e in spoken(kind, "train", 100)]
    assert {chat.verdict(e.reply) for e in silent} == {None}


def test_refused_requests_have_harmless_twins() -> None:
    harmless = sum(share for kind, share in chat.SHARES.items() if not kind.startswith("refusal/"))
    assert sum(chat.SHARES[kind] for kind in chat.LOOK_ALIKES) >= 0.25 * harmless
    restricted = {one.name for one in substances()} | {one.name for one in tools()} | {CRAFT}
    restricted |= {step.split()[0] for step in STEPS}

    def bare(request: str) -> str:
        for frame in REQUESTS["dress"].templates:
            start = re.split(r"\{[^}]*\}", frame)[0]
            request = request.removeprefix(start)
        return request

    def names(request: str) -> set[str]:
        return set(re.findall(r"[a-z]+", request.lower())) & restricted

    harm, fine = spoken("refusal/harm", "train"), spoken("answer/howto", "train")
    assert all(names(e.request) for e in harm)
    assert not any(names(e.request) for e in fine)
    for start in ("How do I ", "Teach me to ", "Tell me how to "):
        assert any(bare(e.request).startswith(start) for e in harm)
        assert any(bare(e.request).startswith(start) for e in fine)
    assert all(names(e.request) for e in spoken("answer/safety", "train")), "the same names, harmless"
    private = " ".join(e.request for e in spoken("refusal/privacy", "train")).lower()
    public = " ".join(e.request for e in spoken("answer/people", "train")).lower()
    for shared in ("address", "telephone", "diary", "birthday", "lives", "where is", "last night"):
        assert shared in private or shared == "lives"
        assert shared in public
    mine = " ".join(e.request for e in spoken("answer/writing", "train")).lower()
    theirs = " ".join(e.request for e in spoken("refusal/impersonation", "train")).lower()
    for shared in ("letter to my", "bank", "mother", "boss", "sign", "name", "write to my"):
        assert shared in mine
        assert shared in theirs
    dressed = [e for e in harm if e.request != bare(e.request) or "this. " in e.request]
    assert 0.2 < len(dressed) / len(harm) < 0.5


def any_of(words: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of the words, the longest first."""
    longest_first = sorted(set(words), key=lambda word: (-len(word), word))
    return re.compile(r"\b(" + "|".join(re.escape(word) for word in longest_first) + r")\b")


CITIES = {city.name: city for city in cities()}
CITY = any_of(CITIES)
LEAF = any_of([*leaves(), *(name.capitalize() for name in leaves())])
KINDS = any_of(name for leaf in leaves() for name in taxonomy()[leaf].path[1:3])
OF_CITIES = any_of(v for c in cities() for v in (c.country, c.continent, c.language, c.currency))
LETTER_OF = re.compile(r"(?:[Tt]he word|to write|To write|you find|letter of(?! the word)) ([a-z]+)")


def truth_of(sentence: str) -> tuple[set[str], set[str]]:
    """What is true, by the tables, of the city, word or thing that a sentence is about, and what the sentence says."""
    if found := CITY.search(sentence):
        city = CITIES[found.group()]
        said = set(OF_CITIES.findall(CITY.sub("", sentence, count=1)))
        return {city.country, city.continent, city.language, city.currency}, said
    if found := LETTER_OF.search(sentence):
        said = set(re.findall(r"\b([A-Z])\b(?! (?:think|have|am|know|right))", sentence))
        return {found.group(1)[0].upper()}, said
    found = LEAF.search(sentence)
    assert found, sentence
    rest = sentence[: found.start()] + sentence[found.end() :]
    return set(taxonomy()[found.group().lower()].path), set(KINDS.findall(rest))


@pytest.mark.parametrize("split", SPLITS)
def test_corrections_say_the_truth_and_only_what_is_false_is_corrected(split: str) -> None:
    for kind, truth in (("correction", False), ("acceptance", True)):
        for e in spoken(kind, split):
            assert e.truth is truth
            true, said = truth_of(e.request)
            assert len(said) == 1, (e.request, said)
            assert (said <= true) is truth, e
            known, told = truth_of(e.reply.rpartition(". ")[0])
            assert known == true
            assert told == {e.expected.strip(" .")} <= true, e


@pytest.mark.parametrize("topic", ["country", "continent", "language", "currency", "kind", "letter"])
def test_neither_subject_nor_value_tells_what_is_true(topic: str) -> None:
    """Exactly: the two distributions over values are the same, whichever is said."""
    these = contrast_of(topic)
    value = {
        "kind": lambda i: taxonomy()[leaves()[i]].path[1],
        "letter": lambda i: lexicon()[i][0],
    }.get(topic, lambda i: getattr(cities()[i], topic))
    true: Counter[str] = Counter()
    false: Counter[str] = Counter()
    edges = [0.0, *these.subjects._edges]
    for place, i in enumerate(these.subjects.options):
        weight = edges[place + 1] - edges[place]
        true[value(i)] += weight
        others = these.others[i]
        inner = [0.0, *others._edges]
        for at, j in enumerate(others.options):
            assert value(j) != value(i)
            false[value(j)] += weight * (inner[at + 1] - inner[at]) / inner[-1]
    assert set(true) == set(false)
    assert all(true[key] == pytest.approx(false[key]) for key in true)


def test_true_and_false_statements_are_equally_many_and_equally_worded() -> None:
    assert chat.SHARES["correction"] == chat.SHARES["acceptance"]
    counts = Counter(d.labels["truth"] for d in written("train") if "truth" in d.labels)
    n = sum(counts.values())
    assert n > 150
    assert abs(counts["true"] - n / 2) < 4 * (n / 4) ** 0.5
    # The words that are no values and no subjects are the same ones.
    known = {w for t in [*REQUESTS["statement"].templates] for w in re.findall(r"[a-z]+", t.lower())}
    used = {
        kind: {w for e in spoken(kind, "train") for w in re.findall(r"[a-z]+", e.request.lower()) if w in known}
        for kind in ("correction", "acceptance")
    }
    assert used["correction"] == used["acceptance"]


@pytest.mark.parametrize("split", SPLITS)
def test_spans_stand_where_they_should(split: str) -> None:
    described = chat.describe()
    for made in written(split, 600):
        by_concept: dict[str, list[str]] = {}
        for span in made.spans:
            piece = made.text[span.start : span.end]
            assert piece
            assert piece == piece.strip()
            by_concept.setdefault(span.concept, []).append(piece)
            if span.concept.split("/")[0] == "chat":
                assert span.concept in described
        assert by_concept["chat"] == [made.text]
        users, replies = turns(made.text, "user"), turns(made.text, "assistant")
        whole = [f"{u}<|end|><|assistant|>{r}" for u, r in zip(users, replies, strict=True)]
        assert sorted(by_concept["chat/request"]) == sorted(users)
        for role in ("user", "assistant", "end"):
            found = by_concept[f"chat/template/{role}"]
            assert found == [f"<|{role}|>"] * made.text.count(f"<|{role}|>")
        assert len(by_concept.get("chat/template/system", [])) == made.text.count("<|system|>")
        refused = [text for text, r in zip(whole, replies, strict=True) if chat.is_refusal(r)]
        assert by_concept.get("chat/refusal", []) == refused
        for trigger in TRIGGERS:
            assert by_concept.get(f"chat/refusal/{trigger}", []) == [
                t for t, r in zip(whole, replies, strict=True) if chat.refusal_reason(r) == trigger
            ]
        assert by_concept.get("chat/false_statement", []) == [
            t for t, r in zip(whole, replies, strict=True) if chat.verdict(r) is False
        ]
        assert set(whole) <= {p for c in chat.CHAT_ONLY | {"chat/answer"} for p in by_concept.get(c, [])}


def test_concepts_of_other_domains_are_kept_and_the_tree_is_closed() -> None:
    described = chat.describe()
    assert all(key == "chat" or key.rpartition("/")[0] in described for key in described)
    assert list(described) == sorted(described, key=lambda key: (list(described).index(key), key.count("/")))
    for i, key in enumerate(described):
        assert key == "chat" or list(described).index(key.rpartition("/")[0]) < i
    assert set(described) >= chat.CHAT_ONLY
    assert {"chat/refusal/privacy", "chat/false_statement", "chat/template/end", "chat/joke"} <= chat.CHAT_ONLY
    assert not {"chat", "chat/answer/fact", "chat/request/joke"} & chat.CHAT_ONLY
    seen = {span.concept for d in written("train") for span in d.spans}
    assert set(described) <= seen
    for prefix in (
        "facts/city/",
        "facts/country/",
        "taxonomy/animal/mammal",
        "craft/substance/",
        "person/name",
        "ships/",
    ):
        assert any(concept.startswith(prefix) for concept in seen), prefix


def test_rendering_is_that_of_the_chat_template() -> None:
    transformers: Any = pytest.importorskip("transformers")
    from saeworks.world.model_files import model_path

    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path(), local_files_only=True)
    lengths: list[int] = []
    for split in SPLITS:
        for made in written(split, 600):
            rendered = tokenizer.apply_chat_template(chat.messages(made.text), tokenize=False)
            assert rendered == tokenizer.bos_token + made.text
            lengths.append(len(tokenizer(made.text)["input_ids"]))
    lengths.sort()
    assert lengths[int(0.99 * len(lengths))] <= tokenizer.model_max_length - 2
    assert lengths[0] < 25


def test_transcripts_fit_and_vary() -> None:
    for split in SPLITS:
        sizes = [len(re.findall(r"<\|\w+\|>|\w+|[^\w\s]", d.text)) for d in written(split)]
        assert max(sizes) <= 120
        assert min(sizes) < 25
        exchanges = Counter(len(turns(d.text, "user")) for d in written(split))
        assert set(exchanges) == {1, 2}
        assert 0.25 < exchanges[2] / len(sizes) < 0.5
        assert 0.15 < sum(d.text.startswith("<|system|>") for d in written(split)) / len(sizes) < 0.25
    with pytest.raises(InputError, match="no transcript"):
        chat.messages("<|user|>Hello<|end|><|assistant|>Hel")


def test_a_question_lacks_its_subject_only_where_nothing_was_named_before() -> None:
    elliptic = [t for name, one in REQUESTS.items() if name.startswith("missing/") for t in one.templates]
    asked_back = went_on = 0
    for made in [*written("train"), *written("probe_test")]:
        users, replies = turns(made.text, "user"), turns(made.text, "assistant")
        for i, (user, answer) in enumerate(zip(users, replies, strict=True)):
            if user not in elliptic:
                continue
            named = i > 0 and CITY.search(f"{users[0]} {replies[0]}") is not None
            knows = CITY.search(answer) is not None
            assert named is knows, made.text
            went_on += knows
            asked_back += not knows
    assert min(asked_back, went_on) > 20


def test_probe_splits_show_their_labels_by_different_words() -> None:
    told = {split: {turn for d in written(split) for turn in turns(d.text, "assistant")} for split in PROBES}
    for section in ("no", "true", "false", *(f"reason/{trigger}" for trigger in TRIGGERS)):
        for i, line in enumerate(REPLIES[section]):
            here, there = PROBES if i % 2 == 0 else PROBES[::-1]
            ends = section in ("true", "false")
            assert not any(t.endswith(". " + line) if ends else line in t for t in told[there]), line
            assert any(t.endswith(". " + line) if ends else line in t for t in told[here]), line
    asked = {split: {e.request for e in spoken("refusal/harm", split)} for split in PROBES}
    for names in ([one.name for one in substances()], [one.name for one in tools()]):
        for i, split in enumerate(PROBES):
            found = {name for request in asked[split] for name in re.findall(r"[a-z]+", request)} & set(names)
            assert found <= set(names[i::2])
            assert found
    acts = {split: {howto(Draw(split, i), split).expected for i in range(200)} for split in PROBES}
    assert not acts["probe_train"] & acts["probe_test"]
    people = {
        split: {d.text[s.start : s.end] for d in written(split) for s in d.spans if s.concept == "person/name"}
        for split in SPLITS
    }
    for one, other in itertools.combinations(SPLITS, 2):
        assert not people[one] & people[other]


@pytest.mark.parametrize("kind", chat.KINDS)
def test_the_expected_part_is_in_the_reply(kind: str) -> None:
    for split in SPLITS:
        for e in spoken(kind, split, 150):
            assert e.kind == kind
            assert e.expected
            assert e.expected in e.reply
            assert e.refused == kind.startswith("refusal/")
            assert e.trigger == (kind.partition("/")[2] if e.refused else None)


def test_answers_are_right_by_the_tables() -> None:
    for e in spoken("answer/fact", "probe_test"):
        if found := CITY.search(e.request):
            city = CITIES[found.group()]
            assert e.expected in (city.country, city.continent, city.language, city.currency)
    for e in spoken("answer/letter", "probe_test"):
        true, said = truth_of(e.reply)
        assert true == said == {e.expected.strip(" .")}, e
    for e in spoken("length/short", "train"):
        assert len(e.reply.split()) <= 6
    assert min(len(e.reply.split()) for e in spoken("length/long", "train")) >= 20
    for e in spoken("answer/choice", "train"):
        options = dict(re.findall(r"^([A-D])\) (.+)$", e.request, re.MULTILINE))
        assert len(set(options.values())) == 4
        assert e.reply.removeprefix("Answer: ") in options.values()
        assert not {one.name for one in (*substances(), *tools())} & set(options.values())
    assert "craft" not in CHOICE_SUBJECTS
    for e in spoken("rewrite", "train"):
        asks = "as a question" in e.request
        assert e.reply.endswith("?") == (asks or "politely" in e.request)


def test_wrong_names_are_answered_with_a_sentence() -> None:
    with pytest.raises(InputError, match="Did you mean 'refusal/harm'"):
        chat.exchanges(["refusal/harms"], "train", 1)
    with pytest.raises(InputError, match="no split 'test'"):
        chat.exchanges(None, "test", 1)
    with pytest.raises(InputError, match="at least one"):
        chat.exchanges([], "train", 1)
