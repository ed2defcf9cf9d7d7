"""The stateful form: a real process, with sessions of its own and of others."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from test_echo import ACCEPT, answer_on, call, connect, head, running

ANA, BEN = {"X-Gatehouse-User": "local:ana"}, {"X-Gatehouse-User": "local:ben"}
STATEFUL = {"ECHO_STATEFUL": "true"}
COUNTER = "session://counter"
INITIALIZE: dict[str, Any] = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"},
    },
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(**STATEFUL) as address:
        yield address


def data_of(text: str) -> list[dict[str, Any]]:
    return [
        json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:") and line[5:].strip()
    ]


class Client:
    """A client of one session, that shows what a library would hide."""

    def __init__(self, url: str, user: dict[str, str], version: str = "2025-11-25") -> None:
        self.url = f"{url}/mcp"
        self.headers = ACCEPT | user | {"MCP-Protocol-Version": version}
        self._last = 0
        params = {
            "protocolVersion": version,
            "capabilities": {"roots": {}},
            "clientInfo": {"name": "t", "version": "1"},
        }
        opened = self.post("initialize", params)
        assert opened.status_code == 200, opened.text
        self.headers["Mcp-Session-Id"] = opened.headers["mcp-session-id"]
        assert httpx.post(
            self.url, json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=self.headers
        ).is_success

    def body(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._last += 1
        return {"jsonrpc": "2.0", "id": self._last, "method": method, "params": params}

    def post(self, method: str, params: dict[str, Any], **headers: str) -> httpx.Response:
        return httpx.post(
            self.url, json=self.body(method, params), headers=self.headers | headers, timeout=30
        )

    def tool(self, name: str, **arguments: Any) -> Any:
        answered = self.post("tools/call", {"name": name, "arguments": arguments})
        assert answered.status_code == 200, answered.text
        result = data_of(answered.text)[-1]["result"]
        assert not result.get("isError"), result
        return json.loads(result["content"][0]["text"])


# covers: diagnostics
def test_a_session_counts_for_itself(url: str) -> None:
    one, other = Client(url, ANA), Client(url, ANA)
    assert [one.tool("count")["count"] for _ in range(3)] == [1, 2, 3]
    assert other.tool("count")["count"] == 1
    shown = one.tool("session")
    assert (shown["owner"], shown["count"]) == ("local:ana", 3)
    assert shown["requests"] == 6
    assert one.headers["Mcp-Session-Id"] not in json.dumps([shown, one.tool("replay"), one.tool("headers")])


def test_negotiation_remembers_the_handshake(url: str) -> None:
    shown = Client(url, ANA, "2025-06-18").tool("negotiation")
    assert (shown["asked"], shown["chosen"]) == ("2025-06-18", "2025-06-18")
    assert shown["client"] == {"info": {"name": "t", "version": "1"}, "capabilities": {"roots": {}}}
    assert shown["server"]["capabilities"]["resources"]["subscribe"]


# covers: sessions
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
def test_a_session_is_its_user_s_alone(url: str, method: str) -> None:
    ana = Client(url, ANA)
    stolen = ana.headers | BEN
    body = ana.body("tools/call", {"name": "count", "arguments": {}}) if method == "POST" else None
    answered = httpx.request(method, ana.url, json=body, headers=stolen)
    unknown = httpx.request(method, ana.url, json=body, headers=stolen | {"Mcp-Session-Id": "0" * 32})
    assert answered.status_code == unknown.status_code == 404
    assert answered.content == unknown.content, "whether it is another's or none at all, no one learns"
    assert ana.tool("count")["count"] == 1, "and it is as it was"


@pytest.mark.parametrize(
    "second",
    [("Mcp-Session-Id", None), ("MCP-Protocol-Version", "2026-07-28"), ("X-Gatehouse-User", "local:ana")],
)
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
def test_a_second_header_opens_no_session_of_another(
    url: str, method: str, second: tuple[str, str | None]
) -> None:
    ana, ben = Client(url, ANA), Client(url, BEN)
    name, value = second
    headers = [*(ana.headers | BEN).items(), (name, value or ben.headers["Mcp-Session-Id"])]
    body = ana.body("tools/call", {"name": "count", "arguments": {}}) if method == "POST" else None
    answered = httpx.request(method, ana.url, json=body, headers=headers)
    assert answered.status_code == 400
    assert name.lower() in answered.json()["error"]["message"]
    assert ana.tool("count")["count"] == 1, "it is as it was"


def test_no_session_is_400_and_an_ended_one_404(url: str) -> None:
    assert httpx.get(f"{url}/mcp", headers=ACCEPT | ANA).status_code == 400
    client = Client(url, ANA)
    assert httpx.delete(client.url, headers=client.headers).is_success
    assert client.post("tools/list", {}).status_code == 404


# covers: restart-404
def test_after_a_restart_old_sessions_are_404() -> None:
    with running(**STATEFUL) as before:
        client = Client(before, ANA)
    with running(**STATEFUL) as after:
        client.url = f"{after}/mcp"
        assert client.post("tools/list", {}).status_code == 404
        assert Client(after, ANA).tool("count")["count"] == 1


def test_subscribers_are_told_on_the_session_s_own_stream(url: str) -> None:
    client, other = Client(url, ANA), Client(url, ANA)
    assert client.post("resources/subscribe", {"uri": COUNTER}).is_success
    with httpx.stream("GET", client.url, headers=client.headers, timeout=10) as stream:
        other.tool("count")
        client.tool("count")
        told = next(
            json.loads(line[5:])
            for line in stream.iter_lines()
            if line.startswith("data:") and line[5:].strip()
        )
    assert told["method"] == "notifications/resources/updated"
    assert told["params"]["uri"] == COUNTER
    read = client.post("resources/read", {"uri": COUNTER})
    assert data_of(read.text)[-1]["result"]["contents"][0]["text"] == "1"


def test_a_broken_stream_is_resumed_by_its_last_event(url: str) -> None:
    client, ben = Client(url, ANA), Client(url, BEN)
    broken = client.post("tools/call", {"name": "disconnect", "arguments": {}})
    assert not data_of(broken.text), "it was closed before the answer"
    last = next(line[3:].strip() for line in broken.text.splitlines() if line.startswith("id:"))
    time.sleep(0.3)
    # The id is of no use in a session of another user, nor in another of one's own.
    for stranger in (ben, Client(url, ANA)):
        with httpx.stream("GET", stranger.url, headers=stranger.headers | {"Last-Event-ID": last}) as stream:
            assert "disconnected" not in stream.read().decode()
    with httpx.stream(
        "GET", client.url, headers=client.headers | {"Last-Event-ID": last}, timeout=10
    ) as stream:
        resumed = next(line for line in stream.iter_lines() if "disconnected" in line)
    assert json.loads(resumed[5:])["id"] == client._last


# covers: streams-end
def test_a_session_s_own_stream_ends_and_is_resumed() -> None:
    with running(**STATEFUL, GATEHOUSE_STREAM_SECONDS="1") as url:
        client = Client(url, ANA)
        assert client.post("resources/subscribe", {"uri": COUNTER}).is_success

        def listen(after: str | None) -> tuple[str, int]:
            headers = client.headers | ({"Last-Event-ID": after} if after else {})
            told = httpx.get(client.url, headers=headers, timeout=30)
            assert told.status_code == 200
            ids = [line[3:].strip() for line in told.text.splitlines() if line.startswith("id:")]
            return (ids or [after or ""])[-1], len(data_of(told.text))

        last, told = listen(None)
        assert last, "it begins with an event to come back to"
        for _ in range(3):
            # Said while nobody listens.
            client.tool("count")
            last, more = listen(last)
            told += more
        assert told == 3
        stranger = client.headers | BEN | {"Last-Event-ID": last}
        assert httpx.get(client.url, headers=stranger).status_code == 404


# covers: session-bounds
def test_of_a_session_s_events_a_bounded_number_is_kept(url: str) -> None:
    client = Client(url, ANA)
    params = {"name": "stream", "arguments": {"seconds": 2, "per_second": 200, "bytes": 4096}}
    sent = client.post("tools/call", params | {"_meta": {"progressToken": "p"}})
    events = data_of(sent.text)
    assert len(events) == 401
    progress = events[0]["params"]
    assert len(progress["message"]) == 4096
    assert abs(json.loads(progress["message"])["sent"] - time.time()) < 60
    kept = client.tool("replay")
    assert kept["dropped"] > 300
    assert sum(event["bytes"] for event in kept["kept"]) <= kept["at_most"]["bytes"]


# covers: session-bounds
def test_how_many_sessions_there_may_be() -> None:
    bounds = {"ECHO_MAX_SESSIONS": "3", "ECHO_MAX_SESSIONS_PER_USER": "2"}
    with running(**STATEFUL, **bounds) as url:
        first = Client(url, ANA)
        Client(url, ANA)

        def opening(user: dict[str, str]) -> int:
            return httpx.post(f"{url}/mcp", json=INITIALIZE, headers=ACCEPT | user).status_code

        assert opening(ANA) == 503, "one user takes not all places"
        assert opening(BEN) == 200
        assert opening(BEN) == 503, "all are taken"
        assert httpx.delete(first.url, headers=first.headers).is_success
        assert opening(BEN) == 200


def test_who_opens_sessions_at_once_gets_no_more_of_them() -> None:
    with running(**STATEFUL, ECHO_MAX_SESSIONS_PER_USER="3") as url:
        body = json.dumps(INITIALIZE).encode()
        links = [connect(url) for _ in range(20)]
        for link in links:
            link.sendall(head(len(body), **ANA) + body[:10])
        for link in links:
            link.sendall(body[10:])
        statuses = [answer_on(link).status for link in links]
        assert (statuses.count(200), statuses.count(503)) == (3, 17)
        for link in links:
            link.close()


def test_an_opening_that_fails_and_a_session_that_ends_leave_their_place() -> None:
    with (
        running(**STATEFUL, ECHO_MAX_SESSIONS_PER_USER="1") as url,
        # What the connection that stays open remembers of the last request takes no place.
        httpx.Client(headers=ACCEPT | ANA, timeout=30) as http,
    ):
        for _ in range(3):
            assert (
                http.post(f"{url}/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "ping"}).status_code == 400
            )
            opened = http.post(f"{url}/mcp", json=INITIALIZE)
            assert opened.status_code == 200
            assert http.post(f"{url}/mcp", json=INITIALIZE).status_code == 503
            session = {"Mcp-Session-Id": opened.headers["mcp-session-id"]}
            assert http.delete(f"{url}/mcp", headers=session).is_success


def abandon(client: Client, **arguments: Any) -> None:
    """Make a call that lasts, and go when it is under way or refused."""
    call = client.body("tools/call", {"name": "wait", "arguments": {"seconds": 600, **arguments}})
    body = json.dumps(call).encode()
    with connect(client.url.removesuffix("/mcp")) as link:
        link.sendall(head(len(body), **client.headers) + body)
        assert answer_on(link).status in (200, 503)


def refusal(client: Client, **arguments: Any) -> str | None:
    """What a call is refused with."""
    answered = client.post("tools/call", {"name": "count", "arguments": arguments})
    if answered.status_code != 200:
        return str(answered.json()["error"]["message"])
    error = data_of(answered.text)[-1].get("error")
    return str(error["message"]) if error else None


def test_calls_that_outlive_their_client_are_bounded(url: str) -> None:
    clients = [Client(url, ANA), Client(url, ANA)]
    for number in range(64):
        abandon(clients[number % 2])
    for client in clients:
        assert "too many calls" in str(refusal(client))
        assert client.post("tools/list", {}).is_success, "what is no call goes on"
    assert refusal(Client(url, BEN)) is None, "another does not notice"
    assert httpx.delete(clients[0].url, headers=clients[0].headers).is_success
    assert refusal(clients[1]) is None, "what a session had under way ends with it"
    assert httpx.delete(clients[1].url, headers=clients[1].headers).is_success


def test_the_bodies_of_calls_that_outlive_their_client_are_bounded(url: str) -> None:
    client, more = Client(url, ANA), "x" * 250_000
    for _ in range(8):
        abandon(client, more=more)
    assert refusal(client, more=more) is not None
    assert refusal(client) is None, "a small one has room"
    assert httpx.delete(client.url, headers=client.headers).is_success
    assert refusal(Client(url, ANA), more=more) is None


def test_what_sessions_keep_of_their_messages_is_bounded(url: str) -> None:
    large = {"x": "x" * 200_000}
    opening = INITIALIZE | {"params": INITIALIZE["params"] | {"_meta": large}}
    statuses = []
    for user in ({"X-Gatehouse-User": "local:eve"}, {"X-Gatehouse-User": "local:mal"}):
        for _ in range(6):
            if user["X-Gatehouse-User"] == "local:eve":
                sent = httpx.post(f"{url}/mcp", json=opening, headers=ACCEPT | user, timeout=30)
            else:
                sent = Client(url, user).post("ping", {"_meta": large})
            statuses.append(sent.status_code)
    assert statuses == [200] * 4 + [503] * 2 + [200] * 4 + [503] * 2
    Client(url, ANA)


def test_a_session_that_nobody_uses_ends() -> None:
    with running(**STATEFUL, ECHO_IDLE_SECONDS="1", ECHO_MAX_SESSIONS_PER_USER="1") as url:
        client = Client(url, ANA)
        time.sleep(2.5)
        assert client.post("tools/list", {}).status_code == 404
        assert Client(url, ANA).tool("count")["count"] == 1, "and leaves its place"


async def test_requests_of_2026_need_no_session(url: str) -> None:
    assert await call(url, "echo", "2026-07-28", ANA, text="x") == "x"
    assert json.loads(await call(url, "session", "2026-07-28", ANA))["session"] is None
    assert json.loads(await call(url, "wait", "2026-07-28", ANA, seconds=0.1)) == {"waited_seconds": 0.1}


@pytest.mark.parametrize("seconds", [-1, 901, "x", True, None])
def test_how_long_a_call_may_take_is_bounded(url: str, seconds: Any) -> None:
    client = Client(url, ANA)
    refused = client.post("tools/call", {"name": "wait", "arguments": {"seconds": seconds}})
    assert data_of(refused.text)[-1]["error"]["code"] == -32602
