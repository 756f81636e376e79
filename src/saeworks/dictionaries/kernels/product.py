"""The one dense product of a training step, ``x @ weight.T + bias``: by the faster library, block by block of rows.

On some CPUs (AMD's above all) oneDNN multiplies float32 matrices faster than the BLAS that torch calls, in blocks of a
few hundred rows by a third. torch has no public way to it for plain tensors, so an operator is used that its own
compiler emits; a build without it, other devices, other types and small products take ``addmm``. Which of the two is
faster is measured once per process and number of threads, in a few hundredths of a second; oneDNN must win clearly, so
that a machine decides alike every time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

Library = Literal["blas", "onednn"]

# Floats of one block of pre-activations: 8 MB, so that what is selected from it is still in cache.
BLOCK = 2**21
# On other devices a block only bounds memory.
BLOCK_ELSEWHERE = 2**27
# Multiplications below which nothing is gained.
SMALL = 2**25
# How much faster oneDNN must be.
MARGIN = 1.1

_decided: dict[int, Library] = {}


def blocks(x: Tensor, weight: Tensor, bias: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Rows of ``x @ weight.T + bias`` in order: the number of the first, and ``[rows, width]``.

    A block may be overwritten by the next one. No ``[token, width]`` matrix ever exists.

    Args:
        x: ``[token, d]``. weight: ``[width, d]``, latent-major. bias: ``[width]``.
    """
    rows = max((BLOCK if x.device.type == "cpu" else BLOCK_ELSEWHERE) // weight.shape[0], 1)
    if library_for(min(rows, x.shape[0]) * weight.numel(), x) == "onednn":
        for start in range(0, x.shape[0], rows):
            yield start, _onednn(x[start : start + rows], weight, bias)
        return
    workspace = x.new_empty(min(rows, x.shape[0]), weight.shape[0])
    for start in range(0, x.shape[0], rows):
        part = x[start : start + rows]
        yield start, torch.addmm(bias, part, weight.T, out=workspace[: part.shape[0]])


def product(x: Tensor, weight: Tensor, bias: Tensor, library: Library | None = None) -> Tensor:
    """``[token, width]``: ``x @ weight.T + bias`` at once, by the given library or the one :func:`blocks` takes."""
    chosen = library or library_for(x.shape[0] * weight.numel(), x)
    return _onednn(x, weight, bias) if chosen == "onednn" else torch.addmm(bias, x, weight.T)


def libraries() -> tuple[Library, ...]:
    """What this build of torch has."""
    return ("blas", "onednn") if _operator() is not None else ("blas",)


def library_for(multiplications: int, x: Tensor) -> Library:
    """Which library computes a product of so many multiplications with ``x``."""
    if multiplications < SMALL or x.device.type != "cpu" or x.dtype != torch.float32:
        return "blas"
    threads = torch.get_num_threads()
    if threads not in _decided:
        _decided[threads] = _faster()
    return _decided[threads]


def decide(library: Library) -> None:
    """Use this library from now on with the present number of threads, for example that of an interrupted run."""
    if library in libraries():
        _decided[torch.get_num_threads()] = library


def speeds(rounds: int = 5) -> dict[Library, float]:
    """GFLOP per second of processor time by library, for ``[256, 512] @ [512, 4096]`` in float32.

    The best of interleaved rounds. Not by the clock: another job may hold the cores for a while.
    """
    x, weight, bias = torch.ones(256, 512), torch.ones(4096, 512), torch.ones(4096)
    best: dict[Library, float] = {}
    with torch.no_grad():
        for number in range(rounds + 1):
            for name in libraries():
                started = time.process_time()
                product(x, weight, bias, name)
                seconds = time.process_time() - started
                if number > 0:  # the first one loads and compiles
                    best[name] = min(best.get(name, seconds), seconds)
    return {name: 2 * 256 * 512 * 4096 / seconds / 1e9 for name, seconds in best.items()}


def _faster() -> Library:
    found = speeds()
    return "onednn" if found.get("onednn", 0.0) > MARGIN * found["blas"] else "blas"


def _operator() -> Any:
    """torch's own fused linear layer on oneDNN for plain tensors; None in a build without it."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out: Tensor = _operator()(x.detach(), weight.detach(), bias.detach(), "none", [], "")
    return out
