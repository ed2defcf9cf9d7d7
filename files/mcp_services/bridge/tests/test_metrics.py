"""What an operator watches, and who may."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from conftest import Bridge, answer, eventually

Start = Callable[..., Bridge]


def samples(bridge: Bridge) -> dict[tuple[str, str], float]:
    """By name and the value of its label."""
    text = httpx.get(f"{bridge.url}/metrics").text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("gatehouse_bridge_")
            labels = [value for label, value in sorted(sample.labels.items()) if label != "le"]
            found[name, "/".join(labels)] = sample.value
    return found


# covers: metrics
async def test_what_is_counted(start: Start) -> None:
    bridge = start(BRIDGE_MAX_CHILDREN=2)
    assert samples(bridge)["children_warm", ""] == 1
    session = await bridge.open("local:ana")
    await session.call("echo", text="tell-no-one")
    assert "error" in answer(await session.post({"id": 9, "method": "tell/no-one"}))
    async with session.stream(session.tool("progress", token=1, steps=2, pause=0.5)) as events:
        await events.next()
        counted = samples(bridge)
        assert (counted["sessions", ""], counted["requests_waiting", ""]) == (1, 1)
        await events.rest()
    counted = samples(bridge)
    assert (counted["children", ""], counted["children_max", ""]) == (2, 2)
    assert (counted["children_warm", ""], counted["requests_waiting", ""]) == (1, 0)
    assert counted["request_seconds_count", "tools/call"] == 2
    assert counted["request_seconds_sum", "tools/call"] > 0.5
    assert counted["request_seconds_count", "initialize"] == 1
    assert counted["request_seconds_count", "other"] == 1
    assert counted["request_body_bytes", ""] == 0
    assert "error" in answer(await session.post(session.tool("crash")))
    counted = samples(bridge)
    assert (counted["children_crashed_total", ""], counted["failures_total", "child_exited"]) == (1, 1)
    assert (counted["sessions", ""], counted["requests_waiting", ""]) == (0, 0)
    # Another was started ahead of need, and nobody asked it to end.
    eventually(lambda: samples(bridge)["children_started_total", ""] >= 2)
    text = httpx.get(f"{bridge.url}/metrics").text
    assert not [word for word in ("ana", "tell", "no-one", "echo") if word in text]


async def test_one_that_is_ended_has_not_crashed(start: Start) -> None:
    bridge = start(BRIDGE_WARM=0)
    session = await bridge.open()
    assert await session.delete() == 204
    eventually(lambda: samples(bridge)["children", ""] == 0)
    assert samples(bridge)["children_crashed_total", ""] == 0


# covers: metrics
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "test.example.com"},
        {"X-Forwarded-For": "192.0.2.1"},
        {"X-Forwarded-Host": "test.example.com"},
        {"Forwarded": "for=192.0.2.1"},
        {"X-Gatehouse-User": "local:ana"},
    ],
)
async def test_nothing_that_came_through_the_gateway_sees_them(
    untouched: Bridge, headers: dict[str, str]
) -> None:
    assert httpx.get(f"{untouched.url}/metrics").status_code == 200
    response = httpx.get(f"{untouched.url}/metrics", headers=headers)
    assert response.status_code == 404
    assert "children" not in response.text


# covers: metrics
async def test_nobody_elsewhere_sees_them(untouched: Bridge) -> None:
    """An address that is not the loopback interface's usual one stands for another host's."""
    elsewhere: Any = httpx.HTTPTransport(local_address="127.0.0.9")
    with httpx.Client(transport=elsewhere) as client:
        assert client.get(f"{untouched.url}/health").status_code == 200
        assert client.get(f"{untouched.url}/metrics").status_code == 404
