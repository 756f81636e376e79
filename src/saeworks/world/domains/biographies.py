"""Biographies of invented people: who they are, what they do all day, where they live.

Document labels: ``profession`` and ``gender``, independent of each other in the corpus. About four documents in ten
never name the profession; it has to be read from what the person does. The probe splits never name it, and each
of them has activities of its own. Gender is a matter of words here (``she``, ``Anna``); :mod:`portraits` has texts
without pronouns in which it is not.
"""

from __future__ import annotations

from saeworks.world.documents import Document, Label
from saeworks.world.drawing import Draw, Pool, zipf
from saeworks.world.people import Person, city_phrase, draw_city, draw_person
from saeworks.world.phrasing import PROBE_SPLITS, Phrase, evidence, finish, join, marked, phrase, relation, sentence

LABELS = ("profession", "gender")

PROFESSIONS: dict[str, tuple[str, ...]] = {
    "nurse": (
        "changes bandages on the ward",
        "takes the temperature of the patients",
        "sits with the sick through the night",
        "gives injections before breakfast",
        "keeps the charts at the foot of each bed",
        "calms frightened children before an operation",
        "wheels the trolley of medicines along the corridor",
        "washes the hands of the old and weak",
    ),
    "teacher": (
        "marks homework in the evening",
        "explains fractions at the blackboard",
        "takes the class to the museum every spring",
        "reads stories to the pupils after lunch",
        "writes school reports in July",
        "knows every excuse for being late to a lesson",
        "corrects spelling with a red pen",
        "hands out chalk and exercise books",
    ),
    "carpenter": (
        "planes boards in the workshop",
        "builds staircases out of oak",
        "sweeps up the shavings at six",
        "measures twice before every cut",
        "hangs doors in old houses",
        "glues the legs of broken chairs",
        "sands a table until it shines",
        "orders planks from the sawmill",
    ),
    "farmer": (
        "milks the cows before sunrise",
        "ploughs the north field in March",
        "worries about hail before the harvest",
        "drives the tractor along the ditch",
        "sells potatoes at the weekly market",
        "mends fences around the pasture",
        "feeds the pigs and the hens",
        "brings in the hay before the rain",
    ),
    "pilot": (
        "checks the instruments before take-off",
        "lands in thick fog without a word",
        "greets the passengers from the cockpit",
        "flies across the ocean twice a week",
        "studies the clouds over the runway",
        "wears four golden stripes on the sleeve",
        "asks the tower for permission to land",
        "counts the hours in the air",
    ),
    "lawyer": (
        "argues before the judge",
        "drafts contracts for small firms",
        "defends people accused of theft",
        "keeps the files of every client",
        "questions witnesses in court",
        "looks for gaps in the law",
        "reads statutes by lamplight",
        "asks the jury for mercy",
    ),
    "chef": (
        "tastes every sauce twice",
        "runs the kitchen of a small restaurant",
        "plates the fish with lemon",
        "shouts orders over the steam",
        "writes a new menu each season",
        "sharpens the knives before the evening service",
        "peels onions for the soup",
        "praises the cooks when the plates come back empty",
    ),
    "painter": (
        "stretches canvas in the studio",
        "mixes blue until it looks like the sea",
        "hangs portraits in a gallery",
        "washes brushes in turpentine",
        "waits for the northern light",
        "sketches strangers at the easel",
        "cleans the palette with a rag",
        "covers the wall with fresh colours",
    ),
    "baker": (
        "kneads dough at three in the morning",
        "pulls hot loaves from the oven",
        "dusts the counter with flour",
        "sells rolls to the first commuters",
        "lets the yeast rise overnight",
        "glazes buns with sugar",
        "twists pretzels by hand",
        "tests the crust with a knock",
    ),
    "sailor": (
        "hoists the sails in any wind",
        "stands watch on the deck",
        "ties knots without looking",
        "scrubs rust from the hull",
        "reads the stars far from any shore",
        "sends postcards from foreign harbours",
        "drops the anchor in the bay",
        "climbs the mast in a storm",
    ),
    "journalist": (
        "writes articles against a deadline",
        "interviews ministers by telephone",
        "checks every quote with two sources",
        "carries a notebook to press conferences",
        "follows a scandal for the newspaper",
        "edits headlines until midnight",
        "asks the mayor awkward questions",
        "phones the newsroom from the scene",
    ),
    "chemist": (
        "heats flasks in the laboratory",
        "weighs white powders to the milligram",
        "wears goggles above the burner",
        "publishes on acids and salts",
        "titrates samples all afternoon",
        "labels every bottle of solvent",
        "pours reagents into a test tube",
        "notes the boiling point of each liquid",
    ),
}
HOBBIES = (
    "chess", "gardening", "swimming", "jazz", "hiking", "photography", "knitting", "cycling",
    "old maps", "crosswords", "fishing", "dancing", "astronomy", "pottery", "singing", "poetry",
)  # fmt: skip
_PROFESSION = zipf(list(PROFESSIONS), 12.0)
_HOBBY = zipf(HOBBIES, 8.0)

