"""The report: one HTML page made only from the files of a workspace, readable anywhere and without a network."""

from __future__ import annotations

from pathlib import Path

from saeworks.files import atomic_write_text
from saeworks.results import report_plots as plots
from saeworks.results import report_sections as sections
from saeworks.results.report_data import Workspace, read_workspace
from saeworks.results.report_page import Section, page
from saeworks.results.report_page import plots as side_by_side

FILE = "report.html"


def write_report(workspace: Path) -> Path:
    """Write ``workspace/report.html`` from the workspace's files and return its path.

    The page holds no scripts and loads nothing from anywhere. Everything read from files is escaped.
    Raises ``InputError`` when the directory is no workspace or a file in it is damaged.
    """
    target = Path(workspace) / FILE
    atomic_write_text(target, render(read_workspace(workspace)))
    return target


def render(workspace: Workspace) -> str:
    """The page as text."""
    model = workspace.config.get("model") or workspace.common("model_name") or "a language model"
    return page(
        f"Sparse dictionaries of {model}",
        sections.header(workspace),
        _content(workspace),
        "Made by saeworks from the files of this workspace alone; <code>results/</code> holds every number as JSON.",
    )


def _content(workspace: Workspace) -> list[Section]:
    """The sections, empty where there is nothing to show."""
    probing = side_by_side(plots.probing_figure(workspace))
    parts = [
        ("dictionaries", "Dictionaries", "", sections.table(workspace) if workspace.entries else ""),
        (
            "fidelity",
            "Fidelity against sparsity",
            "A dictionary should rebuild the activations, and keep the model's predictions, with few active latents.",
            side_by_side(plots.fidelity_figures(workspace)),
        ),
        (
            "probing",
            "Probing",
            "If a concept has a latent of its own, a probe that may use only one latent is nearly as good as one that "
            "sees all activations.",
            probing + sections.probing_table(workspace) if probing else "",
        ),
        (
            "latents",
            "Latents",
            "Strongest contexts, one per document; the stronger the colour, the larger the activation (hover for the "
            "value). Latents are the best match of a concept each; those marked random were drawn from all that fire.",
            sections.latents(workspace),
        ),
        (
            "hierarchy",
            "Hierarchies",
            "A good latent for a parent concept fires on all of its children. Red children are holes: the parent's "
            "latent misses them more often than not; with * another latent has absorbed them.",
            sections.hierarchy(workspace),
        ),
        (
            "inside",
            "Densities and prefixes",
            "",
            side_by_side(plots.density_figure(workspace) + plots.prefix_figure(workspace)),
        ),
        ("training", "Training", "", side_by_side(plots.training_figures(workspace))),
        ("definitions", "Definitions", "", sections.definitions()),
        ("provenance", "Provenance", "", sections.provenance(workspace)),
    ]
    return [Section(*part) for part in parts]
