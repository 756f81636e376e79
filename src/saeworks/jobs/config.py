"""The configurations of the jobs: defaults, below a saved run, below a YAML file, below flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from saeworks.errors import InputError, did_you_mean

#: What a run measures when nothing is named, and everything that can be measured (evals.runner has the modules).
EVALS = ("core", "sparse_probing", "latents")
ALL_EVALS = (
    *EVALS,
    "scr",
    "tpp",
    "shift",
    "absorption",
    "autointerp",
    "ravel",
    "unlearning",
    "meta_structure",
    "mdl",
)
#: Dictionaries that nobody trained, which scores are read against (evals.controls and evals.oracle make them).
CONTROLS = ("identity", "pca", "random_directions", "permuted_decoder", "oracle")


def _split(value: object) -> object:
    """``"a,b"`` and ``["a", "b"]`` and a single ``5`` all mean a list; anything else is left for pydantic to refuse."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, (list, tuple)):
        return tuple(cast("list[object]", value))
    return value


def _as_list(value: object) -> object:
    """Like :func:`_split`, but a string stays whole: file names may hold commas."""
    return (value,) if isinstance(value, str) else _split(value)


def _whole_number(value: object) -> object:
    """Accept ``1e6`` and ``1_000_000``: YAML reads them as text. Booleans are no numbers here."""
    if isinstance(value, bool):
        raise ValueError("a whole number is expected")
    if isinstance(value, str):
        try:
            number = float(value.replace("_", ""))
        except ValueError:
            return value
        return int(number) if number.is_integer() else value
    return value


def _controls(value: object) -> object:
    """Names as a list, ``all`` for every one of them."""
    names = _split(value)
    return CONTROLS if isinstance(names, tuple) and "all" in names else names


def _settings(value: object) -> object:
    """``["core.tokens=4096", …]`` as ``{"core": {"tokens": 4096}}``; values are read as YAML."""
    if not isinstance(value, (list, tuple)):
        return value
    import yaml

    found: dict[str, dict[str, Any]] = {}
    for item in cast("list[object]", value):
        place, equals, text = str(item).partition("=")
        name, dot, key = place.strip().partition(".")
        if not (equals and dot and name and key):
            raise ValueError(f"'{item}' is not of the form EVAL.KEY=VALUE, for example sparse_probing.max_classes=3.")
        try:
            found.setdefault(name, {})[key] = yaml.safe_load(text)
        except yaml.YAMLError as e:
            raise ValueError(f"the value in '{item}' is not valid YAML.") from e
    return found


def _named(options: tuple[str, ...]) -> BeforeValidator:
    def check(value: object) -> object:
        if isinstance(value, str) and value not in options:
            raise ValueError(f"it is unknown.{did_you_mean(value, options)}")
        return value

    return BeforeValidator(check)


