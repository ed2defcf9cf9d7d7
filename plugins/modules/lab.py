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
author: Gatehouse contributors (!UNKNOWN)
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
import importlib.util
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
    RELEASES,
    LabError,
    RootCache,
    locked,
    remove_tree,
    run,
)

NETWORK = ipaddress.IPv4Network("198.18.0.0/15")
REGISTRY = Path("/run/gatehouse-lab")
HOSTS_FILE = Path("/etc/hosts")
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
EDGES = "gateway_edge"
REBOOT_STATUS = 133  # nspawn's, of a machine that wants to be booted again
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
        """Address of this machine in it; also the lab's DNS server."""
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
    networks = [ipaddress.IPv4Network(network, strict=False) for network in used]
    others = set(taken)
    candidates: list[int] = list(range(512)) if preferred is None else [preferred, *range(512)]
    for number in candidates:
        network = Subnet(number).network
        if number not in others and not any(network.overlaps(other) for other in networks):
            return number
    raise LabError(f"Every /24 of {NETWORK} is in use on this machine; take a lab down first.")


def assign_addresses(subnet: Subnet, wanted: list[dict[str, Any]], before: dict[str, str]) -> list[Host]:
    """Give every wanted host an address: the one it had, else the next that is free.

    Args:
        subnet: the lab's network.
        wanted: name, release and groups of each host.
        before: address of each host that the lab had, maybe in another network.
    """
    numbers = {
        host["name"]: int(before[host["name"]].rpartition(".")[2])
        for host in wanted
        if host["name"] in before
    }
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
    begin, end = f"# BEGIN {marker}\n", f"# END {marker}\n"
    block = begin + "".join(f"{line}\n" for line in lines) + end if lines else ""
    present = re.compile(rf"^{re.escape(begin)}.*?^{re.escape(end)}", re.DOTALL | re.MULTILINE)
    if present.search(text):
        return present.sub(lambda _: block, text, count=1)
    return text + ("\n" if block and text and not text.endswith("\n") else "") + block


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


def dns_settings(subnet: Subnet, domain: str, hosts: Sequence[Host]) -> str:
    """Settings of dnsmasq for one lab.

    Every name of the domain is an edge, save those of the other hosts; the rest goes to this machine's resolver.
    """
    lines = [
        "# Made by lab_up.",
        "bind-interfaces",
        f"listen-address={subnet.gateway}",
        "no-hosts",
        "pid-file",
        f"local=/{domain}/",
        *(
            f"address=/{domain}/{host.address}"
            if EDGES in host.groups
            else f"host-record={host.name}.{domain},{host.address}"
            for host in hosts
        ),
    ]
    return "\n".join(lines) + "\n"


