"""Reviews of invented products.

Document labels: ``category`` (five), ``sentiment`` (negative, positive) and ``rating`` (1, 2, 4 or 5 stars). The
rating is told by the strength of the words more often than by a number, and most reviews never name the category.
Products, parts, uses and judgements of ``probe_test`` are others than those of ``probe_train``.
"""

from __future__ import annotations

from saeworks.world.documents import Document, Label
from saeworks.world.drawing import Draw, Pool, zipf
from saeworks.world.people import city_phrase, draw_city, draw_person, split_of
from saeworks.world.phrasing import Phrase, evidence, finish, join, marked, phrase, relation, sentence

LABELS = ("category", "sentiment", "rating")

# category: (what it may be called, its parts, what one does with it)
CATEGORIES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "kitchen": (
        ("kettle", "toaster", "blender", "frying pan", "coffee maker", "mixer"),
        ("the lid", "the handle", "the heating plate", "the whisk arm", "the non-stick coating", "the jug"),
        ("boiled water for six guests", "made pancakes on Sunday", "ground beans for coffee", "cooked rice with it"),
    ),
    "books": (
        ("novel", "thriller", "memoir", "cookbook", "atlas", "diary"),
        ("the plot", "the last chapter", "the main character", "the dialogue", "the printing", "the dust jacket"),
        ("read it on the train", "finished it in two nights", "lent it to my sister", "turned the pages until dawn"),
    ),
    "clothing": (
        ("jacket", "sweater", "raincoat", "pair of jeans", "scarf", "shirt"),
        ("the zip", "the fabric", "the left sleeve", "the stitching", "the collar", "the lining"),
        ("wore it to a wedding", "washed it at forty degrees", "tried it on in my size", "put it on for a walk"),
    ),
    "electronics": (
        ("camera", "phone", "laptop", "radio", "printer", "headset"),
        ("the battery", "the screen", "the software", "the charger", "the loudspeaker", "the menu"),
        ("charged it overnight", "connected it to the network", "took it out of the box", "installed the update"),
    ),
    "toys": (
        ("puzzle", "doll", "board game", "kite", "train set", "teddy bear"),
        ("the little wheels", "the plastic pieces", "the rules", "the paint", "the tiny figures", "the string"),
        (
            "gave it to my son for his birthday",
            "played with it all afternoon",
            "built it with my daughter",
            "let the children try it",
        ),
    ),
}
# rating: (adjectives for a part, verdicts, wishes for the future, star phrases)
GRADES: dict[int, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    1: (
        ("terrible", "useless", "broken from the first hour", "a disgrace", "dreadful", "worthless"),
        ("I hate it", "it is pure rubbish", "it is the worst thing I ever bought", "I am furious"),
        ("I want all my money back", "never again", "it went straight into the bin", "stay far away from it"),
        ("one star", "1 out of 5"),
    ),
    2: (
        ("weak", "rather poor", "below average", "a bit disappointing", "flimsy", "not well made"),
        ("I expected more", "it is mediocre", "it lets you down", "I regret the purchase a little"),
        ("I would look for something else", "perhaps the next model is better", "it is not for me", "I sent it back"),
        ("two stars", "2 out of 5"),
    ),
    4: (
        ("good", "quite solid", "well made", "pleasant", "better than average", "decent"),
        ("I like it", "it does its job nicely", "I am satisfied", "it is a sound choice"),
        (
            "I would buy it again at this price",
            "there is only a small flaw",
            "it nearly earns full marks",
            "I can suggest it to a friend",
        ),
        ("four stars", "4 out of 5"),
    ),
    5: (
        ("perfect", "wonderful", "flawless", "brilliant", "superb", "a pure joy"),
        ("I love it", "it is the best thing I ever bought", "I am thrilled", "it is a masterpiece"),
        (
            "everyone should own one",
            "I have already ordered a second one",
            "I recommend it with all my heart",
            "I would not change a thing",
        ),
        ("five stars", "5 out of 5"),
    ),
}
_BRAND_A = ("Vel", "Nor", "Zan", "Tri", "Lum", "Oka", "Bri", "Mar", "Sol", "Pex", "Qua", "Fen", "Ard", "Hexa")
_BRAND_B = ("mora", "tex", "via", "dor", "lio", "ster", "nova", "quin", "bell", "rix", "gard", "pany")
_CATEGORY = zipf(list(CATEGORIES), 8.0)
_BRANDS = zipf([a + b for a in _BRAND_A for b in _BRAND_B], 60.0)

