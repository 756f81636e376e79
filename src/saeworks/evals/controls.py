"""Dictionaries that nobody trained: the floor and the ceiling against which scores are read.

``identity`` passes activations through (ceiling of fidelity, no sparsity); ``pca`` is the best linear basis;
``random_directions`` has unit Gaussian directions under a TopK (floor of dictionaries of its size and sparsity);
``permuted_decoder`` keeps a dictionary's encoder and shuffles its decoder rows (floor of fidelity at the same codes).
The ceiling of everything that is about concepts is :func:`saeworks.evals.oracle.oracle`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from saeworks.dictionaries.dictionary import Dictionary, DictionaryConfig
from saeworks.errors import InputError
from saeworks.runtime import generator

#: Evals that read which latents fire and how strongly, and nothing of the decoder.
_CODES_ALONE = ("sparse_probing", "latents", "autointerp")


@dataclass(frozen=True)
class ControlConfig:
    """What a control says of itself: the fields of a dictionary's config that evals read."""

    architecture: str
    d_in: int
    d_sae: int
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "architecture": self.architecture,
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "metadata": dict(self.metadata),
        }


class LinearControl:
    """A basis without an activation function: f = (x - b_dec) W_enc, signed latents; x_hat = f W_dec + b_dec."""

    def __init__(self, cfg: ControlConfig, W_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> None:
        self.cfg = cfg
        self.W_enc, self.W_dec, self.b_dec = W_enc, W_dec, b_dec
        self.b_enc = torch.zeros(W_dec.shape[0], device=W_dec.device)

    def encode(self, x: Tensor) -> Tensor:
        """[..., d] → [..., latent], signed."""
        return (x - self.b_dec) @ self.W_enc

    def decode(self, f: Tensor) -> Tensor:
        """[..., latent] → [..., d]."""
        return f @ self.W_dec + self.b_dec


def identity(width: int, site: str | None = None, device: torch.device | str = "cpu") -> LinearControl:
    """x_hat = x, latents are the coordinates."""
    eye = torch.eye(width, device=device)
    metadata = {"recipe": "control_identity", "control": "identity", "site": site}
    cfg = ControlConfig("identity", width, width, metadata)
    return LinearControl(cfg, eye, eye, torch.zeros(width, device=device))


def pca(activations: Tensor, components: int | None = None, site: str | None = None) -> LinearControl:
    """Principal components of a sample [token, d], the strongest ``components`` of them (all by default).

    Raises ``InputError`` with fewer than two tokens or more components than dimensions.
    """
    tokens, width = activations.shape
    count = width if components is None else components
    if tokens < 2 or not 1 <= count <= width:
        raise InputError(
            f"PCA with {count} components was asked of {tokens} tokens of width {width}; "
            "give at least 2 tokens and no more components than the width."
        )
    mean = activations.float().mean(0)
    centred = activations.float() - mean
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :count].T.contiguous()
    cfg = ControlConfig("pca", width, count, {"recipe": "control_pca", "control": "pca", "site": site})
    return LinearControl(cfg, directions.T.contiguous(), directions, mean)


def random_directions(activations: Tensor, latents: int, k: int, seed: int = 0, site: str | None = None) -> Dictionary:
    """A TopK dictionary with random unit directions as decoder and encoder, centred on the mean of ``activations``.

    The encoder is scaled so that the k active latents rebuild the sample as well as one common scale allows.
    """
    width = activations.shape[-1]
    rows = torch.randn(latents, width, generator=generator(seed, "random directions"))
    rows = torch.nn.functional.normalize(rows, dim=-1).to(activations.device)
    mean = activations.float().mean(0)
    cfg = DictionaryConfig(
        architecture="topk",
        d_in=width,
        d_sae=latents,
        k=k,
        metadata={
            "recipe": "control_random",
            "control": "random_directions",
            "site": site,
            "k": k,
            "seed": seed,
        },
    )
    unscaled = Dictionary(cfg, rows.T, rows, torch.zeros(latents, device=rows.device), mean)
    centred, rebuilt = activations.float() - mean, unscaled(activations.float()) - mean
    # Least squares for the one factor on the latents; TopK picks the same latents at any positive scale.
    scale = float((centred * rebuilt).sum() / rebuilt.square().sum().clamp_min(1e-30))
    return unscaled.replace(W_enc=rows.T * max(scale, 1e-6))


def permuted_decoder(dictionary: Dictionary, seed: int = 0) -> Dictionary:
    """The same encoder with the decoder's rows in random order: codes stay, directions no longer fit them."""
    order = torch.randperm(dictionary.cfg.d_sae, generator=generator(seed, "permuted decoder"))
    metadata = {"control": "permuted_decoder"}
    return dictionary.replace(metadata=metadata, W_dec=dictionary.W_dec[order.to(dictionary.W_dec.device)])


def why_not_measured(control: str, eval_name: str) -> str | None:
    """Why an eval says nothing new of a control; None where it does."""
    if control != "permuted_decoder":
        return None
    if eval_name in _CODES_ALONE:
        return f"{eval_name} reads latents alone, and those of a dictionary with a permuted decoder are its own"
    if eval_name == "meta_structure":
        return "meta_structure reads the decoder's rows in no order, and a permuted decoder has the same ones"
    return None
