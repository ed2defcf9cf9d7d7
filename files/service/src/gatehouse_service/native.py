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
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import x_mcp_header_map
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
)
from pydantic_core import from_json

from gatehouse_service import single, systemd
from gatehouse_service.budget import Budget, TooMuchError
from gatehouse_service.configuration import ServiceSettings
from gatehouse_service.tools import ToolRules, groups_of

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Context = ServerRequestContext[Any, Any]
# A tool's name, its arguments, and the request.
Call = Callable[[str, Mapping[str, Any], Context], Awaitable[CallToolResult]]
# When the request under way came, in seconds since the epoch.
ARRIVED: ContextVar[float] = ContextVar("ARRIVED")
# The largest body of a request. JSON of many small values becomes thirty times as large in memory.
BODY_LIMIT = 256 * 1024
# The bodies of all requests under way, of one user and of all.
BODIES_OF_ONE, BODIES_OF_ALL = 1024 * 1024, 4 * 1024 * 1024
# Besides the gateway's own these stand once in a request: of two, one reader takes the first and another the last.
SINGLE = frozenset({b"host", b"mcp-session-id", b"mcp-protocol-version", b"last-event-id"})


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

    async def list_tools(ctx: Context, _params: PaginatedRequestParams | None) -> ListToolsResult:
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
        body_limit: int = BODY_LIMIT,
    ) -> None:
        """See the class.

        Args:
            settings: The service's.
            server: Its tools.
            manager: The SDK's transport, where it is another than the stateless one.
            body_limit: Bytes that a request's body may have.
        """
        self._hosts = settings.hosts
        self._health = json.dumps({"status": "ok", "service": settings.service}).encode()
        self._server = server
        self._mcp = manager or StreamableHTTPSessionManager(app=server, stateless=True, json_response=True)
        self._body_limit = body_limit
        self._bodies = Budget(BODIES_OF_ONE, BODIES_OF_ALL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the application's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        headers = dict(scope["headers"])
        if len(headers) < len(scope["headers"]) and (twice := _twice(scope["headers"])):
            await refuse(send, 400, f"The header {twice} stands more than once: send it once")
        elif _hostname(headers.get(b"host", b"")) not in self._hosts:
            await reply(send, 421, b'{"error":"unknown host"}')
        elif scope["path"] == "/health":
            await reply(send, 200, self._health)
        elif scope["path"].rstrip("/") != "/mcp":
            await reply(send, 404, b'{"error":"not found; the endpoint is /mcp"}')
        else:
            ARRIVED.set(time.time())
            user = headers.get(b"x-gatehouse-user", b"").decode("latin-1")
            await self._read_and_serve(user, scope, receive, send)

    async def _read_and_serve(self, user: str, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = bytearray(), True
        try:
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    return  # the client has gone
                part, more = message.get("body", b""), message.get("more_body", False)
                if len(body) + len(part) > self._body_limit:
                    await refuse(send, 413, f"The message is larger than {self._body_limit // 1024} KiB")
                    return
                self._bodies.take(user, len(part))
                body += part
            await self.serve_mcp(scope, body, _again(body, receive), send)
        except TooMuchError:
            text = "Too much is under way: come again when some of it has ended"
            await refuse(send, 503, text, [(b"retry-after", b"1")])
        finally:
            self._bodies.give_back(user, len(body))

    async def serve_mcp(self, scope: Scope, body: bytearray, receive: Receive, send: Send) -> None:
        """Serve one request to `/mcp`, without sessions.

        Args:
            scope: ASGI's.
            body: The request's, whole.
            receive: ASGI's; it gives the body once more.
            send: ASGI's.
        """
        if scope["method"] != "POST":
            # Without sessions there is nothing to listen to (GET) and nothing to end (DELETE).
            await reply(send, 405, b'{"error":"only POST"}', [(b"allow", b"POST")])
            return
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        headers = dict(fields)
        message = _parsed(body)
        version = single.version_of(message, fields, headers)
        if version is None:
            # The SDK reads the body by itself: what it says need not be in memory twice.
            del message
            await self._mcp.handle_request(scope, receive, send)
        else:
            await reply(send, *await single.answer_one(self._server, message, headers, version))

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self._mcp.run():
            watchdog = asyncio.create_task(systemd.watchdog())
            await send({"type": "lifespan.startup.complete"})
            await receive()
            watchdog.cancel()
        await send({"type": "lifespan.shutdown.complete"})


@lru_cache(256)
def _hostname(host: bytes) -> str | None:
    """The name in a `Host` header, without a port."""
    try:
        return urlsplit(f"//{host.decode('latin-1')}").hostname
    except ValueError:
        return None


def _twice(headers: Headers) -> str | None:
    """The name of a header that stands more than once and must not."""
    seen = set()
    for name, _ in headers:
        if name in seen and (name in SINGLE or name.startswith(b"x-gatehouse-")):
            return name.decode("latin-1")
        seen.add(name)
    return None


def _parsed(body: bytearray) -> Any:
    """What a body says; None where it is no JSON."""
    try:
        return from_json(body)
    except ValueError:
        return None


def _again(body: bytearray, receive: Receive) -> Receive:
    """Gives the body, then what comes."""
    waiting = [body]

    async def again() -> MutableMapping[str, Any]:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return again


async def reply(send: Send, status: int, body: bytes, headers: Headers | None = None) -> None:
    """Answer with JSON, whole."""
    fields = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *(headers or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, status: int, text: str, headers: Headers | None = None) -> None:
    """Answer that a request is not served, before it is known which one it is."""
    code = INVALID_REQUEST if status < 500 else INTERNAL_ERROR
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": text}}
    await reply(send, status, json.dumps(error).encode(), headers)


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
