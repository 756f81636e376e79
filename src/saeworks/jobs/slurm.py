"""A batch script for SLURM: ``torchrun`` on every node, and a run that goes on after a time limit or a preemption.

The script is plain text, to be read and changed before it is submitted. It needs nothing that a cluster does not have.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saeworks.errors import InputError, RunError

# Seconds before the time limit at which the run is asked to save and stop.
NOTICE = 180
TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")


@dataclass(frozen=True)
class SlurmJob:
    """What SLURM is asked for.

    Attributes:
        nodes: machines. gpus: GPUs of each, one process per GPU; 0 for CPUs.
        processes: processes per machine without GPUs.
        cpus: cores per process; None for the cluster's default.
        time: limit of one job, as ``sbatch`` takes it (``24:00:00``, ``2-12:00:00``). The run may take several.
        partition, account: None for the cluster's defaults. name: of the job.
        setup: shell line that makes ``python`` find saeworks, such as ``source ~/venv/bin/activate``.
    """

    nodes: int = 1
    gpus: int = 1
    processes: int = 1
    cpus: int | None = None
    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    name: str = "saeworks"
    setup: str | None = None

    @property
    def per_node(self) -> int:
        """Processes on every machine."""
        return self.gpus or self.processes

    def check(self) -> None:
        """``InputError`` for numbers and names that SLURM would misread."""
        if self.nodes < 1 or self.gpus < 0 or self.processes < 1 or (self.cpus is not None and self.cpus < 1):
            raise InputError(
                f"A job needs at least one node and one process, but nodes is {self.nodes}, gpus {self.gpus}, "
                f"processes {self.processes} and cpus {self.cpus}."
            )
        if not TIME.fullmatch(self.time):
            raise InputError(f"--time is '{self.time}'; write hours:minutes:seconds or days-hours:minutes:seconds.")
        for key, value in (("name", self.name), ("partition", self.partition), ("account", self.account)):
            if value is not None and not re.fullmatch(r"[\w.,@+-]+", value):
                raise InputError(f"--{key} is '{value}'; letters, digits and . , @ + - _ are expected.")
        if self.setup is not None and "\n" in self.setup:
            raise InputError("--setup must be one line; put several into a file and give 'source FILE'.")


def script(job: SlurmJob, arguments: Sequence[str]) -> str:
    """The batch script that runs ``saeworks ARGUMENTS`` on the nodes of ``job``.

    Three minutes before the time limit the run saves a checkpoint and stops, and the job is put into the queue again;
    ``--resume`` is added, so that it then continues. A run that fails is not repeated.
    """
    job.check()
    if not arguments or arguments[0] not in ("train", "run"):
        raise InputError("SLURM starts 'train' and 'run'; give one of them with its flags, as: train --out runs/big.")
    if not any(part == "--out" or part.startswith("--out=") for part in arguments):
        raise InputError("Give the run an --out on a disk that all nodes share.")
    command = [*arguments, *([] if "--resume" in arguments else ["--resume"])]
    asked = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": job.gpus or None,
        "cpus-per-task": job.cpus * job.per_node if job.cpus else None,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "output": "%x-%j.log",
        "open-mode": "append",
        "signal": f"B:USR1@{NOTICE}",
    }
    head = [f"#SBATCH --{key}={value}" for key, value in asked.items() if value is not None]
    head += ["#SBATCH --requeue"]
    torchrun = (
        f'torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node {job.per_node} --rdzv-id "$SLURM_JOB_ID" '
        '--rdzv-backend c10d --rdzv-endpoint "$first:$port"'
    )
    return "\n".join(
        [
            "#!/bin/bash",
            *head,
            "",
            *([job.setup] if job.setup else []),
            'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "port=$((20000 + SLURM_JOB_ID % 20000))",
            "",
            "# Shortly before the time limit: stop the run, which saves itself, and queue this job again.",
            "again=0",
            "trap 'again=1; kill -TERM \"$step\"' USR1",
            f"srun {torchrun} \\",
            f"    -m saeworks {shlex.join(command)} &",
            "step=$!",
            'wait "$step"',
            "code=$?",
            "# The signal ends the first wait; the second one is for the run itself.",
            'if [ "$again" = 1 ]; then',
            '    wait "$step"',
            '    scontrol requeue "$SLURM_JOB_ID"',
            "    exit 0",
            "fi",
            'exit "$code"',
            "",
        ]
    )


def check_run(overrides: Mapping[str, Any], file: Path | None = None) -> None:
    """``InputError`` for settings of a run that cannot be, found now and not hours later.

    What a run that is to be continued trains stands in its workspace, on a disk that may not be seen from here.
    """
    from saeworks.jobs.config import RunConfig, resolve
    from saeworks.jobs.plan import check_settings, grid

    config = resolve(RunConfig, overrides, file)
    if not config.resume:
        check_settings(config)
        grid(config)


def submit(text: str) -> str:
    """Hand a batch script to ``sbatch`` and return what it says."""
    if shutil.which("sbatch") is None:
        raise InputError(
            "There is no 'sbatch' here, so no job can be submitted; leave --submit out and take the script that is "
            "printed to a machine of the cluster."
        )
    done = subprocess.run(["sbatch"], input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise RunError(f"sbatch refused the job: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout.strip()
