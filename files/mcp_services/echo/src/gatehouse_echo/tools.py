"""The tools, on the SDK's low-level server: what they are, and what they do."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from mcp.server.lowlevel import Server
from mcp_types import CallToolResult, Tool, ToolAnnotations

from gatehouse_service.native import answer, tool_server
from gatehouse_service.tools import ToolRules

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


async def call_tool(name: str, arguments: Mapping[str, Any], headers: Mapping[str, str]) -> CallToolResult:
    """What the tools do."""
    if name == "echo":
        text = arguments.get("text")
        if not isinstance(text, str):
            return answer("The argument text is missing or not a string.", failed=True)
        return answer(text)
    shows = whoami if name == "whoami" else shown
    return answer(json.dumps(shows(headers), indent=2, ensure_ascii=False))


def create_server(rules: ToolRules) -> Server[Any]:
    """The MCP server; `rules` say who has which tool."""
    return tool_server(
        "gatehouse-echo",
        version=VERSION,
        title="Gatehouse echo",
        instructions="Diagnostics of the gateway: what a service sees of you and of your request.",
        tools=TOOLS,
        call=call_tool,
        rules=rules,
    )
