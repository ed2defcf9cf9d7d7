"""A connection that does not wait for ever: uvicorn's, with limits on what a silent or slow peer may take."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# How long the head of a request may take from its first byte. Who sends nothing at all is idle.
HEAD_SECONDS = 10


class Connection(HttpToolsProtocol):
    """Uvicorn's protocol, by itself or for subclasses that answer some requests past the application.

    A subclass calls `_head_is_complete` with each head, `_is_idle` with each answer of its own, and says in `_is_under_way`
    what it is at work on.
    """

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
        """Hand the request on."""
        self._head_is_complete()
        super().on_headers_complete()
        # What the parser adds to this list from now on came after the body, past whoever vouches for the head. The
        # request keeps the list as it was.
        self.headers = []

    def _head_is_complete(self) -> None:
        self._head_came, self._begun = True, None

    def _is_idle(self) -> None:
        self._idle = self.loop.time()
        if self._timer is None:
            self._wait(self.timeout_keep_alive)

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
