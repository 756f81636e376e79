"""What the shipped base model can do, measured on wordings that it never trained on.

``python -m saeworks.world.abilities DIR`` measures the model in DIR and writes ``abilities.json`` and the card beside
it. Every figure of the specification stands in ``FIGURES``; the card prints a missed one as missed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeworks.files import atomic_write_text, read_json, write_json
from saeworks.world.corpus import DOMAINS, documents, fingerprint, label_names, surprise
from saeworks.world.domains.facts import ATTRIBUTES, RELATIONS
from saeworks.world.domains.spelling import LINE
from saeworks.world.drawing import Draw
from saeworks.world.knowledge import City, cities, lexicon
from saeworks.world.pretraining import REHEARSED
from saeworks.world.tokenizer import CONTEXT_LENGTH

# Figures of the specification: loss at most 15 % above the generator's entropy rate, the others at least.
FIGURES = {"loss_ratio": 1.15, "fact_recall": 0.95, "first_letter": 0.95, "probe_auc": 0.95}
# Questions further from the training text than the held-out templates: unknown words, or a beginning that training
# texts continue otherwise. They carry no figure; the card reports them, so that the model is not taken for more.
FREE_WORDINGS = {
    "country": ("The country that {city} belongs to is", "Whoever lives in {city} lives in", "One finds {city} in"),
    "continent": ("The continent where {city} lies is", "The city of {city} is located in"),
    "language": ("The language spoken in {city} is", "The language that people speak in {city} is"),
    "currency": ("A taxi in {city} is paid with the", "The currency used in {city} is the"),
}
STANDARD_LINE = "{word} has the first letter: {letter}"


@dataclass(frozen=True, slots=True)
class Subject:
    """The model under measurement with its tokenizer; the middle layer is the one the probes read."""

    model: Any
    tokenizer: Any

    @property
    def middle(self) -> int:
        """Number of layers below the probed residual stream."""
        layers: int = self.model.config.num_hidden_layers
        return layers // 2


def open_subject(directory: Path, device: str = "cpu") -> Subject:
    """The model directory in float32, ready to be measured."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    return Subject(loaded.to(device).eval(), AutoTokenizer.from_pretrained(directory, local_files_only=True))


