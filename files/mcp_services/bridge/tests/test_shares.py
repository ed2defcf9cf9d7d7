"""What one user may take of what all have: memory for bodies and answers, places for processes, sessions."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_direct import Link
from test_stateless import asking

from conftest import META, Bridge, Session, alive, answer, descendants, eventually
from gatehouse_bridge.shares import Shares
from gatehouse_bridge.stream import Kept, Stream

Start = Callable[..., Bridge]
MIB = 1024 * 1024


def memory(bridge: Bridge) -> int:
    """What the bridge has in memory, in MiB."""
    status = Path(f"/proc/{bridge.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


@pytest.fixture
def changed(start: Start, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bridge]:
    """Starts a bridge after some Python, which changes its constants."""

    def begin(code: str, **settings: Any) -> Bridge:
        imports = "from gatehouse_bridge import __main__, app, http, pool, process, rounds"
        monkeypatch.setattr(Bridge, "program", ("-c", f"{imports}\n{code}\n__main__.main()"))
        return start(**settings)

    return begin


def head(size: int | None, user: str, *more: str) -> bytes:
    length = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
    lines = [
        "POST /mcp HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        "Accept: */*",
        f"X-Gatehouse-User: {user}",
        length,
        *more,
    ]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


# Bodies


def test_one_has_a_quarter_at_most() -> None:
    shares = Shares(100)
    assert shares.take("ana", 25)
    assert not shares.take("ana", 1)
    assert all(shares.take(user, 25) for user in ("bob", "eve", "kim"))
    assert not shares.take("joe", 1)
    shares.give("ana", 25)
    assert shares.take("joe", 20)
    assert shares.take("ana", 5)
    assert shares.held == 100


# covers: large
async def test_a_long_request_is_forgotten_once_it_is_sent(start: Start) -> None:
    bridge = start()
    session = await bridge.open("ana")
    assert (await bridge.stateless("tools/list", user="ana")).status_code == 200
    arguments = {"seconds": 900, "text": "y" * (9 * MIB)}
    bridge.http.timeout = httpx.Timeout(900)
    calls: list[asyncio.Task[httpx.Response]] = []
    for number in range(8):
        asked = (
            session.post(session.tool("sleep", **arguments))
            if number % 2
            else bridge.stateless("tools/call", {"name": "sleep", "arguments": arguments}, user="ana")
        )
        calls.append(asyncio.create_task(asked))
        while bridge.figure("requests_waiting") <= number or bridge.figure("request_body_bytes"):
            assert not any(call.done() for call in calls)
            await asyncio.sleep(0.02)
    assert memory(bridge) < 130
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


async def test_an_id_or_a_method_as_long_as_a_message_is_refused(common: Bridge) -> None:
    session = await common.open()
    long = "x" * 100_000
    for message in ({"id": long, "method": "ping"}, {"id": 1, "method": long}):
        response = await session.post(message)
        assert (response.status_code, response.json()["error"]["code"]) == (400, -32600)


# covers: fault-silent
async def test_bodies_that_are_announced_take_nothing_and_those_that_come_a_share(
    changed: Callable[..., Bridge],
) -> None:
    bridge = changed("http.BODY_SECONDS = 600")
    session = await bridge.open("ana")
    links = [Link(bridge.url) for _ in range(24)]
    for link in links:
        await link.__aenter__()
        link.writer.write(head(10 * MIB, "eve") + b"{")
    eventually(lambda: bridge.figure("request_body_bytes") == len(links))
    assert await session.call("echo", text="unhurt") == "unhurt"
    for link in links[:5]:
        link.writer.write(b'"' + b"x" * (8 * MIB))
    # Four times eight are more than a quarter, with what is announced and has come.
    refused, _ = await asyncio.wait(
        [asyncio.create_task(link.answer()) for link in links[:5]], return_when=asyncio.FIRST_COMPLETED
    )
    for status, headers, _ in [task.result() for task in refused]:
        assert (status, headers["retry-after"]) == ("HTTP/1.1 503 Service Unavailable", "1")
    assert bridge.figure("request_body_bytes") <= 32 * MIB
    # Everybody else has room still.
    text = "y" * (9 * MIB)
    assert await session.call("echo", text=text) == text
    for link in links:
        link.writer.transport.abort()
    await asyncio.sleep(0.1)
    eventually(lambda: bridge.figure("request_body_bytes") == 0)


# covers: fault-silent
@pytest.mark.parametrize("size", [100, MIB, None])
async def test_a_body_that_does_not_come_ends_its_request(
    changed: Callable[..., Bridge], size: int | None
) -> None:
    bridge = changed("http.BODY_SECONDS, http.BODY_BYTES_PER_SECOND = 1, 1000")
    async with Link(bridge.url) as silent, Link(bridge.url) as slow:
        for link in (silent, slow):
            link.writer.write(head(size, "eve") + (b"1\r\n{\r\n" if size is None else b"{"))

        async def drip() -> None:
            while True:
                slow.writer.write(b"1\r\n \r\n" if size is None else b" ")
                await asyncio.sleep(0.1)

        dripping = asyncio.create_task(drip())
        for link in (silent, slow):
            status, headers, body = await link.answer()
            assert (status, headers["connection"]) == ("HTTP/1.1 408 Request Timeout", "close")
            assert json.loads(body)["error"]["code"] == -32600
        dripping.cancel()
    assert bridge.figure("request_body_bytes") == 0


async def test_a_body_that_comes_slowly_but_comes_is_taken(changed: Callable[..., Bridge]) -> None:
    bridge = changed("http.BODY_SECONDS = 2")
    session = await bridge.open("ana")
    call = json.dumps({"jsonrpc": "2.0", **session.tool("echo", text="x" * 400_000)}).encode()
    headers = [f"{name}: {value}" for name, value in session.headers.items() if "Mcp" in name]
    async with Link(bridge.url) as link:
        link.writer.write(head(len(call), "ana", *headers))
        for at in range(0, len(call), 20_000):
            link.writer.write(call[at : at + 20_000])
            await asyncio.sleep(0.2)
        assert (await link.answer())[0] == "HTTP/1.1 200 OK"


# Answers


def test_who_has_most_kept_loses_his_oldest() -> None:
    kept = Kept(100)

    def stream(user: str, size: int) -> Stream:
        made = Stream(1, keep=lambda stream, size: kept.note(user, stream, size))
        made.put("x" * size, final=True)
        return made

    anas = stream("ana", 10)
    eves = [stream("eve", 30) for _ in range(4)]
    assert [made.emptied for made in [anas, *eves]] == [False, True, False, False, False]
    # What is read is its reader's; what is abandoned counts for nothing.
    reader = eves[1].attach(0)
    eves[2].abandon()
    assert not stream("bob", 60).emptied
    assert [len(event.text) for event in eves[1].take(reader) or []] == [30]
    assert not eves[3].emptied
    eves[1].detach(reader)
    assert eves[3].emptied
    assert not eves[1].emptied


async def test_who_waits_for_a_stream_is_told_when_another_does() -> None:
    stream = Stream(1)
    first = asyncio.create_task(stream.wait(30))
    await asyncio.sleep(0)
    second = asyncio.create_task(stream.wait(0.01))
    assert await first is False
    assert await second is True


# covers: resume
async def test_answers_that_nobody_fetched_are_kept_as_far_as_they_fit(
    changed: Callable[..., Bridge],
) -> None:
    bridge = changed("app.KEPT_MAX = 1_000_000")
    anas, eves = await bridge.open("ana"), await bridge.open("eve")

    async def left(session: Session, size: int) -> str:
        async with session.stream(session.tool("big", seconds=0.6, bytes=size)) as events:
            await events.rest()
        return events.ids[0]

    async def fetched(session: Session, after: str) -> int:
        headers = session.headers | {"Last-Event-ID": after}
        return (await bridge.http.get(session.url, headers=headers)).status_code

    mine = await left(anas, 100_000)
    hers = [await left(eves, 400_000) for _ in range(4)]
    assert await fetched(anas, mine) == 200
    assert [await fetched(eves, after) for after in hers] == [400, 400, 200, 200]
    # A session that has ended keeps nothing.
    assert await eves.delete() == 204
    again = [await left(anas, 400_000) for _ in range(2)]
    assert [await fetched(anas, after) for after in [mine, *again]] == [200, 200, 200]


# Places


# covers: places
@pytest.mark.parametrize("isolation", ["per_user", "per_session"])
async def test_an_idle_child_gives_its_place(changed: Callable[..., Bridge], isolation: str) -> None:
    bridge = changed(
        "app.EVICTABLE_SECONDS = 5", BRIDGE_WARM=0, BRIDGE_ISOLATION=isolation, BRIDGE_MAX_CHILDREN=2
    )
    for user in ("ana", "bob"):
        assert (await bridge.stateless("tools/list", user=user)).status_code == 200
    refused = await bridge.stateless("tools/list", user="eve")
    assert refused.json()["error"]["data"] == {"reason": "too_many_children"}
    await asyncio.sleep(5.1)
    assert "result" in (await bridge.stateless("tools/list", user="eve")).json()
    assert await (await bridge.open("kim")).call("echo", text="x") == "x"
    assert bridge.health["children"] == 2


# covers: places, sessions
async def test_a_session_is_closed_only_where_that_frees_a_place(changed: Callable[..., Bridge]) -> None:
    bridge = changed(
        "app.EVICTABLE_SECONDS = 1", BRIDGE_WARM=0, BRIDGE_ISOLATION="per_user", BRIDGE_MAX_CHILDREN=2
    )
    ana, anas, bob = await bridge.open("ana"), await bridge.open("ana"), await bridge.open("bob")
    async with anas.stream():
        await asyncio.sleep(1.1)
        # Bob's is the one that nobody uses, though one of Ana's sessions was left first.
        eve = await bridge.open("eve")
        assert (await bob.post(bob.tool("echo"))).status_code == 404
        async with eve.stream():
            refused = await bridge.session("kim").initialize()
            assert refused.json()["error"]["data"] == {"reason": "too_many_children"}
            assert await ana.call("echo", text="still here") == "still here"


# covers: places, crash
async def test_who_has_none_gets_a_place_of_who_has_most(start: Start) -> None:
    bridge = start(BRIDGE_WARM=0, BRIDGE_ISOLATION="per_session", BRIDGE_MAX_CHILDREN=4)
    anas = [await bridge.open("ana") for _ in range(4)]
    calls = [asyncio.ensure_future(ana.post(ana.tool("sleep", seconds=60))) for ana in anas[:3]]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(anas[3].stream())
        async with asyncio.timeout(60):
            while bridge.figure("requests_waiting") != 3:
                await asyncio.sleep(0.05)
        refused = await bridge.session("ana").initialize()
        assert refused.json()["error"]["data"] == {"reason": "too_many_children"}
        # Hers are all in use. The one without a call under way goes first.
        bob = await bridge.open("bob")
        await stack.enter_async_context(bob.stream())
        assert (await anas[3].post(anas[3].tool("echo"))).status_code == 404
        assert not any(call.done() for call in calls)
        # Who has one takes none of another's.
        refused = await bridge.session("bob").initialize()
        assert refused.json()["error"]["data"] == {"reason": "too_many_children"}
        for user in ("eve", "kim"):
            await stack.enter_async_context((await bridge.open(user)).stream())
        ended, (waiting,) = await asyncio.wait(calls, timeout=10)
        assert [answer(call.result())["error"]["data"]["reason"] for call in ended] == ["child_exited"] * 2
        # Nobody's only one is taken.
        refused = await bridge.session("joe").initialize()
        assert refused.json()["error"]["data"] == {"reason": "too_many_children"}
        assert not waiting.done()
        assert await bob.call("echo", text="still here") == "still here"
        waiting.cancel()


# covers: places
async def test_nobody_takes_all_places_by_what_he_says_he_can_be_asked(start: Start) -> None:
    bridge = start(BRIDGE_WARM=0, BRIDGE_MAX_CHILDREN=4)

    def listing(number: int) -> Any:
        capabilities = {"io.modelcontextprotocol/clientCapabilities": {"sampling": {"n": number}}}
        return bridge.stateless("tools/list", {"_meta": META | capabilities}, user="eve")

    for number in range(4):
        assert (await listing(number)).status_code == 200
    eventually(lambda: bridge.health["children"] == 2)
    answers = await asyncio.gather(*map(listing, range(4, 12)))
    assert all(response.json().keys() & {"result", "error"} for response in answers)
    assert "result" in (await bridge.stateless("tools/list", user="ana")).json()
    assert await (await bridge.open("bob")).call("echo", text="x") == "x"


# covers: crash
async def test_a_server_that_ends_on_being_asked_what_it_speaks_is_asked_once(start: Start) -> None:
    bridge = start(BRIDGE_ENV={"NASTY_START": "strict"}, BRIDGE_WARM=0)
    for _ in range(3):
        assert "result" in (await bridge.stateless("tools/list", user="ana")).json()
    assert bridge.figure("children_started_total") == 2
    assert bridge.figure("children_crashed_total") == 0


# covers: eras
@pytest.mark.parametrize("how", ["strict", ""])
async def test_one_child_serves_both_ages_where_there_is_one_place(start: Start, how: str) -> None:
    bridge = start(
        BRIDGE_ENV={"NASTY_START": how}, BRIDGE_WARM=0, BRIDGE_ISOLATION="shared", BRIDGE_MAX_CHILDREN=1
    )
    session = await bridge.open("ana")
    for _ in range(2):
        assert "result" in (await bridge.stateless("tools/list", user="bob")).json()
    assert await session.call("echo", text="x") == "x"
    assert bridge.figure("children_started_total") == 1


# covers: sessions
async def test_who_opens_too_many_sessions_loses_his_oldest(changed: Callable[..., Bridge]) -> None:
    bridge = changed("app.SESSIONS_MAX = 3", BRIDGE_ISOLATION="shared")
    bob = await bridge.open("bob")
    anas = [await bridge.open("ana") for _ in range(5)]
    assert bridge.health["sessions"] == 4
    statuses = [(await session.post(session.tool("echo", text="x"))).status_code for session in anas]
    assert statuses == [404, 404, 200, 200, 200]
    assert await anas[2].delete() == 204
    assert await (await bridge.open("ana")).call("echo", text="x") == "x"
    assert (await anas[3].post(anas[3].tool("echo", text="x"))).status_code == 200
    assert await bob.call("echo", text="x") == "x"


# covers: mrtr
async def test_nobody_pushes_out_another_ones_call(changed: Callable[..., Bridge]) -> None:
    bridge = changed("rounds.PARKED_MAX = 3")

    async def parked(user: str, identifier: str) -> str:
        response = await bridge.stateless("tools/call", asking(identifier), user=user)
        return str(response.json()["result"]["requestState"])

    mine = await parked("ana", "a")
    hers = [await parked("eve", f"e{number}") for number in range(4)]

    async def known(user: str, state: str) -> bool:
        response = await bridge.stateless("tools/call", asking("x", requestState=state), user=user)
        return "result" in response.json()

    assert await known("ana", mine)
    assert [await known("eve", state) for state in hers] == [False, False, True, True]


# Faults


# covers: crash
async def test_a_start_that_fails_leaves_nothing_and_stops_nothing(changed: Callable[..., Bridge]) -> None:
    bridge = changed(
        "import os\n"
        "real, failures = os.pidfd_open, [OSError(24, 'Too many open files')]\n"
        "process.os.pidfd_open = lambda pid: real(pid) if not failures else (_ for _ in ()).throw(failures.pop())\n"
        "adopted, faults = pool.tree.adopted, [RuntimeError()]\n"
        "pool.tree.adopted = lambda known: adopted(known) if not faults else (_ for _ in ()).throw(faults.pop())\n"
        "pool.SWEEP_SECONDS = 0.2",
        BRIDGE_WARM=0,
        BRIDGE_IDLE_SECONDS=2,
        BRIDGE_MAX_CHILDREN=1,
    )
    eventually(lambda: any(event["event"] == "fault" for event in bridge.events))
    refused = await bridge.session("ana").initialize()
    assert refused.json()["error"]["data"] == {"reason": "child_not_started"}
    assert bridge.health["children"] == 0
    assert not descendants(bridge.process.pid)
    assert "result" in (await bridge.stateless("tools/list", user="ana")).json()
    # What is idle is looked for still.
    eventually(lambda: bridge.health["children"] == 0)


# covers: crash
async def test_a_shared_child_that_reads_no_more_is_replaced(changed: Callable[..., Bridge]) -> None:
    bridge = changed(
        "pool.DEAF_SECONDS, pool.SWEEP_SECONDS = 2, 0.5", BRIDGE_WARM=0, BRIDGE_ISOLATION="shared"
    )
    session = await bridge.open("ana")
    pid = int(await session.call("pid"))
    os.kill(pid, signal.SIGSTOP)
    calls = [asyncio.create_task(session.post(session.tool("echo", text="x" * MIB))) for _ in range(3)]
    assert all("error" in answer(response) for response in await asyncio.gather(*calls))
    eventually(lambda: not alive(pid))
    assert await (await bridge.open("ana")).call("echo", text="x") == "x"
