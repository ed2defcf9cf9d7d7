"""What preflight accepts, completes and refuses. Every refusal names the variable and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gatehouse.mcp.plugins.module_utils.fleet import (
    Fleet,
    Inspector,
    derived_port,
    merge_services,
    read_options,
)

ROLES = str(Path(__file__).parents[3] / "roles")
CATALOGUE: dict[str, dict[str, Any]] = {
    "echo": {
        "title": "Echo",
        "pattern": "native",
        "package": "echo",
        "module": "gatehouse_echo",
        "affinity": False,
        "memory_max": "256M",
    },
    "time": {
        "title": "Time",
        "pattern": "bridge",
        "command": ["mcp-server-time"],
        "lock": "time/requirements.lock",
        "args_append": True,
    },
    "memory": {
        "title": "Memory",
        "pattern": "bridge",
        "command": ["mcp-server-memory"],
        "lock": "memory/package-lock.json",
        "env": {"FILE": "{state}/memory.json", "LEVEL": "1"},
        "egress": ["public"],
        "packages": ["git"],
        "isolation": "shared",
        "state": True,
        "shared_state": True,
    },
}
GOOD: dict[str, Any] = {
    "gatehouse_domain": "example.com",
    "gatehouse_providers": {"local": {}},
    "gatehouse_local_users": {"ana": {"password_hash": "$argon2id$v=19$m=1,t=1,p=1$c2FsdA$aGFzaA"}},
    "gatehouse_allow": {"groups": ["staff"]},
    "gatehouse_mcp_services": {"time": {}, "echo": None},
}
ONE = {"gateway_edge": ["h1"], "gateway_redis": ["h1"], "gateway_mcp": ["h1"]}


def inspect(
    hosts: dict[str, dict[str, Any]], groups: dict[str, list[str]] = ONE, others: tuple[str, ...] = ()
) -> Fleet:
    known = {**{host: [host] for host in (*hosts, *others)}, **groups}
    return Inspector(
        hosts=hosts,
        groups=groups,
        resolve=lambda pattern: known.get(pattern, []),
        catalogue=CATALOGUE,
        variables=read_options(ROLES, "preflight"),
        service=read_options(ROLES, "mcp_service", "service"),
    ).inspect()


def peer(number: int) -> dict[str, Any]:
    """What a host of several says of itself."""
    return {"gatehouse_plain_peer_traffic": True, "gatehouse_address": f"10.0.0.{number}"}


def with_service(name: str, service: Any) -> Fleet:
    return inspect({"h1": {**GOOD, "gatehouse_mcp_services": {name: service}}})


def test_a_good_inventory_has_no_problems_and_is_completed() -> None:
    fleet = inspect({"h1": GOOD})
    assert fleet.problems == []
    assert fleet.services["time"]["url"] == "https://time.example.com/mcp"
    assert fleet.services["time"]["hosts"] == ["h1"]
    assert fleet.services["time"]["allow"] == {
        "users": [],
        "emails": [],
        "groups": ["staff"],
        "clients": [],
        "everyone": False,
    }
    assert fleet.hosts["h1"]["time"]["command"] == ["mcp-server-time"]
    assert fleet.hosts["h1"]["time"]["transport"] == "stdio"
    assert fleet.hosts["h1"]["echo"]["transport"] == "native"
    assert fleet.hosts["h1"]["echo"]["memory_max"] == "256M"


def test_arguments_follow_the_catalogues_command() -> None:
    fleet = with_service("time", {"args": ["--local-timezone", "Europe/Vienna"]})
    assert fleet.hosts["h1"]["time"]["command"] == ["mcp-server-time", "--local-timezone", "Europe/Vienna"]


def test_a_package_of_ones_own() -> None:
    fleet = with_service(
        "tickets", {"package": "pypi:acme-tickets==1.4.2", "secrets": {"TOKEN": "long enough"}}
    )
    assert fleet.problems == []
    assert fleet.hosts["h1"]["tickets"]["package"] == "pypi:acme-tickets==1.4.2"
    assert not fleet.hosts["h1"]["tickets"]["npm"]
    assert fleet.hosts["h1"]["tickets"]["command"] == ["acme-tickets"]
    assert fleet.hosts["h1"]["tickets"]["secret_names"] == ["TOKEN"]
    assert "long enough" not in str(fleet)


def test_peoples_own_secrets_leave_their_names_alone() -> None:
    service = {
        "package": "pypi:a==1",
        "secrets_per_user": {"T": {"ana": "long enough"}},
        "child_memory_max": "64M",
    }
    fleet = with_service("x", service)
    assert fleet.problems == []
    assert fleet.hosts["h1"]["x"]["personal_secret_names"] == ["T"]
    assert fleet.hosts["h1"]["x"]["secret_names"] == []
    limits = [fleet.hosts["h1"]["x"][f"child_{limit}"] for limit in ("memory_max", "tasks_max", "cpu_quota")]
    assert limits == ["64M", 256, "100%"]
    assert "long enough" not in str(fleet)


def test_a_machine() -> None:
    secret = "x" * 32
    client = {"client_name": "Nightly", "client_secret": secret, "grant_types": ["client_credentials"]}
    given = {"gatehouse_clients": {"nightly": client}, "gatehouse_allow": {"clients": ["nightly"]}}
    fleet = inspect({"h1": {**GOOD, **given}})
    assert fleet.problems == []
    assert fleet.hosts["h1"]["time"]["allow"]["clients"] == ["nightly"]
    assert secret not in str(fleet)


@pytest.mark.parametrize("name", ["acme-tickets", "@acme/acme-tickets"])
def test_an_npm_package_of_ones_own(name: str) -> None:
    fleet = with_service("tickets", {"package": f"npm:{name}==1.4.2-rc.1", "args": ["-x"]})
    assert fleet.problems == []
    service = fleet.hosts["h1"]["tickets"]
    assert service["package"] == f"npm:{name}==1.4.2-rc.1" and service["npm"]
    assert service["command"] == ["acme-tickets", "-x"]


def test_what_an_entry_brings_and_what_the_operator_adds() -> None:
    given = {
        "allow": {"users": ["ana"]},
        "env": {"LEVEL": 2},
        "egress": ["10.0.0.0/8", "fd00::/8", "10.1.2.3"],
        "title": "Ours",
    }
    fleet = with_service("memory", given)
    assert fleet.problems == []
    service = fleet.hosts["h1"]["memory"]
    assert service["npm"] and service["isolation"] == "shared" and service["debian_packages"] == ["git"]
    assert service["env"] == {"FILE": "{state}/memory.json", "LEVEL": "2"}
    assert service["egress"] == ["public", "10.0.0.0/8", "fd00::/8", "10.1.2.3"]
    assert service["title"] == "Ours"
    assert CATALOGUE["memory"]["env"]["LEVEL"] == "1", "the catalogue stays as it is"


@pytest.mark.parametrize(
    ("change", "variable", "fix"),
    [
        ({"gatehouse_domain": None}, "gatehouse_domain: is missing", "set it"),
        ({"gatehouse_domain": "https://x"}, "gatehouse_domain: is not a domain name", "without scheme"),
        ({"gatehouse_allow": {}}, "gatehouse_mcp_services.time.allow: the allow-list is empty", "{everyone: true}"),
        ({"gatehouse_domian": "x.y"}, "gatehouse_domian: no such variable; did you mean gatehouse_domain?", "correct"),
        ({"gatehouse_tls": "acme"}, "gatehouse_acme_email: gatehouse_tls is acme", "set it"),
        ({"gatehouse_tls": "none"}, "gatehouse_tls: value of gatehouse_tls must be one of", "correct it"),
        ({"gatehouse_tls": "files"}, "gatehouse_tls_key: gatehouse_tls is files", "name one"),
        ({"gatehouse_clients": {"a b": {}}}, "gatehouse_clients.a b: a client id has", "choose another"),
        ({"gatehouse_clients": {"m": "x"}}, "gatehouse_clients.m: is not a mapping", "client_name:"),
        ({"gatehouse_clients": {"m": {"redirect_uris": ["https://x.test/cb"]}}}, "gatehouse_clients.m.client_name: is missing", "set it"),
        ({"gatehouse_clients": {"m": {"client_name": "M", "nmae": 1}}}, "gatehouse_clients.m.nmae: unknown key", "client_name"),
        ({"gatehouse_clients": {"m": {"client_name": "M"}}}, "gatehouse_clients.m.redirect_uris: is missing", "sent back"),
        (
            {"gatehouse_clients": {"m": {"client_name": "M", "grant_types": ["client_credentials"]}}},
            "gatehouse_clients.m.client_secret: a machine has to prove",
            "set one",
        ),
        (
            {"gatehouse_clients": {"m": {"client_name": "M", "grant_types": ["password"]}}},
            "gatehouse_clients.m.grant_types: value of grant_types must be one or more of",
            "correct it",
        ),
        (
            {"gatehouse_clients": {"m": {"client_name": "M", "client_secret": "short", "redirect_uris": ["https://x.test/"]}}},
            "gatehouse_clients.m.client_secret: is too short",
            "at least 32",
        ),
        *[
            (
                {"gatehouse_clients": {"m": {"client_name": "M", "grant_types": ["client_credentials"], **given}}},
                "gatehouse_clients.m.jwks: has to be a key set of public keys alone",
                "write {keys:",
            )
            for given in (
                {"jwks": {}},
                {"jwks": {"keys": []}},
                {"jwks": {"keys": [{"kty": "EC", "d": "x"}]}},
                {"jwks": {"keys": [{"kty": "EC"}]}, "client_secret": "x" * 32},
            )
        ],
        (
            {"gatehouse_allow": {"clients": ["nightly"], "groups": ["staff"]}},
            "gatehouse_allow.clients: nightly is no client of gatehouse_clients with the grant client_credentials",
            "add it there",
        ),
        (
            {"gatehouse_operators": {"groups": ["okta:staff"]}},
            "gatehouse_operators.groups: okta:staff is of no provider of gatehouse_providers",
            "with one of local",
        ),
        ({"gatehouse_default_resource": "tiem"}, "gatehouse_default_resource: tiem is not one of the services", "name one of"),
        ({"gatehouse_traefik_source": "archive"}, "gatehouse_traefik_archive_url: gatehouse_traefik_source is archive", "set it"),
        (
            {"gatehouse_traefik_source": "archive", "gatehouse_traefik_archive_sha256": "0" * 63},
            "gatehouse_traefik_archive_sha256: gatehouse_traefik_source is archive",
            "64 hexadecimal digits",
        ),
        ({"gatehouse_traefik_source": "file"}, "gatehouse_traefik_file: gatehouse_traefik_source is file", "name one"),
        ({"gatehouse_recheck_seconds": 60}, "gatehouse_recheck_seconds: 60 is too often", "at least 900, or 0"),
        ({"gatehouse_redis_password": "short"}, "gatehouse_redis_password: is too short", "at least 32"),
        ({"gatehouse_providers": {}}, "gatehouse_providers: nobody could sign in", "configure"),
        ({"gatehouse_providers": {"github": {"client_id": "x"}}}, "gatehouse_github_client_secret: is missing", "set"),
        ({"gatehouse_providers": {"oidc": {"Okta": {}}}}, "gatehouse_providers.oidc.Okta: a provider's name", "choose another"),
        ({"gatehouse_providers": {"oidc": {"local": {}}}}, "gatehouse_providers.oidc.local: a provider's name", "choose another"),
        ({"gatehouse_providers": {"oidc": ["okta"]}}, "gatehouse_providers.oidc: is not a mapping", "write <name>:"),
        ({"gatehouse_providers": {"oidc": {"okta": None}}}, "gatehouse_providers.oidc.okta: is not a mapping", "write issuer:"),
        ({"gatehouse_providers": {"oidc": {"okta": {"issuer": "x"}}}}, "gatehouse_providers.oidc.okta.client_id: is missing", "set it"),
        (
            {"gatehouse_providers": {"oidc": {"okta": {"issuer": "https://a.test/", "client_id": "x", "groups": "g"}}}},
            "gatehouse_providers.oidc.okta.groups: unknown key; did you mean groups_claim?",
            "groups_claim",
        ),
        (
            {"gatehouse_providers": {"oidc": {"okta": {"issuer": "http://a.test", "client_id": "x"}}}},
            "gatehouse_providers.oidc.okta.issuer: is not an https address",
            "openid-configuration",
        ),
        (
            {"gatehouse_providers": {"oidc": {"okta": {"issuer": "https://a.test", "client_id": "x"}}}},
            "gatehouse_oidc_client_secrets.okta: is missing",
            "set",
        ),
        ({"gatehouse_oidc_client_secrets": {"okta": "x" * 40}}, "gatehouse_oidc_client_secrets.okta: gatehouse_providers.oidc has", "remove"),
        (
            {"gatehouse_allow": {"groups": ["okta:staff"]}},
            "gatehouse_allow.groups: okta:staff is of no provider of gatehouse_providers",
            "with one of local",
        ),
        (
            {
                "gatehouse_providers": {"github": {"client_id": "x"}, "oidc": {"okta": {"issuer": "https://a.test", "client_id": "x"}}},
                "gatehouse_mcp_services": {"time": {"allow": {"users": ["ana"]}}},
            },
            "gatehouse_mcp_services.time.allow.users: ana could be of several providers",
            "with one of github, okta",
        ),
        ({"gatehouse_local_users": {"ana": {"password_hash": "plain"}}}, "gatehouse_local_users.ana.password_hash", "hash-password"),
        (
            {"gatehouse_local_users": {"ana": {"password_hash": "$argon2id$x", "groups": "staff"}}},
            "gatehouse_local_users.ana.groups: is not a list",
            "write [",
        ),
        ({"gatehouse_local_users": {"ana": {"nick": "a"}}}, "gatehouse_local_users.ana.nick: unknown key", "groups"),
        ({"gatehouse_allow": {"groups": "staff"}}, "gatehouse_allow.groups: is not a list", "write ["),
        ({"gatehouse_allow": {"users": [1000]}}, "gatehouse_allow.users: is not text", "quotes"),
        ({"gatehouse_allow": ["staff"]}, "gatehouse_allow: is not a mapping", "<value>"),
        ({"gatehouse_recheck_seconds": "60"}, "gatehouse_recheck_seconds: 60 is too often", "at least 900"),
        ({"gatehouse_drain_seconds": 0}, "gatehouse_drain_seconds: has to be at least 1", "correct"),
        ({"gatehouse_redis_password": "x" * 20 + " " + "x" * 20}, "gatehouse_redis_password: is too short, or has spaces", "32"),
        ({"gatehouse_redis_password": 4242}, "gatehouse_redis_password: is not text", "quotes"),
        (
            {"gatehouse_clients": {"m": {"client_name": "M", "grant_types": "client_credentials"}}},
            "gatehouse_clients.m.grant_types: is not a list",
            "write [",
        ),
        (
            {"gatehouse_providers": {"oidc": {"okta": {"issuer": "https://a.test", "client_id": "x", "scopes": "openid email"}}}},
            "gatehouse_providers.oidc.okta.scopes: is not a list",
            "write [",
        ),
        ({"gatehouse_local_users": {}}, "gatehouse_local_users: the provider local is on", "add one"),
    ],
)  # fmt: skip
def test_bad_variables(change: dict[str, Any], variable: str, fix: str) -> None:
    problems = inspect({"h1": {**GOOD, **change}}).problems
    assert any(problem.startswith(variable) and fix in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("name", "service", "variable", "fix"),
    [
        ("time", {"memory": "1G"}, "gatehouse_mcp_services.time.memory: unknown key; did you mean memory_max?", "known are"),
        ("Time", {}, "gatehouse_mcp_services.Time: is not a service name", "lower-case"),
        ("a" * 22, {}, f"gatehouse_mcp_services.{'a' * 22}: is not a service name", "up to 21"),
        ("auth", {}, "gatehouse_mcp_services.auth: is a name that Gatehouse uses", "choose another"),
        ("tiem", {}, "gatehouse_mcp_services.tiem: tiem is not in the catalogue; did you mean time?", "echo, memory, time"),
        ("time", {"allow": {}}, "gatehouse_mcp_services.time.allow: the allow-list is empty", "{everyone: true}"),
        ("time", {"hosts": "h2"}, "gatehouse_mcp_services.time.hosts: h2 is not in the group gateway_mcp", "add it"),
        ("time", {"hosts": "nowhere"}, "gatehouse_mcp_services.time.hosts: nowhere matches no host", "correct"),
        ("x", {"package": "acme"}, "gatehouse_mcp_services.x.package: is not a package with an exact version", "pypi:<name>==<version>"),
        ("x", {"package": "npm:acme@1.0.0"}, "gatehouse_mcp_services.x.package: is not a package with an exact version", "npm:<name>==<version>"),
        ("x", {"package": "npm:acme==^1.0"}, "gatehouse_mcp_services.x.package: is not a package with an exact version", "write"),
        ("x", {"package": "npm:@a/../b==1.0.0"}, "gatehouse_mcp_services.x.package: is not a package with an exact version", "write"),
        ("memory", {}, "gatehouse_mcp_services.memory.allow: all who may use memory share what it keeps", "name here"),
        ("memory", {"allow": {"users": ["a"]}, "isolation": "per_user"}, "gatehouse_mcp_services.memory.isolation: memory comes from the catalogue", "remove"),
        ("x", {"package": "pypi:acme>=1"}, "gatehouse_mcp_services.x.package: is not a package with an exact version", "write"),
        ("x", {"command": ["server"]}, "gatehouse_mcp_services.x.command: without a package", "full path"),
        ("x", {"package": "pypi:a==1", "secrets": {"T": "short"}}, "gatehouse_mcp_services.x.secrets.T: is too short", "at least 8"),
        ("x", {"package": "pypi:a==1", "secrets_per_user": {"T": {"ana": "short"}}}, "gatehouse_mcp_services.x.secrets_per_user.T.ana: is too short", "at least 8"),
        ("x", {"package": "pypi:a==1", "secrets_per_user": {"T": "long enough"}}, "gatehouse_mcp_services.x.secrets_per_user.T: is not a mapping", "<user>: <secret>"),
        ("x", {"package": "pypi:a==1", "secrets_per_user": ["T"]}, "gatehouse_mcp_services.x.secrets_per_user: is not a mapping", "write"),
        ("x", {"package": "pypi:a==1", "secrets_per_user": {"GATEHOUSE_X": {"ana": "long enough"}}}, "gatehouse_mcp_services.x.secrets_per_user.GATEHOUSE_X: names", "choose"),
        ("x", {"package": "pypi:a==1", "secrets_per_user": {"T": {"okta:1": "long enough"}}}, "gatehouse_mcp_services.x.secrets_per_user.T.users: okta:1 is of no", "local"),
        ("x", {"package": "pypi:a==1", "isolation": "shared", "secrets_per_user": {"T": {"ana": "long enough"}}}, "gatehouse_mcp_services.x.secrets_per_user: with the isolation shared", "per_user"),
        ("x", {"command": ["/x"], "transport": "http", "secrets_per_user": {"T": {"ana": "long enough"}}}, "gatehouse_mcp_services.x.secrets_per_user: only a stdio", "remove"),
        ("echo", {"child_memory_max": "64M"}, "gatehouse_mcp_services.echo.child_memory_max: only a stdio server", "remove"),
        ("time", {"child_memory_max": "64"}, "gatehouse_mcp_services.time.child_memory_max: is not of the known form", "256M"),
        ("time", {"child_tasks_max": 0}, "gatehouse_mcp_services.time.child_tasks_max: is not of the known form", "64"),
        ("time", {"child_cpu_quota": "half"}, "gatehouse_mcp_services.time.child_cpu_quota: is not of the known form", "50%"),
        ("x", {"package": "pypi:a==1", "env": {"A B": "1"}}, "gatehouse_mcp_services.x.env.A B: is not the name", "letters"),
        ("x", {"package": "pypi:a==1", "env": {"GATEHOUSE_LISTEN": "1"}}, "gatehouse_mcp_services.x.env.GATEHOUSE_LISTEN", "choose"),
        ("time", {"hostname": "auth"}, "gatehouse_mcp_services.time.hostname: auth is also the host name of the auth", "choose"),
        ("time", {"port": 20001}, "gatehouse_mcp_services.time.port: 20001 is not an even port", "choose another"),
        ("time", {"isolation": "none"}, "gatehouse_mcp_services.time.isolation: value of isolation must be one of", "correct"),
        ("time", {"tools": {"denied": ["x"]}}, "gatehouse_mcp_services.time.tools: tools.denied. Supported parameters", "deny"),
        ("time", {"tools": {"groups": {"ops": ["x"]}}}, "gatehouse_mcp_services.time.tools.groups: gives people what everyone has", "name in deny"),
        ("time", {"tools": {"deny": ["x"], "groups": {"ops": "x"}}}, "gatehouse_mcp_services.time.tools.groups.ops: is not a list", "write ["),
        ("time", {"tools": {"deny": ["x"], "groups": {"okta:ops": ["x"]}}}, "gatehouse_mcp_services.time.tools.groups: okta:ops is of no provider", "local"),
        ("x", {"package": "pypi:a==1", "transport": "http", "tools": {"deny": ["x"]}}, "gatehouse_mcp_services.x.tools: nobody but the service", "X-Gatehouse-Groups"),
        ("time", {"origins": ["https://a.example/x"]}, "gatehouse_mcp_services.time.origins: https://a.example/x is not", "write"),
        ("echo", {"args": ["x"]}, "gatehouse_mcp_services.echo.args: echo takes no arguments", "remove"),
        ("time", {"egress": ["pubilc"]}, "gatehouse_mcp_services.time.egress: pubilc is not a network", "public or any"),
        ("time", {"egress": ["10.0.0.1/8"]}, "gatehouse_mcp_services.time.egress: 10.0.0.1/8 is not a network", "write"),
        ("time", {"health_path": "/health"}, "gatehouse_mcp_services.time.health_path: only a service of transport http", "remove"),
        ("x", {"command": ["/x"], "transport": "http", "health_path": "health?"}, "gatehouse_mcp_services.x.health_path: is not a path", "/healthz"),
        ("time", {"affinity": "perhaps"}, "gatehouse_mcp_services.time.affinity: ", "correct"),
        ("time", {"args": "/srv/docs"}, "gatehouse_mcp_services.time.args: is not a list", "write ["),
        ("time", {"tools": {"deny": "delete"}}, "gatehouse_mcp_services.time.tools.deny: is not a list", "write ["),
        ("time", {"allow": {"users": "ana"}}, "gatehouse_mcp_services.time.allow.users: is not a list", "write ["),
        ("x", {"command": "/opt/x serve", "transport": "http"}, "gatehouse_mcp_services.x.command: is not a list", "write ["),
        ("time", {"port": "twenty"}, "gatehouse_mcp_services.time.port: ", "correct it"),
        ("time", {"port": 6378}, "gatehouse_mcp_services.time.port: 6378 is not an even port", "choose another"),
        ("time", {"port": 18080}, "gatehouse_mcp_services.time.port: 18080 is not an even port", "choose another"),
        ("time", {"memory_max": "2GB"}, "gatehouse_mcp_services.time.memory_max: is not of the known form", "1G"),
        ("echo", {"cpu_quota": "2"}, "gatehouse_mcp_services.echo.cpu_quota: is not of the known form", "50%"),
        ("time", {"env": {"A": None}}, "gatehouse_mcp_services.time.env.A: is not text", "quotes"),
        ("time", {"env": {"A": True}}, "gatehouse_mcp_services.time.env.A: is not text", "quotes"),
        ("echo", {"env": {"A": "1\n2"}}, "gatehouse_mcp_services.echo.env.A: has a line break", "one line"),
        ("time", "yes", "gatehouse_mcp_services.time: is not a mapping", "write {}"),
    ],
)  # fmt: skip
def test_bad_services(name: str, service: Any, variable: str, fix: str) -> None:
    hosts = {"h1": {**GOOD, "gatehouse_mcp_services": {name: service}}}
    problems = inspect(hosts, others=("h2",)).problems
    assert any(problem.startswith(variable) and fix in problem for problem in problems), problems


@pytest.mark.parametrize("key", ["secrets", "secrets_per_user"])
def test_a_refused_secret_is_never_quoted(key: str) -> None:
    refused = (
        "hunter2hunter2",
        {"T": "hunter2"},
        {"T": 42424242},
        ["hunter2hunter2"],
        {"T": {"ana": "hunter2"}},
    )
    for secrets in refused:
        fleet = with_service("x", {"package": "pypi:a==1", key: secrets})
        assert fleet.problems
        assert "hunter2" not in str(fleet) and "4242" not in str(fleet)


def test_two_services_cannot_share_a_hostname() -> None:
    services = {"time": {"hostname": "clock"}, "echo": {"hostname": "clock"}}
    problems = inspect({"h1": {**GOOD, "gatehouse_mcp_services": services}}).problems
    assert (
        "gatehouse_mcp_services.time.hostname: clock is also the host name of echo; choose another"
        in problems
    )


def test_all_problems_come_at_once_and_each_once() -> None:
    broken = {**GOOD, "gatehouse_domain": None, "gatehouse_mcp_services": {"tiem": {}}}
    groups = {"gateway_edge": ["h1"], "gateway_redis": ["h1"], "gateway_mcp": ["h1", "h2"]}
    problems = inspect({"h1": {**broken, **peer(1)}, "h2": {**broken, **peer(2)}}, groups).problems
    assert len(problems) == len(set(problems)) == 2


def test_a_problem_of_one_host_names_it() -> None:
    groups = {"gateway_edge": ["h1"], "gateway_redis": ["h1"], "gateway_mcp": ["h1", "h2"]}
    problems = inspect(
        {"h1": {**GOOD, **peer(1)}, "h2": {**GOOD, **peer(2), "gatehouse_mcp_services_host": {"tiem": {}}}},
        groups,
    ).problems
    assert len(problems) == 1 and problems[0].endswith("[h2]")


def test_several_hosts_need_an_encrypted_network_between_them() -> None:
    groups = {"gateway_edge": ["h1"], "gateway_redis": ["h1"], "gateway_mcp": ["h2"]}
    known = {f"h{number}": {**GOOD, **peer(number)} for number in (1, 2)}
    # As `-e gatehouse_plain_peer_traffic=false` gives it, it is not what it says.
    for said in (False, "false", "no"):
        plain = {host: {**given, "gatehouse_plain_peer_traffic": said} for host, given in known.items()}
        problems = inspect(plain, groups).problems
        assert len(problems) == 1 and problems[0].startswith("gatehouse_plain_peer_traffic")
    fleet = inspect(known, groups)
    assert fleet.problems == [] and fleet.services["time"]["hosts"] == ["h2"]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("10.0.0.1", "10.0.0.1 is also the address of h1"),
        ("127.0.0.1", "other hosts cannot reach this one at 127.0.0.1"),
        ("0.0.0.0", "other hosts cannot reach this one at 0.0.0.0"),  # noqa: S104
    ],
)
def test_several_hosts_have_addresses_that_others_reach(second: str, said: str) -> None:
    groups = {"gateway_edge": ["h1"], "gateway_redis": ["h1"], "gateway_mcp": ["h2"]}
    known = {"h1": {**GOOD, **peer(1)}, "h2": {**GOOD, **peer(2), "gatehouse_address": second}}
    [problem] = inspect(known, groups).problems
    assert problem.startswith(f"gatehouse_address: {said}") and problem.endswith("[h2]")


def test_what_a_service_keeps_is_on_one_host() -> None:
    groups = {"gateway_edge": ["h1"], "gateway_redis": ["h1"], "gateway_mcp": ["h1", "h2"]}
    memory = {"allow": {"users": ["ana"]}}
    known = {
        f"h{number}": {**GOOD, **peer(number), "gatehouse_mcp_services": {"memory": memory}}
        for number in (1, 2)
    }
    [problem] = inspect(known, groups).problems
    assert problem.startswith(
        "gatehouse_mcp_services.memory.hosts: each of h1, h2 would keep other data; name one"
    )
    memory["hosts"] = "h2"  # type: ignore[assignment]
    assert inspect(known, groups).problems == []


def test_acme_has_one_edge() -> None:
    groups = {"gateway_edge": ["h1", "h2"], "gateway_redis": ["h1"], "gateway_mcp": ["h1"]}
    acme = {"gatehouse_tls": "acme", "gatehouse_acme_email": "ops@example.com"}
    [problem] = inspect(
        {f"h{number}": {**GOOD, **peer(number), **acme} for number in (1, 2)}, groups
    ).problems
    assert problem.startswith("gatehouse_tls: with several edges") and "use files, or one edge" in problem


def test_what_the_command_line_gives_as_text_is_taken_for_what_it_says() -> None:
    fleet = inspect({"h1": {**GOOD, "gatehouse_recheck_seconds": "3600", "gatehouse_drain_seconds": "5"}})
    assert fleet.problems == []
    service = {"command": ["/opt/acme"], "transport": "http", "port": "21000", "affinity": "false"}
    given = with_service("x", service).hosts["h1"]["x"]
    assert (given["port"], given["affinity"]) == (21000, False)


@pytest.mark.parametrize("address", ["mcp1.example.com", "fd00::1", None])
def test_several_hosts_need_addresses(address: str | None) -> None:
    """Of names, nobody could say whom to let in."""
    groups = {"gateway_edge": ["h1"], "gateway_redis": ["h1"], "gateway_mcp": ["h2"]}
    secure = {**GOOD, **peer(1)}
    other = (
        {**secure, "gatehouse_address": address}
        if address
        else {**GOOD, "gatehouse_plain_peer_traffic": True}
    )
    [problem] = inspect({"h1": secure, "h2": other}, groups).problems
    assert problem.startswith(f"gatehouse_address: {address or 'h2'} is no IPv4 address")
    assert problem.endswith("[h2]")


def test_empty_groups_are_refused() -> None:
    problems = inspect({"h1": GOOD}, {**ONE, "gateway_redis": []}).problems
    assert problems == ["gateway_redis: the inventory has no host in this group; put at least one there"]


def test_layers_merge_by_name() -> None:
    merged = merge_services({"a": {"port": 1, "title": "A"}, "b": None}, {"a": {"port": 2}}, {"c": {}})
    assert merged == {"a": {"port": 2, "title": "A"}, "b": {}, "c": {}}


def test_ports_are_even_and_follow_from_the_name() -> None:
    ports = [derived_port(f"service{number}") for number in range(500)]
    assert all(port % 2 == 0 and 20000 <= port < 32000 for port in ports)
    assert len(set(ports)) > 450
    clash = {"svc3103": {"package": "pypi:a==1"}, "svc0": {"package": "pypi:a==1"}}
    assert derived_port("svc0") == derived_port("svc3103")
    (problem,) = inspect({"h1": {**GOOD, "gatehouse_mcp_services": clash}}).problems
    assert problem.startswith(
        f"gatehouse_mcp_services.svc3103.port: {derived_port('svc0')} is also the port of svc0"
    )
    clash["svc0"]["port"] = 21000  # type: ignore[assignment]
    fleet = inspect({"h1": {**GOOD, "gatehouse_mcp_services": clash}})
    assert fleet.problems == []
    assert [fleet.services[name]["port"] for name in clash] == [derived_port("svc3103"), 21000]


def test_people_keep_their_host_unless_it_does_not_matter() -> None:
    http = {"command": ["/opt/acme"], "transport": "http"}
    services = {
        "time": {},
        "echo": {},
        "plain": http,
        "watched": {**http, "health_path": "/healthz", "affinity": False},
    }
    fleet = inspect({"h1": {**GOOD, "gatehouse_mcp_services": services}})
    assert fleet.problems == []
    known = {name: (service["affinity"], service["health_path"]) for name, service in fleet.services.items()}
    assert known == {
        "time": (True, "/health"),
        "echo": (False, "/health"),
        "plain": (True, None),
        "watched": (False, "/healthz"),
    }


def test_tool_rules_name_groups_as_the_auth_service_does() -> None:
    rules = {"deny": ["x"], "groups": {"github:Acme/Ops": ["x"], "local:staff": ["x"], "leads": ["x"]}}
    providers = {"local": {}, "github": {"client_id": "x"}}
    fleet = inspect(
        {
            "h1": {
                **GOOD,
                "gatehouse_providers": providers,
                "gatehouse_github_client_secret": "x" * 40,
                "gatehouse_mcp_services": {"time": {"tools": rules}},
            }
        }
    )
    assert fleet.problems == []
    known = fleet.hosts["h1"]["time"]["tools"]
    assert known == {"deny": ["x"], "groups": {"github:acme/ops": ["x"], "staff": ["x"], "leads": ["x"]}}
    assert fleet.services["time"]["tool_groups"] == ["github:acme/ops", "leads", "staff"]
