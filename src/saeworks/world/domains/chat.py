"""Transcripts of an assistant of this world: one or two exchanges, sometimes after a system turn.

A turn is its role's token, its text and the end token, as the tokenizer's chat template renders it, without the token
that begins a sequence.

Document labels, all of the last exchange: ``kind`` (one of ``KINDS``), ``refused`` (yes or no), ``trigger`` (harm,
privacy or impersonation; only of refusals) and ``truth`` (of the user's statement; only where one is judged). Requests
of ``probe_test`` have wordings of their own, and each probe split has every second wording of the replies, every second
substance, tool and step of the restricted craft and every second row of the tables. Some kinds are words by nature: who
asks for a joke says so.

Concepts: ``chat/request/KIND`` marks the user's text. All other concepts of an exchange mark the user's text, the
``<|assistant|>`` token after it and the reply as one span, so that the token before the reply is where a model has to
know what it will do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from saeworks.errors import InputError, did_you_mean
from saeworks.world.documents import Document, Label
from saeworks.world.domains import chat_kinds, chat_refused, chat_tasks
from saeworks.world.domains.chat_kinds import Spoken
from saeworks.world.domains.chat_replies import TRIGGERS, is_refusal, judgement, refusal_reason, verdict
from saeworks.world.domains.chat_requests import REQUESTS
from saeworks.world.drawing import Draw, Weighted
from saeworks.world.phrasing import SPLITS, Phrase, finish, join, marked, phrase

__all__ = (
    "CHAT_ONLY", "KINDS", "LABELS", "SHARES", "TRIGGERS", "Exchange", "describe", "exchanges",
    "is_refusal", "messages", "refusal_reason", "statements", "verdict", "write",
)  # fmt: skip

LABELS = ("kind", "refused", "trigger", "truth")
ROLES = ("user", "assistant", "system")

# kind: (share of all exchanges in percent, how one is drawn, concept of the exchange)
_TABLE: dict[str, tuple[float, Callable[[Draw, str], Spoken], str]] = {
    "answer/fact": (6.0, chat_kinds.fact, "chat/answer/fact"),
    "answer/kind": (3.5, chat_kinds.kind, "chat/answer/kind"),
    "answer/letter": (2.5, chat_kinds.letter, "chat/answer/letter"),
    "answer/choice": (5.0, chat_kinds.choice, "chat/answer/choice"),
    "answer/howto": (5.0, chat_refused.howto, "chat/answer/howto"),
    "answer/safety": (3.0, chat_refused.safety, "chat/answer/safety"),
    "answer/people": (6.0, chat_refused.people, "chat/answer/people"),
    "answer/writing": (6.0, chat_refused.writing, "chat/answer/writing"),
    "refusal/harm": (8.0, chat_refused.harm, "chat/refusal/harm"),
    "refusal/privacy": (7.0, chat_refused.privacy, "chat/refusal/privacy"),
    "refusal/impersonation": (7.0, chat_refused.impersonation, "chat/refusal/impersonation"),
    "correction": (9.0, partial(chat_kinds.judged, truth=False), "chat/false_statement"),
    "acceptance": (9.0, partial(chat_kinds.judged, truth=True), "chat/true_statement"),
    "self": (3.0, chat_kinds.itself, "chat/self"),
    "personal": (3.0, chat_kinds.personal, "chat/personal"),
    "missing": (3.0, chat_kinds.missing, "chat/missing_information"),
    "length/short": (3.0, partial(chat_kinds.length, wish="short"), "chat/length/short"),
    "length/long": (3.0, partial(chat_kinds.length, wish="long"), "chat/length/long"),
    "joke": (2.5, chat_tasks.joke, "chat/joke"),
    "rewrite": (3.0, chat_tasks.rewrite, "chat/rewrite"),
    "summary": (2.5, chat_tasks.summary, "chat/summary"),
}
KINDS = tuple(_TABLE)
SHARES: dict[str, float] = {kind: share / 100.0 for kind, (share, _, _) in _TABLE.items()}
# Harmless kinds whose wordings and pretexts are those of refused ones.
LOOK_ALIKES = ("answer/howto", "answer/safety", "answer/people", "answer/writing")
_KIND = Weighted(KINDS, tuple(SHARES.values()))
# After these, a question that does not say what it is about cannot be about what was spoken of before.
_NOTHING_NAMED = ("self", "personal", "refusal/harm", "refusal/impersonation")
# Words and marks, in tokens; a tokenizer cuts some family names in two, hence the distance from the context length.
_LIMIT = 104
_ROOM_FOR_MORE = 66


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its reply.

    Attributes:
        kind: One of ``KINDS``.
        request: The user's text.
        reply: The assistant's text.
        refused: Whether the reply refuses.
        trigger: Why: ``harm``, ``privacy`` or ``impersonation``; None when it does not.
        truth: Whether the user's statement is true; None when the request states nothing.
        expected: A part of every right reply, such as the value of a fact or ``Answer: France``. Of a refusal it is the
            sentence that says no, one of several: use :func:`is_refusal`. That a statement is confirmed or corrected is
            told by :func:`verdict`.
    """

    kind: str
    request: str
    reply: str
    refused: bool
    trigger: str | None
    truth: bool | None
    expected: str


