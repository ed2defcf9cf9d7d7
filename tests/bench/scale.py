"""Whether a hundred thousand clients and a million grants cost more than a few do: time, and memory.

    make bench-scale

Two auth services, each with a Redis of its own: one holds a thousand grants, the other a million, of people who have
twenty each. What Redis holds is copied, inside Redis, from what the service itself has left there: one registration, one
grant whose refresh token was rotated, the lists of people and clients as full as they may get. Both are asked the same in
turns; medians of the rounds count, and the ratios of the one to the other. Every answer has to be good, or the run ends.
Prints tables for docs/measurements.md. Everything is on loopback and ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
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
from typing import Any

AUTH = Path(__file__).parents[2] / "files" / "auth_service"
sys.path[:0] = [str(AUTH / "tests"), str(AUTH / "src"), str(AUTH.parent / "service" / "src")]

from check import LOAD_CORE, SERVER_CORE  # noqa: E402
from conftest import ECHO, REDIRECT, Fleet, Node, RedisServer, fleet_in, free_port, wait_for  # noqa: E402
from gatehouse_auth.connections import connect  # noqa: E402
from gatehouse_auth.identity.base import Identity  # noqa: E402
from gatehouse_auth.routes.account import COOKIE  # noqa: E402
from gatehouse_auth.store import CLIENTS, PEOPLE, UNUSED_CLIENT_SECONDS, UNUSED_CLIENTS, Store, digest  # noqa: E402
from redis import Redis  # noqa: E402
from test_check import forge, signing_key  # noqa: E402
from tokens import OURS, VERIFIER, Connection, cpu_seconds, issued, our_codes  # noqa: E402

GRANTS_EACH = 20
GRANTS_OF_CLIENT = 10
CONNECTIONS = 16
# One person with their grants, and the clients of these, as copies of a grant and of a client: the same fields, in the
# same order, of the same length and time to live; only who and what is named differs.
# KEYS: grant, client   ARGV: the copied user, the copied client, the person, their digest, most people, most clients, then
# names of grants with their clients
COPY = """
local fields, ttl = redis.call('HGETALL', KEYS[1]), redis.call('TTL', KEYS[1])
local record, client_ttl = redis.call('GET', KEYS[2]), redis.call('TTL', KEYS[2])
local person, now = 'gh:person:' .. ARGV[4], redis.call('TIME')[1] * 1000
local function replaced(text, old, new)
  local from, to = string.find(text, old, 1, true)
  return from and string.sub(text, 1, from - 1) .. new .. string.sub(text, to + 1) or text
