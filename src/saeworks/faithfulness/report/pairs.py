"""Flagged pairs as cards: both questions side by side, with the chains of thought that were judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from saeworks.faithfulness.counts import Counts
from saeworks.faithfulness.criterion import PairVerdict
from saeworks.faithfulness.records import Judged, Response
from saeworks.faithfulness.report.content import Content
from saeworks.results.report_text import esc, percent

# A page of hundreds of pairs with twenty responses each would not open; beyond this, one response each is shown.
ALL_RESPONSES_UP_TO = 40


def pair_cards(content: Content) -> str:
    """All flagged pairs, the largest difference first."""
    if content.scored is None:
        return ""
    flagged = sorted(content.scored.flagged, key=lambda pair: (-abs(pair.difference), pair.model, pair.pair_id))
    every = len(flagged) <= ALL_RESPONSES_UP_TO
    return "".join(_card(number, pair, content, every) for number, pair in enumerate(flagged, 1))


def _card(number: int, pair: PairVerdict, content: Content, every: bool) -> str:
    question = pair.failing.question
    values = f"{_name(question.x_name)}: {question.x_value:,.6g}, {_name(question.y_name)}: {question.y_value:,.6g}"
    found = content.patterns.get((pair.model, pair.pair_id))
    named = "" if found is None else ", ".join(sorted(found.found())) or "no pattern"
    tags = f'<span class="tag">{esc(named)}</span>' if named else ""
    right = {
        pair.yes.question.qid: pair.p_correct_yes,
        pair.no.question.qid: pair.p_correct_no,
    }
    columns = "".join(
        _column(title, counts, right[counts.question.qid], pair, content, every)
        for title, counts in (("The failing question", pair.failing), ("Its reversal", pair.other))
    )
    return (
        f'<article class="pair" id="pair-{number}"><h3>{number}. {_name(question.x_name)} and {_name(question.y_name)} '
        f'<span class="tag">{esc(pair.property_id)} {esc(pair.comparison)}</span> '
        f'<span class="tag">{esc(pair.model)}</span> {tags}</h3>'
        f'<p class="why">{esc(pair.reason)}</p><p class="note">Values: {values}.</p>'
        f'<div class="sides">{columns}</div></article>'
    )


def _column(title: str, counts: Counts, right: float, pair: PairVerdict, content: Content, every: bool) -> str:
    question = counts.question
    key = (pair.model, question.qid)
    judged = content.judged.get(key, {})
    responses = _by_interest(content.responses.get(key, ()), judged, _shown_answer(pair))
    shown = (
        _response(responses[0], judged, question.expected)
        if responses
        else '<p class="note">The responses were not stored.</p>'
    )
    rest = responses[1:] if every else []
    more = ""
    if rest:
        inner = "".join(_response(one, judged, question.expected) for one in rest)
        more = f"<details><summary>{len(rest)} more responses</summary>{inner}</details>"
    unread = f", {counts.unknown + counts.missing} without a verdict" if counts.unknown + counts.missing else ""
    return (
        f'<section class="side"><h4>{esc(title)}</h4><p class="question">{lines(question.text)}</p>'
        f'<p class="note">Right: {esc(question.expected)}. Answers: {counts.yes} YES, {counts.no} NO{unread}; '
        f"{percent(right)} right.</p>{shown}{more}</section>"
    )


def _shown_answer(pair: PairVerdict) -> str:
    """The answer that stays put: the responses that give it are what the reader came for."""
    return "NO" if pair.failing.question.expected == "YES" else "YES"


def _by_interest(responses: Sequence[Response], judged: Mapping[str, Judged], answer: str) -> list[Response]:
    """Those with the answer that stays put first, in the order of their ids."""

    def rank(one: Response) -> tuple[bool, str]:
        verdict = judged.get(one.response_id)
        return verdict is None or verdict.result != answer, one.response_id

    return sorted(responses, key=rank)


def _response(one: Response, judged: Mapping[str, Judged], expected: str) -> str:
    verdict = judged.get(one.response_id)
    read = "not judged" if verdict is None else str(verdict.answer)
    counted = None if verdict is None else verdict.result
    kind = "open" if counted not in ("YES", "NO") else "right" if counted == expected else "wrong"
    wrong = " (wrong)" if kind == "wrong" else ""  # told in words too, for those who do not see the colour
    ended = "" if one.outcome == "answered" else f'<span class="tag">{esc(one.outcome.replace("_", " "))}</span>'
    equal = '<span class="tag">says they are equal</span>' if verdict is not None and verdict.equal_values else ""
    thought = ""
    if one.reasoning:
        told = lines(one.reasoning)
        thought = f'<details><summary>Reasoning told apart</summary><div class="chain">{told}</div></details>'
    text = lines(one.text) if one.text.strip() else '<span class="soft">(no visible text)</span>'
    why = (
        f'<p class="note">Judge: {lines(verdict.explanation)}</p>'
        if verdict is not None and verdict.explanation
        else ""
    )
    return (
        f'<div class="response"><p class="head"><b class="read {kind}">{esc(read)}{wrong}</b> '
        f"<code>{esc(one.response_id)}</code> {ended}{equal}</p>{thought}"
        f'<div class="chain">{text}</div>{why}</div>'
    )


def _name(text: str) -> str:
    """A name in a line of English; one that is written from right to left turns nothing beside it."""
    return f"<bdi>{esc(text)}</bdi>"


def lines(text: str) -> str:
    """Escaped, with line breaks kept; the style sheet shows them."""
    return "\n".join(esc(line) for line in text.strip().split("\n"))
