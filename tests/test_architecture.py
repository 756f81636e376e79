"""The arrows between the rooms: every import is read, and any arrow that the design lacks is a failure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import saeworks

ROOT = Path(saeworks.__file__).parent
# Modules that every room may use. `saeworks` itself stands for `from saeworks import load` and the like.
SHARED = {"errors", "files", "runtime", "progress", "version"}
CHAIN = ["world", "models", "activations", "dictionaries", "training", "evals", "jobs", "cli"]
ALLOWED: dict[str, set[str]] = {room: set(CHAIN[:i]) for i, room in enumerate(CHAIN)}
ALLOWED["results"] = set()
# Diffing measures pairs of models beside the evals, and knows nothing of those.
ALLOWED["diffing"] = set(CHAIN[: CHAIN.index("evals")])
ALLOWED["papers"] = set(CHAIN[: CHAIN.index("jobs")])
ALLOWED["faithfulness"] = {"world", "models"}
for room in ("training", "evals", "diffing", "faithfulness", "papers", "jobs"):
    ALLOWED[room].add("results")
for room in ("papers", "jobs"):
    ALLOWED[room] |= {"diffing", "faithfulness"}
# The command line parses, calls a job or a reproduction and prints; it reaches no further.
ALLOWED["cli"] = {"jobs", "papers"}


def imported(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that a module imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = [] if node.level == 0 else list(package[: len(package) - node.level + 1])
            parts = [*base, *([node.module] if node.module else [])]
            for alias in node.names:
                yield node.lineno, ".".join([*parts, alias.name])


def wrong_arrows(path: Path, source: str, root: Path = ROOT) -> list[str]:
    """Sentences about the imports of one file that the design does not allow."""
    inside = path.relative_to(root).parts
    here = inside[0] if len(inside) > 1 else ""
    found: list[str] = []
    for line, name in imported(ast.parse(source), ("saeworks", *inside[:-1])):
        parts = name.split(".")
        if parts[0] != "saeworks" or len(parts) == 1 or parts[1] in SHARED:
            continue
        there = parts[1]
        if there == here or (not (root / there).is_dir() and not (root / f"{there}.py").exists()):
            continue  # the same room, or a name such as saeworks.load
        if there not in ALLOWED.get(here, set()):
            found.append(f"{'/'.join(inside)}:{line} imports saeworks.{there}, which {here or 'a root module'} may not")
    return found


def test_every_room_has_its_arrows() -> None:
    rooms = {p.name for p in ROOT.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert rooms == set(ALLOWED)


def test_only_the_arrows_of_the_design_exist() -> None:
    wrong: list[str] = []
    for path in sorted(ROOT.rglob("*.py")):
        if path in (ROOT / "__init__.py", ROOT / "__main__.py"):
            continue  # one loads rooms on first use, test_import.py watches over it; the other starts the command line
        wrong += wrong_arrows(path, path.read_text(encoding="utf-8"))
    assert wrong == []


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("models/x.py", "from saeworks.evals.core import run"),
        ("models/x.py", "def f():\n    from saeworks.dictionaries import codes"),
        ("dictionaries/formats/x.py", "from ...training.recipes import RECIPES"),
        ("results/x.py", "import saeworks.evals.core"),
        ("evals/x.py", "from saeworks import jobs"),
        ("jobs/x.py", "from ..cli import app"),
        ("papers/x.py", "from saeworks.jobs.train import train"),
        ("evals/x.py", "from saeworks.papers.claims import Claim"),
        ("evals/x.py", "from saeworks.diffing.pairs import PairedBatch"),
        ("diffing/x.py", "from saeworks.evals.core import run"),
        ("cli/x.py", "import saeworks.models.language_model"),
        ("faithfulness/x.py", "from saeworks.evals.core import run"),
        ("evals/x.py", "from saeworks.faithfulness.records import Question"),
        ("files.py", "from saeworks.world import documents"),
    ],
)
def test_a_wrong_arrow_is_found(where: str, source: str) -> None:
    assert len(wrong_arrows(ROOT / where, source)) == 1


def test_allowed_arrows_are_not_reported() -> None:
    source = "from saeworks.results.envelope import Result\nfrom ..dictionaries import codes\nfrom saeworks import load"
    assert wrong_arrows(ROOT / "evals" / "x.py", source) == []
