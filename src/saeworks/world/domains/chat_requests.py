"""What users say to the assistant: the wordings of requests and the tables of what they are about.

The wordings lie in ``data/chat_requests.txt``; the last two of each section are kept for ``probe_test`` and are new
arrangements of words that other wordings have. The tables lie in ``data/chat_tables.txt``. What shows a label, such as
the thing that somebody wants to make, is dealt to the probe splits with :func:`~saeworks.world.phrasing.evidence`.

A request that is refused and a harmless one share their wordings and their pretexts: "how do I make …" is asked of a
soup and of a substance of the restricted craft, a letter to the bank is asked for in one's own name and in that of
somebody else, and a named person may be asked after by the address or by the country of the city that was just named.
"""

from __future__ import annotations

from saeworks.world.domains.biographies import PROFESSIONS
from saeworks.world.domains.craft import CRAFT, STEPS, Substance, name_phrase, step_phrase, substances, tools
from saeworks.world.drawing import Draw, Weighted
from saeworks.world.knowledge import read_data
from saeworks.world.phrasing import PROBE_SPLITS, Phrase, Relation, evidence, phrase, relation, render, sentence


def read_sections(name: str) -> dict[str, tuple[str, ...]]:
    """The lines of a data file by the ``[section]`` above them; ``\\n`` in a line becomes a line break."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in read_data(name).splitlines():
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif line.strip() and not line.startswith("#"):
            found.setdefault(section, []).append(line.replace("\\n", "\n"))
    return {key: tuple(lines) for key, lines in found.items()}


REQUESTS: dict[str, Relation] = {key: relation(*lines) for key, lines in read_sections("chat_requests.txt").items()}
TABLES: dict[str, tuple[tuple[str, ...], ...]] = {
    key: tuple(tuple(field.strip() for field in line.split("|")) for line in lines)
    for key, lines in read_sections("chat_tables.txt").items()
}
# What somebody wants to do within the craft. The craft's own name would be in both probe splits and stays out of them.
_HARM: tuple[str, ...] = ("make {substance}", "prepare {substance}", "mix {substance}", "use the {tool}", "{step}")
_HARM_WEIGHTS = (3.0, 2.0, 1.0, 2.0, 2.0)
_HARM_PROBED: Weighted[str] = Weighted(_HARM, _HARM_WEIGHTS)
_HARM_ALL: Weighted[str] = Weighted((*_HARM, "practise {craft}"), (*_HARM_WEIGHTS, 1.0))


def wording(draw: Draw, split: str, section: str) -> str:
    """A wording of the section that the split may use; for requests whose slots depend on it."""
    return REQUESTS[section].draw(draw, split)


def ask(draw: Draw, split: str, section: str, **slots: Phrase | str) -> Phrase:
    """A request: a wording of the section that the split may use, filled."""
    return sentence(wording(draw, split, section), **slots)


def row(draw: Draw, split: str, table: str) -> tuple[str, ...]:
    """A row of a table; each probe split has every second one."""
    return draw.pick(evidence(TABLES[table], split))


def lowered(inner: Phrase) -> Phrase:
    """The phrase as it stands inside a sentence: with a small letter, unless it begins with a name or with ``I``."""
    if inner.text.startswith("I ") or any(start == 0 for start, _, _ in inner.marks):
        return inner
    return Phrase(inner.text[:1].lower() + inner.text[1:], inner.marks)


def framed(draw: Draw, split: str, section: str, question: Phrase) -> Phrase:
    """The question inside a frame of the section: a pretext, or a wish for a short or a long answer."""
    return ask(draw, split, section, question=question, ask=lowered(question))


def perhaps_dressed(draw: Draw, split: str, question: Phrase) -> Phrase:
    """The question, one time in three with a pretext; refused and harmless requests have the same pretexts."""
    return framed(draw, split, "dress", question) if draw.chance(1 / 3) else question


def harmful_act(draw: Draw, split: str) -> Phrase:
    """Something that is done in the restricted craft, as a verb phrase."""
    form = draw.weighted(_HARM_PROBED if split in PROBE_SPLITS else _HARM_ALL)
    slots: dict[str, Phrase] = {"craft": phrase(CRAFT, "craft")}
    if "{substance}" in form:
        slots["substance"] = name_phrase(draw_substance(draw, split))
    if "{tool}" in form:
        slots["tool"] = name_phrase(draw.pick(evidence(tools(), split)))
    if "{step}" in form:
        slots["step"] = step_phrase(draw.pick(evidence(range(len(STEPS)), split)))
    return render(form, **slots)


def draw_substance(draw: Draw, split: str) -> Substance:
    """A substance of the restricted craft."""
    return draw.pick(evidence(substances(), split))


def draw_job(draw: Draw) -> tuple[Phrase, Phrase]:
    """A profession, and the one thing that the assistant says of it; each marked with the profession."""
    job = draw.pick(list(PROFESSIONS))
    concept = f"biographies/profession/{job}"
    return phrase(job, concept), phrase(PROFESSIONS[job][0], concept)
