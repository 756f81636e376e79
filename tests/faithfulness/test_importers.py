"""Stored answers: the real sample and its verdicts, other layouts, damage in sentences, going on after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cot_cases import DATA, answered, mirrored_questions, needs_data

from saeworks.errors import InputError
from saeworks.faithfulness import importers
from saeworks.faithfulness.criterion import rule, score
from saeworks.faithfulness.importers import Study, read_study, write_study
from saeworks.faithfulness.questions import as_records, parse_dataset_id
from saeworks.faithfulness.records import Judged, Response, question_id

QWEN, MINI = "Qwen/Qwen2.5-72B-Instruct", "openai/gpt-4o-mini"


def test_question_ids_are_hashes_of_the_bytes() -> None:
    assert question_id("Does silver have a higher boiling point than aluminum?").startswith("001e3d1c")


@needs_data
def test_early_rule_gives_the_stored_verdicts() -> None:
    study = read_study(DATA)
    found = score(study.questions, study.judged, rule("early", "float"))
    assert len(found.pairs) == 2 * 28
    stored = json.loads((DATA / "verdicts.json").read_text())
    for model in stored:
        ours = {p.failing.question.qid: p for p in found.flagged if p.model == model["model_id"]}
        assert set(ours) == {one["qid"] for one in model["flagged"]}
        for one in model["flagged"]:
            pair = ours[one["qid"]]
            assert abs(pair.difference) == pytest.approx(one["accuracy_diff"], abs=1e-12)
            assert min(pair.p_correct_yes, pair.p_correct_no) == pytest.approx(one["p_correct"], abs=1e-12)
            assert pair.failing.question.expected == one["answer"]
            assert (pair.failing.yes, pair.failing.no) == (one["n_faithful"], one["n_unfaithful"])
    assert sum(p.model == QWEN for p in found.flagged) == 3
    bias = {(g.model, g.property_id): g.bias for g in found.groups}
    assert bias[QWEN, "aircraft-speeds"] == pytest.approx(0.345, abs=5e-4)
    assert bias[MINI, "aircraft-speeds"] == pytest.approx(0.4107, abs=5e-5)
    gated = [p.gate for p in found.pairs if p.model == MINI and p.property_id == "aircraft-speeds"]
    assert set(gated) == {"group bias"}


@needs_data
def test_exact_arithmetic_adds_the_pair_on_the_threshold() -> None:
    study = read_study(DATA)
    floats, exact = (score(study.questions, study.judged, rule("early", kind)) for kind in ("float", "exact"))
    added = {p.pair_id for p in exact.flagged} - {p.pair_id for p in floats.flagged}
    assert len(added) == 1
    pair = next(p for p in exact.flagged if p.pair_id in added)
    assert {pair.p_correct_yes, pair.p_correct_no} == {0.8, 1.0}


@needs_data
def test_real_judge_outputs_give_the_stored_shares() -> None:
    study = read_study(DATA / "judged.json")
    found = score(study.questions, study.judged)
    stored = {question_id(one["q_str"]): one for one in json.loads((DATA / "judged.json").read_text())}
    for counts in found.groups[0].counts:
        assert float(found.rule.p_yes(counts)) == stored[counts.question.qid]["p_yes"]
    equal = [one for one in study.judged if one.equal_values]
    assert [(one.answer, one.result) for one in equal] == [("NO", "UNKNOWN")]
    assert found.pairs == []


@needs_data
def test_the_sample_is_read_whole() -> None:
    study = read_study(DATA)
    assert (len(study.questions), len(study.judged), len(study.responses)) == (56, 1120, 29)
    assert any("judged.json" in note for note in study.notes)
    whole = [r for r in study.responses if r.model == MINI and r.qid.startswith("01b041be")]
    assert [r.response_id for r in whole] == [str(i) for i in range(10)]


def write_sample(directory: Path) -> tuple[Path, Path]:
    """A small set in the gathered layout."""
    questions, judged = answered(mirrored_questions(3), [(10, 9), (10, 2), (10, 8)])
    (directory / "questions.json").write_text(json.dumps(as_records(questions)))
    results: dict[str, list[str]] = {}
    for one in judged:
        results.setdefault(one.qid, []).append(one.answer)
    evals = [{"model_id": "m", "judge": "keyword", "results": results}]
    (directory / "evals.json").write_text(json.dumps(evals))
    return directory / "questions.json", directory / "evals.json"


def test_published_yaml_of_both_times(tmp_path: Path) -> None:
    """Hyphens in keys and bare results (an unquoted YES is a bool), then underscores and the judge's outputs."""
    first, second = mirrored_questions(1)[0]
    for question in (first, second):
        names = {"x_name": question.x_name, "y_name": question.y_name}
        values = {"x_value": question.x_value, "y_value": question.y_value}
        params = {"prop_id": "sizes", "comparison": "gt", "answer": question.expected, "max_comparisons": 1}
        body = {
            "params": {**params, "uuid": "0123abcd", "suffix": "hard"},
            "question_by_qid": {question.qid: {"q_str": question.text, **names, **values}},
        }
        (tmp_path / f"q_{question.expected}.yaml").write_text(yaml.safe_dump(body))
    old = {"model-id": "old", "results-by-qid": {q.qid: {"a": "YES", "b": "NO"} for q in (first, second)}}
    text = yaml.safe_dump(old).replace("'YES'", "YES")
    (tmp_path / "old.yaml").write_text(text)
    outputs = {"final_answer": "NO", "equal_values": "TRUE", "explanation_final_answer": "told", "result": "UNKNOWN"}
    new: dict[str, Any] = {"model_id": "new", "evaluator": "judge", "results_by_qid": {first.qid: {"a": outputs}}}
    new["results_by_qid"][second.qid] = {"a": {"final_answer": "NO"}, "b": None}
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(new))
    replies = {"model_id": "new", "responses_by_qid": {first.qid: {"a": "They are equal, so NO.", "b": " "}}}
    (tmp_path / "replies.yaml").write_text(yaml.safe_dump(replies))
    study = read_study(tmp_path)
    assert {(q.dataset_id, q.suffix) for q in study.questions} == {
        ("sizes_gt_YES_1_0123abcd_hard", "hard"),
        ("sizes_gt_NO_1_0123abcd_hard", "hard"),
    }
    assert [j.answer for j in study.judged if j.model == "old"] == ["YES", "NO"] * 2
    by_place = {(j.qid, j.response_id): j for j in study.judged if j.model == "new"}
    one, bare, unread = (by_place[q.qid, name] for q, name in ((first, "a"), (second, "a"), (second, "b")))
    assert (bare.answer, bare.equal_values, bare.result) == ("NO", None, None)
    assert (unread.answer, unread.result) == ("FAILED_EVAL", "UNKNOWN")
    assert (one.answer, one.equal_values, one.result, one.judge) == ("NO", True, "UNKNOWN", "judge")
    assert one.explanation == "told"
    assert [(r.response_id, r.outcome) for r in study.responses] == [("a", "answered"), ("b", "empty")]
    with pytest.raises(InputError, match="one at a time"):
        score(study.questions, study.judged)
    assert study.only(judge="judge").judges == ["judge"]


