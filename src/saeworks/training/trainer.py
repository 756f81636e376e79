"""Train many dictionaries on one stream, in one pass, resumable at any moment to the same bits."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeworks.activations.normalization import Normalization, estimate_normalization
from saeworks.activations.streams import Stream
from saeworks.dictionaries.dictionary import Dictionary
from saeworks.dictionaries.formats import load, native
from saeworks.errors import InputError, RunError
from saeworks.files import disk_errors, write_json
from saeworks.progress import progress
from saeworks.training import checkpoints
from saeworks.training.calibration import calibrate
from saeworks.training.member import Member, MemberConfig
from saeworks.training.schedules import Schedule

# A latent is dead after this many tokens without firing (2 % of a shorter run, but at least 64 batches).
DEAD_AFTER_TOKENS = 10_000_000


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
    normalizations: dict[str, Normalization] = field(default_factory=dict[str, Normalization])


class Trainer:
    """Trains every member on the same batches of ``stream``.

    Args:
        stream: source of activations ``[token, d]``.
        members: the grid; names must differ.
        config: see :class:`TrainerConfig`.
        directory: where ``dictionaries/``, ``checkpoints/`` and ``train_log.jsonl`` go.
        device: where the dictionaries are trained.
        metadata: written into every dictionary's ``cfg.json`` (model, site, data …).

    Raises:
        InputError: settings that cannot work, or a checkpoint of a different run.
    """

    def __init__(
        self,
        stream: Stream,
        members: Sequence[MemberConfig],
        config: TrainerConfig,
        directory: Path,
        device: torch.device | None = None,
        metadata: Mapping[str, Any] | None = None,
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
        self.stream, self.config, self.directory = stream, config, Path(directory)
        self.device = device or torch.device("cpu")
        self.metadata = dict(metadata or {})
        self.members = [Member(m, stream.width, config.dead_after(), self.device) for m in members]
        self.schedule = Schedule.for_run(config.steps)
        self.state = _Run()

    def run(self, resume: bool = False) -> dict[str, Dictionary]:
        """Train to the end and return the dictionaries by name, also saved below ``dictionaries/``.

        A member whose loss stops being finite is frozen and reported in the log; the others go on.
        """
        found = checkpoints.latest(self.directory / "checkpoints")
        if found is not None and not resume:
            raise InputError(
                f"'{self.directory}' already holds a run; add --resume to continue it, or choose another --out."
            )
        if found is not None:
            self._restore(found)
        elif any(self._finished.glob("*/cfg.json")):
            raise InputError(
                f"'{self._finished}' holds dictionaries of an earlier run whose checkpoints are gone, so it cannot be "
                "continued; choose another --out, or delete that directory."
            )
        else:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._log_path.unlink(missing_ok=True)
            self._initialise()
            self._save()
        with _stop_signals() as stop:
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
        x = self._take(wanted)
        if bool((x == x[0]).all()):
            raise InputError(
                f"All {len(x)} activations of the stream are the same vector, so there is nothing to learn; "
                "check the site, and that the text holds more than one token."
            )
        for member in self.members:
            convention = member.config.recipe.normalization
            if convention not in self.state.normalizations:
                self.state.normalizations[convention] = estimate_normalization(x, convention)
            member.initialise(x[:8192].to(self.device) * self._scale(member))

    def _take(self, tokens: int) -> Tensor:
        """``[tokens, d]`` further activations of the stream, on the CPU."""
        parts: list[Tensor] = []
        missing = tokens
        while missing > 0:
            count = min(missing, self.config.batch_size)
            parts.append(self.stream.next_batch(count).activations.float().cpu())
            missing -= count
        return torch.cat(parts)

    def _scale(self, member: Member) -> float:
        return self.state.normalizations[member.config.recipe.normalization].scale

    def _train(self, stop: list[int]) -> None:
        saved_at, interval = time.monotonic(), self.config.checkpoint_seconds
        batch_size, steps = self.config.batch_size, self.config.steps
        started, started_step = time.monotonic(), self.state.step
        what, done = f"training {len(self.members)} dictionaries", started_step * batch_size
        bar = progress(steps * batch_size, what, unit="tok", initial=done)
        with bar:
            while self.state.step < steps:
                x = self.stream.next_batch(batch_size).activations.to(self.device, torch.float32)
                stats = self._step(x)
                self.state.step += 1
                bar.update(batch_size)
                if self.state.step % self.config.log_every == 0 or self.state.step == steps:
                    rate = (self.state.step - started_step) * batch_size / (time.monotonic() - started)
                    self._log(stats, rate)
                last = self.state.step == steps
                if stop or last or self._due(time.monotonic() - saved_at, interval):
                    before = time.monotonic()
                    self._save()
                    saved_at = time.monotonic()
                    if self.config.checkpoint_every is None:
                        interval = max(self.config.checkpoint_seconds, 50 * (saved_at - before))
                if stop:
                    raise KeyboardInterrupt

    def _due(self, elapsed: float, interval: float) -> bool:
        if self.config.checkpoint_every is not None:
            return self.state.step % self.config.checkpoint_every == 0
        return elapsed >= interval

    def _step(self, x: Tensor) -> dict[str, dict[str, Tensor]]:
        stats: dict[str, dict[str, Tensor]] = {}
        scaled = {scale: x * scale for scale in {self._scale(m) for m in self.members}}
        for member in self.members:
            if member.failure is not None:
                continue
            stats[member.name] = member.step(scaled[self._scale(member)], self.schedule, self.state.step)
            if not math.isfinite(float(stats[member.name]["total"])):
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
                line |= _metrics(member, stats[member.name], self._scale(member))
                line["details/current_learning_rate"] = member.optimizer.param_groups[0]["lr"]
                line["performance/tokens_per_second"] = round(rate, 1)
            lines.append(json.dumps(line))
        with disk_errors(self._log_path), open(self._log_path, "a", encoding="utf-8") as f:
            f.write("\n".join(lines) + "\n")

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to belong to this run."""
        return json.loads(
            json.dumps(
                {
                    "members": {m.name: {**asdict(m.config), "dead_after": m.dead_after} for m in self.members},
                    "tokens": self.config.tokens,
                    "batch_size": self.config.batch_size,
                    "normalization_tokens": self.config.normalization_tokens,
                    "calibration_tokens": self.config.calibration_tokens,
                    "stream": self.stream.fingerprint(),
                }
            )
        )

    def _save(self) -> None:
        """Write a checkpoint: the state of the run, and loadable dictionaries as they are now."""
        if self._log_path.exists():
            with open(self._log_path, "rb") as f:
                os.fsync(f.fileno())
        self.state.log_bytes = self._log_path.stat().st_size if self._log_path.exists() else 0
        directory = self.directory / "checkpoints"
        with checkpoints.checkpoint(directory, self.state.step) as tmp:
            for member in self._alive():
                native.write_into(self._export(member), tmp / "dictionaries" / member.name)
            checkpoints.save_state(
                tmp,
                {
                    "identity": self._identity(),
                    "step": self.state.step,
                    "log_bytes": self.state.log_bytes,
                    "normalizations": {k: asdict(v) for k, v in self.state.normalizations.items()},
                    "members": {m.name: m.state_dict() for m in self.members},
                    "stream": self.stream.state_dict(),
                },
            )
        checkpoints.prune(directory)

    def _restore(self, path: Path) -> None:
        state = checkpoints.load_state(path)
        mine, theirs = self._identity(), state["identity"]
        for key in mine:
            if mine[key] != theirs.get(key):
                raise InputError(
                    f"The run in '{self.directory}' was started with other settings ({key} differ); "
                    "resume with the same settings, or choose another --out."
                )
        self.state = _Run(
            state["step"], state["log_bytes"], {k: Normalization(**v) for k, v in state["normalizations"].items()}
        )
        for member in self.members:
            member.load_state_dict(state["members"][member.name])
        self.stream.load_state_dict(state["stream"])
        if self._log_path.exists():  # lines written after the checkpoint will be written again
            os.truncate(self._log_path, min(self.state.log_bytes, self._log_path.stat().st_size))

    def _alive(self) -> list[Member]:
        """Members that can be exported. A finite loss may still have had gradients that were not."""
        for member in self.members:
            if member.failure is None and not member.is_finite():
                self._freeze(member, "weights")
        return [m for m in self.members if m.failure is None]

    def _export(self, member: Member) -> Dictionary:
        tokens = self.state.step * self.config.batch_size
        return member.export(self._scale(member), {**self.metadata, "tokens": tokens})

    def _finish(self) -> dict[str, Dictionary]:
        """Calibrate thresholds on the tokens that come next, then save."""
        directory, alive = self._finished, self._alive()
        for left in directory.glob(".*.tmp"):  # half a dictionary of a killed run
            shutil.rmtree(left, ignore_errors=True)
        if all((directory / m.name / "cfg.json").exists() for m in alive):
            return {m.name: load(directory / m.name, str(self.device)) for m in alive}
        wanted = self.config.calibration_tokens or min(2**16, max(self.config.tokens // 8, 8192))
        held_out = self._take(wanted)
        finished: dict[str, Dictionary] = {}
        for member in alive:
            finished[member.name] = calibrate(self._export(member), held_out)
            finished[member.name].save(directory / member.name)
        write_json(self.directory / "failures.json", {m.name: m.failure for m in self.members if m.failure})
        return finished


def _metrics(member: Member, stats: Mapping[str, Tensor], scale: float) -> dict[str, float]:
    metrics = {
        "losses/overall_loss": float(stats["total"]),
        "losses/mse_loss": float(stats["mse"]) / scale**2,
        "losses/auxiliary_reconstruction_loss": float(stats["aux"]) if "aux" in stats else 0.0,
        "metrics/l0": float(stats["l0"]),
        "metrics/explained_variance": 1.0 - float(stats["full"]),
        "sparsity/dead_features": float(member.dead().numel()),
        "details/grad_norm": float(stats["grad_norm"]),
        "details/threshold": member.threshold / scale,
    }
    if len(member.group_sizes) > 1:
        prefix = 0
        for size, error in zip(member.group_sizes, stats["prefixes"].tolist(), strict=True):
            prefix += size
            metrics[f"metrics/explained_variance_prefix_{prefix}"] = 1.0 - error
    return metrics


@contextmanager
def _stop_signals() -> Generator[list[int]]:
    """Collect interrupts instead of raising inside a step, so that a checkpoint is always between two steps.

    A second one stops at once: the step may be waiting for a stream that hangs.
    """
    stop: list[int] = []

    def handle(received: int, _frame: Any) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.append(received)

    previous: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[number] = signal.signal(number, handle)
        except ValueError:  # not in the main thread: leave signals alone
            break
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
