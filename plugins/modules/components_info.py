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
author: Gatehouse contributors
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
    - By name, C(unit), C(release), C(secrets_since) (epoch seconds, or null) and, with C(checks), C(health), a mapping of
      check to C(ok) or what is wrong.
  type: dict
  returned: always
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gatehouse.mcp.plugins.module_utils.health import Unhealthy, run_check
from ansible_collections.gatehouse.mcp.plugins.module_utils.slots import Place, installed, slot_port


def describe(place: Place, checks: bool) -> dict[str, Any]:
    """One component."""
    slot = place.serving() or ""
    manifest = place.manifest(slot)
    folder = place.credentials(slot)
    changed = [path.stat().st_mtime for path in folder.iterdir()] if folder.is_dir() else []
    port = slot_port(manifest["port"], slot)
    described: dict[str, Any] = {
        "unit": place.unit(slot),
        "group": manifest["group"],
        "port": port,
        "release": place.release(slot),
        "secrets_since": int(max(changed)) if changed else None,
    }
    if checks:
        described["health"] = health(manifest["health"], place.unit(slot), port)
    return described


def health(checks: list[dict[str, Any]], unit: str, port: int) -> dict[str, str]:
    """Run checks; `ok` or what is wrong, by check."""
    said = {}
    for check in checks:
        try:
            run_check(check, unit, port)
            said[check["name"]] = "ok"
        except Unhealthy as fault:
            said[check["name"]] = str(fault)
    return said


def describe_unit(item: dict[str, Any]) -> dict[str, Any]:
    """A unit without slots."""
    unit = f"gatehouse-{item['name']}.service"
    release, secrets = Path(item["release"] or ""), Path(item["secrets"] or "")
    checks = [{"name": "unit", "kind": "unit"}]
    if item["url"]:
        checks.append({"name": "http", "kind": "http", "url": item["url"]})
    return {
        "unit": unit,
        "release": release.readlink().name if release.is_symlink() else None,
        "secrets_since": int(secrets.stat().st_mtime) if item["secrets"] and secrets.exists() else None,
        "health": health(checks, unit, 0),
    }


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
    wanted = module.params["group"]
    places = [
        place for place in installed() if wanted in (None, place.manifest(place.serving() or "").get("group"))
    ]
    with ThreadPoolExecutor(8) as pool:
        described = dict(
            zip(
                (place.name for place in places),
                pool.map(lambda place: describe(place, module.params["checks"]), places),
                strict=True,
            )
        )
    endpoints = {name: component["port"] for name, component in described.items()}
    described |= {item["name"]: describe_unit(item) for item in module.params["units"]}
    module.exit_json(changed=False, components=described, endpoints=endpoints)


if __name__ == "__main__":
    main()
