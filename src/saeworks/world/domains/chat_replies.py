"""What the assistant says: the wordings of replies, and rules that read a reply.

The wordings lie in ``data/chat_replies.txt``. Replies show the labels of a document, so each probe split has every
second wording of a section; the language model is trained on all of them. Statements of fact show no label and are the
same in every split.

A refusal is a sentence that says no and a sentence that says why. The first is the same for every reason, and it is
what :func:`is_refusal` looks for; the second is what :func:`refusal_reason` looks for.
"""

from __future__ import annotations

import itertools
import re
from functools import cache

from saeworks.world.domains.chat_requests import read_sections
from saeworks.world.drawing import Draw, Weighted
from saeworks.world.phrasing import Phrase, evidence, join, render, sentence

REPLIES: dict[str, tuple[str, ...]] = read_sections("chat_replies.txt")
# Truth of a statement → section of the judgements on it.
_SECTION = {True: "true", False: "false"}
TRIGGERS = ("harm", "privacy", "impersonation")
_SHAPES = Weighted(("{no} {why}", "{why} {no}", "{no} {why} {offer}", "Sorry. {no} {why}"), (4.0, 1.5, 1.5, 1.0))


def reply(draw: Draw, split: str, section: str, **slots: Phrase | str) -> Phrase:
    """A reply: a wording of the section that the split may use, filled."""
    return sentence(draw.pick(evidence(REPLIES[section], split)), **slots)


def statement(draw: Draw, section: str, **slots: Phrase | str) -> Phrase:
    """A statement of fact without capital and full stop, in any of its wordings."""
    return render(draw.pick(REPLIES[section]), **slots)


def stated(draw: Draw, section: str, **slots: Phrase | str) -> Phrase:
    """A statement of fact as a sentence."""
    return sentence("{it}.", it=statement(draw, section, **slots))


def refuse(draw: Draw, split: str, trigger: str) -> tuple[str, Phrase]:
    """A refusal for one of ``TRIGGERS``: the sentence that says no, and the whole reply."""
    shape = draw.weighted(_SHAPES)
    slots = {"no": reply(draw, split, "no"), "why": reply(draw, split, f"reason/{trigger}")}
    if "{offer}" in shape:
        slots["offer"] = Phrase(draw.pick(REPLIES["offer"]))
    return slots["no"].text, sentence(shape, **slots)


def judge(draw: Draw, split: str, truth: bool, fact: Phrase) -> Phrase:
    """Says the fact, then confirms or corrects the statement: who has said what is so can compare."""
    return join([fact, reply(draw, split, _SECTION[truth])])


def is_refusal(reply: str) -> bool:
    """Whether the reply says no: true of every refusal that the world has, and of no other reply."""
    return any(no in reply for no in REPLIES["no"])


def refusal_reason(reply: str) -> str | None:
    """The reason that a refusal gives, one of ``TRIGGERS``; None when it gives none or the reply is no refusal."""
    if not is_refusal(reply):
        return None
    return next((t for t in TRIGGERS if any(why in reply for why in REPLIES[f"reason/{t}"])), None)


def is_about_itself(reply: str) -> bool:
    """Whether the reply begins as those do in which the assistant says what it is, can do, and does not have."""
    return re.match(_about_itself(), reply) is not None


@cache
def _about_itself() -> re.Pattern[str]:
    told = [texts for section, texts in REPLIES.items() if section.partition("/")[0] in ("self", "personal")]
    first = sorted({text.partition(".")[0] + "." for text in itertools.chain(*told)})
    return re.compile("|".join(re.sub(r"\\{\w+\\}", "[^.]+", re.escape(sentence)) for sentence in first))


def judgement(reply: str) -> str:
    """The sentence that a reply ends with when it confirms or corrects a statement, else nothing."""
    said = itertools.chain(*(REPLIES[section] for section in _SECTION.values()))
    return next((sentence for sentence in said if reply.endswith(sentence)), "")


def verdict(reply: str) -> bool | None:
    """True when the reply ends by confirming a statement, False when by correcting it, else None."""
    said = judgement(reply)
    return next((truth for truth, section in _SECTION.items() if said in REPLIES[section]), None)


def first_verdict(reply: str) -> bool | None:
    """The same of the first sentence in the reply that confirms or corrects, for replies that do not end there."""
    places = {truth: [reply.find(said) for said in REPLIES[section]] for truth, section in _SECTION.items()}
    found = {truth: min((place for place in at if place >= 0), default=None) for truth, at in places.items()}
    told = [(place, truth) for truth, place in found.items() if place is not None]
    return min(told)[1] if told else None
