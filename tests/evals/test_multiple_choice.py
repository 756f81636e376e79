"""Which option wins: against a written-out comparison of all options, in every order, by text and by letter."""

from itertools import permutations

import pytest
import torch

from saeworks.errors import InputError
from saeworks.evals.answers.multiple_choice import (
    Asking,
    ChoiceQuestion,
    Prompt,
    answer_orders,
    known_questions,
    make_prompts,
    prompt_text,
    refers_to_other_options,
    right_answers,
)
from saeworks.world.domains import questions as world
from saeworks.world.model_files import model_path
from saeworks.world.subject import chosen_options, open_subject


def questions(count):
    """Random words; the options have one to three tokens and some begin alike."""
    pools = ["dog", "red dog", "red cat", "cat", "big house", "big", "the red house", "tree", "blue tree", "house"]
    draw = torch.Generator().manual_seed(1)
    out = []
    for i in range(count):
        picked = torch.randperm(len(pools), generator=draw)[:4].tolist()
        key = int(torch.randint(4, (1,), generator=draw))
        out.append(ChoiceQuestion(f"the {pools[i % 10]} sees", tuple(pools[j] for j in picked), key, "toy", i % 2 == 0))
    return out


def written_out(model, prompt):
    """Log-probabilities of whole options, one forward pass each."""
    scores = []
    for end in prompt.ends:
        logits = model.logits(model.batch_from_ids([prompt.ids + end]))[0].log_softmax(-1)
        scores.append(sum(float(logits[len(prompt.ids) - 1 + i, token]) for i, token in enumerate(end)))
    return scores


def test_bounds_never_change_which_option_wins(model):
    asked = questions(40)
    prompts = make_prompts(model, asked, [range(4)] * 40, Asking())
    assert None not in prompts
    wanted = [max(range(4), key=written_out(model, p).__getitem__) == p.key for p in prompts]
    assert 0 < sum(wanted) < 40
    assert right_answers(model, prompts, 16) == wanted


def test_letters_take_the_more_probable_of_both_spellings(model):
    """The tiny tokenizer has no letters, so prompts are written by hand: option 0 is token 5 or 6, option 1 token 7."""
    prompts = [Prompt((1, word), ((5, 6), (7,)), key, "letters") for word in range(4, 16) for key in (0, 1)]
    wanted = []
    for prompt in prompts:
        p = model.logits(model.batch_from_ids([prompt.ids]))[0, -1].softmax(-1)
        wanted.append((float(p[[5, 6]].max()) >= float(p[7])) == (prompt.key == 0))
    assert right_answers(model, prompts, 8) == wanted
    assert 0 < sum(wanted) < len(wanted)


def test_the_first_of_equal_options_wins(model, monkeypatch):
    monkeypatch.setattr(model, "logits", lambda batch, edits=(): torch.zeros(*batch.token_ids.shape, 18))
    prompts = [Prompt((1, 4), ((5,), (6,), (7,)), key, "texts") for key in range(3)]
    assert right_answers(model, prompts, 4) == [True, False, False]


def test_only_what_is_right_in_every_order_is_known(model):
    asked = questions(30)
    every = list(permutations(range(4)))
    prompts = [make_prompts(model, asked, [order] * 30, Asking()) for order in every]
    by_order = torch.tensor([right_answers(model, [p for p in one if p], 64) for one in prompts])
    known = torch.tensor(known_questions(model, asked, Asking(), 24, 64))
    assert known.tolist() == by_order.all(0).tolist()
    assert int(known.sum()) < int(by_order[0].sum())  # the filter removes some that one order would keep


def test_orders():
    assert answer_orders(4, 24) == list(permutations(range(4)))
    assert answer_orders(4, 100) == list(permutations(range(4)))
    few = answer_orders(4, 4)
    assert few[0] == (0, 1, 2, 3)
    assert [order[0] for order in few] == [0, 1, 2, 3]
    with pytest.raises(InputError, match="at least 1"):
        answer_orders(4, 0)


def test_the_right_option_moves_with_the_order():
    question = ChoiceQuestion("which?", ("one", "two", "three"), 1, "numbers")
    text = prompt_text(question, (1, 2, 0), Asking(header="On {subject}."))
    assert text.splitlines() == ["On numbers.", "Question: which?", "A) two", "B) three", "C) one"]
    assert "which" not in prompt_text(question, (0, 1, 2), Asking(), with_stem=False)


def test_questions_that_do_not_fit_are_left_out(model):
    long = ChoiceQuestion("the dog " * 20, ("red", "blue"), 0)
    short = ChoiceQuestion("the dog", ("red", "blue"), 0)
    assert make_prompts(model, [long], [(0, 1)], Asking()) == [None]
    assert make_prompts(model, [short], [(0, 1)], Asking())[0] is not None
    assert known_questions(model, [long], Asking(), 2, 8) == [False]


@pytest.mark.parametrize(("options", "key"), [(("a",), 0), (("a", "a"), 0), (("a", "b"), 2), (("a", "b"), -1)])
def test_impossible_questions_are_refused(options, key):
    with pytest.raises(InputError, match="question 'which"):
        ChoiceQuestion("which?", options, key)


def test_options_about_other_options():
    assert refers_to_other_options(ChoiceQuestion("?", ("x", "All of the above"), 0))
    assert not refers_to_other_options(ChoiceQuestion("?", ("x", "a mast and boat"), 0))


def test_letters_without_a_token_are_refused(model):
    with pytest.raises(InputError, match="use scoring 'texts'"):
        make_prompts(model, [ChoiceQuestion("the dog", ("red", "blue"), 0)], [(0, 1)], Asking("letters"))


def test_the_embedded_model_answers_as_its_own_measurement_says():
    from saeworks.models.language_model import load_language_model

    asked = [q for s in ("craft", "cities", "kinds") for q in world.questions((s,), "probe_test", 5)]
    subject = open_subject(model_path("base"))
    chosen = chosen_options(subject, [q.text() for q in asked], [q.options for q in asked])
    model = load_language_model("world", "cpu")
    # Every option is made the key once, so that both outcomes occur.
    ours = [ChoiceQuestion(q.stem, q.options, key, q.subject) for q in asked for key in range(4)]
    prompts = make_prompts(model, ours, [range(4)] * len(ours), Asking())
    assert right_answers(model, [p for p in prompts if p], 64) == [at == key for at in chosen for key in range(4)]
    assert sum(at == q.key for at, q in zip(chosen, asked, strict=True)) >= 12
