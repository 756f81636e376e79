"""Every eval says in a sentence what is wrong with a dictionary that does not fit, texts that do not do, or NaN."""

import copy
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from saeworks.errors import InputError
from saeworks.evals import absorption, unlearning
from saeworks.evals.answers.multiple_choice import ChoiceQuestion
from saeworks.evals.entities.ravel_prompts import EntitySet
from saeworks.evals.runner import REGISTRY, eval_module
from saeworks.evals.sparse_probing import LabelledSet
from saeworks.models.language_model import LanguageModel
from saeworks.world.documents import Document, Span

#: The decoder's rows are all that this one reads of a dictionary.
WEIGHTS_ALONE = "meta_structure"
READING = [name for name in REGISTRY if name != WEIGHTS_ALONE]
ENTITIES = EntitySet(
    {"place": ["the %s sees the"], "colour": ["a big %s and"]},
    {word: {"place": "house", "colour": "red"} for word in ("dog", "cat")},
)


def config_of(name):
    return unlearning.Config(scoring="texts") if name == "unlearning" else eval_module(name).Config()


def labelled(rows, classes):
    """Every class with either cue, equally often, and a span that names the cue."""
    out = []
    for i, d in enumerate(rows):
        cue = "ab"[i // len(classes) % 2]
        text = f"{d.text} {i}"
        out.append(Document(text, {"topic": classes[i % len(classes)], "cue": cue}, (Span(0, 3, "a or b"),)))
    return out


def data_of(name, module, rows, model, config, make_source):
    if name in ("core", "latents"):
        return make_source(rows)
    if name == "sparse_probing":
        return {"toy": LabelledSet(rows[:300], rows[300:], ("topic",))}
    if name == "absorption":
        return absorption.Data(("dog", "cat", "red", "runs") if rows else ())
    if name == "ravel":
        return {"thing": ENTITIES} if rows else {}
    if name == "unlearning":
        asked = [ChoiceQuestion(f"the {i}", ("red", "blue"), 0, "toy", i < 3) for i in range(6 if rows else 0)]
        return unlearning.Data(rows[:20], rows[20:40], asked)
    return module.from_documents({"toy": rows}, "topic", model, config)


def measured(name, rows, model, make_source, dictionary):
    """What a user does: own texts to data to results."""
    module, config = eval_module(name), config_of(name)
    return module.run({"d": dictionary}, model, data_of(name, module, rows, model, config, make_source), config)


@pytest.mark.parametrize("name", READING)
def test_a_dictionary_of_another_width_is_refused_with_both_widths(
    name, model, make_source, make_sentences, make_dictionary
):
    rows = labelled(make_sentences(600), "xyz")
    with pytest.raises(InputError, match="has width 16, but dictionary 'd' was made for width 8"):
        measured(name, rows, model, make_source, make_dictionary(d=8))


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize(
    ("field", "value", "kind"), [("d_out", 16, "transcoder"), ("sources", ("a", "b"), "crosscoder")]
)
def test_what_reads_or_writes_several_sites_is_refused_by_its_kind(
    name, field, value, kind, model, make_source, make_sentences, make_dictionary
):
    plain = make_dictionary()
    cfg = SimpleNamespace(**{"metadata": plain.cfg.metadata, "d_in": 16, "d_sae": 32, field: value})
    other = SimpleNamespace(
        cfg=cfg,
        **{part: getattr(plain, part) for part in ("W_enc", "W_dec", "b_enc", "b_dec", "encode", "decode")},
    )
    with pytest.raises(InputError, match=f"'d' cannot be measured: it is a {kind}, which"):
        measured(name, labelled(make_sentences(600), "xyz"), model, make_source, other)


@pytest.mark.parametrize("name", READING)
def test_numbers_that_are_none_are_refused_in_a_sentence(name, model, make_source, make_sentences, make_dictionary):
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        module.get_input_embeddings().weight.fill_(torch.nan)
    broken = LanguageModel(module, model.tokenizer, name="broken", head="causal")
    with pytest.raises(InputError, match=r"not finite \(NaN|not a number \(NaN") as error:
        measured(name, labelled(make_sentences(600), "xyz"), broken, make_source, make_dictionary())
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("name", READING)
def test_no_data_at_all_is_a_sentence(name, model, make_source, make_dictionary):
    with pytest.raises(InputError) as error:
        measured(name, [], model, make_source, make_dictionary())
    assert len(str(error.value).split()) > 6
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("name", ["sparse_probing", "scr", "tpp", "shift"])
def test_one_class_is_refused_with_its_reason(name, model, make_source, make_sentences, make_dictionary):
    rows = labelled(make_sentences(600), "x")
    with pytest.raises(InputError, match=r"class|topic"):
        measured(name, rows, model, make_source, make_dictionary())


@pytest.mark.parametrize("name", ["sparse_probing", "scr", "tpp", "shift"])
def test_texts_without_the_label_are_refused(name, model, make_source, make_sentences, make_dictionary):
    with pytest.raises(InputError, match="label"):
        measured(name, make_sentences(60), model, make_source, make_dictionary())


def lists_of(name):
    """The settings of an eval that are lists, and their defaults."""
    fields = eval_module(name).Config.model_fields
    return {key: field.default for key, field in fields.items() if isinstance(field.default, tuple)}


@pytest.mark.parametrize("name", REGISTRY)
def test_lists_of_settings_hold_something_once_and_counts_are_positive(name):
    for key, default in lists_of(name).items():
        with pytest.raises(ValidationError, match="at least 1"):
            eval_module(name).Config(**{key: ()})
        if key != "k" and key != "entities":
            with pytest.raises(ValidationError, match="twice"):
                eval_module(name).Config(**{key: (default[0], default[0])})
        if not isinstance(default[0], str) and key != "seeds":
            with pytest.raises(ValidationError, match="greater than 0"):
                eval_module(name).Config(**{key: (0,)})


@pytest.mark.parametrize("name", [name for name in REGISTRY if name not in ("core", "latents")])
def test_every_eval_that_draws_has_three_seeds(name):
    assert lists_of(name)["seeds"] == (0, 1, 2)
