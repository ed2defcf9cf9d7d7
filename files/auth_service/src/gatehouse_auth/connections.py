"""Connections to Redis: to one server, or to the primary of several that Redis Sentinel watches.

With Sentinel, the primary is what more than half of the sentinels name, each asked over and over. A failover
needs more than half of them as well, so nodes agree on the primary within the time that it takes to ask, and
one that is cut off with an old primary has none. Every connection is to the primary of the moment, which says
itself that it is one.

A Redis that comes back without its data is one that is away: taken at its word, it would have every client
throw its tokens away, and know of no revocation.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

# How often each sentinel is asked, and how long it may take to answer. The sum has to be well below the time
# after which sentinels give up a primary (`down-after-milliseconds`): who is cut off from them knows first.
ASK_SECONDS = 0.05
ANSWER_SECONDS = 0.4
DATA_SET = "gh:dataset"
SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
SCHEMES = ("redis", "rediss", *SENTINEL_SCHEMES)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where Redis is. With `primary` the nodes are sentinels, and that is what they call the primary."""

    tls: bool
    user: str | None
    nodes: tuple[tuple[str, int], ...]
    primary: str
    database: int

    @classmethod
    def parse(cls, url: str) -> "RedisAddress":
        """The address that a URL means: `redis://user@host:port/database` or
        `redis+sentinel://user@host:port,host:port,host:port/primary[/database]`; `rediss` is over TLS.

        Raises:
            ValueError: a sentence that says what the URL has to be.
        """
        # By hand: several hosts make no URL in the sense of RFC 3986, and urllib refuses brackets among them.
        scheme, _, rest = url.partition("://")
        authority, _, path = rest.partition("/")
        user, at, hosts = authority.rpartition("@")
        if ":" in user:
            raise ValueError("the password belongs into the credential redis_password")
        if scheme not in SCHEMES or "?" in rest or "#" in rest:
            raise ValueError(f"must begin with one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
        watched = scheme in SENTINEL_SCHEMES
        try:
            nodes = tuple(_host_port(host, 26379 if watched else 6379) for host in hosts.split(","))
            primary, _, database = path.partition("/") if watched else ("", "", path)
            number = int(database or "0")
        except ValueError:
            raise ValueError("must name hosts, ports and a database as host:port and /number") from None
        if watched and not primary:
            raise ValueError("must name the primary as the sentinels do: redis+sentinel://.../name")
        if watched and (len(nodes) < 3 or len(set(nodes)) != len(nodes)):
            raise ValueError("must name three sentinels or more, each once: fewer cannot outvote a lost one")
        if not watched and len(nodes) > 1:
            raise ValueError("must name one host; several are sentinels: redis+sentinel://")
        return cls(scheme.startswith("rediss"), unquote(user) if at else None, nodes, primary, number)


def _host_port(text: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError
    return parts.hostname, parts.port or default


class DataLost(RedisError):  # noqa: N818 - the fault is not in a call
    """Redis answers, and no longer has the data that it had."""


class DataSet:
    """Knows by a mark that Redis still has its data. Who first finds none sets it; who has seen one does not
    use a Redis without: until a backup is restored, or a node is started, which has not seen one. Each new
    connection looks, since a server that comes back has broken those that there were."""

    def __init__(self) -> None:
        self._seen = False

    async def greet(self, connection: AbstractConnection) -> None:
        """Connect, as redis-py does by itself, then look for the mark.

        Raises:
            DataLost: it was there, and is gone.
        """
        await connection.on_connect()
        since = await self._ask(connection, "GET", DATA_SET)
        if since is None and self._seen:
            raise DataLost
        if since is None:
            await self._ask(connection, "SET", DATA_SET, int(time.time()), "NX")
        self._seen = True

    async def _ask(self, connection: AbstractConnection, *command: str | int) -> Any:
        await connection.send_command(*command, check_health=False)
        return await connection.read_response()


class _PrimaryConnection(SentinelManagedConnection):
    """A connection that is of use only to the primary of the moment."""

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """Authenticate, then see whom this is."""
        await super().on_connect_check_health(check_health)
        await self.send_command("ROLE", check_health=False)
        role = await self.read_response()
        pool = self.connection_pool
        if role[0] != "master" or pool.sentinel_manager.address != (self.host, self.port):
            raise RedisConnectionError("not the primary")


class _PrimarySSLConnection(_PrimaryConnection, SentinelManagedSSLConnection):
    """The same over TLS."""


class _PrimaryPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the primary. Who finds all of them in use waits for one."""


class Primary(Sentinel):
    """Which server is the primary. `on_move` is called whenever that is another one, or not known."""

    def __init__(self, address: RedisAddress, **options: Any) -> None:
        limits = {
            "socket_connect_timeout": ANSWER_SECONDS,
            "socket_timeout": ANSWER_SECONDS,
            "retry": Retry(NoBackoff(), 0),
            "max_connections": 2,
        }
        super().__init__(address.nodes, sentinel_kwargs={**options, **limits})  # type: ignore[no-untyped-call]
        self.address: tuple[str, int] | None = None
        self.on_move: Callable[[], None] = lambda: None
        self._name = address.primary
        self._named: list[tuple[str, int] | None] = [None] * len(address.nodes)
        self._pools: list[_PrimaryPool] = []
        self._renewing: set[asyncio.Task[None]] = set()

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """The primary, for redis-py, which asks before each new connection.

        Raises:
            MasterNotFoundError: at the moment there is none.
        """
        if self.address is None:
            raise MasterNotFoundError("more than half of the sentinels name no primary")
        return self.address

    def client(self, **options: Any) -> "Redis":
        """A client of the primary, whichever that is."""
        tls = options.pop("ssl", False)
        pool = _PrimaryPool(
            self._name,
            self,
            connection_class=_PrimarySSLConnection if tls else _PrimaryConnection,
            **options,
        )  # type: ignore[no-untyped-call]
        self._pools.append(pool)
        return Redis.from_pool(pool)

    async def run(self) -> None:
        """Ask the sentinels until cancelled."""
        await asyncio.gather(*(self._follow(index) for index in range(len(self.sentinels))))

    async def _follow(self, index: int) -> None:
        while True:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    named = await self._ask(self.sentinels[index])
            except (RedisError, OSError, TimeoutError):
                named = None
            self._named[index] = None if named is None else (named[0], int(named[1]))
            self._count()
            await asyncio.sleep(ASK_SECONDS)

    async def _ask(self, sentinel: "Redis") -> Any:
        # SENTINEL MASTERS, which redis-py asks, names the old one until every replica has followed.
        return await sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self._name)  # type: ignore[no-untyped-call]

    def _count(self) -> None:
        found, votes = Counter(self._named).most_common(1)[0]
        elected = found if 2 * votes > len(self._named) else None
        if elected == self.address:
            return
        self.address = elected
        self.on_move()
        for pool in self._pools:
            # Not waited for: whatever holds a pool up, the sentinels have to be asked.
            task = asyncio.create_task(self._renew(pool))
            self._renewing.add(task)
            task.add_done_callback(self._renewing.discard)

    async def _renew(self, pool: _PrimaryPool) -> None:
        # What is under way may end: what it writes counts with a replica's word alone.
        await pool.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]
        with suppress(RedisError, OSError):  # a server that was killed says this and that to being left
            await pool.disconnect(inuse_connections=False)


@dataclass(frozen=True, slots=True)
class Connections:
    """What the service needs of Redis: a client for commands, one for the revocation stream, and, where
    Sentinel watches, the primary that both follow."""

    commands: "Redis"
    stream: "Redis"
    primary: Primary | None

    async def run(self) -> None:
        """Follow the primary until cancelled."""
        if self.primary is not None:
            await self.primary.run()

    async def close(self) -> None:
        """Close all of them."""
        for client in (self.commands, self.stream, self.primary):
            if client is not None:
                await client.aclose()


def connect(url: str, password: str, authority: str = "") -> Connections:
    """Clients for a Redis. Nothing is connected yet.

    Args:
        url: as `RedisAddress.parse` takes it.
        password: of the user that the URL names, at Redis and at the sentinels.
        authority: certificates (PEM) that a server's certificate has to be of; '' for those of the host.

    Commands are repeated once after a broken connection or a time-out, since every script bears it. The
    stream is never mended behind our back: a gap in it has to be seen.
    """
    address = RedisAddress.parse(url)
    options: dict[str, Any] = {
        "username": address.user,
        "password": password,
        "protocol": 2,
        "decode_responses": True,
        "driver_info": None,
    }
    if address.tls:
        options["ssl"] = True
        options |= {"ssl_ca_data": authority} if authority else {}
    primary = Primary(address, **options) if address.primary else None
    data = DataSet()

    def client(use: Literal["commands", "stream"]) -> "Redis":
        settings: dict[str, Any] = {
            **options,
            "db": address.database,
            "socket_connect_timeout": 1.0,
            "socket_timeout": 1.0,
            "max_connections": 4 if use == "stream" else 32,
            "timeout": 2.0,
            "redis_connect_func": data.greet,
            "retry": Retry(NoBackoff(), 0)
            if use == "stream"
            else Retry(ExponentialBackoff(cap=0.1, base=0.02), 1),
        }
        if primary is not None:
            return primary.client(**settings)
        settings.pop("ssl", None)
        host, port = address.nodes[0]
        scheme = "rediss" if address.tls else "redis"
        pool = BlockingConnectionPool.from_url(f"{scheme}://{_in_url(host)}:{port}", **settings)
        return Redis.from_pool(pool)

    return Connections(client("commands"), client("stream"), primary)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
