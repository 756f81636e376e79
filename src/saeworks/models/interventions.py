"""Interventions: changes made at a site during a forward pass, as frozen values.

Each has a ``site`` (any name that the model resolves), a mask choice ``where`` (``"keep"``: only the positions that
the batch keeps, ``"all"``: every position, padding and special tokens included) and ``edit``, which maps the
activations ``[row, position, d]`` in float32 to new ones. :func:`apply` does the rest: positions outside the mask stay
bit-identical, and the dtype of the model is preserved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from saeworks.errors import InputError, did_you_mean

Where = Literal["keep", "all"]


class LatentDictionary(Protocol):
    """What an intervention on latents needs of a dictionary: ``encode``, ``decode`` and ``W_dec [latent, d]``."""

    def encode(self, x: Any) -> Any: ...

    def decode(self, f: Any) -> Any: ...

    @property
    def W_dec(self) -> Any: ...


@runtime_checkable
class Intervention(Protocol):
    """Anything with a site, a mask choice and an ``edit`` is an intervention."""

    @property
    def site(self) -> str: ...

    @property
    def where(self) -> Where: ...

    def check(self, width: int) -> None:
        """``InputError`` when the intervention does not fit a site of this width."""
        ...

    def edit(self, x: Tensor) -> Tensor:
        """New activations for ``x [row, position, d]`` float32, same shape."""
        ...


def apply(intervention: Intervention, x: Tensor, keep: Tensor) -> Tensor:
    """Activations after the intervention; same shape and dtype as ``x``.

    Args:
        x: ``[row, position, d]`` in the model's dtype.
        keep: ``[row, position]`` bool, used when ``where`` is ``"keep"``.

    Raises:
        InputError: when ``edit`` returns another shape.
    """
    new = intervention.edit(x.float())
    if new.shape != x.shape:
        raise InputError(
            f"The intervention at '{intervention.site}' turned activations of shape {tuple(x.shape)} into "
            f"{tuple(new.shape)}; it must keep the shape."
        )
    new = new.to(x.dtype)
    return new if intervention.where == "all" else torch.where(keep[..., None], new, x)


@dataclass(frozen=True, slots=True)
class Splice:
    """Replace activations by ``function(x)``, for instance a dictionary's reconstruction.

    ``function`` maps ``[row, position, d]`` float32 to the same shape. Special tokens are left alone by default:
    dictionaries are not trained on them, and splicing there ruins the model's loss for reasons of no interest.
    """

    site: str
    function: Callable[[Tensor], Tensor]
    where: Where = "keep"

    def __post_init__(self) -> None:
        _check_where(self.where)

    def check(self, width: int) -> None:
        """Any width goes; the shape that the function returns is checked during the pass."""

    def edit(self, x: Tensor) -> Tensor:
        """``function(x)``."""
        return self.function(x)


@dataclass(frozen=True, slots=True)
class ZeroAblate:
    """Replace activations by zero."""

    site: str
    where: Where = "all"

    def __post_init__(self) -> None:
        _check_where(self.where)

    def check(self, width: int) -> None:
        """Any width goes."""

    def edit(self, x: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(x)


@dataclass(frozen=True, slots=True, eq=False)
class Steer:
    """Add ``scale · vector`` to the activations. ``vector [d]`` is not normalised."""

    site: str
    vector: Tensor
    scale: float = 1.0
    where: Where = "keep"

    def __post_init__(self) -> None:
        _check_where(self.where)

    def check(self, width: int) -> None:
        """``InputError`` unless the vector is ``[width]``."""
        if tuple(self.vector.shape) != (width,):
            raise InputError(
                f"The steering vector has shape {tuple(self.vector.shape)}, but site '{self.site}' has width {width}; "
                f"give a vector of shape ({width},)."
            )

    def edit(self, x: Tensor) -> Tensor:
        """``x + scale · vector``."""
        return x + self.scale * self.vector.to(x)


@dataclass(frozen=True, slots=True)
class AblateLatents:
    """Set some latents of a dictionary to zero and leave everything else of the activations as it is.

    With ``f`` the latents and ``f'`` the changed ones, the result is ``x + (decode(f') − decode(f))``: the part that
    the dictionary does not reconstruct stays, and with ``f' = f`` the activations are bit-identical.
    """

    site: str
    dictionary: LatentDictionary = field(repr=False)
    latents: Sequence[int]
    where: Where = "keep"

    def __post_init__(self) -> None:
        _check_where(self.where)

    def check(self, width: int) -> None:
        """``InputError`` when the dictionary has another width or lacks a latent."""
        _check_latents(self.site, self.dictionary, self.latents, width)

    def edit(self, x: Tensor) -> Tensor:
        """``x + (decode(f') − decode(f))`` with the chosen latents at zero."""
        return _with_latents(x, self.dictionary, self.latents, 0.0)


@dataclass(frozen=True, slots=True)
class ClampLatents:
    """Set some latents to a value (one number, or one per latent) at every position of the mask, active or not.

    The form is that of :class:`AblateLatents`.
    """

    site: str
    dictionary: LatentDictionary = field(repr=False)
    latents: Sequence[int]
    value: float | Sequence[float]
    where: Where = "keep"

    def __post_init__(self) -> None:
        _check_where(self.where)

    def check(self, width: int) -> None:
        """``InputError`` when the dictionary has another width, lacks a latent, or the values do not match."""
        _check_latents(self.site, self.dictionary, self.latents, width)
        if not isinstance(self.value, int | float) and len(self.value) != len(self.latents):
            raise InputError(
                f"{len(self.value)} values were given for {len(self.latents)} latents; give one number or one each."
            )

    def edit(self, x: Tensor) -> Tensor:
        """``x + (decode(f') − decode(f))`` with the chosen latents at the given value."""
        return _with_latents(x, self.dictionary, self.latents, self.value)


def _with_latents(
    x: Tensor, dictionary: LatentDictionary, latents: Sequence[int], value: float | Sequence[float]
) -> Tensor:
    f = cast(Tensor, dictionary.encode(x))
    changed = f.clone()
    index = torch.as_tensor(list(latents), dtype=torch.int64, device=f.device)
    changed[..., index] = torch.as_tensor(value, dtype=f.dtype, device=f.device)
    # Where the output depends on more than the latents, the inputs are needed to decode.
    cfg = getattr(dictionary, "cfg", None)
    also = (x,) if getattr(cfg, "input_op", "none") != "none" or getattr(cfg, "skip", False) else ()
    decode = cast("Callable[..., Tensor]", dictionary.decode)
    before, after = decode(f, *also), decode(changed, *also)
    # Subtracting (before − after) instead of adding its negative keeps even the sign of a zero when nothing changed.
    return x - (before - after).to(x)


def _check_where(where: str) -> None:
    if where not in ("keep", "all"):
        raise InputError(f"Unknown mask '{where}' for an intervention.{did_you_mean(where, ['keep', 'all'])}")


def _check_latents(site: str, dictionary: LatentDictionary, latents: Sequence[int], width: int) -> None:
    count, d = (int(n) for n in dictionary.W_dec.shape)
    if d != width:
        raise InputError(
            f"The dictionary reads vectors of width {d}, but site '{site}' has width {width}; "
            "it was trained at another site or on another model."
        )
    bad = [latent for latent in latents if not 0 <= latent < count]
    if bad:
        raise InputError(f"Latent {bad[0]} does not exist: the dictionary has {count} latents (0 to {count - 1}).")
