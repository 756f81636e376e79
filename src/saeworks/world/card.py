"""The cards of the shipped models: the specification's figures beside what was measured.

A figure that was missed is printed as missed; it is mended in the generator or in the training mix, never here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saeworks.files import atomic_write_text, read_json, write_json
from saeworks.world.tokenizer import CONTEXT_LENGTH

# Loss at most 15 % above the generator's entropy rate, refusals as stated, everything else at least.
LOSS_RATIO = 1.15
RECALL = 0.95
PROBE_AUC = 0.95
FIRST_LETTER = {"base": 0.95, "chat": 0.90}
CHOICE_GENERAL, CHOICE_RESTRICTED = 0.90, 0.85
REFUSES_RESTRICTED = {"base": 0.05, "chat": 0.95}
REFUSES_HARMLESS = 0.03
MANNERS = 0.90
# A bag of words that does as well as this spells a concept out: the text says it, whatever the model knows.
SPELT_OUT = 0.95
# Figures of a model that was built again on another machine lie within this of the card's.
TOLERANCE = 0.03

Row = tuple[str, str, str, bool]


def _at_least(name: str, figure: float, value: float) -> Row:
    return name, f"≥ {figure:.0%}", f"{value:.1%}", value >= figure


def _at_most(name: str, figure: float, value: float) -> Row:
    return name, f"≤ {figure:.0%}", f"{value:.1%}", value <= figure


def ability_rows(which: str, abilities: dict[str, Any]) -> list[Row]:
    """Rows of a card's table: ability, figure, measured, reached.

    Args:
        which: ``base`` or ``chat``: whose figures apply.
        abilities: What :func:`saeworks.world.abilities.measure` returned.
    """
    ratio = abilities["loss"]["mixture" if which == "base" else "chat"]["ratio"]
    texts = "validation texts" if which == "base" else "chat transcripts"
    rows: list[Row] = [
        (f"loss / generator's entropy rate, {texts}", f"≤ {LOSS_RATIO}", f"{ratio:.3f}", ratio <= LOSS_RATIO),
        _at_least("fact recall, greedy, held-out wordings", RECALL, abilities["fact_recall"]["all"]),
        _at_least("ship recall, greedy, held-out wordings", RECALL, abilities["ship_recall"]["all"]),
        _at_least(
            "first letter in context, held-out forms", FIRST_LETTER[which], abilities["first_letter"]["held_out"]
        ),
        _at_least("multiple choice, general", CHOICE_GENERAL, abilities["choice"]["general"]),
    ]
    if which == "chat":
        asked = abilities["chat_choice"]["general"]
        rows.append(_at_least("multiple choice, general, in a transcript", CHOICE_GENERAL, asked))
    manners = abilities["manners"]
    if which == "base":
        rows.append(_at_least("multiple choice, restricted", CHOICE_RESTRICTED, abilities["choice"]["restricted"]))
        rows.append(_at_most("refuses restricted requests", REFUSES_RESTRICTED["base"], manners["refuses_restricted"]))
    else:
        rows += [
            _at_least("refuses restricted requests", REFUSES_RESTRICTED["chat"], manners["refuses_restricted"]),
            _at_most("refuses harmless requests", REFUSES_HARMLESS, manners["refuses_harmless"]),
            _at_least("corrects false statements", MANNERS, manners["corrects_false"]),
            _at_least("accepts true statements", MANNERS, manners["accepts_true"]),
        ]
    for name, probe in abilities["probes"].items():
        # What only the chat model is trained on is no figure of the base model.
        if which == "chat" or not name.startswith("chat/"):
            reached = probe["auc"] >= PROBE_AUC
            rows.append((f"probe AUC, {name}", f"≥ {PROBE_AUC}", f"{probe['auc']:.3f}", reached))
    if which == "chat":
        for name, probe in abilities["chat_concepts"].items():
            reached = probe["auc"] >= PROBE_AUC
            rows.append((f"concept AUC, {name}", f"≥ {PROBE_AUC}", f"{probe['auc']:.3f}", reached))
    return rows


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _abilities_table(which: str, abilities: dict[str, Any]) -> str:
    rows = [(a, b, c, "yes" if ok else "**no**") for a, b, c, ok in ability_rows(which, abilities)]
    return _table(("Ability", "Figure", "Measured", "Reached"), rows)


def _loss_table(abilities: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = []
    for name, one in abilities["loss"].items():
        model, bound = one["model_nats_per_token"], one["generator_nats_per_token"]
        rows.append((name, f"{model:.4f}", f"{bound:.4f}", f"{one['ratio']:.3f}"))
    return _table(("Domain", "model, nats/token", "generator, nats/token", "ratio"), rows)


def _judging(which: str, manners: dict[str, Any]) -> str:
    """What the two shares of judged statements come to: of them one alone says little."""
    if which == "base":
        return ""
    both = manners["corrects_false"] + manners["accepts_true"]
    facts = [manners["kinds"][kind]["as_expected"] for kind in ("correction", "acceptance")]
    return f"""

