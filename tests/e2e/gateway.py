"""The gateway from outside: its addresses, and plain HTTP requests to it."""

from __future__ import annotations

import json
import ssl
from types import TracebackType
from typing import Any

import httpx2

# The newest version whose requests carry everything in the body, so that each stands alone.
VERSION = "2025-06-18"


class Gateway:
    """A running gateway.

    Args:
        domain: what everything is under.
        trust: the certificates to trust.
    """

    def __init__(self, domain: str, trust: ssl.SSLContext) -> None:
        self.domain = domain
        self.issuer = f"https://auth.{domain}"
        self.echo = self.service("echo")
        self.time = self.service("time")
        self.http = httpx2.Client(verify=trust, timeout=30)

    def __enter__(self) -> Gateway:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    def service(self, name: str) -> str:
        """The address that a person pastes into a client."""
        return f"https://{name}.{self.domain}/mcp"

    def problem(self) -> str:
        """Why no test can run, or ''."""
        url = f"{self.issuer}/health"
        try:
            response = self.http.get(url)
        except httpx2.HTTPError as error:
            return f"No gateway answers at {url}: {error}. Is it rolled out, and does the name resolve?"
        return (
            ""
            if response.status_code == 200
            else f"The gateway is not well: {url} says {response.status_code}."
        )

    def post(
        self,
        url: str,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        token: str | None = None,
        headers: list[tuple[str, str]] | None = None,
    ) -> httpx2.Response:
        """One MCP request, with exactly these headers besides what MCP needs."""
        sent = [
            ("Content-Type", "application/json"),
            ("Accept", "application/json, text/event-stream"),
            ("MCP-Protocol-Version", VERSION),
            *([("Authorization", f"Bearer {token}")] if token is not None else []),
            *(headers or []),
        ]
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}
        return self.http.post(url, headers=sent, json=body)

    def call(
        self,
        url: str,
        tool: str,
        *,
        token: str,
        headers: list[tuple[str, str]] | None = None,
        **arguments: Any,
    ) -> str:
        """The text that a tool of a stateless service answers."""
        response = self.post(
            url, "tools/call", {"name": tool, "arguments": arguments}, token=token, headers=headers
        )
        assert response.status_code == 200, f"{response.status_code}: {response.text}"
        answer = message(response)
        assert "error" not in answer, answer
        text: str = answer["result"]["content"][0]["text"]
        return text


def message(response: httpx2.Response) -> dict[str, Any]:
    """The JSON-RPC message of a response, which may come as a server-sent event."""
    text = response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        text = next(line[5:] for line in text.splitlines() if line.startswith("data:") and line[5:].strip())
    decoded: dict[str, Any] = json.loads(text)
    return decoded
