"""Train many dictionaries on one stream, in one pass, resumable at any moment to the same bits."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeworks.activations.batches import ActivationBatch, concatenate, layout_of
from saeworks.activations.normalization import Normalization
from saeworks.activations.streams import Stream
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.dictionaries.formats import load, native
from saeworks.errors import InputError, RunError
from saeworks.files import disk_errors, write_json
from saeworks.progress import progress
from saeworks.training import checkpoints
from saeworks.training.calibration import calibrate
from saeworks.training.cells import MemberConfig
from saeworks.training.division import UNDIVIDED, Division
from saeworks.training.identity import identity, same_run
from saeworks.training.inputs import Inputs
from saeworks.training.interrupts import stop_signals
from saeworks.training.member import Member
from saeworks.training.metrics import metrics
from saeworks.training.sharing import check_division, own_batch

# A latent is dead after this many tokens without firing (2 % of a shorter run, but at least 64 batches).
DEAD_AFTER_TOKENS = 10_000_000
# What a launcher and a terminal both send on one Ctrl-C arrives within this many seconds.
PATIENCE = 5.0


@dataclass(frozen=True)
class TrainerConfig:
    """How long, in what portions, and how often to log and save.

    Attributes:
        tokens: activations every dictionary is trained on. batch_size: activations per step.
        log_every: steps between log lines.
        checkpoint_seconds: least time between checkpoints; stretched so that writing takes at most 2 % of the run.
        checkpoint_every: save every so many steps instead.
        normalization_tokens: activations the input scale and the initial ``b_dec`` are estimated on.
        calibration_tokens: activations drawn after the last step, for thresholds and recorded values. A source that
            ended during the run starts anew, so that these were then trained on.
    """

    tokens: int
    batch_size: int = 2048
    log_every: int = 10
    checkpoint_seconds: float = 60.0
    checkpoint_every: int | None = None
    normalization_tokens: int | None = None
    calibration_tokens: int | None = None

    @property
    def steps(self) -> int:
        """Number of training steps."""
        return self.tokens // self.batch_size

    def dead_after(self) -> int:
        """Tokens without firing after which a latent counts as dead."""
        return max(min(DEAD_AFTER_TOKENS, self.tokens // 50), 64 * self.batch_size)


@dataclass
class _Run:
    """What changes while training: one value, saved and restored as a whole."""

    step: int = 0
    log_bytes: int = 0


class Trainer:
    """Trains every member on the same batches of ``stream``.

    Args:
        stream: source of activations ``[token, d]``, of several sources, or with targets.
        members: the grid; names must differ.
        config: see :class:`TrainerConfig`.
        directory: where ``dictionaries/``, ``checkpoints/`` and ``train_log.jsonl`` go.
        device: where the dictionaries are trained.
        metadata: written into every dictionary's ``cfg.json`` (model, site, data …).
        division: how every step is divided over the ranks of the run. All ranks make the same trainer, with streams
            that hand out the same activations, and call the same methods; the first one writes.

    Raises:
        InputError: settings that cannot work, or a checkpoint of a different run.
        RankLost: another rank is gone.
    """

    def __init__(
        self,
        stream: Stream,
        members: Sequence[MemberConfig],
        config: TrainerConfig,
        directory: Path,
        device: torch.device | None = None,
        metadata: Mapping[str, Any] | None = None,
        division: Division = UNDIVIDED,
    ) -> None:
        names = [m.name for m in members]
        if not members or len(set(names)) != len(names):
            raise InputError(f"A run needs dictionaries that differ, but these were asked for: {', '.join(names)}.")
        every = 1 if config.checkpoint_every is None else config.checkpoint_every
        if config.batch_size < 2 or config.log_every < 1 or every < 1:
            raise InputError(
                f"batch_size {config.batch_size} must be at least 2 (a loss is measured against the variance of its "
                f"batch), log_every {config.log_every} and checkpoint_every {config.checkpoint_every} at least 1."
            )
        if config.steps < 1:
            raise InputError(f"{config.tokens} tokens are less than one batch of {config.batch_size}; raise --tokens.")
        check_division(members, config.batch_size, division)
        self.stream, self.config, self.directory = stream, config, Path(directory)
        self.division, self.ranks = division, division.ranks
        self.device = device or torch.device("cpu")
        self.metadata = dict(metadata or {})
        self.inputs = Inputs(layout_of(stream))
        # A dictionary of which every rank holds a part may be too large for the device of one.
        begins = torch.device("cpu") if division.by == "latents" else self.device
        self.members = [Member(m, self.inputs.layout, config.dead_after(), begins) for m in members]
        self.schedules = {m.name: m.recipe.schedule(config.steps) for m in members}
        self.state = _Run()

    def run(self, resume: bool = False) -> dict[str, Dictionary]:
        """Train to the end and return the dictionaries by name, also saved below ``dictionaries/``.

        A member whose loss stops being finite is frozen and reported in the log; the others go on. Of several ranks,
        only the first returns dictionaries.
        """
        newest = checkpoints.latest(self.directory / "checkpoints") or ""
        found = Path(self.ranks.text(str(newest))) if self.ranks.agreed(bool(newest)) else None
        if found is not None and not resume:
            raise InputError(
                f"'{self.directory}' already holds a run; add --resume to continue it, or choose another --out."
            )
        if found is not None:
            self._restore(found)
        elif self.ranks.agreed(any(self._finished.glob("*/cfg.json"))):
            raise InputError(
                f"'{self._finished}' holds dictionaries of an earlier run whose checkpoints are gone, so it cannot be "
                "continued; choose another --out, or delete that directory."
            )
        else:
            if self.ranks.lead:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._log_path.unlink(missing_ok=True)
            self._initialise()
            self._save()
        with stop_signals(0.0 if self.ranks.count == 1 else PATIENCE) as stop:
            self._train(stop)
        return self._finish()

    @property
    def _log_path(self) -> Path:
        return self.directory / "train_log.jsonl"

    @property
    def _finished(self) -> Path:
        return self.directory / "dictionaries"

    def _initialise(self) -> None:
        """Estimate input scales and set initial biases on the first activations of the stream."""
        wanted = self.config.normalization_tokens or min(2**17, max(self.config.tokens // 10, 4096))
        batch = self._take(wanted)
        if bool((batch.activations == batch.activations[0]).all()):
            raise InputError(
                f"All {len(batch)} activations of the stream are the same vector, so there is nothing to learn; "
                "check the site, and that the text holds more than one token."
            )
        for member in self.members:
            first = batch[slice(0, 8192)].to(member.device)
            self.inputs.estimate(batch, member.config.recipe.normalization)
            member.initialise(*self.inputs.rows(first, member.config))
            member.divide(self.division, self.device)

    def _take(self, tokens: int) -> ActivationBatch:
        """``tokens`` further activations of the stream, float32 on the CPU."""
        parts: list[ActivationBatch] = []
        missing = tokens
        while missing > 0:
            count = min(missing, self.config.batch_size)
            parts.append(self.stream.next_batch(count).to("cpu"))
            missing -= count
        return concatenate(parts)

    def _train(self, stop: list[int]) -> None:
        saved_at, interval = time.monotonic(), self.config.checkpoint_seconds
        batch_size, steps = self.config.batch_size, self.config.steps
        started, started_step = time.monotonic(), self.state.step
        what, done = f"training {len(self.members)} dictionaries", started_step * batch_size
        shown = {} if self.ranks.lead else {"disable": True}
        bar = progress(steps * batch_size, what, unit="tok", initial=done, **shown)
        with bar:
            while self.state.step < steps:
                stats = self._step(own_batch(self.stream, batch_size, self.division).to(self.device))
                self.state.step += 1
                bar.update(batch_size)
                if self.state.step % self.config.log_every == 0 or self.state.step == steps:
                    rate = (self.state.step - started_step) * batch_size / (time.monotonic() - started)
                    self._log(stats, rate)
                due = self.state.step == steps or self._due(time.monotonic() - saved_at, interval)
                stopping, saving = self._agreed(bool(stop), due)
                if saving:
                    before = time.monotonic()
                    self._save()
                    saved_at = time.monotonic()
                    if self.config.checkpoint_every is None:
                        interval = max(self.config.checkpoint_seconds, 50 * (saved_at - before))
                if stopping:
                    raise KeyboardInterrupt
        if self._agreed(bool(stop), False)[0]:  # asked for while the last checkpoint was being written
            raise KeyboardInterrupt

    def _agreed(self, stop: bool, due: bool) -> tuple[bool, bool]:
        """Whether to stop after this step, because any rank was asked to, and whether to save, by the first's clock."""
        asked = self.ranks.most(torch.tensor([stop, stop or (due and self.ranks.lead)], dtype=torch.uint8))
        return bool(asked[0]), bool(asked[1])

    def _due(self, elapsed: float, interval: float) -> bool:
        if self.config.checkpoint_every is not None:
            return self.state.step % self.config.checkpoint_every == 0
        return elapsed >= interval

    def _step(self, batch: ActivationBatch) -> dict[str, dict[str, Tensor]]:
        stats: dict[str, dict[str, Tensor]] = {}
        seen: dict[tuple[Any, ...], tuple[Tensor, Tensor | None]] = {}
        for member in self.members:
            if member.failure is not None:
                continue
            config = member.config
            key = (config.recipe.normalization, config.source, config.recipe.inputs == "target", config.target)
            if key not in seen:
                seen[key] = self.inputs.rows(batch, config)
            x, targets = seen[key]
            stats[member.name] = member.step(x, self.schedules[member.name], self.state.step, targets)
            if not math.isfinite(float(stats[member.name]["total"])):
                if not bool(batch.activations.isfinite().all()):
                    raise InputError(
                        f"Activations of the stream are not finite at step {self.state.step}; check the model, or "
                        "write the store again. What was trained before is in the last checkpoint."
                    )
                self._freeze(member, "loss")
        return stats

    def _freeze(self, member: Member, what: str) -> None:
        member.failure = (
            f"The {what} stopped being finite at step {self.state.step}; try a lower learning rate than "
            f"{member.config.learning_rate:g}."
        )
        if all(m.failure is not None for m in self.members):
            raise RunError(f"Every dictionary failed. {self.members[0].failure}")

    def _log(self, stats: Mapping[str, Mapping[str, Tensor]], rate: float) -> None:
        """One JSON line per dictionary, with the metric names of SAELens."""
        lines: list[str] = []
        for member in self.members:
            line: dict[str, Any] = {
                "step": self.state.step,
                "tokens": self.state.step * self.config.batch_size,
                "dictionary": member.name,
            }
            if member.failure is not None:
                line["failure"] = member.failure
            else:
                line |= metrics(member, stats[member.name], self._output_scale(member))
                line["details/current_learning_rate"] = member.optimizer.param_groups[0]["lr"]
                line["performance/tokens_per_second"] = round(rate, 1)
            lines.append(json.dumps(line))
        if not self.ranks.lead:
            return
        with disk_errors(self._log_path), open(self._log_path, "a", encoding="utf-8") as f:
            f.write("\n".join(lines) + "\n")

    def _output_scale(self, member: Member) -> float:
        """The scale of what a member reconstructs; the geometric mean of several sources'."""
        scale = self.inputs.target_scale(member.config) or self.inputs.scale(member.config)
        return math.prod(scale) ** (1 / len(scale)) if isinstance(scale, list) else scale

    def _save(self) -> None:
        """Write a checkpoint: the state of the run, and loadable dictionaries as they are now."""
        if self.ranks.lead and self._log_path.exists():
            with open(self._log_path, "rb") as f:
                os.fsync(f.fileno())
        self.state.log_bytes = self._log_path.stat().st_size if self._log_path.exists() else 0
        directory = self.directory / "checkpoints"
        with checkpoints.checkpoint(directory, self.state.step, self.ranks) as tmp:
            for member, dictionary in self._exports():
                native.write_into(dictionary, tmp / "dictionaries" / member.name)
            checkpoints.save_state(
                tmp,
                {
                    "identity": identity(self.members, self.config, self.stream),
                    "step": self.state.step,
                    "log_bytes": self.state.log_bytes,
                    "normalizations": {k: asdict(v) for k, v in self.inputs.normalizations.items()},
                    "members": {m.name: m.state_dict() for m in self.members},
                    "stream": self.stream.state_dict(),
                },
                self.division,
            )
        if self.ranks.lead:
            checkpoints.prune(directory)

    def _restore(self, path: Path) -> None:
        state = checkpoints.load_state(path, self.division)
        differing = same_run(identity(self.members, self.config, self.stream), state["identity"])
        if differing is not None:
            raise InputError(
                f"The run in '{self.directory}' was started with other settings ({differing} differ); "
                "resume with the same settings, or choose another --out."
            )
        self.state = _Run(state["step"], state["log_bytes"])
        self.inputs.normalizations = {k: Normalization(**v) for k, v in state["normalizations"].items()}
        for member in self.members:
            member.divide(self.division, self.device)
            member.load_state_dict(state["members"][member.name])
        self.stream.load_state_dict(state["stream"])
        if self.ranks.lead and self._log_path.exists():  # lines written after the checkpoint will be written again
            os.truncate(self._log_path, min(self.state.log_bytes, self._log_path.stat().st_size))

    def _alive(self) -> list[Member]:
        """Members that can be exported. A finite loss may still have had gradients that were not."""
        for member in self.members:
            if member.failure is None and not member.is_finite():
                self._freeze(member, "weights")
        return [m for m in self.members if m.failure is None]

    def _exports(self) -> Iterator[tuple[Member, Dictionary]]:
        """The dictionaries as they are now, at the first rank; all take part, for each may hold a part."""
        for member in self._alive():
            width, whole = member.config.width, self.division.whole
            weights = {name: whole(name, t, width) for name, t in member.exported_parameters().items()}
            complete = {name: t for name, t in weights.items() if t is not None}
            if complete:
                yield member, self._export(member, complete)

    def _export(self, member: Member, weights: Mapping[str, Tensor]) -> Dictionary:
        tokens = self.state.step * self.config.batch_size
        metadata = {**self.metadata, "tokens": tokens}
        if member.config.source is not None:
            metadata["site"] = member.config.source
        if member.config.target is not None:
            metadata["target_site"] = member.config.target
        scale, target_scale = self.inputs.scale(member.config), self.inputs.target_scale(member.config)
        return member.export(scale, metadata, target_scale, weights)

    def _finish(self) -> dict[str, Dictionary]:
        """Calibrate thresholds on the tokens that come next, then save."""
        directory, alive, lead = self._finished, self._alive(), self.ranks.lead
        for left in directory.glob(".*.tmp") if lead else ():  # half a dictionary of a killed run
            shutil.rmtree(left, ignore_errors=True)
        if not self.ranks.agreed(lead and not all((directory / m.name / "cfg.json").exists() for m in alive)):
            return {m.name: load(directory / m.name, str(self.device)) for m in alive} if lead else {}
        wanted = self.config.calibration_tokens or min(2**16, max(self.config.tokens // 8, 8192))
        held_out = self._take(wanted)
        finished: dict[str, Dictionary] = {}
        for member, dictionary in self._exports():
            x, targets = self.inputs.raw(held_out, member.config)
            finished[member.name] = calibrate(dictionary.to(self.device), x, targets)
            finished[member.name].save(directory / member.name)
        if lead:
            write_json(self.directory / "failures.json", {m.name: m.failure for m in self.members if m.failure})
        self.ranks.barrier()
        return finished
