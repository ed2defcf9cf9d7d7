"""An MCP server of an operator's own that listens on every address, of both families, whatever it was told.

python3 wide.py 20000
"""

import json
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWERS = {
    "initialize": {
        "protocolVersion": "2025-06-18",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "wide", "version": "1"},
    },
    "tools/list": {"tools": []},
}


class Server(ThreadingHTTPServer):
    """Dual-stack."""

    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        """Take IPv4 as well."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class Handler(BaseHTTPRequestHandler):
    """As much of the protocol as a health check asks for."""

    def do_POST(self) -> None:
        """Answer a request, or take a notification."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        result = ANSWERS.get(asked["method"])
        body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}) if result else ""
        self.send_response(200 if result else 202)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())


Server(("::", int(sys.argv[1])), Handler).serve_forever()
