"""What the authorization server's own endpoints take, beside FastMCP's OAuth proxy.

    make bench-tokens

`/register`, the exchange of a code, and the refresh of a token, one worker each on one core, with the clients on another;
both keep what they know in the same Redis, which makes a write durable before it answers. Each client waits for its answer
and asks again, as clients do. Rounds alternate, medians count. Rate limits are lifted on our side; the other has none. Its
upstream provider, which it asks at each exchange and refresh, is a function that answers at once. Every answer has to be the
success that it is to be, or the run ends. Prints a table for docs/measurements.md; requests per second of the server's own
CPU time say what a core gives where other work takes some of it. Everything is on loopback and ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlencode, urlsplit

AUTH = Path(__file__).parents[2] / "files" / "auth_service"
sys.path[:0] = [str(AUTH / "tests"), str(AUTH / "src"), str(AUTH.parent / "service" / "src")]

from check import LOAD_CORE, SERVER_CORE, serving  # noqa: E402
from conftest import ECHO, REDIRECT, Fleet, fleet_in, free_port  # noqa: E402
from gatehouse_auth.connections import connect  # noqa: E402
from gatehouse_auth.identity.base import Identity  # noqa: E402
from gatehouse_auth.store import Code, Flow, Grant, Store  # noqa: E402

PEOPLE = 1000
VERIFIER = "v" * 64
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
OURS = """
from gatehouse_auth import context
from gatehouse_auth.limits import Rate
context.RATES = {name: Rate(1e12, 1e12) for name in context.RATES}
from gatehouse_auth.__main__ import main
main()
"""
UPSTREAM = """
BODY = b'{"access_token": "upstream", "token_type": "Bearer", "expires_in": 3600, "refresh_token": "upstream", "scope": "mcp"}'
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [
        (b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]})
    await send({"type": "http.response.body", "body": BODY})
