"""What is answered past the application is answered as the application does: `/mcp` is asked beside `/mcp/`, which always is its."""

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from conftest import META, MODERN, NASTY, Bridge, Session, environment, eventually
from gatehouse_bridge.app import App
from gatehouse_bridge.direct import protocol
from gatehouse_bridge.launch import Launcher
from gatehouse_bridge.log import Log
from gatehouse_bridge.settings import Settings, load_secrets
from gatehouse_service.configuration import load

Start = Callable[..., Bridge]
TYPE = "Content-Type: application/json"
ACCEPT = "Accept: application/json, text/event-stream"
LONG = 3_000_000


def fields(session: Session) -> list[str]:
    return [
        ACCEPT,
        TYPE,
        *(f"{name}: {value}" for name, value in session.headers.items() if name != "Accept"),
    ]


def post(body: str | bytes, headers: list[str], path: str = "/mcp") -> bytes:
    body = body.encode() if isinstance(body, str) else body
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "".join(f"{line}\r\n" for line in head).encode() + b"\r\n" + body


def tool(name: str, identifier: Any = 7, token: Any = None, **arguments: Any) -> str:
    params: dict[str, Any] = {"name": name, "arguments": arguments}
    if token is not None:
        params["_meta"] = {"progressToken": token}
    return json.dumps({"jsonrpc": "2.0", "id": identifier, "method": "tools/call", "params": params})


