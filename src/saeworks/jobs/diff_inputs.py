"""What ``saeworks diff`` reads: two models, a site, texts, transcripts; and the crosscoder that it trains or takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeworks.errors import InputError
from saeworks.jobs.config import DiffConfig
from saeworks.jobs.eval_data import held_out, is_world
from saeworks.jobs.inputs import choose_site, open_model, open_source
from saeworks.version import __version__

if TYPE_CHECKING:
    from saeworks.activations.texts import TextSource
    from saeworks.dictionaries.dictionary import Dictionary
    from saeworks.diffing.model_pair import ModelPair
    from saeworks.diffing.transcripts import Message
    from saeworks.models.language_model import LanguageModel
    from saeworks.training.cells import MemberConfig


@dataclass(frozen=True)
class Opened:
    """The models, the site in both, and whether everything read is the embedded world's."""

    base: LanguageModel
    chat: LanguageModel
    site: str
    world: bool


def open_pair(config: DiffConfig) -> Opened:
    """Load both models and resolve the site; refuses pairs that cannot be compared before anything is written."""
    from saeworks.diffing.tokenizers import check_models
    from saeworks.world.model_files import NAMES

    chat = open_model(config, config.chat)
    base = chat if config.base == config.chat else open_model(config, config.base)
    check_models(base, chat, {})
    site = choose_site(chat, config.site)
    if base.site(site).width != chat.site(site).width:
        raise InputError(
            f"At '{site}' the base model has width {base.site(site).width} and the chat model {chat.site(site).width}; "
            "saeworks diff compares models of one width."
        )
    world = is_world(config) and config.base in NAMES and config.chat in NAMES and transcripts_of(config) == "world"
    return Opened(base, chat, site, world)


def transcripts_of(config: DiffConfig) -> str | None:
    """The transcripts to read: those named, or the world's for its own models."""
    from saeworks.world.model_files import NAMES

    if config.transcripts is not None:
        return config.transcripts
    return "world" if config.chat in NAMES else None


def activations(config: DiffConfig, opened: Opened, split: str) -> ModelPair:
    """Paired activations of one split, texts and transcripts in turns."""
    from saeworks.diffing.model_pair import ModelPair

    return ModelPair(
        opened.base,
        opened.chat,
        opened.site,
        held_out(config)[0] if split == "validation" else open_source(config, split),
        conversations_source(config, split),
        context_length=_length(config, opened.chat),
        batch_rows=config.harvest_batch_size,
        seed=config.seed,
        max_norm_ratio=config.max_norm_ratio,
        skip_first=config.skip_first,
    )


def conversations_source(config: DiffConfig, split: str) -> TextSource | None:
    """The transcripts of a split; None where there are none."""
    from saeworks.diffing.transcripts import open_transcripts

    name = transcripts_of(config)
    return None if name is None else open_transcripts(name, config.messages_column, split, config.seed)


def conversations(config: DiffConfig, split: str = "validation") -> list[list[Message]]:
    """The first conversations of a split, as messages.

    Raises:
        InputError: there are no transcripts to read.
    """
    from saeworks.diffing.transcripts import messages_of

    source = conversations_source(config, split)
    if source is None:
        raise InputError(
            f"What makes '{config.chat}' behave as it does is measured on conversations, but none were given; "
            'name a file with --transcripts (one {"messages": [...]} a line).'
        )
    return [messages_of(document.text) for document in source.documents(0, config.conversations)]


def member(config: DiffConfig) -> MemberConfig:
    """The crosscoder to train.

    Raises:
        InputError: a recipe that reads one site, or settings that contradict each other.
    """
    from saeworks.training.cells import MemberConfig
    from saeworks.training.recipes import recipe
    from saeworks.training.schedules import default_learning_rate

    chosen = recipe(config.recipe)
    if chosen.inputs != "sources":
        raise InputError(
            f"The recipe '{config.recipe}' reads one site of one model, and a diff needs both models side by side; "
            "use diffing-batch_topk, diffing-l1 or another crosscoder (see saeworks recipes)."
        )
    if chosen.sparsity == "coefficient":
        sparsity = chosen.grid[len(chosen.grid) // 2] if config.penalty is None else config.penalty
    else:
        sparsity = float(config.k)
    steps = config.tokens // config.batch_size
    if steps < 1 or config.buffer_tokens < 2 * config.batch_size:
        raise InputError(
            f"tokens is {config.tokens} and buffer_tokens {config.buffer_tokens}, but the first must hold a batch of "
            f"{config.batch_size} and the second two; raise them or lower --batch-size."
        )
    # The recipes' own rates belong to runs of 100,000 steps.
    rate = config.learning_rate or default_learning_rate(config.width, steps)
    return MemberConfig(chosen, config.width, sparsity, config.seed, rate)


def train_crosscoder(config: DiffConfig, opened: Opened) -> tuple[Path, Dictionary]:
    """Train the crosscoder below ``out``, or go on with it; returns its folder too."""
    from saeworks.diffing.paired_stream import PairedStream
    from saeworks.training.trainer import Trainer, TrainerConfig

    one = member(config)
    metadata: dict[str, Any] = {
        "model_name": config.chat,
        "base_model_name": config.base,
        "model_fingerprint": opened.chat.fingerprint(),
        "base_model_fingerprint": opened.base.fingerprint(),
        "site": opened.site,
        "data": list(config.data),
        "transcripts": transcripts_of(config),
        "context_length": _length(config, opened.chat),
        "saeworks_version": __version__,
    }
    stream = PairedStream(activations(config, opened, "train"), config.buffer_tokens, config.seed)
    settings = TrainerConfig(config.tokens, config.batch_size, checkpoint_every=config.checkpoint_every)
    trainer = Trainer(stream, [one], settings, config.out, opened.chat.device, metadata)
    done = trainer.run(resume=True)
    return config.out / "dictionaries" / one.name, done[one.name]


def take_crosscoder(path: Path, opened: Opened) -> Dictionary:
    """A crosscoder that exists.

    Raises:
        InputError: a dictionary of other widths, or of one source.
    """
    from saeworks.dictionaries.formats import load

    found = load(path, str(opened.chat.device))
    widths = (opened.base.site(opened.site).width, opened.chat.site(opened.site).width)
    if found.cfg.sources is None or found.cfg.widths != widths:
        kind = f"a crosscoder over widths {list(found.cfg.widths)}" if found.cfg.sources else "no crosscoder"
        raise InputError(
            f"The dictionary '{path}' is {kind}, but a diff at '{opened.site}' needs one over both models, of widths "
            f"{list(widths)}; give another, or leave --dictionary out to train one."
        )
    return found


def _length(config: DiffConfig, model: LanguageModel) -> int:
    return min(config.context_length, model.max_context) if model.max_context else config.context_length
