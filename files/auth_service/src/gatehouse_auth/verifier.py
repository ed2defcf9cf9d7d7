"""Access tokens that were found good, and the stream that says when one no longer is.

A token is verified once and then known by its SHA-256. What was found holds while the stream of
revocations is unbroken; when it breaks, every finding is asked about again before it counts. Only while
Redis does not answer at all does a finding count on its own, for a configured time.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gatehouse_auth.audit import Log
from gatehouse_auth.oauth.tokens import LEEWAY_SECONDS, AccessToken
from gatehouse_auth.store import REVOCATIONS, Store, StoreUnavailable

# A stream that says nothing for BEAT is asked, and is lost when the answer takes as long again twice over.
BEAT_SECONDS = 0.05
RETRY_SECONDS = 0.1
ASK_SECONDS = 0.25
ENTRIES = 100_000


class RevocationStream:
    """Listens to revocations. `generation` changes whenever one may have been missed."""

    def __init__(self, redis: "Redis", log: Log, on_revoked: Callable[[str], None]) -> None:
        self._redis = redis
        self._log = log
        self._on_revoked = on_revoked
        self.synced = False
        self.away = False
        self.generation = 0
        self.events = 0
        self.lost_at = time.monotonic()
        self._limit: asyncio.Timeout | None = None
        self._moves = 0

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            moved = await self._unless_moved(self._listen())
            if not moved:
                await self._unless_moved(asyncio.sleep(RETRY_SECONDS))

    async def _unless_moved(self, what: Awaitable[None]) -> bool:
        """Wait for something, but no longer when Redis has another primary; whether it has."""
        self._limit = limit = asyncio.timeout(None)
        try:
            async with limit:
                await what
        except (RedisError, OSError, TimeoutError) as error:
            if self.synced:
                self._lose(type(error).__name__)
            elif not limit.expired():
                self.away = True
        return limit.expired()

    def moved(self) -> None:
        """Redis has another primary. The old one may not know, and talk on; nobody waits for it.

        A stream that is not there yet is not interrupted: redis-py would lose the connection's place in
        the pool. It does not count once it is there (`_listen`).
        """
        self._moves += 1
        if self.synced:
            self._lose("moved")
            if self._limit is not None and self._limit.when() is None:
                self._limit.reschedule(asyncio.get_running_loop().time())

    def _lose(self, reason: str) -> None:
        self._log.event("revocation_stream_lost", "warning", reason=reason)
        self.synced = False
        self.generation += 1
        self.events += 1
        self.lost_at = time.monotonic()

    async def _listen(self) -> None:
        moves = self._moves
        async with self._redis.pubsub() as channel:
            await channel.subscribe(REVOCATIONS)
            waiting = 0
            # A time limit can go lost in redis-py, as a cancellation can (see app._end).
            while self._limit is None or not self._limit.expired():
                message = await channel.get_message(timeout=BEAT_SECONDS)
                if message is None:
                    if waiting == 2:
                        raise TimeoutError
                    if waiting == 0:
                        await channel.ping()
                    waiting += 1
                    continue
                waiting = 0
                if message["type"] == "message":
                    self._on_revoked(message["data"])
                elif message["type"] == "subscribe":
                    if moves != self._moves:
                        return  # it may be the old primary's, where nobody is told of a revocation
                    self.synced, self.away = True, False
                    self._log.event("revocation_stream_ready")


T = TypeVar("T")
# Of a finding: the service, and the digest of the token.
Key = tuple[str, bytes]


@dataclass(slots=True)
class Finding(Generic[T]):
    """A token that was found good for one service, and what the check answers to it."""

    token: AccessToken
    answer: T
    generation: int
    confirmed: float

    @property
    def names(self) -> tuple[str, ...]:
        """By what it can be revoked: itself, its grant, its client."""
        return tuple(filter(None, (self.token.token_id, self.token.family, self.token.client_id)))


class Findings(Generic[T]):
    """The findings for all services of one node."""

    def __init__(self, store: Store, redis: "Redis", log: Log, grace_seconds: int) -> None:
        self._store = store
        self._grace = grace_seconds
        self._found: dict[Key, Finding[T]] = {}
        # A set only where a name has several: most have one, and tens of thousands of sets are what the
        # garbage collector stops everything for.
        self._by_name: dict[str, Key | set[Key]] = {}
        self._rules = 0
        self._waiting: list[tuple[tuple[str, ...], asyncio.Future[bool]]] = []
        self._asking: asyncio.Task[None] | None = None
        self.stream = RevocationStream(redis, log, self.drop)

    def __len__(self) -> int:
        return len(self._found)

    def known(self, service: str, token: bytes) -> Finding[T] | None:
        """The finding, if nothing needs to be asked. The hot path."""
        found = self._found.get((service, hashlib.sha256(token).digest()))
        if (
            found is not None
            and found.generation == self.stream.generation
            and self.stream.synced
            and time.time() < found.token.expires + LEEWAY_SECONDS
        ):
            return found
        return None

    async def find(
        self, service: str, token: bytes, judge: Callable[[], tuple[AccessToken, T]]
    ) -> Finding[T] | None:
        """The finding after asking, or None when the token has been revoked.

        Args:
            judge: verifies the token and gives the answer to it; raises what it raises.

        Raises:
            StoreUnavailable: it cannot be known, and no finding is young enough.
        """
        key = (service, hashlib.sha256(token).digest())
        rules = self._rules
        before = self._found.get(key)
        if before is None or time.time() >= before.token.expires + LEEWAY_SECONDS:
            self._forget(key)
            before = None
            accepted, answer = judge()
            found = Finding(accepted, answer, -1, 0.0)
        else:
            found = before
        stream = self.stream
        mark = (stream.synced, stream.generation, stream.events)
        try:
            revoked = await self._revoked(found.names)
        except StoreUnavailable:
            if before is not None and time.monotonic() - self._last_known(before) <= self._grace:
                return before
            raise
        if revoked:
            self._forget(key)
            return None
        # A revocation that came in while the answer was under way is not in it: then the finding counts
        # for this request, and is asked about at the next.
        unbroken = stream.synced and mark == (True, stream.generation, stream.events)
        found.generation = stream.generation if unbroken else -1
        found.confirmed = time.monotonic()
        if rules == self._rules:
            self._keep(key, found)
        return found

    async def _revoked(self, names: tuple[str, ...]) -> bool:
        if self.stream.away:
            raise StoreUnavailable("away")
        if not names:
            return False
        # All tokens that come while a question is under way are in the next one: as a rule none is revoked.
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((names, answer))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_together())
        return await answer and await self._ask(names)

    async def _ask_together(self) -> None:
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                answers = [answer for _, answer in waiting]
                try:
                    some = await self._ask({name for names, _ in waiting for name in names})
                except Exception as error:  # theirs, each of them
                    for answer in filter(_open, answers):
                        answer.set_exception(error)
                else:
                    for answer in filter(_open, answers):
                        answer.set_result(some)
        finally:
            self._asking = None

    async def _ask(self, names: Iterable[str]) -> bool:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await self._store.revoked(*names)
        except TimeoutError:
            raise StoreUnavailable("slow") from None

    def _last_known(self, found: Finding[T]) -> float:
        """Until when the finding is known to have held: as long as the stream did, or when last asked."""
        covered = not self.stream.synced and found.generation == self.stream.generation - 1
        return self.stream.lost_at if covered and found.generation >= 0 else found.confirmed

    def _keep(self, key: Key, found: Finding[T]) -> None:
        if key not in self._found:
            if len(self._found) >= ENTRIES:
                self._forget(next(iter(self._found)))
            self._found[key] = found
            for name in found.names:
                held = self._by_name.setdefault(name, key)
                if isinstance(held, set):
                    held.add(key)
                elif held is not key:
                    self._by_name[name] = {held, key}

    def _forget(self, key: Key) -> None:
        found = self._found.pop(key, None)
        for name in found.names if found is not None else ():
            held = self._by_name.get(name)
            if isinstance(held, set):
                held.discard(key)
            if held == key or held == set():
                del self._by_name[name]

    def clear(self) -> None:
        """Forget everything, also what is being found: the rules that it was judged by have changed."""
        self._rules += 1
        self._found.clear()
        self._by_name.clear()

    def drop(self, name: str) -> None:
        """Forget every finding that a revocation of this name ends."""
        self.stream.events += 1
        held = self._by_name.get(name, set())
        for key in list(held) if isinstance(held, set) else [held]:
            self._forget(key)


def _open(answer: asyncio.Future[bool]) -> bool:
    return not answer.done()