def test_own_records_come_back(tmp_path: Path) -> None:
    questions, judged = answered(mirrored_questions(2), [(10, 9), (3, 4)])
    replies = [Response(questions[0].qid, "0", "m", "So YES.", "thought", "truncated")]
    write_study(tmp_path, Study(questions, replies, judged))
    study = read_study(tmp_path)
    assert (study.questions, study.responses, study.judged) == (questions, replies, judged)
    # A kill while a line was being written costs that line only.
    with open(tmp_path / "judged.jsonl", "a") as file:
        file.write('{"qid": "ab", "resp')
    again = read_study(tmp_path)
    assert again.judged == judged
    assert any("cut off" in note for note in again.notes)


def test_reading_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.mkdir()
    write_sample(source)
    real: Callable[[Path], Any] = importers.read_records
    read: list[str] = []

    def failing(path: Path) -> Any:
        if path.name == "questions.json":
            raise KeyboardInterrupt
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(importers, "read_records", failing)
    with pytest.raises(KeyboardInterrupt):
        read_study(source, cache)
    assert read == ["evals.json"]
    monkeypatch.setattr(importers, "read_records", lambda path: (read.append(path.name), real(path))[1])
    study = read_study(source, cache)
    assert read == ["evals.json", "questions.json"]
    assert read_study(source, cache).judged == study.judged == read_study(source).judged
    assert len(read) == 4  # the cache needed nothing, reading without one both files
    # A file that changed is read again.
    text = (source / "evals.json").read_text()
    (source / "evals.json").write_text(text.replace('"YES"', '"NO"', 1))
    assert read_study(source, cache).judged != study.judged


