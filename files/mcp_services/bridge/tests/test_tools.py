"""Per-tool rules: what a person does not have is neither listed nor called, in either age of the protocol."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conftest import ACCEPT, META, MODERN, NASTY, Bridge, Guest, Session, answer, clean, environment

Start = Callable[..., Bridge]
RULES = {"deny": ["env", "s*"], "groups": {"ops, all": ["env", "seen"], "staff": ["nothing"]}}
STAFF = {"X-Gatehouse-User": "ana", "X-Gatehouse-Groups": "staff"}
OPS = {"X-Gatehouse-User": "bob", "X-Gatehouse-Groups": "staff,ops%2C all"}


def names(message: dict[str, Any]) -> set[str]:
    return {tool["name"] for tool in message["result"]["tools"]}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    env = environment(NASTY, BRIDGE_ENV={}, BRIDGE_MAX_CHILDREN=500, TOOLS=RULES)
    bridge = Bridge(env, tmp_path_factory.mktemp("tools") / "bridge.log")
    yield bridge
    clean(bridge)


@pytest.fixture
def bridge(host: Bridge) -> Bridge:
    return Guest(host)


async def session(bridge: Bridge, headers: dict[str, str]) -> Session:
    opened = Session(bridge.http, bridge.url, headers)
    await opened.initialize()
    return opened


# covers: tool-rules
async def test_what_is_denied_is_not_listed(bridge: Bridge) -> None:
    listed = {}
    for who, headers in (("staff", STAFF), ("ops", OPS)):
        opened = await session(bridge, headers)
        listed[who] = names(answer(await opened.post({"id": 1, "method": "tools/list"})))
        modern = await bridge.stateless("tools/list", headers=headers)
        assert names(modern.json()) == listed[who]
    assert {"echo", "pid"} <= listed["staff"]
    assert not {"env", "seen", "sleep", "stderr"} & listed["staff"]
    assert listed["ops"] - listed["staff"] == {"env", "seen"}


# covers: tool-rules
async def test_what_is_denied_is_not_called(bridge: Bridge) -> None:
    staff, ops = await session(bridge, STAFF), await session(bridge, OPS)
    assert await staff.call("echo", text="x") == "x"
    for name in ("env", "seen", "sleep"):
        message = answer(await staff.post(staff.tool(name)))
        assert message["error"] == {"code": -32602, "message": "Unknown tool"}
        modern = await bridge.stateless("tools/call", {"name": name, "arguments": {}}, headers=STAFF)
        assert (modern.status_code, modern.json()["error"]["code"]) == (400, -32602)
    assert "PATH" in await ops.call("env")
    # The session is judged by who asks now, not by who they were.
    ops.headers |= {"X-Gatehouse-Groups": "staff"}
    assert "error" in answer(await ops.post(ops.tool("env")))


# covers: tool-rules
@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"env","name":"echo"}}',
        '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","Name":"env"}}',
        '{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call","params":{"name":"env"}}',
        '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"},"PARAMS":{"name":"env"}}',
        '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"},"param\u017f":{"name":"env"}}',
        '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":["env"]}',
        '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":["env"]}}',
        '{"jsonrpc":"2.0","id":1,"method":"tools/call"}',
        '{"jsonrpc":"2.0","method":"tools/call","params":{"name":"env"}}',
        '{"jsonrpc":"2.0","id":1,"method":"tools\\u002fcall","params":{"name":"\\u0065nv"}}',
    ],
)
async def test_what_could_be_read_in_two_ways_goes_nowhere(bridge: Bridge, text: str) -> None:
    opened = await session(bridge, STAFF)
    ops = {"X-Gatehouse-Groups": OPS["X-Gatehouse-Groups"]}
    before = json.loads(await _seen(bridge, opened, ops))
    response = await bridge.http.post(
        opened.url, content=text, headers=opened.headers | {"Content-Type": "application/json"}
    )
    assert response.status_code in (200, 400)
    assert "error" in response.json()
    after = json.loads(await _seen(bridge, opened, ops))
    assert [message["method"] for message in after[len(before) :]] == ["tools/call"], "only the look itself"


async def _seen(bridge: Bridge, opened: Session, headers: dict[str, str]) -> str:
    """What the child has seen, by the tool that only some have here."""
    message = opened.tool("seen")
    response = await opened.post(message, **headers)
    text: str = answer(response)["result"]["content"][0]["text"]
    return text


async def test_only_what_is_allowed(start: Start) -> None:
    bridge = start(TOOLS={"allow": ["echo", "p*"], "deny": ["progress"]})
    opened = await session(bridge, {})
    listed = names(answer(await opened.post({"id": 1, "method": "tools/list"})))
    assert {"echo", "pid"} <= listed
    assert all(name == "echo" or name.startswith("p") for name in listed)
    assert "progress" not in listed
    assert "error" in answer(await opened.post(opened.tool("env")))


async def test_other_tools_come_through_as_they_are(start: Start) -> None:
    plain, ruled = start(), start(TOOLS={"deny": ["env"]})
    texts = []
    for bridge in (plain, ruled):
        response = await bridge.http.post(
            f"{bridge.url}/mcp",
            json={"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": META}},
            headers=ACCEPT | {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/list"},
        )
        texts.append(response.json()["result"]["tools"])
    assert [tool for tool in texts[0] if tool["name"] != "env"] == texts[1]
