"""MCP 2026-07-28 in front of a server of the older age."""

import asyncio
import base64
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from conftest import ACCEPT, META, MODERN, Bridge, Events, alive, eventually

Start = Callable[..., Bridge]
SERVER = {"io.modelcontextprotocol/serverInfo": {"name": "nasty", "version": "1"}}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


async def test_discover_says_what_the_handshake_said(common: Bridge) -> None:
    response = await common.stateless("server/discover")
    assert "mcp-session-id" not in response.headers
    assert response.json() == {
        "jsonrpc": "2.0",
        "id": "a",
        "result": {
            "_meta": SERVER,
            "supportedVersions": [MODERN],
            "capabilities": {
                "tools": {"listChanged": True},
                "resources": {"subscribe": True, "listChanged": True},
                "logging": {},
            },
            "ttlMs": 0,
            "cacheScope": "private",
            "instructions": "Take care.",
            "resultType": "complete",
        },
    }


# covers: eras
async def test_results_have_what_this_revision_wants(common: Bridge) -> None:
    result = (await common.stateless("tools/list")).json()["result"]
    assert result["tools"][0]["name"] == "echo"
    assert (result["resultType"], result["ttlMs"], result["cacheScope"]) == ("complete", 0, "private")
    assert result["_meta"] == SERVER
    result = (await common.stateless("tools/call", call("echo", text="x"))).json()["result"]
    assert result == {"_meta": SERVER, "resultType": "complete", "content": [{"type": "text", "text": "x"}]}


async def test_the_child_sees_a_handshake_and_no_envelope(common: Bridge) -> None:
    meta = META | {
        "io.modelcontextprotocol/clientInfo": {"name": "c", "version": "1"},
        "com.example/own": 1.50,
    }
    response = await common.stateless("tools/call", {**call("seen"), "_meta": meta})
    seen = json.loads(response.json()["result"]["content"][0]["text"])
    # The first child of all is asked for its age, and says that it does not know the question.
    seen = [message for message in seen if message["method"] != "server/discover"]
    assert [message["method"] for message in seen] == [
        "initialize",
        "notifications/initialized",
        "tools/call",
    ]
    assert seen[0]["params"]["capabilities"] == {}
    assert seen[2]["params"]["_meta"] == {"com.example/own": 1.5}


# covers: header-body
@pytest.mark.parametrize(
    ("changes", "meta", "code"),
    [
        ({"Mcp-Name": "other"}, {}, -32020),
        ({"Mcp-Name": None}, {}, -32020),
        ({"Mcp-Name": "=?base64?###?="}, {}, -32020),
        ({"Mcp-Name": "=?base64?ZWNobx==?="}, {}, -32020),  # not the canonical encoding
        ({"Mcp-Method": "tools/list"}, {}, -32020),
        ({"Mcp-Method": None}, {}, -32020),
        ({"MCP-Protocol-Version": None}, {}, -32020),
        ({"MCP-Protocol-Version": "2099-01-01"}, {}, -32020),
        ({"MCP-Protocol-Version": "2025-11-25"}, {}, -32020),
        (
            {"MCP-Protocol-Version": "2099-01-01"},
            {"io.modelcontextprotocol/protocolVersion": "2099-01-01"},
            -32022,
        ),
        ({}, {"io.modelcontextprotocol/protocolVersion": 5}, -32020),
        ({}, {"io.modelcontextprotocol/clientCapabilities": None}, -32602),
    ],
)
async def test_headers_and_body_must_agree(
    untouched: Bridge, changes: dict[str, str | None], meta: dict[str, Any], code: int
) -> None:
    params = {**call("echo", text="x"), "_meta": META | meta}
    response = await untouched.stateless("tools/call", params, headers=changes)
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)
    assert response.json()["id"] == "a"
    if code == -32022:
        data = response.json()["error"]["data"]
        assert data["requested"] == "2099-01-01"
        assert data["supported"][0] == MODERN
    assert untouched.health["children"] == 0


async def test_a_header_may_not_stand_twice(untouched: Bridge) -> None:
    headers = [("MCP-Protocol-Version", MODERN), ("Mcp-Method", "tools/list"), ("Mcp-Method", "tools/list")]
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": META}}
    response = await untouched.http.post(
        f"{untouched.url}/mcp", json=body, headers=[*ACCEPT.items(), *headers]
    )
    assert (response.status_code, response.json()["error"]["code"]) == (400, -32020)


