"""Health checks, against a real HTTP server on loopback."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.gatehouse.mcp.plugins.module_utils.health import (
    Client,
    Unhealthy,
    check_http,
    check_mcp,
    wait_healthy,
)


class Handler(http.server.BaseHTTPRequestHandler):
    stream = False
    sessions = True
    seen: list[tuple[str, Any]]

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()
        self.wfile.write(b"no")

    def do_DELETE(self) -> None:
        self.seen.append(("DELETE", self.headers.get("Mcp-Session-Id")))
        self.send_response(200)
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
            else {"tools": [{"name": "t"}]}
        )
        data = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result})
        self.send_response(200)
        if message["method"] == "initialize" and self.sessions:
            self.send_header("Mcp-Session-Id", "s1")
        self.send_header("Content-Type", "text/event-stream" if self.stream else "application/json")
        self.end_headers()
        note = 'data: {"jsonrpc":"2.0","method":"notifications/message"}\n\n'
        self.wfile.write((f"{note}data: {data}\n\n" if self.stream else data).encode())


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


def test_nothing_listens() -> None:
    with pytest.raises(Unhealthy, match="ConnectionRefused"):
        check_http(Client("http://127.0.0.1:9/health"))


def test_waiting_ends_and_names_the_check(server: tuple[str, Any]) -> None:
    checks = [{"name": "http", "kind": "http", "url": server[0] + "/other", "timeout": 0.2}]
    failed = wait_healthy(checks, "no-such-unit.service", 0)
    assert failed is not None and failed[0] == "http" and "503" in failed[1]
    checks[0]["url"] = server[0] + "/health"
    assert wait_healthy(checks, "no-such-unit.service", 0) is None
