# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Let new releases take over."""

DOCUMENTATION = r"""
module: components_switch
short_description: Let new releases take over and remove what is not wanted
description:
  - To be run when Traefik routes to the slots that C(gatehouse.mcp.components) started.
  - The new slot becomes current; the old one drains, stops and is removed. Components of the given groups that are not
    wanted any more go entirely, with their users, state and cache. Old releases and unused environments are pruned.
options:
  groups:
    description: Names of the components that are wanted, by group.
    type: dict
    required: true
  drain_seconds:
    description: Seconds that an old slot may take for what it has begun.
    type: int
    default: 20
  keep_releases:
    description: Releases of a component that are kept.
    type: int
    default: 3
author: Gatehouse contributors
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

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gatehouse.mcp.plugins.module_utils.slots import (
    ETC,
    OPT,
    SLOTS,
    Place,
    installed,
    link,
    read,
    remove,
    systemctl,
)

ENVIRONMENTS = OPT / "environments"
# Between SIGKILL at the end of the drain and systemd saying so.
STOP_MARGIN = 10


def switch(places: list[Place], drain_seconds: int) -> None:
    """Make `next` current, then let the old slots drain, all at once."""
    old: list[tuple[Place, str]] = []
    for place in places:
        before, slot = place.pointer("current"), place.pointer("next")
        if slot is None:
            continue
        link(place.folder / "current", slot)
        (place.folder / "next").unlink()
        link(ETC / place.name / ".env", str(place.folder / "current" / ".env"))
        systemctl("enable", "--quiet", place.unit(slot))
        if before:
            old.append((place, before))
    if old:
        units = [place.unit(slot) for place, slot in old]
        systemctl("disable", "--quiet", *units, check=False)
        systemctl("stop", "--no-block", *units)
        wait_stopped(old, drain_seconds + STOP_MARGIN)
        systemctl("daemon-reload")


def wait_stopped(slots: list[tuple[Place, str]], seconds: float) -> None:
    """Clear each slot when it has stopped; one that hangs is cleared when it is next used."""
    deadline = time.monotonic() + seconds
    waiting = list(slots)
    while waiting and time.monotonic() < deadline:
        for place, slot in list(waiting):
            state = systemctl("is-active", place.unit(slot), check=False).stdout.strip()
            if state in ("inactive", "failed", "unknown"):
                systemctl("reset-failed", place.unit(slot), check=False)
                place.clear_slot(slot)
                waiting.remove((place, slot))
        if waiting:
            time.sleep(0.1)


def stale_releases(keep: int) -> list[Path]:
    """Releases that no slot uses, beyond the newest of each component."""
    stale = []
    for place in installed():
        used = {place.release(slot) for slot in SLOTS}
        folder = place.folder / "releases"
        releases = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        unused = [path for path in releases if path.name not in used]
        stale += unused[max(0, keep - len(used - {None})) :]
    return stale


def stale_environments(gone: set[Path]) -> list[Path]:
    """Environments that no release refers to, when the releases `gone` are."""
    used: set[str] = set()
    for manifest in OPT.glob("*/releases/*/manifest.json"):
        if manifest.parent not in gone:
            used |= set(json.loads(read(manifest) or "{}").get("environments", []))
    present = ENVIRONMENTS.iterdir() if ENVIRONMENTS.is_dir() else iter(())
    return sorted(path for path in present if path.name not in used and not path.name.startswith("."))


def main() -> None:
    """Ansible's entry point."""
    module = AnsibleModule(
        argument_spec={
            "groups": {"type": "dict", "required": True},
            "drain_seconds": {"type": "int", "default": 20},
            "keep_releases": {"type": "int", "default": 3},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    groups = module.params["groups"]
    due, obsolete = [], []
    for place in installed():
        group = place.manifest(place.serving() or "").get("group")
        if group in groups:
            if place.name not in groups[group]:
                obsolete.append(place)
            elif place.pointer("next"):
                due.append(place)
    result: dict[str, Any] = {
        "changed": bool(due or obsolete),
        "switched": [place.name for place in due],
        "removed": [place.name for place in obsolete],
    }
    before = {place.name: place.release(place.pointer("current")) or "-" for place in (*due, *obsolete)}
    after = {place.name: place.release(place.pointer("next")) or "-" for place in due}
    result["diff"] = {
        "before": "".join(f"{name}: {release}\n" for name, release in before.items()),
        "after": "".join(f"{name}: {release}\n" for name, release in after.items()),
    }
    if result["changed"] and not module.check_mode:
        try:
            switch(due, module.params["drain_seconds"])
            if obsolete:
                remove(obsolete)
            releases = stale_releases(module.params["keep_releases"])
            for path in (*stale_environments(set(releases)), *releases):
                shutil.rmtree(path)
        except (OSError, subprocess.CalledProcessError) as error:
            module.fail_json(msg=f"{error} {getattr(error, 'stderr', '') or ''}".strip(), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
