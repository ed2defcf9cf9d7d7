# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""A lab of real systemd hosts on this machine; see DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab
short_description: Boot a lab of systemd hosts on this machine, or remove every trace of it
description:
  - Each host is a C(systemd-nspawn) machine with a file system, network address and SSH key of its own. The root
    file system is built once for each Debian release with C(mmdebstrap) and copied for each host.
  - A lab has a bridge with a /24 from 198.18.0.0/15 (RFC 2544), an nftables table, a C(dnsmasq) for its domain and
    a marked block in C(/etc/hosts). All of it is named after the number of the /24, C(ghlab<number>).
  - Whoever uses what is remembered in C(/run/gatehouse-lab) before it is made, so teardown finds it after a crash.
  - Every process of a lab is in one control group, so that teardown can end it whoever started it.
options:
  name:
    description: Name of the lab.
    type: str
    required: true
  state:
    description: Whether the lab is up or gone.
    type: str
    choices: [present, absent]
    default: present
  folder:
    description: The lab's own folder, for keys, inventory and the hosts' file systems.
    type: path
    required: true
  cache:
    description: Folder of the root file systems that labs share.
    type: path
  domain:
    description: The lab's domain. Every name below it is the first C(gateway_edge) host.
    type: str
  names:
    description: Names below the domain that this machine itself can resolve.
    type: list
    elements: str
    default: []
  hosts:
    description: The hosts of the lab.
    type: list
    elements: dict
    default: []
    options:
      name:
        description: Name of the host.
        type: str
        required: true
      release:
        description: Debian release.
        type: str
        choices: [bookworm, trixie]
        default: trixie
      groups:
        description: Inventory groups of the host.
        type: list
        elements: str
        default: [gateway_edge, gateway_redis, gateway_mcp]
notes:
  - Needs root. Supports check mode.
author: Gatehouse contributors
"""

EXAMPLES = r"""
- name: Boot a lab with one host
  gatehouse.mcp.lab:
    name: demo
    folder: .lab/demo
    cache: .cache/lab
    domain: gatehouse.test
    names: [auth, echo]
    hosts: [{name: gate1}]
"""

RETURN = r"""
hosts:
  description: Address of each host.
  type: dict
  returned: when the lab is up
changes:
  description: What was done, or would be.
  type: list
  elements: str
  returned: always
"""

import contextlib
import dataclasses
import hashlib
import ipaddress
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gatehouse.mcp.plugins.module_utils.lab_root import (
    LabError,
    RootCache,
    locked,
    mounts_below,
    remove_tree,
    run,
)

NETWORK = ipaddress.ip_network("198.18.0.0/15")
REGISTRY = Path("/run/gatehouse-lab")
HOSTS_FILE = Path("/etc/hosts")
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
BOOT_SECONDS = 60
# program: the Debian package that brings it
PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "dnsmasq": "dnsmasq-base",
    "nft": "nftables",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}


@dataclasses.dataclass(frozen=True)
class Host:
    """A host as the inventory wants it, with its address."""

    name: str
    release: str
    groups: tuple[str, ...]
    address: str


@dataclasses.dataclass(frozen=True)
class Subnet:
    """One of the 512 networks that labs take; everything outside a lab's folder is named after its number."""

    number: int

    @property
    def network(self) -> ipaddress.IPv4Network:
        """The /24 itself."""
        return ipaddress.IPv4Network((int(NETWORK.network_address) + 256 * self.number, 24))

    @property
    def gateway(self) -> str:
        """This machine's address in it; also the lab's DNS server."""
        return str(self.network[1])

    @property
    def name(self) -> str:
        """Name of the bridge, of the nftables table, of the control group and, with a suffix, of the machines."""
        return f"ghlab{self.number}"


