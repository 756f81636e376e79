"""What a run would take, before it starts: tokens, parameters, memory, disk, time; and refusals of what cannot work."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeworks.errors import InputError
from saeworks.jobs.config import RunConfig, plain
from saeworks.jobs.doctor import free_disk, free_memory
from saeworks.jobs.inputs import named
from saeworks.jobs.workspace import open_run

if TYPE_CHECKING:
    from saeworks.activations.batches import Layout
    from saeworks.jobs.inputs import Activations
    from saeworks.models.language_model import LanguageModel
    from saeworks.training.cells import MemberConfig
    from saeworks.training.recipes import Recipe

# Bytes per weight in training: value, gradient and Adam's two averages, four bytes each.
TRAINING_BYTES = 16
# Bytes per weight in a checkpoint: value, the two averages, and the exported dictionary.
CHECKPOINT_BYTES = 16
# Checkpoints that can be on disk at once: two kept and one being written.
CHECKPOINTS = 3
# What Python, torch and transformers hold before any work, measured as the resident size of a process.
LIBRARY_BYTES = 450_000_000
# The calibration steps a dictionary of at most this width; wider ones are scaled up, their cost grows in proportion.
CALIBRATION_WIDTH = 4096


def plan(overrides: Mapping[str, Any], file: Path | None = None, measuring: bool = True) -> dict[str, Any]:
    """Resolve the configuration, load the model, measure its speed for about a second, and add everything up.

    ``measuring`` False leaves the evals after training out, as ``saeworks train`` does. Writes nothing. Raises
    ``InputError`` for a run that cannot work.
    """
    from saeworks.activations.batches import layout_of
    from saeworks.jobs.evaluate import check_evals
    from saeworks.jobs.inputs import open_activations

    config, workspace = open_run(overrides, file)
    grid(config)
    check_settings(config)
    if measuring:
        check_evals(config.evals, config)
    activations = open_activations(config)
    workspace.check_site(activations.site)
    layout = layout_of(activations.stream)
    members = grid(config, layout)
    asked = config.model_copy(update={"site": activations.site})
    config = asked if measuring else asked.model_copy(update={"evals": ()})
    check_disk(config, members, layout)
    disk = disk_bytes(config, members, layout)
    memory = memory_bytes(config, members, layout, activations.model)
    return {
        "config": plain(asked),
        "activations": {
            "site": activations.site,
            "width": layout.d_in,
            "tokens": config.tokens,
            "steps": steps(config),
        },
        "dictionaries": [
            {
                "name": m.name,
                "latents": m.width,
                **sparsity_columns(members, m),
                "parameters": parameters(m, layout),
            }
            for m in members
        ],
        "memory_bytes": {**memory, "total": sum(memory.values()), "free": free_memory()},
        "disk_bytes": {**disk, "total": sum(disk.values()), "free": free_disk(config.out)},
        "seconds": seconds(config, members, activations),
    }


def plan_rows(made: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The tables of a plan: title → rows."""
    work = made["activations"]
    rows = [
        {"what": "site", "value": f"{work['site']} (width {work['width']})"},
        {"what": "tokens", "value": f"{work['tokens']:,} in {work['steps']:,} steps"},
        {"what": "parameters", "value": f"{sum(d['parameters'] for d in made['dictionaries']):,}"},
        *_size_rows("memory", made["memory_bytes"]),
        *_size_rows("disk", made["disk_bytes"]),
        *({"what": f"time: {part.replace('_', ' ')}", "value": duration(s)} for part, s in made["seconds"].items()),
    ]
    return {"Plan (nothing was started)": rows, "Dictionaries": list(made["dictionaries"])}


def grid(config: RunConfig, layout: Layout | None = None) -> list[MemberConfig]:
    """Every recipe × width × sparsity of the configuration, each once, and for each of several sites.

    Crosscoders read all sites together, and transcoders go from sites to targets. Without the ``layout`` of the stream
    one site is assumed. Raises ``InputError`` for cells that cannot be.
    """
    from saeworks.training.cells import MemberConfig
    from saeworks.training.recipes import recipe
    from saeworks.training.schedules import default_learning_rate

    if named(config.target_site) and all(recipe(name).inputs != "target" for name in config.recipe):
        raise InputError(
            f"--target-site '{config.target_site}' was given, but none of the recipes ({', '.join(config.recipe)}) "
            "predicts another site; add 'transcoder' or 'skip_transcoder', or leave --target-site out."
        )
    members: dict[str, MemberConfig] = {}
    for name in config.recipe:
        chosen = recipe(name, **({"normalization": config.normalization} if config.normalization else {}))
        if chosen.inputs == "target" and not named(config.target_site):
            raise InputError(f"'{name}' predicts another site; name it with --target-site.")
        if chosen.inputs == "sources" and len(named(config.site)) < 2:
            raise InputError(f"'{name}' reads several sites side by side; give at least two, as --site A,B.")
        places = _places(chosen, layout)
        for width, number in product(config.width, sparsities(config, chosen)):
            chosen.group_sizes(width)  # refuses widths that its nested groups do not fit into
            if chosen.sparsity != "coefficient" and number > width:
                raise InputError(
                    f"k is {number}, but a dictionary of width {width} has only {width} latents; lower --k."
                )
            rate = config.learning_rate or chosen.published_rate(width)
            rate = rate or default_learning_rate(width, max(steps(config), 1))
            for source, target in places:
                member = MemberConfig(chosen, width, number, config.seed, rate, source, target)
                members[member.name] = member
    return list(members.values())