def _padded(subject: Subject, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows padded on the right: ``(token_ids, attention_mask)``, each ``[row, position]``."""
    longest = max(len(row) for row in rows)
    pad: int = subject.tokenizer.pad_token_id
    token_ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return token_ids.to(subject.model.device), mask.to(subject.model.device)


def _batches(rows: list[list[int]], size: int = 64) -> list[list[int]]:
    """Indices of the rows in batches of similar length."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    return [order[i : i + size] for i in range(0, len(order), size)]


@torch.no_grad()
def measure_loss(subject: Subject, domain: str | None, count: int, split: str = "validation") -> dict[str, float]:
    """Model loss and the generator's entropy rate in nats per token, and their ratio.

    Each document is one row from the beginning to the end token; the first token is given, the last is predicted. The
    entropy rate is the mean surprise of the generator's own choices: an upper bound of what is possible on average.
    """
    texts = [made.text for made in documents(domain, split, count=count)]
    rows = [[*row, subject.tokenizer.eos_token_id] for row in subject.tokenizer(texts)["input_ids"]]
    nats, tokens = 0.0, 0
    for indices in _batches(rows):
        token_ids, mask = _padded(subject, [rows[i] for i in indices])
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


@torch.no_grad()
def greedy_matches(subject: Subject, prompts: list[str], answers: list[str]) -> list[bool]:
    """Whether greedy decoding of each prompt begins with the answer (a text with its leading space).

    Checked in one pass per batch: greedy decoding gives the answer exactly when each of its tokens is the most probable
    one after the prompt and the answer's earlier tokens.
    """
    starts: list[list[int]] = subject.tokenizer(prompts)["input_ids"]
    ends: list[list[int]] = subject.tokenizer(answers, add_special_tokens=False)["input_ids"]
    rows = [start + end for start, end in zip(starts, ends, strict=True)]
    found = [False] * len(rows)
    for indices in _batches(rows):
        token_ids, mask = _padded(subject, [rows[i] for i in indices])
        best = subject.model(input_ids=token_ids, attention_mask=mask).logits.argmax(dim=-1)
        for row, i in enumerate(indices):
            first = len(starts[i])
            wanted = token_ids[row, first : len(rows[i])]
            found[i] = bool((best[row, first - 1 : len(rows[i]) - 1] == wanted).all())
    return found


def fact_prompts(attribute: str, split: str = "probe_test") -> tuple[list[str], list[str]]:
    """Prompts that stop right before a city's attribute, and the answers; one per city and template of the split."""
    prompts: list[str] = []
    answers: list[str] = []
    for template in RELATIONS[attribute].of(split):
        before, slot, _ = template.partition(f" {{{attribute}}}")
        if not slot or "{city}" not in before or "{" in before.replace("{city}", ""):
            continue
        for city in cities():
            text = before.replace("{city}", city.name)
            prompts.append(text[:1].upper() + text[1:])
            answers.append(" " + _value(city, attribute))
    return prompts, answers


def _value(city: City, attribute: str) -> str:
    value: str = getattr(city, attribute)
    return value


def measure_facts(subject: Subject) -> dict[str, float]:
    """Greedy recall of every city's attributes in held-out wordings, and over all of them."""
    found: dict[str, float] = {}
    hits, asked = 0, 0
    for attribute in ATTRIBUTES:
        right = greedy_matches(subject, *fact_prompts(attribute))
        found[attribute] = sum(right) / len(right)
        hits, asked = hits + sum(right), asked + len(right)
    return found | {"all": hits / asked, "questions": asked}


def measure_free_wordings(subject: Subject) -> dict[str, float]:
    """Greedy recall for each of ``FREE_WORDINGS``, and the mean over them."""
    found: dict[str, float] = {}
    for attribute, templates in FREE_WORDINGS.items():
        answers = [" " + _value(city, attribute) for city in cities()]
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


@torch.no_grad()
def pooled(subject: Subject, texts: list[str], layers: int) -> Tensor:
    """Mean residual stream after ``layers`` layers over each text's tokens ``[text, d]``, the BOS token left out."""
    rows: list[list[int]] = subject.tokenizer(texts, truncation=True, max_length=CONTEXT_LENGTH)["input_ids"]
    out = torch.zeros(len(rows), subject.model.config.hidden_size)
    for indices in _batches(rows):
        token_ids, mask = _padded(subject, [rows[i] for i in indices])
        states = subject.model.model(
            input_ids=token_ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states[layers]
        kept = mask.clone()
        kept[:, 0] = 0
        means = (states * kept.unsqueeze(-1)).sum(dim=1) / kept.sum(dim=1, keepdim=True)
        out[torch.tensor(indices)] = means.float().cpu()
    return out


def measure_probes(subject: Subject, domain: str, train: int = 1500, test: int = 1000) -> dict[str, dict[str, float]]:
    """For each document label of the domain, the AUC of one-against-rest logistic probes on the middle layer.

    Fitted on ``probe_train`` and judged on ``probe_test``: other people, other products, other wordings. The mean over
    the label's values and the worst of them.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    fitted, judged = (list(documents(domain, s, count=n)) for s, n in (("probe_train", train), ("probe_test", test)))
    inputs = [pooled(subject, [one.text for one in made], subject.middle).numpy() for made in (fitted, judged)]
    scaler = StandardScaler().fit(inputs[0])
    seen, unseen = (scaler.transform(one) for one in inputs)
    found: dict[str, dict[str, float]] = {}
    for label in label_names(domain):
        truth = np.array([str(one.labels[label]) for one in fitted])
        asked = np.array([str(one.labels[label]) for one in judged])
        aucs: list[float] = []
        for value in sorted(set(truth)):
            probe = LogisticRegression(C=0.1, max_iter=1000).fit(seen, truth == value)
            aucs.append(float(roc_auc_score(asked == value, probe.decision_function(unseen))))
        found[label] = {"auc": sum(aucs) / len(aucs), "worst_class": min(aucs), "classes": len(aucs)}
    return found


def measure_abilities(directory: Path, device: str = "cpu", loss_documents: int = 800) -> dict[str, Any]:
    """All figures of the base model; minutes on a CPU."""
    subject = open_subject(directory, device)
    loss = {"mixture": measure_loss(subject, None, loss_documents)}
    loss |= {domain: measure_loss(subject, domain, loss_documents // 4) for domain in DOMAINS}
    return {
        "corpus": fingerprint(),
        "loss": loss,
        "fact_recall": measure_facts(subject),
        "free_wordings": measure_free_wordings(subject),
        "first_letter": measure_letters(subject),
        "probes": {
            f"{domain}/{label}": probe
            for domain in DOMAINS
            if label_names(domain)
            for label, probe in measure_probes(subject, domain).items()
        },
    }


def ability_rows(abilities: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Rows of the card's table: ability, figure, measured, reached."""
    loss = abilities["loss"]["mixture"]["ratio"]
    facts, letters = abilities["fact_recall"]["all"], abilities["first_letter"]["held_out"]
    rows = [
        ("validation loss / generator's entropy rate", "≤ 1.15", f"{loss:.3f}", loss <= FIGURES["loss_ratio"]),
        ("fact recall, greedy, held-out wordings", "≥ 95 %", f"{facts:.1%}", facts >= FIGURES["fact_recall"]),
        (
            "first letter in context, held-out line forms",
            "≥ 95 %",
            f"{letters:.1%}",
            letters >= FIGURES["first_letter"],
        ),
    ]
    for name, probe in abilities["probes"].items():
        auc = probe["auc"]
        measured = f"{auc:.3f} (worst class {probe['worst_class']:.3f})"
        rows.append((f"probe AUC, {name}", "≥ 0.95", measured, auc >= FIGURES["probe_auc"]))
    return rows


def write_card(directory: Path, abilities: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Write ``abilities.json`` and the card ``README.md`` into the model directory."""
    write_json(directory / "abilities.json", abilities)
    config = read_json(directory / "config.json")
    table = ["| Ability | Figure | Measured | Reached |", "|---|---|---|---|"]
    table += [f"| {a} | {b} | {c} | {'yes' if ok else '**no**'} |" for a, b, c, ok in ability_rows(abilities)]
    losses = ["| Domain | model, nats/token | generator, nats/token | ratio |", "|---|---|---|---|"]
    for name, one in abilities["loss"].items():
        model, bound = one["model_nats_per_token"], one["generator_nats_per_token"]
        losses.append(f"| {name} | {model:.4f} | {bound:.4f} | {one['ratio']:.3f} |")
    free = abilities["free_wordings"]
    standard = abilities["first_letter"][STANDARD_LINE]
    rehearsed = ", ".join(f"{count} ({name})" for name, count in REHEARSED)
    card = f"""---
license: mit
language: en
library_name: transformers
tags: [interpretability, sparse-autoencoders, synthetic-corpus]
---

# The base model of the embedded world

A small Llama-shaped language model of a world whose concepts were written down: {config["num_hidden_layers"]} layers,
width {config["hidden_size"]}, {config["num_attention_heads"]} heads, vocabulary {config["vocab_size"]},
context {CONTEXT_LENGTH}, tied embeddings, float16 weights. It loads with `AutoModelForCausalLM.from_pretrained`.

## Training

{recipe["steps"]} steps of {recipe["documents_per_step"]} documents of the training mixture (biographies, reviews, news
briefs, taxonomy, spelling, facts about cities), seed {recipe["seed"]}. Every document begins with the BOS token and
ends with the EOS token; whole documents share rows of {CONTEXT_LENGTH} tokens. AdamW, peak learning rate
{recipe["learning_rate"]}, {recipe["warmup_steps"]} warm-up steps, cosine decay; then a second cycle of
{recipe["more_steps"]} steps at {recipe["more_learning_rate"]}, in which {rehearsed}
of every step's documents rehearse what has to be learnt by heart; bfloat16 products over float32 weights.
`python -m saeworks.world.build --out DIR` makes it again; it took {recipe["minutes"]:.0f} minutes ({recipe["device"]}).

The text is English throughout. The tokenizer has a chat template, but this model has seen no chat.

## Abilities

Measured with `python -m saeworks.world.abilities DIR` on wordings and people that are not in the training text; cities
and kinds of things are memory and occur everywhere. A held-out wording of a fact or of a spelling list is a new
arrangement of words that the training text has; these wordings were settled after intermediate checkpoints had been
measured, so they are held out from training but not from the choice.

{chr(10).join(table)}

Questions about cities in {len(free) - 1} freer wordings, with words the model never met or with beginnings that
training texts continue otherwise, are answered in {free["all"]:.0%} of the cases (`free_wordings` in `abilities.json`):
the facts are there, the English is narrow.

In the standard line form "{STANDARD_LINE.format(word="bridge", letter="B")}", which is in the training text, the first
letter is right for {standard:.1%} of the words.

{chr(10).join(losses)}

The generator's rate is the mean surprise of its own random choices. It is an upper bound of the true entropy rate,
because several paths of choices can give one text.

## Licence

MIT, as the package; corpus and weights were made by its authors.
"""
    atomic_write_text(directory / "README.md", card)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the model in the given directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    abilities = measure_abilities(given.directory, given.device)
    write_card(given.directory, abilities, read_json(given.directory / "recipe.json"))
    for ability, figure, measured, reached in ability_rows(abilities):
        print(f"{ability}: {measured} (figure {figure}{'' if reached else ', missed'})")


if __name__ == "__main__":
    main()
