"""`python -m gatehouse_auth`: run the service."""

import logging
import socket
import sys
import traceback
from typing import NoReturn

import uvicorn

from gatehouse_auth import systemd
from gatehouse_auth.app import create_app
from gatehouse_auth.audit import Log
from gatehouse_auth.context import build
from gatehouse_auth.settings import ConfigurationError, load_secrets, load_settings

EX_CONFIG = 78
# Longer than Traefik keeps an idle connection (90 s), so that it never writes into one that is closing.
KEEP_ALIVE_SECONDS = 120
BACKLOG = 4096


class JsonHandler(logging.Handler):
    """Libraries' warnings, in the log's form. Of an exception, where it happened and its type: a message
    could quote what must not be logged."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        fields: dict[str, str] = {}
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])
            fields["error"] = record.exc_info[0].__name__
            fields["where"] = " > ".join(f"{frame.filename}:{frame.lineno}" for frame in frames[-8:])
            self._log.event("fault", "error", logger=record.name, **fields)
        else:
            self._log.event("log", record.levelname.lower(), logger=record.name, message=record.getMessage())


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
        secrets = load_secrets(settings)
    except ConfigurationError as error:
        stop("\n".join(error.problems), EX_CONFIG)
    log = Log()
    logging.basicConfig(handlers=[JsonHandler(log)], level=logging.WARNING)
    try:
        sockets = [listen(host, port) for host, port in settings.addresses]
    except OSError as error:
        stop(f"GATEHOUSE_LISTEN: cannot listen there: {error.strerror}", 1)
    config = uvicorn.Config(
        create_app(build(settings, secrets, log)),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    Server(config).run(sockets)
    log.flush()


def listen(host: str, port: int) -> socket.socket:
    """A bound socket."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host, port))
    return bound


def stop(sentence: str, status: int) -> NoReturn:
    """End with a sentence on standard error."""
    sys.stderr.write(f"{sentence}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