def inventory(
    hosts: Sequence[Host], domain: str, folder: Path, sockets: Path, password_hash: str
) -> dict[str, Any]:
    """The lab as `ansible-inventory --list` prints it; `inventory/lab` hands it to Ansible."""
    hostvars = {
        host.name: {
            "ansible_host": host.address,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(folder / "id_ed25519"),
            "ansible_ssh_common_args": shlex.join(connection_options(folder)),
            "ansible_control_path_dir": str(sockets),
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

    Under systemd they are transient scopes in a slice of the lab; elsewhere the same groups are made by hand.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.slice = f"{name}.slice"
        self.systemd = os.path.isdir("/run/systemd/system")  # sd_booted(3)
        self.folder = control_group_mounts()[0] / self.slice

    def running(self, service: str) -> bool:
        """Whether the service's own process lives; what it started may outlive it, and does not count."""
        group = self.folder / f"{service}.scope"
        # nspawn moves itself into a group below its own, beside that of the machine's processes.
        return any(read_or_empty(folder / "cgroup.procs") for folder in (group, group / "supervisor"))

    def inside(self, service: str, command: Sequence[str]) -> list[str]:
        """The command, made to enter the service's group before it runs."""
        if self.systemd:
            options = [
                "--quiet",
                "--collect",
                "--property=Delegate=yes",
                f"--slice={self.slice}",
                f"--unit={service}",
            ]
            return ["systemd-run", "--scope", *options, *command]
        group = self.folder / f"{service}.scope"
        group.mkdir(parents=True, exist_ok=True)
        return ["sh", "-c", 'echo 0 > "$1/cgroup.procs" && shift && exec "$@"', "sh", str(group), *command]

    def execute(
        self, command: list[str], text: str, descriptors: tuple[int, ...]
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; see `Execute`. Teardown ends it, or waits for the locks that it keeps."""
        task = f"{self.name}-task-{secrets.token_hex(4)}"
        done = subprocess.run(
            self.inside(task, command), input=text, capture_output=True, text=True, check=False,
            pass_fds=descriptors,
        )  # fmt: skip
        self.stop(task)
        return done

    def start(
        self, service: str, command: Sequence[str], log: Path, environment: dict[str, str], again: int = 0
    ) -> None:
        """Start a service that outlives this process, after ending what is left of it.

        Args:
            service: name of its group.
            command: what to run.
            log: file that its output is appended to.
            environment: added to that of this process.
            again: exit status after which it is to be started again.
        """
        self.stop(service)
        entered = self.inside(service, command)
        if again:
            # In a group of its own: groups with processes of their own cannot pass controllers on.
            loop = ["sh", "-c", f'while "$@"; [ $? = {again} ]; do sleep 1; done', "sh", *entered]
            entered = self.inside(keeper_name(service), loop)
        with log.open("ab") as output:
            process = subprocess.Popen(
                entered, env={**os.environ, **environment}, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        while process.poll() is None and not self.running(service):
            time.sleep(0.01)

    def stop(self, service: str | None = None) -> None:
        """Kill a service, or all of them, and whatever they started.

        Raises:
            LabError: They do not end.
        """
        if service is None:
            self._kill(self.slice, self.slice)
        else:
            for unit in (f"{keeper_name(service)}.scope", f"{service}.scope"):
                self._kill(unit, f"{self.slice}/{unit}")

    def _kill(self, unit: str, name: str) -> None:
        if self.systemd:
            run(["systemctl", "kill", "--signal=KILL", unit], check=False)  # it may not be there
            run(["systemctl", "stop", unit], check=False)
        with contextlib.suppress(FileNotFoundError):
            (self.folder.parent / name / "cgroup.kill").write_text("1")
        # nspawn makes groups of the same name in the older hierarchies, where there are any.
        groups = [mount / name for mount in control_group_mounts()]
        for _ in range(200):
            for group in groups:
                with contextlib.suppress(OSError):  # busy until the last process is reaped
                    for below, _, _ in os.walk(group, topdown=False):
                        os.rmdir(below)
            if not any(group.is_dir() for group in groups):
                return
            time.sleep(0.05)
        raise LabError(f"Processes of {name} did not end within 10 seconds of SIGKILL.")


def keeper_name(service: str) -> str:
    """The group of what starts a service again."""
    return f"{service}-keeper"


def read_or_empty(path: Path) -> str:
    """Text of a file, or nothing where it is not."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def control_group_mounts() -> list[Path]:
    """Where control groups are mounted: the second version first, then what older hierarchies there are.

    Raises:
        LabError: The second version is not mounted, or not writable.
    """
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    unified = [
        Path(point)
        for _, point, kind, options, *_ in mounts
        if kind == "cgroup2" and "rw" in options.split(",")
    ]
    if not unified:
        raise LabError("The lab needs control groups version 2, mounted writable; this machine has none.")
    return unified + [Path(point) for _, point, kind, *_ in mounts if kind == "cgroup"]


class Lab:
    """One lab, made present or absent step by step; each step looks first and acts only if it must."""

    def __init__(self, name: str, folder: Path, *, check: bool = False) -> None:
        self.name = name
        self.folder = folder
        self.check = check
        self.changes: list[str] = []
        self.marker = f"gatehouse lab {folder}"

    def up(
        self, domain: str, names: Sequence[str], wanted: list[dict[str, Any]], cache: RootCache
    ) -> dict[str, str]:
        """Make the lab be there and running.

        Returns:
            The address of each host.

        Raises:
            LabError: This machine cannot run a lab, or a step failed; running it again goes on from there.
        """
        require_root()
        require_programs()
        require_kernel()
        addressed = [f"{name}.{domain}" for name in names]
        refuse_foreign_names(with_block(HOSTS_FILE.read_text(), self.marker, []), addressed)
        if self.check and not self.folder.is_dir():
            self.changes.append(f"make the lab {self.name}")
            return {}
        with locked(self.folder) as lock:
            known = self._known()
            subnet = self._claim(known.get("number"))
            services = Services(subnet.name)
            hosts = assign_addresses(subnet, wanted, known.get("hosts", {}))
            edges = [host for host in hosts if EDGES in host.groups]
            record = {"number": subnet.number, "hosts": {host.name: host.address for host in hosts}}
            self._write("lab.json", json.dumps(record, indent=2) + "\n")
            self._network(subnet)
            self._key("id_ed25519", f"lab {self.name}")
            self._drop_others(services, subnet, hosts)
            for host in hosts:
                self._create(services, subnet, host, cache, lock)
            self._write("known_hosts", "".join(self._host_key(host) for host in hosts))
            self._dns(services, subnet, domain, hosts)
            self._names([f"{edges[0].address} {' '.join(addressed)}"] if edges and addressed else [])
            fresh = [host for host in hosts if self._boot(services, subnet, host)]
            for host in [] if self.check else hosts:
                self._await(services, subnet, host, fresh=host in fresh)
            listed = inventory(hosts, domain, self.folder, control_folder(subnet), self._password_hash())
            self._write("inventory.json", json.dumps(listed, indent=2) + "\n")
        return {host.name: host.address for host in hosts}

    def down(self) -> None:
        """Remove every trace of the lab, whatever state a crash left it in.

        Raises:
            LabError: Something does not go away.
        """
        number = registered(self.folder)
        named = with_block(HOSTS_FILE.read_text(), self.marker, []) != HOSTS_FILE.read_text()
        if number is None and not named and not self.folder.is_dir():
            return
        require_root()
        if not self._do(f"remove the lab {self.name}"):
            return
        # A run of lab_up may live on after its ansible-playbook was killed: end what it waits for, then wait for it.
        if number is not None:
            Services(Subnet(number).name).stop()
        with locked(self.folder):
            number = registered(self.folder)
            if number is not None:
                self._release(Subnet(number))
            self._names([])
            remove_tree(self.folder)
        for shared in (self.folder.parent, REGISTRY):
            with contextlib.suppress(OSError):  # other labs are there
                shared.rmdir()

    # What lies outside the lab's folder

    def _claim(self, preferred: int | None) -> Subnet:
        """The lab's network, remembered before anything is named after it."""
        number = registered(self.folder)
        if number is not None:
            return Subnet(number)
        self.changes.append("choose a network")
        if self.check:
            return Subnet(free_number(numbers_taken(), networks_used(), preferred))
        with locked(REGISTRY):
            number = free_number(numbers_taken(), networks_used(), preferred)
            entry = REGISTRY / str(number)
            entry.with_suffix(".new").write_text(str(self.folder))
            entry.with_suffix(".new").rename(entry)
        return Subnet(number)

    def _network(self, subnet: Subnet) -> None:
        shown = run(["ip", "-json", "address", "show", "dev", subnet.name], check=False)
        links = json.loads(shown.stdout) if shown.returncode == 0 else []
        ready = (
            links
            and "UP" in links[0]["flags"]
            and any(address["local"] == subnet.gateway for address in links[0]["addr_info"])
        )
        if not ready and self._do(f"make the bridge {subnet.name}"):
            if not links:
                run(["ip", "link", "add", "name", subnet.name, "type", "bridge"])
            run(["ip", "address", "replace", f"{subnet.gateway}/24", "dev", subnet.name])
            run(["ip", "link", "set", subnet.name, "up"])
        listed = run(["nft", "list", "table", "ip", subnet.name], check=False)
        if listed.returncode and self._do(f"make the nftables table {subnet.name}"):
            run(["nft", "-f", "-"], stdin=packet_rules(subnet))
        if IP_FORWARD.read_text().strip() == "0" and self._do("let this machine forward packets"):
            with locked(REGISTRY):
                (REGISTRY / "ip_forward").write_text("0")
                IP_FORWARD.write_text("1")

    def _names(self, lines: Sequence[str]) -> None:
        """Keep the lab's names in this machine's hosts file, which other labs and other programs write as well."""
        if with_block(HOSTS_FILE.read_text(), self.marker, lines) == HOSTS_FILE.read_text():
            return
        if self._do(f"write {HOSTS_FILE}"):
            with locked(REGISTRY):
                replace_hosts_file(with_block(HOSTS_FILE.read_text(), self.marker, lines))

    def _release(self, subnet: Subnet) -> None:
        """Remove all that is named after the lab's network, and then the claim to it."""
        Services(subnet.name).stop()
        hang_up(subnet)
        for machine in (self.folder / "hosts").glob("*"):
            sweep_machine(machine_name(subnet, machine.name))
        for link in [*ports(subnet), subnet.name]:
            run(["ip", "link", "delete", link], check=False)
        if has_link(subnet.name):
            raise LabError(f"The bridge {subnet.name} cannot be deleted.")
        if run(["nft", "list", "table", "ip", subnet.name], check=False).returncode == 0:
            run(["nft", "delete", "table", "ip", subnet.name])
        with locked(REGISTRY):
            (REGISTRY / str(subnet.number)).unlink()
            before = REGISTRY / "ip_forward"
            if not numbers_taken() and before.exists():
                IP_FORWARD.write_text(before.read_text())
                before.unlink()

    # What lies in it

    def _do(self, change: str) -> bool:
        """Note a change; true if it is to be made."""
        self.changes.append(change)
        return not self.check

    def _known(self) -> dict[str, Any]:
        try:
            known: dict[str, Any] = json.loads((self.folder / "lab.json").read_text())
        except FileNotFoundError:
            return {}
        return known

    def _write(self, name: str, text: str, mode: int = 0o600) -> bool:
        """Make a file of the lab's folder be `text`, whole or not at all; true if it was not."""
        path = self.folder / name
        if path.is_file() and path.read_text() == text:
            return False
        if self._do(f"write {name}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f"{path.name}.new")
            new.write_text(text)
            new.chmod(mode)
            new.rename(path)
        return True

    def _key(self, name: str, comment: str) -> None:
        path = self.folder / name
        if not path.exists() and self._do(f"make the key {name}"):
            new = path.with_name(f"{path.name}.new")
            for half in (new, new.with_name(f"{new.name}.pub")):
                half.unlink(missing_ok=True)
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(new)])
            new.with_name(f"{new.name}.pub").rename(path.with_name(f"{path.name}.pub"))
            new.rename(path)

    def _password_hash(self) -> str:
        """The hash of the lab users' password; the password itself is made once, for the person who tries the lab."""
        path = self.folder / "password_hash"
        if not path.exists() and self._do("make the lab users' password"):
            password = secrets.token_urlsafe(15)
            self._write("password", password + "\n")
            self._write("password_hash", hash_password(password))
        return read_or_empty(path)

    # Hosts

    def _root(self, host: str) -> Path:
        return self.folder / "hosts" / host

    def _drop_others(self, services: Services, subnet: Subnet, hosts: Sequence[Host]) -> None:
        """Remove hosts that are no longer wanted, or are of another release now."""
        wanted = {host.name: host.release for host in hosts}
        for root in (self.folder / "hosts").glob("*"):
            if release_of(root) != wanted.get(root.name) and self._do(f"remove the host {root.name}"):
                services.stop(service_name(subnet, root.name))
                sweep_machine(machine_name(subnet, root.name))
                remove_tree(root)

    def _create(self, services: Services, subnet: Subnet, host: Host, cache: RootCache, lock: int) -> None:
        root = self._root(host.name)
        if not root.is_dir():
            if not self._do(f"make the host {host.name}"):
                return
            new = self.folder / f"{host.name}.partial"
            remove_tree(new)
            cache.copy(host.release, new, lock, services.execute)
            (new / "etc/machine-id").write_text(uuid.uuid4().hex + "\n")
            root.parent.mkdir(exist_ok=True)
            new.rename(root)
        self._key(f"hosts/{host.name}/etc/ssh/ssh_host_ed25519_key", host.name)
        files = {
            "etc/hostname": f"{host.name}\n",
            "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {host.name}\n",
            "etc/resolv.conf": f"nameserver {subnet.gateway}\n",
            "etc/systemd/network/10-lab.network": network_settings(subnet, host),
            "root/.ssh/authorized_keys": (self.folder / "id_ed25519.pub").read_text(),
        }
        changed = [self._write(f"hosts/{host.name}/{name}", text, 0o644) for name, text in files.items()]
        if any(changed) and services.running(service_name(subnet, host.name)) and not self.check:
            services.stop(service_name(subnet, host.name))

    def _host_key(self, host: Host) -> str:
        """The host's line in known_hosts: its key is made here, so there is nothing to trust on first use."""
        key = read_or_empty(self._root(host.name) / "etc/ssh/ssh_host_ed25519_key.pub")
        return f"{host.address} {key}" if key else ""

    def _dns(self, services: Services, subnet: Subnet, domain: str, hosts: Sequence[Host]) -> None:
        service = f"{subnet.name}-dns"
        changed = self._write("dnsmasq.conf", dns_settings(subnet, domain, hosts))
        if (changed or not services.running(service)) and self._do("start the lab's DNS"):
            command = ["dnsmasq", "--keep-in-foreground", f"--conf-file={self.folder / 'dnsmasq.conf'}"]
            services.start(service, command, self.folder / "dnsmasq.log", {})

    def _boot(self, services: Services, subnet: Subnet, host: Host) -> bool:
        """Start a host unless it runs; true if it did not."""
        service = service_name(subnet, host.name)
        if services.running(service):
            return False
        if self._do(f"boot the host {host.name}"):
            sweep_machine(machine_name(subnet, host.name))
            command = [
                "systemd-nspawn", "--quiet", "--boot", "--keep-unit", "--register=no", "--settings=no",
                f"--directory={self._root(host.name)}", f"--machine={machine_name(subnet, host.name)}",
                f"--hostname={host.name}", f"--network-bridge={subnet.name}",
                "--resolv-conf=off", "--timezone=off", "--link-journal=no",
                # systemd filters addresses (IPAddressDeny=) with BPF programs.
                "--capability=CAP_BPF", "--system-call-filter=bpf",
            ]  # fmt: skip
            # Its lock files would stay behind when it is killed; the lab's own lock does what they are for.
            environment = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_LOCK": "0"}
            services.start(service, command, self._log(host), environment, again=REBOOT_STATUS)
        return True

    def _log(self, host: Host) -> Path:
        return self.folder / f"{host.name}.log"

    def _await(self, services: Services, subnet: Subnet, host: Host, *, fresh: bool) -> None:
        """Wait until the host answers over SSH and, after a boot, until all its units are up."""
        command = [
            "ssh", "-F", "/dev/null", *connection_options(self.folder), "-i", str(self.folder / "id_ed25519"),
            "-o", "BatchMode=yes", "-o", "ConnectTimeout=2", f"root@{host.address}",
            "systemctl is-system-running --wait; systemctl list-units --failed --no-legend --plain",
        ]  # fmt: skip
        end = time.monotonic() + BOOT_SECONDS
        while True:
            answer = run(command, check=False, timeout=BOOT_SECONDS)
            state, _, failed = answer.stdout.strip().partition("\n")
            if answer.returncode == 0 and (state == "running" or not fresh):
                return
            if answer.returncode == 0 and state in ("degraded", "maintenance"):
                raise LabError(f"The host {host.name} came up, but these units failed: {failed}")
            alive = services.running(service_name(subnet, host.name))
            if not alive or time.monotonic() > end:
                console = self._log(host).read_text(errors="replace")[-600:].strip()
                said = f"SSH says: {answer.stderr.strip()[-200:]}. Its console ends with: {console}"
                raise LabError(
                    f"The host {host.name} {'does not answer' if alive else 'stopped while it booted'}. {said}"
                )
            time.sleep(0.1)


def service_name(subnet: Subnet, host: str) -> str:
    """The control group of a host."""
    return f"{subnet.name}-host-{host}"


def machine_name(subnet: Subnet, host: str) -> str:
    """What nspawn calls a host: no other lab on this machine has the same."""
    return f"{subnet.name}-{host}"


def control_folder(subnet: Subnet) -> Path:
    """Sockets of SSH connections that are kept open: a short path, and gone with the lab."""
    return REGISTRY / f"{subnet.number}.ssh"


def network_settings(subnet: Subnet, host: Host) -> str:
    """systemd.network(5) of a host."""
    return f"""\
[Match]
Name=host0

[Network]
Address={host.address}/24
Gateway={subnet.gateway}
LinkLocalAddressing=no
IPv6AcceptRA=no
"""


def connection_options(folder: Path) -> list[str]:
    """SSH to the lab's hosts: their keys are known from the start, and no other key or file is looked at."""
    return [
        "-o", f"UserKnownHostsFile={folder / 'known_hosts'}", "-o", "GlobalKnownHostsFile=/dev/null",
        "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes",
    ]  # fmt: skip


def release_of(root: Path) -> str | None:
    """Code name of the release that is installed in a root."""
    found = re.search(r"^VERSION_CODENAME=(\w+)", (root / "etc/os-release").read_text(), re.MULTILINE)
    return found[1] if found else None


def hash_password(password: str) -> str:
    """An argon2 hash, as the auth service wants it."""
    from argon2 import PasswordHasher  # teardown works without it

    return PasswordHasher().hash(password)


def numbers_taken() -> list[int]:
    """Numbers of the labs of this machine, whoever made them."""
    return [int(entry.name) for entry in REGISTRY.glob("*") if entry.name.isdigit()]


def registered(folder: Path) -> int | None:
    """Number of the lab whose folder this is, if it has one."""
    for number in numbers_taken():
        with contextlib.suppress(FileNotFoundError):
            if (REGISTRY / str(number)).read_text() == str(folder):
                return number
    return None


def networks_used() -> list[str]:
    """Networks that this machine has a route to, other than the default."""
    routes = json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]).stdout)
    return [route["dst"] for route in routes if route["dst"] != "default"]