end
for i = 7, #ARGV, 2 do
  local copy = {}
  for j = 1, #fields, 2 do
    local name, value = fields[j], fields[j + 1]
    if name == 'person' then
      value = ARGV[4]
    elseif string.match(value, '^%x+$') and #value == 64 or name == 'salt' then
      local other = redis.sha1hex(ARGV[i] .. name)
      value = string.sub(other .. other, 1, #value)
    else
      value = replaced(replaced(value, ARGV[1], ARGV[3]), ARGV[2], ARGV[i + 1])
    end
    copy[j], copy[j + 1] = name, value
  end
  redis.call('HSET', 'gh:family:' .. ARGV[i], unpack(copy))
  redis.call('EXPIRE', 'gh:family:' .. ARGV[i], ttl)
  redis.call('ZADD', person, now + i, ARGV[i])
  redis.call('SET', 'gh:client:' .. ARGV[i + 1], record, 'EX', client_ttl)
  redis.call('ZADD', 'gh:clients', now, ARGV[i + 1])
end
redis.call('EXPIRE', person, ttl)
redis.call('ZADD', 'gh:people', now, ARGV[3])
redis.call('ZREMRANGEBYRANK', 'gh:people', 0, -ARGV[5] - 1)
redis.call('ZREMRANGEBYRANK', 'gh:clients', 0, -ARGV[6] - 1)
return 1
"""
# KEYS: client   ARGV: seconds that it lives, names
UNUSED = """
local record, now = redis.call('GET', KEYS[1]), redis.call('TIME')[1]
for i = 2, #ARGV do
  redis.call('SET', 'gh:client:' .. ARGV[i], record, 'EX', ARGV[1])
  redis.call('ZADD', 'gh:clients:unused', now, 'gh:client:' .. ARGV[i])
end
return 1
"""


# What each round asks, how often.
ASKED = {
    "check, known token": 3000,
    "check, token never seen": 1500,
    "refresh": 400,
    "register": 400,
    "account page, 20 connections": 150,
    "operators' page": 150,
}


def person(number: int) -> Identity:
    """One of the people, as their OpenID provider vouched for them."""
    name = f"person-{number:06}"
    return Identity("okta", f"okta:00u{number:017}", f"The {name}", f"{name}@example.com", ("okta:staff",))


def client_name(number: int) -> str:
    """What a client is called, as long as those that the service makes up."""
    return f"ghc_{number:022}"


@dataclass
class Gateway:
    """An auth service and the Redis that it works on. Figures by what was asked."""

    fleet: Fleet
    node: Node
    grants: int
    unused: int
    tokens: list[tuple[str, str]] = field(default_factory=list)
    cookies: list[str] = field(default_factory=list)
    known: str = ""
    unavailable: int = 0
    bytes_of_grant: int = 0
    bytes_of_redis: int = 0
    resident: list[int] = field(default_factory=list)
    cpu_rates: dict[str, list[float]] = field(default_factory=dict)
    p50s: dict[str, list[float]] = field(default_factory=dict)
    p99s: dict[str, list[float]] = field(default_factory=dict)

    @property
    def people(self) -> int:
        """How many there are."""
        return self.grants // GRANTS_EACH

    async def fill(self) -> None:
        """Let the service make one of each, and copy these; then what the rounds ask with."""
        admin = self.fleet.redis.admin
        connection = Connection(self.node.port)
        (code, client), *_ = await our_codes(self.fleet, self.node.port, lambda: person(0))(1)
        refresh = await exchange(connection, code, client)
        await renew(connection, refresh, client)
        connection.close()
        (grant,) = admin.scan_iter("gh:family:*", 1000)
        copied = [grant, f"gh:client:{client}"]
        # What is made up is written once, when all is there.
        admin.config_set("appendonly", "no")
        self._copy(admin, copied, client)
        admin.config_set("appendonly", "yes")
        wait_for(lambda: settled(admin), 120)
        self.bytes_of_grant = admin.memory_usage(grant, samples=0)
        self.bytes_of_redis = admin.info("memory")["used_memory"]

        who = lambda: person(secrets.randbelow(self.people))  # noqa: E731
        codes = await our_codes(self.fleet, self.node.port, who)(CONNECTIONS)
        connection = Connection(self.node.port)
        self.tokens = [
            (await exchange(connection, code, client), client) for code, client in codes[:CONNECTIONS]
        ]
        redis = connect(self.fleet.redis.url, self.fleet.redis.password).commands
        store = Store(redis, access_seconds=3600, refresh_seconds=86400, grace_seconds=30)
        for identity in [Identity("local", "ana", groups=("staff",)), *(who() for _ in range(CONNECTIONS))]:
            secret = secrets.token_urlsafe(32)
            await store.save_session(secret, identity)
            self.cookies.append(secret)
        await redis.aclose()
        connection.close()
        self.known = self._token()

    def _copy(self, admin: Redis, copied: list[str], client: str) -> None:
        script = admin.script_load(COPY)
        clients = self.grants // GRANTS_OF_CLIENT
        user = person(0).user
        pipeline = admin.pipeline(transaction=False)
        for number in range(self.people):
            identity = person(number)
            grants = [
                name
                for index in range(GRANTS_EACH)
                for name in (secrets.token_hex(16), client_name((number * GRANTS_EACH + index) % clients))
            ]
            pipeline.evalsha(
                script,
                2,
                *copied,
                user,
                client,
                identity.user,
                digest(identity.user),
                PEOPLE,
                CLIENTS,
                *grants,
            )
            if number % 500 == 499:
                pipeline.execute()
        pipeline.execute()
        names = [client_name(10**9 + number) for number in range(self.unused)]
        for first in range(0, len(names), 1000):
            admin.eval(UNUSED, 1, copied[1], UNUSED_CLIENT_SECONDS, *names[first : first + 1000])

    def _token(self) -> str:
        identity = person(secrets.randbelow(self.people))
        return forge(
            signing_key(self.fleet), jti=secrets.token_urlsafe(16), fam=secrets.token_hex(16), idp="okta",
            sub=identity.user, name=identity.name, email=identity.email, groups=list(identity.groups),
            client_id=client_name(secrets.randbelow(self.grants // GRANTS_OF_CLIENT)),
        )  # fmt: skip

    async def measure(self) -> None:
        """One round of everything."""
        unseen = [self._token() for _ in range(ASKED["check, token never seen"])]

        async def check(connection: Connection, token: str) -> None:
            more = f"Authorization: Bearer {token}\r\n"
            status, headers, _ = await connection.ask("GET", "/internal/check/echo", more=more)
            while status == 503:
                # Redis took longer than the check waits for it: on a machine that others use as well.
                self.unavailable += 1
                status, headers, _ = await connection.ask("GET", "/internal/check/echo", more=more)
            expect(status == 200 and "x-gatehouse-user" in headers, "the check", status)

        async def refresh(connection: Connection, number: int) -> None:
            token, client = self.tokens[number]
            self.tokens[number] = (await renew(connection, token, client), client)

        async def page(connection: Connection, path: str, cookie: str, link: str, least: int) -> None:
            status, _, body = await connection.ask("GET", path, more=f"Cookie: {COOKIE}={cookie}\r\n")
            expect(status == 200 and body.count(link.encode()) >= least, path, status)

        buttons, people = 'name="connection"', 'href="/operators/person?user='
        steps: list[Callable[[int, Connection], Awaitable[Any]]] = [
            lambda _, connection: check(connection, self.known),
            lambda _, connection: check(connection, unseen.pop()),
            lambda number, connection: refresh(connection, number),
            lambda _, connection: connection.register(),
            lambda number, connection: page(
                connection, "/account", self.cookies[1 + number], buttons, GRANTS_EACH
            ),
            lambda _, connection: page(connection, "/operators", self.cookies[0], people, 50),
        ]
        for (what, count), step in zip(ASKED.items(), steps, strict=True):
            await self._run(what, count, step)

    async def _run(self, what: str, count: int, step: Callable[[int, Connection], Awaitable[Any]]) -> None:
        latencies: list[float] = []
        left = count
        worked = cpu_seconds(self.node.process.pid)

        async def client(number: int) -> None:
            nonlocal left
            connection = Connection(self.node.port)
            while left > 0:
                left -= 1
                asked = time.perf_counter()
                await step(number, connection)
                latencies.append(time.perf_counter() - asked)
            connection.close()

        await asyncio.gather(*(client(number) for number in range(CONNECTIONS)))
        worked = cpu_seconds(self.node.process.pid) - worked
        latencies.sort()
        self.cpu_rates.setdefault(what, []).append(count / worked)
        self.p50s.setdefault(what, []).append(latencies[count // 2] * 1e6)
        self.p99s.setdefault(what, []).append(latencies[count * 99 // 100] * 1e6)

    def note_memory(self) -> None:
        """Note the service's resident memory, in KiB (proc(5), `status`)."""
        status = Path(f"/proc/{self.node.process.pid}/status").read_text()
        self.resident.append(int(status.partition("VmRSS:")[2].split()[0]))


async def exchange(connection: Connection, code: str, client: str) -> str:
    """Trade a code for tokens; the refresh token."""
    body = await connection.form(
        "/token", grant_type="authorization_code", client_id=client, code=code, redirect_uri=REDIRECT,
        code_verifier=VERIFIER,
    )  # fmt: skip
    return issued(body)


async def renew(connection: Connection, token: str, client: str) -> str:
    """Trade a refresh token for tokens; the next refresh token."""
    body = await connection.form("/token", grant_type="refresh_token", client_id=client, refresh_token=token)
    return issued(body, token)


def expect(good: bool, what: str, status: int) -> None:
    """Raises SystemExit unless an answer is what it has to be."""
    if not good:
        sys.exit(f"{what} answered {status}, or not what it should")


def settled(admin: Redis) -> bool:
    """Whether the append-only file is written as tests and hosts have it."""
    about = admin.info("persistence")
    return about["aof_enabled"] == 1 and not about["aof_rewrite_in_progress"] + about["aof_rewrite_scheduled"]


def started(stack: ExitStack, grants: int, unused: int) -> Gateway:
    """A gateway that holds nothing yet."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    # As roles/redis has it.
    redis = RedisServer(folder, free_port(), configuration="hash-max-listpack-value 512\n")
    fleet = stack.enter_context(fleet_in(folder, redis))
    fleet.credentials["oidc_okta_client_secret"] = "secret"  # nobody is ever asked with it
    (folder / "ours.py").write_text(OURS)
    node = fleet.start(
        {"echo": {"resource": ECHO, "allow": {"everyone": True}}},
        program=(str(folder / "ours.py"),),
        providers={
            "local": {"title": "Lab users"},
            "oidc": {"okta": {"issuer": "https://okta.example.test", "client_id": "gatehouse"}},
        },
        operators={"groups": ["staff"]},
    )
    subprocess.run(["taskset", "-acp", SERVER_CORE, str(node.process.pid)], check=True, capture_output=True)
    return Gateway(fleet, node, grants, unused)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--few", type=int, default=1_000)
    parser.add_argument("--many", type=int, default=1_000_000)
    options = parser.parse_args()
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    with ExitStack() as stack:
        gateways = (started(stack, options.few, 100), started(stack, options.many, UNUSED_CLIENTS))

        async def measure() -> None:
            for gateway in gateways:
                gateway.note_memory()
                await gateway.fill()
            for number in range(options.rounds + 1):
                for gateway in gateways if number % 2 else reversed(gateways):
                    await gateway.measure()
                    if number == 0:
                        # The first round loads what a process loads once.
                        for figures in (gateway.cpu_rates, gateway.p50s, gateway.p99s):
                            figures.clear()
                        gateway.note_memory()
            for gateway in gateways:
                gateway.note_memory()

        asyncio.run(measure())
    report(*gateways)


def report(few: Gateway, many: Gateway) -> None:
    """Print the tables."""
    median = statistics.median
    print(
        f"| of {few.grants:,} grants and of {many.grants:,} | requests per CPU second | p50 | p99 | times p50 | times p99 |\n"
        "|---|---|---|---|---|---|"
    )
    for what in ASKED:
        rates = [f"{median(gateway.cpu_rates[what]):,.0f}" for gateway in (few, many)]
        columns, times = [], []
        for one, other in ((few.p50s, many.p50s), (few.p99s, many.p99s)):
            columns.append(f"{median(one[what]):,.0f} and {median(other[what]):,.0f} µs")
            # Of the rounds one by one, since the two of a round had the same weather.
            times.append(f"{median(b / a for a, b in zip(one[what], other[what], strict=True)):.2f}")
        print(f"| {what} | {' and '.join(rates)} | {' | '.join(columns)} | {' | '.join(times)} |")
    print(f"\nChecks that had to be asked again: {few.unavailable} and {many.unavailable}.")
    print(
        "\n| | grants | clients | auth service started | after the first round | after the last | Redis | a grant's record |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for gateway in (few, many):
        print(
            f"| {gateway.people:,} people | {gateway.grants:,} | {gateway.grants // GRANTS_OF_CLIENT + gateway.unused:,} | "
            + " | ".join(f"{kib / 1024:.1f} MiB" for kib in gateway.resident)
            + f" | {gateway.bytes_of_redis / 2**20:,.0f} MiB | {gateway.bytes_of_grant:,} bytes |"
        )


if __name__ == "__main__":
    main()