def free_number(taken: Iterable[int], used: Iterable[str], preferred: int | None) -> int:
    """A /24 that no lab and no route of this machine uses.

    Args:
        taken: numbers of other labs.
        used: networks in use, in CIDR notation.
        preferred: what this lab had before.

    Raises:
        LabError: All are taken.
    """
    networks = [ipaddress.ip_network(network, strict=False) for network in used]
    others = set(taken)
    for number in [*([] if preferred is None else [preferred]), *range(512)]:
        network = Subnet(number).network
        if number not in others and not any(network.overlaps(other) for other in networks):
            return number
    raise LabError(f"Every /24 of {NETWORK} is in use on this machine; take a lab down first.")


def assign_addresses(subnet: Subnet, wanted: list[dict[str, Any]], before: dict[str, str]) -> list[Host]:
    """Give every wanted host an address: the one it had, else the next that is free.

    Args:
        subnet: the lab's network.
        wanted: name, release and groups of each host.
        before: last number of the address of each host that the lab had.
    """
    numbers = {host["name"]: int(before[host["name"]]) for host in wanted if host["name"] in before}
    free = (number for number in range(2, 255) if number not in numbers.values())
    return [
        Host(
            name=host["name"],
            release=host["release"],
            groups=tuple(host["groups"]),
            address=str(subnet.network[numbers.get(host["name"]) or next(free)]),
        )
        for host in wanted
    ]


def with_block(text: str, marker: str, lines: Sequence[str]) -> str:
    """`text` with the marked block made of `lines`, or without it when there are none."""
    begin, end = f"# BEGIN {marker}", f"# END {marker}"
    without = re.sub(rf"^{re.escape(begin)}\n.*?^{re.escape(end)}\n", "", text, flags=re.DOTALL | re.MULTILINE)
    if not lines:
        return without
    if without and not without.endswith("\n"):
        without += "\n"
    return without + "\n".join([begin, *lines, end]) + "\n"


def packet_rules(subnet: Subnet) -> str:
    """The way out for a lab, and nothing into it: not from outside, not from another lab."""
    return f"""\
table ip {subnet.name} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {subnet.network} oifname != "{subnet.name}" masquerade
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    oifname "{subnet.name}" iifname != "{subnet.name}" ct state != {{ established, related }} drop
  }}
}}
"""


def dns_settings(subnet: Subnet, domain: str, edges: Sequence[Host]) -> str:
    """dnsmasq for one lab: every name of the domain is an edge, the rest goes to this machine's resolver."""
    lines = [
        "# Made by lab_up.",
        "bind-interfaces",
        f"interface={subnet.name}",
        "except-interface=lo",
        f"listen-address={subnet.gateway}",
        "no-hosts",
        "pid-file",
        f"local=/{domain}/",
        *(f"address=/{domain}/{edge.address}" for edge in edges),
    ]
    return "\n".join(lines) + "\n"


def inventory(
    hosts: Sequence[Host], domain: str, folder: Path, password_hash: str
) -> dict[str, Any]:
    """The lab as `ansible-inventory --list` prints it; `inventory/lab` hands it to Ansible."""
    connection = [
        "-o", f"UserKnownHostsFile={folder / 'known_hosts'}", "-o", "GlobalKnownHostsFile=/dev/null",
        "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes",
    ]  # fmt: skip
    hostvars = {
        host.name: {
            "ansible_host": host.address,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(folder / "id_ed25519"),
            "ansible_ssh_common_args": shlex.join(connection),
            "lab_domain": domain,
            "lab_password_hash": password_hash,
        }
        for host in hosts
    }
    groups = sorted({group for host in hosts for group in host.groups})
    return {
        "_meta": {"hostvars": hostvars},
        **{group: {"hosts": [host.name for host in hosts if group in host.groups]} for group in groups},
    }


