# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Reads a whole inventory and says either what the fleet is or everything that is wrong with it.

Runs on the controller, before any host is touched. Pure: it opens no connection and reads only the catalogue.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

GROUPS = ("gateway_edge", "gateway_redis", "gateway_mcp")
RESERVED_NAMES = ("auth", "environments", "gatehouse", "redis", "traefik")
LAYERS = ("gatehouse_mcp_services", "gatehouse_mcp_services_group", "gatehouse_mcp_services_host")

# `gatehouse-<name>` is the system user, and systemd-sysusers allows 31 characters for it.
NAME = re.compile(r"[a-z](?:-?[a-z0-9])*")
NAME_MAX = 21
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
PYPI_PACKAGE = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:\[[A-Za-z0-9,_-]+\])?==(?P<version>[A-Za-z0-9.!+_-]+)"
)
CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CLIENT_SECRET_MIN = 32
ASSERTION_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
CLIENT: dict[str, dict[str, Any]] = {
    "client_name": {"type": "str", "required": True},
    "redirect_uris": {"type": "list", "elements": "str"},
    "client_secret": {"type": "str", "no_log": True},
    "jwks": {"type": "dict"},
    "token_endpoint_auth_method": {"type": "str", "choices": ["client_secret_basic", "client_secret_post"]},
    "grant_types": {
        "type": "list",
        "elements": "str",
        "choices": [
            "authorization_code",
            "refresh_token",
            "client_credentials",
            DEVICE_GRANT,
            ASSERTION_GRANT,
        ],
        "default": ["authorization_code", "refresh_token"],
    },
}
# One entry of gatehouse_providers.oidc. Its secret stands apart, where a vault can hold it.
OPENID: dict[str, dict[str, Any]] = {
    "issuer": {"type": "str", "required": True},
    "client_id": {"type": "str", "required": True},
    "title": {"type": "str"},
    "scopes": {"type": "list", "elements": "str"},
    "groups_claim": {"type": "str"},
    "trust_emails": {"type": "bool"},
    "assertions": {"type": "bool"},
}
# One entry of gatehouse_local_users.
LOCAL_USER: dict[str, dict[str, Any]] = {
    "password_hash": {"type": "str", "no_log": True},
    "name": {"type": "str"},
    "email": {"type": "str"},
    "groups": {"type": "list", "elements": "str"},
}
PROVIDER_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
# Providers that are there without a name of the operator's, and other words that stand before a colon.
PROVIDERS_TAKEN = ("local", "github", "oidc", "probe", "client")
ALLOW = ("users", "emails", "groups", "clients", "everyone")
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ISSUER = re.compile(r"https://[^\s?#@]+")
HEALTH_PATH = re.compile(r"/[A-Za-z0-9._~/-]{0,200}")
ORIGIN = re.compile(r"https?://[a-z0-9.-]+(?::\d+)?|null")

NPM_PACKAGE = re.compile(
    r"npm:(?:@[a-z0-9][a-z0-9._~-]*/)?(?P<name>[a-z0-9][a-z0-9._~-]*)==(?P<version>\d+\.\d+\.\d+(?:[+-][A-Za-z0-9.+-]+)?)"
)
PACKAGE_LOCK = "package-lock.json"

# Below the ephemeral range of Linux (32768), two ports a service.
PORT_FIRST, PORT_LAST = 20000, 31998
# Even ports of which Gatehouse has this one or the next: the auth service, Traefik's health, Redis.
PORTS_TAKEN = (18000, 18080, 6378)

# Limits: their form, and an example. Systemd ignores one that it cannot read.
MEMORY = (re.compile(r"[1-9]\d*[MG]"), "256M or 1G")
CPU = (re.compile(r"[1-9]\d*%"), "50%, of one processor")
SERVICE_LIMITS = {"memory_max": MEMORY, "cpu_quota": CPU}
CHILD_LIMITS = {
    "child_memory_max": MEMORY,
    "child_tasks_max": (re.compile(r"[1-9]\d*"), "64"),
    "child_cpu_quota": CPU,
}

# What a service has that says nothing of it.
LIMITS = {"cpu_quota": "200%", "child_memory_max": None, "child_tasks_max": 256, "child_cpu_quota": "100%"}

SECRET_MIN, REDIS_PASSWORD_MIN = 8, 32
# It is a word of a command of Redis.
REDIS_PASSWORD = re.compile(rf"[^\s\x00-\x1f]{{{REDIS_PASSWORD_MIN},}}")
RECHECK_SECONDS_MIN = 900


def provider_names(providers: Mapping[str, Any]) -> list[str]:
    """The identity providers' names, which stand before the colon in the names of people and groups."""
    openid = providers.get("oidc") or {}
    fixed = [name for name in ("local", "github") if name in providers]
    return fixed + ([str(name) for name in openid] if isinstance(openid, Mapping) else [])


def qualified(entry: str, providers: list[str]) -> str:
    """A person or group as the auth service names them: `<provider>:<name>`, local ones as they are.

    Without a provider it is a local one where there are local users, and else of the only provider; whether that
    can be said, `Inspector.check_names` checks.
    """
    provider, colon, name = entry.partition(":")
    if not colon:
        provider, name = ("local" if "local" in providers else next(iter(providers), "")), entry
    if provider == "local":
        return name
    return f"{provider}:{name.lower() if provider == 'github' else name}"


