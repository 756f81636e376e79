"""The world as texts: labels and planted correlations, and what a file of its documents brings back."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from saeworks.activations.texts import open_texts
from saeworks.activations.world_texts import parse_world
from saeworks.errors import InputError
from saeworks.world import corpus
from saeworks.world.documents import Document, Span

PLANTED = "world:biographies?spurious=gender:1"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row_of(document: Document) -> dict[str, Any]:
    spans = [[span.start, span.end, span.concept] for span in document.spans]
    return {"text": document.text, "labels": document.labels, "spans": spans}


def test_a_label_column_of_the_world_is_a_document_label() -> None:
    source = open_texts(["world:biographies"], label_column="profession", split="probe_train")
    for found, made in zip(source.documents(limit=20), corpus.documents("biographies", "probe_train"), strict=False):
        assert found.text == made.text
        assert found.spans == made.spans
        assert found.labels == {**made.labels, "label": made.labels["profession"]}


def test_a_planted_correlation_brings_its_label_and_decides_the_other() -> None:
    source = open_texts([PLANTED], label_column="profession", split="probe_train")
    genders: dict[object, set[object]] = {}
    for found in source.documents(limit=200):
        assert found.labels["spurious_label"] == found.labels["gender"]
        assert found.labels["label"] == found.labels["profession"]
        genders.setdefault(found.labels["label"], set()).add(found.labels["spurious_label"])
    assert len(genders) >= 8
    assert all(len(values) == 1 for values in genders.values())
    plain = open_texts(["world:biographies"], label_column="profession", split="probe_train")
    both = {(d.labels["label"], d.labels["gender"]) for d in plain.documents(limit=200)}
    assert len(both) > len(genders) + 4
    assert not any("spurious_label" in d.labels for d in plain.documents(limit=5))


def test_the_spurious_label_can_be_named_and_is_never_the_label_itself() -> None:
    named = open_texts(["world:biographies"], label_column="gender", spurious_label_column="profession")
    assert all(d.labels["spurious_label"] == d.labels["profession"] for d in named.documents(limit=10))
    same = open_texts([PLANTED], label_column="gender")
    assert not any("spurious_label" in d.labels for d in same.documents(limit=10))


def test_a_document_that_lacks_the_label_has_none() -> None:
    """In a source of several domains that take turns, only those that have the label carry it."""
    found = list(open_texts(["world:news", "world:spelling"], label_column="topic").documents(limit=20))
    assert all("label" in d.labels for d in found[::2])
    assert not any("label" in d.labels for d in found[1::2])


def test_planting_changes_the_fingerprint() -> None:
    items = ("world:biographies", PLANTED, "world:biographies?spurious=gender:0.5")
    assert len({open_texts([item]).fingerprint() for item in items}) == 3


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("world:biografies", "Did you mean 'biographies'"),
        ("world:biographies?spurius=gender:1", "Did you mean 'spurious'"),
        ("world:biographies?spurious=gender", "LABEL:STRENGTH"),
        ("world:biographies?spurious=gender:much", "LABEL:STRENGTH"),
        ("world:biographies?spurious=gender:1.5", "probability"),
        ("world:biographies?spurious=rating:1", "gender in biographies"),
        ("world:news?spurious=topic:1", "gender in biographies"),
    ],
)
def test_wrong_names_are_refused(item: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_world(item)
    with pytest.raises(InputError, match=says):
        open_texts([item])


def test_unknown_labels_are_refused_for_domains_and_for_the_mixture() -> None:
    for data in ("world", "world:biographies"):
        with pytest.raises(InputError, match="Did you mean 'profession'"):
            open_texts([data], label_column="profesion")
    assert open_texts(["world"], label_column="topic").size is None
    for data in (["world"], ["world:reviews", "world:news"]):
        with pytest.raises(InputError, match="no label 'refused'"):  # of chat, which is no part of the mixture
            open_texts(data, label_column="refused")
    with pytest.raises(InputError, match="no label 'topic'"):
        open_texts(["world:biographies"], spurious_label_column="topic")


@pytest.mark.parametrize("domain", corpus.DOMAINS)
def test_documents_survive_a_file(domain: str, tmp_path: Path) -> None:
    made = list(islice(corpus.documents(domain, "probe_test"), 25))
    path = write_rows(tmp_path / "a.jsonl", [row_of(one) for one in made])
    read = list(open_texts([str(path)], split="all").documents())
    assert [(d.text, d.labels, d.spans) for d in read] == [(d.text, d.labels, d.spans) for d in made]


def test_labels_of_a_row_serve_as_columns_and_may_be_absent(tmp_path: Path) -> None:
    rows = [{"text": "one", "labels": {"kind": "a", "mood": "x"}}, {"text": "two", "labels": {"mood": None}}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    source = open_texts([str(path)], label_column="kind", spurious_label_column="mood", split="all")
    assert [d.labels for d in source.documents()] == [
        {"kind": "a", "mood": "x", "label": "a", "spurious_label": "x"},
        {},
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.jsonl"])
def test_a_spurious_label_column_of_files(name: str, tmp_path: Path) -> None:
    import pandas

    table = pandas.DataFrame({"text": ["one", "two"], "kind": ["a", "b"], "mood": ["x", "y"]})
    path = tmp_path / name
    if name.endswith("csv"):
        table.to_csv(path, index=False)
    elif name.endswith("parquet"):
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=True)
    source = open_texts([str(path)], label_column="kind", spurious_label_column="mood", split="all")
    labels = [{"label": "a", "spurious_label": "x"}, {"label": "b", "spurious_label": "y"}]
    assert [d.labels for d in source.documents()] == labels
    assert open_texts([str(path)], label_column="kind", split="all").fingerprint() != source.fingerprint()
    with pytest.raises(InputError, match="Did you mean 'mood'"):
        open_texts([str(path)], spurious_label_column="moood", split="all")


def test_a_saved_dataset_has_a_spurious_label_column_too(tmp_path: Path) -> None:
    import datasets

    rows = {"text": ["one", "two"], "kind": [0, 1], "mood": ["x", None]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "saved"))
    source = open_texts([str(tmp_path / "saved")], label_column="kind", spurious_label_column="mood", split="all")
    assert [d.labels for d in source.documents()] == [{"label": 0, "spurious_label": "x"}, {"label": 1}]


def test_foreign_columns_called_labels_and_spans_are_left_alone(tmp_path: Path) -> None:
    rows = [
        {"text": " one ", "labels": [1, 2], "spans": "everything"},
        {"text": " two ", "labels": {"deep": {"er": 1}}, "spans": [{"start": 0}]},
        {"text": " three ", "labels": 7, "spans": [[0, 2]]},
    ]
    path = write_rows(tmp_path / "a.jsonl", rows)
    read = list(open_texts([str(path)], split="all").documents())
    assert [(d.text, d.labels, d.spans) for d in read] == [("one", {}, ()), ("two", {}, ()), ("three", {}, ())]
    with pytest.raises(InputError, match="has no column 'lables'"):
        open_texts([str(path)], label_column="lables", split="all")


def test_spans_keep_the_text_to_the_character_and_must_lie_in_it(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "\r\n a dog ", "spans": [[5, 8, "dog"]]}])
    (found,) = open_texts([str(path)], split="all").documents()
    assert found.text[5:8] == "dog ".strip()
    assert found.spans == (Span(5, 8, "dog"),)
    write_rows(tmp_path / "b.jsonl", [{"text": "a dog", "spans": [[2, 9, "dog"]]}])
    with pytest.raises(InputError, match=r"b\.jsonl:1: the span \[2, 9\] of 'dog' lies outside the text of 5"):
        open_texts([str(tmp_path / "b.jsonl")], split="all")
