"""`python -m gatehouse_echo`: run the service."""

import json
import logging
import socket
import sys
from datetime import UTC, datetime
from typing import NoReturn

import uvicorn

from gatehouse_echo import systemd
from gatehouse_echo.app import App
from gatehouse_echo.settings import ConfigurationError, load_settings

EX_CONFIG = 78
# Longer than Traefik keeps an idle connection (90 s), so that it never writes into one that is closing.
KEEP_ALIVE_SECONDS = 120
BACKLOG = 4096


class JsonFormatter(logging.Formatter):
    """One JSON object a line. Of an exception only its type: its text could quote a request."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.name,
            "service": self._service,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0]:
            fields["error"] = record.exc_info[0].__name__
        return json.dumps(fields)


class Server(uvicorn.Server):
    """Uvicorn that tells systemd when it listens, and when it stops."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started:
            systemd.notify("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Say so, then finish what is under way."""
        systemd.notify("STOPPING=1")
        await super().shutdown(sockets)


def main() -> None:
    """Read the configuration, listen, serve until SIGTERM."""
    try:
        settings = load_settings()
    except ConfigurationError as error:
        stop("\n".join(error.problems), EX_CONFIG)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(settings.service))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    host, port = settings.address
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        stop(f"GATEHOUSE_LISTEN: cannot listen there: {error.strerror}", 1)
    config = uvicorn.Config(
        App(settings),
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
    Server(config).run([bound])


def stop(sentence: str, status: int) -> NoReturn:
    """End with a sentence on standard error."""
    sys.stderr.write(f"{sentence}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
