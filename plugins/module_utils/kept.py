# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What components keep in their folders, as a stream: packed for a backup, and unpacked again.

Runs on the host as root, with nothing but the standard library, in folders whose owners may change them meanwhile: no
symbolic link is followed. A stream is a compressed tar whose names begin with the component's. It knows no owners:
systemd gives a state directory that is root's to the unit's user when it starts the unit.
"""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import stat
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, cast

from ansible_collections.gatehouse.mcp.plugins.module_utils.slots import STATE

# A file that was written to within this time, in seconds, may be half written; it is waited for, so many times.
REST_SECONDS = 1.0
TRIES = 5
# Neither set-user-ID nor what else is beyond reading, writing and executing.
MODES = 0o777
# What a file says that went, or became something else, since it was listed.
GONE = (errno.ENOENT, errno.ELOOP, errno.ENXIO)


def folder_of(component: str) -> Path:
    """Where a component keeps its state."""
    return STATE / f"gatehouse-{component}"


class _Exactly:
    """Reads so many bytes of a file, whatever becomes of it meanwhile: a tar says beforehand how many come."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(wanted)
        self._left -= wanted
        return data + bytes(wanted - len(data))


def _info(name: str, status: os.stat_result, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = status.st_mode & MODES
    info.mtime = status.st_mtime
    return info


def pack(folders: Mapping[str, Path], stream: IO[bytes]) -> list[str]:
    """Write what is in the folders of components.

    A file is as it was at one moment: one that changes while it is read, or has just been written to, is read again, and
    of two of one name in a stream the later counts. Sockets, pipes and devices are left out.

    Returns:
        A sentence for each thing that is not as it should be.
    """
    notes: list[str] = []
    with (
        gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for component, folder in sorted(folders.items()):
            if folder.is_dir():
                notes += _pack_folder(tar, component, folder)
    return notes


def _pack_folder(tar: tarfile.TarFile, component: str, folder: Path) -> Iterator[str]:
    # fwalk opens each folder without following a link, and what is in it is opened by way of that.
    for path, folders, files, descriptor in os.fwalk(folder):
        inside = os.path.relpath(path, folder)
        prefix = component if inside == "." else f"{component}/{inside}"
        tar.addfile(_info(prefix, os.fstat(descriptor), tarfile.DIRTYPE))
        for name in sorted((*folders, *files)):
            full = f"{prefix}/{name}"
            try:
                status = os.lstat(name, dir_fd=descriptor)
                if stat.S_ISLNK(status.st_mode):
                    target = os.readlink(name, dir_fd=descriptor)
                    if leads_out(full, target):
                        yield f"{full} is a link that leads out of its folder; it is left out"
                        continue
                    info = _info(full, status, tarfile.SYMTYPE)
                    info.linkname = target
                    tar.addfile(info)
                elif stat.S_ISREG(status.st_mode) and not _pack_file(tar, full, name, descriptor):
                    yield f"{full} went on changing while it was read; it is as it was read last"
            except OSError as error:
                if error.errno not in GONE:
                    raise


def _pack_file(tar: tarfile.TarFile, full: str, name: str, folder: int) -> bool:
    """Add a file; False where it never rested."""
    for tries in range(TRIES, 0, -1):
        # Not blocking: what was a file a moment ago may be a pipe.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        with os.fdopen(descriptor, "rb") as file:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                return True
            resting = not 0 <= time.time() - before.st_mtime < REST_SECONDS
            if resting or tries == 1:
                info = _info(full, before, tarfile.REGTYPE)
                info.size = before.st_size
                tar.addfile(info, _Exactly(file, before.st_size))
                if _same(before, os.fstat(descriptor)):
                    return True
        if tries > 1:
            time.sleep(REST_SECONDS)
    return False


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    return (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)


def leads_out(name: str, target: str) -> bool:
    """Whether a link of a component leads out of its folder, by itself or by way of another link.

    Args:
        name: The link, component first.
        target: Where it points.
    """
    steps = target.split("/")
    ups = next((number for number, step in enumerate(steps) if step != ".."), len(steps))
    return target.startswith("/") or ".." in steps[ups:] or ups > name.count("/") - 1


def unpack(stream: IO[bytes], folders: Mapping[str, Path]) -> None:
    """Put what components kept into new folders, which are root's until the unit starts.

    Args:
        stream: As `pack` wrote it.
        folders: Where to put each component; what is in the stream of others is passed over.

    Raises:
        ValueError: The stream has what `pack` does not write.
    """
    made: set[Path] = set()
    for folder in folders.values():
        folder.mkdir(mode=0o700)
        made.add(folder)
    try:
        with (
            gzip.GzipFile(fileobj=stream, mode="rb") as packed,
            tarfile.open(fileobj=packed, mode="r|") as tar,
        ):
            for member in tar:
                component, *rest = member.name.split("/")
                if component in folders and rest:
                    _unpack_member(tar, member, folders[component], rest, made)
            while packed.read(1 << 20):
                pass  # to its end, where its checksum is
    except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"what comes is damaged ({error})") from error


def _unpack_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, rest: list[str], made: set[Path]
) -> None:
    path = folder.joinpath(*rest)
    # Its folder was made here, so no link is on the way to it.
    if any(step in ("", ".", "..") for step in rest) or path.parent not in made:
        raise ValueError(f"{member.name!r} is no name of anything in its folder")
    if member.isdir():
        path.mkdir(mode=0o700)
        made.add(path)
        path.chmod(member.mode & MODES)
    elif member.issym() and not leads_out(member.name, member.linkname):
        path.symlink_to(member.linkname)
    elif member.isreg():
        path.unlink(missing_ok=True)  # read again while it changed: the later counts
        content = cast(IO[bytes], tar.extractfile(member))
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
            os.fchmod(file.fileno(), member.mode & MODES)
        os.utime(path, (member.mtime, member.mtime))
    else:
        raise ValueError(f"{member.name!r} is neither file nor folder, nor a link within its folder")


# Replacing one folder by another, so that whatever breaks off is taken up by the next run. Beside a folder there is
# `.new`, what shall be there, and from the moment that it is being replaced `.old`, what was there, be it nothing.


def beside(path: Path, suffix: str) -> Path:
    """The neighbour of a folder or file. No component has a dot in its name."""
    return path.with_name(f"{path.name}.{suffix}")


def occupied(path: Path) -> bool:
    """Whether there is something that a restore would replace, other than what an earlier one has put there."""
    if beside(path, "old").exists():
        return False
    return any(path.iterdir()) if path.is_dir() else path.exists()


def replace(path: Path) -> None:
    """Let `.new` take a folder's place; what was there first is in `.old`."""
    old, new = beside(path, "old"), beside(path, "new")
    if not old.exists():
        if path.exists():
            path.rename(old)
        else:
            old.mkdir(mode=0o700)
    if path.exists():
        shutil.rmtree(path)  # an earlier run put it there, or nothing
    new.rename(path)


def clear(paths: Iterable[Path], suffix: str) -> bool:
    """Remove the neighbours of folders; whether there were any."""
    found = [neighbour for path in paths if os.path.lexists(neighbour := beside(path, suffix))]
    for neighbour in found:
        if neighbour.is_dir() and not neighbour.is_symlink():
            shutil.rmtree(neighbour)
        else:
            neighbour.unlink()
    return bool(found)
