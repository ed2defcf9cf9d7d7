# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Controller side of `gatehouse.mcp.backup_archive`: opens no connection."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.gatehouse.mcp.plugins.filter.secrets import plain
from ansible_collections.gatehouse.mcp.plugins.module_utils.archive import (
    ArchiveError,
    begin,
    finish,
    new_key,
)
from ansible_collections.gatehouse.mcp.plugins.module_utils.environments import expand


class ActionModule(ActionBase):
    """Begins and finishes the archive of a backup."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what the state of the task gives."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = self._task.args
        try:
            if args["state"] == "checked":
                new_key(args["recipients"])
                return {**result, "changed": False}
            if self._task.check_mode:
                return {**result, "changed": True, "folder": "", "recipient": ""}
            if args["state"] == "begun":
                folder, recipient = begin(expand(args["folder"]), args["recipients"])
                return {**result, "changed": True, "folder": str(folder), "recipient": recipient}
            path = finish(
                expand(args["folder"]),
                args["recipient"],
                args["domain"],
                plain(args["secrets"]),
                plain(args["parts"]),
            )
        except (ArchiveError, OSError) as error:
            return {**result, "failed": True, "msg": str(error)}
        return {**result, "changed": True, "path": str(path), "bytes": path.stat().st_size}
