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
    """The models, the site in both, and whether everything read is the embedded world's.

    ``refused`` is a sentence on transcripts that the template refuses, empty without any.
    """

    base: LanguageModel
    chat: LanguageModel
    site: str
    world: bool
    refused: str = ""


def open_pair(config: DiffConfig) -> Opened:
    """Load both models and resolve the site; refuses pairs that cannot be compared before anything is written."""
    from saeworks.diffing.tokenizers import check_models
    from saeworks.diffing.transcripts import check_transcripts
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
    refused = ""
    if transcripts_of(config) is not None:
        if chat.max_context is not None and config.presets == "full" and config.answer_tokens >= chat.max_context:
            raise InputError(
                f"answer_tokens is {config.answer_tokens}, which leaves no room for a request in the chat model's "
                f"context of {chat.max_context}; give fewer."
            )
        refused = check_transcripts(chat.tokenizer, _transcripts(config, "all"))
    next(open_source(config, "all" if _files(config) else "train").documents(0, 1), None)
    world = is_world(config) and config.base in NAMES and config.chat in NAMES and transcripts_of(config) == "world"
    return Opened(base, chat, site, world, refused)


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
    """The transcripts of a split; None where there are none, and all of a file too small to hold any out."""
    if transcripts_of(config) is None:
        return None
    if split == "validation" and not _any_held_out(config):
        return _transcripts(config, "all")
    return _transcripts(config, split)


def notes(config: DiffConfig, opened: Opened) -> list[str]:
    """What a reader of the results has to know of the data, one sentence each."""
    found = [opened.refused] if opened.refused else []
    if held_out(config)[1]:
        found.append("The texts are too few to hold any out: latents were measured on those of training.")
    if transcripts_of(config) is None:
        found.append(
            "No transcripts were given (--transcripts): only plain texts were compared, density_chat is empty, and "
            "nothing was patched or steered."
        )
    elif not _any_held_out(config):
        found.append("The transcripts are too few to hold any out: latents were measured and patched on all of them.")
    return found


def _transcripts(config: DiffConfig, split: str) -> TextSource:
    from saeworks.diffing.transcripts import open_transcripts

    name = transcripts_of(config) or ""
    if split == "all" and name in ("world", "world:chat"):
        split = "train"
    return open_transcripts(name, config.messages_column, split, config.seed)


def _any_held_out(config: DiffConfig) -> bool:
    return next(_transcripts(config, "validation").documents(0, 1), None) is not None


def _files(config: DiffConfig) -> bool:
    return not is_world(config) and all(Path(item).expanduser().exists() for item in config.data)


def conversations(config: DiffConfig, split: str = "validation") -> list[list[Message]]:
    """The first conversations of a split, as messages; none where there are no transcripts."""
    from saeworks.diffing.transcripts import messages_of

    source = conversations_source(config, split)
    if source is None:
        return []
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
        InputError: a dictionary of other widths or sources, or one that says it was trained on other models or at
            another site.
    """
    from saeworks.dictionaries.formats import load
    from saeworks.diffing.paired_batches import SOURCES

    found = load(path, str(opened.chat.device))
    widths = (opened.base.site(opened.site).width, opened.chat.site(opened.site).width)
    if found.cfg.sources is None or found.cfg.widths != widths:
        kind = f"a crosscoder over widths {list(found.cfg.widths)}" if found.cfg.sources else "no crosscoder"
        raise InputError(
            f"The dictionary '{path}' is {kind}, but a diff at '{opened.site}' needs one over both models, of widths "
            f"{list(widths)}; give another, or leave --dictionary out to train one."
        )
    if found.cfg.sources != SOURCES:
        raise InputError(
            f"The sources of the dictionary '{path}' are {', '.join(found.cfg.sources)}, but a diff needs base and "
            "chat, in this order; give a crosscoder over the two models."
        )
    here = {
        "site": opened.site,
        "base_model_fingerprint": opened.base.fingerprint(),
        "model_fingerprint": opened.chat.fingerprint(),
    }
    for key, value in here.items():
        said = found.cfg.metadata.get(key)
        if said is not None and said != value:
            what = {"site": "at another site", "model_fingerprint": "on another chat model"}
            raise InputError(
                f"The dictionary '{path}' was trained {what.get(key, 'on another base model')}: its {key} is {said}, "
                f"but here it is {value}; name the models and the site that it was trained on."
            )
    return found


def _length(config: DiffConfig, model: LanguageModel) -> int:
    return min(config.context_length, model.max_context) if model.max_context else config.context_length
