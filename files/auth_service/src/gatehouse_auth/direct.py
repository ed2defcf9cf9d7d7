"""The way in for a check: the server's own connection handling, less the framework.

One parser reads every request. What it has read is answered from here when it is the plain request that
Traefik sends for a check; all else goes on as it would without this module.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gatehouse_auth.check import Answer, Internal, Question

# A request with one of these has a body, or asks for more than an answer.
MORE = frozenset({b"content-length", b"transfer-encoding", b"expect", b"upgrade"})
# How long the head of a request may take from its first byte. Who sends nothing at all is idle.
HEAD_SECONDS = 10


class Outbox:
    """Answers of one turn of the event loop, sent together at its end, after what was recorded of them.

    Together, because a write for itself wakes the peer each time.
    """

    def __init__(self, record: Callable[[], None]) -> None:
        self._record = record
        self._waiting: dict[asyncio.Transport, bytes] = {}

    def __contains__(self, transport: asyncio.Transport) -> bool:
        return transport in self._waiting

    def put(self, transport: asyncio.Transport, data: bytes) -> None:
        """Send this with the others."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.flush)
        self._waiting[transport] = self._waiting.get(transport, b"") + data

    def flush(self) -> None:
        """Send what is waiting."""
        waiting, self._waiting = self._waiting, {}
        try:
            self._record()
        finally:
            for transport, data in waiting.items():
                if not transport.is_closing():
                    transport.write(data)


def protocol(internal: Internal, record: Callable[[], None]) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, with `internal` asked before the application.

    Args:
        internal: decides.
        record: writes the audit records down; called before their answers are sent.
    """
    outbox = Outbox(record)

    class Direct(HttpToolsProtocol):
        # Since when nothing is under way, and since when a head has begun that is not complete.
        _idle = 0.0
        _begun: float | None = None
        _head_came = False
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            """A peer has connected, and is idle until it says something."""
            super().connection_made(transport)
            self._idle = self.loop.time()
            self._wait(self.timeout_keep_alive)

        def connection_lost(self, exc: Exception | None) -> None:
            """The peer, or this side, has closed."""
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            """Read on. What completes no head while nothing is under way begins one."""
            self._head_came = False
            super().data_received(data)
            if not self._head_came and self._begun is None and not self._is_under_way():
                self._begun = self.loop.time()
                self._wait(HEAD_SECONDS)

        def on_headers_complete(self) -> None:
            """Answer the request, or hand it on."""
            self._head_came, self._begun = True, None
            self._send_waiting()
            headers = dict(self.headers)
            if (
                # Answers keep the order of their requests, and wait for a peer that does not read.
                (self.cycle is None or self.cycle.response_complete)
                and not self.flow.write_paused
                and not self.transport.is_closing()
                and MORE.isdisjoint(headers)
                and self.parser.get_method() == b"GET"
                and self.parser.get_http_version() == "1.1"
                and self.parser.should_keep_alive()
                and (decision := internal.at_once(self.url, self.headers, headers)) is not None
            ):
                if isinstance(decision, Question):
                    self._answer_later(decision)
                    return
                self._put(decision)
            else:
                super().on_headers_complete()

        def _answer_later(self, question: Question) -> None:
            # A request under way like any other, of which the application is this.
            async def answer_later(scope: Any, receive: Any, send: Any) -> None:
                answer = await internal.find(question)
                if cycle.disconnected or not cycle.keep_alive or self.flow.write_paused:
                    await answer.send(send)
                else:
                    cycle.response_started = cycle.response_complete = True
                    self._put(answer)
                    if self.pipeline:
                        self.on_response_complete()

            application, self.app = self.app, answer_later
            try:
                super().on_headers_complete()
            finally:
                self.app = application
            cycle = self.cycle

        def _put(self, answer: Answer) -> None:
            lines = [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
            outbox.put(self.transport, b"".join((answer.head, *lines, b"\r\n", answer.body)))
            self._idle = self.loop.time()
            if self._timer is None:
                self._wait(self.timeout_keep_alive)

        def on_message_complete(self) -> None:
            """The end of a request that was handed on, or that has its answer."""
            if self.cycle is not None:
                super().on_message_complete()

        def send_400_response(self, msg: str) -> None:
            """Answer what cannot be parsed, and close; after the answer to what came before it."""
            self._send_waiting()
            super().send_400_response(msg)

        def shutdown(self) -> None:
            """Close when the answer under way is sent."""
            self._send_waiting()
            super().shutdown()

        def _send_waiting(self) -> None:
            if self.transport in outbox:
                outbox.flush()

        def _is_under_way(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _wait(self, seconds: float) -> None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_later(seconds, self._close_if_silent)

        def _close_if_silent(self) -> None:
            # One timer for many answers: a timer for each costs as much as the answer.
            self._timer = None
            if self._begun is not None:
                end = self._begun + HEAD_SECONDS
            elif self.timeout_keep_alive_task is not None or self._is_under_way():
                return  # what was handed on since then has a timer of its own, now or when it is answered
            else:
                end = self._idle + self.timeout_keep_alive
            left = end - self.loop.time()
            if left > 0:
                self._wait(left)
            else:
                self.timeout_keep_alive_handler()

    return Direct
