# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Let new releases take over."""

DOCUMENTATION = r"""
module: components_switch
short_description: Let new releases take over and remove what is not wanted
description:
  - To be run when Traefik routes to the slots that C(gatehouse.mcp.components) started.
  - The new slot becomes current; the old one drains, stops and is removed. Components of the given groups that are not
    wanted any more go entirely, with their users, state and cache, save what one keeps that only moved to another host. Old
    releases and unused environments are pruned.
  - A host that left a group runs nothing of that group any more, and keeps none of its secrets.
options:
  groups:
    description: Names of the components that are wanted, by group.
    type: dict
    required: true
  units:
    description:
      - Which of the components without slots, C(redis) and C(traefik), are wanted. One that is there and is not wanted goes
        as well, save the data of Redis and its user.
      - The default leaves them alone.
    type: list
    elements: str
  moved:
    description: Names of components that, where this host has them no more, are on another from now on.
    type: list
    elements: str
    default: []
  secrets:
    description: Whether the host keeps generated secrets; those of a host that does not are removed.
    type: bool
    default: true
  drain_seconds:
    description: Seconds that an old slot may take for what it has begun.
    type: int
    default: 20
  keep_releases:
    description: Releases of a component that are kept.
    type: int
    default: 3
author: Gatehouse contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Let new releases take over
  gatehouse.mcp.components_switch:
    groups: {mcp: [echo, time]}
"""

RETURN = r"""
switched:
  description: Components that took over.
  type: list
  elements: str
  returned: always
removed:
  description: Components that were removed.
  type: list
  elements: str
  returned: always
"""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gatehouse.mcp.plugins.module_utils.slots import (
    ETC,
    OPT,
    SINGLE,
    SLOTS,
    STATE,
    UNITS,
    Place,
    ask,
    exclusive,
    installed,
    link,
    read_manifest,
    remove,
    systemctl,
)

ENVIRONMENTS = OPT / "environments"
# Between SIGKILL at the end of the drain and systemd saying so.
STOP_MARGIN = 10


@dataclass
class Turn:
    """What is due for one component that stays.

    Args:
        place: The component.
        slot: The slot that serves from now on.
        takes_over: Whether it did not before.
        enable: Whether its unit has to be enabled.
        leaving: Slots that have to go: the one that served, and what an interrupted run left.
    """

    place: Place
    slot: str
    takes_over: bool
    enable: bool
    leaving: list[str]

    @property
    def due(self) -> bool:
        """Whether there is anything to do."""
        return self.takes_over or self.enable or bool(self.leaving)


def plan(places: list[Place]) -> list[Turn]:
    """Compare components with how they should be."""
    serving = [(place, slot) for place in places if (slot := place.serving())]
    enabled = ask("is-enabled", [place.unit(slot) for place, slot in serving])
    return [
        Turn(
            place=place,
            slot=slot,
            takes_over=place.pointer("next") is not None,
            enable=enabled.get(place.unit(slot)) != "enabled",
            leaving=[other for other in SLOTS if other != slot and place.occupied(other)],
        )
        for place, slot in serving
    ]


def switch(turns: list[Turn], drain_seconds: int) -> None:
    """Make new slots current, then let the others drain, all at once. What breaks off is taken up by the next run."""
    units = [turn.place.unit(turn.slot) for turn in turns if turn.enable]
    if units:
        systemctl("enable", "--quiet", *units)
    for turn in turns:
        place = turn.place
        link(ETC / place.name / ".env", str(place.folder / "current" / ".env"))
        link(place.folder / "current", turn.slot)
        (place.folder / "next").unlink(missing_ok=True)
    leaving = [(turn.place, slot) for turn in turns for slot in turn.leaving]
    if leaving:
        units = [place.unit(slot) for place, slot in leaving]
        systemctl("disable", "--quiet", *units, check=False)
        systemctl("stop", "--no-block", *units, check=False)
        clear_stopped(leaving, drain_seconds + STOP_MARGIN)
        systemctl("daemon-reload")


