"""``saeworks diff``: what fine-tuning changed in a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from saeworks.cli.flags import GRID, MORE, DryRunFlag, InputFlags, JsonFlag, given
from saeworks.cli.output import print_json, print_line, print_table


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DiffFlags(InputFlags):
    """What is compared, and how thoroughly."""

    model: Annotated[str | None, Parameter(show=False)] = None
    label_column: Annotated[str | None, Parameter(show=False)] = None
    transcripts: str | None = None
    "Conversations: a file with one JSON object a line, or world; the world's own for its models when not given."
    messages_column: Annotated[str | None, Parameter(group=MORE)] = None
    "Key that holds the list of messages; messages when not given."
    presets: str | None = None
    "quick (KL and difference lens), standard (also PCA and a dictionary of differences), full (crosscoder; default)."
    dictionary: Path | None = None
    "Folder of a crosscoder over both models to measure, in place of training one."
    recipe: Annotated[str | None, Parameter(group=GRID)] = None
    "A crosscoder's recipe: diffing-batch_topk (default), diffing-l1, crosscoder_l1 …; see saeworks recipes."
    width: Annotated[int | None, Parameter(group=GRID)] = None
    "Number of latents."
    k: Annotated[int | None, Parameter(group=GRID)] = None
    "Active latents per token."
    penalty: Annotated[float | None, Parameter(group=GRID)] = None
    "Weight of the sparsity penalty for recipes without k."
    tokens: int | None = None
    "Tokens to train the crosscoder on."
    resume: bool | None = None
    "Continue the diff in --out; stages that are finished are kept."
    gate: Annotated[float | None, Parameter(group=MORE)] = None
    "Norm difference above which a latent looks new: 0.6, just above shared latents, or 0.9 as in the paper."
    batch_size: Annotated[int | None, Parameter(group=MORE)] = None
    "Tokens per training step."
    learning_rate: Annotated[float | None, Parameter(group=MORE)] = None
    "Adam's learning rate; chosen from width and length of the run when not given."
    buffer_tokens: Annotated[int | None, Parameter(group=MORE)] = None
    "Tokens held for shuffling."
    checkpoint_every: Annotated[int | None, Parameter(group=MORE)] = None
    "Steps between checkpoints; once a minute when not given."
    max_norm_ratio: Annotated[float | None, Parameter(group=MORE)] = None
    "Leave out tokens whose norm exceeds so many times the median in either model; 2 is usual, none by default."
    skip_first: Annotated[int | None, Parameter(group=MORE)] = None
    "Positions at the start of every row that are read but not measured."
    measure_tokens: Annotated[int | None, Parameter(group=MORE)] = None
    "Held-out tokens to measure latents on."
    conversations: Annotated[int | None, Parameter(group=MORE)] = None
    "Held-out conversations to patch."
    answer_tokens: Annotated[int | None, Parameter(group=MORE)] = None
    "Longest answer that the chat model gives."
    first_tokens: Annotated[str | None, Parameter(group=MORE)] = None
    "Groups of the first so many tokens of an answer, comma-separated."
    cards: Annotated[int | None, Parameter(group=MORE)] = None
    "Genuinely new latents shown with contexts."
    contexts: Annotated[int | None, Parameter(group=MORE)] = None
    "Contexts kept of every latent."


def diff(
    base: Annotated[str | None, Parameter(help="Base model: world, a directory or a hub name.")] = None,
    chat: Annotated[str | None, Parameter(help="Fine-tuned model: world:chat, a directory or a hub name.")] = None,
    /,
    flags: DiffFlags | None = None,
    *,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> None:
    """Compare a model with its fine-tuned version: which latents are genuinely new, why others are not, what they do.

    With no arguments it compares the embedded models.
    """
    overrides: Mapping[str, Any] = {
        **given(flags),
        **({"base": base} if base is not None else {}),
        **({"chat": chat} if chat is not None else {}),
    }
    file = flags.config if flags else None
    if dry_run:
        from saeworks.jobs.diff_plan import plan

        made = plan(overrides, file)
        return print_json(made) if json else print_table("Plan (nothing was started)", made["rows"])
    from saeworks.jobs.diff import diff as job

    summary = job(overrides, file)
    if json:
        return print_json(summary)
    _print(summary)
    print_line(f"Report: {summary['report']}")
    return None


def _print(summary: Mapping[str, Any]) -> None:
    counts = summary["counts"]
    if counts is not None:
        keys = ("latents", "alive", "candidates", "genuine", "complete_shrinkage", "decoupled", "undecided", "twins")
        print_table("Latents", [{key: counts[key] for key in keys}])
        print_table("Genuinely new", _genuine(summary["genuine"]))
        keys = ("condition", "latents", "kl", "kl_low", "kl_high", "recovered")
        rows = [{key: row[key] for key in keys} for row in summary["kl"] if row["group"] == "all"]
        if rows:
            print_table("KL of the chat model's answers with the base's activations, changed as follows", rows)
    for note in summary["notes"]:
        print_line(f"Note: {note}")
    for one in summary["methods"]:
        print_table(one["method"], [dict(one["numbers"])])


def _genuine(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    keys = ("latent", "concept", "unit", "f1", "known_to")
    return [{key: row.get(key) for key in keys} for row in rows]
