"""The ASGI application: `/mcp` in both ages of the protocol, and `/health`."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from gatehouse_bridge import jsonrpc, mirrored, rounds, stateless
from gatehouse_bridge.child import CAPABILITIES_KEY, VERSION, Child, ChildError
from gatehouse_bridge.http import (
    JSON,
    LOOPBACK,
    PROMPT_SECONDS,
    DisconnectedError,
    Finish,
    Headers,
    Receive,
    Request,
    Scope,
    Send,
    TooLargeError,
    TooMuchError,
    TooSlowError,
    hostname,
)
from gatehouse_bridge.jsonrpc import Message, MessageError
from gatehouse_bridge.launch import Launcher
from gatehouse_bridge.log import Log
from gatehouse_bridge.metrics import CONTENT_TYPE, Metrics
from gatehouse_bridge.pool import Key, Pool
from gatehouse_bridge.process import MAX_MESSAGE
from gatehouse_bridge.repeat import repeat
from gatehouse_bridge.rounds import Rounds
from gatehouse_bridge.session import Session
from gatehouse_bridge.settings import Settings
from gatehouse_bridge.shares import Shares
from gatehouse_bridge.stateless import Exchange, Refusal
from gatehouse_bridge.stream import Kept, Stream
from gatehouse_bridge.tools import Permit, UnknownToolError
from gatehouse_service import systemd
from gatehouse_service.tools import groups_of

EVENT_STREAM = b"text/event-stream"
# The bodies of all requests that are being read or wait for a child; who has too much of it is told to come back.
BODIES_MAX = 128 * 1024 * 1024
# What is kept of all streams that nobody reads, for clients that may come back.
KEPT_MAX = 64 * 1024 * 1024
# A child that nobody has used for so long gives its place to one who needs it.
EVICTABLE_SECONDS = 60.0
# Sessions of one user; above it the one ends that he has left alone longest.
SESSIONS_MAX = 1000
# A person may take so long to answer what a server asks.
ROUND_SECONDS = 600.0
# The answer to a request of 2026-07-28 is plain JSON, with a telling status, unless it takes longer than this.
STATELESS_PATIENCE = 15.0
# How long a server's list of tools is taken to be the same, where only it can know.
MIRRORS_SECONDS = 60.0
# A call whose client could not come back for the answer is not cut off by the end of a stream's life. It gets so long.
CALL_SECONDS = 3600.0
# One and the same list, so that an answer's head is made once for all that have no more.
NO_HEADERS: Headers = []
# A child that starts takes its time; until it has answered there is no session to come back to.
START_PATIENCE = 60.0


@dataclass(slots=True)
class Turn:
    """A request that has begun, for whoever answers it without a task.

    Attributes:
        stream: What the answer comes on.
        patience: Seconds that it may take to be told in one piece.
        headers: Headers besides those of the content.
        finish: What becomes of the answer on its way; None where it leaves as it is.
        answer: Answers the long way: a request to answer, who reads the stream, and the seconds left of the patience. `end` is
            still to be called.
        end: To be called at the end, with whether the client got the answer in one piece.
    """

    stream: Stream
    patience: float
    headers: Headers
    finish: Finish | None
    answer: Callable[[Request, object, float], Awaitable[None]]
    end: Callable[[bool], None]


class App:
    """The bridge.

    Args:
        settings: Its configuration.
        launcher: Starts children.
        log: The log.
    """

    def __init__(self, settings: Settings, launcher: Launcher, log: Log) -> None:
        """See the class."""
        self._service = settings.service
        self._tools = settings.tools
        self._isolation: Literal["shared", "per_user", "per_session"] = settings.bridge_isolation
        self._idle_seconds = settings.bridge_idle_seconds
        self._life = settings.stream_life
        self._hosts = LOOPBACK | {(urlsplit(settings.public_url).hostname or "").lower()}
        self._log = log
        self._metrics = Metrics()
        self._launcher = launcher
        self._pool = Pool(
            launcher,
            log,
            self._metrics,
            settings.bridge_max_children,
            settings.bridge_warm,
            settings.bridge_idle_seconds,
            self._make_room,
        )
        self._sessions: dict[str, Session] = {}
        # How many of them each user has.
        self._opened: Counter[str] = Counter()
        self._exchanges: set[Exchange] = set()
        self._rounds = Rounds()
        self._mirrors: WeakKeyDictionary[Child, tuple[mirrored.Tools, float]] = WeakKeyDictionary()
        self._kept = Kept(KEPT_MAX)
        self.bodies = Shares(BODIES_MAX)
        self._draining = False
        self._metrics.watch(
            children=lambda: self._pool.count,
            warm=lambda: self._pool.warm,
            most=settings.bridge_max_children,
            sessions=lambda: len(self._sessions),
            bodies=lambda: self.bodies.held,
            limits=launcher.limits,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the application's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        request = Request(scope, receive, send)
        if not self._host_is_ours(request):
            await request.reply(421, jsonrpc.error(None, jsonrpc.INVALID_REQUEST, "Unknown host"))
        elif request.path == "/health":
            await request.reply(200, self._health())
        elif request.path == "/metrics" and request.from_here:
            await request.reply(200, self._metrics.text(), content_type=CONTENT_TYPE)
        elif request.path.rstrip("/") != "/mcp":
            await request.reply(
                404, jsonrpc.error(None, jsonrpc.INVALID_REQUEST, "Not found; the endpoint is /mcp")
            )
        elif request.method == "POST":
            await self._post(request)
        elif request.method in ("GET", "DELETE") and not stateless.is_stateless(request):
            await (self._get if request.method == "GET" else self._delete)(request)
        else:
            allowed = b"POST" if stateless.is_stateless(request) else b"GET, POST, DELETE"
            await request.reply(405, headers=[(b"allow", allowed)])

    def drain(self) -> None:
        """Open no more sessions, and end the streams that would never end; answers under way go on."""
        self._draining = True
        for session in self._sessions.values():
            session.end_standalone()
        for exchange in self._exchanges:
            exchange.close()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        tasks = [
            asyncio.create_task(systemd.watchdog()),
            asyncio.create_task(repeat(min(5.0, self._idle_seconds / 4), self._reap)),
        ]
        self._pool.begin()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for task in tasks:
            task.cancel()
        for session in [*self._sessions.values()]:
            self._close(session, "stopping")
        await self._pool.close()
        await send({"type": "lifespan.shutdown.complete"})

    def _health(self) -> str:
        body = {
            "status": "ok",
            "service": self._service,
            "sessions": len(self._sessions),
            "children": self._pool.count,
            "limits": self._launcher.limits,
            "confined": self._launcher.confined,
        }
        return jsonrpc.dump(body)

    def _host_is_ours(self, request: Request) -> bool:
        return hostname(request.headers.get(b"host", b"")) in self._hosts

    # POST

    def begin(self, request: Request, body: bytes) -> Turn | None:
        """Begin a POST to `/mcp` whose body is there, if it is a message for a child that can take it at once.

        Returns:
            None where it is anything else: then nothing has happened, and it is for `__call__` to answer.
        """
        if request.common is None:
            request.common = (
                self._host_is_ours(request) and _is_json(request) and request.accepts(JSON, EVENT_STREAM)
            )
        if not request.common:
            return None
        try:
            message = Message.parse(body)
            permit = self._permit(request) if self._tools.restrict else None
            if permit is not None:
                permit.check(message)
            if stateless.is_stateless(request, message):
                return self._begin_stateless(request, message, permit) if message.is_request else None
            if message.method == "initialize":
                return self._begin_session(request, message)
            session = self._owned(request)
            if session is None or not session.child.process.ready:
                return None
            session.permit = permit
            if message.is_request:
                return self._turn(session, session.request_now(message))
            session.accept_now(message)
        except (MessageError, Refusal):
            return None
        session.connections += 1
        stream = Stream(0)
        stream.put("", final=True)

        async def accepted(request: Request, _reader: object, _patience: float) -> None:
            await request.reply(202)

        return Turn(
            stream, PROMPT_SECONDS, NO_HEADERS, lambda text: (202, text), accepted, lambda _: session.left()
        )

    def _begin_session(self, request: Request, message: Message) -> Turn | None:
        """Open a session on a child that runs, and has been initialized by the bridge."""
        if self._draining or not message.is_request or request.session is not None:
            return None
        user = request.user
        # A child of the client's own is never there before its session.
        child = self._pool.existing(self._key(user, request)) if self._isolation != "per_session" else None
        if child is None:
            return None
        session = self._open(request, child, user)
        return self._turn(session, session.request_now(message), first=True)

    def _turn(self, session: Session, stream: Stream, first: bool = False) -> Turn:
        session.connections += 1

        async def answer(request: Request, reader: object, patience: float) -> None:
            await self._answer(request, session, stream, patience, first=first, reader=reader)

        def end(complete: bool) -> None:
            if complete:
                session.forget(stream)
            session.left()

        return Turn(stream, PROMPT_SECONDS, session.headers, session.hello if first else None, answer, end)

    def _begin_stateless(self, request: Request, message: Message, permit: Permit | None) -> Turn | None:
        if message.method in stateless.REMOVED or message.method == "subscriptions/listen":
            return None
        stateless.check(request, message)
        key = self._key(request.user, request, self._offered(message))
        child = self._pool.existing(key, modern=True) if self._pool.probed else None
        if child is None or not child.process.ready or message.param("requestState") is not None:
            return None
        if not child.modern:
            child.on_ask = self._rounds.ask
        elif message.method == "tools/call":
            tools = self._mirrors_known(child)
            if tools is None:
                return None
            mirrored.check(request, message, tools)
        exchange = Exchange(child, message, permit, key)
        try:
            exchange.begin_now()
        except MessageError:
            exchange.end()
            raise
        self._exchanges.add(exchange)

        async def answer(request: Request, reader: object, patience: float) -> None:
            await self._answer_stateless(request, exchange, patience, reader)

        def end(_complete: bool) -> None:
            self._exchanges.discard(exchange)
            exchange.end()

        return Turn(exchange.stream, STATELESS_PATIENCE, NO_HEADERS, exchange.finish, answer, end)

    async def _post(self, request: Request) -> None:
        if not _is_json(request):
            await self._refuse(request, 415, "Content-Type must be application/json")
            return
        if not request.accepts(JSON, EVENT_STREAM):
            await self._refuse(request, 406, "Accept must list application/json and text/event-stream")
            return
        try:
            message = Message.parse(await request.body(MAX_MESSAGE, partial(self._hold, request)))
            await self._serve(request, message)
        except TooMuchError:
            await self._refuse(request, 503, "Too much under way", headers=[(b"retry-after", b"1")])
        except TooSlowError:
            await self._refuse(request, 408, "The message did not come", headers=[(b"connection", b"close")])
        except TooLargeError:
            await self._refuse(request, 413, "The message is larger than 10 MiB")
        except DisconnectedError:
            return
        except MessageError as error:
            await self._refuse(request, 400, str(error), error.code)
        finally:
            self._release(request)

    def _hold(self, request: Request, size: int) -> bool:
        """Count what has come of the body, until `_release`; not where that would be too much."""
        held = self.bodies.take(request.user, size)
        request.held += size if held else 0
        return held

    def _release(self, request: Request) -> None:
        """The body is on its way to the child, or is not needed any more."""
        self.bodies.give(request.user, request.held)
        request.held = 0

    async def _serve(self, request: Request, message: Message) -> None:
        permit = self._permit(request)
        if permit is not None:
            try:
                permit.check(message)
            except UnknownToolError as error:
                # As the child would answer for a tool that it does not know.
                status = stateless.STATUS[error.code] if stateless.is_stateless(request, message) else 200
                await self._refuse(request, status, str(error), error.code, message.id)
                return
        if stateless.is_stateless(request, message):
            await self._stateless(request, message, permit)
        elif message.method == "initialize" and message.is_request and request.session is None:
            await self._initialize(request, message)
        else:
            session = await self._session(request)
            if session is not None:
                # Groups may have changed since the session was opened.
                session.permit = permit
                await self._in_session(request, session, message)

    async def _initialize(self, request: Request, message: Message) -> None:
        user = request.user
        try:
            if self._draining:
                raise ChildError("child_not_started", "The service is stopping; try again")
            if self._isolation == "per_session":
                child = await self._pool.own(user)
            else:
                child = await self._joint(self._key(user, request), user)
        except ChildError as error:
            await self._failed(request, error, message.id)
            return
        session = self._open(request, child, user)
        try:
            await self._in_session(request, session, message)
        finally:
            if not session.version:
                self._close(session, "not_initialized")

    def _open(self, request: Request, child: Child, user: str) -> Session:
        if self._opened[user] >= SESSIONS_MAX:
            own = (session for session in self._sessions.values() if session.owner == user)
            self._close(min(own, key=lambda s: (s.connections > 0, s.idle_since)), "evicted")
        session = Session(child, user, self._lost, self._kept)
        self._sessions[session.id] = session
        self._opened[user] += 1
        self._log(
            "session_opened", session=session.id[:8], user=user, client=request.header(b"x-gatehouse-client")
        )
        return session

    async def _in_session(self, request: Request, session: Session, message: Message) -> None:
        session.connections += 1
        try:
            if not message.is_request:
                await session.accept(message)
                await request.reply(202)
                return
            stream = await session.request(message)
            self._release(request)
            first = message.method == "initialize"
            await self._answer(
                request, session, stream, START_PATIENCE if first else PROMPT_SECONDS, first=first
            )
        except ChildError as error:
            await self._failed(request, error, message.id if message.is_request else None)
        finally:
            session.left()

    async def _answer(
        self,
        request: Request,
        session: Session,
        stream: Stream,
        patience: float,
        first: bool = False,
        reader: object | None = None,
    ) -> None:
        headers = [*session.headers]

        def hello(text: str) -> tuple[int, str]:
            if not session.initialized(text):
                headers.clear()
            return 200, text

        # Since 2025-11-25 a client comes back for what is left of an answer.
        polls = session.version == "2025-11-25"
        complete = await request.reply_with(
            stream,
            headers,
            patience=patience,
            life=self._life() if polls else CALL_SECONDS,
            expire=None if polls else partial(session.give_up, stream),
            prime=polls,
            finish=hello if first else None,
            reader=reader,
        )
        if complete:
            session.forget(stream)

    # GET and DELETE

    async def _get(self, request: Request) -> None:
        if not request.accepts(EVENT_STREAM):
            await self._refuse(request, 406, "Accept must list text/event-stream")
            return
        session = await self._session(request)
        if session is None:
            return
        found = session.stream(request.header(b"last-event-id"))
        if found is None:
            await self._refuse(request, 400, "The stream of that Last-Event-ID is not kept any more")
            return
        stream, after = found
        session.connections += 1
        try:
            await request.reply_with(
                stream,
                session.headers,
                patience=None,
                life=self._life(),
                # So that a client to whom nothing has been said yet can say where it was.
                prime=session.version == "2025-11-25" and after is None,
                after=after,
            )
        finally:
            session.left()

    async def _delete(self, request: Request) -> None:
        session = await self._session(request)
        if session is not None:
            self._close(session, "deleted")
            await request.reply(204)

    # Sessions

    async def _session(self, request: Request) -> Session | None:
        """The session that a request names, if it is the user's; answers the request itself if it is not."""
        if request.session is None:
            await self._refuse(request, 400, "Missing session id: initialize first")
            return None
        session = self._owned(request)
        if session is None:
            await self._refuse(request, 404, "No such session: initialize again", identifier=None)
        return session

    def _owned(self, request: Request) -> Session | None:
        # Whether it is another's or none at all, no one learns.
        session = self._sessions.get(request.session or "")
        return session if session is not None and session.owner == request.user else None

    def _make_room(self, user: str) -> None:
        """Have the child end that has been left alone longest, with its sessions: the user's own first.

        Where all are in use, a user who has none gets a place of the user who has most, who keeps one at least.
        """
        owners = {child: {*key[:1]} for key, child in self._pool.joint_children()}
        for session in self._sessions.values():
            owners.setdefault(session.child, set()).add(session.owner)
        now = time.monotonic()
        left: list[tuple[bool, float, Child]] = []
        for child, users in owners.items():
            since = _left_since(child)
            if since is not None and (users == {user} or now - since >= EVICTABLE_SECONDS):
                left.append((users != {user}, since, child))
        if left:
            _, _, child = min(left, key=lambda each: each[:2])
            for session in [session for session in self._sessions.values() if session.child is child]:
                self._close(session, "evicted")
            self._pool.release(child)
        elif not self._pool.serves(user):
            of_one = [(owner, child) for child, users in owners.items() if len(users) == 1 for owner in users]
            places = Counter(owner for owner, _ in of_one)
            most, count = max(places.items(), key=lambda each: each[1], default=("", 0))
            if count > 1:
                child = min(
                    (child for owner, child in of_one if owner == most), key=lambda child: len(child.calls)
                )
                self._log("child_evicted", "warning", pid=child.process.pid)
                # Who waits for its answers is told, as when it ends by itself.
                self._pool.release(child)

    def _close(self, session: Session, reason: str) -> None:
        if not self._forget(session):
            return
        session.close()
        if not session.child.shared:
            self._pool.release(session.child)
        self._log("session_closed", session=session.id[:8], reason=reason)

    def _lost(self, session: Session) -> None:
        if self._forget(session):
            self._log("session_closed", "warning", session=session.id[:8], reason="child_exited")

    def _forget(self, session: Session) -> bool:
        """Know a session no more; whether it was known."""
        known = self._sessions.pop(session.id, None) is not None
        self._opened[session.owner] -= known
        if not self._opened[session.owner]:
            del self._opened[session.owner]
        return known

    async def _reap(self) -> None:
        now = time.monotonic()
        self._rounds.expire(min(ROUND_SECONDS, self._idle_seconds))
        for session in [*self._sessions.values()]:
            if not session.connections and now - session.idle_since >= self._idle_seconds:
                self._close(session, "idle")

    # 2026-07-28

    async def _stateless(self, request: Request, message: Message, permit: Permit | None) -> None:
        if not message.is_request:
            version = request.version
            if message.is_response:
                await self._refuse(request, 400, "This revision has no responses from a client")
            elif version != VERSION:
                refusal = stateless.unsupported(version)
                await request.reply(refusal.status, refusal.response(None))
            else:
                # It defines none; there is nothing that one could act on.
                await request.reply(202)
            return
        exchange = None
        try:
            stateless.check(request, message)
            user = request.user
            offered = self._offered(message)
            key = self._key(user, request, offered)
            # A server of that age makes something of `requestState` itself.
            again = message.param("requestState") is not None
            child = (
                None if again and self._pool.ancient else await self._joint(key, user, offered, modern=True)
            )
            if child is None or (again and not child.modern):
                exchange = self._rounds.resume(key, message, permit)
                message.forget()
                self._exchanges.add(exchange)
            else:
                if not child.modern:
                    child.on_ask = self._rounds.ask
                elif message.method == "tools/call":
                    mirrored.check(request, message, await self._mirrored(child))
                exchange = Exchange(child, message, permit, key)
                self._exchanges.add(exchange)
                await exchange.begin()
            listens = message.method == "subscriptions/listen"
            if not listens:  # what it listens to is kept
                self._release(request)
            await self._answer_stateless(request, exchange, None if listens else STATELESS_PATIENCE)
        except Refusal as refusal:
            await request.reply(refusal.status, refusal.response(message.id))
        except ChildError as error:
            await self._failed(request, error, message.id)
        finally:
            if exchange is not None:
                self._exchanges.discard(exchange)
                exchange.end()

    async def _answer_stateless(
        self, request: Request, exchange: Exchange, patience: float | None, reader: object | None = None
    ) -> None:
        listens = patience is None
        await request.reply_with(
            exchange.stream,
            [],
            patience=patience,
            life=self._life() if listens else CALL_SECONDS,
            expire=exchange.close if listens else exchange.give_up,
            resumable=False,
            finish=exchange.finish,
            reader=reader,
        )

    def _offered(self, message: Message) -> Mapping[str, Any]:
        # Only where one child has one client is it known whom the child asks.
        alone = self._isolation == "per_session"
        return rounds.asked_of(message.meta, CAPABILITIES_KEY) if alone else {}

    async def _mirrored(self, child: Child) -> mirrored.Tools:
        """Which of its tools mirror arguments in headers."""
        known = self._mirrors_known(child)
        if known is None:
            known = await mirrored.tools_of(child)
            self._mirrors[child] = (known, time.monotonic())
        return known

    def _mirrors_known(self, child: Child) -> mirrored.Tools | None:
        known, since = self._mirrors.get(child, ({}, -MIRRORS_SECONDS))
        return known if time.monotonic() - since < MIRRORS_SECONDS else None

    # Common

    def _key(self, user: str, request: Request, offered: Mapping[str, Any] | None = None) -> Key:
        """Who has the same child."""
        keys: dict[str, Key] = {
            "shared": (),
            "per_user": (user,),
            # Without a session, what comes nearest to one: what one user does with one client, which can be asked the same.
            "per_session": (user, request.header(b"x-gatehouse-client") or "", jsonrpc.dump(offered or {})),
        }
        return keys[self._isolation]

    async def _joint(
        self, key: Key, user: str, offered: Mapping[str, Any] | None = None, modern: bool = False
    ) -> Child:
        child = await self._pool.joint(key, user, offered or {}, modern)
        child.one_person = self._isolation != "shared"
        return child

    def _permit(self, request: Request) -> Permit | None:
        if not self._tools.restrict:
            return None
        return Permit(self._tools, groups_of(request.header(b"x-gatehouse-groups") or ""))

    async def _failed(self, request: Request, error: ChildError, identifier: str | None) -> None:
        """A JSON-RPC error where someone waits for an answer; only that is told to a model's user."""
        self._metrics.failed(error.reason)
        await request.reply(200 if identifier else 503, error.response(identifier))

    async def _refuse(
        self,
        request: Request,
        status: int,
        text: str,
        code: int = jsonrpc.INVALID_REQUEST,
        identifier: str | None = None,
        headers: Headers | None = None,
    ) -> None:
        await request.reply(status, jsonrpc.error(identifier, code, text), headers)


def _left_since(child: Child) -> float | None:
    """Since when nobody has used a child; None while somebody does."""
    sessions = [client for client in child.clients if isinstance(client, Session)]
    if len(sessions) < len(child.clients) or any(session.connections for session in sessions):
        return None
    if sessions:
        return max(session.idle_since for session in sessions)
    return child.idle_since if child.idle else None


def _is_json(request: Request) -> bool:
    return request.headers.get(b"content-type", b"").split(b";")[0].strip().lower() == JSON
