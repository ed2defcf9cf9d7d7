# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Filters that turn the fleet, as preflight gives it, into what the roles take."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.gatehouse.mcp.plugins.module_utils.fleet import (
    merge_services,
    provider_names,
    qualified,
)
from ansible_collections.gatehouse.mcp.plugins.module_utils.npm import NODE_LOCK

# The credential with people's own secrets, as the bridge reads it; no variable has a dot in its name.
PER_USER = "per_user.json"
SYSTEMS = (("Debian", "12"), ("Debian", "13"))
PACKAGES = os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "files", "mcp_services"
)
# What our own services have in common.
SHARED = os.path.join(os.path.dirname(PACKAGES), "service", "src", "gatehouse_service")

# Where an auth service answers: the first address for what people and clients ask, the others for Traefik's checks.
AUTH_ADDRESSES = tuple(f"127.0.0.{number}" for number in range(1, 34))


def auth_listen(port: int | str) -> str:
    """All addresses of an auth service, as its `GATEHOUSE_LISTEN` takes them."""
    return ",".join(f"{address}:{port}" for address in AUTH_ADDRESSES)


def check_urls(port: int | str) -> list[str]:
    """The addresses of an auth service for checks."""
    return [f"http://{address}:{port}" for address in AUTH_ADDRESSES[1:]]


def service_secrets(
    *layers: Mapping[str, Any] | None, providers: Mapping[str, Any] | None = None
) -> dict[str, dict[str, str]]:
    """The secrets of each service, by service and name; people's own are one of them, as JSON by person and name.

    Args:
        layers: The services as the inventory has them, later ones before earlier ones.
        providers: `gatehouse_providers`, which the names of people depend on.
    """
    known = provider_names(providers or {})
    return {
        name: dict(service.get("secrets") or {}) | _personal(service.get("secrets_per_user") or {}, known)
        for name, service in merge_services(*layers).items()
    }


def _personal(secrets: Mapping[str, Mapping[str, str]], providers: list[str]) -> dict[str, str]:
    by_user: dict[str, dict[str, str]] = {}
    for variable, people in secrets.items():
        for person, secret in people.items():
            by_user.setdefault(qualified(str(person), providers), {})[variable] = str(secret)
    return {PER_USER: json.dumps(by_user, sort_keys=True)} if by_user else {}


