"""What a linear probe reads from single latents of pooled texts, and what it says without them.

A latent i adds f_i d_i to every token, so it adds f̄_i d_i to the mean over tokens (f̄ the mean of its activations), and
f̄_i (w·d_i) to the log-odds of a probe with weights w. Removing latents from the activations, with the reconstruction
error kept, therefore subtracts these terms and nothing else: no decoding, no second pass over the texts. It is exact
for every dictionary whose decoder is linear, TopK too, because the latents are those of the untouched activations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saeworks.evals.probes.linear_probes import Mode, Rows


def mean_differences(latents: Tensor, groups: Sequence[Rows]) -> Tensor:
    """[group, latent]: mean of ``latents`` [text, latent] over a group's positives minus that over its negatives."""
    signs = latents.new_zeros(len(groups), len(latents))
    for row, group in zip(signs, groups, strict=True):
        positives = float(group.labels.sum())
        share = torch.where(group.labels > 0.5, 1 / positives, -1 / (len(group) - positives))
        # A text may be there twice: its shares add up.
        row.index_add_(0, group.rows, share.to(row))
    return signs @ latents


def effects(differences: Tensor, weights: Tensor, directions: Tensor) -> Tensor:
    """[..., latent]: by how much each latent tells a probe's classes apart, δ_i (w·d_i).

    Args:
        differences: [..., latent], δ. weights: [..., d], the probe's w. directions: [latent, d], rows of ``W_dec``.

    The same for any scale of latents and directions (f_i s, d_i / s).
    """
    return differences * (weights @ directions.T)


def select_latents(effects: Tensor, n: int, mode: Mode) -> Tensor:
    """The latents with the largest ``effects`` [latent], largest first; equals in order of their number.

    ``corrected``: at most n of those with a positive effect. ``compat``: as many as n and the number of nonzero effects
    allow, whatever their sign; when positive effects run out, latents with no effect are taken before negative ones.
    """
    count = int((effects > 0).sum() if mode == "corrected" else (effects != 0).sum())
    return effects.sort(descending=True, stable=True).indices[: min(n, count)]


def logits_without(logits: Tensor, latents: Tensor, readout: Tensor, chosen: Tensor, n_values: Sequence[int]) -> Tensor:
    """[n, probe, text]: log-odds after removing the first n of the ``chosen`` latents from pooled activations.

    Args:
        logits: [probe, text] before. latents: [text, latent] pooled. readout: [probe, latent], w·d_i.
        chosen: latents in the order of removal. n_values: how many of them; more than there are means all.
    """
    order = sorted(range(len(n_values)), key=lambda i: n_values[i])
    out = logits.new_zeros(len(n_values), *logits.shape)
    current, done = logits, 0
    for i in order:
        part = chosen[done : n_values[i]]
        if len(part):
            current = current - readout[:, part] @ latents[:, part].T
            done += len(part)
        out[i] = current
    return out