async def test_a_name_may_be_encoded(common: Bridge) -> None:
    name = f"=?base64?{base64.b64encode(b'echo').decode()}?="
    response = await common.stateless("tools/call", call("echo", text="x"), headers={"Mcp-Name": name})
    assert response.json()["result"]["content"][0]["text"] == "x"


async def test_the_envelope_is_required(common: Bridge) -> None:
    response = await common.stateless("tools/list", {"_meta": {}})
    assert (response.status_code, response.json()["error"]["code"]) == (400, -32602)


@pytest.mark.parametrize(
    "method", ["initialize", "ping", "logging/setLevel", "resources/subscribe", "nobody/knows"]
)
async def test_methods_that_this_revision_has_not(common: Bridge, method: str) -> None:
    response = await common.stateless(method, {"uri": "test://x"}, headers={"Mcp-Name": None})
    assert (response.status_code, response.json()["error"]["code"]) == (404, -32601)


async def test_an_unknown_resource_has_the_code_of_this_revision(common: Bridge) -> None:
    response = await common.stateless("resources/read", {"uri": "test://none"})
    assert response.json()["error"]["code"] == -32602


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
async def test_only_post(common: Bridge, method: str) -> None:
    response = await common.http.request(
        method, f"{common.url}/mcp", headers=ACCEPT | {"MCP-Protocol-Version": MODERN}
    )
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


async def test_notifications_are_taken_and_responses_are_not(untouched: Bridge) -> None:
    headers = ACCEPT | {"MCP-Protocol-Version": MODERN}
    for body, status in (({"method": "notifications/x"}, 202), ({"id": 1, "result": {}}, 400)):
        response = await untouched.http.post(
            f"{untouched.url}/mcp", json={"jsonrpc": "2.0", **body}, headers=headers
        )
        assert response.status_code == status
    assert untouched.health["children"] == 0


async def events(bridge: Bridge, params: dict[str, Any], method: str = "tools/call") -> Any:
    headers = ACCEPT | {"MCP-Protocol-Version": MODERN, "Mcp-Method": method, "X-Gatehouse-User": bridge.user}
    if "name" in params:
        headers["Mcp-Name"] = params["name"]
    body = {"jsonrpc": "2.0", "id": "e", "method": method, "params": params}
    return bridge.http.stream("POST", f"{bridge.url}/mcp", json=body, headers=headers)


async def test_progress_comes_as_events_without_ids(common: Bridge) -> None:
    params = {**call("progress", steps=3, pause=0.05), "_meta": META | {"progressToken": "mine"}}
    async with await events(common, params) as response:
        stream = Events(response)
        messages = await stream.rest()
    assert [m["params"] for m in messages[:-1]] == [
        {"progressToken": "mine", "progress": n, "total": 3} for n in (1, 2, 3)
    ]
    assert messages[-1]["id"] == "e"
    assert messages[-1]["result"]["resultType"] == "complete"
    assert stream.ids == []


@pytest.mark.parametrize(
    ("asked", "heard"), [(None, False), ("debug", True), ("info", True), ("error", False)]
)
async def test_log_messages_only_for_those_who_ask(common: Bridge, asked: str | None, heard: bool) -> None:
    level = {} if asked is None else {"io.modelcontextprotocol/logLevel": asked}
    async with await events(common, {**call("log", text="hello"), "_meta": META | level}) as response:
        text = (await response.aread()).decode()
    assert ('"data": "hello"' in text) is heard


async def test_going_away_cancels(common: Bridge) -> None:
    async with await events(
        common, {**call("progress", steps=100, pause=0.2), "_meta": META | {"progressToken": 1}}
    ) as response:
        await Events(response).next()

    async def cancelled() -> bool:
        seen = (await common.stateless("tools/call", call("seen"))).json()["result"]["content"][0]["text"]
        return any(message.get("method") == "notifications/cancelled" for message in json.loads(seen))

    for _ in range(100):
        if await cancelled():
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("it was not cancelled")


