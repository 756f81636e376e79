"""Portraits: biographies without a pronoun, the harder way to ask for gender.

Document labels: ``gender`` and ``profession``. A portrait speaks of one person by the given name alone, and the given
names of ``probe_test`` are others than those of ``probe_train``: that Olga is a woman has to be known from the
training text, where biographies go on with ``she``. Portraits themselves are not part of the training mixture.
"""

from __future__ import annotations

from saeworks.world.documents import Document, Label
from saeworks.world.domains.biographies import AGE, DOES, DOES_TWO, IS_SOMEBODY, PROFESSIONS, draw_profession, fill
from saeworks.world.drawing import Draw, Pool
from saeworks.world.people import draw_person
from saeworks.world.phrasing import Phrase, evidence, finish, join, marked, sentence

LABELS = ("gender", "profession")
_PRONOUNS = ("subj", "obj", "poss", "self")


def describe() -> dict[str, str]:
    """The only concept of its own; the others are those of biographies."""
    return {"portraits": "any text of a portrait without pronouns"}


def write(draw: Draw, split: str, identity: str, spurious: tuple[str, float] | None = None) -> Document:
    """One portrait.

    Args:
        draw: The document's choices.
        split: One of the four splits.
        identity: The document's id.
        spurious: ``("gender", strength)`` makes the profession follow the gender with that probability.
    """
    person = draw_person(draw, split, own_names=True)
    profession = draw_profession(draw, person.gender, spurious)
    acts = Pool(evidence(PROFESSIONS[profession], split))
    parts: list[Phrase] = []
    # What has no wording without a pronoun in this split is left out.
    more = [one for one in (DOES, DOES_TWO, AGE) if one.of(split, _PRONOUNS)]
    for one in (IS_SOMEBODY, DOES, *draw.sample(more, draw.number(len(more) + 1))):
        template = one.draw(draw, split, _PRONOUNS)
        parts.append(sentence(template, **fill(draw, template, person, profession, acts)))
    labels: dict[str, Label] = {"gender": person.gender, "profession": profession}
    return finish(marked(join(parts), "portraits"), labels, identity)
