"""The smallest MCP server that a session can be opened on; it starts in a few milliseconds.

Run with `python -I -S`: ten thousand of them are started and ended by `soak.py`.
"""

import json
import os
import sys
from typing import Any

for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message or "method" not in message:
        continue
    result: dict[str, Any] = {"content": [{"type": "text", "text": str(os.getpid())}]}
    if message["method"] == "initialize":
        result = {
            "protocolVersion": message["params"]["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "quick", "version": "1"},
        }
    elif message["params"].get("name") == "hang":
        continue
    elif message["params"].get("name") == "family":
        for leaves in (False, True):
            if not os.fork():
                if leaves:
                    os.setsid()
                    if os.fork():
                        os._exit(0)
                os.close(0)
                os.execv("/bin/sleep", ["sleep", "600"])
    elif message["params"].get("name") == "crash":
        os._exit(1)
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
