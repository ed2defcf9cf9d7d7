"""The stateful form: what can be shown of a session only in one."""

import asyncio
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolResult,
    EmptyResult,
    ListResourcesResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    Resource,
    SubscribeRequestParams,
    TextResourceContents,
    Tool,
    ToolAnnotations,
    UnsubscribeRequestParams,
)

from gatehouse_echo.sessions import CURRENT, MAX_BYTES, MAX_EVENTS, Session
from gatehouse_echo.tools import INSTRUCTIONS, READ_ONLY, TOOLS, VERSION, as_text, caller, takes
from gatehouse_service.configuration import ServiceSettings
from gatehouse_service.native import Context, answer, tool_server

COUNTER = "session://counter"
MAX_WAIT_SECONDS = 900
MAX_EVENT_BYTES = 64 * 1024
MAX_EVENTS_A_SECOND = 200
_SECONDS = {"type": "number", "minimum": 0, "maximum": MAX_WAIT_SECONDS}

STATEFUL_TOOLS = [
    *TOOLS,
    Tool(
        name="count",
        description=f"Adds one to the session's counter, and tells who has subscribed to {COUNTER}.",
        input_schema=takes(),
        annotations=ToolAnnotations(destructive_hint=False, open_world_hint=False),
    ),
    Tool(
        name="replay",
        description="Shows which events of the session are kept to be sent again to a GET with Last-Event-ID.",
        input_schema=takes(),
        annotations=READ_ONLY,
    ),
    Tool(
        name="wait",
        description="Answers after a while, for finding what cuts long calls off.",
        input_schema=takes(seconds=_SECONDS),
        annotations=READ_ONLY,
    ),
    Tool(
        name="stream",
        description="Sends events with the time of their sending as progress of the call, for finding what holds streams back.",
        input_schema=takes(
            seconds=_SECONDS,
            per_second={"type": "integer", "minimum": 1, "maximum": MAX_EVENTS_A_SECOND, "default": 10},
            bytes={"type": "integer", "minimum": 64, "maximum": MAX_EVENT_BYTES, "default": 64},
        ),
        annotations=READ_ONLY,
    ),
    Tool(
        name="disconnect",
        description="Closes the call's own stream before it answers; a client of 2025-11-25 resumes it by Last-Event-ID.",
        input_schema=takes(),
        annotations=READ_ONLY,
    ),
]


def described(session: Session) -> dict[str, Any]:
    """A session without its id, which whoever asks knows, and nobody else should read."""
    return {
        "owner": session.owner,
        "opened": datetime.fromtimestamp(session.opened, UTC).isoformat(timespec="seconds"),
        "requests": session.requests,
        "count": session.count,
        "subscribed": sorted(session.subscribed),
    }


def replay(session: Session) -> dict[str, Any]:
    """What is kept. An id without its random part is enough to tell events apart."""
    return {
        "kept": [
            {"event": int(event.id.rpartition("-")[2]), "stream": event.stream, "bytes": event.size}
            for event in session.events
        ],
        "dropped": session.dropped,
        "at_most": {"events": MAX_EVENTS, "bytes": MAX_BYTES},
    }


async def _stream(ctx: Context, seconds: float, per_second: int, size: int) -> dict[str, Any]:
    begun, sent = time.monotonic(), 0
    total = int(seconds * per_second)
    padding = "." * size
    while sent < total:
        await asyncio.sleep(max(0.0, begun + sent / per_second - time.monotonic()))
        text = json.dumps({"sent": time.time(), "padding": ""})
        await ctx.session.report_progress(sent + 1, total, text[:-2] + padding[len(text) :] + '"}')
        sent += 1
    return {"events": sent, "seconds": round(time.monotonic() - begun, 3)}


def _number(
    arguments: Mapping[str, Any], name: str, lowest: float, highest: float, default: float | None
) -> float:
    value = arguments.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
        raise MCPError(
            code=INVALID_PARAMS,
            message=f"The argument {name} must be a number from {lowest:g} to {highest:g}",
        )
    return value


def create_stateful_server(settings: ServiceSettings) -> Server[Any]:
    """The MCP server with sessions."""
    plain = caller(settings, lambda: server)

    async def call(name: str, arguments: Mapping[str, Any], ctx: Context) -> CallToolResult:
        session = CURRENT.get()
        if name == "wait":
            seconds = _number(arguments, "seconds", 0, MAX_WAIT_SECONDS, None)
            await asyncio.sleep(seconds)
            return as_text({"waited_seconds": seconds})
        if name == "stream":
            return as_text(
                await _stream(
                    ctx,
                    _number(arguments, "seconds", 0, MAX_WAIT_SECONDS, None),
                    int(_number(arguments, "per_second", 1, MAX_EVENTS_A_SECOND, 10)),
                    int(_number(arguments, "bytes", 64, MAX_EVENT_BYTES, 64)),
                )
            )
        if name not in ("session", "count", "replay", "disconnect"):
            return await plain(name, arguments, ctx)
        if session is None:
            if name == "session":
                return await plain(name, arguments, ctx)
            return answer("2026-07-28 has no sessions.", failed=True)
        if name == "count":
            session.count += 1
            if COUNTER in session.subscribed:
                await ctx.session.send_resource_updated(COUNTER)
            return as_text({"count": session.count})
        if name == "disconnect":
            if ctx.close_sse_stream is None:
                return answer(
                    "This client's revision is older than 2025-11-25: it could not resume.", failed=True
                )
            await ctx.close_sse_stream()
            # The client is gone before the answer is sent; it is kept for it.
            await asyncio.sleep(0.1)
            return as_text({"disconnected": True})
        return as_text(described(session) if name == "session" else replay(session))

    async def list_resources(_ctx: Context, _params: PaginatedRequestParams | None) -> ListResourcesResult:
        return ListResourcesResult(
            resources=[Resource(uri=COUNTER, name="counter", description="The session's counter")]
        )

    async def read_resource(_ctx: Context, params: ReadResourceRequestParams) -> ReadResourceResult:
        session = _session_for(params.uri)
        return ReadResourceResult(contents=[TextResourceContents(uri=COUNTER, text=str(session.count))])

    async def subscribe(_ctx: Context, params: SubscribeRequestParams) -> EmptyResult:
        _session_for(params.uri).subscribed.add(COUNTER)
        return EmptyResult()

    async def unsubscribe(_ctx: Context, params: UnsubscribeRequestParams) -> EmptyResult:
        _session_for(params.uri).subscribed.discard(COUNTER)
        return EmptyResult()

    server = tool_server(
        "gatehouse-echo-stateful",
        version=VERSION,
        title="Gatehouse echo, stateful",
        instructions=INSTRUCTIONS,
        tools=STATEFUL_TOOLS,
        call=call,
        rules=settings.tools,
        on_list_resources=list_resources,
        on_read_resource=read_resource,
        on_subscribe_resource=subscribe,
        on_unsubscribe_resource=unsubscribe,
    )
    return server


def _session_for(uri: Any) -> Session:
    session = CURRENT.get()
    if session is None or str(uri) != COUNTER:
        raise MCPError(code=INVALID_PARAMS, message=f"The only resource is {COUNTER}, in a session")
    return session
