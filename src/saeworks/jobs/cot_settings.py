"""The settings of ``saeworks cot run``, and which of them a run that is continued may change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from saeworks.errors import InputError, did_you_mean
from saeworks.faithfulness.records import KEYWORD_JUDGE
from saeworks.files import read_json, write_json
from saeworks.jobs.config import Count, Seed, checked

TaskName = Literal["iphr", "oversampling", "patterns", "restoration", "shortcuts"]
#: Tasks that go on with what an earlier one left in the directory.
FOLLOW_UPS = ("oversampling", "patterns")
#: What may differ when a run is continued. Another grader reads the stored responses anew and asks for none.
CHANGEABLE = frozenset(
    {
        "resume",
        "grader",
        "epochs",
        "budget",
        "budget_cost",
        "prices",
        "base_url",
        "grader_base_url",
        "max_connections",
        "max_retries",
        "timeout",
        "rule",
    }
)
FILE = "run.json"


class CotRunConfig(BaseModel):
    """What is asked of whom, and what it may cost.

    Attributes:
        out: directory of the run. model: any model of Inspect, ``saeworks/world:chat`` among them.
        task: see ``TaskName``. grader: model that judges, or ``keyword``, which needs none.
        questions: ``world`` or a file or directory of questions. problems: file for restoration and shortcuts.
        limit: pairs per template, or problems, at most. epochs: draws for each question.
        prompt: how a question is put; with instructions, except to the embedded models, which have no room for them.
        temperature, top_p, max_tokens: of the model under test.
        budget: tokens. budget_cost: dollars, which need ``prices``. Both hold over all continuations of the run.
        max_retries: further attempts at a call that failed. timeout: seconds for one attempt.
        rule: ``final`` or ``early``. battery, splitting, critical_only, show_reference: of the shortcut task.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path
    model: str
    task: TaskName = "iphr"
    grader: str = KEYWORD_JUDGE
    questions: str = "world"
    problems: Path | None = None
    limit: Count | None = None
    epochs: Count = 10
    prompt: str | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_tokens: Count | None = None
    budget: Count | None = None
    budget_cost: Annotated[float, Field(gt=0)] | None = None
    prices: Path | None = None
    base_url: str | None = None
    grader_base_url: str | None = None
    max_connections: Count | None = None
    max_retries: Annotated[int, Field(ge=0)] = 5
    timeout: Count | None = None
    seed: Seed = 0
    rule: Literal["final", "early"] = "final"
    battery: Literal["shortcut", "latent-correction"] = "shortcut"
    splitting: Literal["model", "paragraphs", "lines"] = "model"
    critical_only: bool = False
    show_reference: bool = True
    resume: bool = False

    @property
    def base(self) -> bool:
        """Whether the task starts a run, rather than going on with one."""
        return self.task not in FOLLOW_UPS


def open_settings(given: Mapping[str, Any]) -> CotRunConfig:
    """The settings of a new run, or those of the run in ``out`` with what was given on top.

    Raises:
        InputError: a wrong setting, a directory that holds a run when none is to be continued (or the other way round),
            or a setting that a continued run may not change.
    """
    given = {key: value for key, value in given.items() if value is not None}
    out = Path(given.get("out") or "")
    if "out" not in given:
        raise InputError("Where should the run be written? Give --out DIR.")
    if out.is_file():
        raise InputError(f"--out '{out}' is a file; give a directory.")
    follows = given.get("task") in FOLLOW_UPS
    saved = saved_settings(out)
    if saved is None:
        if follows or given.get("resume"):
            what = f"--task {given['task']}" if follows else "--resume"
            raise InputError(f"There is no run in '{out}' that {what} could go on with; run 'saeworks cot run' first.")
        if "model" not in given:
            raise InputError("Which model is to be asked? Give --model, for example saeworks/world:chat.")
        return checked(CotRunConfig, given, "cot run")
    if not (given.get("resume") or follows):
        raise InputError(f"'{out}' holds a run already; add --resume to go on with it, or give another --out.")
    allowed = CHANGEABLE | {"out", "task"} if follows else CHANGEABLE | {"out"}
    for key, value in given.items():
        if key not in CotRunConfig.model_fields:
            raise InputError(f"There is no setting '{key}'.{did_you_mean(key, CotRunConfig.model_fields)}")
        if key not in allowed and _plain(saved.get(key)) != _plain(value):
            raise InputError(
                f"The run in '{out}' has {key} = {saved.get(key)!r}, and --{key.replace('_', '-')} is {value!r} now; "
                "leave it out, or start another run in another --out."
            )
    return checked(CotRunConfig, {**saved, **given}, "cot run")


def save_settings(config: CotRunConfig) -> None:
    """Write the settings into the run's directory. A follow-up leaves those of the run as they are."""
    if config.base:
        values = config.model_dump(mode="json", exclude_none=True, exclude={"out", "resume"})
        write_json(config.out / FILE, values)


def saved_judge(out: Path) -> str:
    """Who judges the responses of the run in a directory, whatever a follow-up's ``grader`` does there."""
    return str((saved_settings(out) or {}).get("grader", KEYWORD_JUDGE))


def saved_settings(out: Path) -> dict[str, Any] | None:
    """The settings of the run in a directory, None where there is no run."""
    path = out / FILE
    if not path.exists():
        return None
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"'{path}' is no settings file of a run; it is damaged.")
    return cast("dict[str, Any]", values)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
