"""A service comes by adding lines and goes by removing them, and nothing else notices. A broken one changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from clients.driver import McpClient
from conftest import ClientFactory
from fleet import Fleet
from gateway import Gateway
from test_rotation import calling

ADDED = "clock"
RENAMED = "watch"
PORT = 19000
BROKEN = "broken"


def with_services(**services: dict[str, Any]) -> dict[str, Any]:
    """Extra variables that add these to what the inventory has."""
    return {"gatehouse_mcp_services_group": services}


def others(processes: dict[tuple[str, str], str], *names: str) -> dict[tuple[str, str], str]:
    """All units but those of these components."""
    prefixes = tuple(f"gatehouse-{name}@" for name in names)
    return {key: process for key, process in processes.items() if not key[1].startswith(prefixes)}


@pytest.fixture
def as_before(fleet: Fleet) -> Iterator[None]:
    """Leaves the fleet as the inventory says."""
    yield
    played = fleet.play("site.yml")
    assert played.status == 0, played.output[-3000:]


@pytest.mark.usefixtures("as_before")
def test_service_comes_and_goes(
    fleet: Fleet, gateway: Gateway, clients: ClientFactory, fresh_client: McpClient
) -> None:
    fresh_client.call(gateway.echo, "echo", text="before")
    before = fleet.processes()
    url = gateway.service(ADDED)
    added = {"catalogue": "time", "port": PORT}
    with calling(fresh_client, gateway.echo, "echo", text="during") as calls:
        played = fleet.play("site.yml", with_services(**{ADDED: added}))
    assert played.status == 0, played.output[-3000:]
    assert calls.failed == []
    assert fresh_client.sign_ins == 1
    during = fleet.processes()
    assert others(during, ADDED) == others(before)
    assert any(unit.startswith(f"gatehouse-{ADDED}@") for _, unit in during)

    with clients.start("python-2") as client:
        now = json.loads(client.call(url, "get_current_time", timezone="Europe/Vienna"))
        assert now["timezone"] == "Europe/Vienna"
        token = client.credentials(url)["access_token"]
    assert gateway.post(url, "tools/list", token=token).status_code != 401

    again = fleet.play("site.yml", with_services(**{ADDED: added}))
    assert again.status == 0
    assert fleet.processes() == during, "the same inventory again restarts nothing"

    # One with the same port comes as it goes: it cannot have that before.
    with calling(fresh_client, gateway.echo, "echo", text="during") as calls:
        removed = fleet.play("site.yml", with_services(**{RENAMED: added}))
    assert removed.status == 0, removed.output[-3000:]
    assert calls.failed == []
    assert others(fleet.processes(), RENAMED) == others(before)
    assert gateway.post(gateway.service(RENAMED), "tools/list").status_code == 401
    assert gateway.post(url, "tools/list", token=token).status_code == 404
    for host in fleet.hosts():
        left = host.check_output(
            f"find / -xdev -path /proc -prune -o -path /var/log/journal -prune -o -name '*gatehouse-{ADDED}*' -print;"
            f" ls -d /etc/gatehouse/{ADDED} /opt/gatehouse/{ADDED} /var/log/gatehouse/{ADDED} 2>/dev/null;"
            f" getent passwd gatehouse-{ADDED}; getent group gatehouse-{ADDED};"
            f" systemctl list-units --all --no-legend 'gatehouse-{ADDED}*';"
            f" grep -rl '{ADDED}' /etc/gatehouse/*/dynamic /etc/gatehouse/*/.env; true"
        )
        assert left == "", f"left on {host.backend.hostname}"


@pytest.mark.usefixtures("as_before")
def test_broken_service_is_named_and_changes_nothing(
    fleet: Fleet, gateway: Gateway, fresh_client: McpClient
) -> None:
    fresh_client.call(gateway.echo, "echo", text="before")
    before = fleet.processes()
    broken = {"command": ["/bin/sh", "-c", "echo no tickets today >&2; exit 3"], "transport": "http"}
    with calling(fresh_client, gateway.echo, "echo", text="during") as calls:
        played = fleet.play("site.yml", with_services(**{BROKEN: broken}))
    assert played.status != 0
    assert BROKEN in played.output
    assert "no tickets today" in played.output, "the last lines of its log"
    assert "unit" in played.output, "which check failed"
    assert calls.failed == []
    assert before.items() <= fleet.processes().items()
    assert gateway.post(gateway.service(BROKEN), "tools/list").status_code == 404


# covers: fault-rollout
@pytest.mark.usefixtures("as_before")
def test_broken_change_leaves_the_old_release_serving(
    fleet: Fleet, gateway: Gateway, fresh_client: McpClient
) -> None:
    """Also where a run before it broke off when Traefik had been told, and the switch was to come."""
    fresh_client.call(gateway.time, "get_current_time", timezone="UTC")
    old = fleet.processes()
    changed = {"catalogue": "time", "args": ["--local-timezone", "Europe/Vienna"]}
    played = fleet.play("site.yml", with_services(time=changed), "--skip-tags", "switch")
    assert played.status == 0, played.output[-3000:]
    routed = {key: process for key, process in fleet.processes().items() if key not in old}
    assert [unit.partition("@")[0] for _, unit in routed] == ["gatehouse-time"]
    before = others(old, "time") | routed
    broken = {"catalogue": "time", "args": ["--local-timezone", "Nowhere/Atlantis"]}
    with calling(fresh_client, gateway.time, "get_current_time", timezone="UTC") as calls:
        played = fleet.play("site.yml", with_services(time=broken))
    assert played.status != 0
    assert "time" in played.output
    assert calls.failed == []
    assert before.items() <= fleet.processes().items()
    fresh_client.call(gateway.time, "get_current_time", timezone="UTC")
