"""The HTTP side, on bare ASGI: a request, a plain answer, and an answer that may become an event stream."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from gatehouse_bridge.stream import Stream

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
# What a final message becomes on its way to the client: the status and the text.
Finish = Callable[[str], tuple[int, str]]

# An answer that takes longer is told to the client as an event stream, which can be resumed.
PROMPT_SECONDS = 0.5
# Between comments on a quiet stream, so that nothing on the way takes it for dead.
KEEP_ALIVE_SECONDS = 15.0

# After how long a client whose stream broke comes back.
RETRY_MILLISECONDS = 1000

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

JSON = b"application/json"
EVENTS: Headers = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


# A body may take so long, and beside that as long as it would at this rate, which every link has on which somebody works.
BODY_SECONDS = 10.0
BODY_BYTES_PER_SECOND = 32 * 1024


class TooLargeError(Exception):
    """The body is larger than allowed."""


class TooSlowError(Exception):
    """The body does not come."""


class TooMuchError(Exception):
    """More than may be held of bodies."""


class DisconnectedError(Exception):
    """The client has gone."""


@lru_cache(64)
def _media_types(accept: bytes) -> frozenset[bytes]:
    return frozenset(part.split(b";")[0].strip().lower() for part in accept.split(b","))


@lru_cache(64)
def hostname(host: bytes) -> str | None:
    """The name in a `Host` header, without a port; None where there is none."""
    try:
        return urlsplit(f"//{host.decode('latin-1')}").hostname
    except ValueError:
        return None


def plain(text: str, headers: Headers, content_type: bytes) -> tuple[Headers, bytes]:
    """The header fields and the body of an answer in one piece."""
    body = text.encode()
    fields = [(b"content-length", b"%d" % len(body)), *headers]
    if body:
        fields.append((b"content-type", content_type))
    return fields, body


class Request:
    """One HTTP request."""

    __slots__ = (
        "_client",
        "_receive",
        "_send",
        "common",
        "headers",
        "held",
        "method",
        "path",
        "repeated",
        "session",
        "user",
        "version",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        self._receive, self._send = receive, send
        self._client: str = (scope.get("client") or ("",))[0]
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        # Bytes of its body that are counted as under way.
        self.held = 0
        # Whether its headers are those of a common request; None until someone looks.
        self.common: bool | None = None
        self.headers: dict[bytes, bytes] = {}
        # Headers that stand more than once, of which two readers could take different ones.
        self.repeated: set[bytes] = set()
        for name, value in scope["headers"]:
            if name in self.headers:
                self.repeated.add(name)
                value = self.headers[name] + b", " + value
            # Space around a value is no part of it (RFC 9110, section 5.5).
            self.headers[name] = value.strip(b" \t")
        # Who asks, as the gateway says; in which session; and in which revision.
        self.user = self.header(b"x-gatehouse-user") or ""
        self.session = self.header(b"mcp-session-id")
        self.version = self.header(b"mcp-protocol-version")

    def header(self, name: bytes) -> str | None:
        """A header's value, None where it is missing; ISO 8859-1 as HTTP has it."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def from_here(self) -> bool:
        """Whether it was made on this host, to a loopback address, and came through no proxy."""
        named = hostname(self.headers.get(b"host", b""))
        forwarded = any(name.startswith((b"x-forwarded-", b"x-gatehouse-")) for name in self.headers)
        return (
            self._client in LOOPBACK
            and named in LOOPBACK
            and not forwarded
            and b"forwarded" not in self.headers
        )

    def accepts(self, *types: bytes) -> bool:
        """Whether the client takes all these media types (RFC 9110, section 12.5.1)."""
        offered = _media_types(self.headers.get(b"accept", b"*/*"))
        return b"*/*" in offered or all(
            kind in offered or kind.partition(b"/")[0] + b"/*" in offered for kind in types
        )

    async def body(self, limit: int, hold: Callable[[int], bool]) -> bytes:
        """The whole body.

        Args:
            limit: Bytes that it may have.
            hold: Asked for each part, by its size, whether it may be held.

        Raises:
            TooLargeError: it has more than `limit` bytes.
            TooMuchError: a part may not be held.
            TooSlowError: it takes too long.
            DisconnectedError: the client went before it had sent all.
        """
        declared = self.headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit:
            raise TooLargeError
        parts, size = [], 0
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while True:
            try:
                async with asyncio.timeout_at(begun + BODY_SECONDS + size / BODY_BYTES_PER_SECOND):
                    message = await self._receive()
            except TimeoutError:
                raise TooSlowError from None
            if message["type"] == "http.disconnect":
                raise DisconnectedError
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise TooLargeError
            if not hold(len(part)):
                raise TooMuchError
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def reply(
        self,
        status: int,
        text: str = "",
        headers: Headers | None = None,
        content_type: bytes = JSON,
    ) -> None:
        """Answer with JSON unless told otherwise, or with nothing."""
        fields, body = plain(text, headers or [], content_type)
        await self._send({"type": "http.response.start", "status": status, "headers": fields})
        await self._send({"type": "http.response.body", "body": body})

    async def reply_with(
        self,
        stream: Stream,
        headers: Headers,
        patience: float | None,
        life: float,
        expire: Callable[[], None] | None = None,
        prime: bool = False,
        resumable: bool = True,
        after: int | None = None,
        finish: Finish | None = None,
        reader: object | None = None,
    ) -> bool:
        """Answer with what comes on a stream.

        Args:
            stream: The stream.
            headers: Headers besides those of the content.
            patience: Seconds that the final message may take to be answered as plain JSON, as long as nothing
                comes before it; None to begin with the event stream at once.
            life: Seconds that an event stream may last.
            expire: Called when it has lasted so long, to bring what it is for to an end; None where it just ends, and its client
                may come back for the rest.
            prime: Whether an event stream begins with an event that has only an id (MCP 2025-11-25).
            resumable: Whether events have ids.
            after: Number of the last event that the client has.
            finish: Turns the final message into what the client gets, and its status where that is still open.
            reader: Who reads the stream already on behalf of this request; None where nobody does.

        Returns:
            Whether the client got all in one piece. Of an event stream it is not known how much it got: it may come back.
        """
        reader = reader or stream.attach(after)
        watcher: asyncio.Task[None] | None = None
        try:
            if patience is not None:
                if stream.is_quiet_for(reader):
                    await stream.wait(min(patience, PROMPT_SECONDS))
                if stream.is_quiet_for(reader) and patience > PROMPT_SECONDS:
                    watcher = asyncio.get_running_loop().create_task(self._watch(stream, reader))
                    await stream.wait(patience - PROMPT_SECONDS)
                events = stream.take(reader) if stream.answered and stream.waiting == 1 else None
                if events:
                    status, text = finish(events[0].text) if finish else (200, events[0].text)
                    await self.reply(status, text, headers)
                    return True
            watcher = watcher or asyncio.get_running_loop().create_task(self._watch(stream, reader))
            await self._events(stream, reader, headers, life, expire, prime, resumable, finish)
            return False
        finally:
            stream.detach(reader)
            if watcher is not None:
                watcher.cancel()
                with suppress(asyncio.CancelledError):
                    await watcher

    async def _events(
        self,
        stream: Stream,
        reader: object,
        headers: Headers,
        life: float,
        expire: Callable[[], None] | None,
        prime: bool,
        resumable: bool,
        finish: Finish | None,
    ) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": [*EVENTS, *headers]})
        retry = f"retry: {RETRY_MILLISECONDS}\n" if resumable else ""
        # Where another connection has taken over, what was read is that one's to say.
        prime = prime and stream.is_read_by(reader)
        name = f"id: {stream.number}-{stream.read}\n" if prime else ""
        await self._send_part(f"{name}{retry}{'data:' if prime else ': open'}\n\n".encode())
        until = time.monotonic() + life
        while True:
            left = until - time.monotonic()
            if left <= 0 and expire is not None:
                expire()
                expire, until = None, math.inf
            elif left <= 0:
                stream.detach(reader)
            events = stream.take(reader)
            if events is None:
                await self._send({"type": "http.response.body", "body": b""})
                return
            if not events:
                quiet = await stream.wait(min(KEEP_ALIVE_SECONDS, left))
                if quiet and left > KEEP_ALIVE_SECONDS:
                    await self._send_part(b": keep-alive\n\n")
                continue
            parts = []
            for event in events:
                text = event.text
                if finish and stream.is_answer(event):
                    _, text = finish(text)
                name = f"id: {stream.number}-{event.number}\n" if resumable else ""
                parts.append(f"{name}event: message\ndata: {text}\n\n")
            await self._send_part("".join(parts).encode())

    async def _send_part(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _watch(self, stream: Stream, reader: object) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        stream.detach(reader)
