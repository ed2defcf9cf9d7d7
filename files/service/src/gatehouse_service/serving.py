"""Uvicorn as all services run it: behind Traefik, under systemd."""

import asyncio
import gc
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from gatehouse_service import systemd
from gatehouse_service.configuration import stop
from gatehouse_service.connection import Connection

# Longer than Traefik keeps an idle connection (90 s), so that it never writes into one that is closing.
KEEP_ALIVE_SECONDS = 120
BACKLOG = 4096
# ip(7); Python has no name for it.
IP_FREEBIND = 15


class _Server(uvicorn.Server):
    """Uvicorn that tells systemd when it listens and when it stops, and the application when to let go."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        # What is here now stays: it need not be looked at again whenever garbage is collected.
        gc.collect()
        gc.freeze()
        if self.started:
            systemd.notify("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Say so, then finish what is under way."""
        systemd.notify("STOPPING=1")
        self._on_stop()
        await super().shutdown(sockets)


def serve(
    app: Any,
    addresses: list[tuple[str, int]],
    drain_seconds: int,
    on_stop: Callable[[], None] = lambda: None,
    protocol: type[asyncio.Protocol] = Connection,
) -> None:
    """Serve an ASGI application until SIGTERM; requests that have begun get `drain_seconds`.

    Args:
        app: The application.
        addresses: Where to listen. One that cannot be had ends the process with a sentence.
        drain_seconds: Seconds for what has begun.
        on_stop: Called when it stops, before the draining.
        protocol: What handles a connection, where it answers past the application.
    """
    try:
        sockets = [_listen(*address) for address in addresses]
    except OSError as error:
        stop(f"GATEHOUSE_LISTEN: cannot listen there: {error.strerror}", 1)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol,
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=drain_seconds,
    )
    _Server(config, on_stop).run(sockets)


def _listen(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # The network between the hosts (WireGuard) may come up later.
    bound.setsockopt(socket.SOL_IP, IP_FREEBIND, 1)
    bound.bind((host, port))
    return bound
