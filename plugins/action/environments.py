# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Controller side of `gatehouse.mcp.environments`: builds what the host lacks and pushes it."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.gatehouse.mcp.plugins.module_utils.environments import (
    BuildError,
    Target,
    build,
    environment_id,
    expand,
)

MODULE = "gatehouse.mcp.environments"


class ActionModule(ActionBase):
    """One round trip where the host has everything."""

    TRANSFERS_FILES = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `environments`: id, path and whether it was missing, by name."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        environment = {
            "name": {"type": "str", "required": True},
            "lock": {"type": "path", "required": True},
            "sources": {"type": "list", "elements": "path", "default": []},
        }
        _, args = self.validate_argument_spec(
            argument_spec={
                "environments": {
                    "type": "list",
                    "elements": "dict",
                    "options": environment,
                    "required": True,
                },
                "cache": {"type": "path", "default": "~/.cache/gatehouse"},
                "python": {"type": "path"},
                "root": {"type": "path"},
            }
        )
        common = {key: args[key] for key in ("python", "root") if args[key]}
        state = self._execute_module(
            module_name=MODULE, module_args={**common, "state": "query"}, task_vars=task_vars
        )
        if state.get("failed"):
            return {**result, **state}
        target = Target(python=state["python_version"], arch=state["arch"])
        environments: dict[str, dict[str, Any]] = {}
        archives: list[dict[str, str]] = []
        try:
            for wanted in args["environments"]:
                lock, sources = expand(wanted["lock"]), [expand(source) for source in wanted["sources"]]
                identity = environment_id(lock, sources, target)
                missing = identity not in state["present"]
                environments[wanted["name"]] = {
                    "id": identity,
                    "path": f"{state['root']}/{identity}",
                    "missing": missing,
                }
                if (
                    missing
                    and not self._task.check_mode
                    and identity not in [item["id"] for item in archives]
                ):
                    built = build(expand(args["cache"]), identity, lock, sources, target)
                    archives.append({"id": identity, "local": str(built)})
        except (BuildError, OSError) as error:
            return {**result, "failed": True, "msg": str(error)}
        result.update(
            changed=any(item["missing"] for item in environments.values()), environments=environments
        )
        if archives:
            self._make_tmp_path()
            pushed = []
            for number, item in enumerate(archives):
                remote = self._connection._shell.join_path(self._connection._shell.tmpdir, f"{number}.tar.gz")
                pushed.append({"id": item["id"], "archive": self._transfer_file(item["local"], remote)})
            installed = self._execute_module(
                module_name=MODULE,
                module_args={**common, "state": "present", "archives": pushed},
                task_vars=task_vars,
            )
            self._remove_tmp_path(self._connection._shell.tmpdir)
            if installed.get("failed"):
                return {**result, **installed}
        return result