def has_link(name: str) -> bool:
    """Whether this machine has a network link of that name."""
    return run(["ip", "link", "show", "dev", name], check=False).returncode == 0


def ports(subnet: Subnet) -> list[str]:
    """Links that are attached to the lab's bridge."""
    if not has_link(subnet.name):
        return []
    shown = run(["ip", "-json", "link", "show", "master", subnet.name], check=False).stdout
    return [link["ifname"] for link in json.loads(shown or "[]")]


def hang_up(subnet: Subnet) -> None:
    """End Ansible's kept-open connections to the lab's hosts: they would hang, and a later lab would meet them."""
    for socket in control_folder(subnet).glob("*"):
        run(["ssh", "-F", "/dev/null", "-O", "exit", "-o", f"ControlPath={socket}", "lab"], check=False)
        socket.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        control_folder(subnet).rmdir()


def sweep_machine(machine: str) -> None:
    """Remove what nspawn keeps in /run for a machine and leaves there when it is killed."""
    for kind in ("propagate", "unix-export"):
        remove_tree(Path("/run/systemd/nspawn") / kind / machine)


def require_root() -> None:
    """Refuse anyone else.

    Raises:
        LabError: Not root.
    """
    if os.geteuid() != 0:
        raise LabError("The lab boots its hosts with systemd-nspawn, which needs root; run this as root.")


