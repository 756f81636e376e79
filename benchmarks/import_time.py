"""How long `import saeworks` and `saeworks --help` take, each in fresh processes; prints one JSON object.

Run: python benchmarks/import_time.py [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

CASES = {
    "python": ["-c", "pass"],
    "import_saeworks": ["-c", "import saeworks"],
    "saeworks_help": ["-m", "saeworks.cli.app", "--help"],
    "saeworks_run_help": ["-m", "saeworks.cli.app", "run", "--help"],
}
# What the project promises on two cores, in seconds; `python` alone has no promise.
GOALS = {"import_saeworks": 0.3, "saeworks_help": 1.0, "saeworks_run_help": 1.0}


def measure(arguments: list[str], rounds: int) -> dict[str, float]:
    """Median, fastest and slowest wall time in seconds over `rounds` processes, after one that warms the disk cache."""
    times: list[float] = []
    for round_number in range(rounds + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        if round_number:
            times.append(time.perf_counter() - start)
    numbers = {"median_s": statistics.median(times), "min_s": min(times), "max_s": max(times)}
    return {name: round(value, 4) for name, value in numbers.items()}


def main() -> None:
    """Measure every case and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    cases = {name: measure(arguments, rounds) for name, arguments in CASES.items()}
    report = {
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "rounds": rounds,
        "cases": cases,
        "within_goal": {name: cases[name]["median_s"] < goal for name, goal in GOALS.items()},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
