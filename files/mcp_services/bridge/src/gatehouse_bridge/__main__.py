"""`python -m gatehouse_bridge`: run the bridge."""

import gc
import logging
import socket
import sys
from typing import NoReturn

import uvicorn

from gatehouse_bridge import systemd, tree
from gatehouse_bridge.app import App
from gatehouse_bridge.log import Handler, Log
from gatehouse_bridge.settings import ConfigurationError, child_environment, load_secrets, load_settings

EX_CONFIG = 78
# Longer than Traefik keeps an idle connection (90 s), so that it never writes into one that is closing.
KEEP_ALIVE_SECONDS = 120
BACKLOG = 4096


class Server(uvicorn.Server):
    """Uvicorn that tells systemd when it listens and when it stops, and the bridge when to let go."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started:
            systemd.notify("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Say so, then finish what is under way."""
        systemd.notify("STOPPING=1")
        self._app.drain()
        await super().shutdown(sockets)


def main() -> None:
    """Read the configuration, listen, serve until SIGTERM."""
    try:
        settings = load_settings()
        secrets = load_secrets(settings)
    except ConfigurationError as error:
        stop("\n".join(error.problems), EX_CONFIG)
    log = Log(settings.service, secrets.values())
    logging.basicConfig(handlers=[Handler(log)], level=logging.WARNING)
    tree.become_subreaper()
    try:
        bound = listen(*settings.address)
    except OSError as error:
        stop(f"GATEHOUSE_LISTEN: cannot listen there: {error.strerror}", 1)
    app = App(settings, child_environment(settings, secrets), log)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    # What is loaded by now stays: the collector need not look at it again.
    gc.freeze()
    Server(config, app).run([bound])


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        OSError: the address cannot be had.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host, port))
    return bound


def stop(sentence: str, status: int) -> NoReturn:
    """End with a sentence on standard error."""
    sys.stderr.write(f"{sentence}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
