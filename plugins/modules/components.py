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
  - A slot that an edge routes to is never the one that is written, also where a run broke off between the edges and the
    switch. Where there is no other, the task fails before anything is changed.
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
        description:
          - Text of the unit, rendered by the action plugin.
          - C(@SLOT@), C(@PORT@), C(@RELEASE@) (folder of the release) and C(@CREDENTIALS@) (folder of the credentials)
            are replaced by the slot's own, in C(env) as well.
        type: str
        required: true
      env:
        description: Configuration, written to C(.env). Values are strings of one line.
        type: dict
        default: {}
      live_files:
        description:
          - Content by name of files in C(/etc/gatehouse/<name>/) that the unit reads again when it is reloaded. A change of
            nothing else reloads what serves, and starts no slot.
          - Its C(ExecReload=) must fail, and leave what is in force, where it cannot use them; then they are put back.
        type: dict
        default: {}
      port:
        description: Even port of the first slot; the second has the next one.
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
            description: For C(http), which must answer 200, and C(mcp); C(@PORT@) is replaced by the slot's port.
            type: str
          host:
            description: The C(Host) that is asked for. The default is that of the C(url).
            type: str
          timeout:
            description: Seconds in which it must pass.
            type: int
            default: 45
  routed:
    description:
      - Ports of this host that edges route to.
      - The default is those of loopback that Traefik on this host routes to.
    type: list
    elements: int
  credentials:
    description:
      - Secrets, strings, by component and name, for C(LoadCredential=). In a task they stand in each component, as
        C(credentials); the action plugin moves them here.
    type: dict
    default: {}
author: Gatehouse contributors (!UNKNOWN)
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
  description: Components of which a slot was started or a file changed.
  type: list
  elements: str
  returned: always
pending:
  description: Components that wait for C(gatehouse.mcp.components_switch).
  type: list
  elements: str
  returned: always
routes:
  description: Addresses with ports that Traefik on this host routes to.
  type: list
  elements: str
  returned: always
obsolete:
  description: Components of the group that are on the host and not in the list; the switch removes them.
  type: list
  elements: str
  returned: always
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gatehouse.mcp.plugins.module_utils.health import wait_healthy
from ansible_collections.gatehouse.mcp.plugins.module_utils.slots import (
    ETC,
    OPT,
    SLOTS,
    SYSUSERS,
    UNITS,
    Component,
    Place,
    ask,
    exclusive,
    group_id,
    installed,
    link,
    log_tail,
    read,
    remove,
    scrub,
    slot_port,
    systemctl,
    user_exists,
    write_file,
)

CHECKS_AT_ONCE = 16


