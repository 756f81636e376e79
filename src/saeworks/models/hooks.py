"""Plain forward hooks: capture activations and stop the pass early, or change them on the way through."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saeworks.errors import InputError
from saeworks.models.sites import IO, Site

# Receives the activations of a place; returns what takes their place, or None to leave them alone.
Visit = Callable[[Tensor], Tensor | None]


class _EverythingCaptured(Exception):
    """Raised inside a hook to leave the forward pass; never leaves this file."""


def capture(module: nn.Module, sites: Sequence[Site], forward: Callable[[], Any]) -> dict[tuple[str, IO], Tensor]:
    """Run ``forward`` and return the activations at each site, keyed by ``(module path, io)``.

    The pass ends as soon as the last missing site has been seen, so that nothing after the deepest one is computed.
    The tensors are copies: later in-place changes of the model do not reach them, and although the pass runs in
    inference mode they may take part in autograd afterwards.

    Raises:
        InputError: a module that the pass never calls, or whose activations are not ``[row, position, width]``.
    """
    places: dict[tuple[str, IO], Site] = {(site.module, site.io): site for site in sites}
    captured: dict[tuple[str, IO], Tensor] = {}

    def visit(place: tuple[str, IO]) -> Visit:
        def look(x: Tensor) -> None:
            if place not in captured:
                _check_three_dimensional(places[place], x)
                with torch.inference_mode(False):
                    captured[place] = x.clone()
            if len(captured) == len(places):
                raise _EverythingCaptured

        return look

    handles: list[RemovableHandle] = []
    try:
        for place in places:
            handles.append(_attach(module.get_submodule(place[0]), place[1], visit(place), place[0]))
        with torch.inference_mode():
            forward()
    except _EverythingCaptured:
        pass
    finally:
        for handle in handles:
            handle.remove()
    missing = [site.name for place, site in places.items() if place not in captured]
    if missing:
        raise InputError(f"Site '{missing[0]}' is never reached in a forward pass; choose another module.")
    return captured


@contextmanager
def editing(module: nn.Module, edits: Sequence[tuple[Site, Callable[[Tensor], Tensor]]]) -> Generator[None, None, None]:
    """Within the block, every pass through a site goes through its edits, in the order given."""
    handles: list[RemovableHandle] = []

    def visit(site: Site, edit: Callable[[Tensor], Tensor]) -> Visit:
        def change(x: Tensor) -> Tensor:
            _check_three_dimensional(site, x)
            return edit(x)

        return change

    try:
        for site, edit in edits:
            handles.append(_attach(module.get_submodule(site.module), site.io, visit(site, edit), site.module))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attach(module: nn.Module, io: IO, visit: Visit, path: str) -> RemovableHandle:
    """Hook one end of a module. Modules return a tensor or a tuple that starts with it, depending on the architecture
    and the release of transformers; they receive it as first argument or by name."""

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return visit(output)
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            items = cast("tuple[Any, ...]", output)
            new = visit(items[0])
            return None if new is None else (new, *items[1:])
        raise InputError(f"Module '{path}' returns no tensor; name one of the modules inside it.")

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args and isinstance(args[0], Tensor):
            new = visit(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        name = next((key for key, value in kwargs.items() if isinstance(value, Tensor)), None)
        name = "hidden_states" if isinstance(kwargs.get("hidden_states"), Tensor) else name
        if name is None:
            raise InputError(f"Module '{path}' receives no tensor; name one of the modules inside it.")
        new = visit(kwargs[name])
        return None if new is None else (args, {**kwargs, name: new})

    if io == "out":
        return module.register_forward_hook(after)
    return module.register_forward_pre_hook(before, with_kwargs=True)


def _check_three_dimensional(site: Site, x: Tensor) -> None:
    if not x.is_floating_point():
        raise InputError(f"Site '{site.name}' holds {x.dtype} values, not activations; choose another end or module.")
    if x.ndim != 3:
        raise InputError(
            f"Site '{site.name}' holds a tensor of shape {tuple(x.shape)}, not [row, position, width]; "
            "choose a module that works on hidden vectors."
        )
