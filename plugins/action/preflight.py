# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Controller side of `gatehouse.mcp.preflight`: opens no connection."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import lookup_loader
from ansible_collections.gatehouse.mcp.plugins.filter.services import peer_address
from ansible_collections.gatehouse.mcp.plugins.module_utils.certificates import certificate_faults
from ansible_collections.gatehouse.mcp.plugins.module_utils.fleet import (
    GROUPS,
    Fleet,
    Inspector,
    read_catalogue,
    read_options,
)


def plain(value: Any) -> Any:
    """A copy in plain containers, so that what is lazy is templated here, where a fault can be reported."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value


class ActionModule(ActionBase):
    """Reads the whole inventory; returns the fleet, or fails with every problem."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `services` and `hosts`, or fail with `problems`."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        collection = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        groups = {group: list(variables["groups"].get(group, [])) for group in GROUPS}
        broken: list[str] = []
        inspector = Inspector(
            hosts={
                host: {
                    "gatehouse_address": peer_address(host, "", variables["hostvars"]),
                    **self._public(variables["hostvars"][host], broken),
                }
                for host in dict.fromkeys(host for group in GROUPS for host in groups[group])
            },
            groups=groups,
            resolve=lambda pattern: self._resolve(pattern, variables),
            catalogue=read_catalogue(os.path.join(collection, "files", "mcp_services", "catalogue")),
            variables=read_options(os.path.join(collection, "roles"), "preflight"),
            service=read_options(os.path.join(collection, "roles"), "mcp_service", "service"),
        )
        fleet = inspector.inspect()
        problems = [
            *self._left_out(groups, variables),
            *dict.fromkeys(broken),
            *fleet.problems,
            *self._certificates(inspector.hosts, groups["gateway_edge"], fleet),
        ]
        if problems:
            result.update(
                failed=True,
                problems=problems,
                msg=f"The inventory has {len(problems)} problem{'s' if len(problems) > 1 else ''}; no host was touched:\n"
                + "\n".join(f"- {problem}" for problem in problems),
            )
        else:
            result.update(changed=False, services=fleet.services, hosts=fleet.hosts)
        return result

    @staticmethod
    def _public(variables: Mapping[str, Any], broken: list[str]) -> dict[str, Any]:
        """The `gatehouse_` variables of a host; one that cannot be templated is a problem of its own."""
        public: dict[str, Any] = {}
        for name in variables:
            if str(name).startswith("gatehouse_"):
                try:
                    public[name] = plain(variables[name])
                except AnsibleError:
                    # The message is left out: it may quote a secret that stands beside the fault.
                    broken.append(f"{name}: cannot be templated; check the variables that it refers to")
        return public

    def _left_out(self, groups: Mapping[str, list[str]], variables: Mapping[str, Any]) -> list[str]:
        """What a `--limit` leaves out that the run cannot do without."""
        complete = self._task.args.get("complete", [])
        needed = {host for group in complete for host in groups[group]}
        left_out = sorted(needed.difference(variables["ansible_play_hosts_all"]))
        if not left_out:
            return []
        return [
            f"--limit: this run needs every host of {', '.join(complete)}, and is without {', '.join(left_out)}; leave"
            " out --limit, or name them as well"
        ]

    def _certificates(
        self, hosts: Mapping[str, Mapping[str, Any]], edges: list[str], fleet: Fleet
    ) -> list[str]:
        """What is wrong with the operator's own certificates, each once however many edges show it."""
        names = [str(urlsplit(service["url"]).hostname) for service in fleet.services.values()]
        problems: dict[str, None] = {}
        for given in (hosts[edge] for edge in edges):
            files = [
                os.path.abspath(os.path.expanduser(str(given.get(name) or "")))
                for name in ("gatehouse_tls_certificate", "gatehouse_tls_key")
            ]
            # That they are there, the inspector has checked.
            if given.get("gatehouse_tls") == "files" and all(map(os.path.isfile, files)):
                certificate, key = map(self._read, files)
                wanted = [f"auth.{given.get('gatehouse_domain')}", *names]
                faults = certificate_faults(certificate, key, wanted)
                problems |= {f"gatehouse_tls_{part}: {fault}": None for part, fault in faults}
        return list(problems)

    def _read(self, path: str) -> bytes:
        """A file on the controller as the role reads it, which may be encrypted with a vault."""
        lookup = lookup_loader.get("ansible.builtin.file", loader=self._loader, templar=self._templar)
        return str(lookup.run([path], variables={})[0]).encode()

    def _resolve(self, pattern: str, variables: dict[str, Any]) -> list[str]:
        lookup = lookup_loader.get(
            "ansible.builtin.inventory_hostnames", loader=self._loader, templar=self._templar
        )
        return [str(host) for host in lookup.run([pattern], variables=variables)]