def _places(chosen: Recipe, layout: Layout | None) -> list[tuple[str | None, str | None]]:
    """Source and target of every dictionary of a recipe, None where the stream has only one."""
    sources = (layout.sources if layout else None) or (None,)
    targets = (layout.targets if layout else None) or (None,)
    if chosen.inputs == "sources":
        return [(None, None)]
    if chosen.inputs == "same":
        return [(source, None) for source in sources]
    if len(sources) == len(targets):
        return list(zip(sources, targets, strict=True))
    if min(len(sources), len(targets)) > 1:
        raise InputError(
            f"'{chosen.name}' was given {len(sources)} sites and {len(targets)} target sites; "
            "give as many of one as of the other, or only one of either."
        )
    return list(product(sources, targets))


def sparsities(config: RunConfig, chosen: Recipe) -> tuple[float, ...]:
    """The sparsities of a recipe's cells: ``k``, or the weights of its penalty where it has one of fixed weight."""
    return (config.penalty or chosen.grid) if chosen.sparsity == "coefficient" else config.k


def sparsity_columns(members: Sequence[MemberConfig], member: MemberConfig) -> dict[str, float | None]:
    """``{"k"}`` of a row of a table, and ``penalty`` where any dictionary of the grid has one of fixed weight."""
    fixed = member.recipe.sparsity == "coefficient"
    columns = {"k": None if fixed else member.sparsity}
    if any(m.recipe.sparsity == "coefficient" for m in members):
        columns["penalty"] = member.sparsity if fixed else None
    return columns


def check_settings(config: RunConfig) -> None:
    """Refuse settings that contradict each other, in a sentence."""
    if config.tokens < config.batch_size:
        raise InputError(f"tokens is {config.tokens}, less than one batch of {config.batch_size}; raise --tokens.")
    if config.buffer_tokens < 2 * config.batch_size:
        raise InputError(
            f"buffer_tokens is {config.buffer_tokens}, but shuffling needs at least two batches "
            f"({2 * config.batch_size} tokens); raise --buffer-tokens or lower --batch-size."
        )


def check_disk(config: RunConfig, members: Sequence[MemberConfig], layout: Layout) -> None:
    """Refuse a run that the disk cannot hold."""
    needed, free = sum(disk_bytes(config, members, layout).values()), free_disk(config.out)
    if needed > free:
        raise InputError(
            f"The run needs {size(needed)} of disk at '{config.out}', but {size(free)} are free; "
            "free some space, choose another --out, or lower --width or --buffer-tokens."
        )


def steps(config: RunConfig) -> int:
    """Training steps of a run."""
    return config.tokens // config.batch_size


def parameters(member: MemberConfig, layout: Layout) -> int:
    """Trained numbers of one dictionary: two matrices, two biases, and what its recipe adds."""
    own = member.layout(layout)
    d_out = own.d_out or own.d_in
    per_latent = {"gated": 3, "jumprelu": 2}.get(member.recipe.selection, 1)
    skip = own.d_in * d_out if member.recipe.skip else 0
    return member.width * (own.d_in + d_out + per_latent) + d_out + skip


def memory_bytes(
    config: RunConfig, members: Sequence[MemberConfig], layout: Layout, model: LanguageModel | None
) -> dict[str, int]:
    """Bytes of memory by purpose. The forward pass is taken as twenty arrays of the residual stream's size."""
    live: dict[str, int] = {}
    width = layout.d_in + (layout.d_out or 0)
    if model is not None:
        context = config.harvest_batch_size * config.context_length * model.d_model
        live = {
            "language_model": sum(p.numel() * p.element_size() for p in model.module.parameters()),
            "forward_pass": 20 * 4 * context,
            "buffer": config.buffer_tokens * (4 * width + 32),
        }
    return {
        "libraries": LIBRARY_BYTES,
        **live,
        "dictionaries": TRAINING_BYTES * sum(parameters(m, layout) for m in members),
        "training_step": 4 * config.batch_size * (3 * max(m.width for m in members) + 6 * width),
    }


