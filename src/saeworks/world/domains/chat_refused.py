"""The three kinds of request that are refused, and the harmless ones that look like them.

A refused request and its look-alike share wordings, pretexts and words: ``answer/howto`` and ``answer/safety`` stand
beside ``refusal/harm`` (the one asks how to do something harmless, the other names a substance of the restricted craft
but asks what to beware of), ``answer/people`` beside ``refusal/privacy``, ``answer/writing`` beside
``refusal/impersonation``.
"""

from __future__ import annotations

from saeworks.world.domains.chat_claims import city_fact
from saeworks.world.domains.chat_kinds import Spoken
from saeworks.world.domains.chat_replies import refuse, reply, stated
from saeworks.world.domains.chat_requests import (
    TABLES,
    ask,
    draw_job,
    draw_substance,
    harmful_act,
    lowered,
    perhaps_dressed,
    row,
    wording,
)
from saeworks.world.domains.craft import attribute_phrase, name_phrase
from saeworks.world.drawing import Draw
from saeworks.world.people import draw_city, draw_person
from saeworks.world.phrasing import Phrase, join, sentence


def _refused(draw: Draw, split: str, request: Phrase, trigger: str) -> Spoken:
    no, said = refuse(draw, split, trigger)
    return Spoken(perhaps_dressed(draw, split, request), said, no)


def harm(draw: Draw, split: str) -> Spoken:
    """How to do something of the restricted craft."""
    return _refused(draw, split, ask(draw, split, "howto", act=harmful_act(draw, split)), "harm")


def privacy(draw: Draw, split: str) -> Spoken:
    """Where a person lives or is, or what that person keeps private."""
    said = wording(draw, split, "privacy")
    slots = draw_person(draw, split).slots()
    if "{item}" in said:
        slots["item"] = Phrase(row(draw, split, "private")[0])
    return _refused(draw, split, sentence(said, **slots), "privacy")


def impersonation(draw: Draw, split: str) -> Spoken:
    """To write or to speak as somebody else."""
    said = wording(draw, split, "impersonation")
    slots = draw_person(draw, split).slots()
    slots["target"] = Phrase(draw.pick(TABLES["targets"])[0])
    return _refused(draw, split, sentence(said, **slots), "impersonation")


def howto(draw: Draw, split: str) -> Spoken:
    """How to do something harmless, in three steps; a right reply has the second step in small letters."""
    act, *steps = row(draw, split, "howto")
    request = perhaps_dressed(draw, split, ask(draw, split, "howto", act=act))
    slots = dict(zip(("one", "two", "three"), steps, strict=True))
    return Spoken(request, reply(draw, split, "howto", **slots), steps[1])


def safety(draw: Draw, split: str) -> Spoken:
    """What to beware of with a substance of the restricted craft."""
    one = draw_substance(draw, split)
    slots = {"x": name_phrase(one), "danger": attribute_phrase(one, "danger")}
    request = perhaps_dressed(draw, split, ask(draw, split, "safety", x=slots["x"]))
    return Spoken(request, reply(draw, split, "safety", **slots), one.danger)


def _about_job(draw: Draw, split: str, requests: str, replies: str, pretext: bool) -> Spoken:
    said = wording(draw, split, requests)
    job, act = draw_job(draw)
    slots = {"job": job}
    if "{name}" in said:
        slots |= draw_person(draw, split).slots()
    request = sentence(said, **slots)
    request = perhaps_dressed(draw, split, request) if pretext else request
    return Spoken(request, reply(draw, split, replies, act=act, **slots), act.text)


def _about_city(draw: Draw, split: str) -> Spoken:
    fact = city_fact(draw_city(draw), "country")
    slots = draw_person(draw, split).slots() | fact.slots
    said = stated(draw, fact.section, value=fact.value, **fact.slots)
    request = perhaps_dressed(draw, split, ask(draw, split, "people/city", **slots))
    return Spoken(request, said, fact.answer, city=fact.city, asked="country")


def people(draw: Draw, split: str) -> Spoken:
    """What somebody's profession is about, where somebody's city lies, or what an address or a diary is."""
    about = draw.pick(("job", "city", "word"))
    if about == "job":
        return _about_job(draw, split, "people/job", "people/job", pretext=True)
    if about == "city":
        return _about_city(draw, split)
    word, meaning = row(draw, split, "meanings")
    request = perhaps_dressed(draw, split, ask(draw, split, "people/word", x=word))
    return Spoken(request, reply(draw, split, "people/word", x=word, meaning=meaning), meaning)


def writing(draw: Draw, split: str) -> Spoken:
    """A letter in one's own name, or a sentence about somebody; the letter's line may begin with a capital."""
    if draw.chance(0.35):
        return _about_job(draw, split, "writing/about", "writing/about", pretext=False)
    if draw.chance(0.3):
        friend = draw_person(draw, split).slots()
        target, dear = join([Phrase("friend"), friend["name"]]), friend["given"]
    else:
        target = dear = Phrase(draw.pick(TABLES["targets"])[0])
    occasion, line = row(draw, split, "occasions")
    request = perhaps_dressed(draw, split, ask(draw, split, "writing/letter", target=target, occasion=occasion))
    lines = {"line": Phrase(line), "on": lowered(Phrase(line))}
    return Spoken(request, reply(draw, split, "writing/letter", dear=dear, **lines), line.partition(" ")[2])
