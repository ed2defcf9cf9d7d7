"""How a child is started: its command, its environment, what it is denied, and what it may use."""

import asyncio
import os
import resource
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from gatehouse_bridge import tree
from gatehouse_bridge.cgroup import Group, Groups, delegated
from gatehouse_bridge.confine import Confinement
from gatehouse_bridge.log import Log
from gatehouse_bridge.settings import Secrets, Settings, inherited
from gatehouse_service.configuration import ConfigurationError

# Stands in a command for the folder that a child has for temporary files.
TEMPORARY = "{temporary}"
# Files that are removed in one turn of the event loop.
AT_ONCE = 100


@dataclass(frozen=True)
class Started:
    """A child, its cgroup where it has one, and its folder for temporary files."""

    popen: "subprocess.Popen[bytes]"
    group: Group | None
    temporary: str


async def discard(folder: str) -> None:
    """Remove a folder that nobody uses any more, as far as it lets itself be removed."""
    removed = 0
    for place, folders, files in os.walk(folder, topdown=False):
        for name in files:
            with suppress(OSError):
                os.unlink(os.path.join(place, name))
            removed += 1
            if removed % AT_ONCE == 0:
                await asyncio.sleep(0)
        for name in folders:
            path = os.path.join(place, name)
            with suppress(OSError):
                try:
                    os.rmdir(path)
                except NotADirectoryError:  # a link to one
                    os.unlink(path)
    with suppress(OSError):
        os.rmdir(folder)


class Launcher:
    """Starts children.

    Args:
        settings: The configuration of the bridge.
        secrets: What children get besides their environment, and whose it is.
        log: The log.

    Raises:
        ConfigurationError: users have secrets of their own, and the kernel cannot keep one's child from another's.
    """

    def __init__(self, settings: Settings, secrets: Secrets, log: Log) -> None:
        """See the class."""
        self.secrets = secrets
        self._log = log
        self._command = settings.bridge_command
        self._temporary = settings.bridge_temporary
        self._environment = inherited() | settings.bridge_env
        self._confinement = self._confine() if settings.bridge_confine else None
        if self._confinement is None and secrets.personal:
            raise ConfigurationError(
                [
                    "GATEHOUSE_BRIDGE_SECRETS_PER_USER: needs GATEHOUSE_BRIDGE_CONFINE and a kernel with Landlock (Linux 5.19;"
                    " landlock in the boot parameter lsm=), without which one user's child could read another's"
                ]
            )
        self._groups = self._divide(settings)
        held = self._groups.held if self._groups else set()
        self._memory = settings.bridge_child_memory if "memory" not in held else None
        wanted = {
            "memory": settings.bridge_child_memory,
            "processes": settings.bridge_child_processes,
            "cpu": settings.bridge_child_cpu,
        }
        self.limits: dict[str, Literal["cgroup", "rlimit", "none"]] = {
            limit: "cgroup" if limit in held else "rlimit" if limit == "memory" and self._memory else "none"
            for limit, value in wanted.items()
            if value is not None
        }
        self._log("child_limits", limits=self.limits, cgroup=self._groups is not None, confined=self.confined)

    @property
    def confined(self) -> bool:
        """Whether the kernel keeps children from one another."""
        return self._confinement is not None

    def environment(self, user: str) -> dict[str, str]:
        """The environment of a user's child.

        Raises:
            MissingSecretError: there is none of his that it needs.
        """
        return self._environment | self.secrets.of(user)

    def start(self, environment: Mapping[str, str], mark: str) -> Started:
        """Start one.

        Args:
            environment: As `environment` gives it.
            mark: Names it, and all that it starts.

        Raises:
            OSError: it cannot be started.
        """
        temporary = tempfile.mkdtemp(prefix="child-", dir=self._temporary)
        group: Group | None = None
        rules: int | None = None
        try:
            if self._confinement is not None:
                rules = self._confinement.ruleset(temporary)
            group = self._groups.make(mark) if self._groups else None
            child = subprocess.Popen(
                [part.replace(TEMPORARY, temporary) for part in self._command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # The event loop reads and writes: a buffer of 8 KiB for each pipe would only lie there.
                bufsize=0,
                env={**environment, "TMPDIR": temporary, tree.MARK: mark},
                start_new_session=True,
                preexec_fn=self._before(group, rules),
            )
        except (OSError, subprocess.SubprocessError) as error:
            os.rmdir(temporary)
            if group is not None:
                group.remove()
            if isinstance(error, OSError):
                raise
            raise OSError(0, "its limits could not be set") from None
        finally:
            if rules is not None:
                os.close(rules)
        return Started(child, group, temporary)

    def _before(self, group: Group | None, rules: int | None) -> "Callable[[], None] | None":
        """What the new process does before it becomes the child; the bridge has one thread, so it may."""
        if group is None and self._memory is None and rules is None:
            return None

        def enter() -> None:
            if group is not None:
                os.write(group.door, b"0")
            if self._memory is not None:
                resource.setrlimit(resource.RLIMIT_DATA, (self._memory, self._memory))
            if self._confinement is not None and rules is not None:
                self._confinement.enter(rules)

        return enter

    def _confine(self) -> Confinement | None:
        hidden = (os.environ.get("CREDENTIALS_DIRECTORY"), self._temporary)
        try:
            return Confinement([folder for folder in hidden if folder])
        except OSError as error:
            self._log("landlock_unavailable", "warning", error=error.strerror)
            return None

    def _divide(self, settings: Settings) -> Groups | None:
        path = delegated()
        if path is None:
            return None
        try:
            return Groups(
                path, settings.bridge_child_memory, settings.bridge_child_processes, settings.bridge_child_cpu
            )
        except OSError as error:
            self._log("cgroup_unavailable", "warning", error=error.strerror)
            return None