class Plan:
    """What has to be done for one component.

    Args:
        component: As it should be.
        states: What systemd says of the units of both slots.
        routed: Ports of the host that edges route to.
        held: Unit by port, of all slots on the host.
    """

    def __init__(
        self, component: Component, states: Mapping[str, str], routed: set[int], held: Mapping[int, str]
    ) -> None:
        self.component = component
        self.place = Place(component.name)
        self.current, self.next = self.place.pointer("current"), self.place.pointer("next")
        self.action = "nothing"
        self.obstacle: str | None = None
        self.slot = self.decide(states, routed, held)
        # What the files that change hold now; None where one is not there yet.
        self.replaced = {
            name: kept
            for name, content in component.live_files.items()
            if (kept := read(self.place.live_file(name))) != content
        }

    def decide(self, states: Mapping[str, str], routed: set[int], held: Mapping[int, str]) -> str:
        """Choose the slot that will serve, and what it takes."""

        def up(slot: str) -> bool:
            return states.get(self.place.unit(slot)) == "active"

        if self.next and self.matches(self.next) and up(self.next):
            return self.next
        if self.current and self.matches(self.current):
            if self.next:
                self.action = "return"  # what was started is no longer wanted
            elif not up(self.current):
                self.action = "start"
            return self.current
        self.action = "deploy"
        # Never a slot that serves. Which one that is, edges know: a run may have broken off between them and the switch.
        serving = {slot for slot in SLOTS if up(slot) and self.place.port(slot) in routed}
        serving = serving or {self.current or self.next or ""}
        free = [slot for slot in SLOTS if slot not in serving]
        # One that goes at the switch, or has another port from then on, holds its own until then.
        holders = {slot: held.get(slot_port(self.component.port, slot)) for slot in free}
        slots = [slot for slot, unit in holders.items() if unit in (None, *self.place.units)]
        if not free:
            self.obstacle = (
                f"{self.component.name}: some edges route to its old release and some to its new one, since a run broke"
                " off; before another change roll out once more what the inventory had then"
            )
        elif not slots:
            self.obstacle = (
                f"{self.component.name}: its port is {' and '.join(map(str, holders.values()))}'s until the end of this"
                " run; choose another port, or make the two changes one after the other"
            )
        return slots[0] if slots else "a"

    def matches(self, slot: str) -> bool:
        """Whether a slot holds exactly this component."""
        folder = self.place.credentials(slot)
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        return (
            self.place.release(slot) == self.component.release(slot)
            and read(self.place.unit_file(slot)) == self.component.unit_text(slot)
            and read(self.place.folder / slot / ".env") == self.component.dotenv(slot)
            and names == sorted(self.component.credentials)
            and all(read(folder / name) == value for name, value in self.component.credentials.items())
        )

    @property
    def unit(self) -> str:
        """Name of the unit that will serve."""
        return self.place.unit(self.slot)

    @property
    def port(self) -> int:
        """Port that will serve."""
        return slot_port(self.component.port, self.slot)

    @property
    def changes(self) -> bool:
        """Whether there is anything to do before the switch."""
        return self.action != "nothing" or self.reloads

    @property
    def reloads(self) -> bool:
        """Whether a unit goes on running and has to be told of its files."""
        due = bool(self.replaced) or self.place.reload_due.exists()
        return due and self.action in ("nothing", "return")

    @property
    def pending(self) -> bool:
        """Whether the switch has something to do when this is done."""
        return self.action == "deploy" or (self.action == "nothing" and self.slot == self.next)

    def diffs(self) -> list[dict[str, str]]:
        """What changes, without any secret and without what differs between the slots only."""
        place, component = self.place, self.component
        files = [
            (str(place.live_file(name)), kept or "", component.live_files[name])
            for name, kept in self.replaced.items()
        ]
        if self.action == "start":
            return [_diff(*change) for change in (*files, (self.unit, "stopped\n", "running\n"))]
        serving = place.serving() or self.slot
        release = place.folder / serving
        credentials = self.compare_credentials(serving)
        pairs = [
            (str(place.unit_file("*")), read(release / "unit") or "", component.unit),
            (str(ETC / component.name / ".env"), read(release / ".env") or "", component.dotenv(serving)),
            (str(place.credentials(serving).parent), *("".join(lines) for lines in credentials)),
            *files,
        ]
        return [_diff(path, before, after) for path, before, after in pairs if before != after]

    def compare_credentials(self, slot: str) -> tuple[list[str], list[str]]:
        """The names of the credentials that a slot has and shall have, and which of them change."""
        folder, wanted = self.place.credentials(slot), self.component.credentials
        before, after = [], []
        for name in sorted({*wanted, *(os.listdir(folder) if folder.is_dir() else [])}):
            kept = read(folder / name)
            if kept is not None:
                before.append(f"credential {name}\n")
            if name in wanted:
                changed = kept is not None and kept != wanted[name]
                after.append(f"credential {name}{' changed' if changed else ''}\n")
        return before, after

    def write(self) -> None:
        """Write the slot; its unit is stopped."""
        place, component = self.place, self.component
        group = group_id(place.user)
        identity = component.release(self.slot)
        release = place.folder / "releases" / identity
        release.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_file(release / ".env", component.dotenv(self.slot), 0o640, group)
        write_file(release / "unit", component.unit, 0o644)
        write_file(release / "manifest.json", component.manifest(), 0o644)
        link(place.folder / self.slot, f"releases/{identity}")
        (ETC / component.name).mkdir(mode=0o755, parents=True, exist_ok=True)
        folder = place.credentials(self.slot)
        if folder.exists():
            shutil.rmtree(folder)
        for parent in (folder.parent, folder):
            parent.mkdir(mode=0o700, exist_ok=True)
        for name, value in component.credentials.items():
            write_file(folder / name, value, 0o600)
        write_file(place.unit_file(self.slot), component.unit_text(self.slot), 0o644)

    def write_live_files(self, contents: Mapping[str, str | None]) -> None:
        """Put these contents into the files; None removes one."""
        if contents:
            self.place.reload_due.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self.place.reload_due.touch()
        for name, content in contents.items():
            path = self.place.live_file(name)
            if content is None:
                path.unlink(missing_ok=True)
            else:
                write_file(path, content, 0o640, group_id(self.place.user))

    def failure(self) -> str | None:
        """Tell a running unit of its files, and check the slot's health; sentences where it is not well."""
        if self.reloads and systemctl("reload", self.unit, check=False).returncode:
            return self.complain("reload", "the unit cannot use its new files")
        failed = wait_healthy(self.component.health, self.unit, self.port)
        if failed is None:
            self.place.reload_due.unlink(missing_ok=True)
            return None
        return self.complain(*failed)

    def complain(self, check: str, said: str) -> str:
        """Sentences on a check that failed, without a secret."""
        secrets = list(self.component.credentials.values())
        return (
            f"{self.component.name}: check «{check}» failed: {scrub(said, secrets)}\n"
            f"Last log lines of {self.unit}:\n{log_tail(self.unit, secrets)}"
        )


