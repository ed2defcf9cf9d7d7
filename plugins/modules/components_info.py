# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Say what runs."""

DOCUMENTATION = r"""
module: components_info
short_description: Say which components run on a host and how they are
description: Reads only.
options:
  group:
    description: Only the components of this group.
    type: str
  checks:
    description: Whether to run the health checks.
    type: bool
    default: false
  units:
    description: Units without slots to describe as well.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the component.
        type: str
        required: true
      url:
        description: HTTP health endpoint.
        type: str
      release:
        description: Symbolic link whose target is named after the release.
        type: path
      secrets:
        description: File whose age is the age of the secrets.
        type: path
author: Gatehouse contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Ask where the services are
  gatehouse.mcp.components_info:
    group: mcp
"""

RETURN = r"""
endpoints:
  description: Port on which each component serves, or will when it is switched.
  type: dict
  returned: always
components:
  description:
    - By name, C(unit), C(state) and C(since) (when it came up), C(port), C(release), C(secrets_since); times are epoch
      seconds, or null. Those with slots also have C(group) and C(slot).
    - With C(checks), C(health), a mapping of check to C(ok) or what is wrong.
  type: dict
  returned: always
"""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gatehouse.mcp.plugins.module_utils.health import Unhealthy, run_check
from ansible_collections.gatehouse.mcp.plugins.module_utils.slots import (
    Place,
    installed,
    read,
    slot_port,
    systemctl,
)

UNIT_CHECK = {"name": "unit", "kind": "unit"}
NFT = "/usr/sbin/nft"


def describe(place: Place, slot: str) -> dict[str, Any]:
    """One component with slots."""
    manifest = place.manifest(slot)
    folder = place.credentials(slot)
    changed = [path.stat().st_mtime for path in folder.iterdir()] if folder.is_dir() else []
    return {
        "unit": place.unit(slot),
        "group": manifest["group"],
        "slot": slot,
        "port": slot_port(manifest["port"], slot),
        "release": place.release(slot),
        "secrets_since": int(max(changed)) if changed else None,
        "checks": manifest["health"],
        "table": f"{place.user}-{slot}" if NFT in (read(place.unit_file(slot)) or "") else None,
    }


def describe_unit(item: dict[str, Any]) -> dict[str, Any]:
    """A unit without slots."""
    release, secrets = Path(item["release"] or ""), Path(item["secrets"] or "")
    http = [{"name": "http", "kind": "http", "url": item["url"]}] if item["url"] else []
    return {
        "unit": f"gatehouse-{item['name']}.service",
        "port": None,
        "release": release.readlink().name if release.is_symlink() else None,
        "secrets_since": int(secrets.stat().st_mtime) if item["secrets"] and secrets.exists() else None,
        "checks": [UNIT_CHECK, *http],
        "table": None,
    }


def states(units: list[str]) -> dict[str, dict[str, Any]]:
    """State of each unit and since when it is up (epoch seconds, or null), from one call for all."""
    if not units:
        return {}
    shown = systemctl(
        "show", "--timestamp=unix", "--property=Id,ActiveState,ActiveEnterTimestamp", *units, check=False
    ).stdout
    known = {}
    for block in shown.split("\n\n"):
        told = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        since = told.get("ActiveEnterTimestamp", "").removeprefix("@")
        up = told.get("ActiveState") == "active" and since.isdigit()
        known[told.get("Id")] = {"state": told.get("ActiveState"), "since": int(since) if up else None}
    return {unit: known.get(unit, {"state": "unknown", "since": None}) for unit in units}


def tables() -> set[str]:
    """The names of the nftables tables that are in force."""
    listed = subprocess.run([NFT, "list", "tables"], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1] for line in listed.splitlines()}


def health(component: dict[str, Any], in_force: set[str]) -> dict[str, str]:
    """Run a component's checks; `ok` or what is wrong, by check."""
    said = {}
    for check in component["checks"]:
        try:
            run_check(check, component["unit"], component["port"] or 0)
            said[check["name"]] = "ok"
        except Unhealthy as fault:
            said[check["name"]] = str(fault)
    # While it is down, it has none.
    if said.get("unit") == "ok" and component["table"] not in (None, *in_force):
        said["unit"] = f"its nftables rules are gone; systemctl reload {component['unit']}"
    return said


def main() -> None:
    """Ansible's entry point."""
    unit = {
        "name": {"type": "str", "required": True},
        "url": {"type": "str"},
        "release": {"type": "path"},
        "secrets": {"type": "path"},
    }
    module = AnsibleModule(
        argument_spec={
            "group": {"type": "str"},
            "checks": {"type": "bool", "default": False},
            "units": {"type": "list", "elements": "dict", "options": unit, "default": []},
        },
        supports_check_mode=True,
    )
    group = module.params["group"]
    places = [place for place in installed() if place.serving() and group in (None, place.group)]
    described = {place.name: describe(place, place.serving() or "") for place in places}
    endpoints = {name: component["port"] for name, component in described.items()}
    described |= {item["name"]: describe_unit(item) for item in module.params["units"]}
    state = states([component["unit"] for component in described.values()])
    for component in described.values():
        component |= state[component["unit"]]
    if module.params["checks"]:
        in_force = tables() if any(component["table"] for component in described.values()) else set()
        with ThreadPoolExecutor(8) as pool:
            healths = pool.map(partial(health, in_force=in_force), described.values())
            for component, said in zip(described.values(), healths, strict=True):
                component["health"] = said
    for component in described.values():
        del component["checks"], component["table"]
    module.exit_json(changed=False, components=described, endpoints=endpoints)


if __name__ == "__main__":
    main()
