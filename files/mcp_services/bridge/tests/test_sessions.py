"""Sessions of the earlier revisions over streamable HTTP (MCP 2025-11-25, transports)."""

import asyncio
import json
import signal
from collections.abc import Callable
from typing import Any

import pytest
from mcp.client import Client
from mcp_types import LoggingMessageNotificationParams

from conftest import ACCEPT, Bridge, alive, answer, eventually

Start = Callable[..., Bridge]


# covers: eras
@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_a_session_from_beginning_to_end(start: Start, version: str) -> None:
    bridge = start()
    session = bridge.session("local:ana")
    hello = await session.initialize(version)
    assert hello.headers["content-type"] == "application/json"
    assert hello.json()["id"] == 0
    assert hello.json()["result"]["protocolVersion"] == version
    assert await session.call("echo", text="grüß \u2028 世界") == "grüß \u2028 世界"
    assert await session.delete() == 204
    assert (await session.post(session.tool("echo", text="x"))).status_code == 404
    assert await session.delete() == 404
    eventually(lambda: bridge.health["children"] == 1)  # the one that is warm


# covers: sessions
async def test_missing_and_unknown_sessions(start: Start) -> None:
    bridge = start()
    session = bridge.session()
    assert (await session.post(session.tool("echo"))).status_code == 400
    assert (await session.post({"method": "notifications/initialized"})).status_code == 400
    assert await session.delete() == 400
    assert (await bridge.http.get(session.url, headers=ACCEPT)).status_code == 400
    session.headers["Mcp-Session-Id"] = "unknown"
    assert (await session.post(session.tool("echo"))).status_code == 404
    assert await session.delete() == 404
    assert (await bridge.http.get(session.url, headers=session.headers)).status_code == 404
    assert bridge.health["sessions"] == 0


# covers: sessions
async def test_a_session_belongs_to_the_user_who_opened_it(start: Start) -> None:
    bridge = start()
    anas = await bridge.open("local:ana")
    for identity in ({"X-Gatehouse-User": "local:bob"}, {}, {"X-Gatehouse-User": "local:ana, local:bob"}):
        stolen = bridge.session()
        stolen.headers |= {"Mcp-Session-Id": anas.headers["Mcp-Session-Id"], **identity}
        assert (await stolen.post(stolen.tool("echo", text="x"))).status_code == 404
        assert (await bridge.http.get(stolen.url, headers=stolen.headers)).status_code == 404
        assert await stolen.delete() == 404
    assert await anas.call("echo", text="mine") == "mine"


# covers: restart-404
async def test_after_a_restart_old_sessions_are_unknown(start: Start) -> None:
    bridge = start()
    session = await bridge.open()
    bridge.stop()
    again = start(LISTEN=bridge.url.removeprefix("http://"))
    assert (await session.post(session.tool("echo", text="x"))).status_code == 404
    await session.http.aclose()
    assert await (await again.open()).call("echo", text="x") == "x"


# covers: ids
async def test_answers_find_their_way_whatever_the_ids(common: Bridge) -> None:
    session = await common.open()
    ids: list[Any] = [1, "1", 1, -5, "", "x", 10**15]
    answers = await asyncio.gather(
        *(session.post(session.tool("echo", identifier, text=f"{n}")) for n, identifier in enumerate(ids))
    )
    got = [(message["id"], message["result"]["content"][0]["text"]) for message in map(answer, answers)]
    assert got == [(identifier, f"{n}") for n, identifier in enumerate(ids)]


# covers: large
async def test_a_message_is_carried_byte_for_byte(common: Bridge) -> None:
    session = await common.open()
    response = await session.post(session.tool("exact", identifier=77))
    assert response.text == (
        '{"jsonrpc":"2.0", "result": {"z": 1.0e2, "a": 123456789012345678901234567890, "lone": "\\ud800",'
        ' "content": [] },"id":77}'
    )


