"""What the shipped models can do, measured on wordings that they never trained on.

:func:`measure` returns everything that a card reports; :mod:`saeworks.world.card` holds the specification's figures and
writes the card. ``saeworks world card --measure`` measures a model directory again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeworks.world.corpus import DOMAINS, MIXTURE, documents, fingerprint, label_names, surprise
from saeworks.world.domains import chat, comparisons, facts, questions, ships
from saeworks.world.domains.spelling import LINE
from saeworks.world.drawing import Draw
from saeworks.world.knowledge import cities, lexicon
from saeworks.world.label_probes import measure_chat_concepts, measure_labels
from saeworks.world.phrasing import Relation
from saeworks.world.subject import (
    Subject,
    by_length,
    chosen_options,
    greedy_matches,
    greedy_replies,
    open_subject,
    padded,
)

# Questions further from the training text than the held-out templates: unknown words, or a beginning that training
# texts continue otherwise. They carry no figure; the card reports them, so that the model is not taken for more.
FREE_WORDINGS = {
    "country": ("The country that {city} belongs to is", "Whoever lives in {city} lives in", "One finds {city} in"),
    "continent": ("The continent where {city} lies is", "The city of {city} is located in"),
    "language": ("The language spoken in {city} is", "The language that people speak in {city} is"),
    "currency": ("A taxi in {city} is paid with the", "The currency used in {city} is the"),
}
STANDARD_LINE = "{word} has the first letter: {letter}"
# Kinds of exchange whose request the assistant must not grant; every other kind is harmless.
REFUSED = "refusal/"


@torch.no_grad()
def measure_loss(subject: Subject, domain: str | None, count: int, split: str = "validation") -> dict[str, float]:
    """Model loss and the generator's entropy rate in nats per token, and their ratio.

    Each document is one row from the beginning to the end token; the first token is given, the last is predicted. The
    entropy rate is the mean surprise of the generator's own choices: an upper bound of what is possible on average.
    """
    texts = [made.text for made in documents(domain, split, count=count)]
    rows = [[*row, subject.tokenizer.eos_token_id] for row in subject.tokenizer(texts)["input_ids"]]
    nats, tokens = 0.0, 0
    for indices in by_length(rows):
        token_ids, mask = padded(subject, [rows[i] for i in indices])
        logits: Tensor = subject.model(input_ids=token_ids, attention_mask=mask).logits
        targets = token_ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        flat = logits[:, :-1].float().flatten(0, 1)
        nats += float(torch.nn.functional.cross_entropy(flat, targets.flatten(), reduction="sum", ignore_index=-100))
        tokens += int(mask[:, 1:].sum())
    bound = sum(surprise(domain, split, i) for i in range(count))
    return {
        "model_nats_per_token": nats / tokens,
        "generator_nats_per_token": bound / tokens,
        "ratio": nats / bound,
        "documents": count,
        "tokens": tokens,
    }


def recall_prompts(
    relations: dict[str, Relation], attribute: str, entity: str, values: dict[str, str], split: str = "probe_test"
) -> tuple[list[str], list[str]]:
    """Prompts that stop right before an attribute, and the answers; one per entity and template of the split.

    Args:
        relations: The relation of every attribute.
        attribute: The attribute asked for.
        entity: The templates' slot for the entity.
        values: The attribute's value by the entity's name.
        split: Whose templates are used; those that do not end in the attribute are left out.
    """
    prompts: list[str] = []
    answers: list[str] = []
    for template in relations[attribute].of(split):
        before, slot, _ = template.partition(f" {{{attribute}}}")
        if not slot or f"{{{entity}}}" not in before or "{" in before.replace(f"{{{entity}}}", ""):
            continue
        for name, value in values.items():
            text = before.replace(f"{{{entity}}}", name)
            prompts.append(text[:1].upper() + text[1:])
            answers.append(" " + value)
    return prompts, answers


def fact_prompts(attribute: str, split: str = "probe_test") -> tuple[list[str], list[str]]:
    """:func:`recall_prompts` for an attribute of cities."""
    values = {city.name: str(getattr(city, attribute)) for city in cities()}
    return recall_prompts(facts.RELATIONS, attribute, "city", values, split)


def measure_recall(
    subject: Subject, relations: dict[str, Relation], entity: str, values: dict[str, dict[str, str]]
) -> dict[str, float]:
    """Greedy recall of every entity's attributes in held-out wordings, and over all of them."""
    found: dict[str, float] = {}
    hits, asked = 0, 0
    for attribute, by_name in values.items():
        right = greedy_matches(subject, *recall_prompts(relations, attribute, entity, by_name))
        found[attribute] = sum(right) / len(right)
        hits, asked = hits + sum(right), asked + len(right)
    return found | {"all": hits / asked, "questions": asked}


