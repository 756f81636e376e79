"""Texts of every kind: what they hold, where they can be started, and what is said when they cannot be read."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from saeworks.activations.texts import ListTexts, in_split, open_texts
from saeworks.errors import InputError

TEXTS = ["A dog sleeps.", 'She said "yes",\nthen left.', "Ünïcödé 🐦 text", "the end\twith a tab"]


def read(path: Path | str, start: int = 0, limit: int | None = None, **options: str) -> list[str]:
    source = open_texts([str(path)], **{"split": "all", **options})
    return [found.text for found in source.documents(start, limit)]


def write_table(path: Path, delimiter: str, encoding: str = "utf-8") -> None:
    with open(path, "w", newline="", encoding=encoding) as f:
        rows = csv.writer(f, delimiter=delimiter)
        rows.writerow(["id", "text", "topic"])
        rows.writerows([i, text, f"topic {i}"] for i, text in enumerate(TEXTS))


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_tables_with_quotes_newlines_and_bom(tmp_path: Path, name: str, delimiter: str, encoding: str) -> None:
    write_table(tmp_path / name, delimiter, encoding)
    assert read(tmp_path / name) == TEXTS
    labels = [d.labels for d in open_texts([str(tmp_path / name)], split="all", label_column="topic").documents()]
    assert labels == [{"label": f"topic {i}"} for i in range(len(TEXTS))]


def test_csv_whose_first_column_is_text_keeps_its_name_behind_a_bom(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,label\r\none,1\r\ntwo,2\r\n")
    assert read(tmp_path / "a.csv") == ["one", "two"]


def test_json_lines_with_bom_crlf_blank_lines_and_labels(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "n": i}, ensure_ascii=i % 2 == 0) for i, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())
    assert read(tmp_path / "a.jsonl") == TEXTS
    source = open_texts([str(tmp_path / "a.jsonl")], split="all", label_column="n")
    assert [d.labels["label"] for d in source.documents()] == [0, 1, 2, 3]


def test_parquet_and_its_row_groups(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    texts = [f"document {i}" for i in range(1000)]
    parquet.write_table(pa.table({"text": texts, "n": range(1000)}), tmp_path / "a.parquet", row_group_size=130)
    assert read(tmp_path / "a.parquet") == texts
    source = open_texts([str(tmp_path / "a.parquet")], split="all", label_column="n")
    assert len(list(source.documents())) == source.size == 1000
    assert [(d.text, d.labels) for d in source.documents(777, 2)] == [
        ("document 777", {"label": 777}),
        ("document 778", {"label": 778}),
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_plain_text_splits_at_blank_lines_or_else_at_lines(tmp_path: Path, newline: str) -> None:
    (tmp_path / "p.txt").write_bytes(newline.join(["one", "still one", "", "  ", "two", "", "three"]).encode())
    (tmp_path / "l.txt").write_bytes(newline.join(["one", "two", "three", ""]).encode())
    assert read(tmp_path / "p.txt") == ["one\nstill one", "two", "three"]
    assert read(tmp_path / "l.txt") == ["one", "two", "three"]


def test_a_line_longer_than_the_held_piece_is_cut_between_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saeworks.activations import text_files

    monkeypatch.setattr(text_files, "LONGEST_PIECE", 10)
    text = "ä€𝄞b" * 9
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    pieces = read(tmp_path / "a.txt")
    assert "".join(pieces) == text
    assert len(pieces) > 8


def test_directory_of_several_kinds_in_order_of_name(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("from b")
    (tmp_path / "a.jsonl").write_text('{"text": "from a"}\n')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.csv").write_text("text\nfrom c\n")
    (tmp_path / "notes.pdf").write_bytes(b"\0")
    (tmp_path / ".hidden.txt").write_text("hidden")
    assert read(tmp_path) == ["from a", "from b", "from c"]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
def test_any_start_gives_the_tail_also_from_a_fresh_source(tmp_path: Path, kind: str) -> None:
    texts = [f"text number {i},\twith words" + " more" * (i % 7) for i in range(1500)]
    path = tmp_path / f"a.{kind}"
    if kind == "txt":
        path.write_text("\n\n".join(texts))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif kind == "csv":
        path.write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
    else:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        parquet.write_table(pa.table({"text": texts}), path, row_group_size=300)
    used = open_texts([str(path)])
    train = [found.text for found in used.documents()]
    assert train == [text for text in texts if in_split(text, "train")]
    for start in (0, 1, 255, 256, 257, 700, len(train) - 1, len(train)):
        for source in (used, open_texts([str(path)])):
            assert [found.text for found in source.documents(start)] == train[start:], start
            assert [found.text for found in source.documents(start, 3)] == train[start : start + 3]


def test_a_later_start_reads_at_most_a_few_hundred_rows_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saeworks.activations import text_files

    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(5000)))
    source = open_texts([str(tmp_path / "a.jsonl")], split="all")
    list(source.documents())
    parsed = 0
    original = text_files.text_of

    def counting(*args: object) -> str:
        nonlocal parsed
        parsed += 1
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(text_files, "text_of", counting)
    assert next(source.documents(4900)).text == "row 4900"
    assert parsed <= text_files.PLACE_EVERY + 1


def test_splits_are_disjoint_complete_and_keep_repeated_texts_together(tmp_path: Path) -> None:
    texts = [f"document {i % 2000}" for i in range(6000)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train, held = read(path, split="train"), read(path, split="validation")
    assert len(train) + len(held) == 6000
    assert not set(train) & set(held)
    assert 0.03 < len(held) / 6000 < 0.07


def test_empty_rows_are_skipped_and_counted_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "  "}\n{"text": null}\n{"text": "b"}\n')
    source = open_texts([str(tmp_path / "a.jsonl")], split="all")
    for _ in range(2):
        assert [found.text for found in source.documents()] == ["a", "b"]
        assert (source.size, source.skipped_empty) == (2, 2)


def test_fingerprint_follows_contents_split_and_column(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "other": "b"}\n' * 30)

    def mark(**options: str) -> str:
        return open_texts([str(path)], **{"split": "all", **options}).fingerprint()

    (tmp_path / "copy.jsonl").write_bytes(path.read_bytes())
    assert mark() == mark() == open_texts([str(tmp_path / "copy.jsonl")], split="all").fingerprint()
    first = mark()
    assert mark(text_column="other") != first
    path.write_text('{"text": "a", "other": "c"}\n' * 30)
    assert mark() != first


def bad(path: Path, content: bytes, *expected: str, **options: str) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(open_texts([str(path)], **{"split": "all", **options}).documents())
    for part in (path.name, *expected):
        assert part in str(caught.value), str(caught.value)


def test_bad_files_are_explained(tmp_path: Path) -> None:
    bad(tmp_path / "empty.txt", b"", "is empty")
    bad(tmp_path / "bom.txt", b"\xef\xbb\xbf", "is empty")
    bad(tmp_path / "blank.txt", b"\n \n\n", "holds no text")
    bad(tmp_path / "binary.txt", b"abc\ndef\0ghi", "binary", "byte 7")
    bad(tmp_path / "late.txt", b"a line\n" * 20000 + b"x\0", "binary", "byte 140001")
    bad(tmp_path / "latin.txt", "café\n".encode("latin-1"), "not UTF-8", "0xe9 at byte 3")
    bad(tmp_path / "bomlatin.txt", b"\xef\xbb\xbfab\xe9\n", "0xe9 at byte 5")
    bad(tmp_path / "wide.txt", "text".encode("utf-16"), "UTF-16")
    bad(tmp_path / "a.txt.gz", b"\x1f\x8b", "unpack")
    bad(tmp_path / "a.txt", b"text", "plain text", label_column="topic")
    bad(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl:2", "not valid JSON")
    bad(tmp_path / "b.jsonl", b'[{"text": "a"}]\n', "b.jsonl:1", "JSON array")
    bad(tmp_path / "c.jsonl", b'{"text": "a"}\n{"text": ["b"]}\n', "c.jsonl:2", "list")
    bad(tmp_path / "d.jsonl", b'{"texts": "a"}\n', "no column 'text'", "Did you mean 'texts'?")
    bad(tmp_path / "a.csv", b"body,topic\na,b\n", "no column 'text'", "body, topic")
    bad(tmp_path / "b.csv", b"text,topic\na,b\n", "Did you mean 'topic'?", label_column="topics")
    bad(tmp_path / "c.csv", b'text\na\n"b\n', "not a valid table", "quotes")
    bad(tmp_path / "a.parquet", b"PAR1 nothing", "not a readable Parquet file")


def test_bad_names_are_explained(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    cases = [
        ([str(tmp_path / "trian.jsonl")], {}, "Did you mean 'train.jsonl'?"),
        ([], {}, "No text was named"),
        (["world:biografies"], {}, "Did you mean 'biographies'?"),
        (["worl"], {}, "called 'world'"),
        (["world", str(tmp_path / "train.jsonl")], {}, "different kinds"),
        (["world"], {"split": "valid"}, "no split 'valid'"),
        ([str(tmp_path / "train.jsonl")], {"split": "probe_train"}, "no split 'probe_train'"),
        (["world:biographies"], {"label_column": "job"}, "no label 'job'"),
    ]
    for data, options, expected in cases:
        with pytest.raises(InputError) as caught:
            open_texts(data, **options)
        assert expected in str(caught.value)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no text file"):
        open_texts([str(tmp_path / "none")])


def test_hub_dataset_without_network_names_repository_and_alternative() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(InputError) as caught:
        open_texts(["nobody/has-this-dataset"])
    assert "nobody/has-this-dataset" in str(caught.value)
    assert "save_to_disk" in str(caught.value)


def test_saved_datasets_with_and_without_splits_of_their_own(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    texts = [f"document {i}" for i in range(400)] + [""]
    single = datasets.Dataset.from_dict({"text": texts, "n": list(range(401))})
    single.save_to_disk(str(tmp_path / "single"))
    train = open_texts([str(tmp_path / "single")], label_column="n")
    held = open_texts([str(tmp_path / "single")], split="validation")
    found = [d.text for d in train.documents()] + [d.text for d in held.documents()]
    assert sorted(found) == sorted(texts[:-1])
    assert (train.size or 0) > 350
    assert train.skipped_empty == 1
    assert [d.text for d in train.documents(5, 2)] == [t for t in texts if t and in_split(t, "train")][5:7]
    both = datasets.DatasetDict({"train": single.select(range(7)), "validation": single.select(range(7, 10))})
    both.save_to_disk(str(tmp_path / "both"))
    assert [d.text for d in open_texts([str(tmp_path / "both")]).documents()] == texts[:7]
    assert [d.text for d in open_texts([str(tmp_path / "both")], split="validation").documents()] == texts[7:10]
    with pytest.raises(InputError, match=r"no column 'body'.*text"):
        open_texts([str(tmp_path / "both")], text_column="body")


def test_world_by_index_labels_and_turns() -> None:
    from saeworks.activations.texts import WORLD_SPLITS
    from saeworks.world import corpus

    assert set(WORLD_SPLITS) == set(corpus.SPLIT_NAMES)
    mixture = open_texts(seed=3)
    assert mixture.size is None
    assert list(mixture.documents(10, 5)) == list(corpus.documents(None, "train", seed=3, count=15))[10:]
    people = open_texts(["world:biographies"], label_column="profession")
    assert all(d.labels["label"] == d.labels["profession"] for d in people.documents(0, 20))
    turns = open_texts(["world:news", "world:reviews"], split="validation")
    expected = [corpus.document(("news", "reviews")[i % 2], "validation", i // 2) for i in range(6)]
    assert list(turns.documents(0, 6)) == expected
    marks = {open_texts(["world"], seed=s, split=split).fingerprint() for s in (0, 1) for split in WORLD_SPLITS}
    assert len(marks) == 8


def test_list_of_texts() -> None:
    source = ListTexts(["a", " ", "b", "c"])
    assert [d.text for d in source.documents(1)] == ["b", "c"]
    assert (source.size, source.skipped_empty) == (3, 1)
    with pytest.raises(InputError, match="holds no text"):
        ListTexts(["", "\n"])


def test_a_parquet_file_damaged_in_the_middle_is_a_sentence(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    texts = [f"document {i} of {i * 7919 % 1000}" for i in range(2000)]
    parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=500)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(byte ^ 0x5A for byte in data[middle : middle + 2000])
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(InputError, match="damaged after row"):
        read(tmp_path / "a.parquet")


def test_halves_of_surrogate_pairs_become_the_replacement_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a \\ud83d b"}\n{"text": "\\ud83d\\udc26"}\n')
    assert read(tmp_path / "a.jsonl") == ["a \ufffd b", "🐦"]
    source = ListTexts(["a \ud83d b"])
    assert [d.text for d in source.documents()] == ["a \ufffd b"]
    assert source.fingerprint() == ListTexts(["a \ufffd b"]).fingerprint()


def test_json_that_python_will_not_read_is_a_sentence(tmp_path: Path) -> None:
    for name, value in (("deep", "[" * 100_000), ("digits", "1" * 5000)):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}\n{"text": ' + value + "\n")
        with pytest.raises(InputError, match=f"{name}.jsonl:2 "):
            read(tmp_path / f"{name}.jsonl")


def test_a_sentence_given_as_a_file_name_is_answered_by_one() -> None:
    with pytest.raises(InputError, match="no name of a file"):
        open_texts(["the dog sleeps " * 400])
