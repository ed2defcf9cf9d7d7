# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Builds Python environments on the controller: locked, hashed, and the same bytes for the same inputs."""

from __future__ import annotations

import configparser
import fcntl
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Part of every id: raise it when the way an environment is laid out changes.
FORMAT = "1"
# The C library of Debian 12, the oldest host supported.
PLATFORM = "manylinux_2_36"
# What a wheel's script has as its first line until it is known where it will run (PEP 427).
SHEBANG = b"#!python\n"
PYTHON_SHEBANG = re.compile(rb"#!.*python.*\n")


class BuildError(Exception):
    """An environment cannot be built; the message says why and what to do."""


@dataclass(frozen=True)
class Target:
    """What an environment is for: Python `3.13`, architecture as `uname -m` says it."""

    python: str
    arch: str


def find_uv() -> str:
    """Find `uv` beside the running Python or in PATH.

    Raises:
        BuildError: It is not there.
    """
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        raise BuildError("uv is not installed on the controller; run `pip install uv` where ansible-core is")
    return found


def source_files(source: Path) -> Iterator[Path]:
    """The files of a package's folder in a stable order, without caches."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def environment_id(lock: Path, sources: Iterable[Path], target: Target) -> str:
    """Digest of all that goes into an environment.

    Raises:
        BuildError: Something of it is not there.
    """
    digest = hashlib.sha256(f"{FORMAT}\0{target.python}\0{target.arch}\0".encode())
    if not lock.is_file():
        raise BuildError(f"{lock}: there is no such file on the controller")
    digest.update(lock.read_bytes())
    for source in sources:
        if not source.is_dir():
            raise BuildError(f"{source}: there is no such folder on the controller")
        for path in source_files(source):
            data = path.read_bytes()
            digest.update(f"\0{source.name}/{path.relative_to(source)}\0{len(data)}\0".encode())
            digest.update(data)
    return digest.hexdigest()[:16]


def console_scripts(site_packages: Path) -> dict[str, str]:
    """The console scripts of everything installed: `module:function` by name."""
    scripts: dict[str, str] = {}
    for metadata in sorted(site_packages.glob("*.dist-info/entry_points.txt")):
        parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign] # names are case-sensitive
        parser.read(metadata, encoding="utf-8")
        if parser.has_section("console_scripts"):
            scripts |= dict(parser.items("console_scripts"))
    return scripts


def build(cache: Path, identity: str, lock: Path, sources: Iterable[Path], target: Target) -> Path:
    """Build the archive of an environment's `site-packages`, once for all hosts.

    Args:
        cache: Folder for archives.
        identity: As `environment_id` gives it.
        lock: Hashed requirements file.
        sources: Folders of packages that are copied in.
        target: What it is for.

    Returns:
        The archive.

    Raises:
        BuildError: A package cannot be had, or is not what the lock says.
    """

    def fill(tree: Path) -> None:
        install(tree, lock, target)
        for source in sources:
            shutil.copytree(source, tree / source.name, ignore=shutil.ignore_patterns("__pycache__"))

    return archived(cache, identity, fill)


def archived(cache: Path, identity: str, fill: Callable[[Path], None]) -> Path:
    """Make an archive once, however many ask for it at the same time.

    Args:
        cache: Folder for archives.
        identity: Digest of all that goes in.
        fill: Puts what goes in into an empty folder.
    """
    folder = cache / "environments"
    archive = folder / f"{identity}.tar.gz"
    with locked(folder / f"{identity}.lock"):
        if not archive.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                tree = Path(scratch) / "tree"
                tree.mkdir()
                fill(tree)
                partial = Path(scratch) / "archive"
                pack(tree, partial)
                partial.replace(archive)
    return archive


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time work where `path` is; its folder is made if need be."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def fetch(tree: Path, lock: Path, target: Target | None) -> None:
    """Put the wheels that a lock names into `tree`, unpacked and verified.

    Args:
        tree: An empty folder.
        lock: Hashed requirements file.
        target: What they are for; None for this machine.

    Raises:
        BuildError: A wheel cannot be had, or is not what the lock says.
    """
    platform = (
        ["--python-version", target.python, "--python-platform", f"{target.arch}-{PLATFORM}"]
        if target
        else []
    )
    run = subprocess.run(
        [
            find_uv(), "pip", "install", "--quiet", "--no-config", "--target", str(tree), "--no-deps", "--require-hashes",
            "--only-binary", ":all:", *platform, "--python", sys.executable, "--link-mode", "copy",
            "--requirements", str(lock),
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if run.returncode:
        system = f"Python {target.python}" if target else "this machine"
        raise BuildError(f"{lock}: cannot be installed for {system}: {run.stderr.strip()}")
    (tree / ".lock").unlink(missing_ok=True)


def install(tree: Path, lock: Path, target: Target) -> None:
    """Put what the lock names into `tree`, for the target rather than for this machine."""
    fetch(tree, lock, target)
    # Console scripts are written on the host, where their interpreter is known; programs and other scripts come along.
    known = console_scripts(tree)
    for script in (tree / "bin").iterdir() if (tree / "bin").is_dir() else ():
        if script.name in known:
            script.unlink()
        else:
            script.write_bytes(PYTHON_SHEBANG.sub(SHEBANG, script.read_bytes(), count=1))


def pack(tree: Path, archive: Path) -> None:
    """Write a tree as an archive that is the same for the same content."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = 0
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        return member

    with (
        archive.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=3) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for path in sorted(tree.rglob("*")):
            tar.add(path, arcname=str(path.relative_to(tree)), recursive=False, filter=plain)


def expand(path: str) -> Path:
    """A path as the operator wrote it, made absolute."""
    return Path(os.path.expanduser(path)).resolve()
