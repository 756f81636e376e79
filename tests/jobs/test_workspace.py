"""The workspace: a run is never overwritten, and is continued only with its own settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saeworks.errors import InputError
from saeworks.jobs.config import RunConfig, resolve
from saeworks.jobs.workspace import Workspace, open_run


def started(root: Path, **settings: object) -> Workspace:
    workspace = Workspace(root)
    workspace.write(resolve(RunConfig, {"out": root, "site": "layers.1.resid_post", **settings}))
    return workspace


def test_opening_a_run_writes_nothing(tmp_path: Path) -> None:
    config, workspace = open_run({"out": tmp_path / "new"}, None)
    assert config.out == workspace.root
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    workspace = started(tmp_path / "run", tokens=5000)
    before = workspace.run_file.read_bytes()
    with pytest.raises(InputError, match="already holds a run, which was left as it is; add --resume"):
        open_run({"out": tmp_path / "run"}, None)
    assert workspace.run_file.read_bytes() == before


def test_a_directory_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="not empty and holds no run"):
        open_run({"out": tmp_path}, None)
    with pytest.raises(InputError, match="is a file"):
        open_run({"out": tmp_path / "thesis.tex"}, None)


def test_resume_takes_the_saved_settings(tmp_path: Path) -> None:
    started(tmp_path / "run", tokens=5000, k=(3,), width=(64,))
    config, _ = open_run({"out": tmp_path / "run", "resume": True}, None)
    assert (config.tokens, config.k, config.width, config.site) == (5000, (3,), (64,), "layers.1.resid_post")
    same, _ = open_run({"out": tmp_path / "run", "resume": True, "tokens": 5000, "k": "3"}, None)
    assert same == config


def test_resume_with_other_settings_says_which(tmp_path: Path) -> None:
    started(tmp_path / "run", tokens=5000)
    with pytest.raises(InputError, match="tokens was 5000 and is now 6000"):
        open_run({"out": tmp_path / "run", "resume": True, "tokens": 6000}, None)


def test_resume_of_a_moved_run(tmp_path: Path) -> None:
    started(tmp_path / "run", tokens=5000)
    (tmp_path / "run").rename(tmp_path / "moved")
    config, _ = open_run({"out": tmp_path / "moved", "resume": True}, None)
    assert (config.tokens, config.out) == (5000, tmp_path / "moved")


def test_resume_without_a_run_starts_one(tmp_path: Path) -> None:
    config, workspace = open_run({"out": tmp_path / "new", "resume": True, "tokens": 9000}, None)
    assert config.tokens == 9000
    assert not workspace.exists()


def test_the_saved_file_is_a_configuration_file(tmp_path: Path) -> None:
    started(tmp_path / "run", tokens=5000, k=(3, 4))
    config = resolve(RunConfig, {"out": tmp_path / "other"}, tmp_path / "run" / "run.yaml")
    assert (config.tokens, config.k, config.out) == (5000, (3, 4), tmp_path / "other")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a run file"),
        (json.dumps({"schema_version": 99, "config": {}, "saeworks_version": "9.9"}), "newer saeworks"),
    ],
)
def test_damaged_run_files_are_refused(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=says):
        open_run({"out": tmp_path, "resume": True}, None)


def test_facts_are_added_and_the_start_is_kept(tmp_path: Path) -> None:
    workspace = started(tmp_path / "run")
    begun = workspace.read()["started"]
    workspace.write(resolve(RunConfig, {"out": tmp_path / "run"}), finished=1.5)
    assert workspace.read()["started"] == begun
    assert workspace.read()["finished"] == 1.5


def test_a_second_run_is_kept_out_while_the_first_one_writes(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "run")
    with workspace.locked(), pytest.raises(InputError, match="Another run is writing"), workspace.locked():
        pass
    with workspace.locked():
        assert list(workspace.root.iterdir()) == []


def test_a_run_that_lacks_a_later_key_can_be_continued(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    Workspace(out).write(resolve(RunConfig, {"out": out, "tokens": 5000}))
    record = json.loads((out / "run.json").read_text())
    del record["config"]["probe_texts"]
    (out / "run.json").write_text(json.dumps(record))
    config, _ = open_run({"out": out, "resume": True}, None)
    assert (config.tokens, config.probe_texts) == (5000, RunConfig().probe_texts)
