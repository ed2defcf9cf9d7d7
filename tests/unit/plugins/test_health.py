"""Health checks, against a real HTTP server on loopback."""

from __future__ import annotations

import http.server
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.gatehouse.mcp.plugins.module_utils import health
from ansible_collections.gatehouse.mcp.plugins.module_utils.health import (
    Client,
    Lost,
    Unhealthy,
    check_http,
    check_mcp,
    check_unit,
    wait_healthy,
)


class Handler(http.server.BaseHTTPRequestHandler):
    stream = False
    sessions = True
    end_status = 200
    personal = False
    seen: list[tuple[str, Any]]

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()
        self.wfile.write(b"no")

    def do_DELETE(self) -> None:
        self.seen.append(("DELETE", self.headers.get("Mcp-Session-Id")))
        self.send_response(self.end_status)
        self.end_headers()

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((message["method"], self.headers.get("Mcp-Session-Id")))
        if "id" not in message:
            self.send_response(202)
            self.end_headers()
            return
        result = (
            {"protocolVersion": "2025-06-18"}
            if message["method"] == "initialize"
            else {"tools": [{"name": "t", "inputSchema": {"properties": {"method": {}}}}]}
        )
        outcome = (
            {"error": {"code": -32603, "message": "You have no TOKEN", "data": {"reason": "no_credentials"}}}
            if self.personal
            else {"result": result}
        )
        data = json.dumps({"jsonrpc": "2.0", "id": message["id"], **outcome})
        self.send_response(200)
        if message["method"] == "initialize" and self.sessions:
            self.send_header("Mcp-Session-Id", "s1")
        self.send_header("Content-Type", "text/event-stream" if self.stream else "application/json")
        self.end_headers()
        if not self.stream:
            self.wfile.write(data.encode())
            return
        before = (
            ": a comment\r\n\r\n"
            'data: {"jsonrpc":"2.0","method":"notifications/message"}\n\n'
            f'event: message\ndata: {{"jsonrpc":"2.0","id":{message["id"]},"method":"ping"}}\n\n'
            'data: {"jsonrpc":"2.0","id":99,"result":{}}\n\n'
        )
        first, second = data[:20].rpartition(",")[::2]
        self.wfile.write(f"{before}data: {first},\ndata:{second}{data[20:]}\n\n".encode())


@pytest.fixture(params=[False, True], ids=["json", "stream"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    handler = type("One", (Handler,), {"stream": request.param, "seen": []})
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", handler.seen
    httpd.shutdown()
    httpd.server_close()


def test_http(server: tuple[str, Any]) -> None:
    check_http(Client(server[0] + "/health"))
    with pytest.raises(Unhealthy, match="status 503"):
        check_http(Client(server[0] + "/other"))


def test_the_handshake_lists_tools_and_ends_its_session(server: tuple[str, Any]) -> None:
    url, seen = server
    assert check_mcp(Client(url + "/mcp")) == ["t"]
    assert seen == [
        ("initialize", None), ("notifications/initialized", "s1"), ("tools/list", "s1"), ("DELETE", "s1"),
    ]  # fmt: skip


def test_a_service_that_asks_for_ones_own_credentials_is_well(
    server: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "personal", True)
    assert check_mcp(Client(server[0] + "/mcp")) == []
    assert [method for method, _ in server[1]] == ["initialize"]


def test_a_server_that_keeps_its_sessions_is_well(
    server: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "end_status", 405)
    assert check_mcp(Client(server[0] + "/mcp")) == ["t"]


def test_nothing_listens() -> None:
    with pytest.raises(Unhealthy, match="ConnectionRefused"):
        check_http(Client("http://127.0.0.1:9/health"))


def test_a_stream_without_an_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "REQUEST_SECONDS", 0.1)

    class Endless(io.RawIOBase):
        def readline(self, size: int | None = -1) -> bytes:
            return b": still here\n"

    assert health.stream_answer(Endless(), 1) == b""
    assert health.stream_answer(io.BytesIO(b"data: not json\n\ndata: [1]"), 1) == b""


UP = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "Result": "success",
    "NRestarts": "0",
}


@pytest.fixture
def unit(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    state = dict(UP)
    monkeypatch.setattr(health, "show", lambda unit, *properties: state)
    return state


@pytest.mark.parametrize(
    ("change", "said", "lost"),
    [
        (
            {"ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code"},
            "auto-restart",
            False,
        ),
        ({"ActiveState": "activating", "NRestarts": "2"}, "activating", True),
        ({"ActiveState": "failed", "Result": "exit-code"}, "result exit-code", True),
        ({"ActiveState": "inactive", "LoadState": "bad-setting"}, "bad-setting", True),
    ],
)
def test_units(unit: dict[str, str], change: dict[str, str], said: str, lost: bool) -> None:
    assert check_unit("x.service") == 0
    unit.update(change)
    with pytest.raises(Unhealthy, match=said) as fault:
        check_unit("x.service")
    assert isinstance(fault.value, Lost) is lost


def test_waiting_ends_and_names_the_check(server: tuple[str, Any], unit: dict[str, str]) -> None:
    checks = [{"name": "http", "kind": "http", "url": server[0] + "/other", "timeout": 1}]
    failed = wait_healthy(checks, "x.service", 0)
    assert failed is not None and failed[0] == "http" and "503" in failed[1]
    checks[0]["url"] = server[0].rpartition(":")[0] + ":@PORT@/health"
    assert wait_healthy(checks, "x.service", int(server[0].rpartition(":")[2])) is None


def test_waiting_ends_early_for_a_unit_that_will_not_come_up(unit: dict[str, str]) -> None:
    checks = [{"name": "http", "kind": "http", "url": "http://127.0.0.1:9/", "timeout": 60}]
    unit["NRestarts"] = "2"
    failed = wait_healthy(checks, "x.service", 0)
    assert failed is not None and "does not stay up" in failed[1]
    unit["ActiveState"] = "failed"
    assert wait_healthy(checks, "x.service", 0) is not None


def test_what_another_process_answers_does_not_count(server: tuple[str, Any], unit: dict[str, str]) -> None:
    unit["ActiveState"] = "failed"
    checks = [{"name": "http", "kind": "http", "url": server[0] + "/health", "timeout": 60}]
    assert wait_healthy(checks, "x.service", 0) == ("http", "failed (running), result success, restarts 0")
