"""The ``saeworks`` command: parses, calls a job, prints; turns every failure into one sentence and an exit code.

Exit codes: 0 success, 1 failure, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext

from cyclopts import App, CycloptsError, Parameter

from saeworks.cli.bench import bench
from saeworks.cli.cache import cache
from saeworks.cli.compare import compare
from saeworks.cli.convert import convert
from saeworks.cli.cot import cot
from saeworks.cli.diff import diff
from saeworks.cli.doctor import doctor
from saeworks.cli.eval import evaluate
from saeworks.cli.output import print_json, printable, quiet_stdout
from saeworks.cli.papers import papers
from saeworks.cli.recipes import recipes
from saeworks.cli.run import run
from saeworks.cli.share import pull, push
from saeworks.cli.slurm import slurm
from saeworks.cli.train import train
from saeworks.cli.verify import verify
from saeworks.cli.world import world
from saeworks.errors import InputError, RunError
from saeworks.jobs.eval_help import eval_help
from saeworks.runtime import launched
from saeworks.version import __version__

app = App(
    name="saeworks",
    help="The workshop for sparse dictionaries of language models.",
    version=__version__,
    version_flags=["--version"],
    help_format="plaintext",
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)
for command, name in ((run, "run"), (train, "train"), (cache, "cache"), (doctor, "doctor")):
    app.command(command, name=name)
app.command(evaluate, name="eval", help=eval_help())
for command in (bench, compare, diff):
    app.command(command)
for command in (convert, verify, push, pull):
    app.command(command)
app.command(cot)
app.command(papers)
app.command(recipes)
app.command(slurm)
app.command(world)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    started = launched()
    if started is not None and started[0] > 0:  # of the processes of a run, the first one prints
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments  # what follows is another command's
    as_json = "--json" in own and not {"--help", "-h", "--version"} & set(own)
    try:
        with quiet_stdout() if as_json else nullcontext():
            code, message = _call(arguments)
            if message and as_json:
                print_json({"error": message})
            elif message:
                sys.stderr.write(f"saeworks: {message}\n")
        sys.stdout.flush()
    except OSError as e:
        # Standard output is gone. A reader that went away (a closed pager, say) has seen enough; a full disk is a
        # failure. Either way Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(e, BrokenPipeError):
            return 0
        sys.stderr.write(f"saeworks: {_one_line(_unexpected(e))}\n")
        return 1
    return code


def _call(arguments: list[str]) -> tuple[int, str]:
    """Exit code and message (empty on success) of one call."""
    try:
        if launched() is not None and arguments and arguments[0] not in ("run", "train", "--help", "-h", "--version"):
            raise InputError(f"torchrun starts 'train' and 'run'; start 'saeworks {arguments[0]}' without it.")
        result: object = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return (result if isinstance(result, int) else 0), ""
    except BrokenPipeError:
        raise
    except SystemExit as e:
        # Only the library that draws help and tables exits, when its pipe is closed.
        raise BrokenPipeError from e
    except KeyboardInterrupt:
        return 130, _said(_interrupted(arguments))
    except CycloptsError as e:
        e.verbose = False
        unused = " ".join(e.unused_tokens or [])
        message = f"'{unused}' was not expected here." if unused and "Unused" in str(e) else str(e)
        return 2, _said(f"{message} See 'saeworks --help'.")
    except InputError as e:
        _debug()
        return 2, _said(str(e), e)
    except RunError as e:
        _debug()
        return 1, _said(str(e), e)
    except Exception as e:
        _debug()
        return 1, _said(_unexpected(e), e)


def _said(message: str, error: Exception | None = None) -> str:
    """The message on one line; empty in all but one of the processes of a run, for they all fail for one reason."""
    own = launched() is None or os.environ.get("LOCAL_RANK", "0") == "0"
    return _one_line(message) if getattr(error, "speaks", own) else ""


def _unexpected(error: Exception) -> str:
    # safetensors reports I/O errors as its own exception, with the system's number in the text.
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full or any(mark in str(error) for mark in ("os error 28", "os error 27", "os error 122")):
        return f"The disk is full ({error}); free some space and run the same command with --resume."
    hint = "" if os.environ.get("SAEWORKS_DEBUG") == "1" else " Set SAEWORKS_DEBUG=1 to see where it happened."
    return f"Unexpected {type(error).__name__}: {error}.{hint}"


def _interrupted(arguments: list[str]) -> str:
    if arguments[:2] == ["world", "build"] or arguments[:1] == ["papers"]:
        return f"Interrupted; what was saved is kept. Continue with: saeworks {shlex.join(arguments)}"
    if launched() is not None:
        return "Interrupted; what was saved is kept. Continue with the same torchrun command and --resume."
    resumable = ("run", "train", "cache", "bench", "diff")
    if arguments and (arguments[0] in resumable or arguments[:2] == ["cot", "run"]):
        rest = arguments if "--resume" in arguments else [*arguments, "--resume"]
        return f"Interrupted; what was saved is kept. Continue with: saeworks {shlex.join(rest)}"
    return "Interrupted; no partial result was written."


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _debug() -> None:
    if os.environ.get("SAEWORKS_DEBUG") == "1":
        traceback.print_exc(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
