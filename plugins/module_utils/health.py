# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The three tiers of health: the unit is up, its HTTP endpoint answers, the protocol answers.

Runs on the host with nothing but the standard library.
"""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import time
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

PROTOCOL_VERSION = "2025-06-18"
REQUEST_SECONDS = 5.0
BODY_MAX = 4 * 1024 * 1024


class Unhealthy(Exception):
    """A check failed; the message says how."""


def show(unit: str, *properties: str) -> dict[str, str]:
    """Properties of a unit, as `systemctl show` gives them."""
    run = subprocess.run(
        ["systemctl", "show", unit, "--property", ",".join(properties)],
        capture_output=True,
        text=True,
        check=False,
    )
    return dict(line.split("=", 1) for line in run.stdout.splitlines() if "=" in line)


def check_unit(unit: str) -> None:
    """The unit is active.

    Raises:
        Unhealthy: It is not.
    """
    state = show(unit, "ActiveState", "SubState", "Result", "NRestarts")
    if state.get("ActiveState") != "active":
        raise Unhealthy(f"{state.get('ActiveState')} ({state.get('SubState')}), result {state.get('Result')}")


def is_lost(unit: str) -> bool:
    """Whether waiting is pointless: the unit has failed, or has been restarted twice since it was started."""
    state = show(unit, "ActiveState", "NRestarts")
    return state.get("ActiveState") == "failed" or int(state.get("NRestarts") or 0) >= 2


class Client:
    """HTTP to one origin, over TLS with the front door's name where `connect` says where it really is.

    Args:
        url: What is asked.
        connect: Host and port to connect to instead of the URL's.
        ca_file: Roots in PEM; without it the system's.
        headers: Sent with every request.
    """

    def __init__(
        self,
        url: str,
        connect: tuple[str, int] | None = None,
        ca_file: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        self.host = parts.netloc
        self.path = parts.path + (f"?{parts.query}" if parts.query else "")
        self.headers = dict(headers or {})
        self.secure = parts.scheme == "https"
        self.name = parts.hostname or ""
        self.connect = connect or (self.name, parts.port or (443 if self.secure else 80))
        self.context = ssl.create_default_context(cafile=ca_file) if self.secure else None

    def request(
        self, method: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, bytes]:
        """Send one request; return status, headers and body. A body in an event stream ends with its first answer.

        Raises:
            Unhealthy: No answer.
        """
        connection = http.client.HTTPConnection(*self.connect, timeout=REQUEST_SECONDS)
        try:
            connection.connect()
            if self.context is not None:
                connection.sock = self.context.wrap_socket(connection.sock, server_hostname=self.name)
            data = None if body is None else json.dumps(body).encode()
            sent = {"Host": self.host, **self.headers, **(headers or {})}
            if data is not None:
                sent |= {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
            connection.request(method, self.path, body=data, headers=sent)
            response = connection.getresponse()
            if (response.headers.get_content_type()) == "text/event-stream":
                return response.status, response.headers, self.first_answer(response)
            return response.status, response.headers, response.read(BODY_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise Unhealthy(f"{method} {self.host}{self.path}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()

    @staticmethod
    def first_answer(response: http.client.HTTPResponse) -> bytes:
        """The first JSON-RPC response of an event stream."""
        for line in response:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data and b'"id"' in data and b'"method"' not in data:
                    return data
        return b""


def check_http(client: Client) -> None:
    """`GET` answers 200.

    Raises:
        Unhealthy: It does not.
    """
    status, _headers, body = client.request("GET")
    if status != 200:
        raise Unhealthy(
            f"GET {client.host}{client.path}: status {status}: {body[:300].decode(errors='replace')}"
        )


def check_mcp(client: Client) -> list[str]:
    """An MCP client can connect: `initialize`, `notifications/initialized`, `tools/list`.

    Returns:
        The names of the tools.

    Raises:
        Unhealthy: Any step fails.
    """
    hello = {
        "protocolVersion": PROTOCOL_VERSION,
        "capabilities": {},
        "clientInfo": {"name": "gatehouse-health", "version": "1"},
    }
    session: dict[str, str] = {"MCP-Protocol-Version": PROTOCOL_VERSION}
    result, headers = _call(client, 1, "initialize", hello, session)
    session["MCP-Protocol-Version"] = str(result.get("protocolVersion", PROTOCOL_VERSION))
    if headers.get("Mcp-Session-Id"):
        session["Mcp-Session-Id"] = headers["Mcp-Session-Id"]
    try:
        client.request("POST", {"jsonrpc": "2.0", "method": "notifications/initialized"}, session)
        result, _ = _call(client, 2, "tools/list", {}, session)
        return sorted(str(tool.get("name")) for tool in result.get("tools", []))
    finally:
        if "Mcp-Session-Id" in session:
            client.request("DELETE", headers=session)


def _call(
    client: Client, number: int, method: str, params: Any, headers: Mapping[str, str]
) -> tuple[dict[str, Any], Any]:
    status, answered, body = client.request(
        "POST", {"jsonrpc": "2.0", "id": number, "method": method, "params": params}, headers
    )
    if status != 200:
        raise Unhealthy(f"{method}: status {status}: {body[:300].decode(errors='replace')}")
    try:
        message = json.loads(body)
        return dict(message["result"]), answered
    except (ValueError, KeyError, TypeError) as error:
        raise Unhealthy(f"{method}: no result: {body[:300].decode(errors='replace')}") from error


def run_check(check: Mapping[str, Any], unit: str, port: int) -> None:
    """Run one check of a component once.

    Args:
        check: `kind` is `unit`, `http` or `mcp`; `url` may hold `@PORT@`.
        unit: The component's unit.
        port: The slot's port.

    Raises:
        Unhealthy: It fails.
    """
    if check["kind"] == "unit":
        check_unit(unit)
        return
    client = Client(str(check["url"]).replace("@PORT@", str(port)))
    if check["kind"] == "http":
        check_http(client)
    else:
        check_mcp(client)


def wait_healthy(checks: Iterable[Mapping[str, Any]], unit: str, port: int) -> tuple[str, str] | None:
    """Wait until every check passes, in order.

    Returns:
        None, or the name of the check that did not pass within its `timeout` (seconds) and what it said last.
    """
    for check in checks:
        deadline = time.monotonic() + float(check["timeout"])
        while True:
            try:
                run_check(check, unit, port)
                break
            except Unhealthy as fault:
                if time.monotonic() > deadline or is_lost(unit):
                    return str(check["name"]), str(fault)
                time.sleep(0.1)
    return None