def service_environments(
    services: Mapping[str, Mapping[str, Any]], locks: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The environments that services need, each once, as `gatehouse.mcp.environments` takes them.

    Args:
        services: The services of one host.
        locks: Lock by package, for packages whose service names none.
    """
    wanted: dict[str, dict[str, Any]] = {}
    for name, service in services.items():
        if service["transport"] == "native":
            wanted[f"native-{service['package']}"] = _own(service["package"], service["module"])
            continue
        if service["transport"] == "stdio":
            wanted["bridge"] = _own("bridge", "gatehouse_bridge")
        lock = service["lock"] or locks.get(service["package"] or "")
        if lock:
            kind = "npm" if service["npm"] else "python"
            path = os.path.join(PACKAGES, "catalogue", lock)
            wanted[f"service-{name}"] = {"kind": kind, "lock": path, "sources": []}
        if service["npm"]:
            wanted["node"] = {"kind": "node", "lock": str(NODE_LOCK), "sources": []}
    return [{"name": name, **environment} for name, environment in sorted(wanted.items())]


def _own(folder: str, module: str) -> dict[str, Any]:
    return {
        "kind": "python",
        "lock": os.path.join(PACKAGES, folder, "requirements.lock"),
        "sources": [os.path.join(PACKAGES, folder, "src", module), SHARED],
    }


def service_components(
    services: Mapping[str, Mapping[str, Any]],
    environments: Mapping[str, Mapping[str, str]],
    secrets: Mapping[str, Mapping[str, str]],
    bind: str,
    edges: list[str],
    fleet: list[str],
    drain_seconds: int,
    health_seconds: int,
) -> list[dict[str, Any]]:
    """What runs on one host, as `gatehouse.mcp.components` takes it.

    Args:
        services: The services of the host.
        environments: `id` and `path` of each environment, by name.
        secrets: As `service_secrets` gives them.
        bind: Address that the services listen on.
        edges: As `peer_addresses` gives them for the edges.
        fleet: As `peer_addresses` gives them for all hosts.
        drain_seconds: Seconds that a stopping service may take for what it has begun.
        health_seconds: Seconds that a starting service may take to pass its checks.
    """
    components = []
    for name, service in sorted(services.items()):
        native, bridged = service["transport"] == "native", service["transport"] == "stdio"
        own = environments.get(f"service-{name}")
        state = f"/var/lib/gatehouse-{name}"
        command = [
            str(part).replace("{address}", bind).replace("{port}", "@PORT@").replace("{state}", state)
            for part in service["command"]
        ]
        own_env = {key: value.replace("{state}", state) for key, value in service["env"].items()}
        if own:
            command = [part.replace("{environment}", own["path"]) for part in command]
            if not command[0].startswith("/"):
                command[0] = f"{own['path']}/bin/{command[0]}"
        used = [own] if own else []
        if service["npm"]:
            used.append(environments["node"])
        rules = {"GATEHOUSE_TOOLS": json.dumps(service["tools"], sort_keys=True)} if service["tools"] else {}
        env = {
            **rules,
            "GATEHOUSE_SERVICE": name,
            "GATEHOUSE_PUBLIC_URL": service["url"],
            "GATEHOUSE_DRAIN_SECONDS": str(drain_seconds),
        }
        if native:
            runtime = environments[f"native-{service['package']}"]
            exec_start = [f"{runtime['path']}/bin/python", "-m", service["module"]]
            used.append(runtime)
            env |= own_env
        elif bridged:
            runtime = environments["bridge"]
            exec_start = [f"{runtime['path']}/bin/python", "-m", "gatehouse_bridge"]
            used.append(runtime)
            env |= {
                "GATEHOUSE_BRIDGE_COMMAND": json.dumps(command),
                "GATEHOUSE_BRIDGE_ENV": json.dumps(own_env, sort_keys=True),
                "GATEHOUSE_BRIDGE_SECRETS": json.dumps(service["secret_names"]),
                "GATEHOUSE_BRIDGE_ISOLATION": service["isolation"],
                # The unit has one of its own (PrivateTmp=).
                "GATEHOUSE_BRIDGE_TEMPORARY": "/var/tmp",  # noqa: S108
                **_child_limits(service),
            }
            if not service["confine"]:
                env["GATEHOUSE_BRIDGE_CONFINE"] = "false"
            if service["personal_secret_names"]:
                env["GATEHOUSE_BRIDGE_SECRETS_PER_USER"] = json.dumps(service["personal_secret_names"])
        else:
            exec_start = command
            env |= own_env
        health = [{"name": "unit", "kind": "unit", "timeout": health_seconds}]
        # Asked by the name that clients ask by: of others a service knows those of loopback at most.
        asked = {"host": urlsplit(service["url"]).netloc, "timeout": health_seconds}
        if service["health_path"]:
            url = f"http://{bind}:@PORT@{service['health_path']}"
            health.append({"name": "http", "kind": "http", "url": url, **asked})
        health.append({"name": "mcp", "kind": "mcp", "url": f"http://{bind}:@PORT@/mcp", **asked})
        components.append(
            {
                "name": name,
                "port": service["port"],
                "env": env,
                "credentials": dict(secrets.get(name, {})),
                "environments": sorted(environment["id"] for environment in used),
                "health": health,
                "vars": {
                    "component": name,
                    # On loopback always: its health and metrics are there.
                    "listen": ",".join(f"{address}:@PORT@" for address in dict.fromkeys(("127.0.0.1", bind))),
                    "edges": edges,
                    "rules": service_rules(name, service, edges, fleet),
                    "service": dict(service),
                    "exec_start": exec_start,
                    "notifies": native or bridged,
                    "credential_names": sorted(secrets.get(name, {})),
                    "drain_seconds": drain_seconds,
                },
            }
        )
    return components


def service_rules(name: str, service: Mapping[str, Any], edges: list[str], fleet: list[str]) -> list[str]:
    """What nftables has to keep from a service and from others, where systemd's filter cannot: it knows no ports and no directions.

    Args:
        name: The service's name.
        service: The service.
        edges: As `peer_addresses` gives them for the edges.
        fleet: As `peer_addresses` gives them for all hosts.

    Returns:
        Rules, each with its chain before it.
    """
    asks = f"meta skuid gatehouse-{name} ct state new"
    rules = []
    if service["loopback"] == "closed":
        # It answers over loopback and asks nothing there but the resolver: others on this host trust what comes that way.
        rules.append(f"output oif lo {asks} meta l4proto {{ tcp, udp }} th dport != 53 reject")
    if refused := _refused(service["egress"], edges, fleet):
        # Other hosts take what comes from an edge for Traefik's.
        rules.append(f"output ip daddr {{ {', '.join(refused)} }} {asks} reject")
    if edges:
        # Who reaches it says who calls, so edges do alone.
        own, *others = edges
        rules.append(
            f"input iif != lo ip daddr {own} ip saddr {{ {', '.join(others)} }} tcp dport @PORT@ accept"
        )
    if edges or (service["transport"] == "http" and service["egress"]):
        # A server that is not ours may listen wider than it is told.
        rules.append("input iif != lo tcp dport @PORT@ reject")
    return rules


def _refused(egress: list[str], edges: list[str], fleet: list[str]) -> list[str]:
    """The other hosts that systemd lets a service reach, and that its `egress` does not name one by one.

    No more than these, so that a host that joins the fleet is no new release of services that reach no host.
    """
    networks = [ipaddress.ip_network(entry) for entry in egress if entry not in ("any", "public")]
    reached = {
        address
        for address in fleet[1:]
        if {"any", "public"} & set(egress)
        or address in edges
        or any(ipaddress.ip_address(address) in network for network in networks)
    }
    return sorted(reached - {str(network[0]) for network in networks if network.num_addresses == 1})


def _child_limits(service: Mapping[str, Any]) -> dict[str, str]:
    """The limits of one child as the bridge takes them: bytes, a number, processors."""
    memory, tasks, cpu = (service[f"child_{limit}"] for limit in ("memory_max", "tasks_max", "cpu_quota"))
    limits = {}
    if memory:
        limits["MEMORY"] = str(int(memory[:-1]) * {"M": 1024**2, "G": 1024**3}[memory[-1]])
    if tasks:
        limits["PROCESSES"] = str(tasks)
    if cpu:
        limits["CPU"] = str(int(cpu[:-1]) / 100)
    return {f"GATEHOUSE_BRIDGE_CHILD_{name}": value for name, value in limits.items()}


def unlocked_packages(hosts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """The packages of all hosts' services that bring no lock of their own."""
    return sorted(
        {
            service["package"]
            for services in hosts.values()
            for service in services.values()
            if service["transport"] != "native" and service["package"] and not service["lock"]
        }
    )


def debian_packages(
    services: Mapping[str, Mapping[str, Any]], edges: list[str], fleet: list[str]
) -> list[str]:
    """The distribution's packages that the services of one host need.

    Args:
        services: The services of the host.
        edges: As `peer_addresses` gives them for the edges.
        fleet: As `peer_addresses` gives them for all hosts.
    """
    packages = {package for service in services.values() for package in service["debian_packages"]}
    ruled = any(service_rules(name, service, edges, fleet) for name, service in services.items())
    return sorted(packages | ({"nftables"} if ruled else set()))


def systemd_command(arguments: list[str]) -> str:
    """Quote arguments for `ExecStart=` (systemd.service(5), «Command lines»): `%` and `$` lose their meaning."""
    quoted = []
    for argument in arguments:
        text = argument.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
        quoted.append(
            f'"{text}"' if not text or any(c in text for c in " \t'\";") or text != argument else text
        )
    return " ".join(quoted)


def peer_address(host: str, viewer: str, hostvars: Mapping[str, Mapping[str, Any]]) -> str:
    """The address at which `viewer` reaches `host`: the one place where host-to-host addresses come from."""
    if host == viewer:
        return "127.0.0.1"
    variables = hostvars[host]
    return str(variables.get("gatehouse_address") or variables.get("ansible_host") or host)


def listen_address(host: str, viewers: list[str], hostvars: Mapping[str, Mapping[str, Any]]) -> str:
    """The address that `host` listens on so that every one of `viewers` reaches it: loopback where it is alone."""
    others = [viewer for viewer in viewers if viewer != host]
    return peer_address(host, others[0], hostvars) if others else "127.0.0.1"


def peer_addresses(host: str, viewers: list[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where requests to what `host` listens on for `viewers` come from: `host` itself first, and the others.

    None where it listens on loopback.
    """
    others = [viewer for viewer in viewers if viewer != host]
    own = [listen_address(host, viewers, hostvars)] if others else []
    return own + [peer_address(viewer, host, hostvars) for viewer in others]


def backend_address(
    host: str, viewer: str, viewers: list[str], hostvars: Mapping[str, Mapping[str, Any]]
) -> str:
    """The address at which `viewer` reaches what `host` listens on for all of `viewers`."""
    listening = listen_address(host, viewers, hostvars)
    return listening if listening != "127.0.0.1" else peer_address(host, viewer, hostvars)


def edge_services(
    services: Mapping[str, Mapping[str, Any]],
    endpoints: Mapping[str, Mapping[str, int]],
    viewer: str,
    viewers: list[str],
    hostvars: Mapping[str, Mapping[str, Any]],
    domain: str,
) -> dict[str, dict[str, Any]]:
    """The services as the edge `viewer` routes to them.

    Args:
        services: The fleet's services.
        endpoints: Port of each service, by host; a host that was not asked runs the first slot.
        viewer: The edge.
        viewers: All edges.
        hostvars: Ansible's.
        domain: The gateway's domain.
    """
    return {
        name: {
            "host": f"{service['hostname']}.{domain}",
            "origins": service["origins"],
            "health_path": service["health_path"],
            "instances": _instances(service),
            "servers": [
                f"http://{backend_address(host, viewer, viewers, hostvars)}:"
                f"{endpoints.get(host, {}).get(name, service['port'])}"
                for host in service["hosts"]
            ],
        }
        for name, service in sorted(services.items())
    }


def silent_hosts(hosts: list[str], hostvars: Mapping[str, Mapping[str, Any]], result: str) -> list[str]:
    """The hosts that have no result of that name, since they are not part of this run."""
    return [host for host in hosts if result not in hostvars[host]]


def endpoints(
    hosts: list[str], hostvars: Mapping[str, Mapping[str, Any]], result: str, asked: list[Mapping[str, Any]]
) -> dict[str, dict[str, int]]:
    """Port of each component, by host: from this run's results, else from the answers of hosts that were asked."""
    answers = {answer["item"]: answer for answer in asked}
    return {
        host: dict(hostvars[host].get(result, answers.get(host, {})).get("endpoints", {})) for host in hosts
    }


def unfit_hosts(hosts: list[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for every host that does not answer or is not supported.

    Args:
        hosts: The hosts of this run; each has `preflight_reached`.
        hostvars: Ansible's.
    """
    sentences = []
    for host in hosts:
        reached = hostvars[host]["preflight_reached"]
        facts = reached.get("ansible_facts", {})
        system = (facts.get("ansible_distribution"), facts.get("ansible_distribution_major_version"))
        if reached.get("unreachable") or reached.get("failed"):
            sentences.append(
                f"{host} does not answer ({str(reached.get('msg', '')).strip()}): correct ansible_host, ansible_user"
                " or the key, or take it out of the inventory."
            )
        elif system not in SYSTEMS or facts.get("ansible_service_mgr") != "systemd":
            sentences.append(
                f"{host} runs {' '.join(map(str, system))} with {facts.get('ansible_service_mgr')}: Gatehouse supports"
                " Debian 12 and 13 with systemd."
            )
    return sentences


def _instances(service: Mapping[str, Any]) -> list[str]:
    """The hosts between which a service's people are divided; none where any host will do."""
    return list(service["hosts"]) if service["affinity"] and len(service["hosts"]) > 1 else []


def auth_resources(services: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The services as the auth service knows them (`GATEHOUSE_RESOURCES`)."""
    return {
        name: {
            "resource": service["url"],
            **{key: service[key] for key in ("title", "scopes", "allow", "origins")},
            "groups": service["tool_groups"],
            "instances": _instances(service),
        }
        for name, service in sorted(services.items())
    }


def auth_clients(clients: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The clients from inventory as the auth service knows them (`GATEHOUSE_CLIENTS`), without their secrets."""
    return {
        name: {
            **{key: value for key, value in client.items() if key != "client_secret"},
            "token_endpoint_auth_method": client.get("token_endpoint_auth_method", "client_secret_basic")
            if "client_secret" in client
            else "private_key_jwt"
            if "jwks" in client
            else "none",
        }
        for name, client in sorted(clients.items())
    }


def client_secrets(clients: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Their secrets, by the name of the credential."""
    return {
        f"client_{name}": str(client["client_secret"])
        for name, client in sorted(clients.items())
        if "client_secret" in client
    }


def openid_secrets(secrets: Mapping[str, str]) -> dict[str, str]:
    """The secrets of our clients at OpenID providers, by the name of the credential."""
    return {f"oidc_{name}_client_secret": str(secret) for name, secret in sorted(secrets.items())}


def service_urls(services: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Public URL of each service."""
    return {name: str(service["url"]) for name, service in sorted(services.items())}


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        return {
            "auth_clients": auth_clients,
            "auth_listen": auth_listen,
            "auth_resources": auth_resources,
            "backend_address": backend_address,
            "check_urls": check_urls,
            "debian_packages": debian_packages,
            "client_secrets": client_secrets,
            "edge_services": edge_services,
            "endpoints": endpoints,
            "listen_address": listen_address,
            "openid_secrets": openid_secrets,
            "peer_address": peer_address,
            "peer_addresses": peer_addresses,
            "service_components": service_components,
            "service_environments": service_environments,
            "service_secrets": service_secrets,
            "service_urls": service_urls,
            "silent_hosts": silent_hosts,
            "systemd_command": systemd_command,
            "unfit_hosts": unfit_hosts,
            "unlocked_packages": unlocked_packages,
        }
