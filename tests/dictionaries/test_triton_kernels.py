"""The Triton kernels, run by Triton's interpreter, and the choice between them and torch."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from saeworks.dictionaries.kernels import choice
from saeworks.errors import InputError

APART = Path(__file__).parent / "apart"


needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed; it exists for Linux only"
)


@needs_triton
def test_kernels_in_the_interpreter() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(APART / "check_triton.py")],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    assert "skipped" not in run.stdout


@needs_triton
def test_kernels_compile_for_nvidia_gpus(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(APART / "compile_triton.py")],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    made = [line.split() for line in run.stdout.splitlines()]
    assert len(made) == 8
    assert all(int(size) > 0 for _, _, size in made)


def test_torch_computes_on_the_cpu() -> None:
    assert choice.kernels_for(torch.zeros(2)) is None


def test_an_unknown_choice_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, "cuda")
    with pytest.raises(InputError, match="give one of auto, torch, triton"):
        choice.kernels_for(torch.zeros(2))


@pytest.mark.parametrize("what", ["missing", "disagrees"])
def test_without_working_kernels_torch_computes_and_says_so(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        @staticmethod
        def agree(device: torch.device) -> bool:
            return False

    def load(name: str) -> type[Wrong]:
        if what == "missing":
            raise ModuleNotFoundError("No module named 'triton'")
        return Wrong

    monkeypatch.setattr(choice, "import_module", load)
    choice._checked.cache_clear()
    with pytest.warns(UserWarning, match="torch computes instead"):
        assert choice._checked(torch.device("cpu"), False) is None
    choice._checked.cache_clear()
    with pytest.raises((ModuleNotFoundError, InputError)):
        choice._checked(torch.device("cpu"), True)
    choice._checked.cache_clear()


def test_other_types_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, "triton")
    assert choice.kernels_for(torch.zeros(2, dtype=torch.float64)) is None
