"""Carries JSON-RPC between streamable HTTP and an MCP server that speaks stdio."""