Count = Annotated[int, BeforeValidator(_whole_number), Field(gt=0)]
Seed = Annotated[int, BeforeValidator(_whole_number), Field(ge=0)]
EvalName = Annotated[str, _named(ALL_EVALS)]
Files = Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(min_length=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split), Field(min_length=1)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(_split), Field(min_length=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weights = Annotated[tuple[Weight, ...], BeforeValidator(_split), Field(min_length=1)]
EvalNames = Annotated[tuple[EvalName, ...], BeforeValidator(_split), Field(min_length=1)]
ControlNames = Annotated[tuple[Annotated[str, _named(CONTROLS)], ...], BeforeValidator(_controls)]
Mode = Literal["compat", "corrected"]
Settings = Annotated[dict[EvalName, dict[str, Any]], BeforeValidator(_settings)]


class Inputs(BaseModel):
    """The keys that every job shares: which language model, which texts, where to read, where to write."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path
    model: str = "world"
    data: Files = ("world",)
    text_column: str = "text"
    label_column: str | None = None
    site: str | None = None
    seed: Seed = 0
    device: str = "auto"
    dtype: Annotated[str, _named(("float32", "bfloat16", "float16"))] = "float32"
    context_length: Count = 128
    harvest_batch_size: Count = 64


class Resumable(Inputs):
    """A job that may be continued with ``resume``, and the keys that may then differ from those it was started with."""

    may_change: ClassVar[frozenset[str]] = frozenset({"out", "resume"})

    out: Path = Path("runs")
    resume: bool = False


class RunConfig(Resumable):
    """Configuration of ``saeworks run`` and ``saeworks train``.

    ``recipe`` × ``width`` × sparsity is the grid of dictionaries; all of them see the same ``tokens`` activations. The
    sparsity is ``k`` for recipes that select k latents or aim at an L0, and ``penalty`` for those with a penalty of
    fixed weight (None: the weights published for the recipe).

    ``preset`` names a published configuration (``saeworks.training.presets``): its values stand in for the defaults.
    ``site`` None means the middle layer's residual stream; several, separated by commas, are one crosscoder's sources,
    or one dictionary each for other recipes. ``target_site`` is what transcoders predict: the n-th of several targets
    from the n-th of as many sites, or one from each site, or each from one site. ``normalization`` None means the
    recipe's own; ``learning_rate`` None the recipe's or the default for the width and length of the run;
    ``checkpoint_every`` None once a minute. ``parallel`` is what the processes that ``torchrun`` starts divide among
    them: the tokens of every batch (``data``) or the ``latents`` of every dictionary.
    """

    # One site has several names: Workspace.check_site compares it once the model has resolved it. A run may be
    # continued by another number of processes, divided in another way. What is measured otherwise is measured anew.
    may_change: ClassVar[frozenset[str]] = frozenset({"out", "resume", "site", "parallel", "mode", "settings"})

    out: Path = Path("runs/first")
    preset: str | None = None
    target_site: str | None = None
    recipe: Names = ("topk", "batch_topk", "matryoshka_batch_topk")
    width: Counts = (1024,)
    k: Counts = (8, 24)
    penalty: Weights | None = None
    tokens: Count = 300_000
    batch_size: Count = 512
    learning_rate: Rate | None = None
    buffer_tokens: Count = 32_768
    normalization: Literal["none", "unit_msn", "sqrt_d"] | None = None
    checkpoint_every: Count | None = None
    log_every: Count = 10
    evals: EvalNames = EVALS
    eval_tokens: Count = 16_384
    probe_texts: Count = 600
    mode: Mode = "corrected"
    settings: Settings = {}
    parallel: Literal["data", "latents"] = "data"


class EvaluateConfig(Inputs):
    """Configuration of ``saeworks eval``. ``model`` and ``site`` None mean what the dictionaries were trained on.

    ``mode``: ``compat`` gives the numbers of SAEBench, its faults included. ``settings``: eval → fields of its
    ``Config``. ``controls``: dictionaries that nobody trained, measured beside the others, and made from the first
    ``control_texts`` texts of training.
    """

    out: Path = Path("results")
    names: EvalNames = EVALS
    dictionary: Files
    model: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    eval_tokens: Count = 16_384
    probe_texts: Count = 600
    mode: Mode = "corrected"
    settings: Settings = {}
    controls: ControlNames = ()
    control_texts: Count = 3000


class BenchConfig(RunConfig):
    """Configuration of ``saeworks bench``: a grid as of ``saeworks train``, or ``dictionary``, and ``evals`` on all.

    ``dictionary``: folders of dictionaries to measure in place of training; ``model`` and ``site`` that are not given
    are then those that they were trained on. ``published``: a folder of SAEBench's results, shown beside one's own.
    ``at_once``: dictionaries held in memory together; those of one eval share what the language model computes.
    ``controls``, ``control_texts``: as of ``saeworks eval``.
    """

    # What is measured does not change what was trained, so a bench may be resumed with other evals.
    may_change: ClassVar[frozenset[str]] = RunConfig.may_change | {
        *("evals", "eval_tokens", "probe_texts", "dictionary", "published", "at_once"),
        *("controls", "control_texts"),
    }

    out: Path = Path("runs/bench")
    evals: EvalNames = ("core", "sparse_probing", "scr", "tpp", "absorption")
    dictionary: Files | None = None
    published: Path | None = None
    at_once: Count = 8
    controls: ControlNames = ()
    control_texts: Count = 3000

    def training(self) -> RunConfig:
        """The part that trains."""
        return RunConfig.model_validate({key: getattr(self, key) for key in RunConfig.model_fields})


class DiffConfig(Resumable):
    """Configuration of ``saeworks diff``: what fine-tuning changed between ``base`` and ``chat``.

    ``transcripts``: a file with one conversation a line, or ``world``; None means the world's for its own models.
    ``dictionary``: a crosscoder over the two that exists, in place of training one. ``presets``: how much is done
    (``saeworks.jobs.diff``). ``learning_rate`` None means the default of width and length. ``gate``: norm difference
    above which a latent is a candidate for being new: just above shared latents, or 0.9 as in the paper. ``cards``:
    latents shown with contexts.
    """

    may_change: ClassVar[frozenset[str]] = frozenset({"out", "resume", "presets"})

    out: Path = Path("runs/diff")
    base: str = "world"
    chat: str = "world:chat"
    transcripts: str | None = None
    messages_column: str = "messages"
    dictionary: Path | None = None
    presets: Annotated[str, _named(("quick", "standard", "full"))] = "full"
    recipe: str = "diffing-batch_topk"
    width: Count = 1024
    k: Count = 12
    penalty: Weight | None = None
    tokens: Count = 500_000
    batch_size: Count = 512
    learning_rate: Rate | None = None
    buffer_tokens: Count = 32_768
    checkpoint_every: Count | None = None
    max_norm_ratio: Annotated[float, Field(gt=1)] | None = None
    skip_first: Annotated[int, Field(ge=0)] = 0
    measure_tokens: Count = 100_000
    conversations: Count = 150
    answer_tokens: Count = 48
    first_tokens: Counts = (3, 9)
    gate: Annotated[float, Field(ge=0.5, lt=1)] = 0.6
    cards: Count = 24
    contexts: Count = 5


class CacheConfig(Inputs):
    """Configuration of ``saeworks cache``: write ``tokens`` activations of one site to ``out`` as ``store_dtype``."""

    out: Path = Path("activations")
    tokens: Count = 1_000_000
    store_dtype: Annotated[str, _named(("bfloat16", "float16", "float32"))] = "bfloat16"
    resume: bool = False


Config = TypeVar("Config", bound=Inputs)
Checked = TypeVar("Checked", bound=BaseModel)


def resolve(
    kind: type[Config],
    overrides: Mapping[str, Any],
    file: Path | None = None,
    saved: Mapping[str, Any] | None = None,
) -> Config:
    """Merge defaults < ``saved`` < ``file`` (YAML) < ``overrides`` (flags; None means not given) into a checked config.

    The values of a ``preset`` lie just above the defaults.

    Raises ``InputError`` with one sentence that names the key, what came and what was expected.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    from_file = read_yaml(file) if file else {}
    for key in from_file:
        if key not in kind.model_fields:
            raise InputError(f"'{file}' has the unknown key '{key}'.{did_you_mean(str(key), kind.model_fields)}")
    for key in given:
        if key not in kind.model_fields:
            raise InputError(f"There is no setting '{key}'.{did_you_mean(key, kind.model_fields)}")
    try:
        chosen = {**(saved or {}), **from_file, **given}
        return kind.model_validate({**_preset(kind, chosen), **chosen})
    except ValidationError as e:
        raise InputError(
            _sentence(e, file if _first_key(e) in from_file and _first_key(e) not in given else None)
        ) from e


def checked(kind: type[Checked], values: Mapping[str, Any], what: str) -> Checked:
    """``kind`` of these values; ``InputError`` with the sentence of :func:`resolve` and ``what`` for a wrong one."""
    for key in values:
        if key not in kind.model_fields:
            raise InputError(f"{what} has no setting '{key}'.{did_you_mean(key, kind.model_fields)}")
    try:
        return kind.model_validate(dict(values))
    except ValidationError as e:
        raise InputError(f"{what}: {_sentence(e, None)}") from e


def _preset(kind: type[Inputs], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the preset that was chosen, if one was. A site goes with its model: with another one it is left."""
    name = chosen.get("preset") if "preset" in kind.model_fields else None
    if not isinstance(name, str):
        return {}
    from saeworks.training.catalogue import preset

    found = preset(name)
    values = {"recipe": tuple(recipe.name for recipe in found.recipes), **found.settings}
    return {key: value for key, value in values.items() if key != "site" or "model" not in chosen}


def parts(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def numbers(text: str, flag: str) -> tuple[float, ...]:
    """The numbers in a comma-separated list; ``InputError`` for what is none."""
    found: list[float] = []
    for part in parts(text):
        try:
            found.append(float(part))
        except ValueError:
            raise InputError(f"{flag} is '{text}', but '{part}' is no number; give numbers, as in 16,32.") from None
    if not found:
        raise InputError(f"{flag} is empty; give numbers, as in 16,32.")
    return tuple(found)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; an empty file is an empty mapping. ``InputError`` names file and line of what is wrong."""
    import yaml

    try:
        value: object = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as e:
        raise InputError(f"The configuration file '{path}' does not exist; check the path given to --config.") from e
    except (UnicodeDecodeError, yaml.YAMLError) as e:
        problem = " ".join(str(e).split())
        raise InputError(f"The configuration file '{path}' is not valid YAML: {problem}.") from e
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"The configuration file '{path}' must hold 'key: value' lines, but holds a {_kind(value)}.")
    return cast("dict[str, Any]", value)


def plain(config: BaseModel) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    return config.model_dump(mode="json")


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any], may_change: frozenset[str]) -> list[str]:
    """Keys whose values differ between two plain configurations, those in ``may_change`` left out."""
    keys = sorted(set(before) | set(after))
    return [key for key in keys if key not in may_change and before.get(key) != after.get(key)]


