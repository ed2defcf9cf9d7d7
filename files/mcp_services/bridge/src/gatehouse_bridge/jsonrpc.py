"""JSON-RPC messages that are carried, not re-made.

A message is scanned once for where its members stand. What the bridge has to change (an id, a progress
token) is replaced in the text; all else leaves as it came, byte for byte: numbers keep their digits, keys their
order. A parser and a serializer in a row would not do that.
"""

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from json.decoder import scanstring  # type: ignore[attr-defined]  # not in typeshed
from typing import Any, NamedTuple

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
REQUEST_CANCELLED = -32800
HEADER_MISMATCH = -32020
MISSING_CLIENT_CAPABILITY = -32021
UNSUPPORTED_PROTOCOL_VERSION = -32022


# A message up to this length may lie in memory for as long as somebody waits for an answer; and so may the id and the method
# of any.
SHORT = 1024


class MessageError(Exception):
    """Text that is not one JSON-RPC message. `code` is the JSON-RPC error code for it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Member(NamedTuple):
    """A member of an object: its value, and where the text of the value stands."""

    value: Any
    start: int
    end: int


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_scan_value = json.JSONDecoder(parse_constant=_no_constant).scan_once  # type: ignore[attr-defined]  # likewise
_SPACE = " \t\n\r"
# A name without escapes, its colon, and the space around both.
_plain_name = re.compile(r'[ \t\n\r]*"([^"\\\x00-\x1f]*)"[ \t\n\r]*:[ \t\n\r]*').match
# As `Member` makes it, without a call in between.
_member: Callable[[tuple[Any, int, int]], Member] = partial(tuple.__new__, Member)

# The orders in which SDKs write the members: what stands before `params`, `result` or `error`, and what after it.
_IDENTITY = r'"jsonrpc": ?"2\.0"(?:, ?"id": ?(0|[1-9][0-9]{0,17}|"[^"\\\x00-\x1f]*"))?'
_METHOD = r'"method": ?"([^"\\\x00-\x1f]*)", ?"params"'
_before = re.compile(rf'\{{(?:{_IDENTITY}, ?)?(?:{_METHOD}|"(?:(result)|error)"): ?').match
_after = re.compile(rf", ?{_IDENTITY}\}}").fullmatch


def _skip(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at


def scan_object(text: str, at: int = 0) -> tuple[dict[str, Member], int]:
    """The members of the object that begins at `at`, and where it ends.

    Raises:
        MessageError: not an object, or one with a name twice (readers would disagree which one counts).
    """
    members: dict[str, Member] = {}
    try:
        if text[at] != "{":
            raise ValueError("not an object")
        at += 1
        while True:
            # One expression reads nearly every name and the space around it; a call for each part would cost most of a scan.
            plain = _plain_name(text, at)
            if plain is not None:
                name, start = plain[1], plain.end()
            else:
                at = _skip(text, at)
                if text[at] == "}" and not members:
                    return members, at + 1
                if text[at] != '"':
                    raise ValueError("not a name")
                name, at = scanstring(text, at + 1, True)
                at = _skip(text, at)
                if text[at] != ":":
                    raise ValueError("no colon")
                start = _skip(text, at + 1)
            value, at = _scan_value(text, start)
            if name in members:
                raise ValueError("a name stands twice")
            members[name] = _member((value, start, at))
            if text[at] in _SPACE:
                at = _skip(text, at)
            if text[at] == "}":
                return members, at + 1
            if text[at] != ",":
                raise ValueError("no comma")
            at += 1
    except (IndexError, StopIteration, RecursionError, ValueError):
        raise MessageError(
            PARSE_ERROR, "Parse error: no valid JSON object, or a name stands twice in it"
        ) from None


def _usual(text: str) -> "Message | None":
    """A message whose members stand as most write them, by one call of the scanner: no name can stand twice there.

    Returns:
        None where it is written otherwise, or is none: then it is for `scan_object` to say.
    """
    before = _before(text)
    if before is None:
        return None
    try:
        value, end = _scan_value(text, before.end())
    except (StopIteration, RecursionError, ValueError):
        return None
    around: re.Match[str] | None = before
    if not text.startswith('"jsonrpc"', 1):
        around = _after(text, end)
    elif text[end:] != "}":
        around = None
    if around is None:
        return None
    place, method = around.span(1), before[2]
    if method is None:
        # A response needs an id.
        return None if place[0] < 0 else Message(text, place, None, {}, value if before[3] else None)
    if type(value) is dict or type(value) is list:
        return Message(text, None if place[0] < 0 else place, method, value)
    return None


def scan_array(text: str, at: int = 0) -> list[Member]:
    """The elements of the array that begins at `at`.

    Raises:
        MessageError: not an array.
    """
    elements: list[Member] = []
    try:
        if text[at] != "[":
            raise ValueError("not an array")
        at = _skip(text, at + 1)
        if text[at] == "]":
            return elements
        while True:
            value, end = _scan_value(text, at)
            elements.append(Member(value, at, end))
            at = _skip(text, end)
            if text[at] == "]":
                return elements
            if text[at] != ",":
                raise ValueError("no comma")
            at = _skip(text, at + 1)
    except (IndexError, StopIteration, RecursionError, ValueError):
        raise MessageError(PARSE_ERROR, "Parse error: no valid JSON array") from None


def splice(text: str, edits: Iterable[tuple[int, int, str]]) -> str:
    """Replace parts of a text; each edit is start, end, and what stands there instead."""
    parts: list[str] = []
    at = 0
    for start, end, replacement in sorted(edits):
        parts += (text[at:start], replacement)
        at = end
    parts.append(text[at:])
    return "".join(parts)


def dump(value: Any) -> str:
    """Compact JSON, in ASCII: what comes from an escape that is no character survives.

    Raises:
        MessageError: it was read, but cannot be written again: a number beyond all floats, or one level too deep.
    """
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        raise MessageError(
            INVALID_REQUEST, "A number is too large, or values are nested too deeply"
        ) from None


class Message:
    """One request, notification, or response.

    `id` is the text of the id as it came (`7`, `"7"`), or None where there is none: 7 and "7" are two ids.
    `method` is None for a response.
    """

    __slots__ = ("_members", "_place", "id", "method", "params", "result", "text")

    def __init__(
        self, text: str, place: tuple[int, int] | None, method: str | None, params: Any, result: Any = None
    ) -> None:
        """See `parse` and `scanned`."""
        self.text = text
        # Where everything stands is looked up when it is asked for.
        self._members: dict[str, Member] | None = None
        self._place = place
        self.id: str | None = None if place is None else text[place[0] : place[1]]
        self.method = method
        # An empty object where there are none.
        self.params = params
        # None where it is no response, or one that tells an error.
        self.result = result

    @classmethod
    def scanned(cls, text: str) -> "Message":
        """A message of text that is an object.

        Raises:
            MessageError: it is not one, or has a name twice.
        """
        members, end = scan_object(text)
        if end != len(text):
            raise MessageError(PARSE_ERROR, "Parse error: more than one value")
        at = members.get("id")
        values = {name: member.value for name, member in members.items()}
        message = cls(
            text,
            None if at is None else (at.start, at.end),
            values.get("method"),
            values.get("params", {}),
            values.get("result"),
        )
        message._members = members
        return message

    @classmethod
    def parse(cls, raw: bytes) -> "Message":
        """Read one message.

        Raises:
            MessageError: with the code that JSON-RPC 2.0 (section 5.1) has for the fault.
        """
        try:
            text = raw.decode().strip(" \t\r\n")
            # Outside strings these are space, and inside them they are not allowed: one line, as stdio and
            # server-sent events need.
            if "\n" in text or "\r" in text:
                text = text.replace("\n", " ").replace("\r", " ")
            if text.startswith("["):
                json.loads(text)
                raise MessageError(INVALID_REQUEST, "Send one JSON-RPC message, not a batch")
            usual = _usual(text)
            message = cls.scanned(text) if usual is None else usual
        except (ValueError, RecursionError):
            raise MessageError(PARSE_ERROR, "Parse error: not valid JSON") from None
        if usual is None:
            message._check()
        if len(text) > SHORT and max(len(message.id or ""), len(message.method or "")) > SHORT:
            raise MessageError(INVALID_REQUEST, "Not a JSON-RPC message: the id or the method is too long")
        return message

    @property
    def members(self) -> dict[str, Member]:
        """The members, with where they stand.

        Raises:
            MessageError: it is nested too deeply for this second look.
        """
        if self._members is None:
            self._members, _ = scan_object(self.text)
        return self._members

    @property
    def id_value(self) -> Any:
        """The id by its value: one string can be written in several ways."""
        return None if self.id is None else json.loads(self.id)

    @property
    def is_request(self) -> bool:
        """Whether someone waits for an answer to it."""
        return self.method is not None and self.id is not None

    @property
    def is_response(self) -> bool:
        """Whether it answers a request."""
        return self.method is None

    def _check(self) -> None:
        values = {name: member.value for name, member in self.members.items()}
        if values.get("jsonrpc") != "2.0":
            raise MessageError(INVALID_REQUEST, 'Not a JSON-RPC message: "jsonrpc" must be "2.0"')
        # An error may have the id null: its sender could not read the request. True is an `int` that is none.
        if (
            self.id is not None
            and type(identifier := values["id"]) not in (str, int)
            and not (identifier is None and self.method is None and "error" in values)
        ):
            raise MessageError(
                INVALID_REQUEST, "Not a JSON-RPC message: the id must be a string or an integer"
            )
        if "method" in values:
            if not isinstance(self.method, str):
                raise MessageError(INVALID_REQUEST, "Not a JSON-RPC message: the method must be a string")
            if not isinstance(self.params, dict | list):
                raise MessageError(INVALID_REQUEST, "Not a JSON-RPC message: params must be an object")
        elif self.id is None or ("result" in values) == ("error" in values):
            raise MessageError(
                INVALID_REQUEST, "Not a JSON-RPC message: neither a request, a notification, nor a response"
            )

    def param(self, name: str) -> Any:
        """One of the params; None where it is missing."""
        params = self.params
        return params.get(name) if isinstance(params, dict) else None

    @property
    def meta(self) -> dict[str, Any]:
        """`params._meta`; empty where there is none."""
        params = self.params
        meta = params.get("_meta") if isinstance(params, dict) else None
        return meta if isinstance(meta, dict) else {}

    def locate(self, *path: str) -> Member | None:
        """Where a member deeper down stands, `("params", "_meta", "progressToken")`; None where it does not.

        Raises:
            MessageError: a name stands twice on the way there. Only who changes a message has to know.
        """
        members, member = self.members, None
        for name in path:
            if member is not None:
                if not isinstance(member.value, dict):
                    return None
                members, _ = scan_object(self.text, member.start)
            member = members.get(name)
            if member is None:
                return None
        return member

    def forget(self) -> None:
        """Keep of a long one only whose it is, and what: its text has been taken, and is not asked for again."""
        if len(self.text) > SHORT:
            self.text, self._place, self._members, self.params, self.result = "", None, None, {}, None

    def with_id(self, identifier: str) -> str:
        """The text of a request or response with this id instead of its own."""
        if self._place is None:
            return self.text
        start, end = self._place
        return f"{self.text[:start]}{identifier}{self.text[end:]}"

    def edited(self, edits: dict[tuple[str, ...], str]) -> str:
        """The text with the members at these paths replaced; paths that are not there are left out.

        Raises:
            MessageError: a name stands twice on the way to one.
        """
        places = ((self.locate(*path), text) for path, text in edits.items())
        return splice(self.text, [(place.start, place.end, text) for place, text in places if place])


def request(identifier: int, method: str, params: dict[str, Any]) -> str:
    """The text of a request."""
    return dump({"jsonrpc": "2.0", "id": identifier, "method": method, "params": params})


def notification(method: str, params: dict[str, Any] | None = None) -> str:
    """The text of a notification."""
    return dump({"jsonrpc": "2.0", "method": method} | ({} if params is None else {"params": params}))


def result(identifier: str, value: dict[str, Any]) -> str:
    """The text of a successful response; `identifier` is the id as text."""
    return response(identifier, dump(value))


def response(identifier: str, text: str) -> str:
    """The text of a successful response with a result that is text already."""
    return f'{{"jsonrpc":"2.0","id":{identifier},"result":{text}}}'


def error(identifier: str | None, code: int, message: str, data: Any = None) -> str:
    """The text of an error response; `identifier` is the id as text, None if it is not known."""
    body = {"code": code, "message": message} | ({} if data is None else {"data": data})
    return f'{{"jsonrpc":"2.0","id":{identifier or "null"},"error":{dump(body)}}}'
