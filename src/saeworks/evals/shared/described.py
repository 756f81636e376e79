"""The result of one dictionary in one eval: what was measured, with everything that says of what and by which rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from saeworks.evals.shared.batches import DictionaryLike, config_of, fingerprint_of, metadata_of
from saeworks.results.envelope import Metrics, Result, provenance


def result_of(
    name: str,
    dictionary: DictionaryLike,
    config: BaseModel | Mapping[str, Any],
    hashes: Mapping[str, str],
    *,
    eval_type: str,
    definition: str,
    metrics: Metrics,
    details: list[dict[str, Any]],
    n: int,
    ci95: dict[str, tuple[float, float] | None],
    unstructured: Any = None,
) -> Result:
    """The envelope around what an eval measured of a dictionary.

    Args:
        name: of the dictionary. config: of the eval, or its plain values; has ``seeds`` or ``seed``.
        hashes: of model and data. eval_type, definition: which eval, and which version of its definitions.
        metrics, details, unstructured: what was measured. n: tokens, texts or items it stands on. ci95: its intervals.
    """
    settings = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
    return Result(
        eval_type_id=eval_type,
        eval_config=settings,
        eval_result_metrics=metrics,
        eval_result_details=details,
        eval_result_unstructured=unstructured,
        sae_lens_id=name,
        sae_lens_release_id=str(metadata_of(dictionary).get("release") or "saeworks"),
        sae_cfg_dict=config_of(dictionary),
        seed=settings["seeds"][0] if "seeds" in settings else settings["seed"],
        n=n,
        ci95=ci95,
        provenance=provenance(dictionary=fingerprint_of(dictionary), **hashes),
        definition_id=definition,
    )
