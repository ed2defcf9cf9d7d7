"""What the bridge's parsers promise, for any bytes. Driven by hypothesis in `make test`, by atheris in `make fuzz`."""

import asyncio
import json
from base64 import b64encode
from collections.abc import Callable
from typing import Any

from gatehouse_bridge.http import Request, TooLargeError
from gatehouse_bridge.jsonrpc import Message, MessageError
from gatehouse_bridge.mirrored import Declared
from gatehouse_bridge.mirrored import check as check_mirrored
from gatehouse_bridge.stateless import Refusal, check, decoded
from gatehouse_bridge.stream import Stream

_loop = asyncio.new_event_loop()


def message(data: bytes) -> None:
    """What is taken is one JSON-RPC message on one line, read as any reader does; edits change their places alone, or are refused."""
    try:
        taken = Message.parse(data)
    except MessageError:
        return
    assert "\n" not in taken.text
    assert "\r" not in taken.text
    read = json.loads(taken.text)
    # The same document as what came.
    assert taken.text == data.decode().strip(" \t\r\n").replace("\n", " ").replace("\r", " ")
    assert read["jsonrpc"] == "2.0"
    assert len(read) == len(taken.members)
    for name, member in taken.members.items():
        assert json.dumps(json.loads(taken.text[member.start : member.end])) == json.dumps(read[name])
        assert json.dumps(member.value) == json.dumps(read[name])
    assert taken.is_response == ("method" not in read)
    assert (taken.method, json.dumps(taken.params)) == (
        read.get("method"),
        json.dumps(read.get("params", {})),
    )
    assert json.dumps(taken.result) == json.dumps(read.get("result"))
    assert json.dumps(taken.id_value) == json.dumps(read.get("id"))
    scanned = Message.scanned(taken.text)
    assert (taken.id, taken.with_id("7")) == (scanned.id, scanned.with_id("7"))
    if taken.id is not None:
        assert taken.with_id('"edited"') == taken.edited({("id",): '"edited"'})
    places = {("id",): '"edited"', ("params", "_meta", "progressToken"): "7"}
    try:
        edited = json.loads(taken.edited(places))
    except MessageError:
        # A name stands twice on the way there: it is carried, but not changed.
        return
    if "id" in read:
        assert edited.pop("id") == "edited"
        read.pop("id")
    if taken.locate("params", "_meta", "progressToken") is not None:
        assert edited["params"]["_meta"].pop("progressToken") == 7
        read["params"]["_meta"].pop("progressToken")
    assert json.dumps(edited) == json.dumps(read)


def header(data: bytes) -> None:
    """A header's value has one reading, and each encoded value one writing."""
    value = data.decode("latin-1")
    read = decoded(value)
    if value.startswith("=?base64?") and value.endswith("?=") and len(value) >= 11:
        assert read is None or value == f"=?base64?{b64encode(read.encode()).decode()}?="
    else:
        assert read == value
    wrapped = f"=?base64?{b64encode(value.encode()).decode()}?="
    assert decoded(wrapped) == value


def _request(headers: list[tuple[bytes, bytes]], body: bytes = b"") -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(_: Any) -> None:
        raise AssertionError("nothing is answered")

    return Request(
        {"method": "POST", "path": "/mcp", "headers": headers, "client": ("::1", 1)}, receive, send
    )


def can_be_told(refusal: Refusal) -> None:
    json.loads(refusal.response(None))
    assert 200 <= refusal.status < 500


def headers(data: bytes) -> None:
    """Headers that are taken agree with the body; a refusal can be said. Lines of `name: value`, then the body."""
    head, _, body = data.partition(b"\n\n")
    lines = [line.partition(b":") for line in head.split(b"\n")]
    request = _request([(name.strip().lower(), value) for name, _, value in lines], body)
    assert isinstance(request.from_here, bool)
    assert request.accepts() or request.headers.get(b"accept") is not None
    try:
        assert _loop.run_until_complete(request.body(1000, lambda _: True)) == body
        taken = Message.parse(body)
        check(request, taken)
        check_mirrored(
            request, taken, {"t": [Declared(("x",), "X", "string"), Declared(("n",), "N", "integer")]}
        )
    except Refusal as refusal:
        can_be_told(refusal)
        return
    except (TooLargeError, MessageError):
        return
    assert request.header(b"mcp-method") == taken.method
    assert not {b"mcp-method", b"mcp-name", b"mcp-protocol-version"} & request.repeated
    if taken.method == "tools/call":
        assert decoded(request.header(b"mcp-name")) == taken.param("name")


def events(data: bytes) -> None:
    """Whatever a child says, each message is one event, and a client reads it back whole."""
    texts = []
    for line in data.split(b"\n"):
        try:
            texts.append(Message.parse(line).text)
        except MessageError:
            continue
    sent = _loop.run_until_complete(_sent(texts))
    read = [
        [line[6:] for line in event.split("\n") if line.startswith("data: ")]
        for event in sent.decode().split("\n\n")
        if "event: message" in event.split("\n")
    ]
    assert read == [[text] for text in texts]


async def _sent(texts: list[str]) -> bytes:
    parts: list[bytes] = []
    closed: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def receive() -> dict[str, Any]:
        return await closed

    async def send(part: Any) -> None:
        parts.append(part.get("body", b""))

    stream = Stream(1)
    for text in texts:
        stream.put(text)
    stream.finish()
    request = Request({"method": "GET", "path": "/mcp", "headers": []}, receive, send)
    await request.reply_with(stream, [], None, life=60)
    return b"".join(parts)


PROMISES: dict[str, Callable[[bytes], None]] = {
    made.__name__: made for made in (message, header, headers, events)
}