def clear_stopped(slots: list[tuple[Place, str]], seconds: float) -> None:
    """Clear each slot when it has stopped; one that takes longer is cleared by the next run."""
    deadline = time.monotonic() + seconds
    waiting = {place.unit(slot): (place, slot) for place, slot in slots}
    while waiting:
        states = ask("is-active", list(waiting))
        for unit in [unit for unit, state in states.items() if state in ("inactive", "failed", "unknown")]:
            systemctl("reset-failed", unit, check=False)
            place, slot = waiting.pop(unit)
            place.clear_slot(slot)
        if time.monotonic() > deadline:
            return
        if waiting:
            time.sleep(0.1)


def stale_releases(turns: list[Turn], keep: int) -> list[Path]:
    """Releases beyond the newest `keep` of each component; never the one that serves."""
    stale: list[Path] = []
    for turn in turns:
        serves = turn.place.release(turn.slot)
        folder = turn.place.folder / "releases"
        releases = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        others = [path for path in releases if path.name != serves]
        stale += others[max(0, keep - 1) :]
    return stale


def stale_environments(gone: set[Path]) -> list[Path]:
    """Environments that no release refers to, when the releases `gone` are."""
    used: set[str] = set()
    for manifest in OPT.glob("*/releases/*/manifest.json"):
        if manifest.parent not in gone:
            used |= set(read_manifest(manifest).get("environments", []))
    present = ENVIRONMENTS.iterdir() if ENVIRONMENTS.is_dir() else iter(())
    return sorted(path for path in present if path.name not in used and not path.name.startswith("."))


def unwanted(wanted: list[str] | None) -> list[Place]:
    """The components without slots that are on the host and shall not be."""
    names = [] if wanted is None else [name for name in SINGLE if name not in wanted]
    return [
        place
        for place in map(Place, names)
        if any(path.exists() for path in (ETC / place.name, *(UNITS / unit for unit in place.units)))
    ]


def release_of(place: Place, slot: str | None) -> str:
    """A release, for the diff."""
    return f"release {place.release(slot) or '-'}"


def run(module: AnsibleModule) -> None:
    """Compare, and make it so."""
    groups = module.params["groups"]
    ours = [(place, place.group) for place in installed()]
    obsolete = [place for place, group in ours if group in groups and place.name not in groups[group]]
    obsolete += unwanted(module.params["units"])
    turns = plan([place for place, group in ours if group in groups and place.name in groups[group]])
    due = [turn for turn in turns if turn.due]
    releases = stale_releases(turns, module.params["keep_releases"])
    going = {path for place in obsolete for path in (place.folder / "releases").glob("*")}
    environments = stale_environments({*releases, *going})
    before = {turn.place.name: release_of(turn.place, turn.place.pointer("current")) for turn in due}
    after = {turn.place.name: release_of(turn.place, turn.slot) for turn in due}
    before |= {place.name: release_of(place, place.serving()) for place in obsolete}
    before |= {str(path.relative_to(OPT)): "kept" for path in (*releases, *environments)}
    # Last: until all of a new host's secrets are elsewhere, they are here.
    secrets = [
        path for path in [STATE / "gatehouse" / "secrets"] if path.exists() and not module.params["secrets"]
    ]
    before |= {str(path): "kept" for path in secrets}
    result: dict[str, Any] = {
        "changed": bool(due or obsolete or releases or environments or secrets),
        "switched": [turn.place.name for turn in due if turn.takes_over],
        "removed": [place.name for place in obsolete],
        "diff": {
            "before": "".join(f"{name}: {what}\n" for name, what in before.items()),
            "after": "".join(f"{name}: {what}\n" for name, what in after.items()),
        },
    }
    if result["changed"] and not module.check_mode:
        if due:
            switch(due, module.params["drain_seconds"])
        if obsolete:
            remove(obsolete, module.params["moved"])
        for path in (*environments, *releases, *secrets):
            shutil.rmtree(path)
    module.exit_json(**result)


def main() -> None:
    """Ansible's entry point."""
    module = AnsibleModule(
        argument_spec={
            "groups": {"type": "dict", "required": True},
            "units": {"type": "list", "elements": "str"},
            "moved": {"type": "list", "elements": "str", "default": []},
            "secrets": {"type": "bool", "default": True},
            "drain_seconds": {"type": "int", "default": 20},
            "keep_releases": {"type": "int", "default": 3},
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
