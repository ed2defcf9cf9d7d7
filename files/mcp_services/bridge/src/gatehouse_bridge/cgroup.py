"""A cgroup for each child, below the unit's own, where systemd has delegated that (`Delegate=`, cgroups(7)).

There the kernel holds the limits of a child with all that it starts, and kills all of that at once.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

# systemd.resource-control(5): set on a cgroup that its unit may divide.
DELEGATED = "user.delegate"
CONTROLLERS = {"memory": "memory", "processes": "pids", "cpu": "cpu"}
# A second of CPU time a second is a whole processor; the kernel counts in periods of so many microseconds.
CPU_PERIOD = 100_000


class Group:
    """The cgroup of one child.

    Args:
        path: Where it is; it is made.
        limits: Contents by file.

    Raises:
        OSError: it cannot be made so.
    """

    def __init__(self, path: Path, limits: Mapping[str, str]) -> None:
        """See the class."""
        self._path = path
        path.mkdir()
        for name, value in limits.items():
            (path / name).write_text(value)
        # Opened here, so that a process can go in between its fork and its start.
        self.door = os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def kill(self) -> bool:
        """Kill all that is in it (from Linux 5.14); whether the kernel can."""
        try:
            (self._path / "cgroup.kill").write_text("1")
        except OSError:
            return False
        return True

    def members(self) -> set[int]:
        """The processes in it, and below it."""
        found: set[int] = set()
        for folder, _, _ in os.walk(self._path):
            with suppress(OSError, ValueError):
                found |= {int(line) for line in Path(folder, "cgroup.procs").read_text().split()}
        return found

    def remove(self) -> bool:
        """Remove it and what a child has made below it; False while there is still something in it."""
        if self.door >= 0:
            os.close(self.door)
            self.door = -1
        for folder, _, _ in os.walk(self._path, topdown=False):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return True


class Groups:
    """The cgroups of all children.

    Args:
        path: The cgroup that was delegated.
        memory: Bytes that a child with all that it starts may use; None for no limit.
        processes: How many processes and threads it may be; None for no limit.
        cpu: Processors that it may use, such as 0.5; None for no limit.
    """

    def __init__(
        self, path: Path, memory: int | None = None, processes: int | None = None, cpu: float | None = None
    ) -> None:
        """See the class.

        Raises:
            OSError: it cannot be divided.
        """
        self._path = path
        # A cgroup that has some below it and hands controllers down may not have processes itself.
        own = path / "bridge"
        own.mkdir(exist_ok=True)
        (own / "cgroup.procs").write_text("0")
        wanted = {
            "memory": {} if memory is None else {"memory.max": str(memory), "memory.oom.group": "1"},
            "processes": {} if processes is None else {"pids.max": str(processes)},
            "cpu": {} if cpu is None else {"cpu.max": f"{int(cpu * CPU_PERIOD)} {CPU_PERIOD}"},
        }
        # Which limits the kernel holds, and what each child's cgroup gets for that.
        self.held: set[str] = set()
        self.limits: dict[str, str] = {}
        for limit, files in wanted.items():
            if files:
                with suppress(OSError):
                    (path / "cgroup.subtree_control").write_text(f"+{CONTROLLERS[limit]}")
                    self.held.add(limit)
                    self.limits |= files
        self._sweep()

    def make(self, name: str) -> Group:
        """A cgroup for a new child.

        Raises:
            OSError: it cannot be made.
        """
        return Group(self._path / f"child-{name}", self.limits)

    def _sweep(self) -> None:
        """Remove what a bridge that was killed has left; systemd has killed all that was in it."""
        for left in self._path.glob("child-*"):
            with suppress(OSError):
                left.rmdir()


def delegated() -> Path | None:
    """The cgroup of this process where it may divide it, else None."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line[3:] for line in lines if line.startswith("0::"))
        mount = _mount(Path("/proc/self/mountinfo").read_text().splitlines())
        if mount is None:
            return None
        root, place = mount
        path = Path(place + own.removeprefix(root.rstrip("/")))
        return path if os.getxattr(path, DELEGATED) == b"1" and os.access(path, os.W_OK) else None
    except (OSError, StopIteration):
        return None


def _mount(lines: Iterable[str]) -> tuple[str, str] | None:
    """The root and the place of the mounted cgroup2 (proc_pid_mountinfo(5))."""
    for line in lines:
        head, _, tail = line.partition(" - ")
        if tail.startswith("cgroup2 "):
            fields = head.split()
            return fields[3], fields[4]
    return None
