"""Opening what a job reads: the language model, the site, the texts, the stream of activations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeworks.errors import InputError
from saeworks.jobs.config import Inputs
from saeworks.version import __version__

if TYPE_CHECKING:
    from saeworks.activations.streams import Stream
    from saeworks.activations.texts import TextSource
    from saeworks.jobs.config import RunConfig
    from saeworks.models.language_model import LanguageModel
    from saeworks.training.ranks import Ranks

# The site of the embedded models that the default run reads: late enough for concepts, early enough to be used.
WORLD_SITE = "layers.2.resid_post"


@dataclass(frozen=True)
class Activations:
    """What a run trains on: ``site`` is the canonical name, or several separated by commas.

    ``model`` is None when the activations come from a store; ``metadata`` describes them.
    """

    stream: Stream
    site: str
    model: LanguageModel | None
    metadata: dict[str, Any]


def open_model(config: Inputs, name: str | None = None) -> LanguageModel:
    """Load the language model ``name`` (default: the configuration's) on the configured device."""
    from saeworks.models.language_model import load_language_model

    return load_language_model(name or config.model, device=config.device, dtype=config.dtype)


def choose_site(model: LanguageModel, name: str | None) -> str:
    """Canonical name of the site ``name``; without one, the world's own or the middle layer's residual stream."""
    from saeworks.world.model_files import NAMES

    if name is None:
        name = WORLD_SITE if model.name in NAMES else f"layers.{model.n_layers // 2}.resid_post"
    return model.site(name).name


def named(sites: str | None) -> tuple[str, ...]:
    """The names in a comma-separated list; none of None."""
    return tuple(name for part in (sites or "").split(",") if (name := part.strip()))


def open_source(config: Inputs, split: str = "train") -> TextSource:
    """The configured texts; see :func:`saeworks.activations.texts.open_texts` for what ``split`` means."""
    from saeworks.activations.texts import open_texts

    return open_texts(
        config.data,
        text_column=config.text_column,
        label_column=config.label_column,
        split=split,
        seed=config.seed,
    )


def is_store(config: Inputs) -> bool:
    """Whether ``data`` names one activation store, as ``saeworks cache`` writes them."""
    return len(config.data) == 1 and (Path(config.data[0]) / "manifest.json").is_file()


def open_activations(config: RunConfig, ranks: Ranks | None = None) -> Activations:
    """The stream of shuffled activations that a run trains on: live from the model over texts, or from a store.

    Of several ``ranks``, each runs the model on a part of the text; all get the same stream.
    """
    return _stored(config) if is_store(config) else _live(config, ranks)


def _live(config: RunConfig, ranks: Ranks | None) -> Activations:
    from saeworks.activations.streams import LiveStream
    from saeworks.training.ranks import ALONE
    from saeworks.training.sharing import shared

    model = open_model(config)
    sites = [choose_site(model, name) for name in named(config.site) or (None,)]
    targets = [choose_site(model, name) for name in named(config.target_site)]
    site = ",".join(sites)
    stream = LiveStream(
        shared(model, ranks or ALONE),
        open_source(config),
        sites if len(sites) > 1 else site,
        context_length=config.context_length,
        buffer_tokens=config.buffer_tokens,
        harvest_batch_size=config.harvest_batch_size,
        seed=config.seed,
        target=targets if len(targets) > 1 else targets[0] if targets else None,
    )
    metadata = _metadata(config, site, config.model, model.fingerprint(), model.revision)
    if targets:
        metadata["target_site"] = ",".join(targets)
    return Activations(stream, site, model, metadata)


def _stored(config: RunConfig) -> Activations:
    from saeworks.activations.streams import StoredStream
    from saeworks.runtime import resolve_device

    stream = StoredStream(config.data[0], seed=config.seed, device=resolve_device(config.device))
    manifest = stream.store.manifest
    site = stream.store.site
    if config.target_site is not None:
        raise InputError(
            f"--target-site '{config.target_site}' was asked for, but the store '{config.data[0]}' holds one site; "
            "give texts with --data instead."
        )
    if config.site is not None and config.site != site:
        raise InputError(
            f"--site '{config.site}' was asked for, but the store '{config.data[0]}' holds activations of '{site}'; "
            "leave --site out, or cache the other site."
        )
    origin: dict[str, Any] = manifest.get("config", {})
    model_name = str(origin.get("model", config.model))
    return Activations(stream, site, None, _metadata(config, site, model_name, origin.get("model_fingerprint"), None))


def _metadata(
    config: RunConfig, site: str, model: str, fingerprint: str | None, revision: str | None
) -> dict[str, Any]:
    return {
        # A relative path would mean another directory, or none, when the dictionary is measured from elsewhere.
        "model_name": str(Path(model).resolve()) if Path(model).is_dir() else model,
        "model_fingerprint": fingerprint,
        "model_revision": revision,
        "site": site,
        "data": list(config.data),
        "context_length": config.context_length,
        "saeworks_version": __version__,
    }
