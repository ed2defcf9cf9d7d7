"""What a child is denied by the kernel (Landlock, landlock(7)), although it runs as the bridge's own user.

Each child gets a domain of its own. Out of it no process can be traced, and so neither the bridge's nor another child's memory or
environment be read (`/proc/<pid>/environ` and `mem` ask the same question); the files of systemd's credentials cannot be read,
nor another child's temporary ones, nor can files of the kernel's be written, among them the limits of its own cgroup. From
Linux 6.12 it can send no signals out of it.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress

# The same on every architecture (asm-generic/unistd.h).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38
# linux/landlock.h
WRITE_FILE, READ_FILE, REFER = 1 << 1, 1 << 2, 1 << 13
SCOPE_SIGNAL = 1 << 1
ABI_REFER, ABI_NET, ABI_SCOPE = 2, 4, 6


class Confinement:
    """What children are denied.

    Args:
        hidden: Folders whose files a child may not touch, such as that of the credentials.

    Raises:
        OSError: the kernel has no Landlock, or too old a one (before Linux 5.19).
    """

    def __init__(self, hidden: Collection[str]) -> None:
        """See the class."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        abi = self._call(_CREATE_RULESET, None, 0, _VERSION)
        if abi < ABI_REFER:
            raise OSError("Landlock is too old")
        rights = READ_FILE | WRITE_FILE | REFER
        # struct landlock_ruleset_attr: rights on files, on the network, scopes; a kernel takes as much as it knows.
        attributes = struct.pack("=Q", rights)
        if abi >= ABI_NET:
            attributes += struct.pack("=Q", 0)
        if abi >= ABI_SCOPE:
            attributes += struct.pack("=Q", SCOPE_SIGNAL)
        self._attributes = attributes
        self._rights = rights
        os.close(self._call(_CREATE_RULESET, attributes, len(attributes), 0))
        self._hidden = frozenset(map(os.path.realpath, hidden))

    def ruleset(self, own: str) -> int:
        """The rules of one child; the caller closes them.

        Args:
            own: The folder, of those that are hidden or within one, that is this child's.

        Raises:
            OSError: the kernel refuses.
        """
        ruleset = self._call(_CREATE_RULESET, self._attributes, len(self._attributes), 0)
        for path in _all_but(self._hidden):
            with suppress(OSError):
                self._grant(ruleset, path, READ_FILE if path == "/sys" else self._rights)
        self._grant(ruleset, own, self._rights)
        return ruleset

    def enter(self, ruleset: int) -> None:
        """Take rules upon the process that calls, for good: between fork and exec.

        Raises:
            OSError: the kernel refuses.
        """
        if self._libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "no_new_privs")
        self._call(_RESTRICT_SELF, ruleset, 0)

    def _grant(self, ruleset: int, path: str, rights: int) -> None:
        # A link is no place of its own: what it leads to has a rule, or shall have none.
        place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            mode = os.fstat(place).st_mode
            if stat.S_ISLNK(mode):
                return
            if not stat.S_ISDIR(mode):
                rights &= ~REFER
            # struct landlock_path_beneath_attr is packed.
            self._call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
        finally:
            os.close(place)

    def _call(self, number: int, *arguments: object) -> int:
        result = self._libc.syscall(ctypes.c_long(number), *arguments)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return int(result)


def _all_but(hidden: Collection[str], folder: str = "/") -> Iterator[str]:
    """The fewest paths that together hold everything but `hidden`."""
    with suppress(OSError):
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if path in hidden:
                continue
            if any(place.startswith(f"{path}/") for place in hidden):
                yield from _all_but(hidden, path)
            else:
                yield path
