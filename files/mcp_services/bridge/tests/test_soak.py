"""A short form of `soak.py`, which opens ten thousand."""

from pathlib import Path

from soak import Soak, delegated, remove


# covers: tree
async def test_a_hundred_rude_sessions_leave_nothing(tmp_path: Path) -> None:
    cgroup = delegated()
    soak = Soak(tmp_path, cgroup, idle_seconds=10)  # longer than a loaded machine stands still
    try:
        await soak.run(100, samples=2)
    finally:
        if cgroup:
            remove(cgroup)
    assert soak.problems == []
    assert sum(soak.ways.values()) == 100
