"""Every eval says in a sentence what is wrong with a dictionary of another width, one class, or no labels."""

import pytest

from saeworks.errors import InputError
from saeworks.evals.runner import REGISTRY, eval_module
from saeworks.evals.sparse_probing import LabelledSet
from saeworks.world.documents import Document, Span

#: The decoder's rows are all that this one reads of a dictionary.
WEIGHTS_ALONE = "meta_structure"
#: These look at the dictionaries before they look at any data.
SITES_FIRST = ("ravel", "unlearning")


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
        return module.default_data(model, config)
    return {} if name in SITES_FIRST else module.from_documents({"toy": rows}, "topic", model, config)


@pytest.mark.parametrize("name", [name for name in REGISTRY if name != WEIGHTS_ALONE])
def test_a_dictionary_of_another_width_is_refused_with_both_widths(
    name, model, make_source, make_sentences, make_dictionary
):
    module = eval_module(name)
    config, rows = module.Config(), labelled(make_sentences(600), "xyz")
    data = data_of(name, module, rows, model, config, make_source)
    with pytest.raises(InputError, match="has width 16, but dictionary 'narrow' was made for width 8"):
        module.run({"narrow": make_dictionary(d=8)}, model, data, config)


def measured(name, rows, model, make_source, dictionary):
    """What a user does: own texts to data to results."""
    module = eval_module(name)
    config = module.Config()
    return module.run({"d": dictionary}, model, data_of(name, module, rows, model, config, make_source), config)


@pytest.mark.parametrize("name", ["sparse_probing", "scr", "tpp", "shift"])
def test_one_class_is_refused_with_its_reason(name, model, make_source, make_sentences, make_dictionary):
    rows = labelled(make_sentences(600), "x")
    with pytest.raises(InputError, match=r"class|topic"):
        measured(name, rows, model, make_source, make_dictionary())


@pytest.mark.parametrize("name", ["sparse_probing", "scr", "tpp", "shift"])
def test_texts_without_the_label_are_refused(name, model, make_source, make_sentences, make_dictionary):
    with pytest.raises(InputError, match="label"):
        measured(name, make_sentences(60), model, make_source, make_dictionary())