OPEN_NAMED = relation(
    "I bought this {item} by {brand} last {month}.",
    "my {kin} gave me the {brand} {item}.",
    "this is my second {item} from {brand}.",
    "the {brand} {item} arrived on {day}.",
    "after {days} days with the {brand} {item} I can say this:",
    "a review of the {item} that {brand} makes in {city}.",
    "we ordered {item:a} by {brand} for our house in {city}.",
    "I found the {brand} {item} in a shop in {city}.",
    "since {month} I have owned {item:a} from {brand}.",
    "a parcel with the {brand} {item} came on {day}.",
)
OPEN_SILENT = relation(
    "I bought this by mail last {month}.",
    "my {kin} told me about {brand}.",
    "{brand} sent it within {days} days.",
    "it came from {brand} on {day}.",
    "here is what I think about the new {brand}:",
    "I had read a lot about {brand} before.",
    "we got ours from {brand} in {city}.",
    "the name {brand} was new to me.",
    "this {brand} product reached {city} on {day}.",
    "I have dealt with {brand} since {month}.",
)
PART = relation(
    "{part} is {adjective}.",
    "I think that {part} is {adjective}.",
    "I tested it for {days} days, and {part} is {adjective}.",
    "my {kin} says that {part} is {adjective}.",
    "look at {part} first: it is {adjective}.",
    "one word about {part}: {adjective}.",
    "for this price, {part} is {adjective}.",
    "as for {part}, it is {adjective}.",
    "what struck me was {part}, which is {adjective}.",
    "to be honest, {part} is {adjective}.",
    "I must say that {part} is {adjective}.",
    "{part} turned out to be {adjective}.",
)
TWO_PARTS = relation(
    "{part} is {adjective}, and {part2} is {adjective2}.",
    "both {part} and {part2} are {adjective}.",
    "{part} is {adjective}; the same goes for {part2}.",
    "not only is {part} {adjective}, but {part2} is {adjective2}.",
    "if you ask about {part}, it is {adjective}, while {part2} is {adjective2}.",
    "{part} is {adjective} and my {kin} found {part2} {adjective2}.",
    "first I noticed {part}, which is {adjective}, then {part2}, which is {adjective2}.",
    "{part2} is {adjective2}, just as {part} is {adjective}.",
    "apart from {part}, which is {adjective}, {part2} is {adjective2}.",
    "{part}: {adjective}; {part2}: {adjective2}.",
)
USED = relation(
    "yesterday I {use}.",
    "I {use}, and that was enough to judge.",
    "on {day} I {use}.",
    "when it came I {use}.",
    "together with my {kin} I {use}.",
    "I {use} before I wrote this.",
    "after I {use}, I made up my mind.",
    "so far I {use} and nothing else.",
    "last {day} I {use} for the first time.",
    "in order to try it I {use}.",
)
VERDICT = relation(
    "{verdict}.",
    "in short, {verdict}.",
    "after {days} days {verdict}.",
    "{verdict}, and my {kin} agrees.",
    "all in all, {verdict}.",
    "my opinion is clear: {verdict}.",
    "I say it loudly: {verdict}.",
    "what can I say, {verdict}.",
    "to sum up, {verdict}.",
    "at the end of the day {verdict}.",
)
CLOSE = relation(
    "{wish}.",
    "{wish}, says {name} from {city}.",
    "so {wish}.",
    "that is why {wish}.",
    "therefore: {wish}.",
    "as my {kin} put it: {wish}.",
    "believe me, {wish}.",
    "for me {wish}.",
    "frankly, {wish}.",
    "my advice after {days} days: {wish}.",
)
STARS = relation(
    "{stars}.",
    "I give it {stars}.",
    "my rating: {stars}.",
    "this deserves {stars}.",
    "from me it gets {stars}.",
    "{stars} from {city}.",
    "the verdict of my {kin}: {stars}.",
    "that makes {stars}.",
    "it leaves with {stars}.",
    "I settle on {stars}.",
)
_KIN = ("wife", "husband", "mother", "father", "neighbour", "friend")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_MONTHS = ("January", "March", "April", "May", "June", "August", "October", "December")


