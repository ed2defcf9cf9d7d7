# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Controller side of `gatehouse.mcp.locks`: opens no connection."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.gatehouse.mcp.plugins.module_utils.environments import find_uv


class ActionModule(ActionBase):
    """Writes a hashed requirements file for every package that has none."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `locks`: the requirements file of each package."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        folder, cache = (os.path.expanduser(self._task.args[key]) for key in ("folder", "cache"))
        locks: dict[str, str] = {}
        written: list[str] = []
        for package in self._task.args["packages"]:
            name = package.replace("==", "-").replace("[", "-").replace("]", "") + ".txt"
            path = os.path.join(folder, name)
            if not os.path.exists(path):
                written.append(path)
                if self._task.check_mode:
                    # The id of the environment must be known; the inventory stays as it is.
                    path = os.path.join(cache, "locks", name)
            if not os.path.exists(path):
                compiled = subprocess.run(
                    [find_uv(), "pip", "compile", "--quiet", "--universal", "--python-version", "3.11",
                     "--generate-hashes", "--no-header", "--no-annotate", "-"],
                    input=package, capture_output=True, text=True, check=False,
                )  # fmt: skip
                if compiled.returncode:
                    result.update(
                        failed=True, msg=f"{package}: cannot be resolved: {compiled.stderr.strip()}"
                    )
                    return result
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path + ".new", "w", encoding="utf-8") as file:
                    file.write(compiled.stdout)
                os.replace(path + ".new", path)
            locks[package] = path
        result.update(changed=bool(written), locks=locks, written=written)
        return result
