"""MCP 2026-07-28, which has no sessions and no handshake, in front of a server of either age.

Each request says for itself what the handshake said once; the bridge checks that. A server of the same age gets
the rest as it is. For one of the older age the bridge takes it out, and puts what the new age wants into the answers.
A server's own requests do not exist in this age; `gatehouse_bridge.rounds` has what becomes of those of the older one.
"""

import base64
from collections.abc import Mapping
from typing import Any

from gatehouse_bridge import jsonrpc
from gatehouse_bridge.child import (
    CAPABILITIES_KEY,
    MALFORMED,
    PREFIX,
    PROTOCOL_VERSIONS,
    SUBSCRIPTION_KEY,
    VERSION,
    VERSION_KEY,
    Call,
    Child,
    covers,
)
from gatehouse_bridge.http import Request
from gatehouse_bridge.jsonrpc import Member, Message, MessageError
from gatehouse_bridge.pool import Key
from gatehouse_bridge.stream import Stream
from gatehouse_bridge.tools import Permit

VERSION_HEADER = b"mcp-protocol-version"
METHOD_HEADER = b"mcp-method"
NAME_HEADER = b"mcp-name"
NAMES = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}

LOG_LEVEL_KEY = f"{PREFIX}logLevel"
SERVER_KEY = f"{PREFIX}serverInfo"
ENVELOPE = frozenset({VERSION_KEY, CAPABILITIES_KEY, LOG_LEVEL_KEY, f"{PREFIX}clientInfo"})

# What the older age had and this one has not (changelog of 2026-07-28); a server of the older age would do it.
REMOVED = frozenset(
    {"initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"}
)
CACHEABLE = frozenset(
    {"tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read"}
)
LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
STATUS = {
    jsonrpc.PARSE_ERROR: 400,
    jsonrpc.INVALID_REQUEST: 400,
    jsonrpc.INVALID_PARAMS: 400,
    jsonrpc.HEADER_MISMATCH: 400,
    jsonrpc.MISSING_CLIENT_CAPABILITY: 400,
    jsonrpc.UNSUPPORTED_PROTOCOL_VERSION: 400,
    jsonrpc.METHOD_NOT_FOUND: 404,
}
RESOURCE_NOT_FOUND = -32002  # until 2025-11-25; since then it is INVALID_PARAMS

# Kinds of change notification that a client may listen to: its name in the filter, the server's capability,
# and the notification.
LISTS = {
    "toolsListChanged": ("tools", "notifications/tools/list_changed"),
    "promptsListChanged": ("prompts", "notifications/prompts/list_changed"),
    "resourcesListChanged": ("resources", "notifications/resources/list_changed"),
}
UPDATED = "notifications/resources/updated"


