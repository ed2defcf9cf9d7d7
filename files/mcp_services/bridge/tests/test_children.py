"""Children that crash, hang, flood, and multiply: no other session notices, and nothing is left of them."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import META, NASTY, Bridge, alive, answer, descendants, environment, eventually

Start = Callable[..., Bridge]


# covers: crash
@pytest.mark.parametrize(
    ("tool", "how"), [("crash", "status 7"), ("killed", "signal 9"), ("close_stdout", "")]
)
async def test_a_crash_is_told_to_who_waits_and_hurts_no_other(common: Bridge, tool: str, how: str) -> None:
    victim, other = await common.open(), await common.open()
    async with victim.stream() as standalone:
        slow = asyncio.create_task(victim.post(victim.tool("sleep", identifier="s", seconds=30)))
        await asyncio.sleep(0.7)
        crashed = answer(await victim.post(victim.tool(tool, identifier="c")))
        waiting = answer(await slow)
        assert await standalone.next() is None
    for message, identifier in ((crashed, "c"), (waiting, "s")):
        assert message["id"] == identifier
        assert message["error"]["code"] == -32603
        assert message["error"]["data"] == {"reason": "child_exited"}
        assert how in message["error"]["message"]
    assert (await victim.post(victim.tool("echo"))).status_code == 404
    assert await other.call("echo", text="unhurt") == "unhurt"
    assert await (await common.open()).call("echo", text="new") == "new"


async def test_last_words_arrive(common: Bridge) -> None:
    session = await common.open()
    assert await session.call("last_words") == "bye"


# covers: crash
async def test_rubbish_on_stdout_is_skipped_and_not_logged(start: Start) -> None:
    bridge = start()
    session = await bridge.open()
    assert await session.call("garbage") == "still here"
    assert "this is no JSON" not in bridge.log
    assert len([event for event in bridge.events if event["event"] == "child_rubbish"]) == 5


# covers: stderr
async def test_a_flood_on_stderr_blocks_nobody_and_is_logged_in_part(start: Start) -> None:
    bridge = start()
    session = await bridge.open()
    assert await session.call("stderr", bytes=20_000_000) == "written"
    lines = [event for event in bridge.events if event["event"] == "child_stderr"]
    assert 0 < len(lines) < 1000
    assert all(len(event["text"]) <= 4096 for event in lines)


# covers: crash
async def test_a_flood_of_messages_waits_for_a_slow_client(start: Start) -> None:
    """100 MB towards a client that does not read: the child is made to wait, and nothing gets lost."""
    bridge = start()
    session = await bridge.open()
    other = await bridge.open()
    async with session.stream(session.tool("flood", count=1000, size=100_000)) as events:
        await asyncio.sleep(2)
        status = Path(f"/proc/{bridge.process.pid}/status").read_text()
        memory = int(status.partition("VmHWM:")[2].split()[0])
        assert memory < 120_000
        assert await other.call("echo", text="unhurt") == "unhurt"
        messages = await events.rest()
    assert [m["params"]["data"].split()[0] for m in messages[:-1]] == [str(n) for n in range(1000)]
    assert messages[-1]["result"]["content"][0]["text"] == "flooded"


async def test_a_flood_that_nobody_reads_is_forgotten(start: Start) -> None:
    bridge = start()
    session = await bridge.open()
    async with session.stream(session.tool("flood", identifier=9, count=2000, size=100_000)) as events:
        await events.next()
    await asyncio.sleep(3)
    memory = int(Path(f"/proc/{bridge.process.pid}/status").read_text().partition("VmHWM:")[2].split()[0])
    assert memory < 120_000
    async with session.stream(after=events.ids[0]) as resumed:
        messages = await resumed.rest()
    assert messages[-1]["id"] == 9


def nagging(method: str, count: int, **more: int) -> dict[str, Any]:
    meta = META | {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {}}}
    return {"name": "nag", "arguments": {"method": method, "count": count, **more}, "_meta": meta}


# covers: crash
@pytest.mark.parametrize(
    "call",
    [
        nagging("ping", 100_000, name_size=1000),
        nagging("ping", 150, name_size=1_000_000),
        nagging("elicitation/create", 150, size=1_000_000),
    ],
)
async def test_a_flood_of_questions_takes_no_memory(start: Start, call: dict[str, Any]) -> None:
    bridge = start(BRIDGE_WARM=0)
    assert "result" in answer(await bridge.stateless("tools/call", call))
    eventually(lambda: "nagged" in bridge.log)
    memory = int(Path(f"/proc/{bridge.process.pid}/status").read_text().partition("VmHWM:")[2].split()[0])
    assert memory < 120_000


async def test_so_many_questions_wait_and_no_more(start: Start) -> None:
    bridge = start()
    call = nagging("elicitation/create", 100, pause=60)
    first = (await bridge.stateless("tools/call", call)).json()["result"]
    eventually(lambda: "nagged" in bridge.log)
    again = await bridge.stateless("tools/call", call | {"requestState": first["requestState"]})
    assert len(again.json()["result"]["inputRequests"]) == 64


async def test_a_deaf_child_hurts_no_other(start: Start) -> None:
    bridge = start()
    deaf, other = await bridge.open(), await bridge.open()
    assert await deaf.call("deaf") == "no longer listening"
    posts = [asyncio.create_task(deaf.post(deaf.tool("echo", text="x" * 1_000_000))) for _ in range(4)]
    async with asyncio.timeout(60):
        while bridge.figure("requests_waiting") != 4:
            await asyncio.sleep(0.1)
    assert await other.call("echo", text="unhurt") == "unhurt"
    assert await deaf.delete() == 204
    messages = [answer(post) for post in await asyncio.gather(*posts)]
    assert all("error" in message for message in messages)
    eventually(lambda: bridge.health["children"] == 2)


# covers: tree
async def test_the_whole_tree_dies_with_the_session(start: Start) -> None:
    bridge = start()
    session, other = await bridge.open(), await bridge.open()
    leader = int(await session.call("pid"))
    spawned = json.loads(await session.call("spawn"))
    kept = json.loads(await other.call("spawn"))
    assert all(alive(pid) for pid in spawned[:3])
    assert await session.delete() == 204
    eventually(lambda: not any(alive(pid) for pid in [leader, *spawned]))
    # Another session's are left alone; but one that hides whose it is goes, sooner or later.
    assert all(alive(pid) for pid in kept[:3])
    eventually(lambda: not alive(kept[3]))
    assert not any(
        "State:\tZ" in Path(f"/proc/{pid}/status").read_text() for pid in descendants(bridge.process.pid)
    )


# covers: tree
async def test_the_tree_of_a_crashed_child_dies_too(common: Bridge) -> None:
    session = await common.open()
    spawned = json.loads(await session.call("spawn"))
    assert "error" in answer(await session.post(session.tool("crash")))
    eventually(lambda: not any(alive(pid) for pid in spawned))


async def test_a_stubborn_child_is_killed(common: Bridge) -> None:
    session = await common.open()
    pid = int(await session.call("pid"))
    subprocess.run(["kill", "-STOP", str(pid)], check=True)
    assert await session.delete() == 204
    eventually(lambda: not alive(pid))


@pytest.mark.parametrize("isolation", ["shared", "per_user", "per_session"])
async def test_who_shares_a_child(start: Start, isolation: str) -> None:
    bridge = start(BRIDGE_ISOLATION=isolation, BRIDGE_WARM=0)
    sessions = [await bridge.open(user) for user in ("ana", "ana", "bob")]
    pids = [await session.call("pid") for session in sessions]
    assert len(set(pids)) == {"shared": 1, "per_user": 2, "per_session": 3}[isolation]
    assert (pids[0] == pids[1]) == (isolation != "per_session")


async def test_sessions_that_share_a_child_do_not_mix(start: Start) -> None:
    bridge = start(BRIDGE_ISOLATION="shared")
    ana, bob = await bridge.open("ana"), await bridge.open("bob", version="2025-03-26")
    assert bob.headers["MCP-Protocol-Version"] == "2025-03-26"

    async def progress(session: Any, text: str) -> list[Any]:
        async with session.stream(
            session.tool("progress", identifier=1, token=1, steps=5, pause=0.1)
        ) as events:
            return list(await events.rest())

    # The same ids and the same tokens, at the same time.
    for messages in await asyncio.gather(progress(ana, "a"), progress(bob, "b")):
        assert [m["params"] for m in messages[:-1]] == [
            {"progressToken": 1, "progress": n, "total": 5} for n in range(1, 6)
        ]
        assert messages[-1]["id"] == 1
    # Only who is concerned hears of it.
    assert "result" in answer(
        await ana.post({"id": 2, "method": "resources/subscribe", "params": {"uri": "test://watched"}})
    )
    async with ana.stream() as anas, bob.stream() as bobs:
        await bob.call("log", text="bob's own")
        await bob.call("changed")
        heard = [await anas.next(), await anas.next()]
        assert [message["method"] for message in heard] == [
            "notifications/tools/list_changed",
            "notifications/resources/updated",
        ]
        assert await bob.delete() == 204
        assert [message["method"] for message in await bobs.rest()] == []
    assert await ana.call("echo", text="x") == "x"
    # One's session ends; the child, and what it does for others, goes on. The server is told of the cancelled only.
    seen = json.loads(await ana.call("seen"))
    assert [m["method"] for m in seen if "method" in m].count("initialize") == 1


# covers: crash
async def test_a_child_that_says_a_name_twice_hurts_nobody(start: Start) -> None:
    bridge = start(BRIDGE_ISOLATION="shared")
    ana, bob = await bridge.open("ana"), await bridge.open("bob")
    slow = asyncio.create_task(bob.post(bob.tool("sleep", seconds=1)))
    # What need not be changed goes through.
    assert (await ana.post(ana.tool("twice", token="t"))).text.endswith(
        '"result":{"content":[],"x":1,"x":2}}'
    )
    response = await bridge.stateless("tools/call", {"name": "twice", "arguments": {}})
    assert response.status_code == 200
    assert response.json()["error"]["code"] == -32603
    assert "result" in answer(await slow)
    assert len([event for event in bridge.events if event["event"] == "child_rubbish"]) == 1
    assert not [event for event in bridge.events if event["event"] == "fault"]


async def test_what_nobody_can_be_told_to_be_meant_by_is_told_to_nobody(start: Start) -> None:
    bridge = start(BRIDGE_ISOLATION="shared")
    ana, bob = await bridge.open("ana"), await bridge.open("bob")
    await ana.call("later", seconds=0.3, text="ana's own")
    async with bob.stream(bob.tool("sleep", seconds=1)) as events:
        assert ["result" in message for message in await events.rest()] == [True]
    # Not even when she has gone and he is alone.
    await ana.call("later", seconds=0.3, text="ana's own")
    assert await ana.delete() == 204
    async with bob.stream() as own:
        await asyncio.sleep(0.6)
        assert await bob.delete() == 204
        assert await own.rest() == []


async def test_what_a_call_of_ones_own_child_says_is_told(start: Start) -> None:
    bridge = start(BRIDGE_ISOLATION="per_user")
    first, second = await bridge.open("ana"), await bridge.open("ana")
    async with first.stream(first.tool("log", text="said")) as events:
        said = await events.rest()
    assert [message.get("method") for message in said][:-1] == ["notifications/message"]
    assert await second.call("echo", text="x") == "x"


async def test_progress_of_a_long_call_is_told_whatever_others_call(start: Start) -> None:
    bridge = start(BRIDGE_ISOLATION="shared")
    ana, bob = await bridge.open("ana"), await bridge.open("bob")
    async with ana.stream(ana.tool("progress", token="t", steps=2, gated=True)) as events:
        assert (await events.next())["params"]["progress"] == 1
        for _ in range(1100):
            await bob.post(bob.tool("echo", token="t", text="x"))
        await bob.call("gate")
        assert (await events.next())["params"] == {"progressToken": "t", "progress": 2, "total": 2}


async def test_subscriptions_on_a_shared_child(start: Start) -> None:
    bridge = start(BRIDGE_ISOLATION="shared")
    ana, bob = await bridge.open("ana"), await bridge.open("bob")

    def about(session: Any, method: str, uri: str) -> Any:
        return session.post({"id": 1, "method": f"resources/{method}", "params": {"uri": uri}})

    # She is there from her request on: his leaving does not end what is about to begin.
    beginning = asyncio.create_task(about(ana, "subscribe", "test://slow"))
    await asyncio.sleep(0.4)
    assert "result" in answer(await about(bob, "unsubscribe", "test://slow"))
    assert "result" in answer(await beginning)
    assert "resources/unsubscribe" not in await bob.call("seen")
    # An update may be about what lies below (MCP 2025-11-25, resources).
    await about(ana, "subscribe", "test://folder/")
    uris = ["test://other", "test://slower", "test://slow", "test://slow/part", "test://folder/file"]
    async with ana.stream() as events:
        await bob.call("changed", uris=uris)
        heard = [await events.next() for _ in range(4)]
    assert [message["params"].get("uri") for message in heard[1:]] == uris[2:]


async def test_a_shared_child_that_asks_is_told_that_nobody_is_there(start: Start) -> None:
    session = await start(BRIDGE_ISOLATION="shared").open()
    assert json.loads(await session.call("ask", id="q", method="ping")) == {}
    assert json.loads(await session.call("ask", id="r", method="elicitation/create"))["code"] == -32601


async def test_where_memory_runs_out_a_child_goes_first(start: Start) -> None:
    bridge = start()
    session = await bridge.open()
    assert Path(f"/proc/{await session.call('pid')}/oom_score_adj").read_text() == "500\n"
    assert Path(f"/proc/{bridge.process.pid}/oom_score_adj").read_text() != "500\n"


async def test_no_more_children_than_allowed(start: Start) -> None:
    bridge = start(BRIDGE_MAX_CHILDREN=2, BRIDGE_WARM=1)
    first, second = await bridge.open("ana"), await bridge.open("bob")
    async with first.stream(), second.stream():
        refused = await bridge.session("eve").initialize()
        assert refused.json()["error"]["data"] == {"reason": "too_many_children"}
    # One's own session that one has left alone gives its place.
    again = bridge.session("ana")
    async with asyncio.timeout(30):  # until the bridge has seen that the streams are closed
        while "mcp-session-id" not in (await again.initialize()).headers:
            await asyncio.sleep(0.1)
    assert await again.call("echo", text="x") == "x"
    assert (await first.post(first.tool("echo"))).status_code == 404
    assert await second.call("echo", text="x") == "x"
    assert bridge.health["children"] == 2


async def test_a_warm_child_saves_its_start(start: Start) -> None:
    bridge = start()
    eventually(lambda: len(descendants(bridge.process.pid)) == 1)
    warm = descendants(bridge.process.pid)
    session = await bridge.open()
    assert int(await session.call("pid")) in warm


async def test_a_child_that_does_not_start(start: Start) -> None:
    bridge = start(BRIDGE_ENV={"NASTY_START": "exit"})
    response = await bridge.session().initialize()
    assert response.json()["error"]["data"] == {"reason": "child_exited"}
    response = await bridge.stateless("tools/list")
    assert response.json()["error"]["data"] == {"reason": "child_exited"}
    await asyncio.sleep(1)
    # It is not started over and over.
    assert len([event for event in bridge.events if event["event"] == "child_started"]) <= 4
    assert bridge.health["sessions"] == 0


async def test_what_a_child_gets_and_what_it_does_not(start: Start, tmp_path: Path) -> None:
    (tmp_path / "API_KEY").write_text("tell-no-one\n")
    bridge = start(
        BRIDGE_ENV={"OWN": "1"}, BRIDGE_SECRETS=["API_KEY"], CREDENTIALS=str(tmp_path), DRAIN_SECONDS="5"
    )
    session = await bridge.open()
    variables = json.loads(await session.call("env"))
    assert variables["OWN"] == "1"
    assert variables["API_KEY"] == "tell-no-one"
    assert variables.keys() - {"LC_CTYPE"} == {"PATH", "OWN", "API_KEY", "TMPDIR", "GATEHOUSE_BRIDGE_CHILD"}
    await session.call("say", text="the key is tell-no-one")
    eventually(lambda: "the key is ***" in bridge.log)
    assert "tell-no-one" not in bridge.log


async def test_no_part_of_a_secret_is_logged(start: Start, tmp_path: Path) -> None:
    (tmp_path / "PEM").write_text("-----BEGIN-----\ntell-nobody-one\ntell-nobody-two\n-----END-----\n")
    (tmp_path / "TOKEN").write_text("tell-no-one-ä-0123456789")
    bridge = start(BRIDGE_SECRETS=["PEM", "TOKEN"], CREDENTIALS=str(tmp_path))
    session = await bridge.open()
    await session.call("say", text=(tmp_path / "PEM").read_text())
    # Of a line that is too long the first 512 bytes are logged.
    for shown in (0, 1, 12, 13, 14, 20):
        await session.call("say", text="x" * (512 - shown) + "tell-no-one-ä-0123456789" + "y" * 5000)
    await session.call("say", text="the end")
    eventually(lambda: "the end" in bridge.log)
    said = [event["text"] for event in bridge.events if event["event"] == "child_stderr"]
    assert said[:4] == ["***"] * 4
    assert said[4] == "x" * 512
    assert said[5:10] == ["x" * (512 - shown) + "***" for shown in (1, 12, 13, 14, 20)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"BRIDGE_COMMAND": ["relative"]},
            "GATEHOUSE_BRIDGE_COMMAND: the first element must be the full path",
        ),
        (
            {"BRIDGE_COMMAND": ["/nonexistent"]},
            "GATEHOUSE_BRIDGE_COMMAND: the first element must be a program",
        ),
        ({"BRIDGE_COMMAND": "not json tell-no-one"}, "GATEHOUSE_BRIDGE_COMMAND: must be valid JSON"),
        ({"BRIDGE_ISOLATION": "tell-no-one"}, "GATEHOUSE_BRIDGE_ISOLATION: "),
        ({"BRIDGE_ENV": {"a b": "tell-no-one"}}, "GATEHOUSE_BRIDGE_ENV: "),
        ({"BRIDGE_SECRETS": ["MISSING"]}, "GATEHOUSE_BRIDGE_SECRETS: the credential MISSING must be"),
        ({"LISTEN": "tell-no-one"}, "GATEHOUSE_LISTEN: must be an address and a port"),
        ({"PUBLIC_URL": "tell-no-one"}, "GATEHOUSE_PUBLIC_URL: must be the URL"),
    ],
)
def test_wrong_configuration_is_named_and_never_quoted(changes: dict[str, Any], sentence: str) -> None:
    env = environment(NASTY, **changes)
    done = subprocess.run(
        [sys.executable, "-m", "gatehouse_bridge"], env=env, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 78
    assert sentence in done.stderr
    assert "tell-no-one" not in done.stderr + done.stdout


# covers: health
async def test_health_starts_no_child(start: Start) -> None:
    bridge = start(BRIDGE_WARM=0)
    for _ in range(20):
        assert bridge.health["children"] == 0
    assert not descendants(bridge.process.pid)


def test_the_bridge_ends_within_its_time_whatever_the_children_do(start: Start) -> None:
    bridge = start(DRAIN_SECONDS="1")
    assert bridge.stop() in (0, -signal.SIGTERM)
