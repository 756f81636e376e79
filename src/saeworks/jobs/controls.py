"""The controls of a measurement: which ones a set of dictionaries calls for, and making them when they are needed.

There is one ``identity``, ``pca`` and ``oracle`` for every site, one ``random_directions`` for every width and sparsity
at a site, and one ``permuted_decoder`` for every dictionary. All are functions of seed, language model and texts: what
an earlier call made of the same is not made again, and ``controls.json`` keeps the content hashes that say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from saeworks.errors import InputError
from saeworks.files import read_json, sha256_json, write_json
from saeworks.jobs.config import BenchConfig, EvaluateConfig
from saeworks.jobs.eval_data import is_world
from saeworks.jobs.inputs import open_source

if TYPE_CHECKING:
    from torch import Tensor

    from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
    from saeworks.evals.shared.batches import DictionaryLike
    from saeworks.models.language_model import LanguageModel
    from saeworks.world.documents import Document

#: Tokens of the texts that a basis and a scale are estimated on.
SAMPLE_TOKENS = 65_536
#: L0s that differ by no more than this factor have the same random directions for a floor.
SAME_SPARSITY = 1.25
#: Part of what a control is made from: a change of how it is made is another control.
VERSION = 1
#: The part of the data that controls are made from; evals read others.
SPLIT = "train"


class Described(Protocol):
    """A dictionary, or what is known of it before it is loaded."""

    @property
    def cfg(self) -> DictionaryConfig: ...
    @property
    def fingerprint(self) -> Any: ...


@dataclass(frozen=True)
class Plan:
    """One control: its ``kind``, its ``site``, how many latents it has and how many are active (``k``; None: no limit),
    the dictionary that it degrades, and why it cannot be made, where it cannot."""

    name: str
    kind: str
    site: str
    d_in: int
    width: int
    k: int | None = None
    of: str | None = None
    architecture: str = ""
    reason: str | None = None

    def described(self) -> dict[str, Any]:
        """What a result says of it in place of a dictionary's config."""
        metadata = {"control": self.kind, "site": self.site, "k": self.k, "of": self.of, "recipe": self.architecture}
        return {
            "architecture": self.architecture,
            "d_in": self.d_in,
            "d_sae": self.width or None,
            "metadata": {key: value for key, value in metadata.items() if value is not None},
        }


