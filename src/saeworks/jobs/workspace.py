"""The workspace: the directory of one run, what lies where in it, and when it may be written."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from saeworks.errors import InputError
from saeworks.files import atomic_write_text, disk_errors, read_json, write_json
from saeworks.jobs.config import Resumable, RunConfig, changed_keys, plain, resolve
from saeworks.version import __version__

SCHEMA_VERSION = 1
Kind = TypeVar("Kind", bound=Resumable)


@dataclass(frozen=True, slots=True)
class Workspace:
    """Paths below one ``--out`` directory."""

    root: Path

    @property
    def run_file(self) -> Path:
        return self.root / "run.json"

    @property
    def dictionaries(self) -> Path:
        return self.root / "dictionaries"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def stages(self) -> Path:
        return self.root / "stages"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.run_file.is_file()

    def read(self) -> dict[str, Any]:
        """The content of ``run.json``; ``InputError`` when it is damaged or from a newer version."""
        value: Any = read_json(self.run_file)
        if not isinstance(value, dict) or "config" not in value:
            raise InputError(f"'{self.run_file}' is not a run file of saeworks; choose another --out.")
        if value.get("schema_version", 0) > SCHEMA_VERSION:
            raise InputError(
                f"'{self.run_file}' was written by a newer saeworks ({value.get('saeworks_version')}); update saeworks."
            )
        return value

    def write(self, config: Resumable, **facts: Any) -> None:
        """Write ``run.json`` (configuration plus ``facts`` of the run) and ``run.yaml`` (usable with ``--config``)."""
        import yaml

        before = self.read() if self.exists() else {"started": time.time()}
        settings = {key: value for key, value in plain(config).items() if key != "resume"}
        head = {"schema_version": SCHEMA_VERSION, "saeworks_version": __version__, "config": settings}
        write_json(self.run_file, {**before, **head, **facts})
        atomic_write_text(self.root / "run.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    def check_site(self, site: str) -> None:
        """Refuse to continue a run at another ``site`` (its canonical name) than it was started at."""
        saved = self.read()["config"].get("site") if self.exists() else None
        if saved not in (None, site):
            raise _other_settings(self.root, f"site was {saved!r} and is now {site!r}")

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the directory (made if absent) against a second run. However the process ends, the lock ends with it."""
        try:
            import fcntl
        except ImportError:  # Windows has no such locks
            yield
            return
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.root, os.O_RDONLY)
        try:
            with suppress(OSError):  # nor have some network file systems
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise InputError(
                        f"Another run is writing to --out '{self.root}' now; wait for its end, or choose another --out."
                    ) from None
            yield
        finally:
            os.close(handle)

    @contextmanager
    def started(self, config: Resumable) -> Generator[None]:
        """Write the run file; take it back when the input turns out bad before any progress was saved.

        A run on texts that have to be mended cannot be resumed, so nothing of it is worth keeping.
        """
        fresh = not self.exists()
        self.write(config)
        try:
            yield
        except InputError:
            steps = {p.name for p in self.checkpoints.glob("step-*")} - {"step-0"}
            if fresh and not steps and not self.stages.is_dir():
                self.discard()
            raise

    def discard(self) -> None:
        """Remove what a run writes before its first training step, and the directory if nothing else is in it."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        for name in ("run.json", "run.yaml", "train_log.jsonl"):
            (self.root / name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty: it is not ours to remove
            self.root.rmdir()


def open_run(overrides: Mapping[str, Any], file: Path | None) -> tuple[RunConfig, Workspace]:
    """The configuration of a run and its workspace, as :func:`open_run_as` opens them."""
    return open_run_as(RunConfig, overrides, file)


def open_run_as(kind: type[Kind], overrides: Mapping[str, Any], file: Path | None) -> tuple[Kind, Workspace]:
    """Resolve a configuration of this ``kind`` and check that its workspace may be written. Nothing is written here.

    Without ``resume`` the directory must be absent or empty. With it, a saved run's configuration is the base, and
    every key that is given must agree with it; a directory without a run is started afresh, so that the same command
    can be repeated after any interruption.
    """
    config = resolve(kind, overrides, file)
    workspace = Workspace(config.out)
    if config.out.exists() and not config.out.is_dir():
        raise InputError(f"--out '{config.out}' is a file; give a directory.")
    if not workspace.exists():
        if config.out.is_dir() and any(config.out.iterdir()):
            raise InputError(f"--out '{config.out}' is not empty and holds no run; choose an empty or new directory.")
        return config, workspace
    if not config.resume:
        raise InputError(
            f"--out '{config.out}' already holds a run, which was left as it is; "
            "add --resume to continue it, or choose another directory."
        )
    # A run of an earlier version lacks the keys that came later: it was run as their defaults say.
    complete = {**plain(kind()), **workspace.read()["config"]}
    saved = {key: value for key, value in complete.items() if key != "out"}
    config = resolve(kind, overrides, file, saved)
    changed = changed_keys(saved, plain(config), kind.may_change)
    if changed:
        now = plain(config)
        differences = ", ".join(f"{key} was {saved.get(key)!r} and is now {now[key]!r}" for key in changed)
        raise _other_settings(config.out, differences)
    return config, workspace


def _other_settings(out: Path, differences: str) -> InputError:
    return InputError(
        f"The run in '{out}' cannot be resumed with other settings: {differences}; "
        "give the old settings (or only --out and --resume), or choose another --out."
    )
