# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What edges route to now, before a run tells them otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.gatehouse.mcp.plugins.filter.services import backend_address


def routed_ports(
    host: str, edges: list[str], hostvars: Mapping[str, Mapping[str, Any]], result: str
) -> list[int]:
    """The ports of a host that any edge routes to.

    Args:
        host: The host.
        edges: All edges.
        hostvars: Ansible's.
        result: Variable of each edge with what `gatehouse.mcp.components` returned there.
    """
    ports = set()
    for edge in edges:
        address = backend_address(host, edge, edges, hostvars)
        routes = [route.rpartition(":") for route in hostvars[edge].get(result, {}).get("routes", [])]
        ports |= {int(port) for name, _, port in routes if name == address}
    return sorted(ports)


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        return {"routed_ports": routed_ports}