async def test_listening_to_changes(start: Start) -> None:
    bridge = start()
    wanted = {
        "toolsListChanged": True,
        "promptsListChanged": True,
        "resourceSubscriptions": ["test://watched"],
    }
    async with await events(
        bridge, {"notifications": wanted, "_meta": META}, "subscriptions/listen"
    ) as response:
        stream = Events(response)
        acknowledged = await stream.next()
        assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
        # The server has no prompts.
        assert acknowledged["params"]["notifications"] == {
            "toolsListChanged": True,
            "resourceSubscriptions": ["test://watched"],
        }
        await bridge.stateless("tools/call", call("changed"))
        heard = [await stream.next(), await stream.next()]
        assert [message["method"] for message in heard] == [
            "notifications/tools/list_changed",
            "notifications/resources/updated",
        ]
        assert heard[1]["params"]["uri"] == "test://watched"
        for message in [acknowledged, *heard]:
            assert message["params"]["_meta"] == {"io.modelcontextprotocol/subscriptionId": "e"}
        bridge.process.terminate()
        (end,) = await stream.rest()
    assert end["id"] == "e"
    assert end["result"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == "e"


# covers: streams-end
async def test_listening_ends_in_good_order(start: Start) -> None:
    bridge = start(STREAM_SECONDS=1)
    wanted = {"notifications": {"toolsListChanged": True}, "_meta": META}
    for _ in range(2):
        async with await events(bridge, wanted, "subscriptions/listen") as response:
            acknowledged, end = await Events(response).rest()
        assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
        assert (end["id"], end["result"]["resultType"]) == ("e", "complete")
        assert end["result"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == "e"


async def test_who_shares_a_child(start: Start) -> None:
    """Without sessions: one user with one client has one child, which others never reach."""
    bridge = start(BRIDGE_WARM=0)

    async def pid(user: str, client: str) -> str:
        response = await bridge.stateless(
            "tools/call", call("pid"), user, headers={"X-Gatehouse-Client": client}
        )
        return str(response.json()["result"]["content"][0]["text"])

    pids = [await pid("ana", "c1"), await pid("ana", "c1"), await pid("ana", "c2"), await pid("bob", "c1")]
    assert pids[0] == pids[1]
    assert len(set(pids)) == 3


async def test_a_child_that_dies_is_replaced(common: Bridge) -> None:
    response = await common.stateless("tools/call", call("crash"))
    assert response.json()["error"]["data"] == {"reason": "child_exited"}
    assert (await common.stateless("tools/call", call("echo", text="x"))).json()["result"]["content"][0][
        "text"
    ] == "x"


async def test_an_idle_child_ends(start: Start) -> None:
    bridge = start(BRIDGE_IDLE_SECONDS=1, BRIDGE_WARM=0)
    await bridge.stateless("tools/list")
    assert bridge.health["children"] == 1
    eventually(lambda: bridge.health["children"] == 0)


def asking(identifier: str, **more: Any) -> dict[str, Any]:
    meta = META | {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}}}
    return {**call("ask", id=identifier, method="elicitation/create"), "_meta": meta, **more}


# covers: mrtr
async def test_what_a_server_asks_in_the_middle_of_a_call(common: Bridge) -> None:
    response = await common.stateless("tools/call", asking("q"))
    result = response.json()["result"]
    assert result["resultType"] == "input_required"
    ((name, question),) = result["inputRequests"].items()
    assert question == {"method": "elicitation/create", "params": {"message": "?"}}
    state = result["requestState"]
    # Nobody else takes it up, and not as another call.
    strangers = [
        await common.stateless("tools/call", asking("q", requestState=state), user="local:eve"),
        await common.stateless("tools/call", {**asking("q", requestState=state), "name": "echo"}),
        await common.stateless("tools/call", asking("q", requestState="guessed")),
    ]
    assert [stranger.json()["error"]["code"] for stranger in strangers] == [-32602] * 3
    # Without an answer it is asked again.
    result = (await common.stateless("tools/call", asking("q", requestState=state))).json()["result"]
    assert list(result["inputRequests"]) == [name]
    assert result["requestState"] != state
    said = {"action": "accept", "content": {"n": 1.5}}
    answered = asking("q", requestState=result["requestState"], inputResponses={name: said})
    result = (await common.stateless("tools/call", answered)).json()["result"]
    assert result["resultType"] == "complete"
    assert json.loads(result["content"][0]["text"]) == said
    # Once.
    assert (await common.stateless("tools/call", answered)).json()["error"]["code"] == -32602


# covers: mrtr
async def test_a_server_asks_only_what_the_client_can_be_asked(common: Bridge) -> None:
    meta = META | {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {}, "com.example/own": {}}}
    seen = await common.stateless("tools/call", {**call("seen"), "_meta": meta})
    hello = json.loads(seen.json()["result"]["content"][0]["text"])[0]
    assert hello["params"]["capabilities"] == {"elicitation": {}}