async def test_a_slow_answer_comes_as_events(common: Bridge) -> None:
    session = await common.open()
    async with session.stream(session.tool("sleep", identifier=5, seconds=1.2)) as events:
        assert events.response.headers["content-type"] == "text/event-stream"
        assert events.response.headers["x-accel-buffering"] == "no"
        (message,) = await events.rest()
    assert message["id"] == 5
    # First an event without data, to come back to (since 2025-11-25).
    assert len(events.ids) == 2


async def test_no_empty_event_for_clients_that_do_not_know_it(common: Bridge) -> None:
    session = await common.open(version="2025-06-18")
    async with session.stream(session.tool("sleep", seconds=1.2)) as events:
        await events.rest()
    assert len(events.ids) == 1


async def test_progress_comes_before_the_answer_under_the_clients_token(common: Bridge) -> None:
    session = await common.open()
    for token in (1, "1", "the token"):
        async with session.stream(session.tool("progress", token=token, steps=3, pause=0.05)) as events:
            messages = await events.rest()
        assert [m["params"]["progress"] for m in messages[:-1]] == [1, 2, 3]
        assert [m["params"]["progressToken"] for m in messages[:-1]] == [token] * 3
        assert "result" in messages[-1]


async def test_cancellation_reaches_the_server_and_ends_the_request(common: Bridge) -> None:
    session = await common.open()
    async with session.stream(session.tool("sleep", identifier="slow", seconds=30)) as events:
        cancel = {"method": "notifications/cancelled", "params": {"requestId": "slow", "reason": "enough"}}
        assert (await session.post(cancel)).status_code == 202
        (message,) = await events.rest()
    assert (message["id"], message["error"]["code"]) == ("slow", -32800)
    seen = json.loads(await session.call("seen"))
    number = next(m["id"] for m in seen if m.get("method") == "tools/call" and m["params"]["name"] == "sleep")
    assert {"requestId": number, "reason": "enough"} in [m.get("params") for m in seen]


# covers: ids
async def test_the_server_asks_the_client(common: Bridge) -> None:
    session = await common.open(capabilities={"elicitation": {}})
    for identifier in ("srv-1", 7):
        async with session.stream(session.tool("ask", id=identifier, method="elicitation/create")) as events:
            question = await events.next()
            assert (question["id"], question["method"]) == (identifier, "elicitation/create")
            # Another's answer, or one to what was not asked, changes nothing.
            assert (await session.post({"id": "other", "result": {"action": "no"}})).status_code == 202
            reply = {"id": identifier, "result": {"action": "accept", "content": {"n": 1.50}}}
            assert (await session.post(reply)).status_code == 202
            done = await events.next()
        if identifier == "srv-1":
            assert json.loads(done["result"]["content"][0]["text"]) == {
                "action": "accept",
                "content": {"n": 1.5},
            }


async def test_an_answer_may_write_the_servers_id_in_another_way(common: Bridge) -> None:
    session = await common.open(capabilities={"elicitation": {}})
    async with session.stream(session.tool("ask", id="é", method="elicitation/create")) as events:
        assert (await events.next())["id"] == "é"
        reply = json.dumps({"jsonrpc": "2.0", "id": "é", "result": {"action": "accept"}})
        assert "\\u00e9" in reply
        headers = session.headers | {"Content-Type": "application/json"}
        assert (await common.http.post(session.url, content=reply, headers=headers)).status_code == 202
        done = await events.next()
    assert json.loads(done["result"]["content"][0]["text"]) == {"action": "accept"}


async def test_what_belongs_to_no_request_comes_on_the_sessions_own_stream(common: Bridge) -> None:
    session = await common.open()
    async with session.stream() as events:
        await session.call("later", seconds=0.2)
        message = await events.next()
    assert message["params"]["data"] == "later"
    # What is said while nobody listens waits for the next one.
    await session.call("later", seconds=0.1)
    await asyncio.sleep(0.5)
    async with session.stream() as events:
        assert (await events.next())["params"]["data"] == "later"


async def test_a_second_stream_takes_over_from_the_first(common: Bridge) -> None:
    session = await common.open()
    async with session.stream() as first, session.stream() as second:
        assert await first.next() is None
        await session.call("later", seconds=0.1)
        assert (await second.next())["params"]["data"] == "later"


