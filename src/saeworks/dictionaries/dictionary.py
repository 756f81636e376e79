"""The one dictionary class: encoder, activation function, decoder. Inference only; training lives elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from saeworks.dictionaries.activation import Activation, JumpReLU, ReLU, TopK
from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.kernels.sparse import decode_codes
from saeworks.errors import InputError
from saeworks.files import sha256_bytes

Architecture = Literal["relu", "jumprelu", "topk"]


class DictionaryConfig(BaseModel):
    """What ``cfg.json`` holds.

    Attributes:
        architecture: the activation function at inference. BatchTopK dictionaries are ``jumprelu``: at inference they
            use the threshold estimated from training (arXiv 2412.06410, section 3).
        d_in: width of the activations. d_sae: number of latents.
        k: active latents per token, ``topk`` only.
        apply_b_dec_to_input: subtract ``b_dec`` from the input before encoding.
        metadata: where it comes from: model, site, recipe, tokens, seed, ``group_sizes`` of a matryoshka dictionary,
            the normalisation it was trained with (already folded into the weights), the values measured when saved.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    architecture: Architecture
    d_in: int = Field(ge=1)
    d_sae: int = Field(ge=1)
    k: int | None = Field(default=None, ge=1)
    apply_b_dec_to_input: bool = True
    metadata: dict[str, Any] = Field(default_factory=dict)