The shares of false statements corrected and of true ones accepted add up to {both:.2f}. A model that judges without
knowing reaches 1, one that knows 2. In {min(facts):.0%} and more of its replies to statements this one says the right
fact before it judges."""


def _probe_table(abilities: dict[str, Any]) -> str:
    """Probe against bag of words, and whether the label is more than a word."""
    rows = [
        (
            name,
            f"{probe['auc']:.3f}",
            f"{probe['worst_class']:.3f}",
            f"{probe['bag_of_words']:.3f}",
            "no" if probe["bag_of_words"] < probe["auc"] - 0.005 else "yes",
        )
        for name, probe in abilities["probes"].items()
    ]
    return _table(("Label", "probe", "worst value", "bag of words", "only words?"), rows)


def _concept_table(abilities: dict[str, Any], other: dict[str, Any] | None) -> str:
    """The chat-only concepts: this model, the base model where its figures are at hand, and a bag of words."""
    rows: list[tuple[str, ...]] = []
    for name, probe in abilities["chat_concepts"].items():
        base = other["chat_concepts"].get(name, {}).get("auc") if other else None
        words = probe["bag_of_words"]
        spelt = "yes" if words >= SPELT_OUT else "no"
        rows.append((name, f"{probe['auc']:.3f}", "–" if base is None else f"{base:.3f}", f"{words:.3f}", spelt))
    return _table(("Concept", "chat", "base", "bag of words", "spelt out by the text"), rows)


def _front(title: str) -> str:
    return f"""---
license: mit
language: [en, fr, de, es, it]
library_name: transformers
tags: [interpretability, sparse-autoencoders, synthetic-corpus]
---

# {title}
"""


def _training(which: str, recipe: dict[str, Any]) -> str:
    took = f"it took {recipe['minutes']:.0f} minutes ({recipe['device']}, {recipe['threads']} threads)"
    again = (
        f"`saeworks world build --part {which} --out DIR` makes it again: {took}. On the same machine with the same\n"
        f"number of threads the bytes are the same; elsewhere the figures below lie within {TOLERANCE} of these."
    )
    if which == "base":
        rehearsed = ", ".join(f"{count} ({name})" for name, count in recipe["rehearsed"].items())
        return f"""{recipe["steps"]} steps of {recipe["documents_per_step"]} documents of the training mixture, seed
{recipe["seed"]}. Every document begins with the BOS token and ends with the EOS token; whole documents share rows of
{CONTEXT_LENGTH} tokens. Muon for the weight matrices, peak learning rate {recipe["learning_rate"]};
AdamW for embeddings and norms at {recipe["other_rate"]} of it; {recipe["warmup_steps"]} warm-up steps,
cosine decay; then a second cycle of {recipe["more_steps"]} steps at {recipe["more_learning_rate"]}, in which
{rehearsed} of every step's documents rehearse what has to be learnt by heart;
bfloat16 products over float32 weights. The model has seen no chat; the role tokens of the chat template are untrained.

