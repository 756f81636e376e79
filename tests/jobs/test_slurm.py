"""The batch script for SLURM: what it asks for, what is refused, and the script itself, run with stand-ins for the
commands of a cluster."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from saeworks.cli.app import main
from saeworks.errors import InputError
from saeworks.jobs.slurm import SlurmJob, script, submit

TRAIN = ["train", "--out", "runs/big run", "--width", "65536"]


def asked(text: str) -> dict[str, str]:
    """The settings of a batch script."""
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH ")]
    return dict(line.split("=", 1) if "=" in line else (line, "") for line in lines)


def test_the_script_asks_for_one_launcher_per_node_and_one_process_per_gpu() -> None:
    text = script(SlurmJob(nodes=2, gpus=8, cpus=4, time="12:00:00", partition="long", name="big"), TRAIN)
    wanted = {"nodes": "2", "ntasks-per-node": "1", "gpus-per-node": "8", "cpus-per-task": "32", "time": "12:00:00"}
    found = asked(text)
    assert wanted.items() <= found.items()
    assert found["partition"] == "long"
    assert found["job-name"] == "big"
    assert "account" not in found
    assert "--nproc-per-node 8" in text
    assert "-m saeworks train --out 'runs/big run' --width 65536 --resume &" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_without_gpus_the_number_of_processes_is_asked_for() -> None:
    text = script(SlurmJob(gpus=0, processes=3, setup="source env/bin/activate"), [*TRAIN, "--resume"])
    assert "gpus-per-node" not in asked(text)
    assert "--nproc-per-node 3" in text
    assert text.count("--resume") == 1
    assert text.index("source env/bin/activate") < text.index("torchrun")


@pytest.mark.parametrize(
    ("job", "arguments", "says"),
    [
        (SlurmJob(nodes=0), TRAIN, "at least one node"),
        (SlurmJob(time="tomorrow"), TRAIN, "hours:minutes:seconds"),
        (SlurmJob(partition="a b"), TRAIN, "--partition is 'a b'"),
        (SlurmJob(setup="a\nb"), TRAIN, "one line"),
        (SlurmJob(), ["eval", "--out", "x"], "'train' and 'run'"),
        (SlurmJob(), [], "'train' and 'run'"),
        (SlurmJob(), ["train", "--width", "64"], "--out"),
    ],
)
def test_jobs_that_cannot_be_are_refused(job: SlurmJob, arguments: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        script(job, arguments)


def test_the_command_prints_the_script_and_finds_wrong_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", "--nodes", "3", "--", "train", "--out", "runs/x", "--recipe", "topk"]) == 0
    assert asked(capsys.readouterr().out)["nodes"] == "3"
    assert main(["slurm", "--", "train", "--out", "runs/x", "--witdh", "64"]) == 2
    assert "witdh" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--recipe", "topkk"], "Did you mean 'topk'"),
        (["--width", "wide"], "whole number"),
        (["--width", "64", "--k", "100"], "only 64 latents"),
        (["--preset", "gema-scope"], "Did you mean 'gemma-scope'"),
        (["--config", "nowhere.yaml"], "does not exist"),
        (["--tokens", "5"], "less than one batch"),
    ],
)
def test_values_that_cannot_be_are_found_before_the_job_starts(
    flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["slurm", "--", "train", "--out", "runs/x", *flags]) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.out == ""


def test_a_run_to_be_continued_takes_the_rest_from_its_workspace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", "--", "train", "--out", "runs/x", "--k", "2000", "--resume"]) == 0
    assert "--k 2000 --resume &" in capsys.readouterr().out


def test_flags_of_the_run_are_not_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", "--", "train", "--out", "runs/x", "--json"]) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash")


def test_submitting_hands_the_script_to_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no 'sbatch' here"):
        submit("text")
    stand_in(tmp_path, "sbatch", f"/bin/cat > {tmp_path}/got\necho Submitted batch job 7")
    assert submit("text") == "Submitted batch job 7"
    assert (tmp_path / "got").read_text() == "text"


def stand_in(directory: Path, name: str, body: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Environment of a job on a cluster of one node, whose commands write down how they were called."""
    stand_in(tmp_path, "srun", 'exec "$@"')
    stand_in(tmp_path, "scontrol", f'[ "$1" = show ] && echo localhost || echo "$@" >> {tmp_path}/scontrol.log')
    variables = {"SLURM_JOB_ID": "40123", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost"}
    return {**os.environ, **variables, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_the_script_starts_torchrun_and_passes_its_exit_code_on(tmp_path: Path, cluster: dict[str, str]) -> None:
    stand_in(tmp_path, "torchrun", f'printf "%s\\n" "$@" > {tmp_path}/called\nexit 3')
    done = subprocess.run(["bash"], input=script(SlurmJob(gpus=2), TRAIN), text=True, env=cluster)
    assert done.returncode == 3
    called = (tmp_path / "called").read_text().splitlines()
    assert called[called.index("--rdzv-endpoint") + 1] == "localhost:20123"
    assert called[called.index("--nnodes") + 1] == "1"
    assert called[called.index("-m") :] == ["-m", "saeworks", *TRAIN, "--resume"]
    assert not (tmp_path / "scontrol.log").exists(), "a run that fails is not repeated"


def test_before_the_time_limit_the_run_is_stopped_and_queued_again(tmp_path: Path, cluster: dict[str, str]) -> None:
    """The stand-in saves for a moment after it was asked to stop; the job is queued again only after that."""
    body = (
        f"trap 'sleep 0.3; touch {tmp_path}/saved; exit 1' TERM\ntouch {tmp_path}/running\nwhile :; do sleep 0.1; done"
    )
    stand_in(tmp_path, "torchrun", body)
    stand_in(tmp_path, "scontrol", f'[ "$1" = show ] && echo localhost || ls {tmp_path} > {tmp_path}/scontrol.log')
    file = tmp_path / "job.sh"
    file.write_text(script(SlurmJob(), TRAIN))
    bash = shutil.which("bash")
    assert bash is not None
    process = subprocess.Popen([bash, str(file)], env=cluster)
    while not (tmp_path / "running").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 0
    assert "saved" in (tmp_path / "scontrol.log").read_text().split()
