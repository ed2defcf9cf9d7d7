# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Controller side of `gatehouse.mcp.backup_parts`: fetches what the host has encrypted, as files, never in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.gatehouse.mcp.plugins.module_utils.archive import digest


class ActionModule(ActionBase):
    """One run of the module, then one transfer a part."""

    TRANSFERS_FILES = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `parts` and `notes`."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        if self._task.check_mode:
            return {**result, "changed": True, "parts": [], "notes": []}
        host = (task_vars or {})["inventory_hostname"]
        local = Path(self._task.args["folder"])
        if not self._connection._shell.tmpdir:
            self._make_tmp_path()
        remote = self._connection._shell.tmpdir
        try:
            taken = self._execute_module(
                module_name="gatehouse.mcp.backup_parts",
                module_args={**self._task.args, "folder": remote},
                task_vars=task_vars,
            )
            if taken.get("failed"):
                return {**result, **taken}
            parts = []
            for part in taken["parts"]:
                # Encrypted, and readable for whom the connection belongs to, whoever the module ran as.
                path = local / f"{host.replace(os.sep, '_')}.{Path(part['path']).name}"
                self._connection.fetch_file(part["path"], str(path))
                path.chmod(0o600)
                parts.append(
                    {
                        "file": path.name,
                        "host": host,
                        "components": part["components"],
                        "bytes": path.stat().st_size,
                        "sha256": digest(path),
                    }
                )
        finally:
            self._remove_tmp_path(remote)
        return {**result, "changed": True, "parts": parts, "notes": taken["notes"]}
