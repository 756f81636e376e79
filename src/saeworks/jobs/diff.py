"""``saeworks diff``: what fine-tuning changed in a model, from two models to a report.

The work is done in stages, each of which leaves one file behind and is not repeated while what it depends on is the
same: a run that was stopped goes on where it was.

    methods   comparisons that need no crosscoder              stages/method_NAME.json
    train     the crosscoder (has checkpoints of its own)      dictionaries/, checkpoints/
    measure   Latent Scaling, counts, contexts                 latents.parquet, stages/measure.json
    concepts  concepts of the embedded world, where known      stages/concepts.json
    patching  KL with latents patched into the base            stages/patching.json
    reading   logit effects and steering of shown latents      stages/reading.json

``result.json`` has all that was measured, ``report.html`` shows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from saeworks.errors import InputError
from saeworks.files import read_json, sha256_json, write_json
from saeworks.jobs.config import DiffConfig, plain, resolve
from saeworks.jobs.diff_inputs import member, notes, open_pair, take_crosscoder, train_crosscoder, transcripts_of
from saeworks.jobs.workspace import Workspace, open_run_as
from saeworks.results.envelope import provenance, without_nan
from saeworks.results.table_file import check_parquet
from saeworks.version import __version__

if TYPE_CHECKING:
    from saeworks.dictionaries.dictionary import Dictionary
    from saeworks.jobs.diff_inputs import Opened

SCHEMA_VERSION = 1
#: Presets: the methods they run, and whether a crosscoder is trained and measured.
METHODS: dict[str, tuple[str, ...]] = {
    "quick": ("per_token_kl", "difference_lens"),
    "standard": ("per_token_kl", "difference_lens", "difference_pca", "difference_sae"),
    "full": (),
}


def diff(overrides: Mapping[str, Any] | None = None, file: Path | None = None) -> dict[str, Any]:
    """Compare two models and write ``latents.parquet``, ``result.json`` and ``report.html`` below ``out``.

    Args:
        overrides: keys of :class:`saeworks.jobs.config.DiffConfig`; they win over the file.
        file: YAML file with the same keys.

    Returns:
        ``{"out", "report", "result", "latents", "dictionary", "site", "seconds", "counts", "kl": [...], "genuine":
        [...], "methods": [...], "notes"}``; what the preset leaves out is None or empty.

    Raises:
        InputError: bad input, found before anything is written wherever that is possible.
        RunError: the work could not be finished; what was saved is kept and ``resume`` continues.
    """
    started = time.monotonic()
    config, workspace = open_diff(overrides or {}, file)
    opened = open_pair(config)
    workspace.check_site(opened.site)
    config = config.model_copy(update={"site": opened.site})
    work = _Diff(config, workspace.root, opened)  # refuses bad input while nothing is written
    with workspace.locked(), workspace.started(config):
        summary = work.run()
        summary["seconds"] = {**work.seconds, "total": round(time.monotonic() - started, 2)}
        write_json(workspace.root / "result.json", without_nan(work.result(summary)))
        from saeworks.diffing.report import write_report

        write_report(workspace.root)
        workspace.write(config, finished=time.time(), seconds=summary["seconds"])
    return summary


def open_diff(overrides: Mapping[str, Any], file: Path | None) -> tuple[DiffConfig, Workspace]:
    """The configuration and where to write; refuses what cannot work before a model is loaded."""
    config = resolve(DiffConfig, overrides, file)
    if "model" in config.model_fields_set:
        raise InputError("A diff compares two models; name them as BASE and CHAT instead of --model.")
    config, workspace = open_run_as(DiffConfig, overrides, file)
    if config.dictionary is not None and (given := config.model_fields_set & {"recipe", "width", "k", "penalty"}):
        raise InputError(
            f"A dictionary to measure was given, and settings to train one ({', '.join(sorted(given))}) too; "
            "leave out --dictionary or the others."
        )
    if config.presets == "full":
        check_parquet()
        if config.dictionary is None:
            member(config)
    return config, workspace


class _Diff:
    """The stages of one diff, in order."""

    def __init__(self, config: DiffConfig, root: Path, opened: Opened) -> None:
        self.config, self.root, self.opened = config, root, opened
        self.seconds: dict[str, float] = {}
        self.found: dict[str, Any] = {}
        self.notes = notes(config, opened)
        full = config.presets == "full" and config.dictionary is not None
        self.given = take_crosscoder(cast("Path", config.dictionary), opened) if full else None
        self.hashes = {"base": opened.base.fingerprint(), "chat": opened.chat.fingerprint()}

    def run(self) -> dict[str, Any]:
        """Everything that the preset asks for; returns the summary without the seconds."""
        from saeworks.jobs import diff_stages as stages

        config, opened = self.config, self.opened
        # Methods that an earlier session with another preset has finished stay in the report; they cost nothing.
        finished = {path.stem.removeprefix("method_") for path in (self.root / "stages").glob("method_*.json")}
        names = [n for n in METHODS["standard"] if n in METHODS[config.presets] or n in finished]
        methods = [self.stage(f"method_{n}", {}, lambda n=n: stages.method(config, opened, n)) for n in names]
        folder: Path | None = None
        if config.presets == "full":
            folder, dictionary = self._crosscoder()
            self.hashes["dictionary"] = dictionary.fingerprint()
            own = {"dictionary": self.hashes["dictionary"]}
            self.stage(
                "measure", own, lambda: stages.measure(config, opened, dictionary, self.root), ("latents.parquet",)
            )
            measured: dict[str, Any] = self.found["measure"]
            if opened.world:
                self.stage("concepts", own, lambda: stages.concepts(config, opened, dictionary))
            groups, alive = measured["groups"], measured["alive"]
            if transcripts_of(config) is not None:
                self.stage(
                    "patching",
                    {**own, "groups": groups, "alive": alive},
                    lambda: stages.patching(config, opened, dictionary, groups, alive),
                )
            shown, genuine = measured["shown"], measured["genuine"]
            inputs = {**own, "shown": shown, "genuine": genuine}
            self.stage("reading", inputs, lambda: stages.reading(config, opened, dictionary, shown, genuine))
        return self._summary(folder, methods)

    def stage(
        self, name: str, inputs: Mapping[str, Any], compute: Callable[[], Any], files: tuple[str, ...] = ()
    ) -> Any:
        """What a stage gave: read where it was computed of the same inputs and settings, else computed and written.

        ``files`` below ``out`` are written by the stage as well, which is repeated where one of them is gone.
        """
        settings = {k: v for k, v in plain(self.config).items() if k not in ("out", "resume", "presets", "device")}
        # Models, texts and settings are the same or the workspace would have refused them; contents may still differ.
        key = sha256_json([__version__, settings, self.hashes, inputs])
        path = self.root / "stages" / f"{name}.json"
        if path.is_file() and all((self.root / file).is_file() for file in files):
            saved = read_json(path)
            if isinstance(saved, dict) and saved.get("key") == key:
                self.found[name] = saved["value"]
                self.seconds[name] = 0.0
                return self.found[name]
        start = time.monotonic()
        self.found[name] = without_nan(compute())
        write_json(path, {"key": key, "value": self.found[name]})
        self.seconds[name] = round(time.monotonic() - start, 2)
        return self.found[name]

    def _crosscoder(self) -> tuple[Path, Dictionary]:
        start = time.monotonic()
        if self.config.dictionary is not None:
            assert self.given is not None
            folder, dictionary = self.config.dictionary, self.given
        else:
            folder, dictionary = train_crosscoder(self.config, self.opened)
        self.seconds["train"] = round(time.monotonic() - start, 2)
        return folder, dictionary

    def _summary(self, folder: Path | None, methods: list[dict[str, Any]]) -> dict[str, Any]:
        measured = self.found.get("measure")
        full, patched = measured is not None, self.found.get("patching") or {}
        return {
            "out": str(self.root),
            "report": str(self.root / "report.html"),
            "result": str(self.root / "result.json"),
            "latents": str(self.root / "latents.parquet") if full else None,
            "dictionary": None if folder is None else str(folder),
            "site": self.opened.site,
            "counts": None if measured is None else measured["summary"],
            "kl": patched.get("table", []),
            "differences": patched.get("differences", []),
            "genuine": self._genuine() if full else [],
            "methods": methods,
            "notes": [*self.notes, *([patched["note"]] if patched.get("note") else [])],
        }

    def _genuine(self) -> list[dict[str, Any]]:
        """The genuinely new latents with their label where one is known."""
        labels = self.found.get("concepts") or {}
        return [{"latent": latent, **(labels.get(str(latent)) or {})} for latent in self.found["measure"]["genuine"]]

    def result(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """The content of ``result.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "saeworks_version": __version__,
            "definition": "model-diff/1",
            "config": plain(self.config),
            **summary,
            "stages": {name: value for name, value in self.found.items() if not name.startswith("method_")},
            "provenance": provenance(**self.hashes),
        }
