# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Whether a unit runs with what is configured."""

DOCUMENTATION = r"""
module: unit_loaded
short_description: Tell whether a running unit was started before its files changed
description:
  - Reports a change where the unit runs and its unit file or one of C(files) is newer than its main process, so that the
    task can notify a restart. Changes nothing itself.
  - A restart that an earlier, broken run owed is found this way as well.
options:
  unit:
    description: Name of the unit, whose file is in C(/etc/systemd/system).
    type: str
    required: true
  files:
    description: What the unit reads when it starts. Of a symbolic link, the link itself counts.
    type: list
    elements: path
    default: []
  changing:
    description: Whether this run changes one of the files; in check mode there is nothing on disk to tell.
    type: bool
    default: false
author: Gatehouse contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Compare what Redis has loaded with what is configured
  gatehouse.mcp.unit_loaded:
    unit: gatehouse-redis.service
    files: [/etc/gatehouse/redis/redis.conf]
  notify: Restart Redis
"""

RETURN = r"""
exists:
  description: Whether the unit's file is there.
  type: bool
  returned: always
newer:
  description: The files that are newer than the main process.
  type: list
  elements: str
  returned: always
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gatehouse.mcp.plugins.module_utils.health import show
from ansible_collections.gatehouse.mcp.plugins.module_utils.slots import UNITS


def started_at(unit: str) -> float | None:
    """When the unit's main process was started, in seconds since the epoch; None where none runs."""
    state = show(unit, "ActiveState", "ExecMainStartTimestampMonotonic")
    if state.get("ActiveState") not in ("active", "activating", "reloading"):
        return None
    # By the monotonic clock: it has microseconds, and no time zone.
    return time.time() - time.monotonic() + int(state["ExecMainStartTimestampMonotonic"]) / 1e6


def newer_than(moment: float, files: list[str]) -> list[str]:
    """The files that changed after a moment."""
    return [path for path in files if os.path.lexists(path) and os.lstat(path).st_mtime > moment]


def main() -> None:
    """Ansible's entry point."""
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "required": True},
            "files": {"type": "list", "elements": "path", "default": []},
            "changing": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    unit_file = str(UNITS / module.params["unit"])
    moment = started_at(module.params["unit"])
    newer = [] if moment is None else newer_than(moment, [unit_file, *module.params["files"]])
    pending = module.check_mode and module.params["changing"] and moment is not None
    module.exit_json(changed=bool(newer) or pending, exists=os.path.exists(unit_file), newer=newer)


if __name__ == "__main__":
    main()