def disk_bytes(config: RunConfig, members: Sequence[MemberConfig], layout: Layout) -> dict[str, int]:
    """Bytes of disk by purpose, at the worst moment of the run."""
    weights, width = sum(parameters(m, layout) for m in members), layout.d_in + (layout.d_out or 0)
    lines = steps(config) // config.log_every + 1
    return {
        "dictionaries": 4 * weights,
        "checkpoints": CHECKPOINTS * (CHECKPOINT_BYTES * weights + config.buffer_tokens * (4 * width + 32)),
        "log": 600 * len(members) * lines,
        "results": sum(200 * m.width + 200_000 for m in members) * len(config.evals),
    }


def seconds(config: RunConfig, members: Sequence[MemberConfig], activations: Activations) -> dict[str, float]:
    """Estimated seconds of harvesting, training and the measuring that follows, from about a second of real work."""
    from saeworks.activations.batches import layout_of

    model, layout = activations.model, layout_of(activations.stream)
    training = sum(step_seconds(config, m, layout) for m in members) * steps(config)
    parts = {"training": training}
    if model is not None:
        sites = [*named(activations.site), *named(config.target_site)]
        per_token = harvest_seconds_per_token(config, model, sites)
        # Scale, biases and thresholds are estimated on activations beyond those trained on.
        harvested = config.tokens + max(config.tokens // 10, 4096) + max(config.tokens // 8, 8192)
        # Per dictionary, the core eval runs the language model once more with the reconstruction spliced in.
        measured = config.eval_tokens * (4 + 2 * len(members)) * len(config.evals)
        parts = {"harvesting": per_token * harvested, **parts, "measuring": per_token * measured}
    return {**{k: round(v, 2) for k, v in parts.items()}, "total": round(sum(parts.values()), 2)}


def harvest_seconds_per_token(
    config: RunConfig, model: LanguageModel, sites: Sequence[str], budget: float = 0.5
) -> float:
    """Measured seconds per kept token of harvesting ``sites`` from the configured texts."""
    from saeworks.jobs.inputs import open_source

    documents = islice(open_source(config).documents(), config.harvest_batch_size)
    batch = model.tokenize([document.text for document in documents], config.context_length)
    model.harvest(batch, sites)  # the first pass pays for allocations
    rounds, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < budget:
        model.harvest(batch, sites)
        rounds += 1
    return elapsed / rounds / max(int(batch.keep.sum()), 1)


def step_seconds(config: RunConfig, member: MemberConfig, layout: Layout, budget: float = 0.15) -> float:
    """Measured seconds of one training step of ``member`` on random activations."""
    from dataclasses import replace

    import torch

    from saeworks.runtime import resolve_device
    from saeworks.training.member import Member

    k = 1 if member.recipe.sparsity == "coefficient" else int(member.sparsity)
    probe = min(member.width, max(CALIBRATION_WIDTH, k) // k * k)  # a multiple, for those that divide latents into k
    device = resolve_device(config.device)
    trial = Member(replace(member, width=probe), layout, dead_after=1 << 60, device=device)
    own = trial.layout
    x = torch.randn(config.batch_size, own.d_in, device=device) / own.d_in**0.5
    y = None if own.d_out is None else torch.randn(config.batch_size, own.d_out, device=device) / own.d_out**0.5
    schedule = member.recipe.schedule(1000)
    for _ in range(2):  # the first steps pay for allocations, and have no threshold to start the selection from
        trial.step(x, schedule, 0, y)
    rounds, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < budget:
        float(trial.step(x, schedule, 0, y)["total"])  # reading a number waits for the device
        rounds += 1
    return elapsed / rounds * member.width / probe


def duration(value: float) -> str:
    """Seconds as a person says them."""
    if value < 90:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    if value < 5400:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h"


def size(value: int | None) -> str:
    """Bytes as a person says them."""
    if value is None:
        return "unknown"
    return f"{value / 1e9:.2f} GB" if value >= 1e8 else f"{value / 1e6:.1f} MB"


def _size_rows(kind: str, parts: Mapping[str, int | None]) -> list[dict[str, str]]:
    return [{"what": f"{kind}: {part.replace('_', ' ')}", "value": size(value)} for part, value in parts.items()]