# covers: resume
async def test_a_broken_answer_is_resumed(common: Bridge) -> None:
    session = await common.open()
    call = session.tool("progress", identifier="r", token="t", steps=8, pause=0.25)
    async with session.stream(call) as events:
        assert (await events.next())["params"]["progress"] == 1
    await asyncio.sleep(0.6)
    async with session.stream(after=events.ids[-1]) as resumed:
        messages = await resumed.rest()
    assert [m["params"]["progress"] for m in messages[:-1]] == [2, 3, 4, 5, 6, 7, 8]
    assert messages[-1]["id"] == "r"
    # And once more, after the end.
    async with session.stream(after=resumed.ids[-2]) as again:
        assert await again.rest() == messages[-1:]
    for unknown in ("99-1", "x", "-", "1-x", f"1{'0' * 5000}-1"):
        assert (
            await session.http.get(session.url, headers=session.headers | {"Last-Event-ID": unknown})
        ).status_code == 400


# covers: resume
async def test_an_answer_that_was_written_to_a_proxy_may_not_have_come(common: Bridge) -> None:
    session = await common.open()
    async with session.stream(session.tool("sleep", identifier="s", seconds=0.7)) as events:
        (answered,) = await events.rest()
    for after in (events.ids[0], events.ids[0]):
        async with session.stream(after=after) as resumed:
            assert await resumed.rest() == [answered]


# covers: resume
async def test_a_client_that_comes_back_before_it_was_missed_takes_over(start: Start) -> None:
    bridge = start(BRIDGE_IDLE_SECONDS=2)
    session = await bridge.open()
    call = asyncio.create_task(session.post(session.tool("sleep", identifier="s", seconds=3)))
    async with asyncio.timeout(60):
        while bridge.figure("requests_waiting") != 1:
            await asyncio.sleep(0.05)
    # The first request of a session opens its first stream.
    async with session.stream(after="2-0") as events:
        (message,) = await events.rest()
    assert message["id"] == "s"
    given_up = await call
    assert (given_up.status_code, given_up.headers["content-type"]) == (200, "text/event-stream")
    assert "data: {" not in given_up.text
    eventually(lambda: bridge.health["sessions"] == 0)


# covers: large
async def test_large_messages_in_both_directions(common: Bridge) -> None:
    session = await common.open()
    text = "ä" * (4 * 1024 * 1024)
    assert await session.call("echo", text=text) == text
    assert len(await session.call("big", bytes=10 * 1024 * 1024 - 200)) == 10 * 1024 * 1024 - 200
    response = await session.post(session.tool("echo", text="x" * (10 * 1024 * 1024)))
    assert response.status_code == 413
    message = answer(await session.post(session.tool("too_long", identifier="L")))
    assert (message["id"], message["error"]["data"]) == ("L", {"reason": "answer_too_long"})
    # A question of the server's own that is too long is no answer, whatever its id; the server learns it.
    assert json.loads(await session.call("ask_too_long"))["code"] == -32600
    assert await session.call("echo", text="still here") == "still here"


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","id":2}', {}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Accept": "application/json"}, 406),
        (b"{}", {"Accept": "text/html"}, 406),
        (b"{}", {"Host": "evil.example"}, 421),
        (b"{}", {"Host": "test.example.com:8443"}, 400),
    ],
)
async def test_what_is_refused(untouched: Bridge, body: bytes, headers: dict[str, str], status: int) -> None:
    sent = ACCEPT | {"Content-Type": "application/json", **headers}
    response = await untouched.http.post(f"{untouched.url}/mcp", content=body, headers=sent)
    assert response.status_code == status
    assert response.json()["jsonrpc"] == "2.0"
    assert untouched.health["children"] == 0


async def test_idle_sessions_end_and_busy_ones_do_not(start: Start) -> None:
    bridge = start(BRIDGE_IDLE_SECONDS=2, BRIDGE_WARM=0)
    idle, busy = await bridge.open(), await bridge.open()
    assert await busy.call("sleep", seconds=5) == "slept"
    assert (await idle.post(idle.tool("echo"))).status_code == 404
    assert await busy.call("echo", text="x") == "x"
    eventually(lambda: (bridge.health["sessions"], bridge.health["children"]) == (0, 0))


