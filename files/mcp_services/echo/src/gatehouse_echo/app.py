"""The ASGI application: `/mcp` by the SDK, `/health`, and nothing else.

One endpoint serves every revision: 2026-07-28, and the earlier ones without sessions.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from gatehouse_echo.tools import create_server
from gatehouse_service import systemd
from gatehouse_service.configuration import ServiceSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class App:
    """The service. It refuses no one: who may call it is decided in front of it.

    The host is checked here and not by the SDK, which would refuse web origins too that the gateway admits.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        """See the class."""
        self._hosts = settings.hosts
        self._health = json.dumps({"status": "ok", "service": settings.service}).encode()
        self._mcp = StreamableHTTPSessionManager(
            app=create_server(settings.tools), stateless=True, json_response=True
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the application's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif not self._host_is_ours(scope):
            await _reply(send, 421, b'{"error":"unknown host"}')
        elif scope["path"] == "/health":
            await _reply(send, 200, self._health)
        elif scope["path"].rstrip("/") != "/mcp":
            await _reply(send, 404, b'{"error":"not found; the endpoint is /mcp"}')
        elif scope["method"] != "POST":
            # Without sessions there is nothing to listen to (GET) and nothing to end (DELETE).
            await _reply(send, 405, b'{"error":"only POST"}', [(b"allow", b"POST")])
        else:
            await self._mcp.handle_request(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self._mcp.run():
            watchdog = asyncio.create_task(systemd.watchdog())
            await send({"type": "lifespan.startup.complete"})
            await receive()
            watchdog.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    def _host_is_ours(self, scope: Scope) -> bool:
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        try:
            return urlsplit(f"//{host.decode('latin-1')}").hostname in self._hosts
        except ValueError:
            return False


async def _reply(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    fields = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *(headers or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