def _brand(draw: Draw, split: str, category: str) -> str:
    """A brand of the split; the entity that is dealt to splits is brand and category together."""
    before = draw.log_probability
    while True:
        draw.log_probability = before
        brand = draw.weighted(_BRANDS)
        if split_of("product", f"{brand} {category}") == split:
            return brand


def _pools(category: str, rating: int, split: str) -> dict[str, tuple[str, Pool[str]]]:
    """What the slots are filled from, with the concept that the filling carries."""
    items, parts, uses = CATEGORIES[category]
    adjectives, verdicts, wishes, stars = GRADES[rating]
    kind = f"reviews/category/{category}"
    grade = f"reviews/sentiment/{'positive' if rating > 3 else 'negative'}/{rating}_stars"
    kinds = {"item": items, "part": parts, "use": uses}
    grades = {"adjective": adjectives, "verdict": verdicts, "wish": wishes, "stars": stars}
    pools = {key: (kind, Pool(evidence(options, split))) for key, options in kinds.items()}
    return pools | {key: (grade, Pool(evidence(options, split))) for key, options in grades.items()}


def _slots(
    draw: Draw, split: str, template: str, pools: dict[str, tuple[str, Pool[str]]], brand: str
) -> dict[str, Phrase]:
    slots = {"brand": phrase(brand, "reviews/brand")}
    for key, (concept, pool) in pools.items():
        for name in (key, f"{key}2"):
            if f"{{{name}}}" in template or f"{{{name}:a}}" in template:
                slots[name] = phrase(pool.take(draw), concept)
    for key, options in (("kin", _KIN), ("day", _DAYS), ("month", _MONTHS)):
        if f"{{{key}}}" in template:
            slots[key] = Phrase(draw.pick(options))
    if "{days}" in template:
        slots["days"] = Phrase(str(2 + draw.number(19)))
    if "{city}" in template:
        slots["city"] = city_phrase(draw_city(draw))
    if "{name}" in template:
        slots["name"] = draw_person(draw, split).slots()["name"]
    return slots


def write(draw: Draw, split: str, identity: str, spurious: tuple[str, float] | None = None) -> Document:
    """One review.

    Args:
        draw: The document's choices.
        split: One of the four splits.
        identity: The document's id.
        spurious: ``("sentiment", strength)`` makes the sentiment follow the category with that probability.
    """
    category = draw.weighted(_CATEGORY)
    rating = draw.pick((1, 2, 4, 5))
    if spurious and spurious[0] == "sentiment" and draw.chance(spurious[1]):
        # A planted correlation: categories of even rank are praised, the others blamed.
        wanted = list(CATEGORIES).index(category) % 2 == 0
        rating = {1: 5, 2: 4, 4: 2, 5: 1}[rating] if (rating > 3) != wanted else rating
    brand = _brand(draw, split, category)
    opening = OPEN_NAMED if draw.chance(0.4) else OPEN_SILENT
    middle = draw.pick(((PART,), (TWO_PARTS,), (USED, PART), (PART, USED), (TWO_PARTS, USED), (PART, TWO_PARTS)))
    end = draw.pick(((), (VERDICT,), (CLOSE,), (VERDICT, CLOSE), (VERDICT, STARS), (CLOSE, STARS)))
    pools = _pools(category, rating, split)
    parts: list[Phrase] = []
    for one in (opening, *middle, *end):
        template = one.draw(draw, split)
        parts.append(sentence(template, **_slots(draw, split, template, pools, brand)))
    labels: dict[str, Label] = {
        "category": category,
        "sentiment": "positive" if rating > 3 else "negative",
        "rating": rating,
    }
    return finish(marked(join(parts), "reviews"), labels, identity)
