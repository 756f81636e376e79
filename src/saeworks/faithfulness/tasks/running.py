"""Running a task in Inspect, quietly and without a network of its own: no display, no servers, no traces elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inspect_ai import Task
from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog
from inspect_ai.model import GenerateConfig, Model, get_model

from saeworks.errors import InputError, RunError
from saeworks.faithfulness.tasks import world_provider

#: Providers whose client library repeats a failed request by itself unless it is told not to; our calls are counted.
OWN_RETRIES = ("openai", "openai-api", "anthropic")


def open_model(name: str, base_url: str | None = None, **arguments: Any) -> Model:
    """A model by the name that Inspect knows it under.

    Raises:
        InputError: an unknown provider, a missing key or package, in Inspect's own words.
    """
    world_provider.register()
    if "/" not in name:
        raise InputError(
            f"'{name}' is no model of Inspect; write PROVIDER/MODEL, such as saeworks/world:chat or openai/gpt-4o-mini."
        )
    if name.split("/")[0] in OWN_RETRIES:
        arguments = {"max_retries": 0, **arguments}
    try:
        return get_model(name, base_url=base_url, memoize=False, **arguments)
    except InputError:
        raise
    except Exception as e:
        raise InputError(f"The model '{name}' cannot be opened: {_plain(str(e))}") from e


def run_task(
    task: Task,
    model: Model,
    roles: Mapping[str, Model],
    log_dir: Path,
    *,
    max_connections: int | None = None,
    timeout: int | None = None,
) -> EvalLog:
    """Run one task to its end and return its log, which also lies in ``log_dir``.

    Failed calls do not end the run: they are outcomes. Inspect makes one attempt at each call; whether there is another
    one is up to :class:`saeworks.faithfulness.tasks.asking.Caller`. ``timeout`` is for one attempt, in seconds.

    Raises:
        RunError: Inspect could not run the task, or a sample broke, which no answer of a model should bring about.
    """
    # Inspect's own trace goes where the run is; nothing is written into the user's directories.
    log_dir.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("INSPECT_TRACE_FILE", str(log_dir / "trace.log"))
    limits: dict[str, Any] = {
        "max_retries": 0,
        "attempt_timeout": timeout,
        "max_connections": max_connections,
    }
    for one in {id(m): m for m in (model, *roles.values())}.values():
        one.config = one.config.merge(GenerateConfig(**{k: v for k, v in limits.items() if v is not None}))
    logs = inspect_eval(
        task,
        model=model,
        model_roles=dict(roles),
        log_dir=str(log_dir),
        display="none",
        log_level="error",
        log_realtime=False,
        log_model_api=False,
        acp_server=False,
        ctl_server=False,
        fail_on_error=False,
        score_display=False,
    )
    if not logs:
        raise RunError("Inspect ran nothing and gave no reason.")
    log = logs[0]
    if log.status == "cancelled":
        raise KeyboardInterrupt
    if log.status != "success":
        said = log.error.message if log.error else "it gave no reason"
        raise RunError(f"Inspect could not finish the task '{task.name}': {_plain(said)}")
    if broken := [sample for sample in log.samples or [] if sample.error is not None]:
        said = broken[0].error.message if broken[0].error else ""
        raise RunError(f"{len(broken)} samples of the task '{task.name}' broke, the first of them with: {_plain(said)}")
    return log


def _plain(text: str) -> str:
    """Without the markup of a terminal, on one line."""
    import re

    return " ".join(re.sub(r"\[/?[a-z ]+\]", "", text).split())
