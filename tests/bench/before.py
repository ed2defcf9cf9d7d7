"""The bridge of this checkout beside the bridge of another one.

    make bench-before COMMIT=<commit>

Both run at once, on one core, each in front of the fast server (`bridge.py`); the client on the other core asks them by turns, a block of
requests each, many times over. A machine whose speed changes changes it for both: the median of the ratios says what a change
has brought where the rates by themselves do not.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bridge import FAST, LOAD_CORE, ROOT, bridge, running, scheduled_as_a_unit, without_halts
from load import SETTLE_SECONDS, Load

CASES = (("shared", 1), ("shared", 16), ("per_session", 1), ("per_session", 16))
BLOCKS = 60
REQUESTS = 300
REQUESTS_OF_EACH = 60


def rate(load: Load, size: int) -> float:
    """Requests per second in one block of so many."""
    took, wall = load.run(lambda asked: asked < size)
    return len(took) / wall


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="the other checkout")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.sched_setaffinity(0, {LOAD_CORE})
    print(
        "| bridge | clients | requests/s before | now | ratio, median of the blocks |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder, scheduled_as_a_unit(), without_halts():
        for isolation, clients in CASES:
            with ExitStack() as stack:
                loads = []
                for root in (options.before, ROOT):
                    url, _ = stack.enter_context(running(bridge(root, isolation), FAST, Path(folder) / "log"))
                    loads.append(Load(url, clients))
                time.sleep(SETTLE_SECONDS)
                size = REQUESTS + REQUESTS_OF_EACH * clients
                rates = [[rate(load, size) for load in loads] for _ in range(BLOCKS)]
            before, now = (statistics.median(side) for side in zip(*rates, strict=True))
            ratio = statistics.median(new / old for old, new in rates)
            print(f"| `{isolation}` | {clients} | {before:,.0f} | {now:,.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
