"""The bridge beside other gateways, and beside what it was at a commit, asked by turns.

    make bench-by-turns [COMMIT=<commit>]

All run at once, on one core, each in front of the fast server; the client on the other core asks them by turns, a block of requests each,
many times over. A machine whose speed changes changes it for all of them, so the median of the ratios says what `bridge.py`, which measures
one after the other, can be wrong about. The commit's bridge runs with the libraries of now.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

from bridge import (
    FAST,
    LOAD_CORE,
    ROOT,
    arguments,
    bridge,
    gateways,
    running,
    scheduled_as_a_unit,
    without_halts,
)
from load import SETTLE_SECONDS, Load

# Isolation, clients, and whether idle cores may halt.
CASES = (
    ("shared", 1, False),
    ("shared", 1, True),
    ("shared", 16, False),
    ("per_session", 1, False),
    ("per_session", 1, True),
    ("per_session", 16, False),
)
BLOCKS = 40
REQUESTS = 200
# Some gateways close a connection that is quiet for five seconds: a block of the slowest takes less than one.
REQUESTS_OF_EACH = 10


def rate(load: Load, size: int) -> float:
    """Requests per second in one block of so many."""
    took, wall = load.run(lambda asked: asked < size)
    return len(took) / wall


def compare(options: argparse.Namespace, isolation: str, clients: int, halting: bool) -> None:
    """Measure one case, and print its rows."""
    sides = [
        bridge(ROOT, isolation),
        *(side for side in gateways(options) if not side.name.startswith("Gatehouse")),
    ]
    if options.before:
        sides.append(replace(bridge(options.before, isolation), name="the bridge before"))
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(scheduled_as_a_unit())
        stack.enter_context(nullcontext() if halting else without_halts())
        loads = []
        for side in sides:
            url, _ = stack.enter_context(running(side, FAST, Path(folder) / "log"))
            loads.append(Load(url, clients))
        time.sleep(SETTLE_SECONDS)
        size = REQUESTS + REQUESTS_OF_EACH * clients
        blocks = [[rate(load, size) for load in loads] for _ in range(BLOCKS)]
    for number, side in enumerate(sides):
        median = statistics.median(block[number] for block in blocks)
        ratio = statistics.median(block[0] / block[number] for block in blocks)
        print(
            f"| `{isolation}` | {clients} | {'yes' if halting else 'no'} | {side.name} | {median:,.0f} | {ratio:.2f} |",
            flush=True,
        )


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--before", type=Path, help="another checkout")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.sched_setaffinity(0, {LOAD_CORE})
    print(
        "| isolation | clients | idle cores halt | gateway | requests/s | the bridge's beside it |\n|---|---|---|---|---|---|"
    )
    for case in CASES:
        compare(options, *case)


if __name__ == "__main__":
    main()
