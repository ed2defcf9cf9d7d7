# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Filters that make the table of `status.yml`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

HEADER = ("HOST", "UNIT", "STATE", "HTTP", "MCP", "RELEASE", "SECRETS")


def age(since: float | None, now: float) -> str:
    """`3d`, `5h` or `2m` since a time in epoch seconds; `-` where there is none."""
    if since is None:
        return "-"
    seconds = max(0, int(now - since))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def rows(
    hosts: list[str],
    hostvars: Mapping[str, Mapping[str, Any]],
    expected: Mapping[str, Iterable[str]],
    now: float | None = None,
) -> list[dict[str, str]]:
    """A row for each unit of each host.

    Args:
        hosts: The fleet.
        hostvars: Ansible's; each host has `status_info`, edges have `status_front` as well.
        expected: Services that should run, by host.
        now: Epoch seconds.
    """
    moment = time.time() if now is None else now
    fronts = [hostvars[host]["status_front"] for host in hosts if "status_front" in hostvars[host]]
    table = []
    for host in hosts:
        info = hostvars[host].get("status_info", {})
        if "components" not in info:
            table.append(dict.fromkeys(HEADER, "-") | {"HOST": host, "STATE": "unreachable"})
            continue
        for name in sorted(set(expected.get(host, ())) - set(info["components"])):
            table.append(
                dict.fromkeys(HEADER, "-") | {"HOST": host, "UNIT": f"gatehouse-{name}", "STATE": "missing"}
            )
        for name, component in sorted(info["components"].items()):
            health = component["health"]
            through = [front.get("services", {}).get(name) for front in fronts]
            known = [said for said in (health.get("mcp"), *through) if said]
            table.append(
                {
                    "HOST": host,
                    "UNIT": component["unit"].removesuffix(".service"),
                    "STATE": health.get("unit", "-"),
                    "HTTP": health.get("http", "-"),
                    "MCP": next((said for said in known if said != "ok"), known[0] if known else "-"),
                    "RELEASE": (component["release"] or "-")[:12],
                    "SECRETS": age(component["secrets_since"], moment),
                }
            )
    return table


def table_lines(table: list[Mapping[str, str]]) -> list[str]:
    """The rows as lines of aligned columns; what is wrong follows below, whole."""
    shown = [
        {
            **row,
            **{
                key: "ok" if row[key] == "ok" else "-" if row[key] == "-" else "FAIL"
                for key in ("HTTP", "MCP")
            },
        }
        for row in table
    ]
    widths = {key: max(len(key), *(len(row[key]) for row in shown)) for key in HEADER}
    lines = ["  ".join(key.ljust(widths[key]) for key in HEADER).rstrip()]
    lines += ["  ".join(row[key].ljust(widths[key]) for key in HEADER).rstrip() for row in shown]
    return [*lines, "", *faults(table)] if faults(table) else lines


def faults(table: list[Mapping[str, str]]) -> list[str]:
    """A sentence for everything that is not well."""
    return [
        f"{row['HOST']} {row['UNIT']}: {key}: {row[key]}"
        for row in table
        for key in ("STATE", "HTTP", "MCP")
        if row[key] not in ("ok", "-")
    ]


def without(mapping: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """A mapping without some keys."""
    return {key: value for key, value in mapping.items() if key not in keys}


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        return {"without": without, "status_faults": faults, "status_rows": rows, "status_table": table_lines}
