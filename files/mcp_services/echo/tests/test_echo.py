"""The service as a client sees it: a real process, real connections, every revision of the protocol."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

IDENTITY = {
    "X-Gatehouse-User": "local:ana",
    "X-Gatehouse-Name": "Ana%20Mar%C3%ADa",
    "X-Gatehouse-Email": "ana@example.com",
    "X-Gatehouse-Groups": "staff,docs%2C old",
    "X-Gatehouse-Client": "client-1",
    "X-Gatehouse-Scope": "mcp",
}
SECRETS = {
    "Authorization": "Bearer tell-no-one",
    "Cookie": "a=tell-no-one",
    "Referer": "https://app.example.com/tell-no-one?code=tell-no-one",
    **dict.fromkeys(
        (
            "Mcp-Param-Word",
            "Ocp-Apim-Subscription-Key",
            "X-Access-Key",
            "X-Amz-Signature",
            "X-Api-Key",
            "X-Auth",
            "X-Credential",
            "X-Forwarded-Uri",
            "X-Functions-Key",
            "X-Goog-IAP-JWT-Assertion",
            "X-Passwd",
            "X-Private-Key",
        ),
        "tell-no-one",
    ),
}
TOOLS = ["echo", "whoami", "headers", "token", "timing", "cors", "negotiation", "session", "health"]
ACCEPT = {"Accept": "application/json, text/event-stream"}


def environment(port: int, listen: str = "127.0.0.1:{port}", **changes: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "GATEHOUSE_LISTEN": listen.format(port=port),
        "GATEHOUSE_SERVICE": "echo",
        "GATEHOUSE_PUBLIC_URL": "https://echo.example.com/mcp",
        **changes,
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/health")
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError


@contextmanager
def running(**changes: str) -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "gatehouse_echo"], env=environment(port, **changes))
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(address)
        yield address
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running() as address:
        yield address


async def call(url: str, tool: str, mode: str, headers: dict[str, str], **arguments: Any) -> str:
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=mode) as client,
    ):
        result = await client.call_tool(tool, arguments)
        assert not result.is_error
        (content,) = result.content
        assert content.type == "text"
        return content.text


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_echo_returns_the_text(url: str, mode: str) -> None:
    assert await call(url, "echo", mode, {}, text="grüß 世界 \u2028") == "grüß 世界 \u2028"


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_whoami_shows_the_gateways_identity(url: str, mode: str) -> None:
    assert json.loads(await call(url, "whoami", mode, IDENTITY)) == {
        "user": "local:ana",
        "name": "Ana María",
        "email": "ana@example.com",
        "groups": ["staff", "docs, old"],
        "client": "client-1",
        "scope": "mcp",
    }


async def test_whoami_without_a_gateway(url: str) -> None:
    assert set(json.loads(await call(url, "whoami", "legacy", {})).values()) == {None}


# covers: tool-rules
@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_whoever_lacks_a_tool_neither_sees_nor_calls_it(mode: str) -> None:
    rules = {"deny": ["head*"], "groups": {"docs, old": ["headers"]}}
    with running(GATEHOUSE_TOOLS=json.dumps(rules)) as url:
        for headers, has in (({}, False), ({"X-Gatehouse-Groups": "docs"}, False), (IDENTITY, True)):
            async with (
                httpx2.AsyncClient(headers=headers) as http,
                Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=mode) as client,
            ):
                listed = {tool.name for tool in (await client.list_tools()).tools}
                assert listed == set(TOOLS) - (set() if has else {"headers"})
                if not has:
                    with pytest.raises(MCPError, match="Unknown tool"):
                        await client.call_tool("headers", {})
        assert json.loads(await call(url, "headers", mode, IDENTITY))["host"]


# covers: diagnostics-secret
@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_no_tool_shows_a_secret(url: str, mode: str) -> None:
    for tool in TOOLS:
        arguments = {"text": "x"} if tool == "echo" else {}
        text = await call(
            url, tool, mode, IDENTITY | SECRETS | {"Mcp-Session-Id": "tell-no-one"}, **arguments
        )
        assert "tell-no-one" not in text


# covers: diagnostics
@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_token_shows_the_claims_that_the_gateway_passes_on(url: str, mode: str) -> None:
    shown = json.loads(await call(url, "token", mode, IDENTITY))
    assert shown["claims"] == {
        "sub": "local:ana",
        "aud": "https://echo.example.com/mcp",
        "client_id": "client-1",
        "scope": "mcp",
        "name": "Ana María",
        "email": "ana@example.com",
        "groups": ["staff", "docs, old"],
    }
    assert shown["authorization_header"].startswith("absent")
    beside = json.loads(await call(url, "token", mode, SECRETS))
    assert beside["authorization_header"].startswith("present"), "the gateway is not in front"
    assert set(beside["claims"].values()) == {None}


# covers: diagnostics
@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_timing_tells_the_way_from_the_service(url: str, mode: str) -> None:
    sent = time.time() - 5
    shown = json.loads(await call(url, "timing", mode, {}, sent=sent))
    assert 5000 <= shown["on_the_way_ms"] < 60_000
    assert 0 <= shown["in_this_service_ms"] < 5000
    assert abs(datetime.fromisoformat(shown["came"]).timestamp() - sent - 5) < 60
    assert json.loads(await call(url, "timing", mode, {}))["on_the_way_ms"] is None


# covers: diagnostics
async def test_cors_says_what_an_origin_gets(url: str) -> None:
    page = json.loads(await call(url, "cors", "legacy", {"Origin": "https://app.example.com"}))
    assert (page["origin"], page["admitted"]) == ("https://app.example.com", True)
    program = json.loads(await call(url, "cors", "legacy", {}))
    assert (program["origin"], program["admitted"]) == (None, None)


# covers: diagnostics
async def test_negotiation_shows_both_sides(url: str) -> None:
    shown = json.loads(await call(url, "negotiation", "2026-07-28", {}))
    assert (shown["asked"], shown["chosen"]) == ("2026-07-28", "2026-07-28")
    assert shown["client"]["capabilities"] is not None
    assert "tools" in shown["server"]["capabilities"]
    earlier = json.loads(await call(url, "negotiation", "legacy", {}))
    assert earlier["chosen"] == earlier["asked"] == "2025-11-25"
    assert "forgotten" in earlier["explanation"]
    assert {"2024-11-05", "2026-07-28"} <= set(earlier["spoken"])


async def test_there_is_no_session_and_it_says_why(url: str) -> None:
    shown = json.loads(await call(url, "session", "legacy", {"Mcp-Session-Id": "x"}))
    assert shown["session"] is None
    assert shown["sent_a_session_id"]


# covers: diagnostics
async def test_health_says_what_runs(url: str) -> None:
    shown = json.loads(await call(url, "health", "legacy", {}))
    assert (shown["status"], shown["service"]) == ("ok", "echo")
    assert shown["mcp"].startswith("2.")
    assert shown["peak_memory_mib"] > 10


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_headers_never_shows_a_secret(url: str, mode: str) -> None:
    text = await call(url, "headers", mode, IDENTITY | SECRETS)
    assert "tell-no-one" not in text
    shown = json.loads(text)
    assert {shown[name.lower()] for name in SECRETS} == {"(redacted)"}
    assert shown["x-gatehouse-user"] == "local:ana"
    assert shown["content-type"] == "application/json"


# covers: eras
@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
def test_every_earlier_revision_is_spoken_without_a_session(url: str, version: str) -> None:
    hello = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
    answer = httpx.post(f"{url}/mcp", json=body, headers=ACCEPT)
    assert answer.json()["result"]["protocolVersion"] == version
    assert "mcp-session-id" not in answer.headers
    headers = ACCEPT | {"MCP-Protocol-Version": version}
    body = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    tools = httpx.post(f"{url}/mcp", json=body, headers=headers).json()["result"]["tools"]
    assert [tool["name"] for tool in tools] == TOOLS


def stateless(name: str, **headers: str) -> dict[str, Any]:
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": name, "arguments": {"text": "x"}, "_meta": meta}
    return {
        "json": {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params},
        "headers": ACCEPT
        | {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": name}
        | headers,
    }


# covers: header-body
def test_a_header_that_disagrees_with_the_body_is_refused(url: str) -> None:
    answer = httpx.post(f"{url}/mcp", **stateless("echo", **{"Mcp-Name": "whoami"}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32020)


# covers: header-body
def test_an_unknown_revision_is_refused(url: str) -> None:
    request = stateless("echo", **{"MCP-Protocol-Version": "2099-01-01"})
    request["json"]["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = "2099-01-01"
    answer = httpx.post(f"{url}/mcp", **request)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32022)


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"jsonrpc": "1.0"}, 400, None),
        ({"id": None}, 202, None),
        ({"id": True}, 202, None),
        ({"method": "no/such"}, 200, -32601),
        ({"params": {"name": "nothing", "arguments": {}}}, 200, -32602),
        ({"params": {"name": 1}}, 200, -32602),
        ({"params": []}, 400, None),
    ],
)
def test_what_is_wrong_with_a_request_is_said(
    url: str, changes: dict[str, Any], status: int, code: int | None
) -> None:
    body = {
        "jsonrpc": "2.0",
        "id": 7,
        "method": "tools/call",
        "params": {"name": "echo", "arguments": {}},
    } | changes
    answer = httpx.post(f"{url}/mcp", json=body, headers=ACCEPT | {"MCP-Protocol-Version": "2025-06-18"})
    assert answer.status_code == status
    if code is not None:
        assert (answer.json()["id"], answer.json()["error"]["code"]) == (7, code)


def test_what_is_no_json_or_too_long_is_refused(url: str) -> None:
    headers = ACCEPT | {"Content-Type": "application/json"}
    assert httpx.post(f"{url}/mcp", content=b"{", headers=headers).status_code == 400
    assert httpx.post(f"{url}/mcp", content=b"[" * 100_000, headers=headers).status_code == 400
    long = json.dumps({"text": "x" * 5_000_000}).encode()
    assert httpx.post(f"{url}/mcp", content=long, headers=headers).status_code == 413
    parts = (long[at : at + 65536] for at in range(0, len(long), 65536))
    assert httpx.post(f"{url}/mcp", content=parts, headers=headers).status_code == 413
    # A request in pieces is as good as a whole one.
    request = stateless("echo")
    whole = json.dumps(request["json"]).encode()
    pieces = (whole[at : at + 10] for at in range(0, len(whole), 10))
    answer = httpx.post(
        f"{url}/mcp", content=pieces, headers=request["headers"] | {"Content-Type": "application/json"}
    )
    assert answer.json()["result"]["content"][0]["text"] == "x"


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30)


def head(size: int | str, **headers: str) -> bytes:
    """The head of a request whose body comes by itself: of so many bytes, or `chunked`."""
    length = f"Content-Length: {size}" if isinstance(size, int) else f"Transfer-Encoding: {size}"
    fields = ACCEPT | {"Host": "localhost", "Content-Type": "application/json"} | headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST /mcp HTTP/1.1\r\n{length}\r\n{lines}\r\n".encode()


def answer_on(link: socket.socket) -> http.client.HTTPResponse:
    """The next answer on a connection, once its head is there; it comes in as many pieces as it likes."""
    answer = http.client.HTTPResponse(link)
    answer.begin()
    return answer


def test_a_body_has_a_limit_and_is_served_up_to_it(url: str) -> None:
    request = stateless("echo")

    def sent(length: int) -> httpx.Response:
        request["json"]["params"]["arguments"]["text"] = "x" * length
        return httpx.post(f"{url}/mcp", **request)

    assert len(sent(255 * 1024).json()["result"]["content"][0]["text"]) == 255 * 1024
    refused = sent(256 * 1024)
    assert refused.status_code == 413
    assert refused.json()["error"]["message"] == "The message is larger than 256 KiB"


def test_the_bodies_under_way_are_bounded_for_each_user_and_for_all(url: str) -> None:
    size = 200 * 1024

    def begin(user: str) -> socket.socket:
        link = connect(url)
        link.sendall(head(size, **{"X-Gatehouse-User": user}) + b"x" * (size - 1))
        return link

    def is_refused(user: str, links: list[socket.socket]) -> bool:
        links.append(begin(user))
        links[-1].settimeout(1)
        try:
            return answer_on(links[-1]).status == 503
        except TimeoutError:
            return False

    links: list[socket.socket] = []
    try:
        ana = [is_refused("ana", links) for _ in range(6)]
        assert ana == [False] * 5 + [True], "1 MiB of one user"
        request = stateless("echo")
        answer = httpx.post(
            f"{url}/mcp", json=request["json"], headers=request["headers"] | {"X-Gatehouse-User": "ben"}
        )
        assert answer.status_code == 200, "another does not notice"
        others = [is_refused(f"u{number // 5}", links) for number in range(16)]
        assert others == [False] * 15 + [True], "4 MiB of all"
    finally:
        for link in links:
            link.close()
    with connect(url) as link:
        whole = json.dumps(request["json"]).encode()
        link.sendall(head(len(whole), **request["headers"], **{"X-Gatehouse-User": "ana"}) + whole)
        assert answer_on(link).status == 200, "who has gone has nothing under way"


def test_what_comes_after_the_body_is_nobody_s_identity(url: str) -> None:
    request = stateless("whoami", **{"X-Gatehouse-User": "ana", "X-Gatehouse-Groups": "staff"})
    body = json.dumps(request["json"]).encode()
    trailers = b"X-Gatehouse-User: root\r\nX-Gatehouse-Groups: admins\r\n"
    with connect(url) as link:
        link.sendall(head("chunked", **request["headers"]))
        link.sendall(b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailers))
        who = json.loads(json.load(answer_on(link))["result"]["content"][0]["text"])
        assert (who["user"], who["groups"]) == ("ana", ["staff"])
        # The next request on the connection has a head of its own.
        link.sendall(head(len(body), **request["headers"], **{"X-Gatehouse-Name": "Ana"}) + body)
        who = json.loads(json.load(answer_on(link))["result"]["content"][0]["text"])
        assert (who["user"], who["name"], who["groups"]) == ("ana", "Ana", ["staff"])


@pytest.mark.parametrize(
    "header",
    [
        "Host",
        "Last-Event-ID",
        "MCP-Protocol-Version",
        "Mcp-Method",
        "Mcp-Name",
        "Mcp-Session-Id",
        "X-Gatehouse-Groups",
        "X-Gatehouse-User",
    ],
)
def test_a_header_that_comes_twice_is_refused(url: str, header: str) -> None:
    request = stateless("echo")
    headers = {"Host": "localhost", header: "x", **request["headers"]}
    body = json.dumps(request["json"]).encode()
    second = f"\r\n{header.lower()}: {headers[header]}\r\n\r\n".encode()
    with connect(url) as link:
        link.sendall(head(len(body), **headers).replace(b"\r\n\r\n", second) + body)
        assert answer_on(link).status == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("echo.example.com", 200),
        ("echo.example.com:8443", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:9", 200),
        ("localhost", 200),
        ("evil.example", 421),
        ("echo.example.com.evil.example", 421),
        ("localhost.evil.example", 421),
        ("[", 421),
    ],
)
def test_only_its_own_hosts_are_served(url: str, host: str, status: int) -> None:
    assert httpx.get(f"{url}/health", headers={"Host": host}).status_code == status
    assert httpx.post(f"{url}/mcp", **stateless("echo", Host=host)).status_code == status


def test_a_web_origin_is_the_gateways_business(url: str) -> None:
    answer = httpx.post(f"{url}/mcp", **stateless("echo", Origin="https://app.example.com"))
    assert answer.status_code == 200


def test_other_methods_and_paths(url: str) -> None:
    assert httpx.get(f"{url}/mcp", headers=ACCEPT).status_code == 405
    assert httpx.delete(f"{url}/mcp").status_code == 405
    assert httpx.get(f"{url}/").status_code == 404
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "service": "echo"}


def test_wrong_configuration_is_named_and_never_quoted() -> None:
    env = environment(1, GATEHOUSE_LISTEN="tell-no-one", GATEHOUSE_PUBLIC_URL="tell-no-one")
    done = subprocess.run(
        [sys.executable, "-m", "gatehouse_echo"], env=env, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 78
    assert "GATEHOUSE_LISTEN: must be an address" in done.stderr
    assert "GATEHOUSE_PUBLIC_URL: must be the URL" in done.stderr
    assert "tell-no-one" not in done.stderr + done.stdout


def test_an_address_may_come_up_later() -> None:
    """As that of WireGuard does after a boot."""
    with running(listen="127.0.0.1:{port},192.0.2.1:{port}") as url:
        assert httpx.get(f"{url}/health").status_code == 200


def test_systemd_learns_of_start_life_and_end(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(30)
        env = environment(free_port(), NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="400000")
        process = subprocess.Popen([sys.executable, "-m", "gatehouse_echo"], env=env)
        seen: list[bytes] = []
        try:
            while not {b"READY=1", b"WATCHDOG=1"} <= set(seen):
                seen.append(notify.recv(100))
            process.send_signal(signal.SIGTERM)
            while b"STOPPING=1" not in seen:
                seen.append(notify.recv(100))
            assert process.wait(10) in (0, -signal.SIGTERM)
        finally:
            process.kill()
            process.wait()
