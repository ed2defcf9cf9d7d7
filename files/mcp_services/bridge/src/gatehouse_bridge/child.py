"""A child as a JSON-RPC peer that several clients may share.

Whoever exchanges messages with a child is attached to it (`Client`). Each request gets an id of the bridge's own, so
that no two clash, and so does each progress token; what comes back is carried to the one who asked, under
the id that he gave.
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gatehouse_bridge import jsonrpc
from gatehouse_bridge.jsonrpc import Message, MessageError
from gatehouse_bridge.log import Log
from gatehouse_bridge.metrics import Metrics
from gatehouse_bridge.process import MAX_MESSAGE, BusyError, Process
from gatehouse_bridge.stream import Stream
from gatehouse_bridge.tools import Permit

PROTOCOL_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
# The age without sessions, and what its requests say for themselves.
VERSION = "2026-07-28"
PREFIX = "io.modelcontextprotocol/"
VERSION_KEY = f"{PREFIX}protocolVersion"
CAPABILITIES_KEY = f"{PREFIX}clientCapabilities"
SUBSCRIPTION_KEY = f"{PREFIX}subscriptionId"
HANDSHAKE_SECONDS = 60.0
# A server of the older age that does not answer what it does not know is waited for no longer, once. On a busy machine one of
# this age may take more than ten seconds to start, and would be held to be of the older.
DISCOVER_SECONDS = 30.0
# Progress may be told after the answer (tasks of 2025-11-25): so many tokens outlive their requests.
TOKENS_KEPT = 1024
# Requests of a child that its client may still answer.
ASKED_KEPT = 1024
# How long what is kept so may be: a progress token, the id of a child's request.
NAME_MAX = 1024
# The requests that are about what a client hears of a resource.
SUBSCRIPTIONS = frozenset({"resources/subscribe", "resources/unsubscribe"})
# A child that floods rubbish gets its faults logged now and then only.
RUBBISH_LOGGED = 20

MALFORMED = "The MCP server's answer is malformed"

# What a message is that was too long to be read, and its id: it stands at one end in every SDK's output.
_ID = rb'"id"\s*:\s*(\d+|"[^"\\]*")\s*'
_VERSION = rb'"jsonrpc"\s*:\s*"2\.0"\s*'
_HEAD = re.compile(rb'\A\s*\{\s*(?:%b,\s*)?(?:%b,\s*)?"(method|result|error)"\s*:' % (_VERSION, _ID))
_ID_AT_TAIL = re.compile(rb"%b(?:,\s*%b)?\}\s*\Z" % (_ID, _VERSION))


def covers(subscribed: str, updated: str) -> bool:
    """Whether who subscribed to a resource hears of another: of that one, and of what lies below it."""
    if not updated.startswith(subscribed):
        return False
    return subscribed.endswith("/") or updated[len(subscribed) :][:1] in ("", "/", "?", "#")


class ChildError(Exception):
    """A child that cannot serve. The message is for the client; it holds nothing of the child's output.

    `reason` is `child_exited`, `child_unresponsive`, `child_not_started`, `too_many_children`, or `no_credentials`; `details`
    are what a client may want to know besides.
    """

    def __init__(self, reason: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.details = details or {}

    def response(self, identifier: str | None) -> str:
        """The JSON-RPC error for a request that waits."""
        data = {"reason": self.reason, **self.details}
        return jsonrpc.error(identifier, jsonrpc.INTERNAL_ERROR, str(self), data)


class Client(Protocol):
    """Who is attached to a child."""

    permit: Permit | None

    def receive(self, method: str, text: str, stream: Stream | None) -> None:
        """Take a request or notification; `stream` is that of the call that it belongs to, where known."""

    def lost(self) -> None:
        """The child is gone. What waited for it has been answered."""


@dataclass(slots=True, eq=False)
class Call:
    """A request that a child works on: whose it is, the id that he gave, and where the answer goes."""

    number: int
    client: Client
    id: str
    method: str
    stream: Stream
    uri: str | None
    since: float
    # What he calls its progress by, as text; None where he does not ask for it.
    token: str | None


def progress_token(message: Message) -> str | None:
    """The text of a request's progress token, None where it has none. What can be no token goes to the child as it is.

    Raises:
        MessageError: it is too long, or a number that cannot be written.
    """
    token = message.meta.get("progressToken")
    if type(token) not in (str, int, float):
        return None
    text = jsonrpc.dump(token)
    if len(text) > NAME_MAX:
        raise MessageError(jsonrpc.INVALID_REQUEST, "The progress token is too long")
    return text


def _nobody_to_ask(_child: "Child", _message: Message) -> bool:
    return False


class Child:
    """A process with a JSON-RPC peer in it.

    Args:
        process: The process, not yet connected to anything.
        log: The log.
        metrics: The metrics.
        on_gone: Called once it can no longer serve.
        shared: Whether it may have several clients. If so, the bridge makes the handshake.
    """

    def __init__(
        self,
        process: Process,
        log: Log,
        metrics: Metrics,
        on_gone: "Callable[[Child], None]",
        shared: bool,
    ) -> None:
        """See the class."""
        self.process = process
        self.shared = shared
        # Whether all its clients are one person's.
        self.one_person = not shared
        # Whether it speaks 2026-07-28 with its clients, and takes their requests as they are.
        self.modern = False
        # Result of `initialize`, where the bridge made it.
        self.hello: dict[str, Any] = {}
        # Asks its clients what it asks, where that can be (`gatehouse_bridge.rounds`); whether one is asked.
        self.on_ask: Callable[[Child, Message], bool] = _nobody_to_ask
        self.clients: dict[Client, None] = {}
        self.calls: dict[int, Call] = {}
        self.idle_since = time.monotonic()
        self._log = log
        self._metrics = metrics
        self._on_gone = on_gone
        # What it may ask: the capabilities that its handshake offered.
        self._offered: frozenset[str] = frozenset()
        self._number = 0
        self._tokens: dict[int, tuple[Client, str]] = {}
        self._own: dict[int, asyncio.Future[Message]] = {}
        self._asked: dict[str | int, Client] = {}
        self._slow: dict[Stream, None] = {}
        self._subscribers: dict[str, set[Client]] = {}
        self._rubbish = 0
        process.listen(self._line, self._long_line)
        process.on_end = self._ended

    @property
    def idle(self) -> bool:
        """Whether nobody uses it, nor the bridge itself."""
        return not self.clients and not self.calls and not self._own

    async def handshake(self, capabilities: Mapping[str, Any]) -> None:
        """Initialize it on behalf of all its clients (MCP 2025-11-25, lifecycle).

        Args:
            capabilities: What it is offered. Nothing where its clients are not one person's with one program: a request of its own
                could not be told to belong to one of them.

        Raises:
            ChildError: it does not answer, or refuses.
        """
        self._offered = frozenset(capabilities)
        params = {
            "protocolVersion": PROTOCOL_VERSIONS[-1],
            "capabilities": dict(capabilities),
            "clientInfo": {"name": "gatehouse-bridge", "version": "0.1.0"},
        }
        answer = await self.ask("initialize", params)
        result = answer.result
        if not isinstance(result, dict):
            raise ChildError("child_unresponsive", "The MCP server refused the handshake")
        self.hello = result
        self.process.write_now(jsonrpc.notification("notifications/initialized"))

    async def discover(self) -> bool:
        """Find out whether it speaks 2026-07-28, and if so speak that from now on (basic/versioning, stdio).

        If not, `handshake` is what it waits for.

        Raises:
            ChildError: it has ended.
        """
        meta = {VERSION_KEY: VERSION, CAPABILITIES_KEY: {}}
        try:
            answer = await self.ask("server/discover", {"_meta": meta}, DISCOVER_SECONDS)
        except ChildError:
            if not self.process.usable:
                raise
            return False
        result = answer.result
        known = result.get("supportedVersions") if isinstance(result, dict) else None
        self.modern = isinstance(known, list) and VERSION in known
        return self.modern

    async def ask(self, method: str, params: dict[str, Any], seconds: float = HANDSHAKE_SECONDS) -> Message:
        """Make a request of the bridge's own.

        Raises:
            ChildError: there is no answer.
        """
        if not self.process.usable:
            raise self._gone()
        number = self._next()
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._own[number] = answer
        try:
            self.process.write_now(jsonrpc.request(number, method, params))
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            raise ChildError(
                "child_unresponsive", f"The MCP server did not answer within {seconds:.0f} seconds"
            ) from None
        finally:
            self._own.pop(number, None)

    async def request(
        self, client: Client, message: Message, stream: Stream, without: frozenset[str] = frozenset()
    ) -> Call:
        """Send a client's request; the answer goes to `stream`, as its final event.

        Args:
            client: Whose request it is.
            message: The request.
            stream: Takes the answer, and what comes before it.
            without: Names in `params._meta` that the child does not get.

        Raises:
            ChildError: it cannot take the request.
            MessageError: nor could any.
        """
        if not self.process.usable:
            raise self._gone()
        call, text = self._begin(client, message, stream, without)
        message.forget()
        if text:
            try:
                await self.process.write(text)
            except BusyError:
                self._finish(call.number)
                raise ChildError("child_unresponsive", "The MCP server does not read its input") from None
            except asyncio.CancelledError:
                self._finish(call.number)
                raise
        return call

    def request_now(
        self, client: Client, message: Message, stream: Stream, without: frozenset[str] = frozenset()
    ) -> Call:
        """The same as `request` for a child whose process is `ready`.

        Raises:
            MessageError: no child could take the request.
        """
        # Where others wait, of any child, more messages are to be expected in this turn of the event loop.
        at_once = not self._metrics.waiting
        call, text = self._begin(client, message, stream, without)
        if text:
            self.process.write_now(text, at_once)
        return call

    def _begin(
        self, client: Client, message: Message, stream: Stream, without: frozenset[str]
    ) -> tuple[Call, str]:
        """Note a request, and make the text that the child gets; it is empty where the answer is known.

        Raises:
            MessageError: the message cannot be changed as it has to be; nothing is noted.
        """
        number = self._next()
        method = message.method or ""
        uri = message.param("uri") if method in SUBSCRIPTIONS else None
        token = progress_token(message)
        # First the text: a message that cannot be changed leaves nothing behind.
        if without:
            meta = {name: value for name, value in message.meta.items() if name not in without}
            if token is not None:
                meta["progressToken"] = number
            text = message.edited({("id",): str(number), ("params", "_meta"): jsonrpc.dump(meta)})
        elif token is not None:
            text = message.edited({("id",): str(number), ("params", "_meta", "progressToken"): str(number)})
        else:
            text = message.with_id(str(number))
        call = Call(
            number,
            client,
            message.id or "null",
            method,
            stream,
            str(uri) if uri else None,
            time.monotonic(),
            token,
        )
        if call.method == "resources/unsubscribe" and call.uri and not self.unsubscribe(client, call.uri):
            stream.put(jsonrpc.result(call.id, {}), final=True)
            return call, ""
        self.calls[number] = call
        self._metrics.waiting += 1
        return call, text

    def heard(self, client: Client, message: Message) -> str:
        """Note a notification or a response of a client; what of it the child is to be told, empty where nothing.

        A response to what the child did not ask is dropped.

        Raises:
            MessageError: it says twice what it cancels; nothing is noted.
        """
        if message.is_response:
            asked = message.id_value
            if self._asked.get(asked) is not client:
                return ""
            del self._asked[asked]
        elif message.method == "notifications/cancelled":
            place = message.locate("params", "requestId")
            identifier = None if place is None else message.text[place.start : place.end]
            call = next(
                (call for call in self.calls.values() if call.client is client and call.id == identifier),
                None,
            )
            if place is None or call is None or call.method == "initialize":
                return ""
            self._finish(call.number)
            # Some servers answer a cancelled request and some do not; the stream has to end.
            call.stream.put(
                jsonrpc.error(call.id, jsonrpc.REQUEST_CANCELLED, "Request cancelled"), final=True
            )
            return jsonrpc.splice(message.text, [(place.start, place.end, str(call.number))])
        elif self.shared and message.method == "notifications/initialized":
            return ""
        return message.text

    async def send(self, text: str) -> None:
        """Send what nobody waits for an answer to.

        Raises:
            ChildError: it cannot take it.
        """
        if not self.process.usable:
            raise self._gone()
        try:
            await self.process.write(text)
        except BusyError:
            raise ChildError("child_unresponsive", "The MCP server does not read its input") from None

    def reply(self, identifier: str, result: str) -> None:
        """Answer a request of the child's own."""
        self.process.write_now(jsonrpc.response(identifier, result))

    def abandon(self, call: Call, reason: str) -> None:
        """Cancel a request that nobody waits for any more."""
        if self._finish(call.number):
            params = {"requestId": call.number, "reason": reason}
            self.process.write_now(jsonrpc.notification("notifications/cancelled", params))

    def give_up(self, call: Call) -> None:
        """Cancel a request that takes too long, and tell who waits."""
        self.abandon(call, "takes too long")
        call.stream.put(
            jsonrpc.error(call.id, jsonrpc.REQUEST_CANCELLED, "The call took too long, and was cancelled"),
            final=True,
        )

    def attach(self, client: Client) -> None:
        """Begin to exchange messages with it."""
        self.clients[client] = None

    def detach(self, client: Client) -> None:
        """Cease to: what it still works on for this client is cancelled."""
        for call in [call for call in self.calls.values() if call.client is client]:
            self.abandon(call, "session closed")
            call.stream.put(
                jsonrpc.error(call.id, jsonrpc.REQUEST_CANCELLED, "The session was closed"), final=True
            )
        for uri in [uri for uri, clients in self._subscribers.items() if client in clients]:
            if self.unsubscribe(client, uri):
                self.process.write_now(jsonrpc.request(self._next(), "resources/unsubscribe", {"uri": uri}))
        self.clients.pop(client, None)
        self.idle_since = time.monotonic()

    def subscribe(self, client: Client, uri: str) -> bool:
        """Note who wants to hear of a resource; whether he is the first."""
        clients = self._subscribers.setdefault(uri, set())
        clients.add(client)
        return len(clients) == 1

    def unsubscribe(self, client: Client, uri: str) -> bool:
        """Note who does not want to any more; whether he was the last.

        One whose subscription is on its way to the child is there already.
        """
        clients = self._subscribers.get(uri, set())
        clients.discard(client)
        if not clients:
            self._subscribers.pop(uri, None)
        return not clients and not any(
            call.method == "resources/subscribe" and call.uri == uri and call.client is not client
            for call in self.calls.values()
        )

    def throttle(self, stream: Stream, slow: bool) -> None:
        """Wait for a slow reader. Only for a child that has no other client."""
        if slow:
            self._slow[stream] = None
            self.process.pause()
        else:
            self._slow.pop(stream, None)
            if not self._slow:
                self.process.resume()

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _finish(self, number: int) -> Call | None:
        call = self.calls.pop(number, None)
        if call is not None:
            self.idle_since = time.monotonic()
            self._metrics.waiting -= 1
            if call.token is not None:
                self._tokens[number] = (call.client, call.token)
                if len(self._tokens) > TOKENS_KEPT:
                    del self._tokens[next(iter(self._tokens))]
        return call

    def _gone(self) -> ChildError:
        code = self.process.code
        how = (
            "ended"
            if code is None
            else f"ended with status {code}"
            if code >= 0
            else f"was killed by signal {-code}"
        )
        return ChildError("child_exited", f"The MCP server {how} before it answered; start a new session")

    # From the child.

    def _line(self, line: bytes) -> None:
        try:
            message = Message.parse(line)
            if message.method is None:
                self._response(message)
            elif message.is_request:
                self._request(message)
            elif message.method == "notifications/progress":
                self._progress(message)
            else:
                self._notification(message)
        except MessageError as error:
            # Nothing at all is no message, and no fault.
            if line.strip():
                self._reject(len(line), error.code)

    def _response(self, message: Message) -> None:
        identifier = message.id or ""
        number = int(identifier) if identifier.isdecimal() else 0
        own = self._own.get(number)
        if own is not None:
            if not own.done():
                own.set_result(message)
            return
        call = self._finish(number)
        if call is None:
            # An answer to what was cancelled; nothing waits for it.
            return
        seconds = self.idle_since - call.since
        if call.method == "resources/subscribe" and call.uri and message.result is not None:
            self.subscribe(call.client, call.uri)
        try:
            if call.method == "subscriptions/listen":
                text = message.edited({("id",): call.id, ("result", "_meta", SUBSCRIPTION_KEY): call.id})
            else:
                text = message.with_id(call.id)
            if call.method == "tools/list" and call.client.permit is not None:
                text = call.client.permit.listed(text)
        except MessageError:
            # Whoever waits is answered whatever the child writes.
            text = jsonrpc.error(call.id, jsonrpc.INTERNAL_ERROR, MALFORMED)
        call.stream.put(text, final=True)
        self._metrics.answered(call.method, seconds)

    def _request(self, message: Message) -> None:
        identifier, method = message.id or "", message.method or ""
        client = next(iter(self.clients), None)
        if len(identifier) > NAME_MAX:
            self._say(jsonrpc.error(identifier, jsonrpc.INVALID_REQUEST, "The id is too long"))
        elif client is not None and not self.shared:
            self._asked[message.id_value] = client
            if len(self._asked) > ASKED_KEPT:
                del self._asked[next(iter(self._asked))]
            client.receive(method, message.text, None)
        elif method == "ping":
            self._say(jsonrpc.result(identifier, {}))
        elif method.partition("/")[0] not in self._offered:
            text = "No client to ask: this server was not offered the capability"
            self._say(jsonrpc.error(identifier, jsonrpc.METHOD_NOT_FOUND, text))
        elif not self.on_ask(self, message):
            text = "No client to ask: no call is under way, or too much has been asked already"
            self._say(jsonrpc.error(identifier, jsonrpc.INTERNAL_ERROR, text))

    def _say(self, text: str) -> None:
        """Answer the child, unless it does not read what it was answered before."""
        if self.process.ready:
            self.process.write_now(text)

    def _progress(self, message: Message) -> None:
        number = message.param("progressToken")
        # True is equal to 1, and no number of ours.
        if type(number) is not int:
            return
        call = self.calls.get(number)
        client, token = (call.client, call.token) if call else self._tokens.get(number, (None, None))
        if client is not None and token is not None:
            text = message.edited({("params", "progressToken"): token})
            client.receive("notifications/progress", text, call.stream if call else None)

    def _notification(self, message: Message) -> None:
        subscription = message.meta.get(SUBSCRIPTION_KEY) if self.modern else None
        if subscription is not None:
            call = self.calls.get(subscription) if type(subscription) is int else None
            if call is not None:
                call.stream.put(message.edited({("params", "_meta", SUBSCRIPTION_KEY): call.id}))
            return
        for client in self._audience(message):
            client.receive(message.method or "", message.text, None)

    def _audience(self, message: Message) -> list[Client]:
        """Who may hear a notification. What may be about one client's doings never reaches another."""
        everyone = list(self.clients)
        if not self.shared or (message.method and message.method.endswith("/list_changed")):
            return everyone
        if message.method == "notifications/resources/updated":
            subscribers = self._subscribers_of(str(message.param("uri")))
            return [client for client in everyone if client in subscribers]
        # Nothing else says whose it is. Not even where one client alone is there: another may just have left.
        active = {call.client for call in self.calls.values()} if self.one_person else set()
        return [client for client in everyone if client in active] if len(active) == 1 else []

    def _subscribers_of(self, uri: str) -> set[Client]:
        found: set[Client] = set()
        return found.union(*(clients for wide, clients in self._subscribers.items() if covers(wide, uri)))

    def _long_line(self, head: bytes, tail: bytes) -> None:
        self._reject(MAX_MESSAGE + 1, jsonrpc.INVALID_REQUEST)
        begins, ends = _HEAD.search(head), _ID_AT_TAIL.search(tail)
        if begins is None:
            return
        identifier = begins[1] or (ends[1] if ends else b"")
        if begins[2] == b"method":
            if identifier:
                text = "The message is longer than 10 MiB"
                self._say(jsonrpc.error(identifier.decode(errors="replace"), jsonrpc.INVALID_REQUEST, text))
            return
        call = self._finish(int(identifier)) if identifier.isdigit() else None
        if call is not None:
            text = "The MCP server's answer is longer than 10 MiB"
            call.stream.put(
                jsonrpc.error(call.id, jsonrpc.INTERNAL_ERROR, text, {"reason": "answer_too_long"}),
                final=True,
            )

    def _reject(self, length: int, code: int) -> None:
        self._rubbish += 1
        if self._rubbish <= RUBBISH_LOGGED or self._rubbish % 1000 == 0:
            self._log(
                "child_rubbish",
                "warning",
                pid=self.process.pid,
                length=length,
                code=code,
                count=self._rubbish,
            )

    def _ended(self) -> None:
        error = self._gone()
        for own in self._own.values():
            if not own.done():
                own.set_exception(error)
        calls, self.calls = list(self.calls.values()), {}
        self._metrics.waiting -= len(calls)
        for call in calls:
            self._metrics.failed(error.reason)
            call.stream.put(error.response(call.id), final=True)
        clients, self.clients = list(self.clients), {}
        for client in clients:
            client.lost()
        self._on_gone(self)
