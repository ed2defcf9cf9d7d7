"""What several hosts change, on a gateway that is there: two edges, and services on two hosts, one of which is an edge too.

    make soak-hosts        # boots a lab, rolls out, runs this, rolls out again, removes the lab

A person's session is on one host, whichever edge a request comes by. While a service is away on one host, its people are told
that their sessions are lost, and open new ones on the other; nobody else notices. A service answers edges alone, and asks no
other host, though it runs on an edge; Redis answers edges alone. Where somebody flushes the rules for this, `status` says so.
Prints what it has seen, and ends with an error at the first thing that is otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests" / "e2e")]

import httpx2  # noqa: E402
from attack import Attacker  # noqa: E402
from browserless import Person  # noqa: E402
from clients.names import resolve_below  # noqa: E402
from gateway import Gateway, message  # noqa: E402

VERSION = "2025-11-25"
PEOPLE = ("ana", "ben", "cem", "dia", "eva", "fin", "gus", "hal")
# Traefik asks after health every five seconds, and waits for three.
NOTICED_SECONDS = 30
BACK_SECONDS = 10
AWAY = "gate3"
# On an edge. They may reach nothing, everything, the network between the hosts, and everything public.
SERVICES = ("echo", "open", "near", "wide")
REDIS = 6379


@dataclass
class Caller:
    """One person, with a session of `echo-stateful`, by way of any edge."""

    name: str
    domain: str
    http: httpx2.Client
    tokens: dict[str, str]
    session: str = ""
    counted: int = 0
    asked: int = field(default=0)

    def ask(self, edge: str, service: str, method: str, params: dict[str, Any]) -> httpx2.Response:
        """One request, to this edge's address."""
        self.asked += 1
        host = f"{service}.{self.domain}"
        headers = {
            "Host": host,
            "Authorization": f"Bearer {self.tokens[service]}",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": VERSION,
        }
        if self.session and service == "echo-stateful" and method != "initialize":
            headers["Mcp-Session-Id"] = self.session
        body = {"jsonrpc": "2.0", "id": self.asked, "method": method, "params": params}
        return self.http.post(
            f"https://{edge}/mcp", headers=headers, json=body, extensions={"sni_hostname": host}
        )

    def open(self, edge: str) -> int:
        """Open a session; the status."""
        hello = {
            "protocolVersion": VERSION,
            "capabilities": {},
            "clientInfo": {"name": "soak", "version": "1"},
        }
        answer = self.ask(edge, "echo-stateful", "initialize", hello)
        self.session, self.counted = answer.headers.get("mcp-session-id", ""), 0
        return answer.status_code

    def count(self, edge: str) -> int:
        """Count on in the session, which knows where it was; the status."""
        answer = self.ask(edge, "echo-stateful", "tools/call", {"name": "count", "arguments": {}})
        if answer.status_code == 200:
            self.counted += 1
            text = message(answer)["result"]["content"][0]["text"]
            assert json.loads(text)["count"] == self.counted, text
        return answer.status_code

    def echo(self, edge: str, service: str = "echo") -> int:
        """A request that stands alone; the status."""
        return self.ask(edge, service, "tools/call", {"name": "echo", "arguments": {"text": "x"}}).status_code


