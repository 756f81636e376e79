"""Multiple-choice questions put to a language model: which of them does it answer rightly, as it is or under an edit?

A model answers by the option that it holds for the most probable continuation: by the option's ``text`` (small models
do not learn to read off a letter), or by its ``letter``. Only whether the right option wins is asked here, which takes
one row per question nearly always: the log-probability of an option's first token bounds that of its whole text from
above, so that an option whose bound stays below the right one's score needs no row of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from saeworks.errors import InputError

if TYPE_CHECKING:
    from saeworks.models.interventions import Intervention
    from saeworks.models.language_model import LanguageModel

PLACES = "ABCDEFGH"
Scoring = Literal["texts", "letters"]
#: (number of the prompt, option whose text is appended); letters need one row per prompt, that of option 0.
Row = tuple[int, int]
#: What is done to the rows of one forward pass.
Edits = Callable[[Sequence[Row]], "Intervention"]


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """One question.

    Attributes:
        stem: what is asked.
        options: the answers to choose from, all different.
        key: index of the right one.
        subject: what it is about; accuracies are reported by subject.
        restricted: whether it asks for what is to be forgotten.
    """

    stem: str
    options: tuple[str, ...]
    key: int
    subject: str = ""
    restricted: bool = False

    def __post_init__(self) -> None:
        if not 2 <= len(self.options) <= len(PLACES) or len(set(self.options)) != len(self.options):
            raise InputError(
                f"The question '{self.stem}' has the options {list(self.options)}; give 2 to {len(PLACES)} that differ."
            )
        if not 0 <= self.key < len(self.options):
            raise InputError(
                f"The question '{self.stem}' has {len(self.options)} options, but its key is {self.key}; "
                f"give the index of the right one, 0 to {len(self.options) - 1}."
            )


@dataclass(frozen=True, slots=True)
class Asking:
    """How a question is put.

    Attributes:
        scoring: what is compared: the options' texts, or their letters.
        header: first line of the prompt, ``{subject}`` in it replaced; "" for none.
        chat: whether the question is a user's turn and the answer begins the assistant's.
    """

    scoring: Scoring = "texts"
    header: str = ""
    chat: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised question.

    Attributes:
        ids: tokens of the prompt, special ones included.
        ends: by option, in the order of ``ChoiceQuestion.options``: the tokens of its text (``texts``), or those that
            write its letter, of which the most probable counts (``letters``).
        key: index of the right option.
        scoring: which of the two ``ends`` are.
    """

    ids: tuple[int, ...]
    ends: tuple[tuple[int, ...], ...]
    key: int
    scoring: Scoring

    def row(self, option: int) -> tuple[int, ...]:
        """Tokens of the row that scores ``option``."""
        return self.ids if self.scoring == "letters" else self.ids + self.ends[option]

    def rows(self) -> range:
        """The options that have rows of their own."""
        return range(len(self.ends) if self.scoring == "texts" else 1)


