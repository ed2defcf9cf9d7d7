# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Controller side of `gatehouse.mcp.restore_parts`: pushes parts as they are in the archive, encrypted."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase
from ansible_collections.gatehouse.mcp.plugins.filter.secrets import plain
from ansible_collections.gatehouse.mcp.plugins.module_utils.archive import Archive, ArchiveError
from ansible_collections.gatehouse.mcp.plugins.module_utils.environments import expand

MODULE = "gatehouse.mcp.restore_parts"


class ActionModule(ActionBase):
    """One transfer a part, then one run of the module."""

    TRANSFERS_FILES = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what the module returns."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = dict(self._task.args)
        archive, identity = args.pop("archive", None), args.pop("identity", None)
        if args["state"] != "staged" or self._task.check_mode or not args["parts"]:
            return {
                **result,
                **self._execute_module(module_name=MODULE, module_args=args, task_vars=task_vars),
            }
        if not self._connection._shell.tmpdir:
            self._make_tmp_path()
        remote = self._connection._shell.tmpdir
        try:
            with tempfile.TemporaryDirectory(dir=constants.DEFAULT_LOCAL_TMP) as scratch:
                opened = Archive(expand(archive), expand(identity), Path(scratch))
                known = {part["file"]: part for part in opened.manifest["parts"]}
                parts = []
                for number, part in enumerate(plain(args["parts"])):
                    local = opened.extract(known[part["file"]], Path(scratch))
                    path = self._connection._shell.join_path(remote, f"{number}.age")
                    parts.append({**part, "path": self._transfer_file(str(local), path)})
            # The key goes to the host as other secrets do, in the module's own arguments.
            result.update(
                self._execute_module(
                    module_name=MODULE,
                    module_args={**args, "parts": parts, "key": opened.key},
                    task_vars=task_vars,
                )
            )
        except (ArchiveError, OSError) as error:
            return {**result, "failed": True, "msg": str(error)}
        finally:
            self._remove_tmp_path(remote)
        return result