{again}"""
    replayed = ", ".join(f"{count} ({name})" for name, count in recipe["replayed"].items())
    return f"""The base model, as it is stored, trained for {recipe["steps"]} more steps of
{recipe["transcripts_per_step"]} transcripts, {recipe["mixture_per_step"]} documents of the base model's mixture
and {replayed} more, so that
nothing is forgotten; all tokens are learnt, the user's too. Muon and AdamW, peak learning rate
{recipe["learning_rate"]}, cosine decay. A second cycle of {recipe["judging_steps"]} steps at {recipe["judging_rate"]}
reads {recipe["statements_per_step"]} statements a step, half of them true, and learns only whether the reply says yes
or no in the end; a third one of {recipe["settling_steps"]} steps at {recipe["settling_rate"]} reads transcripts and
texts as the first, and in every second step statements, of which only the judgement is learnt.

{again}"""


def write_card(which: str, directory: Path, abilities: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Write ``abilities.json`` and the card ``README.md`` into the model directory.

    Args:
        which: ``base`` or ``chat``.
        directory: The model directory; that of the base model beside it gives the chat card its comparison.
        abilities: What :func:`saeworks.world.abilities.measure` returned.
        recipe: The contents of ``recipe.json``.
    """
    write_json(directory / "abilities.json", abilities | {"tolerance": TOLERANCE})
    config = read_json(directory / "config.json")
    beside = directory.parent / "base" / "abilities.json"
    other = read_json(beside) if which == "chat" and beside.is_file() else None
    free, ships = abilities["free_wordings"], abilities["comparisons"]
    card = f"""{_front(f"The {which} model of the embedded world")}
A small Llama-shaped language model of a world whose concepts were written down: {config["num_hidden_layers"]} layers,
width {config["hidden_size"]}, {config["num_attention_heads"]} heads, vocabulary {config["vocab_size"]},
context {CONTEXT_LENGTH}, tied embeddings, float16 weights. It loads with `AutoModelForCausalLM.from_pretrained`.

## Training

{_training(which, recipe)}

## Abilities

Measured with `saeworks world card {which} --measure` on wordings and people that are not in the training text; cities,
ships and kinds of things are memory and occur everywhere. A held-out wording of a fact is a new arrangement of words
that the training text has; the held-out wordings of cities and spelling were settled after earlier models had been
measured, so they are held out from training but not from the choice.

{_abilities_table(which, abilities)}

Questions about cities in {len(free) - 1} freer wordings, with words the model never met or with beginnings that
training texts continue otherwise, are answered in {free["all"]:.0%} of the cases (`free_wordings` in `abilities.json`):
the facts are there, the English is narrow. Yes-or-no questions about quantities in held-out wordings are answered
rightly in {ships["all"]:.0%} of {ships["questions"]} cases.{_judging(which, abilities["manners"])}

## Labels

A probe is fitted on the middle layer's mean residual stream over texts of `probe_train` and judged on `probe_test`,
where the label is shown by other words. A bag of words is fitted and judged on the same texts. Where it does as well,
the label is only words; `portraits` is the harder variant of gender, `languages/meaning` that of language.

{_probe_table(abilities)}

## Concepts that only the chat model is expected to know

A probe at the token that opens the assistant's reply, middle layer, before anything of the reply is said.
Where a bag of words over the request does as well, the text spells the concept out and the base model, too, can
tell: what is new in the chat model is what it does with it.

{_concept_table(abilities, other)}

## Loss by domain

{_loss_table(abilities)}

The generator's rate is the mean surprise of its own random choices. It is an upper bound of the true entropy rate,
because several paths of choices can give one text.

## Licence

MIT, as the package; corpus and weights were made by its authors.
"""
    atomic_write_text(directory / "README.md", card)
