"""Run in an environment that has the MCP Python SDK 1.x: initialize, list, call. Prints what it found as JSON."""

import asyncio
import json
import sys
from typing import Any

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client


async def main(url: str, tool: str, arguments: dict[str, Any]) -> None:
    async with (
        streamablehttp_client(url, headers={"X-Gatehouse-User": "local:ana"}) as (read, write, session_id),
        ClientSession(read, write) as session,
    ):
        hello = await session.initialize()
        tools = await session.list_tools()
        result = await session.call_tool(tool, arguments)
        print(
            json.dumps(
                {
                    "version": hello.protocolVersion,
                    "session": bool(session_id()),
                    "tools": [tool.name for tool in tools.tools],
                    "error": result.isError,
                    "text": getattr(result.content[0], "text", ""),
                }
            )
        )


asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
