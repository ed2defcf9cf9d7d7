# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Controller side of `gatehouse.mcp.locks`: opens no connection."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.gatehouse.mcp.plugins.module_utils.environments import BuildError, expand, find_uv
from ansible_collections.gatehouse.mcp.plugins.module_utils.npm import write_lock


def file_name(package: str) -> str:
    """Name of a package's lock; `.txt`, since Ansible takes a `.json` beside an inventory for one."""
    kind, _, rest = package.partition(":")
    # No name has a plus, so no two packages share a lock.
    return f"{rest.replace('/', '+')}{'.package-lock' if kind == 'npm' else ''}.txt"


def lock(package: str, cache: Path) -> str:
    """The text of a package's lock.

    Raises:
        BuildError: It cannot be resolved.
    """
    kind, _, rest = package.partition(":")
    if kind == "npm":
        name, _, version = rest.partition("==")
        return write_lock(cache, name, version)
    compiled = subprocess.run(
        [find_uv(), "pip", "compile", "--quiet", "--universal", "--python-version", "3.11",
         "--generate-hashes", "--no-header", "--no-annotate", "-"],
        input=rest, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if compiled.returncode:
        raise BuildError(compiled.stderr.strip())
    return compiled.stdout


class ActionModule(ActionBase):
    """Writes a lock with hashes for every package that has none."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `locks`: the lock of each package."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        folder, cache = (expand(self._task.args[key]) for key in ("folder", "cache"))
        locks: dict[str, str] = {}
        written: list[str] = []
        for package in self._task.args["packages"]:
            path = folder / file_name(package)
            if not path.exists():
                written.append(str(path))
                if self._task.check_mode:
                    # The id of the environment must be known; the inventory stays as it is.
                    path = cache / "locks" / path.name
            if not path.exists():
                try:
                    text = lock(package, cache)
                except (BuildError, OSError) as error:
                    return {**result, "failed": True, "msg": f"{package}: cannot be resolved: {error}"}
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f"{path.name}.new")
                partial.write_text(text, encoding="utf-8")
                partial.replace(path)
            locks[package] = str(path)
        result.update(changed=bool(written), locks=locks, written=written)
        return result
