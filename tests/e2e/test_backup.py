"""All that a fleet keeps is lost and comes back from a backup: who was signed in still is, and the data is there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browserless import Person
from clients.driver import McpClient
from fleet import Fleet, Played
from gateway import Gateway
from test_no_secrets import PLACES, leaks
from testinfra.host import Host

STATE = "/var/lib/gatehouse-memory"
# Everything of ours save the environments, which only take time; and other users in the place of ours, so that the next
# ones have other ids.
LOSE = """
systemctl stop 'gatehouse-*.service' 'gatehouse-*.socket'
rm -rf /var/lib/gatehouse* /var/cache/gatehouse* /etc/gatehouse /etc/sysusers.d/gatehouse* /etc/systemd/system/gatehouse*
find /opt/gatehouse -mindepth 1 -maxdepth 1 ! -name environments -exec rm -r {} +
systemctl daemon-reload
for user in $(getent passwd | grep -o '^gatehouse-[a-z-]*'); do userdel $user; useradd --system other-${user#gatehouse-}; done
"""
TIDY = "for user in $(getent passwd | grep -o '^other-[a-z-]*'); do userdel $user; done"


@pytest.fixture(scope="module")
def host(fleet: Fleet) -> Host:
    [only] = fleet.hosts("gateway_mcp")
    return only


@pytest.fixture(scope="module")
def variables(person: Person) -> dict[str, Any]:
    return {"gatehouse_mcp_services_group": {"memory": {"allow": {"users": [person.user]}}}}


@pytest.fixture(scope="module")
def gateway_with_memory(fleet: Fleet, variables: dict[str, Any], host: Host) -> Iterator[None]:
    """Afterwards the fleet is as the inventory says."""
    try:
        play(fleet, "site.yml", variables)
        yield
    finally:
        host.run(TIDY)
        play(fleet, "site.yml", {})


def play(fleet: Fleet, playbook: str, variables: dict[str, Any], *options: str) -> Played:
    played = fleet.play(playbook, variables, *options)
    assert played.status == 0, played.output[-3000:]
    return played


def says_nothing_secret(fleet: Fleet, played: Played) -> None:
    """Neither in what Ansible prints, at its most talkative, nor in the hosts' journals."""
    assert "--- before" in played.output, "it was run with --diff"
    assert leaks(fleet, "the output", played.output.encode()) == []
    for host in fleet.hosts():
        assert leaks(fleet, "the journal", host.run(PLACES["journal"]).stdout_bytes) == []


def remember(client: McpClient, memory: str, name: str) -> None:
    entity = {"name": name, "entityType": "person", "observations": ["likes tea"]}
    client.call(memory, "create_entities", entities=[entity])


# covers: state-backup
@pytest.mark.usefixtures("gateway_with_memory")
def test_a_lost_fleet_comes_back(
    fleet: Fleet,
    gateway: Gateway,
    fresh_client: McpClient,
    variables: dict[str, Any],
    host: Host,
    tmp_path: Path,
) -> None:
    memory = gateway.service("memory")
    remember(fresh_client, memory, "Before")
    token = fresh_client.credentials(memory)["access_token"]
    owner = host.check_output(f"stat --format=%u {STATE}/memory.json")
    key = tmp_path / "backup.key"
    made = subprocess.run(["age-keygen", "-o", str(key)], check=True, capture_output=True, text=True)
    recipient = re.search(r"age1\w+", made.stderr)
    assert recipient
    folder = tmp_path / "backups"

    before = fleet.processes()
    backing_up = {"gatehouse_backup_recipients": [recipient[0]], "gatehouse_backup_folder": str(folder)}
    backed_up = fleet.play("backup.yml", variables | backing_up, "-vvv", "--diff")
    assert backed_up.status == 0, backed_up.output[-3000:]
    assert fleet.processes() == before
    [archive] = folder.iterdir()
    assert archive.stat().st_mode & 0o777 == 0o600
    content = archive.read_bytes()
    assert leaks(fleet, "the archive", content) == []
    assert b"likes tea" not in content
    assert leaks(fleet, "the output", backed_up.output.encode()) == []
    assert host.run("ls -d /var/lib/gatehouse-redis/*.rdb /var/lib/gatehouse-redis/.backup*").stdout == ""

    remember(fresh_client, memory, "After")
    restoring = {"gatehouse_restore_archive": str(archive), "gatehouse_restore_identity": str(key)}
    refused = fleet.play("restore.yml", variables | restoring)
    assert refused.status != 0
    assert "gatehouse_restore_replace=true" in refused.output
    assert f"{STATE}" in refused.output
    assert refused.changes == 0
    assert fleet.processes() == before
    assert "After" in fresh_client.call(memory, "read_graph")

    host.check_output(LOSE)
    restored = fleet.play("restore.yml", variables | restoring, "-vvv", "--diff")
    assert restored.status == 0, restored.output[-3000:]
    assert gateway.post(memory, "tools/list", token=token).status_code == 200
    graph = fresh_client.call(memory, "read_graph")
    assert "Before" in graph
    assert "After" not in graph
    fresh_client.expire(memory)
    fresh_client.call(memory, "read_graph")
    assert fresh_client.sign_ins == 1, "the refresh token is good as well"
    shown = host.check_output(f"stat --format='%a %U %u' {STATE} {STATE}/memory.json").split()
    assert shown[0:2] == ["700", "gatehouse-memory"]
    assert shown[3:5] == ["600", "gatehouse-memory"]
    assert shown[5] != owner, "ids are not what they were, and files are their service's all the same"
    assert (
        host.run("ls -d /var/lib/gatehouse*.old /var/lib/gatehouse*.new /var/lib/gatehouse/*/*.old").stdout
        == ""
    )
    says_nothing_secret(fleet, restored)
