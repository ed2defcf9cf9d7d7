# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Filters that say what a backup is of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def kept_components(
    host: str, groups: Mapping[str, Sequence[str]], services: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """The components of a host that have a folder of their own for what they keep.

    Args:
        host: The host.
        groups: The inventory's groups.
        services: The services of each host.
    """
    # Traefik's has the ACME account and its certificates; an auth service keeps nothing that Redis has not.
    kept = {"gateway_edge": "traefik", "gateway_redis": "redis"}
    return [*services.get(host, {}), *(name for group, name in kept.items() if host in groups.get(group, []))]


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        return {"kept_components": kept_components}
