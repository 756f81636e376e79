"""The inference threshold of BatchTopK dictionaries, measured rather than averaged.

A moving average of per-batch thresholds is biased for small batches and lags behind moving weights. Here the
threshold is the exact quantile on tokens drawn after training, through the path and dtype of inference: half-way
between the (tokens * k)-th and the next largest pre-activation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.dictionaries.verify import measure


@torch.no_grad()
def calibrated_threshold(
    dictionary: Dictionary,
    activations: Tensor,
    k: float,
    batch: int = 4096,
    weights: Tensor | None = None,
    latents: slice = slice(None),
) -> float:
    """Threshold with ``k`` active latents per token on ``activations [token, d_in]`` (raw units).

    ``weights [d_sae]`` multiply the pre-activations; the result is then a threshold of the weighted ones. ``latents``
    are those that are selected from, with a weight each.
    """
    wanted = round(k * activations.shape[0])
    kept = torch.zeros(0)
    floor = 0.0
    for start in range(0, activations.shape[0], batch):
        x = dictionary.flat(activations[start : start + batch].to(dictionary.device))
        z = dictionary.pre_activations(x)[:, latents]
        z = (z if weights is None else z * weights).flatten()
        kept = torch.cat([kept, z[z > floor].float().cpu()])
        if kept.numel() > 4 * (wanted + 1):  # everything below the (wanted + 1)-th so far can no longer matter
            kept = kept.topk(wanted + 1, sorted=False).values
            floor = float(kept.min())
    if kept.numel() <= wanted:
        return 0.0  # fewer positives than wanted: plain ReLU is already sparser than k
    top = kept.topk(wanted + 1).values.double()
    return float((top[wanted - 1] + top[wanted]) / 2)


@torch.no_grad()
def calibrate(dictionary: Dictionary, activations: Tensor, targets: Tensor | None = None) -> Dictionary:
    """The dictionary with its threshold calibrated (BatchTopK) and its L0 and explained variance recorded.

    The threshold is measured on the first half of ``activations [token, d_in]``, the recorded values on the second,
    for a transcoder with ``targets [token, d_out]``. Learned thresholds stay as they are. Where latents were selected
    by scores weighted with the norms of their directions, each has a threshold of its own; one factor brings them all
    to ``k``, and the numbers recorded are those of the median latent. Sets of latents that were selected from by
    themselves (``budgets``) have a factor, a ``k`` and recorded numbers each.
    """
    half = activations.shape[0] // 2
    metadata = dictionary.cfg.metadata
    if dictionary.threshold is not None and metadata.get("threshold_source") == "moving_average":
        sets = metadata.get("budgets") or [{"latents": dictionary.cfg.d_sae, "k": metadata["k"]}]
        thresholds, before, after = [], [], []
        start = 0
        for one in sets:
            part = slice(start, start + one["latents"])
            middle, threshold, relative = _of_set(dictionary, activations[:half], one["k"], part)
            thresholds.append(threshold * relative)
            before.append(middle)
            after.append(threshold)
            start = part.stop
        dictionary = dictionary.replace(
            threshold=torch.cat(thresholds),
            metadata={
                "threshold_source": "calibrated",
                "threshold_moving_average": before if len(sets) > 1 else before[0],
                "threshold_calibrated": after if len(sets) > 1 else after[0],
            },
        )
    held_out = None if targets is None else targets[half:]
    return dictionary.replace(metadata={"recorded": measure(dictionary, activations[half:], held_out)})


def _of_set(dictionary: Dictionary, activations: Tensor, k: float, latents: slice) -> tuple[float, float, Tensor]:
    """The median threshold of some latents, what it has to be for ``k`` of them per token, and each over the median.

    The last are 1 throughout but for weighted scores, or when nothing was ever selected.
    """
    assert dictionary.threshold is not None
    before = dictionary.threshold[latents]
    middle = before.median()
    relative = before / middle if bool(middle > 0) else torch.ones_like(before)
    weights = 1 / relative if bool((relative != 1).any()) else None
    return float(middle), calibrated_threshold(dictionary, activations, k, weights=weights, latents=latents), relative