class Dictionary(nn.Module):
    """Sparse dictionary: ``z = (x - b_dec) W_enc + b_enc``, latents ``f = activation(z)``, ``x_hat = f W_dec + b_dec``.

    Args:
        cfg: see :class:`DictionaryConfig`.
        W_enc: ``[d_in, d_sae]``, column ``i`` reads latent ``i``.
        W_dec: ``[d_sae, d_in]``, row ``i`` is the direction of latent ``i``.
        b_enc: ``[d_sae]``; b_dec: ``[d_in]``.
        threshold: ``[d_sae]`` in the units of ``z``; with ``jumprelu`` only.

    Raises:
        InputError: shapes that do not fit the configuration, or values that are not finite.
    """

    encoder: Tensor
    decoder: Tensor
    b_enc: Tensor
    b_dec: Tensor
    threshold: Tensor | None

    def __init__(
        self,
        cfg: DictionaryConfig,
        W_enc: Tensor,
        W_dec: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
        threshold: Tensor | None = None,
    ) -> None:
        super().__init__()
        _check(cfg, W_enc=W_enc, W_dec=W_dec, b_enc=b_enc, b_dec=b_dec, threshold=threshold)
        self.cfg = cfg
        # Both weights are stored latent-major: rows are what sparse decoding and training touch.
        self.register_buffer("encoder", W_enc.detach().T.contiguous())
        self.register_buffer("decoder", W_dec.detach().contiguous())
        self.register_buffer("b_enc", b_enc.detach().clone())
        self.register_buffer("b_dec", b_dec.detach().clone())
        self.register_buffer("threshold", None if threshold is None else threshold.detach().clone())

    @property
    def W_enc(self) -> Tensor:
        """``[d_in, d_sae]`` view of the encoder weights."""
        return self.encoder.T

    @property
    def W_dec(self) -> Tensor:
        """``[d_sae, d_in]`` decoder weights."""
        return self.decoder

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.decoder.dtype

    @property
    def activation(self) -> Activation:
        """The activation function as a value."""
        if self.cfg.architecture == "topk":
            assert self.cfg.k is not None
            return TopK(self.cfg.k)
        if self.cfg.architecture == "jumprelu":
            assert self.threshold is not None
            return JumpReLU(self.threshold)
        return ReLU()

    def pre_activations(self, x: Tensor) -> Tensor:
        """``z [token, d_sae]`` of ``x [token, d_in]``."""
        bias = self.b_enc - self.encoder @ self.b_dec if self.cfg.apply_b_dec_to_input else self.b_enc
        return torch.addmm(bias, x.to(self.dtype), self.encoder.T)

    @torch.no_grad()
    def encode_sparse(self, x: Tensor) -> Codes:
        """Latents of ``x [token, d_in]`` as values and indices."""
        self._check_width(x)
        return self.activation(self.pre_activations(x))

    def encode(self, x: Tensor) -> Tensor:
        """Latents ``[..., d_sae]`` of activations ``x [..., d_in]``, in the raw units of the model."""
        codes = self.encode_sparse(x.reshape(-1, x.shape[-1]))
        return codes.dense().reshape(*x.shape[:-1], self.cfg.d_sae)

    def decode(self, f: Tensor | Codes) -> Tensor:
        """Reconstruction ``[..., d_in]`` from latents ``[..., d_sae]`` or codes."""
        if isinstance(f, Codes):
            return decode_codes(f, self.decoder) + self.b_dec
        return f.to(self.dtype) @ self.decoder + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction ``[..., d_in]`` of activations ``x [..., d_in]``."""
        codes = self.encode_sparse(x.reshape(-1, x.shape[-1]))
        return self.decode(codes).reshape(x.shape)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Sizes of the nested groups of a matryoshka dictionary; one group of ``d_sae`` latents otherwise."""
        return tuple(self.cfg.metadata.get("group_sizes") or (self.cfg.d_sae,))

    def truncate(self, latents: int) -> Dictionary:
        """The first ``latents`` latents as a dictionary of their own (a prefix of a matryoshka dictionary)."""
        if not 1 <= latents <= self.cfg.d_sae:
            raise InputError(f"A prefix of {latents} latents was asked of a dictionary with {self.cfg.d_sae}.")
        metadata = {k: v for k, v in self.cfg.metadata.items() if k not in ("group_sizes", "recorded")}
        metadata["truncated_from"] = self.cfg.d_sae
        update = {"d_sae": latents, "metadata": metadata, "k": self.cfg.k and min(self.cfg.k, latents)}
        return Dictionary(
            self.cfg.model_copy(update=update),
            self.W_enc[:, :latents],
            self.W_dec[:latents],
            self.b_enc[:latents],
            self.b_dec,
            None if self.threshold is None else self.threshold[:latents],
        )

    def replace(
        self,
        *,
        W_enc: Tensor | None = None,
        W_dec: Tensor | None = None,
        b_enc: Tensor | None = None,
        b_dec: Tensor | None = None,
        threshold: Tensor | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Dictionary:
        """A copy with the given tensors replaced and the given metadata entries added; None keeps what is there."""
        return Dictionary(
            self.cfg.model_copy(update={"metadata": {**self.cfg.metadata, **(metadata or {})}}),
            self.W_enc if W_enc is None else W_enc,
            self.W_dec if W_dec is None else W_dec,
            self.b_enc if b_enc is None else b_enc,
            self.b_dec if b_dec is None else b_dec,
            self.threshold if threshold is None else threshold,
        )

    def fingerprint(self) -> str:
        """Hash of configuration and weights: the identity under which results are cached."""
        parts = [self.cfg.model_dump_json().encode()]
        for name, tensor in sorted(self.state_dict().items()):
            parts += [name.encode(), tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()]
        return sha256_bytes(*parts)

    def save(self, path: str | Path) -> None:
        """Write ``cfg.json`` and ``weights.safetensors`` into the directory ``path``, atomically."""
        from saeworks.dictionaries.formats.native import save

        save(self, Path(path))

    def verify(self, activations: Tensor | None = None) -> dict[str, Any]:
        """Health check on ``activations [token, d_in]``; see :func:`saeworks.dictionaries.verify.verify`."""
        from saeworks.dictionaries.verify import verify

        return verify(self, activations)

    def _check_width(self, x: Tensor) -> None:
        if x.shape[-1] != self.cfg.d_in:
            site = self.cfg.metadata.get("site")
            trained = f" (it was trained on the site '{site}')" if site else ""
            raise InputError(
                f"Activations of width {x.shape[-1]} were given to a dictionary of width {self.cfg.d_in}{trained}; "
                "use the site and model it was trained on."
            )


def _check(cfg: DictionaryConfig, W_dec: Tensor, **others: Tensor | None) -> None:
    tensors = {"W_dec": W_dec, **others}
    d, n = cfg.d_in, cfg.d_sae
    shapes = {"W_enc": (d, n), "W_dec": (n, d), "b_enc": (n,), "b_dec": (d,), "threshold": (n,)}
    if (cfg.architecture == "jumprelu") != (tensors["threshold"] is not None):
        need = "needs a threshold" if cfg.architecture == "jumprelu" else "takes no threshold"
        raise InputError(f"A '{cfg.architecture}' dictionary {need}; check 'architecture' in cfg.json.")
    if cfg.architecture == "topk" and (cfg.k is None or cfg.k > n):
        raise InputError(f"A 'topk' dictionary with {n} latents needs 1 <= k <= {n}, but k is {cfg.k}.")
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shapes[name]:
            raise InputError(
                f"{name} has the shape {list(tensor.shape)}, but d_in {d} and d_sae {n} need {list(shapes[name])}."
            )
        if not tensor.is_floating_point() or tensor.dtype != W_dec.dtype:
            raise InputError(
                f"{name} is of {tensor.dtype} and W_dec of {W_dec.dtype}; "
                "all weights must share one floating-point type."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} holds values that are not finite (NaN or infinity); the weights are damaged.")