# covers: mrtr
async def test_a_server_that_asks_what_the_client_cannot_be_asked(common: Bridge) -> None:
    params = {**asking("q"), **call("ask", id="q", method="sampling/createMessage")}
    result = (await common.stateless("tools/call", params)).json()["result"]
    assert json.loads(result["content"][0]["text"])["code"] == -32601


# covers: mrtr
@pytest.mark.parametrize("isolation", ["shared", "per_user"])
async def test_nobody_is_asked_on_behalf_of_another(start: Start, isolation: str) -> None:
    bridge = start(BRIDGE_ISOLATION=isolation, BRIDGE_WARM=0)
    users = {"shared": ("ana", "bob"), "per_user": ("ana", "ana")}[isolation]
    slow = {**asking("q"), **call("sleep", seconds=4)}
    await bridge.stateless("tools/list", user=users[0])
    first = asyncio.create_task(
        bridge.stateless("tools/call", slow, users[0], headers={"X-Gatehouse-Client": "c1"})
    )
    await asyncio.sleep(0.5)
    second = await bridge.stateless("tools/call", asking("q"), users[1], headers={"X-Gatehouse-Client": "c2"})
    assert json.loads(second.json()["result"]["content"][0]["text"])["code"] == -32601
    assert (await first).json()["result"]["content"][0]["text"] == "slept"


# covers: mrtr
async def test_progress_after_a_question_has_the_token_of_the_request_that_waits(common: Bridge) -> None:
    def tokened(token: str, **more: Any) -> dict[str, Any]:
        params = asking("q", **more)
        return params | {"_meta": params["_meta"] | {"progressToken": token}}

    result = (await common.stateless("tools/call", tokened("first"))).json()["result"]
    said = {name: {"action": "accept"} for name in result["inputRequests"]}
    again = tokened("second", requestState=result["requestState"], inputResponses=said)
    async with await events(common, again) as response:
        progress, end = await Events(response).rest()
    assert progress["params"] == {"progressToken": "second", "progress": 1}
    assert json.loads(end["result"]["content"][0]["text"]) == {"action": "accept"}


# covers: mrtr
async def test_what_a_client_says_reaches_the_server_as_it_was_said(common: Bridge) -> None:
    result = (await common.stateless("tools/call", asking("q"))).json()["result"]
    ((name, _),) = result["inputRequests"].items()
    again = asking("q", requestState=result["requestState"], inputResponses="SAID")
    body = json.dumps({"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": again})
    headers = ACCEPT | {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": "ask"}
    headers |= {"Content-Type": "application/json", "X-Gatehouse-User": common.user}

    async def say(text: str) -> Any:
        said = body.replace('"SAID"', f"{{{json.dumps(name)}:{text}}}")
        return await common.http.post(f"{common.url}/mcp", content=said, headers=headers)

    # What has two readings is refused, and the call waits on.
    twice = await say('{},"other":{},"other":{}')
    assert (twice.status_code, twice.json()["error"]["code"]) == (400, -32700)
    done = await say('{"big":123456789012345678901234567890,"far":1e400}')
    text = done.json()["result"]["content"][0]["text"]
    assert text == '{"big": 123456789012345678901234567890, "far": Infinity}'  # Python's own reading of it


# covers: mrtr
async def test_a_call_whose_client_does_not_come_back_is_cancelled(start: Start) -> None:
    bridge = start(BRIDGE_IDLE_SECONDS=1, BRIDGE_WARM=0)
    result = (await bridge.stateless("tools/call", asking("q"))).json()["result"]
    eventually(lambda: bridge.health["children"] == 0)
    late = await bridge.stateless("tools/call", asking("q", requestState=result["requestState"]))
    assert late.json()["error"]["code"] == -32602
    assert bridge.health["children"] == 0


# covers: mrtr
async def test_a_child_that_dies_while_its_client_is_asked(common: Bridge) -> None:
    result = (await common.stateless("tools/call", asking("q"))).json()["result"]
    capable = {"_meta": asking("q")["_meta"]}
    pid = await common.stateless("tools/call", {**call("pid"), **capable})
    child = int(pid.json()["result"]["content"][0]["text"])
    os.kill(child, signal.SIGKILL)
    eventually(lambda: not alive(child))
    await asyncio.sleep(1)
    again = asking("q", requestState=result["requestState"], inputResponses={})
    late = (await common.stateless("tools/call", again)).json()
    assert late["id"] == "a"
    assert late["error"]["data"] == {"reason": "child_exited"}
