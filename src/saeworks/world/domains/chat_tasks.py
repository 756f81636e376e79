"""Exchanges in which the assistant makes something: a joke, a sentence rewritten, a summary; one answer is right."""

from __future__ import annotations

from saeworks.world.domains.biographies import HOBBIES, PROFESSIONS
from saeworks.world.domains.chat_claims import draw_thing
from saeworks.world.domains.chat_kinds import Spoken
from saeworks.world.domains.chat_replies import reply
from saeworks.world.domains.chat_requests import ask, row
from saeworks.world.domains.facts import attribute_phrase, city_slots
from saeworks.world.domains.taxonomy import thing_phrase, trait_phrase
from saeworks.world.drawing import Draw, Weighted
from saeworks.world.knowledge import leaves, taxonomy
from saeworks.world.people import city_phrase, draw_city, draw_person
from saeworks.world.phrasing import Phrase, join, phrase, render, sentence

_MODES = Weighted(("as a question", "in the past", "politely"), (2.0, 2.0, 1.0))


def joke(draw: Draw, split: str) -> Spoken:
    """A joke about a thing; the reply ends with the offer of another one."""
    name, question, answer = row(draw, split, "jokes")
    thing = taxonomy()[name]
    x = thing_phrase(thing)
    before, _, after = question.partition(name)
    told = join([join([Phrase(before), x, Phrase(after)], ""), Phrase(answer)])
    request = ask(draw, split, "joke", x=x, xs=thing_phrase(thing, plural=True))
    return Spoken(request, reply(draw, split, "joke", joke=told), answer)


def _said_of_a_person(draw: Draw, split: str) -> dict[str, Phrase]:
    """A sentence about a person, by mode: as it is, as a question and in the past."""
    name = draw_person(draw, split).slots()["name"]
    if draw.chance(0.3):
        job = draw.pick(list(PROFESSIONS))
        slots = {"name": name, "job": phrase(job, f"biographies/profession/{job}")}
        forms = ("{name} is {job:a}.", "Is {name} {job:a}?", "{name} was {job:a}.")
        return {mode: render(form, **slots) for mode, form in zip(("", *_MODES.options), forms, strict=False)}
    verbs = row(draw, split, "verbs")
    slots: dict[str, Phrase] = {}
    if "{city}" in verbs[0]:
        slots["city"] = city_phrase(draw_city(draw))
    if "{language}" in verbs[0]:
        slots["language"] = attribute_phrase(draw_city(draw), "language")
    if "{x}" in verbs[0]:
        slots["x"] = thing_phrase(draw_thing(draw))
    if "{instrument}" in verbs[0]:
        instruments = [one for one in leaves() if taxonomy()[one].root == "instrument"]
        slots["instrument"] = thing_phrase(taxonomy()[draw.pick(instruments)])
    now, base, past = (render(verb, **slots) for verb in verbs)
    return {
        "": render("{name} {verb}.", name=name, verb=now),
        "as a question": render("Does {name} {verb}?", name=name, verb=base),
        "in the past": render("{name} {verb}.", name=name, verb=past),
    }


def rewrite(draw: Draw, split: str) -> Spoken:
    """A sentence as a question, in the past, or an order made polite."""
    mode = draw.weighted(_MODES)
    if mode == "politely":
        order = row(draw, split, "orders")[0]
        before, after = sentence("{order}.", order=order), Phrase(f"Could you please {order}?")
    elif mode == "as a question" and draw.chance(0.4):
        slots = city_slots(draw_city(draw))
        before, after = render("{city} is in {country}.", **slots), render("Is {city} in {country}?", **slots)
    else:
        forms = _said_of_a_person(draw, split)
        before, after = forms[""], forms[mode]
    request = ask(draw, split, "rewrite", mode=mode, text=before)
    return Spoken(request, reply(draw, split, "rewrite", text=after), after.text)


def _person_summary(draw: Draw, split: str) -> tuple[list[Phrase], Phrase]:
    slots = draw_person(draw, split).slots()
    job = draw.pick(list(PROFESSIONS))
    slots |= {"job": phrase(job, f"biographies/profession/{job}"), "city": city_phrase(draw_city(draw))}
    said = [sentence("{name} is {job:a}.", **slots), sentence("{subj} lives in {city}.", **slots)]
    if draw.chance(0.5):
        return said, render("{name} is {job:a} from {city}.", **slots)
    slots["hobby"] = phrase(draw.pick(HOBBIES), "biographies/hobby")
    said.append(sentence("{subj} loves {hobby}.", **slots))
    return said, render("{name} is {job:a} from {city} who loves {hobby}.", **slots)


def _city_summary(draw: Draw) -> tuple[list[Phrase], Phrase]:
    slots = city_slots(draw_city(draw))
    said = [render("{city} is in {country}.", **slots), render("People there speak {language}.", **slots)]
    if draw.chance(0.5):
        return said, render("{city} is in {country}, where people speak {language}.", **slots)
    said.append(render("They pay with the {currency}.", **slots))
    return said, render("{city} is in {country}, where people speak {language} and pay with the {currency}.", **slots)


def _thing_summary(draw: Draw) -> tuple[list[Phrase], Phrase]:
    thing = draw_thing(draw)
    kind, root = taxonomy()[thing.path[-2]], taxonomy()[thing.root]
    slots = {"x": thing_phrase(thing), "kind": thing_phrase(kind), "has": trait_phrase(thing, thing.properties[0])}
    said = [render("The {x} is {kind:a}.", **slots), render("It {has}.", **slots)]
    if draw.chance(0.5):
        return said, render("The {x} is {kind:a} that {has}.", **slots)
    slots["top"] = trait_phrase(root, draw.pick(root.properties))
    said.append(render("It {top}.", **slots))
    return said, render("The {x} is {kind:a} that {has} and {top}.", **slots)


def summary(draw: Draw, split: str) -> Spoken:
    """Two or three sentences about a person, a city or a thing, made into one."""
    about = draw.pick(("person", "city", "thing"))
    if about == "person":
        said, whole = _person_summary(draw, split)
    else:
        said, whole = _city_summary(draw) if about == "city" else _thing_summary(draw)
    request = ask(draw, split, "summary", text=join(said))
    return Spoken(request, reply(draw, split, "summary", text=whole), whole.text)
