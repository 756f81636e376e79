"""The part of a causal model above a site, run from cached activations: what lies below is computed once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saeworks.errors import InputError
from saeworks.models.hooks import editing

if TYPE_CHECKING:
    from saeworks.models.language_model import LanguageModel
    from saeworks.models.sites import Site
    from saeworks.models.tokens import TokenBatch


class UpperLayers:
    """A model from some layer on.

    A site at the output of layer n starts the upper part at layer n + 1, and what was cached there may be changed at
    will; any other site of layer n starts it at layer n, and its activations are changed on the way.

    Attributes:
        name: the site as it was given.
        cached_site: the site whose activations [row, position, d] are to be harvested once and given to :meth:`logits`.
        direct: whether that is the site itself.

    Raises:
        InputError: a model that does not predict the next token, or a site that is no part of a layer.
    """

    def __init__(self, model: LanguageModel, site: str) -> None:
        if not model.is_causal:
            raise InputError(f"Model '{model.name}' does not predict the next token, so it has no answers to change.")
        self.model, self.name = model, site
        self.site: Site = model.site(site)
        if self.site.layer < 0:
            raise InputError(f"Site '{site}' belongs to no layer; choose a site inside the layers.")
        at_output = self.site.name.endswith(".resid_post")
        self.first = self.site.layer + int(at_output)
        self.direct = at_output or self.site.name.endswith(".resid_pre")
        self.cached_site = f"layers.{self.site.layer}.{'resid_post' if at_output else 'resid_pre'}"

    def logits(
        self,
        hidden: Tensor,
        batch: TokenBatch,
        edit: Callable[[Tensor], Tensor] | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Logits [row, position, vocabulary] float32; gradients flow through ``hidden`` and ``edit``.

        Args:
            hidden: activations at ``cached_site`` [row, position, d].
            batch: the tokens they came from.
            edit: change of the activations at the site [row, position, width], unless ``direct``, where ``hidden`` is
                given changed.
            at: [row, position] bool, where logits are wanted; they are then [chosen position, vocabulary], row by row,
                and those of no other position are computed.
        """
        batch = batch.to(self.model.device)
        edits = [] if edit is None or self.direct else [(self.site, edit)]
        if edit is not None and self.direct:
            hidden = edit(hidden)
        chosen = contextlib.nullcontext() if at is None else self._choosing(at)
        with self._skipping(hidden.to(self.model.dtype)), editing(self.model.module, edits), chosen:
            inputs = {"input_ids": batch.token_ids, "attention_mask": batch.attention_mask.long()}
            return self.model.module(**inputs, use_cache=False).logits.float()

    @contextlib.contextmanager
    def _skipping(self, hidden: Tensor) -> Generator[None, None, None]:
        """Within the block the layers below pass on what they get, and the last of them returns ``hidden``."""
        layers = self._layers()
        if self.first == 0:
            handle = layers[0].register_forward_pre_hook(_given(hidden), with_kwargs=True)
            try:
                yield
            finally:
                handle.remove()
            return
        skipped = layers[: self.first]
        as_tuple = self._returns_tuple(layers[0])
        try:
            for i, layer in enumerate(skipped):
                layer.forward = _constant(hidden if i == self.first - 1 else None, as_tuple)
            yield
        finally:
            for layer in skipped:
                # The assignment shadows the method of the class; without it that is found again.
                layer.__dict__.pop("forward", None)

    @contextlib.contextmanager
    def _choosing(self, at: Tensor) -> Generator[None, None, None]:
        """Within the block the head reads the positions ``at`` alone."""
        head = self.model.module.get_output_embeddings()
        if head is None:
            raise InputError(f"Model '{self.model.name}' has no language-model head, so it has no logits.")

        def before(_module: nn.Module, args: tuple[Any, ...]) -> Any:
            return (args[0][at.to(args[0].device)], *args[1:])

        handle = head.register_forward_pre_hook(before)
        try:
            yield
        finally:
            handle.remove()

    def _layers(self) -> list[Any]:
        place = self.model.site("layers.0.resid_pre").module
        stack = self.model.module.get_submodule(place.rpartition(".")[0])
        return list(stack.children())

    def _returns_tuple(self, layer: nn.Module) -> bool:
        """Whether layers return their output bare or as the first of several, which differs between architectures."""
        if not hasattr(self, "_tuple"):
            seen: list[bool] = []
            handle = layer.register_forward_hook(lambda _m, _a, output: seen.append(isinstance(output, tuple)))
            try:
                with torch.no_grad():
                    self.model.logits(self.model.batch_from_ids([[0, 0]]))
            finally:
                handle.remove()
            self._tuple = seen[0]
        return self._tuple


def _constant(output: Tensor | None, as_tuple: bool) -> Callable[..., Any]:
    """A layer's forward that returns ``output``, or its own input where that is None."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        result = given if output is None else output
        return (result,) if as_tuple else result

    return forward


def _given(hidden: Tensor) -> Callable[..., Any]:
    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    return before
