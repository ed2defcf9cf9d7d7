# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Start what changed beside what runs."""

DOCUMENTATION = r"""
module: components
short_description: Start new releases of components beside the ones that run
description:
  - For every component whose release or credentials differ from what serves, writes and starts the other slot, and runs
    its health checks. What serves is not touched; C(gatehouse.mcp.components_switch) lets the new slot take over.
  - If a check fails, the new slot is stopped and removed and the task fails, naming the check and the unit's last log
    lines.
  - All components start at the same time, so many take hardly longer than one.
options:
  group:
    description: Group that the components belong to; the switch removes members of a group that are no longer wanted.
    type: str
    required: true
  unit_template:
    description: Template of the unit, rendered on the controller for each component with its C(vars).
    type: str
  components:
    description: The components.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name; the system user is C(gatehouse-<name>).
        type: str
        required: true
      unit:
        description: Text of the unit. Set by the action plugin.
        type: str
        required: true
      env:
        description: Configuration, written to C(.env).
        type: dict
        default: {}
      credentials:
        description: Secrets by name, for C(LoadCredential=).
        type: dict
        default: {}
      port:
        description: Even port of the first slot.
        type: int
        required: true
      environments:
        description: Ids of the Python environments that it uses.
        type: list
        elements: str
        default: []
      health:
        description: Checks, in order.
        type: list
        elements: dict
        default: []
        suboptions:
          name:
            description: Name, for messages.
            type: str
            required: true
          kind:
            description: What is checked.
            type: str
            choices: [unit, http, mcp]
            required: true
          url:
            description: For C(http) and C(mcp).
            type: str
          timeout:
            description: Seconds.
            type: int
            default: 45
author: Gatehouse contributors
"""

EXAMPLES = r"""
- name: Start what changed
  gatehouse.mcp.components:
    group: mcp
    unit_template: service.unit.j2
    components: "{{ components }}"
"""

RETURN = r"""
endpoints:
  description: Port on which each component serves, or will when it is switched.
  type: dict
  returned: always
changed_components:
  description: Components of which a slot was started.
  type: list
  elements: str
  returned: always
"""

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gatehouse.mcp.plugins.module_utils.health import wait_healthy
from ansible_collections.gatehouse.mcp.plugins.module_utils.slots import (
    ETC,
    OPT,
    SYSUSERS,
    UNITS,
    Component,
    Place,
    fill,
    group_id,
    link,
    log_tail,
    read,
    remove,
    slot_port,
    systemctl,
    user_exists,
    write_file,
)

CHECKS_AT_ONCE = 16


class Plan:
    """What has to be done for one component."""

    def __init__(self, component: Component) -> None:
        self.component = component
        self.place = Place(component.name)
        self.current, self.next = self.place.pointer("current"), self.place.pointer("next")
        self.action = "nothing"
        self.slot = self.decide()

    def decide(self) -> str:
        """Choose the slot that will serve, and what it takes."""
        if self.next and self.matches(self.next) and self.place.active(self.next):
            return self.next
        if self.current and self.matches(self.current):
            if self.next:
                self.action = "return"  # what was started is no longer wanted
            elif not self.place.active(self.current):
                self.action = "start"
            return self.current
        self.action = "deploy"
        return "b" if self.current == "a" else "a"

    def matches(self, slot: str) -> bool:
        """Whether a slot holds exactly this component."""
        folder = self.place.credentials(slot)
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        return (
            self.place.release(slot) == self.component.release
            and read(self.place.unit_file(slot)) == self.unit_text(slot)
            and read(self.place.folder / slot / ".env") == self.component.dotenv
            and names == sorted(self.component.credentials)
            and all(read(folder / name) == value for name, value in self.component.credentials.items())
        )

    def unit_text(self, slot: str) -> str:
        """The unit of a slot."""
        return fill(self.component.unit, self.place, slot, self.component.port)

    @property
    def unit(self) -> str:
        """Name of the unit that will serve."""
        return self.place.unit(self.slot)

    @property
    def port(self) -> int:
        """Port that will serve."""
        return slot_port(self.component.port, self.slot)

    def diffs(self) -> list[dict[str, str]]:
        """What changes, without any secret."""
        serving = self.place.serving()
        old_unit = (read(self.place.unit_file(serving)) or "") if serving else ""
        old_env = (read(self.place.folder / serving / ".env") or "") if serving else ""
        folder = self.place.credentials(serving or self.slot)
        old, new = (
            dict.fromkeys(names, "secret")
            for names in (os.listdir(folder) if folder.is_dir() else [], self.component.credentials)
        )
        for name in self.component.credentials:
            if name in old and read(folder / name) != self.component.credentials[name]:
                new[name] = "another secret"
        pairs = [
            (str(self.place.unit_file(self.slot)), old_unit, self.unit_text(self.slot)),
            (str(ETC / self.component.name / ".env"), old_env, self.component.dotenv),
            (
                str(folder.parent),
                *(json.dumps(names, indent=1, sort_keys=True) + "\n" for names in (old, new)),
            ),
        ]
        return [
            {"before_header": path, "after_header": path, "before": before, "after": after}
            for path, before, after in pairs
            if before != after
        ]

    def write(self) -> None:
        """Write the slot; its unit is stopped."""
        place, component = self.place, self.component
        group = group_id(place.user)
        release = place.folder / "releases" / component.release
        release.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_file(release / ".env", component.dotenv, 0o640, group)
        write_file(release / "unit", component.unit, 0o644)
        write_file(release / "manifest.json", component.manifest(), 0o644)
        link(place.folder / self.slot, f"releases/{component.release}")
        (ETC / component.name).mkdir(mode=0o755, parents=True, exist_ok=True)
        folder = place.credentials(self.slot)
        shutil.rmtree(folder, ignore_errors=True)
        for parent in (folder.parent, folder):
            parent.mkdir(mode=0o700, exist_ok=True)
        for name, value in component.credentials.items():
            write_file(folder / name, value, 0o600)
        write_file(place.unit_file(self.slot), self.unit_text(self.slot), 0o644)

    def failure(self) -> str | None:
        """Check the slot's health; a sentence where it is not well."""
        failed = wait_healthy(self.component.health, self.unit, self.port)
        if failed is None:
            return None
        check, said = failed
        secrets = list(self.component.credentials.values())
        return f"{self.component.name}: check «{check}» failed: {said}\nLast log lines of {self.unit}:\n{log_tail(self.unit, secrets)}"


