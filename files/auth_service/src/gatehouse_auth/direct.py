"""The way in for a check: the server's own connection handling, less the framework.

One parser reads every request. What it has read is answered from here when it is the plain request that
Traefik sends for a check; all else goes on as it would without this module.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from gatehouse_auth.check import Answer, Internal, Question
from gatehouse_service.connection import Connection

# A request with one of these has a body, or asks for more than an answer.
MORE = frozenset({b"content-length", b"transfer-encoding", b"expect", b"upgrade"})


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

    class Direct(Connection):
        def on_headers_complete(self) -> None:
            """Answer the request, or hand it on."""
            self._head_is_complete()
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
            self._is_idle()

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

    return Direct
