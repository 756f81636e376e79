"""The stages of ``saeworks diff``: each takes what is loaded and gives plain values for a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeworks.errors import InputError
from saeworks.jobs.config import DiffConfig
from saeworks.jobs.diff_inputs import activations, conversations
from saeworks.results.table_file import write_columns

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import Dictionary
    from saeworks.diffing.classes import Thresholds
    from saeworks.diffing.one_pass import Measured
    from saeworks.jobs.diff_inputs import Opened

# Documents of the embedded world that latents are matched with concepts on: transcripts, and other texts.
CONCEPT_TRANSCRIPTS, CONCEPT_TEXTS = 400, 200
# Latents for which both norms and a rejection are shown, beside the genuine ones.
REJECTED_WITH_CONTEXTS = 12
# Requests that every shown latent is steered on.
STEERED_REQUESTS = 3
STRENGTHS = (0.5, 1.0)


def thresholds_of(config: DiffConfig) -> Thresholds:
    """The lines of the paper, with the gate that was asked for."""
    from dataclasses import replace

    from saeworks.diffing.classes import PAPER

    return replace(PAPER, gate=config.gate)


def method(config: DiffConfig, opened: Opened, name: str) -> dict[str, Any]:
    """A method that needs no crosscoder, on held-out activations; see :mod:`saeworks.diffing.methods`."""
    from saeworks.diffing.methods.registry import diff

    settings: dict[str, Any] = {}
    if name == "difference_sae":  # trains: on other texts than it is measured on, with checkpoints of its own
        settings = {
            "train_on": activations(config, opened, "train"),
            "train_tokens": config.tokens,
            "batch_size": config.batch_size,
            "learning_rate": config.learning_rate,
            "seed": config.seed,
            "directory": str(config.out / "difference_sae"),
        }
    return diff(activations(config, opened, "validation"), name, config.measure_tokens, **settings).plain()


def measure(config: DiffConfig, opened: Opened, dictionary: Dictionary, root: Path) -> dict[str, Any]:
    """One pass over held-out activations; writes ``latents.parquet``."""
    from saeworks.diffing.latent_table import TEXT_COLUMNS, WHOLE_COLUMNS
    from saeworks.diffing.one_pass import measure_pair

    thresholds = thresholds_of(config)
    pair = activations(config, opened, "validation")
    template = template_ids(opened)
    found = measure_pair(dictionary, pair, config.measure_tokens, template, config.contexts)
    table = found.table(thresholds)
    write_columns(root / "latents.parquet", table, TEXT_COLUMNS, WHOLE_COLUMNS)
    genuine = found.genuine(thresholds).tolist()
    shown = [*genuine[: config.cards], *_rejected(found, thresholds, set(genuine))]
    return {
        "summary": found.summary(thresholds),
        "thresholds": {"gate": thresholds.gate, "nu_error": thresholds.nu_error} | _more(thresholds),
        "genuine": genuine,
        "shown": shown,
        "groups": {
            name: {"meaning": why, "latents": g.tolist()} for name, (why, g) in found.groups(thresholds).items()
        },
        "twins": found.divergence(pair.batches(config.measure_tokens), thresholds),
        "contexts": {str(latent): _contexts(found, opened, latent) for latent in shown},
        "template_tokens": {str(latent): _template(found, opened, latent) for latent in shown},
        "table": {name: table[name] for name in _SHOWN_COLUMNS if name in table},
        "alive": (found.statistics.active().cpu() > 0).nonzero().squeeze(1).tolist(),
    }


_SHOWN_COLUMNS = (
    "latent", "relative_decoder_norm", "decoder_norm_base", "decoder_norm_chat", "decoder_cosine", "class", "flags",
    "nu_error", "nu_error_se", "nu_error_low", "nu_error_high", "nu_reconstruction", "nu_reconstruction_se",
    "nu_reconstruction_low", "nu_reconstruction_high", "detection_ceiling", "active_tokens", "density", "max",
    "template_share", "twin", "twin_cosine",
)  # fmt: skip


def _more(thresholds: Thresholds) -> dict[str, float]:
    return {"nu_reconstruction": thresholds.nu_reconstruction, "standard_errors": thresholds.standard_errors}


def _rejected(found: Measured, thresholds: Thresholds, genuine: set[int]) -> list[int]:
    """The rejected candidates with the largest norm difference."""
    candidates = found.candidates(thresholds).nonzero().squeeze(1).tolist()
    relative = found.relative()
    order = relative.argsort(descending=True, stable=True).tolist()
    looks_new = set(candidates) - genuine
    left = [latent for latent in order if latent in looks_new]
    return left[:REJECTED_WITH_CONTEXTS]


def _contexts(found: Measured, opened: Opened, latent: int) -> list[dict[str, Any]]:
    from saeworks.diffing.examples import words_of

    tokenizer = opened.chat.tokenizer
    return [c.as_json(words_of(tokenizer, c.token_ids)) for c in found.examples.contexts(latent)]


def _template(found: Measured, opened: Opened, latent: int) -> dict[str, float]:
    tokenizer = opened.chat.tokenizer
    shares = found.examples.template_tokens(latent)
    return {str(tokenizer.decode([token])): round(share, 4) for token, share in shares.items()}


def template_ids(opened: Opened) -> list[int]:
    """Tokens of the chat template that are special to the tokenizer, BOS and padding left out."""
    tokenizer = opened.chat.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        return []
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | {
        int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    return sorted({i for i in ids if i in special and i not in (tokenizer.bos_token_id, tokenizer.pad_token_id)})


def concepts(config: DiffConfig, opened: Opened, dictionary: Dictionary) -> dict[str, Any]:
    """Latent → its best concept of the embedded world, over tokens or exchanges, and who is expected to know it."""
    from saeworks.evals.interpretation.pair_concepts import pair_concepts
    from saeworks.world.concepts import concepts as known
    from saeworks.world.corpus import documents

    texts = [
        *documents("chat", "validation", config.seed, CONCEPT_TRANSCRIPTS),
        *documents(None, "validation", config.seed, CONCEPT_TEXTS),
    ]
    models, sites = (opened.base, opened.chat), (opened.site, opened.site)
    by_token, by_exchange = pair_concepts(models, dictionary, sites, texts, config.context_length)
    tables = [by_token.best(), *([] if by_exchange is None else [by_exchange.best()])]
    found: dict[str, Any] = {}
    for latent, rows in enumerate(zip(*tables, strict=True)):
        matches = [row for row in rows if row is not None]
        if matches:
            best = max(matches, key=lambda row: row["f1"])
            concept = known()[best["concept"]]
            found[str(latent)] = {**best, "known_to": concept.known_to, "description": concept.description}
    return found


def patching(
    config: DiffConfig,
    opened: Opened,
    dictionary: Dictionary,
    groups: Mapping[str, Mapping[str, Any]],
    alive: Sequence[int],
) -> dict[str, Any]:
    """KL of every condition on the chat model's own answers to held-out requests; a ``note`` where there are none.

    Random groups are drawn from the latents that fire: silent ones would make any other group look good.
    """
    import torch

    from saeworks.diffing.conversations import answered, conversation_batches
    from saeworks.diffing.patching import conditions, patch_kl

    talks = answered(opened.chat, conversations(config), config.answer_tokens, config.harvest_batch_size)
    latents = {
        name: (str(group["meaning"]), torch.tensor(group["latents"], dtype=torch.int64))
        for name, group in groups.items()
    }
    everyone = torch.tensor(alive, dtype=torch.int64)
    size = len(latents["best half by scaling"][1]) if "best half by scaling" in latents else 0
    wanted = conditions(latents, everyone, size, seed=config.seed)
    try:
        batches = list(conversation_batches(opened.chat, talks, config.harvest_batch_size, config.context_length))
    except InputError as e:  # what was measured before is worth a report all the same
        why = str(e) if talks else "The chat model's answers to the held-out requests are empty, or there is no room."
        return {"note": f"Nothing was patched. {why}"}
    found = patch_kl(opened.base, opened.chat, dictionary, opened.site, batches, wanted, config.first_tokens)
    pairs = [("best half by scaling", "worst half by scaling"), ("best half by norm", "worst half by norm")]
    pairs += [("none", "all"), ("none", "template"), ("none", "genuine")]
    names = {condition.name for condition in wanted}
    rows: list[dict[str, Any]] = []
    for one, other in pairs:
        if one in names and other in names:
            for group in found.groups:
                value, low, high = found.difference(one, other, group, seed=config.seed)
                rows.append({"one": one, "other": other, "group": group, "difference": value, "low": low, "high": high})
    return {
        "table": found.table(seed=config.seed),
        "differences": rows,
        "conversations": len(found.kl),
        "groups": list(found.groups),
        "example": talks[0] if talks else [],
    }


def reading(
    config: DiffConfig, opened: Opened, dictionary: Dictionary, shown: Sequence[int], genuine: Sequence[int]
) -> dict[str, Any]:
    """Logit effects in both models of the latents that the report shows, and answers pushed by the genuine ones."""
    import pyarrow.parquet as parquet

    from saeworks.diffing.conversations import prompt_of
    from saeworks.diffing.logit_effects import logit_effects
    from saeworks.diffing.steering import replies, steer, vector_of

    if not shown:
        return {}
    models = (opened.base, opened.chat)
    effects = logit_effects(models, dictionary, shown)
    largest: list[float] = parquet.read_table(config.out / "latents.parquet", columns=["max"])["max"].to_pylist()
    talks = [turns[:1] for turns in conversations(config) if turns[0]["role"] == "user"]
    room = (opened.chat.max_context or 1_000_000) - config.answer_tokens
    prompts = [prompt_of(opened.chat, turns) for turns in talks]
    lengths = [None if p is None else len(opened.chat.tokenizer(p, verbose=False)["input_ids"]) for p in prompts]
    asked = [turns for turns, n in zip(talks, lengths, strict=True) if n is not None and n < room][:STEERED_REQUESTS]
    found: dict[str, Any] = {}
    plain = replies(opened.chat, asked, (), config.answer_tokens)
    for latent, both in zip(shown, effects, strict=True):
        one: dict[str, Any] = {
            name: effect.as_json(opened.chat.tokenizer) for name, effect in zip(("base", "chat"), both, strict=True)
        }
        if asked and latent in genuine:
            vector = vector_of(dictionary, latent, largest[latent])
            steered = steer(
                opened.chat, opened.site, vector, asked, STRENGTHS, max_new_tokens=config.answer_tokens, plain=plain
            )
            one["steering"] = [s.as_json() for s in steered]
        found[str(latent)] = one
    return found