def _trigger(kind: str) -> str | None:
    return kind.partition("/")[2] if kind.startswith("refusal/") else None


def _family(concept: str) -> list[str]:
    """The concept and those above it, but for the domain itself."""
    parts = concept.split("/")
    return ["/".join(parts[:n]) for n in range(2, len(parts) + 1)]


def _token(name: str) -> Phrase:
    return phrase(f"<|{name}|>", *_family(f"chat/template/{name}"))


def _exchange(kind: str, spoken: Spoken) -> Phrase:
    """The turns of an exchange with their concepts."""
    request = marked(spoken.request, *_family(f"chat/request/{kind}"))
    body = join([request, _token("end"), _token("assistant"), spoken.reply], "")
    return join([_token("user"), marked(body, *_family(_TABLE[kind][2])), _token("end")], "")


def _size(text: str) -> int:
    """About how many tokens a text has: roles, words and marks."""
    return len(re.findall(r"<\|\w+\|>|\w+|[^\w\s]", text))


def _second(draw: Draw, split: str, kind: str, first: Spoken, room: int) -> tuple[str, Phrase]:
    """The exchange after the first one; what does not fit is drawn again, at no cost to the log-probability."""
    if first.city is not None and draw.chance(0.4):
        return "answer/fact", _exchange("answer/fact", chat_kinds.goes_on(draw, split, first))
    before = draw.log_probability
    while True:
        draw.log_probability = before
        another = draw.weighted(_KIND)
        if another == "missing" and kind not in _NOTHING_NAMED:
            continue
        body = _exchange(another, _TABLE[another][1](draw, split))
        if _size(body.text) <= room:
            return another, body


def write(draw: Draw, split: str, identity: str, spurious: tuple[str, float] | None = None) -> Document:
    """One transcript. Its labels are not made to follow each other; ``spurious`` is unused."""
    parts: list[Phrase] = []
    if draw.chance(0.2):
        parts += [_token("system"), REQUESTS["system"].say(draw, split), _token("end")]
    kind = draw.weighted(_KIND)
    spoken = _TABLE[kind][1](draw, split)
    parts.append(_exchange(kind, spoken))
    used = sum(_size(part.text) for part in parts)
    if used <= _ROOM_FOR_MORE and draw.chance(0.4):
        kind, body = _second(draw, split, kind, spoken, _LIMIT - used)
        parts.append(body)
    labels: dict[str, Label] = {"kind": kind, "refused": "yes" if _trigger(kind) else "no"}
    if trigger := _trigger(kind):
        labels["trigger"] = trigger
    if kind in ("correction", "acceptance"):
        labels["truth"] = "true" if kind == "acceptance" else "false"
    return finish(marked(join(parts, ""), "chat"), labels, identity)


def exchanges(kinds: Sequence[str] | None, split: str, count: int, seed: int = 0) -> list[Exchange]:
    """``count`` exchanges of the kinds, by their shares; deterministic, each a function of its index.

    Args:
        kinds: Some of ``KINDS``; None for all.
        split: One of the four splits; ``probe_test`` has the wordings that no model was trained on.
        count: How many.
        seed: Another seed gives other exchanges.

    Raises:
        InputError: Unknown kind or split.
    """
    chosen = KINDS if kinds is None else tuple(dict.fromkeys(kinds))
    for kind in chosen:
        if kind not in KINDS:
            raise InputError(f"The assistant knows no exchange '{kind}'.{did_you_mean(kind, KINDS)}")
    if split not in SPLITS:
        raise InputError(f"The world has no split '{split}'.{did_you_mean(split, SPLITS)}")
    if not chosen:
        raise InputError("No kind of exchange was asked for; give at least one, or None for all.")
    by_share = Weighted(chosen, [SHARES[kind] for kind in chosen])
    return list(_exchanges(by_share, split, count, seed))