def _diff(path: str, before: str, after: str) -> dict[str, str]:
    return {"before_header": path, "after_header": path, "before": before, "after": after}


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
    subprocess.run(["systemd-sysusers", *files], check=True, capture_output=True, text=True)


def start(plans: list[Plan]) -> list[str]:
    """Start what has to be started, wait until it is well, and undo what is not; return the failures."""
    deployed = [plan for plan in plans if plan.action == "deploy"]
    if deployed:
        for folder in (OPT, ETC, UNITS):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        ensure_users(deployed)
        promote([plan for plan in deployed if plan.slot == plan.current])
        for plan in deployed:
            if plan.next == plan.slot:
                (plan.place.folder / "next").unlink(missing_ok=True)
        systemctl("stop", *(plan.unit for plan in deployed), check=False)
        for plan in deployed:
            plan.write()
        systemctl("daemon-reload")
    for plan in plans:
        plan.write_live_files({name: plan.component.live_files[name] for name in plan.replaced})
    units = [plan.unit for plan in plans]
    systemctl("reset-failed", *units, check=False)
    # One that cannot be started must not keep others from it; its checks say what is wrong.
    systemctl("start", "--no-block", *units, check=False)
    failed: list[Plan] = []
    failures = []
    with ThreadPoolExecutor(CHECKS_AT_ONCE) as pool:
        for plan, failure in zip(plans, pool.map(Plan.failure, plans), strict=True):
            if failure is not None:
                failed.append(plan)
                failures.append(failure)
            elif plan.action == "deploy":
                link(plan.place.folder / "next", plan.slot)
            elif plan.action == "return":
                # Its slot goes at the switch: Traefik may use it until then.
                (plan.place.folder / "next").unlink()
    for plan in failed:
        plan.write_live_files(plan.replaced)
        if plan.reloads and not systemctl("reload", plan.unit, check=False).returncode:
            plan.place.reload_due.unlink(missing_ok=True)
    undo([plan for plan in failed if plan.action == "deploy"])
    return failures


def promote(plans: list[Plan]) -> None:
    """Make up for a switch that a broken run owes: edges route to the other slot, and the current one will be written."""
    others = {plan.place: next(slot for slot in SLOTS if slot != plan.slot) for plan in plans}
    if others:
        systemctl("enable", "--quiet", *(place.unit(slot) for place, slot in others.items()))
        systemctl("disable", "--quiet", *(plan.unit for plan in plans), check=False)
    for place, slot in others.items():
        link(place.folder / "current", slot)
        (place.folder / "next").unlink(missing_ok=True)


