"""What a host of the lab should run, from the inventory and docs/contracts.md."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from testinfra.host import Host

SLOTTED = ("auth", "echo", "time")
SINGLE = ("redis", "traefik")


@dataclass(frozen=True)
class Component:
    """A component as it runs on one host."""

    name: str
    unit: str

    @property
    def user(self) -> str:
        return f"gatehouse-{self.name}"


@pytest.fixture(scope="module")
def components(host: Host) -> list[Component]:
    """Every component of a host that is in all three groups, with the unit that serves."""
    found = [Component(name, f"gatehouse-{name}.service") for name in SINGLE]
    for name in SLOTTED:
        slot = host.check_output("readlink /opt/gatehouse/%s/current", name)
        found.append(Component(name, f"gatehouse-{name}@{slot.rpartition('/')[2]}.service"))
    return found
