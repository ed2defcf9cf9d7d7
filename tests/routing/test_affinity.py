"""A service on several hosts: the routes that `roles/traefik` writes, with a real Traefik, auth service, and echo with sessions.

make routing
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import ECHO, Fleet, Node, end, fleet_in, free_port, wait_for
from front import ADDRESSES, ready, render_routes, start_traefik
from test_check import forge, signing_key

ROOT = Path(__file__).parents[2]
HOST = "echo.example.test"
PEOPLE = [f"person{number}" for number in range(16)]
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "affinity", "version": "1"},
    },
}


@dataclass
class Echo:
    """One host's echo with sessions."""

    name: str
    port: int
    python: Path
    log: Path
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [self.python, "-m", "gatehouse_echo"],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": f"{ROOT}/files/mcp_services/echo/src:{ROOT}/files/service/src",
                "GATEHOUSE_LISTEN": f"127.0.0.1:{self.port}",
                "GATEHOUSE_SERVICE": "echo",
                "GATEHOUSE_PUBLIC_URL": ECHO,
                "GATEHOUSE_DRAIN_SECONDS": "1",
                "ECHO_STATEFUL": "true",
            },
            stdout=self.log.open("a"),
            text=True,
        )
        wait_for(self.answers)

    def answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        if self.process is not None:
            end(self.process)
            self.process = None


@dataclass
class Site:
    """Two hosts behind two edges."""

    fleet: Fleet
    auth: list[Node]
    edges: list[int]
    echoes: dict[str, Echo]
    http: httpx.Client = field(
        default_factory=lambda: httpx.Client(verify=False, trust_env=False, timeout=20)  # noqa: S501 - loopback
    )

    def token(self, user: str) -> str:
        """A new one each time: what it ends in chooses the address that Traefik asks."""
        return forge(signing_key(self.fleet), sub=user, groups=["staff"])

    def ask(
        self, user: str, message: dict[str, Any], session: str = "", edge: int = 0, **headers: str
    ) -> httpx.Response:
        headers |= {
            "Host": HOST,
            "Authorization": f"Bearer {self.token(user)}",
            "Accept": "application/json, text/event-stream",
        }
        if session:
            headers["Mcp-Session-Id"] = session
        return self.http.post(f"https://127.0.0.1:{self.edges[edge]}/mcp", json=message, headers=headers)

    def open(self, user: str, edge: int = 0) -> str:
        answer = self.ask(user, INITIALIZE, edge=edge)
        assert answer.status_code == 200, answer.text
        session = answer.headers["mcp-session-id"]
        self.ask(user, {"jsonrpc": "2.0", "method": "notifications/initialized"}, session, edge)
        return str(session)

    def home(self, user: str) -> str:
        """The host that the check names for a person."""
        return self.auth[0].check(self.token(user)).headers["x-gatehouse-instance"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("affinity")
    with ExitStack() as stack:
        fleet = stack.enter_context(fleet_in(folder))
        # They need no passwords: their tokens are made here.
        users = json.loads(fleet.credentials["users.json"])
        users |= {name: {**users["ana"], "name": name} for name in PEOPLE}
        fleet.credentials["users.json"] = json.dumps(users)
        echoes = {}
        for name in ("mcp1", "mcp2"):
            echo = Echo(name, free_port(), Path(os.environ["GATEHOUSE_ECHO_PYTHON"]), folder / f"{name}.log")
            stack.callback(echo.stop)
            echo.start()
            echoes[name] = echo
        service = {
            "host": HOST,
            "servers": [f"http://127.0.0.1:{echo.port}" for echo in echoes.values()],
            "origins": [],
            "health_path": "/health",
            "instances": list(echoes),
        }
        resources = {"echo": {"resource": ECHO, "allow": {"groups": ["staff"]}, "instances": list(echoes)}}
        auth, edges = [], []
        for edge in range(2):
            port, listen = free_port(), free_port()
            node = fleet.start(
                resources, port=listen, listen=",".join(f"{address}:{listen}" for address in ADDRESSES)
            )
            own = folder / f"edge{edge}"
            own.mkdir()
            routes = render_routes(node, {"echo": service})
            stack.enter_context(
                start_traefik(Path(os.environ["GATEHOUSE_TRAEFIK"]), own, port, {"gatehouse.yml": routes})
            )
            auth.append(node)
            edges.append(port)
        found = Site(fleet, auth, edges, echoes)
        stack.callback(found.http.close)
        for port in edges:
            wait_for(lambda port=port: ready(port, HOST, found.token("ana")))  # type: ignore[misc]
        yield found


def calls(site: Site, user: str, session: str, edge: int = 0) -> int:
    """The status of a call within a session."""
    return site.ask(user, {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}, session, edge).status_code


# covers: affinity
def test_a_session_stays_where_it_is_whatever_edge_and_token(site: Site) -> None:
    people = PEOPLE[:8]
    assert {site.home(user) for user in people} == set(site.echoes), "everyone is on one host"
    for user in people:
        session = site.open(user)
        assert [calls(site, user, session, edge) for edge in (0, 1, 0, 1, 0, 1)] == [200] * 6


# covers: affinity
def test_nobody_chooses_the_host(site: Site) -> None:
    user = "person1"
    session = site.open(user)
    other = next(name for name in site.echoes if name != site.home(user))
    message = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    headers = {"X-Gatehouse-Instance": other}
    assert site.ask(user, message, session, **headers).status_code == 200  # type: ignore[arg-type]
    assert site.ask(user, message, "made-up").status_code == 404


# covers: affinity
def test_while_a_host_is_away_its_people_go_to_another_and_are_told_of_lost_sessions(site: Site) -> None:
    people = {name: next(user for user in PEOPLE if site.home(user) == name) for name in site.echoes}
    moved, stayed = people["mcp1"], people["mcp2"]
    lost, kept = site.open(moved), site.open(stayed)
    site.echoes["mcp1"].stop()
    try:
        # 404 is what clients recover from; as soon as Traefik has noticed.
        wait_for(lambda: calls(site, moved, lost) == 404)
        assert calls(site, stayed, kept) == 200
        again = site.open(moved)
        assert calls(site, moved, again, edge=0) == 200
    finally:
        site.echoes["mcp1"].start()
    wait_for(lambda: calls(site, moved, site.open(moved)) == 200)
    assert calls(site, stayed, kept) == 200


# covers: affinity
def test_when_a_host_comes_only_its_own_people_move(site: Site) -> None:
    from gatehouse_auth.check import _instance

    people = [f"person{number}" for number in range(400)]
    before = {user: _instance(("mcp1", "mcp2"), user) for user in people}
    after = {user: _instance(("mcp1", "mcp2", "mcp3"), user) for user in people}
    moved = {user for user in people if before[user] != after[user]}
    assert {after[user] for user in moved} == {"mcp3"}
    assert 80 < len(moved) < 190
    assert 140 < list(before.values()).count("mcp1") < 260
