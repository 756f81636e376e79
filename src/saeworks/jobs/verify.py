"""Is a dictionary what its files claim? The weights are looked at, and what it does at its site is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeworks.errors import InputError
from saeworks.jobs.convert import known, summary

if TYPE_CHECKING:
    import torch

    from saeworks.dictionaries.dictionary import Dictionary
    from saeworks.models.language_model import LanguageModel

# Another site is the better guess when it is explained better by this much.
CLEARLY_BETTER = 0.1
# More active latents than this share are no sparse code: a bias, a scale or a threshold got lost.
DENSE = 0.25


@dataclass(frozen=True)
class Reading:
    """What a dictionary was measured on: the texts, and how they were cut."""

    data: tuple[str, ...] = ("world",)
    text_column: str = "text"
    tokens: int = 4096
    context_length: int = 128
    batch_size: int = 16
    seed: int = 0
    dtype: str = "float32"


def verify(
    path: str,
    sae_id: str | None = None,
    format: str | None = None,
    hints: Mapping[str, Any] | None = None,
    model: str | None = None,
    reading: Reading | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Check a dictionary against its own claims.

    Without ``model`` the one that the files name is taken; where none is named, only the weights are looked at, which
    is said in ``notes``. The sites near the one claimed are measured too: a dictionary that explains a neighbour better
    was made for that one, or is read in another scale.

    Returns:
        ``{"path", "format", "ok", "problems", "notes", "dictionary", "decoder_norm", "measured", "recorded", "claimed",
        "sites"}``: ``problems`` are sentences, ``measured`` is ``{"l0", "explained_variance", "tokens", "data"}`` or
        None, ``claimed`` what the publisher says, ``recorded`` what was measured when we saved it, ``sites`` the
        explained variance at every site that was tried.

    Raises:
        InputError: what cannot be read, or a model or text that cannot.
    """
    from saeworks.dictionaries.formats import load

    if reading is not None and reading.tokens < 1:
        raise InputError(f"tokens is {reading.tokens}; at least 1 is needed to measure on.")
    dictionary = load(path, str(_device(device)), sae_id=sae_id, format=format, hints=known(hints))
    told = dictionary.verify()
    report: dict[str, Any] = {
        "path": path if sae_id is None else f"{path}:{sae_id}",
        "format": dictionary.cfg.metadata.get("format", "saeworks"),
        "ok": True,
        "problems": list(told["problems"]),
        "notes": [],
        "dictionary": summary(dictionary),
        "decoder_norm": told["decoder_norm"],
        "measured": None,
        "recorded": told["recorded"],
        "claimed": dictionary.cfg.metadata.get("claimed"),
        "sites": {},
    }
    name = model or dictionary.cfg.metadata.get("model_name")
    reads, target = _sites(dictionary)
    if not name or not reads:
        lacking = "a model" if not name else "a site"
        report["notes"].append(
            f"Only the weights were looked at: the files name no {lacking[2:]}; give one with --{lacking[2:]}."
        )
    else:
        _measure(dictionary, report, str(name), reads, target, reading or Reading(), device)
    report["ok"] = not report["problems"]
    return report


def _measure(
    dictionary: Dictionary,
    report: dict[str, Any],
    name: str,
    reads: Sequence[str],
    target: str | None,
    reading: Reading,
    device: str,
) -> None:
    """Fill in what is measured, and the problems it shows."""
    from saeworks.models.language_model import load_language_model
    from saeworks.world.model_files import NAMES

    model = load_language_model(name, device=device, dtype=reading.dtype)
    given = [model.site(site) for site in reads]
    if sum(site.width for site in given) != dictionary.cfg.d_in:
        shown = ", ".join(f"{site.name} ({site.width})" for site in given)
        raise InputError(
            f"The dictionary reads activations of width {dictionary.cfg.d_in}, but '{name}' has {shown}; "
            "give the model and the site it was made for with --model and --site."
        )
    near = _neighbours(model, given[0].name) if len(given) == 1 and target is None else []
    x, others = _activations(model, [site.name for site in given], near, target, reading)
    told = dictionary.verify(x.to(dictionary.device), None if target is None else others.pop(target))
    report["measured"] = {**told["measured"], "data": list(reading.data)}
    report["problems"] = list(told["problems"])
    simple = reading.data == ("world",) and name not in NAMES
    if simple:
        report["notes"].append(
            "Measured on texts of the embedded world, which are simpler than what it was made for; "
            "give texts like those of its training with --data."
        )
    site = "+".join(s.name for s in given)
    report["sites"] = {site: told["measured"]["explained_variance"]}
    report["sites"] |= {other: _explained(dictionary, rows) for other, rows in others.items()}
    report["problems"] += _doubts(dictionary, report, site, model)
    # Simple texts move both numbers, so that what a publisher measured on others cannot be held against them.
    report["notes" if simple else "problems"] += _against_claims(report)


