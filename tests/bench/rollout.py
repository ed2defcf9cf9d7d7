"""Time rollouts on a lab: a second run with 2 and with 20 services, and adding one service.

    tools/bench            # boots a lab, runs this, removes the lab

Prints a table for docs/measurements.md. Ratios within one run are what counts; machines differ.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

REPEATS = 3
FEW = {"echo": {}, "time": {}}


@dataclass(frozen=True)
class Run:
    """A run of `site.yml` on one host."""

    seconds: float
    tasks: int
    changed: int


def services(count: int) -> dict[str, dict[str, str]]:
    """The lab's two services and more of the same kinds."""
    more = {
        f"more{number}": {"catalogue": "echo" if number % 2 else "time"} for number in range(count - len(FEW))
    }
    return {**FEW, **more}


def site(wanted: dict[str, dict[str, str]]) -> Run:
    """Roll out these services."""
    begin = time.monotonic()
    run = subprocess.run(
        [
            "ansible-playbook",
            "site.yml",
            "-i",
            "inventory/lab",
            "-e",
            json.dumps({"gatehouse_mcp_services": wanted}),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - begin
    if run.returncode:
        sys.exit(run.stdout[-3000:])
    recap = re.search(r"ok=(\d+)\s+changed=(\d+).*skipped=(\d+)", run.stdout)
    assert recap is not None
    return Run(seconds, int(recap[1]) + int(recap[3]), int(recap[2]))


def again(wanted: dict[str, dict[str, str]]) -> Run:
    """The median of several runs that have nothing to change."""
    runs = [site(wanted) for _ in range(REPEATS)]
    if any(run.changed for run in runs):
        sys.exit("a second run changed something")
    return Run(statistics.median(run.seconds for run in runs), runs[0].tasks, 0)


def main() -> None:
    """Measure and print."""
    site(services(2))
    two = again(services(2))
    add = site(services(3))
    fill = site(services(20))
    twenty = again(services(20))
    one_more = site(services(21))
    remove = site(services(2))
    rows = [
        ("second run, 2 services", two),
        ("second run, 20 services", twenty),
        ("add one service to 2", add),
        ("add 17 services to 3", fill),
        ("add one service to 20", one_more),
        ("remove 19 services of 21", remove),
    ]
    print("| run of `site.yml`, one host | tasks | changed | seconds |\n|---|---|---|---|")
    for name, run in rows:
        print(f"| {name} | {run.tasks} | {run.changed} | {run.seconds:.1f} |")
    print(
        f"\n20 services beside 2: {twenty.seconds / two.seconds:.2f} times the time, {twenty.tasks - two.tasks} more tasks."
    )


if __name__ == "__main__":
    main()
