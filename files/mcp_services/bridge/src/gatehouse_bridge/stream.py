"""What goes to a client: the events of one answer or of one event stream, kept so that they can be sent again."""

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

# Unread bytes above which the source is asked to wait, and below which it may go on.
HIGH = 1024 * 1024
LOW = 256 * 1024
# What is kept of a stream for a client that comes back.
KEPT_BYTES = 512 * 1024
KEPT_EVENTS = 256


class Event(NamedTuple):
    """One message; `number` counts from 1 within its stream."""

    number: int
    text: str


# As `Event` makes it, without a call in between.
_event: Callable[[tuple[int, str]], Event] = partial(tuple.__new__, Event)


class Kept:
    """What streams keep that nobody reads, for clients that may come back.

    Above so many bytes the stream is emptied that was left first, of the user of whom most is kept: nobody can have another's
    thrown away by having much.

    Args:
        most: So many bytes.
    """

    def __init__(self, most: int) -> None:
        """See the class."""
        self._most = most
        self._total = 0
        self._sizes: Counter[str] = Counter()
        # Of each user, the one that was left first comes first.
        self._streams: dict[str, dict[Stream, int]] = {}

    def note(self, user: str, stream: "Stream", size: int) -> None:
        """A user's stream keeps so much; 0 where it is read again, or nobody can come back for it."""
        streams = self._streams.setdefault(user, {})
        change = size - streams.pop(stream, 0)
        if size:
            streams[stream] = size
        self._sizes[user] += change
        self._total += change
        if not streams:
            del self._streams[user], self._sizes[user]
        while self._total > self._most:
            [(most, _)] = self._sizes.most_common(1)
            next(iter(self._streams[most])).empty()


