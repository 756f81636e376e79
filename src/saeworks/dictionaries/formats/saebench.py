"""SAEBench's interface for SAEs of one's own: an object that its evals take, made without SAEBench being installed.

Its evals are given ``(name, object)`` pairs and use ``encode``, ``decode``, the four weights, ``device``, ``dtype``,
``to`` and the fields of ``cfg``. They expect raw activations and decoder rows of norm 1, and refuse others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saeworks.dictionaries.dictionary import Dictionary
from saeworks.dictionaries.folding import fold_decoder_norm
from saeworks.dictionaries.formats.exact import why_not_autoencoder, without_norm_weighting
from saeworks.dictionaries.formats.names import hook_of, layer_of
from saeworks.errors import InputError

# What its plots call our recipes.
_ARCHITECTURES = {
    "relu": "standard",
    "l1": "standard_april_update",
    "p_anneal": "p_anneal",
    "gated": "gated",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batch_topk": "batch_topk",
    "matryoshka_batch_topk": "matryoshka_batch_topk",
}


@dataclass
class SAEBenchConfig:
    """The fields that its evals read. It adds others of its own, so that the object can be changed."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    context_size: int = 128
    hook_head_index: int | None = None
    architecture: str = ""
    apply_b_dec_to_input: bool = False
    finetuning_scaling_factor: bool = False
    activation_fn_str: str = ""
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    prepend_bos: bool = True
    normalize_activations: str = "none"
    dtype: str = "float32"
    device: str = "cpu"
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[int | None, ...] = (None,)
    training_tokens: int = -100_000
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields above as plain values."""
        return asdict(self)


class SAEBenchSAE(nn.Module):
    """A dictionary as SAEBench wants it; :func:`for_saebench` makes one.

    ``x`` is ``[batch, d_in]`` or ``[batch, position, d_in]``, latents have ``d_sae`` in place of ``d_in``.
    """

    # Its core eval switches the reshaping of attention heads off and on again; ours are flat to begin with.
    hook_z_reshaping_mode = False

    def __init__(self, dictionary: Dictionary, cfg: SAEBenchConfig) -> None:
        super().__init__()
        self.dictionary, self.cfg = dictionary, cfg

    @property
    def W_enc(self) -> Tensor:
        """``[d_in, d_sae]``."""
        return self.dictionary.W_enc

    @property
    def W_dec(self) -> Tensor:
        """``[d_sae, d_in]``, rows of norm 1."""
        return self.dictionary.W_dec

    @property
    def b_enc(self) -> Tensor:
        """``[d_sae]``."""
        return self.dictionary.b_enc

    @property
    def b_dec(self) -> Tensor:
        """``[d_in]``."""
        return self.dictionary.b_dec

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.dictionary.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and of what comes out."""
        return self.dictionary.dtype

    def encode(self, x: Tensor) -> Tensor:
        """Latents of activations."""
        return self.dictionary.encode(x)

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstruction from latents."""
        return self.dictionary.decode(feature_acts)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of activations."""
        return self.dictionary(x)

    def to(self, *args: Any, **kwargs: Any) -> SAEBenchSAE:
        """Move to a device, change the type; ``cfg`` follows."""
        super().to(*args, **kwargs)
        self.cfg.device, self.cfg.dtype = str(self.device), str(self.dtype).removeprefix("torch.")
        return self

    def check_decoder_norms(self) -> bool:
        """Whether all decoder rows have norm 1, to the precision of their type."""
        tolerance = 1e-2 if self.dtype in (torch.bfloat16, torch.float16) else 1e-5
        return bool(((self.W_dec.norm(dim=1) - 1).abs() <= tolerance).all())

    def turn_off_forward_pass_hook_z_reshaping(self) -> None:
        """Nothing to switch off: activations of attention heads are flat here."""

    def turn_on_forward_pass_hook_z_reshaping(self) -> None:
        """Nothing to switch on."""


def for_saebench(
    dictionary: Dictionary,
    model_name: str | None = None,
    hook_name: str | None = None,
    context_size: int | None = None,
) -> SAEBenchSAE:
    """The dictionary as an object for SAEBench's evals: ``run_eval(config, [("name", for_saebench(d))], …)``.

    Decoder norms move into the encoder, so that latents come out multiplied by them.

    Args:
        model_name: as TransformerLens calls the model; None takes the dictionary's own, without its owner.
        hook_name: of TransformerLens; None takes that of the dictionary's site.
        context_size: None takes that of the training, or 128.

    Raises:
        InputError: a transcoder, a crosscoder, an operation on every token that ``decode`` could not undo, a selection
            that would change with the norms, or a dictionary that says nothing of its model or site.
    """
    if reason := why_not_autoencoder(dictionary):
        raise InputError(f"SAEBench cannot measure this dictionary: {reason}.")
    dead = (dictionary.W_dec == 0).all(dim=1)
    if bool(dead.any()):
        raise InputError(
            f"SAEBench refuses decoder rows that are zero, and {int(dead.sum())} are; leave these latents out first."
        )
    known = dictionary.cfg.metadata
    model = model_name or str(known.get("model_name") or "").split("/")[-1]
    hook = hook_name or hook_of(str(known.get("site") or ""))
    if not model or not hook:
        what = "model it reads; give model_name" if not model else "site it reads; give hook_name"
        raise InputError(f"The dictionary does not say which {what}.")
    made = fold_decoder_norm(without_norm_weighting(dictionary))
    recipe = str(known.get("recipe") or dictionary.cfg.architecture)
    cfg = SAEBenchConfig(
        model_name=model,
        d_in=made.cfg.d_in,
        d_sae=made.cfg.d_sae,
        hook_layer=layer_of(hook),
        hook_name=hook,
        context_size=context_size or int(known.get("context_length") or 128),
        architecture=_ARCHITECTURES.get(recipe, recipe),
        apply_b_dec_to_input=made.cfg.apply_b_dec_to_input,
        activation_fn_str="topk" if made.cfg.k else "relu",
        activation_fn_kwargs={"k": made.cfg.k} if made.cfg.k else {},
        training_tokens=int(known.get("tokens") or -100_000),
        neuronpedia_id=known.get("neuronpedia_id"),
    )
    return SAEBenchSAE(made, cfg).to(device=made.device, dtype=made.dtype)