class Services:
    """Long-running processes of a lab, each in a control group below the lab's own.

    Under systemd they are transient units in a slice of the lab; elsewhere the same groups are made by hand.
    """

    def __init__(self, slice_name: str) -> None:
        self.slice = f"{slice_name}.slice"
        self.systemd = os.path.isdir("/run/systemd/system")  # sd_booted(3)
        self.folder = self.unified() / self.slice

    @staticmethod
    def unified() -> Path:
        """Where the second version of control groups is mounted.

        Raises:
            LabError: It is not, or not writable.
        """
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, point, kind, options, *_ = line.split()
            if kind == "cgroup2" and "rw" in options.split(","):
                return Path(point)
        raise LabError("The lab needs control groups version 2, mounted writable; this machine has none.")

    def running(self, service: str) -> bool:
        """Whether any process of the service lives."""
        try:
            events = (self.folder / f"{service}.service" / "cgroup.events").read_text()
        except FileNotFoundError:
            return False
        return "populated 1" in events

    def start(self, service: str, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        """Start a service that outlives this process."""
        if self.systemd:
            settings = [f"--setenv={key}={value}" for key, value in environment.items()]
            run([
                "systemd-run", "--quiet", "--collect", f"--unit={service}", f"--slice={self.slice}",
                "--property=Delegate=yes", "--property=KillMode=mixed", f"--property=StandardOutput=append:{log}",
                *settings, *command,
            ])  # fmt: skip
            return
        group = self.folder / f"{service}.service"
        group.mkdir(parents=True, exist_ok=True)
        entered = ["sh", "-c", 'echo 0 > "$1/cgroup.procs" && shift && exec "$@"', "sh", str(group), *command]
        with log.open("ab") as output:
            subprocess.Popen(
                entered, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env={**os.environ, **environment},
            )  # fmt: skip

    def stop(self, service: str | None = None) -> bool:
        """Kill a service, or all of them, and whatever they started; say whether there was anything."""
        group = self.folder / f"{service}.service" if service else self.folder
        if not group.is_dir():
            return False
        (group / "cgroup.kill").write_text("1")
        if self.systemd:
            run(["systemctl", "stop", f"{service}.service" if service else self.slice])
        for _ in range(200):
            if not group.is_dir():
                return True
            with contextlib.suppress(OSError):  # busy until the last process is reaped
                for below, _, _ in os.walk(group, topdown=False):
                    os.rmdir(below)
            time.sleep(0.05)
        raise LabError(f"Processes of {group} did not end within 10 seconds of SIGKILL.")


class Lab:
    """One lab, made present or absent step by step; each step looks first and acts only if it must."""

    def __init__(self, name: str, folder: Path, *, check: bool) -> None:
        self.name = name
        self.folder = folder
        self.check = check
        self.changes: list[str] = []

    # Present

    def up(
        self, domain: str, names: Sequence[str], wanted: list[dict[str, Any]], cache: RootCache
    ) -> dict[str, str]:
        """Make the lab be there and running.

        Returns:
            The address of each host.

        Raises:
            LabError: This machine cannot run a lab, or a step failed; running it again goes on from there.
        """
        require(PROGRAMS)
        probe()
        refuse_foreign_names(HOSTS_FILE.read_text(), self._marker(), [f"{name}.{domain}" for name in names])
        if self.check and not self.folder.is_dir():
            self.changes.append(f"make the lab {self.name}")
            return {}
        with locked(self.folder) as lock:
            known = self._load()
            subnet = self._claim(known.get("number"))
            hosts = assign_addresses(subnet, wanted, known.get("hosts", {}))
            services = Services(subnet.name)
            self._network(subnet)
            self._keys()
            for host in hosts:
                self._create(subnet, host, cache, lock)
            self._write(self.folder / "lab.json", json.dumps(self._record(subnet, hosts), indent=2) + "\n", 0o600)
            self._drop_others(subnet, services, hosts)
            self._dns(subnet, services, domain, [host for host in hosts if "gateway_edge" in host.groups])
            self._names(subnet, hosts, domain, names)
            started = [host for host in hosts if self._boot(subnet, services, host)]
            listed = inventory(hosts, domain, self.folder, self._password_hash())
            self._write(self.folder / "inventory.json", json.dumps(listed, indent=2) + "\n", 0o600)
            if not self.check:
                for host in hosts:
                    self._await(subnet, services, host, fresh=host in started)
            return {host.name: host.address for host in hosts}

    def _marker(self) -> str:
        return f"gatehouse lab {self.folder}"