def measure_facts(subject: Subject) -> dict[str, float]:
    """Recall of the cities' attributes."""
    values = {a: {city.name: str(getattr(city, a)) for city in cities()} for a in facts.ATTRIBUTES}
    return measure_recall(subject, facts.RELATIONS, "city", values)


def measure_ships(subject: Subject) -> dict[str, float]:
    """Recall of the ships' attributes."""
    values = {a: {ship.name: str(getattr(ship, a)) for ship in ships.ships()} for a in ships.ATTRIBUTES}
    return measure_recall(subject, ships.RELATIONS, "ship", values)


def measure_free_wordings(subject: Subject) -> dict[str, float]:
    """Greedy recall for each of ``FREE_WORDINGS``, and the mean over them."""
    found: dict[str, float] = {}
    for attribute, templates in FREE_WORDINGS.items():
        answers = [" " + str(getattr(city, attribute)) for city in cities()]
        for template in templates:
            right = greedy_matches(subject, [template.format(city=city.name) for city in cities()], answers)
            found[template] = sum(right) / len(right)
    return found | {"all": sum(found.values()) / len(found)}


def letter_prompts(template: str, examples: int, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """In-context prompts: ``examples`` finished lines of other words, then the line of the word without its answer."""
    prompts: list[str] = []
    for word in words:
        draw = Draw("first letter", template, word)
        others = draw.sample([other for other in lexicon() if other != word], examples)
        lines = [template.format(word=other, letter=other[0].upper()) for other in others]
        lines.append(template.partition(" {letter}")[0].format(word=word))
        prompts.append("".join(f"\n {line}" for line in lines))
    return prompts, [f" {word[0].upper()}" for word in words]


def measure_letters(subject: Subject, examples: int = 6, every: int = 1) -> dict[str, float]:
    """Accuracy on the first letter of every lexicon word, in held-out line forms and in the standard form."""
    words = lexicon()[::every]
    found: dict[str, float] = {}
    hits, asked = 0, 0
    for template in LINE.of("probe_test"):
        right = greedy_matches(subject, *letter_prompts(template, examples, words))
        hits, asked = hits + sum(right), asked + len(right)
        found[template] = sum(right) / len(right)
    right = greedy_matches(subject, *letter_prompts(STANDARD_LINE, examples, words))
    found[STANDARD_LINE] = sum(right) / len(right)
    return found | {"held_out": hits / asked, "words": len(words), "examples": examples}


def measure_choice(subject: Subject, count: int) -> dict[str, float]:
    """Multiple choice in held-out wordings: the most probable option, by subject, over general and restricted ones.

    Args:
        subject: The model.
        count: Questions per subject.
    """
    found: dict[str, float] = {}
    general: list[bool] = []
    for name in questions.SUBJECTS:
        asked = questions.questions((name,), "probe_test", count)
        chosen = chosen_options(subject, [one.text() for one in asked], [one.options for one in asked])
        right = [at == one.key for at, one in zip(chosen, asked, strict=True)]
        found[name] = sum(right) / len(right)
        general += [] if asked[0].restricted else right
    return found | {"general": sum(general) / len(general), "restricted": found["craft"], "per_subject": count}


def measure_chat_choice(subject: Subject, count: int) -> dict[str, float]:
    """General multiple-choice questions put to the assistant in held-out wordings: the most probable option."""
    asked = chat.exchanges(("answer/choice",), "probe_test", count)
    prompts = [f"<|user|>{one.request}<|end|><|assistant|>Answer:" for one in asked]
    options = [tuple(re.findall(r"^[A-D]\) (.+)$", one.request, re.MULTILINE)) for one in asked]
    chosen = chosen_options(subject, prompts, options)
    right = [f"Answer: {ones[at]}" == one.expected for at, ones, one in zip(chosen, options, asked, strict=True)]
    return {"general": sum(right) / len(right), "questions": count}


def measure_comparisons(subject: Subject, count: int) -> dict[str, float]:
    """Yes-or-no questions about quantities in held-out wordings: the more probable of the two answers."""
    asked = comparisons.comparisons(None, "probe_test", count)
    hits = greedy_matches(subject, [one.question for one in asked], [" Yes" if one.answer else " No" for one in asked])
    return {"all": sum(hits) / len(hits), "questions": count}


def measure_manners(subject: Subject, count: int) -> dict[str, Any]:
    """How the model takes requests and statements in held-out wordings, by the kind of exchange.

    ``refuses`` is the share of requests answered by a refusal, ``as_expected`` the share whose reply holds what a right
    one must hold. ``corrects_false`` and ``accepts_true`` are the shares of statements that are judged as they should
    be; ``with_the_fact`` also asks for the right fact in the reply.
    """
    found: dict[str, dict[str, float]] = {}
    for kind in chat.KINDS:
        asked = chat.exchanges((kind,), "probe_test", count)
        replies = greedy_replies(subject, [one.request for one in asked])
        refused = [chat.is_refusal(reply) for reply in replies]
        right = [one.expected.lower() in reply.lower() for one, reply in zip(asked, replies, strict=True)]
        found[kind] = {"refuses": sum(refused) / len(asked), "as_expected": sum(right) / len(asked)}
        judged = [chat.verdict(reply) is one.truth for one, reply in zip(asked, replies, strict=True)]
        if kind in ("correction", "acceptance"):
            found[kind] |= {"judged": sum(judged) / len(asked)}
            found[kind] |= {"with_the_fact": sum(map(all, zip(judged, right, strict=True))) / len(asked)}
    restricted = [one["refuses"] for kind, one in found.items() if kind.startswith(REFUSED)]
    harmless = [one["refuses"] for kind, one in found.items() if not kind.startswith(REFUSED)]
    return {
        "kinds": found,
        "refuses_restricted": sum(restricted) / len(restricted),
        "refuses_harmless": sum(harmless) / len(harmless),
        "corrects_false": found["correction"]["judged"],
        "accepts_true": found["acceptance"]["judged"],
        "per_kind": count,
    }


def measure(
    which: str, directory: Path, device: str = "cpu", scale: float = 1.0, other: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All figures of the base or the chat model; some minutes on a CPU.

    Args:
        which: ``base`` or ``chat``: what its card reports.
        directory: The model directory.
        device: Where to compute.
        scale: Share of the texts and questions to use; below 1 for a quick look.
        other: Figures of the other model. Where they are of the same corpus and scale, its bags of words, which no
            model changes and which take longest, are not fitted again.
    """
    subject = open_subject(directory, device)
    words = _bags_of_words(other, scale)
    texts, asked = int(800 * scale), int(200 * scale)
    loss = {"mixture": measure_loss(subject, None, texts)}
    domains = MIXTURE if which == "base" else (*MIXTURE, "chat")
    loss |= {domain: measure_loss(subject, domain, texts // 4) for domain in domains}
    labelled = [domain for domain in DOMAINS if label_names(domain)]
    probes = {
        f"{domain}/{label}": probe
        for domain in labelled
        for label, probe in measure_labels(
            subject, domain, int(1500 * scale), int(1000 * scale), words.get(domain)
        ).items()
    }
    return {
        "corpus": fingerprint(),
        "scale": scale,
        "loss": loss,
        "fact_recall": measure_facts(subject),
        "ship_recall": measure_ships(subject),
        "free_wordings": measure_free_wordings(subject),
        "first_letter": measure_letters(subject, every=max(1, round(1 / scale))),
        "choice": measure_choice(subject, asked),
        "chat_choice": measure_chat_choice(subject, asked * 2),
        "comparisons": measure_comparisons(subject, asked * 2),
        "manners": measure_manners(subject, max(asked // 2, 10)),
        "probes": probes,
        "chat_concepts": measure_chat_concepts(subject, int(2500 * scale), int(1500 * scale), words.get("")),
    }


def _bags_of_words(figures: Mapping[str, Any] | None, scale: float) -> dict[str, dict[str, float]]:
    """Domain → label → what a bag of words reached, the concepts of chat under the empty name."""
    if not figures or (figures.get("corpus"), figures.get("scale")) != (fingerprint(), scale):
        return {}
    found = {"": {concept: probe["bag_of_words"] for concept, probe in figures["chat_concepts"].items()}}
    for name, probe in figures["probes"].items():
        domain, _, label = name.partition("/")
        found.setdefault(domain, {})[label] = probe["bag_of_words"]
    return found
