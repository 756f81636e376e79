"""The flags that commands share: the keys of the configurations in ``jobs/config.py``; None means "not given"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

JsonFlag = Annotated[
    bool,
    Parameter(name="--json", help="Print one JSON object on standard output; progress goes to standard error."),
]
DryRunFlag = Annotated[bool, Parameter(help="Print tokens, memory, disk and time; start nothing.")]

GRID = Group("Grid", sort_key=2)
MORE = Group("More settings", sort_key=3)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class InputFlags:
    """Language model, texts, site and place to write."""

    config: Annotated[Path | None, Parameter(name=["--config", "-c"])] = None
    "YAML file with the same keys as the flags; flags win."
    out: Path | None = None
    "Directory to write."
    model: str | None = None
    "'world' (embedded), a model directory or a hub name."
    data: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None
    "Texts: world, world:DOMAIN, txt/jsonl/csv/parquet files or directories, hub data sets."
    text_column: str | None = None
    "Column that holds the text."
    label_column: str | None = None
    "Column that holds the label, for sparse probing."
    site: str | None = None
    "Where to read, for example layers.2.resid_post; TransformerLens names work too. Several with commas, for train."
    seed: int | None = None
    "Seed of everything random."
    device: str | None = None
    "auto, cpu, cuda, cuda:N or mps."
    dtype: Annotated[str | None, Parameter(group=MORE)] = None
    "Number type of the language model: float32, bfloat16 or float16."
    context_length: Annotated[int | None, Parameter(group=MORE)] = None
    "Tokens per context."
    harvest_batch_size: Annotated[int | None, Parameter(group=MORE)] = None
    "Contexts per forward pass of the language model."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RunFlags(InputFlags):
    """What is trained, and how."""

    preset: Annotated[str | None, Parameter(group=GRID)] = None
    "A published configuration, for example saebench or gemma-scope; other flags win over it."
    recipe: Annotated[str | None, Parameter(group=GRID)] = None
    "Recipes, comma-separated: topk, batch_topk, matryoshka_batch_topk, jumprelu, gated, relu …; see saeworks recipes."
    width: Annotated[str | None, Parameter(group=GRID)] = None
    "Numbers of latents, comma-separated."
    k: Annotated[str | None, Parameter(group=GRID)] = None
    "Numbers of active latents per token, comma-separated: selected, or aimed at by recipes such as jumprelu."
    penalty: Annotated[str | None, Parameter(group=GRID)] = None
    "Weights of the sparsity penalty for recipes without k (relu, gated, …); the published ones when not given."
    target_site: Annotated[str | None, Parameter(group=MORE)] = None
    "What transcoders predict, for example layers.2.mlp_out; several with commas, one for each --site."
    tokens: int | None = None
    "Tokens to train on."
    resume: bool | None = None
    "Continue the run in --out from its last checkpoint."
    batch_size: Annotated[int | None, Parameter(group=MORE)] = None
    "Tokens per training step."
    learning_rate: Annotated[float | None, Parameter(group=MORE)] = None
    "Adam's learning rate; chosen from width and length of the run when not given."
    buffer_tokens: Annotated[int | None, Parameter(group=MORE)] = None
    "Tokens held for shuffling; this bounds the memory of the stream."
    normalization: Annotated[str | None, Parameter(group=MORE)] = None
    "Scale of the activations: none, unit_msn or sqrt_d; the recipe's own when not given."
    checkpoint_every: Annotated[int | None, Parameter(group=MORE)] = None
    "Steps between checkpoints; once a minute when not given."
    log_every: Annotated[int | None, Parameter(group=MORE)] = None
    "Steps between lines of train_log.jsonl."
    parallel: Annotated[str | None, Parameter(group=MORE)] = None
    "What the processes started by torchrun divide: data (the tokens of a batch, the default) or latents."
    evals: Annotated[str | None, Parameter(group=MORE)] = None
    "Evals after training, comma-separated: core, sparse_probing, latents, or any that saeworks eval offers."
    eval_tokens: Annotated[int | None, Parameter(group=MORE)] = None
    "Tokens to measure on."
    probe_texts: Annotated[int | None, Parameter(group=MORE)] = None
    "Training texts per labelled set in sparse probing; half as many more are tested on."
    mode: Annotated[str | None, Parameter(group=MORE)] = None
    "compat: the numbers of SAEBench, its faults included; corrected (default): what they should be."
    settings: Annotated[list[str] | None, Parameter(name="--set", group=MORE)] = None
    "A setting of one eval, EVAL.KEY=VALUE, for example sparse_probing.max_classes=3; may be repeated."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class BenchFlags(RunFlags):
    """What is measured: a grid to train, or dictionaries that exist."""

    evals: str | None = None
    "Evals, comma-separated: any that saeworks eval offers."
    dictionary: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None
    "Measure these instead of training: dictionary folders, or a folder or workspace that holds several."
    published: Annotated[Path | None, Parameter(name="--import")] = None
    "Folder of SAEBench's result files, whose dictionaries become rows beside one's own."
    controls: str | None = None
    "Measure these too, to read scores against: identity, pca, random_directions, permuted_decoder, oracle, or all."
    control_texts: Annotated[int | None, Parameter(group=MORE)] = None
    "Training texts that controls are made from."
    at_once: Annotated[int | None, Parameter(group=MORE)] = None
    "Dictionaries held in memory together; those of one eval share the language model's work."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvalFlags(InputFlags):
    """What is measured."""

    dictionary: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None
    "Dictionary folders, or a folder or workspace that holds several."
    controls: str | None = None
    "Measure these too, to read scores against: identity, pca, random_directions, permuted_decoder, oracle, or all."
    control_texts: Annotated[int | None, Parameter(group=MORE)] = None
    "Training texts that controls are made from."
    eval_tokens: Annotated[int | None, Parameter(group=MORE)] = None
    "Tokens to measure on."
    probe_texts: Annotated[int | None, Parameter(group=MORE)] = None
    "Training texts per labelled set in sparse probing; half as many more are tested on."
    mode: Annotated[str | None, Parameter(group=MORE)] = None
    "compat: the numbers of SAEBench, its faults included; corrected (default): what they should be."
    settings: Annotated[list[str] | None, Parameter(name="--set", group=MORE)] = None
    "A setting of one eval, EVAL.KEY=VALUE, for example sparse_probing.max_classes=3; may be repeated."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CacheFlags(InputFlags):
    """What is stored."""

    tokens: int | None = None
    "Tokens to store."
    store_dtype: str | None = None
    "Number type on disk: bfloat16, float16 or float32."
    resume: bool | None = None
    "Continue an unfinished store in --out."


def given(flags: InputFlags | None) -> Mapping[str, Any]:
    """The flags that were given, without ``config``."""
    if flags is None:
        return {}
    values = {field.name: getattr(flags, field.name) for field in fields(flags) if field.name != "config"}
    return {key: value for key, value in values.items() if value is not None}