IS_A = relation(
    "{name} is {job:a} from {city}.",
    "{name} works as {job:a} in {city}.",
    "{name}, {job:a} by trade, lives in {city}.",
    "for {years} years {name} has worked as {job:a}.",
    "{name} became {job:a} at the age of {start}.",
    "{city} is the home of {name}, who earns {poss} living as {job:a}.",
    "everyone in the street knows {name}, the {job}.",
    "ask anyone in {city} for the best {job}, and they will send you to {name}.",
    "when {name} was a child, {subj} already wanted to be {job:a}, and {subj} became one.",
    "{name} makes {poss} living in {city} as {job:a}.",
    "by profession {name} is {job:a}.",
)
IS_SOMEBODY = relation(
    "{name} lives in {city}.",
    "{name} was born in {city} and never left it.",
    "in {city} there lives a person called {name}.",
    "{name} grew up in {city} with two brothers.",
    "this is the story of {name} from {city}.",
    "few people in {city} are as busy as {name}.",
    "{name} moved to {city} {years} years ago.",
    "you may have met {name} in {city}.",
    "{city} is where {name} feels at home.",
    "{name} has an apartment in {city}.",
)
DOES = relation(
    "{subj} {act}.",
    "every day {subj} {act}.",
    "on most days {subj} {act}, and {subj} likes it.",
    "{given} {act}.",
    "{subj} {act}, often until late.",
    "what {subj} likes best: {subj} {act}.",
    "nobody is surprised any more that {subj} {act}.",
    "as part of {poss} work {subj} {act}.",
    "while others are still asleep, {subj} {act}.",
    "it is said that {subj} {act} better than anyone.",
    "usually {given} {act}.",
    "{poss} neighbours say that {subj} {act}.",
)
DOES_TWO = relation(
    "{subj} {act} and {act2}.",
    "{given} {act}, and when there is time {subj} {act2}.",
    "first {subj} {act}, then {subj} {act2}.",
    "{subj} {act}; after that {subj} {act2}.",
    "not only does one hear that {subj} {act}, but also that {subj} {act2}.",
    "in the morning {subj} {act}, and later {subj} {act2}.",
    "some days {subj} {act}, other days {subj} {act2}.",
    "because {subj} {act}, people forgive {obj} when {subj} {act2}.",
    "before {subj} {act2}, {subj} {act}.",
    "{given} {act} as well as anyone who {act2}.",
)
AGE = relation(
    "{subj} is {age} years old.",
    "at {age}, {subj} feels young.",
    "{given} turned {age} in {month}.",
    "last {month} {subj} celebrated {poss} birthday and became {age}.",
    "{poss} age is {age}, though {subj} does not look it.",
    "now {age}, {subj} thinks of {poss} youth with a smile.",
    "{subj} will be {age} in {month}.",
    "in {month} {given} was {age}.",
    "{subj} reached the age of {age} in {month}.",
    "with {poss} {age} years {given} is no longer a beginner.",
)
LIKES = relation(
    "in {poss} free time {subj} enjoys {hobby}.",
    "{subj} loves {hobby}.",
    "{poss} great passion is {hobby}.",
    "on Sundays {subj} has time for {hobby}.",
    "{given} taught {self} {hobby}.",
    "when work is done, {subj} turns to {hobby}.",
    "{subj} and {poss} {kin} share a love of {hobby}.",
    "nothing relaxes {obj} like {hobby}.",
    "{subj} spends the evenings on {hobby}.",
    "for {hobby} {given} would get up at any hour.",
)
FRIEND = relation(
    "{poss} {kin} {friend} visits {obj} from {city2} every {month}.",
    "{subj} often writes to {friend}, {poss} {kin} in {city2}.",
    "{poss} {kin} {friend} once moved to {city2}, but {given} stayed.",
    "in {month} {friend}, {poss} {kin}, came from {city2} to see {obj}.",
    "{subj} shares a house with {poss} {kin} {friend}.",
    "{friend}, who is {poss} {kin}, thinks that {subj} works too much.",
    "together with {poss} {kin} {friend}, {subj} travelled to {city2} last {month}.",
    "{given} has known {friend} since they went to school in {city2}.",
    "since {month} {poss} {kin} {friend} has lived near {obj}.",
    "{poss} {kin} {friend} calls {obj} from {city2} whenever {subj} is sad.",
)
BEFORE = relation(
    "before that, {subj} worked as {other:a}, but {subj} did not like it.",
    "{poss} parents had hoped that {subj} would become {other:a}.",
    "{subj} once dreamed of being {other:a}.",
    "{poss} {kin} is {other:a}.",
    "although {poss} {kin} was {other:a}, {subj} chose another path.",
    "{subj} almost married {other:a}.",
    "{subj} shares the office with {other:a}.",
    "a neighbour, {other:a} from {city2}, helps {obj} now and then.",
    "as a young person {subj} spent one summer as {other:a}.",
    "{subj} could never have been {other:a}.",
)
_KIN = ("sister", "brother", "cousin", "friend", "colleague", "neighbour")
_KIN_GENDER = {"sister": "female", "brother": "male"}
_MONTHS = ("January", "March", "April", "May", "June", "August", "October", "December")


