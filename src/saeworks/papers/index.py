"""Which papers are reproduced, and the one call that runs a reproduction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from saeworks.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from saeworks.papers.claims import Reproduction


@dataclass(frozen=True)
class Paper:
    """A paper: its title, where it is found, and what of it is run here. ``name`` is also that of the module."""

    name: str
    title: str
    source: str
    about: str


PAPERS: dict[str, Paper] = {
    paper.name: paper
    for paper in (
        Paper(
            "batch_topk",
            "BatchTopK Sparse Autoencoders",
            "arXiv 2412.06410",
            "BatchTopK against TopK and JumpReLU on the embedded world",
        ),
        Paper(
            "diffing",
            "Overcoming Sparsity Artifacts in Crosscoders to Interpret Chat-Tuning",
            "arXiv 2504.02922",
            "L1 and BatchTopK crosscoders, Latent Scaling and patching, on synthetic pairs and the embedded models",
        ),
        Paper(
            "matryoshka",
            "Learning Multi-Level Features with Matryoshka Sparse Autoencoders",
            "arXiv 2503.17547",
            "the toy tree, and Matryoshka against BatchTopK on the world's taxonomy",
        ),
        Paper(
            "saebench",
            "SAEBench: A Comprehensive Benchmark for Sparse Autoencoders",
            "arXiv 2503.09532",
            "eight architectures, three sparsities and two widths under the suite's evals",
        ),
        Paper(
            "shift_tpp",
            "Evaluating Sparse Autoencoders on Targeted Concept Erasure Tasks",
            "arXiv 2411.18895",
            "SCR, SHIFT with a judge, and TPP: architectures, training, controls",
        ),
        Paper(
            "cot",
            "Chain-of-Thought Reasoning In The Wild Is Not Always Faithful",
            "arXiv 2503.08679",
            "the rule for unfaithful pairs on published answers and on simulated models of known bias",
        ),
    )
}


def reproduce(name: str, out: Path, seeds: int | None = None, quick: bool = False) -> Reproduction:
    """Run the reproduction of one paper and write ``claims.json`` and ``claims.md`` below ``out``.

    A run that was stopped goes on where it was; what is finished is read.

    Args:
        name: key of :data:`PAPERS`.
        out: directory of the reproduction.
        seeds: how many; None for the paper's default.
        quick: shorter runs, whose verdicts are their own.

    Raises:
        InputError: a paper that is not there, fewer than one seed, or a directory that holds a run with other settings.
    """
    if name not in PAPERS:
        raise InputError(f"There is no paper '{name}'.{did_you_mean(name, PAPERS)}")
    if seeds is not None and seeds < 1:
        raise InputError(f"A reproduction was to run with {seeds} seeds; give at least 1.")
    run = cast("Callable[[Path, int | None, bool], Reproduction]", import_module(f"saeworks.papers.{name}").run)
    reproduction = run(out, seeds, quick)
    reproduction.write(out)
    return reproduction
