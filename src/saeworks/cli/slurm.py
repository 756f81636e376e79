"""``saeworks slurm``: a batch script that trains on the nodes of a cluster."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from saeworks.cli.flags import given
from saeworks.cli.output import print_line


def slurm(
    *command: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="After --: train or run with its flags, --out among them.")
    ],
    nodes: Annotated[int, Parameter(help="Machines.")] = 1,
    gpus: Annotated[int, Parameter(help="GPUs per machine, one process each; 0 for CPUs.")] = 1,
    processes: Annotated[int, Parameter(help="Processes per machine without GPUs.")] = 1,
    cpus: Annotated[int | None, Parameter(help="Cores per process.")] = None,
    time: Annotated[str, Parameter(help="Limit of one job; a run that is not done by then is queued again.")] = (
        "24:00:00"
    ),
    partition: Annotated[str | None, Parameter(help="Partition of the cluster.")] = None,
    account: Annotated[str | None, Parameter(help="Account of the cluster.")] = None,
    name: Annotated[str, Parameter(help="Name of the job.")] = "saeworks",
    setup: Annotated[str | None, Parameter(help="Shell line that makes python find saeworks.")] = None,
    submit: Annotated[bool, Parameter(help="Submit the script with sbatch instead of printing it.")] = False,
) -> None:
    """Print a batch script for SLURM that trains on several nodes and goes on after a time limit.

    For example: saeworks slurm --nodes 2 --gpus 8 -- train --out runs/big --width 65536
    """
    from saeworks.cli.app import app
    from saeworks.jobs import slurm as job

    text = job.script(job.SlurmJob(nodes, gpus, processes, cpus, time, partition, account, name, setup), command)
    # A wrong flag or value is found now and not when the job starts, hours later.
    bound = app.parse_args(list(command), exit_on_error=False, print_error=False)[1]
    flags = bound.arguments.get("flags")
    job.check_run(given(flags), flags.config if flags else None)
    print_line(job.submit(text) if submit else text.rstrip("\n"))
