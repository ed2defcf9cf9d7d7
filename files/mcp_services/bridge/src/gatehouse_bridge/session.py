"""Sessions of clients that speak MCP 2024-11-05 to 2025-11-25 over streamable HTTP."""

import re
import secrets
import time
from collections.abc import Callable
from functools import partial

from gatehouse_bridge import jsonrpc
from gatehouse_bridge.child import PROTOCOL_VERSIONS, Child
from gatehouse_bridge.jsonrpc import Message, MessageError
from gatehouse_bridge.stream import Kept, Stream
from gatehouse_bridge.tools import Permit

# Streams that have ended and are kept at least, for a client that lost its connection before it had read them.
ENDED_KEPT = 16
# `<stream>-<event>`, each no larger than one that was ever given.
EVENT_ID = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")


class Session:
    """One client's session, on a child of its own or on one that it shares.

    Args:
        child: The child.
        owner: Who opened it, as the gateway says; the session is his alone.
        on_lost: Called when the session has come to its end without the client asking for it.
        kept: Bounds what its streams keep for a client that is gone.
    """

    def __init__(self, child: Child, owner: str, on_lost: "Callable[[Session], None]", kept: Kept) -> None:
        """See the class."""
        self.id = secrets.token_urlsafe(24)
        self.owner = owner
        self.child = child
        # What every answer in it says.
        self.headers = [(b"mcp-session-id", self.id.encode())]
        # Connections of the client that are open.
        self.connections = 0
        self.idle_since = time.monotonic()
        # What the owner may do with tools; None where there are no rules.
        self.permit: Permit | None = None
        # The version that was agreed on; empty until then.
        self.version = ""
        self._on_lost = on_lost
        self._throttle = None if child.shared else child.throttle
        self._keep = partial(kept.note, owner)
        self._standalone = Stream(0, self._throttle, self._keep)
        self._streams: dict[int, Stream] = {}
        self._numbers = 0
        child.attach(self)

    async def request(self, message: Message) -> Stream:
        """Send a request of the client; returns the stream that its answer comes on.

        Raises:
            ChildError: the child cannot take it.
        """
        if self.child.shared and message.method == "initialize":
            return self.request_now(message)
        stream = self._new_stream()
        try:
            await self.child.request(self, message, stream)
        except BaseException:
            self.forget(stream)
            raise
        return stream

    def request_now(self, message: Message) -> Stream:
        """The same as `request` where the child's process is ready, or `initialize` is not for it.

        Raises:
            MessageError: no child could take it.
        """
        stream = self._new_stream()
        if message.method == "initialize" and self.child.shared:
            stream.put(self._hello(message), final=True)
            return stream
        try:
            self.child.request_now(self, message, stream)
        except MessageError:
            self.forget(stream)
            raise
        return stream

    def _new_stream(self) -> Stream:
        self._numbers += 1
        stream = Stream(self._numbers, self._throttle, self._keep)
        # Not at each one more: to look at all of them takes its time.
        if len(self._streams) >= 2 * ENDED_KEPT:
            ended = [old for old in self._streams.values() if old.final]
            for old in ended[: max(0, len(ended) - ENDED_KEPT)]:
                self.forget(old)
        self._streams[stream.number] = stream
        return stream

    async def accept(self, message: Message) -> None:
        """Send a notification or a response of the client.

        Raises:
            ChildError: the child cannot take it.
        """
        text = self.child.heard(self, message)
        message.forget()
        if text:
            await self.child.send(text)

    def accept_now(self, message: Message) -> None:
        """The same as `accept` where the child's process is ready."""
        text = self.child.heard(self, message)
        if text:
            self.child.process.write_now(text)

    def initialized(self, text: str) -> bool:
        """Take note of the child's answer to `initialize`; whether there is a session now."""
        result = jsonrpc.scan_object(text)[0].get("result")
        if result is not None and isinstance(result.value, dict):
            self.version = str(result.value.get("protocolVersion"))
        return bool(self.version)

    def hello(self, text: str) -> tuple[int, str]:
        """The child's answer to `initialize` as it leaves, and its status."""
        self.initialized(text)
        return 200, text

    def give_up(self, stream: Stream) -> None:
        """Wait no longer for the answer that a stream is for."""
        for call in [call for call in self.child.calls.values() if call.stream is stream]:
            self.child.give_up(call)

    def forget(self, stream: Stream) -> None:
        """Nobody will ask for a stream again."""
        self._streams.pop(stream.number, None)
        stream.abandon()

    def stream(self, last_event_id: str | None) -> tuple[Stream, int | None] | None:
        """The stream that a GET asks for, and the number of the last event that the client has.

        Args:
            last_event_id: As the client sent it, `<stream>-<event>`; None opens the session's own stream.

        Returns:
            None if there is no such stream (any more).
        """
        if last_event_id is None:
            return self._standalone, None
        found = EVENT_ID.fullmatch(last_event_id)
        if found is None:
            return None
        number, event = map(int, found.groups())
        stream = self._streams.get(number) if number else self._standalone
        return None if stream is None or stream.emptied else (stream, event)

    def left(self) -> None:
        """One of its connections has come to its end."""
        self.connections -= 1
        self.idle_since = time.monotonic()

    def close(self) -> None:
        """End the session: the streams end, and what the child still works on for it is cancelled."""
        self.child.detach(self)
        self._finish()

    # What the child says (`gatehouse_bridge.child.Client`).

    def receive(self, method: str, text: str, stream: Stream | None) -> None:
        """Put a message of the child onto one stream, and only one (MCP 2025-11-25, multiple connections)."""
        if stream is None or stream.final:
            stream = self._choose()
        stream.put(text)

    def lost(self) -> None:
        """The child is gone, and the session with it."""
        self._finish()
        self._on_lost(self)

    def end_standalone(self) -> None:
        """End the stream that a client opened with GET; it may be opened again."""
        self._standalone.finish()

    def _choose(self) -> Stream:
        """Where a message goes that does not say what it belongs to.

        With one call under way it belongs there, and comes before the answer. Else to the session's own stream, if
        it is open; else onto any that is.
        """
        waiting = [call.stream for call in self.child.calls.values() if call.client is self]
        waiting = [stream for stream in waiting if stream.attached]
        if len(waiting) == 1 or (waiting and not self._standalone.attached):
            return waiting[-1]
        return self._standalone

    def _finish(self) -> None:
        for stream in (self._standalone, *self._streams.values()):
            stream.finish()
            stream.abandon()

    def _hello(self, message: Message) -> str:
        """Answer `initialize` for a child that the bridge has initialized.

        With the version that the client asked for, as long as the child's is not older.
        """
        offered, spoken = message.param("protocolVersion"), self.child.hello.get("protocolVersion")
        if offered in PROTOCOL_VERSIONS and spoken in PROTOCOL_VERSIONS:
            spoken = min(offered, spoken)
        return jsonrpc.result(message.id or "null", {**self.child.hello, "protocolVersion": spoken})