def modern(method: str, **params: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": "m", "method": method, "params": {"_meta": META, **params}})


class Link:
    """A connection, byte by byte."""

    def __init__(self, address: str) -> None:
        url = httpx.URL(address)
        self._address = (url.host, url.port)

    async def __aenter__(self) -> "Link":
        self._reader, self.writer = await asyncio.open_connection(*self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def answer(self) -> tuple[str, dict[str, str], bytes]:
        """The next answer: its status line, its headers, its body."""
        async with asyncio.timeout(60):
            status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
            headers = dict(line.split(": ", 1) for line in lines)
            assert len(headers) == len(lines)
            assert headers.pop("date")
            if "transfer-encoding" not in headers:
                return status, headers, await self._reader.readexactly(int(headers["content-length"]))
            body = b""
            while size := int(await self._reader.readline(), 16):
                body += await self._reader.readexactly(size)
                await self._reader.readexactly(2)
            await self._reader.readexactly(2)
            return status, headers, body

    async def ask(self, request: bytes, *, piecemeal: bool = False) -> tuple[str, dict[str, str], bytes]:
        # The head by itself, as a proxy sends it, and the body in two.
        head = request.index(b"\r\n\r\n") + 4
        last = max(head, len(request) - 9)
        parts = [request[:head], request[head:last], request[last:]] if piecemeal else [request]
        for part in parts:
            self.writer.write(part)
            await asyncio.sleep(0.02 if piecemeal else 0)
        return await self.answer()


# A stream has a number of its own in each answer.
def alike(answer: tuple[str, dict[str, str], bytes]) -> Any:
    return *answer[:2], re.sub(rb"id: \d+-", b"id: N-", answer[2])


def message_of(answer: tuple[str, dict[str, str], bytes]) -> Any:
    """The answer alone: whether it came at once or as an event stream, a busy machine decides where it is a long one."""
    return answer[0], json.loads(answer[2].rpartition(b"\ndata: ")[2])


# covers: eras, sessions, header-body
async def test_every_request_has_the_answer_that_the_application_gives(common: Bridge) -> None:
    session = await common.open()
    old = await common.open(version="2025-03-26")
    new = [TYPE, ACCEPT, f"MCP-Protocol-Version: {MODERN}", f"X-Gatehouse-User: {common.user}"]
    calls = [*new, "Mcp-Method: tools/call"]
    mine = fields(session)
    nobody = [line for line in mine if not line.lower().startswith("x-gatehouse-user")]
    nowhere = [line for line in mine if not line.lower().startswith("mcp-session-id")]
    hello = modern("tools/call", name="echo", arguments={"text": "hé"})
    assert (await common.stateless("tools/list")).status_code == 200
    asked: list[tuple[str | bytes, list[str]]] = [
        (tool("echo", text="hé ✓"), mine),
        (tool("echo", text="hé ✓"), fields(old)),
        (tool("echo", identifier="a \u2028b", text="x"), mine),
        (tool("echo", text="x" * 20_000), mine),
        (tool("echo", text="x" * 300_000), mine),
        (tool("echo", text="x" * LONG), mine),
        (tool("progress", token="t", steps=2), mine),
        (tool("progress", token=5, steps=1), fields(old)),
        (tool("log", text="said"), mine),
        (tool("sleep", seconds=0.1), mine),
        (tool("sleep", seconds=0.9), mine),
        (tool("pid"), mine),
        ('{"jsonrpc":"2.0","id":1,"method":"tools/list"}', mine),
        ('{ "id" : 1.0 , "jsonrpc" : "2.0" , "method" : "ping" }', mine),
        ('{"jsonrpc":"2.0","id":12345678901234567890,"method":"ping"}', mine),
        ('{"jsonrpc":"2.0","id":1,"method":"no/such"}', mine),
        ('{"jsonrpc":"2.0","id":1,"method":"resources/unsubscribe","params":{"uri":"test://x"}}', mine),
        ('{"jsonrpc":"2.0","method":"notifications/x"}', mine),
        ('{"jsonrpc":"2.0","id":99,"result":{}}', mine),
        ('{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', mine),
        ('{"jsonrpc":"2.0","id":null,"method":"ping"}', mine),
        ('[{"jsonrpc":"2.0","id":1,"method":"ping"}]', mine),
        (b"\xff", mine),
        ("", mine),
        (tool("echo", text="x"), nobody),
        (tool("echo", text="x"), nowhere),
        (tool("echo", text="x"), [*nobody, "X-Gatehouse-User: local:another"]),
        (tool("echo", text="x"), [*nowhere, "Mcp-Session-Id: unknown"]),
        (tool("echo", text="x"), [*mine, "Mcp-Session-Id: unknown"]),
        (tool("echo", text="x"), [*mine, "MCP-Protocol-Version: 1999-01-01"]),
        (tool("echo", text="x"), [*mine, "Content-Type: text/plain"]),
        (tool("echo", text="x"), ["Accept: text/html", *mine[1:]]),
        (tool("echo", text="x"), ["Accept: */*", *mine[1:]]),
        (tool("echo", text="x"), [*mine, "Host: evil.example.com"]),
        (hello, [*calls, "Mcp-Name: echo"]),
        (hello, [*calls, "Mcp-Name: =?base64?ZWNobw==?="]),
        (hello, [*calls, "Mcp-Name: pid"]),
        (hello, [*calls, "Mcp-Name: echo", "Mcp-Name: echo"]),
        (hello, [*new, "Mcp-Method: tools/list", "Mcp-Name: echo"]),
        (modern("tools/list"), [*new, "Mcp-Method: tools/list"]),
        (modern("server/discover"), [*new, "Mcp-Method: server/discover"]),
        (modern("ping"), [*new, "Mcp-Method: ping"]),
        (modern("no/such"), [*new, "Mcp-Method: no/such"]),
        (modern("resources/read", uri="x://y"), [*new, "Mcp-Method: resources/read", "Mcp-Name: x://y"]),
        (modern("tools/call", name="echo", requestState="?"), [*calls, "Mcp-Name: echo"]),
        (modern("tools/call", name="sleep", arguments={"seconds": 0.7}), [*calls, "Mcp-Name: sleep"]),
    ]
    async with Link(common.url) as direct, Link(common.url) as parts, Link(common.url) as plain:
        for body, headers in asked:
            told = message_of if len(body) > LONG else alike
            wanted = told(await plain.ask(post(body, headers, "/mcp/")))
            for _ in range(2):  # the second one's head is known
                assert told(await direct.ask(post(body, headers))) == wanted, (body[:99], headers)
            assert told(await parts.ask(post(body, headers), piecemeal=True)) == wanted, (body[:99], headers)
            assert alike(await direct.ask(post(tool("echo", text="ok"), mine)))[0] == "HTTP/1.1 200 OK"


# covers: sessions
@pytest.mark.parametrize("isolation", ["shared", "per_user"])
async def test_a_session_on_a_child_that_runs_is_opened_as_the_application_opens_it(
    start: Start, isolation: str
) -> None:
    bridge = start(BRIDGE_ISOLATION=isolation)
    await bridge.open()
    hello = json.dumps(
        {
            "jsonrpc": "2.0",
            "id": "h",
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-03-26",
                "capabilities": {},
                "clientInfo": {"name": "c", "version": "1"},
            },
        }
    )
    mine = [TYPE, ACCEPT, f"X-Gatehouse-User: {bridge.user}"]
    async with Link(bridge.url) as direct, Link(bridge.url) as plain:
        for body in (hello, hello.replace('"id": "h", ', ""), hello.replace("2025-03-26", "1999-01-01")):
            given = await direct.ask(post(body, mine)), await plain.ask(post(body, mine, "/mcp/"))
            names = [answer[1].pop("mcp-session-id", "") for answer in given]
            assert given[0] == given[1]
            if names[0]:
                assert names[0] != names[1]
                for link, path in ((direct, "/mcp"), (plain, "/mcp/")):
                    again = post(hello, [*mine, f"Mcp-Session-Id: {names[0]}"], path)
                    assert b'"result"' in (await link.ask(again))[2]
        opened = bridge.health["sessions"]
        ours = [*mine, f"Mcp-Session-Id: {names[0]}", "MCP-Protocol-Version: 2025-03-26"]
        assert b'"text": "x"' in (await direct.ask(post(tool("echo", text="x"), ours)))[2]
        assert bridge.health["sessions"] == opened == 5


# covers: sessions
async def test_a_session_is_looked_at_again_with_each_request(common: Bridge) -> None:
    session = await common.open()
    async with Link(common.url) as link:
        request = post(tool("echo", text="x"), fields(session))
        assert (await link.ask(request))[0] == "HTTP/1.1 200 OK"
        assert await session.delete() == 204
        assert (await link.ask(request))[0] == "HTTP/1.1 404 Not Found"


# covers: untrusted-bytes
async def test_what_looks_like_the_request_before_is_one_only_where_a_request_begins(common: Bridge) -> None:
    session = await common.open()
    mine = fields(session)
    request = post(tool("echo", text="again"), mine)
    wanted = b'"text": "again"'
    inside = post(request, mine)
    async with Link(common.url) as link:

        async def in_parts(*parts: bytes) -> tuple[str, dict[str, str], bytes]:
            for part in parts:
                link.writer.write(part)
                await asyncio.sleep(0.02)
            return await link.answer()

        for _ in range(3):
            assert wanted in (await link.ask(request))[2]
        # As the body of another, as what goes on with a header, and after what another method has asked.
        assert (await in_parts(inside[: -len(request)], request))[0] == "HTTP/1.1 400 Bad Request"
        assert wanted in (await link.ask(request))[2]
        assert b'"status":"ok"' in (await in_parts(b"GET /health HTTP/1.1\r\nX-All: ", request))[2]
        assert wanted in (await link.ask(request))[2]
        assert wanted in (await in_parts(b"\r\n", request))[2]
        # Two at once, and one that is begun while the one before is under way.
        link.writer.write(request * 2)
        assert wanted in (await link.answer())[2]
        assert wanted in (await link.answer())[2]
        slow = post(tool("sleep", seconds=0.3), mine)
        assert (await link.ask(slow))[0] == "HTTP/1.1 200 OK"
        link.writer.write(slow)
        await asyncio.sleep(0.1)
        assert b"again" not in (await in_parts(slow))[2]
        assert (await link.answer())[0] == "HTTP/1.1 200 OK"


async def test_requests_that_come_together_are_answered_in_their_order(common: Bridge) -> None:
    session = await common.open()
    mine = fields(session)
    requests, wanted = [], []
    for number in range(40):
        kind = number % 5
        if kind == 3:
            requests.append(post('{"jsonrpc":"2.0","method":"notifications/x"}', mine))
            wanted.append(None)
        else:
            name = {0: "echo", 1: "sleep", 2: "echo", 4: "progress"}[kind]
            requests.append(
                post(tool(name, identifier=number, token=number, text="x", seconds=0.05, steps=1), mine)
            )
            wanted.append(number)
    data = b"".join(requests)
    async with Link(common.url) as link:
        for size in (len(data), 1000, 333):
            for at in range(0, len(data), size):
                link.writer.write(data[at : at + size])
                await asyncio.sleep(0.001)
            for number in wanted:
                status, _, body = await link.answer()
                if number is None:
                    assert status == "HTTP/1.1 202 Accepted"
                else:
                    assert re.findall(rb'"id": ?(\d+)', body) == [b"%d" % number]


# covers: fault-silent
async def test_going_away_ends_a_call(common: Bridge) -> None:
    headers = [TYPE, ACCEPT, f"MCP-Protocol-Version: {MODERN}", "Mcp-Method: tools/call", "Mcp-Name: sleep"]
    headers.append(f"X-Gatehouse-User: {common.user}")
    assert (await common.stateless("tools/list")).status_code == 200
    async with Link(common.url) as link:
        link.writer.write(post(modern("tools/call", name="sleep", arguments={"seconds": 50}), headers))
        await link.writer.drain()
        await asyncio.sleep(0.2)

    async def cancelled() -> bool:
        seen = (await common.stateless("tools/call", {"name": "seen"})).json()["result"]["content"][0]["text"]
        return any(message.get("method") == "notifications/cancelled" for message in json.loads(seen))

    until = time.monotonic() + 60
    while not await cancelled():
        assert time.monotonic() < until
        await asyncio.sleep(0.05)


async def test_a_session_whose_client_went_in_the_middle_becomes_idle(start: Start) -> None:
    bridge = start(BRIDGE_IDLE_SECONDS=1)
    session = await bridge.open()
    async with Link(bridge.url) as link:
        link.writer.write(post(tool("sleep", seconds=0.3), fields(session)))
        await link.writer.drain()
        await asyncio.sleep(0.1)
    eventually(lambda: bridge.health["sessions"] == 0)


# covers: fault-silent
async def test_a_head_that_never_ends_ends_its_connection(common: Bridge) -> None:
    session = await common.open()
    whole = post(tool("echo", text="x"), fields(session))
    async with Link(common.url) as link, Link(common.url) as fresh:
        assert (await link.ask(whole))[0] == "HTTP/1.1 200 OK"
        begun = time.monotonic()
        for each in (link, fresh):
            each.writer.write(b"POST /mcp HTTP/1.1\r\nX-Slow: ")
        while not (link._reader.at_eof() and fresh._reader.at_eof()):
            for each in (link, fresh):
                if not each.writer.is_closing():
                    each.writer.write(b"x")
            await asyncio.sleep(0.2)
            assert time.monotonic() - begun < 60
        assert time.monotonic() - begun > 9


async def test_what_is_held_of_a_body_is_let_go(start: Start) -> None:
    bridge = start()
    session = await bridge.open()
    request = post(tool("echo", text="x" * 40_000), fields(session))

    async with Link(bridge.url) as gone, Link(bridge.url) as waits:
        for link in (gone, waits):
            link.writer.write(request[:-9])
        eventually(lambda: bridge.figure("request_body_bytes") > 80_000)
        gone.writer.close()
        await gone.writer.wait_closed()
        eventually(lambda: 40_000 < bridge.figure("request_body_bytes") < 80_000)
        waits.writer.write(request[-9:])
        assert (await waits.answer())[0] == "HTTP/1.1 200 OK"
        assert bridge.figure("request_body_bytes") == 0
        waits.writer.write(request[:-9])
        eventually(lambda: bridge.figure("request_body_bytes") > 40_000)
        bridge.process.terminate()
        await asyncio.sleep(0.2)
        waits.writer.write(request[-9:])
        status, headers, _ = await waits.answer()
        assert (status, headers["connection"]) == ("HTTP/1.1 200 OK", "close")


# covers: large
async def test_a_peer_that_does_not_read_is_not_read_from(common: Bridge) -> None:
    session, other = await common.open(), await common.open()
    request = post(tool("echo", text="x" * 60_000), fields(session))
    url = httpx.URL(common.url)
    with socket.create_connection((url.host, url.port)) as link:
        link.settimeout(2)
        with pytest.raises(TimeoutError):
            link.sendall(request * 2000)
        assert await other.call("echo", text="unhurt") == "unhurt"


async def test_a_common_request_does_not_reach_the_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(NASTY, BRIDGE_ENV={}, BRIDGE_CONFINE=False).items():
        monkeypatch.setenv(name, value)
    settings = load(Settings)
    log = Log("test")
    app = App(settings, Launcher(settings, load_secrets(settings), log), log)
    reached: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])
        await app(scope, receive, send)

    config = uvicorn.Config(application, log_config=None, access_log=False, lifespan="off", interface="asgi3")
    config.load()
    made, state = protocol(app), ServerState()
    state.default_headers = [(b"date", b"Thu, 26 Nov 2026 12:00:00 GMT")]
    server = await asyncio.get_running_loop().create_server(
        lambda: made(config=config, server_state=state, app_state={}),  # type: ignore[call-arg]
        "127.0.0.1",
        0,
    )
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with httpx.AsyncClient() as http:
            session = Session(http, url, {})
            await session.initialize()
            opened = len(reached)
            async with Link(url) as link:
                for piecemeal in (False, True):
                    for text in ("short", "x" * 50_000):
                        request = post(tool("echo", text=text), fields(session))
                        assert text.encode() in (await link.ask(request, piecemeal=piecemeal))[2]
                assert (
                    b"event: message"
                    in (await link.ask(post(tool("progress", token=1, steps=1), fields(session))))[2]
                )
                said = post('{"jsonrpc":"2.0","method":"notifications/x"}', fields(session))
                assert (await link.ask(said))[0] == "HTTP/1.1 202 Accepted"
            assert len(reached) == opened
            assert "request_body_bytes 0.0" in app._metrics.text()
    finally:
        server.close()
        await app._pool.close()


