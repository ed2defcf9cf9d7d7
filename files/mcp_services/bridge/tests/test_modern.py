"""MCP 2026-07-28 in front of a server that speaks it."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ACCEPT, META, MODERN, Bridge, Events, Guest, clean, environment

COMMAND = [sys.executable, str(Path(__file__).with_name("modern.py"))]
CAPABLE = META | {"io.modelcontextprotocol/clientCapabilities": {"roots": {}}}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    env = environment(COMMAND, BRIDGE_ENV={}, BRIDGE_ISOLATION="shared", BRIDGE_WARM=2)
    bridge = Bridge(env, tmp_path_factory.mktemp("modern") / "bridge.log")
    yield bridge
    clean(bridge)


@pytest.fixture
def shared(host: Bridge) -> Iterator[Bridge]:
    guest = Guest(host)
    yield guest
    guest.leave()


async def said(bridge: Bridge, tool: str) -> str:
    response = await bridge.stateless("tools/call", {"name": tool, "arguments": {}})
    return str(response.json()["result"]["content"][0]["text"])


# covers: eras
async def test_it_gets_the_requests_of_this_age_as_they_are(shared: Bridge) -> None:
    assert await said(shared, "version") == MODERN
    asked = {"name": "ask", "arguments": {}, "_meta": CAPABLE}
    first = (await shared.stateless("tools/call", asked)).json()["result"]
    assert first["resultType"] == "input_required"
    assert first["inputRequests"]["roots"]["method"] == "roots/list"
    again = asked | {"inputResponses": {"roots": {"roots": []}}}
    second = (await shared.stateless("tools/call", again)).json()["result"]
    assert second["content"][0]["text"] == "done"


async def test_a_capability_that_is_missing_is_the_clients_fault(shared: Bridge) -> None:
    response = await shared.stateless("tools/call", {"name": "need", "arguments": {}})
    assert response.json()["error"]["code"] == -32021
    assert response.status_code == 400


async def test_sessions_have_a_process_of_their_age(shared: Bridge) -> None:
    pids = [await said(shared, "pid") for _ in range(2)]
    first, second = await shared.open("ana"), await shared.open("bob", version="2025-06-18")
    pids += [await first.call("pid"), await second.call("pid")]
    assert pids[0] == pids[1] != pids[2] == pids[3]
    assert await first.call("version") == "2025-11-25"


async def test_a_subscription_has_the_name_that_its_client_gave(shared: Bridge) -> None:
    headers = ACCEPT | {
        "X-Gatehouse-User": shared.user,
        "MCP-Protocol-Version": MODERN,
        "Mcp-Method": "subscriptions/listen",
    }
    params: dict[str, Any] = {"_meta": META, "notifications": {"toolsListChanged": True}}
    body = {"jsonrpc": "2.0", "id": "mine", "method": "subscriptions/listen", "params": params}
    async with shared.http.stream("POST", f"{shared.url}/mcp", json=body, headers=headers) as response:
        stream = Events(response)
        heard = [await stream.next()]
        await said(shared, "change")
        heard.append(await stream.next())
    assert [message["method"] for message in heard] == [
        "notifications/subscriptions/acknowledged",
        "notifications/tools/list_changed",
    ]
    for message in heard:
        assert message["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == "mine"


# covers: streams-end
async def test_a_subscription_ends_in_good_order(start: Callable[..., Bridge]) -> None:
    bridge = start(COMMAND, STREAM_SECONDS=1)
    params: dict[str, Any] = {"_meta": META, "notifications": {"toolsListChanged": True}}
    response = await bridge.stateless("subscriptions/listen", params)
    acknowledged, end = [json.loads(line[6:]) for line in response.text.splitlines() if line[:5] == "data:"]
    assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
    assert (end["id"], end["result"]["resultType"]) == ("a", "complete")
    assert await said(bridge, "version") == MODERN


@pytest.mark.parametrize(
    ("arguments", "headers", "status"),
    [
        ({"region": "eu"}, {"Mcp-Param-Region": "eu"}, 200),
        ({"region": "eu"}, {"Mcp-Param-Region": "=?base64?ZXU=?="}, 200),
        ({"region": "eu"}, {"Mcp-Param-Region": "=?base64?ZXU?="}, 400),
        ({"region": "eu"}, {"Mcp-Param-Region": "us"}, 400),
        ({"region": "eu"}, {}, 400),
        ({}, {"Mcp-Param-Region": "eu"}, 400),
        ({"inner": {"count": 42}}, {"Mcp-Param-Count": "42.0"}, 200),
        ({"inner": {"count": 42}}, {"Mcp-Param-Count": "43"}, 400),
        ({"inner": {"count": None}}, {}, 200),
        ({}, {"Mcp-Param-Unknown": "eu"}, 200),
    ],
)
async def test_an_argument_in_a_header_is_the_one_in_the_body(
    shared: Bridge, arguments: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    params = {"name": "regional", "arguments": arguments}
    response = await shared.stateless("tools/call", params, headers=headers)
    assert response.status_code == status
    assert status == 200 or response.json()["error"]["code"] == -32020


# A server that says a name twice in the answer that ends a subscription.
CARELESS = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    result = '{"supportedVersions":["2026-07-28"],"capabilities":{}}'
    if message["method"] == "subscriptions/listen":
        result = '{"_meta":{"x":1,"x":2}}'
    if "id" in message:
        print(f'{{"jsonrpc":"2.0","id":{message["id"]},"result":{result}}}', flush=True)
"""


async def test_a_malformed_end_of_a_subscription_is_told(start: Callable[..., Bridge]) -> None:
    bridge = start([sys.executable, "-c", CARELESS])
    params: dict[str, Any] = {"_meta": META, "notifications": {"toolsListChanged": True}}
    response = await bridge.stateless("subscriptions/listen", params)
    (end,) = [json.loads(line[6:]) for line in response.text.splitlines() if line[:5] == "data:"]
    assert (end["id"], end["error"]["code"]) == ("a", -32603)
