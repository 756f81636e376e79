"""Probe a language model's activations for the tendency that its stored answers have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from saeworks.errors import InputError
from saeworks.faithfulness.bias_probes import BiasProbes, ProbeSettings, probe_biases, template_biases
from saeworks.faithfulness.prompt_activations import prompt_activations
from saeworks.faithfulness.tasks.iphr_prompts import subject_prompt
from saeworks.jobs import cot
from saeworks.models.language_model import load_language_model
from saeworks.results.envelope import Result, provenance


def cot_probe(
    path: Path,
    model: str,
    sites: Sequence[str],
    positions: Sequence[str] = ("last",),
    *,
    answers_of: str | None = None,
    prompt: str = "cot",
    selection: cot.Selection | None = None,
    settings: ProbeSettings | None = None,
    device: str = "auto",
    dtype: str = "float32",
    batch_size: int = 32,
    out: Path | None = None,
) -> Result:
    """Probes for every site and position.

    Args:
        path: stored answers, as ``cot score`` reads them. model: whose activations are read.
        sites, positions: see :func:`saeworks.faithfulness.prompt_activations.prompt_activations`; no sites stand for
            the residual stream after every layer and before the first.
        answers_of: the model whose answers give the bias, needed where several are stored.
        prompt: how the questions were put: ``cot``, ``cot-paragraph`` or ``plain``. out: directory for the result.

    Raises:
        InputError: answers of several models, fewer than three properties, or sites and positions that do not exist.
    """
    chosen = settings or ProbeSettings()
    done = cot.score(Path(path), selection=selection)
    names = done.scored.models
    if answers_of is None and len(names) > 1:
        shown = ", ".join(f"'{name}'" for name in names)
        raise InputError(f"'{path}' holds answers of {shown}; say whose tendency is probed, with --answers-of.")
    subject = answers_of or names[0]
    biases = template_biases(done.scored, subject)
    questions = [c.question for group in done.scored.of(subject) if group.scored for c in group.counts]
    texts = [subject_prompt(question.text, prompt) for question in questions]
    read = load_language_model(model, device, dtype)
    places = list(sites) or _residual(read.n_layers)
    activations = prompt_activations(read, texts, places, positions, batch_size=batch_size)
    found = probe_biases(activations, [question.template for question in questions], biases, chosen)
    result = _result(found, chosen, subject, model, prompt, read.fingerprint(), done.study.fingerprint())
    if out is not None:
        result.write(out)
    return result


def _residual(layers: int) -> list[str]:
    return ["layers.0.resid_pre", *(f"layers.{layer}.resid_post" for layer in range(layers))]


def _result(
    found: BiasProbes, chosen: ProbeSettings, subject: str, model: str, prompt: str, weights: str, answers: str
) -> Result:
    best = found.best
    return Result(
        eval_type_id="cot_bias_probes",
        eval_config={**asdict(chosen), "model": model, "prompt": prompt},
        eval_result_metrics={
            "probe": {"best_fvu": best.fvu, "best_p": best.p_best, "variance": found.variance},
            "controls": {"mean": found.fvu_mean, "comparison": found.fvu_comparison, "shuffled": best.fvu_shuffled},
            "data": {"templates": found.templates, "properties": found.families, "questions": found.questions},
        },
        eval_result_details=[asdict(probe) for probe in found.probes],
        eval_result_unstructured={"best": best.name},
        sae_lens_id=subject,
        sae_lens_release_id="cot",
        seed=chosen.seed,
        n=found.templates,
        provenance=provenance(language_model=weights, stored_answers=answers),
        definition_id="cot_bias_probes/1",
    )
