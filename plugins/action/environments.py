# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Controller side of `gatehouse.mcp.environments`: builds what the host lacks and pushes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.gatehouse.mcp.plugins.module_utils.environments import (
    BuildError,
    Target,
    build,
    environment_id,
    expand,
)
from ansible_collections.gatehouse.mcp.plugins.module_utils.npm import (
    build_node,
    build_npm,
    node_id,
    npm_id,
)

MODULE = "gatehouse.mcp.environments"


class Environment:
    """One environment for one kind of host.

    Args:
        wanted: As the task describes it.
        others: All that the task describes, among them the Node.js of npm packages.
        target: What it is for.

    Raises:
        BuildError: Something of it is not there.
    """

    def __init__(
        self, wanted: Mapping[str, Any], others: Sequence[Mapping[str, Any]], target: Target
    ) -> None:
        self.name: str = wanted["name"]
        self.kind: str = wanted["kind"]
        self._lock = expand(wanted["lock"])
        self._sources = [expand(source) for source in wanted["sources"]]
        self._target = target
        if self.kind == "npm":
            nodes = [expand(other["lock"]) for other in others if other["kind"] == "node"]
            if not nodes:
                raise BuildError(
                    f"{self.name}: npm packages need an environment of the kind node beside theirs"
                )
            self._node_lock = nodes[0]
            self._node = node_id(self._node_lock, target.arch)
            self.id = npm_id(self._lock, self._node)
        elif self.kind == "node":
            self.id = node_id(self._lock, target.arch)
        else:
            self.id = environment_id(self._lock, self._sources, target)

    def build(self, cache: Path) -> Path:
        """Build its archive, once for all hosts of that kind.

        Raises:
            BuildError: Something of it cannot be had, or is not what its lock says.
        """
        if self.kind == "npm":
            return build_npm(cache, self.id, self._lock, self._node, self._node_lock, self._target.arch)
        if self.kind == "node":
            return build_node(cache, self.id, self._lock, self._target)
        return build(cache, self.id, self._lock, self._sources, self._target)


class ActionModule(ActionBase):
    """One round trip where the host has everything."""

    TRANSFERS_FILES = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `environments`: id, path and whether it was missing, by name."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        options = {
            "name": {"type": "str", "required": True},
            "kind": {"type": "str", "choices": ["python", "node", "npm"], "default": "python"},
            "lock": {"type": "path", "required": True},
            "sources": {"type": "list", "elements": "path", "default": []},
        }
        _, args = self.validate_argument_spec(
            argument_spec={
                "environments": {
                    "type": "list",
                    "elements": "dict",
                    "options": options,
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
        archives: list[dict[str, Any]] = []
        try:
            for wanted in args["environments"]:
                environment = Environment(wanted, args["environments"], target)
                identity = environment.id
                missing = identity not in state["present"]
                environments[environment.name] = {
                    "id": identity,
                    "path": f"{state['root']}/{identity}",
                    "missing": missing,
                }
                if (
                    missing
                    and not self._task.check_mode
                    and identity not in [item["id"] for item in archives]
                ):
                    built = environment.build(expand(args["cache"]))
                    archives.append(
                        {"id": identity, "python": environment.kind == "python", "local": str(built)}
                    )
        except (BuildError, OSError) as error:
            return {**result, "failed": True, "msg": str(error)}
        result.update(
            changed=any(item["missing"] for item in environments.values()), environments=environments
        )
        if archives:
            if not self._connection._shell.tmpdir:
                self._make_tmp_path()
            pushed = []
            for number, item in enumerate(archives):
                remote = self._connection._shell.join_path(self._connection._shell.tmpdir, f"{number}.tar.gz")
                pushed.append(
                    {
                        "id": item["id"],
                        "python": item["python"],
                        "archive": self._transfer_file(item["local"], remote),
                    }
                )
            installed = self._execute_module(
                module_name=MODULE,
                module_args={**common, "state": "present", "archives": pushed},
                task_vars=task_vars,
            )
            self._remove_tmp_path(self._connection._shell.tmpdir)
            if installed.get("failed"):
                return {**result, **installed}
        return result