def _first_key(error: ValidationError) -> str:
    location = error.errors()[0]["loc"]
    return str(location[0]) if location else ""


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "tuple": "a value or a list of values",
    "path": "a path",
}


def _sentence(error: ValidationError, file: Path | None) -> str:
    """The first complaint of pydantic as a sentence: which key, what came, what was expected."""
    first = error.errors()[0]
    key, kind, context = _first_key(error), first["type"], first.get("ctx") or {}
    where = f" in '{file}'" if file else ""
    if kind == "missing":
        return f"The setting '{key}' is missing; give it as --{key.replace('_', '-')} or in --config."
    came = f"The setting '{key}'{where} is {_shown(first['input'])}, but "
    if kind == "value_error":
        return came + str(context["error"])
    if kind == "greater_than":
        return f"{came}it must be greater than {context['gt']:g}."
    if kind == "greater_than_equal":
        return f"{came}it must be at least {context['ge']:g}."
    if kind == "too_short":
        return f"{came}at least one value is expected."
    if kind == "literal_error":
        return f"{came}one of {context['expected']} is expected."
    for prefix, expected in _EXPECTED.items():
        if kind.startswith(prefix):
            return f"{came}{expected} is expected."
    return f"{came}{first['msg'][0].lower()}{first['msg'][1:]}."


def _shown(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else f"{value!r}"


def _kind(value: object) -> str:
    return {"list": "list", "str": "text", "int": "number", "float": "number"}.get(type(value).__name__, "value")