def ensure_users(plans: list[Plan]) -> None:
    """Create the system users that are missing."""
    missing = [plan for plan in plans if not user_exists(plan.place.user)]
    if not missing:
        return
    SYSUSERS.mkdir(mode=0o755, exist_ok=True)
    files = []
    for plan in missing:
        path = SYSUSERS / f"{plan.place.user}.conf"
        line = f'u {plan.place.user} - "Gatehouse {plan.component.name}" /nonexistent /usr/sbin/nologin\n'
        write_file(path, line, 0o644)
        files.append(str(path))
    subprocess.run(["systemd-sysusers", *files], check=True, capture_output=True)


def start(plans: list[Plan]) -> list[str]:
    """Start what has to be started, wait until it is well, and undo what is not; return the failures."""
    deployed = [plan for plan in plans if plan.action == "deploy"]
    for plan in plans:
        if plan.action == "return" and plan.next:
            systemctl("stop", plan.place.unit(plan.next), check=False)
            (plan.place.folder / "next").unlink(missing_ok=True)
            plan.place.clear_slot(plan.next)
    if deployed:
        os.umask(0o022)
        for folder in (OPT, ETC):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        UNITS.mkdir(mode=0o755, parents=True, exist_ok=True)
        ensure_users(deployed)
        units = [plan.unit for plan in deployed]
        systemctl("stop", *units, check=False)
        for plan in deployed:
            if plan.next:
                (plan.place.folder / "next").unlink(missing_ok=True)
            plan.write()
    systemctl("daemon-reload")
    started = [plan for plan in plans if plan.action != "nothing"]
    systemctl("reset-failed", *(plan.unit for plan in started), check=False)
    systemctl("start", "--no-block", *(plan.unit for plan in started))
    failures = []
    with ThreadPoolExecutor(CHECKS_AT_ONCE) as pool:
        for plan, failure in zip(started, pool.map(Plan.failure, started), strict=True):
            if failure is None:
                if plan.action == "deploy":
                    link(plan.place.folder / "next", plan.slot)
                continue
            failures.append(failure)
            if plan.action == "deploy":
                if not plan.current:
                    remove([plan.place])
                    continue
                systemctl("stop", plan.unit, check=False)
                systemctl("reset-failed", plan.unit, check=False)
                plan.place.clear_slot(plan.slot)
    if failures:
        systemctl("daemon-reload")
    return failures


def main() -> None:
    """Ansible's entry point."""
    health = {
        "name": {"type": "str", "required": True},
        "kind": {"type": "str", "required": True, "choices": ["unit", "http", "mcp"]},
        "url": {"type": "str"},
        "timeout": {"type": "int", "default": 45},
    }
    component = {
        "name": {"type": "str", "required": True},
        "unit": {"type": "str", "required": True},
        "env": {"type": "dict", "default": {}},
        "credentials": {"type": "dict", "default": {}, "no_log": True},
        "port": {"type": "int", "required": True},
        "environments": {"type": "list", "elements": "str", "default": []},
        "health": {"type": "list", "elements": "dict", "options": health, "default": []},
    }
    module = AnsibleModule(
        argument_spec={
            "group": {"type": "str", "required": True},
            "unit_template": {"type": "str"},
            "components": {"type": "list", "elements": "dict", "options": component, "required": True},
        },
        supports_check_mode=True,
    )
    try:
        plans = [
            Plan(Component(group=module.params["group"], **item)) for item in module.params["components"]
        ]
    except ValueError as error:
        module.fail_json(msg=str(error))
    changed = [plan for plan in plans if plan.action != "nothing"]
    result: dict[str, Any] = {
        "changed": bool(changed),
        "changed_components": [plan.component.name for plan in changed],
        "endpoints": {plan.component.name: plan.port for plan in plans},
        "diff": [diff for plan in changed for diff in plan.diffs()],
    }
    if changed and not module.check_mode:
        try:
            failures = start(changed)
        except (OSError, subprocess.CalledProcessError) as error:
            module.fail_json(msg=f"{error} {getattr(error, 'stderr', '') or ''}".strip(), **result)
        if failures:
            count = f"{len(failures)} of {len(changed)} changed components did not pass"
            module.fail_json(
                msg=f"{count}; what ran before goes on running.\n\n" + "\n\n".join(failures), **result
            )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