"""
FASTMCP = """
import sys
import uvicorn
from fastmcp import FastMCP
from fastmcp.server.auth import OAuthProxy
from fastmcp.server.auth.providers.jwt import StaticTokenVerifier
from key_value.aio.stores.redis import RedisStore
port, upstream, redis = sys.argv[1:]
password = open("redis_password").read()
auth = OAuthProxy(
    upstream_authorization_endpoint=f"{upstream}/authorize", upstream_token_endpoint=f"{upstream}/token",
    upstream_client_id="bench", upstream_client_secret="bench",
    token_verifier=StaticTokenVerifier({"upstream": {"client_id": "bench", "scopes": ["mcp"]}}, required_scopes=["mcp"]),
    base_url=f"http://127.0.0.1:{port}", require_authorization_consent=False, jwt_signing_key="k" * 32,
    client_storage=RedisStore(host="127.0.0.1", port=int(redis), username="admin", password=password, db=1),
)
uvicorn.run(FastMCP("bench", auth=auth).http_app(), port=int(port), log_level="error", access_log=False)
"""


class Connection:
    """One kept-alive connection of a client."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        kind: str = "application/x-www-form-urlencoded",
        more: str = "",
    ) -> tuple[int, dict[str, str], bytes]:
        """One request: status, headers, body. `more` are lines of its head."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        if body:
            more = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}"
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n{more}\r\n".encode() + body
        )
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        answer = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection", "").lower() == "close":
            writer.close()
            self._streams = None
        return int(status.split(" ")[1]), headers, answer

    async def form(self, path: str, **fields: str) -> dict[str, Any]:
        """Send a form.

        Raises:
            SystemExit: the answer is not a good one.
        """
        status, _, answer = await self.ask("POST", path, urlencode(fields).encode())
        return good(status, answer)

    async def register(self) -> dict[str, Any]:
        """Register a client."""
        metadata = {
            "client_name": "bench",
            "redirect_uris": [REDIRECT],
            "grant_types": ["authorization_code", "refresh_token"],
            "token_endpoint_auth_method": "none",
        }
        status, _, answer = await self.ask(
            "POST", "/register", json.dumps(metadata).encode(), "application/json"
        )
        registered = good(status, answer)
        if not registered["client_id"]:
            sys.exit(f"no client was registered: {answer[:300]!r}")
        return registered

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()


def good(status: int, answer: bytes) -> dict[str, Any]:
    """A JSON answer.

    Raises:
        SystemExit: it is none, or not 2xx.
    """
    if not 200 <= status < 300:
        sys.exit(f"an answer was {status}: {answer[:300]!r}")
    decoded: dict[str, Any] = json.loads(answer)
    return decoded


def issued(body: dict[str, Any], before: str = "") -> str:
    """The refresh token of a token response.

    Raises:
        SystemExit: there is none, or it is the one from before, or no access token came with it.
    """
    refresh: str = body.get("refresh_token", "")
    if not refresh or refresh == before or len(body.get("access_token", "").split(".")) != 3:
        sys.exit(f"no new tokens: {sorted(body)}")
    return refresh


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has taken (proc_pid_schedstat: nanoseconds)."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


class Codes(Protocol):
    """Makes authorization codes, with the client of each."""

    def __call__(self, count: int) -> Awaitable[list[tuple[str, str]]]: ...


@dataclass
class Side:
    """One of the two. Figures by what is done and how many do it: requests per second of the clock and of CPU time, then
    latencies in microseconds."""

    name: str
    port: int
    pid: int
    codes: Codes
    rates: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    cpu_rates: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    p50s: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    p99s: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    async def exchange(self, connection: Connection, code: str, client: str) -> str:
        """Trade a code for tokens; the refresh token."""
        body = await connection.form(
            "/token", grant_type="authorization_code", client_id=client, code=code, redirect_uri=REDIRECT,
            code_verifier=VERIFIER,
        )  # fmt: skip
        return issued(body)

    async def measure(self, seconds: float, clients: int, most: int) -> None:
        """One round of each, with so many clients."""

        async def register(_client: int, connection: Connection) -> None:
            await connection.register()

        await self._run("register", clients, seconds, register)

        held = await self.codes(most)
        tokens: list[tuple[str, str]] = []

        async def exchange(_client: int, connection: Connection) -> None:
            code, client = held.pop()
            tokens.append((await self.exchange(connection, code, client), client))

        await self._run("exchange", clients, seconds, exchange, lambda: len(held) > clients)

        async def refresh(number: int, connection: Connection) -> None:
            token, client = tokens[number]
            body = await connection.form(
                "/token", grant_type="refresh_token", client_id=client, refresh_token=token
            )
            tokens[number] = (issued(body, token), client)

        await self._run("refresh", clients, seconds, refresh)

    async def _run(
        self,
        what: str,
        clients: int,
        seconds: float,
        step: Callable[[int, Connection], Awaitable[None]],
        more: Callable[[], bool] = lambda: True,
    ) -> None:
        latencies: list[float] = []
        worked = cpu_seconds(self.pid)
        began = time.perf_counter()

        async def client(number: int) -> None:
            connection = Connection(self.port)
            while time.perf_counter() - began < seconds and more():
                asked = time.perf_counter()
                await step(number, connection)
                latencies.append(time.perf_counter() - asked)
            connection.close()

        await asyncio.gather(*(client(number) for number in range(clients)))
        took = time.perf_counter() - began
        worked = cpu_seconds(self.pid) - worked
        latencies.sort()
        at = (what, clients)
        self.cpu_rates.setdefault(at, []).append(len(latencies) / worked)
        self.rates.setdefault(at, []).append(len(latencies) / took)
        self.p50s.setdefault(at, []).append(latencies[len(latencies) // 2] * 1e6)
        self.p99s.setdefault(at, []).append(latencies[len(latencies) * 99 // 100] * 1e6)


def our_codes(fleet: Fleet, port: int, who: Callable[[], Identity]) -> Codes:
    """Codes as a finished sign-in of these people leaves them, through the store's own code."""

    async def make(count: int) -> list[tuple[str, str]]:
        redis = connect(fleet.redis.url, fleet.redis.password).commands
        store = Store(redis, access_seconds=3600, refresh_seconds=86400, grace_seconds=30)
        connection = Connection(port)
        client = (await connection.register())["client_id"]
        connection.close()

        async def one() -> tuple[str, str]:
            flow, code = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
            started = Flow(client, "bench", REDIRECT, None, "mcp", "echo", CHALLENGE, "")
            grant = Grant(client, "bench", who(), "echo", ECHO, "mcp", int(time.time()))
            await store.save_flow(flow, started)
            await store.finish_flow(flow, code, Code(grant, REDIRECT, CHALLENGE))
            return code, client

        made: list[tuple[str, str]] = []
        while len(made) < count:
            made += await asyncio.gather(*(one() for _ in range(30)))
        await redis.aclose()
        return made

    return make


