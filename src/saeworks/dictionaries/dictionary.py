"""The one dictionary class: encoder, activation function, decoder. Inference only; training lives elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saeworks.dictionaries.activation import Activation, GroupMax, JumpReLU, ReLU, TopK
from saeworks.dictionaries.codes import Codes
from saeworks.dictionaries.config import Architecture, DictionaryConfig, InputOp, check
from saeworks.dictionaries.input_ops import apply_input_op
from saeworks.dictionaries.kernels.product import blocks
from saeworks.dictionaries.kernels.sparse import decode_codes
from saeworks.errors import InputError, did_you_mean
from saeworks.files import sha256_bytes

__all__ = ["TENSORS", "Architecture", "Dictionary", "DictionaryConfig", "InputOp"]

# Every tensor a dictionary can have; the last two are there only where the configuration says so.
TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip")


class Dictionary(nn.Module):
    """Sparse dictionary: ``z = (x - b_dec) W_enc + b_enc``, latents ``f = activation(z)``, ``x_hat = f W_dec + b_dec``.

    The same class is an autoencoder (one site in, the same out), a transcoder (``d_out`` given: another site out, no
    ``b_dec`` in the encoder, ``x W_skip`` added when there is one) and a crosscoder (``sources`` given: the activations
    of several sites or models side by side, latents shared).

    Everywhere below, ``x`` is ``[..., d_in]``; a crosscoder whose sources are equally wide takes ``[..., source, d]``
    as well.

    Args:
        cfg: see :class:`DictionaryConfig`.
        W_enc: ``[d_in, d_sae]``, column ``i`` reads latent ``i``.
        W_dec: ``[d_sae, d_out]``, row ``i`` is the direction of latent ``i``.
        b_enc: ``[d_sae]``; b_dec: ``[d_out]``.
        threshold: ``[d_sae]`` in the units of ``z``; with ``jumprelu`` only.
        W_skip: ``[d_in, d_out]``; with ``skip`` only.

    Raises:
        InputError: shapes that do not fit the configuration, or values that are not finite.
    """

    encoder: Tensor
    decoder: Tensor
    b_enc: Tensor
    b_dec: Tensor
    threshold: Tensor | None
    W_skip: Tensor | None

    def __init__(
        self,
        cfg: DictionaryConfig,
        W_enc: Tensor,
        W_dec: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
        threshold: Tensor | None = None,
        W_skip: Tensor | None = None,
    ) -> None:
        super().__init__()
        check(cfg, W_enc=W_enc, W_dec=W_dec, b_enc=b_enc, b_dec=b_dec, threshold=threshold, W_skip=W_skip)
        self.cfg = cfg
        # Both weights are stored latent-major: rows are what sparse decoding and training touch.
        self.register_buffer("encoder", W_enc.detach().T.contiguous())
        self.register_buffer("decoder", W_dec.detach().contiguous())
        self.register_buffer("b_enc", b_enc.detach().clone())
        self.register_buffer("b_dec", b_dec.detach().clone())
        self.register_buffer("threshold", None if threshold is None else threshold.detach().clone())
        self.register_buffer("W_skip", None if W_skip is None else W_skip.detach().contiguous())

    @property
    def W_enc(self) -> Tensor:
        """``[d_in, d_sae]`` view of the encoder weights."""
        return self.encoder.T

    @property
    def W_dec(self) -> Tensor:
        """``[d_sae, d_out]`` decoder weights."""
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
        if self.cfg.architecture in ("topk", "groupmax"):
            assert self.cfg.k is not None
            return TopK(self.cfg.k) if self.cfg.architecture == "topk" else GroupMax(self.cfg.k)
        if self.cfg.architecture == "jumprelu":
            assert self.threshold is not None
            return JumpReLU(self.threshold)
        return ReLU()

    def pre_activations(self, x: Tensor) -> Tensor:
        """``z [token, d_sae]`` of ``x [token, d_in]``."""
        x = apply_input_op(x.to(self.dtype), self.cfg.input_op)[0]
        return torch.addmm(self._bias(), x, self.encoder.T)

    def _bias(self) -> Tensor:
        """``[d_sae]`` what is added to ``x W_enc``."""
        return self.b_enc - self.encoder @ self.b_dec if self.cfg.apply_b_dec_to_input else self.b_enc

    def select(self, z: Tensor) -> Codes:
        """The latents that pre-activations ``z [token, d_sae]`` make active, with their values."""
        if not self.cfg.norm_weighted:
            return self.activation(z)
        codes = self.activation(z * self.decoder_norms().sum(dim=0))
        return codes.with_values(z[codes.rows(), codes.indices])

    @torch.no_grad()
    def encode_sparse(self, x: Tensor) -> Codes:
        """Latents of ``x [token, d_in]`` as values and indices; no ``[token, d_sae]`` matrix ever exists."""
        x = apply_input_op(self.flat(x).to(self.dtype), self.cfg.input_op)[0]
        parts = [self.select(z) for _, z in blocks(x, self.encoder, self._bias())]
        return Codes.joined(parts) if len(parts) > 1 else parts[0] if parts else self.select(x @ self.encoder.T)

    def encode(self, x: Tensor) -> Tensor:
        """Latents ``[..., d_sae]`` of activations ``x``, in the raw units of the model."""
        x = self.flat(x)
        codes = self.encode_sparse(x.reshape(-1, x.shape[-1]))
        return codes.dense().reshape(*x.shape[:-1], self.cfg.d_sae)

    def decode(self, f: Tensor | Codes, x: Tensor | None = None) -> Tensor:
        """Reconstruction ``[..., d_out]`` from latents ``[..., d_sae]`` or codes; sources lie side by side.

        Args:
            f: latents.
            x: the inputs ``[..., d_in]`` they came from. Needed where the output depends on more than the
                latents: with ``W_skip``, and with an ``input_op``, which is undone token by token.

        Raises:
            InputError: ``x`` is needed and was not given.
        """
        out = decode_codes(f, self.decoder) if isinstance(f, Codes) else f.to(self.dtype) @ self.decoder
        out = out + self.b_dec
        if self.W_skip is None and self.cfg.input_op == "none":
            return out
        if x is None:
            why = "adds x W_skip" if self.W_skip is not None else f"undoes '{self.cfg.input_op}' token by token"
            raise InputError(f"This dictionary {why}, so latents alone are not enough; call decode(f, x).")
        x = self.flat(x).to(self.dtype)
        rows, mean, scale = apply_input_op(x.reshape(-1, x.shape[-1]), self.cfg.input_op)
        if self.W_skip is not None:
            out = out + (rows @ self.W_skip).reshape(out.shape)
        return (out.reshape(-1, out.shape[-1]) * scale + mean).reshape(out.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of activations ``x``, in the shape of ``x`` (``[..., d_out]`` of a transcoder)."""
        rows = self.flat(x).reshape(-1, self.cfg.d_in)
        out = self.decode(self.encode_sparse(rows), rows)
        return out.reshape(x.shape if self.cfg.d_out is None else (*x.shape[:-1], self.cfg.d_out))

    def flat(self, x: Tensor) -> Tensor:
        """``[..., d_in]`` of ``x [..., d_in]`` or ``[..., source, d]``; ``InputError`` for any other width."""
        if x.shape[-1] == self.cfg.d_in:
            return x
        widths = self.cfg.widths
        if self.cfg.sources is not None and x.shape[-2:] == (len(widths), widths[0]) and len(set(widths)) == 1:
            return x.flatten(-2)
        site = self.cfg.metadata.get("site")
        trained = f" (it was trained on the site '{site}')" if site else ""
        raise InputError(
            f"Activations of width {x.shape[-1]} were given to a dictionary of width {self.cfg.d_in}{trained}; "
            "use the site and model it was trained on."
        )

    def decoder_norms(self) -> Tensor:
        """``[source, d_sae]`` norms of every latent's direction in every source (one source for an autoencoder)."""
        if self.cfg.sources is None:
            return self.decoder.norm(dim=1)[None]
        return torch.stack([part.norm(dim=1) for part in self.decoder.split(list(self.cfg.widths), dim=1)])

    def source(self, which: str | int) -> tuple[Tensor, Tensor, Tensor]:
        """Views of one source's part: ``W_enc [d, d_sae]``, ``W_dec [d_sae, d]``, ``b_dec [d]``."""
        names = self.cfg.sources or ("",)
        if isinstance(which, str):
            if which not in names:
                raise InputError(f"This dictionary has no source '{which}'.{did_you_mean(which, names)}")
            which = names.index(which)
        if self.cfg.d_out is not None or not 0 <= which < len(names):
            raise InputError(f"Source {which} was asked of a dictionary with {len(names)} sources of input and output.")
        start = sum(self.cfg.widths[:which])
        part = slice(start, start + self.cfg.widths[which])
        return self.W_enc[part], self.W_dec[:, part], self.b_dec[part]

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
        if self.cfg.architecture == "groupmax":
            raise InputError("The groups of a 'groupmax' dictionary span all of its latents, so it has no prefix.")
        return self.replace(
            {"d_sae": latents, "metadata": metadata, "k": self.cfg.k and min(self.cfg.k, latents)},
            W_enc=self.W_enc[:, :latents],
            W_dec=self.W_dec[:latents],
            b_enc=self.b_enc[:latents],
            threshold=None if self.threshold is None else self.threshold[:latents],
        )

    def replace(
        self,
        cfg: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        **tensors: Tensor | None,
    ) -> Dictionary:
        """A copy with other settings, further metadata entries, and the given tensors in place of its own.

        Tensors go by their names (``W_enc``, ``W_dec``, ``b_enc``, ``b_dec``, ``threshold``, ``W_skip``); None keeps
        what is there.
        """
        changed = self.cfg.model_copy(update=dict(cfg or {}))
        if metadata:
            changed = changed.model_copy(update={"metadata": {**changed.metadata, **metadata}})
        own = {name: getattr(self, name) for name in TENSORS}
        return Dictionary(changed, **{**own, **{name: t for name, t in tensors.items() if t is not None}})

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

    def verify(self, activations: Tensor | None = None, targets: Tensor | None = None) -> dict[str, Any]:
        """Health check on ``activations [token, d_in]``; see :func:`saeworks.dictionaries.verify.verify`."""
        from saeworks.dictionaries.verify import verify

        return verify(self, activations, targets)
