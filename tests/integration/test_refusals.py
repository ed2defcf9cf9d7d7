"""Bad inventory is refused by the playbook itself, before any host is touched: the hosts here do not even exist."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = Path(__file__).parents[2]

GOOD: dict[str, Any] = {
    "gatehouse_domain": "example.com",
    "gatehouse_providers": {"local": {}},
    "gatehouse_local_users": {"ana": {"password_hash": "$argon2id$v=19$m=1,t=1,p=1$c2FsdA$aGFzaA"}},
    "gatehouse_allow": {"groups": ["staff"]},
    "gatehouse_mcp_services": {"time": {}},
}


GROUPS = ("gateway_edge", "gateway_redis", "gateway_mcp")


def write_inventory(folder: Path, variables: dict[str, Any], **groups: list[str]) -> Path:
    """An inventory with hosts that do not answer, by default one that is in every group."""
    # A port of loopback where nothing listens: unreachable, without asking any network.
    silent = {
        "ansible_host": "127.0.0.1",
        "ansible_port": 9,
        "ansible_ssh_common_args": "-o ConnectTimeout=2",
    }
    members = {group: groups.get(group, ["gate1"]) for group in GROUPS}
    hosts = {
        host: {**silent, "gatehouse_address": f"192.0.2.{number}"}
        for number, host in enumerate(dict.fromkeys(host for group in GROUPS for host in members[group]), 1)
    }
    children = {group: {"hosts": {host: hosts[host] for host in members[group]}} for group in GROUPS}
    path = folder / "hosts.yml"
    path.write_text(yaml.safe_dump({"all": {"vars": variables, "children": children}}))
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


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Two edges, one of which runs services as well, and a host for each of the others."""
    return write_inventory(
        tmp_path,
        {**GOOD, "gatehouse_plain_peer_traffic": True},
        gateway_edge=["edge1", "edge2"],
        gateway_redis=["redis1"],
        gateway_mcp=["edge1", "mcp1"],
    )


# covers: fault-limit
@pytest.mark.parametrize(
    ("playbook", "limit", "without"),
    [
        ("site.yml", "mcp1", "edge1, edge2"),
        ("rotate_secrets.yml", "gateway_edge", "redis1"),
        ("backup.yml", "!mcp1", "mcp1"),
        ("restore.yml", "!mcp1", "mcp1"),
    ],
)
def test_a_part_of_the_fleet_that_would_break_the_rest(
    several: Path, playbook: str, limit: str, without: str
) -> None:
    run = play(playbook, several, "--limit", limit)
    assert run.returncode != 0
    assert f"and is without {without}; leave out --limit" in run.stdout
    assert "no host was touched" in run.stdout
    assert "UNREACHABLE" not in run.stdout, "a host was contacted"


@pytest.mark.parametrize(
    ("playbook", "limit"),
    [("site.yml", "gateway_edge"), ("status.yml", "mcp1")],
)
def test_a_part_of_the_fleet_that_leaves_the_rest_as_it_is(several: Path, playbook: str, limit: str) -> None:
    run = play(playbook, several, "--limit", limit)
    assert "--limit" not in run.stdout
    assert "UNREACHABLE" in run.stdout, "the hosts are asked"


def own_certificate(folder: Path, *names: str) -> dict[str, str]:
    """A certificate for these names and its key, as the inventory has them."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "front")])
    alternative = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .add_extension(alternative, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "front.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "front.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {
        "gatehouse_tls": "files",
        "gatehouse_tls_certificate": str(folder / "front.pem"),
        "gatehouse_tls_key": str(folder / "front.key"),
    }


# covers: fault-certificate
def test_a_certificate_that_does_not_name_a_service(tmp_path: Path) -> None:
    tls = own_certificate(tmp_path, "auth.example.com", "time.example.com")
    services = {"time": {}, "echo": {"hostname": "say"}}
    run = check(tmp_path, {**GOOD, **tls, "gatehouse_mcp_services": services}, "-vvv")
    assert run.returncode != 0
    assert (
        "gatehouse_tls_certificate: does not name say.example.com (it names auth.example.com, time"
        in run.stdout
    )
    assert "UNREACHABLE" not in run.stdout, "a host was contacted"
    assert "PRIVATE KEY" not in run.stdout + run.stderr


# A key is at its best in a vault, also beside an inventory.
def test_a_certificate_that_names_all_with_its_key_in_a_vault(tmp_path: Path) -> None:
    tls = own_certificate(tmp_path, "*.example.com")
    password = tmp_path / "password"
    password.write_text("open sesame")
    subprocess.run(
        ["ansible-vault", "encrypt", "--vault-password-file", str(password), tls["gatehouse_tls_key"]],
        check=True,
        capture_output=True,
    )
    run = check(tmp_path, {**GOOD, **tls}, "--vault-password-file", str(password))
    assert "gate1 does not answer" in run.stdout, run.stdout


def test_the_worked_example_of_several_hosts_is_accepted(tmp_path: Path) -> None:
    """`inventory/prod` lacks only what an operator adds: the certificate and the vault."""
    extra = {
        "vault_github_client_secret": "x" * 40,
        "vault_tickets_token": "x" * 40,
        **own_certificate(tmp_path, "*.example.com"),
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