def _doubts(dictionary: Dictionary, report: dict[str, Any], site: str, model: LanguageModel) -> list[str]:
    """What the measured numbers say against the files, besides what :meth:`Dictionary.verify` says."""
    found: list[str] = []
    l0, explained = report["measured"]["l0"], report["measured"]["explained_variance"]
    sites: dict[str, float] = report["sites"]
    best = max(sites, key=lambda name: sites[name])
    if best != site and sites[best] > explained + CLEARLY_BETTER:
        found.append(
            f"It explains '{best}' better ({sites[best]:.3f}) than '{site}', which it is said to read "
            f"({explained:.3f}): the site is wrong, or the scale."
        )
    if l0 > DENSE * dictionary.cfg.d_sae:
        found.append(
            f"{l0:,.0f} of {dictionary.cfg.d_sae:,} latents are active on an average token, which is no sparse code: "
            "a bias, a scale or a threshold is wrong."
        )
    trained_on = dictionary.cfg.metadata.get("model_fingerprint")
    if trained_on is not None and trained_on != model.fingerprint():
        found.append(f"It was trained on another model, or other weights, than '{model.name}' has.")
    return found


def _against_claims(report: dict[str, Any]) -> list[str]:
    """Where the measured numbers are far from the publisher's."""
    from saeworks.dictionaries.verify import EXPLAINED_VARIANCE_DROP, L0_FACTOR

    measured, claimed = report["measured"], report["claimed"] or {}
    found: list[str] = []
    wanted = claimed.get("l0")
    if wanted and not wanted / L0_FACTOR <= measured["l0"] <= wanted * L0_FACTOR:
        found.append(f"The L0 is {measured['l0']:.1f}, but {wanted:.1f} is claimed by its publisher.")
    wanted, explained = claimed.get("explained_variance"), measured["explained_variance"]
    if wanted is not None and explained < wanted - EXPLAINED_VARIANCE_DROP:
        found.append(f"The explained variance is {explained:.3f}, but {wanted:.3f} is claimed by its publisher.")
    return found


def _sites(dictionary: Dictionary) -> tuple[list[str], str | None]:
    """The sites a dictionary reads (none when its files do not say), and the one a transcoder predicts."""
    about, cfg = dictionary.cfg.metadata, dictionary.cfg
    if cfg.d_out is not None:
        target = about.get("site_out") or about.get("target_site")
        return ([str(about["site"])] if about.get("site") and target else []), target
    if cfg.sources is not None:
        # Sources are sites where one model was read; of several models no single one can be measured.
        return ([] if any(name.startswith("source_") for name in cfg.sources) else list(cfg.sources)), None
    return ([str(about["site"])] if about.get("site") else []), None


def _neighbours(model: LanguageModel, site: str) -> list[str]:
    """Sites of the same width nearby: other kinds in the same layer, the same kind up to two layers away."""
    place = model.site(site)
    kind = site.rpartition(".")[2]
    names = [f"layers.{place.layer + step}.{kind}" for step in (-2, -1, 1, 2)]
    names += [f"layers.{place.layer}.{other}" for other in ("resid_pre", "resid_post", "mlp_out", "attn_out")]
    there = set(model.sites())
    return [name for name in names if name in there and name != site and model.site(name).width == place.width]


def _activations(
    model: LanguageModel, reads: Sequence[str], near: Sequence[str], target: str | None, reading: Reading
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """``x [token, d_in]`` at the sites read, and ``[token, d]`` at every other, of the same tokens."""
    import torch

    from saeworks.activations.texts import open_texts
    from saeworks.evals.shared.batches import document_batches, harvest, kept_activations

    # Nothing is held out: a claim is checked, not how well something generalises. Of the world, what nobody trained on.
    local = any(Path(item).expanduser().exists() for item in reading.data)
    split = "all" if local else "validation" if reading.data[0].startswith("world") else "train"
    texts = open_texts(reading.data, text_column=reading.text_column, split=split, seed=reading.seed)
    others = [*near, *([target] if target else [])]
    found: dict[str, list[torch.Tensor]] = {name: [] for name in (*reads, *others)}
    documents = texts.documents()
    for batch in document_batches(model, documents, reading.context_length, reading.batch_size, reading.tokens):
        for name, activations in harvest(model, batch, list(found)).items():
            found[name].append(kept_activations(activations, batch).x.cpu())
    rows = {name: torch.cat(parts) for name, parts in found.items()}
    return torch.cat([rows[name] for name in reads], dim=1), {name: rows[name] for name in others}


def _explained(dictionary: Dictionary, x: torch.Tensor) -> float:
    from saeworks.dictionaries.verify import measure

    return measure(dictionary, x)["explained_variance"]


def _device(name: str) -> Any:
    from saeworks.runtime import resolve_device

    return resolve_device(name)