def _public_keys(jwks: Any) -> bool:
    """Whether this is a key set (RFC 7517) that tells no secret."""
    keys = jwks.get("keys") if isinstance(jwks, Mapping) else None
    return (
        isinstance(keys, list)
        and bool(keys)
        and all(isinstance(key, Mapping) and "kty" in key and not {"d", "k"} & key.keys() for key in keys)
    )


@dataclass
class Fleet:
    """What the inventory describes.

    `services` holds what is the same on every host, by service; `hosts` the services of each host, complete;
    `problems` one sentence a fault, each beginning with the variable's name.
    """

    services: dict[str, dict[str, Any]] = field(default_factory=dict)
    hosts: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def merge_services(*layers: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Merge service mappings by name, key by key; later ones win. `None` for a service is an empty mapping."""
    merged: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for name, service in (layer or {}).items():
            merged[name] = {**merged.get(name, {}), **(service or {})}
    return merged


def read_catalogue(folder: str) -> dict[str, dict[str, Any]]:
    """Read every entry of the catalogue, by name.

    Args:
        folder: `files/mcp_services/catalogue` of the collection.
    """
    catalogue: dict[str, dict[str, Any]] = {}
    for name in sorted(os.listdir(folder)):
        stem, extension = os.path.splitext(name)
        if extension == ".yml":
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                catalogue[stem] = yaml.safe_load(file)
    return catalogue


def read_options(folder: str, role: str, entry: str = "main") -> dict[str, Any]:
    """Read the options of a role's entry point from its `argument_specs.yml`."""
    with open(os.path.join(folder, role, "meta", "argument_specs.yml"), encoding="utf-8") as file:
        options: dict[str, Any] = yaml.safe_load(file)["argument_specs"][entry]["options"]
    return options


def derived_port(name: str) -> int:
    """The even port of a service that names none. It follows from the name alone, whatever other services there are."""
    return PORT_FIRST + 2 * (zlib.crc32(name.encode()) % ((PORT_LAST - PORT_FIRST) // 2 + 1))


def conform(value: Any, option: Mapping[str, Any]) -> str | None:
    """Say what a value is not that its option wants, where Ansible would make it so: a word is no list of its letters.

    A number or a truth may be written as text, as `-e name=value` does.
    """
    kind = option.get("type", "str")
    if value is None:
        return None
    if kind == "list":
        if not isinstance(value, list):
            return "is not a list; write [...]"
        return next(
            filter(None, (conform(item, {"type": option.get("elements", "raw")}) for item in value)), None
        )
    if kind == "dict" and not isinstance(value, Mapping):
        return "is not a mapping; write <name>: <value> below it"
    if kind in ("str", "path") and not isinstance(value, str):
        return "is not text; write it in quotes"
    return None


def taken_over(given: Any, validated: Any) -> Any:
    """What was given, as the validator made it, without the defaults that it adds."""
    if isinstance(given, Mapping) and isinstance(validated, Mapping):
        return {key: taken_over(value, validated.get(key, value)) for key, value in given.items()}
    return validated


class Inspector:
    """Reads the variables of all hosts and collects problems, each once however many hosts share it.

    Args:
        hosts: The variables of each host, templated.
        groups: The inventory's groups.
        resolve: Gives the hosts of an inventory pattern.
        catalogue: As `read_catalogue` gives it.
        variables: Options of the `preflight` role: the public variables.
        service: Options of one service.
    """

    def __init__(
        self,
        hosts: Mapping[str, Mapping[str, Any]],
        groups: Mapping[str, list[str]],
        resolve: Callable[[str], list[str]],
        catalogue: Mapping[str, Mapping[str, Any]],
        variables: Mapping[str, Any],
        service: Mapping[str, Any],
    ) -> None:
        self.hosts = dict(hosts)
        self.groups = groups
        self.resolve = resolve
        self.catalogue = catalogue
        self.variables = variables
        self.service_options = service
        self.found: dict[str, set[str]] = {}

    def problem(self, text: str, host: str = "") -> None:
        """Note a problem; `host` where it is that host's own."""
        self.found.setdefault(text, set()).add(host)

    def problems(self) -> list[str]:
        """All problems, with the hosts named where only some have them."""
        lines = []
        for text, hosts in self.found.items():
            some = sorted(hosts - {""})
            lines.append(f"{text} [{', '.join(some)}]" if some and len(some) < len(self.hosts) else text)
        return lines

    def inspect(self) -> Fleet:
        """Check everything; the fleet is complete only where there are no problems."""
        self.hosts = {
            host: {**variables, **self.check_variables(host, variables)}
            for host, variables in self.hosts.items()
        }
        self.check_groups()
        fleet = self.services()
        fleet.problems = self.problems()
        return fleet

    def check_groups(self) -> None:
        """The three groups exist, and the topology is one that this version secures."""
        for group in GROUPS:
            if not self.groups.get(group):
                self.problem(f"{group}: the inventory has no host in this group; put at least one there")
        if len(self.groups.get("gateway_redis", [])) > 1:
            self.problem("gateway_redis: this version runs one Redis; leave one host in the group")
        members = {host for group in GROUPS for host in self.groups.get(group, [])}
        if len(members) > 1:
            for host in sorted(members):
                if not self.hosts[host].get("gatehouse_plain_peer_traffic"):
                    self.problem(
                        "gatehouse_plain_peer_traffic: several hosts would talk in plain text; connect them by an"
                        " encrypted network (WireGuard, IPsec), name each host's address there in gatehouse_address,"
                        " and set this to true",
                        host,
                    )
            self.check_addresses(sorted(members))

    def check_addresses(self, members: list[str]) -> None:
        """Every host of several has an IPv4 address of its own, where others reach it."""
        owners: dict[Any, str] = {}
        for host in members:
            given = self.hosts[host].get("gatehouse_address", "")
            try:
                address = ipaddress.IPv4Address(given)
            except ValueError:
                self.problem(
                    f"gatehouse_address: {given or host} is no IPv4 address, and the hosts let in addresses; give this"
                    " host's in the network between the hosts",
                    host,
                )
                continue
            if address.is_loopback or address.is_unspecified or address.is_multicast:
                self.problem(
                    f"gatehouse_address: other hosts cannot reach this one at {address}; give its address in the network"
                    " between the hosts",
                    host,
                )
            if address in owners:
                self.problem(
                    f"gatehouse_address: {address} is also the address of {owners[address]}; give each host its own",
                    host,
                )
            owners[address] = host

    def check_variables(self, host: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The public variables of one host: names, types, and what they need of each other; returns them, in their types."""
        given = {name: variables[name] for name in variables if name.startswith("gatehouse_")}
        for name in sorted(set(given) - set(self.variables)):
            self.problem(
                f"{name}: no such variable{self.suggest(name, self.variables)}; correct the name or remove it",
                host,
            )
        before = len(self.found)
        given = self.check_types("", given, self.variables, host)
        if len(self.found) > before:
            # What is not of its type tells nothing more.
            return {}

        domain = given.get("gatehouse_domain")
        if not domain:
            self.problem(
                "gatehouse_domain: is missing; set it to the domain that the gateway serves, example.com",
                host,
            )
        elif (
            not isinstance(domain, str)
            or "." not in domain
            or not all(map(LABEL.fullmatch, domain.split(".")))
        ):
            self.problem(
                "gatehouse_domain: is not a domain name; write it in lower case without scheme, example.com",
                host,
            )
        self.check_tls(host, given)
        self.check_traefik(host, given)
        self.check_providers(host, given)
        self.check_names(host, given)
        self.check_clients(host, given)
        recheck = given.get("gatehouse_recheck_seconds")
        if recheck is not None and recheck != 0 and recheck < RECHECK_SECONDS_MIN:
            self.problem(
                f"gatehouse_recheck_seconds: {recheck} is too often; use at least {RECHECK_SECONDS_MIN}, or 0 for never",
                host,
            )
        if (drain := given.get("gatehouse_drain_seconds")) is not None and drain < 1:
            self.problem("gatehouse_drain_seconds: has to be at least 1; correct it", host)
        password = given.get("gatehouse_redis_password")
        if password is not None and not REDIS_PASSWORD.fullmatch(password):
            self.problem(
                f"gatehouse_redis_password: is too short, or has spaces; use at least {REDIS_PASSWORD_MIN} random characters,"
                " or remove it and let one be generated",
                host,
            )
        return given

    def check_tls(self, host: str, given: Mapping[str, Any]) -> None:
        """The front door's certificate has what its source needs."""
        tls = given.get("gatehouse_tls", "internal")
        if tls == "acme" and "@" not in str(given.get("gatehouse_acme_email") or ""):
            self.problem(
                "gatehouse_acme_email: gatehouse_tls is acme, which needs a contact address; set it", host
            )
        if tls == "acme" and len(self.groups.get("gateway_edge", [])) > 1:
            self.problem(
                "gatehouse_tls: with several edges the CA asks one of them for what another has been told (HTTP-01); use"
                " files, or one edge"
            )
        if tls == "files":
            for name in ("gatehouse_tls_certificate", "gatehouse_tls_key"):
                path = given.get(name)
                if not path or not os.path.isfile(os.path.expanduser(str(path))):
                    self.problem(
                        f"{name}: gatehouse_tls is files, which needs a PEM file on the controller; name one",
                        host,
                    )
        root = given.get("gatehouse_acme_ca_certificate")
        if root and not os.path.isfile(os.path.expanduser(str(root))):
            self.problem(
                "gatehouse_acme_ca_certificate: there is no such file on the controller; correct the path",
                host,
            )

    def check_traefik(self, host: str, given: Mapping[str, Any]) -> None:
        """Traefik's program has what its source needs."""
        source = given.get("gatehouse_traefik_source", "wheel")
        if source == "archive":
            if not str(given.get("gatehouse_traefik_archive_url") or "").startswith(("https://", "http://")):
                self.problem(
                    "gatehouse_traefik_archive_url: gatehouse_traefik_source is archive, which needs the address of"
                    " a .tar.gz; set it",
                    host,
                )
            if not SHA256.fullmatch(str(given.get("gatehouse_traefik_archive_sha256") or "")):
                self.problem(
                    "gatehouse_traefik_archive_sha256: gatehouse_traefik_source is archive, which needs the archive's"
                    " SHA-256; write its 64 hexadecimal digits",
                    host,
                )
        program = str(given.get("gatehouse_traefik_file") or "")
        if source == "file" and not os.path.isfile(os.path.expanduser(program)):
            self.problem(
                "gatehouse_traefik_file: gatehouse_traefik_source is file, which needs a program on the controller;"
                " name one",
                host,
            )

    def check_providers(self, host: str, given: Mapping[str, Any]) -> None:
        """At least one identity provider, each with what it needs."""
        providers = given.get("gatehouse_providers") or {}
        if not providers:
            self.problem("gatehouse_providers: nobody could sign in; configure oidc, github or local", host)
        if not isinstance(providers, Mapping):
            return
        self._check_openid(
            host, providers.get("oidc") or {}, given.get("gatehouse_oidc_client_secrets") or {}
        )
        if "github" in providers and len(str(given.get("gatehouse_github_client_secret") or "")) < 20:
            self.problem(
                "gatehouse_github_client_secret: is missing or too short; set the OAuth App's client secret",
                host,
            )
        users = given.get("gatehouse_local_users") or {}
        if "local" in providers and not users:
            self.problem("gatehouse_local_users: the provider local is on and has no users; add one", host)
        if isinstance(users, Mapping):
            for name, user in users.items():
                hashed = user.get("password_hash") if isinstance(user, Mapping) else None
                if isinstance(user, Mapping):
                    self.check_entry(f"gatehouse_local_users.{name}", user, LOCAL_USER, host)
                if not isinstance(hashed, str) or not hashed.startswith("$argon2id$"):
                    self.problem(
                        f"gatehouse_local_users.{name}.password_hash: is not an argon2id hash;"
                        " make one with `python -m gatehouse_auth.admin hash-password`",
                        host,
                    )

    def _check_openid(self, host: str, providers: Any, secrets: Any) -> None:
        """OpenID providers have a name, an issuer, and a secret."""
        if not isinstance(providers, Mapping) or not isinstance(secrets, Mapping):
            self.problem(
                "gatehouse_providers.oidc: it and gatehouse_oidc_client_secrets are mappings by the provider's name;"
                " write <name>: below each",
                host,
            )
            return
        for name, provider in providers.items():
            where = f"gatehouse_providers.oidc.{name}"
            if not PROVIDER_NAME.fullmatch(str(name)) or name in PROVIDERS_TAKEN:
                self.problem(
                    f"{where}: a provider's name has lower-case letters, digits and -, and is none of"
                    f" {', '.join(PROVIDERS_TAKEN)}; choose another",
                    host,
                )
            if not isinstance(provider, Mapping):
                self.problem(f"{where}: is not a mapping; write issuer: and client_id: below it", host)
                continue
            self.check_entry(where, provider, OPENID, host)
            if not ISSUER.fullmatch(str(provider.get("issuer") or "")):
                self.problem(
                    f"{where}.issuer: is not an https address without a query; copy it from the provider's"
                    " /.well-known/openid-configuration, character by character",
                    host,
                )
            if not secrets.get(name):
                self.problem(
                    f"gatehouse_oidc_client_secrets.{name}: is missing; set the secret that the provider gave the client",
                    host,
                )
        for name in secrets:
            if name not in providers:
                self.problem(
                    f"gatehouse_oidc_client_secrets.{name}: gatehouse_providers.oidc has no such provider; remove it",
                    host,
                )

    def check_names(self, host: str, given: Mapping[str, Any]) -> None:
        """Allow-lists name people and groups of providers that there are, and of one alone."""
        providers = given.get("gatehouse_providers") or {}
        if not isinstance(providers, Mapping):
            return
        known = provider_names(providers)
        for where, allow in self._allow_lists(host, given).items():
            for key in ("users", "groups"):
                entries = allow.get(key) or []
                for entry in map(str, entries if isinstance(entries, list) else []):
                    provider, colon, _ = entry.partition(":")
                    if colon and provider not in known:
                        self.problem(
                            f"{where}.{key}: {entry} is of no provider of gatehouse_providers; write"
                            f" <provider>:<name>, with one of {', '.join(known)}",
                            host,
                        )
                    elif not colon and "local" not in known and len(known) > 1:
                        self.problem(
                            f"{where}.{key}: {entry} could be of several providers; write <provider>:{entry}, with one"
                            f" of {', '.join(known)}",
                            host,
                        )

    def _allow_lists(self, host: str, given: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Every list of people and groups that is written down, by its name in the inventory."""
        lists = {name: given.get(name) for name in ("gatehouse_allow", "gatehouse_operators")}
        lists |= {
            f"gatehouse_mcp_services.{name}.allow": (service or {}).get("allow")
            for name, service in self.declared(host).items()
            if isinstance(service, Mapping | None)
        }
        for name, service in self.declared(host).items():
            tools = (service or {}).get("tools")
            groups = tools.get("groups") if isinstance(tools, Mapping) else None
            if isinstance(groups, Mapping):
                lists[f"gatehouse_mcp_services.{name}.tools"] = {"groups": [*groups]}
            personal = (service or {}).get("secrets_per_user")
            for variable, people in personal.items() if isinstance(personal, Mapping) else ():
                if isinstance(people, Mapping):
                    lists[f"gatehouse_mcp_services.{name}.secrets_per_user.{variable}"] = {"users": [*people]}
        return {where: allow for where, allow in lists.items() if isinstance(allow, Mapping)}

    def check_clients(self, host: str, given: Mapping[str, Any]) -> None:
        """Clients from inventory have what their grants need, and services name only such."""
        clients = given.get("gatehouse_clients") or {}
        machines = set()
        for name, client in clients.items() if isinstance(clients, Mapping) else ():
            where = f"gatehouse_clients.{name}"
            if not CLIENT_ID.fullmatch(str(name)):
                self.problem(
                    f"{where}: a client id has 1 to 64 letters, digits and ._-; choose another", host
                )
            if not isinstance(client, Mapping):
                self.problem(f"{where}: is not a mapping; write client_name: below it", host)
                continue
            known = self.check_entry(where, client, CLIENT, host)
            grants = known.get("grant_types", CLIENT["grant_types"]["default"])
            secret = known.get("client_secret")
            jwks = known.get("jwks")
            if jwks is not None and (secret is not None or not _public_keys(jwks)):
                self.problem(
                    f"{where}.jwks: has to be a key set of public keys alone, without a client_secret beside it; write"
                    " {keys: [{kty: ..., ...}]}",
                    host,
                )
            if secret is not None and len(secret) < CLIENT_SECRET_MIN:
                self.problem(
                    f"{where}.client_secret: is too short; use at least {CLIENT_SECRET_MIN} random characters",
                    host,
                )
            if known.get("token_endpoint_auth_method") and secret is None:
                self.problem(f"{where}.client_secret: token_endpoint_auth_method needs it; set one", host)
            if "authorization_code" in grants and not known.get("redirect_uris"):
                self.problem(f"{where}.redirect_uris: is missing; name where people are sent back to", host)
            if "client_credentials" in grants:
                machines.add(str(name))
                if secret is None and jwks is None:
                    self.problem(
                        f"{where}.client_secret: a machine has to prove who it is; set one, or jwks with its public keys",
                        host,
                    )
        for where, allow in self._allow_lists(host, given).items():
            for client in allow.get("clients") or []:
                if client not in machines:
                    self.problem(
                        f"{where}.clients: {client} is no client of gatehouse_clients with the grant client_credentials;"
                        " add it there, or remove it",
                        host,
                    )

    def check_entry(
        self, where: str, entry: Mapping[str, Any], options: Mapping[str, Any], host: str
    ) -> dict[str, Any]:
        """One entry of a mapping by name: it has the keys that there are, those that it needs, and their types."""
        for key in sorted(set(map(str, entry)) - set(options)):
            self.problem(
                f"{where}.{key}: unknown key{self.suggest(key, options)}; known are {', '.join(sorted(options))}",
                host,
            )
        for key, option in options.items():
            if option.get("required") and entry.get(key) is None:
                self.problem(f"{where}.{key}: is missing; set it", host)
        return self.check_types(f"{where}.", entry, options, host)

    def check_types(
        self, prefix: str, given: Mapping[str, Any], options: Mapping[str, Any], host: str
    ) -> dict[str, Any]:
        """Types and choices of what is given, by the argument spec; returns what is right, in its type.

        Required ones have better words elsewhere.
        """
        right: dict[str, Any] = {}
        for name in given:
            if name not in options:
                continue
            wrong = list(self.nonconforming(name, given[name], options[name]))
            for path, message in wrong:
                self.problem(f"{prefix}{path}: {message}", host)
            if wrong:
                continue
            result = ArgumentSpecValidator({name: self.checkable(options[name])}).validate(
                {name: given[name]}
            )
            for message in result.error_messages:
                self.problem(f"{prefix}{name}: {message}; correct it", host)
            if not result.error_messages:
                right[name] = taken_over(given[name], result.validated_parameters[name])
        return right

    @staticmethod
    def nonconforming(path: str, value: Any, option: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What within a value is not as it has to be written, by its path."""
        if message := conform(value, option):
            yield path, message
        elif isinstance(value, Mapping):
            for name, nested in option.get("options", {}).items():
                yield from Inspector.nonconforming(f"{path}.{name}", value.get(name), nested)

    @staticmethod
    def checkable(option: Mapping[str, Any]) -> dict[str, Any]:
        """An option as the validator takes it: without the documentation."""
        spec = {key: value for key, value in option.items() if key != "description"}
        if "options" in spec:
            spec["options"] = {name: Inspector.checkable(value) for name, value in spec["options"].items()}
        return spec

    @staticmethod
    def suggest(name: str, known: Iterable[str]) -> str:
        """`; did you mean …?` where something known is close."""
        close = difflib.get_close_matches(name, list(known), n=1)
        return f"; did you mean {close[0]}?" if close else ""

    # Services

    def services(self) -> Fleet:
        """Check every service of every host and complete it from the catalogue."""
        fleet = Fleet(hosts={host: {} for host in self.groups.get("gateway_mcp", [])})
        declared = {host: self.declared(host) for host in fleet.hosts}
        ports: dict[str, int] = {}
        for host, services in declared.items():
            for name, given in services.items():
                service = self.service(host, name, given)
                if service is None:
                    continue
                ports.setdefault(name, derived_port(name))
                if service["port"] is not None:
                    ports[name] = service["port"]
                placement, keeps = service.pop("placement"), service.pop("keeps")
                if keeps and len(placement) > 1:
                    self.problem(
                        f"gatehouse_mcp_services.{name}.hosts: each of {', '.join(placement)} would keep other data; name one"
                        " host"
                    )
                if host in placement:
                    fleet.hosts[host][name] = service
        self.check_ports({name: ports[name] for services in fleet.hosts.values() for name in services})
        for host, services in fleet.hosts.items():
            for name, service in services.items():
                service["port"] = ports[name]
                shared = {
                    key: service[key]
                    for key in (
                        "title",
                        "hostname",
                        "url",
                        "allow",
                        "origins",
                        "scopes",
                        "tool_groups",
                        "port",
                        "health_path",
                        "affinity",
                    )
                }
                known = fleet.services.setdefault(name, {**shared, "hosts": []})
                known["hosts"].append(host)
                for key, value in shared.items():
                    if known[key] != value:
                        self.problem(
                            f"gatehouse_mcp_services.{name}.{key}: differs between hosts; give it once for all"
                        )
        self.check_hostnames(fleet)
        for host, variables in self.hosts.items():
            default = variables.get("gatehouse_default_resource")
            if default and default not in fleet.services:
                self.problem(
                    f"gatehouse_default_resource: {default} is not one of the services; name one of"
                    f" {', '.join(sorted(fleet.services))}",
                    host,
                )
        return fleet

    def declared(self, host: str) -> dict[str, dict[str, Any]]:
        """The services that a host's variables declare, merged by name."""
        layers = []
        for layer in LAYERS:
            value = self.hosts[host].get(layer) or {}
            if not isinstance(value, Mapping):
                continue  # check_variables has said so
            for name, service in value.items():
                if service is not None and not isinstance(service, Mapping):
                    self.problem(
                        f"{layer}.{name}: is not a mapping; write {{}} to take all from the catalogue", host
                    )
            layers.append(
                {
                    name: service
                    for name, service in value.items()
                    if service is None or isinstance(service, Mapping)
                }
            )
        return merge_services(*layers)

    def check_ports(self, ports: Mapping[str, int]) -> None:
        """No two services share a port, and each is one that a service may have."""
        owners: dict[int, str] = {}
        for name, port in sorted(ports.items()):
            where = f"gatehouse_mcp_services.{name}.port"
            if port % 2 or not 1024 <= port <= 65534 or port in PORTS_TAKEN:
                self.problem(
                    f"{where}: {port} is not an even port from 1024 to 65534 other than"
                    f" {', '.join(map(str, PORTS_TAKEN))}; choose another"
                )
            if port in owners:
                # Not the next free one: a service that comes would then take the port of one that is there.
                self.problem(
                    f"{where}: {port} is also the port of {owners[port]}; give the newer of the two another"
                )
            owners[port] = name

    def check_hostnames(self, fleet: Fleet) -> None:
        """No two services share a host name, and none has the issuer's."""
        owners = {"auth": "the auth service"}
        for name, service in sorted(fleet.services.items()):
            hostname = service["hostname"]
            if hostname in owners:
                self.problem(
                    f"gatehouse_mcp_services.{name}.hostname: {hostname} is also the host name of {owners[hostname]}; choose another"
                )
            owners[hostname] = name

    def service(self, host: str, name: str, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """One service, checked and completed; None where it is too broken to go on."""
        where = f"gatehouse_mcp_services.{name}"
        if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > NAME_MAX:
            self.problem(
                f"{where}: is not a service name; use up to {NAME_MAX} lower-case letters, digits and single hyphens, beginning with a letter",
                host,
            )
            return None
        if name in RESERVED_NAMES:
            self.problem(f"{where}: is a name that Gatehouse uses itself; choose another", host)
            return None
        for key in sorted(set(given) - set(self.service_options)):
            self.problem(
                f"{where}.{key}: unknown key{self.suggest(key, self.service_options)}; known are {', '.join(sorted(self.service_options))}",
                host,
            )
        if not self.check_mappings(host, where, given):
            return None
        # Secrets never reach the validator: its messages quote what they refuse.
        known = {
            key: value
            for key, value in given.items()
            if key in self.service_options and key not in ("secrets", "secrets_per_user")
        }
        before = len(self.found)
        known = self.check_types(f"{where}.", known, self.service_options, host)
        if len(self.found) > before:
            return None

        source = self.source(host, where, name, known)
        allow = known.get("allow", self.hosts[host].get("gatehouse_allow")) or {}
        if not isinstance(allow, Mapping) or not any(allow.get(key) for key in ALLOW):
            self.problem(
                f"{where}.allow: the allow-list is empty and would let no one in; name users, emails or groups here or in"
                " gatehouse_allow, or write {everyone: true}",
                host,
            )
            allow = {}
        hostname = known.get("hostname", name)
        if not LABEL.fullmatch(hostname):
            self.problem(
                f"{where}.hostname: is not a host name's first label; use lower-case letters, digits and hyphens",
                host,
            )
        for origin in known.get("origins", []):
            if not ORIGIN.fullmatch(origin):
                self.problem(
                    f"{where}.origins: {origin} is not an origin; write scheme and host alone, https://app.example.com",
                    host,
                )
        for network in known.get("egress", []):
            if network not in ("any", "public") and not self.is_network(network):
                self.problem(
                    f"{where}.egress: {network} is not a network; write 10.0.0.0/8, 10.1.2.3, public or any",
                    host,
                )
        domain = self.hosts[host].get("gatehouse_domain")
        if source is None:
            return None
        title = source.pop("title", name)
        self.check_limits(host, where, known)
        self.check_children(host, where, given, source)
        self.check_health_path(host, where, known.get("health_path"), source)
        for variable, value in (given.get("env") or {}).items():
            # The bridge's children have theirs from JSON, others from a file of lines.
            if source["transport"] != "stdio" and re.search(r"[\n\r\0]", str(value)):
                self.problem(f"{where}.env.{variable}: has a line break; write one line", host)
        rules, denied = known.get("tools") or {}, source.pop("deny", [])
        if denied:
            rules = {**rules, "deny": [*denied, *(rules.get("deny") or [])]}
        tools = self.tools(host, where, rules, source["transport"])
        return {
            "title": known.get("title") or title,
            "tools": tools,
            "tool_groups": sorted(tools.get("groups", {})),
            "hostname": hostname,
            "url": f"https://{hostname}.{domain}/mcp",
            "allow": {key: allow.get(key, False if key == "everyone" else []) for key in ALLOW},
            "origins": known.get("origins", []),
            "scopes": ["mcp"],
            "port": known.get("port"),
            "placement": self.placement(host, where, known.get("hosts", "gateway_mcp")),
            "env": {
                key: str(value) for key, value in {**source.pop("env"), **(given.get("env") or {})}.items()
            },
            "secret_names": sorted(given.get("secrets") or {}),
            "personal_secret_names": sorted(given.get("secrets_per_user") or {}),
            "egress": [*source.pop("egress"), *known.get("egress", [])],
            **source,
            **{
                key: known[key]
                for key in (*SERVICE_LIMITS, "health_path", "affinity", *CHILD_LIMITS)
                if key in known
            },
        }

    def check_health_path(self, host: str, where: str, path: str | None, source: Mapping[str, Any]) -> None:
        """The bridge and the native services have theirs; others say it, as a path alone."""
        if path is None:
            return
        if source["transport"] != "http":
            self.problem(
                f"{where}.health_path: only a service of transport http has a path of its own; remove the key",
                host,
            )
        elif not HEALTH_PATH.fullmatch(path):
            self.problem(f"{where}.health_path: is not a path; write /healthz", host)

    def check_children(
        self, host: str, where: str, given: Mapping[str, Any], source: Mapping[str, Any]
    ) -> None:
        """What is there for children of the bridge alone stands at a service that has some, in a form that it knows."""
        for key in ("secrets_per_user", *CHILD_LIMITS):
            if given.get(key) and source["transport"] != "stdio":
                self.problem(
                    f"{where}.{key}: only a stdio server behind the bridge has children; remove the key", host
                )
        if given.get("secrets_per_user") and source["isolation"] == "shared":
            self.problem(
                f"{where}.secrets_per_user: with the isolation shared one process serves everyone; write isolation: per_user"
                " or per_session",
                host,
            )

    def check_limits(self, host: str, where: str, known: Mapping[str, Any]) -> None:
        """Limits are of a form that systemd and the kernel know."""
        for key, (form, example) in (SERVICE_LIMITS | CHILD_LIMITS).items():
            if key in known and not form.fullmatch(str(known[key])):
                self.problem(f"{where}.{key}: is not of the known form; write {example}", host)

    def tools(self, host: str, where: str, given: Mapping[str, Any], transport: str) -> dict[str, Any]:
        """Per-tool rules as the services read them (`GATEHOUSE_TOOLS`); empty where there are none."""
        rules = {key: value for key, value in given.items() if value is not None}
        if not rules:
            return {}
        if transport == "http":
            self.problem(
                f"{where}.tools: nobody but the service itself reads what an http service is asked; let it decide by the"
                " header X-Gatehouse-Groups, and remove the key",
                host,
            )
        groups = rules.get("groups") or {}
        for group, names in groups.items():
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                self.problem(f"{where}.tools.groups.{group}: is not a list of tools; write [<tool>]", host)
                return {}
        if "allow" not in rules and not rules.get("deny"):
            self.problem(
                f"{where}.tools.groups: gives people what everyone has; name in deny what only they shall have",
                host,
            )
        providers = self.hosts[host].get("gatehouse_providers") or {}
        known = provider_names(providers) if isinstance(providers, Mapping) else []
        return {**rules, "groups": {qualified(str(group), known): names for group, names in groups.items()}}

    @staticmethod
    def is_network(text: str) -> bool:
        """Whether it is an address or a network, of either family."""
        try:
            ipaddress.ip_network(text)
        except ValueError:
            return False
        return True

    def check_mappings(self, host: str, where: str, given: Mapping[str, Any]) -> bool:
        """`env` and the secrets are mappings with usable names, and no secret is too short."""
        fine = True
        for key in ("env", "secrets", "secrets_per_user"):
            value = given.get(key) or {}
            if not isinstance(value, Mapping):
                self.problem(f"{where}.{key}: is not a mapping; write NAME: value below it", host)
                return False
            for variable in value:
                if not isinstance(variable, str) or not ENV_NAME.fullmatch(variable):
                    self.problem(
                        f"{where}.{key}.{variable}: is not the name of an environment variable; use letters, digits and _",
                        host,
                    )
                    fine = False
                # A truth has several spellings.
                elif key == "env" and (
                    isinstance(value[variable], bool) or not isinstance(value[variable], str | int | float)
                ):
                    self.problem(f"{where}.env.{variable}: is not text; write it in quotes", host)
                    fine = False
                elif variable.startswith("GATEHOUSE_"):
                    self.problem(
                        f"{where}.{key}.{variable}: names that begin with GATEHOUSE_ are Gatehouse's own; choose another",
                        host,
                    )
                    fine = False
        for variable, secret in (given.get("secrets") or {}).items():
            if not isinstance(secret, str) or len(secret) < SECRET_MIN:
                self.problem(
                    f"{where}.secrets.{variable}: is too short or not text; use at least {SECRET_MIN} characters",
                    host,
                )
                fine = False
        for variable, users in (given.get("secrets_per_user") or {}).items():
            if not isinstance(users, Mapping) or not users:
                self.problem(
                    f"{where}.secrets_per_user.{variable}: is not a mapping of people; write <user>: <secret> below it",
                    host,
                )
                fine = False
                continue
            for user, secret in users.items():
                if not isinstance(secret, str) or len(secret) < SECRET_MIN:
                    self.problem(
                        f"{where}.secrets_per_user.{variable}.{user}: is too short or not text; use at least {SECRET_MIN}"
                        " characters",
                        host,
                    )
                    fine = False
        return fine

    def placement(self, host: str, where: str, pattern: str) -> list[str]:
        """The hosts of a service's pattern; every one must be in `gateway_mcp`."""
        members = self.groups.get("gateway_mcp", [])
        hosts = self.resolve(pattern)
        strangers = [name for name in hosts if name not in members]
        if not hosts:
            self.problem(f"{where}.hosts: {pattern} matches no host; correct the pattern", host)
        if strangers:
            self.problem(
                f"{where}.hosts: {', '.join(strangers)} is not in the group gateway_mcp; add it there or correct the pattern",
                host,
            )
        return [name for name in hosts if name in members]

    def source(self, host: str, where: str, name: str, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """What runs: from the catalogue, from a package, or a command that is on the host."""
        package, command = given.get("package"), given.get("command")
        if package is None and command is None:
            entry_name = given.get("catalogue", name)
            entry = self.catalogue.get(entry_name)
            if entry is None:
                self.problem(
                    f"{where}: {entry_name} is not in the catalogue{self.suggest(entry_name, self.catalogue)}; it has"
                    f" {', '.join(sorted(self.catalogue))}; or name a package or a command",
                    host,
                )
                return None
            return self.from_catalogue(host, where, entry_name, entry, given)
        if "catalogue" in given:
            self.problem(f"{where}.catalogue: stands beside a package or command; keep one of them", host)
        common = {
            "transport": given.get("transport", "stdio"),
            "isolation": given.get("isolation", "per_session"),
            # Room for a few dozen children of the bridge.
            "memory_max": "1G",
            **LIMITS,
            "keeps": False,
            "sandbox": {},
            "loopback": "open",
            "confine": True,
            "module": None,
            "npm": False,
            "env": {},
            "egress": [],
            "debian_packages": [],
            "health_path": "/health" if given.get("transport", "stdio") == "stdio" else None,
            "affinity": True,
        }
        if package is None:
            command = command or [""]
            if not command[0].startswith("/"):
                self.problem(
                    f"{where}.command: without a package the first element must be the full path of a program on the host",
                    host,
                )
            return {**common, "command": [*command, *given.get("args", [])], "package": None, "lock": None}
        match = PYPI_PACKAGE.fullmatch(package) or NPM_PACKAGE.fullmatch(package)
        if match is None:
            self.problem(
                f"{where}.package: is not a package with an exact version; write pypi:<name>==<version> or"
                " npm:<name>==<version>",
                host,
            )
            return None
        lock = given.get("lock")
        if lock and not os.path.isfile(os.path.expanduser(lock)):
            self.problem(
                f"{where}.lock: there is no such file on the controller; correct the path or remove the key",
                host,
            )
        return {
            **common,
            "command": [*(command or [match["name"]]), *given.get("args", [])],
            "package": package,
            "npm": package.startswith("npm:"),
            "lock": os.path.expanduser(lock) if lock else None,
        }

    def from_catalogue(
        self, host: str, where: str, entry_name: str, entry: Mapping[str, Any], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """A service that takes all from its catalogue entry; the operator may only add."""
        native = entry["pattern"] == "native"
        args = given.get("args", [])
        if args and (native or not entry.get("args_append")):
            self.problem(f"{where}.args: {entry_name} takes no arguments; remove them", host)
        # Isolation that an entry names is part of its safety.
        for key in ("transport", "lock") + (("isolation",) if native or "isolation" in entry else ()):
            if key in given:
                self.problem(
                    f"{where}.{key}: {entry_name} comes from the catalogue, which fixes it; remove the key",
                    host,
                )
        if entry.get("shared_state") and "allow" not in given:
            self.problem(
                f"{where}.allow: all who may use {entry_name} share what it keeps, so the general allow-list does not"
                " apply; name here who they are",
                host,
            )
        lock = entry.get("lock")
        return {
            "transport": "native" if native else "stdio",
            "isolation": given.get("isolation", entry.get("isolation", "per_session")),
            "memory_max": entry.get("memory_max", "512M"),
            **LIMITS,
            "child_tasks_max": entry.get("child_tasks_max", LIMITS["child_tasks_max"]),
            "keeps": entry.get("state", False),
            "sandbox": entry.get("sandbox", {}),
            "loopback": entry.get("loopback", "open"),
            "confine": entry.get("confine", True),
            "deny": entry.get("deny", []),
            "title": entry["title"],
            "module": entry.get("module"),
            "command": [*entry.get("command", []), *args],
            "package": entry.get("package"),
            "lock": lock,
            "npm": os.path.basename(lock or "") == PACKAGE_LOCK,
            "env": entry.get("env", {}),
            "egress": entry.get("egress", []),
            "debian_packages": entry.get("packages", []),
            "catalogue": True,
            "health_path": "/health",
            "affinity": entry.get("affinity", True),
        }