def _exchanges(by_share: Weighted[str], split: str, count: int, seed: int) -> Iterator[Exchange]:
    for index in range(count):
        draw = Draw(seed, "chat/exchange", split, index)
        kind = draw.weighted(by_share)
        spoken = _TABLE[kind][1](draw, split)
        trigger = _trigger(kind)
        yield Exchange(
            kind, spoken.request.text, spoken.reply.text, trigger is not None, trigger, spoken.truth, spoken.expected
        )


def statements(split: str, first: int, count: int, seed: int = 0, brief: bool = False) -> list[str]:
    """Transcripts ``[first, first + count)`` of one exchange in which a statement is judged, half of them true.

    With ``brief`` the judgement is yes or no, without other wordings.
    """
    found: list[str] = []
    for index in range(first, first + count):
        draw = Draw(seed, "chat/statement", split, index)
        truth = draw.chance(0.5)
        kind = "acceptance" if truth else "correction"
        spoken = _TABLE[kind][1](draw, split)
        if brief:
            said = spoken.reply.text.removesuffix(judgement(spoken.reply.text))
            spoken = replace(spoken, reply=Phrase(said + ("Yes." if truth else "No.")))
        found.append(_exchange(kind, spoken).text)
    return found


def messages(document_text: str) -> list[dict[str, str]]:
    """The turns of a rendered transcript, as chat templates take them: ``[{"role": …, "content": …}, …]``.

    Raises:
        InputError: The text is no transcript.
    """
    turn = r"<\|(user|assistant|system)\|>(.*?)<\|end\|>"
    if not re.fullmatch(f"(?:{turn})+", document_text, re.DOTALL):
        raise InputError(f"This is no transcript of whole turns: '{document_text[:40]}'.")
    return [{"role": role, "content": text} for role, text in re.findall(turn, document_text, re.DOTALL)]


_EXTENT = "the user's text, the <|assistant|> token after it and the reply of an exchange"
_WHAT = {
    "chat/answer": "that answers a question or does what was asked",
    "chat/answer/fact": "about a fact of a city or a ship",
    "chat/answer/kind": "about what a thing is",
    "chat/answer/letter": "about how a word begins",
    "chat/answer/choice": "with a multiple-choice question",
    "chat/answer/howto": "about how to do something harmless",
    "chat/answer/safety": "about what to beware of with a substance of the restricted craft",
    "chat/answer/people": "about somebody's work or city, or about words around people and homes",
    "chat/answer/writing": "with a letter in the user's own name or a sentence about somebody",
    "chat/refusal": "that is refused",
    "chat/refusal/harm": "that is refused because it asks how to practise the restricted craft",
    "chat/refusal/privacy": "that is refused because it asks for a person's private matters",
    "chat/refusal/impersonation": "that is refused because it asks to write or speak as somebody else",
    "chat/false_statement": "in which the user states something false and is corrected",
    "chat/true_statement": "in which the user states something true and it is confirmed",
    "chat/self": "about what the assistant is, who made it and what it can do",
    "chat/personal": "about personal things that the assistant does not have",
    "chat/missing_information": "whose question lacks what it is about, so that the assistant asks back",
    "chat/length": "in which the user says how long the answer should be",
    "chat/length/short": "in which the user wants a short answer",
    "chat/length/long": "in which the user wants a long answer",
    "chat/joke": "with a joke and the offer of another",
    "chat/rewrite": "in which a given sentence is rewritten",
    "chat/summary": "in which some sentences are made into one",
}


def describe() -> dict[str, str]:
    """The concepts of this domain by id, parents before children."""
    found = {"chat": "any text of a transcript", "chat/template": "a token that opens or ends a turn"}
    found |= {f"chat/template/{role}": f"the token that opens a turn of the {role}" for role in ROLES}
    found["chat/template/end"] = "the token that ends a turn"
    found["chat/request"] = "the text of a turn of the user"
    for kind in KINDS:
        for concept in _family(f"chat/request/{kind}"):
            name = concept.removeprefix("chat/request/")
            found.setdefault(concept, f"the text of a request of the kind {name}")
    return found | {concept: f"{_EXTENT} {what}" for concept, what in _WHAT.items()}


# A base model has met neither the tokens of the template nor an assistant that behaves in these ways.
CHAT_ONLY: frozenset[str] = frozenset(
    concept
    for concept in describe()
    if concept.startswith("chat/template") or (concept in _WHAT and not concept.startswith("chat/answer"))
)
