"""The runner writes every result once, and measures again only what changed."""

import copy

import pytest
import torch
from pydantic import BaseModel

from saeworks.errors import InputError
from saeworks.evals import core, sparse_probing
from saeworks.evals.runner import Data, run_evals
from saeworks.evals.sparse_probing import LabelledSet
from saeworks.models.language_model import LanguageModel
from saeworks.results.envelope import read_results, result_path

CONFIGS: dict[str, BaseModel] = {"core": core.Config(tokens=100, batch_size=8, context_length=16, resamples=20)}


def test_finished_results_are_kept_and_changed_ones_measured_again(
    model, make_source, make_sentences, make_dictionary, tmp_path
):
    dictionaries = {"a": make_dictionary(), "b/c": make_dictionary(seed=1)}
    data = Data(text=make_source(make_sentences(30)))
    first = run_evals(["core"], dictionaries, model, data, tmp_path, CONFIGS)["core"]
    written = {p.name for p in (tmp_path / "core").glob("*.json")}
    assert written == {result_path(tmp_path, "core", name).name for name in dictionaries}
    assert "a_eval_results.json" in written
    second = run_evals(["core"], dictionaries, model, data, tmp_path, CONFIGS)["core"]
    assert [r.eval_id for r in second.values()] == [r.eval_id for r in first.values()]
    dictionaries["a"] = make_dictionary(seed=7)
    third = run_evals(["core"], dictionaries, model, data, tmp_path, CONFIGS)["core"]
    assert third["a"].eval_id != first["a"].eval_id
    assert third["b/c"].eval_id == first["b/c"].eval_id
    other = {"core": CONFIGS["core"].model_copy(update={"seed": 5})}
    fourth = run_evals(["core"], dictionaries, model, data, tmp_path, other)["core"]
    assert fourth["b/c"].eval_id != first["b/c"].eval_id
    assert {r.sae_lens_id for r in read_results(tmp_path)} == {"a", "b/c"}


def test_a_result_in_another_number_type_is_measured_again(
    model, make_source, make_sentences, make_dictionary, tmp_path, monkeypatch
):
    dictionaries, data = {"a": make_dictionary()}, Data(text=make_source(make_sentences(30)))
    first = run_evals(["core"], dictionaries, model, data, tmp_path, CONFIGS)["core"]
    monkeypatch.setattr(model, "dtype", torch.bfloat16)
    second = run_evals(["core"], dictionaries, model, data, tmp_path, CONFIGS)["core"]
    assert second["a"].eval_id != first["a"].eval_id


def test_results_of_weights_that_were_changed_in_place_are_not_kept(
    model, make_source, make_sentences, make_dictionary, tmp_path
):
    model = LanguageModel(copy.deepcopy(model.module), model.tokenizer, name="tiny", head="causal")
    dictionaries, data = {"a": make_dictionary()}, Data(text=make_source(make_sentences(30)))
    first = run_evals(["core"], dictionaries, model, data, tmp_path, CONFIGS)["core"]["a"]
    with torch.no_grad():
        model.module.get_input_embeddings().weight.mul_(1.5)
    second = run_evals(["core"], dictionaries, model, data, tmp_path, CONFIGS)["core"]["a"]
    metric = ("model_performance_preservation", "ce_loss_without_sae")
    assert second.metric(*metric) != first.metric(*metric)


def test_probing_other_labels_of_the_same_texts_is_another_measurement(make_sentences):
    rows = make_sentences(20)
    hashes = {
        sparse_probing.data_hashes({"toy": LabelledSet(train, test, labels)}, sparse_probing.Config())["data:toy"]
        for train, test, labels in (
            (rows[:10], rows[10:], ("a",)),
            (rows[:10], rows[10:], ("b",)),
            (rows[:12], rows[12:], ("a",)),
        )
    }
    assert len(hashes) == 3


def test_unknown_evals_and_missing_data_are_sentences(model, make_dictionary, tmp_path):
    with pytest.raises(InputError, match="Did you mean 'core'"):
        run_evals(["cor"], {"a": make_dictionary()}, model, Data(), tmp_path)
    with pytest.raises(InputError, match="needs labelled texts"):
        run_evals(["sparse_probing"], {"a": make_dictionary()}, model, Data(), tmp_path)