async def test_answers_under_way_are_finished_at_the_end(start: Start) -> None:
    bridge = start()
    session = await bridge.open()
    async with session.stream() as standalone, session.stream(session.tool("sleep", seconds=2)) as events:
        bridge.process.send_signal(signal.SIGTERM)
        assert await standalone.next() is None
        assert (await events.next())["result"]["content"][0]["text"] == "slept"
    pid = bridge.process.pid
    bridge.process.wait(10)
    assert not alive(pid)


# covers: streams-end
async def test_a_sessions_own_stream_ends_and_is_resumed(start: Start) -> None:
    bridge = start(STREAM_SECONDS=1)
    session = await bridge.open()
    heard: list[str] = []
    last = None

    async def listen() -> None:
        nonlocal last
        async with session.stream(after=last) as events:
            heard.extend(message["params"]["data"] for message in await events.rest())
        last = (events.ids or [last])[-1]

    for number in range(3):
        await session.call("later", seconds=0.3, text=f"while it listens {number}")
        await listen()
        await session.call("later", seconds=0.1, text=f"while it is away {number}")
        await asyncio.sleep(0.3)
    while len(heard) < 6:
        await listen()
    assert heard == [f"while it {does} {number}" for number in range(3) for does in ("listens", "is away")]


# covers: streams-end
async def test_a_call_outlives_the_stream_that_it_was_made_on(start: Start) -> None:
    bridge = start(STREAM_SECONDS=1)
    session = await bridge.open()
    async with session.stream(session.tool("sleep", identifier="long", seconds=3)) as events:
        assert await events.rest() == []
    asked, messages = 1, []
    while not messages:
        async with session.stream(after=events.ids[-1]) as resumed:
            messages = await resumed.rest()
        asked += 1
    assert asked > 2
    assert messages[0]["id"] == "long"
    # A client that could not come back for it gets it on the stream that it has.
    older = await bridge.open(version="2025-06-18")
    async with older.stream(older.tool("sleep", identifier="older", seconds=3)) as events:
        (message,) = await events.rest()
    assert message["result"]["content"][0]["text"] == "slept"


# covers: streams-end
async def test_a_call_that_cannot_be_resumed_is_cancelled_at_last(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = "from gatehouse_bridge import __main__, app; app.CALL_SECONDS = 1; __main__.main()"
    monkeypatch.setattr(Bridge, "program", ("-c", impatient))
    bridge = start()
    session = await bridge.open(version="2025-06-18")
    async with session.stream(session.tool("sleep", identifier="s", seconds=50)) as events:
        (message,) = await events.rest()
    assert (message["id"], message["error"]["code"]) == ("s", -32800)
    assert "notifications/cancelled" in await session.call("seen")


# covers: streams-end
async def test_whoever_lost_access_cannot_come_back(start: Start) -> None:
    bridge = start(STREAM_SECONDS=1)
    session = await bridge.open("local:ana")
    async with session.stream() as events:
        assert await events.rest() == []
    session.headers.pop("X-Gatehouse-User")
    response = await bridge.http.get(session.url, headers=session.headers | {"Last-Event-ID": events.ids[-1]})
    assert response.status_code == 404


# covers: streams-end
async def test_the_sdks_client_misses_nothing_as_its_streams_end(start: Start) -> None:
    bridge = start(STREAM_SECONDS=1)
    heard: list[Any] = []

    async def note(params: LoggingMessageNotificationParams) -> None:
        heard.append(params.data)

    async with Client(f"{bridge.url}/mcp", mode="legacy", logging_callback=note) as client:
        for number in range(12):
            await client.call_tool("later", {"seconds": 0.1, "text": number})
            await asyncio.sleep(0.3)
        slept = await client.call_tool("sleep", {"seconds": 3})
        assert slept.content[0].type == "text"
        assert slept.content[0].text == "slept"
        async with asyncio.timeout(60):
            while len(heard) < 12:
                await asyncio.sleep(0.1)
    assert sorted(heard) == [*range(12)]
