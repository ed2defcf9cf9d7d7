"""The tools, on the SDK's low-level server: what they are, and what they do."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

from gatehouse_service.tools import ToolRules, groups_of

VERSION = "0.1.0"
REDACTED = "(redacted)"
# Parts of the names of headers whose values are nobody's business. The gateway takes a client's Authorization away;
# this holds where it does not stand in front.
SECRET_PARTS = ("authorization", "cookie", "token", "secret", "password", "api-key", "apikey", "session-id")
IDENTITY = ("user", "name", "email", "client", "scope")

_READ_ONLY = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
_NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = [
    Tool(
        name="echo",
        description="Returns the text that it is given.",
        input_schema={
            "type": "object",
            "properties": {"text": {"type": "string", "description": "What to return"}},
            "required": ["text"],
            "additionalProperties": False,
        },
        annotations=_READ_ONLY,
    ),
    Tool(
        name="whoami",
        description="Shows who the caller is, as the gateway tells this service.",
        input_schema=_NOTHING,
        annotations=_READ_ONLY,
    ),
    Tool(
        name="headers",
        description="Shows the headers of the request as they reached this service, without secrets.",
        input_schema=_NOTHING,
        annotations=_READ_ONLY,
    ),
]


def whoami(headers: Mapping[str, str]) -> dict[str, Any]:
    """The identity that the gateway vouches for; all null where it does not stand in front.

    What a header cannot carry is percent-encoded in it, and so is a comma within the name of a group.
    """
    found = {name: headers.get(f"x-gatehouse-{name}") for name in (*IDENTITY, "groups")}
    groups = found.pop("groups")
    return {
        **{name: None if value is None else unquote(value) for name, value in found.items()},
        "groups": None if groups is None else [unquote(group) for group in groups.split(",") if group],
    }


def shown(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers, with the values of secret ones blotted out."""
    return {
        name: REDACTED if any(part in name.lower() for part in SECRET_PARTS) else value
        for name, value in headers.items()
    }


def headers_of(ctx: ServerRequestContext[Any, Any]) -> Mapping[str, str]:
    """The headers of a request."""
    return ctx.request.headers if ctx.request is not None else {}


async def call_tool(ctx: ServerRequestContext[Any, Any], params: CallToolRequestParams) -> CallToolResult:
    """`tools/call`.

    Raises:
        MCPError: there is no such tool.
    """
    headers = headers_of(ctx)
    arguments = params.arguments or {}
    match params.name:
        case "echo":
            text = arguments.get("text")
            if not isinstance(text, str):
                return _answer("The argument text is missing or not a string.", failed=True)
            return _answer(text)
        case "whoami":
            return _answer(json.dumps(whoami(headers), indent=2, ensure_ascii=False))
        case "headers":
            return _answer(json.dumps(shown(headers), indent=2, ensure_ascii=False))
        case _:
            raise unknown_tool()


def _answer(text: str, failed: bool = False) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=failed)


def unknown_tool() -> MCPError:
    """What is said of a tool that there is not, for anyone or for this person."""
    return MCPError(code=INVALID_PARAMS, message="Unknown tool")


def schema(name: str) -> Mapping[str, Any] | None:
    """A tool's input schema, so that the SDK need not list the tools for each call."""
    return next((tool.input_schema for tool in TOOLS if tool.name == name), None)


def create_server(rules: ToolRules) -> Server[Any]:
    """The MCP server; `rules` say who has which tool."""

    def has(ctx: ServerRequestContext[Any, Any], tool: str) -> bool:
        return rules.permits(groups_of(headers_of(ctx).get("x-gatehouse-groups", "")), tool)

    async def permitted_tools(
        ctx: ServerRequestContext[Any, Any], _params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return ListToolsResult(tools=[tool for tool in TOOLS if has(ctx, tool.name)])

    async def permitted_call(
        ctx: ServerRequestContext[Any, Any], params: CallToolRequestParams
    ) -> CallToolResult:
        if not has(ctx, params.name):
            raise unknown_tool()
        return await call_tool(ctx, params)

    return Server(
        "gatehouse-echo",
        version=VERSION,
        title="Gatehouse echo",
        instructions="Diagnostics of the gateway: what a service sees of you and of your request.",
        on_list_tools=permitted_tools,
        on_call_tool=permitted_call,
        get_tool_input_schema=schema,
    )
