"""The report is made from files alone, loads nothing, and shows hostile text instead of obeying it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from saeworks.errors import InputError
from saeworks.files import write_json
from saeworks.results.envelope import Result
from saeworks.results.plots import Series, line_plot, style_of
from saeworks.results.report import write_report
from saeworks.results.report_data import read_workspace, thinned
from saeworks.results.report_text import esc, number

HOSTILE = '<script>alert(\'x\')</script>\u202e" onload="x" &amp; שלום \x00\x1b[31m \ud800'
VOID = {"meta", "br", "wbr", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Counts tags, collects attributes and text, and fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def fill(root, text="plain", name="topk_n8_k2_s0"):
    write_json(
        root / "run.json",
        {
            "config": {"model": text.replace("\ud800", ""), "data": ["world"], "tokens": 1000},
            "seconds": {"training": 5.0},
        },
    )
    metadata = {"recipe": "matryoshka_batch_topk", "k": 2, "seed": 0}
    write_json(root / "dictionaries" / name / "cfg.json", {"d_sae": 8, "architecture": "topk", "metadata": metadata})
    lines = [{"step": i, "tokens": 10 * i, "dictionary": name, "metrics/explained_variance": i / 10} for i in range(9)]
    (root / "train_log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 9, "dic')
    core = {
        "reconstruction_quality": {"explained_variance": 0.71828},
        "model_performance_preservation": {"ce_loss_score": 0.91234},
        "sparsity": {"l0": 2.0},
        "prefix": {"explained_variance_prefix_4": 0.5, "explained_variance_prefix_8": 0.7},
    }
    histogram = {"density_histogram": {"log10_edges": [-2.0, -1.0, 0.0], "counts": [3, 4], "dead": 1}}
    probing = {
        "llm": {"llm_test_accuracy": 0.98},
        "sae": {"sae_top_1_test_accuracy": 0.81, "sae_top_5_test_accuracy": 0.9},
    }
    shown = {
        "latent": 3,
        "why": "best match of a concept",
        "density": 0.01,
        "max_activation": 2.0,
        "concept": text,
        "f1": 0.9,
        "contexts": [{"tokens": [text, " end"], "activations": [2.0, 0.0], "peak": 0}],
    }
    child = {"child": f"p/{text}", "recall": 0.1, "hole": True, "absorbed": True, "own_latent": 4}
    hierarchy = [{"parent": text, "tokens": 9, "latent": 3, "f1": 0.5, "latents": 2, "children": [child]}]
    details = [{"dataset_name": "d", "dataset": text, "label": text, "sae_top_1_test_accuracy": 0.8}]
    common = {"eval_config": {}, "sae_lens_id": name, "provenance": {"hashes": {"dictionary": "abc123"}}}
    clean = json.loads(json.dumps([shown, hierarchy, details]).replace("\\ud800", ""))
    for result in (
        Result(eval_type_id="core", eval_result_metrics=core, eval_result_unstructured=histogram, **common),
        Result(eval_type_id="sparse_probing", eval_result_metrics=probing, eval_result_details=clean[2], **common),
        Result(
            eval_type_id="latents",
            eval_result_metrics={"hierarchy": {"hole_rate": 0.4}, "concepts": {"mean_best_latent_f1": 0.6}},
            eval_result_unstructured={"shown": [clean[0]], "hierarchy": clean[1]},
            **common,
        ),
    ):
        result.write(root / "results")


def test_the_numbers_of_the_files_are_on_the_page(tmp_path):
    fill(tmp_path)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    for shown in ("0.718", "0.912", "0.810", "98.0 %", "0.600", "absorbed", "abc123", "saeworks run"):
        assert shown in page.text or any(shown in str(v) for _, _, v in page.attributes), shown
    assert page.tags.count("svg") == 6
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    anchors = [v[1:] for tag, key, v in page.attributes if tag == "a" and key == "href"]
    assert set(anchors) <= set(ids)


def test_the_page_is_self_contained_and_repeatable(tmp_path):
    fill(tmp_path)
    first = write_report(tmp_path).read_bytes()
    (tmp_path / "report.html").unlink()
    assert write_report(tmp_path).read_bytes() == first
    page = Page(first.decode())
    assert not {"script", "link", "iframe", "img", "object", "image"} & set(page.tags)
    for _, key, value in page.attributes:
        if key in ("href", "src", "xlink:href"):
            assert str(value).startswith("#")
    assert "@import" not in first.decode()
    assert not re.search(r"url\((?!#)", first.decode())


def test_hostile_text_is_shown_and_not_obeyed(tmp_path):
    fill(tmp_path, HOSTILE)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "<script>alert('x')</script>" in page.text
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)
    assert "⟨U+202E⟩" in page.text
    assert "שלום" in page.text


def test_a_workspace_with_only_a_dictionary_still_has_a_page(tmp_path):
    write_json(tmp_path / "dictionaries" / "d" / "cfg.json", {"d_sae": 8, "architecture": "topk", "k": 2})
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "topk k=2" in page.text


def test_a_directory_that_is_no_workspace_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="neither dictionaries nor results"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="not a directory"):
        write_report(tmp_path / "absent")


def test_labels_say_what_differs(tmp_path):
    for k in (2, 4):
        for seed in (0, 1):
            cfg = {"d_sae": 8, "metadata": {"recipe": "topk", "k": k, "seed": seed}}
            write_json(tmp_path / "dictionaries" / f"a{k}{seed}" / "cfg.json", cfg)
    labels = [e.label for e in read_workspace(tmp_path).entries]
    assert labels == ["topk k=2 seed 0", "topk k=2 seed 1", "topk k=4 seed 0", "topk k=4 seed 1"]


def test_plots_take_the_text_colour_and_keep_text():
    svg = line_plot([Series("a<b", [1, 2], [0.1, None])], "x", "y", 'says "hi"', identifier="p")
    assert "currentColor" in svg
    assert "<text" in svg
    assert "a&lt;b" in svg
    assert 'aria-label="says &quot;hi&quot;"' in svg
    assert "#000000" not in svg
    assert style_of("topk") == style_of("topk") != style_of("batch_topk")


def test_text_helpers():
    assert esc('<a href="x">\n') == "&lt;a href=&quot;x&quot;&gt;↵"
    assert number(None) == number(float("nan")) == "–"
    assert number(12345.0) == "12 345"
    assert [r["i"] for r in thinned([{"i": i} for i in range(1000)], 5)] == [0, 250, 500, 749, 999]


def test_a_name_with_dollar_signs_is_no_formula():
    svg = line_plot([Series("$x^$ <b>", [1.0, 2.0], [1.0, 2.0])], "x", "y", "a plot", identifier="p")
    assert "$x^$ &lt;b&gt;" in svg
