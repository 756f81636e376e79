"""Which judge is asked: the settings that every eval with a judge has, and the judge that they name."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from saeworks.errors import InputError, did_you_mean
from saeworks.evals.judges.asking import Asker
from saeworks.evals.judges.budget import Budget, Clock
from saeworks.evals.judges.cache import AnswerCache, default_directory
from saeworks.evals.judges.http_judge import HttpJudge
from saeworks.evals.judges.protocol import Judge
from saeworks.evals.judges.world_judge import WorldJudge
from saeworks.files import sha256_json

_LOCAL = "local:"


class JudgeConfig(BaseModel):
    """``judge``: ``world``, the embedded world's own judge; ``local:DIR``, a causal language model in a directory or
    on the hub; or the address of an OpenAI-compatible server (``http://localhost:8000/v1``), of which ``judge_model``
    is asked. ``judge_key_variable`` names the environment variable that holds its API key.

    ``judge_budget_requests`` and ``judge_budget_tokens`` are the most that may be spent on a server in one run (None:
    any number), ``judge_per_minute`` the most requests a minute, ``judge_workers`` requests at a time,
    ``judge_timeout`` seconds of one request, and ``judge_retries`` attempts after the first. Answers are kept in
    ``judge_cache`` (None: the user's cache directory).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: str = "world"
    judge_model: str | None = None
    judge_key_variable: str | None = None
    judge_budget_requests: int | None = Field(default=10_000, ge=0)
    judge_budget_tokens: int | None = Field(default=None, ge=0)
    judge_per_minute: float | None = Field(default=None, gt=0)
    judge_workers: int = Field(default=4, gt=0)
    judge_timeout: float = Field(default=60.0, gt=0)
    judge_retries: int = Field(default=5, ge=0)
    judge_cache: str | None = None


@contextmanager
def open_asker(config: JudgeConfig, clock: Clock | None = None) -> Generator[Asker]:
    """The judge of ``config`` with its cache, closed when the block ends. Raises what :func:`open_judge` raises."""
    judge = open_judge(config, clock)
    try:
        directory = Path(config.judge_cache).expanduser() if config.judge_cache else default_directory()
        yield Asker(judge, AnswerCache(directory, judge) if judge.lasting else None)
    finally:
        judge.close()


def open_judge(config: JudgeConfig, clock: Clock | None = None) -> Judge:
    """The judge that ``config`` names.

    Raises:
        InputError: no such kind of judge, a server without the name of a model, a key that is not set, or a model
            that cannot be loaded.
    """
    given = config.judge
    if given == "world":
        return WorldJudge()
    if given.startswith(_LOCAL):
        from saeworks.evals.judges.local_judge import LocalJudge
        from saeworks.models.language_model import load_language_model

        return LocalJudge(load_language_model(given.removeprefix(_LOCAL)))
    if not given.startswith(("http://", "https://")):
        raise InputError(
            f"There is no judge '{given}'; write world, local:DIR or an address such as http://localhost:8000/v1."
            + (did_you_mean(given, ["world"]) if len(given) < 8 else "")
        )
    if not config.judge_model:
        raise InputError(f"The judge at '{given}' needs the name of the model to ask; give it as judge_model.")
    return HttpJudge(
        given,
        config.judge_model,
        key_variable=config.judge_key_variable,
        budget=Budget(config.judge_budget_requests, config.judge_budget_tokens),
        per_minute=config.judge_per_minute,
        timeout=config.judge_timeout,
        retries=config.judge_retries,
        workers=config.judge_workers,
        clock=clock,
    )


def identity_of(config: JudgeConfig) -> str:
    """A hash of what the judge's answers depend on: content for what lies on this machine, names for a server."""
    if config.judge.startswith(_LOCAL):
        from saeworks.models.checkpoints import fingerprint_directory

        path = Path(config.judge.removeprefix(_LOCAL)).expanduser()
        return sha256_json(["local", fingerprint_directory(path) if path.is_dir() else str(path)])
    if config.judge == "world":
        return sha256_json(WorldJudge().identity())
    return sha256_json(["server", config.judge, config.judge_model])
