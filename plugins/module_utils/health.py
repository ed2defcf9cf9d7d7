# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The three tiers of health: the unit is up, its HTTP endpoint answers, the protocol answers.

Runs on the host with nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import subprocess
import time
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import IO, Any

PROTOCOL_VERSION = "2025-06-18"
REQUEST_SECONDS = 5.0
BODY_MAX = 4 * 1024 * 1024
# While a start is watched: more restarts than this are no accident.
RESTARTS = 2
FIRST_PAUSE, LAST_PAUSE = 0.05, 0.5


class Unhealthy(Exception):
    """A check failed; the message says how."""


class Lost(Unhealthy):
    """A check failed, and waiting is pointless."""


class Personal(Unhealthy):
    """The bridge answers, and says that whoever asks has no credentials of his own for the service."""


def show(unit: str, *properties: str) -> dict[str, str]:
    """Properties of a unit, as `systemctl show` gives them."""
    run = subprocess.run(
        ["systemctl", "show", unit, "--property", ",".join(properties)],
        capture_output=True,
        text=True,
        check=False,
    )
    return dict(line.split("=", 1) for line in run.stdout.splitlines() if "=" in line)


def check_unit(unit: str) -> int:
    """The unit is active.

    Returns:
        How often systemd has restarted it.

    Raises:
        Lost: It has failed, or cannot be loaded.
        Unhealthy: It is not active.
    """
    state = show(unit, "LoadState", "ActiveState", "SubState", "Result", "NRestarts")
    load, active = state.get("LoadState", "unknown"), state.get("ActiveState", "unknown")
    if active != "active" and load != "loaded":
        raise Lost(f"systemd cannot load it: {load}")
    restarts = int(state.get("NRestarts") or 0)
    if active != "active":
        said = f"{active} ({state.get('SubState')}), result {state.get('Result')}, restarts {restarts}"
        raise Lost(said) if active == "failed" or restarts >= RESTARTS else Unhealthy(said)
    return restarts


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
        if self.context is not None and ca_file:
            # An operator's own chain may end below its root.
            self.context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN

    def request(
        self, method: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, bytes]:
        """Send one request; return status, headers and body.

        Of an event stream, the body is the answer to the JSON-RPC request that `body` is.

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
            if response.headers.get_content_type() == "text/event-stream":
                return response.status, response.headers, stream_answer(response, (body or {}).get("id"))
            return response.status, response.headers, response.read(BODY_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise Unhealthy(f"{method} {self.host}{self.path}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()


def stream_answer(stream: IO[bytes], number: Any) -> bytes:
    """The JSON-RPC response with this id in an event stream (HTML, «Server-sent events»), or nothing.

    A server may send requests and notifications before it, for `REQUEST_SECONDS` in all.
    """
    deadline = time.monotonic() + REQUEST_SECONDS
    data: list[bytes] = []
    size = 0
    while size < BODY_MAX and time.monotonic() < deadline:
        line = stream.readline(BODY_MAX)
        size += len(line)
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif not line.strip():
            event = b"\n".join(data)
            with contextlib.suppress(ValueError):
                message = json.loads(event)
                if isinstance(message, dict) and message.get("id") == number and "method" not in message:
                    return event
            data = []
            if not line:
                break
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
        The names of the tools; none where only people with credentials of their own have any.

    Raises:
        Unhealthy: Any step fails.
    """
    hello = {
        "protocolVersion": PROTOCOL_VERSION,
        "capabilities": {},
        "clientInfo": {"name": "gatehouse-health", "version": "1"},
    }
    session: dict[str, str] = {"MCP-Protocol-Version": PROTOCOL_VERSION}
    try:
        result, headers = _call(client, 1, "initialize", hello, session)
    except Personal:
        return []
    session["MCP-Protocol-Version"] = str(result.get("protocolVersion", PROTOCOL_VERSION))
    if headers.get("Mcp-Session-Id"):
        session["Mcp-Session-Id"] = headers["Mcp-Session-Id"]
    try:
        status, _headers, body = client.request(
            "POST", {"jsonrpc": "2.0", "method": "notifications/initialized"}, session
        )
        if status not in (200, 202, 204):
            raise Unhealthy(
                f"notifications/initialized: status {status}: {body[:300].decode(errors='replace')}"
            )
        result, _ = _call(client, 2, "tools/list", {}, session)
        return sorted(str(tool.get("name")) for tool in result.get("tools", []))
    finally:
        if "Mcp-Session-Id" in session:
            # A server may refuse to have its sessions ended (405).
            with contextlib.suppress(Unhealthy):
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
        if message.get("error", {}).get("data", {}).get("reason") == "no_credentials":
            raise Personal(f"{method}: no credentials")
        return dict(message["result"]), answered
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unhealthy(f"{method}: no result: {body[:300].decode(errors='replace')}") from error


def run_check(check: Mapping[str, Any], unit: str, port: int) -> None:
    """Run one check of a component once.

    Args:
        check: `kind` is `unit`, `http` or `mcp`; `url` may hold `@PORT@`; `host` is asked for, where it is not the URL's.
        unit: The component's unit.
        port: The slot's port.

    Raises:
        Unhealthy: It fails.
    """
    if check["kind"] == "unit":
        check_unit(unit)
        return
    headers = {"Host": str(check["host"])} if check.get("host") else {}
    client = Client(str(check["url"]).replace("@PORT@", str(port)), headers=headers)
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
        pause = FIRST_PAUSE
        while (fault := _attempt(check, unit, port)) is not None:
            if isinstance(fault, Lost) or time.monotonic() > deadline:
                return str(check["name"]), str(fault)
            time.sleep(pause)
            pause = min(pause * 1.5, LAST_PAUSE)
    return None


def _attempt(check: Mapping[str, Any], unit: str, port: int) -> Unhealthy | None:
    fault: Unhealthy | None = None
    if check["kind"] != "unit":
        try:
            run_check(check, unit, port)
        except Unhealthy as error:
            fault = error
    # Afterwards: what answered may have been another process on the unit's port.
    try:
        restarts = check_unit(unit)
    except Unhealthy as error:
        return error
    return Lost(f"it starts, but does not stay up: {fault}") if fault and restarts >= RESTARTS else fault