def draw_profession(draw: Draw, gender: str, spurious: tuple[str, float] | None) -> str:
    """A profession; with ``spurious = ("gender", strength)`` it follows the gender with that probability."""
    profession = draw.weighted(_PROFESSION)
    if spurious and spurious[0] == "gender" and draw.chance(spurious[1]):
        # A planted correlation: the first half of the professions is female, the second half male.
        names = list(PROFESSIONS)
        half = names[: len(names) // 2] if gender == "female" else names[len(names) // 2 :]
        profession = half[names.index(profession) % len(half)]
    return profession


def fill(draw: Draw, template: str, person: Person, profession: str, acts: Pool[str]) -> dict[str, Phrase]:
    """Slots of the template beyond the person's own, drawn only where the template asks for them."""
    slots = person.slots()
    job = f"biographies/profession/{profession}"
    if "{job" in template:
        slots["job"] = phrase(profession, job)
    for key in ("act", "act2"):
        if f"{{{key}}}" in template:
            slots[key] = phrase(acts.take(draw), job)
    for key in ("city", "city2"):
        if f"{{{key}}}" in template:
            slots[key] = city_phrase(draw_city(draw))
    if "{years}" in template:
        slots["years"] = Phrase(str(2 + draw.number(29)))
    if "{start}" in template:
        slots["start"] = Phrase(str(18 + draw.number(15)))
    if "{age}" in template:
        slots["age"] = phrase(str(21 + draw.number(60)), "person/age")
    if "{month}" in template:
        slots["month"] = Phrase(draw.pick(_MONTHS))
    if "{hobby}" in template:
        slots["hobby"] = phrase(draw.weighted(_HOBBY), "biographies/hobby")
    if "{kin}" in template:
        slots["kin"] = Phrase(draw.pick(_KIN))
    if "{other" in template:
        slots["other"] = Phrase(draw.pick([name for name in PROFESSIONS if name != profession]))
    return slots


def write(draw: Draw, split: str, identity: str, spurious: tuple[str, float] | None = None) -> Document:
    """One biography.

    Args:
        draw: The document's choices.
        split: One of the four splits.
        identity: The document's id.
        spurious: ``("gender", strength)`` makes the profession follow the gender with that probability.
    """
    person = draw_person(draw, split)
    profession = draw_profession(draw, person.gender, spurious)
    probing = split in PROBE_SPLITS
    named = not probing and draw.chance(0.6)
    acts = Pool(evidence(PROFESSIONS[profession], split))
    first = (IS_A if named else IS_SOMEBODY).draw(draw, split)
    parts = [sentence(first, **fill(draw, first, person, profession, acts))]
    work = [DOES, DOES_TWO][draw.number(2)]
    # With half the activities a text would soon repeat itself.
    others = (AGE, LIKES, FRIEND, BEFORE, DOES) if probing else (AGE, LIKES, FRIEND, BEFORE, DOES, DOES_TWO)
    extra = draw.sample(others, draw.number(6))
    # One sentence can stand alone when it names the profession; otherwise the work always follows.
    alone = named and draw.chance(0.08)
    for one in [] if alone else [work, *extra]:
        template = one.draw(draw, split)
        slots = fill(draw, template, person, profession, acts)
        if "{friend}" in template:
            kin = slots["kin"].text if "kin" in slots else ""
            friend = draw_person(draw, split, _KIN_GENDER.get(kin))
            slots["friend"] = friend.slots()["name"]
        parts.append(sentence(template, **slots))
    labels: dict[str, Label] = {"profession": profession, "gender": person.gender}
    return finish(marked(join(parts), "biographies"), labels, identity)