def on(host: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a host, as root."""
    return subprocess.run(
        ["ansible", host, "-i", "inventory/lab", "-b", "-m", "ansible.builtin.shell", "-a", command],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def until(condition: Callable[[], bool], what: str) -> float:
    """Wait; how long it took, in seconds."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < NOTICED_SECONDS, f"not within {NOTICED_SECONDS} s: {what}"
        time.sleep(0.5)
    return time.monotonic() - begun


def addresses() -> dict[str, str]:
    """The hosts' addresses."""
    listed = subprocess.run(
        ["ansible-inventory", "-i", "inventory/lab", "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    known = json.loads(listed.stdout)["_meta"]["hostvars"]
    return {host: str(variables["ansible_host"]) for host, variables in known.items()}


def sessions(people: list[Caller], edges: list[str]) -> None:
    """Everybody keeps to one host; stateless requests go anywhere."""
    for person in people:
        assert person.open(edges[0]) == 200
        assert [person.count(edges[number % 2]) for number in range(6)] == [200] * 6
        assert {person.echo(edge, service) for edge in edges for service in ("echo", "open")} == {200}
    print(f"{len(people)} people, two edges by turns: every session counts on from call to call")


def away(people: list[Caller], edges: list[str]) -> list[str]:
    """The services of a host stop, and come back; who was on it."""
    for person in people:
        assert person.open(edges[0]) == 200
        assert person.count(edges[1]) == 200
    active = "systemctl list-units --plain --no-legend --state=active 'gatehouse-echo*' | cut -d' ' -f1"
    stopped = on(AWAY, f"{active} > /run/stopped && systemctl stop $(cat /run/stopped)")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    took = until(
        lambda: {person.count(edge) for person in people for edge in edges} <= {200, 404},
        "sessions are there, or lost",
    )
    lost = [person for person in people if person.count(edges[1]) == 404]
    kept = [person for person in people if person not in lost]
    assert lost, "nobody was on it"
    assert kept, "everybody was on it"
    until(lambda: all(person.echo(edge) == 200 for person in people for edge in edges), "stateless requests")
    for person in lost:
        assert person.open(edges[0]) == 200
        assert [person.count(edge) for edge in edges] == [200, 200]
    assert {person.count(edge) for person in kept for edge in edges} == {200}
    started = on(AWAY, "systemctl start $(cat /run/stopped)")
    assert started.returncode == 0, started.stdout + started.stderr
    time.sleep(BACK_SECONDS)
    assert {person.count(edge) for person in kept for edge in edges} == {200}
    print(
        f"services stopped on {AWAY}: {len(lost)} people had 404 within {took:.0f} s and went on elsewhere, "
        f"{len(kept)} noticed nothing, and nothing of its coming back"
    )
    return [person.name for person in lost]


def reached(host: str, *targets: tuple[str, int], service: str = "") -> list[tuple[str, int]]:
    """Those addresses and ports to which root on a host, or a process of a service there, can open a connection."""
    tries = [
        f"(timeout 3 bash -c '</dev/tcp/{address}/{port}' && echo reached {number}) &"
        for number, (address, port) in enumerate(targets)
    ]
    look = " ".join([*tries, "wait"])
    if service:
        # What systemd filters it filters for the unit's cgroup, and nftables for its user.
        units = f"systemctl list-units --plain --no-legend --state=active 'gatehouse-{service}@*'"
        cgroup = f"systemctl show --property=ControlGroup --value $({units} | cut -d' ' -f1)"
        user = f"gatehouse-{service}"
        look = (
            f"echo $$ > /sys/fs/cgroup$({cgroup})/cgroup.procs && "
            f"setpriv --reuid={user} --regid={user} --clear-groups sh -c {shlex.quote(look)}"
        )
    numbers = map(int, re.findall(r"reached (\d+)", on(host, look).stdout))
    return [targets[number] for number in sorted(numbers)]


def answers(address: str, port: int) -> bool:
    """Whether an address answers this machine, which is no edge."""
    with socket.socket() as asking:
        asking.settimeout(3)
        return asking.connect_ex((address, port)) == 0


def ports_of(host: str) -> dict[str, int]:
    """The port of each service on a host, where it runs now."""
    shown = on(
        host,
        "for unit in $(systemctl list-units --plain --no-legend --state=active 'gatehouse-*@*' | cut -d' ' -f1); do"
        ' echo $unit $(ss -Hltnp | grep "pid=$(systemctl show --property=MainPID --value $unit)," |'
        " awk '{print $4}' | sed 's/.*://' | sort -u); done",
    )
    found = re.findall(r"^gatehouse-(\S+)@\w\.service (\d+)$", shown.stdout, re.MULTILINE)
    return {service: int(port) for service, port in found if service != "auth"}


def closed(hosts: dict[str, str]) -> None:
    """Whoever reaches a service says who calls: nobody does but the edges."""
    ports, on_edge = ports_of(AWAY), ports_of("gate2")
    assert set(ports) == set(on_edge) == {*SERVICES, "echo-stateful"}, (ports, on_edge)
    services = [(hosts[AWAY], port) for port in ports.values()]
    redis = (hosts["gate1"], REDIS)
    for edge in ("gate1", "gate2"):
        assert reached(edge, *services, redis) == [*services, redis], f"{edge} is an edge, and is refused"
    assert not [target for target in (*services, redis) if answers(*target)], "open to who is no edge"
    assert reached(AWAY, redis) == [], "Redis answers who is no edge"
    # Where an operator asks after health and metrics.
    local = [("127.0.0.1", port) for port in ports.values()]
    assert reached(AWAY, *local) == local
    for host, address in (("gate1", "fd00::1"), (AWAY, "fd00::3")):
        on(host, f"ip address replace {address}/64 dev host0 nodad")
    assert reached("gate1", ("fd00::3", 22), ("fd00::3", ports["wide"])) == [("fd00::3", 22)], (
        "open over IPv6"
    )
    for service in SERVICES:
        # Over loopback it answers itself, so what else it does not reach is refused.
        itself = ("127.0.0.1", on_edge[service])
        asked = reached("gate2", itself, *services, redis, (hosts["gate1"], 443), service=service)
        assert asked == [itself], f"{service} on an edge reaches {asked}"
        itself = ("127.0.0.1", ports[service])
        asked = reached(AWAY, itself, redis, (hosts["gate1"], 443), service=service)
        assert asked == [itself], f"{service} reaches {asked}"
    print(
        f"{len(ports)} services and Redis answer edges and nobody else; services on an edge ask no other host"
    )


def flushed(hosts: dict[str, str]) -> None:
    """Somebody loads the host's own rules, and ours go with what was there."""
    service = (hosts[AWAY], ports_of(AWAY)["open"])
    assert on(AWAY, "nft flush ruleset").returncode == 0
    assert answers(*service)
    status = subprocess.run(
        ["ansible-playbook", "status.yml", "-i", "inventory/lab", "-e", "@tests/soak/hosts-site.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    said = re.findall(
        r"its nftables rules are gone; (systemctl reload gatehouse-\S+\.service)", status.stdout
    )
    assert status.returncode != 0, status.stdout[-3000:]
    assert len(set(said)) == len(SERVICES) + 1, status.stdout[-3000:]
    assert on(AWAY, "; ".join(sorted(set(said)))).returncode == 0
    assert not answers(*service)
    running = "systemctl show --property=MainPID --value 'gatehouse-*@*'"
    before = on(AWAY, running).stdout
    assert on(AWAY, "systemctl start nftables && systemctl reload nftables").returncode == 0
    until(lambda: not answers(*service), "the rules are back after a reload")
    assert on(AWAY, running).stdout == before
    assert on(AWAY, "systemctl restart nftables").returncode == 0
    assert not answers(*service)
    until(lambda: reached("gate1", service) == [service], "the services are back after a restart")
    assert not answers(*service)
    # Traefik asks after them again.
    time.sleep(BACK_SECONDS)
    print("rules that were flushed: status names the units; nftables' own reload and restart bring them back")


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domain", required=True)
    parser.add_argument("--ca-file", required=True, type=Path)
    parser.add_argument("--password-file", required=True, type=Path)
    options = parser.parse_args()
    resolve_below(options.domain)
    trust = ssl.create_default_context(cafile=options.ca_file)
    password = options.password_file.read_text().strip()
    hosts = addresses()
    edges = [hosts["gate1"], hosts["gate2"]]
    with Gateway(options.domain, trust) as gateway, httpx2.Client(verify=trust, timeout=30) as http:
        people = []
        for name in PEOPLE:
            attacker = Attacker(gateway, trust, Person(name, password))
            client_id = attacker.register()["client_id"]
            tokens = {
                service: attacker.tokens(client_id, resource=gateway.service(service))["access_token"]
                for service in ("echo", "echo-stateful", "open")
            }
            people.append(Caller(name, options.domain, http, tokens))
        sessions(people, edges)
        closed(hosts)
        flushed(hosts)
        # Twice: who had gone has come back.
        assert away(people, edges) == away(people, edges)


if __name__ == "__main__":
    main()