def undo(plans: list[Plan]) -> None:
    """Remove slots that are not well; all of the component where nothing else of it runs."""
    if not plans:
        return
    units = [plan.unit for plan in plans]
    systemctl("stop", *units, check=False)
    systemctl("reset-failed", *units, check=False)
    for plan in plans:
        plan.place.clear_slot(plan.slot)
    systemctl("daemon-reload")
    first = [plan.place for plan in plans if not plan.place.serving()]
    if first:
        remove(first)


def run(module: AnsibleModule) -> None:
    """Compare, and make it so."""
    group, wanted = module.params["group"], module.params["components"]
    try:
        secrets = module.params["credentials"]
        components = [
            Component(group=group, credentials=secrets.get(item["name"], {}), **item) for item in wanted
        ]
    except ValueError as error:
        module.fail_json(msg=str(error))
    names = [component.name for component in components]
    if len(set(names)) != len(names) or len({component.port for component in components}) != len(names):
        module.fail_json(msg="two components have the same name or port")
    states = ask("is-active", [Place(name).unit(slot) for name in names for slot in SLOTS])
    held = {
        port: place.unit(slot)
        for place in installed()
        for slot in SLOTS
        if (port := place.port(slot)) is not None
    }
    routes = sorted(
        set(re.findall(r"http://([^/:\s]+:\d+)", read(ETC / "traefik" / "dynamic" / "gatehouse.yml") or ""))
    )
    routed = module.params["routed"]
    if routed is None:
        routed = [int(route.rpartition(":")[2]) for route in routes if route.startswith("127.")]
    plans = [Plan(component, states, set(routed), held) for component in components]
    obstacles = [plan.obstacle for plan in plans if plan.obstacle]
    if obstacles:
        module.fail_json(msg="Nothing was changed. " + "; ".join(obstacles))
    changed = [plan for plan in plans if plan.changes]
    result: dict[str, Any] = {
        "changed": bool(changed),
        "changed_components": [plan.component.name for plan in changed],
        "endpoints": {plan.component.name: plan.port for plan in plans},
        "routes": routes,
        "pending": [plan.component.name for plan in plans if plan.pending],
        "obsolete": [place.name for place in installed() if place.name not in names and place.group == group],
        "diff": [diff for plan in changed for diff in plan.diffs()],
    }
    if changed and not module.check_mode:
        failures = start(changed)
        if failures:
            count = f"{len(failures)} of {len(changed)} changed components did not pass"
            module.fail_json(
                msg=f"{count}; what ran before goes on running.\n\n" + "\n\n".join(failures), **result
            )
    module.exit_json(**result)


def main() -> None:
    """Ansible's entry point."""
    health = {
        "name": {"type": "str", "required": True},
        "kind": {"type": "str", "required": True, "choices": ["unit", "http", "mcp"]},
        "url": {"type": "str"},
        "host": {"type": "str"},
        "timeout": {"type": "int", "default": 45},
    }
    component = {
        "name": {"type": "str", "required": True},
        "unit": {"type": "str", "required": True},
        "env": {"type": "dict", "default": {}},
        "live_files": {"type": "dict", "default": {}},
        "port": {"type": "int", "required": True},
        "environments": {"type": "list", "elements": "str", "default": []},
        "health": {
            "type": "list",
            "elements": "dict",
            "options": health,
            "default": [],
            "required_if": [("kind", "http", ["url"]), ("kind", "mcp", ["url"])],
        },
    }
    module = AnsibleModule(
        argument_spec={
            "group": {"type": "str", "required": True},
            "unit_template": {"type": "str"},
            "components": {"type": "list", "elements": "dict", "options": component, "required": True},
            "routed": {"type": "list", "elements": "int"},
            # Of a parameter of its own Ansible logs nothing. Within another it blots values out, and misses those that
            # its search for addresses with passwords has changed before.
            "credentials": {"type": "dict", "default": {}, "no_log": True},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    try:
        with exclusive(not module.check_mode):
            run(module)
    except (OSError, subprocess.CalledProcessError) as error:
        module.fail_json(msg=f"{error} {getattr(error, 'stderr', '') or ''}".strip())


if __name__ == "__main__":
    main()
