"""What several hosts change, on a gateway that is there: two edges, and services on two hosts, one of which is an edge too.

    make soak-hosts        # boots a lab, rolls out, runs this, rolls out again, removes the lab

A person's session is on one host, whichever edge a request comes by. While a service is away on one host, its people are told
that their sessions are lost, and open new ones on the other; nobody else notices. A service answers edges alone, and asks them
nothing. Prints what it has seen, and ends with an error at the first thing that is otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
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
        lambda: {person.count(edges[0]) for person in people} <= {200, 404}, "sessions are there, or lost"
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


def closed(hosts: dict[str, str], edges: list[str]) -> None:
    """Whoever reaches a service says who calls: nobody does but the edges."""
    ports = on(
        AWAY, "ss -Hltn | awk '{print $4}' | grep -v '^127\\|:22$' | sed 's/.*://' | sort -u"
    ).stdout.split()
    open_ports = [port for port in ports if port.isdecimal() and int(port) >= 20000]
    assert len(open_ports) == 3, ports
    for port in open_ports:
        reach = f"timeout 3 bash -c '</dev/tcp/{hosts[AWAY]}/{port}'"
        for edge in ("gate1", "gate2"):
            assert on(edge, reach).returncode == 0, f"port {port} does not answer {edge}"
        assert subprocess.run(reach, shell=True, capture_output=True, check=False).returncode != 0, (  # noqa: S602 - ours
            f"port {port} answers who is no edge"
        )
        # Where an operator asks after health and metrics.
        look = f"timeout 3 bash -c '</dev/tcp/127.0.0.1/{port}'"
        assert on(AWAY, look).returncode == 0, f"port {port} does not answer over loopback"
    for user, expected in (("gatehouse-echo-stateful", False), ("root", True)):
        asked = on(AWAY, f"runuser -u {user} -- timeout 3 bash -c '</dev/tcp/{edges[0]}/443'")
        assert (asked.returncode == 0) == expected, f"{user}: {asked.stdout}"
    print("three services answer edges and nobody else, and their users cannot ask an edge")


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
        closed(hosts, edges)
        # Twice: who had gone has come back.
        assert away(people, edges) == away(people, edges)


if __name__ == "__main__":
    main()
