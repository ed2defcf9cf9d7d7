"""An MCP server over stdio that speaks every revision, on the SDK's own low-level server."""

import asyncio
import os
from typing import Any

import mcp_types as types
from mcp import MCPError
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.subscriptions import ToolsListChanged

BUS = InMemorySubscriptionBus()


async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
    region = {"type": "string", "x-mcp-header": "Region"}
    count = {"type": "integer", "x-mcp-header": "Count"}
    inner = {"type": "object", "properties": {"count": count}}
    schema = {"type": "object", "properties": {"region": region, "inner": inner}}
    return types.ListToolsResult(tools=[types.Tool(name="regional", input_schema=schema)])


async def call_tool(
    context: Any, params: types.CallToolRequestParams
) -> types.CallToolResult | types.InputRequiredResult:
    if params.name == "ask" and not (context.params or {}).get("inputResponses"):
        question = {"method": "roots/list", "params": {}}
        return types.InputRequiredResult.model_validate({"inputRequests": {"roots": question}}, by_name=False)
    if params.name == "need":
        raise MCPError(-32021, "Needs roots", {"requiredCapabilities": {"roots": {}}})
    if params.name == "change":
        await BUS.publish(ToolsListChanged())
    said = {"pid": str(os.getpid()), "version": context.protocol_version}.get(params.name, "done")
    return types.CallToolResult(content=[types.TextContent(type="text", text=said)])


async def main() -> None:
    server: Server[Any] = Server(
        "modern", on_list_tools=list_tools, on_call_tool=call_tool, on_subscriptions_listen=ListenHandler(BUS)
    )
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


if __name__ == "__main__":
    asyncio.run(main())