def their_codes(port: int) -> Codes:
    """Codes of FastMCP's proxy, each through its authorization endpoint and its callback."""

    async def make(count: int) -> list[tuple[str, str]]:
        connections = [Connection(port) for _ in range(16)]
        client = (await connections[0].register())["client_id"]
        made: list[tuple[str, str]] = []

        async def some(connection: Connection) -> None:
            while len(made) < count:
                query = {
                    "response_type": "code", "client_id": client, "redirect_uri": REDIRECT, "scope": "mcp", "state": "s",
                    "code_challenge": CHALLENGE, "code_challenge_method": "S256",
                }  # fmt: skip
                _, headers, _ = await connection.ask("GET", f"/authorize?{urlencode(query)}")
                state = parse_qs(urlsplit(headers["location"]).query)["state"][0]
                _, headers, _ = await connection.ask("GET", f"/auth/callback?code=upstream&state={state}")
                made.append((parse_qs(urlsplit(headers["location"]).query)["code"][0], client))

        await asyncio.gather(*map(some, connections))
        for connection in connections:
            connection.close()
        return made

    return make


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fastmcp", required=True, type=Path, help="Python that has FastMCP")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        fleet = stack.enter_context(fleet_in(folder))
        users = json.loads(fleet.credentials["users.json"])
        fleet.credentials["users.json"] = json.dumps(
            {f"ana{number}": users["ana"] for number in range(PEOPLE)}
        )
        (folder / "ours.py").write_text(OURS)
        ours = fleet.start(program=(str(folder / "ours.py"),))
        subprocess.run(
            ["taskset", "-acp", SERVER_CORE, str(ours.process.pid)], check=True, capture_output=True
        )
        upstream, port = free_port(), free_port()
        (folder / "upstream.py").write_text(UPSTREAM)
        uvicorn = [
            sys.executable,
            "-m",
            "uvicorn",
            "upstream:app",
            "--port",
            str(upstream),
            "--log-level",
            "error",
        ]
        stack.enter_context(serving(uvicorn, {}, f"http://127.0.0.1:{upstream}/", folder, LOAD_CORE))
        (folder / "theirs.py").write_text(FASTMCP)
        (folder / "redis_password").write_text(fleet.redis.password)
        command = [
            str(options.fastmcp.absolute()),
            "theirs.py",
            str(port),
            f"http://127.0.0.1:{upstream}",
            str(fleet.redis.port),
        ]
        environment = {"HOME": str(folder)}
        theirs = stack.enter_context(serving(command, environment, f"http://127.0.0.1:{port}/", folder))

        def anyone() -> Identity:
            # The people of a company, not one who connects ten thousand times and loses the first of it.
            return Identity("local", f"ana{secrets.randbelow(PEOPLE)}")

        sides = [
            Side("Gatehouse", ours.port, ours.process.pid, our_codes(fleet, ours.port, anyone)),
            Side("FastMCP's OAuth proxy", port, theirs, their_codes(port)),
        ]

        async def measure() -> None:
            for _ in range(options.rounds):
                for side in sides:
                    # Codes for as long as a round takes, or for a part of it that is long enough.
                    await side.measure(options.seconds, 1, 100)
                    await side.measure(options.seconds, options.clients, 300)

        asyncio.run(measure())
    report(sides, options.clients)


def report(sides: list[Side], clients: int) -> None:
    """Print the table."""
    print(
        f"| | | requests per CPU second, {clients} clients | requests/s | p50 | p99 | requests/s, 1 client | p50 | p99 |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    median = statistics.median
    for what in ("register", "exchange", "refresh"):
        for side in sides:
            figures = [f"{median(side.cpu_rates[what, clients]):,.0f}"]
            for count in (clients, 1):
                at = (what, count)
                figures += [f"{median(side.rates[at]):,.0f}"]
                figures += [f"{median(values[at]):,.0f} µs" for values in (side.p50s, side.p99s)]
            print(f"| {what} | {side.name} | {' | '.join(figures)} |")
    ours, theirs = sides
    for unit, of in (("requests per second", "rates"), ("requests per CPU second", "cpu_rates")):
        ratios = [
            f"{what} {median(getattr(ours, of)[what, clients]) / median(getattr(theirs, of)[what, clients]):.1f}"
            for what in ("register", "exchange", "refresh")
        ]
        print(f"\nTimes FastMCP's {unit}, {clients} clients: {', '.join(ratios)}.")


if __name__ == "__main__":
    main()
