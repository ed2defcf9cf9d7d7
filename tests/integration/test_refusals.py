"""Bad inventory is refused by the playbook itself, before any host is touched: the hosts here do not even exist."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]

GOOD: dict[str, Any] = {
    "gatehouse_domain": "example.com",
    "gatehouse_providers": {"local": {}},
    "gatehouse_local_users": {"ana": {"password_hash": "$argon2id$v=19$m=1,t=1,p=1$c2FsdA$aGFzaA"}},
    "gatehouse_allow": {"groups": ["staff"]},
    "gatehouse_mcp_services": {"time": {}},
}


def write_inventory(folder: Path, variables: dict[str, Any]) -> Path:
    """An inventory with one host that does not answer."""
    # A port of loopback where nothing listens: unreachable, without asking any network.
    host = {
        "gate1": {
            "ansible_host": "127.0.0.1",
            "ansible_port": 9,
            "ansible_ssh_common_args": "-o ConnectTimeout=2",
        }
    }
    groups = ("gateway_edge", "gateway_redis", "gateway_mcp")
    path = folder / "hosts.yml"
    path.write_text(
        yaml.safe_dump({"all": {"vars": variables, "children": {group: {"hosts": host} for group in groups}}})
    )
    return path


def play(playbook: str, inventory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ansible-playbook", playbook, "-i", str(inventory), *options],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def check(folder: Path, variables: dict[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
    """Run `check.yml` on an inventory with one host that does not answer."""
    return play("playbooks/check.yml", write_inventory(folder, variables), *options)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gatehouse_mcp_services": {"time": {"memory": "1G"}}}, "gatehouse_mcp_services.time.memory: unknown key"),
        ({"gatehouse_mcp_services": {"Bad_Name": {}}}, "gatehouse_mcp_services.Bad_Name: is not a service name"),
        (
            {"gatehouse_mcp_services": {"time": {"hostname": "x"}, "echo": {"hostname": "x"}}},
            "gatehouse_mcp_services.time.hostname: x is also the host name of echo",
        ),
        (
            {"gatehouse_mcp_services": {"time": {"hosts": "elsewhere"}}},
            "gatehouse_mcp_services.time.hosts: elsewhere matches no host",
        ),
        ({"gatehouse_domain": ""}, "gatehouse_domain: is missing"),
        ({"gatehouse_allow": {}}, "gatehouse_mcp_services.time.allow: the allow-list is empty"),
        (
            {"gatehouse_mcp_services": {"x": {"package": "acme"}}},
            "gatehouse_mcp_services.x.package: is not a package with an exact version",
        ),
        ({"gatehouse_mcp_services": {"tiem": {}}}, "gatehouse_mcp_services.tiem: tiem is not in the catalogue"),
        ({"gatehouse_tls": "acme"}, "gatehouse_acme_email: gatehouse_tls is acme"),
        ({"gatehouse_redis_password": "hunter2"}, "gatehouse_redis_password: is too short"),
        ({"gatehouse_domain": "{{ vault_nothing }}"}, "gatehouse_domain: cannot be templated"),
    ],
)  # fmt: skip
def test_refused_with_the_variable_and_the_fix(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    run = check(tmp_path, {**GOOD, **change}, "-vvv", "--diff")
    assert run.returncode != 0
    assert says in run.stdout
    assert "no host was touched" in run.stdout
    assert "UNREACHABLE" not in run.stdout, "a host was contacted"
    assert "hunter2" not in run.stdout + run.stderr


def test_an_unreachable_host_is_refused(tmp_path: Path) -> None:
    run = check(tmp_path, GOOD)
    assert run.returncode != 0
    assert "gate1 does not answer" in run.stdout
    assert "correct ansible_host" in run.stdout


@pytest.mark.parametrize(
    "playbook", ["site.yml", "rotate_secrets.yml", "status.yml", "backup.yml", "restore.yml"]
)
def test_an_inventory_without_hosts_is_no_success(tmp_path: Path, playbook: str) -> None:
    (tmp_path / "hosts.yml").write_text("all: {children: {gateway_edge: {hosts: {}}}}")
    result = play(playbook, tmp_path / "hosts.yml")
    assert result.returncode != 0
    assert "gateway_edge: there is no host in this group" in result.stdout
    assert str(tmp_path / "hosts.yml") in result.stdout


def test_limit_does_not_skip_the_check(tmp_path: Path) -> None:
    run = check(tmp_path, {**GOOD, "gatehouse_domain": ""}, "--limit", "gate1")
    assert run.returncode != 0
    assert "gatehouse_domain: is missing" in run.stdout


def test_the_worked_example_of_several_hosts_is_accepted(tmp_path: Path) -> None:
    """`inventory/prod` lacks only what an operator adds: the certificate and the vault."""
    pem = tmp_path / "pem"
    pem.write_text("-")
    extra = {
        "vault_github_client_secret": "x" * 40,
        "vault_tickets_token": "x" * 40,
        "gatehouse_tls_certificate": str(pem),
        "gatehouse_tls_key": str(pem),
    }
    run = subprocess.run(
        [
            "ansible",
            "edge1",
            "-i",
            "inventory/prod",
            "-m",
            "gatehouse.mcp.preflight",
            "-e",
            json.dumps(extra),
        ],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout
    assert "https://tickets.example.com/mcp" in run.stdout
    assert "x" * 40 not in run.stdout
