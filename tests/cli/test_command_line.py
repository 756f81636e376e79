"""The command line itself: what loads, what it prints where, exit codes, and one sentence for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import saeworks
from saeworks.cli.app import main
from saeworks.errors import RunError

HEAVY = ("torch", "transformers", "datasets", "numpy", "pandas", "sklearn", "scipy", "matplotlib", "pydantic")


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh process after ``code``."""
    script = f"{code}\nimport sys; sys.stderr.write(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stderr.split())


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "saeworks.cli.app", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def is_one_sentence(text: str) -> bool:
    """One line, long enough to say something, and no traceback."""
    return len(text.strip().splitlines()) == 1 and len(text.split()) > 4 and "Traceback" not in text


def test_import_loads_nothing_heavy() -> None:
    assert loaded_by("import saeworks").isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["eval", "--help"],
        ["world", "--help"],
        ["world", "ask", "--help"],
        ["world", "concepts", "taxonomy/animal"],
        ["world", "sample", "--count", "1"],
    ],
)
def test_what_needs_no_model_loads_nothing_heavy(arguments: list[str]) -> None:
    assert loaded_by(f"from saeworks.cli.app import main; assert main({arguments!r}) == 0").isdisjoint(HEAVY)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == saeworks.__version__


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("run", "train", "eval", "cache", "doctor", "world"))


def test_the_flags_are_keys_of_the_configurations() -> None:
    from dataclasses import fields

    from saeworks.cli.flags import CacheFlags, EvalFlags, RunFlags
    from saeworks.jobs.config import CacheConfig, EvaluateConfig, RunConfig

    for flags, config in ((RunFlags, RunConfig), (EvalFlags, EvaluateConfig), (CacheFlags, CacheConfig)):
        names = {field.name for field in fields(flags)} - {"config"}
        assert names == set(config.model_fields) - {"names"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rnu"], 'Did you mean "run"?'),
        (["run", "--otu", "x"], "Did you mean --out?"),
        (["run", "--tokens", "many"], "--tokens"),
        (["run", "--seed"], "--seed"),
        (["run", "surplus"], "'surplus' was not expected"),
        (["run", "--width", "big"], "'width' is 'big', but a whole number is expected"),
        (["run", "--k", "0"], "greater than 0"),
        (["train", "--recipe", "relu", "--penalty", "inf", "--out", "{tmp}/new"], "'penalty' is 'inf'"),
        (["train", "--recipe", "relu", "--penalty", "-1", "--out", "{tmp}/new"], "must be at least 0"),
        (["train", "--learning-rate", "inf", "--out", "{tmp}/new"], "'learning_rate' is inf"),
        (["run", "--recipe", "topkk", "--out", "{tmp}/new"], "Did you mean 'topk'?"),
        (["run", "--k", "40", "--width", "32", "--out", "{tmp}/new"], "has only 32 latents"),
        (["run", "--buffer-tokens", "700", "--out", "{tmp}/new"], "at least two batches"),
        (["run", "--config", "{tmp}/absent.yaml"], "does not exist"),
        (["run", "--device", "tpu", "--out", "{tmp}/new"], "Unknown device 'tpu'"),
        (["eval", "cor", "--dictionary", "x"], "Did you mean 'core'?"),
        (["eval", "core"], "'dictionary' is missing"),
        (["eval", "core", "--dictionary", "{tmp}"], "holds no dictionary"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [part.replace("{tmp}", str(tmp_path)) for part in arguments]
    assert main(given) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert says in printed.err
    assert is_one_sentence(printed.err)
    assert not (tmp_path / "new").exists()
    # The same with --json: the error is the one object on standard output.
    assert main([*given, "--json"]) == 2
    printed = capsys.readouterr()
    assert says in json.loads(printed.out)["error"]


def test_an_unexpected_error_is_a_sentence_without_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("division by\nzero")

    monkeypatch.setattr("saeworks.jobs.doctor.doctor", fail)
    assert main(["doctor"]) == 1
    err = capsys.readouterr().err
    assert is_one_sentence(err)
    assert "ZeroDivisionError: division by zero" in err
    monkeypatch.setenv("SAEWORKS_DEBUG", "1")
    assert main(["doctor"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RunError("The disk went away; come back later."), 1, "The disk went away"),
        (OSError(28, "No space left on device"), 1, "The disk is full"),
        (RuntimeError("I/O error: File too large (os error 27)"), 1, "The disk is full"),
        (KeyboardInterrupt(), 130, "saeworks train --out 'my runs' --resume"),
    ],
)
def test_failures_have_their_exit_codes(
    error: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("saeworks.jobs.train.train", fail)
    assert main(["train", "--out", "my runs"]) == code
    err = capsys.readouterr().err
    assert says in err
    assert is_one_sentence(err)


def test_json_is_pure_even_when_libraries_print(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chatty() -> dict[str, object]:
        print("downloading something")
        return {"healthy": True, "checks": [{"l0": float("nan")}], "facts": (1.5, float("inf"))}

    monkeypatch.setattr("saeworks.jobs.doctor.doctor", chatty)
    assert main(["doctor", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"healthy": True, "checks": [{"l0": None}], "facts": [1.5, None]}
    assert "downloading something" in printed.err


def test_a_closed_pipe_is_no_error() -> None:
    script = "from saeworks.cli.app import main; import sys; sys.exit(main(['run', '--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run([sys.executable, "-c", script], stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a device of Linux")
def test_a_full_standard_output_is_a_failure() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "saeworks.cli.app", "--version"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert is_one_sentence(done.stderr)
    assert "full" in done.stderr


def test_hub_name_without_network_is_a_sentence(tmp_path: Path) -> None:
    done = command("run", "--model", "nobody/nothing-here", "--out", str(tmp_path / "new"), HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert is_one_sentence(done.stderr)
    assert "nobody/nothing-here" in done.stderr
    assert not (tmp_path / "new").exists()


def test_tables_show_square_brackets_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    from saeworks.cli.output import print_table

    print_table("Things", [{"name": "extra [hf]", "count": 12345, "share": 0.123456, "none": None, "ok": True}])
    out = capsys.readouterr().out
    assert all(part in out for part in ("extra [hf]", "12,345", "0.1235", "–", "yes"))
