"""What the README promises to people and machines: two commands, links that lead somewhere, an example that runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def section(heading: str) -> str:
    """The text below a second-level heading of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[heading]


@pytest.mark.parametrize("heading", ["Run", "Test"])
def test_one_fenced_command_line_follows(heading: str) -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```$", section(heading), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    assert len(blocks[0].strip().splitlines()) == 1


def test_the_commands_install_with_the_constraints_and_call_what_they_say() -> None:
    assert "-c constraints.txt" in section("Run")
    assert ".venv/bin/saeworks run" in section("Run")
    assert "-c constraints.txt" in section("Test")
    assert ".venv/bin/pytest" in section("Test")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    missing = [t for t in targets if not re.match(r"[a-z]+:|#", t) and not (page.parent / t.split("#")[0]).exists()]
    assert missing == []


def test_the_quick_start_runs_and_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", section("Quick start"), flags=re.MULTILINE | re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    assert code.count("100_000") == 1
    names: dict[str, Any] = {}
    exec(compile(code.replace("100_000", "8_192"), "README.md", "exec"), names)
    assert names["latents"].shape == (names["x"].shape[0], 512)
    printed = capsys.readouterr().out
    assert "active per token: [" in printed
    assert "explained_variance" in printed


def test_every_direct_dependency_is_pinned_once_within_its_range() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    from packaging.version import Version

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(name): Version(version) for name, version in pins}
    assert len(versions) == len(pins)
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        if requirement.name != "saeworks":
            assert versions[canonicalize_name(requirement.name)] in requirement.specifier