class Controls:
    """The controls that ``config`` asks for beside ``dictionaries`` (name → what is known of it).

    Args:
        site: where all dictionaries are measured; None: each where it was trained. folder: where what is costly to make
            is kept. load: the dictionary of a name.
    """

    def __init__(
        self,
        config: EvaluateConfig | BenchConfig,
        dictionaries: Mapping[str, Described],
        model: LanguageModel,
        site: str | None,
        folder: Path,
        load: Callable[[str], Dictionary],
    ) -> None:
        self.config, self.model, self.folder, self._load = config, model, folder, load
        self._dictionaries = dictionaries
        self._samples: dict[str, Tensor] = {}
        self._made_from: dict[str, str] = {}
        self._known: dict[str, dict[str, str]] = {}
        with suppress(InputError):  # without a record, or with a damaged one, controls are made anew
            self._known = _record(read_json(folder / "controls.json"))
        self.plans = {plan.name: plan for plan in self._planned(site)}
        if taken := sorted(set(self.plans) & set(dictionaries)):
            raise InputError(f"A dictionary is called '{taken[0]}', which is the name of a control; rename it.")

    def why_not(self, name: str, eval_name: str) -> str | None:
        """Why a control is not measured with an eval; None where it is."""
        from saeworks.evals.controls import why_not_measured

        return self.plans[name].reason or why_not_measured(self.plans[name].kind, eval_name)

    def fingerprint(self, name: str) -> str:
        """Content hash of a control; it is made to find out, unless an earlier call did that."""
        from saeworks.evals.shared.batches import fingerprint_of

        return self.recorded(name) or fingerprint_of(self.make(name))

    def recorded(self, name: str) -> str | None:
        """Content hash of a control that an earlier call made of the same; None where it is not known."""
        known = self._known.get(name, {})
        return known.get("fingerprint") if known.get("made_from") == self._inputs(name) else None

    def make(self, name: str) -> DictionaryLike:
        """The control itself, on the configured device. ``InputError`` where the texts do not do for it."""
        from saeworks.evals.shared.batches import fingerprint_of

        plan, inputs = self.plans[name], self._inputs(name)
        control = self._kept(name, inputs) or self._fresh(plan)
        if self._known.get(name, {}).get("made_from") != inputs:
            if plan.kind == "oracle":
                cast("Dictionary", control).save(self.folder / name)
            self._known[name] = {"made_from": inputs, "fingerprint": fingerprint_of(control)}
            write_json(self.folder / "controls.json", self._known)
        return control

    def _planned(self, site: str | None) -> list[Plan]:
        """Every control once, in the order of their kinds."""
        found: dict[str, Plan] = {}
        places: dict[str, int] = {}
        at: dict[str, str] = {}
        for name, dictionary in self._dictionaries.items():
            where = site or dictionary.cfg.metadata.get("site")
            with suppress(InputError):  # where the model has no such site, no eval can measure the dictionary either
                if where:
                    at[name] = self.model.site(str(where)).name
                    places[at[name]] = dictionary.cfg.d_in
        for kind in dict.fromkeys(self.config.controls):
            for plan in self._of_kind(kind, at, places):
                found.setdefault(plan.name, plan)
        return list(found.values())

    def _of_kind(self, kind: str, at: Mapping[str, str], places: Mapping[str, int]) -> list[Plan]:
        # A name says the site only where there are several: result files are told apart by content hashes anyway.
        end = {site: f"_at_{site}" if len(places) > 1 else "" for site in places}
        if kind in ("identity", "pca"):
            return [Plan(f"control_{kind}{end[s]}", kind, s, d, d, architecture=kind) for s, d in places.items()]
        if kind == "oracle":
            reason = self._why_no_oracle()
            return [
                Plan(f"control_oracle{end[s]}", kind, s, d, 0, architecture="jumprelu", reason=reason)
                for s, d in places.items()
            ]
        if kind == "permuted_decoder":
            return [self._permuted(name, where) for name, where in at.items()]
        plans: list[Plan] = []
        for name, where in at.items():
            cfg, l0 = self._dictionaries[name].cfg, self._l0(name)
            same = [p for p in plans if (p.site, p.width) == (where, cfg.d_sae) and _alike(p.k or 1, l0)]
            if same and (cfg.k is None or same[0].k == cfg.k):
                continue
            k = max(1, min(round(l0), cfg.d_sae))
            label = f"control_random_directions_n{cfg.d_sae}_k{k}{end[where]}"
            plans.append(Plan(label, kind, where, cfg.d_in, cfg.d_sae, k, architecture="topk"))
        return plans

    def _permuted(self, name: str, site: str) -> Plan:
        cfg = self._dictionaries[name].cfg
        architecture = str(cfg.metadata.get("recipe") or cfg.architecture)
        k = cfg.metadata.get("k") or cfg.k
        label = f"control_permuted_decoder_{name}"
        return Plan(label, "permuted_decoder", site, cfg.d_in, cfg.d_sae, k, name, architecture)

    def _l0(self, name: str) -> float:
        """How many latents of a dictionary are active: its k, else what was recorded, else measured on a sample."""
        cfg = self._dictionaries[name].cfg
        recorded = (cfg.metadata.get("recorded") or {}).get("l0")
        for value in (cfg.k, cfg.metadata.get("k"), recorded):
            if isinstance(value, (int, float)) and value > 0:
                return float(value)
        x = self._sample(str(cfg.metadata.get("site") or self.config.site))[:4096]
        dictionary = self._load(name)
        f = dictionary.encode(x.to(device=dictionary.W_dec.device, dtype=dictionary.W_dec.dtype))
        return max(float((f != 0).sum(-1).float().mean()), 1.0)

    def _why_no_oracle(self) -> str | None:
        if not is_world(self.config):
            return "an oracle needs texts whose concepts are known, and only those of the embedded world are"
        return None

    def _inputs(self, name: str) -> str:
        """Hash of all that a control is a function of."""
        if name not in self._made_from:
            plan = self.plans[name]
            parts: dict[str, Any] = {"version": VERSION, "kind": plan.kind, "site": plan.site, "d_in": plan.d_in}
            if plan.kind == "permuted_decoder":
                found = self._dictionaries[plan.of or ""].fingerprint
                parts |= {"of": found() if callable(found) else found, "seed": self.config.seed}
            elif plan.kind != "identity":
                parts |= {
                    "model": self.model.fingerprint(),
                    "dtype": str(self.model.dtype),
                    "data": open_source(self.config, SPLIT).fingerprint(),
                    "texts": self.config.control_texts,
                    "context_length": self.config.context_length,
                    "width": plan.width,
                    "k": plan.k,
                    "seed": self.config.seed,
                }
            self._made_from[name] = sha256_json(parts)
        return self._made_from[name]

    def _kept(self, name: str, inputs: str) -> DictionaryLike | None:
        """What an earlier call saved of the same inputs."""
        from saeworks.dictionaries.formats import load
        from saeworks.runtime import resolve_device

        if self._known.get(name, {}).get("made_from") != inputs or not (self.folder / name / "cfg.json").is_file():
            return None
        return load(self.folder / name, str(resolve_device(self.config.device)))

    def _fresh(self, plan: Plan) -> DictionaryLike:
        from saeworks.evals import controls
        from saeworks.evals.oracle import oracle
        from saeworks.runtime import resolve_device

        device, seed = resolve_device(self.config.device), self.config.seed
        if plan.kind == "identity":
            return controls.identity(plan.d_in, plan.site, device)
        if plan.kind == "permuted_decoder":
            changed = controls.permuted_decoder(self._load(plan.of or ""), seed)
            return changed.replace(metadata={"of": plan.of, "site": plan.site})
        if plan.kind == "oracle":
            length, rows = self.config.context_length, self.config.harvest_batch_size
            made = oracle(self.model, plan.site, self._annotated(), seed=seed, context_length=length, batch_size=rows)
            return made.to(device)
        sample = self._sample(plan.site).to(device)
        if plan.kind == "pca":
            return controls.pca(sample, site=plan.site)
        return controls.random_directions(sample, plan.width, plan.k or 1, seed, plan.site)

    def _annotated(self) -> Iterator[Document]:
        """The texts of an oracle: evals that bring their own read the whole world, whatever domain was named."""
        from saeworks.world import corpus

        count = self.config.control_texts
        yield from corpus.documents(None, SPLIT, seed=self.config.seed, count=count)
        if set(self.config.data) != {"world"}:
            yield from islice(open_source(self.config, SPLIT).documents(), count)

    def _sample(self, site: str) -> Tensor:
        """Activations [token, d] of training texts at a site, read once."""
        import torch

        from saeworks.evals.shared.batches import document_batches, harvest, kept_activations

        if site not in self._samples:
            texts = islice(open_source(self.config, SPLIT).documents(), self.config.control_texts)
            length, rows = self.config.context_length, self.config.harvest_batch_size
            with torch.no_grad():
                parts = [
                    kept_activations(harvest(self.model, batch, [site])[site], batch).x.cpu()
                    for batch in document_batches(self.model, texts, length, rows, SAMPLE_TOKENS)
                ]
            self._samples[site] = torch.cat(parts)
        return self._samples[site]


def _record(value: Any) -> dict[str, dict[str, str]]:
    given = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    return {name: entry for name, entry in given.items() if isinstance(entry, dict)}


def _alike(a: float, b: float) -> bool:
    return 1 / SAME_SPARSITY <= a / b <= SAME_SPARSITY