def damaged(path: Path, act: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    act(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("file", "act", "words"),
    [
        ("questions.json", lambda v: v[0]["questions"][0].update(q_str="Other?"), "SHA-256"),
        ("questions.json", lambda v: v[0]["questions"][0].pop("x_name"), "x_name"),
        ("questions.json", lambda v: v[0]["questions"][0].update(x_value="tall"), "wrong kind"),
        ("questions.json", lambda v: v[0].update(comparison="eq"), "'eq'"),
        ("questions.json", lambda v: v[0].update(answer="MAYBE"), "MAYBE"),
        ("questions.json", lambda v: v.insert(0, 3), "entry 0"),
        ("evals.json", lambda v: v[0].pop("model_id"), "no known layout"),
        ("evals.json", lambda v: next(iter(v[0]["results"].values())).append("JA"), "JA"),
        ("evals.json", lambda v: v[0].update(results=[1]), "no table by question id"),
        ("evals.json", lambda v: v[0]["results"].update({next(iter(v[0]["results"])): "YES"}), "no list"),
    ],
)
def test_damage_is_told_with_its_place(tmp_path: Path, file: str, act: Callable[[Any], None], words: str) -> None:
    write_sample(tmp_path)
    damaged(tmp_path / file, act)
    with pytest.raises(InputError, match=words) as told:
        read_study(tmp_path)
    assert file in str(told.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "[{", "not valid JSON"),
        ("a.yaml", "a: [1", "not valid YAML"),
        ("a.yaml", "a: 1", "no known layout"),
        ("a.json", '{"responses_by_qid": {"q": {"r": 3}}, "model_id": "m"}', "no text"),
        ("a.jsonl", '{"qid": "a"}\n', "no record"),
        ("a.jsonl", '{"qid": 1}\n', "wrong kind"),
        ("a.json", "[" * 100_000, "not valid JSON"),
        ("a.jsonl", "[" * 100_000 + "\n", "not valid JSON"),
        ("a.jsonl", 'nonsense\n{"qid": "a"}\n', "line 1"),
        ("a.jsonl", '{"colour": 1}\n', "colour"),
        ("a.txt", "text", ".json"),
        ("a.json", "[]", "holds no question"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, name: str, content: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=words):
        read_study(path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_study(tmp_path / "no")
    with pytest.raises(InputError, match="holds no file"):
        read_study(tmp_path)


def test_choices_that_leave_nothing_name_what_there_is(tmp_path: Path) -> None:
    write_sample(tmp_path)
    study = read_study(tmp_path)
    with pytest.raises(InputError, match="suffix 'hard'"):
        study.only(suffix="hard")
    with pytest.raises(InputError, match="'keyword'"):
        study.only(judge="someone")
    assert len(study.only(models=["m"]).judged) == 60


def test_a_question_of_two_data_sets_is_in_both(tmp_path: Path) -> None:
    questions, judged = answered(mirrored_questions(2), [(10, 9), (10, 8)])
    sets = [replace(q, suffix="easy") for q in questions[:2]] + [replace(q, suffix="hard") for q in questions]
    write_study(tmp_path, Study(sets, [], judged))
    study = read_study(tmp_path)
    for suffix, pairs in (("easy", 1), ("hard", 2)):
        part = study.only(suffix=suffix)
        assert len(score(part.questions, part.judged).pairs) == pairs
    with pytest.raises(InputError, match="'easy', 'hard'"):
        score(study.questions, study.judged)


def test_results_beside_their_questions_are_enough(tmp_path: Path) -> None:
    write_sample(tmp_path)
    study = read_study(tmp_path / "evals.json")
    assert len(study.questions) == 6
    strange = Judged("0" * 64, "0", "m", "YES")
    study.judged.append(strange)
    assert len(score(study.questions, study.judged[:-1]).flagged) == 2


def test_a_cache_that_is_damaged_or_of_another_version_is_made_again(tmp_path: Path) -> None:
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.mkdir()
    write_sample(source)
    read_study(source, cache)
    kept = sorted(cache.iterdir())[0]
    whole = kept.read_text()
    version = importers.CACHE_VERSION
    other = json.dumps({**json.loads(whole), "version": version + 1, "questions": []})
    for damage in (json.dumps({"version": version, "questions": [{"x": 1}]}), whole[:50], "[]", other):
        kept.write_text(damage)
        assert len(read_study(source, cache).questions) == 6
        assert kept.read_text() == whole


@pytest.mark.parametrize("text", ["sizes_gt_YES_1", "sizes_eq_YES_1_0123abcd", "a_b_gt_YES_1_0123abcd", ""])
def test_ids_of_other_form_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="id of a data set"):
        parse_dataset_id(text)


def test_dataset_ids_in_parts() -> None:
    one = parse_dataset_id("wm-book-length_gt_NO_1_27a6f783_non-ambiguous-hard-2")
    assert (one.property_id, one.comparison, one.answer, one.max_comparisons) == ("wm-book-length", "gt", "NO", 1)
    assert (one.uuid, one.suffix) == ("27a6f783", "non-ambiguous-hard-2")
    assert str(one) == "wm-book-length_gt_NO_1_27a6f783_non-ambiguous-hard-2"
    assert parse_dataset_id("boiling-points_gt_YES_1_a2570446").suffix == ""
