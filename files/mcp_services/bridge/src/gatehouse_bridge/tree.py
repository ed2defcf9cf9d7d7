"""Finds and ends whole trees of processes.

The bridge is a sub-reaper (prctl(2)): a process whose parent died becomes the bridge's own child, not that of
PID 1, so nothing that a child started can leave its sight. Whose it was is told by its session (setsid(2)) or,
where it made one of its own, by a mark in its environment.
"""

import ctypes
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

MARK = "GATEHOUSE_BRIDGE_CHILD"
_PR_SET_CHILD_SUBREAPER = 36


class Entry(NamedTuple):
    """A process of this user: its parent, its session, and whether it has ended but was not reaped."""

    parent: int
    session: int
    zombie: bool


def become_subreaper() -> None:
    """Adopt every orphan among the descendants of this process.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def snapshot() -> dict[int, Entry]:
    """The processes that can be seen in /proc, by id."""
    found: dict[int, Entry] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                # proc_pid_stat(5): the second field, in parentheses, may itself hold any character.
                state, parent, _, session = file.read().rpartition(b")")[2].split()[:4]
                found[int(name)] = Entry(int(parent), int(session), state == b"Z")
    return found


def mark_of(pid: int) -> str | None:
    """The mark in a process's environment; None if there is none that can be read."""
    with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        for variable in file.read().split(b"\0"):
            name, _, value = variable.partition(b"=")
            if name == MARK.encode():
                return value.decode(errors="replace")
    return None


def members(leader: int, mark: str, known: Iterable[int]) -> set[int]:
    """All living processes of the tree that `leader` began.

    Args:
        leader: The child; its process id is its session's too.
        mark: The value of its mark.
        known: The leaders of all trees, which no one else's tree contains.
    """
    entries, me, others = snapshot(), os.getpid(), set(known) - {leader}
    tree = {pid for pid, entry in entries.items() if pid == leader or entry.session == leader}
    tree |= {
        pid
        for pid, entry in entries.items()
        if entry.parent == me and pid not in others and not entry.zombie and mark_of(pid) == mark
    }
    while True:
        more = {pid for pid, entry in entries.items() if entry.parent in tree and pid not in others} - tree
        if not more:
            return {pid for pid in tree if pid in entries and not entries[pid].zombie}
        tree |= more


def adopted(known: Iterable[int]) -> set[int]:
    """Orphans that this process has adopted and that live; those that have ended are reaped."""
    leaders, orphans = set(known), set()
    for pid in _children() - leaders:
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                orphans.add(pid)
    return orphans


def _children() -> set[int]:
    """The children of this process, those that have ended but were not reaped among them."""
    found: set[int] = set()
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children") as file:
                found |= {int(pid) for pid in file.read().split()}
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        me = os.getpid()
        return {pid for pid, entry in snapshot().items() if entry.parent == me}
    return found


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to each that still is."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
