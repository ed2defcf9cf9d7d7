# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Controller side of `gatehouse.mcp.restore_archive`: opens no connection."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase
from ansible_collections.gatehouse.mcp.plugins.filter.secrets import plain
from ansible_collections.gatehouse.mcp.plugins.module_utils.archive import Archive, ArchiveError, place
from ansible_collections.gatehouse.mcp.plugins.module_utils.environments import expand


class ActionModule(ActionBase):
    """Reads the archive of a backup."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what may be shown, or the secrets."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = self._task.args
        try:
            for option in ("archive", "identity"):
                if not args[option]:
                    raise ArchiveError(
                        f"gatehouse_restore_{option}: is missing; say -e gatehouse_restore_{option}=…"
                    )
            archive = Archive(
                expand(args["archive"]), expand(args["identity"]), Path(constants.DEFAULT_LOCAL_TMP)
            )
            if args.get("secrets"):
                return {**result, "changed": False, "store": archive.manifest["secrets"]}
            archive.refuse_unless_of(args["domain"])
            archive.check()
            placement, left = place(archive.manifest["parts"], plain(args["hosts"]))
        except (ArchiveError, OSError) as error:
            return {**result, "failed": True, "msg": f"{error}. No host was touched."}
        created = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(archive.manifest["created"]))
        return {**result, "changed": False, "created": created, "placement": placement, "left": left}
