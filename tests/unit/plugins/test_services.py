"""What preflight found becomes what roles take."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from ansible_collections.gatehouse.mcp.plugins.filter.services import (
    auth_clients,
    auth_resources,
    backend_address,
    client_secrets,
    debian_packages,
    edge_services,
    endpoints,
    listen_address,
    openid_secrets,
    peer_address,
    peer_addresses,
    service_components,
    service_environments,
    service_rules,
    service_secrets,
    systemd_command,
    unlocked_packages,
)

BASE: dict[str, Any] = {
    "title": "T", "url": "https://x.example.com/mcp", "port": 20000, "env": {"A": "1"}, "secret_names": ["TOKEN"],
    "personal_secret_names": [], "cpu_quota": "200%", "child_memory_max": None, "child_tasks_max": 256, "child_cpu_quota": "50%",
    "memory_max": "512M", "sandbox": {}, "loopback": "open", "confine": True, "egress": [], "tools": {}, "isolation": "per_session", "lock": None, "package": None,
    "npm": False, "debian_packages": [], "module": None, "health_path": "/health", "affinity": True, "hostname": "x", "origins": [], "hosts": ["h1"],
}  # fmt: skip
NATIVE = {**BASE, "transport": "native", "package": "echo", "module": "gatehouse_echo", "command": []}
STDIO = {
    **BASE,
    "transport": "stdio",
    "package": "pypi:acme==1",
    "lock": "/locks/acme.txt",
    "command": ["acme", "-x"],
}
NPM = {
    **STDIO,
    "package": "npm:@acme/files==1.0.0",
    "npm": True,
    "lock": "files/package-lock.json",
    "command": ["acme", "{state}"],
    "env": {"FILE": "{state}/x.json"},
}
HTTP = {**BASE, "transport": "http", "command": ["/usr/bin/server", "--port={port}"], "health_path": None}
HOSTVARS: dict[str, dict[str, Any]] = {
    "h1": {"gatehouse_address": "10.0.0.1"},
    "h2": {"ansible_host": "192.0.2.2"},
    "h3": {},
}


def components(**services: dict[str, Any]) -> list[dict[str, Any]]:
    wanted = service_environments(services, {})
    environments = {
        item["name"]: {"id": item["name"] + "-id", "path": "/e/" + item["name"]} for item in wanted
    }
    return service_components(services, environments, {"x": {"TOKEN": "s"}}, "127.0.0.1", [], [], 20, 45)


def test_where_edges_are_other_hosts_a_service_listens_for_them_and_on_loopback() -> None:
    services = {"own": {**HTTP, "command": ["/usr/bin/server", "{address}:{port}"]}, "x": NATIVE}
    environments = {item["name"]: {"id": "i", "path": "/e"} for item in service_environments(services, {})}
    edges = ["10.0.0.1", "10.0.0.2"]
    own, x = service_components(services, environments, {}, "10.0.0.1", edges, edges, 20, 45)
    assert own["vars"]["exec_start"] == ["/usr/bin/server", "10.0.0.1:@PORT@"]
    assert x["vars"]["listen"] == "127.0.0.1:@PORT@,10.0.0.1:@PORT@"
    assert {check.get("url", "").rpartition("/")[0] for check in x["health"]} == {
        "",
        "http://10.0.0.1:@PORT@",
    }


def test_a_native_service_runs_its_module() -> None:
    [component] = components(x=NATIVE)
    assert component["vars"]["exec_start"] == ["/e/native-echo/bin/python", "-m", "gatehouse_echo"]
    assert component["env"]["A"] == "1" and component["vars"]["listen"] == "127.0.0.1:@PORT@"
    assert component["credentials"] == {"TOKEN": "s"}
    assert component["environments"] == ["native-echo-id"]


def test_a_stdio_service_runs_behind_the_bridge() -> None:
    [component] = components(x=STDIO)
    assert component["vars"]["exec_start"] == ["/e/bridge/bin/python", "-m", "gatehouse_bridge"]
    assert json.loads(component["env"]["GATEHOUSE_BRIDGE_COMMAND"]) == ["/e/service-x/bin/acme", "-x"]
    assert json.loads(component["env"]["GATEHOUSE_BRIDGE_ENV"]) == {"A": "1"}
    assert json.loads(component["env"]["GATEHOUSE_BRIDGE_SECRETS"]) == ["TOKEN"]
    assert component["environments"] == ["bridge-id", "service-x-id"]
    assert "A" not in component["env"]


def test_limits_of_a_child_reach_the_bridge_in_its_units() -> None:
    [component] = components(x={**STDIO, "child_memory_max": "256M"})
    limits = {
        name: component["env"][f"GATEHOUSE_BRIDGE_CHILD_{name}"] for name in ("MEMORY", "PROCESSES", "CPU")
    }
    assert limits == {"MEMORY": str(256 * 1024 * 1024), "PROCESSES": "256", "CPU": "0.5"}
    assert "GATEHOUSE_BRIDGE_CHILD_MEMORY" not in components(x=STDIO)[0]["env"]


def test_peoples_own_secrets_are_one_credential_and_nowhere_else() -> None:
    given = {
        "secrets": {"URL": "for everyone"},
        "secrets_per_user": {"T": {"Ana": "anas own", "local:bob": "bobs own"}},
    }
    providers = {"local": {}, "github": {}}
    secrets = service_secrets({"x": given}, None, {"x": {}}, providers=providers)
    assert json.loads(secrets["x"]["per_user.json"]) == {"Ana": {"T": "anas own"}, "bob": {"T": "bobs own"}}
    service = {**STDIO, "secret_names": ["URL"], "personal_secret_names": ["T"]}
    environments = {name: {"id": name, "path": f"/e/{name}"} for name in ("bridge", "service-x")}
    [component] = service_components({"x": service}, environments, secrets, "127.0.0.1", [], [], 20, 45)
    assert component["vars"]["credential_names"] == ["URL", "per_user.json"]
    assert component["credentials"].keys() == {"URL", "per_user.json"}
    assert json.loads(component["env"]["GATEHOUSE_BRIDGE_SECRETS_PER_USER"]) == ["T"]
    assert "own" not in str({key: value for key, value in component.items() if key != "credentials"})


def test_people_are_named_as_the_auth_service_names_them() -> None:
    given = {"x": {"secrets_per_user": {"T": {"Octocat": "a secret"}}}, "y": {}}
    secrets = service_secrets(given, providers={"github": {}})
    assert json.loads(secrets["x"]["per_user.json"]) == {"github:octocat": {"T": "a secret"}}
    assert secrets["y"] == {}


def test_an_npm_service_brings_node_and_knows_its_state() -> None:
    [component] = components(x=NPM)
    assert json.loads(component["env"]["GATEHOUSE_BRIDGE_COMMAND"]) == [
        "/e/service-x/bin/acme",
        "/var/lib/gatehouse-x",
    ]
    assert json.loads(component["env"]["GATEHOUSE_BRIDGE_ENV"]) == {"FILE": "/var/lib/gatehouse-x/x.json"}
    assert component["environments"] == ["bridge-id", "node-id", "service-x-id"]


def test_a_command_in_a_sandbox_names_its_environment() -> None:
    boxed = {
        **STDIO,
        "command": [
            "/usr/bin/bwrap",
            "--ro-bind",
            "{environment}",
            "{environment}",
            "{environment}/bin/acme",
        ],
    }
    [component] = components(x=boxed)
    assert json.loads(component["env"]["GATEHOUSE_BRIDGE_COMMAND"]) == [
        "/usr/bin/bwrap",
        "--ro-bind",
        "/e/service-x",
        "/e/service-x",
        "/e/service-x/bin/acme",
    ]


def test_npm_services_share_one_node() -> None:
    wanted = {item["name"]: item for item in service_environments({"a": NPM, "b": NPM, "c": STDIO}, {})}
    assert {name: item["kind"] for name, item in wanted.items()} == {
        "bridge": "python",
        "node": "node",
        "service-a": "npm",
        "service-b": "npm",
        "service-c": "python",
    }
    assert wanted["service-a"]["lock"].endswith("files/mcp_services/catalogue/files/package-lock.json")


def test_an_npm_package_without_a_lock_takes_the_one_that_was_written() -> None:
    wanted = service_environments({"a": {**NPM, "lock": None}}, {NPM["package"]: "/locks/x.txt"})
    assert {item["lock"] for item in wanted if item["kind"] == "npm"} == {"/locks/x.txt"}


def test_debian_packages_are_named_once() -> None:
    services = {
        "a": {**STDIO, "debian_packages": ["git", "curl"]},
        "b": {**NPM, "debian_packages": ["git"]},
        "c": NATIVE,
    }
    assert debian_packages(services, [], []) == ["curl", "git"]
    # Where a service has rules.
    assert debian_packages(services, ["10.0.0.1", "10.0.0.2"], []) == ["curl", "git", "nftables"]
    assert debian_packages({"x": {**STDIO, "loopback": "closed"}}, [], []) == ["nftables"]


def rules(service: dict[str, Any], edges: list[str], fleet: list[str], chain: str) -> list[str]:
    return [rule for rule in service_rules("x", service, edges, fleet) if rule.startswith(chain)]


# covers: edges
@pytest.mark.parametrize(
    ("egress", "refused"),
    [
        # Systemd lets it answer the edges, so it could ask them too.
        ([], "10.0.0.1"),
        (["192.0.2.0/24"], "10.0.0.1"),
        (["10.0.0.0/8", "fd00::/8"], "10.0.0.1, 10.0.0.2, 10.0.0.4"),
        (["any"], "10.0.0.1, 10.0.0.2, 10.0.0.4"),
        (["public"], "10.0.0.1, 10.0.0.2, 10.0.0.4"),
        # What is named one by one is meant.
        (["any", "10.0.0.4"], "10.0.0.1, 10.0.0.2"),
        (["10.0.0.1"], None),
    ],
)
def test_a_service_asks_no_other_host_of_the_fleet(egress: list[str], refused: str | None) -> None:
    """Above all not from an edge, whom the others believe."""
    fleet = ["10.0.0.3", "10.0.0.4", "10.0.0.2", "10.0.0.1"]
    for edges in (["10.0.0.3", "10.0.0.1"], []) if refused != "10.0.0.1" else (["10.0.0.3", "10.0.0.1"],):
        found = rules({**NATIVE, "egress": egress}, edges, fleet, "output")
        wanted = f"output ip daddr {{ {refused} }} meta skuid gatehouse-x ct state new reject"
        assert found == ([wanted] if refused else [])


# covers: edges
def test_a_server_that_listens_wider_than_it_is_told_is_reached_by_edges_alone() -> None:
    wide = {**HTTP, "egress": ["public"]}
    closed = "input iif != lo tcp dport @PORT@ reject"
    assert rules(wide, [], [], "input") == [closed]
    assert rules(wide, ["10.0.0.3", "10.0.0.1"], [], "input") == [
        "input iif != lo ip daddr 10.0.0.3 ip saddr { 10.0.0.1 } tcp dport @PORT@ accept",
        closed,
    ]
    # Systemd's filter lets in loopback alone.
    assert service_rules("x", HTTP, [], []) == []


def test_an_http_service_runs_itself() -> None:
    [component] = components(x=HTTP)
    assert component["vars"]["exec_start"] == ["/usr/bin/server", "--port=@PORT@"]
    assert not component["vars"]["notifies"]
    assert [check["name"] for check in component["health"]] == ["unit", "mcp"]
    assert component["health"][1]["host"] == "x.example.com"


def test_an_environment_that_two_services_share_is_wanted_once() -> None:
    wanted = service_environments({"a": NATIVE, "b": NATIVE, "c": STDIO}, {})
    assert [item["name"] for item in wanted] == ["bridge", "native-echo", "service-c"]


def test_packages_without_a_lock() -> None:
    assert unlocked_packages({"h": {"a": {**STDIO, "lock": None}, "b": STDIO, "c": NATIVE}}) == [
        "pypi:acme==1"
    ]


@pytest.mark.parametrize(
    "argument", ["plain", "two words", "100%", "$HOME", 'a"b', "back\\slash", "it's", "", ";", "%h"]
)
def test_systemd_reads_back_what_was_quoted(argument: str) -> None:
    line = systemd_command(["/usr/bin/printf", "%s", argument])
    assert "\n" not in line
    # systemd's own unquoting: C-like escapes within double quotes, doubled % and $.
    shell = line.replace("%%", "%").replace("$$", "\\$")
    shown = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert shown.stdout == argument


def test_addresses_come_from_one_place() -> None:
    assert peer_address("h1", "h1", HOSTVARS) == "127.0.0.1"
    assert peer_address("h1", "h2", HOSTVARS) == "10.0.0.1"
    assert peer_address("h2", "h1", HOSTVARS) == "192.0.2.2"
    assert peer_address("h3", "h1", HOSTVARS) == "h3"
    assert listen_address("h1", ["h1"], HOSTVARS) == "127.0.0.1"
    assert listen_address("h1", ["h1", "h2"], HOSTVARS) == "10.0.0.1"
    assert peer_addresses("h1", ["h1"], HOSTVARS) == []
    assert peer_addresses("h1", ["h1", "h2"], HOSTVARS) == ["10.0.0.1", "192.0.2.2"]
    assert peer_addresses("h1", ["h2", "h3"], HOSTVARS) == ["10.0.0.1", "192.0.2.2", "h3"]
    assert backend_address("h1", "h1", ["h1", "h2"], HOSTVARS) == "10.0.0.1"
    assert backend_address("h1", "h1", ["h1"], HOSTVARS) == "127.0.0.1"


def test_an_edge_routes_to_every_host_at_its_slot() -> None:
    service = {**BASE, "hosts": ["h1", "h2"]}
    hostvars = {**HOSTVARS, "h1": {**HOSTVARS["h1"], "result": {"endpoints": {"x": 20001}}}}
    asked = [{"item": "h2", "endpoints": {"x": 20000}}]
    known = endpoints(["h1", "h2"], hostvars, "result", asked)
    routed = edge_services({"x": service}, known, "h1", ["h1"], hostvars, "example.com")
    assert routed["x"]["host"] == "x.example.com"
    assert routed["x"]["servers"] == ["http://127.0.0.1:20001", "http://192.0.2.2:20000"]


@pytest.mark.parametrize(
    ("hosts", "affinity", "instances"),
    [(["h1", "h2"], True, ["h1", "h2"]), (["h1", "h2"], False, []), (["h1"], True, [])],
)
def test_both_the_edge_and_the_auth_service_know_the_instances(
    hosts: list[str], affinity: bool, instances: list[str]
) -> None:
    service = {
        **STDIO, "hosts": hosts, "affinity": affinity, "scopes": ["mcp"], "allow": {}, "tool_groups": []
    }  # fmt: skip
    hostvars: dict[str, dict[str, Any]] = {host: {} for host in hosts}
    routed = edge_services({"x": service}, {}, "h1", ["h1"], hostvars, "example.com")
    known = auth_resources({"x": service})
    assert routed["x"]["instances"] == known["x"]["instances"] == instances


def test_clients_leave_their_secrets_behind() -> None:
    clients = {
        "nightly": {
            "client_name": "Nightly",
            "client_secret": "s3cret",
            "grant_types": ["client_credentials"],
        },
        "form": {
            "client_name": "F",
            "client_secret": "other",
            "token_endpoint_auth_method": "client_secret_post",
        },
        "public": {"client_name": "P", "redirect_uris": ["https://p.example.com/cb"]},
        "keyed": {
            "client_name": "K",
            "jwks": {"keys": [{"kty": "EC"}]},
            "grant_types": ["client_credentials"],
        },
    }
    known = auth_clients(clients)
    assert {name: client["token_endpoint_auth_method"] for name, client in known.items()} == {
        "nightly": "client_secret_basic", "form": "client_secret_post", "public": "none", "keyed": "private_key_jwt",
    }  # fmt: skip
    assert "s3cret" not in str(known) and "other" not in str(known)
    assert client_secrets(clients) == {"client_nightly": "s3cret", "client_form": "other"}


def test_secrets_at_openid_providers_go_by_the_name_of_the_credential() -> None:
    assert openid_secrets({"okta": "s3cret"}) == {"oidc_okta_client_secret": "s3cret"}