class Refusal(Exception):  # noqa: N818  # what a request is answered with, not a fault of ours
    """A request that is answered with a JSON-RPC error; `code` is its code."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS.get(self.code, 200)

    def response(self, identifier: str | None) -> str:
        """The JSON-RPC error."""
        return jsonrpc.error(identifier, self.code, str(self), self.data)


def is_stateless(request: Request, message: Message | None = None) -> bool:
    """Whether a request is of this age: it names a version that no session has, or carries its own and is of no session."""
    version = request.version
    if version is not None and version not in PROTOCOL_VERSIONS:
        return True
    in_session = version is not None and request.session is not None
    return not in_session and message is not None and VERSION_KEY in message.meta


def unsupported(requested: Any) -> Refusal:
    """The refusal of a version that the bridge does not speak (basic/versioning)."""
    data = {"supported": [VERSION], "requested": requested}
    return Refusal(jsonrpc.UNSUPPORTED_PROTOCOL_VERSION, "Unsupported protocol version", data)


def check(request: Request, message: Message) -> None:
    """Compare the headers with the body (basic/transports/streamable-http, request metadata).

    Raises:
        Refusal: they disagree, or something that is required is missing.
    """
    for name in (VERSION_HEADER, METHOD_HEADER, NAME_HEADER):
        if name in request.repeated:
            raise Refusal(jsonrpc.HEADER_MISMATCH, f"Header mismatch: {name.decode()} stands more than once")
    meta = message.meta
    missing = [key for key in (VERSION_KEY, CAPABILITIES_KEY) if key not in meta]
    if missing:
        raise Refusal(jsonrpc.INVALID_PARAMS, f"params._meta must have {' and '.join(missing)}")
    if request.version != meta[VERSION_KEY]:
        text = f"Header mismatch: MCP-Protocol-Version is not the {VERSION_KEY} of the body"
        raise Refusal(jsonrpc.HEADER_MISMATCH, text)
    if request.header(METHOD_HEADER) != message.method:
        raise Refusal(jsonrpc.HEADER_MISMATCH, "Header mismatch: Mcp-Method is not the method of the body")
    field = NAMES.get(message.method or "")
    if field is not None:
        name = message.param(field)
        if not isinstance(name, str):
            raise Refusal(jsonrpc.INVALID_PARAMS, f"params.{field} must be a string")
        if decoded(request.header(NAME_HEADER)) != name:
            raise Refusal(
                jsonrpc.HEADER_MISMATCH, f"Header mismatch: Mcp-Name is not params.{field} of the body"
            )
    if meta[VERSION_KEY] != VERSION:
        raise unsupported(meta[VERSION_KEY])
    if not isinstance(meta[CAPABILITIES_KEY], dict):
        raise Refusal(jsonrpc.INVALID_PARAMS, f"{CAPABILITIES_KEY} must be an object")


def decoded(value: str | None) -> str | None:
    """The value of a header that may be `=?base64?...?=`; None where it is missing or malformed."""
    if value is None or not (value.startswith("=?base64?") and value.endswith("?=") and len(value) >= 11):
        return value
    encoded = value[9:-2]
    try:
        raw = base64.b64decode(encoded, validate=True)
        # One value has one encoding, or two readers could take it for two.
        return raw.decode() if base64.b64encode(raw).decode() == encoded else None
    except ValueError:  # not base64, not ASCII, or not UTF-8
        return None


class Exchange:
    """One request, from its check to its answer.

    Args:
        child: A child that speaks this age, or that the bridge has initialized.
        message: The request, checked.
        permit: What its sender may do with tools; None where there are no rules.
        key: Whose the child is.
    """

    def __init__(self, child: Child, message: Message, permit: Permit | None, key: Key) -> None:
        """See the class."""
        self.permit = permit
        self.key = key
        # What is called.
        self.name = message.param(NAMES.get(message.method or "", ""))
        self.stream = Stream(0)
        self._child = child
        self._message = message
        self._level = message.meta.get(LOG_LEVEL_KEY)
        self._filter: dict[str, Any] = {}
        self._call: Call | None = None
        child.attach(self)

    async def begin(self) -> None:
        """Send it to the child, or answer it from what is known.

        Raises:
            ChildError: the child cannot take it.
            Refusal: there is no such method.
        """
        if self._message.method in REMOVED:
            raise Refusal(jsonrpc.METHOD_NOT_FOUND, "Method not found")
        if self._discovers:
            self.stream.put(self._discover(), final=True)
        elif self._message.method == "subscriptions/listen" and not self._child.modern:
            await self._listen()
            self._message.forget()
        else:
            self._call = await self._child.request(self, self._message, self.stream, self._without)

    def begin_now(self) -> None:
        """The same as `begin` for a method of this age, but for `subscriptions/listen`, where the child's process is ready."""
        if self._discovers:
            self.stream.put(self._discover(), final=True)
        else:
            self._call = self._child.request_now(self, self._message, self.stream, self._without)
            self._message.forget()

    @property
    def _discovers(self) -> bool:
        return self._message.method == "server/discover" and not self._child.modern

    @property
    def _without(self) -> frozenset[str]:
        return frozenset() if self._child.modern else ENVELOPE

    def take_up(self, call: Call, token: str | None) -> None:
        """Take a call's answer, which an earlier request has begun, and its progress under the token of this one."""
        call.client, call.id, call.token, self.stream = self, self._message.id or "null", token, call.stream
        self._call = call

    def give_up(self) -> None:
        """Wait no longer for the answer."""
        if self._call is not None:
            self._child.give_up(self._call)

    def end(self) -> None:
        """The client has its answer, or has gone: then it is cancelled (basic/patterns/cancellation)."""
        self._child.detach(self)

    def finish(self, text: str) -> tuple[int, str]:
        """A child's answer as this age has it, and its HTTP status."""
        try:
            return self._finished(text)
        except MessageError:
            return 200, jsonrpc.error(self._message.id, jsonrpc.INTERNAL_ERROR, MALFORMED)

    def _finished(self, text: str) -> tuple[int, str]:
        members, _ = jsonrpc.scan_object(text)
        identifier = members["id"]
        if text[identifier.start : identifier.end] != self._message.id:
            # Of a call that was answered before it was taken up.
            text = jsonrpc.splice(text, [(identifier.start, identifier.end, self._message.id or "null")])
            members, _ = jsonrpc.scan_object(text)
        if "error" in members:
            code = members["error"].value.get("code") if isinstance(members["error"].value, dict) else None
            if code == RESOURCE_NOT_FOUND:
                code = jsonrpc.INVALID_PARAMS
                place = Message.scanned(text).locate("error", "code")
                if place is not None:
                    text = jsonrpc.splice(text, [(place.start, place.end, str(code))])
            return (STATUS.get(code, 200) if isinstance(code, int) else 200), text
        answer = members["result"]
        if self._child.modern or not isinstance(answer.value, dict):
            return 200, text
        added: dict[str, Any] = {}
        if "resultType" not in answer.value:
            added["resultType"] = "complete"
        if self._message.method in CACHEABLE and answer.value.get("resultType") != "input_required":
            added |= {k: v for k, v in {"ttlMs": 0, "cacheScope": "private"}.items() if k not in answer.value}
        return 200, self._with_server_info(insert(text, answer, added))

    # What the child says (`gatehouse_bridge.child.Client`).

    def receive(self, method: str, text: str, stream: Stream | None) -> None:
        """Take what belongs to this request, or what it listens to."""
        if method == "notifications/progress" and stream is not None:
            self.stream.put(text)
        elif method == "notifications/message":
            if self._level in LEVELS and self._call is not None:
                level = Message.parse(text.encode()).param("level")
                if level in LEVELS and LEVELS.index(level) >= LEVELS.index(self._level):
                    self.stream.put(text)
        elif self._listens_to(method, text):
            self.stream.put(self._tagged(text))

    def lost(self) -> None:
        """The child is gone; a client that listens learns it by the end of the stream."""
        self.stream.finish()

    def _discover(self) -> str:
        hello = self._child.hello
        capabilities = hello.get("capabilities")
        # Tasks left the core; the capability of that name was the old one's.
        known = (
            {k: v for k, v in capabilities.items() if k != "tasks"} if isinstance(capabilities, dict) else {}
        )
        body = {"supportedVersions": [VERSION], "capabilities": known, "ttlMs": 0, "cacheScope": "private"}
        if isinstance(hello.get("instructions"), str):
            body["instructions"] = hello["instructions"]
        return jsonrpc.result(self._message.id or "null", body)

    def _with_server_info(self, text: str) -> str:
        info = self._child.hello.get("serverInfo")
        message = Message.scanned(text)
        meta = message.locate("result", "_meta")
        if meta is None:
            return insert(text, message.members["result"], {"_meta": {SERVER_KEY: info}})
        if isinstance(meta.value, dict) and SERVER_KEY not in meta.value:
            return insert(text, meta, {SERVER_KEY: info})
        return text

    async def _listen(self) -> None:
        """Open a stream of change notifications (basic/patterns/subscriptions)."""
        wanted = self._message.param("notifications")
        if not isinstance(wanted, dict):
            raise Refusal(jsonrpc.INVALID_PARAMS, "params.notifications must be an object")
        able = self._child.hello.get("capabilities")
        able = able if isinstance(able, dict) else {}
        for name, (capability, _) in LISTS.items():
            if wanted.get(name) is True and _has(able, capability, "listChanged"):
                self._filter[name] = True
        uris = wanted.get("resourceSubscriptions")
        if isinstance(uris, list) and _has(able, "resources", "subscribe"):
            accepted = []
            for uri in (uri for uri in uris if isinstance(uri, str)):
                first = self._child.subscribe(self, uri)
                answer = await self._child.ask("resources/subscribe", {"uri": uri}) if first else None
                if answer is None or answer.result is not None:
                    accepted.append(uri)
                else:
                    self._child.unsubscribe(self, uri)
            self._filter["resourceSubscriptions"] = accepted
        self.stream.put(
            self._tagged(
                jsonrpc.notification(
                    "notifications/subscriptions/acknowledged", {"notifications": self._filter}
                )
            )
        )

    def close(self) -> None:
        """End the stream of one that listens, in good order (graceful closure)."""
        if self._message.method == "subscriptions/listen" and self._message.id is not None:
            self.stream.put(
                f'{{"jsonrpc":"2.0","id":{self._message.id},"result":{{"resultType":"complete",'
                f'"_meta":{{"{SUBSCRIPTION_KEY}":{self._message.id}}}}}}}',
                final=True,
            )

    def _listens_to(self, method: str, text: str) -> bool:
        if method == UPDATED:
            uri = str(Message.parse(text.encode()).param("uri"))
            return any(covers(wide, uri) for wide in self._filter.get("resourceSubscriptions", ()))
        return any(
            method == notification and name in self._filter for name, (_, notification) in LISTS.items()
        )

    def _tagged(self, text: str) -> str:
        """A notification with the id of the subscription in it."""
        message = Message.scanned(text)
        tag = {SUBSCRIPTION_KEY: self._message.id_value}
        meta, params = message.locate("params", "_meta"), message.members.get("params")
        if meta is not None and isinstance(meta.value, dict):
            return insert(text, meta, tag)
        if params is not None and isinstance(params.value, dict):
            return insert(text, params, {"_meta": tag})
        return insert(text, Member({"": None}, 0, len(text)), {"params": {"_meta": tag}})


def insert(text: str, place: Member, added: Mapping[str, Any]) -> str:
    """Put members at the head of the object at `place`."""
    if not added:
        return text
    inner = jsonrpc.dump(added)[1:-1] + ("," if place.value else "")
    return jsonrpc.splice(text, [(place.start + 1, place.start + 1, inner)])


def _has(capabilities: Mapping[str, Any], name: str, feature: str) -> bool:
    capability = capabilities.get(name)
    return isinstance(capability, dict) and capability.get(feature) is True
