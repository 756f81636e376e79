"""The corpus: its bytes, its spans, its splits, and what its labels may and may not tell."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter

import pytest

from saeworks.errors import InputError
from saeworks.world import corpus
from saeworks.world.concepts import concepts
from saeworks.world.corpus import DOMAINS, SPLIT_NAMES, document, documents, label_names, surprise
from saeworks.world.documents import Document
from saeworks.world.domains import biographies, craft, facts, news, portraits, reviews, ships, spelling, taxonomy
from saeworks.world.drawing import Draw, Pool, Weighted, zipf
from saeworks.world.knowledge import cities, leaves, lexicon, names, roots
from saeworks.world.knowledge import taxonomy as things
from saeworks.world.people import SHARES, split_of
from saeworks.world.phrasing import Relation

# sha256 over texts, labels and spans of the first 300 documents of a domain, training split, seed 0.
BYTES = {
    "biographies": "d622957db831eaeffcd0691137afbad91e0954415e57a7d519a5c7e8f0f466f1",
    "reviews": "1860f77a2f669f0414f2d8106fb38670cf5a8e46a8315cb5a2a7379bb45363fe",
    "news": "7523f4da7b777b97d713dcc4d04aa07a214826bb9d9b89fae2e0f8e285b50557",
    "code": "9a8c7fd834c1108995df3a14b97de1c0c494d04f846c61d0c19de50012fb90bc",
    "languages": "f09a6004a4e1c4ef8ad386c0a1f21f39255e7fb449869cfecbaa91e67574f78e",
    "taxonomy": "23baa1f5bf9c48e42e45ffc497189bb27dfe3140e9cae10321ad92251c95d539",
    "spelling": "7c029010c6806fe54df175a8bfd0314e1c0834d2b4ddc092c38768a831d68b9c",
    "facts": "7e62e79c5c2c21b6b85244893a249b2e24a2d619a4d6567205cb8406b24f89de",
    "ships": "cf19f954294e0f4724dbcd26fff081c22d8c72f5ad6984cd9138fff3f7397249",
    "craft": "4b58e128237af36e84695b1065049c7cf1bf7e38a17a38219fcf24fec3750d21",
    "questions": "91280aec27da1acdc9c8c83a1ee02ddbcd4bbbfafe457d0030e748163c0265a7",
    "comparisons": "cf1a8d59158b5dfe2514f2452577f7897ab4c41b79cfe70478531b958c6cafa6",
    "portraits": "3cb1292ee23c29fdc93090e00ef8b5c5294a8a4c47bcb952698e30ebcad0e910",
    "chat": "59af490389183d8ee442ca32f7ce662ea594dec5ce6f382668685a95ffdb8641",
}


def digest(domain: str, count: int = 300) -> str:
    h = hashlib.sha256()
    for made in documents(domain, "train", count=count):
        spans = ";".join(f"{s.start},{s.end},{s.concept}" for s in made.spans)
        labels = ";".join(f"{key}={value}" for key, value in sorted(made.labels.items()))
        h.update(f"{made.id}\x1e{made.text}\x1e{labels}\x1e{spans}\x1d".encode())
    return h.hexdigest()


@pytest.mark.parametrize("domain", DOMAINS)
def test_bytes_of_the_corpus_never_change(domain: str) -> None:
    assert digest(domain) == BYTES[domain]


def test_fingerprint_is_of_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    before = corpus.fingerprint()
    assert re.fullmatch(r"[0-9a-f]{64}", before)
    corpus.fingerprint.cache_clear()
    monkeypatch.setattr(news, "AFTER", Relation((*news.AFTER.templates[:-1], "now {result}.")))
    try:
        assert corpus.fingerprint() != before
    finally:
        corpus.fingerprint.cache_clear()


@pytest.mark.parametrize("domain", [*DOMAINS, None])
def test_a_document_depends_on_its_name_alone(domain: str | None) -> None:
    in_order = list(documents(domain, "validation", seed=3, count=20))
    assert document(domain, "validation", 17, seed=3) == in_order[17]
    endless = list(itertools.islice(documents(domain, "validation", seed=3), 20))
    assert endless == in_order
    assert list(documents(domain, "validation", seed=4, count=20)) != in_order


@pytest.mark.parametrize("domain", DOMAINS)
def test_spans_stand_on_their_text_and_name_known_concepts(domain: str) -> None:
    known = concepts()
    seen: Counter[str] = Counter()
    for split in SPLIT_NAMES:
        for made in documents(domain, split, count=300):
            assert made.text
            assert list(made.spans) == sorted(made.spans, key=lambda s: (s.start, -s.end, s.concept))
            for span in made.spans:
                assert 0 <= span.start < span.end <= len(made.text)
                assert span.concept in known
                piece = made.text[span.start : span.end]
                assert piece == piece.strip() or domain == "spelling"
                seen[span.concept] += 1
                check_span(span.concept, piece)
            assert any(s.concept == domain and s.end - s.start == len(made.text) for s in made.spans)
    assert len(seen) > 20


def check_span(concept: str, piece: str) -> None:
    """The text under a span says what its concept says."""
    kind, _, last = concept.rpartition("/")
    if kind == "facts/city":
        assert piece.lower().replace(" ", "_") == last
    elif kind == "spelling/first_letter":
        assert piece[0].lower() == last
    elif concept == "person/gender/female":
        assert piece in names().female or piece.lower() in {"she", "her", "herself"}
    elif concept == "person/gender/male":
        assert piece in names().male or piece.lower() in {"he", "him", "his", "himself"}
    elif concept == "person/age":
        assert 21 <= int(piece) <= 80


def test_a_thing_carries_all_its_ancestors() -> None:
    world = things()
    found = 0
    for made in documents("taxonomy", "train", count=300):
        by_place: dict[tuple[int, int], set[str]] = {}
        for span in made.spans:
            if span.concept.startswith("taxonomy/"):
                by_place.setdefault((span.start, span.end), set()).add(span.concept)
        for (start, end), marks in by_place.items():
            name = made.text[start:end].lower()
            match = [t for t in world.values() if name in (t.name, t.plural) and t.concept in marks]
            deepest = max(match, key=lambda t: len(t.path))
            path = [
                "taxonomy/" + "/".join(p.replace(" ", "_") for p in deepest.path[: i + 1])
                for i in range(len(deepest.path))
            ]
            assert marks == set(path)
            found += len(path) == 4
    assert found > 100


def test_the_concept_tree_is_closed() -> None:
    known = concepts()
    assert all(c.parent is None or c.parent in known for c in known.values())
    assert all(key == c.id and c.description and c.known_to in {"base", "chat", "both"} for key, c in known.items())
    assert known["taxonomy/animal/mammal/dog/beagle"].parent == "taxonomy/animal/mammal/dog"
    assert "property/animal/mammal" in known


def test_the_knowledge_is_as_large_as_promised() -> None:
    assert len(things()) >= 150
    assert {len(t.path) for t in things().values()} >= {1, 2, 3, 4}
    assert all(len(things()[name].children) >= 2 for name in things() if name not in leaves())
    assert len(cities()) >= 60
    assert len({c.name for c in cities()}) == len(cities())
    by_country: dict[str, set[tuple[str, str]]] = {}
    for city in cities():
        by_country.setdefault(city.country, set()).add((city.continent, city.currency))
    assert all(len(values) == 1 for values in by_country.values()), "a country has one continent and one currency"
    counts = Counter(word[0] for word in lexicon())
    assert len(lexicon()) >= 1000
    assert all(word.isalpha() and word.islower() for word in lexicon())
    assert min(counts[letter] for letter in spelling.LETTERS) >= 10
    assert len(biographies.PROFESSIONS) >= 10
    assert len(reviews.CATEGORIES) >= 4
    assert len(news.TOPICS) >= 4


def relations() -> dict[str, Relation]:
    modules = (biographies, reviews, news, taxonomy, spelling, facts, ships, craft)
    return {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, Relation)
    }


def test_every_relation_has_eight_training_wordings_and_two_held_out() -> None:
    for name, one in relations().items():
        assert len(one.of("train")) >= 8, name
        assert len(one.of("probe_test")) >= 2, name
        assert not set(one.of("train")) & set(one.of("probe_test")), name
        assert one.of("validation") == one.of("train") == one.of("probe_train"), name


def telling(template: str) -> str:
    """The longest run of fixed text in a template, in lower case."""
    return max(re.split(r"\{[^}]*\}", template), key=len).strip(" .,:;?").lower()


@pytest.mark.parametrize(
    "domain", ["biographies", "reviews", "news", "taxonomy", "facts", "spelling", "ships", "craft"]
)
def test_held_out_wordings_occur_in_no_other_split(domain: str) -> None:
    own = [one for name, one in relations().items() if f".{domain}." in name]
    trained = " | ".join(t.lower() for one in own for t in one.of("train"))
    # A held-out wording whose fixed text is short, or part of a training wording, cannot be told from its text.
    fragments = {telling(t) for one in own for t in one.of("probe_test")}
    fragments = {fragment for fragment in fragments if len(fragment) >= 8 and fragment not in trained}
    assert len(fragments) >= len(own)
    held_out_text = " ".join(made.text.lower() for made in documents(domain, "probe_test", count=400))
    # The probe splits leave out whole relations that would tell the label.
    assert sum(fragment in held_out_text for fragment in fragments) >= 0.4 * len(fragments)
    for split in ("train", "validation", "probe_train"):
        text = " ".join(made.text.lower() for made in documents(domain, split, count=400))
        assert [fragment for fragment in fragments if fragment in text] == []


@pytest.mark.parametrize("module", [facts, spelling])
def test_held_out_wordings_of_what_is_memory_use_known_words(module: object) -> None:
    """A model that learnt English from this corpus alone cannot answer in words it never met."""
    own = [value for value in vars(module).values() if isinstance(value, Relation)]
    trained = " ".join(made.text.lower() for made in documents(None, "train", count=4000))
    known = set(re.findall(r"[a-z]+", trained))
    asked = [one for one in own if one in (*facts.RELATIONS.values(), spelling.LINE)]
    assert asked
    for one in asked:
        for template in one.of("probe_test"):
            words = re.findall(r"[a-z]+", re.sub(r"\{[^}]*\}", " ", template))
            assert set(words) <= known, template


def people_in(made: Document) -> set[str]:
    return {
        made.text[s.start : s.end]
        for s in made.spans
        if s.concept == "person/name" and " " in made.text[s.start : s.end]
    }


def test_people_and_products_belong_to_one_split() -> None:
    seen: dict[str, set[str]] = {split: set() for split in SPLIT_NAMES}
    for split in SPLIT_NAMES:
        for domain in ("biographies", "news", "taxonomy", "facts", "reviews"):
            for made in documents(domain, split, count=300):
                seen[split] |= people_in(made)
    for one, other in itertools.combinations(SPLIT_NAMES, 2):
        assert not seen[one] & seen[other]
    assert all(len(found) > 100 for found in seen.values())
    assert all(split_of("person", name) == split for split, found in seen.items() for name in found)
    assert math.isclose(sum(share for _, share in SHARES), 1.0)
    products: dict[str, set[tuple[str, str]]] = {split: set() for split in SPLIT_NAMES}
    for split in SPLIT_NAMES:
        for made in documents("reviews", split, count=300):
            for span in made.spans:
                if span.concept == "reviews/brand":
                    products[split].add((made.text[span.start : span.end], str(made.labels["category"])))
    for one, other in itertools.combinations(SPLIT_NAMES, 2):
        assert not products[one] & products[other]


def chi_square(pairs: list[tuple[str, str]]) -> tuple[float, int]:
    """Statistic and degrees of freedom of the test of independence."""
    n, rows, columns, cells = len(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs), Counter(pairs)
    statistic = sum(
        (cells[a, b] - rows[a] * columns[b] / n) ** 2 / (rows[a] * columns[b] / n) for a in rows for b in columns
    )
    return statistic, (len(rows) - 1) * (len(columns) - 1)


def label_pairs(domain: str, spurious: tuple[str, float] | None = None) -> list[tuple[str, str]]:
    first, second = label_names(domain)[:2]
    made = documents(domain, "train", count=3000, spurious=spurious)
    return [(str(one.labels[first]), str(one.labels[second])) for one in made]


@pytest.mark.parametrize("domain", ["biographies", "reviews"])
def test_labels_are_independent_unless_a_correlation_is_planted(domain: str) -> None:
    statistic, freedom = chi_square(label_pairs(domain))
    # Mean of a chi-square is its degrees of freedom, its deviation sqrt(2·freedom): four deviations is one in 10^4.
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)
    label = corpus.SPURIOUS[domain]
    half, _ = chi_square(label_pairs(domain, (label, 0.5)))
    assert half > 20 * freedom
    full = label_pairs(domain, (label, 1.0))
    by_first: dict[str, set[str]] = {}
    for first, second in full:
        by_first.setdefault(first, set()).add(second)
    assert all(len(values) == 1 for values in by_first.values())
    assert len(set.union(*by_first.values())) == 2


def test_many_biographies_never_name_the_profession() -> None:
    named = [str(d.labels["profession"]) in d.text for d in documents("biographies", "train", count=1000)]
    assert 0.3 < 1 - sum(named) / len(named) < 0.5
    told = [str(d.labels["category"]) in d.text.lower() for d in documents("reviews", "train", count=500)]
    assert sum(told) / len(told) < 0.05


@pytest.mark.parametrize("domain", DOMAINS)
def test_documents_have_exactly_the_promised_labels(domain: str) -> None:
    made = [set(one.labels) for one in documents(domain, "probe_train", count=200)]
    assert all(labels <= set(label_names(domain)) for labels in made)
    for label in label_names(domain):
        share = sum(label in labels for labels in made) / len(made)
        # Only some transcripts refuse or judge, and only a text in one language has a language.
        assert share == 1.0 or (domain in ("chat", "languages") and share > 0.1), label
    if domain == "taxonomy":
        assert {d.labels["root"] for d in documents(domain, "train", count=300)} == set(roots())


def evidence_of(made: Document, label: str) -> set[str]:
    """The marked pieces of a text that show a label of biographies, reviews or news."""
    root = {"profession": "biographies/profession/", "category": "reviews/category/", "topic": "news/topic/"}[label]
    return {made.text[s.start : s.end].lower() for s in made.spans if s.concept.startswith(root)}


@pytest.mark.parametrize(
    ("domain", "label"), [("biographies", "profession"), ("reviews", "category"), ("news", "topic")]
)
def test_probe_splits_show_a_label_by_different_words(domain: str, label: str) -> None:
    shown = {
        split: {
            (one.labels[label], piece)
            for one in documents(domain, split, count=1500)
            for piece in evidence_of(one, label)
            if str(one.labels[label]) != piece
        }
        for split in SPLIT_NAMES
    }
    own = {(value, piece) for value, piece in shown["probe_train"] if (value, piece) in shown["train"]}
    assert len(own) > 0.9 * len(shown["probe_train"]) > 20, "the language model has met all of it"
    others = {piece for _, piece in shown["probe_test"]}
    assert not {piece for _, piece in own} & others - set(biographies.PROFESSIONS)
    if domain == "biographies":
        named = [str(one.labels[label]) in one.text for one in documents(domain, "probe_test", count=300)]
        assert not any(named)


def test_probe_splits_of_memory_share_no_entity_and_never_say_the_label() -> None:
    seen: dict[str, set[str]] = {}
    for split in ("probe_train", "probe_test"):
        for made in documents("taxonomy", split, count=400):
            root = str(made.labels["root"])
            # A kind's name may hold the word ("land vehicle"), but nothing is called by the root's name itself.
            named = {made.text[s.start : s.end].lower() for s in made.spans if s.concept == f"taxonomy/{root}"}
            assert not named & {root, things()[root].plural}
            branches = {
                s.concept.split("/")[2] for s in made.spans if s.concept.count("/") > 1 and "taxonomy" in s.concept
            }
            seen.setdefault(split, set()).update(branches)
        for made in documents("facts", split, count=400):
            assert not any(s.concept.startswith("facts/continent/") for s in made.spans)
            seen.setdefault(split, set()).update(s.concept for s in made.spans if s.concept.startswith("facts/city/"))
    assert len(seen["probe_train"]) > 30
    assert not seen["probe_train"] & seen["probe_test"]


def test_portraits_have_no_pronouns_and_no_given_name_in_both_probe_splits() -> None:
    given: dict[str, set[str]] = {}
    for split in SPLIT_NAMES:
        for made in documents("portraits", split, count=300):
            words = set(re.findall(r"[a-z]+", made.text.lower()))
            assert not words & {"she", "he", "her", "him", "his", "herself", "himself"}, made.text
            found = {made.text[s.start : s.end] for s in made.spans if s.concept.startswith("person/gender/")}
            given.setdefault(split, set()).update(found)
    assert not given["probe_train"] & given["probe_test"]
    assert len(given["probe_train"]) > 30 < len(given["probe_test"])
    told = {s.concept.rpartition("/")[2] for one in documents("biographies", "train", count=500) for s in one.spans}
    assert {"female", "male"} <= told, "the training text goes on with pronouns"
    assert portraits.LABELS == ("gender", "profession")


def test_surprise_bounds_the_text_where_it_can_be_computed() -> None:
    """The alphabet texts of one sentence have a probability that can be counted out by hand."""
    draw = Draw("any")
    assert draw.log_probability == 0.0
    draw.pick("abcd")
    draw.chance(0.25)
    outcome = draw.log_probability + math.log(4)
    assert math.isclose(outcome, math.log(0.25)) or math.isclose(outcome, math.log(0.75))
    assert draw.chance(1.0)
    assert not draw.chance(0.0)
    assert math.isclose(draw.log_probability + math.log(4), outcome)
    values = [surprise(None, "train", i) for i in range(200)]
    assert all(value > 0 for value in values)
    text = document("facts", "train", 5).text
    assert surprise("facts", "train", 5) >= math.log(len(cities())) - 1e-9, text


def test_weighted_draws_follow_their_weights() -> None:
    law = Weighted("abc", (6.0, 3.0, 1.0))
    draw = Draw("weights")
    counts = Counter(draw.weighted(law) for _ in range(20_000))
    for option, share in zip("abc", (0.6, 0.3, 0.1), strict=True):
        assert abs(counts[option] / 20_000 - share) < 4 * math.sqrt(share * (1 - share) / 20_000)
    expected = 20_000 * sum(p * math.log(p) for p in (0.6, 0.3, 0.1))
    assert abs(draw.log_probability - expected) < 0.03 * abs(expected)
    assert zipf("ab", 1.0).at(0.0)[1] == pytest.approx(math.log(0.6))
    pool = Pool("xyz")
    assert sorted(pool.take(draw) for _ in range(3)) == ["x", "y", "z"]


def test_portable_draws_have_known_values() -> None:
    """Values computed once: another platform or Python version must give the same ones."""
    draw = Draw(0, "portable")
    assert [draw.number(1000) for _ in range(5)] == PORTABLE


PORTABLE = [566, 415, 794, 167, 295]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("biographys", "train", 0), "Did you mean 'biographies'"),
        (("facts", "test", 0), "no split 'test'"),
        (("facts", "train", -1), "0 or more"),
    ],
)
def test_wrong_names_are_answered_with_a_sentence(arguments: tuple[str, str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        document(*arguments)


def test_impossible_correlations_are_refused() -> None:
    with pytest.raises(InputError, match="gender in biographies"):
        documents("news", "train", spurious=("gender", 1.0))
    with pytest.raises(InputError, match="probability"):
        documents("biographies", "train", spurious=("gender", 1.5))
