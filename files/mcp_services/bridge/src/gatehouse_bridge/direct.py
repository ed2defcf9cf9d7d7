"""The way in for the common request: the server's own connection handling, less the framework.

One parser reads every request. A request to a child that can take it at once is sent to it from here, and when its
answer is the first that comes, and comes soon, it is written from here as well. All else goes on as it would without this
module, and so does what turns out to be an event stream.
"""

import asyncio
from typing import Any, cast

from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from gatehouse_bridge.app import App, Turn
from gatehouse_bridge.http import JSON, PROMPT_SECONDS, Headers, Request, Scope, plain
from gatehouse_service.connection import Connection

# A request with one of these is read, or answered, in another way.
MORE = frozenset({b"transfer-encoding", b"expect", b"upgrade"})
# A proxy sends the head first, and the body with the next write. A larger one is for the application to read.
SMALL = 64 * 1024
# One timer for many requests, which looks so often whether one of them has taken too long.
LOOK_SECONDS = 0.5


def _lines(*fields: tuple[bytes, bytes]) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields])


async def _unused(*_: Any) -> Any:
    raise AssertionError


def protocol(app: App) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, with `app.begin` asked before the application is called."""

    class Direct(Connection):
        # The body of a request that may be begun from here, as far as it has come, how much is held for it between two reads, and
        # whose it is.
        _body: bytes | None = None
        _held = 0
        _holder = ""
        # The last one: on a connection the next has the same headers, mostly.
        _request: Request | None = None
        _fields: Headers | None = None
        _asked: HTTPScope
        # What came now, if a request begins with it; whether the parser is between two; the last one's head as it came, and its size.
        _came = b""
        _between = True
        _head = b""
        _size = 0
        # What has been begun, who reads its stream, and until when its answer is one piece, or the body is waited for.
        _turn: Turn | None = None
        _reader: object = None
        _until = 0.0
        _look: asyncio.TimerHandle | None = None
        # What an answer of 200 begins with, as far as its length: made for these fields, of the server's and of the session's.
        _prefix = b""
        _defaults: object = None
        _own: object = None

        def connection_lost(self, exc: Exception | None) -> None:
            """The peer, or this side, has closed."""
            if self._turn is not None:
                self._end(self._turn, complete=False)
            self._let_go()
            if self._look is not None:
                self._look.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            """Read on. A body that is still to come is waited for, not for long, if it is a small one."""
            request = self._request
            if (
                len(data) == self._size
                and request is not None
                and data.startswith(self._head)
                and self._between
                and self._is_free()
            ):
                # The parser would find what it found in the same bytes before.
                self._unset_keepalive_if_required()
                if self._begin(request, data[len(self._head) :]):
                    return
            self._came = data if self._between else b""
            super().data_received(data)
            self._came = b""
            if self._body is not None and not self._held:
                size, user = 0, b""
                for name, value in self.headers:
                    if name == b"content-length":
                        size = int(value)
                    elif name == b"x-gatehouse-user":
                        user = value
                self._holder = user.decode("latin-1")
                if size <= SMALL and app.bodies.take(self._holder, size):
                    self._held = size
                    self._until = self.loop.time() + PROMPT_SECONDS
                    self._look_again()
                else:
                    self._pass_on(self._body)

        def on_message_begin(self) -> None:
            """A request has begun."""
            self._between = False
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            """Keep the request, or hand it on."""
            self._head_is_complete()
            if self._turn is not None:
                # Answers keep the order of their requests; the server's own pipeline sees to it.
                self._hand_over(self._turn)
            if (
                self.url == b"/mcp"
                and self._is_free()
                and self.parser.get_method() == b"POST"
                and self.parser.get_http_version() == "1.1"
                and self.parser.should_keep_alive()
                and (self.headers == self._fields or not any(name in MORE for name, _ in self.headers))
            ):
                self._body = b""
            else:
                super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            """A part of the body."""
            if self._body is not None:
                self._body += body
            else:
                super().on_body(body)

        def on_message_complete(self) -> None:
            """Begin the request, or hand it on."""
            self._between = True
            body = self._body
            if body is None:
                super().on_message_complete()
                return
            self._let_go()
            self.scope["method"], self.scope["path"] = "POST", "/mcp"
            request = self._request
            if request is None or self.headers != self._fields:
                request = self._request = Request(cast(Scope, self.scope), _unused, _unused)
                self._fields, self._asked = self.headers, self.scope
            came, self._came = self._came, b""
            end = came.find(b"\r\n\r\n") + 4
            # Nothing stands before it or after it.
            self._head, self._size = (came[:end], len(came)) if len(came) == end + len(body) else (b"", 0)
            if not self._begin(request, body):
                self._pass_on(body)
                super().on_message_complete()

        def _is_free(self) -> bool:
            """Whether a request could be answered at once: after all before it, and to a peer that reads."""
            return (
                self._turn is None
                and (self.cycle is None or self.cycle.response_complete)
                and not self.flow.write_paused
                and not self.transport.is_closing()
            )

        def _begin(self, request: Request, body: bytes) -> bool:
            turn = app.begin(request, body)
            if turn is None:
                return False
            self._body = None
            self._turn, self._reader = turn, turn.stream.attach()
            self._until = self.loop.time() + turn.patience
            turn.stream.on_change = self._go_on
            if turn.stream.final:
                self._go_on()
            else:
                self._look_again()
            return True

        def shutdown(self) -> None:
            """Close when the answer under way is sent."""
            if self._turn is not None:
                self._hand_over(self._turn)
            if self._body is not None:
                self._pass_on(self._body)
            super().shutdown()

        def _let_go(self) -> None:
            app.bodies.give(self._holder, self._held)
            self._held = 0

        def _pass_on(self, body: bytes) -> None:
            self._let_go()
            self._body = None
            super().on_headers_complete()
            if body:
                super().on_body(body)

        def _go_on(self) -> None:
            """Something has happened on the stream of what has been begun."""
            turn = self._turn
            if turn is None:
                return
            text = turn.stream.answer_for(self._reader)
            if text is None or self.flow.write_paused:
                self._hand_over(turn)
                return
            status = 200
            if turn.finish is not None:
                try:
                    status, text = turn.finish(text)
                except Exception:  # it is raised again where the server answers 500, and not to the child
                    self._hand_over(turn)
                    return
            # First the answer: what is left to do takes no time of the client's.
            complete = not self.transport.is_closing()
            if complete:
                self.transport.write(self._answer(status, text, turn.headers))
                self._is_idle()
            self._end(turn, complete)

        def _answer(self, status: int, text: str, headers: Headers) -> bytes:
            defaults = self.server_state.default_headers
            if status != 200:
                fields, body = plain(text, headers, JSON)
                return b"%b%b\r\n%b" % (STATUS_LINE[status], _lines(*defaults, *fields), body)
            if headers is not self._own or defaults is not self._defaults:
                self._own, self._defaults = headers, defaults
                kind = (b"content-type", JSON)
                self._prefix = STATUS_LINE[200] + _lines(*defaults, *headers, kind) + b"content-length: "
            body = text.encode()
            return b"%b%d\r\n\r\n%b" % (self._prefix, len(body), body)

        def _end(self, turn: Turn, complete: bool) -> None:
            self._turn = turn.stream.on_change = None
            # Before the stream has no reader: what need not be kept is not accounted for.
            turn.end(complete)
            turn.stream.detach(self._reader)

        def _hand_over(self, turn: Turn) -> None:
            """Have it answered by a task, as a request under way like any other."""
            self._turn = turn.stream.on_change = None
            reader, patience = self._reader, max(0.0, self._until - self.loop.time())

            async def answer(scope: Any, receive: Any, send: Any) -> None:
                try:
                    await turn.answer(Request(scope, receive, send), reader, patience)
                finally:
                    turn.end(False)

            self.cycle = RequestResponseCycle(
                scope=self._asked,
                transport=self.transport,
                flow=self.flow,
                logger=self.logger,
                access_logger=self.access_logger,
                access_log=self.access_log,
                default_headers=self.server_state.default_headers,
                message_event=asyncio.Event(),
                expect_100_continue=False,
                keep_alive=True,
                on_response=self.on_response_complete,
            )
            self._start_asgi_task(self.cycle, answer)

        def _look_again(self) -> None:
            if self._look is None:
                self._look = self.loop.call_later(LOOK_SECONDS, self._look_after)

        def _look_after(self) -> None:
            self._look = None
            if self._turn is None and self._body is None:
                return
            left = self._until - self.loop.time()
            if left > 0:
                self._look = self.loop.call_later(min(left, LOOK_SECONDS), self._look_after)
            elif self._turn is not None:
                self._hand_over(self._turn)
            elif self._body is not None:
                # One that is slow to come is for the application to wait for.
                self._pass_on(self._body)

        def _is_under_way(self) -> bool:
            return self._turn is not None or self._body is not None or super()._is_under_way()

    return Direct