class Stream:
    """A sequence of messages with at most one reader at a time.

    Args:
        number: Names it within its session; 0 is the stream that a client opens with GET.
        throttle: Called with True when the reader falls behind, with False when it has caught up. None where
            the source serves others too and cannot wait: then the oldest messages are dropped.
        keep: Called with how much it keeps that nobody reads, whenever that changes. None where nobody could come back for it.
    """

    __slots__ = (
        "_events",
        "_keep",
        "_kept",
        "_last",
        "_read",
        "_reader",
        "_size",
        "_throttle",
        "_throttled",
        "_unread",
        "_waiter",
        "answered",
        "final",
        "number",
        "on_change",
    )

    def __init__(
        self,
        number: int,
        throttle: "Callable[[Stream, bool], None] | None" = None,
        keep: "Callable[[Stream, int], None] | None" = None,
    ) -> None:
        """See the class."""
        self.number = number
        self.final = False
        # Whether its last event is the answer that it was for.
        self.answered = False
        self._keep = keep
        self._kept = 0
        self._throttle = throttle
        self._throttled = False
        # A list: a deque takes 700 bytes, also for the one event that most streams ever have.
        self._events: list[Event] = []
        self._size = 0
        self._last = 0
        self._read = 0
        self._unread = 0
        self._reader: object | None = None
        self._waiter: asyncio.Future[bool] | None = None
        # Called when something happened, by who answers without a task that waits.
        self.on_change: Callable[[], None] | None = None

    @property
    def attached(self) -> bool:
        """Whether someone reads it."""
        return self._reader is not None

    @property
    def read(self) -> int:
        """Number of the last event that was read."""
        return self._read

    @property
    def waiting(self) -> int:
        """How many events are there to be read."""
        return self._last - self._read

    def answer_for(self, reader: object) -> str | None:
        """The answer, where nothing else waits to be read before it, and this is still who reads it."""
        if self.answered and self._last - self._read == 1 and self._reader is reader:
            return self._events[-1].text
        return None

    def is_read_by(self, reader: object) -> bool:
        """Whether this reader is still the one who reads it."""
        return self._reader is reader

    def is_answer(self, event: Event) -> bool:
        """Whether this event is the answer."""
        return self.answered and event.number == self._last

    def is_quiet_for(self, reader: object) -> bool:
        """Whether this reader has to wait for what comes, if anything does."""
        return self._reader is reader and not self.final and not self.waiting

    @property
    def emptied(self) -> bool:
        """Whether the answer was there, and could not be kept."""
        return self.answered and not self._events

    def put(self, text: str, final: bool = False) -> None:
        """Add a message; after the final one the stream is at its end and takes no more."""
        if self.final:
            return
        self._last += 1
        self._events.append(_event((self._last, text)))
        self._size += len(text)
        self._unread += len(text)
        self.final = self.answered = final
        if self._unread > HIGH and self._throttle and self.attached and not self._throttled:
            self._throttled = True
            self._throttle(self, True)
        if len(self._events) > 1:
            self._trim()
        if self._reader is None and self._keep is not None:
            self._note(self._size)
        self._wake()

    def finish(self) -> None:
        """End it without another message."""
        self.final = True
        self._wake()

    def attach(self, after: int | None = None) -> object:
        """Become its reader; one who was before is told to go.

        Args:
            after: Number of the last event that the client has; None for all that nobody has read yet.
        """
        if after is not None:
            self._read = min(after, self._last)
            self._unread = sum(len(event.text) for event in self._events if event.number > self._read)
        reader = self._reader = object()
        if self._kept:
            self._note(0)
        self._wake()
        return reader

    def detach(self, reader: object) -> None:
        """Stop being its reader."""
        if self._reader is reader:
            self._reader = None
            if self._throttled:
                self._release()
            if len(self._events) > 1:
                self._trim()
            if self._keep is not None:
                self._note(self._size)
            self._wake()

    def empty(self) -> None:
        """Keep nothing of it."""
        self._events.clear()
        self._size = self._unread = 0
        self._read = self._last
        self._note(0)

    def abandon(self) -> None:
        """Nobody can come back for it: nothing is kept once its reader has gone."""
        if self._kept:
            self._note(0)
        self._keep = None

    def take(self, reader: object) -> list[Event] | None:
        """The events that are there, [] if none is; None at the end, or when another became the reader."""
        if self._reader is not reader:
            return None
        events = (
            [event for event in self._events if event.number > self._read] if self._read < self._last else []
        )
        if events:
            self._read = self._last
            self._unread = 0
            self._release()
            self._trim()
        elif self.final:
            return None
        return events

    async def wait(self, seconds: float) -> bool:
        """Return when something happened, at the latest after so many seconds; whether nothing has."""
        loop = asyncio.get_running_loop()
        # A reader from whom another has taken over may wait still.
        if self._waiter is not None:
            _tell(self._waiter, quiet=False)
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiter = waiter
        timer = loop.call_later(seconds, _tell, waiter, True)
        try:
            return await waiter
        finally:
            timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None:
            _tell(self._waiter, quiet=False)
        if self.on_change is not None:
            self.on_change()

    def _note(self, size: int) -> None:
        if self._keep is not None and size != self._kept:
            self._kept = size
            self._keep(self, size)

    def _release(self) -> None:
        if self._throttled and self._throttle and (self._unread < LOW or not self.attached):
            self._throttled = False
            self._throttle(self, False)

    def _trim(self) -> None:
        waiting = self._throttle is not None and self.attached
        old = 0
        while len(self._events) - old > 1 and (
            self._size > KEPT_BYTES or len(self._events) - old > KEPT_EVENTS
        ):
            oldest = self._events[old]
            if oldest.number > self._read:
                if waiting or (self.attached and self._unread <= HIGH):
                    break
                self._unread -= len(oldest.text)
            old += 1
            self._size -= len(oldest.text)
        if old:
            del self._events[:old]


def _tell(waiter: "asyncio.Future[bool]", quiet: bool) -> None:
    if not waiter.done():
        waiter.set_result(quiet)