async def test_what_cannot_be_changed_is_refused_and_leaves_nothing(start: Start) -> None:
    bridge = start()
    assert (await bridge.stateless("tools/list")).status_code == 200
    mine = fields(await bridge.open())
    new = [TYPE, ACCEPT, f"MCP-Protocol-Version: {MODERN}", "Mcp-Method: tools/call", "Mcp-Name: echo"]
    called = modern("tools/call", name="echo", arguments={"text": "x"})
    cancel = '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1,"x":1,"x":2}}'
    hello = (
        '{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"_meta":{"progressToken":1},"x":1,"x":2}}'
    )
    asked = [
        (called.replace('"name"', '"x": 1, "x": 2, "name"'), new),
        (called.replace('"_meta": {', '"_meta": {"progressToken": 1e400, '), new),
        (called.replace('"_meta": {', f'"_meta": {{"progressToken": "{"x" * 2000}", '), new),
        (tool("echo", token=1, text="x").replace('"name"', '"x": 1, "x": 2, "name"'), mine),
        (cancel, mine),
        (hello, [line for line in mine if not line.lower().startswith("mcp-session-id")]),
    ]
    async with Link(bridge.url) as direct, Link(bridge.url) as plain:
        for body, headers in asked:
            wanted = await plain.ask(post(body, headers, "/mcp/"))
            assert wanted[0] == "HTTP/1.1 400 Bad Request", (body, wanted)
            assert json.loads(wanted[2])["error"]["code"] in (-32700, -32600)
            for _ in range(2):
                assert await direct.ask(post(body, headers)) == wanted, body
        # On the edge of what the parser can take, each look at a message may be the one that fails.
        for depth in range(960, 1000, 2):
            nested = "[" * depth + "]" * depth
            for body, headers in (
                (called.replace('"_meta": {', f'"_meta": {{"progressToken": {nested}, '), new),
                (tool("echo", token="T", text="x").replace('"T"', f'"t", "x": {nested}'), mine),
            ):
                for link, path in ((plain, "/mcp/"), (direct, "/mcp"), (direct, "/mcp")):
                    status, _, said = await link.ask(post(body, headers, path))
                    assert status in ("HTTP/1.1 200 OK", "HTTP/1.1 400 Bad Request")
                    assert json.loads(said)["jsonrpc"] == "2.0"
    metrics = (await bridge.http.get(f"{bridge.url}/metrics")).text
    assert "\ngatehouse_bridge_requests_waiting 0.0\n" in metrics
    assert bridge.health["sessions"] == 1
    assert not [event for event in bridge.events if event["event"] == "fault"]