def require_programs() -> None:
    """Refuse where something is not installed.

    Raises:
        LabError: What, and how to install it.
    """
    missing = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})
    if missing:
        raise LabError(
            f"The lab needs programs that are not installed here: apt-get install {' '.join(missing)}"
        )
    if not importlib.util.find_spec("argon2"):
        raise LabError(
            "The lab hashes its user's password: install argon2-cffi into the environment that runs Ansible."
        )


def require_kernel() -> None:
    """Refuse where the kernel, or the container around this machine, does not let nspawn work.

    Everything that a lab needs is tried in namespaces that end with the trial, so that nothing is changed.

    Raises:
        LabError: What was refused.
    """
    control_group_mounts()
    trial = """
        mount -t tmpfs none /mnt
        ip link add name trial type bridge
        ip link add name one type veth peer name two
        nft add table ip trial
        nft add chain ip trial out '{ type nat hook postrouting priority srcnat; }'
        nft add rule ip trial out masquerade
    """
    tried = run(
        ["unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "sh", "-euc", trial], check=False
    )
    if tried.returncode:
        raise LabError(
            "The lab cannot run here: systemd-nspawn needs to mount file systems and to make network links and nftables "
            f"rules, and this kernel or the container around this machine refused: {tried.stderr.strip()[:300]}"
        )


def replace_hosts_file(text: str) -> None:
    """Write this machine's hosts file, whole or not at all where that is possible."""
    new = HOSTS_FILE.with_name(f"{HOSTS_FILE.name}.gatehouse-lab")
    new.write_text(text)
    shutil.copymode(HOSTS_FILE, new)
    try:
        new.rename(HOSTS_FILE)
    except OSError:  # in a container it is a mount, which nothing can be renamed over
        HOSTS_FILE.write_text(text)
        new.unlink()


def refuse_foreign_names(hosts_file: str, names: Sequence[str]) -> None:
    """Refuse a domain that someone else's lines in the hosts file already give an address.

    Raises:
        LabError: The name, and what to do.
    """
    for line in hosts_file.splitlines():
        taken = set(names).intersection(line.partition("#")[0].split()[1:])
        if taken:
            raise LabError(
                f"{HOSTS_FILE} already gives {min(taken)} an address, maybe of another lab; choose another lab_domain."
            )


def check_names(name: str, domain: str, hosts: Sequence[dict[str, Any]]) -> None:
    """Refuse names that would not do as file names, host names or domains.

    Raises:
        LabError: The variable, and what is wrong with it.
    """
    label = r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
    if not re.fullmatch(label, name):
        raise LabError(f"lab_name: `{name}` is not made of lower-case letters, digits and inner hyphens.")
    if not re.fullmatch(rf"({label}\.)+{label}", domain):
        raise LabError(f"lab_domain: `{domain}` is not a domain such as gatehouse.test.")
    names = [host["name"] for host in hosts]
    if not names:
        raise LabError("lab_hosts: is empty; name at least one host.")
    for host in names:
        if not re.fullmatch(label, host):
            raise LabError(
                f"lab_hosts: `{host}` is not made of lower-case letters, digits and inner hyphens."
            )
        if names.count(host) > 1:
            raise LabError(f"lab_hosts: `{host}` is there twice.")


def main() -> None:
    """Run as an Ansible module."""
    host = {
        "name": {"type": "str", "required": True},
        "release": {"type": "str", "choices": list(RELEASES), "default": "trixie"},
        "groups": {
            "type": "list",
            "elements": "str",
            "default": ["gateway_edge", "gateway_redis", "gateway_mcp"],
        },
    }
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "folder": {"type": "path", "required": True},
            "cache": {"type": "path"},
            "domain": {"type": "str"},
            "names": {"type": "list", "elements": "str", "default": []},
            "hosts": {"type": "list", "elements": "dict", "options": host, "default": []},
        },
        required_if=[("state", "present", ["cache", "domain", "hosts"])],
        supports_check_mode=True,
    )
    options = module.params
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # `su` without a dash leaves them out
    lab = Lab(options["name"], Path(os.path.realpath(options["folder"])), check=module.check_mode)
    result: dict[str, Any] = {}
    try:
        if options["state"] == "absent":
            lab.down()
        else:
            check_names(options["name"], options["domain"], options["hosts"])
            cache = RootCache(Path(os.path.realpath(options["cache"])))
            result["hosts"] = lab.up(options["domain"], options["names"], options["hosts"], cache)
    except LabError as error:
        module.fail_json(msg=str(error), changes=lab.changes, changed=bool(lab.changes))
    module.exit_json(changed=bool(lab.changes), changes=lab.changes, **result)


if __name__ == "__main__":
    main()
