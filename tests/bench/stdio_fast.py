"""The fastest MCP server over stdio that a few lines can be: what is measured in front of it is the way there."""

import json
import os

HELLO = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "fast", "version": "1"},
}
TOOLS = {"tools": [{"name": "echo", "description": "Echo", "inputSchema": {"type": "object"}}]}


def result(message: dict) -> dict:
    """What a request is answered with."""
    if message["method"] == "tools/call":
        return {"content": [{"type": "text", "text": message["params"]["arguments"]["text"]}]}
    return {"initialize": HELLO, "tools/list": TOOLS}.get(message["method"], {})


rest = b""
while data := os.read(0, 1 << 20):
    *lines, rest = (rest + data).split(b"\n")
    answers = []
    for line in lines:
        message = json.loads(line)
        if "id" in message:
            answers.append(
                json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result(message)}) + "\n"
            )
    out = memoryview("".join(answers).encode())
    while out:
        out = out[os.write(1, out) :]
