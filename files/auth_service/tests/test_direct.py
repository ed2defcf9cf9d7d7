"""The way in for a check answers as the application does behind the server's own protocol, whatever comes."""

import asyncio
import itertools
import json
import random
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from conftest import ECHO, ISSUER, RESOURCES, Fleet, Node, keyring, wait_for
from joserfc.jwk import ECKey
from test_check import forge, signing_key
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gatehouse_auth.audit import Log
from gatehouse_auth.check import Answer, Internal
from gatehouse_auth.direct import protocol
from gatehouse_auth.identity.base import AccessRules, Identity
from gatehouse_auth.keyring import Keyring
from gatehouse_auth.settings import Settings
from gatehouse_auth.store import StoreUnavailable
from gatehouse_auth.uses import Uses
from gatehouse_auth.verifier import Findings

HOST = b"Host: 127.0.0.1:18000\r\n"
DATE = [(b"date", b"Mon, 23 Nov 2026 12:00:00 GMT")]


class Anyone:
    """A provider that knows everyone, as the token says."""

    title = ""

    def current(self, identity: Identity) -> Identity:
        return identity


@dataclass
class Revocations:
    """What Redis is asked, and what it answers; a pause stands for the network."""

    revoked_names: set[str] = field(default_factory=set)
    asked: list[tuple[str, ...]] = field(default_factory=list)
    seconds: float = 0.0
    away: bool = False

    async def revoked(self, *names: str) -> bool:
        self.asked.append(names)
        await asyncio.sleep(self.seconds)
        if self.away:
            raise StoreUnavailable("away")
        return not self.revoked_names.isdisjoint(names)


@dataclass
class Lines:
    """A log's stream, which keeps what was written in the order of what else happened."""

    happened: list[tuple[str, bytes]]

    def write(self, text: str) -> None:
        self.happened.append(("record", text.encode()))

    def flush(self) -> None:
        pass


class Service:
    """The check with its connections in this process."""

    def __init__(self, folder: Path) -> None:
        resources = folder / "resources.json"
        resources.write_text(json.dumps(RESOURCES))
        ring = keyring("current")
        entry = json.loads(ring)["keys"][0]
        self.key = ECKey.import_key({**entry["jwk"], "kid": entry["kid"]})
        settings = Settings(
            issuer=ISSUER,
            resources=str(resources),  # type: ignore[arg-type]
            providers={"local": {}},  # type: ignore[arg-type]
            allow={"users": ["ana"]},  # type: ignore[arg-type]
        )
        self.happened: list[tuple[str, bytes]] = []
        self.log = Log(Lines(self.happened))  # type: ignore[arg-type]
        self.store = Revocations()
        self.findings: Findings[Answer] = Findings(self.store, None, self.log, 300)  # type: ignore[arg-type]
        self.findings.stream.synced = True
        rules = AccessRules(settings.providers, settings.allow_lists)
        self.internal = Internal(
            settings,
            Keyring.parse(ring),
            self.store,  # type: ignore[arg-type]
            self.findings,
            rules,
            {"local": Anyone()},
            Uses(),
            self.log,
        )
        self.state = ServerState()
        self.state.default_headers = DATE

    def connect(
        self, kind: type[Any], keep_alive: int = 120, transport: "type[Connection] | None" = None
    ) -> "Connection":
        config = uvicorn.Config(
            self.internal, http=kind, log_config=None, access_log=False, ws="none", lifespan="off",
            interface="asgi3", timeout_keep_alive=keep_alive,
        )  # fmt: skip
        config.load()
        made = config.http_protocol_class(config=config, server_state=self.state, app_state={})  # type: ignore[call-arg]
        return (transport or Connection)(made, self.happened, self.state)

    @property
    def direct(self) -> type[asyncio.Protocol]:
        return protocol(self.internal, self.log.flush)


