"""The same server on the MCP Python SDK."""

from mcp.server.mcpserver import MCPServer

server = MCPServer("sdk", log_level="ERROR")


@server.tool(structured_output=False)
def echo(text: str) -> str:
    """Echo."""
    return text


server.run("stdio")
