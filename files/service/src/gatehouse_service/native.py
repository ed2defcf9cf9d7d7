"""What native MCP services have in common: tools on the SDK's low-level server, `/mcp` and `/health`, and logs.

One endpoint serves every revision: 2026-07-28, and the earlier ones without sessions. For services whose environment
has the MCP SDK.
"""

import asyncio
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import DEFAULT_MAX_REQUEST_BODY_SIZE
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import x_mcp_header_map
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
)
from pydantic_core import from_json

from gatehouse_service import single, systemd
from gatehouse_service.configuration import ServiceSettings
from gatehouse_service.tools import ToolRules, groups_of

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Context = ServerRequestContext[Any, Any]
# A tool's name, its arguments, and the request.
Call = Callable[[str, Mapping[str, Any], Context], Awaitable[CallToolResult]]
# When the request under way came, in seconds since the epoch.
ARRIVED: ContextVar[float] = ContextVar("ARRIVED")


def answer(text: str, *, failed: bool = False) -> CallToolResult:
    """A tool's answer; `failed` where it says what went wrong."""
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=failed)


def headers_of(ctx: Context) -> Mapping[str, str]:
    """The headers of a request, by their names in lower case."""
    headers: Mapping[str, str] = ctx.request.headers if ctx.request is not None else {}
    return headers


def tool_server(
    name: str,
    *,
    version: str,
    title: str,
    instructions: str,
    tools: Sequence[Tool],
    call: Call,
    rules: ToolRules,
    **handlers: Any,
) -> Server[Any]:
    """The MCP server of some tools.

    Args:
        name: As a client's developer knows it.
        version: The service's own.
        title: As people read it.
        instructions: What a model learns of the service.
        tools: The tools.
        call: Does what one of them does; it is asked for no other.
        rules: Who has which tool. Whoever lacks one neither sees nor calls it.
        handlers: Of what is no tool, as the SDK's `Server` takes them.

    Raises:
        ValueError: a tool's schema has `x-mcp-header`.
    """
    known = {tool.name: tool for tool in tools}
    if any(x_mcp_header_map(tool.input_schema) for tool in tools):
        raise ValueError("no tool may take an argument from a header: `single` does not compare them")

    def has(ctx: Context, tool: str) -> bool:
        return rules.permits(groups_of(headers_of(ctx).get("x-gatehouse-groups", "")), tool)

    async def list_tools(
        ctx: Context, _params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return ListToolsResult(tools=[tool for tool in tools if has(ctx, tool.name)])

    async def call_tool(ctx: Context, params: CallToolRequestParams) -> CallToolResult:
        if params.name not in known or not has(ctx, params.name):
            raise MCPError(code=INVALID_PARAMS, message="Unknown tool")
        return await call(params.name, params.arguments or {}, ctx)

    server: Server[Any] = Server(
        name,
        version=version,
        title=title,
        instructions=instructions,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        # So that the SDK need not list the tools for each call.
        get_tool_input_schema=lambda tool: known[tool].input_schema if tool in known else None,
        **handlers,
    )
    # The SDK's spans cost a quarter of a request; nothing in these environments would take them.
    server.middleware.clear()
    return server


class App:
    """The ASGI application: `/mcp` by the SDK, `/health`, and nothing else.

    It refuses no one: who may call it is decided in front of it. The host is checked here and not by the SDK, which
    would refuse web origins too that the gateway admits.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        server: Server[Any],
        manager: StreamableHTTPSessionManager | None = None,
    ) -> None:
        """See the class.

        Args:
            settings: The service's.
            server: Its tools.
            manager: The SDK's transport, where it is another than the stateless one.
        """
        self._hosts = settings.hosts
        self._health = json.dumps({"status": "ok", "service": settings.service}).encode()
        self._server = server
        self._mcp = manager or StreamableHTTPSessionManager(app=server, stateless=True, json_response=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the application's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif not self._host_is_ours(scope):
            await reply(send, 421, b'{"error":"unknown host"}')
        elif scope["path"] == "/health":
            await reply(send, 200, self._health)
        elif scope["path"].rstrip("/") != "/mcp":
            await reply(send, 404, b'{"error":"not found; the endpoint is /mcp"}')
        else:
            ARRIVED.set(time.time())
            await self.serve_mcp(scope, receive, send)

    async def serve_mcp(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request to `/mcp`, without sessions."""
        if scope["method"] != "POST":
            # Without sessions there is nothing to listen to (GET) and nothing to end (DELETE).
            await reply(send, 405, b'{"error":"only POST"}', [(b"allow", b"POST")])
            return
        read, body = await _read(receive)
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        headers = dict(fields)
        version = single.version_of(body, fields, headers)
        if version is None:
            await self._mcp.handle_request(scope, _again(read, receive), send)
        else:
            await reply(send, *await single.answer_one(self._server, body, headers, version))

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self._mcp.run():
            watchdog = asyncio.create_task(systemd.watchdog())
            await send({"type": "lifespan.startup.complete"})
            await receive()
            watchdog.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    def _host_is_ours(self, scope: Scope) -> bool:
        return (
            _hostname(next((value for name, value in scope["headers"] if name == b"host"), b""))
            in self._hosts
        )


@lru_cache(256)
def _hostname(host: bytes) -> str | None:
    """The name in a `Host` header, without a port."""
    try:
        return urlsplit(f"//{host.decode('latin-1')}").hostname
    except ValueError:
        return None


async def _read(receive: Receive) -> tuple[list[MutableMapping[str, Any]], Any]:
    """What came of a body, and what it says; None where it is too long, is cut off, or is no JSON."""
    read, size = [], 0
    while size <= DEFAULT_MAX_REQUEST_BODY_SIZE:
        read.append(message := await receive())
        size += len(message.get("body", b""))
        if message["type"] != "http.request":
            break
        if not message.get("more_body"):
            if size > DEFAULT_MAX_REQUEST_BODY_SIZE:
                break
            try:
                return read, from_json(b"".join(part["body"] for part in read))
            except ValueError:
                break
    return read, None


def _again(read: list[MutableMapping[str, Any]], receive: Receive) -> Receive:
    """Gives what was read once more, then what comes."""
    waiting = iter(read)

    async def again() -> MutableMapping[str, Any]:
        for message in waiting:
            return message
        return await receive()

    return again


async def reply(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """Answer with JSON, whole."""
    fields = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *(headers or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


class _JsonFormatter(logging.Formatter):
    """One JSON object a line. Of an exception only its type: its text could quote a request."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.name,
            "service": self._service,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0]:
            fields["error"] = record.exc_info[0].__name__
        return json.dumps(fields)


def log_to_stdout(service: str) -> None:
    """Log what is at least a warning, one JSON object a line."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonFormatter(service))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
