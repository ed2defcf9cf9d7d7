"""Sessions of the earlier revisions: whose they are, what of them can be sent again, and how many there may be.

The SDK keeps a session and its streams. What it leaves to a service is here: a session is one user's, the events of one
are no one else's, and nobody has more of them, or more calls under way, than a share.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, MutableMapping
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from mcp.server.context import CallNext, HandlerResult
from mcp.server.lowlevel import Server
from mcp.server.streamable_http import (
    GET_STREAM_KEY,
    EventCallback,
    EventMessage,
    EventStore,
    StreamableHTTPServerTransport,
)
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, JSONRPCMessage
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from gatehouse_echo.settings import EchoSettings
from gatehouse_service.budget import Budget, TooMuchError
from gatehouse_service.configuration import ServiceSettings
from gatehouse_service.native import App, Context, Receive, Scope, Send, headers_of, refuse

# What is kept of a session's events.
MAX_EVENTS = 256
MAX_BYTES = 256 * 1024
# After how long a client whose stream ended comes back.
RETRY_MILLISECONDS = 1000
# Calls under way of one user, in whatever session, and of all.
CALLS_OF_ONE, CALLS_OF_ALL = 64, 1024


@dataclass(frozen=True)
class Event:
    """What was sent on one of a session's streams; no message where it only marks the stream's beginning."""

    id: str
    stream: str
    message: JSONRPCMessage | None
    size: int


@dataclass(eq=False)
class Session:
    """One session, for as long as the SDK serves it."""

    owner: str
    opened: float = field(default_factory=time.time)
    requests: int = 0
    # Bytes of its largest message: the SDK keeps the last one until the next comes, and what it was opened with.
    size: int = 0
    count: int = 0
    subscribed: set[str] = field(default_factory=set)
    events: deque[Event] = field(default_factory=deque)
    kept: int = 0
    dropped: int = 0
    # Event ids of one session are of no use in another, and cannot be guessed.
    _prefix: str = field(default_factory=lambda: secrets.token_hex(8))
    _last: int = 0

    def keep(self, stream: str, message: JSONRPCMessage | None) -> str:
        """Keep an event; the oldest go where it becomes too much. Gives its id."""
        self._last += 1
        size = len(message.model_dump_json(by_alias=True, exclude_none=True)) if message else 0
        event = Event(f"{self._prefix}-{self._last}", stream, message, size)
        self.events.append(event)
        self.kept += size
        while len(self.events) > MAX_EVENTS or self.kept > MAX_BYTES:
            self.kept -= self.events.popleft().size
            self.dropped += 1
        return event.id

    def after(self, event_id: str) -> tuple[str, list[Event]] | None:
        """The stream of an event and what followed on it; None where the event is not kept."""
        for at, event in enumerate(self.events):
            if event.id == event_id:
                later = list(self.events)[at + 1 :]
                return event.stream, [one for one in later if one.stream == event.stream]
        return None


# The session of the request under way, and of all that the SDK does for it.
CURRENT: ContextVar[Session | None] = ContextVar("CURRENT", default=None)
# How large its body is.
SIZE: ContextVar[int] = ContextVar("SIZE")


class Events(EventStore):
    """The SDK's view of what is kept. It names a stream by the request's id, which is unique in a session alone."""

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        """Keep an event of the current session; gives its id."""
        session = CURRENT.get()
        if session is None:
            raise LookupError("an event outside a session")
        return session.keep(stream_id, message)

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """Send again what followed an event of the current session; gives the stream, None where it is not kept."""
        session = CURRENT.get()
        found = session.after(last_event_id) if session else None
        if found is None:
            return None
        stream, events = found
        for event in events:
            if event.message is not None:
                await send_callback(EventMessage(event.message, event.id))
        return stream


class _Manager(StreamableHTTPSessionManager):
    """The SDK's, that tells of a session's end."""

    def __init__(self, on_end: Callable[[str], None], **settings: Any) -> None:
        super().__init__(**settings)
        self._on_end = on_end

    async def _discard_session(self, session_id: str, transport: StreamableHTTPServerTransport) -> None:
        # The one place where every session ends, for whatever reason; the SDK has no public one.
        self._on_end(session_id)
        await super()._discard_session(session_id, transport)


class StatefulApp(App):
    """The application with sessions. Requests of 2026-07-28 have none, here either."""

    def __init__(self, settings: ServiceSettings, echo: EchoSettings, server: Server[Any]) -> None:
        """See the class."""
        self._life = settings.stream_life
        self._places = Budget(echo.max_sessions_per_user, echo.max_sessions)
        self._calls = Budget(CALLS_OF_ONE, CALLS_OF_ALL)
        self._sessions: dict[str, Session] = {}
        server.middleware.append(self._count)
        manager = _Manager(
            self._end,
            app=server,
            event_store=Events(),
            session_idle_timeout=echo.idle_seconds,
            max_sessions=echo.max_sessions,
        )
        super().__init__(settings, server, manager)

    async def serve_mcp(self, scope: Scope, body: bytearray, receive: Receive, send: Send) -> None:
        """Serve one request to `/mcp`. A session that is another user's is none at all."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        SIZE.set(len(body))
        version = headers.get(b"mcp-protocol-version")
        if version is not None and version not in HANDSHAKE_PROTOCOL_VERSIONS:
            CURRENT.set(None)
            await self._mcp.handle_request(scope, receive, send)
            return
        user, name = headers.get(b"x-gatehouse-user", ""), headers.get(b"mcp-session-id")
        if name is None:
            if scope["method"] != "POST":
                await refuse(send, 400, "Missing session id: initialize first")
            else:
                await self._open(user, len(body), scope, receive, send)
            return
        session = self._sessions.get(name)
        if session is None or session.owner != user:
            await refuse(send, 404, "No such session: initialize again")
            return
        self._widen(session, len(body))
        session.requests += 1
        CURRENT.set(session)
        if scope["method"] == "GET":
            # Older revisions do not know an event without data.
            primed = version == "2025-11-25" and b"last-event-id" not in headers
            await self._listen(session if primed else None, scope, receive, send)
        else:
            await self._mcp.handle_request(scope, receive, send)

    async def _count(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Serve a message. A call can outlive the connection that it came on, and so is counted, with its body, until it ends."""
        if ctx.method != "tools/call":
            return await call_next(ctx)
        user = headers_of(ctx).get("x-gatehouse-user", "")
        try:
            with self._calls.taken(user, 1), self._bodies.taken(user, SIZE.get()):
                return await call_next(ctx)
        except TooMuchError:
            text = "You have too many calls under way: wait until some of them have ended"
            raise MCPError(code=INTERNAL_ERROR, message=text) from None

    async def _listen(self, primed: Session | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a stream that would never end until its life is over: then its client comes back, and is checked again.

        `primed` is the session where the stream begins with an event without data, from which it can be resumed.
        """
        until = asyncio.get_running_loop().time() + self._life()
        ended: bool | None = None

        async def receive_until() -> MutableMapping[str, Any]:
            try:
                async with asyncio.timeout_at(until):
                    return await receive()
            except TimeoutError:
                return {"type": "http.disconnect"}

        async def watch(message: MutableMapping[str, Any]) -> None:
            nonlocal ended
            await send(message)
            if message["type"] == "http.response.start":
                ended = False
                if message["status"] == 200:
                    name = f"id: {primed.keep(GET_STREAM_KEY, None)}\n" if primed else ""
                    event = f"{name}retry: {RETRY_MILLISECONDS}\n{'data:' if primed else ': open'}\n\n"
                    await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
            else:
                ended = not message.get("more_body", False)

        await self._mcp.handle_request(scope, receive_until, watch)
        if ended is False:
            await send({"type": "http.response.body", "body": b""})

    async def _open(self, user: str, size: int, scope: Scope, receive: Receive, send: Send) -> None:
        session = Session(user)
        with ExitStack() as unopened:
            # Taken before anything is waited for: who opens many at once gets no more than who opens one after the other.
            try:
                self._places.take(user, 1)
            except TooMuchError:
                await refuse(send, 503, "Too many sessions are open: end one, or wait until it expires")
                return
            unopened.callback(self._give_back, session)
            self._widen(session, size)

            async def watch(message: MutableMapping[str, Any]) -> None:
                if message["type"] == "http.response.start" and message["status"] < 400:
                    for name, value in message["headers"]:
                        if name.lower() == b"mcp-session-id":
                            self._sessions[value.decode("latin-1")] = session
                            unopened.pop_all()
                await send(message)

            session.requests += 1
            CURRENT.set(session)
            await self._mcp.handle_request(scope, receive, watch)

    def _widen(self, session: Session, size: int) -> None:
        """Count a session with its largest message."""
        if size > session.size:
            self._bodies.take(session.owner, size - session.size)
            session.size = size

    def _end(self, name: str) -> None:
        session = self._sessions.pop(name, None)
        if session is not None:
            self._give_back(session)

    def _give_back(self, session: Session) -> None:
        self._places.give_back(session.owner, 1)
        self._bodies.give_back(session.owner, session.size)