def answer_orders(options: int, count: int) -> list[tuple[int, ...]]:
    """``count`` orders of the options (all of them if there are no more), the original one first, spread evenly."""
    if count < 1:
        raise InputError(f"{count} orders of the options were asked for; give at least 1.")
    every = list(permutations(range(options)))
    return [every[i * len(every) // min(count, len(every))] for i in range(min(count, len(every)))]


def prompt_text(question: ChoiceQuestion, order: Sequence[int], asking: Asking, with_stem: bool = True) -> str:
    """The question with option ``order[i]`` in place ``i``; what opens the answer, and a chat's turns, come later."""
    lines = [f"{place}) {question.options[at]}" for place, at in zip(PLACES, order, strict=False)]
    stem = [f"Question: {question.stem}"] if with_stem else []
    header = [asking.header.replace("{subject}", question.subject)] if asking.header else []
    return "\n".join([*header, *stem, *lines])


def make_prompts(
    model: LanguageModel,
    questions: Sequence[ChoiceQuestion],
    orders: Sequence[Sequence[int]],
    asking: Asking,
    with_stem: bool = True,
) -> list[Prompt | None]:
    """Tokenise every question in its order; None where prompt and answer do not fit into the model's context."""
    opening = "Answer:" if asking.scoring == "texts" else "Answer: ("
    texts: list[str] = []
    for question, order in zip(questions, orders, strict=True):
        body = prompt_text(question, order, asking, with_stem)
        if asking.chat:
            texts.append(model.chat_prompt([{"role": "user", "content": body}]) + opening)
        else:
            texts.append(f"{body}\n{opening}")
    limit = model.max_context or 1_000_000
    batch = model.tokenize(texts, limit)
    lengths = batch.attention_mask.sum(-1).tolist()
    out: list[Prompt | None] = []
    for question, order, ids, length in zip(questions, orders, batch.token_ids.tolist(), lengths, strict=True):
        ends = _texts(model, question) if asking.scoring == "texts" else _letters(model, order)
        # A prompt that fills the context has been cut.
        longest = max(map(len, ends)) if asking.scoring == "texts" else 1
        prompt = Prompt(tuple(ids[:length]), ends, question.key, asking.scoring)
        out.append(prompt if length + longest <= limit else None)
    return out


def _texts(model: LanguageModel, question: ChoiceQuestion) -> tuple[tuple[int, ...], ...]:
    written = [f" {option}" for option in question.options]
    ends: list[list[int]] = model.tokenizer(written, add_special_tokens=False)["input_ids"]
    if not all(ends):
        raise InputError(f"An option of the question '{question.stem}' has no token; write at least a word.")
    return tuple(tuple(end) for end in ends)


def _letters(model: LanguageModel, order: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Tokens that write each option's letter, with and without a space before it; those that stay unknown do not."""
    unknown: int | None = getattr(model.tokenizer, "unk_token_id", None)
    ends: list[tuple[int, ...]] = [()] * len(order)
    for place, at in zip(PLACES, order, strict=False):
        written: list[list[int]] = model.tokenizer([place, f" {place}"], add_special_tokens=False)["input_ids"]
        ends[at] = tuple(dict.fromkeys(ids[-1] for ids in written if ids and ids[-1] != unknown))
        if not ends[at]:
            raise InputError(
                f"The tokenizer of model '{model.name}' has no token for the letter '{place}'; use scoring 'texts'."
            )
    return tuple(ends)


def right_answers(
    model: LanguageModel, prompts: Sequence[Prompt], batch_size: int, edits: Edits | None = None
) -> list[bool]:
    """Whether the right option is the most probable one (the first of equals), prompt by prompt.

    Args:
        batch_size: rows per forward pass.
        edits: gives the intervention for the rows of a pass; None leaves the model as it is.
    """
    first_rows = [(i, p.key if p.scoring == "texts" else 0) for i, p in enumerate(prompts)]
    found: list[bool] = [True] * len(prompts)
    own: dict[int, float] = {}
    open_rows: list[Row] = []
    for (i, _), (firsts, total) in zip(first_rows, _read(model, prompts, first_rows, batch_size, edits), strict=True):
        prompt = prompts[i]
        own[i] = total if prompt.scoring == "texts" else firsts[prompt.key]
        for option, bound in enumerate(firsts):
            if option == prompt.key or not _beats(bound, option, own[i], prompt.key):
                continue
            if prompt.scoring == "letters" or len(prompt.ends[option]) == 1:
                found[i] = False  # the bound is the score
            else:
                open_rows.append((i, option))
    open_rows = [row for row in open_rows if found[row[0]]]
    for (i, option), (_, total) in zip(open_rows, _read(model, prompts, open_rows, batch_size, edits), strict=True):
        found[i] = found[i] and not _beats(total, option, own[i], prompts[i].key)
    return found


def _beats(score: float, option: int, key_score: float, key: int) -> bool:
    return score > key_score or (score == key_score and option < key)


def _read(
    model: LanguageModel, prompts: Sequence[Prompt], rows: Sequence[Row], batch_size: int, edits: Edits | None
) -> list[tuple[list[float], float]]:
    """By row: log-probability of every option's first token (letters: of its letter), and of the row's own text."""
    out: list[tuple[list[float], float]] = [([], 0.0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda r: len(prompts[rows[r][0]].row(rows[r][1])))
    for start in range(0, len(order), batch_size):
        chosen = [rows[r] for r in order[start : start + batch_size]]
        batch = model.batch_from_ids([prompts[i].row(option) for i, option in chosen])
        logits = model.logits(batch, () if edits is None else [edits(chosen)])
        for at, r in enumerate(order[start : start + batch_size]):
            prompt, option = prompts[rows[r][0]], rows[r][1]
            first = len(prompt.ids) - 1
            end = prompt.ends[option]
            logs = logits[at, first : first + len(end)].log_softmax(-1)
            if bool(logs.isnan().any()):
                raise InputError(
                    f"What model '{model.name}' predicts for a question is not a number (NaN), so it has no answer; "
                    "run the model in float32."
                )
            out[r] = (_firsts(prompt, logs[0]), _total(prompt, end, logs))
    return out


def _firsts(prompt: Prompt, logs: Tensor) -> list[float]:
    if prompt.scoring == "texts":
        return logs[[end[0] for end in prompt.ends]].tolist()
    return [float(logs[list(end)].max()) for end in prompt.ends]


def _total(prompt: Prompt, end: tuple[int, ...], logs: Tensor) -> float:
    if prompt.scoring == "letters":
        return 0.0
    return float(sum(logs[step, token] for step, token in enumerate(end)))


def known_questions(
    model: LanguageModel,
    questions: Sequence[ChoiceQuestion],
    asking: Asking,
    orders: int,
    batch_size: int,
    with_stem: bool = True,
) -> list[bool]:
    """Which questions the model answers rightly in ``orders`` orders of their options; one that is missed once is not
    asked again. Questions that do not fit into the model's context are not known."""
    known = [True] * len(questions)
    most = max((len(answer_orders(len(q.options), orders)) for q in questions), default=0)
    for number in range(most):
        left = [i for i, still in enumerate(known) if still]
        asked = [answer_orders(len(questions[i].options), orders) for i in left]
        here = [(i, all_orders[number]) for i, all_orders in zip(left, asked, strict=True) if number < len(all_orders)]
        if not here:
            break
        made = make_prompts(model, [questions[i] for i, _ in here], [order for _, order in here], asking, with_stem)
        fitting = [(i, prompt) for (i, _), prompt in zip(here, made, strict=True) if prompt is not None]
        for (i, _), prompt in zip(here, made, strict=True):
            known[i] = prompt is not None
        right = right_answers(model, [prompt for _, prompt in fitting], batch_size)
        for (i, _), yes in zip(fitting, right, strict=True):
            known[i] = yes
    return known


def refers_to_other_options(question: ChoiceQuestion) -> bool:
    """Whether an option speaks about the others ("all of the above"): it means something else in another order."""
    marks = (
        "of the above",
        "of these",
        "of the following",
        "both a and",
        "both b and",
        "a and b",
        "b and c",
        "a and c",
    )
    return any(mark in option.lower() for option in question.options for mark in marks)