class Connection(asyncio.Transport):
    """A protocol, and the transport that it writes to."""

    def __init__(self, made: Any, happened: list[tuple[str, bytes]], state: ServerState) -> None:
        super().__init__()
        self.protocol = made
        self._state = state
        self.sent = b""
        self.closed = False
        self.reading = True
        self._happened = happened
        made.connection_made(self)

    def write(self, data: Any) -> None:
        assert not self.closed
        self.sent += bytes(data)
        self._happened.append(("answer", bytes(data)))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    async def feed(self, *chunks: bytes) -> None:
        for chunk in chunks:
            if self.closed:
                break
            self.protocol.data_received(chunk)
            await asyncio.sleep(0)
        await self.settle()

    async def settle(self) -> None:
        """Until all that came is answered."""
        async with asyncio.timeout(60):
            while self._state.tasks:
                await asyncio.wait(self._state.tasks)
        for _ in range(3):  # what is sent at the end of a turn
            await asyncio.sleep(0)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def run(made: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await made()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def answers(sent: bytes) -> list[tuple[bytes, frozenset[bytes], bytes]]:
    """Each response: its status line, its headers in any order, its body."""
    found = []
    while sent:
        head, _, rest = sent.partition(b"\r\n\r\n")
        status, *headers = head.split(b"\r\n")
        length = next((int(line[16:]) for line in headers if line.startswith(b"content-length: ")), 0)
        found.append((status, frozenset(headers), rest[:length]))
        assert len(headers) == len(set(headers))
        sent = rest[length:]
    return found


def check(
    token: str, *headers: bytes, path: bytes = b"/internal/check/echo", method: bytes = b"GET"
) -> bytes:
    extra = b"".join(header + b"\r\n" for header in headers)
    authorization = f"Authorization: Bearer {token}\r\n".encode() if token else b""
    return method + b" " + path + b" HTTP/1.1\r\n" + HOST + authorization + extra + b"\r\n"


def requests(known: str, unseen: str) -> list[bytes]:
    """What a peer can send: the plain and the odd."""
    inner = check(known, b"X-Request-Id: smuggled")
    return [
        check(known),
        check(known, b"X-Request-Id: r-1", b"Accept: */*"),
        check(unseen),
        check("forged"),
        check(""),
        check(known, b"Origin: https://evil.example.test"),
        check(known, b"Origin: https://app.example.test"),
        check(known, b"Authorization: Bearer x"),
        check(known, b"Host: evil.example.test"),
        check(known, path=b"/internal/check/files"),
        check(known, path=b"/internal/check/unknown"),
        check(known, path=b"/internal/check/ech%6f"),
        check(known, path=b"/internal/check/echo?x=1"),
        check(known, path=b"/internal/check/echo/"),
        check(known, path=b"/internal/check/echo#x"),
        check(known, path=b"//internal/check/echo"),
        check(known, path=b"/internal/../internal/check/echo"),
        check(known, path=b"http://127.0.0.1:18000/internal/check/echo"),
        check(known, path=b"http://evil.example.test/internal/check/echo"),
        check(known, path=b"/internal/resource/echo"),
        check(known, path=b"/elsewhere"),
        check(known, method=b"HEAD"),
        check(known, method=b"POST"),
        check(known, b"Content-Length: 0"),
        check(known, b"Content-Length: %d" % len(inner)) + inner,
        check(known, b"Content-Length: %d" % len(inner), method=b"POST") + inner,
        check(known, b"Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner),
        check(known, b"Expect: 100-continue"),
        check(known, b"Upgrade: websocket"),
        check(known, b"Connection: keep-alive, x"),
    ]


def closing(known: str) -> list[bytes]:
    """After these a connection closes."""
    return [
        check(known, b"Connection: close"),
        check(known).replace(b"HTTP/1.1", b"HTTP/1.0"),
        check(known).replace(b"HTTP/1.1", b"HTTP/1.2"),
        check(known, b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
        check(known, b"Content-Length: 1", b"Content-Length: 2") + b"xx",
        check(known, b"Content-Length: +1") + b"x",
        check(known, b"Content-Length : 1") + b"x",
        check(known, b"Transfer-Encoding: chunked") + b"zz\r\n",
        check(known, b"Transfer-Encoding: xchunked") + b"x",
        check(known, b"X-Folded: a\r\n Authorization: Bearer x"),
        check(known, b"X-Nul: \x00"),
        check(known, b" X-Space: 1"),
        check(known).replace(b"\r\n", b"\n"),
        check(known, method=b"CONNECT"),
        check(known, b"Connection: upgrade", b"Upgrade: h2c"),
        b"\x16\x03\x01\x02\x00" + b"\x00" * 40,
        b"GET\r\n\r\n",
    ]


def test_every_request_has_the_answer_that_it_has_without(service: Service) -> None:
    known = forge(service.key)

    async def compare() -> None:
        # Each by itself, as it comes and byte by byte; the first makes the token known.
        asked = [check(known), *requests(known, "a.b.c"), *closing(known)]
        for request in asked:
            for chunks in ([request], [request[at : at + 1] for at in range(len(request))]):
                direct, plain = service.connect(service.direct), service.connect(HttpToolsProtocol)
                await direct.feed(*chunks)
                await plain.feed(*chunks)
                assert answers(direct.sent) == answers(plain.sent), request
                assert direct.closed == plain.closed, request

    run(compare)


def test_requests_that_come_together_are_answered_in_their_order(service: Service) -> None:
    known = forge(service.key)
    draw = random.Random(5)
    numbers = itertools.count()

    async def compare() -> None:
        await service.connect(service.direct).feed(check(known))
        for _ in range(150):
            chosen = draw.choices(requests(known, forge(service.key, jti=f"n{next(numbers)}")), k=6)
            chosen.append(draw.choice([b"", closing(known)[0]]))
            service.store.seconds = draw.choice([0.0, 0.002])
            data = b"".join(chosen)
            cuts = sorted(draw.randrange(len(data)) for _ in range(draw.randrange(4)))
            chunks = [data[a:b] for a, b in itertools.pairwise([0, *cuts, len(data)])]
            direct, plain = service.connect(service.direct), service.connect(HttpToolsProtocol)
            await direct.feed(*chunks)
            await plain.feed(*chunks)
            assert answers(direct.sent) == answers(plain.sent), chosen
            assert (direct.closed, direct.reading) == (plain.closed, plain.reading)

    run(compare)


def test_what_cannot_be_parsed_is_refused_after_the_answer_to_what_could(service: Service) -> None:
    known = forge(service.key)

    async def ask() -> None:
        await service.connect(service.direct).feed(check(known))
        connection = service.connect(service.direct)
        await connection.feed(check(known) + b"GET\r\n\r\n" + check(known))
        assert [status[9:12] for status, _, _ in answers(connection.sent)] == [b"200", b"400"]
        assert connection.closed

    run(ask)


# covers: audit
def test_a_decision_is_recorded_before_its_answer_goes_out(service: Service) -> None:
    tokens = [forge(service.key, jti=f"t{number}") for number in range(5)]

    async def ask() -> None:
        for _ in range(2):  # unseen, then known
            service.happened.clear()
            connections = [service.connect(service.direct) for _ in tokens]
            for number, token in enumerate(tokens):
                connections[number].protocol.data_received(check(token, b"X-Request-Id: r%d" % number))
            await connections[0].settle()
            kinds = [kind for kind, _ in service.happened]
            assert kinds == ["record", *["answer"] * len(tokens)]
            records = [json.loads(line) for line in service.happened[0][1].splitlines()]
            assert [record["request"] for record in records] == [f"r{n}" for n in range(len(tokens))]

    run(ask)


def test_an_answer_goes_out_though_its_record_cannot_be_written(service: Service) -> None:
    known = forge(service.key)

    def fail() -> None:
        raise OSError

    async def ask() -> None:
        await service.connect(service.direct).feed(check(known))
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        connection = service.connect(protocol(service.internal, fail))
        await connection.feed(check(known))
        assert connection.sent.startswith(b"HTTP/1.1 200")

    run(ask)


def test_a_stop_lets_the_answer_under_way_out(service: Service) -> None:
    known = forge(service.key)

    async def ask() -> None:
        await service.connect(service.direct).feed(check(known))
        connection = service.connect(service.direct)
        connection.protocol.data_received(check(known))
        connection.protocol.shutdown()
        assert connection.closed
        assert connection.sent.startswith(b"HTTP/1.1 200")
        service.store.seconds = 0.05
        connection = service.connect(service.direct)
        connection.protocol.data_received(check(forge(service.key, jti="slow")))
        connection.protocol.shutdown()
        assert not connection.closed
        assert len(service.state.tasks) == 1
        await connection.settle()
        assert connection.closed
        assert b"connection: close" in connection.sent

    run(ask)


def test_a_peer_that_has_gone(service: Service) -> None:
    async def ask() -> None:
        service.store.seconds = 0.02
        for error in (None, ConnectionResetError()):
            connection = service.connect(service.direct)
            connection.protocol.data_received(check(forge(service.key, jti=f"gone-{error}")))
            connection.closed = True
            connection.protocol.connection_lost(error)
            await connection.settle()
            assert connection.sent == b""
        assert not service.state.connections
        assert not service.state.tasks

    run(ask)


def test_a_connection_is_closed_once_it_has_been_idle(service: Service) -> None:
    known = forge(service.key)

    async def ask() -> None:
        await service.connect(service.direct).feed(check(known))
        idle, busy, mixed = (service.connect(service.direct, keep_alive=2) for _ in range(3))
        await idle.feed(check(known))
        while not idle.closed:
            await busy.feed(check(known))
            await mixed.feed(check(known), check(known, path=b"/internal/resource/echo"))
            await asyncio.sleep(0.2)
        assert (busy.closed, mixed.closed) == (False, False)
        await asyncio.sleep(3)
        assert (busy.closed, mixed.closed) == (True, True)

    run(ask)


# covers: fault-silent
def test_a_head_that_never_ends_ends_its_connection(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatehouse_service.connection.HEAD_SECONDS", 2)
    known = forge(service.key)
    whole, begun = check(known), b"GET /internal/check/echo HTTP/1.1\r\nX-Slow: "
    handed_on = check(known, path=b"/internal/resource/echo")

    async def ask() -> None:
        await service.connect(service.direct).feed(whole)
        # What comes at once, and what then comes again and again.
        rude = {
            (first, drop): service.connect(service.direct)
            for first in (b"", begun, whole, handed_on, whole + begun, handed_on + begun)
            for drop in (b"\r\n", b"x")
        }
        slow = service.connect(service.direct)
        await slow.feed(whole[:20], whole[20:90], whole[90:])
        for (first, _), connection in rude.items():
            await connection.feed(first)
        since = time.monotonic()
        while not all(connection.closed for connection in rude.values()):
            for (_, drop), connection in rude.items():
                if not connection.closed:
                    connection.protocol.data_received(drop)
            await asyncio.sleep(0.1)
            assert time.monotonic() - since < 20
        await asyncio.sleep(2.5)
        assert not slow.closed
        assert slow.sent.startswith(b"HTTP/1.1 200")

    run(ask)


# covers: fault-silent
def test_a_peer_that_says_nothing_is_idle(service: Service) -> None:
    async def ask() -> None:
        since = time.monotonic()
        silent, gone = (service.connect(service.direct, keep_alive=1) for _ in range(2))
        gone.protocol.connection_lost(None)
        while not silent.closed:
            await asyncio.sleep(0.05)
            assert time.monotonic() - since < 20
        assert time.monotonic() - since > 0.9

    run(ask)


def test_a_peer_that_does_not_read_is_not_read_from(fleet: Fleet, node: Node) -> None:
    token = forge(signing_key(fleet))
    assert node.check(token).status_code == 200
    request = check(token).replace(b":18000", b":%d" % node.port) * 100
    with socket.create_connection(("127.0.0.1", node.port)) as link:
        link.settimeout(1)
        with pytest.raises(TimeoutError):
            link.sendall(request * 4000)
        # Others do not notice.
        assert node.check(token).status_code == 200


def test_answers_are_whole_under_many_connections(fleet: Fleet, node: Node) -> None:
    tokens = [forge(signing_key(fleet), jti=f"m{number}") for number in range(20)]

    async def ask(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        for turn in range(30):
            token = tokens[(number + turn) % len(tokens)]
            name = b"m-%d-%d" % (number, turn)
            writer.write(check(token, b"X-Request-Id: " + name).replace(b":18000", b":%d" % node.port))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert head.count(b"x-gatehouse-user: ana\r\n") == 1
        writer.close()

    async def everyone() -> None:
        await asyncio.gather(*(ask(number) for number in range(40)))

    run(everyone)
    wait_for(lambda: sum(record["request"].startswith("m-") for record in node.records("access")) == 40 * 30)
    assert ECHO in node.log.read_text()
